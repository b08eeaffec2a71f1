//! Exchange kinds: from a routing key (or headers) to targets. Pure; a file is a kind. Called by `machine::catalog`, which owns one
//! table per exchange. Not here: bindings between exchanges, alternate exchanges, names.

mod consistent;
mod direct;
mod fanout;
mod hash;
mod headers;
mod pick;
mod rocket;
mod targets;
#[cfg(test)]
mod tests;
mod topic;

pub use consistent::{ConsistentHash, check_hash_arguments, weight};
pub use direct::Direct;
pub use fanout::Fanout;
pub use headers::{Headers, check_arguments};
pub use pick::Pick;
pub use rocket::{Rocket, check_partitions};
pub use targets::Targets;
pub use topic::Topic;

use crate::model::catalog::{ExchangeKind, Table};

/// What exchanges look at in a message beside its routing keys. Asked only by the kinds that need it.
pub trait Subject {
    /// The headers; an empty table when there are none.
    fn headers(&self) -> &Table;
    /// A property's bytes as on the wire, without a length.
    fn property(&self, property: HashProperty) -> Option<&[u8]>;
    /// The property list as on the wire.
    fn properties(&self) -> &[u8];
    /// Any number.
    fn random(&self) -> u64;
}

/// Properties that messages can be spread by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashProperty {
    /// `correlation-id`.
    CorrelationId,
    /// `message-id`.
    MessageId,
    /// `timestamp`.
    Timestamp,
}

impl HashProperty {
    /// As the argument `hash-property` names it.
    pub fn of_name(name: &[u8]) -> Option<HashProperty> {
        match name {
            b"correlation_id" => Some(HashProperty::CorrelationId),
            b"message_id" => Some(HashProperty::MessageId),
            b"timestamp" => Some(HashProperty::Timestamp),
            _ => None,
        }
    }
}

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
    /// One by a hash, by weight.
    ConsistentHash(ConsistentHash<T>),
    /// One by a hash of the key.
    ModulusHash(Pick<T>),
    /// Any one.
    Random(Pick<T>),
    /// Any one that is near.
    LocalRandom(Pick<T>),
    /// Words with `*` and `#`, and those of a partition.
    Rocket(Rocket<T>),
}

impl<T: Ord + Clone> RoutingTable<T> {
    /// An empty one for an exchange with these arguments. Kinds that keep messages have none of their own.
    pub fn new(kind: ExchangeKind, arguments: &Table) -> RoutingTable<T> {
        match kind {
            ExchangeKind::Direct => RoutingTable::Direct(Direct::default()),
            ExchangeKind::Fanout | ExchangeKind::Delayed | ExchangeKind::RecentHistory | ExchangeKind::Deduplication => {
                RoutingTable::Fanout(Fanout::default())
            }
            ExchangeKind::Topic => RoutingTable::Topic(Topic::default()),
            ExchangeKind::Headers => RoutingTable::Headers(Headers::default()),
            ExchangeKind::ConsistentHash => RoutingTable::ConsistentHash(ConsistentHash::new(arguments)),
            ExchangeKind::ModulusHash => RoutingTable::ModulusHash(Pick::default()),
            ExchangeKind::Random => RoutingTable::Random(Pick::default()),
            ExchangeKind::LocalRandom => RoutingTable::LocalRandom(Pick::default()),
            ExchangeKind::RocketTopic => RoutingTable::Rocket(Rocket::new(arguments)),
        }
    }

    /// Adds a binding; `id` names it for `remove`.
    pub fn insert(&mut self, id: u64, key: &[u8], arguments: &Table, target: T) {
        match self {
            RoutingTable::Direct(table) => table.insert(key, target),
            RoutingTable::Fanout(table) => table.insert(target),
            RoutingTable::Topic(table) => table.insert(key, target),
            RoutingTable::Headers(table) => table.insert(id, arguments, target),
            RoutingTable::ConsistentHash(table) => table.insert(id, key, target),
            RoutingTable::ModulusHash(table) | RoutingTable::Random(table) | RoutingTable::LocalRandom(table) => table.insert(target),
            RoutingTable::Rocket(table) => table.insert(id, key, arguments, target),
        }
    }

    /// Takes a binding away again, with the values it was added with.
    pub fn remove(&mut self, id: u64, key: &[u8], target: &T) {
        match self {
            RoutingTable::Direct(table) => table.remove(key, target),
            RoutingTable::Fanout(table) => table.remove(target),
            RoutingTable::Topic(table) => table.remove(key, target),
            RoutingTable::Headers(table) => table.remove(id),
            RoutingTable::ConsistentHash(table) => table.remove(id, target),
            RoutingTable::ModulusHash(table) | RoutingTable::Random(table) | RoutingTable::LocalRandom(table) => table.remove(target),
            RoutingTable::Rocket(table) => table.remove(id, key, target),
        }
    }

    /// Whether a target can be visited only once per key.
    pub fn is_distinct(&self) -> bool {
        match self {
            RoutingTable::Direct(_)
            | RoutingTable::Fanout(_)
            | RoutingTable::ConsistentHash(_)
            | RoutingTable::ModulusHash(_)
            | RoutingTable::Random(_)
            | RoutingTable::LocalRandom(_) => true,
            RoutingTable::Topic(_) | RoutingTable::Headers(_) | RoutingTable::Rocket(_) => false,
        }
    }

    /// Visits the targets of a message with these routing keys (at least one: that of the publish, then those of `CC` and `BCC`).
    /// Kinds that pick one target go by the first key. `near`: targets for x-local-random.
    pub fn route(&self, keys: &[&[u8]], subject: &dyn Subject, near: &dyn Fn(&T) -> bool, visit: &mut dyn FnMut(&T)) {
        let first = keys.first().copied().unwrap_or_default();
        match self {
            RoutingTable::Direct(table) => keys.iter().for_each(|key| table.route(key, visit)),
            RoutingTable::Fanout(table) => table.route(visit),
            RoutingTable::Topic(table) => keys.iter().for_each(|key| table.route(key, visit)),
            RoutingTable::Headers(table) => table.route(subject.headers(), visit),
            RoutingTable::ConsistentHash(table) => table.route(first, subject, visit),
            RoutingTable::ModulusHash(table) => table.by_key(first, visit),
            RoutingTable::Random(table) => table.any(subject.random(), &|_| true, visit),
            RoutingTable::LocalRandom(table) => table.any(subject.random(), near, visit),
            RoutingTable::Rocket(table) => table.route(keys, subject, visit),
        }
    }
}
