//! Ways through several exchanges: alternates, bindings between exchanges, kinds that pick one; and what a way costs.

use super::tests::{Fixture, binding, exchange_spec, name};
use super::*;
use crate::model::catalog::{BindingSpec, CatalogCommand, ExchangeKind, Refusal, Table, Value};
use crate::routing::HashProperty;
use proptest::prelude::*;
use std::cell::OnceCell;

/// A message with headers only.
struct Headers<'a>(&'a dyn Fn() -> Table, OnceCell<Table>);

impl crate::routing::Subject for Headers<'_> {
    fn headers(&self) -> &Table {
        self.1.get_or_init(self.0)
    }
    fn property(&self, _property: HashProperty) -> Option<&[u8]> {
        None
    }
    fn properties(&self) -> &[u8] {
        &[0, 0]
    }
    fn random(&self) -> u64 {
        0
    }
}

impl Catalog {
    /// Routes a message with one key on a node that leads everything.
    pub(super) fn route_one(
        &self,
        vhost: &str,
        exchange: &str,
        key: &[u8],
        headers: &dyn Fn() -> Table,
        out: &mut Vec<(QueueId, ShardId)>,
    ) -> RouteResult {
        let subject = Headers(headers, OnceCell::new());
        self.route(&Envelope { vhost, exchange, keys: &[key], subject: &subject, near: &|_| true }, out)
    }
}

impl Fixture {
    fn route_keys(&self, exchange: &str, keys: &[&str], near: &dyn Fn(ShardId) -> bool) -> Vec<u64> {
        let keys: Vec<&[u8]> = keys.iter().map(|k| k.as_bytes()).collect();
        let (none, mut out) = (Table::new, Vec::new());
        let subject = Headers(&none, OnceCell::new());
        let envelope = Envelope { vhost: "/", exchange, keys: &keys, subject: &subject, near };
        assert_eq!(self.0.route(&envelope, &mut out), RouteResult::Routed);
        out.iter().map(|(id, _)| id.0).collect()
    }

    fn exchange(&mut self, exchange: &str, kind: ExchangeKind, alternate: Option<&str>) {
        let mut spec = exchange_spec(exchange, kind);
        spec.arguments.extend(alternate.map(|to| ("alternate-exchange".to_owned(), Value::Text(to.into()))));
        self.done(CatalogCommand::DeclareExchange(spec));
    }

    fn bound(&mut self, exchange: &str, target: Target, to: &str, key: &str) {
        self.done(CatalogCommand::Bind(binding(exchange, target, to, key)));
    }
}

#[test]
fn what_an_exchange_cannot_route_goes_to_its_alternate() {
    let mut f = Fixture::new();
    let (a, b) = (f.queue("a").0, f.queue("b").0);
    f.exchange("first", ExchangeKind::Direct, Some("second"));
    f.exchange("second", ExchangeKind::Direct, Some("third"));
    f.exchange("third", ExchangeKind::Fanout, Some("first"));
    f.bound("first", Target::Queue, "a", "k");
    assert_eq!(f.route("first", "k"), [a]);
    assert_eq!(f.route("first", "other"), [0; 0], "round in a circle, and to an end");
    f.bound("third", Target::Queue, "b", "");
    assert_eq!(f.route("first", "k"), [a]);
    assert_eq!(f.route("first", "other"), [b]);
    f.exchange("nowhere", ExchangeKind::Direct, Some("missing"));
    assert_eq!(f.route("nowhere", "k"), [0; 0]);
    f.exchange("missing", ExchangeKind::Fanout, None);
    f.bound("missing", Target::Queue, "a", "");
    assert_eq!(f.route("nowhere", "k"), [a], "an alternate may be declared later");
}

#[test]
fn an_alternate_is_used_per_exchange_on_the_way() {
    let mut f = Fixture::new();
    let a = f.queue("a").0;
    f.exchange("x", ExchangeKind::Fanout, None);
    f.exchange("y", ExchangeKind::Direct, Some("z"));
    f.exchange("z", ExchangeKind::Fanout, None);
    f.bound("x", Target::Exchange, "y", "");
    f.bound("z", Target::Queue, "a", "");
    assert_eq!(f.route("x", "no binding of y"), [a]);
}

#[test]
fn an_internal_exchange_is_reached_through_others_only() {
    let mut f = Fixture::new();
    let a = f.queue("a").0;
    let spec = ExchangeSpec { internal: true, ..exchange_spec("inner", ExchangeKind::Fanout) };
    f.done(CatalogCommand::DeclareExchange(spec));
    f.exchange("outer", ExchangeKind::Direct, Some("inner"));
    f.bound("inner", Target::Queue, "a", "");
    assert_eq!(f.0.route_one("/", "inner", b"", &Table::new, &mut Vec::new()), RouteResult::Internal);
    assert_eq!(f.route("outer", "k"), [a]);
}

#[test]
fn an_auto_delete_exchange_goes_with_its_last_binding_along_a_chain() {
    let mut f = Fixture::new();
    for exchange in ["x", "y"] {
        f.done(CatalogCommand::DeclareExchange(ExchangeSpec { auto_delete: true, ..exchange_spec(exchange, ExchangeKind::Fanout) }));
    }
    f.queue("q");
    f.bound("y", Target::Queue, "q", "");
    f.bound("x", Target::Exchange, "y", "");
    f.done(CatalogCommand::Unbind(binding("y", Target::Queue, "q", "")));
    assert!(f.0.exchange(&name("y")).is_none() && f.0.exchange(&name("x")).is_none(), "x lost its last binding with y");
}

#[test]
fn several_keys_give_each_queue_once() {
    let mut f = Fixture::new();
    let (a, b) = (f.queue("a").0, f.queue("b").0);
    f.exchange("x", ExchangeKind::Direct, None);
    f.bound("x", Target::Queue, "a", "k");
    f.bound("x", Target::Queue, "a", "l");
    f.bound("x", Target::Queue, "b", "l");
    assert_eq!(f.route_keys("x", &["k", "l"], &|_| true), [a, b]);
    assert_eq!(f.route_keys("", &["b", "a", "b", "none"], &|_| true), [b, a]);
}

#[test]
fn a_local_random_exchange_takes_queues_led_here_only() {
    let mut f = Fixture::new();
    let (a, b) = (f.queue("a").0, f.record(super::tests::declare(super::tests::queue_spec("b"), 2)).id.0);
    f.exchange("x", ExchangeKind::LocalRandom, None);
    f.bound("x", Target::Queue, "a", "");
    f.bound("x", Target::Queue, "b", "");
    assert_eq!(f.route_keys("x", &["k"], &|shard| shard == ShardId(1)), [a]);
    assert_eq!(f.route_keys("x", &["k"], &|shard| shard == ShardId(2)), [b]);
    assert_eq!(f.route_keys("x", &["k"], &|_| false), [0; 0]);
}

#[test]
fn a_consistent_hash_exchange_checks_its_arguments_and_weights() {
    let mut f = Fixture::new();
    f.queue("a");
    let mut spec = exchange_spec("x", ExchangeKind::ConsistentHash);
    spec.arguments.insert("hash-property".into(), Value::Text(b"odd".to_vec()));
    assert_eq!(f.refusal(CatalogCommand::DeclareExchange(spec)), Refusal::Precondition("Unsupported property: odd".into()));
    f.exchange("x", ExchangeKind::ConsistentHash, None);
    let refusal = f.refusal(CatalogCommand::Bind(binding("x", Target::Queue, "a", "heavy")));
    assert_eq!(refusal, Refusal::Precondition("The binding key must be an integer: <<\"heavy\">>".into()));
    f.bound("x", Target::Queue, "a", "3");
    assert_eq!(f.route("x", "any key").len(), 1);
}

/// What a message reaches, said plainly: all exchanges that can be reached, each with its own bindings or its alternate.
fn plainly(f: &Fixture, from: &str, key: &str) -> BTreeSet<u64> {
    let (mut reached, mut queues, mut seen) = (vec![from.to_owned()], BTreeSet::new(), BTreeSet::new());
    while let Some(exchange) = reached.pop() {
        let Some(spec) = f.0.exchange(&name(&exchange)).cloned() else { continue };
        if !seen.insert(exchange.clone()) {
            continue;
        }
        let hits: Vec<_> =
            f.0.bindings_from(&name(&exchange)).filter(|b| spec.kind == ExchangeKind::Fanout || &*b.key == key).cloned().collect();
        for hit in &hits {
            match hit.target {
                Target::Queue => queues.extend(f.0.queue(&name(&hit.destination)).map(|q| q.id.0)),
                Target::Exchange => reached.push(hit.destination.to_string()),
            }
        }
        if let Some(Value::Text(alternate)) = spec.arguments.get("alternate-exchange").filter(|_| hits.is_empty()) {
            reached.push(String::from_utf8_lossy(alternate).into_owned());
        }
    }
    queues
}

proptest! {
    #[test]
    fn ways_through_exchanges_equal_a_plain_search(
        exchanges in prop::collection::vec((any::<bool>(), prop::option::of(0usize..6)), 6),
        bindings in prop::collection::vec((0usize..6, any::<bool>(), 0usize..6, 0usize..3), 0..24),
        unbound in prop::collection::vec(any::<bool>(), 24),
    ) {
        const KEYS: [&str; 3] = ["a", "b", "c"];
        let mut f = Fixture::new();
        for (n, (fanout, alternate)) in exchanges.iter().enumerate() {
            let kind = if *fanout { ExchangeKind::Fanout } else { ExchangeKind::Direct };
            f.exchange(&format!("x{n}"), kind, alternate.map(|to| format!("x{to}")).as_deref());
            f.queue(&format!("q{n}"));
        }
        for (source, to_queue, to, key) in &bindings {
            let (target, to) = if *to_queue { (Target::Queue, format!("q{to}")) } else { (Target::Exchange, format!("x{to}")) };
            f.bound(&format!("x{source}"), target, &to, KEYS[*key]);
        }
        for ((source, to_queue, to, key), _) in bindings.iter().zip(&unbound).filter(|(_, gone)| **gone) {
            let (target, to) = if *to_queue { (Target::Queue, format!("q{to}")) } else { (Target::Exchange, format!("x{to}")) };
            f.done(CatalogCommand::Unbind(binding(&format!("x{source}"), target, &to, KEYS[*key])));
        }
        for n in 0..6 {
            for key in KEYS {
                let from = format!("x{n}");
                let got = f.route(&from, key);
                prop_assert_eq!(got.len(), got.iter().collect::<BTreeSet<_>>().len(), "each once");
                prop_assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), plainly(&f, &from, key));
            }
        }
    }
}

/// cargo test --release -p warren-node --lib -- --ignored --nocapture a_way_costs
#[test]
#[ignore = "a measurement"]
fn a_way_costs_nanoseconds_in_a_catalog_of_10_000_queues() {
    let mut f = Fixture::new();
    f.exchange("direct", ExchangeKind::Direct, None);
    f.exchange("topic", ExchangeKind::Topic, None);
    f.exchange("fanout", ExchangeKind::Fanout, None);
    f.exchange("headers", ExchangeKind::Headers, None);
    let headers =
        |n: usize| Table::from([("kind", "order".to_owned()), ("to", format!("shop-{n}"))].map(|(k, v)| (k.into(), Value::Text(v.into()))));
    for n in 0..10_000 {
        let queue = format!("q{n}");
        f.queue(&queue);
        f.bound("direct", Target::Queue, &queue, &format!("a.{n}"));
        f.bound("topic", Target::Queue, &queue, &format!("a.*.{n}"));
        f.done(CatalogCommand::Bind(BindingSpec { arguments: headers(n), ..binding("headers", Target::Queue, &queue, "") }));
        if n < 10 {
            f.bound("fanout", Target::Queue, &queue, "");
        }
    }
    let mut out = Vec::with_capacity(16);
    let of_message = headers(1234);
    for (exchange, key) in [("", "q1234"), ("direct", "a.1234"), ("topic", "a.b.1234"), ("fanout", "k"), ("headers", "")] {
        let start = std::time::Instant::now();
        for _ in 0..2_000_000 {
            out.clear();
            f.0.route_one("/", exchange, key.as_bytes(), &|| of_message.clone(), &mut out);
        }
        println!("through '{exchange}' to {} queue(s): {} ns", out.len(), start.elapsed().as_nanos() / 2_000_000);
    }
}
