//! Frames in no order and conversations with wrong bytes in them, a million frames: no panic, the right kind of end, bounded accounts.
//! Frames and session only; `tests/tests/fuzz.rs` does it at the sockets of real processes.

use super::*;

/// Frames of mutated conversations.
const FRAMES: u64 = 1_000_000;
/// The channel of the conversations.
const CHANNEL: u16 = 2;

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

/// An edge that does all it is asked.
fn obey(talk: &mut Talk) {
    while let Some(step) = talk.out.steps.pop_front() {
        let event = match step {
            Step::Authenticate { .. } | Step::AuthenticateByCertificate { .. } => Event::Authenticated,
            Step::Open { .. } => Event::Opened,
            Step::Publish(publish) => match publish.ticket {
                Some(ticket) => Event::Confirmed { channel: publish.channel, tickets: vec![(ticket, ticket)] },
                None => continue,
            },
            Step::Request { channel, request } => Event::Reply { channel, result: Ok(reply(&request)) },
            Step::ChannelClosed { channel, .. } => {
                talk.session.on_channel_closed(channel, &mut talk.out);
                continue;
            }
            Step::Commit(commit) => done(commit.channel),
            Step::UpdateSecret => Event::SecretUpdated(Ok(())),
            Step::Settle { .. } | Step::Written { .. } | Step::ChannelPrefetch { .. } | Step::Check(_) | Step::Report(_) => continue,
            Step::Append(append) => panic!("an AMQP session appends: {append:?}"),
            Step::Leave => Event::Left,
        };
        talk.session.on_event(event, &mut talk.out);
    }
}

fn reply(request: &Request) -> Reply {
    match request {
        Request::DeclareQueue(declare) => Reply::Queue { name: declare.name.name.clone(), messages: 3, consumers: 1 },
        Request::DeleteQueue { .. } | Request::PurgeQueue { .. } => Reply::Count(3),
        Request::Consume { .. } => Reply::Consuming { consumer: ConsumerId(5) },
        Request::Get { .. } => Reply::Got(Some(Got { shard: ShardId(1), delivery: delivery(9, b"m9"), remaining: 3 })),
        Request::DeclareExchange { .. }
        | Request::DeleteExchange { .. }
        | Request::Bind(_)
        | Request::Unbind(_)
        | Request::Cancel { .. }
        | Request::OpenChannel
        | Request::Barrier => Reply::Done,
        Request::Take(_) => Reply::Took(Vec::new()),
    }
}

/// What a client may say from the opening of a channel to its close: the frames' bytes.
fn conversation() -> Bytes {
    let (ticket, queue) = (0, || "q".into());
    let bind =
        Method::QueueBind { ticket, queue: queue(), exchange: "e".into(), routing_key: "k".into(), nowait: false, arguments: Table::new() };
    let before = [
        channel_open(),
        Method::ConfirmSelect { nowait: false },
        declare("q", &[("a", Value::List(vec![Value::Int(1)]))]),
        bind,
        Method::BasicQos { prefetch_size: 0, prefetch_count: 10, global: false },
        publish(true, false),
    ];
    let after = [
        consume("q", "t", false),
        get("q"),
        Method::BasicAck { delivery_tag: 1, multiple: false },
        Method::BasicRecover { requeue: true },
        Method::BasicCancel { consumer_tag: "t".into(), nowait: false },
        Method::QueuePurge { ticket, queue: queue(), nowait: false },
        close_method(),
    ];
    let mut output = Output::default();
    before.iter().for_each(|method| output.method(CHANNEL, method));
    let body = Bytes::from(vec![1; 5000]);
    output.content(CHANNEL, &Content { properties: &[0x20, 0, 0, 0, 0, 3, 1, b'h', b'V'], body: &body, body_at: 0 }, 4096);
    after.iter().for_each(|method| output.method(CHANNEL, method));
    output.take()
}

/// Says all that can be read as frames; how many those were.
fn tell(talk: &mut Talk, mut bytes: BytesMut) -> u64 {
    let mut frames = 0;
    while talk.session.phase() == Phase::Running {
        match frame::next(&mut bytes, 4096) {
            Ok(Some(frame)) => talk.session.on_frame(frame, &mut talk.out),
            Ok(None) => break,
            Err(error) => talk.session.on_frame_error(error, &mut talk.out),
        }
        frames += 1;
        obey(talk);
        talk.session.end_batch(&mut talk.out);
    }
    obey(talk);
    frames
}

/// Wrong bytes, bytes too many, bytes that are missing, things said twice.
fn mutate(random: &mut tags::Tags, bytes: &mut BytesMut) {
    let at = random.number() as usize % bytes.len();
    match random.number() % 8 {
        0 => bytes.truncate(at.max(1)),
        1 => {
            let tail = bytes.split_off(at);
            let again = [&tail[tail.len() / 2..], &tail[..]].concat();
            bytes.extend_from_slice(&again);
        }
        _ => bytes[at] = random.number() as u8,
    }
}

#[test]
fn mutated_conversations_end_in_a_close_or_nothing() {
    let valid = conversation();
    let mut talk = Talk::open();
    let whole = tell(&mut talk, BytesMut::from(&valid[..]));
    talk.heard();
    assert_eq!(whole, 16, "every frame of the conversation counts");
    assert!(!talk.record.iter().any(|line| line.contains("close ")), "left alone it goes well: {:?}", talk.record);
    let mut random = tags::Tags::new(42);
    let (mut frames, mut round, mut ended) = (0, 0u64, 0u64);
    while frames < FRAMES {
        round += 1;
        let mut bytes = BytesMut::from(&valid[..]);
        (0..round % 4).for_each(|_| mutate(&mut random, &mut bytes));
        frames += tell(&mut talk, bytes);
        let (phase, shared) = (talk.session.phase(), &talk.session.shared);
        assert!(shared.backlog < 64 << 10 && shared.assembling < 64 << 10, "round {round}");
        drop(talk.out.bytes.take());
        if phase != Phase::Running {
            ended += 1;
            talk = Talk::open();
        }
    }
    assert!(ended > round / 4 && ended < round, "{ended} of {round} conversations ended the connection");
}
