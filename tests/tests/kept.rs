//! Exchanges that keep messages, on real clusters: delayed ones across nodes and over kills, histories that new queues get. And messages that
//! are published twice because a leader died.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};
use warren_tests::client::encode::Route;
use warren_tests::client::{Connection, Field, Incoming, QueueOptions};
use warren_tests::{Broker, Cluster, eventually, message_event, unique};

const PATIENCE: Duration = Duration::from_secs(20);
/// Seconds by which no delayed message is later than its time or its leader's beginning, on a machine under load.
const LATE_AT_MOST: f64 = 10.0;
/// The same for the client, who counts from the kill: a machine under load takes its time to elect a leader, too.
const COMES_WITHIN: Duration = Duration::from_secs(40);

fn to(exchange: &str) -> Route<'_> {
    Route { channel: 1, exchange, key: "k", mandatory: false }
}

/// Waits until these publishes are confirmed, each of them: shards answer in any order. How many came back before.
fn confirmed(client: &mut Connection, publishes: RangeInclusive<u64>) -> usize {
    let (mut open, mut returned): (BTreeSet<u64>, _) = (publishes.collect(), 0);
    while !open.is_empty() {
        match message_event(client, PATIENCE).unwrap() {
            Some(Incoming::Confirm { nack: false, tag, multiple: true, .. }) => open = open.split_off(&(tag + 1)),
            Some(Incoming::Confirm { nack: false, tag, .. }) => assert!(open.remove(&tag), "{tag} is confirmed once more"),
            Some(Incoming::Returned { .. }) => returned += 1,
            other => panic!("no confirm but {other:?}"),
        }
    }
    returned
}

fn delayed_exchange(client: &mut Connection, kind: &str) -> String {
    let exchange = unique("delayed");
    let arguments = [("x-delayed-type".to_owned(), Field::Text(kind.into()))];
    client.declare_exchange_with(1, &exchange, "x-delayed-message", &arguments).unwrap();
    exchange
}

/// When each message is due, by its body.
type Due = BTreeMap<String, Instant>;

/// Publishes, confirmed, messages with delays from `first_ms` on, to these exchanges in turn.
fn publish_delayed(client: &mut Connection, exchanges: &[String], first_ms: u64, count: u64) -> Due {
    client.confirm_select(1).unwrap();
    let mut due = Due::new();
    for n in 0..count {
        let (delay, body) = (first_ms + n * 37 % 1500, format!("{first_ms}-{n}"));
        let headers = [("x-delay".to_owned(), Field::Int(delay as i64))];
        due.insert(body.clone(), Instant::now() + Duration::from_millis(delay));
        client.publish_with(to(&exchanges[n as usize % exchanges.len()]), &headers, body.as_bytes()).unwrap();
    }
    confirmed(client, 1..=count);
    due
}

/// Takes as many messages as are due: none early, all of them, each once, with the header that says that they waited. How late the median
/// and the latest were, counted from their times or from `since`, when something was killed.
fn take_due(client: &mut Connection, mut due: Due, since: Instant) -> String {
    let mut late = Vec::new();
    while !due.is_empty() {
        let Some(Incoming::Deliver(_, message)) = message_event(client, PATIENCE).unwrap() else { panic!("missing: {due:?}") };
        let now = Instant::now();
        let body = String::from_utf8(message.body).unwrap();
        assert!(message.properties.windows(9).any(|w| w.starts_with(b"x-delayI") && w[8] == 0xff), "{body}: x-delay is not negative");
        client.ack(1, message.tag, false).unwrap();
        let at = due.remove(&body).unwrap_or_else(|| panic!("{body} came twice"));
        assert!(now >= at, "{body} came {:?} early", at - now);
        late.push(now.saturating_duration_since(at.max(since)));
        assert!(late.last() < Some(&COMES_WITHIN), "{body} came {:?} late", late.last());
    }
    late.sort_unstable();
    format!("{:?} late in the middle, {:?} at most", late[late.len() / 2], late[late.len() - 1])
}

#[test]
fn delayed_messages_come_to_a_consumer_on_another_node_and_never_early() {
    let broker = Broker::shared();
    let (mut publisher, mut consumer) = (broker.connect(0), broker.connect(1 % broker.nodes()));
    let queue = unique("late");
    broker.declare_durable(0, &queue);
    let exchanges: Vec<String> = (0..3).map(|_| delayed_exchange(&mut publisher, "direct")).collect();
    exchanges.iter().for_each(|x| publisher.bind(1, &queue, x, "k").unwrap());
    consumer.consume(1, &queue, "c", &[]).unwrap();
    let due = publish_delayed(&mut publisher, &exchanges, 200, 90);
    println!("{}", take_due(&mut consumer, due, Instant::now()));
    publisher.publish_to(to(&exchanges[0]), b"now").unwrap();
    let Some(Incoming::Deliver(_, message)) = message_event(&mut consumer, PATIENCE).unwrap() else { panic!("nothing") };
    assert_eq!(message.body, b"now", "without the header a message goes at once");
    exchanges.iter().for_each(|x| publisher.delete_exchange(1, x).unwrap());
    publisher.delete(1, &queue).unwrap();
}

#[test]
fn the_delayed_messages_of_a_deleted_exchange_do_not_come() {
    let broker = Broker::shared();
    let mut client = broker.connect(0);
    let queue = unique("late");
    broker.declare_durable(0, &queue);
    let exchanges = [delayed_exchange(&mut client, "fanout")];
    client.bind(1, &queue, &exchanges[0], "").unwrap();
    publish_delayed(&mut client, &exchanges, 300, 5);
    client.delete_exchange(1, &exchanges[0]).unwrap();
    // One of the same name is another one.
    let arguments = [("x-delayed-type".to_owned(), Field::Text("fanout".into()))];
    client.declare_exchange_with(1, &exchanges[0], "x-delayed-message", &arguments).unwrap();
    client.bind(1, &queue, &exchanges[0], "").unwrap();
    let headers = [("x-delay".to_owned(), Field::Int(700))];
    client.publish_with(to(&exchanges[0]), &headers, b"mine").unwrap();
    client.consume(1, &queue, "c", &[]).unwrap();
    loop {
        match message_event(&mut client, PATIENCE).unwrap() {
            Some(Incoming::Deliver(_, message)) => {
                assert_eq!(message.body, b"mine");
                break;
            }
            Some(Incoming::Confirm { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    client.delete_exchange(1, &exchanges[0]).unwrap();
    client.delete(1, &queue).unwrap();
}

#[test]
fn delayed_messages_survive_the_kill_of_leaders_and_of_all_nodes() {
    let Some(cluster) = Broker::to_harm("delayed_messages_survive_the_kill_of_leaders_and_of_all_nodes") else { return };
    let broker = Broker::Given(cluster.uris());
    let mut publisher = broker.connect(0);
    let queue = unique("late");
    broker.declare_durable(0, &queue);
    // Each has its store in another shard.
    let exchanges: Vec<String> = (0..3).map(|_| delayed_exchange(&mut publisher, "fanout")).collect();
    exchanges.iter().for_each(|x| publisher.bind(1, &queue, x, "").unwrap());
    assert!(eventually(PATIENCE, || cluster.led_data_shards().iter().map(Vec::len).sum::<usize>() == 3));
    let led = cluster.led_data_shards();
    let victim = (1..cluster.len()).max_by_key(|at| led[*at].len()).unwrap();
    assert!(!led[victim].is_empty(), "the victim leads: {led:?}");
    let mut consumer = broker.connect(0);
    consumer.consume(1, &queue, "c", &[]).unwrap();
    // Some of them are due around the kill, some on their way.
    let due = publish_delayed(&mut publisher, &exchanges, 400, 300);
    std::thread::sleep(Duration::from_millis(700));
    cluster.kill(victim);
    println!("kill of a leader: {}", take_due(&mut consumer, due, Instant::now()));
    let after_one = lateness(&cluster, cluster.len() - 1);
    assert!(after_one.seen > 0.0, "what leaves is timed by its leader");
    assert!(after_one.max < LATE_AT_MOST, "{after_one:?}");
    cluster.restart(victim);
    let mut publisher = broker.connect(victim);
    let due = publish_delayed(&mut publisher, &exchanges, 2500, 60);
    cluster.kill_all();
    cluster.start_all();
    let mut consumer = broker.connect(victim);
    consumer.consume(1, &queue, "c", &[]).unwrap();
    println!("kill of all: {}", take_due(&mut consumer, due, Instant::now()));
    let after_all = lateness(&cluster, cluster.len());
    assert!(after_all.seen > 0.0, "what leaves is timed by its leader");
    assert!(after_all.max < LATE_AT_MOST, "{after_all:?}");
}

/// How late delayed messages were by the clocks of their leaders, since the nodes' last starts.
#[derive(Debug)]
struct Lateness {
    /// Of how many it is known.
    seen: f64,
    /// Those of them that were more than 100 ms late.
    late: f64,
    /// The latest, seconds.
    max: f64,
}

/// As all of so many nodes tell it that live.
fn lateness(cluster: &Cluster, living: usize) -> Lateness {
    let of = |name: &str| {
        let mut told = Vec::<f64>::new();
        let mut tell = || {
            told = (0..cluster.len()).filter_map(|at| cluster.metrics(at)?.sum(name)).collect();
            told.len() == living
        };
        assert!(eventually(PATIENCE, &mut tell), "not all nodes tell of {name}");
        told
    };
    let told = Lateness {
        seen: of("warren_delayed_total").iter().sum(),
        late: of("warren_delayed_late_total").iter().sum(),
        max: of("warren_delayed_lateness_max_seconds").into_iter().fold(0.0, f64::max),
    };
    println!("by the leaders' clocks: {told:?}");
    told
}

/// cargo test --release -p warren-tests --test kept -- --ignored --nocapture
#[test]
#[ignore = "a measurement: on a machine that does nothing else nothing is more than 100 ms late"]
fn how_late_delayed_messages_are_by_the_clocks_of_their_leaders() {
    let Some(cluster) = Broker::to_harm("how_late_delayed_messages_are") else { return };
    let broker = Broker::Given(cluster.uris());
    let (mut publisher, queue) = (broker.connect(0), unique("late"));
    broker.declare_durable(0, &queue);
    let exchanges: Vec<String> = (0..3).map(|_| delayed_exchange(&mut publisher, "fanout")).collect();
    exchanges.iter().for_each(|x| publisher.bind(1, &queue, x, "").unwrap());
    let mut consumer = broker.connect(0);
    consumer.consume(1, &queue, "c", &[]).unwrap();
    let due = publish_delayed(&mut publisher, &exchanges, 200, 3000);
    take_due(&mut consumer, due, Instant::now());
    let quiet = lateness(&cluster, cluster.len());
    assert!(quiet.seen > 0.0 && quiet.late == 0.0, "quiet: {quiet:?}");
    for round in 0..5 {
        let led = cluster.led_data_shards();
        let victim = (1..cluster.len()).max_by_key(|at| led[*at].len()).unwrap();
        let mut publisher = broker.connect(0);
        let due = publish_delayed(&mut publisher, &exchanges, 400, 300);
        std::thread::sleep(Duration::from_millis(700));
        cluster.kill(victim);
        take_due(&mut consumer, due, Instant::now());
        println!("after {} kills of leaders:", round + 1);
        let killed = lateness(&cluster, cluster.len() - 1);
        assert!(killed.seen > 0.0 && killed.late == 0.0, "after {} kills of leaders: {killed:?}", round + 1);
        cluster.restart(victim);
    }
}

fn got(client: &mut Connection, queue: &str, count: u32) -> Vec<String> {
    assert!(eventually(PATIENCE, || client.declare(1, queue, &QueueOptions::look()).unwrap().messages >= count), "{queue} does not fill");
    let mut bodies = Vec::new();
    while let Some((message, _)) = client.get(1, queue).unwrap() {
        bodies.push(String::from_utf8(message.body).unwrap());
    }
    bodies
}

fn history(client: &mut Connection, length: i64) -> String {
    let exchange = unique("history");
    let arguments = [("x-recent-history-length".to_owned(), Field::Int(length))];
    client.declare_exchange_with(1, &exchange, "x-recent-history", &arguments).unwrap();
    exchange
}

fn remember(client: &mut Connection, exchange: &str, bodies: std::ops::Range<u64>) {
    client.confirm_select(1).unwrap();
    bodies.clone().for_each(|n| client.publish_to(to(exchange), n.to_string().as_bytes()).unwrap());
    confirmed(client, 1..=bodies.end - bodies.start);
}

#[test]
fn a_queue_bound_on_another_node_gets_the_last_messages() {
    let broker = Broker::shared();
    let (mut publisher, mut binder) = (broker.connect(0), broker.connect(1 % broker.nodes()));
    let exchange = history(&mut publisher, 3);
    remember(&mut publisher, &exchange, 0..5);
    let unkept = [("x-recent-history-no-store".to_owned(), Field::Bool(true))];
    publisher.publish_with(to(&exchange), &unkept, b"unkept").unwrap();
    publisher.publish_to(Route { mandatory: true, ..to(&exchange) }, b"5").unwrap();
    assert_eq!(confirmed(&mut publisher, 6..=7), 1, "no queue is bound");
    let (durable, exclusive) = (unique("durable"), unique("exclusive"));
    binder.declare(1, &durable, &QueueOptions::durable()).unwrap();
    binder.declare(1, &exclusive, &QueueOptions { exclusive: true, ..QueueOptions::default() }).unwrap();
    for queue in [&durable, &exclusive] {
        binder.bind(1, queue, &exchange, "").unwrap();
        assert_eq!(got(&mut binder, queue, 3), ["3", "4", "5"]);
    }
    publisher.publish_to(Route { mandatory: true, ..to(&exchange) }, b"6").unwrap();
    assert_eq!(confirmed(&mut publisher, 8..=8), 0);
    for queue in [&durable, &exclusive] {
        assert_eq!(got(&mut binder, queue, 1), ["6"]);
    }
    // A binding that is there is no new one.
    binder.bind(1, &durable, &exchange, "").unwrap();
    binder.bind(1, &durable, &exchange, "another").unwrap();
    assert_eq!(got(&mut binder, &durable, 3), ["4", "5", "6"], "one replay");
    publisher.delete_exchange(1, &exchange).unwrap();
    binder.delete(1, &durable).unwrap();
}

#[test]
fn a_history_survives_the_kill_of_each_node_and_of_all() {
    let Some(cluster) = Broker::to_harm("a_history_survives_the_kill_of_each_node_and_of_all") else { return };
    let broker = Broker::Given(cluster.uris());
    let mut client = broker.connect(0);
    let exchanges: Vec<String> = (0..3).map(|_| history(&mut client, 4)).collect();
    exchanges.iter().for_each(|x| remember(&mut broker.connect(0), x, 0..9));
    let all_get = |at: usize| {
        let mut client = broker.connect(at);
        for exchange in &exchanges {
            let queue = unique("new");
            client.declare(1, &queue, &QueueOptions::durable()).unwrap();
            client.bind(1, &queue, exchange, "").unwrap();
            assert_eq!(got(&mut client, &queue, 4), ["5", "6", "7", "8"]);
        }
    };
    for victim in 0..cluster.len() {
        cluster.kill(victim);
        all_get((victim + 1) % cluster.len());
        cluster.restart(victim);
    }
    cluster.kill_all();
    cluster.start_all();
    all_get(1);
}

/// Publishes these numbers with what says what they are; some twice in a row.
fn publish_marked(client: &mut Connection, exchange: &str, key: &str, numbers: std::ops::Range<i64>, publisher: bool) -> u64 {
    let mut publishes = 0;
    for n in numbers {
        let name = ("x-publisher-reference".to_owned(), Field::Text("p".into()));
        let headers = if publisher {
            vec![name, ("x-publishing-id".to_owned(), Field::Int(n))]
        } else {
            vec![("x-deduplication-header".to_owned(), Field::Text(n.to_string()))]
        };
        for _ in 0..1 + n % 2 {
            client.publish_with(Route { channel: 1, exchange, key, mandatory: false }, &headers, n.to_string().as_bytes()).unwrap();
            publishes += 1;
        }
    }
    publishes
}

fn unique_queue(client: &mut Connection) -> String {
    let queue = unique("unique");
    let arguments = vec![("x-message-deduplication".to_owned(), Field::Bool(true)), ("x-cache-size".to_owned(), Field::Int(5000))];
    client.declare(1, &queue, &QueueOptions { arguments, ..QueueOptions::durable() }).unwrap();
    queue
}

#[test]
fn what_is_published_again_after_the_kill_of_a_leader_is_confirmed_and_stored_once() {
    let Some(cluster) = Broker::to_harm("what_is_published_again_after_the_kill_of_a_leader_is_confirmed_and_stored_once") else { return };
    let broker = Broker::Given(cluster.uris());
    for publisher in [false, true] {
        let queue = unique_queue(&mut broker.connect(0));
        let mut leader = None;
        assert!(eventually(PATIENCE, || (leader = cluster.queue_leader(&queue), leader.is_some()).1));
        let leader = leader.unwrap();
        // The publisher's own node dies with the leader: it knows of no confirm behind the first, and says all of it again.
        let mut client = broker.connect(leader);
        client.confirm_select(1).unwrap();
        publish_marked(&mut client, "", &queue, 0..400, publisher);
        assert!(matches!(message_event(&mut client, PATIENCE).unwrap(), Some(Incoming::Confirm { nack: false, .. })));
        cluster.kill(leader);
        drop(client);
        let mut client = broker.connect((leader + 1) % cluster.len());
        client.confirm_select(1).unwrap();
        let publishes = publish_marked(&mut client, "", &queue, 0..600, publisher);
        confirmed(&mut client, 1..=publishes);
        cluster.restart(leader);
        let mut bodies: Vec<i64> = got(&mut client, &queue, 600).iter().map(|body| body.parse().unwrap()).collect();
        bodies.sort_unstable();
        assert_eq!(bodies, (0..600).collect::<Vec<_>>());
        client.delete(1, &queue).unwrap();
    }
}

#[test]
fn an_exchange_lets_each_value_through_once_from_all_nodes() {
    let broker = Broker::shared();
    let mut client = broker.connect(0);
    let (exchange, queue) = (unique("once"), unique("once"));
    client.declare_exchange_with(1, &exchange, "x-message-deduplication", &[("x-cache-size".to_owned(), Field::Int(1000))]).unwrap();
    broker.declare_durable(0, &queue);
    client.bind(1, &queue, &exchange, "").unwrap();
    for at in 0..broker.nodes() {
        let mut client = broker.connect(at);
        client.confirm_select(1).unwrap();
        let publishes = publish_marked(&mut client, &exchange, "k", 0..100, false);
        confirmed(&mut client, 1..=publishes);
    }
    client.publish_to(to(&exchange), b"100").unwrap();
    let mut bodies: Vec<i64> = got(&mut client, &queue, 101).iter().map(|body| body.parse().unwrap()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, (0..101).collect::<Vec<_>>());
    client.delete_exchange(1, &exchange).unwrap();
    client.delete(1, &queue).unwrap();
}
