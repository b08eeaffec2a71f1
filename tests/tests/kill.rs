//! kill -9: of one node after another under confirmed load with clients on a node that lives, and of all nodes at once. And a node that
//! comes back without its disk.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use warren_tests::client::{Connection, Delivery, Dial, Incoming};
use warren_tests::load::{self, Clients, ConsumerOptions, PublisherOptions, Running};
use warren_tests::oracle::Oracle;
use warren_tests::{Broker, Chance, Cluster, eventually, fault_seconds, message_event, unique};

const QUEUES: usize = 6;
/// Nodes that are killed under load, at least.
const KILLS: usize = 20;
/// Publishers of a phase get ids of their own.
const PHASE_IDS: u32 = 100;

/// Of each publisher, messages per second.
const RATE: u64 = 400;

fn clients(cluster: &Cluster, at: usize, phase: u32, queues: &[String]) -> Clients {
    Clients::start(&Dial::parse(&cluster.amqp(at)), phase * PHASE_IDS, RATE, queues)
}

/// Durable queues in all shards: some of them led by other nodes than `at`, where the clients are.
fn declare(cluster: &Cluster, at: usize) -> Vec<String> {
    let broker = Broker::Given(cluster.uris());
    let queues: Vec<String> = (0..QUEUES).map(|_| unique("kill")).collect();
    queues.iter().for_each(|queue| broker.declare_durable(at, queue));
    let elsewhere = eventually(Duration::from_secs(60), || {
        let leaders: Vec<Option<usize>> = queues.iter().map(|queue| cluster.queue_leader(queue)).collect();
        leaders.iter().flatten().any(|leader| *leader != at) && leaders.iter().all(Option::is_some)
    });
    assert!(elsewhere, "node {at} leads all of its clients' queues itself: they prove nothing");
    queues
}

/// Of the nodes other than `spared`, the one that leads most of `shards`, where the clients' queues are; how many of them it leads.
fn busiest_victim(cluster: &Cluster, shards: &BTreeSet<u64>, spared: usize, chance: &mut Chance) -> (usize, usize) {
    let led: Vec<Vec<u64>> =
        cluster.led_data_shards().into_iter().map(|led| led.into_iter().filter(|shard| shards.contains(shard)).collect()).collect();
    let first = (spared + 1 + chance.below(cluster.len() - 1)) % cluster.len();
    let others = (0..cluster.len()).map(|n| (first + n) % cluster.len()).filter(|at| *at != spared);
    others.map(|at| (at, led[at].len())).reduce(|best, next| if next.1 > best.1 { next } else { best }).expect("there are other nodes")
}

/// Hit another node again and again, `least` times at least, while clients work on one; each node is spared in turn.
fn loop_of_faults(test: &str, least: usize, cluster: &Cluster, chance: &mut Chance, mut fault: impl FnMut(&Cluster, usize, &mut Chance)) {
    let phase_length = fault_seconds() / cluster.len() as u32;
    let (mut hits, mut leaders_hit, mut gaps) = (0, 0, Vec::new());
    for spared in 0..cluster.len() {
        let queues = declare(cluster, spared);
        let shards: BTreeSet<u64> = queues
            .iter()
            .map(|queue| cluster.queue_shard(queue).and_then(|shard| shard.parse().ok()).expect("a queue has a shard"))
            .collect();
        let clients = clients(cluster, spared, spared as u32, &queues);
        sleep(Duration::from_millis(500));
        let (until, wanted) = (Instant::now() + phase_length, least * (spared + 1) / cluster.len());
        while Instant::now() < until || hits < wanted {
            eventually(Duration::from_secs(10), || busiest_victim(cluster, &shards, spared, chance).1 > 0); // leaders come back to a node that returned
            let (victim, led) = busiest_victim(cluster, &shards, spared, chance);
            hits += 1;
            leaders_hit += usize::from(led > 0);
            println!("{test}: node {} is hit, it leads {led} of the queues' shards; clients are on node {}", victim + 1, spared + 1);
            fault(cluster, victim, chance);
            sleep(Duration::from_millis(chance.between(200, 1500)));
        }
        gaps.push(clients.finish());
    }
    println!("{test}: {hits} hits, {leaders_hit} of them hit leaders, longest gaps {gaps:?}");
    assert!(
        leaders_hit * 2 >= hits && leaders_hit >= cluster.len(),
        "most hits must hit a leader of the clients' own queues, or the test proves nothing"
    );
}

#[test]
fn clients_of_a_living_node_do_not_notice_that_others_are_killed() {
    let test = "clients_of_a_living_node_do_not_notice_that_others_are_killed";
    let Some(cluster) = Broker::to_harm(test) else { return };
    loop_of_faults(test, KILLS, &cluster, &mut Chance::new(test), |cluster, victim, chance| {
        cluster.kill(victim);
        sleep(Duration::from_millis(chance.between(0, 1500)));
        cluster.restart(victim);
    });
}

#[test]
fn clients_of_a_living_node_do_not_notice_that_others_are_frozen() {
    let test = "clients_of_a_living_node_do_not_notice_that_others_are_frozen";
    let Some(cluster) = Broker::to_harm(test) else { return };
    loop_of_faults(test, 0, &cluster, &mut Chance::new(test), |cluster, victim, chance| {
        cluster.freeze(victim);
        sleep(Duration::from_millis(chance.between(300, 3000)));
        cluster.thaw(victim);
    });
}

#[test]
fn everything_confirmed_survives_the_kill_of_all_nodes_at_once() {
    let test = "everything_confirmed_survives_the_kill_of_all_nodes_at_once";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let mut chance = Chance::new(test);
    let queues = declare(&cluster, 0);
    let oracle = Arc::new(Oracle::default());
    for round in 0..2u32 {
        let options = PublisherOptions { rate: 2000, drain: Duration::ZERO, ..PublisherOptions::default() };
        let dial = |n: usize| Dial::parse(&cluster.amqp(n % cluster.len()));
        let id = |n: usize| round * PHASE_IDS + n as u32;
        let publishers: Vec<_> = queues.iter().enumerate().map(|(n, q)| load::publish(&oracle, &dial(n), id(n), q, &options)).collect();
        sleep(Duration::from_millis(chance.between(800, 2000)));
        cluster.kill_all();
        publishers.into_iter().map(Running::stop).for_each(|report| assert_eq!(report.closes.len(), 1, "its node was killed"));
        (0..cluster.len()).for_each(|at| cluster.spawn(at));
        (0..cluster.len()).for_each(|at| cluster.await_ready(at));
    }
    println!("{test}: {} confirmed before the kills", oracle.confirmed_count());
    let broker = Broker::Given(cluster.uris());
    let at = |n: usize| (n + 1) % cluster.len();
    let consumer = |(n, q): (usize, &String)| load::consume(&oracle, &broker.dial(at(n)), 900 + n as u32, q, &ConsumerOptions::default());
    let consumers: Vec<_> = queues.iter().enumerate().map(consumer).collect();
    let drained = load::drained(&oracle, Duration::from_secs(60));
    sleep(Duration::from_millis(300));
    let closes: Vec<String> = consumers.into_iter().flat_map(|running| running.stop().closes).collect();
    let findings = oracle.findings();
    println!("{test}: {findings}");
    assert!(closes.is_empty(), "{closes:?}");
    findings.assert_safe();
    assert!(drained);
    assert_eq!(findings.redelivered.count, 0, "nobody had these before: {findings}");
}

#[test]
fn a_node_without_its_disk_is_filled_again_while_the_others_serve_and_counts_again() {
    let test = "a_node_without_its_disk_is_filled_again_while_the_others_serve_and_counts_again";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let mut chance = Chance::new(test);
    let victim = chance.below(cluster.len());
    let spared = (victim + 1) % cluster.len();
    let queues = declare(&cluster, spared);
    let clients = clients(&cluster, spared, 1, &queues);
    sleep(Duration::from_secs(1));
    cluster.kill(victim);
    cluster.wipe(victim);
    cluster.spawn(victim);
    cluster.await_ready(victim);
    let incomplete = || cluster.metrics(victim).and_then(|metrics| metrics.sum("warren_replicas_incomplete"));
    assert!(eventually(Duration::from_secs(60), || incomplete() == Some(0.0)), "{:?}: {}", incomplete(), cluster.log_tail(victim));
    let warned = cluster.logged(victim, "WARN");
    assert!(warned.iter().any(|line| line.contains("this data directory was empty")), "{warned:?}");
    // With it and the spared one there is a majority, and it has what was confirmed while it was away.
    let other = 3 - victim - spared;
    cluster.kill(other);
    sleep(Duration::from_secs(3));
    clients.finish();
}

#[test]
fn a_node_that_is_told_to_stop_ends_well_within_five_seconds_and_finds_nothing_wrong() {
    let test = "a_node_that_is_told_to_stop_ends_well_within_five_seconds_and_finds_nothing_wrong";
    let Some(cluster) = Broker::to_harm(test) else { return };
    let queues = declare(&cluster, 0);
    let clients = clients(&cluster, 0, 1, &queues);
    sleep(Duration::from_secs(1));
    for victim in [1, 2] {
        let status = cluster.stop(victim, Duration::from_secs(5));
        assert_eq!(status.map(|status| status.code()), Some(Some(0)), "node {}", victim + 1);
        assert!(!cluster.logged(victim, "INFO").is_empty(), "it logs");
        assert_eq!(cluster.logged(victim, "ERROR"), Vec::<String>::new(), "node {} was told to stop", victim + 1);
        cluster.restart(victim);
    }
    clients.finish();
    // All at once, with nobody left to hand over to.
    (0..cluster.len()).for_each(|at| cluster.tell_to_stop(at));
    for at in 0..cluster.len() {
        let status = cluster.stop(at, Duration::from_secs(30)); // a slow machine stops three at once
        assert_eq!(status.map(|status| status.code()), Some(Some(0)), "node {}", at + 1);
        assert_eq!(cluster.logged(at, "ERROR"), Vec::<String>::new(), "node {}", at + 1);
    }
}

#[test]
fn all_nodes_are_restarted_in_turn_under_load_and_clients_lose_at_most_their_connection() {
    let test = "all_nodes_are_restarted_in_turn_under_load_and_clients_lose_at_most_their_connection";
    let Some(cluster) = Broker::to_harm(test) else { return };
    for victim in 0..cluster.len() {
        let stays = (victim + 1) % cluster.len();
        let (staying, leaving) = (declare(&cluster, stays), declare(&cluster, victim));
        let unaware = clients(&cluster, stays, victim as u32, &staying);
        let Clients { oracle, publishers, consumers } = clients(&cluster, victim, victim as u32, &leaving);
        sleep(Duration::from_secs(1));
        let status = cluster.stop(victim, Duration::from_secs(5));
        assert_eq!(status.map(|status| status.code()), Some(Some(0)), "node {}", victim + 1);
        let closes: Vec<String> = publishers.into_iter().flat_map(|running| running.stop().closes).collect();
        let closes: Vec<String> = closes.into_iter().chain(consumers.into_iter().flat_map(|running| running.stop().closes)).collect();
        assert_eq!(closes.len(), 2 * leaving.len(), "each has lost its connection once: {closes:?}");
        // They come back to another node and find all that was confirmed.
        let dial = Dial::parse(&cluster.amqp(stays));
        let id = |n: usize| (cluster.len() + victim) as u32 * PHASE_IDS + n as u32;
        let back = |(n, queue): (usize, &String)| load::consume(&oracle, &dial, id(n), queue, &ConsumerOptions::default());
        let back: Vec<_> = leaving.iter().enumerate().map(back).collect();
        let drained = load::drained(&oracle, Duration::from_secs(60));
        back.into_iter().map(Running::stop).for_each(|report| assert_eq!(report.closes, Vec::<String>::new()));
        let findings = oracle.findings();
        println!("{test}: clients of node {}: {findings}", victim + 1);
        findings.assert_safe();
        assert!(drained, "not everything was delivered");
        cluster.restart(victim);
        unaware.finish();
    }
}

fn delivered(client: &mut Connection) -> Delivery {
    match message_event(client, Duration::from_secs(60)).unwrap() {
        Some(Incoming::Deliver(_, message)) => message,
        other => panic!("no delivery: {other:?}"),
    }
}

/// Its connections stay open, nobody hears that it ended: the leader has to ask.
#[test]
fn what_a_frozen_node_had_handed_out_comes_to_clients_of_others() {
    let Some(cluster) = Broker::to_harm("what_a_frozen_node_had_handed_out_comes_to_clients_of_others") else { return };
    let (broker, queue) = (Broker::Given(cluster.uris()), unique("frozen"));
    broker.declare_durable(0, &queue);
    let mut leader = None;
    let led = eventually(Duration::from_secs(30), || {
        leader = cluster.queue_leader(&queue);
        leader.is_some()
    });
    assert!(led, "no node tells the leader of {queue}");
    let leader = leader.unwrap();
    let (frozen, other) = ((leader + 1) % cluster.len(), (leader + 2) % cluster.len());
    let mut holder = broker.connect(frozen);
    holder.consume(1, &queue, "holds", &[]).unwrap();
    let mut client = broker.connect(other);
    client.confirm_select(1).unwrap();
    client.publish(1, &queue, b"held").unwrap();
    assert!(matches!(message_event(&mut client, Duration::from_secs(60)).unwrap(), Some(Incoming::Confirm { nack: false, .. })));
    assert!(!delivered(&mut holder).redelivered);
    cluster.freeze(frozen);
    client.consume(1, &queue, "takes over", &[]).unwrap();
    let again = delivered(&mut client);
    assert!(again.redelivered && again.body == b"held");
    client.ack(1, again.tag, false).unwrap();
    cluster.thaw(frozen);
    cluster.await_ready(frozen);
    assert!(broker.connect(frozen).get(1, &queue).unwrap().is_none(), "it was acknowledged");
}
