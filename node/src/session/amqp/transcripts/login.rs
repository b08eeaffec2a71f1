//! Handshakes: mechanisms, vhosts, what is negotiated.

use super::*;
use handshake::Mechanism;

#[test]
fn a_client_logs_in_and_opens_a_channel() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0secret", &[]));
    assert!(!talk.session.wants_input());
    talk.edge(Event::Authenticated);
    talk.say(0, tune_ok());
    assert_eq!((talk.session.frame_max(), talk.session.heartbeat()), (4096, 60));
    talk.say(0, open("/"));
    talk.edge(Event::Opened);
    talk.say(1, channel_open());
    talk.reads(
        "> 0 connection.start-ok
         = authenticate guest secret
         ! Authenticated
         < 0 connection.tune 2047 131072 60
         > 0 connection.tune-ok
         > 0 connection.open
         = open /
         ! Opened
         < 0 connection.open-ok
         > 1 channel.open
         < 1 channel.open-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Running);
}

#[test]
fn a_vhost_that_is_not_utf_8_is_not_there() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0secret", &[]));
    talk.edge(Event::Authenticated);
    talk.say(0, tune_ok());
    let virtual_host = Short(Bytes::from_static(b"\xff"));
    talk.say(0, Method::ConnectionOpen { virtual_host, reserved_1: "".into(), reserved_2: false });
    assert_eq!(talk.record.last().map(String::as_str), Some("< 0 connection.close 530 NOT_ALLOWED - vhost is not UTF-8 (10,40)"));
}

#[test]
fn amqplain_logs_in() {
    let step = handshake::login(Mechanism::AmqPlain, b"\x05LOGINS\0\0\0\x01u\x08PASSWORDS\0\0\0\x01p");
    assert_eq!(step, Ok(Step::Authenticate { user: "u".into(), password: b"p".to_vec() }));
    let binary = handshake::login(Mechanism::AmqPlain, b"\x05LOGINx\0\0\0\x01u\x08PASSWORDx\0\0\0\x01p");
    assert_eq!(binary, step);
    let mut talk = Talk::new();
    talk.say(0, start_ok_with("AMQPLAIN", b"\x05LOGINS\0\0\0\x01u\x08PASSWORDS\0\0\0\x01p", &[]));
    talk.reads(
        "> 0 connection.start-ok
         = authenticate u p",
    );
}

#[test]
fn external_logs_in_as_the_user_of_the_certificate_whatever_the_client_says() {
    let mut talk = Talk::as_holder(Some("joe"));
    talk.say(0, start_ok_with("EXTERNAL", b"guest", &["authentication_failure_close"]));
    talk.reads(
        "> 0 connection.start-ok
         = authenticate joe by certificate",
    );
    talk.edge(Event::AuthenticationFailed("no such user".to_owned().into()));
    talk.reads(
        "! AuthenticationFailed
         < 0 connection.close 403 ACCESS_REFUSED - Login was refused using authentication mechanism EXTERNAL. For details see the broker logfile. (0,0)",
    );
    // With a certificate a password still counts.
    let mut talk = Talk::as_holder(Some("joe"));
    talk.say(0, start_ok(b"\0guest\0secret", &[]));
    talk.reads(
        "> 0 connection.start-ok
         = authenticate guest secret",
    );
}

#[test]
fn a_mechanism_that_was_not_offered_ends_the_conversation() {
    for mechanism in ["EXTERNAL", "SCRAM-SHA-256", ""] {
        let mut talk = Talk::new();
        talk.say(0, start_ok_with(mechanism, b"guest", &["authentication_failure_close"]));
        talk.reads("> 0 connection.start-ok");
        assert_eq!(talk.session.phase(), Phase::Closed);
    }
}

/// `rabbit_reader:handle_exception`: who has not logged in is told nothing, who has not agreed on sizes only that they are wrong.
#[test]
fn frames_before_their_time_end_the_handshake_and_are_told_once_the_vhost_is_being_opened() {
    let stages: [&dyn Fn(&mut Talk); 5] = [
        &|_| {},
        &|talk| talk.say(0, start_ok(b"\0guest\0guest", &[])),
        &|talk| talk.edge(Event::Authenticated),
        &|talk| talk.say(0, tune_ok()),
        &|talk| talk.say(0, open("/")),
    ];
    let body: &[u8] = b"body";
    let wrong: [(u16, FrameKind, &[u8], &str); 4] = [
        (1, FrameKind::Method, &[0, 20, 0, 10, 0], "type 1, all octets = <<0,20,0,10,0>>"),
        (1, FrameKind::Heartbeat, b"", "type 8, all octets = <<>>"),
        (1, FrameKind::Body, b"more than can be shown", "type 3, first 16 octets = <<\"more than can be\">>"),
        (0, FrameKind::Body, body, "type 3, all octets = <<\"body\">>"),
    ];
    for (channel, kind, payload, text) in wrong {
        for (stage, told) in [(1, false), (2, false), (3, false), (4, true), (5, true)] {
            let mut talk = Talk::new();
            stages[..stage].iter().for_each(|reach| reach(&mut talk));
            talk.record.clear();
            talk.frame(kind, channel, payload);
            talk.heard();
            let (said, phase) = match told {
                true => (format!("< 0 connection.close 505 UNEXPECTED_FRAME - {text} (0,0)"), Phase::Closing),
                false => (String::new(), Phase::Closed),
            };
            talk.reads(&said);
            assert_eq!(talk.session.phase(), phase, "{text} at {stage}");
        }
    }
}

#[test]
fn methods_out_of_turn_end_the_handshake() {
    let mut talk = Talk::new();
    talk.say(0, tune_ok());
    talk.reads("> 0 connection.tune-ok");
    assert_eq!(talk.session.phase(), Phase::Closed);
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0guest", &[]));
    talk.edge(Event::Authenticated);
    talk.record.clear();
    talk.say(0, Method::ConnectionTuneOk { channel_max: 0, frame_max: 4096, heartbeat: 0 });
    talk.reads(
        "> 0 connection.tune-ok
         < 0 connection.close 530 NOT_ALLOWED - negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (2047) (10,30)",
    );
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0guest", &[]));
    talk.edge(Event::Authenticated);
    talk.say(0, tune_ok());
    talk.record.clear();
    talk.say(0, tune_ok());
    talk.reads(
        "> 0 connection.tune-ok
         < 0 connection.close 504 CHANNEL_ERROR - unexpected method in connection state opening (10,31)",
    );
}

#[test]
fn a_user_who_is_kept_to_the_nodes_machine_is_refused_like_any_other() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0guest", &["authentication_failure_close"]));
    let why = "user 'guest' can only connect via localhost".to_owned();
    talk.edge(Event::AuthenticationFailed(crate::model::step::LoginRefused { why, is_remote: true }));
    talk.reads(
        "> 0 connection.start-ok
         = authenticate guest guest
         ! AuthenticationFailed
         < 0 connection.close 403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile. (0,0)",
    );
}

#[test]
fn a_failed_login_is_told_only_to_those_who_understand() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0wrong", &["authentication_failure_close"]));
    talk.edge(Event::AuthenticationFailed("no".to_owned().into()));
    talk.reads(
        "> 0 connection.start-ok
         = authenticate guest wrong
         ! AuthenticationFailed
         < 0 connection.close 403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile. (0,0)",
    );
    assert_eq!(talk.session.phase(), Phase::Closing);
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0wrong", &[]));
    talk.edge(Event::AuthenticationFailed("no".to_owned().into()));
    talk.reads(
        "> 0 connection.start-ok
         = authenticate guest wrong
         ! AuthenticationFailed",
    );
    assert_eq!(talk.session.phase(), Phase::Closed);
}

/// No login, so none that is refused: as in RabbitMQ the socket closes without a word.
#[test]
fn a_response_without_a_login_ends_the_conversation() {
    let cases: [(&str, &[u8]); 8] = [
        ("PLAIN", b""),
        ("PLAIN", b"no nul"),
        ("PLAIN", b"\0guest"),
        ("PLAIN", b"admin\0guest\0guest"),
        ("AMQPLAIN", b"\x05LOGINS\0"),
        ("AMQPLAIN", b""),
        ("AMQPLAIN", b"\x05LOGINS\0\0\0\x01u"),
        ("AMQPLAIN", b"\x05LOGINS\0\0\0\x01u\x08PASSWORDt\x01"),
    ];
    for (mechanism, response) in cases {
        let mut talk = Talk::new();
        talk.say(0, start_ok_with(mechanism, response, &["authentication_failure_close"]));
        talk.reads("> 0 connection.start-ok");
        assert_eq!(talk.session.phase(), Phase::Closed, "{mechanism} {response:?}");
    }
}

#[test]
fn an_unknown_vhost_is_not_allowed() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0guest", &[]));
    talk.edge(Event::Authenticated);
    talk.say(0, tune_ok());
    talk.say(0, open("nope"));
    talk.record.clear();
    talk.edge(Event::OpenRefused(Refusal::NotFound { kind: "vhost".into(), name: "nope".into(), vhost: "nope".into() }));
    talk.say(0, Method::ConnectionCloseOk {});
    talk.reads(
        "! OpenRefused
         < 0 connection.close 530 NOT_ALLOWED - vhost nope not found (10,40)
         > 0 connection.close-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn sizes_beyond_the_offer_are_not_allowed() {
    let refused = |channel_max, frame_max| handshake::check_tune(channel_max, frame_max).expect_err("refused").text;
    assert_eq!(refused(0, 131072), "negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (2047)");
    assert_eq!(refused(2047, 100), "negotiated frame_max = 100 is lower than the minimum allowed value (4096)");
    assert_eq!(refused(2047, 200000), "negotiated frame_max = 200000 is higher than the maximum allowed value (131072)");
    assert!(handshake::check_tune(1, 4096).is_ok());
}

#[test]
fn another_protocol_gets_our_header() {
    let mut session = Session::new(options());
    let mut out = Out::default();
    session.on_header(*b"AMQP\x00\x01\x00\x00", &mut out);
    assert_eq!(&out.bytes.take()[..], PROTOCOL_HEADER);
    assert_eq!(session.phase(), Phase::Closed);
}

/// What clients look for before they use an extension; RabbitMQ has just these.
#[test]
fn the_server_says_what_it_can() {
    let Method::ConnectionStart { server_properties, .. } = handshake::start(&options()) else { panic!("not connection.start") };
    let Some(Value::Table(capabilities)) = server_properties.get("capabilities") else { panic!("no capabilities") };
    let said: Vec<_> = capabilities.iter().map(|(name, value)| (name.as_str(), value == &Value::Bool(true))).collect();
    let all = [
        ("authentication_failure_close", true),
        ("basic.nack", true),
        ("connection.blocked", true),
        ("consumer_cancel_notify", true),
        ("consumer_priorities", true),
        ("direct_reply_to", true),
        ("exchange_exchange_bindings", true),
        ("per_consumer_qos", true),
        ("publisher_confirms", true),
    ];
    assert_eq!(said, all);
}
