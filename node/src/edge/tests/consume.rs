//! Deliveries: what clients hold, credit, settles, returns, attach under a new leader.

use super::*;
use crate::model::catalog::Value;
use crate::model::entry::SettleReason;
use crate::model::link::Attached;

pub(super) struct Consuming {
    pub scene: Scene,
    pub client: Client,
    pub leader: Leader,
    pub queue: QueueId,
    pub consumer: ConsumerId,
}

/// A client that consumes from queue `q` of shard 1.
pub(super) async fn consuming(prefetch: Option<u32>) -> Consuming {
    consuming_with(prefetch, Table::new()).await
}

async fn consuming_with(prefetch: Option<u32>, arguments: Table) -> Consuming {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(Request::Consume { queue: name("q"), tag: "tag".into(), no_ack: false, exclusive: false, prefetch, arguments });
    let (mut leader, attach) = scene.leader(leader(1, 2), 9, 0).await;
    let spec = asked_with(attach);
    let window_bytes = limits::CONSUMER_BYTES;
    let expected =
        Consumer { id: spec.id, queue, no_ack: false, exclusive: false, prefetch, window_bytes, tag: "tag".into(), priority: 0, order: 0 };
    assert_eq!(spec, expected);
    let consumer = spec.id;
    leader.say(ToEdge::Consuming { consumer, result: Ok(1) }).await;
    assert_eq!(client.reply().await, Ok(Reply::Consuming { consumer }));
    Consuming { scene, client, leader, queue, consumer }
}

pub(super) fn settles(batch: &Batch) -> Vec<(SettleReason, Vec<(u64, u64)>)> {
    let settle = |op| match op {
        Op::Settle { reason, ranges, .. } => Some((reason, ranges.iter().map(|r| (r.0.0, r.1.0)).collect())),
        _ => None,
    };
    ops(batch).into_iter().filter_map(settle).collect()
}

pub(super) fn ranges(all: &[(u64, u64)]) -> Vec<(Seq, Seq)> {
    all.iter().map(|r| (Seq(r.0), Seq(r.1))).collect()
}

#[tokio::test]
async fn acks_return_credit_at_once_and_ride_as_ranges() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2, 3, 4]).await;
    let held = client.delivered().await;
    client.settle(&held[..2], Outcome::Ack);
    client.settle(&held[2..3], Outcome::Reject);
    client.settle(&held[..1], Outcome::Ack);
    assert_eq!(leader.next().await, ToLeader::Credit { consumer, messages: 3, bytes: 0 }, "a repeated ack is no credit");
    assert_eq!(settles(&leader.batch().await), [(SettleReason::Ack, vec![(1, 2)]), (SettleReason::Reject, vec![(3, 3)])]);
}

#[tokio::test]
async fn settles_ride_with_a_publish() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(None).await;
    leader.deliver(consumer, queue, &[1, 2]).await;
    let held = client.delivered().await;
    client.settle(&held, Outcome::Ack);
    client.publish("", "q", 1);
    let batch = leader.batch().await;
    assert_eq!((keys(&batch).len(), settles(&batch)), (1, vec![(SettleReason::Ack, vec![(1, 2)])]));
}

#[tokio::test]
async fn a_requeue_goes_back_seen_with_credit() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2, 3]).await;
    let held = client.delivered().await;
    client.settle(&held[1..], Outcome::Requeue);
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(2, 3)]), seen: true, failures: vec![] });
    assert_eq!(leader.next().await, ToLeader::Credit { consumer, messages: 2, bytes: 0 });
}

#[tokio::test]
async fn written_bytes_are_credit_again_a_quarter_window_at_a_time() {
    let mut config = default_config();
    config.consumer_bytes = 100;
    let mut scene = Scene::new(config);
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 1);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    let consumer = client.consume(&mut leader, "q", None).await;
    leader.deliver(consumer, queue, &[1, 2, 3]).await;
    client.delivered().await;
    let bytes = stored().len() as u64;
    client.submit(Step::Written { consumer, bytes });
    leader.quiet().await;
    client.submit(Step::Written { consumer, bytes: 2 * bytes });
    assert_eq!(leader.next().await, ToLeader::Credit { consumer, messages: 0, bytes: 3 * bytes });
}

#[tokio::test]
async fn deliveries_that_overtake_the_consume_answer_wait_for_it() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 1);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    client.ask(Request::Consume {
        queue: name("q"),
        tag: "t".into(),
        no_ack: true,
        exclusive: false,
        prefetch: Some(5),
        arguments: Table::new(),
    });
    let ToLeader::Consume(spec) = leader.next().await else { panic!("no consume") };
    assert_eq!(spec.prefetch, None, "no-ack knows no prefetch");
    leader.deliver(spec.id, queue, &[1]).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(client.now().is_empty());
    leader.say(ToEdge::Consuming { consumer: spec.id, result: Ok(1) }).await;
    assert_eq!(client.reply().await, Ok(Reply::Consuming { consumer: spec.id }));
    assert_eq!(client.delivered().await.len(), 1);
}

#[tokio::test]
async fn a_new_leader_is_told_what_is_held_and_nothing_of_the_old_leader_follows() {
    let Consuming { mut scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2, 3, 4]).await;
    let held = client.delivered().await;
    // Acked, and no verdict of that: a new leader must not deliver it to others.
    client.settle(&held[..1], Outcome::Ack);
    leader.next().await;
    let acks = leader.batch().await;
    client.submit(Step::Written { consumer, bytes: 3 * stored().len() as u64 });
    scene.world.set_leader(ShardId(1), Some(super::leader(2, 3)));
    let (mut new, attach) = scene.leader(super::leader(2, 3), 9, 0).await;
    let ToLeader::Attach { leader: id, consumers, loose, .. } = attach else { panic!("no attach") };
    assert_eq!(id, new.id);
    let [Attached { consumer: spec, unacked, unwritten_bytes }] = &consumers[..] else { panic!("{consumers:?}") };
    assert_eq!((spec.id, unacked), (consumer, &ranges(&[(2, 4)])));
    assert_eq!(*unwritten_bytes, stored().len() as u64);
    assert_eq!(loose, [(queue, ranges(&[(1, 1)]))]);
    assert_eq!(new.batch().await, acks);
    let stale = Leader { id: leader.id, ..new };
    let mut new = stale;
    new.deliver(consumer, queue, &[9]).await;
    new.id = super::leader(2, 3);
    new.deliver(consumer, queue, &[5]).await;
    let seqs: Vec<_> = client.delivered().await.iter().map(|h| h.seq).collect();
    assert_eq!(seqs, [Seq(5)], "a delivery under an old leader id is dropped");
}

#[tokio::test]
async fn a_consume_without_an_answer_is_asked_again_on_a_new_path() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    let (mut old, _) = scene.leader(leader(1, 2), 9, 0).await;
    old.batch().await;
    old.verdict(1, &[]).await;
    client.confirmed().await;
    client.ask(Request::Consume {
        queue: name("q"),
        tag: "t".into(),
        no_ack: false,
        exclusive: false,
        prefetch: None,
        arguments: Table::new(),
    });
    let ToLeader::Consume(spec) = old.next().await else { panic!("no consume") };
    old.say(ToEdge::NotLeader).await;
    let (mut new, attach) = scene.leader(leader(2, 2), 9, 1).await;
    let asked = vec![spec.clone()];
    assert_eq!(attach, ToLeader::Attach { leader: new.id, consumers: vec![], asked, loose: vec![] }, "in one word with the others");
    new.say(ToEdge::Consuming { consumer: spec.id, result: Ok(1) }).await;
    assert_eq!(client.reply().await, Ok(Reply::Consuming { consumer: spec.id }));
    new.quiet().await;
}

#[tokio::test]
async fn a_lost_client_gives_back_what_it_held() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2]).await;
    client.delivered().await;
    leader.deliver(consumer, queue, &[3]).await;
    timeout(PATIENCE, client.connection.changed()).await.expect("an event");
    drop(client);
    assert_eq!(leader.next().await, ToLeader::Cancel { consumer });
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(3, 3)]), seen: false, failures: vec![] });
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(1, 2)]), seen: true, failures: vec![] });
    leader.deliver(consumer, queue, &[4]).await;
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(4, 4)]), seen: false, failures: vec![] });
}

#[tokio::test]
async fn a_closed_channel_gives_back_seen_and_unseen() {
    let Consuming { scene, mut client, mut leader, queue, consumer, .. } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2]).await;
    let held = client.delivered().await;
    leader.deliver(consumer, queue, &[3]).await;
    timeout(PATIENCE, client.connection.changed()).await.expect("an event");
    client.submit(Step::ChannelClosed { channel: 1, held: held[1..].to_vec() });
    assert!(client.now().is_empty());
    assert_eq!(leader.next().await, ToLeader::Cancel { consumer });
    // The session acknowledges 1 no more: whatever it did not name it had not seen.
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(1, 1), (3, 3)]), seen: false, failures: vec![] });
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(2, 2)]), seen: true, failures: vec![] });
    assert_eq!(scene.edge.connections().len(), 1);
}

#[tokio::test]
async fn a_return_that_no_leader_heard_is_said_before_the_next_attach() {
    let Consuming { mut scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2, 3]).await;
    let held = client.delivered().await;
    client.settle(&held[..2], Outcome::Requeue);
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(1, 2)]), seen: true, failures: vec![] });
    leader.next().await;
    leader.deliver(consumer, queue, &[1]).await;
    client.delivered().await;
    scene.world.set_leader(ShardId(1), Some(super::leader(2, 2)));
    let (mut new, first) = scene.leader(super::leader(2, 2), 9, 0).await;
    assert_eq!(first, ToLeader::Return { queue, ranges: ranges(&[(2, 2)]), seen: true, failures: vec![] }, "1 is held again");
    let ToLeader::Attach { consumers, loose, .. } = new.next().await else { panic!("no attach") };
    assert_eq!(consumers[0].unacked, ranges(&[(1, 1), (3, 3)]));
    assert!(loose.is_empty());
}

#[tokio::test]
async fn what_came_redelivered_goes_back_as_seen_whoever_saw_it() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    let delivery = |seq, redelivered| Delivery { queue, seq: Seq(seq), redelivered, failures: 0, failed_ms: 0, message: stored() };
    let messages = vec![delivery(1, true), delivery(2, false), delivery(3, true)];
    leader.end.deliveries_tx.send(Deliveries { leader: leader.id, consumer, messages }).await.expect("the edge listens");
    timeout(PATIENCE, client.connection.changed()).await.expect("an event");
    client.ask(Request::Cancel { consumer });
    let mut said = [leader.next().await, leader.next().await, leader.next().await];
    said.sort_by_key(|m| match m {
        ToLeader::Return { seen, .. } => u8::from(*seen),
        _ => 2,
    });
    let back = |all: &[(u64, u64)], seen| ToLeader::Return { queue, ranges: ranges(all), seen, failures: vec![] };
    assert_eq!(said, [back(&[(2, 2)], false), back(&[(1, 1), (3, 3)], true), ToLeader::Cancel { consumer }]);
}

#[tokio::test]
async fn after_a_cancel_nothing_more_comes_and_what_is_held_can_be_settled() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2]).await;
    let held = client.delivered().await;
    leader.deliver(consumer, queue, &[3]).await;
    timeout(PATIENCE, client.connection.changed()).await.expect("an event");
    client.ask(Request::Cancel { consumer });
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(3, 3)]), seen: false, failures: vec![] });
    assert_eq!(leader.next().await, ToLeader::Cancel { consumer });
    leader.deliver(consumer, queue, &[4]).await;
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(4, 4)]), seen: false, failures: vec![] });
    assert!(client.now().is_empty());
    leader.say(ToEdge::Cancelled { consumer, asked: true }).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
    client.settle(&held[..1], Outcome::Ack);
    assert_eq!(settles(&leader.batch().await), [(SettleReason::Ack, vec![(1, 1)])]);
    drop(client);
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(2, 2)]), seen: true, failures: vec![] });
}

#[tokio::test]
async fn a_deleted_queue_ends_its_consumers() {
    let Consuming { mut client, mut leader, consumer, .. } = consuming(None).await;
    leader.say(ToEdge::Cancelled { consumer, asked: false }).await;
    assert_eq!(client.next().await, Event::ConsumerGone { channel: 1, consumer });
    client.ask(Request::Cancel { consumer });
    assert_eq!(client.reply().await, Ok(Reply::Done));
}

#[tokio::test]
async fn the_channels_common_prefetch_parks_what_is_over_it() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(None).await;
    client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(2) });
    assert_eq!(leader.next().await, ToLeader::Prefetch { consumer, limit: Some(2), held: 0 });
    leader.deliver(consumer, queue, &[1, 2, 3, 4, 5]).await; // three were on the way
    let held = client.delivered().await;
    assert_eq!(held.len(), 2);
    assert!(client.now().is_empty());
    client.settle(&held[..1], Outcome::Ack);
    let next = client.delivered().await;
    assert_eq!(next.iter().map(|h| h.seq.0).collect::<Vec<_>>(), [3]);
    assert_eq!(leader.next().await, ToLeader::Credit { consumer, messages: 1, bytes: 0 });
    assert_eq!(settles(&leader.batch().await), [(SettleReason::Ack, vec![(1, 1)])]);
    client.submit(Step::ChannelClosed { channel: 1, held: vec![held[1], next[0]] });
    assert_eq!(leader.next().await, ToLeader::Cancel { consumer });
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(4, 5)]), seen: false, failures: vec![] });
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(2, 3)]), seen: true, failures: vec![] });
}

async fn cancel(client: &mut Client, leader: &mut Leader, consumer: ConsumerId) {
    client.ask(Request::Cancel { consumer });
    while leader.next().await != (ToLeader::Cancel { consumer }) {}
    leader.say(ToEdge::Cancelled { consumer, asked: true }).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
}

#[tokio::test]
async fn a_cancelled_consumer_of_a_common_prefetch_is_known_while_something_of_it_is_held() {
    for keeps in [0, 2] {
        let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(None).await;
        let is_known = |client: &Client| client.connection.mailbox.consumer(consumer).is_some();
        client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(2) });
        assert_eq!(leader.next().await, ToLeader::Prefetch { consumer, limit: Some(2), held: 0 });
        leader.deliver(consumer, queue, &[1, 2]).await;
        let held = client.delivered().await;
        client.settle(&held[keeps..], Outcome::Ack);
        cancel(&mut client, &mut leader, consumer).await;
        assert_eq!(is_known(&client), keeps > 0);
        if keeps > 0 {
            client.settle(&held[..1], Outcome::Ack);
            assert!(is_known(&client), "one is held");
            client.settle(&held[1..], Outcome::Ack);
            assert!(!is_known(&client));
        }
    }
}

#[tokio::test]
async fn a_cancelled_consumer_is_forgotten_with_the_common_prefetch() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(None).await;
    client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(2) });
    leader.deliver(consumer, queue, &[1, 2]).await;
    client.delivered().await;
    cancel(&mut client, &mut leader, consumer).await;
    client.submit(Step::ChannelPrefetch { channel: 1, limit: None });
    assert!(client.connection.mailbox.consumer(consumer).is_none());
}

#[tokio::test]
async fn a_leader_gives_a_consumer_no_more_than_the_channels_common_prefetch() {
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    let limited = |limit, held| ToLeader::Prefetch { consumer, limit: Some(limit), held };
    client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(3) });
    assert_eq!(leader.next().await, limited(3, 0));
    leader.deliver(consumer, queue, &[1, 2, 3]).await;
    let held = client.delivered().await;
    client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(50) });
    assert_eq!(leader.next().await, limited(10, 3), "its own prefetch is less");
    client.settle(&held, Outcome::Ack);
    assert_eq!(leader.next().await, ToLeader::Credit { consumer, messages: 3, bytes: 0 });
    leader.batch().await;
    client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(4) });
    assert_eq!(leader.next().await, limited(4, 0));
    for (no_ack, prefetch) in [(false, Some(4)), (true, None)] {
        let (queue, tag) = (name("q"), "later".into());
        client.ask(Request::Consume { queue, tag, no_ack, exclusive: false, prefetch: None, arguments: Table::new() });
        let ToLeader::Consume(spec) = leader.next().await else { panic!("no consume") };
        assert_eq!(spec.prefetch, prefetch, "no_ack: {no_ack}");
        leader.say(ToEdge::Consuming { consumer: spec.id, result: Ok(0) }).await;
        client.reply().await.unwrap();
    }
}

#[tokio::test]
async fn get_holds_its_message_until_it_is_settled() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 1);
    client.ask(Request::Get { queue: name("q"), no_ack: false });
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.quiet().await;
    leader.verdict(1, &[]).await;
    let ToLeader::Get { request, queue: asked, .. } = leader.next().await else { panic!("no get") };
    assert_eq!(asked, queue, "asked once the client's own publish is in");
    let delivery = Delivery { queue, seq: Seq(1), redelivered: false, failures: 0, failed_ms: 0, message: stored() };
    leader.say(ToEdge::Got { request, result: Ok(Some((delivery.clone(), 6))) }).await;
    client.confirmed().await;
    let Ok(Reply::Got(Some(got))) = client.reply().await else { panic!("not got") };
    assert_eq!((got.shard, got.remaining), (ShardId(1), 6));
    scene.world.set_leader(ShardId(1), Some(super::leader(2, 3)));
    let (mut new, attach) = scene.leader(super::leader(2, 3), 9, 1).await;
    assert_eq!(attach, ToLeader::Attach { leader: new.id, consumers: vec![], asked: vec![], loose: vec![(queue, ranges(&[(1, 1)]))] });
    client.settle(&[Held { shard: ShardId(1), queue, seq: Seq(1), consumer: None }], Outcome::Ack);
    assert_eq!(settles(&new.batch().await), [(SettleReason::Ack, vec![(1, 1)])]);
    client.ask(Request::Get { queue: name("q"), no_ack: true });
    let ToLeader::Get { request, .. } = new.next().await else { panic!("no get") };
    let second = Delivery { seq: Seq(2), ..delivery };
    new.say(ToEdge::Got { request, result: Ok(Some((second, 0))) }).await;
    assert!(matches!(client.reply().await, Ok(Reply::Got(Some(_)))));
    assert_eq!(settles(&new.batch().await), [(SettleReason::Ack, vec![(2, 2)])], "no-ack: settled by the edge");
}

#[tokio::test]
async fn a_fetched_message_held_for_too_long_ends_its_channel_unless_it_is_settled() {
    for (settled, ms) in [(false, 80), (true, 2000)] {
        let mut scene = Scene::new(default_config());
        let arguments = Table::from([("x-consumer-timeout".to_owned(), Value::Int(ms))]);
        let spec = QueueSpec { name: name("q"), durable: true, auto_delete: false, exclusive_owner: None, arguments };
        let queue = scene.declare(spec, ShardId(1));
        let mut client = scene.client();
        client.ask(Request::Get { queue: name("q"), no_ack: false });
        let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
        let ToLeader::Get { request, .. } = leader.next().await else { panic!("no get") };
        let delivery = Delivery { queue, seq: Seq(1), redelivered: false, failures: 0, failed_ms: 0, message: stored() };
        leader.say(ToEdge::Got { request, result: Ok(Some((delivery, 0))) }).await;
        assert!(matches!(client.reply().await, Ok(Reply::Got(Some(_)))));
        if settled {
            client.settle(&[Held { shard: ShardId(1), queue, seq: Seq(1), consumer: None }], Outcome::Ack);
            // Longer than it may be held; a busy machine has two seconds to settle it.
            assert!(timeout(Duration::from_millis(3200), client.next()).await.is_err());
            continue;
        }
        match client.next().await {
            Event::ChannelError { channel: 1, refusal: Refusal::Precondition(text), method: (0, 0) } => {
                assert!(text.starts_with("delivery acknowledgement on channel 1 timed out. Timeout value used: 80 ms."), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_message_fetched_for_a_lost_client_goes_back_unseen() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(Request::Get { queue: name("q"), no_ack: false });
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let ToLeader::Get { request, .. } = leader.next().await else { panic!("no get") };
    drop(client);
    let delivery = Delivery { queue, seq: Seq(1), redelivered: false, failures: 0, failed_ms: 0, message: stored() };
    leader.say(ToEdge::Got { request, result: Ok(Some((delivery, 6))) }).await;
    assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(1, 1)]), seen: false, failures: vec![] });
}

#[tokio::test]
async fn a_queue_the_leader_has_not_heard_of_is_asked_for_again() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(Request::Get { queue: name("q"), no_ack: false });
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let refusal = || Refusal::NotFound { kind: "queue".into(), name: "17".into(), vhost: "".into() };
    let ToLeader::Get { request, .. } = leader.next().await else { panic!("no get") };
    leader.say(ToEdge::Got { request, result: Err(refusal()) }).await;
    let again = leader.next().await;
    assert_eq!(again, ToLeader::Get { request, queue, no_ack: false });
    scene.world.apply(&CatalogCommand::DeleteQueue { id: queue });
    leader.say(ToEdge::Got { request, result: Err(refusal()) }).await;
    let refused = client.reply().await.expect_err("gone");
    assert_eq!(refused.to_string(), "no queue 'q' in vhost '/'");
}

/// Rule 20: others may have declared this node gone while it was stopped, and given its messages to their clients.
#[tokio::test]
async fn after_a_stop_of_the_process_nothing_that_came_before_is_handed_out() {
    let Consuming { mut scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1]).await;
    client.delivered().await;
    leader.deliver(consumer, queue, &[2, 3]).await;
    timeout(PATIENCE, client.connection.changed()).await.expect("an event");
    leader.deliver(consumer, queue, &[4]).await;
    scene.edge.pulse.stop();
    assert_eq!(client.now(), vec![], "neither what waited for the client nor what waited for the lane");
    leader.say(ToEdge::NotLeader).await;
    let (mut again, attach) = scene.leader(super::leader(1, 2), 9, 0).await;
    let ToLeader::Attach { consumers, loose, .. } = attach else { panic!("no attach") };
    assert_eq!((&consumers[0].unacked, consumers[0].unwritten_bytes), (&ranges(&[(1, 1)]), stored().len() as u64));
    assert!(loose.is_empty());
    again.deliver(consumer, queue, &[2]).await;
    assert_eq!(client.delivered().await[0].seq, Seq(2), "under the new path");
}

#[tokio::test]
async fn what_a_client_has_not_seen_when_its_edge_was_declared_gone_it_does_not_get() {
    let Consuming { mut scene, mut client, mut leader, queue, consumer } = consuming(Some(10)).await;
    leader.deliver(consumer, queue, &[1]).await;
    timeout(PATIENCE, client.connection.changed()).await.expect("an event");
    drop(leader);
    let (_again, attach) = scene.leader(super::leader(1, 2), 20, 0).await;
    let ToLeader::Attach { consumers, .. } = attach else { panic!("no attach") };
    assert!(consumers[0].unacked.is_empty());
    assert_eq!(client.now(), vec![]);
}

#[tokio::test]
async fn returns_of_a_queue_are_remembered_as_one_until_they_are_on_record() {
    let Consuming { mut scene, mut client, mut leader, queue, consumer } = consuming(None).await;
    for seq in 1..=3 {
        leader.deliver(consumer, queue, &[seq]).await;
        let held = client.delivered().await;
        client.settle(&held, Outcome::Requeue);
        assert_eq!(leader.next().await, ToLeader::Return { queue, ranges: ranges(&[(seq, seq)]), seen: true, failures: vec![] });
    }
    drop(leader);
    let (mut new, first) = scene.leader(super::leader(2, 2), 9, 0).await;
    assert_eq!(first, ToLeader::Return { queue, ranges: ranges(&[(1, 3)]), seen: true, failures: vec![] });
    new.next().await; // attach
    new.say(ToEdge::Recorded { queue, ranges: ranges(&[(1, 2)]) }).await;
    new.deliver(consumer, queue, &[4]).await;
    client.delivered().await;
    drop(new);
    let (_last, first) = scene.leader(super::leader(3, 2), 9, 0).await;
    let untold = ToLeader::Return { queue, ranges: ranges(&[(3, 3)]), seen: true, failures: vec![] };
    assert_eq!(first, untold, "however long ago, until a leader has it on record");
}

#[tokio::test]
async fn a_message_held_for_too_long_ends_its_channel() {
    let arguments = Table::from([("x-consumer-timeout".to_owned(), Value::Int(60))]);
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming_with(Some(10), arguments).await;
    leader.deliver(consumer, queue, &[1, 2]).await;
    client.delivered().await;
    let Event::ChannelError { channel: 1, refusal: Refusal::Precondition(text), method: (0, 0) } = client.next().await else {
        panic!("no channel error")
    };
    assert_eq!(
        text,
        "delivery acknowledgement on channel 1 timed out. Timeout value used: 60 ms. This timeout value can be configured, see consumers \
         doc guide to learn more"
    );
}

/// As in RabbitMQ: what a cancelled consumer left with its client counts on.
#[tokio::test]
async fn a_message_held_for_too_long_after_its_consumer_was_cancelled_ends_its_channel() {
    let arguments = Table::from([("x-consumer-timeout".to_owned(), Value::Int(1500))]);
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming_with(Some(10), arguments).await;
    leader.deliver(consumer, queue, &[1]).await;
    client.delivered().await;
    client.ask(Request::Cancel { consumer });
    assert_eq!(leader.next().await, ToLeader::Cancel { consumer });
    leader.say(ToEdge::Cancelled { consumer, asked: true }).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
    let Event::ChannelError { channel: 1, refusal: Refusal::Precondition(_), method: (0, 0) } = client.next().await else {
        panic!("no channel error")
    };
}

#[tokio::test]
async fn the_timeout_of_a_policy_that_comes_later_and_that_of_the_node_count() {
    use crate::model::admin::{AdminCommand, ApplyTo, Policy, PolicyKind};
    for by_policy in [true, false] {
        let mut config = default_config();
        if !by_policy {
            config.consumer_timeout = Duration::from_millis(60);
        }
        let mut scene = Scene::new(config);
        let queue = scene.queue("q", 1);
        let mut client = scene.client();
        if by_policy {
            scene.world.apply(&policy(2000));
        }
        client.publish("", "q", 0);
        let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
        leader.batch().await;
        let consumer = client.consume(&mut leader, "q", Some(10)).await;
        leader.deliver(consumer, queue, &[1]).await;
        client.delivered().await;
        let expected = if by_policy { 61 } else { 60 };
        if by_policy {
            scene.world.apply(&policy(expected));
        }
        let Event::ChannelError { refusal: Refusal::Precondition(text), .. } = client.next().await else { panic!("no channel error") };
        assert!(text.contains(&format!("Timeout value used: {expected} ms.")), "{text}");
    }

    fn policy(ms: i64) -> CatalogCommand {
        let definition = Table::from([("consumer-timeout".to_owned(), Value::Int(ms))]);
        let policy = Policy { name: "p".into(), pattern: "".into(), apply_to: ApplyTo::All, definition, priority: 0 };
        CatalogCommand::Admin(AdminCommand::SetPolicy { kind: PolicyKind::User, vhost: "/".into(), policy })
    }
}

#[tokio::test]
async fn messages_that_are_settled_in_time_end_no_channel() {
    let arguments = Table::from([("x-consumer-timeout".to_owned(), Value::Int(5000))]);
    let Consuming { scene: _scene, mut client, mut leader, queue, consumer } = consuming_with(Some(10), arguments).await;
    for seq in 1..=16 {
        leader.deliver(consumer, queue, &[seq]).await;
        let held = client.delivered().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.settle(&held, Outcome::Ack);
    }
    assert_eq!(client.now(), []);
}

#[tokio::test]
async fn a_consumer_that_wants_so_ends_when_another_leader_takes_over() {
    let arguments = Table::from([("x-cancel-on-ha-failover".to_owned(), Value::Bool(true))]);
    let Consuming { mut scene, mut client, mut leader, queue, consumer } = consuming_with(Some(10), arguments).await;
    leader.deliver(consumer, queue, &[1]).await;
    client.delivered().await;
    drop(leader);
    let (_leader, attach) = scene.leader(crate::edge::tests::leader(2, 3), 9, 0).await;
    assert_eq!(client.next().await, Event::ConsumerGone { channel: 1, consumer });
    let ToLeader::Attach { consumers, loose, .. } = attach else { panic!("no attach") };
    assert_eq!((consumers, loose), (vec![], vec![(queue, ranges(&[(1, 1)]))]), "what its client holds stays held");
}
