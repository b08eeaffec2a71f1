//! How a process ends: on SIGTERM in time whoever does not answer, also when it has only begun; and with 0.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};
use warren_tests::client::encode;
use warren_tests::{Broker, Cluster, ClusterOptions, unique};

/// What is promised of an ordered stop.
const STOP: Duration = Duration::from_secs(5);
const SIGTERM: u32 = 15;

fn prepare(test: &str, nodes: usize) -> Option<Cluster> {
    if std::env::var_os("WARREN_TEST_URIS").is_some() {
        println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
        return None;
    }
    Some(Cluster::prepare(&ClusterOptions { nodes, ..ClusterOptions::default() }).unwrap())
}

#[test]
fn clients_that_answer_nothing_do_not_hold_up_a_stop() {
    let Some(cluster) = prepare("clients_that_answer_nothing_do_not_hold_up_a_stop", 3) else { return };
    cluster.start_all();
    let broker = Broker::Given(cluster.uris());
    let queue = unique("deaf");
    broker.declare_durable(0, &queue);
    let mut feeder = broker.connect(1);
    (0..40).for_each(|_| feeder.publish(1, &queue, &[7; 500_000]).unwrap());
    // Some hold more output than their sockets take, some are idle, some have only said hello, or nothing.
    let mut deaf: Vec<_> = (0..20).map(|_| broker.connect(0)).collect();
    deaf.iter_mut().take(10).for_each(|client| {
        let mut out = Vec::new();
        encode::consume(&mut out, 1, &queue, "deaf", 0, &[]);
        client.send(&out).unwrap();
    });
    let mut rude: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&broker.dial(0).address).unwrap()).collect();
    rude.iter_mut().take(10).for_each(|socket| socket.write_all(encode::PROTOCOL_HEADER).unwrap());
    // The others hand nothing over and take nothing: they stand still.
    cluster.freeze(1);
    cluster.freeze(2);
    let began = Instant::now();
    let status = cluster.stop(0, STOP);
    println!("it took {:?}", began.elapsed());
    cluster.thaw(1);
    cluster.thaw(2);
    assert_eq!(status.map(|status| status.code()), Some(Some(0)));
    cluster.restart(0);
}

#[test]
fn a_node_that_has_only_begun_to_start_is_stopped_in_time() {
    let Some(cluster) = prepare("a_node_that_has_only_begun_to_start_is_stopped_in_time", 3) else { return };
    for after_ms in [0, 20, 100, 400] {
        // Alone it waits for the others.
        cluster.spawn(0);
        let status = || std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(0).unwrap())).unwrap();
        let caught = |line: &str| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok();
        // Before it listens to SIGTERM that ends it at once, as any process.
        while status().lines().find_map(caught).is_none_or(|signals| signals & (1 << (SIGTERM - 1)) == 0) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(after_ms));
        let status = cluster.stop(0, STOP);
        assert_eq!(status.map(|status| status.code()), Some(Some(0)), "after {after_ms} ms");
    }
    cluster.start_all();
}
