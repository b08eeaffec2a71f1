//! Exchanges that keep messages: the queue nobody sees, when it is a target, which bindings get what it holds.

use super::tests::{Fixture, binding, exchange_spec, name};
use super::*;
use crate::model::catalog::{CatalogCommand, Refusal, Table};
use crate::model::properties::HEADERS;
use crate::model::store::Store;
use crate::routing::{HashProperty, Subject};

/// A message as the edge reads it, by its properties only.
struct Raw(Vec<u8>);

impl Subject for Raw {
    fn headers(&self) -> &Table {
        static NONE: Table = Table::new();
        &NONE
    }
    fn property(&self, _property: HashProperty) -> Option<&[u8]> {
        None
    }
    fn properties(&self) -> &[u8] {
        &self.0
    }
    fn random(&self) -> u64 {
        0
    }
}

/// A property list with one header.
fn header(name: &str, value: &[u8]) -> Raw {
    let body = [&[name.len() as u8], name.as_bytes(), value].concat();
    Raw([&HEADERS.to_be_bytes()[..], &(body.len() as u32).to_be_bytes(), &body].concat())
}

fn delay(ms: i32) -> Raw {
    header("x-delay", &[&b"I"[..], &ms.to_be_bytes()].concat())
}

fn bare() -> Raw {
    Raw(vec![0, 0])
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

impl Fixture {
    fn keeper(&mut self, exchange: &str, kind: ExchangeKind, arguments: &[(&str, Value)]) -> (QueueId, ShardId) {
        let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        self.done(CatalogCommand::DeclareExchange(ExchangeSpec { arguments, ..exchange_spec(exchange, kind) }));
        self.0.exchange_entry("/", exchange).unwrap().store.unwrap()
    }

    fn delayed(&mut self, exchange: &str, kind: &str) -> (QueueId, ShardId) {
        self.keeper(exchange, ExchangeKind::Delayed, &[("x-delayed-type", text(kind))])
    }

    fn bind_to(&mut self, exchange: &str, target: Target, to: &str, key: &str) -> u64 {
        self.done(CatalogCommand::Bind(binding(exchange, target, to, key)));
        self.0.index()
    }

    fn to(&self, exchange: &str, key: &str, message: &Raw) -> (RouteResult, Vec<QueueId>) {
        let (mut out, keys) = (Vec::new(), [key.as_bytes()]);
        let envelope = Envelope { vhost: "/", exchange, keys: &keys, subject: message, near: &|_| true };
        let result = self.0.route(&envelope, &mut out);
        let mut queues: Vec<_> = out.iter().map(|t| t.0).collect();
        queues.sort_unstable();
        (result, queues)
    }

    /// What comes back from a snapshot is the same, also what is not written down.
    fn reloaded(&self) -> Fixture {
        let copy = Fixture(Catalog::from_snapshot(&self.0.snapshot()).unwrap());
        assert_eq!(copy.0.state_hash(), self.0.state_hash());
        copy
    }
}

#[test]
fn the_queue_behind_an_exchange_is_nobodys_and_goes_with_it() {
    let mut f = Fixture::new();
    let before = f.0.index();
    let (queue, shard) = f.delayed("d", "direct");
    for f in [&f, &f.reloaded()] {
        assert_eq!((f.0.queues(), f.0.queue_count()), (vec![], 0));
        assert!(f.0.queue(&name("")).is_none() && f.0.queue(&name("d")).is_none());
        assert!(f.0.queues_of(shard).any(|id| id == queue));
        let record = f.0.queue_by_id(queue).unwrap();
        assert_eq!(f.0.settings(record).store, Some(Store::Delayed));
        assert_eq!(f.0.changes_since(before, shard), Some((vec![queue], vec![])));
        assert!(f.0.queue_policies(queue).is_none());
        let settings = f.0.settings_since(before, shard, &[queue]);
        assert_eq!(settings.len(), 1, "its shard is told what it is");
    }
    let declared = f.0.index();
    f.done(CatalogCommand::DeclareExchange(f.0.exchange(&name("d")).unwrap().as_ref().clone()));
    assert_eq!(f.0.changes_since(declared, shard), Some((vec![], vec![])), "an equal declare makes no other");
    f.done(CatalogCommand::DeleteExchange { name: name("d"), if_unused: false });
    assert!(f.0.queue_by_id(queue).is_none());
    assert_eq!(f.0.changes_since(declared, shard), Some((vec![], vec![queue])));
}

#[test]
fn several_exchanges_spread_over_the_shards_and_go_with_their_vhost() {
    let mut f = Fixture::new();
    let shards: BTreeSet<ShardId> = ["a", "b", "c"].iter().map(|x| f.delayed(x, "fanout").1).collect();
    assert_eq!(shards.len(), 3);
    let limited = crate::model::admin::AdminCommand::DeleteVhost { vhost: "/".into() };
    f.done(CatalogCommand::Admin(limited));
    assert_eq!(shards.into_iter().flat_map(|shard| f.0.queues_of(shard).collect::<Vec<_>>()).count(), 0);
}

#[test]
fn what_an_exchange_cannot_keep_by_is_refused() {
    let mut f = Fixture::new();
    let spec = |kind, arguments: &[(&str, Value)]| {
        let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        CatalogCommand::DeclareExchange(ExchangeSpec { arguments, ..exchange_spec("x", kind) })
    };
    for command in [
        spec(ExchangeKind::Delayed, &[]),
        spec(ExchangeKind::Delayed, &[("x-delayed-type", text("x-delayed-message"))]),
        spec(ExchangeKind::Delayed, &[("x-delayed-type", text("odd"))]),
        spec(ExchangeKind::RecentHistory, &[("x-recent-history-length", Value::Int(0))]),
        spec(ExchangeKind::Deduplication, &[]),
        spec(ExchangeKind::Deduplication, &[("x-cache-size", Value::Int(9)), ("x-cache-ttl", Value::Int(0))]),
    ] {
        assert!(matches!(f.refusal(command), Refusal::Precondition(_)));
    }
    f.delayed("h", "headers");
    f.queue("q");
    let arguments = Table::from([("x-match".to_owned(), text("odd"))]);
    let bind = BindingSpec { arguments, ..binding("h", Target::Queue, "q", "") };
    assert!(matches!(f.refusal(CatalogCommand::Bind(bind)), Refusal::Precondition(_)), "bindings are checked as its type's");
}

#[test]
fn a_delayed_message_goes_to_the_store_alone_and_any_other_where_its_type_says() {
    let mut f = Fixture::new();
    let (q, other) = (f.queue("q"), f.queue("other"));
    let (store, _) = f.keeper("d", ExchangeKind::Delayed, &[("x-delayed-type", text("topic")), ("alternate-exchange", text("alt"))]);
    f.done(CatalogCommand::DeclareExchange(exchange_spec("alt", ExchangeKind::Fanout)));
    f.bind_to("d", Target::Queue, "q", "a.*");
    f.bind_to("alt", Target::Queue, "other", "");
    for f in [&f, &f.reloaded()] {
        let routed = |queues: &[QueueId]| (RouteResult::Routed, queues.to_vec());
        assert_eq!(f.to("d", "a.b", &delay(5)), routed(&[store]));
        assert_eq!(f.to("d", "nobody", &delay(5)), routed(&[store]), "not to the alternate before its time");
        for now in [bare(), delay(0), delay(-5), header("x-delay", b"V")] {
            assert_eq!(f.to("d", "a.b", &now), routed(&[q]));
            assert_eq!(f.to("d", "nobody", &now), routed(&[other]));
        }
    }
}

#[test]
fn a_delayed_exchange_behind_another_delays_too() {
    let mut f = Fixture::new();
    let (q, near) = (f.queue("q"), f.queue("near"));
    let (store, _) = f.delayed("d", "fanout");
    f.bind_to("d", Target::Queue, "q", "");
    f.done(CatalogCommand::DeclareExchange(exchange_spec("first", ExchangeKind::Fanout)));
    f.bind_to("first", Target::Exchange, "d", "");
    f.bind_to("first", Target::Queue, "near", "");
    assert_eq!(f.to("first", "", &delay(5)).1, [near, store]);
    assert_eq!(f.to("first", "", &delay(-5)).1, [q, near]);
}

#[test]
fn a_history_is_a_target_beside_all_others_and_is_no_queue_to_a_publisher() {
    let mut f = Fixture::new();
    let q = f.queue("q");
    let (store, _) = f.keeper("h", ExchangeKind::RecentHistory, &[("x-recent-history-length", Value::Int(2))]);
    assert_eq!(f.0.settings(f.0.queue_by_id(store).unwrap()).store, Some(Store::History { length: 2 }));
    assert_eq!(f.to("h", "any", &bare()), (RouteResult::OnlyRemembered, vec![store]));
    let unkept = header("x-recent-history-no-store", b"t\x01");
    assert_eq!(f.to("h", "any", &unkept), (RouteResult::Routed, vec![]));
    f.bind_to("h", Target::Queue, "q", "whatever");
    for f in [&f, &f.reloaded()] {
        assert_eq!(f.to("h", "any", &bare()), (RouteResult::Routed, vec![q, store]));
        assert_eq!(f.to("h", "any", &unkept), (RouteResult::Routed, vec![q]));
    }
}

#[test]
fn what_no_binding_takes_is_remembered_and_goes_to_the_alternate() {
    let mut f = Fixture::new();
    let other = f.queue("other");
    let (store, _) = f.keeper("h", ExchangeKind::RecentHistory, &[("alternate-exchange", text("alt"))]);
    f.done(CatalogCommand::DeclareExchange(exchange_spec("alt", ExchangeKind::Fanout)));
    f.bind_to("alt", Target::Queue, "other", "");
    assert_eq!(f.to("h", "", &bare()), (RouteResult::Routed, vec![other, store]));
}

#[test]
fn each_new_binding_of_a_history_is_named_once_with_where_it_leads() {
    let mut f = Fixture::new();
    let (q, behind) = (f.queue("q"), f.queue("behind"));
    let (store, shard) = f.keeper("h", ExchangeKind::RecentHistory, &[]);
    f.done(CatalogCommand::DeclareExchange(exchange_spec("next", ExchangeKind::Direct)));
    f.bind_to("next", Target::Queue, "behind", "k");
    let start = f.0.index();
    let first = f.bind_to("h", Target::Queue, "q", "");
    f.bind_to("h", Target::Queue, "q", "");
    let second = f.bind_to("h", Target::Exchange, "next", "");
    for f in [&f, &f.reloaded()] {
        assert_eq!(f.0.replays_since(start, shard), [(store, first), (store, second)], "a binding that is there already is no new one");
        assert_eq!(f.0.replays_since(first, shard), [(store, second)]);
        assert_eq!(f.0.replays_since(second, shard), []);
        let to = |binding, key: &str| {
            let (mut out, keys, subject) = (Vec::new(), [key.as_bytes()], bare());
            let envelope = Envelope { vhost: "/", exchange: "", keys: &keys, subject: &subject, near: &|_| true };
            f.0.route_replay(binding, &envelope, &mut out);
            out.iter().map(|t| t.0).collect::<Vec<_>>()
        };
        assert_eq!((to(first, "any"), to(second, "k"), to(second, "other")), (vec![q], vec![behind], vec![]));
    }
    f.done(CatalogCommand::Unbind(binding("h", Target::Queue, "q", "")));
    assert_eq!(f.0.replays_since(start, shard), [(store, second)]);
    f.done(CatalogCommand::DeleteExchange { name: name("h"), if_unused: false });
    assert_eq!(f.0.replays_since(start, shard), []);
}

#[test]
fn an_exchange_without_duplicates_keeps_what_says_what_it_is_and_does_not_keep_it_again() {
    let mut f = Fixture::new();
    let q = f.queue("q");
    let (store, _) = f.keeper("u", ExchangeKind::Deduplication, &[("x-cache-size", text("9"))]);
    f.bind_to("u", Target::Queue, "q", "any");
    let marked = header("x-deduplication-header", b"S\0\0\0\x01a");
    for f in [&f, &f.reloaded()] {
        assert_eq!(f.to("u", "", &marked), (RouteResult::Routed, vec![store]));
        assert_eq!(f.to("u", "", &bare()), (RouteResult::Routed, vec![q]));
        let (mut out, keys) = (Vec::new(), [&b""[..]]);
        f.0.route_released(&Envelope { vhost: "/", exchange: "u", keys: &keys, subject: &marked, near: &|_| true }, &mut out);
        assert_eq!(out.iter().map(|t| t.0).collect::<Vec<_>>(), [q]);
    }
}
