//! Nodes that join a cluster of real processes, and one that leaves it for good, under confirmed load.
#![allow(clippy::unwrap_used)] // all of this file is tests

use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use warren_tests::client::Dial;
use warren_tests::ctl::Ctl;
use warren_tests::load::Clients;
use warren_tests::{Broker, Cluster, ClusterOptions, eventually, unique};

/// A move copies a shard, and leaders go back only to nodes that were there for a while.
const SETTLES: Duration = Duration::from_secs(180);
const SHARDS: u64 = 5;

fn status(cluster: &Cluster, at: usize) -> Value {
    serde_json::from_str(&cluster.ctl(at, &["--formatter", "json", "status"]).stdout).unwrap_or_default()
}

/// Nodes with a replica of each data shard; `None` while something is moved.
fn settled(status: &Value) -> Option<Vec<BTreeSet<u64>>> {
    let shards = status["shards"].as_array()?;
    let calm = shards.iter().all(|shard| shard["goal"].as_array().is_some_and(Vec::is_empty));
    let data = shards.iter().filter(|shard| shard["shard"] != 0);
    calm.then(|| data.map(|shard| shard["members"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect()).collect())
}

#[track_caller]
fn until(cluster: &Cluster, at: usize, what: &str, holds: impl Fn(&Value) -> bool) {
    let came = eventually(SETTLES, || holds(&status(cluster, at)));
    let logs: Vec<String> = (0..cluster.len()).map(|at| cluster.log_tail(at)).collect();
    assert!(came, "{what}: {}\n{}", status(cluster, at), logs.join("\n"));
}

#[test]
fn two_nodes_join_and_an_old_one_leaves_for_good_under_load_and_nobody_notices() {
    let shards = ["--shards".to_owned(), SHARDS.to_string()];
    let mut cluster = Cluster::start_with(&ClusterOptions { arguments: shards.to_vec(), ..ClusterOptions::default() });
    let broker = Broker::Given(cluster.uris());
    let queues: Vec<String> = (0..10).map(|_| unique("members")).collect();
    queues.iter().for_each(|queue| broker.declare_durable(1, queue));
    // On a node that stays.
    let clients = Clients::start(&Dial::parse(&cluster.amqp(1)), 0, 200, &queues);
    for _ in 0..2 {
        let new = cluster.add_node(&shards);
        cluster.restart(new);
        println!("node {} serves", new + 1);
        // The next one is admitted when this one has its replicas.
        until(&cluster, 1, "replicas come to the new node", |status| {
            settled(status).is_some_and(|shards| shards.iter().any(|nodes| nodes.contains(&(new as u64 + 1))))
        });
    }
    until(&cluster, 1, "replicas are spread", |status| {
        settled(status).is_some_and(|shards| (1..=5).all(|node| shards.iter().filter(|nodes| nodes.contains(&node)).count() == 3))
    });
    assert!(eventually(SETTLES, || cluster.led_data_shards().iter().all(|led| led.len() == 1)), "{:?}", cluster.led_data_shards());
    println!("five nodes lead one shard each");
    let ctl = Ctl { cluster: &cluster, at: 1 };
    ctl.refused(&["forget_cluster_node", "1"], 69, "drain it");
    ctl.done(&["drain", "1"]);
    until(&cluster, 1, "its replicas leave the old node", |status| {
        settled(status).is_some_and(|shards| shards.iter().all(|nodes| nodes.len() == 3 && !nodes.contains(&1)))
    });
    println!("node 1 is drained");
    assert_eq!(cluster.stop(0, Duration::from_secs(10)).map(|status| status.code()), Some(Some(0)));
    // It is forgotten when the cluster has taken it for down.
    assert!(eventually(SETTLES, || cluster.ctl(1, &["forget_cluster_node", "1"]).code == Some(0)), "{}", cluster.log_tail(1));
    until(&cluster, 1, "the catalog goes on without it", |status| {
        let catalog = status["shards"][0]["members"].as_array().cloned().unwrap_or_default();
        settled(status).is_some() && catalog.len() == 4 && !catalog.contains(&Value::from(1))
    });
    println!("node 1 is forgotten");
    cluster.spawn(0);
    let refused = || cluster.logged(0, "ERROR").iter().any(|line| line.contains("was removed from the cluster"));
    assert!(eventually(SETTLES, refused), "{}", cluster.log_tail(0));
    assert!(!cluster.is_ready(0), "a node that was removed serves nobody");
    clients.finish();
}
