//! A node that was away until the others have forgotten the log that it lacks comes back by snapshot, bodies included, while clients
//! publish; then another node dies and everything that was confirmed is delivered.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::time::Duration;
use warren_tests::client::{Field, QueueOptions};
use warren_tests::load::{self, ConsumerOptions, PublisherOptions, Running};
use warren_tests::oracle::Oracle;
use warren_tests::{Broker, Cluster, ClusterOptions, eventually, unique};

/// Several files of the log, which are 64 MiB each.
const BYTES: u64 = 200 << 20;
const BODY: usize = 200_000;

fn replicated() -> QueueOptions {
    let mut options = QueueOptions::durable();
    options.arguments.push(("x-queue-type".into(), Field::Text("quorum".into())));
    options
}

#[test]
fn a_node_that_was_away_too_long_catches_up_by_snapshot_and_then_carries_the_queue() {
    let test = "a_node_that_was_away_too_long_catches_up_by_snapshot_and_then_carries_the_queue";
    if std::env::var_os("WARREN_TEST_URIS").is_some() {
        return println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
    }
    let cluster = Cluster::start_with(&ClusterOptions { arguments: vec!["--catch-up-log=64MiB".into()], ..ClusterOptions::default() });
    let broker = Broker::Given(cluster.uris());
    let queue = unique("catch-up");
    broker.declare_durable(0, &queue);
    let mut leader = None;
    assert!(eventually(Duration::from_secs(10), || {
        leader = cluster.queue_leader(&queue);
        leader.is_some()
    }));
    let leader = leader.unwrap();
    let (away, stays) = ((leader + 1) % 3, (leader + 2) % 3);
    let oracle = Arc::new(Oracle::default());
    let options = PublisherOptions { size: BODY, rate: 2000, window: 40, ..PublisherOptions::default() };
    cluster.kill(away);
    let publisher = load::publish(&oracle, &broker.dial(stays), 1, &queue, &options);
    let enough = BYTES / BODY as u64;
    assert!(eventually(Duration::from_secs(240), || publisher.count() >= enough), "{} messages", publisher.count());
    let report = publisher.stop();
    assert!(report.closes.is_empty(), "{:?}", report.closes);
    // Traffic goes on, slowly enough for a busy machine.
    let options = PublisherOptions { rate: 10, ..options };
    let publisher = load::publish(&oracle, &broker.dial(stays), 2, &queue, &options);
    // The survivors purge with their next checkpoints, some seconds at most.
    std::thread::sleep(Duration::from_secs(4));
    cluster.restart(away);
    let installed = || cluster.log_tail(away).contains("state of another node installed");
    assert!(eventually(Duration::from_secs(120), installed), "no snapshot came: {}", cluster.log_tail(away));
    let report = publisher.stop();
    assert!(report.closes.is_empty(), "{:?}", report.closes);
    cluster.kill(leader);
    let serves = || broker.try_connect(away).is_ok_and(|mut client| client.declare(1, &queue, &replicated()).is_ok());
    assert!(eventually(Duration::from_secs(60), serves), "two nodes do not serve the queue");
    let consumer = load::consume(&oracle, &broker.dial(away), 1, &queue, &ConsumerOptions::default());
    let drained = load::drained(&oracle, Duration::from_secs(30));
    let closes = Running::stop(consumer).closes;
    println!("{}", oracle.findings());
    assert!(drained, "{}", oracle.findings());
    assert!(closes.is_empty(), "{closes:?}");
    oracle.findings().assert_safe();
}
