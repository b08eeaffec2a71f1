//! Channels and their content: order, limits, methods that are not there, closing and opening again.

use super::*;

#[test]
fn a_channel_that_is_not_open_ends_the_connection() {
    let mut talk = Talk::open();
    talk.say(2, declare("q", &[]));
    talk.reads(
        "> 2 queue.declare
        < 0 connection.close 504 CHANNEL_ERROR - expected 'channel.open' (50,10)",
    );
    let mut talk = Talk::open();
    talk.say(1, channel_open());
    talk.reads(
        "> 1 channel.open
        < 0 connection.close 504 CHANNEL_ERROR - second 'channel.open' seen (20,10)",
    );
    let mut talk = Talk::open();
    talk.say(2048, channel_open());
    talk.reads(
        "> 2048 channel.open
        < 0 connection.close 530 NOT_ALLOWED - number of channels opened (1) has reached the negotiated channel_max (2047) (20,10)",
    );
}

#[test]
fn content_out_of_order_ends_the_connection() {
    let mut talk = Talk::open();
    talk.content(1, b"x");
    talk.reads("< 0 connection.close 505 UNEXPECTED_FRAME - expected method frame, got non method frame instead (0,0)");
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.say(1, get("q"));
    talk.reads(
        "> 1 basic.publish
         > 1 basic.get
         < 0 connection.close 505 UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead (60,40)",
    );
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0]);
    talk.say(1, get("q"));
    talk.reads(
        "> 1 basic.publish
         > 1 basic.get
         < 0 connection.close 505 UNEXPECTED_FRAME - expected content body, got non content body frame instead (60,40)",
    );
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    talk.frame(FrameKind::Body, 1, b"too long");
    talk.heard();
    talk.reads(
        "> 1 basic.publish
         < 0 connection.close 501 FRAME_ERROR - content body larger than the size in the content header (60,40)",
    );
}

#[test]
fn frames_that_belong_to_another_channel_end_the_connection() {
    let refused = |channel: u16, kind: FrameKind, payload: &[u8], text: &str| {
        let mut talk = Talk::open();
        talk.frame(kind, channel, payload);
        talk.heard();
        talk.reads(&format!("< 0 connection.close 505 UNEXPECTED_FRAME - {text} (0,0)"));
    };
    let header = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    refused(0, FrameKind::Header, &header, "type 2, all octets = <<0,60,0,0,0,0,0,0,0,0,0,1,0,0>>");
    refused(0, FrameKind::Body, b"body", "type 3, all octets = <<\"body\">>");
    for channel in [1, 2] {
        refused(channel, FrameKind::Heartbeat, b"", "type 8, all octets = <<>>");
    }
    refused(2, FrameKind::Body, b"body", "expected method frame, got non method frame instead");
    let mut talk = Talk::open();
    talk.frame(FrameKind::Heartbeat, 0, b"");
    talk.heard();
    talk.reads("");
    // A heartbeat is out of place inside a message, too, and what was begun counts no more.
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Heartbeat, 1, b"");
    talk.heard();
    talk.reads(
        "> 1 basic.publish
         < 0 connection.close 505 UNEXPECTED_FRAME - type 8, all octets = <<>> (0,0)",
    );
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn a_header_of_another_class_or_with_a_weight_is_unexpected() {
    let header = |class: u8, weight: u8| [0, class, 0, weight, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    for (payload, text) in [(header(50, 0), "got one for class 50 instead"), (header(60, 1), "got non content header frame instead")] {
        let mut talk = Talk::open();
        talk.say(1, publish(false, false));
        talk.frame(FrameKind::Header, 1, &payload);
        talk.heard();
        talk.reads(&format!(
            "> 1 basic.publish
             < 0 connection.close 505 UNEXPECTED_FRAME - expected content header for class 60, {text} (60,40)"
        ));
    }
}

#[test]
fn a_message_beyond_the_limit_closes_the_channel_and_its_body_is_ignored() {
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]);
    talk.frame(FrameKind::Body, 1, b"ignored");
    talk.heard();
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, channel_open());
    talk.reads(
        "> 1 basic.publish
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216 (60,40)
         > 1 channel.close-ok
         > 1 channel.open
         < 1 channel.open-ok",
    );
}

#[test]
fn a_node_may_be_told_of_a_smaller_limit() {
    let mut talk = Talk::with(Options { max_message_bytes: 3, ..options() }).opened(&[]);
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0]);
    talk.frame(FrameKind::Body, 1, b"fit");
    talk.heard();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0]);
    talk.heard();
    talk.reads(
        "> 1 basic.publish
         = publish 1 ticket=None mandatory=false 3 bytes
         > 1 basic.publish
         = request 1 barrier",
    );
    talk.edge(done(1));
    talk.reads(
        "! Reply
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - message size 4 is larger than configured max size 3 (60,40)",
    );
}

#[test]
fn a_refused_message_waits_its_turn_and_is_passed_over() {
    let small = || Talk::with(Options { max_message_bytes: 3, ..options() }).opened(&[]);
    let text = "message size 9 is larger than configured max size 3";
    let cases = [
        (false, format!("= closed 1 holding\n< 1 channel.close 406 PRECONDITION_FAILED - {text} (60,40)")),
        (true, "< 0 connection.close 540 NOT_IMPLEMENTED - immediate=true (60,40)".to_owned()),
    ];
    for (immediate, refusal) in cases {
        let begin = |talk: &mut Talk| {
            talk.say(1, declare("q", &[]));
            talk.say(1, publish(false, immediate));
            talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0]);
            talk.frame(FrameKind::Body, 1, b"so");
        };
        let mut talk = small();
        begin(&mut talk);
        talk.frame(FrameKind::Body, 1, b"me body");
        talk.say(1, get("q"));
        talk.edge(queue_reply("q"));
        talk.reads(&format!(
            "> 1 queue.declare
             = request 1 declare q passive=false
             > 1 basic.publish
             > 1 basic.get
             ! Reply
             {}
             < 1 queue.declare-ok \"q\" 3 1
             {}",
            refusal.lines().filter(|line| line.starts_with('=')).collect::<String>(),
            refusal.lines().filter(|line| line.starts_with('<')).collect::<String>(),
        ));
        assert_eq!((talk.session.shared.backlog, talk.session.shared.assembling), (0, 0));
        // What comes before it may be refused as well.
        let mut talk = small();
        begin(&mut talk);
        talk.edge(Event::Reply { channel: 1, result: Err(Refusal::Access("no".into())) });
        assert_eq!(talk.record.last().expect("answer"), "< 1 channel.close 403 ACCESS_REFUSED - no (50,10)");
        // The frames must still be those of a message.
        let mut talk = small();
        begin(&mut talk);
        talk.frame(FrameKind::Body, 1, b"much too much");
        talk.heard();
        let larger = "content body larger than the size in the content header";
        assert_eq!(talk.record.last().expect("answer"), &format!("< 0 connection.close 501 FRAME_ERROR - {larger} (60,40)"));
        let mut talk = small();
        begin(&mut talk);
        talk.say(1, get("q"));
        let other = "expected content body, got non content body frame instead";
        assert_eq!(talk.record.last().expect("answer"), &format!("< 0 connection.close 505 UNEXPECTED_FRAME - {other} (60,40)"));
    }
}

#[test]
fn a_message_that_failed_before_a_refused_one_closes_the_channel_first() {
    let mut talk = Talk::open();
    talk.publish(1, b"x");
    talk.say(1, publish(false, true));
    talk.content(1, b"x");
    let refusal = Refusal::NotFound { kind: "exchange".into(), name: "e".into(), vhost: "/".into() };
    talk.edge(Event::ChannelError { channel: 1, refusal, method: (60, 40) });
    talk.reads(
        "> 1 basic.publish
         = publish 1 ticket=None mandatory=true 1 bytes
         > 1 basic.publish
         = request 1 barrier
         ! ChannelError
         = closed 1 holding
         < 1 channel.close 404 NOT_FOUND - no exchange 'e' in vhost '/' (60,40)",
    );
}

#[test]
fn a_large_body_in_pieces_arrives_whole() {
    let mut talk = Talk::open();
    talk.publish(1, &vec![7; 10_000]);
    talk.reads(
        "> 1 basic.publish
        = publish 1 ticket=None mandatory=true 10000 bytes",
    );
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn bodies_that_never_end_are_bounded() {
    let mut talk = Talk::open();
    for channel in 2..8 {
        talk.say(channel, channel_open());
        talk.say(channel, publish(false, false));
        talk.frame(FrameKind::Header, channel, &[0, 60, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        talk.frame(FrameKind::Body, channel, &vec![0; (16 << 20) - 1]);
    }
    talk.heard();
    assert!(talk.record.iter().any(|l| l.contains("506 RESOURCE_ERROR")), "{:?}", talk.record);
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn immediate_and_flow_and_recover_without_requeue_are_not_implemented() {
    let cases = [
        (publish(false, true), "immediate=true (60,40)"),
        (Method::ChannelFlow { active: false }, "active=false (20,20)"),
        (Method::BasicRecover { requeue: false }, "requeue=false (60,110)"),
        (Method::BasicRecoverAsync { requeue: false }, "requeue=false (60,100)"),
        (Method::BasicQos { prefetch_size: 1, prefetch_count: 0, global: false }, "prefetch_size!=0 (1) (60,10)"),
    ];
    for (method, text) in cases {
        let mut talk = Talk::open();
        let name = method.name();
        talk.say(1, method);
        talk.reads(&format!("> 1 {name}\n< 0 connection.close 540 NOT_IMPLEMENTED - {text}"));
    }
}

#[test]
fn a_user_who_lost_its_vhost_is_told_when_it_updates_its_secret() {
    let mut talk = Talk::open();
    talk.say(0, Method::ConnectionUpdateSecret { new_secret: crate::wire::amqp::Long(Bytes::from_static(b"s")), reason: "r".into() });
    talk.edge(Event::SecretUpdated(Err(Refusal::NotAllowed("access to vhost '/' refused for user 'u'".into()))));
    talk.reads(
        "> 0 connection.update-secret
         = update secret
         ! SecretUpdated
         < 0 connection.close 530 NOT_ALLOWED - access to vhost '/' refused for user 'u' (10,70)",
    );
}

#[test]
fn a_channel_is_open_when_the_edge_says_so_and_what_came_for_it_waits() {
    let mut talk = Talk::open();
    talk.keeps_opens = true;
    talk.say(2, channel_open());
    talk.say(2, declare("q", &[]));
    talk.edge(done(2));
    talk.reads(
        "> 2 channel.open
         = request 2 open
         > 2 queue.declare
         ! Reply
         = request 2 declare q passive=false
         < 2 channel.open-ok",
    );
    talk.say(3, channel_open());
    talk.edge(Event::Reply { channel: 3, result: Err(Refusal::NotAllowed("no more".into())) });
    talk.reads(
        "> 3 channel.open
         = request 3 open
         ! Reply
         < 0 connection.close 530 NOT_ALLOWED - no more (20,10)",
    );
}

#[test]
fn small_requests_of_old_and_new_clients_are_answered() {
    let secret = Method::ConnectionUpdateSecret { new_secret: crate::wire::amqp::Long(Bytes::from_static(b"s")), reason: "r".into() };
    let access = Method::AccessRequest { realm: "/data".into(), exclusive: false, passive: true, active: true, write: true, read: true };
    let mut talk = Talk::open();
    talk.say(0, secret);
    talk.edge(Event::SecretUpdated(Ok(())));
    talk.say(1, access);
    talk.say(1, Method::ChannelFlow { active: true });
    talk.say(1, Method::BasicRecover { requeue: true });
    talk.say(1, Method::BasicRecoverAsync { requeue: true });
    talk.reads(
        "> 0 connection.update-secret
         = update secret
         ! SecretUpdated
         < 0 connection.update-secret-ok
         > 1 access.request
         < 1 access.request-ok
         > 1 channel.flow
         < 1 channel.flow-ok
         > 1 basic.recover
         = Requeue
         < 1 basic.recover-ok
         > 1 basic.recover-async
         = Requeue",
    );
}

#[test]
fn methods_that_no_client_may_send_are_invalid() {
    for method in [Method::QueuePurgeOk { message_count: 1 }, Method::BasicGetEmpty { cluster_id: "".into() }] {
        let mut talk = Talk::open();
        let (class, id) = method.id();
        let name = method.name();
        talk.say(1, method);
        talk.reads(&format!("> 1 {name}\n< 0 connection.close 503 COMMAND_INVALID - unimplemented method ({class},{id})"));
    }
}

#[test]
fn malformed_methods_and_headers_are_syntax_errors() {
    let mut talk = Talk::open();
    talk.frame(FrameKind::Method, 1, &[0, 50, 0, 10, 0]);
    talk.heard();
    talk.reads("< 0 connection.close 502 SYNTAX_ERROR - malformed integer (0,0)");
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x80, 0]);
    talk.heard();
    talk.reads(
        "> 1 basic.publish
        < 0 connection.close 502 SYNTAX_ERROR - malformed property list (60,40)",
    );
}

#[test]
fn closing_a_channel_after_publishes_waits_for_their_fate() {
    let mut talk = Talk::open();
    talk.publish(1, b"x");
    talk.say(1, close_method());
    talk.edge(Event::ChannelError {
        channel: 1,
        refusal: Refusal::NotFound { kind: "exchange".into(), name: "e".into(), vhost: "/".into() },
        method: (60, 40),
    });
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, channel_open());
    talk.reads(
        "> 1 basic.publish
         = publish 1 ticket=None mandatory=true 1 bytes
         > 1 channel.close
         = request 1 barrier
         ! ChannelError
         = closed 1 holding
         < 1 channel.close 404 NOT_FOUND - no exchange 'e' in vhost '/' (60,40)
         < 1 channel.close-ok
         > 1 channel.close-ok
         > 1 channel.open
         < 1 channel.open-ok",
    );
}

#[test]
fn an_answer_for_a_dead_channel_never_reaches_its_successor() {
    let mut talk = Talk::open();
    talk.slow_edge = true;
    talk.publish(1, b"x");
    talk.say(1, get("q"));
    talk.edge(Event::ChannelError { channel: 1, refusal: Refusal::Access("no".into()), method: (60, 40) });
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, channel_open());
    talk.say(1, declare("q", &[]));
    talk.record.clear();
    let got = Got { shard: ShardId(1), delivery: delivery(4, b"m"), remaining: 0 };
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Got(Some(got))) });
    talk.session.on_channel_closed(1, &mut talk.out);
    talk.heard();
    talk.edge(queue_reply("q"));
    talk.reads(
        "! Reply
         = Requeue 4
         = request 1 declare q passive=false
         < 1 channel.open-ok
         ! Reply
         < 1 queue.declare-ok \"q\" 3 1",
    );
    assert_eq!(talk.session.shared.backlog, 0);
}

#[test]
fn a_limit_on_channels_closes_the_connection() {
    let mut talk = Talk::open();
    talk.say(2, channel_open());
    let refusal = Refusal::NotAllowed("number of channels opened for user 'u' has reached the maximum allowed user limit of (1)".into());
    talk.edge(Event::ChannelError { channel: 2, refusal, method: (20, 10) });
    talk.reads(
        "> 2 channel.open
         < 2 channel.open-ok
         ! ChannelError
         < 0 connection.close 530 NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (1) (20,10)",
    );
}

#[test]
fn a_report_is_given_whenever_it_is_asked_for() {
    let mut talk = Talk::open();
    talk.edge(Event::Report);
    talk.say(1, close_method());
    talk.edge(Event::Report);
    talk.reads(
        "! Report
         = report running with 1 channels
         > 1 channel.close
         = closed 1 holding
         < 1 channel.close-ok
         ! Report
         = report running with 0 channels",
    );
}
