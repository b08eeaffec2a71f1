//! Exchange kinds: from a routing key (or headers) to targets. Pure; a file is a kind. Called by `machine::catalog`, which owns one
//! table per exchange. Not here: bindings between exchanges, alternate exchanges, names.

mod direct;
mod fanout;
mod headers;
mod targets;
#[cfg(test)]
mod tests;
mod topic;

pub use direct::Direct;
pub use fanout::Fanout;
pub use headers::{Headers, check_arguments};
pub use targets::Targets;
pub use topic::Topic;

use crate::model::catalog::{ExchangeKind, Table};

/// The bindings of one exchange, arranged for its kind. A target may be bound several times; it goes with its last binding.
#[derive(Clone, Debug)]
pub enum RoutingTable<T> {
    /// Routing key equals binding key.
    Direct(Direct<T>),
    /// Every binding.
    Fanout(Fanout<T>),
    /// Words with `*` and `#`.
    Topic(Topic<T>),
    /// Header table against binding arguments.
    Headers(Headers<T>),
}

impl<T: Ord + Clone> RoutingTable<T> {
    /// An empty one.
    pub fn new(kind: ExchangeKind) -> RoutingTable<T> {
        match kind {
            ExchangeKind::Direct => RoutingTable::Direct(Direct::default()),
            ExchangeKind::Fanout => RoutingTable::Fanout(Fanout::default()),
            ExchangeKind::Topic => RoutingTable::Topic(Topic::default()),
            ExchangeKind::Headers => RoutingTable::Headers(Headers::default()),
        }
    }

    /// Adds a binding; `id` names it for `remove`.
    pub fn insert(&mut self, id: u64, key: &[u8], arguments: &Table, target: T) {
        match self {
            RoutingTable::Direct(table) => table.insert(key, target),
            RoutingTable::Fanout(table) => table.insert(target),
            RoutingTable::Topic(table) => table.insert(key, target),
            RoutingTable::Headers(table) => table.insert(id, arguments, target),
        }
    }

    /// Takes a binding away again, with the values it was added with.
    pub fn remove(&mut self, id: u64, key: &[u8], target: &T) {
        match self {
            RoutingTable::Direct(table) => table.remove(key, target),
            RoutingTable::Fanout(table) => table.remove(target),
            RoutingTable::Topic(table) => table.remove(key, target),
            RoutingTable::Headers(table) => table.remove(id),
        }
    }

    /// Whether a target can be visited only once per message.
    pub fn is_distinct(&self) -> bool {
        match self {
            RoutingTable::Direct(_) | RoutingTable::Fanout(_) => true,
            RoutingTable::Topic(_) | RoutingTable::Headers(_) => false,
        }
    }

    /// Visits the targets of a message; `headers` is asked for only when the kind needs it.
    pub fn route<'h>(&self, key: &[u8], headers: impl FnOnce() -> &'h Table, visit: &mut dyn FnMut(&T)) {
        match self {
            RoutingTable::Direct(table) => table.route(key, visit),
            RoutingTable::Fanout(table) => table.route(visit),
            RoutingTable::Topic(table) => table.route(key, visit),
            RoutingTable::Headers(table) => table.route(headers(), visit),
        }
    }
}
