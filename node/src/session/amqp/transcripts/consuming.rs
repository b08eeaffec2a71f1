//! Consumers: deliveries, settling, tags, prefetch, `basic.get`.

use super::*;

#[test]
fn deliveries_are_held_until_settled() {
    let mut talk = Talk::consuming(false);
    talk.edge(deliver(&[1, 2, 3, 4]));
    talk.record.retain(|l| !l.contains("header") && !l.contains("body"));
    talk.say(1, Method::BasicAck { delivery_tag: 2, multiple: true });
    talk.say(1, Method::BasicNack { delivery_tag: 4, multiple: false, requeue: true });
    talk.say(1, Method::BasicReject { delivery_tag: 3, requeue: false });
    talk.say(1, Method::BasicAck { delivery_tag: 3, multiple: false });
    talk.reads(
        &"! Deliver
         = written 5 84
         < 1 basic.deliver 1 redelivered=false
         < 1 basic.deliver 2 redelivered=false
         < 1 basic.deliver 3 redelivered=false
         < 1 basic.deliver 4 redelivered=false
         > 1 basic.ack
         = Ack 1,2
         > 1 basic.nack
         = Requeue 4
         > 1 basic.reject
         = Reject 3
         > 1 basic.ack
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - unknown delivery tag 3 (60,80)"
            .replace("84", &(4 * delivery(1, b"m1").message.len()).to_string()),
    );
}

#[test]
fn acks_in_one_batch_become_one_step() {
    let mut talk = Talk::consuming(false);
    talk.edge(deliver(&[1, 2, 3]));
    talk.record.clear();
    for tag in 1..=3 {
        let mut payload = BytesMut::new();
        Method::BasicAck { delivery_tag: tag, multiple: false }.encode(&mut payload);
        talk.frame(FrameKind::Method, 1, &payload);
    }
    talk.heard();
    talk.reads("= Ack 1,2,3");
}

#[test]
fn deliveries_without_ack_are_settled_when_encoded() {
    let mut talk = Talk::consuming(true);
    talk.edge(deliver(&[1, 2]));
    talk.say(1, Method::BasicAck { delivery_tag: 0, multiple: true });
    let steps: Vec<_> = talk.record.iter().filter(|l| l.starts_with('=')).collect();
    assert_eq!(steps[0], "= Ack 1,2");
    assert!(steps[1].starts_with("= written 5"));
    assert_eq!(steps.len(), 2);
}

#[test]
fn a_delivery_for_a_dead_channel_goes_back() {
    let mut talk = Talk::consuming(true);
    talk.say(1, close_method());
    talk.record.clear();
    talk.edge(deliver(&[1]));
    assert_eq!(talk.record[1], "= Requeue 1");
    assert!(talk.record[2].starts_with("= written"));
}

#[test]
fn consumer_tags_are_made_reused_cancelled() {
    let mut talk = Talk::consuming(false);
    talk.say(1, consume("q", "", false));
    assert!(talk.record[1].starts_with("= request 1 consume q amq.ctag-"), "{}", talk.record[1]);
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Consuming { consumer: ConsumerId(6) }) });
    talk.record.clear();
    talk.say(1, Method::BasicCancel { consumer_tag: "nobody".into(), nowait: false });
    talk.say(1, Method::BasicCancel { consumer_tag: "tag".into(), nowait: false });
    talk.edge(done(1));
    talk.edge(Event::ConsumerGone { channel: 1, consumer: ConsumerId(5) });
    talk.reads(
        "> 1 basic.cancel
         < 1 basic.cancel-ok \"nobody\"
         > 1 basic.cancel
         = request 1 cancel 5
         ! Reply
         < 1 basic.cancel-ok \"tag\"
         ! ConsumerGone",
    );
    let mut talk = Talk::consuming(false);
    talk.say(1, consume("q", "tag", false));
    talk.reads(
        "> 1 basic.consume
         < 0 connection.close 530 NOT_ALLOWED - attempt to reuse consumer tag 'tag' (60,20)",
    );
}

#[test]
fn a_lost_consumer_is_told_only_to_those_who_understand() {
    let mut talk = Talk::consuming(false);
    talk.edge(Event::ConsumerGone { channel: 1, consumer: ConsumerId(5) });
    talk.reads(
        "! ConsumerGone
        < 1 basic.cancel \"tag\"",
    );
    let mut talk = Talk::open_with(&[]);
    talk.say(1, consume("q", "tag", false));
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Consuming { consumer: ConsumerId(5) }) });
    talk.record.clear();
    talk.edge(Event::ConsumerGone { channel: 1, consumer: ConsumerId(5) });
    talk.edge(Event::Blocked("alarm".into()));
    talk.reads(
        "! ConsumerGone
        ! Blocked",
    );
}

/// What cannot be is an error of the broker, and the connection's end.
#[test]
fn a_message_or_an_answer_that_makes_no_sense_is_an_internal_error() {
    let message = Delivery { message: Bytes::from_static(b"\xff"), ..delivery(9, b"m9") };
    let broken = Reply::Got(Some(Got { shard: ShardId(1), delivery: message, remaining: 3 }));
    for (reply, text) in [(broken, "the stored message is malformed"), (Reply::Count(3), "reply of the wrong kind")] {
        let mut talk = Talk::open();
        talk.say(1, get("q"));
        talk.edge(Event::Reply { channel: 1, result: Ok(reply) });
        talk.reads(&format!(
            "> 1 basic.get
             = request 1 get q
             ! Reply
             < 0 connection.close 541 INTERNAL_ERROR - {text} (60,70)"
        ));
    }
}

#[test]
fn recover_and_qos_and_get() {
    let mut talk = Talk::consuming(false);
    talk.edge(deliver(&[1, 2]));
    talk.record.clear();
    talk.say(1, Method::BasicRecover { requeue: true });
    talk.say(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 7, global: true });
    talk.say(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 10, global: false });
    talk.say(1, consume("q", "second", false));
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Consuming { consumer: ConsumerId(6) }) });
    talk.say(1, get("q"));
    let got = Got { shard: ShardId(1), delivery: delivery(9, b"m9"), remaining: 3 };
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Got(Some(got))) });
    talk.say(1, Method::BasicAck { delivery_tag: 3, multiple: false });
    talk.reads(
        "> 1 basic.recover
         = Requeue 1,2
         < 1 basic.recover-ok
         > 1 basic.qos
         = prefetch 1 Some(7)
         < 1 basic.qos-ok
         > 1 basic.qos
         = prefetch 1 None
         < 1 basic.qos-ok
         > 1 basic.consume
         = request 1 consume q second Some(10)
         ! Reply
         < 1 basic.consume-ok \"second\"
         > 1 basic.get
         = request 1 get q
         ! Reply
         < 1 basic.get-ok 3 remaining=3
         < 1 header 2
         < 1 body m9
         > 1 basic.ack
         = Ack 9",
    );
}
