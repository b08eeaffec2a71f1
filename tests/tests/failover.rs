//! How long confirms stand still on a surviving connection when the leader of its queue is killed or frozen. A measurement: it takes
//! minutes and wants an idle machine and a release build.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;
use warren_tests::load::{self, ConsumerOptions, PublisherOptions, Running};
use warren_tests::oracle::Oracle;
use warren_tests::{Broker, Cluster, eventually, unique};

const FAULTS: usize = 20;
const RATE: u64 = 2000;

/// Hit the queue's leader again and again, and bring it back; the longest gap between confirms of each time.
fn gaps(test: &str, hit: impl Fn(&Cluster, usize), bring_back: impl Fn(&Cluster, usize)) {
    let Some(cluster) = Broker::to_harm(test) else { return };
    let broker = Broker::Given(cluster.uris());
    let (mut gaps, mut rounds) = (Vec::new(), 0);
    while gaps.len() < FAULTS {
        let queue = unique("failover");
        broker.declare_durable(0, &queue);
        let mut leader = None;
        assert!(
            eventually(Duration::from_secs(10), || {
                leader = cluster.queue_leader(&queue);
                leader.is_some()
            }),
            "no node tells the leader of {queue}"
        );
        let leader = leader.expect("checked before");
        let (dial, oracle) = (broker.dial((leader + 1) % cluster.len()), Arc::new(Oracle::default()));
        let consumer = load::consume(&oracle, &dial, 1, &queue, &ConsumerOptions { prefetch: 500, ack_every: 50 });
        let options = PublisherOptions { rate: RATE, window: 20_000, ..PublisherOptions::default() };
        let publisher = load::publish(&oracle, &dial, 1, &queue, &options);
        sleep(Duration::from_millis(1500));
        // Leadership goes back to a node that has returned, perhaps just now: the hit of another node would measure nothing.
        rounds += 1;
        assert!(rounds <= 3 * FAULTS, "leaders do not stay where they are: {} hits in {rounds} rounds", gaps.len());
        let leads_still = cluster.queue_leader(&queue) == Some(leader);
        if leads_still {
            publisher.take_longest_gap();
            hit(&cluster, leader);
            sleep(Duration::from_secs(4));
            gaps.push(publisher.take_longest_gap());
            bring_back(&cluster, leader);
        }
        let report = publisher.stop();
        assert!(load::drained(&oracle, Duration::from_secs(10)), "{}", oracle.findings());
        let closes = [report.closes, Running::stop(consumer).closes].concat();
        assert!(closes.is_empty(), "{closes:?}");
        oracle.findings().assert_unnoticed();
        broker.connect((leader + 1) % cluster.len()).delete(1, &queue).unwrap();
        match gaps.last().filter(|_| leads_still) {
            Some(gap) => println!("{test}: {} of {FAULTS}: {} ms", gaps.len(), gap.as_millis()),
            None => println!("{test}: the leader of {queue} has moved, nothing is hit"),
        }
        sleep(Duration::from_secs(1));
    }
    gaps.sort();
    let ms = |at: usize| gaps[at * (FAULTS - 1) / 100].as_millis();
    println!("{test}: longest gap between confirms: median {} ms, p90 {} ms, max {} ms", ms(50), ms(90), ms(100));
}

#[test]
#[ignore = "a measurement of minutes: cargo test --release -p warren-tests --test failover -- --ignored --nocapture"]
fn confirms_go_on_after_the_leader_is_killed() {
    gaps("confirms_go_on_after_the_leader_is_killed", Cluster::kill, Cluster::restart);
}

#[test]
#[ignore = "a measurement of minutes: cargo test --release -p warren-tests --test failover -- --ignored --nocapture"]
fn confirms_go_on_after_the_leader_is_frozen() {
    gaps("confirms_go_on_after_the_leader_is_frozen", Cluster::freeze, Cluster::thaw);
}
