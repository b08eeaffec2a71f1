//! Direct reply-to: its one consumer per channel, and the address that replaces the name in `reply-to`.

use super::*;
use crate::wire::amqp::{Properties, Property};

const ADDRESS: &str = "amq.rabbitmq.reply-to.1.80000000000000ff";

fn replying() -> Talk {
    let mut talk = Talk::open();
    talk.say(1, consume("amq.rabbitmq.reply-to", "tag", true));
    let reply = Reply::ReplyTo { consumer: ConsumerId(5), address: ADDRESS.into() };
    talk.edge(Event::Reply { channel: 1, result: Ok(reply) });
    talk
}

/// Publishes with `reply-to` and `message-id`; returns the properties that reach the edge.
fn ask_for_reply(talk: &mut Talk, reply_to: &str) -> Option<Bytes> {
    let mut properties = vec![0x02, 0x80, reply_to.len() as u8];
    properties.extend_from_slice(reply_to.as_bytes());
    properties.extend_from_slice(b"\x02id");
    talk.say(1, publish(false, false));
    let header = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &properties[..]].concat();
    talk.frame(FrameKind::Header, 1, &header);
    match talk.out.steps.front() {
        Some(Step::Publish(publish)) => Some(publish.properties.clone()),
        _ => None,
    }
}

#[test]
fn the_reply_queue_has_an_address_that_publishes_carry() {
    let mut talk = replying();
    talk.reads(
        "> 1 basic.consume
         = request 1 consume amq.rabbitmq.reply-to tag None
         ! Reply
         < 1 basic.consume-ok \"tag\"",
    );
    let sent = ask_for_reply(&mut talk, "amq.rabbitmq.reply-to").expect("a publish");
    assert_eq!(Properties(&sent).get(Property::ReplyTo), Some(ADDRESS.as_bytes()));
    assert_eq!(Properties(&sent).get(Property::MessageId), Some(&b"id"[..]));
    assert_eq!(Properties(&sent).check(), Ok(()));
    let mut talk = replying();
    let other = ask_for_reply(&mut talk, "somewhere else").expect("a publish");
    assert_eq!(Properties(&other).get(Property::ReplyTo), Some(&b"somewhere else"[..]));
}

#[test]
fn asking_for_a_reply_without_a_consumer_is_for_the_edge_to_refuse_in_its_turn() {
    let ask = |mut talk: Talk| {
        let sent = ask_for_reply(&mut talk, "amq.rabbitmq.reply-to").expect("a publish");
        assert_eq!(Properties(&sent).get(Property::ReplyTo), Some(&b"amq.rabbitmq.reply-to"[..]));
    };
    ask(Talk::open());
    let mut cancelled = replying();
    cancelled.say(1, Method::BasicCancel { consumer_tag: "tag".into(), nowait: false });
    cancelled.edge(done(1));
    ask(cancelled);
}

#[test]
fn a_reply_consumer_cannot_acknowledge_and_has_no_twin() {
    for (mut talk, no_ack, text) in [
        (Talk::open(), false, "reply consumer cannot acknowledge"),
        (replying(), false, "reply consumer cannot acknowledge"),
        (replying(), true, "reply consumer already set"),
    ] {
        talk.record.clear();
        talk.say(1, consume("amq.rabbitmq.reply-to", "other", no_ack));
        talk.reads(&format!("> 1 basic.consume\n= closed 1 holding\n< 1 channel.close 406 PRECONDITION_FAILED - {text} (60,20)"));
    }
}

#[test]
fn the_reply_queue_always_exists_and_an_address_is_asked_for() {
    let mut talk = Talk::open();
    talk.say(1, declare("amq.rabbitmq.reply-to", &[]));
    talk.say(1, declare(ADDRESS, &[]));
    talk.reads(&format!(
        "> 1 queue.declare
         < 1 queue.declare-ok \"amq.rabbitmq.reply-to\" 0 1
         > 1 queue.declare
         = request 1 declare {ADDRESS} passive=false",
    ));
}

#[test]
fn a_reply_is_delivered_like_any_message() {
    let mut talk = replying();
    talk.record.clear();
    talk.edge(deliver(&[1]));
    talk.reads(
        "! Deliver
         = Ack 1
         = written 5 13
         < 1 basic.deliver 1 redelivered=false
         < 1 header 2
         < 1 body m1",
    );
}
