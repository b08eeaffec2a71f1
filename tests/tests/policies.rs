//! What every policy key does to queues and exchanges: told to one node, seen through another.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::collections::BTreeSet;
use std::time::Duration;
use warren::machine::catalog::policy_keys;
use warren_tests::client::{Connection, Field, Incoming, QueueOptions, encode, encode::Route};
use warren_tests::{Broker, Cluster, Ctl, eventually, message_event, refusal, unique};

const PATIENCE: Duration = Duration::from_secs(10);

/// A queue, declared at the second node, policies told to the first, a client of the last.
struct Scene<'a> {
    cluster: &'a Cluster,
    broker: &'a Broker,
    queue: String,
    client: Connection,
    policies: Vec<(bool, String)>,
    /// What a user's policy says while what a test sets is an operator's.
    overruled: Option<&'static str>,
}

impl<'a> Scene<'a> {
    fn new(broker: &'a Broker, cluster: &'a Cluster) -> Scene<'a> {
        Scene::of_type(broker, cluster, "classic")
    }

    fn of_type(broker: &'a Broker, cluster: &'a Cluster, kind: &str) -> Scene<'a> {
        let queue = unique("ruled");
        let arguments = vec![("x-queue-type".to_owned(), Field::Text(kind.to_owned()))];
        broker.connect(1 % cluster.len()).declare(1, &queue, &QueueOptions { arguments, ..QueueOptions::durable() }).unwrap();
        let mut client = broker.connect(cluster.len() - 1);
        client.confirm_select(1).unwrap();
        Scene { cluster, broker, queue, client, policies: Vec::new(), overruled: None }
    }

    /// From now on what is set is an operator's, and a user's policy says this.
    fn overruling(mut self, overruled: Option<&'static str>) -> Scene<'a> {
        self.overruled = overruled;
        self
    }

    fn ctl(&self) -> Ctl<'a> {
        Ctl { cluster: self.cluster, at: 0 }
    }

    /// A policy for this queue alone; its name.
    fn policy(&mut self, operator: bool, definition: &str, more: &[&str]) -> String {
        let queue = self.queue.clone();
        match self.overruled {
            Some(overruled) => {
                self.set(&queue, false, overruled, more);
                self.set(&queue, true, definition, more)
            }
            None => self.set(&queue, operator, definition, more),
        }
    }

    fn set(&mut self, queue: &str, operator: bool, definition: &str, more: &[&str]) -> String {
        let name = unique("policy");
        let pattern = format!("^{queue}$");
        let command = if operator { "set_operator_policy" } else { "set_policy" };
        self.ctl().done(&[&[command, &name, &pattern, definition][..], more].concat());
        self.policies.push((operator, name.clone()));
        name
    }

    fn clear(&mut self, name: &str) {
        let at = self.policies.iter().position(|p| p.1 == name).unwrap();
        let (operator, name) = self.policies.remove(at);
        self.ctl().done(&[if operator { "clear_operator_policy" } else { "clear_policy" }, &name]);
    }

    /// Whether the broker took it.
    fn publish(&mut self, body: &str) -> bool {
        self.client.publish(1, &self.queue, body.as_bytes()).unwrap();
        match message_event(&mut self.client, PATIENCE).unwrap() {
            Some(Incoming::Confirm { nack, .. }) => !nack,
            other => panic!("{other:?}"),
        }
    }

    fn messages(&mut self) -> u32 {
        let queue = self.queue.clone();
        self.client.declare(1, &queue, &QueueOptions::look()).unwrap().messages
    }

    /// So many of those published remain.
    fn keeps(&mut self, published: u32) -> u32 {
        (0..published).for_each(|n| assert!(self.publish(&n.to_string())));
        self.messages()
    }

    fn purge(&mut self) {
        let mut out = Vec::new();
        encode::queue_purge(&mut out, 1, &self.queue);
        self.client.send(&out).unwrap();
        self.client.answer((50, 31)).unwrap();
    }

    /// Takes a message and gives it back, or throws it away. False: there is none, not in five seconds either.
    fn refuse(&mut self, requeue: bool) -> bool {
        let mut message = None;
        let there = eventually(Duration::from_secs(5), || {
            message = self.client.get(1, &self.queue).unwrap();
            message.is_some()
        });
        let Some((message, _)) = message.filter(|_| there) else { return false };
        let mut out = Vec::new();
        encode::nack(&mut out, 1, message.tag, false, requeue);
        self.client.send(&out).unwrap();
        true
    }

    /// The first message that comes to this queue.
    fn arrives(&self, queue: &str) -> String {
        let mut client = self.broker.connect(0);
        let mut body = None;
        let came = eventually(PATIENCE, || {
            body = client.get(1, queue).unwrap().map(|(message, _)| String::from_utf8(message.body).unwrap());
            body.is_some()
        });
        assert!(came, "nothing came to {queue}");
        body.unwrap()
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for (_, name) in self.policies.clone() {
                self.clear(&name);
            }
            // It may have expired.
            let _ = self.broker.connect(0).delete(1, &self.queue);
        }
    }
}

type Effect = fn(&mut Scene<'_>);

/// Each key's test.
const KEYS: [(&str, Effect); 17] = [
    ("alternate-exchange", alternate_exchange),
    ("cache-publisher-ranges", cache_publisher_ranges),
    ("cache-publishers", cache_publishers),
    ("consumer-timeout", consumer_timeout),
    ("dead-letter-exchange", dead_letter_exchange),
    ("dead-letter-routing-key", dead_letter_routing_key),
    ("delivery-limit", delivery_limit),
    ("expires", expires),
    ("max-age", max_age),
    ("max-length", max_length),
    ("max-length-bytes", max_length_bytes),
    ("message-ttl", message_ttl),
    ("overflow", overflow),
    ("queue-leader-locator", queue_leader_locator),
    ("queue-master-locator", queue_master_locator),
    ("stream-filter-size-bytes", stream_filter_size_bytes),
    ("stream-max-segment-size-bytes", stream_max_segment_size_bytes),
];

/// Those that operators may set, too, with what a user's policy says that they overrule.
const OF_OPERATORS: [(Effect, &str); 8] = [
    (cache_publisher_ranges, r#"{"cache-publisher-ranges":100}"#),
    (cache_publishers, r#"{"cache-publishers":100}"#),
    (delivery_limit, r#"{"delivery-limit":100}"#),
    (expires, r#"{"expires":3600000}"#),
    (max_length, r#"{"max-length":100}"#),
    (max_length_bytes, r#"{"max-length-bytes":100}"#),
    (message_ttl, r#"{"message-ttl":3600000}"#),
    (overflow, r#"{"max-length":100,"overflow":"drop-head"}"#),
];

/// Taken without effect, as the arguments of these names, by queues of these types.
const UNSEEN: [(&str, &str, &str); 12] = [
    ("dead-letter-strategy", "quorum", r#""at-least-once""#),
    ("ha-mode", "classic", r#""exactly""#),
    ("ha-params", "classic", "2"),
    ("ha-promote-on-failure", "classic", r#""always""#),
    ("ha-promote-on-shutdown", "classic", r#""always""#),
    ("ha-sync-mode", "classic", r#""automatic""#),
    ("initial-cluster-size", "stream", "3"),
    ("max-in-memory-bytes", "quorum", "1"),
    ("max-in-memory-length", "quorum", "1"),
    ("queue-mode", "classic", r#""lazy""#),
    ("queue-version", "classic", "2"),
    ("target-group-size", "quorum", "3"),
];

#[test]
fn every_key_takes_effect_on_the_other_nodes() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let covered: BTreeSet<&str> = KEYS.iter().map(|(key, _)| *key).chain(UNSEEN.iter().map(|(key, ..)| *key)).collect();
    assert_eq!(covered, policy_keys().collect(), "each key has its test");
    for (key, effect) in KEYS {
        println!("{key}");
        effect(&mut Scene::new(&broker, cluster));
    }
}

#[test]
fn what_operators_say_overrules_what_users_say_on_the_other_nodes() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    for (effect, overruled) in OF_OPERATORS {
        println!("{overruled}");
        effect(&mut Scene::new(&broker, cluster).overruling(Some(overruled)));
    }
}

#[test]
fn keys_without_effect_are_taken_and_shown_by_the_other_nodes() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    for (key, kind, value) in UNSEEN {
        let mut scene = Scene::of_type(&broker, cluster, kind);
        scene.policy(false, &format!(r#"{{"{key}":{value}}}"#), &[]);
        let listed =
            Ctl { cluster, at: cluster.len() - 1 }.done(&["--formatter", "json", "list_queues", "name", "effective_policy_definition"]);
        let rows: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == *scene.queue).unwrap();
        let wanted: serde_json::Value = serde_json::from_str(value).unwrap();
        assert_eq!(row["effective_policy_definition"][key], wanted, "{row}");
    }
}

/// Else what is meant for streams would make queues drop what waits in them, and the other way round.
#[test]
fn a_policy_with_a_key_for_other_queues_is_passed_over() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    for (kind, foreign) in [
        ("classic", r#""max-age":"7D""#),
        ("classic", r#""delivery-limit":1"#),
        ("quorum", r#""max-age":"7D""#),
        ("quorum", r#""queue-mode":"lazy""#),
        ("quorum", r#""ha-mode":"all""#),
    ] {
        let mut scene = Scene::of_type(&broker, cluster, kind);
        scene.policy(false, &format!(r#"{{{foreign},"max-length-bytes":1}}"#), &["--priority", "9"]);
        assert_eq!(scene.keeps(4), 4, "{kind}, {foreign}");
        scene.policy(false, r#"{"max-length":3}"#, &[]);
        scene.purge();
        assert_eq!(scene.keeps(4), 3, "{kind}, {foreign}: the next one counts");
    }
}

/// A queue of the scene's name and some more that takes no publishing id twice.
fn unique_ids(scene: &mut Scene<'_>) -> String {
    let queue = format!("{}-ids", scene.queue);
    let arguments = vec![("x-message-deduplication".to_owned(), Field::Bool(true))];
    scene.client.declare(1, &queue, &QueueOptions { arguments, ..QueueOptions::durable() }).unwrap();
    queue
}

/// How many of these messages the queue took.
fn takes(scene: &mut Scene<'_>, queue: &str, messages: &[(&str, i64)]) -> u32 {
    let ready = |scene: &mut Scene<'_>| scene.client.declare(1, queue, &QueueOptions::look()).unwrap().messages;
    let before = ready(scene);
    for (publisher, id) in messages {
        let headers =
            [("x-publisher-reference".to_owned(), Field::Text((*publisher).to_owned())), ("x-publishing-id".to_owned(), Field::Int(*id))];
        scene.client.publish_with(Route { channel: 1, exchange: "", key: queue, mandatory: true }, &headers, b"x").unwrap();
        let answer = message_event(&mut scene.client, PATIENCE).unwrap();
        assert!(matches!(answer, Some(Incoming::Confirm { nack: false, .. })), "{answer:?}");
    }
    ready(scene) - before
}

/// A policy for that queue.
fn rule(scene: &mut Scene<'_>, queue: &str, definition: &str) {
    if let Some(overruled) = scene.overruled {
        scene.set(queue, false, overruled, &[]);
    }
    scene.set(queue, scene.overruled.is_some(), definition, &[]);
}

fn cache_publisher_ranges(scene: &mut Scene<'_>) {
    let queue = unique_ids(scene);
    assert_eq!(takes(scene, &queue, &[("p", 1), ("p", 3), ("p", 5), ("p", 1)]), 3);
    rule(scene, &queue, r#"{"cache-publisher-ranges":2}"#);
    assert_eq!(takes(scene, &queue, &[("p", 5), ("p", 3), ("p", 1)]), 1, "the lowest is forgotten");
    scene.client.delete(1, &queue).unwrap();
}

fn cache_publishers(scene: &mut Scene<'_>) {
    let queue = unique_ids(scene);
    assert_eq!(takes(scene, &queue, &[("p", 1), ("q", 1), ("p", 1)]), 2);
    rule(scene, &queue, r#"{"cache-publishers":1}"#);
    assert_eq!(takes(scene, &queue, &[("q", 1), ("p", 1)]), 1, "the one that was silent is forgotten");
    scene.client.delete(1, &queue).unwrap();
}

fn max_length(scene: &mut Scene<'_>) {
    assert_eq!(scene.keeps(4), 4);
    scene.purge();
    scene.policy(false, r#"{"max-length":2}"#, &[]);
    assert_eq!(scene.keeps(5), 2);
    let (oldest, left) = scene.client.get(1, &scene.queue).unwrap().unwrap();
    assert_eq!((oldest.body.as_slice(), left), (&b"3"[..], 1), "the newest stay");
}

fn max_length_bytes(scene: &mut Scene<'_>) {
    scene.policy(false, r#"{"max-length-bytes":2}"#, &[]);
    assert_eq!(scene.keeps(5), 2, "of one byte each");
}

/// What a stream keeps goes in segments, of 500 MB unless told otherwise.
fn max_age(scene: &mut Scene<'_>) {
    let mut scene = Scene::of_type(scene.broker, scene.cluster, "stream");
    scene.policy(false, r#"{"max-age":"1s","stream-max-segment-size-bytes":100}"#, &[]);
    scene.keeps(20);
    let aged = eventually(PATIENCE, || {
        std::thread::sleep(Duration::from_millis(1500));
        scene.publish("another") && scene.messages() < 10
    });
    assert!(aged, "they stay");
}

fn stream_max_segment_size_bytes(scene: &mut Scene<'_>) {
    let mut scene = Scene::of_type(scene.broker, scene.cluster, "stream");
    scene.policy(false, r#"{"max-length-bytes":300}"#, &[]);
    assert_eq!(scene.keeps(30), 30, "one segment holds them");
    scene.policy(false, r#"{"max-length-bytes":300,"stream-max-segment-size-bytes":100}"#, &["--priority", "1"]);
    let gone = eventually(PATIENCE, || scene.publish("another") && scene.messages() < 20);
    assert!(gone, "they stay");
}

/// Filter values of a chunk: enough to fill the smallest filter.
const VALUES: usize = 300;
const PROBES: usize = 20;

/// How many of some values that no message has a consumer cannot rule out: it gets the chunk all the same.
fn mistaken(scene: &mut Scene<'_>) -> usize {
    let (queue, last) = (scene.queue.clone(), scene.cluster.len() - 1);
    let mut client = scene.broker.connect(last);
    let transact = |client: &mut Connection, method: u16| {
        let mut out = Vec::new();
        encode::bare(&mut out, 1, (90, method));
        client.send(&out).unwrap();
        client.answer((90, method + 1)).unwrap();
    };
    // One transaction, one chunk.
    transact(&mut client, 10);
    for n in 0..VALUES {
        let headers = [("x-stream-filter-value".to_owned(), Field::Text(format!("value {n}")))];
        client.publish_with(Route { channel: 1, exchange: "", key: &queue, mandatory: false }, &headers, b"filtered").unwrap();
    }
    transact(&mut client, 20);
    assert!(scene.publish("last, without a value"));
    let is_mistaken = |n: &usize| {
        let mut reader = scene.broker.connect(last);
        reader.qos(1, 1000).unwrap();
        let arguments = [
            ("x-stream-offset".to_owned(), Field::Text("first".to_owned())),
            ("x-stream-filter".to_owned(), Field::Text(format!("probe {n}"))),
            ("x-stream-match-unfiltered".to_owned(), Field::Bool(true)),
        ];
        reader.consume(1, &queue, "reader", &arguments).unwrap();
        match message_event(&mut reader, PATIENCE).unwrap() {
            Some(Incoming::Deliver(_, message)) => message.body == b"filtered",
            other => panic!("{other:?}"),
        }
    };
    (0..PROBES).filter(is_mistaken).count()
}

/// The larger the filter over a chunk, the less is sent for nothing.
fn stream_filter_size_bytes(scene: &mut Scene<'_>) {
    let mut small = Scene::of_type(scene.broker, scene.cluster, "stream");
    let of_small = mistaken(&mut small);
    let mut large = Scene::of_type(scene.broker, scene.cluster, "stream");
    large.policy(false, r#"{"stream-filter-size-bytes":255}"#, &[]);
    let of_large = mistaken(&mut large);
    assert!(of_small > PROBES * 3 / 4 && of_large < PROBES / 4, "{of_small} and {of_large} of {PROBES}");
}

fn overflow(scene: &mut Scene<'_>) {
    scene.policy(false, r#"{"max-length":1,"overflow":"reject-publish"}"#, &[]);
    assert!(scene.publish("first"));
    assert!(!scene.publish("second"), "refused, not dropped");
    assert_eq!(scene.messages(), 1);
}

fn message_ttl(scene: &mut Scene<'_>) {
    scene.policy(false, r#"{"message-ttl":100}"#, &[]);
    scene.keeps(3);
    assert!(eventually(PATIENCE, || scene.messages() == 0), "they stay");
}

fn expires(scene: &mut Scene<'_>) {
    scene.policy(false, r#"{"expires":300}"#, &[]);
    // Not looked at by name: a passive declare is a use of the queue.
    let name = format!("{}\n", scene.queue);
    assert!(eventually(PATIENCE, || !scene.ctl().done(&["-q", "list_queues", "name"]).contains(&name)), "it stays");
    let (code, _) = refusal(scene.client.declare(1, &scene.queue, &QueueOptions::look()));
    assert_eq!(code, 404);
}

fn dead_letter_exchange(scene: &mut Scene<'_>) {
    let (exchange, target) = (unique("letters"), unique("dead"));
    let mut client = scene.broker.connect(0);
    client.declare_exchange(1, &exchange, "direct").unwrap();
    client.declare(1, &target, &QueueOptions::durable()).unwrap();
    client.bind(1, &target, &exchange, &scene.queue).unwrap();
    scene.policy(false, &format!(r#"{{"dead-letter-exchange":"{exchange}"}}"#), &[]);
    assert!(scene.publish("rejected") && scene.refuse(false));
    assert_eq!(scene.arrives(&target), "rejected");
    client.delete(1, &target).unwrap();
    client.delete_exchange(1, &exchange).unwrap();
}

fn dead_letter_routing_key(scene: &mut Scene<'_>) {
    let target = unique("dead");
    let mut client = scene.broker.connect(0);
    client.declare(1, &target, &QueueOptions::durable()).unwrap();
    scene.policy(false, &format!(r#"{{"dead-letter-exchange":"","dead-letter-routing-key":"{target}"}}"#), &[]);
    assert!(scene.publish("rejected") && scene.refuse(false));
    assert_eq!(scene.arrives(&target), "rejected");
    client.delete(1, &target).unwrap();
}

fn delivery_limit(scene: &mut Scene<'_>) {
    let mut quorum = Scene::of_type(scene.broker, scene.cluster, "quorum").overruling(scene.overruled);
    let scene = &mut quorum;
    let failures = |scene: &mut Scene<'_>| {
        assert!(scene.publish("fails"));
        (0..4).take_while(|_| scene.refuse(true)).count()
    };
    assert_eq!(failures(scene), 4, "its own limit is 20");
    scene.purge();
    scene.policy(false, r#"{"delivery-limit":1}"#, &[]);
    assert_eq!(failures(scene), 2, "one failure is allowed");
}

fn queue_leader_locator(scene: &mut Scene<'_>) {
    places_locally(scene, "queue-leader-locator");
}

fn queue_master_locator(scene: &mut Scene<'_>) {
    places_locally(scene, "queue-master-locator");
}

/// Four queues made through one node are all led there; else they would be spread over all shards.
fn places_locally(scene: &Scene<'_>, key: &str) {
    let (policy, prefix) = (unique("policy"), unique("placed"));
    scene.ctl().done(&["set_policy", &policy, &format!("^{prefix}-"), &format!(r#"{{"{key}":"client-local"}}"#)]);
    let all_local = || {
        let before = scene.cluster.led_data_shards();
        let at = before.iter().rposition(|led| (1..3).contains(&led.len()))?;
        let mut client = scene.broker.connect(at);
        let queues: Vec<String> = (0..4).map(|n| format!("{prefix}-{n}")).collect();
        for queue in &queues {
            client.declare(1, queue, &QueueOptions::durable()).unwrap();
        }
        let leaders: Vec<Option<usize>> = queues.iter().map(|queue| scene.cluster.queue_leader(queue)).collect();
        for queue in &queues {
            client.delete(1, queue).unwrap();
        }
        // Should leaders have changed meanwhile, it says nothing.
        let stayed = before == scene.cluster.led_data_shards() && leaders.iter().all(Option::is_some);
        stayed.then(|| leaders.iter().all(|leader| *leader == Some(at)))
    };
    let mut seen = None;
    assert!(eventually(PATIENCE * 3, || (seen = all_local(), seen.is_some()).1), "leaders do not stay");
    assert_eq!(seen, Some(true), "{key}");
    scene.ctl().done(&["clear_policy", &policy]);
}

fn consumer_timeout(scene: &mut Scene<'_>) {
    scene.policy(false, r#"{"consumer-timeout":200}"#, &[]);
    assert!(scene.publish("held"));
    let mut consumer = scene.broker.connect(scene.cluster.len() - 1);
    consumer.consume(1, &scene.queue, "slow", &[]).unwrap();
    assert!(matches!(message_event(&mut consumer, PATIENCE).unwrap(), Some(Incoming::Deliver(..))));
    match message_event(&mut consumer, PATIENCE).unwrap() {
        Some(Incoming::ChannelClose { code: 406, text, .. }) => assert!(text.contains("Timeout value used: 200 ms"), "{text}"),
        other => panic!("{other:?}"),
    }
}

fn alternate_exchange(scene: &mut Scene<'_>) {
    let exchange = unique("source");
    scene.broker.connect(0).declare_exchange(1, &exchange, "direct").unwrap();
    scene.broker.connect(0).bind(1, &scene.queue, "amq.fanout", "").unwrap();
    let routed = |scene: &mut Scene<'_>| {
        scene.client.publish_to(Route { channel: 1, exchange: &exchange, key: "nowhere", mandatory: true }, b"x").unwrap();
        let mut returned = false;
        loop {
            match message_event(&mut scene.client, PATIENCE).unwrap() {
                Some(Incoming::Returned { .. }) => returned = true,
                Some(Incoming::Confirm { nack: false, .. }) => return !returned,
                other => panic!("{other:?}"),
            }
        }
    };
    assert!(!routed(scene));
    let name = unique("policy");
    scene.ctl().done(&["set_policy", &name, &format!("^{exchange}$"), r#"{"alternate-exchange":"amq.fanout"}"#]);
    assert!(routed(scene));
    assert_eq!(scene.messages(), 1);
    scene.ctl().done(&["clear_policy", &name]);
    assert!(!routed(scene));
    scene.broker.connect(0).delete_exchange(1, &exchange).unwrap();
}

#[test]
fn the_lower_of_two_limits_counts_and_each_change_holds_at_once_on_every_node() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let mut scene = Scene::new(&broker, cluster);
    let user = scene.policy(false, r#"{"max-length":3}"#, &[]);
    assert_eq!(scene.keeps(5), 3);
    let operator = scene.policy(true, r#"{"max-length":2}"#, &[]);
    let listed = Ctl { cluster, at: cluster.len() - 1 };
    let columns = ["-q", "list_queues", "name", "policy", "operator_policy", "effective_policy_definition"];
    let row = format!("{}\t{user}\t{operator}\t[{{\"max-length\",2}}]\n", scene.queue);
    let rows = listed.done(&columns);
    assert!(rows.contains(&row), "{row} in {rows}");
    assert_eq!(scene.keeps(5), 2, "the operator's is lower");
    scene.clear(&user);
    let row = format!("{}\t\t{operator}\t[{{\"max-length\",2}}]\n", scene.queue);
    assert!(listed.done(&columns).contains(&row));
    scene.policy(false, r#"{"max-length":1}"#, &[]);
    assert_eq!(scene.keeps(5), 1, "the user's is lower");
    scene.clear(&operator);
    let user = scene.policies[0].1.clone();
    scene.clear(&user);
    assert_eq!(scene.keeps(4), 5, "no limit any more");
}

#[test]
fn of_several_policies_the_highest_counts_alone_and_only_for_what_it_applies_to() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let mut scene = Scene::of_type(&broker, cluster, "quorum");
    let mut after = |more: &[&str], limit: u32, kept: u32| {
        let name = scene.policy(false, &format!(r#"{{"max-length":{limit}}}"#), more);
        assert_eq!(scene.keeps(6), kept, "{more:?}");
        scene.purge();
        name
    };
    after(&["--priority", "1"], 5, 5);
    let high = after(&["--priority", "3", "--apply-to", "queues"], 4, 4);
    after(&["--priority", "2"], 3, 4);
    after(&["--priority", "9", "--apply-to", "exchanges"], 2, 4);
    after(&["--priority", "9", "--apply-to", "classic_queues"], 2, 4);
    let quorum = after(&["--priority", "9", "--apply-to", "quorum_queues"], 2, 2);
    scene.clear(&quorum);
    assert_eq!(scene.keeps(6), 4);
    scene.clear(&high);
    assert_eq!(scene.keeps(6), 3, "the next one, with all of its keys");
}
