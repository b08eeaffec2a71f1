//! Does the cluster work at all: every kind of queue, through every pair of nodes.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::time::Duration;
use warren_tests::client::encode::{self, Route};
use warren_tests::client::{ClientError, Connection, Field, Incoming, QueueOptions};
use warren_tests::{Broker, eventually, message_event, unique};

const PATIENCE: Duration = Duration::from_secs(10);

/// The next delivery; panics when anything else comes or nothing within 10 s.
fn delivery(connection: &mut Connection) -> warren_tests::client::Delivery {
    match message_event(connection, PATIENCE) {
        Ok(Some(Incoming::Deliver(_, message))) => message,
        other => panic!("no delivery but {other:?}"),
    }
}

fn confirm(connection: &mut Connection) {
    match message_event(connection, PATIENCE) {
        Ok(Some(Incoming::Confirm { nack: false, .. })) => (),
        other => panic!("no confirm but {other:?}"),
    }
}

fn publish_and_consume(broker: &Broker, queue: &str, publisher_at: usize, consumer_at: usize, options: &QueueOptions) {
    let mut publisher = broker.connect(publisher_at);
    publisher.confirm_select(1).unwrap();
    publisher.declare(1, queue, options).unwrap();
    let mut consumer = broker.connect(consumer_at);
    consumer.consume(1, queue, "c", &[]).unwrap();
    for body in [b"".as_slice(), b"one", &vec![7; 300_000]] {
        publisher.publish(1, queue, body).unwrap();
        confirm(&mut publisher);
        let got = delivery(&mut consumer);
        assert!(got.body == body, "published on node {publisher_at}, consumed on node {consumer_at}: {} bytes", got.body.len());
        assert_eq!((got.redelivered, got.key.as_str(), got.properties.as_slice()), (false, queue, [0x10, 0, 2].as_slice()));
        consumer.ack(1, got.tag, false).unwrap();
    }
    consumer.close().unwrap();
    publisher.delete(1, queue).unwrap();
}

#[test]
fn a_durable_queue_works_through_each_pair_of_nodes() {
    let broker = Broker::shared();
    let mut options = QueueOptions::durable();
    options.arguments.push(("x-queue-type".into(), Field::Text("quorum".into())));
    for publisher_at in 0..broker.nodes() {
        for consumer_at in 0..broker.nodes() {
            publish_and_consume(&broker, &unique("durable"), publisher_at, consumer_at, &options);
        }
    }
}

#[test]
fn a_transient_queue_works_through_each_pair_of_nodes() {
    let broker = Broker::shared();
    for publisher_at in 0..broker.nodes() {
        for consumer_at in 0..broker.nodes() {
            publish_and_consume(&broker, &unique("transient"), publisher_at, consumer_at, &QueueOptions::default());
        }
    }
}

#[test]
fn an_exclusive_queue_is_reached_from_every_node_and_locked_for_others() {
    let broker = Broker::shared();
    for owner_at in 0..broker.nodes() {
        let mut owner = broker.connect(owner_at);
        let options = QueueOptions { exclusive: true, ..QueueOptions::default() };
        let queue = owner.declare(1, "", &options).unwrap().name;
        assert!(queue.starts_with("amq.gen-"), "{queue}");
        owner.consume(1, &queue, "c", &[]).unwrap();
        for publisher_at in 0..broker.nodes() {
            let mut publisher = broker.connect(publisher_at);
            publisher.confirm_select(1).unwrap();
            publisher.publish_to(Route { channel: 1, exchange: "", key: &queue, mandatory: true }, b"hello").unwrap();
            confirm(&mut publisher);
            let got = delivery(&mut owner);
            assert_eq!(got.body, b"hello");
            owner.ack(1, got.tag, false).unwrap();
            let refused = publisher.declare(1, &queue, &QueueOptions::look());
            assert!(matches!(refused, Err(ClientError::ChannelClosed { code: 405, .. })), "{refused:?}");
        }
        owner.close().unwrap();
        // It goes after its connection's close-ok: while it is there, it stays locked.
        let mut seen = None;
        let gone = eventually(Duration::from_secs(10), || {
            let looked = broker.connect((owner_at + 1) % broker.nodes()).declare(1, &queue, &QueueOptions::look());
            seen = looked.as_ref().err().and_then(ClientError::code);
            seen != Some(405)
        });
        assert!(gone && seen == Some(404), "an exclusive queue outlives its connection: {seen:?}");
    }
}

#[test]
fn a_queue_is_read_with_get_and_counted_on_every_node() {
    let broker = Broker::shared();
    let queue = unique("get");
    broker.declare_durable(0, &queue);
    let at = broker.node_away_from_leader(&queue, 1);
    let mut client = broker.connect(at);
    client.confirm_select(1).unwrap();
    for body in [b"a", b"b", b"c"] {
        client.publish(1, &queue, body).unwrap();
        confirm(&mut client);
    }
    for node in 0..broker.nodes() {
        assert_eq!(broker.connect(node).declare(1, &queue, &QueueOptions::look()).unwrap().messages, 3, "as node {node} counts");
    }
    for (body, left) in [(b"a", 2), (b"b", 1), (b"c", 0)] {
        let (message, remaining) = client.get(1, &queue).unwrap().expect("a message");
        assert_eq!((message.body.as_slice(), remaining, message.redelivered), (body.as_slice(), left, false));
        client.ack(1, message.tag, false).unwrap();
    }
    assert_eq!(client.get(1, &queue).unwrap(), None);
    client.delete(1, &queue).unwrap();
}

#[test]
fn what_is_over_a_channels_common_prefetch_stays_in_the_queue_for_others() {
    let broker = Broker::shared();
    let queue = unique("common-prefetch");
    broker.declare_durable(0, &queue);
    let at = broker.node_away_from_leader(&queue, 0);
    let mut publisher = broker.connect(at);
    publisher.confirm_select(1).unwrap();
    for number in 1..=8 {
        publisher.publish(1, &queue, &[number]).unwrap();
        confirm(&mut publisher);
    }
    let mut first = broker.connect(at);
    let common_prefetch = |client: &mut Connection, count: u16| {
        let mut out = Vec::new();
        encode::qos(&mut out, 1, count, true);
        client.send(&out).unwrap();
        client.answer((60, 11)).unwrap();
    };
    common_prefetch(&mut first, 4);
    first.consume(1, &queue, "c", &[]).unwrap();
    let got: Vec<u8> = (0..4).map(|_| delivery(&mut first).body[0]).collect();
    assert_eq!(got, [1, 2, 3, 4]);
    common_prefetch(&mut first, 5);
    assert_eq!(delivery(&mut first).body, [5], "a higher limit holds at once");
    let mut second = broker.connect((at + 1) % broker.nodes());
    assert_eq!(second.declare(1, &queue, &QueueOptions::look()).unwrap().messages, 3);
    second.consume(1, &queue, "c", &[]).unwrap();
    assert_eq!((0..3).map(|_| delivery(&mut second).body[0]).collect::<Vec<_>>(), [6, 7, 8]);
    publisher.delete(1, &queue).unwrap();
}

#[test]
fn what_a_closed_channel_held_comes_again_flagged_and_in_order() {
    let broker = Broker::shared();
    let queue = unique("requeue");
    broker.declare_durable(0, &queue);
    let at = broker.node_away_from_leader(&queue, 0);
    let mut publisher = broker.connect(at);
    publisher.confirm_select(1).unwrap();
    for body in [b"1", b"2", b"3"] {
        publisher.publish(1, &queue, body).unwrap();
        confirm(&mut publisher);
    }
    let mut first = broker.connect(at);
    first.qos(1, 2).unwrap();
    first.consume(1, &queue, "c", &[]).unwrap();
    assert_eq!([delivery(&mut first).body, delivery(&mut first).body], [b"1".to_vec(), b"2".to_vec()]);
    first.close_channel(1).unwrap();
    let mut second = broker.connect((at + 1) % broker.nodes());
    second.consume(1, &queue, "c", &[]).unwrap();
    let got: Vec<(Vec<u8>, bool)> = (0..3).map(|_| delivery(&mut second)).map(|message| (message.body, message.redelivered)).collect();
    assert_eq!(got, [(b"1".to_vec(), true), (b"2".to_vec(), true), (b"3".to_vec(), false)]);
    second.close().unwrap();
    publisher.delete(1, &queue).unwrap();
}

#[test]
fn an_unroutable_mandatory_message_is_returned_before_its_confirm() {
    let broker = Broker::shared();
    let mut client = broker.connect(broker.nodes() - 1);
    client.confirm_select(1).unwrap();
    client.publish_to(Route { channel: 1, exchange: "", key: "nobody-has-this-queue", mandatory: true }, b"back").unwrap();
    match message_event(&mut client, PATIENCE).unwrap() {
        Some(Incoming::Returned { code: 312, message, .. }) => assert_eq!(message.body, b"back"),
        other => panic!("no return but {other:?}"),
    }
    confirm(&mut client);
}

#[test]
fn a_message_for_a_hundred_queues_is_stored_once_per_shard() {
    const BODY: usize = 1 << 20;
    let Some(cluster) = Broker::to_harm("a_message_for_a_hundred_queues_is_stored_once_per_shard") else { return };
    let mut client = Broker::Given(cluster.uris()).connect(0);
    let exchange = unique("fanout");
    client.declare_exchange(1, &exchange, "fanout").unwrap();
    let queues: Vec<String> = (0..100).map(|n| format!("{exchange}-{n}")).collect();
    for queue in &queues {
        client.declare(1, queue, &QueueOptions::durable()).unwrap();
        client.bind(1, queue, &exchange, "").unwrap();
    }
    client.confirm_select(1).unwrap();
    let metric = |at: usize, name: &str| cluster.metrics(at).and_then(|metrics| metrics.sum(name)).unwrap();
    let written = || [0, 1, 2].map(|at| metric(at, "warren_wal_written_bytes_total"));
    let before = written();
    client.publish_to(Route { channel: 1, exchange: &exchange, key: "", mandatory: true }, &vec![7; BODY]).unwrap();
    confirm(&mut client);
    let is_everywhere =
        |client: &mut Connection| queues.iter().all(|queue| client.declare(1, queue, &QueueOptions::look()).unwrap().messages == 1);
    assert!(is_everywhere(&mut client), "what is confirmed is in all queues");
    let (message, _) = client.get(1, &queues[99]).unwrap().unwrap();
    assert!(message.body == vec![7; BODY]);
    // The catalog's shard has none of it.
    let shards = cluster.metrics(0).unwrap().named("warren_shard_is_leader").count() - 1;
    let added: Vec<f64> = written().iter().zip(before).map(|(after, before)| after - before).collect();
    let most = ((shards + 1) * BODY) as f64;
    assert!(added.iter().all(|bytes| *bytes < most), "{added:?} with {shards} shards");
    assert!(added.iter().sum::<f64>() > (2 * BODY) as f64, "a majority of one shard at least: {added:?}");
}
