//! Exchange kinds against naive models.

use super::*;
use crate::model::catalog::Value;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A message of the test's making.
#[derive(Default)]
struct Message {
    headers: Table,
    message_id: Option<Vec<u8>>,
    number: u64,
}

impl Subject for Message {
    fn headers(&self) -> &Table {
        &self.headers
    }
    fn property(&self, property: HashProperty) -> Option<&[u8]> {
        match property {
            HashProperty::MessageId => self.message_id.as_deref(),
            HashProperty::CorrelationId | HashProperty::Timestamp => None,
        }
    }
    fn properties(&self) -> &[u8] {
        &[0, 0]
    }
    fn random(&self) -> u64 {
        self.number
    }
}

fn routed<T: Ord + Clone>(table: &RoutingTable<T>, keys: &[&str], message: &Message) -> Vec<T> {
    let keys: Vec<&[u8]> = keys.iter().map(|k| k.as_bytes()).collect();
    let mut out = Vec::new();
    table.route(&keys, message, &|_| true, &mut |t| out.push(t.clone()));
    out
}

fn visited<T: Ord + Clone>(table: &RoutingTable<T>, key: &str, headers: &Table) -> BTreeSet<T> {
    routed(table, &[key], &Message { headers: headers.clone(), ..Message::default() }).into_iter().collect()
}

fn table<T: Ord + Clone>(kind: ExchangeKind) -> RoutingTable<T> {
    RoutingTable::new(kind, &Table::new())
}

fn topic(patterns: &[&'static str], key: &str) -> Vec<&'static str> {
    let mut table = table(ExchangeKind::Topic);
    for (id, pattern) in patterns.iter().enumerate() {
        table.insert(id as u64, pattern.as_bytes(), &Table::new(), *pattern);
    }
    visited(&table, key, &Table::new()).into_iter().collect()
}

#[test]
fn topic_wildcards_match_as_in_the_spec() {
    let patterns = ["*.orange.*", "*.*.rabbit", "lazy.#", "#", "", "*"];
    assert_eq!(topic(&patterns, "quick.orange.rabbit"), ["#", "*.*.rabbit", "*.orange.*"]);
    assert_eq!(topic(&patterns, "lazy"), ["#", "*", "lazy.#"]);
    assert_eq!(topic(&patterns, ""), ["", "#"]);
    assert_eq!(topic(&["a.*", "a.#", "a"], "a."), ["a.#", "a.*"]);
    assert_eq!(topic(&["#.#.#.a", "#.a.#"], "a"), ["#.#.#.a", "#.a.#"]);
}

#[test]
fn many_hashes_cost_no_exponential_time() {
    let pattern = ["#"; 40].join(".") + ".z";
    let key = ["a"; 120].join(".");
    let mut table = table(ExchangeKind::Topic);
    table.insert(1, pattern.as_bytes(), &Table::new(), 1);
    assert!(visited(&table, &key, &Table::new()).is_empty());
    assert_eq!(visited(&table, &(key + ".z"), &Table::new()).len(), 1);
}

#[test]
fn headers_all_any_presence_and_x_arguments() {
    let text = |s: &str| Value::Text(s.into());
    let arguments = |mode: &str| {
        let mut t = Table::from([("a".into(), Value::Int(1)), ("b".into(), Value::Void), ("x-c".into(), Value::Int(3))]);
        t.insert("x-match".into(), text(mode));
        t
    };
    let mut table = table(ExchangeKind::Headers);
    for (id, mode) in ["all", "any", "all-with-x", "any-with-x"].into_iter().enumerate() {
        assert_eq!(check_arguments(&arguments(mode)), Ok(()));
        table.insert(id as u64, b"", &arguments(mode), mode);
    }
    let hit = |fields: &[(&str, Value)]| {
        let headers = fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        visited(&table, "", &headers).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(hit(&[("a", Value::Int(1)), ("b", text("whatever"))]), ["all", "any", "any-with-x"]);
    assert_eq!(hit(&[("a", text("1"))]), [""; 0], "types differ");
    assert_eq!(hit(&[("x-c", Value::Int(3))]), ["any-with-x"]);
    assert_eq!(hit(&[("a", Value::Int(1)), ("b", Value::Void), ("x-c", Value::Int(3))]), ["all", "all-with-x", "any", "any-with-x"]);
    assert!(check_arguments(&arguments("some")).is_err());
}

#[test]
fn headers_with_nothing_to_compare() {
    let arguments = |mode: &str| Table::from([("x-match".to_owned(), Value::Text(mode.into()))]);
    let mut table = table(ExchangeKind::Headers);
    table.insert(1, b"", &arguments("all"), "all");
    table.insert(2, b"", &arguments("any"), "any");
    assert_eq!(visited(&table, "", &Table::new()), BTreeSet::from(["all"]), "all of nothing is true, any of nothing is not");
    assert_eq!(check_arguments(&Table::new()), Ok(()));
    let refused = |value| check_arguments(&Table::from([("x-match".to_owned(), value)])).expect_err("refused");
    assert_eq!(refused(Value::Int(1)), "Invalid x-match field type signedint (value 1); expected longstr");
    assert_eq!(refused(Value::Bool(true)), "Invalid x-match field type bool (value true); expected longstr");
    let most = "Invalid x-match field value <<\"most\">>; expected all, any, all-with-x, or any-with-x";
    assert_eq!(refused(Value::Text(b"most".to_vec())), most);
}

#[test]
fn several_keys_reach_what_each_of_them_reaches() {
    let mut direct = table(ExchangeKind::Direct);
    let mut topic = table(ExchangeKind::Topic);
    for (id, key) in ["a", "b", "c"].into_iter().enumerate() {
        direct.insert(id as u64, key.as_bytes(), &Table::new(), key);
        topic.insert(id as u64, key.as_bytes(), &Table::new(), key);
    }
    let message = Message::default();
    assert_eq!(routed(&direct, &["a", "x", "c"], &message), ["a", "c"]);
    assert_eq!(routed(&topic, &["b", "a"], &message), ["b", "a"]);
}

fn hashing(arguments: &[(&str, &str)], weights: &[(u64, &str, u64)]) -> RoutingTable<u64> {
    let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), Value::Text((*v).into()))).collect();
    let mut table = RoutingTable::new(ExchangeKind::ConsistentHash, &arguments);
    weights.iter().for_each(|(id, weight, target)| table.insert(*id, weight.as_bytes(), &Table::new(), *target));
    table
}

#[test]
fn consistent_hashing_spreads_by_weight() {
    const KEYS: usize = 60_000;
    let table = hashing(&[], &[(7, "1", 1), (8, "2", 2), (9, "3", 3)]);
    let mut counts = [0usize; 4];
    for n in 0..KEYS {
        let hit = routed(&table, &[&format!("key-{n}")], &Message::default());
        assert_eq!(hit.len(), 1);
        counts[hit[0] as usize] += 1;
    }
    for (weight, count) in counts.iter().enumerate().skip(1) {
        let wanted = KEYS * weight / 6;
        assert!(count.abs_diff(wanted) < KEYS / 50, "{counts:?}");
    }
}

#[test]
fn consistent_hashing_keeps_keys_where_they_are() {
    let all = hashing(&[], &[(1, "5", 1), (2, "5", 2), (3, "5", 3), (4, "1", 2)]);
    let mut fewer = all.clone();
    fewer.remove(3, b"5", &3);
    for n in 0..2_000 {
        let key = format!("{n}");
        let (before, after) = (routed(&all, &[&key], &Message::default())[0], routed(&fewer, &[&key], &Message::default())[0]);
        assert!(before == after || before == 3, "{before} -> {after}");
    }
    assert_eq!(routed(&hashing(&[], &[(1, "1", 1)]), &["k", "cc"], &Message::default()), [1], "copies are not spread");
    assert_eq!(routed(&hashing(&[], &[]), &["k"], &Message::default()), [0u64; 0]);
}

#[test]
fn consistent_hashing_of_a_header_or_a_property() {
    let weights = [(1, "1", 1), (2, "1", 2), (3, "1", 3), (4, "1", 4)];
    let (by_header, by_id) = (hashing(&[("hash-header", "h")], &weights), hashing(&[("hash-property", "message_id")], &weights));
    let mut hits = [BTreeSet::new(), BTreeSet::new()];
    for n in 0..200u8 {
        let message =
            Message { headers: Table::from([("h".into(), Value::Int(n.into()))]), message_id: Some(vec![n]), ..Message::default() };
        for (table, hits) in [&by_header, &by_id].into_iter().zip(&mut hits) {
            let hit = routed(table, &["k"], &message);
            assert_eq!(hit, routed(table, &["another key"], &message));
            hits.extend(hit);
        }
    }
    assert_eq!(hits, [(); 2].map(|()| BTreeSet::from([1, 2, 3, 4])));
    let without: BTreeSet<_> = (0..50).flat_map(|n| routed(&by_header, &[&n.to_string()], &Message::default())).collect();
    assert_eq!(without.len(), 1, "messages without the header stay together");
}

#[test]
fn weights_and_hash_arguments_are_checked_in_rabbitmqs_words() {
    assert_eq!(weight(b"10"), Ok(10));
    assert_eq!(weight(b"0"), Err("The binding key must be greater than 0".to_owned()));
    assert_eq!(weight(b"x"), Err("The binding key must be an integer: <<\"x\">>".to_owned()));
    let check = |arguments: &[(&str, &str)]| {
        check_hash_arguments(&arguments.iter().map(|(k, v)| ((*k).to_owned(), Value::Text((*v).into()))).collect())
    };
    assert_eq!(check(&[("hash-header", "h")]), Ok(()));
    assert_eq!(check(&[("hash-property", "timestamp")]), Ok(()));
    assert_eq!(check(&[("hash-property", "type")]), Err("Unsupported property: type".to_owned()));
    // RabbitMQ fails when it says so (541), or at every publish.
    for name in ["hash-header", "hash-property"] {
        let refused = check_hash_arguments(&Table::from([(name.to_owned(), Value::Int(1))]));
        assert_eq!(refused, Err(format!("invalid arg '{name}': expected a long string")));
    }
    assert_eq!(
        check(&[("hash-header", "h"), ("hash-property", "timestamp")]),
        Err("hash-header and hash-property are mutually exclusive".to_owned())
    );
}

#[test]
fn picking_exchanges_take_one_of_all() {
    for kind in [ExchangeKind::Random, ExchangeKind::LocalRandom, ExchangeKind::ModulusHash] {
        let mut table = table(kind);
        assert_eq!(routed(&table, &["k"], &Message::default()), [0; 0]);
        (0..4).for_each(|n| table.insert(n, format!("{n}").as_bytes(), &Table::new(), n));
        let mut hits = BTreeSet::new();
        for number in 0..100 {
            let hit = routed(&table, &[&format!("key {number}"), "cc"], &Message { number, ..Message::default() });
            assert_eq!(hit.len(), 1);
            hits.extend(hit);
        }
        assert_eq!(hits.len(), 4, "{kind:?}");
    }
    let mut table = table(ExchangeKind::LocalRandom);
    (0..4).for_each(|n| table.insert(n, b"", &Table::new(), n));
    for number in 0..20 {
        let mut out = Vec::new();
        table.route(&[b""], &Message { number, ..Message::default() }, &|t| t % 2 == 1, &mut |t| out.push(*t));
        assert_eq!(out, [2 * (number % 2) + 1]);
        table.route(&[b""], &Message { number, ..Message::default() }, &|_| false, &mut |_| panic!("none is near"));
    }
}

fn naive_topic(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern.split_first(), key.split_first()) {
        (None, None) => true,
        (Some((&"#", rest)), _) => naive_topic(rest, key) || key.split_first().is_some_and(|(_, k)| naive_topic(pattern, k)),
        (Some((&"*", rest)), Some((_, key))) => naive_topic(rest, key),
        (Some((word, rest)), Some((head, key))) => word == head && naive_topic(rest, key),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn split(key: &str) -> Vec<&str> {
    if key.is_empty() { Vec::new() } else { key.split('.').collect() }
}

fn naive(kind: ExchangeKind, binding: &str, key: &str) -> bool {
    match kind {
        ExchangeKind::Direct => binding == key,
        ExchangeKind::Fanout => true,
        ExchangeKind::Topic | ExchangeKind::RocketTopic => naive_topic(&split(binding), &split(key)),
        ExchangeKind::Headers => binding == key,
        ExchangeKind::ConsistentHash | ExchangeKind::ModulusHash | ExchangeKind::Random | ExchangeKind::LocalRandom => {
            unreachable!("these pick one target: tested below")
        }
        ExchangeKind::Delayed | ExchangeKind::RecentHistory | ExchangeKind::Deduplication => {
            unreachable!("these have tables of other kinds")
        }
    }
}

fn key() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "", "*", "#"]), 0..5).prop_map(|w| w.join("."))
}

proptest! {
    #[test]
    fn tables_equal_a_list_of_bindings(
        changes in prop::collection::vec((any::<bool>(), key(), 0u8..4), 1..40),
        keys in prop::collection::vec(prop::collection::vec(prop::sample::select(vec!["a", "b", ""]), 0..5), 1..6),
    ) {
        for kind in [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Headers, ExchangeKind::RocketTopic] {
            let mut table = table(kind);
            let mut model: BTreeMap<(String, u8), u64> = BTreeMap::new();
            for (n, (add, binding, target)) in changes.iter().enumerate() {
                let arguments = Table::from([("k".to_owned(), Value::Text(binding.clone().into()))]);
                let identity = (binding.clone(), *target);
                if *add && !model.contains_key(&identity) {
                    table.insert(n as u64, binding.as_bytes(), &arguments, *target);
                    model.insert(identity, n as u64);
                } else if let Some(id) = model.remove(&identity) {
                    table.remove(id, binding.as_bytes(), target);
                }
            }
            for key in &keys {
                let key = key.join(".");
                let headers = Table::from([("k".to_owned(), Value::Text(key.clone().into()))]);
                let wanted: BTreeSet<u8> =
                    model.keys().filter(|(binding, _)| naive(kind, binding, &key)).map(|(_, target)| *target).collect();
                prop_assert_eq!(visited(&table, &key, &headers), wanted, "{:?} {}", kind, key);
            }
        }
    }
}

/// Values of several kinds, some of which compare as others would.
fn header() -> impl Strategy<Value = (String, Value)> {
    let text = |s: &str| Value::Text(s.into());
    let values = vec![Value::Void, Value::Int(1), Value::Int(2), text("1"), text("2"), Value::Bool(true), Value::Double(1.0)];
    (prop::sample::select(vec!["a", "b", "c", "x-d"]), prop::sample::select(values)).prop_map(|(name, value)| (name.to_owned(), value))
}

fn naive_headers(arguments: &Table, headers: &Table) -> bool {
    let Some(Value::Text(mode)) = arguments.get("x-match") else { unreachable!("each has one") };
    let with_x = mode.ends_with(b"-with-x");
    let mut fields = arguments.iter().filter(|(name, _)| *name != "x-match" && (with_x || !name.starts_with("x-")));
    let matches = |(name, wanted): (&String, &Value)| headers.get(name).is_some_and(|value| *wanted == Value::Void || wanted == value);
    if mode.starts_with(b"all") { fields.all(matches) } else { fields.any(matches) }
}

proptest! {
    #[test]
    fn headers_tables_equal_a_list_of_bindings(
        bindings in prop::collection::vec((prop::sample::select(vec!["all", "any", "all-with-x", "any-with-x"]), prop::collection::vec(header(), 0..4)), 1..30),
        removed in prop::collection::vec(0usize..30, 0..30),
        messages in prop::collection::vec(prop::collection::vec(header(), 0..4), 1..10),
    ) {
        let mut table = table(ExchangeKind::Headers);
        let mut model = BTreeMap::new();
        for (id, (mode, fields)) in bindings.into_iter().enumerate() {
            let mut arguments: Table = fields.into_iter().collect();
            arguments.insert("x-match".to_owned(), Value::Text(mode.into()));
            table.insert(id as u64, b"", &arguments, id);
            model.insert(id, arguments);
        }
        for id in removed {
            table.remove(id as u64, b"", &id);
            model.remove(&id);
        }
        for headers in messages {
            let headers: Table = headers.into_iter().collect();
            let wanted: BTreeSet<usize> =
                model.iter().filter(|(_, arguments)| naive_headers(arguments, &headers)).map(|(id, _)| *id).collect();
            prop_assert_eq!(visited(&table, "", &headers), wanted, "{:?}", headers);
        }
    }
}
