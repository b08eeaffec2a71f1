//! A node that cannot reach a majority confirms nothing, says so, and serves again when the others are back.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::time::{Duration, Instant};
use warren_tests::client::{ClientError, Connection, Incoming, QueueOptions, encode::Route};
use warren_tests::{Broker, Cluster, ClusterOptions, Ctl, eventually, message_event, unique};

/// Publishes are refused after this long without a majority.
const NO_QUORUM_TIMEOUT: Duration = Duration::from_secs(10);
/// ... and what a busy machine may add to it.
const REFUSED_BY: Duration = Duration::from_secs(15);
/// `connection.blocked` comes well before: a routing lease lasts a second.
const AT_ONCE: Duration = Duration::from_secs(7);

fn mandatory(key: &str) -> Route<'_> {
    Route { channel: 1, exchange: "amq.direct", key, mandatory: true }
}

fn cluster(test: &str) -> Option<Arc<Cluster>> {
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
        return None;
    }
    let arguments = vec![format!("--no-quorum-timeout={}s", NO_QUORUM_TIMEOUT.as_secs())];
    Some(Arc::new(Cluster::start_with(&ClusterOptions { arguments, ..ClusterOptions::default() })))
}

/// What a client that waits longer than the node hears within the node's time: 541, and a text that speaks of the majority.
fn is_refused<T: std::fmt::Debug>(broker: &Broker, what: &str, ask: impl FnOnce(&mut Connection) -> Result<T, ClientError>) {
    let mut dial = broker.dial(0);
    dial.timeout = NO_QUORUM_TIMEOUT * 3;
    let mut client = Connection::open_with_channel(&dial).unwrap();
    let began = Instant::now();
    let refused = ask(&mut client).expect_err(what);
    assert_eq!(refused.code(), Some(541), "{what}: {refused}");
    let why = refused.to_string();
    assert!(why.contains("quorum") || why.contains("majority"), "{what}: the text does not say why: {why}");
    assert!(began.elapsed() < REFUSED_BY, "{what}: refused after {:?} only", began.elapsed());
}

#[test]
fn a_minority_stops_confirming_says_so_and_heals() {
    let Some(cluster) = cluster("a_minority_stops_confirming_says_so_and_heals") else { return };
    let broker = Broker::Own(cluster.clone());
    let queue = broker.declare_led_elsewhere(0, "minority");
    let mut client = broker.connect(0);
    client.confirm_select(1).unwrap();
    client.publish(1, &queue, b"before").unwrap();
    assert!(matches!(message_event(&mut client, Duration::from_secs(60)), Ok(Some(Incoming::Confirm { nack: false, .. }))));

    cluster.kill(1);
    cluster.kill(2);
    client.publish(1, &queue, b"alone").unwrap();
    let (mut blocked, mut nacked, began) = (None, false, Instant::now());
    while began.elapsed() < REFUSED_BY && !nacked {
        match client.event_within(Duration::from_millis(50)).unwrap() {
            Some(Incoming::Blocked(_)) => blocked = blocked.or(Some(began.elapsed())),
            Some(Incoming::Confirm { nack: true, .. }) => nacked = true,
            Some(Incoming::Heartbeat) | None => (),
            other => panic!("a minority answered {other:?}"),
        }
    }
    assert!(nacked, "neither confirmed nor refused {:?} after the others were killed", began.elapsed());
    assert!(blocked.is_some_and(|after| after < AT_ONCE), "the client was told that it is blocked after {blocked:?}");
    is_refused(&broker, "a declaration without a majority", |c| c.declare(1, &unique("minority"), &QueueOptions::durable()));
    is_refused(&broker, "a get without a majority", |c| c.get(1, &queue));

    let healed_from = Instant::now();
    cluster.spawn(1);
    cluster.spawn(2);
    (0..3).for_each(|at| cluster.await_ready(at));
    let mut confirmed = false;
    client.publish(1, &queue, b"after").unwrap();
    while healed_from.elapsed() < Duration::from_secs(60) && !confirmed {
        match client.event_within(Duration::from_millis(200)).unwrap() {
            Some(Incoming::Confirm { tag: 3, nack: false, .. }) => confirmed = true,
            Some(Incoming::Confirm { .. } | Incoming::Unblocked | Incoming::Heartbeat | Incoming::Blocked(_)) | None => (),
            other => panic!("after healing: {other:?}"),
        }
    }
    assert!(confirmed, "no confirm after the majority was back");
    let mut bodies = Vec::new();
    let mut reader = broker.connect(2);
    while let Some((message, _)) = reader.get(1, &queue).unwrap() {
        reader.ack(1, message.tag, false).unwrap();
        bodies.push(String::from_utf8(message.body).unwrap());
    }
    bodies.retain(|body| body != "alone"); // refused means unknown: it may be there
    assert_eq!(bodies, ["before", "after"]);
}

#[test]
fn health_checks_fail_in_a_minority_and_figures_that_nobody_tells_are_empty() {
    let Some(cluster) = cluster("health_checks_fail_in_a_minority_and_figures_that_nobody_tells_are_empty") else { return };
    let broker = Broker::Own(cluster.clone());
    let (queue, mine) = (broker.declare_led_elsewhere(0, "leaderless"), unique("mine"));
    let mut client = broker.connect(0);
    client.declare(1, &mine, &QueueOptions::default()).unwrap();
    let ctl = Ctl { cluster: &cluster, at: 0 };
    let leaders = ["check_for_quorum_queues_without_an_elected_leader", "--across-all-vhosts", "."];
    ctl.done(&leaders);
    let mut leader = None;
    assert!(eventually(NO_QUORUM_TIMEOUT, || (leader = cluster.queue_leader(&queue), leader.is_some()).1), "no leader");
    let leader = leader.unwrap();
    // As long as it lives nobody else leads the queue.
    cluster.kill(3 - leader);
    assert!(eventually(NO_QUORUM_TIMEOUT, || cluster.ctl(0, &["check_if_node_is_quorum_critical"]).code == Some(69)));
    ctl.refused(&["check_if_node_is_quorum_critical"], 69, "shard 1 will become unavailable if node 1 stops");
    ctl.refused(&["-t", "1", "await_online_quorum_plus_one"], 69, "Error:\ntime is up, no quorum + 1 online replicas");
    cluster.kill(leader);
    let text = format!("queue '{queue}' in vhost '/' does not have an elected leader replica or the replica was unresponsive\n");
    let told = || cluster.ctl(0, &leaders);
    assert!(eventually(NO_QUORUM_TIMEOUT, || (told().code, told().stderr) == (Some(69), text.clone())), "{:?}", told());
    let listed = |words: &[&str]| ctl.done(&[&["-s", "list_queues"], words].concat());
    assert!(eventually(NO_QUORUM_TIMEOUT, || listed(&["--offline", "name", "messages", "state"]) == format!("{queue}\t\tdown\n")));
    assert_eq!(listed(&["--online", "name", "messages", "state"]), format!("{mine}\t0\trunning\n"));
    assert_eq!(ctl.done(&["-s", "list_unresponsive_queues"]), format!("{queue}\n"));
}

/// Fault test 10: what is unroutable by the catalog of a node that is cut off may be routable by now. It holds such a message, and then
/// refuses it or routes it by what it has learnt; it neither returns nor confirms it.
#[test]
fn a_node_that_was_cut_off_calls_nothing_unroutable_by_what_it_knew_before() {
    let Some(cluster) = cluster("a_node_that_was_cut_off_calls_nothing_unroutable_by_what_it_knew_before") else { return };
    let broker = Broker::Own(cluster.clone());
    let queue = broker.declare_led_elsewhere(0, "unbound");
    let mut lonely = broker.connect(0);
    lonely.confirm_select(1).unwrap();
    lonely.publish_to(mandatory("nobody"), b"x").unwrap();
    assert!(matches!(message_event(&mut lonely, Duration::from_secs(60)).unwrap(), Some(Incoming::Returned { .. })));
    assert!(matches!(message_event(&mut lonely, Duration::from_secs(60)).unwrap(), Some(Incoming::Confirm { nack: false, .. })));

    // The majority binds the key while the node stands still with the message in its socket.
    let mut taken = 0;
    for round in 0..5 {
        let key = format!("key-{round}");
        cluster.freeze(0);
        broker.connect(1).bind(1, &queue, "amq.direct", &key).unwrap();
        lonely.publish_to(mandatory(&key), b"bound by now").unwrap();
        cluster.thaw(0);
        match message_event(&mut lonely, NO_QUORUM_TIMEOUT * 2).unwrap() {
            Some(Incoming::Confirm { nack, .. }) => taken += u32::from(!nack),
            other => panic!("round {round}: {other:?}"),
        }
    }
    let mut ready = 0;
    let all = eventually(Duration::from_secs(60), || {
        ready = broker.connect(1).declare(1, &queue, &QueueOptions::look()).unwrap().messages;
        ready >= taken
    });
    assert!(all, "{taken} were confirmed, {ready} are in the queue");

    // Alone it can know nothing.
    cluster.kill(1);
    cluster.kill(2);
    eventually(Duration::from_secs(2), || false); // its lease runs out
    lonely.publish_to(mandatory("nobody"), b"y").unwrap();
    match message_event(&mut lonely, NO_QUORUM_TIMEOUT * 2).unwrap() {
        Some(Incoming::Confirm { nack: true, .. }) => {}
        other => panic!("a minority says of an unbound key: {other:?}"),
    }
}
