//! A node that is short of memory: publishers on every node are told and wait, consumers go on.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::time::Duration;
use warren_tests::client::Incoming;
use warren_tests::{Broker, Cluster, ClusterOptions, eventually};

#[test]
fn a_node_above_its_memory_limit_stops_publishers_everywhere_and_says_why() {
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        println!("left out, processes behind WARREN_TEST_URIS cannot be configured");
        return;
    }
    let cluster = Cluster::start_with(&ClusterOptions { arguments: vec!["--memory-limit=1MiB".into()], ..ClusterOptions::default() });
    let broker = Broker::Own(Arc::new(cluster));
    let mut idle = broker.connect(0);
    for at in 0..broker.nodes() {
        let queue = broker.declare_led_elsewhere(at, "alarm");
        let mut client = broker.connect(at);
        client.confirm_select(1).unwrap();
        client.publish(1, &queue, b"waits").unwrap();
        let mut why = String::new();
        let told = eventually(Duration::from_secs(10), || match client.event_within(Duration::from_millis(100)).unwrap() {
            Some(Incoming::Blocked(reason)) => {
                why = reason;
                true
            }
            Some(Incoming::Confirm { .. }) => panic!("confirmed above the limit"),
            _ => false,
        });
        assert!(told && why.starts_with("low on memory"), "node {at}: {why:?}");
        assert!(broker.connect(at).get(1, &queue).unwrap().is_none(), "consuming goes on, and nothing was taken in");
    }
    assert!(idle.event_within(Duration::from_millis(200)).unwrap().is_none(), "only those who publish are told");
}
