//! Disks without a free byte: publishes stop and say so, consuming goes on, nodes restart, nothing confirmed is lost, and it serves again by
//! itself when there is space. On small file systems of their own; left out where none can be mounted.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use warren_tests::client::Incoming;
use warren_tests::load::{self, ConsumerOptions, PublisherOptions, PublisherReport, Running};
use warren_tests::oracle::Oracle;
use warren_tests::{Broker, Cluster, ClusterOptions, eventually, unique};

const MIB: u64 = 1 << 20;
/// Log files of 64 MiB: the open one, two prepared ones, one that waits to be used again, and the state store.
const DISK: u64 = 420 * MIB;
/// A node tells its alarm to all within two looks.
const NOTICED: Duration = Duration::from_secs(10);

fn start(test: &str) -> Option<Cluster> {
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
        return None;
    }
    let arguments = vec!["--disk-floor=32MiB".to_owned()];
    match Cluster::try_start(&ClusterOptions { arguments, disk_bytes: Some(DISK), ..ClusterOptions::default() }) {
        Ok(cluster) => Some(cluster),
        Err(why) => {
            println!("{test}: left out, no small file systems can be mounted here: {why}");
            None
        }
    }
}

fn alarm(cluster: &Cluster, at: usize) -> bool {
    cluster.metrics(at).is_some_and(|metrics| metrics.sum("warren_alarm") == Some(1.0))
}

/// A client that publishes now and then, and is told whether it may.
struct Told {
    client: warren_tests::client::Connection,
    queue: String,
    is_blocked: bool,
}

impl Told {
    fn new(broker: &Broker, at: usize) -> Told {
        // To nobody: one message that stays in a queue would keep its file of the log.
        let queue = unique("nobody");
        let mut client = broker.connect(at);
        client.confirm_select(1).unwrap();
        Told { client, queue, is_blocked: false }
    }

    fn listen(&mut self) {
        if !self.is_blocked {
            self.client.publish(1, &self.queue, b"hello").unwrap();
        }
        while let Some(event) = self.client.event_within(Duration::from_millis(20)).unwrap() {
            match event {
                Incoming::Blocked(_) => self.is_blocked = true,
                Incoming::Unblocked => self.is_blocked = false,
                Incoming::Confirm { .. } | Incoming::Heartbeat => (),
                other => panic!("{other:?}"),
            }
        }
    }

    fn awaits(&mut self, blocked: bool) {
        let in_time = eventually(NOTICED, || {
            self.listen();
            self.is_blocked == blocked
        });
        assert!(in_time, "not {} in time", if blocked { "blocked" } else { "unblocked" });
    }
}

fn publishers(broker: &Broker, oracle: &Arc<Oracle>, queues: &[String]) -> Vec<Running<PublisherReport>> {
    let options = PublisherOptions { rate: 100, size: 1000, drain: Duration::from_secs(30), ..PublisherOptions::default() };
    queues.iter().enumerate().map(|(at, queue)| load::publish(oracle, &broker.dial(at), at as u32, queue, &options)).collect()
}

/// Everything that is confirmed comes to a consumer on `at` although disks are full: deliveries and acknowledgements go on.
fn consumes(broker: &Broker, oracle: &Arc<Oracle>, at: usize, id: u32, queues: &[String]) {
    let dial = broker.dial(at);
    let consumer = |(n, queue): (usize, &String)| load::consume(oracle, &dial, id + n as u32, queue, &ConsumerOptions::default());
    let consumers: Vec<_> = queues.iter().enumerate().map(consumer).collect();
    assert!(load::drained(oracle, Duration::from_secs(30)), "{} confirmed messages do not come", oracle.due());
    let closes: Vec<String> = consumers.into_iter().flat_map(|running| running.stop().closes).collect();
    assert!(closes.is_empty(), "{closes:?}");
}

fn all_live(cluster: &Cluster) {
    (0..cluster.len()).for_each(|at| assert!(!cluster.has_ended(at), "node {} ended: {}", at + 1, cluster.log_tail(at)));
}

/// How many confirms `work` saw.
fn confirms(running: &[Running<PublisherReport>], work: impl FnOnce()) -> u64 {
    let count = || running.iter().map(Running::count).sum::<u64>();
    let before = count();
    work();
    count() - before
}

/// Publishes are confirmed, or are again.
fn flows(running: &[Running<PublisherReport>]) {
    let count = || running.iter().map(Running::count).sum::<u64>();
    let before = count();
    assert!(eventually(Duration::from_secs(30), || count() > before), "nothing is confirmed");
}

/// Nothing is confirmed any more, once what was under way has come.
fn stands_still(running: &[Running<PublisherReport>]) -> bool {
    eventually(NOTICED, || confirms(running, || sleep(Duration::from_secs(1))) == 0)
}

fn finish(broker: &Broker, oracle: &Arc<Oracle>, running: Vec<Running<PublisherReport>>, queues: &[String]) {
    let reports: Vec<PublisherReport> = running.into_iter().map(Running::stop).collect();
    assert!(reports.iter().all(|report| report.closes.is_empty()), "{reports:?}");
    assert!(reports.iter().all(|report| report.blocked > 0), "every publisher was told: {reports:?}");
    consumes(broker, oracle, 0, 900, queues);
    let findings = oracle.findings();
    println!("{findings}");
    findings.assert_safe();
}

/// cargo test -p warren-tests --test full_disk -- --ignored --nocapture
#[test]
#[ignore = "takes a minute, and root for its file systems"]
fn full_disks_stop_publishes_only_and_nothing_else_until_there_is_space() {
    let test = "full_disks_stop_publishes_only_and_nothing_else_until_there_is_space";
    let Some(cluster) = start(test) else { return };
    let broker = Broker::Given(cluster.uris());
    let queues: Vec<String> = (0..3).map(|_| unique("full")).collect();
    queues.iter().for_each(|queue| broker.declare_durable(0, queue));
    let oracle = Arc::new(Oracle::default());
    let running = publishers(&broker, &oracle, &queues);
    let mut told = Told::new(&broker, 0);
    flows(&running);

    // One node's disk.
    let victim = cluster.queue_leader(&queues[1]).unwrap();
    println!("{test}: the disk of node {} is full", victim + 1);
    cluster.disk(victim).fill();
    told.awaits(true);
    assert!(stands_still(&running), "publishes stop on all nodes");
    consumes(&broker, &oracle, (victim + 1) % 3, 100, &queues);
    all_live(&cluster);
    cluster.disk(victim).free();
    told.awaits(false);
    flows(&running);

    // All disks.
    println!("{test}: all disks are full");
    (0..3).for_each(|at| cluster.disk(at).fill());
    told.awaits(true);
    sleep(Duration::from_secs(1));
    consumes(&broker, &oracle, 2, 200, &queues);
    sleep(Duration::from_secs(5)); // checkpoints are tried, and fail
    all_live(&cluster);
    (0..3).for_each(|at| cluster.disk(at).free());
    told.awaits(false);
    flows(&running);
    finish(&broker, &oracle, running, &queues);
}

#[test]
#[ignore = "takes a minute, and root for its file systems"]
fn nodes_restart_on_full_disks_with_everything_confirmed() {
    let test = "nodes_restart_on_full_disks_with_everything_confirmed";
    let Some(cluster) = start(test) else { return };
    let broker = Broker::Given(cluster.uris());
    let queues: Vec<String> = (0..3).map(|_| unique("full")).collect();
    queues.iter().for_each(|queue| broker.declare_durable(0, queue));
    for round in 0..3 {
        let oracle = Arc::new(Oracle::default());
        let options = PublisherOptions { rate: 200, size: 1000, drain: Duration::ZERO, ..PublisherOptions::default() };
        let running: Vec<_> =
            queues.iter().enumerate().map(|(at, queue)| load::publish(&oracle, &broker.dial(at), at as u32, queue, &options)).collect();
        sleep(Duration::from_secs(2));
        let victims: Vec<usize> = if round == 0 { vec![1] } else { vec![0, 1, 2] };
        println!("{test}: the disks of {} nodes are full, they are killed", victims.len());
        victims.iter().for_each(|at| cluster.disk(*at).fill());
        // With and without time for the alarm and for checkpoints that fail.
        sleep(Duration::from_secs(if round == 1 { 0 } else { 4 }));
        victims.iter().for_each(|at| cluster.kill(*at));
        running.into_iter().for_each(|running| drop(running.stop()));
        victims.iter().for_each(|at| cluster.spawn(*at));
        victims.iter().for_each(|at| cluster.await_ready(*at));
        consumes(&broker, &oracle, 1, 100, &queues);
        all_live(&cluster);
        assert!(victims.iter().all(|at| alarm(&cluster, *at)), "still full");
        victims.iter().for_each(|at| cluster.disk(*at).free());
        assert!(eventually(NOTICED, || (0..3).all(|at| !alarm(&cluster, at))), "there is space again");
        let findings = oracle.findings();
        println!("{test}: {findings}");
        findings.assert_safe();
    }
}

#[test]
#[ignore = "takes a minute, and root for its file systems"]
fn a_backlog_that_fills_the_disks_blocks_and_frees_them_when_it_is_consumed() {
    let test = "a_backlog_that_fills_the_disks_blocks_and_frees_them_when_it_is_consumed";
    let Some(cluster) = start(test) else { return };
    let broker = Broker::Given(cluster.uris());
    let queues: Vec<String> = (0..3).map(|_| unique("full")).collect();
    queues.iter().for_each(|queue| broker.declare_durable(0, queue));
    let mut told = Told::new(&broker, 0);
    let oracle = Arc::new(Oracle::default());
    let options = PublisherOptions { rate: 400, size: 100_000, window: 20, drain: Duration::from_secs(60) };
    let running: Vec<_> =
        queues.iter().enumerate().map(|(at, queue)| load::publish(&oracle, &broker.dial(at), at as u32, queue, &options)).collect();
    let until = Instant::now() + Duration::from_secs(120);
    while !told.is_blocked {
        assert!(Instant::now() < until, "the disks do not get full");
        told.listen();
    }
    println!("{test}: blocked after {} confirms", oracle.confirmed_count());
    assert!(stands_still(&running));
    all_live(&cluster);
    consumes(&broker, &oracle, 1, 100, &queues);
    let in_time = eventually(Duration::from_secs(30), || {
        told.listen();
        !told.is_blocked
    });
    assert!(in_time, "what was consumed is not given free");
    flows(&running);
    all_live(&cluster);
    finish(&broker, &oracle, running, &queues);
}
