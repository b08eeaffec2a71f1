//! Requests about queues, and queues that come and go.

use super::*;

#[tokio::test]
async fn a_dropped_queue_ends_its_consumers() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    shard.drop_queue(Q);
    assert_eq!(edge.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: false });
    let Err(Refusal::NotFound { .. }) = edge.get(Q).await else { panic!() };
}

#[tokio::test]
async fn get_takes_one_and_counts_the_rest() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    assert_eq!(edge.get(Q).await, Ok(None));
    edge.publish(Q, 0..3).await;
    assert_eq!(edge.stat(Q).await.bytes, 6, "of bodies only");
    assert_eq!(edge.get(Q).await, Ok(Some((1, false, 2))));
    let stat = edge.stat(Q).await;
    assert_eq!((stat.bytes, stat.unacked_bytes), (6, 2), "of all, and of what is out");
    edge.give_back(Q, 1, 1, true).await;
    assert_eq!(edge.get(Q).await, Ok(Some((1, true, 2))));
    assert_eq!(edge.get(Q).await, Ok(Some((2, false, 1))));
}

#[tokio::test]
async fn purge_takes_what_waits_and_leaves_what_is_held() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 0..10).await;
    edge.take(2).await;
    edge.up(ToLeader::Purge { request: 3, queue: Q }).await;
    assert_eq!(edge.down().await, ToEdge::Purged { request: 3, result: Ok(8) });
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked), (0, 2));
    edge.give_back(Q, 1, 1, true).await;
    edge.publish(Q, 10..11).await;
    edge.credit(1, 1, 0).await;
    assert_eq!(edge.seqs(1).await, [1]);
    edge.credit(1, 1, 0).await;
    assert_eq!(edge.seqs(1).await, [11]);
}

#[tokio::test]
async fn a_purge_takes_what_was_given_back_before_and_is_being_counted() {
    let shard = Shard::with(QueueSettings { delivery_limit: Some(5), ..QueueSettings::default() });
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..2).await;
    assert_eq!(edge.get(Q).await, Ok(Some((1, false, 1))));
    edge.give_back(Q, 1, 1, true).await;
    edge.up(ToLeader::Purge { request: 3, queue: Q }).await;
    assert_eq!(edge.down().await, ToEdge::Purged { request: 3, result: Ok(2) });
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked), (0, 0));
}

#[tokio::test]
async fn a_purge_that_is_proposed_twice_counts_once() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..3).await;
    shard.gate.fail.store(2, Ordering::Relaxed);
    edge.up(ToLeader::Purge { request: 5, queue: Q }).await;
    assert_eq!(edge.down().await, ToEdge::Purged { request: 5, result: Ok(3) });
    assert_eq!(edge.stat(Q).await.ready, 0);
}

#[tokio::test]
async fn an_exclusive_consumer_is_alone() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    let exclusive = |id| Consumer { exclusive: true, ..consumer(id, Q, None) };
    one.up(ToLeader::Consume(exclusive(1))).await;
    one.started(1).await;
    two.up(ToLeader::Consume(consumer(1, Q, None))).await;
    let refusal = Refusal::Access("queue 'q10' in vhost '/' in exclusive use".into());
    assert_eq!(two.down().await, ToEdge::Consuming { consumer: ConsumerId(1), result: Err(refusal) });
    one.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    assert_eq!(one.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: true });
    two.consume(2, Q, None).await;
    one.up(ToLeader::Consume(exclusive(3))).await;
    let ToEdge::Consuming { result: Err(Refusal::Access(_)), .. } = one.down().await else { panic!() };
}

#[tokio::test]
async fn the_last_consumer_of_an_auto_delete_queue_is_reported_never_mere_absence() {
    let mut shard = Shard::with_queues(&[Q, Q2]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    edge.consume(2, Q2, None).await;
    let mut shard = {
        tokio::time::sleep(QUIET).await;
        assert!(shard.events.try_recv().is_err());
        shard.fail_over()
    };
    let mut edge = shard.arriving(1, edge.incarnation).await;
    edge.attach(vec![attached(1, Q, None, vec![]), attached(2, Q2, None, vec![])], vec![]).await;
    tokio::time::sleep(QUIET).await;
    assert!(shard.events.try_recv().is_err());
    for id in [1, 2] {
        edge.up(ToLeader::Cancel { consumer: ConsumerId(id) }).await;
        edge.down().await;
    }
    let event = timeout(SOON, shard.events.recv()).await.unwrap();
    assert_eq!(event, Some(ServerEvent::Sealed { queue: Q2 }));
}

#[tokio::test]
async fn a_consumer_that_ended_while_its_edge_was_away_counts_as_cancelled() {
    let mut shard = Shard::with_queues(&[Q2]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q2, None).await;
    let incarnation = edge.incarnation;
    drop(edge);
    let _edge = shard.edge_of(1, incarnation).await;
    let event = timeout(SOON, shard.events.recv()).await.unwrap();
    assert_eq!(event, Some(ServerEvent::Sealed { queue: Q2 }));
}

#[tokio::test]
async fn more_answers_than_a_path_holds_wait_for_the_edge() {
    const MANY: u64 = crate::model::ports::PATH_CAPACITY as u64 + 500;
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    for id in 1..=MANY {
        edge.consume(id, Q, Some(1)).await;
    }
    shard.drop_queue(Q);
    tokio::time::sleep(QUIET).await;
    for id in 1..=MANY {
        assert_eq!(edge.down().await, ToEdge::Cancelled { consumer: ConsumerId(id), asked: false });
    }
    let Err(Refusal::NotFound { .. }) = edge.get(Q).await else { panic!() };
}

#[test]
fn the_catalog_says_which_queues_a_shard_should_have() {
    use crate::machine::catalog::Catalog;
    use crate::model::catalog::{CatalogCommand, QueueSpec, Table};
    let name = |name: &str| Name { vhost: "/".into(), name: name.into() };
    let mut catalog = Catalog::new();
    let mut index = 0;
    let mut apply = |command: CatalogCommand| {
        index += 1;
        catalog.apply(LogId { leader: LeaderId::default(), index }, &command);
    };
    apply(CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash: String::new(), shards: 2 });
    for (queue, shard, auto_delete) in [("a", 1, false), ("b", 1, true), ("c", 2, false)] {
        let spec = QueueSpec { name: name(queue), durable: true, auto_delete, exclusive_owner: None, arguments: Table::new() };
        apply(CatalogCommand::DeclareQueue { spec, node: NodeId(1), incarnation: Incarnation(1), shard: ShardId(shard) });
    }
    apply(CatalogCommand::DeleteQueue { id: QueueId(2) });
    let feed = parking_lot::RwLock::new(catalog);
    let changes = feed.changes(ShardId(1), 2, &|| panic!("the change log reaches back"));
    let changes_made =
        CatalogChanges { to: 5, version: 1, creates: vec![QueueId(3)], drops: vec![QueueId(2)], settings: vec![], replays: vec![] };
    assert_eq!(changes, Some(changes_made));
    assert_eq!(feed.facts(QueueId(3)), Some(QueueFacts { name: name("b"), auto_delete: true }));
    assert_eq!(feed.facts(QueueId(2)), None);
}

#[test]
fn a_shard_is_told_the_settings_of_new_queues_and_of_those_set_differently() {
    use crate::machine::catalog::Catalog;
    use crate::model::catalog::{CatalogCommand, QueueSpec, Table, Value};
    let name = |name: &str| Name { vhost: "/".into(), name: name.into() };
    let mut catalog = Catalog::new();
    let mut index = 0;
    let mut apply = |catalog: &mut Catalog, command: CatalogCommand| {
        index += 1;
        catalog.apply(LogId { leader: LeaderId::default(), index }, &command);
    };
    let bootstrap = CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash: String::new(), shards: 1 };
    apply(&mut catalog, bootstrap);
    let limit = Table::from([("x-max-length".to_owned(), Value::Int(7))]);
    for (queue, arguments) in [("plain", Table::new()), ("limited", limit)] {
        let spec = QueueSpec { name: name(queue), durable: true, auto_delete: false, exclusive_owner: None, arguments };
        apply(&mut catalog, CatalogCommand::DeclareQueue { spec, node: NodeId(1), incarnation: Incarnation(1), shard: ShardId(1) });
    }
    catalog.configured(3, QueueId(2));
    let feed = parking_lot::RwLock::new(catalog);
    let settings = |from| feed.changes(ShardId(1), from, &|| None).unwrap().settings;
    let limited = (QueueId(3), QueueSettings { max_length: Some(7), ..QueueSettings::default() });
    assert_eq!(settings(1), std::slice::from_ref(&limited));
    assert_eq!(settings(2), [(QueueId(2), QueueSettings::default()), limited]);
    assert_eq!(settings(3), []);
}
