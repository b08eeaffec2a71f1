//! Streams under faults, as a bare client sees them: publishers that come back by name through whatever node lives, and a client that stays
//! while the leader dies. And what operators see of stream clients.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use warren::wire::stream::client::Request;
use warren_tests::client::{Field, QueueOptions};
use warren_tests::stream_client::{Chunk, StreamClient, Told};
use warren_tests::{Broker, Chance, Cluster, Ctl, eventually, unique};

/// Streams with a publisher each; they fall into all shards.
const STREAMS: usize = 4;
/// Messages of a Publish frame.
const BATCH: u64 = 40;
/// Frames that may wait for their confirms.
const AHEAD: u64 = 5;
/// Nodes that are killed.
const KILLS: usize = 6;
/// Messages that a publisher says again when it comes back, known to be stored or not.
const AGAIN: u64 = 60;
/// A client goes elsewhere when it hears nothing for so long.
const SILENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

fn addresses(cluster: &Cluster) -> Vec<String> {
    (0..cluster.len()).map(|at| format!("127.0.0.1:{}", cluster.ports(at).stream)).collect()
}

fn body(stream: &str, id: u64) -> Vec<u8> {
    format!("{stream}/{id}").into_bytes()
}

/// What a publisher and the test know of each other.
#[derive(Default)]
struct Shared {
    /// The highest id that was ever on its way: until it is confirmed an edge may still bring it.
    sent: AtomicU64,
    confirmed: AtomicU64,
    lives: AtomicU64,
    stops: AtomicBool,
}

/// One life of a publisher: from what the cluster knows of it on, until it is cut off, loses patience or is told to stop.
fn live(address: &str, stream: &str, shared: &Shared, chance: &mut Chance) -> io::Result<()> {
    let mut client = StreamClient::connect(address, SILENCE)?;
    let known = client.ask(Request::QueryPublisherSequence { reference: "steady", stream })?.unwrap_or(0);
    let before = shared.confirmed.load(Ordering::SeqCst);
    assert!(known >= before, "{stream}: {before} was confirmed, the cluster knows {known}");
    client.ask(Request::DeclarePublisher { publisher: 1, reference: "steady", stream })?;
    shared.lives.fetch_add(1, Ordering::SeqCst);
    let (mut sent, mut confirmed) = (known.saturating_sub(AGAIN), known);
    loop {
        let stops = shared.stops.load(Ordering::SeqCst);
        let is_wanted = !stops || sent < shared.sent.load(Ordering::SeqCst);
        if is_wanted && sent < confirmed + AHEAD * BATCH {
            let batch: Vec<_> = (sent + 1..=sent + BATCH).map(|id| (id, body(stream, id))).collect();
            sent += BATCH;
            shared.sent.fetch_max(sent, Ordering::SeqCst);
            client.publish(1, &batch)?;
            if !stops && chance.one_in(100) {
                return Ok(()); // with messages on their way
            }
            continue;
        }
        if stops && confirmed >= sent {
            return Ok(());
        }
        match client.next_told()? {
            Told::Confirmed(ids) => confirmed = ids.iter().copied().fold(confirmed, u64::max),
            Told::Refused(ids) => return Err(io::Error::other(format!("{ids:?} are refused"))),
            other => panic!("{stream}: {other:?}"),
        }
        shared.confirmed.fetch_max(confirmed, Ordering::SeqCst);
    }
}

/// Lives until it is told to stop, and then until all that was ever sent is confirmed or known not to be stored.
fn publish(nodes: &[String], stream: &str, shared: &Shared, seed: u64) {
    let mut chance = Chance::of(seed);
    loop {
        let stops = shared.stops.load(Ordering::SeqCst);
        let node = chance.pick(nodes).clone();
        match live(&node, stream, shared, &mut chance) {
            Ok(()) if stops => return,
            Ok(()) => {}
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// All of a stream as a node has it, up to the message with this number.
fn read(address: &str, stream: &str, last: u64) -> Vec<Chunk> {
    let mut client = StreamClient::connect(address, PATIENCE).unwrap();
    let wanted = body(stream, last);
    client.read(stream, |chunk| chunk.bodies.last() == Some(&wanted)).unwrap_or_else(|error| panic!("{stream} at {address}: {error}"))
}

#[test]
fn publishers_that_come_back_by_name_are_stored_once_whichever_nodes_die() {
    let test = "publishers_that_come_back_by_name";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let (nodes, mut chance) = (Arc::new(addresses(&cluster)), Chance::new(test));
    let streams: Vec<String> = (0..STREAMS).map(|n| format!("steady-{n}")).collect();
    let mut client = StreamClient::connect(&nodes[0], PATIENCE).unwrap();
    let publishers: Vec<_> = streams
        .iter()
        .map(|stream| {
            client.ask(Request::Create { stream, arguments: vec![] }).unwrap();
            let (nodes, shared, stream, seed) =
                (nodes.clone(), Arc::new(Shared::default()), stream.clone(), chance.between(0, u64::MAX - 1));
            let theirs = shared.clone();
            (shared, thread::spawn(move || publish(&nodes, &stream, &theirs, seed)))
        })
        .collect();
    for kill in 0..KILLS {
        // All go on before the next node dies.
        let before: Vec<u64> = publishers.iter().map(|(shared, _)| shared.confirmed.load(Ordering::SeqCst)).collect();
        let go_on = || publishers.iter().zip(&before).all(|((shared, _), before)| shared.confirmed.load(Ordering::SeqCst) > before + BATCH);
        assert!(eventually(PATIENCE, go_on), "a publisher does not get on before kill {kill}");
        let victim = chance.below(cluster.len());
        cluster.kill(victim);
        cluster.spawn(victim);
        cluster.await_ready(victim);
    }
    let mut lives = 0;
    for (shared, publisher) in &publishers {
        shared.stops.store(true, Ordering::SeqCst);
        assert!(eventually(PATIENCE, || publisher.is_finished()), "a publisher does not come to an end");
        lives += shared.lives.load(Ordering::SeqCst);
    }
    publishers.into_iter().for_each(|(shared, publisher)| {
        publisher.join().unwrap();
        shared.stops.store(true, Ordering::SeqCst);
    });
    assert!(lives > 2 * STREAMS as u64, "publishers lived {lives} times: nobody came back, it proves nothing");
    for stream in &streams {
        let mut client = StreamClient::connect(&nodes[0], PATIENCE).unwrap();
        let last = client.ask(Request::QueryPublisherSequence { reference: "steady", stream }).unwrap().unwrap();
        let chunks = read(&nodes[0], stream, last);
        let mut next = 0;
        for chunk in &chunks {
            assert_eq!(chunk.first, next, "{stream}: offsets have a gap");
            for (n, found) in chunk.bodies.iter().enumerate() {
                let expected = body(stream, next + n as u64 + 1);
                assert!(*found == expected, "{stream}: {} where {} belongs", String::from_utf8_lossy(found), next + n as u64 + 1);
            }
            next += chunk.bodies.len() as u64;
        }
        assert_eq!(next, last, "{stream}: not every publishing id is there");
        for node in &nodes[1..] {
            assert!(read(node, stream, last) == chunks, "{stream}: {node} has other chunks");
        }
        println!("{stream}: {last} messages");
    }
    println!("{lives} lives of {STREAMS} publishers");
}

/// A stream that another node than `at` leads.
fn led_elsewhere(cluster: &Cluster, client: &mut StreamClient, at: usize) -> (String, usize) {
    for _ in 0..50 {
        let stream = unique("led");
        client.ask(Request::Create { stream: &stream, arguments: vec![] }).unwrap();
        let mut leader = None;
        eventually(PATIENCE, || {
            leader = cluster.queue_leader(&stream);
            leader.is_some()
        });
        if let Some(leader) = leader.filter(|leader| *leader != at) {
            return (stream, leader);
        }
    }
    panic!("node {at} leads 50 streams of 50")
}

#[test]
fn a_client_on_another_node_stays_when_the_leader_of_its_stream_dies() {
    let test = "a_client_on_another_node_stays";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let mut client = StreamClient::connect(&addresses(&cluster)[0], PATIENCE).unwrap();
    let (stream, leader) = led_elsewhere(&cluster, &mut client, 0);
    client.ask(Request::DeclarePublisher { publisher: 1, reference: "", stream: &stream }).unwrap();
    let (offset, properties) = (warren::wire::stream::OffsetSpec::First, vec![]);
    client.ask(Request::Subscribe { subscription: 1, stream: &stream, offset, credit: 1000, properties }).unwrap();
    let (mut confirmed, mut got, mut sent) = (0, Vec::new(), 0);
    let mut killed = false;
    let until = Instant::now() + PATIENCE;
    while confirmed < 400 || got.len() < 400 {
        assert!(Instant::now() < until, "{confirmed} confirmed and {} read of 400", got.len());
        if !killed && confirmed >= 200 {
            cluster.kill(leader);
            killed = true;
        }
        if sent < 400 && sent < confirmed + 40 && (killed || sent < 200) {
            client.publish(1, &(sent..sent + 20).map(|id| (id, body(&stream, id))).collect::<Vec<_>>()).unwrap();
            sent += 20;
            continue;
        }
        match client.next_told().unwrap() {
            Told::Confirmed(ids) => confirmed += ids.len() as u64,
            Told::Chunk(chunk) => got.extend(chunk.bodies),
            other => panic!("the client is told {other:?}"),
        }
    }
    assert!(got == (0..400).map(|id| body(&stream, id)).collect::<Vec<_>>(), "not each once and in order");
    assert_ne!(cluster.queue_leader(&stream), Some(leader), "the leader has not changed: it proves nothing");
}

#[test]
fn operators_see_groups_and_what_streams_remember_through_each_node() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (nodes, stream) = (addresses(cluster), unique("group"));
    let member = |at: usize, subscription: u8| {
        let mut client = StreamClient::connect(&nodes[at], PATIENCE).unwrap();
        let properties = vec![("single-active-consumer", "true"), ("name", "g")];
        let offset = warren::wire::stream::OffsetSpec::First;
        if subscription == 1 {
            client.ask(Request::Create { stream: &stream, arguments: vec![] }).unwrap();
        }
        client.ask(Request::Subscribe { subscription, stream: &stream, offset, credit: 1, properties }).unwrap();
        client
    };
    let listed = |at: usize, words: &[&str], sign: &str| -> Vec<String> {
        let told = Ctl { cluster, at }.done(&[&["-q"][..], words].concat());
        told.lines().filter(|row| row.contains(sign)).map(str::to_owned).collect()
    };
    let members = ["list_stream_group_consumers", "--stream", &stream, "--reference", "g", "subscription_id", "state"];
    let mut first = member(0, 1);
    // The second one comes when the first is known.
    assert_eq!(first.next_told().unwrap(), Told::Turn(true));
    let second = member(1 % cluster.len(), 2);
    let both = ["1\tactive", "2\tinactive"];
    for at in 0..cluster.len() {
        assert!(eventually(PATIENCE, || listed(at, &members, "active") == both), "node {}: {:?}", at + 1, listed(at, &members, ""));
        assert_eq!(listed(at, &["list_stream_consumer_groups"], &stream), [format!("{stream}\tg\t-1\t2")]);
        let named = listed(at, &["list_stream_group_consumers", "--stream", &stream, "--reference", "g"], "active");
        assert!(named.iter().all(|row| row.contains(" -> ")), "{named:?}");
    }
    let mut client = StreamClient::connect(&nodes[0], PATIENCE).unwrap();
    client.ask(Request::DeclarePublisher { publisher: 7, reference: "p", stream: &stream }).unwrap();
    client.publish(7, &(1..=10).map(|id| (id, body(&stream, id))).collect::<Vec<_>>()).unwrap();
    client.store("r", &stream, 4).unwrap();
    // The broker answers in order: behind the publishes and the store.
    assert_eq!(client.ask(Request::QueryOffset { reference: "r", stream: &stream }).unwrap(), Some(4));
    for at in 0..cluster.len() {
        // A replica that is not the leader's comes to know it a little later.
        let tracked = |flags: &[&str]| listed(at, &[&["list_stream_tracking", stream.as_str()][..], flags].concat(), "");
        let is_told = || tracked(&["--offset"]).contains(&"offset\tr\t4".to_owned());
        assert!(eventually(PATIENCE, is_told), "node {}: {:?}", at + 1, tracked(&[]));
        assert_eq!(tracked(&["--writer"]).last().map(String::as_str), Some("writer\tp\t0 (10)"));
        assert_eq!(tracked(&["--all"])[1..], ["offset\tr\t4", "writer\tp\t0 (10)"]);
    }
    let ctl = Ctl { cluster, at: 0 };
    ctl.refused(&["list_stream_tracking", "nowhere"], 65, "The stream does not exist");
    ctl.refused(&["list_stream_group_consumers", "--stream", &stream, "--reference", "other"], 65, "The group does not exist");
    drop((first, second));
    let is_gone = || listed(0, &["list_stream_consumer_groups"], &stream).is_empty();
    assert!(eventually(PATIENCE, is_gone), "a group without consumers is still listed");
}

#[test]
fn operators_see_stream_clients_of_all_nodes() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (reader, writer) = (0, 1 % cluster.len());
    let ctl = Ctl { cluster, at: cluster.len() - 1 };
    let (nodes, stream) = (addresses(cluster), unique("seen"));
    let mut publishing = StreamClient::connect(&nodes[writer], PATIENCE).unwrap();
    publishing.ask(Request::Create { stream: &stream, arguments: vec![] }).unwrap();
    publishing.ask(Request::DeclarePublisher { publisher: 7, reference: "p", stream: &stream }).unwrap();
    let before = [reader, writer].map(|at| cluster.metrics(at).unwrap());
    publishing.publish(7, &(1..=10).map(|id| (id, body(&stream, id))).collect::<Vec<_>>()).unwrap();
    let mut confirmed = 0;
    while confirmed < 10 {
        let Told::Confirmed(ids) = publishing.next_told().unwrap() else { panic!("not confirmed") };
        confirmed += ids.len();
    }
    let mut reading = StreamClient::connect(&nodes[reader], PATIENCE).unwrap();
    let (offset, properties) = (warren::wire::stream::OffsetSpec::First, vec![("name", "r")]);
    reading.ask(Request::Subscribe { subscription: 3, stream: &stream, offset, credit: 100, properties }).unwrap();
    let mut got = 0;
    while got < 10 {
        let Told::Chunk(chunk) = reading.next_told().unwrap() else { panic!("no chunk") };
        got += chunk.bodies.len();
    }
    let mut options = QueueOptions::durable();
    options.arguments.push(("x-queue-type".into(), Field::Text("stream".into())));
    let mut amqp = broker.connect(ctl.at);
    amqp.declare(1, &stream, &options).unwrap();
    amqp.qos(1, 5).unwrap();
    amqp.consume(1, &stream, "t", &[]).unwrap();
    let rows = |words: &[&str]| -> Vec<String> { ctl.done(words).lines().filter(|row| row.contains(&stream)).map(str::to_owned).collect() };
    let publishers = [
        "-q",
        "list_stream_publishers",
        "stream",
        "node",
        "publisher_id",
        "reference",
        "messages_published",
        "messages_confirmed",
        "messages_errored",
    ];
    assert_eq!(rows(&publishers), [format!("{stream}\t{}\t7\tp\t10\t10\t0", writer + 1)]);
    let consumers = [
        "-q",
        "list_stream_consumers",
        "stream",
        "node",
        "subscription_id",
        "messages_consumed",
        "offset",
        "offset_lag",
        "active",
        "activity_status",
        "properties",
    ];
    let seen = format!("{stream}\t{}\t3\t10\t9\t0\ttrue\tup\t[{{\"name\",\"r\"}}]", reader + 1);
    assert_eq!(rows(&consumers), [seen]);
    assert_eq!(rows(&["-q", "list_queues", "name", "consumers", "messages"]), [format!("{stream}\t2\t10")]);
    assert!(ctl.done(&["-q", "list_stream_connections", "node", "subscriptions", "user"]).contains(&format!("{}\t1\tguest", reader + 1)));
    let of_group = ["-q", "list_stream_consumer_groups"];
    assert!(rows(&of_group).is_empty(), "a consumer of its own is of no group");
    // Others use the cluster, too: the figures have grown by this much at least.
    let after = [reader, writer].map(|at| cluster.metrics(at).unwrap());
    let grown = |n: usize, name: &str| after[n].sum(name).unwrap() - before[n].sum(name).unwrap();
    assert!(grown(1, "warren_stream_published_total") >= 10.0 && grown(1, "warren_stream_confirmed_total") >= 10.0);
    assert!(grown(1, "warren_stream_published_bytes_total") >= 10.0 * body(&stream, 1).len() as f64);
    assert!(grown(0, "warren_stream_delivered_total") >= 10.0 && grown(0, "warren_stream_chunks_total") >= 1.0);
    assert!(after[0].sum("warren_stream_consumers") >= Some(1.0) && after[1].sum("warren_stream_publishers") >= Some(1.0));
    drop((publishing, reading));
    assert!(eventually(PATIENCE, || rows(&publishers).is_empty() && rows(&consumers).is_empty()), "who has left is still listed");
}
