//! The catalog (shard 0): vhosts, users, exchanges, queues, bindings, nodes. A pure function of its log. `consensus` applies, the edge
//! routes and looks up under a read lock, the management reads. Here: the state and its reads; `apply` has the commands, `route` the
//! routing, `persist` snapshots. Messages and consumers are not here.

mod apply;
mod bindings;
mod changes;
mod equivalence;
mod password;
mod persist;
mod route;
#[cfg(test)]
mod routing_tests;
#[cfg(test)]
mod tests;

pub use equivalence::{check_owner, exchange_text, queue_text};
pub use password::{hash_password, password_matches};
pub use persist::{Image, decode_command, encode_command};
pub use route::{Envelope, RouteResult};

use crate::model::catalog::{BindingSpec, ExchangeSpec, Name, Owner, Permission, QueueRecord, Target};
use crate::model::settings::QueueSettings;
use crate::model::{Incarnation, LogId, NodeId, QueueId, ShardId};
use crate::routing::RoutingTable;
use changes::ShardQueues;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where a binding leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    Queue(QueueId, ShardId),
    Exchange(Arc<str>),
}

/// An exchange with its bindings, by id.
#[derive(Clone, Debug)]
struct Exchange {
    spec: Arc<ExchangeSpec>,
    table: RoutingTable<Destination>,
    alternate: Option<Arc<str>>,
    outgoing: BTreeSet<u64>,
    incoming: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
struct QueueEntry {
    record: Arc<QueueRecord>,
    incoming: BTreeSet<u64>,
}

#[derive(Clone, Debug, Default)]
struct Vhost {
    exchanges: HashMap<Arc<str>, Exchange>,
    queues: HashMap<Arc<str>, QueueEntry>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// base64(salt ++ sha256(salt ++ password)).
    pub password_hash: String,
    /// E.g. `administrator`.
    pub tags: Vec<String>,
    /// By vhost.
    pub permissions: BTreeMap<String, Permission>,
}

/// The catalog's state.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    applied: LogId,
    shards: u16,
    vhosts: HashMap<Arc<str>, Vhost>,
    users: BTreeMap<String, User>,
    /// Processes that are up.
    nodes: BTreeMap<NodeId, Incarnation>,
    queues: HashMap<QueueId, Arc<QueueRecord>>,
    by_shard: BTreeMap<ShardId, ShardQueues>,
    by_owner: HashMap<Owner, BTreeSet<QueueId>>,
    bindings: BTreeMap<u64, Arc<BindingSpec>>,
    binding_ids: HashMap<Box<[u8]>, u64>,
    /// What the last `checkpoint` held; not state.
    checkpointed: Option<LogId>,
}

impl Catalog {
    /// An empty one, before any entry.
    pub fn new() -> Catalog {
        Catalog::default()
    }

    /// Last applied; index 0 = none.
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// The catalog index that batches name: the index last applied.
    pub fn index(&self) -> u64 {
        self.applied.index
    }

    /// Whether `Bootstrap` was applied.
    pub fn is_bootstrapped(&self) -> bool {
        self.shards > 0
    }

    /// The data shards.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (1..=self.shards).map(ShardId)
    }

    /// The data shard with the fewest queues, for a new one.
    pub fn least_loaded_shard(&self) -> Option<ShardId> {
        self.shards().min_by_key(|s| self.by_shard.get(s).map_or(0, |q| q.queues.len()))
    }

    /// The process of a node that is up.
    pub fn incarnation(&self, node: NodeId) -> Option<Incarnation> {
        self.nodes.get(&node).copied()
    }

    /// Nodes that are up, with their process.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, Incarnation)> + '_ {
        self.nodes.iter().map(|(node, incarnation)| (*node, *incarnation))
    }

    /// Whether there is such a vhost.
    pub fn has_vhost(&self, vhost: &str) -> bool {
        self.vhosts.contains_key(vhost)
    }

    /// All vhosts, by name.
    pub fn vhosts(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.vhosts.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// A queue by name.
    pub fn queue(&self, name: &Name) -> Option<&Arc<QueueRecord>> {
        self.queue_entry(&name.vhost, &name.name).map(|q| &q.record)
    }

    /// A queue by identity.
    pub fn queue_by_id(&self, id: QueueId) -> Option<&Arc<QueueRecord>> {
        self.queues.get(&id)
    }

    /// All queues, by id. O(n log n).
    pub fn queues(&self) -> Vec<Arc<QueueRecord>> {
        let mut all: Vec<_> = self.queues.values().cloned().collect();
        all.sort_unstable_by_key(|r| r.id);
        all
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The queues of a shard, by id.
    pub fn queues_of(&self, shard: ShardId) -> impl Iterator<Item = QueueId> + '_ {
        self.by_shard.get(&shard).into_iter().flat_map(|s| s.queues.iter().copied())
    }

    /// What a shard at catalog index `index` must learn to get to `self.index()`: (creates, drops). `None` when that is too long ago:
    /// use `difference`.
    pub fn changes_since(&self, index: u64, shard: ShardId) -> Option<(Vec<QueueId>, Vec<QueueId>)> {
        self.by_shard.get(&shard).map_or_else(|| Some(Default::default()), |s| s.since(index))
    }

    /// What the shard of a queue must know of it: its arguments, with the policy that applies.
    pub fn settings(&self, record: &QueueRecord) -> QueueSettings {
        QueueSettings::from_arguments(&record.spec.arguments)
    }

    /// What a queue that is new or set differently since catalog index `index` asks for: of new ones only when that is more than a plain
    /// queue. Reaches as far back as `changes_since`.
    pub fn settings_since(&self, index: u64, shard: ShardId, creates: &[QueueId]) -> Vec<(QueueId, QueueSettings)> {
        let settings = |id: QueueId| Some((id, self.settings(self.queues.get(&id)?)));
        let made = creates.iter().filter_map(|id| settings(*id)).filter(|(_, s)| !s.is_plain());
        let configured = self.by_shard.get(&shard).into_iter().flat_map(|s| s.configured_since(index));
        let mut all: Vec<_> = made.chain(configured.filter(|id| !creates.contains(id)).filter_map(settings)).collect();
        all.sort_by_key(|(id, _)| *id);
        all.dedup_by_key(|(id, _)| *id);
        all
    }

    /// The settings of a queue changed (a policy): its shard is to be told.
    pub fn configured(&mut self, index: u64, queue: QueueId) {
        if let Some(record) = self.queues.get(&queue) {
            self.by_shard.entry(record.shard).or_default().configured(index, queue);
        }
    }

    /// The settings of all queues of a shard, for one that is too far behind for `settings_since`.
    pub fn all_settings(&self, shard: ShardId) -> Vec<(QueueId, QueueSettings)> {
        self.queues_of(shard).filter_map(|id| Some((id, self.settings(self.queues.get(&id)?)))).collect()
    }

    /// The same by comparing whole sets: `known` are the shard machine's queues.
    pub fn difference(&self, shard: ShardId, known: impl IntoIterator<Item = QueueId>) -> (Vec<QueueId>, Vec<QueueId>) {
        let wanted: BTreeSet<_> = self.queues_of(shard).collect();
        let known: BTreeSet<_> = known.into_iter().collect();
        (wanted.difference(&known).copied().collect(), known.difference(&wanted).copied().collect())
    }

    /// An exchange; "" is the default one.
    pub fn exchange(&self, name: &Name) -> Option<&Arc<ExchangeSpec>> {
        self.exchange_entry(&name.vhost, &name.name).map(|x| &x.spec)
    }

    /// All exchanges of a vhost, by name, with the default one.
    pub fn exchanges(&self, vhost: &str) -> Vec<Arc<ExchangeSpec>> {
        let mut all: Vec<_> = self.vhosts.get(vhost).into_iter().flat_map(|v| v.exchanges.values()).map(|x| x.spec.clone()).collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Exchanges that go when no process is up any more, by name. O(n).
    pub fn transient_exchanges(&self) -> Vec<Name> {
        let all = self.vhosts.values().flat_map(|v| v.exchanges.values());
        let mut names: Vec<_> = all.filter(|x| !x.spec.durable).map(|x| x.spec.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// All bindings that were made, in the order in which they were made. (Those of the default exchange are not among them.)
    pub fn bindings(&self) -> impl Iterator<Item = &Arc<BindingSpec>> {
        self.bindings.values()
    }

    /// Bindings from an exchange.
    pub fn bindings_from(&self, exchange: &Name) -> impl Iterator<Item = &Arc<BindingSpec>> {
        let ids = self.exchange_entry(&exchange.vhost, &exchange.name).into_iter().flat_map(|x| &x.outgoing);
        ids.filter_map(|id| self.bindings.get(id))
    }

    /// Bindings to a queue or an exchange.
    pub fn bindings_to(&self, target: Target, name: &Name) -> impl Iterator<Item = &Arc<BindingSpec>> {
        let ids = match target {
            Target::Queue => self.queue_entry(&name.vhost, &name.name).map(|q| &q.incoming),
            Target::Exchange => self.exchange_entry(&name.vhost, &name.name).map(|x| &x.incoming),
        };
        ids.into_iter().flatten().filter_map(|id| self.bindings.get(id))
    }

    /// All users, by name.
    pub fn users(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// A user.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// A user's rights in a vhost.
    pub fn permission(&self, user: &str, vhost: &str) -> Option<&Permission> {
        self.users.get(user)?.permissions.get(vhost)
    }

    /// Whether this is the user's password. Takes as long for an unknown user.
    pub fn authenticate(&self, user: &str, password: &[u8]) -> bool {
        const NOBODY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let known = self.users.get(user);
        password_matches(known.map_or(NOBODY, |u| &u.password_hash), password) && known.is_some()
    }

    fn queue_entry(&self, vhost: &str, name: &str) -> Option<&QueueEntry> {
        self.vhosts.get(vhost)?.queues.get(name)
    }

    fn exchange_entry(&self, vhost: &str, name: &str) -> Option<&Exchange> {
        self.vhosts.get(vhost)?.exchanges.get(name)
    }
}
