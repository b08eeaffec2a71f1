//! The catalog (shard 0): vhosts, users, exchanges, queues, bindings, nodes. A pure function of its log. `consensus` applies, the edge
//! routes and looks up under a read lock, the management reads. Here: the state and its reads; `apply` has the commands, `route` the
//! routing, `persist` snapshots. Messages and consumers are not here.

mod admin;
#[cfg(test)]
mod admin_tests;
mod apply;
mod bindings;
mod changes;
mod check;
mod equivalence;
mod groups;
mod password;
mod pattern;
mod persist;
mod policy;
mod roster;
mod route;
#[cfg(test)]
mod routing_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;

pub use equivalence::{check_owner, check_queue, exchange_text, queue_text};
pub use password::{decode_base64, hash_password, password_digest, password_matches, split_hash};
pub use pattern::Pattern;
pub use persist::{Image, decode_command, encode_command};
pub use policy::{Applied, policy_keys, queue_type};
pub use route::{Envelope, RouteResult};

use crate::model::admin::{Limits, Permission, Policy, PolicyKind, TopicPermission, VhostFacts};
use crate::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Name, Owner, QueueRecord, Target, Value};
use crate::model::entry::Replay;
use crate::model::rocketmq::AccessKey;
use crate::model::roster::Roster;
use crate::model::settings::QueueSettings;
use crate::model::store;
use crate::model::{Incarnation, LogId, NodeId, QueueId, ShardId, version};
use crate::routing::RoutingTable;
use changes::ShardQueues;
use groups::Groups;
use hashbrown::HashMap;
use policy::Compiled;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Exchanges that every vhost has: name, kind, internal.
const PREDECLARED: [(&str, ExchangeKind, bool); 7] = [
    ("", ExchangeKind::Direct, false),
    ("amq.direct", ExchangeKind::Direct, false),
    ("amq.fanout", ExchangeKind::Fanout, false),
    ("amq.headers", ExchangeKind::Headers, false),
    ("amq.match", ExchangeKind::Headers, false),
    ("amq.rabbitmq.trace", ExchangeKind::Topic, true),
    ("amq.topic", ExchangeKind::Topic, false),
];

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
    policies: Applied,
    outgoing: BTreeSet<u64>,
    incoming: BTreeSet<u64>,
    /// Where it keeps messages, when its kind does.
    store: Option<(QueueId, ShardId)>,
}

impl Exchange {
    /// An argument wins over a policy.
    fn set_policies(&mut self, policies: Applied) {
        let named = self.spec.arguments.get("alternate-exchange").cloned().or_else(|| policies.get("alternate-exchange"));
        self.alternate = match named {
            Some(Value::Text(name)) => std::str::from_utf8(&name).ok().map(Arc::from),
            Some(_) | None => None,
        };
        self.policies = policies;
    }
}

#[derive(Clone, Debug)]
struct QueueEntry {
    record: Arc<QueueRecord>,
    policies: Applied,
    incoming: BTreeSet<u64>,
}

#[derive(Clone, Debug, Default)]
struct Vhost {
    /// The catalog index that created it.
    created: u64,
    facts: VhostFacts,
    limits: Limits,
    user_policies: BTreeMap<String, Compiled>,
    operator_policies: BTreeMap<String, Compiled>,
    exchanges: HashMap<Arc<str>, Exchange>,
    queues: HashMap<Arc<str>, QueueEntry>,
}

impl Vhost {
    fn policies(&self, kind: PolicyKind) -> &BTreeMap<String, Compiled> {
        match kind {
            PolicyKind::User => &self.user_policies,
            PolicyKind::Operator => &self.operator_policies,
        }
    }

    fn policies_mut(&mut self, kind: PolicyKind) -> &mut BTreeMap<String, Compiled> {
        match kind {
            PolicyKind::User => &mut self.user_policies,
            PolicyKind::Operator => &mut self.operator_policies,
        }
    }
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// base64(salt ++ sha256(salt ++ password)); "": nobody can log in with a password.
    pub password_hash: String,
    /// The catalog index that created it: another user of the same name has another one.
    pub created: u64,
    /// E.g. `administrator`.
    pub tags: Vec<String>,
    /// By vhost.
    pub permissions: BTreeMap<String, Permission>,
    /// By vhost and exchange.
    pub topic_permissions: BTreeMap<(String, String), TopicPermission>,
    /// `max-connections`, `max-channels`.
    pub limits: Limits,
}

/// The catalog's state.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    applied: LogId,
    /// The cluster's version; 0: it was never raised.
    raised: u8,
    shards: u16,
    vhosts: HashMap<Arc<str>, Vhost>,
    users: BTreeMap<String, User>,
    access_keys: BTreeMap<String, AccessKey>,
    /// Processes that are up.
    nodes: BTreeMap<NodeId, Incarnation>,
    /// Who is a member, once that has changed since the cluster was formed.
    roster: Option<Arc<Roster>>,
    queues: HashMap<QueueId, Arc<QueueRecord>>,
    /// Those of them that are streams.
    streams: HashSet<QueueId>,
    by_shard: BTreeMap<ShardId, ShardQueues>,
    by_owner: HashMap<Owner, BTreeSet<QueueId>>,
    groups: Groups,
    bindings: BTreeMap<u64, Arc<BindingSpec>>,
    binding_ids: HashMap<Box<[u8]>, u64>,
    /// The last change of users, vhosts, permissions or limits. Not state: after a restart it is the index that was restored.
    access_version: u64,
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

    /// The version of the log that the cluster uses (docs/decisions/0027).
    pub fn version(&self) -> u8 {
        self.raised.max(version::FIRST)
    }

    /// The catalog index that batches name: the index last applied.
    pub fn index(&self) -> u64 {
        self.applied.index
    }

    /// Moves with every change of users, vhosts, permissions, limits or policies: what was allowed at one version is so until the next.
    pub fn access_version(&self) -> u64 {
        self.access_version
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

    /// The catalog index that created a vhost: another one of the same name has another one.
    pub fn vhost_created(&self, vhost: &str) -> Option<u64> {
        self.vhosts.get(vhost).map(|v| v.created)
    }

    /// What a vhost was created with.
    pub fn vhost_facts(&self, vhost: &str) -> Option<&VhostFacts> {
        self.vhosts.get(vhost).map(|v| &v.facts)
    }

    /// The limits of a vhost, as they were set.
    pub fn vhost_limits(&self, vhost: &str) -> Option<&Limits> {
        self.vhosts.get(vhost).map(|v| &v.limits)
    }

    /// One limit of a vhost, if it has it.
    pub fn vhost_limit(&self, vhost: &str, name: &str) -> Option<u64> {
        self.vhosts.get(vhost).and_then(|v| limit(&v.limits, name))
    }

    /// One limit of a user, if it has it.
    pub fn user_limit(&self, user: &str, name: &str) -> Option<u64> {
        self.users.get(user).and_then(|u| limit(&u.limits, name))
    }

    /// The policies of a vhost, by name.
    pub fn policies(&self, kind: PolicyKind, vhost: &str) -> impl Iterator<Item = &Arc<Policy>> {
        self.vhosts.get(vhost).into_iter().flat_map(move |v| v.policies(kind).values().map(|c| &c.policy))
    }

    /// A queue by name.
    pub fn queue(&self, name: &Name) -> Option<&Arc<QueueRecord>> {
        self.queue_entry(&name.vhost, &name.name).map(|q| &q.record)
    }

    /// A queue by identity.
    pub fn queue_by_id(&self, id: QueueId) -> Option<&Arc<QueueRecord>> {
        self.queues.get(&id)
    }

    /// Whether a queue is a stream. Asked for every message that is routed.
    pub fn is_stream(&self, id: QueueId) -> bool {
        !self.streams.is_empty() && self.streams.contains(&id)
    }

    /// All queues that clients can name, by id. O(n log n).
    pub fn queues(&self) -> Vec<Arc<QueueRecord>> {
        let mut all: Vec<_> = self.queues.values().filter(|r| r.backs.is_none()).cloned().collect();
        all.sort_unstable_by_key(|r| r.id);
        all
    }

    /// Queues of a vhost whose names begin so. O(n) in the queues of the vhost.
    pub fn queues_named(&self, vhost: &str, prefix: &str) -> Vec<Arc<QueueRecord>> {
        let queues = self.vhosts.get(vhost).into_iter().flat_map(|v| v.queues.values());
        queues.map(|q| &q.record).filter(|r| r.spec.name.name.starts_with(prefix)).cloned().collect()
    }

    /// How many queues there are that clients can name.
    pub fn queue_count(&self) -> usize {
        self.vhosts.values().map(|v| v.queues.len()).sum()
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
        if let Some(exchange) = &record.backs {
            let spec = self.exchange_entry(&record.spec.name.vhost, exchange).map(|x| &x.spec);
            let store = spec.and_then(|spec| store::of_exchange(spec.kind, &spec.arguments).ok().flatten());
            return store.map_or_else(QueueSettings::default, QueueSettings::of_store).named(&record.spec.name.vhost, exchange);
        }
        let policy = self.queue_policies(record.id).filter(|p| !p.is_empty()).map(Applied::definition).unwrap_or_default();
        let name = &record.spec.name;
        QueueSettings::effective(&record.spec.arguments, &policy).named(&name.vhost, &name.name)
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

    /// Bindings made since catalog index `index` that get what their exchange remembers, where a queue of this shard keeps that.
    pub fn replays_since(&self, index: u64, shard: ShardId) -> Vec<Replay> {
        self.by_shard.get(&shard).map(|s| s.replays_since(index)).unwrap_or_default()
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

    /// All access keys, by id.
    pub fn access_keys(&self) -> impl Iterator<Item = (&str, &AccessKey)> {
        self.access_keys.iter().map(|(id, key)| (id.as_str(), key))
    }

    /// An access key.
    pub fn access_key(&self, id: &str) -> Option<&AccessKey> {
        self.access_keys.get(id)
    }

    /// A user's rights in a vhost.
    pub fn permission(&self, user: &str, vhost: &str) -> Option<&Permission> {
        self.users.get(user)?.permissions.get(vhost)
    }

    /// What a user is restricted to on an exchange; `None`: not restricted, or it is no topic exchange.
    pub fn topic_permission(&self, user: &str, vhost: &str, exchange: &str) -> Option<&TopicPermission> {
        let rows = &self.users.get(user)?.topic_permissions;
        if rows.is_empty() || !self.is_topic(vhost, exchange) {
            return None;
        }
        rows.get(&(vhost.to_owned(), exchange.to_owned()))
    }

    /// Whether a user is restricted on an exchange of that name, as soon as it is a topic exchange.
    pub fn has_topic_permission(&self, user: &str, vhost: &str, exchange: &str) -> bool {
        let rows = self.users.get(user).map(|u| &u.topic_permissions).filter(|rows| !rows.is_empty());
        rows.is_some_and(|rows| rows.contains_key(&(vhost.to_owned(), exchange.to_owned())))
    }

    /// Whether there is a topic exchange of that name.
    pub fn is_topic(&self, vhost: &str, exchange: &str) -> bool {
        self.exchange_entry(vhost, exchange).is_some_and(|x| x.spec.kind == ExchangeKind::Topic)
    }

    /// Whether this is the user's password. Takes as long for an unknown user.
    pub fn authenticate(&self, user: &str, password: &[u8]) -> bool {
        const NOBODY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let known = self.users.get(user);
        !password.is_empty() && password_matches(known.map_or(NOBODY, |u| &u.password_hash), password) && known.is_some()
    }

    fn queue_entry(&self, vhost: &str, name: &str) -> Option<&QueueEntry> {
        self.vhosts.get(vhost)?.queues.get(name)
    }

    fn exchange_entry(&self, vhost: &str, name: &str) -> Option<&Exchange> {
        self.vhosts.get(vhost)?.exchanges.get(name)
    }
}

/// A negative limit is none.
fn limit(limits: &Limits, name: &str) -> Option<u64> {
    limits.get(name).and_then(|n| u64::try_from(*n).ok())
}
