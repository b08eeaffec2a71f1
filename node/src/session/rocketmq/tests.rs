//! Conversations with an agent: commands and events in, steps and outcomes out.

use super::agent::{Agent, Check, Command, HalfPublish, Identity, Outcome, Output, Poll, Scope};
use super::answers::Handed;
use super::handle::{Handle, Slot};
use super::message::{Outgoing, outgoing, shown};
use super::moment::Moment;
use super::request::{Incoming, Tags};
use crate::model::catalog::{Name, Refusal};
use crate::model::deaths::{Death, Headers};
use crate::model::entry::{Ops, SettleReason, StoredMessage};
use crate::model::link::Delivery;
use crate::model::step::{Commit, Event, Outcome as Fate, Publish, Reply, Request, Step, TookOne};
use crate::model::{Incarnation, NodeId, QueueId, Seq, ShardId};
use bytes::Bytes;
use std::sync::Arc;

const NOW: u64 = 1_700_000_000_000;

struct Talk {
    agent: Agent,
    now_ms: u64,
    /// How far somebody set the clock that clients read.
    set_ms: i64,
    calls: u64,
}

impl Talk {
    /// An agent that is in its vhost.
    fn new() -> Talk {
        let identity = Identity { node: NodeId(3), incarnation: Incarnation(7), number: 5, user: Some("u".into()), vhost: "/".into() };
        let mut secret = 40;
        let (agent, first) = Agent::new(identity, Box::new(move || (secret += 1, secret).1));
        assert_eq!(first, Some(Step::AuthenticateByCertificate { user: "u".into() }));
        let mut talk = Talk { agent, now_ms: NOW, set_ms: 0, calls: 0 };
        assert_eq!(talk.event(Event::Authenticated).steps, [Step::Open { vhost: "/".into() }]);
        talk.event(Event::Opened);
        talk
    }

    fn now(&self) -> Moment {
        Moment { steady_ms: self.now_ms, wall_ms: self.now_ms.saturating_add_signed(self.set_ms) }
    }

    fn event(&mut self, event: Event) -> Output {
        let mut out = Output::default();
        self.agent.event(event, self.now(), &mut out);
        out
    }

    fn command(&mut self, command: Command) -> Output {
        let mut out = Output::default();
        self.calls += 1;
        self.agent.command(self.calls, command, self.now(), &mut out);
        out
    }

    fn later(&mut self, ms: u64) -> Vec<Step> {
        self.now_ms += ms;
        let mut out = Output::default();
        self.agent.tick(self.now(), &mut out);
        out.steps
    }

    /// A poll, and what it asks the edge for: channel, whether alone, patience.
    fn poll(&mut self, alone: bool, tags: &str) -> (u16, bool, u64) {
        let queues = vec![Name { vhost: "/".into(), name: "t@g".into() }];
        let (invisible_ms, until_ms) = (3000, self.now_ms + 1000);
        let poll = Poll { scope: scope("g"), queues, most: 16, alone, tags: Tags::parse(tags), invisible_ms, until_ms };
        asked(&self.command(Command::Poll(Box::new(poll))))
    }

    fn took(&mut self, channel: u16, messages: Vec<TookOne>) -> Output {
        self.event(Event::Reply { channel, result: Ok(Reply::Took(messages)) })
    }

    fn handed(&mut self, messages: Vec<TookOne>) -> Vec<Handed> {
        let (channel, ..) = self.poll(false, "");
        polled(&self.took(channel, messages))
    }

    fn ack(&mut self, handed: &[Handed], group: &str) -> Output {
        let slots = handed.iter().map(|one| slot(&one.handle)).collect();
        self.command(Command::Ack { slots, scope: scope(group) })
    }
}

fn scope(group: &str) -> Scope {
    Scope { topic: "t".into(), group: group.into() }
}

fn slot(handle: &str) -> Slot {
    let handle = Handle::parse(handle).expect("a handle of ours");
    assert_eq!((handle.node, handle.incarnation, handle.agent), (NodeId(3), Incarnation(7), 5));
    handle.slot
}

fn asked(out: &Output) -> (u16, bool, u64) {
    match out.steps.as_slice() {
        [.., Step::Request { channel, request: Request::Take(take) }] => (*channel, take.alone, take.patience_ms),
        other => panic!("no take: {other:?}"),
    }
}

fn polled(out: &Output) -> Vec<Handed> {
    match out.done.as_slice() {
        [(_, Outcome::Polled(handed))] => handed.clone(),
        other => panic!("not polled: {other:?}"),
    }
}

fn stored(publish: &Publish) -> Bytes {
    let mut ops = Ops::default();
    ops.enqueue(&[QueueId(1)], &publish.exchange, &publish.routing_key, &publish.properties, &publish.body);
    let bytes = ops.take();
    let len = 1 + publish.exchange.len() + 1 + publish.routing_key.len() + 4 + publish.properties.len() + publish.body.len();
    bytes.slice(bytes.len() - len..)
}

fn published(incoming: Incoming) -> Outgoing {
    outgoing("t", "%HALF%t@3", incoming, "1E057D5E6EAD42A579937046FE17B6D8", NOW).expect("a message")
}

fn incoming(body: &str, tag: &str, properties: &str) -> Incoming {
    Incoming { body: body.into(), tag: tag.into(), properties: properties.into() }
}

fn took(shard: u16, seq: u64, tag: &str) -> TookOne {
    let message = stored(&published(incoming("body", tag, "")).publish);
    let delivery = Delivery { queue: QueueId(9), seq: Seq(seq), redelivered: false, failures: 0, failed_ms: 0, message };
    TookOne { shard: ShardId(shard), delivery }
}

fn settled(steps: &[Step]) -> Vec<(Fate, Vec<u64>)> {
    let of = |step: &Step| match step {
        Step::Settle { held, outcome, .. } => (*outcome, held.iter().map(|held| held.seq.0).collect()),
        other => panic!("no settlement: {other:?}"),
    };
    steps.iter().map(of).collect()
}

fn commits(out: &Output) -> Vec<&Commit> {
    let of = |step: &'_ Step| if let Step::Commit(_) = step { true } else { panic!("no commit: {step:?}") };
    assert!(out.steps.iter().all(of));
    out.steps.iter().filter_map(|step| if let Step::Commit(commit) = step { Some(&**commit) } else { None }).collect()
}

#[test]
fn a_publish_is_done_when_it_is_confirmed() {
    let mut talk = Talk::new();
    let out = talk.command(Command::Publish(Box::new(published(incoming("b", "tag", "")).publish)));
    let [Step::Publish(publish)] = out.steps.as_slice() else { panic!("{out:?}") };
    assert_eq!((publish.ticket, &publish.exchange[..], &publish.routing_key[..]), (Some(1), &b"t"[..], &b"tag"[..]));
    let channel = publish.channel;
    let out = talk.event(Event::Confirmed { channel, tickets: vec![(1, 1)] });
    assert_eq!(out.done, [(1, Outcome::Published)]);
    let out = talk.command(Command::Publish(Box::new(published(incoming("b", "", "")).publish)));
    let [Step::Publish(again)] = out.steps.as_slice() else { panic!("{out:?}") };
    assert_eq!(again.channel, channel, "numbers of channels are used again");
    let refusal = Refusal::Access("no".into());
    let out = talk.event(Event::ChannelError { channel, refusal: refusal.clone(), method: (60, 40) });
    assert_eq!(out.done, [(2, Outcome::Refused(refusal))]);
    assert_eq!(out.steps, [Step::ChannelClosed { channel, held: Vec::new() }]);
}

#[test]
fn a_delivery_comes_back_when_its_time_is_over() {
    let mut talk = Talk::new();
    let (channel, alone, patience_ms) = talk.poll(false, "");
    assert_eq!((alone, patience_ms), (false, 1000));
    let handed = polled(&talk.took(channel, vec![took(1, 4, ""), took(1, 5, "")]));
    assert_eq!(handed.iter().map(|one| (one.times, one.first_ms, one.next_ms)).collect::<Vec<_>>(), [(1, NOW, NOW + 3000); 2]);
    assert_eq!(talk.agent.due_ms(), Some(NOW + 3000));
    assert!(talk.later(2999).is_empty());
    assert_eq!(settled(&talk.later(1)), [(Fate::Requeue, vec![4, 5])], "a batch comes back as one");
    assert!(talk.agent.is_idle());
    let out = talk.ack(&handed, "g");
    assert_eq!(out.done, [(2, Outcome::Settled(vec![false, false]))], "its handles are worth nothing any more");
    let mut again = took(1, 4, "");
    (again.delivery.redelivered, again.delivery.failures) = (true, 1);
    let again = talk.handed(vec![again]);
    assert_eq!((again[0].times, again[0].first_ms, &again[0].shown.id), (2, NOW, &handed[0].shown.id));
    assert_ne!(again[0].handle, handed[0].handle);
    let mut perhaps = took(1, 9, "");
    perhaps.delivery.redelivered = true;
    let again = talk.handed(vec![perhaps]);
    assert_eq!((again[0].times, again[0].first_ms), (2, NOW), "nobody knows when it was first: not before it was published");
    let mut late = took(1, 10, "");
    (late.delivery.redelivered, late.delivery.failures) = (true, 3);
    assert_eq!(talk.handed(vec![late])[0].first_ms, NOW);
    talk.now_ms += 60_000;
    let mut elsewhere = took(1, 11, "");
    (elsewhere.delivery.redelivered, elsewhere.delivery.failures, elsewhere.delivery.failed_ms) = (true, 2, NOW + 10_000);
    assert_eq!(talk.handed(vec![elsewhere])[0].first_ms, NOW + 7_000, "it came back when its first three seconds were over");
}

#[test]
fn a_clock_that_is_set_brings_nothing_back_early_or_late() {
    const HOUR_MS: i64 = 3_600_000;
    for set_ms in [HOUR_MS, -HOUR_MS] {
        let mut talk = Talk::new();
        let handed = talk.handed(vec![took(1, 4, ""), took(1, 5, "")]);
        let kept = half(&mut talk, 6, "__TransCheckT:10|");
        talk.set_ms = set_ms;
        assert!(talk.later(2999).is_empty());
        assert_eq!(commits(&talk.ack(&handed[..1], "g"))[0].settlements[0].0[0].seq, Seq(4), "its handle is good to the end");
        assert_eq!(settled(&talk.later(1)), [(Fate::Requeue, vec![5])]);
        let check = Check { topic: "t".into(), queues: Vec::new(), most: 1, invisible_ms: 10_000 };
        assert_eq!(polled(&talk.command(Command::Check(Box::new(check.clone())))), [], "{kept} is not due");
        talk.now_ms += 7000;
        let wall_ms = talk.now().wall_ms;
        let due = polled(&talk.command(Command::Check(Box::new(check))));
        assert_eq!((due[0].first_ms, due[0].next_ms), (wall_ms, wall_ms + 10_000), "clients are told what their clocks say");
        let handed = talk.handed(vec![took(1, 7, "")]);
        assert_eq!((handed[0].first_ms, handed[0].next_ms), (wall_ms, wall_ms + 3000));
        assert_eq!(decide(&mut talk, &due[0].handle, true).steps.len(), 1);
        assert!(talk.later(2999).is_empty());
        assert_eq!(settled(&talk.later(1)), [(Fate::Requeue, vec![7])]);
    }
}

#[test]
fn a_handle_is_good_once_and_for_its_group_alone() {
    let mut talk = Talk::new();
    let handed = talk.handed(vec![took(1, 1, ""), took(2, 7, ""), took(1, 2, "")]);
    assert_eq!(talk.ack(&handed, "another").done, [(2, Outcome::Settled(vec![false; 3]))]);
    let out = talk.ack(&handed, "g");
    let found: Vec<_> = commits(&out).iter().map(|commit| (commit.channel, commit.settlements.clone())).collect();
    let seqs: Vec<Vec<u64>> = found.iter().map(|(_, s)| s[0].0.iter().map(|held| held.seq.0).collect()).collect();
    assert_eq!(seqs, [vec![1, 2], vec![7]], "a transaction for each shard");
    assert!(out.done.is_empty(), "not before it is committed");
    assert!(talk.event(Event::Reply { channel: found[1].0, result: Ok(Reply::Done) }).done.is_empty());
    let out = talk.event(Event::Reply { channel: found[0].0, result: Ok(Reply::Done) });
    assert_eq!(out.done, [(3, Outcome::Settled(vec![true; 3]))]);
    assert_eq!(talk.ack(&handed[..1], "g").done, [(4, Outcome::Settled(vec![false]))]);
    let forged = Slot { number: 2, secret: 1 };
    assert_eq!(talk.command(Command::Ack { slots: vec![forged], scope: scope("g") }).done, [(5, Outcome::Settled(vec![false]))]);
}

#[test]
fn who_acknowledges_nothing_is_given_no_more_after_a_while() {
    let mut talk = Talk::new();
    let mut handed = Vec::new();
    for batch in 0..63 {
        handed = talk.handed((0..16).map(|n| took(1, 16 * batch + n, "")).collect());
    }
    let queues = vec![Name { vhost: "/".into(), name: "t@g".into() }];
    let poll = Poll { scope: scope("g"), queues, most: 1, alone: false, tags: Tags::default(), invisible_ms: 3000, until_ms: NOW };
    let out = talk.command(Command::Poll(Box::new(poll)));
    assert!(matches!(out.done.as_slice(), [(64, Outcome::Refused(Refusal::Unavailable(_)))]) && out.steps.is_empty(), "{out:?}");
    talk.ack(&handed, "g");
    assert_eq!(talk.handed(vec![took(1, 2000, "")]).len(), 1);
}

#[test]
fn messages_with_other_tags_are_passed_over() {
    let mut talk = Talk::new();
    let (channel, ..) = talk.poll(true, "a||b");
    let out = talk.took(channel, vec![took(1, 1, "c"), took(1, 2, "")]);
    assert_eq!(settled(&out.steps[..1]), [(Fate::Ack, vec![1, 2])]);
    assert_eq!(asked(&out), (channel, true, 2000), "it looks again");
    let out = talk.took(channel, vec![took(1, 3, "a"), took(1, 4, "c")]);
    assert_eq!(settled(&out.steps), [(Fate::Ack, vec![4])]);
    assert_eq!(polled(&out).len(), 1);
    let (channel, ..) = talk.poll(false, "a");
    assert_eq!(polled(&talk.took(channel, Vec::new())), []);
}

#[test]
fn who_gets_only_what_it_passes_over_is_answered_when_its_time_is_over() {
    for alone in [false, true] {
        let mut talk = Talk::new();
        let (channel, ..) = talk.poll(alone, "a");
        for seq in 1..4 {
            let out = talk.took(channel, vec![took(1, seq, "b")]);
            assert_eq!(asked(&out), (channel, alone, if alone { 2000 } else { 1000 } - 500 * (seq - 1)), "it looks again");
            talk.now_ms += 500;
        }
        let out = talk.took(channel, vec![took(1, 4, "b")]);
        assert!(out.done.is_empty(), "a moment more");
        talk.now_ms += 500;
        let out = talk.took(channel, vec![took(1, 5, "b")]);
        assert_eq!(settled(&out.steps), [(Fate::Ack, vec![5])]);
        assert_eq!(polled(&out), []);
        assert!(talk.agent.is_idle());
    }
}

#[test]
fn who_goes_away_takes_nothing() {
    let mut talk = Talk::new();
    let (channel, ..) = talk.poll(false, "");
    let mut out = Output::default();
    talk.agent.abandon(1, &mut out);
    assert_eq!(out.steps, [Step::ChannelClosed { channel, held: Vec::new() }]);
    assert!(talk.agent.is_idle());
    let out = talk.took(channel, vec![took(1, 1, ""), took(1, 2, "")]);
    assert_eq!(settled(&out.steps), [(Fate::Requeue, vec![1, 2])], "what came all the same goes back");
}

#[test]
fn an_agent_that_must_go_refuses_what_is_under_way() {
    let mut talk = Talk::new();
    talk.poll(false, "");
    let out = talk.event(Event::Close("user 'u' is deleted".into()));
    assert!(matches!(out.done.as_slice(), [(1, Outcome::Refused(Refusal::Unavailable(_)))]));
    assert!(talk.agent.is_ended());
    let out = talk.command(Command::Ack { slots: Vec::new(), scope: scope("g") });
    assert!(matches!(out.done.as_slice(), [(2, Outcome::Refused(_))]));
}

/// A half message that was published, with its handle.
fn half(talk: &mut Talk, seq: u64, properties: &str) -> String {
    half_of(talk, seq, incoming("half", "tag", properties))
}

fn half_of(talk: &mut Talk, seq: u64, incoming: Incoming) -> String {
    let Outgoing { publish, immunity_ms, .. } = published(incoming);
    assert_eq!((immunity_ms, &publish.exchange[..], &publish.routing_key[..]), (Some(10_000), &b""[..], &b"%HALF%t@3"[..]));
    let message = stored(&publish);
    let queue = Name { vhost: "/".into(), name: "%HALF%t@3".into() };
    let id = "1E057D5E6EAD42A579937046FE17B6D8".to_owned();
    let out = talk.command(Command::Half(Box::new(HalfPublish { publish, queue, topic: "t".into(), id })));
    let [Step::Publish(publish)] = out.steps.as_slice() else { panic!("{out:?}") };
    let channel = publish.channel;
    let (channel, ..) = asked(&talk.event(Event::Confirmed { channel, tickets: vec![(1, 1)] }));
    let delivery = Delivery { queue: QueueId(9), seq: Seq(seq), redelivered: false, failures: 0, failed_ms: 0, message };
    let out = talk.took(channel, vec![TookOne { shard: ShardId(1), delivery }]);
    match out.done.as_slice() {
        [(_, Outcome::Halved(handle))] => handle.clone(),
        other => panic!("{other:?}"),
    }
}

fn decide(talk: &mut Talk, handle: &str, commit: bool) -> Output {
    talk.command(Command::Decide { slots: vec![slot(handle)], topic: "t".into(), commit })
}

#[test]
fn a_half_message_is_published_and_leaves_its_queue_at_once() {
    let mut talk = Talk::new();
    let handle = half(&mut talk, 3, "__TransCheckT:10|a:1|");
    let out = decide(&mut talk, &handle, true);
    let [commit] = commits(&out)[..] else { panic!("{out:?}") };
    assert_eq!(commit.settlements[0].0[0].seq, Seq(3));
    let publish = &commit.publishes[0];
    assert_eq!((&publish.exchange[..], &publish.routing_key[..], &publish.body[..]), (&b"t"[..], &b"tag"[..], &b"half"[..]));
    let message = StoredMessage::parse(stored(publish)).expect("stored");
    let delivery = Delivery { queue: QueueId(1), seq: Seq(1), redelivered: false, failures: 0, failed_ms: 0, message: Bytes::new() };
    let shown = shown(&delivery, &message);
    assert_eq!((shown.id.as_str(), shown.properties.as_str()), ("1E057D5E6EAD42A579937046FE17B6D8", "__TransCheckT:10|a:1|"));
    let channel = commit.channel;
    let out = talk.event(Event::Reply { channel, result: Ok(Reply::Done) });
    assert_eq!(out.done, [(2, Outcome::Settled(vec![true]))]);
    assert_eq!(decide(&mut talk, &handle, false).done, [(3, Outcome::Settled(vec![false]))]);
}

#[test]
fn what_the_edge_never_took_has_not_happened() {
    let mut talk = Talk::new();
    let refusal = Refusal::Unavailable("blocked".into());
    let out = talk.command(Command::Publish(Box::new(published(incoming("b", "", "")).publish)));
    let [step @ Step::Publish(_)] = out.steps.as_slice() else { panic!("{out:?}") };
    assert_eq!(talk.agent.caller(step), Some(1));
    let mut out = Output::default();
    talk.agent.unsent(step, refusal.clone(), &mut out);
    assert_eq!(out.done, [(1, Outcome::Refused(refusal.clone()))]);
    assert_eq!(talk.agent.caller(step), None, "its channel is free");
    assert!(talk.agent.is_idle());
    let handle = half(&mut talk, 3, "__TransCheckT:10|");
    let out = decide(&mut talk, &handle, true);
    let [step @ Step::Commit(_)] = out.steps.as_slice() else { panic!("{out:?}") };
    let mut out = Output::default();
    talk.agent.unsent(step, refusal.clone(), &mut out);
    assert_eq!((out.done, out.steps), (vec![(3, Outcome::Refused(refusal))], Vec::new()));
    let out = decide(&mut talk, &handle, true);
    let [commit] = commits(&out)[..] else { panic!("{out:?}") };
    assert_eq!(commit.settlements[0].0[0].seq, Seq(3), "its handle is still good");
}

#[test]
fn a_check_hands_out_what_one_answer_takes() {
    let mut talk = Talk::new();
    let first = half(&mut talk, 3, "__TransCheckT:10|");
    let large = |talk: &mut Talk, seq: u64| {
        let text = "b".repeat(3 << 18);
        half_of(talk, seq, incoming(&text, "tag", "__TransCheckT:10|"))
    };
    let (second, third) = (large(&mut talk, 4), large(&mut talk, 5));
    talk.now_ms += 10_000;
    let check = Check { topic: "t".into(), queues: Vec::new(), most: 16, invisible_ms: 10_000 };
    let mut checked = || polled(&talk.command(Command::Check(Box::new(check.clone())))).len();
    assert_eq!((checked(), checked(), checked()), (2, 1, 0), "{first} {second} {third}");
}

#[test]
fn a_half_message_that_nobody_decides_is_checked_again_and_again() {
    let mut talk = Talk::new();
    let check = Check { topic: "t".into(), queues: Vec::new(), most: 1, invisible_ms: 10_000 };
    let checked = |talk: &mut Talk| polled(&talk.command(Command::Check(Box::new(check.clone()))));
    let first = half(&mut talk, 3, "__TransCheckT:10|");
    talk.now_ms += 9_999;
    assert_eq!(checked(&mut talk), []);
    talk.now_ms += 1;
    let second = checked(&mut talk);
    assert_eq!((second[0].times, second[0].shown.tag.as_str()), (1, "tag"));
    assert_eq!(decide(&mut talk, &first, true).done, [(4, Outcome::Settled(vec![false]))], "the publisher's time is over");
    assert_eq!(checked(&mut talk), []);
    talk.now_ms += 10_000;
    let third = checked(&mut talk);
    assert_eq!(third[0].times, 2);
    assert_eq!(decide(&mut talk, &second[0].handle, true).done, [(7, Outcome::Settled(vec![false]))]);
    let out = decide(&mut talk, &third[0].handle, false);
    assert!(commits(&out)[0].publishes.is_empty() && commits(&out)[0].settlements[0].1 == Fate::Ack, "dropped");
    half(&mut talk, 4, "__TransCheckT:10|");
    assert_eq!(settled(&talk.later(24 * 60 * 60 * 1000)), [(Fate::Ack, vec![4])], "a day is enough");
}

fn show(properties: &[u8], key: &[u8], body: &[u8]) -> super::message::Shown {
    let copy = Bytes::copy_from_slice;
    let message = StoredMessage { exchange: Bytes::new(), key: copy(key), properties: copy(properties), body: copy(body) };
    let delivery = Delivery { queue: QueueId(10), seq: Seq(255), redelivered: false, failures: 0, failed_ms: 0, message: Bytes::new() };
    shown(&delivery, &message)
}

#[test]
fn properties_come_through_as_they_were() {
    let properties = "a:i|n:7|KEYS:K|__SHARDINGKEY:s|CC:not a copy|x-delay:no delay|";
    let Outgoing { publish, md5, .. } = published(incoming("I am test message 0.hello", "tag 0", properties));
    assert_eq!(md5, "3753A9F0F35CD25B7299CE5B0C0C999A");
    let shown = show(&publish.properties, &publish.routing_key, &publish.body);
    let mut found: Vec<&str> = shown.properties.split_terminator('|').collect();
    let mut sent: Vec<&str> = properties.split_terminator('|').collect();
    found.sort_unstable();
    sent.sort_unstable();
    assert_eq!(found, sent);
    assert_eq!((shown.tag.as_str(), &shown.md5, shown.published_ms), ("tag 0", &md5, Some(NOW)));
    assert_eq!(crate::model::store::delay_ms(&publish.properties), None);
}

#[test]
fn a_dead_letter_shows_its_own_properties_alone() {
    let Outgoing { publish, .. } = published(incoming("b", "t", "a:1|x-death:mine|"));
    let mut headers = Headers::of(&publish.properties);
    headers.record(&Death { queue: "t@g", reason: SettleReason::DeliveryLimit, time_ms: NOW, exchange: b"t", key: b"t" });
    let dead = headers.write(true);
    assert!(dead.len() > publish.properties.len() + 100, "AMQP clients see how it died");
    let shown = show(&dead, b"t", b"b");
    let mut found: Vec<&str> = shown.properties.split_terminator('|').collect();
    found.sort_unstable();
    assert_eq!(found, ["a:1", "x-death:mine"]);
}

#[test]
fn what_xml_cannot_carry_arrives_encoded_with_a_marker() {
    let shown = show(&[0, 0], b"k", &[0, 159, 146]);
    assert_eq!((shown.body.as_str(), shown.properties.as_str()), ("AJ+S", "__BodyEncoding:base64|"));
    assert_eq!(shown.id, "000000000000000A00000000000000FF", "without an id of its own");
    let shown = show(&[0, 0], b"k", b"");
    assert_eq!((shown.body.as_str(), shown.properties.as_str()), (" ", "__BodyEncoding:empty|"));
    let table = b"\x02atS\0\0\0\x0512:30\x01eS\0\0\0\0\x01nI\0\0\0\x05";
    let list = [&crate::model::properties::HEADERS.to_be_bytes()[..], &(table.len() as u32).to_be_bytes(), table].concat();
    let shown = show(&list, &[0xff], b"x");
    assert_eq!(shown.properties, "at:12%3A30|n:5|__PercentEncoded:at,tag|__Empty:e|");
    assert_eq!(shown.tag, "%FF");
}

#[test]
fn a_start_of_delivery_becomes_a_delay() {
    let delay = |properties: &str| {
        let made = outgoing("t", "h", incoming("b", "", properties), "id", NOW);
        made.map(|made| crate::model::store::delay_ms(&made.publish.properties))
    };
    let at = |ms: u64| format!("__STARTDELIVERTIME:{}|", NOW + ms);
    assert_eq!(delay(&at(4000)), Ok(Some(4000)));
    assert_eq!(delay(&format!("__STARTDELIVERTIME:{}|", NOW - 4000)), Ok(None));
    assert_eq!(delay(&at(40 * 24 * 3600 * 1000)), Ok(Some(3_456_000_000)));
    for wrong in [at(40 * 24 * 3600 * 1000 + 1), "__STARTDELIVERTIME:soon|".into(), "__TransCheckT:9|".into(), "__TransCheckT:301|".into()]
    {
        assert_eq!(delay(&wrong).expect_err(&wrong).code, "InvalidArgument");
    }
}

#[test]
fn any_properties_are_survived() {
    use proptest::prelude::*;
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..80), flags: u16, body in proptest::collection::vec(any::<u8>(), 0..20))| {
        let list = [&(flags & !1).to_be_bytes()[..], &bytes].concat();
        let shown = show(&list, &body, &body);
        prop_assert!(crate::wire::rocketmq::xml::is_text(&shown.properties) && crate::wire::rocketmq::xml::is_text(&shown.tag));
        prop_assert!(crate::wire::rocketmq::xml::is_text(&shown.body) && !shown.body.is_empty());
        let _: Arc<str> = shown.id.into();
    });
}

#[test]
fn what_others_may_have_is_not_settled_and_its_handles_are_bad() {
    let mut talk = Talk::new();
    let handed = talk.handed(vec![took(1, 1, ""), took(2, 2, "")]);
    let out = talk.ack(&handed, "g");
    assert!(commits(&out).iter().all(|commit| commit.is_strict));
    let channels: Vec<(u16, ShardId)> = commits(&out).iter().map(|c| (c.channel, c.settlements[0].0[0].shard)).collect();
    let mut done = Vec::new();
    for (channel, shard) in channels {
        let result = if shard == ShardId(1) { Err(Refusal::Locked("others have it".into())) } else { Ok(Reply::Done) };
        done.extend(talk.event(Event::Reply { channel, result }).done);
    }
    assert_eq!(done, [(2, Outcome::Settled(vec![false, true]))], "the others are good");
    let handed = talk.handed(vec![took(1, 3, ""), took(2, 4, "")]);
    let kept = half(&mut talk, 3, "__TransCheckT:10|");
    talk.event(Event::Lost { shard: ShardId(1) });
    assert_eq!(decide(&mut talk, &kept, true).done, [(5, Outcome::Settled(vec![false]))], "somebody else may publish it");
    let out = talk.ack(&handed, "g");
    assert_eq!(commits(&out).iter().flat_map(|c| &c.settlements[0].0).map(|held| held.seq.0).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_shard_that_does_not_answer_spoils_its_own_handles_alone() {
    let unknown = || Err::<Reply, Refusal>(Refusal::Unavailable("no majority".into()));
    let mut talk = Talk::new();
    let acked = |talk: &mut Talk, seq: u64| {
        let handed = talk.handed(vec![took(1, seq, ""), took(2, seq, "")]);
        let out = talk.ack(&handed, "g");
        let mut channels: Vec<(ShardId, u16)> = commits(&out).iter().map(|c| (c.settlements[0].0[0].shard, c.channel)).collect();
        channels.sort_unstable();
        (channels[0].1, channels[1].1)
    };
    let (one, two) = acked(&mut talk, 1);
    assert_eq!(talk.event(Event::Reply { channel: one, result: unknown() }).done, []);
    let out = talk.event(Event::Reply { channel: two, result: Ok(Reply::Done) });
    assert_eq!(out.done, [(2, Outcome::Settled(vec![false, true]))]);
    let (one, two) = acked(&mut talk, 2);
    assert_eq!(talk.event(Event::Reply { channel: one, result: unknown() }).done, []);
    let out = talk.event(Event::Reply { channel: two, result: unknown() });
    assert_eq!(out.done, [(4, Outcome::Refused(unknown().expect_err("a refusal")))], "nothing was settled");
    let (one, two) = acked(&mut talk, 3);
    assert_eq!(talk.event(Event::Reply { channel: two, result: Ok(Reply::Done) }).done, []);
    talk.now_ms += 4_000;
    let mut out = Output::default();
    talk.agent.tick(talk.now(), &mut out);
    assert_eq!(out.done, [(6, Outcome::Settled(vec![false, true]))]);
    assert_eq!(talk.event(Event::Reply { channel: one, result: Ok(Reply::Done) }).done, [], "too late to be said");
}
