//! What each catalog command does. Called through `Catalog::apply` by `consensus`, in log order. Refusals use RabbitMQ's texts; they
//! change nothing. No command costs more than what it touches.

use super::bindings::not_found;
use super::equivalence::{check_exchange, check_queue, exchange_text, queue_text};
use super::password::password_matches;
use super::{Catalog, User};
use crate::model::admin::{Permission, VhostFacts};
use crate::model::catalog::{
    BindingSpec, CatalogCommand, CatalogReply, ExchangeKind, ExchangeSpec, Name, Owner, QueueRecord, QueueSpec, Refusal, Renaming, Table,
};
use crate::model::rocketmq::AccessKey;
use crate::model::store;
use crate::model::{Incarnation, LogId, NodeId, QueueId, ShardId};
use crate::routing::{check_arguments, check_hash_arguments, check_partitions, weight};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) type Outcome = Result<CatalogReply, Refusal>;
pub(super) const DONE: Outcome = Ok(CatalogReply::Done);
/// The first user unless configured otherwise, and its password.
pub(super) const FIRST_USER: &str = "guest";

fn default_exchange_refusal() -> Refusal {
    Refusal::Access("operation not permitted on the default exchange".to_owned())
}

impl Catalog {
    /// Applies the next command.
    pub fn apply(&mut self, id: LogId, command: &CatalogCommand) -> CatalogReply {
        self.applied = id;
        self.outcome(id.index, command).unwrap_or_else(CatalogReply::Refused)
    }

    /// The log moved on with an entry that is not the catalog's (blank, membership).
    pub fn pass(&mut self, id: LogId) {
        self.applied = id;
    }

    fn outcome(&mut self, index: u64, command: &CatalogCommand) -> Outcome {
        match command {
            CatalogCommand::Bootstrap { vhost, user, password_hash, shards } => {
                self.bootstrap(index, (vhost, user, password_hash), *shards)
            }
            CatalogCommand::NodeUp { node, incarnation } => self.node_up(index, *node, *incarnation),
            CatalogCommand::NodeDown { node, incarnation } => self.node_down(index, *node, *incarnation),
            CatalogCommand::DeclareExchange(spec) => self.declare_exchange(index, spec),
            CatalogCommand::DeleteExchange { name, if_unused } => self.delete_exchange(name, *if_unused),
            CatalogCommand::DeclareQueue { spec, node, incarnation, shard } => {
                self.declare_queue(index, spec, (*node, *incarnation), *shard)
            }
            CatalogCommand::DeleteQueue { id } => {
                self.drop_queue(index, *id);
                DONE
            }
            CatalogCommand::RenameQueues(renamings) => self.rename_queues(index, renamings),
            CatalogCommand::ConnectionGone(owner) => self.connection_gone(index, owner),
            CatalogCommand::Bind(spec) => self.checked_bind(index, spec),
            CatalogCommand::Unbind(spec) => self.checked_unbind(spec),
            CatalogCommand::Group { group, member, change } => self.change_group(group, *member, change),
            CatalogCommand::Admin(command) => self.administer(index, command),
            CatalogCommand::Raise { version } => {
                self.raised = self.raised.max(*version);
                DONE
            }
        }
    }

    fn bootstrap(&mut self, index: u64, (vhost, user, password_hash): (&str, &str, &str), shards: u16) -> Outcome {
        if self.is_bootstrapped() {
            return DONE;
        }
        if shards == 0 || ShardId(shards).owner().is_some() || ShardId(shards).of_streams().is_some() {
            return Err(Refusal::Precondition(format!("a cluster has 1 to 16383 data shards, not {shards}")));
        }
        self.shards = shards;
        self.add_vhost(index, vhost, &VhostFacts::default());
        let all = || ".*".to_owned();
        let permission = Permission { configure: all(), write: all(), read: all() };
        let administrator = User {
            password_hash: password_hash.to_owned(),
            created: index,
            tags: vec!["administrator".to_owned()],
            permissions: BTreeMap::from([(vhost.to_owned(), permission)]),
            ..User::default()
        };
        self.users.insert(user.to_owned(), administrator);
        // Whoever leaves the first user as it is knows its password, and may use it as an access key from this machine too.
        if user == FIRST_USER && password_matches(password_hash, FIRST_USER.as_bytes()) {
            let key = AccessKey { secret: FIRST_USER.to_owned(), user: user.to_owned() };
            self.access_keys.insert(FIRST_USER.to_owned(), key);
        }
        self.access_version = index;
        DONE
    }

    fn node_up(&mut self, index: u64, node: NodeId, incarnation: Incarnation) -> Outcome {
        if self.nodes.get(&node).is_some_and(|present| *present > incarnation) {
            return DONE;
        }
        self.nodes.insert(node, incarnation);
        self.drop_memory(index, node, |owner| owner != incarnation);
        DONE
    }

    fn node_down(&mut self, index: u64, node: NodeId, incarnation: Incarnation) -> Outcome {
        if self.nodes.get(&node) != Some(&incarnation) {
            return DONE;
        }
        self.nodes.remove(&node);
        self.drop_memory(index, node, |_| true);
        if self.nodes.is_empty() {
            self.transient_exchanges().iter().for_each(|name| self.drop_exchange(name));
        }
        DONE
    }

    /// Drops the in-memory queues, and the members of groups, of those processes of a node that `which` picks.
    fn drop_memory(&mut self, index: u64, node: NodeId, which: impl Fn(Incarnation) -> bool) {
        let local: Vec<QueueId> = self.queues_of(ShardId::local(node)).collect();
        for id in local {
            if self.queues.get(&id).is_some_and(|r| which(r.incarnation)) {
                self.drop_queue(index, id);
            }
        }
        for owner in self.groups.owners_on(node).into_iter().filter(|owner| which(owner.incarnation)) {
            self.groups.drop_owner(&owner);
        }
    }

    fn declare_exchange(&mut self, index: u64, spec: &ExchangeSpec) -> Outcome {
        let name = &spec.name;
        if name.name.is_empty() {
            return Err(default_exchange_refusal());
        }
        let vhost = self.vhosts.get(&name.vhost).ok_or_else(|| not_found("vhost", &name.vhost, &name.vhost))?;
        if let Some(current) = vhost.exchanges.get(&name.name) {
            check_exchange(&current.spec, spec)?;
            return DONE;
        }
        if name.name.starts_with("amq.") {
            return Err(Refusal::Access(format!("exchange name '{}' contains reserved prefix 'amq.*'", name.name)));
        }
        let store = store::of_exchange(spec.kind, &spec.arguments).map_err(|invalid| match invalid {
            store::Invalid::UnknownKind(kind) => Refusal::Precondition(format!("unknown exchange type '{kind}'")),
            store::Invalid::Argument(why) => Refusal::Precondition(why),
        })?;
        if spec.routes_as() == ExchangeKind::ConsistentHash {
            check_hash_arguments(&spec.arguments).map_err(Refusal::Precondition)?;
        }
        if spec.routes_as() == ExchangeKind::RocketTopic {
            check_partitions(&spec.arguments).map_err(Refusal::Precondition)?;
        }
        self.put_exchange(spec.clone());
        if store.is_some() {
            self.add_store(index, name);
        }
        DONE
    }

    /// The queue in which an exchange keeps messages: always replicated, in the data shard that has the fewest queues.
    fn add_store(&mut self, index: u64, exchange: &Name) {
        let Some(shard) = self.least_loaded_shard() else { return };
        let name = Name { vhost: exchange.vhost.clone(), name: "".into() };
        let spec = QueueSpec { name, durable: true, auto_delete: false, exclusive_owner: None, arguments: Table::new() };
        let backs = Some(exchange.name.clone());
        let record = QueueRecord { id: QueueId(index), spec, shard, incarnation: Incarnation(0), backs };
        self.by_shard.entry(shard).or_default().created(index, record.id);
        self.put_queue(Arc::new(record));
    }

    fn delete_exchange(&mut self, name: &Name, if_unused: bool) -> Outcome {
        if name.name.is_empty() {
            return Err(default_exchange_refusal());
        }
        if name.name.starts_with("amq.") {
            return Err(Refusal::Access(format!("deletion of system {} not allowed", exchange_text(name))));
        }
        if if_unused && self.exchange_entry(&name.vhost, &name.name).is_some_and(|x| !x.outgoing.is_empty()) {
            return Err(Refusal::Precondition(format!("{} in use", exchange_text(name))));
        }
        self.drop_exchange(name);
        DONE
    }

    fn declare_queue(&mut self, index: u64, spec: &QueueSpec, process: (NodeId, Incarnation), shard: ShardId) -> Outcome {
        let name = &spec.name;
        let vhost = self.vhosts.get(&name.vhost).ok_or_else(|| not_found("vhost", &name.vhost, &name.vhost))?;
        if let Some(current) = vhost.queues.get(&name.name) {
            check_queue(&current.record.spec, spec)?;
            return Ok(CatalogReply::Queue { record: QueueRecord::clone(&current.record), created: false });
        }
        if let Some(limit) = self.vhost_limit(&name.vhost, "max-queues")
            && vhost.queues.len() as u64 >= limit
        {
            let (queue, vhost) = (&name.name, &name.vhost);
            let text = format!("cannot declare queue '{queue}': queue limit in vhost '{vhost}' ({limit}) is reached");
            return Err(Refusal::Precondition(text));
        }
        let shard = self.place(spec, process, shard)?;
        let record = QueueRecord { id: QueueId(index), spec: spec.clone(), shard, incarnation: process.1, backs: None };
        self.put_queue(Arc::new(record.clone()));
        self.by_shard.entry(shard).or_default().created(index, record.id);
        Ok(CatalogReply::Queue { record, created: true })
    }

    /// Durable and not exclusive: the data shard asked for; else the memory of the declaring process, if it is up.
    fn place(&self, spec: &QueueSpec, (node, incarnation): (NodeId, Incarnation), shard: ShardId) -> Result<ShardId, Refusal> {
        if spec.durable && spec.exclusive_owner.is_none() {
            let known = (1..=self.shards).contains(&shard.0);
            return if known { Ok(shard) } else { Err(Refusal::Unavailable(format!("there is no data shard {shard}"))) };
        }
        match self.nodes.get(&node) {
            Some(present) if *present == incarnation => Ok(ShardId::local(node)),
            Some(_) => Err(Refusal::Unavailable(format!("node {node} was restarted; declare the queue again"))),
            None => Err(Refusal::Unavailable(format!("node {node} was cut off and counts as down; declare the queue again"))),
        }
    }

    fn rename_queues(&mut self, index: u64, renamings: &[Renaming]) -> Outcome {
        for Renaming { id, name, .. } in renamings {
            let Some(record) = self.queues.get(id).filter(|record| record.backs.is_none()) else {
                return Err(Refusal::Precondition(format!("there is no queue {id} that could be called '{name}'")));
            };
            let name = Name { vhost: record.spec.name.vhost.clone(), name: name.clone() };
            if self.queue(&name).is_some() {
                return Err(Refusal::Precondition(format!("there is a {} already", queue_text(&name))));
            }
        }
        renamings.iter().for_each(|renaming| self.rename_queue(index, renaming));
        DONE
    }

    fn connection_gone(&mut self, index: u64, owner: &Owner) -> Outcome {
        let owned: Vec<QueueId> = self.by_owner.get(owner).into_iter().flatten().copied().collect();
        owned.into_iter().for_each(|id| self.drop_queue(index, id));
        self.groups.drop_owner(owner);
        DONE
    }

    fn checked_bind(&mut self, index: u64, spec: &BindingSpec) -> Outcome {
        self.check_ends(spec)?;
        let name = Name { vhost: spec.vhost.clone(), name: spec.source.clone() };
        let checked = match self.exchange(&name).map(|x| x.routes_as()) {
            Some(ExchangeKind::Headers) => check_arguments(&spec.arguments),
            Some(ExchangeKind::ConsistentHash) => weight(spec.key.as_bytes()).map(drop),
            Some(
                ExchangeKind::Direct
                | ExchangeKind::Fanout
                | ExchangeKind::Topic
                | ExchangeKind::ModulusHash
                | ExchangeKind::Random
                | ExchangeKind::LocalRandom
                | ExchangeKind::RocketTopic
                | ExchangeKind::Delayed
                | ExchangeKind::RecentHistory
                | ExchangeKind::Deduplication,
            )
            | None => Ok(()),
        };
        checked.map_err(Refusal::Precondition)?;
        self.bind(index, spec)?;
        DONE
    }

    fn checked_unbind(&mut self, spec: &BindingSpec) -> Outcome {
        self.check_ends(spec)?;
        self.unbind(spec);
        DONE
    }

    fn check_ends(&self, spec: &BindingSpec) -> Result<(), Refusal> {
        if spec.source.is_empty() || spec.destination.is_empty() { Err(default_exchange_refusal()) } else { Ok(()) }
    }
}
