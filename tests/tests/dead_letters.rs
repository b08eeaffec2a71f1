//! Dead letters that have to wait: while leaders are killed, and while their target is full and their queue is gone or set differently.
//! Every message that was confirmed comes to its target, once.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};
use warren_tests::client::{Connection, Dial, Field, Incoming, QueueOptions};
use warren_tests::{Broker, Chance, Cluster, Ctl, eventually, message_event, unique};

const ROUNDS: usize = 8;
/// Between two publishes.
const PACE: Duration = Duration::from_millis(4);
/// Time to live in the queue whose messages expire.
const TTL_MS: i64 = 60;

struct Queues {
    target: String,
    expiring: String,
    rejected: String,
}

fn declare(client: &mut Connection, queue: &str, arguments: &[(&str, Field)]) {
    let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    client.declare(1, queue, &QueueOptions { arguments, ..QueueOptions::durable() }).unwrap();
}

/// A target, and two queues whose dead letters go there from another shard: messages of one expire, those of the other are rejected.
fn queues(cluster: &Cluster, client: &mut Connection) -> Queues {
    let target = unique("target");
    declare(client, &target, &[]);
    let home = cluster.queue_shard(&target).unwrap();
    let mut elsewhere = |more: &[(&str, Field)]| {
        for _ in 0..20 {
            let queue = unique("source");
            let way = [("x-dead-letter-exchange", Field::Text(String::new())), ("x-dead-letter-routing-key", Field::Text(target.clone()))];
            declare(client, &queue, &[&way[..], more].concat());
            if cluster.queue_shard(&queue).is_some_and(|shard| shard != home) {
                return queue;
            }
        }
        panic!("all queues are in one shard");
    };
    let (expiring, rejected) = (elsewhere(&[("x-message-ttl", Field::Int(TTL_MS))]), elsewhere(&[]));
    Queues { target, expiring, rejected }
}

/// Publishes numbered messages to both sources in turn until it is stopped; the bodies that were confirmed.
fn publish(dial: &Dial, queues: &Queues, stop: &Arc<AtomicBool>) -> JoinHandle<BTreeSet<String>> {
    let mut client = Connection::open_with_channel(dial).unwrap();
    client.confirm_select(1).unwrap();
    let (sources, stop) = ([queues.expiring.clone(), queues.rejected.clone()], stop.clone());
    spawn(move || {
        let (mut sent, mut open, mut confirmed) = (0u64, BTreeSet::new(), BTreeSet::new());
        while !stop.load(Ordering::Relaxed) || !open.is_empty() {
            if !stop.load(Ordering::Relaxed) {
                sent += 1;
                client.publish(1, &sources[(sent % 2) as usize], sent.to_string().as_bytes()).unwrap();
                open.insert(sent);
            }
            match client.event_within(PACE).unwrap() {
                Some(Incoming::Confirm { tag, multiple, nack: false, .. }) => {
                    let done: Vec<u64> = open.iter().copied().filter(|n| *n == tag || (multiple && *n < tag)).collect();
                    for n in done {
                        open.remove(&n);
                        confirmed.insert(n.to_string());
                    }
                }
                None | Some(Incoming::Blocked(_) | Incoming::Unblocked | Incoming::Heartbeat) => {}
                Some(other) => panic!("{other:?}"),
            }
        }
        confirmed
    })
}

/// basic.reject without requeue.
fn reject(client: &mut Connection, tag: u64) {
    let mut frame = vec![1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 90];
    frame.extend(tag.to_be_bytes());
    frame.extend([0, 0xce]);
    client.send(&frame).unwrap();
}

/// Rejects whatever comes until it is stopped.
fn consume_and_reject(dial: &Dial, queue: &str, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let mut client = Connection::open_with_channel(dial).unwrap();
    client.qos(1, 50).unwrap();
    client.consume(1, queue, "rejects", &[]).unwrap();
    let stop = stop.clone();
    spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if let Some(Incoming::Deliver(_, delivery)) = message_event(&mut client, Duration::from_millis(50)).unwrap() {
                reject(&mut client, delivery.tag);
            }
        }
    })
}

/// Kills the leader of one of the queues, the first that is not led by the node of the clients, and starts it again. True when it led.
fn hit(cluster: &Cluster, queues: &[&String], spared: usize, chance: &mut Chance) -> bool {
    let target = || queues.iter().find_map(|queue| cluster.queue_leader(queue).filter(|at| *at != spared).map(|at| (*queue, at)));
    // Leadership that came together on one node spreads again after a calm while.
    eventually(Duration::from_secs(60), || target().is_some());
    let Some((queue, victim)) = target() else { return false };
    println!("node {} is killed, which leads {queue}", victim + 1);
    cluster.kill(victim);
    sleep(Duration::from_millis(chance.between(0, 1200)));
    cluster.restart(victim);
    sleep(Duration::from_millis(chance.between(200, 900)));
    true
}

/// What is in a queue, until `wanted` is there or nothing comes any more: how often each body came.
fn drain(client: &mut Connection, queue: &str, wanted: &BTreeSet<String>) -> BTreeMap<String, u32> {
    let mut came = BTreeMap::new();
    let mut last = Instant::now();
    client.consume(1, queue, "drains", &[]).unwrap();
    while last.elapsed() < Duration::from_secs(20) {
        match message_event(client, Duration::from_millis(500)).unwrap() {
            Some(Incoming::Deliver(_, delivery)) => {
                client.ack(1, delivery.tag, false).unwrap();
                *came.entry(String::from_utf8(delivery.body.clone()).unwrap()).or_default() += 1;
                last = Instant::now();
            }
            Some(other) => panic!("{other:?}"),
            None if wanted.iter().all(|body| came.contains_key(body)) => break,
            None => {}
        }
    }
    came
}

#[test]
fn letters_between_shards_survive_the_kill_of_either_leader_and_come_once() {
    let test = "letters_between_shards_survive_the_kill_of_either_leader_and_come_once";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let mut chance = Chance::new(test);
    let broker = Broker::Given(cluster.uris());
    let found = queues(&cluster, &mut broker.connect(0));
    let leaders = [&found.target, &found.expiring].map(|queue| cluster.queue_leader(queue).unwrap());
    let spared = (0..cluster.len()).find(|at| !leaders.contains(at)).unwrap_or(0);
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = publish(&broker.dial(spared), &found, &stop);
    let stop_rejecting = Arc::new(AtomicBool::new(false));
    let rejecting = consume_and_reject(&broker.dial(spared), &found.rejected, &stop_rejecting);
    sleep(Duration::from_millis(300));
    let mut names = [&found.expiring, &found.target, &found.rejected];
    let mut hits = 0;
    for _ in 0..ROUNDS {
        hits += usize::from(hit(&cluster, &names, spared, &mut chance));
        names.rotate_left(1);
    }
    stop.store(true, Ordering::Relaxed);
    let confirmed = publisher.join().unwrap();
    let mut client = broker.connect(spared);
    let ready = |client: &mut Connection, queue: &str| client.declare(1, queue, &QueueOptions::look()).unwrap().messages;
    let empty =
        eventually(Duration::from_secs(20), || ready(&mut client, &found.expiring) == 0 && ready(&mut client, &found.rejected) == 0);
    assert!(empty, "messages stay in their queues");
    stop_rejecting.store(true, Ordering::Relaxed);
    let came = drain(&mut client, &found.target, &confirmed);
    rejecting.join().unwrap();
    let lost: Vec<_> = confirmed.iter().filter(|body| !came.contains_key(*body)).take(10).collect();
    let twice: Vec<_> = came.iter().filter(|(_, times)| **times > 1).take(10).collect();
    println!("{test}: {} confirmed, {} came, {hits} of {ROUNDS} kills hit a leader", confirmed.len(), came.len());
    assert!(lost.is_empty(), "confirmed and lost: {lost:?}");
    assert!(twice.is_empty(), "came more than once: {twice:?}");
    assert_eq!(hits, ROUNDS, "every kill must hit a leader, or the test proves nothing");
}

/// Publishes a message that is to be confirmed.
fn publish_one(client: &mut Connection, queue: &str, body: &str) {
    client.publish(1, queue, body.as_bytes()).unwrap();
    match message_event(client, Duration::from_secs(20)).unwrap() {
        Some(Incoming::Confirm { nack: false, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// A policy for one queue; its name.
fn policy(ctl: &Ctl<'_>, queue: &str, definition: &str) -> String {
    let name = unique("policy");
    ctl.done(&["set_policy", &name, &format!("^{queue}$"), definition]);
    name
}

#[test]
fn letters_that_wait_outlive_their_queue_and_the_policy_that_sent_them() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (ctl, mut client) = (Ctl { cluster, at: 0 }, broker.connect(0));
    client.confirm_select(1).unwrap();
    let (target, deleted, ruled) = (unique("target"), unique("deleted"), unique("ruled"));
    let (at_once, way) = (("x-message-ttl", Field::Int(0)), ("x-dead-letter-exchange", Field::Text(String::new())));
    declare(&mut client, &target, &[]);
    declare(&mut client, &deleted, &[at_once.clone(), way, ("x-dead-letter-routing-key", Field::Text(target.clone()))]);
    declare(&mut client, &ruled, &[at_once]);
    let rule = policy(&ctl, &ruled, &format!(r#"{{"dead-letter-exchange": "", "dead-letter-routing-key": "{target}"}}"#));
    let full = policy(&ctl, &target, r#"{"max-length": 1, "overflow": "reject-publish"}"#);
    publish_one(&mut client, &target, "there before");
    // The first letters are refused; those behind them have not been looked at when their queue goes.
    let mut wanted = BTreeSet::from(["there before".to_owned()]);
    for n in 0..40 {
        let body = format!("letter {n}");
        publish_one(&mut client, if n % 2 == 0 { &deleted } else { &ruled }, &body);
        wanted.insert(body);
    }
    let ready = |client: &mut Connection, queue: &str| client.declare(1, queue, &QueueOptions::look()).unwrap().messages;
    assert!(eventually(Duration::from_secs(20), || ready(&mut client, &deleted) == 0 && ready(&mut client, &ruled) == 0));
    assert_eq!(ready(&mut client, &target), 1);
    client.delete(1, &deleted).unwrap();
    ctl.done(&["clear_policy", &rule]);
    publish_one(&mut client, &ruled, "no letter any more");
    assert!(eventually(Duration::from_secs(20), || ready(&mut client, &ruled) == 0));
    ctl.done(&["clear_policy", &full]);
    let came = drain(&mut client, &target, &wanted);
    assert_eq!(came, wanted.into_iter().map(|body| (body, 1)).collect());
    for queue in [&target, &ruled] {
        client.delete(1, queue).unwrap();
    }
}
