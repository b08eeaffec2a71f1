//! Messages of the largest size, from many clients through every node at once, some of which do not read: they all come through, whole and
//! in order, nobody is closed, and no node holds more than a bounded part of them in memory.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::time::Duration;
use warren_tests::client::encode;
use warren_tests::load::{self, ConsumerOptions, PublisherOptions, Running};
use warren_tests::oracle::Oracle;
use warren_tests::{Broker, eventually, unique};

/// The largest message.
const LARGEST: usize = 16 << 20;
/// Pairs of a publisher and a consumer, each with a queue of its own, on different nodes.
const PAIRS: u32 = 6;
/// Messages that are to be confirmed.
const MESSAGES: u64 = 18;
/// Memory of a node at any time.
const RSS_MOST_KIB: u64 = 1536 * 1024;

#[test]
fn large_messages_of_many_clients_at_once_come_through() {
    let Some(cluster) = Broker::to_harm("large_messages_of_many_clients_at_once_come_through") else { return };
    let broker = Broker::Given(cluster.uris());
    let queues: Vec<String> = (0..PAIRS).map(|_| unique("large")).collect();
    queues.iter().for_each(|queue| broker.declare_durable(0, queue));
    let (oracle, unheard) = (Arc::new(Oracle::default()), Arc::new(Oracle::default()));
    // One on each node that asks for all and reads nothing.
    let deaf: Vec<_> = (0..cluster.len())
        .map(|at| {
            let queue = unique("unheard");
            broker.declare_durable(at, &queue);
            let mut deaf = broker.connect(at);
            let mut out = Vec::new();
            encode::consume(&mut out, 1, &queue, "deaf", 0, &[]);
            deaf.send(&out).unwrap();
            let options = PublisherOptions { size: LARGEST, rate: 1, window: 1, drain: Duration::from_secs(120) };
            (deaf, load::publish(&unheard, &broker.dial(at), at as u32, &queue, &options))
        })
        .collect();
    let consumers: Vec<_> = (0..PAIRS)
        .map(|n| {
            let options = ConsumerOptions { prefetch: 2, ack_every: 1 };
            load::consume(&oracle, &broker.dial((n as usize + 1) % cluster.len()), n, &queues[n as usize], &options)
        })
        .collect();
    let publishers: Vec<_> = (0..PAIRS)
        .map(|n| {
            let options = PublisherOptions { size: LARGEST, rate: 5, window: 2, drain: Duration::from_secs(120) };
            load::publish(&oracle, &broker.dial(n as usize % cluster.len()), n, &queues[n as usize], &options)
        })
        .collect();
    let all = eventually(Duration::from_secs(240), || oracle.confirmed_count() >= MESSAGES);
    assert!(all, "publishing stood still: {}", oracle.findings());
    let mut closes: Vec<String> = publishers.into_iter().flat_map(|p| p.stop().closes).collect();
    let (deaf, unheard_publishers): (Vec<_>, Vec<_>) = deaf.into_iter().unzip();
    closes.extend(unheard_publishers.into_iter().flat_map(|p| p.stop().closes));
    assert!(load::drained(&oracle, Duration::from_secs(240)), "{}", oracle.findings());
    closes.extend(consumers.into_iter().flat_map(|c| Running::stop(c).closes));
    assert!(closes.is_empty(), "{closes:?}");
    let findings = oracle.findings();
    let peaks: Vec<u64> = (0..cluster.len()).map(|at| cluster.rss_peak_kib(at)).collect();
    println!("{findings}; unheard: {}; most VmRSS in KiB {peaks:?}", unheard.findings());
    findings.assert_safe();
    assert!(findings.unknown == 0 && findings.confirmed >= MESSAGES, "{findings}");
    assert!(unheard.findings().confirmed >= deaf.len() as u64, "{}", unheard.findings());
    assert!(peaks.iter().all(|peak| *peak <= RSS_MOST_KIB), "VmRSS in KiB {peaks:?}");
}
