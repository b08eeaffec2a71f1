//! What one node has answered holds on every node at once.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::time::Duration;
use warren_tests::client::{Incoming, QueueOptions, encode::Route};
use warren_tests::{Broker, message_event, unique};

/// Publish with mandatory set; true when it was routed.
fn routed(client: &mut warren_tests::client::Connection, exchange: &str, key: &str) -> bool {
    client.publish_to(Route { channel: 1, exchange, key, mandatory: true }, b"x").unwrap();
    let mut returned = false;
    loop {
        match message_event(client, Duration::from_secs(15)).unwrap() {
            Some(Incoming::Returned { .. }) => returned = true,
            Some(Incoming::Confirm { nack: false, .. }) => return !returned,
            other => panic!("no confirm but {other:?}"),
        }
    }
}

#[test]
fn a_binding_made_on_one_node_routes_on_the_others_at_once() {
    let broker = Broker::shared();
    let exchange = unique("visible");
    let mut binders: Vec<_> = (0..broker.nodes()).map(|at| broker.connect(at)).collect();
    let mut publishers: Vec<_> = (0..broker.nodes()).map(|at| broker.connect(at)).collect();
    publishers.iter_mut().for_each(|publisher| publisher.confirm_select(1).unwrap());
    binders[0].declare_exchange(1, &exchange, "direct").unwrap();
    let queue = broker.declare_led_elsewhere(1 % broker.nodes(), "visible");
    for round in 0..60 {
        let (binder_at, publisher_at) = (round % broker.nodes(), (round / broker.nodes() + round + 1) % broker.nodes());
        let key = format!("key-{round}");
        binders[binder_at].bind(1, &queue, &exchange, &key).unwrap();
        assert!(
            routed(&mut publishers[publisher_at], &exchange, &key),
            "round {round}: bound on {binder_at}, unroutable on {publisher_at}"
        );
    }
    let look = binders[0].declare(1, &queue, &QueueOptions::look()).unwrap();
    assert_eq!(look.messages, 60);
    binders[0].delete(1, &queue).unwrap();
    binders[0].delete_exchange(1, &exchange).unwrap();
}

#[test]
fn a_queue_declared_on_one_node_exists_on_the_others_at_once_and_a_deleted_one_does_not() {
    let broker = Broker::shared();
    let mut clients: Vec<_> = (0..broker.nodes()).map(|at| broker.connect(at)).collect();
    clients.iter_mut().for_each(|client| client.confirm_select(1).unwrap());
    let mut crossed = 0;
    for round in 0..15 {
        let (here, there) = (round % clients.len(), (round + 1) % clients.len());
        let queue = unique("there");
        clients[here].declare(1, &queue, &QueueOptions::durable()).unwrap();
        assert!(routed(&mut clients[there], "", &queue), "round {round}: declared on {here}, unroutable on {there}");
        crossed += usize::from(broker.node_away_from_leader(&queue, there) == there);
        clients[there].delete(1, &queue).unwrap();
        assert!(!routed(&mut clients[here], "", &queue), "round {round}: deleted on {there}, routed on {here}");
    }
    assert!(crossed > 3, "in {crossed} rounds only the publisher's node was another than the queue's leader");
}

#[test]
fn a_name_that_is_deleted_and_declared_again_means_the_new_queue_on_every_node() {
    let broker = Broker::shared();
    let mut clients: Vec<_> = (0..broker.nodes()).map(|at| broker.connect(at)).collect();
    clients.iter_mut().for_each(|client| client.confirm_select(1).unwrap());
    let queue = unique("again");
    let mut crossed = 0;
    for round in 0..20 {
        let at = |n: usize| (round + n) % broker.nodes();
        clients[at(0)].declare(1, &queue, &QueueOptions::durable()).unwrap();
        assert!(routed(&mut clients[at(1)], "", &queue), "round {round}: declared, unroutable on {}", at(1));
        crossed += usize::from(broker.node_away_from_leader(&queue, at(1)) == at(1));
        assert_eq!(clients[at(2)].delete(1, &queue).unwrap(), 1, "round {round}: the message of this round and no other");
        clients[at(1)].declare(1, &queue, &QueueOptions::durable()).unwrap();
        for (n, client) in clients.iter_mut().enumerate() {
            assert!(routed(client, "", &queue), "round {round}: declared again, unroutable on {n}");
        }
        let look = clients[at(0)].declare(1, &queue, &QueueOptions::look()).unwrap();
        assert_eq!(look.messages, broker.nodes() as u32, "round {round}: what was confirmed is in the new queue");
        clients[at(2)].delete(1, &queue).unwrap();
    }
    assert!(crossed > 4, "in {crossed} rounds only the first publisher's node was another than the queue's leader");
}
