//! From a publish to queues: the hot path of the edge. Called under a read lock, so it allocates only when a message passes through
//! several exchanges or needs its headers. Exchanges that keep messages have a queue of their own among the targets.

use super::{Catalog, Destination, Exchange, Vhost};
use crate::model::catalog::{ExchangeKind, Target};
use crate::model::deduplication::Marks;
use crate::model::{QueueId, ShardId, store};
use crate::routing::Subject;
use smallvec::SmallVec;
use std::sync::Arc;

/// What a message is routed by.
#[derive(Clone, Copy)]
pub struct Envelope<'a> {
    /// The publisher's vhost.
    pub vhost: &'a str,
    /// "" is the default exchange.
    pub exchange: &'a str,
    /// The routing key of the publish, then those of `CC` and `BCC`.
    pub keys: &'a [&'a [u8]],
    /// Headers and properties.
    pub subject: &'a dyn Subject,
    /// Shards that this node leads, for x-local-random.
    pub near: &'a dyn Fn(ShardId) -> bool,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteResult {
    /// To the queues in `out`; none when `out` did not grow.
    Routed,
    /// Only exchanges remember it: a publisher that wants to know is told that no queue took it.
    OnlyRemembered,
    /// 404: no such exchange (or vhost).
    NoExchange,
    /// 403: internal exchange.
    Internal,
}

impl Catalog {
    /// Appends each queue that takes the message, once, with its shard.
    pub fn route(&self, envelope: &Envelope<'_>, out: &mut Vec<(QueueId, ShardId)>) -> RouteResult {
        let Some(vhost) = self.vhosts.get(envelope.vhost) else { return RouteResult::NoExchange };
        if envelope.exchange.is_empty() {
            default_exchange(vhost, envelope.keys, out);
            return RouteResult::Routed;
        }
        let Some(first) = vhost.exchanges.get(envelope.exchange) else { return RouteResult::NoExchange };
        if first.spec.internal {
            return RouteResult::Internal;
        }
        Walk::new(vhost, envelope, out).from(first)
    }

    /// The same for what no client publishes: through internal exchanges too, and to nobody without an exchange.
    pub fn route_any(&self, envelope: &Envelope<'_>, out: &mut Vec<(QueueId, ShardId)>) {
        let Some(vhost) = self.vhosts.get(envelope.vhost) else { return };
        match vhost.exchanges.get(envelope.exchange) {
            _ if envelope.exchange.is_empty() => default_exchange(vhost, envelope.keys, out),
            Some(first) => drop(Walk::new(vhost, envelope, out).from(first)),
            None => {}
        }
    }

    /// The same for what the exchange kept until now: it does not keep it again.
    pub fn route_released(&self, envelope: &Envelope<'_>, out: &mut Vec<(QueueId, ShardId)>) {
        let Some(vhost) = self.vhosts.get(envelope.vhost) else { return };
        if let Some(first) = vhost.exchanges.get(envelope.exchange) {
            Walk { released: true, ..Walk::new(vhost, envelope, out) }.from(first);
        }
    }

    /// Where a message goes that an exchange remembers, for this binding. Nowhere when that is gone. The envelope's exchange is not
    /// looked at.
    pub fn route_replay(&self, binding: u64, envelope: &Envelope<'_>, out: &mut Vec<(QueueId, ShardId)>) {
        let Some(spec) = self.bindings.get(&binding) else { return };
        match spec.target {
            Target::Queue => {
                out.extend(self.queue_entry(&spec.vhost, &spec.destination).map(|q| (q.record.id, q.record.shard)));
            }
            Target::Exchange => self.route_any(&Envelope { exchange: &spec.destination, ..*envelope }, out),
        }
    }
}

/// Whether an exchange keeps a message.
enum Keeps {
    No,
    /// Instead of routing it.
    Only,
    /// And routes it.
    Too,
}

fn keeps(kind: ExchangeKind, subject: &dyn Subject) -> Keeps {
    match kind {
        ExchangeKind::Delayed if store::delay_ms(subject.properties()).is_some() => Keeps::Only,
        ExchangeKind::Deduplication if Marks::has_header(subject.properties()) => Keeps::Only,
        ExchangeKind::RecentHistory if store::is_remembered(subject.properties()) => Keeps::Too,
        ExchangeKind::Delayed
        | ExchangeKind::Deduplication
        | ExchangeKind::RecentHistory
        | ExchangeKind::Direct
        | ExchangeKind::Fanout
        | ExchangeKind::Topic
        | ExchangeKind::Headers
        | ExchangeKind::ConsistentHash
        | ExchangeKind::ModulusHash
        | ExchangeKind::Random
        | ExchangeKind::LocalRandom
        | ExchangeKind::RocketTopic => Keeps::No,
    }
}

/// Each key is the name of a queue.
fn default_exchange(vhost: &Vhost, keys: &[&[u8]], out: &mut Vec<(QueueId, ShardId)>) {
    for (at, key) in keys.iter().enumerate() {
        if let Some(queue) = std::str::from_utf8(key).ok().and_then(|name| vhost.queues.get(name))
            && !keys[..at].contains(key)
        {
            out.push((queue.record.id, queue.record.shard));
        }
    }
}

struct Walk<'a> {
    vhost: &'a Vhost,
    envelope: &'a Envelope<'a>,
    out: &'a mut Vec<(QueueId, ShardId)>,
    /// Targets in which exchanges only remember the message.
    remembered: usize,
    /// The first exchange kept it already.
    released: bool,
}

impl<'a> Walk<'a> {
    fn new(vhost: &'a Vhost, envelope: &'a Envelope<'a>, out: &'a mut Vec<(QueueId, ShardId)>) -> Walk<'a> {
        Walk { vhost, envelope, out, remembered: 0, released: false }
    }

    /// Visits an exchange and all it leads to; each exchange once.
    fn from(mut self, first: &'a Exchange) -> RouteResult {
        let start = self.out.len();
        let mut seen: SmallVec<[&Exchange; 4]> = SmallVec::new();
        seen.push(first);
        let mut distinct = first.table.is_distinct() && self.envelope.keys.len() == 1;
        let mut at = 0;
        while let Some(exchange) = seen.get(at).copied() {
            let more = self.visit(exchange);
            distinct &= more.is_empty() && at == 0;
            for name in more {
                if let Some(next) = self.vhost.exchanges.get(&*name)
                    && !seen.iter().any(|s| std::ptr::eq(*s, next))
                {
                    seen.push(next);
                }
            }
            at += 1;
        }
        if !distinct && self.out.len() - start > 1 {
            let mut found = self.out.split_off(start);
            found.sort_unstable();
            found.dedup();
            self.out.append(&mut found);
        }
        // Each exchange has its own store and is visited once.
        if self.remembered > 0 && self.out.len() - start == self.remembered { RouteResult::OnlyRemembered } else { RouteResult::Routed }
    }

    /// Queues go to `out`, the exchanges to visit next come back: bound ones, or the alternate one when nothing is bound.
    fn visit(&mut self, exchange: &Exchange) -> SmallVec<[Arc<str>; 2]> {
        let Envelope { keys, subject, near, .. } = *self.envelope;
        if exchange.spec.name.name.is_empty() {
            default_exchange(self.vhost, keys, self.out);
            return SmallVec::new();
        }
        let released = std::mem::take(&mut self.released);
        let kept = exchange.store.filter(|_| !released).map(|store| (store, keeps(exchange.spec.kind, subject)));
        if let Some((store, Keeps::Only)) = kept {
            self.out.push(store);
            return SmallVec::new();
        }
        let mut more = SmallVec::new();
        let before = self.out.len();
        let out = &mut *self.out;
        let is_near = |target: &Destination| match target {
            Destination::Queue(_, shard) => near(*shard),
            Destination::Exchange(_) => true,
        };
        exchange.table.route(keys, subject, &is_near, &mut |target| match target {
            Destination::Queue(queue, shard) => out.push((*queue, *shard)),
            Destination::Exchange(name) => more.push(name.clone()),
        });
        if more.is_empty() && self.out.len() == before {
            more.extend(exchange.alternate.clone());
        }
        if let Some((store, Keeps::Too)) = kept {
            self.out.push(store);
            self.remembered += 1;
        }
        more
    }
}
