//! Large backlogs: five gigabytes lie on the disks, not in memory, and come in order; a killed node with a million messages delivers
//! again soon. Measurements: they take minutes, 15 GB of disk, and want an idle machine and a release build.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::time::{Duration, Instant};
use warren_tests::client::{ClientError, Connection, Dial, Incoming};
use warren_tests::{Backlog, Broker, Cluster, eventually, unique};

const FIVE_GB: u64 = 5_000_000_000;
const RSS_MOST_MIB: u64 = 400;
const FIRST_DELIVERY_WITHIN: Duration = Duration::from_secs(5);

fn leader_of(cluster: &Cluster, queue: &str) -> usize {
    let mut leader = None;
    assert!(
        eventually(Duration::from_secs(10), || {
            leader = cluster.queue_leader(queue);
            leader.is_some()
        }),
        "no node tells the leader of {queue}"
    );
    leader.unwrap()
}

fn five_gigabytes(test: &str, size: usize) {
    let Some(cluster) = Broker::to_harm(test) else { return };
    let broker = Broker::Given(cluster.uris());
    let backlog = Backlog { queue: unique("backlog"), size, messages: FIVE_GB / size as u64 };
    broker.declare_durable(0, &backlog.queue);
    let leader = leader_of(&cluster, &backlog.queue);
    let report = |what: &str, began: Instant| {
        let peak_mib: Vec<u64> = (0..cluster.len()).map(|at| cluster.rss_peak_kib(at) / 1024).collect();
        let seconds = began.elapsed().as_secs_f64();
        let rate = FIVE_GB as f64 / 1e6 / seconds;
        println!("{test}: {what}: {seconds:.0} s, {rate:.0} MB/s, highest RSS of each node so far {peak_mib:?} MiB, leader {leader}");
        assert!(peak_mib.iter().all(|mib| (1..=RSS_MOST_MIB).contains(mib)), "{what}: more than {RSS_MOST_MIB} MiB: {peak_mib:?}");
    };
    let began = Instant::now();
    backlog.fill(&mut broker.connect((leader + 1) % cluster.len())).unwrap();
    report("published", began);
    let began = Instant::now();
    backlog.drain(&mut broker.connect((leader + 2) % cluster.len())).unwrap();
    report("consumed", began);
}

#[test]
#[ignore = "a measurement of minutes, 15 GB of disk: cargo test --release -p warren-tests --test backlog -- --ignored --nocapture --test-threads 1"]
fn five_gigabytes_of_64_kb_lie_on_disk_and_come_in_order() {
    five_gigabytes("five_gigabytes_of_64_kb_lie_on_disk_and_come_in_order", 64_000);
}

#[test]
#[ignore = "a measurement of minutes, 15 GB of disk: cargo test --release -p warren-tests --test backlog -- --ignored --nocapture --test-threads 1"]
fn five_gigabytes_of_1_kb_lie_on_disk_and_come_in_order() {
    five_gigabytes("five_gigabytes_of_1_kb_lie_on_disk_and_come_in_order", 1_000);
}

/// Connect, consume, the first delivery; again from the start as long as the node is not there yet.
fn first_delivery(dial: &Dial, queue: &str, began: Instant) -> Duration {
    let mut dial = dial.clone();
    dial.timeout = Duration::from_secs(30);
    let attempt = |dial: &Dial| -> Result<(), ClientError> {
        let mut consumer = Connection::open_with_channel(dial)?;
        consumer.qos(1, 1)?;
        consumer.consume(1, queue, "first", &[])?;
        loop {
            match consumer.event_within(Duration::from_secs(30))? {
                Some(Incoming::Deliver(..)) => return consumer.close(),
                Some(Incoming::Heartbeat | Incoming::Blocked(_) | Incoming::Unblocked) => (),
                other => return Err(ClientError::Protocol(format!("{other:?} instead of a delivery"))),
            }
        }
    };
    while began.elapsed() < Duration::from_secs(60) {
        match attempt(&dial) {
            Ok(()) => return began.elapsed(),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("no delivery within a minute");
}

#[test]
#[ignore = "a measurement of a minute: cargo test --release -p warren-tests --test backlog -- --ignored --nocapture --test-threads 1"]
fn a_killed_node_with_a_million_messages_delivers_soon_again() {
    let test = "a_killed_node_with_a_million_messages_delivers_soon_again";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let broker = Broker::Given(cluster.uris());
    let backlog = Backlog { queue: unique("million"), size: 100, messages: 1_000_000 };
    broker.declare_durable(0, &backlog.queue);
    let began = Instant::now();
    backlog.fill(&mut broker.connect(0)).unwrap();
    println!("{test}: filled in {:.1} s", began.elapsed().as_secs_f64());
    let mut times = Vec::new();
    for round in 0..6 {
        let leader = leader_of(&cluster, &backlog.queue);
        let (victim, all) = (if round % 2 == 0 { leader } else { (leader + 1) % cluster.len() }, round >= 4);
        if all {
            cluster.kill_all();
            (0..cluster.len()).filter(|at| *at != victim).for_each(|at| cluster.spawn(at));
        } else {
            cluster.kill(victim);
            std::thread::sleep(Duration::from_secs(1));
        }
        let began = Instant::now();
        cluster.spawn(victim);
        let time = first_delivery(&broker.dial(victim), &backlog.queue, began);
        let what = if all {
            "all nodes"
        } else if victim == leader {
            "the leader"
        } else {
            "a follower"
        };
        println!("{test}: {what} killed: first delivery through the node {} ms after its start", time.as_millis());
        times.push(time);
        (0..cluster.len()).for_each(|at| cluster.await_ready(at));
        std::thread::sleep(Duration::from_secs(2));
    }
    assert!(times.iter().all(|time| *time <= FIRST_DELIVERY_WITHIN), "{times:?}");
}
