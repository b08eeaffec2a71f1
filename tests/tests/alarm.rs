//! Limits that nodes are given. One that is short of memory: publishers on the other nodes are told and wait, consumers go on, and all goes
//! on when it is over. And the size of messages.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use warren_tests::client::{Connection, Incoming};
use warren_tests::{Broker, Cluster, ClusterOptions, eventually, message_event, unique};

const PATIENCE: Duration = Duration::from_secs(30);
const NODES: usize = 3;

/// What each node's configuration file says of memory.
fn configure(dir: &Path, at: usize, says: &str) {
    std::fs::write(dir.join(format!("{}.toml", at + 1)), says).unwrap();
}

/// The next thing that a client hears of its publish.
fn hears(client: &mut Connection) -> Incoming {
    let mut heard = None;
    eventually(PATIENCE, || {
        heard = client.event_within(Duration::from_millis(100)).unwrap();
        heard.is_some()
    });
    heard.expect("a publisher hears something")
}

#[test]
fn one_node_above_its_memory_limit_stops_publishers_on_the_others_until_it_is_over() {
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        println!("left out, processes behind WARREN_TEST_URIS cannot be configured");
        return;
    }
    let (dir, short) = (tempfile::tempdir().unwrap(), 0);
    (0..NODES).for_each(|at| configure(dir.path(), at, if at == short { "memory-limit = \"1MiB\"" } else { "" }));
    let arguments = vec![format!("--config={}/{{node}}.toml", dir.path().display())];
    let cluster = Arc::new(Cluster::start_with(&ClusterOptions { nodes: NODES, arguments, ..ClusterOptions::default() }));
    let broker = Broker::Own(cluster.clone());
    let mut idle = broker.connect(1);
    let mut publishers = Vec::new();
    for at in (0..NODES).filter(|at| *at != short) {
        let queue = unique("alarm");
        broker.declare_durable(at, &queue);
        let mut client = broker.connect(at);
        client.confirm_select(1).unwrap();
        client.publish(1, &queue, b"waits").unwrap();
        let told = hears(&mut client);
        assert!(matches!(&told, Incoming::Blocked(why) if why == "low on memory: node 1 above the limit"), "node {at}: {told:?}");
        assert!(broker.connect(at).get(1, &queue).unwrap().is_none(), "consuming goes on, and nothing was taken in");
        publishers.push((at, queue, client));
    }
    assert!(idle.event_within(Duration::from_millis(200)).unwrap().is_none(), "only those who publish are told");
    configure(dir.path(), short, "");
    cluster.kill(short);
    cluster.restart(short);
    for (at, queue, mut client) in publishers {
        let (first, second) = (hears(&mut client), hears(&mut client));
        assert!(matches!(first, Incoming::Unblocked), "node {at}: {first:?}");
        assert!(matches!(second, Incoming::Confirm { nack: false, .. }), "node {at}: {second:?}");
        let (message, _) = broker.connect(at).get(1, &queue).unwrap().expect("what waited is there");
        assert_eq!(message.body, b"waits");
    }
}

#[test]
fn a_node_takes_no_larger_message_than_it_was_told() {
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        println!("left out, processes behind WARREN_TEST_URIS cannot be configured");
        return;
    }
    let arguments = vec!["--max-message-size=1KiB".to_owned()];
    let broker = Broker::Own(Arc::new(Cluster::start_with(&ClusterOptions { nodes: 1, arguments, ..ClusterOptions::default() })));
    let mut client = broker.connect(0);
    client.confirm_select(1).unwrap();
    client.publish(1, "nowhere", &[0; 1024]).unwrap();
    let fits = message_event(&mut client, PATIENCE).unwrap();
    assert!(matches!(fits, Some(Incoming::Confirm { nack: false, .. })), "{fits:?}");
    client.publish(1, "nowhere", &[0; 1025]).unwrap();
    match message_event(&mut client, PATIENCE).unwrap() {
        Some(Incoming::ChannelClose { code, text, .. }) => {
            assert_eq!((code, &*text), (406, "PRECONDITION_FAILED - message size 1025 is larger than configured max size 1024"));
        }
        other => panic!("{other:?}"),
    }
}
