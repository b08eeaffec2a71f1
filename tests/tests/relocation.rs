//! A backlog goes and a little of it stays: the log's files are given back although each of them held something that stays, and what stays
//! is delivered, also after kill -9 of all nodes.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::time::{Duration, Instant};
use warren_tests::{Backlog, Broker, Cluster, ClusterOptions, eventually, unique};

/// Files of the log have 64 MiB each: with what stays (25 MB) two or three of them are enough.
const BUDGET: &str = "--log-budget=128MiB";
const FILES_MOST: f64 = 3.0;
const ROUNDS: usize = 12;
const BODY: usize = 100_000;
const WITHIN: Duration = Duration::from_secs(60);

fn files(cluster: &Cluster, at: usize) -> f64 {
    cluster.metrics(at).and_then(|metrics| metrics.sum("warren_wal_files")).unwrap_or(f64::MAX)
}

#[test]
fn what_stays_of_a_backlog_holds_no_more_files_than_it_fills_and_outlives_the_nodes() {
    let test = "what_stays_of_a_backlog_holds_no_more_files_than_it_fills_and_outlives_the_nodes";
    if std::env::var_os("WARREN_TEST_URIS").is_some() {
        return println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
    }
    let arguments = vec![BUDGET.into(), "--catch-up-log=64MiB".into()];
    let cluster = Cluster::start_with(&ClusterOptions { arguments, ..ClusterOptions::default() });
    let broker = Broker::Given(cluster.uris());
    let flood = unique("flood");
    broker.declare_durable(0, &flood);
    let stuck = Backlog { queue: unique("stuck"), size: 100, messages: 1 };
    let kept: Vec<Backlog> = (0..ROUNDS).map(|_| Backlog { queue: unique("kept"), size: BODY, messages: 20 }).collect();
    for backlog in kept.iter().chain([&stuck]) {
        broker.declare_durable(1, &backlog.queue);
    }
    stuck.fill(&mut broker.connect(0)).unwrap();
    for some in &kept {
        Backlog { queue: flood.clone(), size: BODY, messages: 180 }.fill(&mut broker.connect(0)).unwrap();
        some.fill(&mut broker.connect(1)).unwrap();
    }
    let before: Vec<f64> = (0..3).map(|at| files(&cluster, at)).collect();
    assert!(before.iter().all(|files| *files > FILES_MOST), "{before:?}: it proves nothing");
    let purged = Instant::now();
    assert_eq!(cluster.ctl(0, &["purge_queue", &flood]).code, Some(0));
    let is_small = || (0..3).all(|at| files(&cluster, at) <= FILES_MOST);
    assert!(eventually(WITHIN, is_small), "{before:?} -> {:?}", (0..3).map(|at| files(&cluster, at)).collect::<Vec<_>>());
    println!("files {before:?} -> {:?} in {:?}", (0..3).map(|at| files(&cluster, at)).collect::<Vec<_>>(), purged.elapsed());
    let relocated = |at| cluster.metrics(at).and_then(|metrics| metrics.sum("warren_wal_relocated_bytes_total")).unwrap_or(0.0);
    assert!((0..3).any(|at| relocated(at) > 0.0), "nothing was written again");
    kept[0].drain(&mut broker.connect(2)).unwrap();
    cluster.kill_all();
    (0..3).for_each(|at| cluster.spawn(at));
    (0..3).for_each(|at| cluster.await_ready(at));
    for backlog in kept[1..].iter().chain([&stuck]) {
        backlog.drain(&mut broker.connect(2)).unwrap();
    }
}
