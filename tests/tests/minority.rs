//! A node that cannot reach a majority confirms nothing, says so, and serves again when the others are back.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::time::{Duration, Instant};
use warren_tests::client::{ClientError, Incoming, QueueOptions};
use warren_tests::{Broker, Cluster, ClusterOptions, message_event, unique};

/// Publishes are refused after this long without a majority.
const NO_QUORUM_TIMEOUT: Duration = Duration::from_secs(4);

#[test]
fn a_minority_stops_confirming_says_so_and_heals() {
    let test = "a_minority_stops_confirming_says_so_and_heals";
    if std::env::var("WARREN_TEST_URIS").is_ok() {
        println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
        return;
    }
    let arguments = vec![format!("--no-quorum-timeout={}s", NO_QUORUM_TIMEOUT.as_secs())];
    let cluster = Cluster::start_with(&ClusterOptions { arguments, ..ClusterOptions::default() });
    let broker = Broker::Given(cluster.uris());
    let queue = unique("minority");
    broker.declare_durable(0, &queue);
    let mut client = broker.connect(0);
    client.confirm_select(1).unwrap();
    client.publish(1, &queue, b"before").unwrap();
    assert!(matches!(message_event(&mut client, Duration::from_secs(10)), Ok(Some(Incoming::Confirm { nack: false, .. }))));

    cluster.kill(1);
    cluster.kill(2);
    client.publish(1, &queue, b"alone").unwrap();
    let (mut blocked, mut nacked, began) = (false, false, Instant::now());
    while began.elapsed() < NO_QUORUM_TIMEOUT * 3 && !nacked {
        match client.event_within(Duration::from_millis(200)).unwrap() {
            Some(Incoming::Blocked(_)) => blocked = true,
            Some(Incoming::Confirm { nack: true, .. }) => nacked = true,
            Some(Incoming::Heartbeat) | None => (),
            other => panic!("a minority answered {other:?}"),
        }
    }
    assert!(nacked, "neither confirmed nor refused {:?} after the others were killed", began.elapsed());
    assert!(blocked, "the client was not told that it is blocked");
    let mut dial = broker.dial(0);
    dial.timeout = NO_QUORUM_TIMEOUT * 3;
    let refused = warren_tests::client::Connection::open_with_channel(&dial)
        .and_then(|mut other| other.declare(1, &unique("minority"), &QueueOptions::durable()));
    assert_eq!(refused.as_ref().map_err(ClientError::code).err().flatten(), Some(541), "a declaration without a majority: {refused:?}");

    let healed_from = Instant::now();
    cluster.spawn(1);
    cluster.spawn(2);
    (0..3).for_each(|at| cluster.await_ready(at));
    let mut confirmed = false;
    client.publish(1, &queue, b"after").unwrap();
    while healed_from.elapsed() < Duration::from_secs(30) && !confirmed {
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
