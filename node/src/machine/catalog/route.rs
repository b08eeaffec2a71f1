//! From a publish to queues: the hot path of the edge. Called under a read lock, so it allocates only when a message passes through
//! several exchanges or needs its headers.

use super::{Catalog, Destination, Exchange, Vhost};
use crate::model::catalog::Table;
use crate::model::{QueueId, ShardId};
use smallvec::SmallVec;
use std::cell::OnceCell;

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteResult {
    /// To the queues in `out`; none when `out` did not grow.
    Routed,
    /// 404: no such exchange (or vhost).
    NoExchange,
    /// 403: internal exchange.
    Internal,
}

impl Catalog {
    /// Appends each queue that takes the message, once, with its shard. `headers` is called at most once, and only when a headers
    /// exchange is on the way.
    pub fn route(
        &self,
        vhost: &str,
        exchange: &str,
        key: &[u8],
        headers: &dyn Fn() -> Table,
        out: &mut Vec<(QueueId, ShardId)>,
    ) -> RouteResult {
        let Some(vhost) = self.vhosts.get(vhost) else { return RouteResult::NoExchange };
        if exchange.is_empty() {
            default_exchange(vhost, key, out);
            return RouteResult::Routed;
        }
        let Some(first) = vhost.exchanges.get(exchange) else { return RouteResult::NoExchange };
        if first.spec.internal {
            return RouteResult::Internal;
        }
        let table = OnceCell::new();
        Walk { vhost, key, headers: &|| table.get_or_init(headers), out }.from(first);
        RouteResult::Routed
    }
}

fn default_exchange(vhost: &Vhost, key: &[u8], out: &mut Vec<(QueueId, ShardId)>) {
    if let Some(queue) = std::str::from_utf8(key).ok().and_then(|name| vhost.queues.get(name)) {
        out.push((queue.record.id, queue.record.shard));
    }
}

struct Walk<'a> {
    vhost: &'a Vhost,
    key: &'a [u8],
    headers: &'a dyn Fn() -> &'a Table,
    out: &'a mut Vec<(QueueId, ShardId)>,
}

impl<'a> Walk<'a> {
    /// Visits an exchange and all it leads to; each exchange once.
    fn from(mut self, first: &'a Exchange) {
        let start = self.out.len();
        let mut seen: SmallVec<[&Exchange; 4]> = SmallVec::new();
        seen.push(first);
        let mut distinct = first.table.is_distinct();
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
    }

    /// Queues go to `out`, the exchanges to visit next come back: bound ones, or the alternate one when nothing is bound.
    fn visit(&mut self, exchange: &Exchange) -> SmallVec<[std::sync::Arc<str>; 2]> {
        if exchange.spec.name.name.is_empty() {
            default_exchange(self.vhost, self.key, self.out);
            return SmallVec::new();
        }
        let mut more = SmallVec::new();
        let before = self.out.len();
        let out = &mut *self.out;
        exchange.table.route(self.key, self.headers, &mut |target| match target {
            Destination::Queue(queue, shard) => out.push((*queue, *shard)),
            Destination::Exchange(name) => more.push(name.clone()),
        });
        if more.is_empty() && self.out.len() == before {
            more.extend(exchange.alternate.clone());
        }
        more
    }
}
