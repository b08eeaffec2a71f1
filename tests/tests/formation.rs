//! Clusters of every size, kills while a cluster forms, and disks that vanish: one cluster comes of it, or none, never two and never an
//! empty one in place of one that had data.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};
use warren_tests::client::{Incoming, QueueOptions};
use warren_tests::{Broker, Chance, Cluster, ClusterOptions, eventually, message_event, unique};

/// Longer than a node needs to say that it serves.
const LONG_ENOUGH: Duration = Duration::from_secs(5);

fn prepare(test: &str, nodes: usize) -> Option<Cluster> {
    if std::env::var_os("WARREN_TEST_URIS").is_some() {
        println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
        return None;
    }
    Some(Cluster::prepare(&ClusterOptions { nodes, ..ClusterOptions::default() }).unwrap())
}

/// Publish one message, confirmed. Node and queue are told when it fails.
fn publish(broker: &Broker, at: usize, queue: &str, body: &str) {
    let mut client = broker.connect(at);
    client.confirm_select(1).unwrap();
    client.publish(1, queue, body.as_bytes()).unwrap();
    let confirm = message_event(&mut client, Duration::from_secs(60));
    assert!(matches!(confirm, Ok(Some(Incoming::Confirm { nack: false, .. }))), "{queue} through node {at}: {confirm:?}");
}

fn take_all(broker: &Broker, at: usize, queue: &str) -> Vec<String> {
    let (mut client, mut bodies) = (broker.connect(at), Vec::new());
    while let Some((message, _)) = client.get(1, queue).unwrap() {
        bodies.push(String::from_utf8(message.body).unwrap());
        client.ack(1, message.tag, false).unwrap();
    }
    bodies
}

/// Every running node takes messages for a queue; one of them has them all.
fn assert_serves(cluster: &Cluster, running: &[usize]) {
    let (broker, queue) = (Broker::Given(cluster.uris()), unique("formed"));
    broker.declare_durable(running[0], &queue);
    running.iter().for_each(|at| publish(&broker, *at, &queue, &at.to_string()));
    let last = *running.last().unwrap();
    assert_eq!(take_all(&broker, last, &queue), running.iter().map(ToString::to_string).collect::<Vec<_>>());
    let identities: BTreeSet<_> = running.iter().map(|at| cluster.identity(*at)).collect();
    assert!(identities.len() == 1 && !identities.contains(&None), "one cluster: {identities:?}");
}

#[test]
fn one_node_serves_alone_and_keeps_its_messages_over_a_kill() {
    let Some(cluster) = prepare("one_node_serves_alone_and_keeps_its_messages_over_a_kill", 1) else { return };
    cluster.start_all();
    assert_serves(&cluster, &[0]);
    let (broker, queue) = (Broker::Given(cluster.uris()), unique("alone"));
    broker.declare_durable(0, &queue);
    publish(&broker, 0, &queue, "kept");
    cluster.kill(0);
    cluster.restart(0);
    assert_eq!(take_all(&broker, 0, &queue), ["kept"]);
}

#[test]
fn two_nodes_serve_together_and_neither_confirms_alone() {
    let Some(cluster) = prepare("two_nodes_serve_together_and_neither_confirms_alone", 2) else { return };
    cluster.start_all();
    assert_serves(&cluster, &[0, 1]);
    let (broker, queue) = (Broker::Given(cluster.uris()), unique("two"));
    broker.declare_durable(0, &queue);
    publish(&broker, 1, &queue, "kept");
    let mut client = broker.connect(0);
    client.confirm_select(1).unwrap();
    cluster.kill(1);
    client.publish(1, &queue, b"alone").unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let event = client.event_within(Duration::from_millis(100)).unwrap();
        assert!(!matches!(event, Some(Incoming::Confirm { nack: false, .. })), "one of two nodes confirmed");
    }
    cluster.restart(1);
    assert!(eventually(Duration::from_secs(60), || broker.connect(1).declare(1, &queue, &QueueOptions::look()).is_ok()));
    publish(&broker, 1, &queue, "after");
    let mut bodies = take_all(&broker, 1, &queue);
    bodies.retain(|body| body != "alone"); // unknown: it may be there
    assert_eq!(bodies, ["kept", "after"]);
}

#[test]
fn five_nodes_go_on_without_one_and_without_another() {
    let Some(cluster) = prepare("five_nodes_go_on_without_one_and_without_another", 5) else { return };
    cluster.start_all();
    assert_serves(&cluster, &[0, 1, 2, 3, 4]);
    let broker = Broker::Given(cluster.uris());
    let queues: Vec<String> = (0..5).map(|_| unique("five")).collect();
    queues.iter().for_each(|queue| broker.declare_durable(0, queue));
    let mut leaders = Vec::new();
    for queue in &queues {
        publish(&broker, 1, queue, "before");
        assert!(eventually(Duration::from_secs(60), || cluster.queue_leader(queue).is_some()), "no leader of {queue}");
        leaders.push(cluster.queue_leader(queue).unwrap());
    }
    assert!(leaders.iter().collect::<BTreeSet<_>>().len() > 2, "queues are spread over the nodes: {leaders:?}");
    let victims = [leaders[0], (leaders[0] + 2) % 5];
    for victim in victims {
        cluster.kill(victim);
        let stays = (victim + 1) % 5;
        queues.iter().for_each(|queue| publish(&broker, stays, queue, &victim.to_string()));
        cluster.restart(victim);
    }
    let expected = ["before".to_owned(), victims[0].to_string(), victims[1].to_string()];
    queues.iter().for_each(|queue| assert_eq!(take_all(&broker, victims[1], queue), expected));
}

/// Each is started when the one before says for whom it waits.
#[test]
fn empty_nodes_started_one_after_the_other_in_any_order_form_one_cluster() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let Some(cluster) = prepare("empty_nodes_started_one_after_the_other_in_any_order_form_one_cluster", 3) else { return };
        for at in order {
            cluster.spawn(at);
            let waits = || cluster.log_tail(at).contains("waiting for the other configured nodes");
            let is_up = at == order[2] || eventually(Duration::from_secs(60), waits);
            assert!(is_up, "{order:?}: node {at} does not wait for the others: {}", cluster.log_tail(at));
            assert!(at == order[2] || !cluster.is_ready(at), "{order:?}: node {at} serves before all are there");
        }
        (0..3).for_each(|at| cluster.await_ready(at));
        assert_serves(&cluster, &[0, 1, 2]);
        let groups = |at| cluster.log_tail(at).matches("the disk was wiped").count();
        assert_eq!([0, 1, 2].map(groups), [0; 3], "{order:?}: an empty node was taken for a wiped one");
    }
}

#[test]
fn nodes_killed_while_the_cluster_forms_form_one_cluster_when_they_are_started_again() {
    let test = "nodes_killed_while_the_cluster_forms_form_one_cluster_when_they_are_started_again";
    let rounds = std::env::var("WARREN_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut chance = Chance::new(test);
    for round in 1..=rounds {
        let Some(cluster) = prepare(test, 3) else { return };
        let began = Instant::now();
        (0..3).for_each(|at| cluster.spawn(at));
        let mut kills: Vec<(u64, usize)> = (0..3).map(|at| (chance.between(0, 1200), at)).collect();
        kills.sort_unstable();
        for (after_ms, at) in &kills {
            sleep((began + Duration::from_millis(*after_ms)).saturating_duration_since(Instant::now()));
            cluster.kill(*at);
            if chance.below(2) == 0 {
                cluster.spawn(*at); // it meets those that are still to be killed
                sleep(Duration::from_millis(chance.between(0, 300)));
                cluster.kill(*at);
            }
        }
        cluster.start_all();
        println!("{test}: round {round} of {rounds}: killed at {kills:?}");
        assert_serves(&cluster, &[0, 1, 2]);
    }
}

#[test]
fn two_wiped_nodes_of_three_are_never_an_empty_cluster() {
    let Some(cluster) = prepare("two_wiped_nodes_of_three_are_never_an_empty_cluster", 3) else { return };
    cluster.start_all();
    let (broker, queue) = (Broker::Given(cluster.uris()), unique("wiped"));
    broker.declare_durable(0, &queue);
    publish(&broker, 0, &queue, "kept");
    let identity = cluster.identity(0);
    for first in [[0, 1, 2], [2, 0, 1]] {
        cluster.kill_all();
        let (left, wiped) = (first[0], &first[1..]);
        wiped.iter().for_each(|at| cluster.set_aside(*at));
        // The wiped ones are alone at first, then the third joins.
        wiped.iter().for_each(|at| cluster.spawn(*at));
        assert_nobody_serves(&cluster, Duration::from_secs(2));
        cluster.spawn(left);
        assert_nobody_serves(&cluster, LONG_ENOUGH);
        let told = cluster.log_tail(left);
        assert!(told.contains("a majority of the nodes has empty disks"), "the operator is asked: {told}");
        wiped.iter().for_each(|at| assert!(cluster.log_tail(*at).contains("the disk was wiped"), "{}", cluster.log_tail(*at)));
        cluster.kill_all();
        wiped.iter().for_each(|at| cluster.put_back(*at));
        cluster.start_all();
        assert_eq!(cluster.identity(wiped[0]), identity);
        let seen = broker.connect(wiped[0]).declare(1, &queue, &QueueOptions::look()).unwrap();
        assert_eq!(seen.messages, 1, "what was confirmed is there once the disks are");
    }
    assert_eq!(take_all(&broker, 1, &queue), ["kept"]);
}

/// No node says that it serves, and none leads a shard.
fn assert_nobody_serves(cluster: &Cluster, long: Duration) {
    let until = Instant::now() + long;
    while Instant::now() < until {
        for at in 0..cluster.len() {
            assert!(!cluster.is_ready(at), "node {at} serves: {}", cluster.log_tail(at));
            let led = cluster.metrics(at).map(|metrics| metrics.led_shards()).unwrap_or_default();
            assert!(led.is_empty(), "node {at} leads {led:?}");
        }
        sleep(Duration::from_millis(100));
    }
}

/// The promise of the first start, and what a flood of the peer ports may not do.
#[test]
fn three_nodes_serve_within_fifteen_seconds_and_strangers_on_the_peer_ports_keep_none_out() {
    let Some(cluster) = prepare("three_nodes_serve_within_fifteen_seconds_and_strangers_on_the_peer_ports_keep_none_out", 3) else {
        return;
    };
    let began = Instant::now();
    cluster.start_all();
    assert!(began.elapsed() < Duration::from_secs(15), "the first start took {:?}", began.elapsed());
    let peers: Vec<u16> = (0..3).map(|at| cluster.ports(at).peer).collect();
    let flood = |at: usize| {
        let port = peers[at];
        (0..200).filter_map(move |_| TcpStream::connect(("127.0.0.1", port)).ok())
    };
    for victim in [0, 1] {
        cluster.kill(victim);
        let strangers: Vec<TcpStream> = (0..3).filter(|at| *at != victim).flat_map(flood).collect();
        assert!(strangers.len() > 256, "{} strangers", strangers.len());
        cluster.restart(victim);
        assert_serves(&cluster, &[0, 1, 2]);
    }
}
