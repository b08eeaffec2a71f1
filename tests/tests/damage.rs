//! A node whose log was damaged on its disk: it is rebuilt from the others, and nothing confirmed is lost, whoever dies then. With two of
//! three damaged the shard is not served, and the log says why.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;
use warren_tests::load::{self, ConsumerOptions, ConsumerReport, PublisherOptions, Running};
use warren_tests::oracle::{self, Oracle};
use warren_tests::{Broker, Cluster, ClusterOptions, eventually, unique};

/// So few and slow that no log is purged, all entries are needed, and the damaged one is not in the newest batch.
const OPTIONS: PublisherOptions = PublisherOptions { size: 100, rate: 60, window: 1000, drain: Duration::from_secs(20) };
/// Of each publisher, this message is damaged.
const DAMAGED: u64 = 40;

/// Queues in all shards with some confirmed messages each, published through a node that does not lead them all.
fn publish(broker: &Broker, oracle: &Arc<Oracle>, at: usize, ids: u32, queues: &[String]) {
    let publisher = |(n, queue): (usize, &String)| load::publish(oracle, &broker.dial(at), ids + n as u32, queue, &OPTIONS);
    let running: Vec<_> = queues.iter().enumerate().map(publisher).collect();
    let enough = eventually(Duration::from_secs(20), || running.iter().all(|running| running.count() > DAMAGED + 20));
    let closes: Vec<String> = running.into_iter().flat_map(|running| running.stop().closes).collect();
    assert!(enough && closes.is_empty(), "{closes:?}");
}

fn consume(broker: &Broker, oracle: &Arc<Oracle>, at: usize, queues: &[String]) {
    let consumer =
        |(n, queue): (usize, &String)| load::consume(oracle, &broker.dial(at), 900 + n as u32, queue, &ConsumerOptions::default());
    let consumers: Vec<_> = queues.iter().enumerate().map(consumer).collect();
    assert!(load::drained(oracle, Duration::from_secs(20)), "{} confirmed messages do not come", oracle.due());
    sleep(Duration::from_millis(200));
    let closes: Vec<String> = consumers.into_iter().flat_map(|running: Running<ConsumerReport>| running.stop().closes).collect();
    assert!(closes.is_empty(), "{closes:?}");
    let findings = oracle.findings();
    println!("{findings}");
    findings.assert_safe();
}

fn metric(cluster: &Cluster, at: usize, name: &str) -> f64 {
    cluster.metrics(at).and_then(|metrics| metrics.sum(name)).unwrap_or(-1.0)
}

#[test]
fn a_damaged_replica_is_rebuilt_and_counts_again_without_anything_lost() {
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        return println!("left out, processes behind WARREN_TEST_URIS cannot be harmed");
    }
    let cluster = Arc::new(Cluster::start());
    let broker = Broker::Own(cluster.clone());
    let client_at = 0;
    let mut queues = vec![broker.declare_led_elsewhere(client_at, "damage")];
    queues.extend((0..2).map(|_| unique("damage")));
    queues[1..].iter().for_each(|queue| broker.declare_durable(client_at, queue));
    let oracle = Arc::new(Oracle::default());
    publish(&broker, &oracle, client_at, 0, &queues);

    // The leader of a queue that the client's node does not lead.
    let former = cluster.queue_leader(&queues[0]).unwrap();
    cluster.kill(former);
    let hits = cluster.rot(former, &oracle::body((0, DAMAGED), OPTIONS.size));
    assert!(hits > 0, "the message is not on the disk of node {former}");
    let wait = || eventually(Duration::from_secs(20), || cluster.queue_leader(&queues[0]).is_some_and(|leader| leader != former));
    assert!(wait(), "nobody takes over");
    // Traffic goes on while it comes back.
    std::thread::scope(|scope| {
        scope.spawn(|| publish(&broker, &oracle, client_at, 10, &queues));
        cluster.restart(former);
    });
    let rebuilt = eventually(Duration::from_secs(30), || {
        metric(&cluster, former, "warren_replicas_rebuilt_total") >= 1.0 && metric(&cluster, former, "warren_replicas_incomplete") == 0.0
    });
    assert!(rebuilt && metric(&cluster, former, "warren_wal_damages") >= 1.0, "{}", cluster.log_tail(former));
    let says = cluster.logged(former, "ERROR");
    assert!(says.iter().any(|line| line.contains("takes part in nothing until it is rebuilt")), "{says:?}");

    // With the rebuilt one and one other everything is there, and the shard is served.
    cluster.kill((0..3).find(|at| *at != former && *at != client_at).unwrap());
    publish(&broker, &oracle, client_at, 20, &queues);
    consume(&broker, &oracle, former, &queues);
}

#[test]
fn with_two_damaged_replicas_a_shard_is_not_served_and_the_log_says_why() {
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        return println!("left out, processes behind WARREN_TEST_URIS cannot be harmed");
    }
    let arguments = vec!["--no-quorum-timeout=3s".to_owned()];
    let cluster = Arc::new(Cluster::start_with(&ClusterOptions { arguments, ..ClusterOptions::default() }));
    let broker = Broker::Own(cluster.clone());
    let queue = broker.declare_led_elsewhere(2, "damage");
    let oracle = Arc::new(Oracle::default());
    publish(&broker, &oracle, 2, 0, std::slice::from_ref(&queue));
    cluster.kill_all();
    for at in [0, 1] {
        assert!(cluster.rot(at, &oracle::body((0, DAMAGED), OPTIONS.size)) > 0, "the message is not on the disk of node {at}");
    }
    cluster.start_all();
    for at in [0, 1] {
        let says = || cluster.logged(at, "ERROR").iter().any(|line| line.contains("too many replicas of this shard are damaged"));
        assert!(eventually(Duration::from_secs(20), says), "{}", cluster.log_tail(at));
        assert_eq!(metric(&cluster, at, "warren_replicas_incomplete"), 1.0, "the other shards go on");
    }
    let refused = broker.connect(2).get(1, &queue).expect_err("served without two of its three replicas");
    assert_eq!(refused.code(), Some(541), "{refused}");
    // Queues of the other shards are served by all nodes.
    let other = (0..20).find_map(|_| {
        let queue = unique("other");
        broker.connect(0).declare(1, &queue, &warren_tests::client::QueueOptions::durable()).ok()?;
        cluster.queue_leader(&queue).map(|_| queue)
    });
    let oracle = Arc::new(Oracle::default());
    let others = [other.expect("two shards of three have leaders")];
    publish(&broker, &oracle, 1, 0, &others);
    consume(&broker, &oracle, 2, &others);
}
