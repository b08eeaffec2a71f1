//! Transactions over several shards while nodes are killed: those of the shards' leaders and those of the clients. Each transaction takes
//! a message from one queue and puts messages into others; afterwards it is there whole or not at all, and there if commit-ok was seen.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use warren_tests::client::{ClientError, Connection, Delivery, Dial, Incoming, QueueOptions, encode};
use warren_tests::{Broker, Chance, Cluster, fault_seconds, message_event, unique};

/// Queues that each transaction publishes to; enough that they are in several shards.
const OUTPUTS: usize = 5;
const INPUTS: usize = 6000;
/// Clients of each node.
const CLIENTS: usize = 2;

#[derive(Default)]
struct Seen {
    committed: BTreeSet<String>,
    begun: usize,
    lost_connections: usize,
}

fn call(connection: &mut Connection, ask: (u16, u16), answer: (u16, u16)) -> Result<(), ClientError> {
    let mut out = Vec::new();
    encode::bare(&mut out, 1, ask);
    connection.send(&out)?;
    connection.answer(answer).map(drop)
}

/// Moves messages until it is stopped or something fails. The body of what it publishes names the transaction and the message taken.
fn work(dial: &Dial, client: &str, input: &str, outputs: &[String], seen: &Mutex<Seen>, stop: &AtomicBool) -> Result<(), ClientError> {
    let mut connection = Connection::open_with_channel(dial)?;
    call(&mut connection, (90, 10), (90, 11))?;
    while !stop.load(Ordering::Relaxed) {
        let Some((message, _)) = connection.get(1, input)? else { return Ok(()) };
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.begun += 1;
            seen.begun
        };
        let body = format!("{client}-{number} {}", String::from_utf8_lossy(&message.body));
        for queue in outputs {
            connection.publish(1, queue, body.as_bytes())?;
        }
        connection.ack(1, message.tag, false)?;
        call(&mut connection, (90, 20), (90, 21))?;
        seen.lock().unwrap().committed.insert(body);
    }
    Ok(())
}

/// All that is in a queue.
fn drain(connection: &mut Connection, queue: &str) -> Vec<Delivery> {
    connection.consume(1, queue, queue, &[]).unwrap();
    let mut found = Vec::new();
    while let Some(event) = message_event(connection, Duration::from_secs(3)).unwrap() {
        match event {
            Incoming::Deliver(_, message) => found.push(message),
            other => panic!("{queue}: {other:?}"),
        }
    }
    found
}

fn count(bodies: Vec<Delivery>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    bodies.into_iter().for_each(|m| *counts.entry(String::from_utf8(m.body).unwrap()).or_default() += 1);
    counts
}

fn declare(broker: &Broker) -> (String, Vec<String>) {
    let (input, outputs) = (unique("tx-in"), (0..OUTPUTS).map(|n| unique(&format!("tx-{n}"))).collect::<Vec<_>>());
    let mut connection = broker.connect(0);
    connection.declare(1, &input, &QueueOptions::durable()).unwrap();
    outputs.iter().for_each(|queue| drop(connection.declare(1, queue, &QueueOptions::durable()).unwrap()));
    call(&mut connection, (90, 10), (90, 11)).unwrap();
    (0..INPUTS).for_each(|n| connection.publish(1, &input, format!("in-{n}").as_bytes()).unwrap());
    call(&mut connection, (90, 20), (90, 21)).unwrap();
    (input, outputs)
}

/// Kills one node after another, leaders of the queues and nodes with clients alike (all have some).
fn kill_nodes(cluster: &Cluster, chance: &mut Chance) -> usize {
    let (until, mut kills) = (Instant::now() + fault_seconds() / 2, 0);
    while Instant::now() < until {
        sleep(Duration::from_millis(chance.between(300, 2500)));
        let victim = chance.below(cluster.len());
        cluster.kill(victim);
        kills += 1;
        if chance.one_in(4) {
            // Nobody has a majority: everything waits.
            let second = (victim + 1) % cluster.len();
            cluster.kill(second);
            kills += 1;
            cluster.spawn(second);
        }
        sleep(Duration::from_millis(chance.between(0, 2000)));
        cluster.spawn(victim);
        (0..cluster.len()).for_each(|at| cluster.await_ready(at));
    }
    kills
}

fn judge(broker: &Broker, input: &str, outputs: &[String], seen: &Seen) {
    let mut connection = broker.connect(0);
    let counts: Vec<BTreeMap<String, usize>> = outputs.iter().map(|queue| count(drain(&mut connection, queue))).collect();
    let left = count(drain(&mut connection, input));
    let all: BTreeSet<&String> = counts.iter().flat_map(BTreeMap::keys).chain(&seen.committed).collect();
    let mut moved: BTreeMap<&str, &String> = BTreeMap::new();
    for body in &all {
        let copies: Vec<usize> = counts.iter().map(|queue| queue.get(*body).copied().unwrap_or(0)).collect();
        let committed = seen.committed.contains(*body);
        assert_eq!(copies, [1; OUTPUTS], "transaction {body}, commit-ok {committed}: copies in the queues");
        let (_, message) = body.split_once(' ').unwrap();
        if let Some(other) = moved.insert(message, body) {
            panic!("{message} was moved by {other} and by {body}");
        }
        assert!(!left.contains_key(message), "{body} is there and {message} is still in its queue, commit-ok {committed}");
    }
    assert!(left.values().all(|n| *n == 1), "{left:?}");
    assert_eq!(left.len() + moved.len(), INPUTS, "a message is gone and no transaction has moved it");
    println!(
        "{} begun, {} with commit-ok, {} took effect, {} connections ended",
        seen.begun,
        seen.committed.len(),
        moved.len(),
        seen.lost_connections
    );
}

#[test]
fn transactions_over_shards_are_there_whole_or_not_at_all_whoever_is_killed() {
    let test = "transactions_over_shards_are_there_whole_or_not_at_all_whoever_is_killed";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let mut chance = Chance::new(test);
    let broker = Broker::Given(cluster.uris());
    let (input, outputs) = declare(&broker);
    let shards: BTreeSet<String> = outputs.iter().chain([&input]).filter_map(|queue| cluster.queue_shard(queue)).collect();
    assert!(shards.len() > 1, "all queues are in one shard: {shards:?}");
    let (seen, stop) = (Mutex::new(Seen::default()), AtomicBool::new(false));
    let kills = thread::scope(|scope| {
        for (at, client) in (0..cluster.len()).flat_map(|at| (0..CLIENTS).map(move |n| (at, n))) {
            let (dial, seen, stop, input, outputs) = (broker.dial(at), &seen, &stop, &input, &outputs);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if work(&dial, &format!("c{at}.{client}"), input, outputs, seen, stop).is_err() {
                        seen.lock().unwrap().lost_connections += 1;
                    }
                    sleep(Duration::from_millis(50));
                }
            });
        }
        let kills = kill_nodes(&cluster, &mut chance);
        stop.store(true, Ordering::Relaxed);
        kills
    });
    let seen = seen.into_inner().unwrap();
    println!("{test}: {kills} kills, shards {shards:?}");
    // Edges of processes that ended are gone after a second, and their transactions are decided then.
    sleep(Duration::from_secs(3));
    judge(&broker, &input, &outputs, &seen);
    assert!(seen.committed.len() > 20 && seen.lost_connections > 2, "too little happened to prove anything");
}

#[test]
fn a_transaction_over_shards_is_visible_through_every_node_when_it_is_answered() {
    let broker = Broker::shared();
    let (_, outputs) = declare(&broker);
    for at in 0..broker.nodes() {
        let mut publisher = broker.connect(at);
        call(&mut publisher, (90, 10), (90, 11)).unwrap();
        outputs.iter().for_each(|queue| publisher.publish(1, queue, b"rolled back").unwrap());
        call(&mut publisher, (90, 30), (90, 31)).unwrap();
        outputs.iter().for_each(|queue| publisher.publish(1, queue, format!("by {at}").as_bytes()).unwrap());
        call(&mut publisher, (90, 20), (90, 21)).unwrap();
        let mut reader = broker.connect((at + 1) % broker.nodes());
        for queue in &outputs {
            let (message, left) = reader.get(1, queue).unwrap().expect("it is there");
            assert_eq!((message.body, left), (format!("by {at}").into_bytes(), 0));
            reader.ack(1, message.tag, false).unwrap();
        }
    }
}
