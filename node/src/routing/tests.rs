//! Exchange kinds against naive models.

use super::*;
use crate::model::catalog::Value;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn visited<T: Ord + Clone>(table: &RoutingTable<T>, key: &str, headers: &Table) -> BTreeSet<T> {
    let mut out = BTreeSet::new();
    table.route(key.as_bytes(), || headers, &mut |t| {
        out.insert(t.clone());
    });
    out
}

fn topic(patterns: &[&'static str], key: &str) -> Vec<&'static str> {
    let mut table = RoutingTable::new(ExchangeKind::Topic);
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
    let mut table = RoutingTable::new(ExchangeKind::Topic);
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
    let mut table = RoutingTable::new(ExchangeKind::Headers);
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
        ExchangeKind::Topic => naive_topic(&split(binding), &split(key)),
        ExchangeKind::Headers => binding == key,
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
        for kind in [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Headers] {
            let mut table = RoutingTable::new(kind);
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
