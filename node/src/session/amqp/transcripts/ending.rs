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
    assert_eq!(talk.session.phase(), Phase::Leaving, "what the client had is still there");
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
    let octets = frame::snippet(b"abc");
    talk.session.on_frame_error(FrameError::End { kind: 1, octets, marker: 0 }, &mut talk.out);
    talk.heard();
    talk.reads("< 0 connection.close 501 FRAME_ERROR - type 1, all octets = <<\"abc\">>: {invalid_frame_end_marker,0} (0,0)");
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
