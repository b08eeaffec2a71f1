//! Requests about exchanges and queues: their order, their arguments, their refusals.

use super::*;

#[test]
fn commands_wait_in_order_behind_a_request() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[]));
    talk.publish(1, b"x");
    talk.say(1, get("q"));
    assert!(talk.session.shared.backlog > 0);
    talk.edge(queue_reply("q"));
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Got(None)) });
    talk.reads(
        "> 1 queue.declare
         = request 1 declare q passive=false
         > 1 basic.publish
         > 1 basic.get
         ! Reply
         = publish 1 ticket=None mandatory=true 1 bytes
         = request 1 get q
         < 1 queue.declare-ok \"q\" 3 1
         ! Reply
         < 1 basic.get-empty",
    );
    assert_eq!(talk.session.shared.backlog, 0);
}

#[test]
fn a_full_backlog_stops_the_input() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[]));
    talk.publish(1, &vec![0; limits::CONNECTION_BACKLOG_BYTES]);
    assert!(!talk.session.wants_input());
    talk.edge(queue_reply("q"));
    assert!(talk.session.wants_input());
}

#[test]
fn an_empty_name_means_the_queue_declared_last() {
    let mut talk = Talk::open();
    talk.say(1, get(""));
    talk.reads(
        "> 1 basic.get
         = closed 1 holding
         < 1 channel.close 404 NOT_FOUND - no previously declared queue (60,70)",
    );
    let mut talk = Talk::open();
    talk.say(1, declare("", &[]));
    talk.edge(queue_reply("amq.gen-1"));
    let bind = |key: &str| Method::QueueBind {
        ticket: 0,
        queue: "".into(),
        exchange: "e".into(),
        routing_key: key.into(),
        nowait: true,
        arguments: Table::new(),
    };
    talk.say(1, bind(""));
    talk.edge(done(1));
    talk.say(1, bind("key"));
    talk.edge(done(1));
    talk.reads(
        "> 1 queue.declare
         = request 1 declare  passive=false
         ! Reply
         < 1 queue.declare-ok \"amq.gen-1\" 3 1
         > 1 queue.bind
         = request 1 bind e -> Queue amq.gen-1 key=amq.gen-1
         ! Reply
         > 1 queue.bind
         = request 1 bind e -> Queue amq.gen-1 key=key
         ! Reply",
    );
}

/// There "" asks for a new name, or it is the name of no queue.
#[test]
fn an_empty_name_means_nothing_declared_before_in_a_passive_declaration() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[]));
    talk.edge(queue_reply("q"));
    talk.record.clear();
    let mut passive = declare("", &[]);
    if let Method::QueueDeclare { passive, .. } = &mut passive {
        *passive = true;
    }
    talk.say(1, passive);
    talk.edge(Event::Reply { channel: 1, result: Err(Refusal::NotFound { kind: "queue".into(), name: "".into(), vhost: "/".into() }) });
    talk.reads(
        "> 1 queue.declare
         = request 1 declare  passive=true
         ! Reply
         = closed 1 holding
         < 1 channel.close 404 NOT_FOUND - no queue '' in vhost '/' (50,10)",
    );
}

#[test]
fn refusals_become_rabbitmqs_codes() {
    let cases = [
        (
            Refusal::NotFound { kind: "queue".into(), name: "q".into(), vhost: "/".into() },
            "1 channel.close 404 NOT_FOUND - no queue 'q' in vhost '/'",
        ),
        (Refusal::Inequivalent("inequivalent arg".into()), "1 channel.close 406 PRECONDITION_FAILED - inequivalent arg"),
        (Refusal::Precondition("in use".into()), "1 channel.close 406 PRECONDITION_FAILED - in use"),
        (Refusal::Access("no".into()), "1 channel.close 403 ACCESS_REFUSED - no"),
        (Refusal::Locked("cannot obtain exclusive access".into()), "1 channel.close 405 RESOURCE_LOCKED - cannot obtain exclusive access"),
        (
            Refusal::Unavailable("the catalog did not answer in time (no quorum); is a majority of nodes up and connected?".into()),
            "1 channel.close 541 INTERNAL_ERROR - the catalog did not answer in time (no quorum); is a majority of nodes up and connected?",
        ),
        (Refusal::NotAllowed("no".into()), "0 connection.close 530 NOT_ALLOWED - no"),
        (Refusal::NotImplemented("no".into()), "0 connection.close 540 NOT_IMPLEMENTED - no"),
    ];
    for (refusal, text) in cases {
        let mut talk = Talk::open();
        talk.say(1, declare("q", &[]));
        talk.edge(Event::Reply { channel: 1, result: Err(refusal) });
        assert_eq!(talk.record.last().expect("answer"), &format!("< {text} (50,10)"));
    }
}

/// A user without the right hears that first, and a queue that exists is compared.
#[test]
fn arguments_of_queues_are_for_the_edge_to_judge() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[("x-max-length", Value::Int(-5))]));
    let why = "invalid arg 'x-max-length' for queue 'q' in vhost '/': {value_negative,-5}";
    talk.edge(Event::Reply { channel: 1, result: Err(Refusal::Precondition(why.into())) });
    talk.reads(&format!(
        "> 1 queue.declare
         = request 1 declare q passive=false
         ! Reply
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - {why} (50,10)"
    ));
}

#[test]
fn an_unknown_exchange_type_closes_the_channel() {
    let declare = |kind: &str, passive| Method::ExchangeDeclare {
        ticket: 0,
        exchange: "x".into(),
        kind: kind.into(),
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
        arguments: Table::new(),
    };
    let mut talk = Talk::open();
    talk.say(1, declare("", true));
    talk.edge(done(1));
    talk.say(1, declare("odd", false));
    talk.reads(
        "> 1 exchange.declare
         = request 1 declare exchange x Direct passive=true
         ! Reply
         < 1 exchange.declare-ok
         > 1 exchange.declare
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - unknown exchange type 'odd' (40,10)",
    );
}

#[test]
fn a_name_that_is_not_utf_8_ends_the_connection() {
    let mut talk = Talk::open();
    let mut method = declare("q", &[]);
    if let Method::QueueDeclare { queue, .. } = &mut method {
        *queue = Short(Bytes::from_static(b"q\xff"));
    }
    talk.say(1, method);
    talk.reads(
        "> 1 queue.declare
        < 0 connection.close 502 SYNTAX_ERROR - a name is not UTF-8 (50,10)",
    );
}

#[test]
fn line_ends_in_names_are_taken_out() {
    let mut talk = Talk::open();
    talk.say(1, declare("a\r\nb\n", &[]));
    talk.reads(
        "> 1 queue.declare
         = request 1 declare ab passive=false",
    );
}

#[test]
fn methods_of_the_handshake_are_unexpected_later() {
    let mut talk = Talk::open();
    talk.say(0, tune_ok());
    talk.reads(
        "> 0 connection.tune-ok
         < 0 connection.close 504 CHANNEL_ERROR - unexpected method in connection state running (10,31)",
    );
}
