//! How conversations end: by the client, by the broker, by what cannot be understood.

use super::*;

#[test]
fn a_leaving_client_gets_its_pending_work_done() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[]));
    talk.publish(1, b"x");
    talk.say(0, Method::ConnectionClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 });
    assert!(!talk.session.wants_input());
    talk.edge(queue_reply("q"));
    assert_eq!(talk.session.phase(), Phase::Running, "what the client had is still there");
    talk.edge(Event::Left);
    talk.reads(
        "> 1 queue.declare
         = request 1 declare q passive=false
         > 1 basic.publish
         > 0 connection.close
         ! Reply
         = publish 1 ticket=None mandatory=true 1 bytes
         = leave
         < 1 queue.declare-ok \"q\" 3 1
         ! Left
         < 0 connection.close-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn the_broker_closes_with_a_reason() {
    let mut talk = Talk::open();
    talk.edge(Event::Blocked("no quorum".into()));
    talk.edge(Event::Unblocked);
    talk.edge(Event::Close("shutdown".into()));
    talk.say(1, declare("q", &[]));
    talk.say(0, Method::ConnectionCloseOk {});
    talk.reads(
        "! Blocked
         < 0 connection.blocked \"no quorum\"
         ! Unblocked
         < 0 connection.unblocked
         ! Close
         < 0 connection.close 320 CONNECTION_FORCED - shutdown (0,0)
         > 1 queue.declare
         > 0 connection.close-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn broken_frames_end_the_conversation() {
    let mut talk = Talk::open();
    talk.session.on_frame_error(FrameError::End { kind: 1, marker: 0 }, &mut talk.out);
    talk.heard();
    assert!(talk.record[0].starts_with("< 0 connection.close 501 FRAME_ERROR"));
}

proptest::proptest! {
    #[test]
    fn no_frames_in_any_order_panic_or_leak_the_accounts(frames in proptest::collection::vec((0usize..4, 0u16..4, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), 0usize..60), 1..60)) {
        const METHODS: [(u8, u8); 12] = [(20, 10), (20, 40), (20, 41), (40, 10), (50, 10), (50, 20), (60, 20), (60, 40), (60, 70), (60, 80), (60, 90), (85, 10)];
        let kinds = [FrameKind::Method, FrameKind::Header, FrameKind::Body, FrameKind::Heartbeat];
        let mut talk = Talk::open();
        for (kind, channel, mut bytes, method) in frames {
            if kind == 0 && method < 48 {
                let (class, id) = METHODS[method % 12];
                bytes.splice(0..0, [0, class, 0, id, 0, 0]);
            }
            talk.frame(kinds[kind], channel, &bytes);
            for step in std::mem::take(&mut talk.out.steps) {
                match step {
                    Step::Request { channel, .. } => talk.session.on_event(done(channel), &mut talk.out),
                    Step::ChannelClosed { channel, .. } => talk.session.on_channel_closed(channel, &mut talk.out),
                    _ => {}
                }
            }
            talk.session.end_batch(&mut talk.out);
        }
        talk.session.on_event(Event::Close("end".into()), &mut talk.out);
        proptest::prop_assert_eq!(talk.session.shared.backlog, 0);
        proptest::prop_assert_eq!(talk.session.shared.assembling, 0);
    }
}

#[test]
fn mutated_conversations_end_in_a_close_or_nothing() {
    let mut output = Output::default();
    output.method(1, &channel_open());
    output.method(1, &declare("q", &[("a", Value::List(vec![Value::Int(1)]))]));
    output.method(1, &publish(true, false));
    output.content(1, &Content { properties: &[0x20, 0, 0, 0, 0, 3, 1, b'h', b'V'], body: &Bytes::from(vec![1; 9000]), body_at: 0 }, 4096);
    output.method(1, &consume("q", "t", false));
    output.method(1, &Method::BasicAck { delivery_tag: 1, multiple: true });
    output.method(1, &close_method());
    let valid = output.take();
    let mut random = tags::Tags::new(42);
    let (mut frames, mut round) = (0, 0);
    while frames < 20_000 {
        round += 1;
        let mut talk = Talk::open();
        let mut bytes = BytesMut::from(&valid[..]);
        for _ in 0..round % 5 {
            let at = random.number() as usize % bytes.len();
            bytes[at] = random.number() as u8;
        }
        while talk.session.phase() == Phase::Running {
            match frame::next(&mut bytes, 4096) {
                Ok(Some(frame)) => talk.session.on_frame(frame, &mut talk.out),
                Ok(None) => break,
                Err(error) => talk.session.on_frame_error(error, &mut talk.out),
            }
            frames += 1;
            while let Some(step) = talk.out.steps.pop_front() {
                match step {
                    Step::Request { channel, .. } => talk.session.on_event(done(channel), &mut talk.out),
                    Step::ChannelClosed { channel, .. } => talk.session.on_channel_closed(channel, &mut talk.out),
                    _ => {}
                }
            }
        }
        assert!(matches!(talk.session.phase(), Phase::Running | Phase::Closing | Phase::Closed));
        assert!(talk.session.shared.backlog < 64 << 10 && talk.session.shared.assembling < 64 << 10, "round {round}");
    }
}

#[test]
fn a_haunted_channel_whose_first_frame_closes_the_connection() {
    let mut talk = Talk::open();
    talk.slow_edge = true;
    talk.say(1, Method::BasicAck { delivery_tag: 9, multiple: false });
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, get("q"));
    talk.say(1, get("q"));
    talk.session.on_channel_closed(1, &mut talk.out);
    assert!(talk.session.shared.backlog < 1 << 40);
}
