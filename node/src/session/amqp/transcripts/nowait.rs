//! no-wait: silence when a method works, channel.close all the same when it is refused (spec 1.2, domain no-wait).

use super::*;

const fn text(name: &'static str) -> Short {
    Short(Bytes::from_static(name.as_bytes()))
}

/// The methods that have the bit, about the queue `q`, the exchange `x` and the consumer `tag`, each with what the edge answers; `None`: it
/// is not asked.
fn methods(nowait: bool) -> [(Method, Option<Reply>); 11] {
    let (ticket, arguments) = (0, Table::new);
    let (passive, durable, exclusive, auto_delete, internal) = (false, true, false, false, false);
    let (if_unused, if_empty, no_local, no_ack) = (false, false, false, false);
    let queue = Reply::Queue { name: "q".into(), messages: 0, consumers: 0 };
    let consumer = ConsumerId(6);
    let (q, x, y, k) = (|| text("q"), || text("x"), || text("y"), || text("k"));
    [
        (
            Method::QueueDeclare { ticket, queue: q(), passive, durable, exclusive, auto_delete, nowait, arguments: arguments() },
            Some(queue),
        ),
        (Method::QueueBind { ticket, queue: q(), exchange: x(), routing_key: k(), nowait, arguments: arguments() }, Some(Reply::Done)),
        (Method::QueueDelete { ticket, queue: q(), if_unused, if_empty, nowait }, Some(Reply::Count(0))),
        (Method::QueuePurge { ticket, queue: q(), nowait }, Some(Reply::Count(0))),
        (
            Method::ExchangeDeclare {
                ticket,
                exchange: x(),
                kind: text("direct"),
                passive,
                durable,
                auto_delete,
                internal,
                nowait,
                arguments: arguments(),
            },
            Some(Reply::Done),
        ),
        (Method::ExchangeDelete { ticket, exchange: x(), if_unused, nowait }, Some(Reply::Done)),
        (
            Method::ExchangeBind { ticket, destination: y(), source: x(), routing_key: k(), nowait, arguments: arguments() },
            Some(Reply::Done),
        ),
        (
            Method::ExchangeUnbind { ticket, destination: y(), source: x(), routing_key: k(), nowait, arguments: arguments() },
            Some(Reply::Done),
        ),
        (
            Method::BasicConsume {
                ticket,
                queue: q(),
                consumer_tag: text("other"),
                no_local,
                no_ack,
                exclusive,
                nowait,
                arguments: arguments(),
            },
            Some(Reply::Consuming { consumer }),
        ),
        (Method::BasicCancel { consumer_tag: text("tag"), nowait }, Some(Reply::Done)),
        (Method::ConfirmSelect { nowait }, None),
    ]
}

/// What a client hears.
fn heard(talk: &Talk) -> Vec<&str> {
    talk.record.iter().filter_map(|line| line.strip_prefix("< ")).collect()
}

#[test]
fn what_works_is_answered_only_to_those_who_wait() {
    for nowait in [false, true] {
        for (method, reply) in methods(nowait) {
            let name = method.name();
            let mut talk = Talk::consuming(false);
            talk.say(1, method);
            if let Some(reply) = reply {
                assert!(talk.record[1].starts_with("= request 1 "), "{:?}", talk.record);
                talk.edge(Event::Reply { channel: 1, result: Ok(reply) });
            }
            let answered = heard(&talk).iter().filter(|line| line.starts_with(&format!("1 {name}-ok"))).count();
            assert_eq!((answered, heard(&talk).len()), if nowait { (0, 0) } else { (1, 1) }, "{name}: {:?}", talk.record);
            talk.record.clear();
            talk.say(1, Method::ChannelFlow { active: true });
            assert_eq!(heard(&talk), ["1 channel.flow-ok"], "{name} leaves the channel as it is");
        }
    }
}

#[test]
fn what_is_refused_closes_the_channel_whether_one_waits_or_not() {
    for nowait in [false, true] {
        for (method, reply) in methods(nowait) {
            let (class, id) = method.id();
            let mut talk = Talk::consuming(false);
            if reply.is_none() {
                talk.say(1, Method::TxSelect {});
                talk.record.clear();
            }
            talk.say(1, method);
            let why = match reply {
                Some(_) => {
                    let refusal = Refusal::NotFound { kind: "queue".into(), name: "q".into(), vhost: "/".into() };
                    talk.edge(Event::Reply { channel: 1, result: Err(refusal) });
                    "404 NOT_FOUND - no queue 'q' in vhost '/'"
                }
                None => "406 PRECONDITION_FAILED - cannot switch from tx to confirm mode",
            };
            assert_eq!(heard(&talk), [format!("1 channel.close {why} ({class},{id})")]);
        }
    }
}

#[test]
fn cancelling_a_consumer_that_is_not_there_works() {
    for nowait in [false, true] {
        let mut talk = Talk::open();
        talk.say(1, Method::BasicCancel { consumer_tag: text("none"), nowait });
        assert_eq!(heard(&talk).len(), usize::from(!nowait));
    }
}
