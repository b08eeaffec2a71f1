//! Rocket topics and consumer groups (`model::rocketmq`) as the catalog has them: looked up, allowed, made and removed. A group is made of
//! several commands, each of which may be repeated; the binding of its queues comes last, so that what is answered with "done" is whole.

use super::Edge;
use super::access::{Kind, Right, Who};
use super::admission::vouched;
use super::publish::{LEASE_POLL, NO_LEASE};
use crate::model::catalog::{
    BindingSpec, CatalogCommand, CatalogReply, ExchangeKind, ExchangeSpec, Name, QueueRecord, QueueSpec, Refusal, Renaming, Table, Target,
};
use crate::model::rocketmq::{self, AccessKey, Arrangement, TopicSettings};
use crate::model::{Incarnation, NodeId, QueueId, ShardId};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// What the server says where a topic says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RocketDefaults {
    /// How long a delivered message is invisible, ms.
    pub invisible_ms: u64,
    /// The same for messages consumed in order.
    pub ordered_invisible_ms: u64,
    /// The same for half messages that are checked.
    pub half_invisible_ms: u64,
    /// Deliveries after the first.
    pub max_retries: u32,
}

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May<'a> {
    /// Make a topic.
    Create(&'a str),
    /// Publish to a topic.
    Publish(&'a str),
    /// Make a group on a topic: its first queue is named.
    Subscribe(&'a str, &'a str),
    /// Consume from a queue of a group.
    Consume(&'a str),
}

impl Edge {
    /// Waits for a routing lease: without one this node's catalog may be old, and what is not in it may be there (rule 28).
    ///
    /// # Errors
    /// There is none in time.
    pub async fn leased(&self) -> Result<(), Refusal> {
        let until = Instant::now() + self.config.no_quorum_timeout;
        while !self.port.routing_lease() {
            if Instant::now() >= until {
                return Err(Refusal::Unavailable(NO_LEASE.to_owned()));
            }
            tokio::time::sleep(LEASE_POLL).await;
        }
        Ok(())
    }

    /// An access key.
    pub fn access_key(&self, id: &str) -> Option<AccessKey> {
        self.catalog.read().access_key(id).cloned()
    }

    /// Whether this user, who has proved who it is, may come from there.
    ///
    /// # Errors
    /// It may not, or is gone; for the log.
    pub fn may_come(&self, user: &str, from: IpAddr) -> Result<(), String> {
        vouched(&self.catalog.read(), user, from, &self.config.loopback_users).map(drop).map_err(|refused| refused.why)
    }

    /// A rocket topic.
    pub fn topic(&self, name: &Name) -> Option<TopicSettings> {
        self.catalog.read().exchange(name).and_then(|exchange| TopicSettings::of(exchange))
    }

    /// Whether a vhost exists.
    pub fn has_vhost(&self, vhost: &str) -> bool {
        self.catalog.read().has_vhost(vhost)
    }

    /// The queues of a group, by partition; `None`: there is no such group, or it is not whole.
    pub fn group(&self, topic: &Name, group: &str) -> Option<Vec<Name>> {
        let catalog = self.catalog.read();
        let settings = catalog.exchange(topic).and_then(|exchange| TopicSettings::of(exchange))?;
        let names = group_names(topic, group, settings.partitions);
        let is_bound = |name: &Name| catalog.bindings_to(Target::Queue, name).any(|b| b.source == topic.name);
        names.iter().all(|name| catalog.queue(name).is_some() && is_bound(name)).then_some(names)
    }

    /// The queues that keep half messages of a topic, and the node each is for.
    pub fn half_queues(&self, topic: &Name) -> Vec<(NodeId, Name)> {
        let catalog = self.catalog.read();
        let known = |node: u16| {
            let name = Name { vhost: topic.vhost.clone(), name: rocketmq::half_queue(&topic.name, NodeId(node)).into() };
            catalog.queue(&name).is_some().then_some((NodeId(node), name))
        };
        // Nodes are numbered freely: those that are up, and those whose queues are left.
        let prefix = rocketmq::half_queue(&topic.name, NodeId(0));
        let prefix = prefix.trim_end_matches('0');
        let mut nodes: Vec<u16> = catalog.nodes().map(|(node, _)| node.0).collect();
        let named = |r: &Arc<QueueRecord>| r.spec.name.name.strip_prefix(prefix).and_then(|node| node.parse::<u16>().ok());
        nodes.extend(catalog.queues_named(&topic.vhost, prefix).iter().filter_map(named));
        nodes.sort_unstable();
        nodes.dedup();
        nodes.into_iter().filter_map(known).collect()
    }

    /// This node and its process.
    pub fn process(&self) -> (NodeId, Incarnation) {
        (self.config.node, self.config.incarnation)
    }

    /// Nodes that are up, with their processes.
    pub fn processes(&self) -> Vec<(NodeId, Incarnation)> {
        self.catalog.read().nodes().collect()
    }

    /// Whether this user may do that in that vhost.
    pub fn permits(&self, user: &str, vhost: &str, what: May<'_>) -> Result<(), Refusal> {
        let catalog = self.catalog.read();
        let who = Who { user: Some(user), vhost };
        match what {
            May::Create(topic) => self.patterns.check(&catalog, who, Right::Configure, (Kind::Exchange, topic)),
            May::Publish(topic) => self.patterns.check(&catalog, who, Right::Write, (Kind::Exchange, topic)),
            May::Subscribe(topic, queue) => {
                self.patterns.check(&catalog, who, Right::Read, (Kind::Exchange, topic))?;
                self.patterns.check(&catalog, who, Right::Configure, (Kind::Queue, queue))?;
                self.patterns.check(&catalog, who, Right::Write, (Kind::Queue, queue))
            }
            May::Consume(queue) => self.patterns.check(&catalog, who, Right::Read, (Kind::Queue, queue)),
        }
    }

    /// Carries out what an operator, or a group's first consumer, asks for.
    ///
    /// # Errors
    /// A refusal; what was made until then stays, and the same again goes on from there.
    pub async fn arrange(&self, arrangement: &Arrangement, defaults: &RocketDefaults) -> Result<(), Refusal> {
        match arrangement {
            Arrangement::AddTopic { topic, settings } => self.add_topic(topic, settings).await,
            Arrangement::AddGroup { topic, group, max_retries } => self.add_group(topic, group, *max_retries, defaults).await,
            Arrangement::DeleteTopic { topic } => self.delete_topic(topic).await,
            Arrangement::DeleteGroup { topic, group } => {
                let settings = self.existing(topic)?;
                if self.groups(topic).iter().all(|other| other == group) {
                    self.add_reserve(topic, settings.partitions).await?;
                }
                self.delete_queues(topic, |name| rocketmq::group_of(&topic.name, name) == Some(group.as_str())).await.map(drop)
            }
        }
    }

    fn existing(&self, topic: &Name) -> Result<TopicSettings, Refusal> {
        let missing = || Refusal::NotFound { kind: "topic".into(), name: topic.name.to_string(), vhost: topic.vhost.to_string() };
        self.topic(topic).ok_or_else(missing)
    }

    async fn add_topic(&self, topic: &Name, settings: &TopicSettings) -> Result<(), Refusal> {
        check_name("topic", &topic.name)?;
        settings.check().map_err(Refusal::Precondition)?;
        self.submit(CatalogCommand::DeclareExchange(settings.exchange(topic.clone()))).await?;
        if self.groups(topic).is_empty() { self.add_reserve(topic, settings.partitions).await } else { Ok(()) }
    }

    /// Groups that have a queue bound to a topic.
    fn groups(&self, topic: &Name) -> BTreeSet<String> {
        let catalog = self.catalog.read();
        let group = |b: &Arc<BindingSpec>| rocketmq::group_of(&topic.name, &b.destination).map(str::to_owned);
        catalog.bindings_from(topic).filter(|b| b.target == Target::Queue).filter_map(group).collect()
    }

    /// What a topic gets before it has a group is kept for its first one. Dead letters have theirs from the beginning.
    async fn add_reserve(&self, topic: &Name, partitions: u32) -> Result<(), Refusal> {
        if rocketmq::dead_letters_of(&topic.name).is_some() {
            return Ok(());
        }
        let arguments = rocketmq::reserve_arguments(partitions);
        self.add_partitions(topic, &reserve_names(topic, partitions), &arguments).await
    }

    /// The queues of [`Self::add_reserve`] that there are.
    fn reserve(&self, topic: &Name, partitions: u32) -> Vec<QueueId> {
        let catalog = self.catalog.read();
        let is_replicated = |record: &&Arc<QueueRecord>| record.spec.durable && record.spec.exclusive_owner.is_none();
        let names = reserve_names(topic, partitions);
        names.iter().filter_map(|name| catalog.queue(name).filter(is_replicated).map(|record| record.id)).collect()
    }

    /// Makes what was kept for a topic's first group that group's own, whole or not at all; whether there was something to be had.
    async fn adopt_reserve(&self, topic: &Name, names: &[Name], arguments: &Table) -> Result<bool, Refusal> {
        let partitions = names.len() as u32;
        let mut ids = self.reserve(topic, partitions);
        if ids.is_empty() {
            return Ok(false);
        }
        if ids.len() < names.len() {
            // Whoever made it died over it, or another group takes it at this moment: then its bindings have lost their queues.
            match self.add_reserve(topic, partitions).await {
                Err(Refusal::NotFound { .. }) => return Ok(false),
                other => other?,
            }
            ids = self.reserve(topic, partitions);
        }
        if ids.len() < names.len() {
            return Ok(false);
        }
        let renaming = |(id, name): (_, &Name)| Renaming { id, name: name.name.clone(), arguments: arguments.clone() };
        let renamings = ids.into_iter().zip(names).map(renaming).collect();
        match self.submit(CatalogCommand::RenameQueues(renamings)).await {
            // Another group was faster, or this one has queues already.
            Err(Refusal::Precondition(_)) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// A queue for each partition, and then their bindings.
    async fn add_partitions(&self, topic: &Name, names: &[Name], arguments: &Table) -> Result<(), Refusal> {
        let made = names.iter().zip(0..).map(|(name, partition)| self.replicated(name, arguments, self.partition_shard(topic, partition)));
        for made in futures::future::join_all(made).await {
            made?;
        }
        let bound = names.iter().zip(0..).map(|(name, partition)| {
            let arguments = rocketmq::partition_arguments(partition);
            self.submit(CatalogCommand::Bind(binding(topic, name, "#", arguments)))
        });
        for bound in futures::future::join_all(bound).await {
            bound?;
        }
        Ok(())
    }

    async fn add_group(&self, topic: &Name, group: &str, retries: Option<u32>, defaults: &RocketDefaults) -> Result<(), Refusal> {
        check_name("group", group)?;
        let settings = self.existing(topic)?;
        if let Some(retries) = retries {
            if rocketmq::dead_letters_of(&topic.name).is_some() {
                let text = format!("dead letters do not die again: a group on topic '{}' takes no max-retries", topic.name);
                return Err(Refusal::Precondition(text));
            }
            self.check_retries(topic, group, settings.partitions, retries)?;
        }
        if rocketmq::dead_letters_of(&topic.name).is_none() {
            Box::pin(self.add_dead_letters(&topic.vhost, group, defaults)).await?;
        }
        let explicit = retries.is_some();
        let retries = retries.or(settings.max_retries).unwrap_or(defaults.max_retries);
        let arguments = rocketmq::group_arguments(&topic.name, group, retries);
        let names = group_names(topic, group, settings.partitions);
        if !self.adopt_reserve(topic, &names, &arguments).await? {
            self.add_partitions(topic, &names, &arguments).await?;
            // A topic with a group keeps nothing for another one.
            for id in self.reserve(topic, settings.partitions) {
                self.submit(CatalogCommand::DeleteQueue { id }).await?;
            }
        }
        // Somebody else may have been faster.
        if explicit { self.check_retries(topic, group, settings.partitions, retries) } else { Ok(()) }
    }

    /// What a group was made with stays: another number of retries is refused.
    fn check_retries(&self, topic: &Name, group: &str, partitions: u32, retries: u32) -> Result<(), Refusal> {
        let catalog = self.catalog.read();
        let wanted = rocketmq::retries_of(&rocketmq::group_arguments(&topic.name, group, retries));
        let names = group_names(topic, group, partitions);
        let known = names.iter().filter_map(|name| Some(rocketmq::retries_of(&catalog.queue(name)?.spec.arguments)));
        match known.into_iter().find(|known| *known != wanted) {
            None => Ok(()),
            Some(known) => {
                let known = known.map_or_else(|| "none".to_owned(), |known| known.to_string());
                let Name { vhost, name } = topic;
                let text = format!(
                    "inequivalent arg 'max-retries' for group '{group}' on topic '{name}' in vhost '{vhost}': received {retries} but current is {known}"
                );
                Err(Refusal::Inequivalent(text))
            }
        }
    }

    /// The topic of a group's dead letters, and the group on it.
    async fn add_dead_letters(&self, vhost: &Arc<str>, group: &str, defaults: &RocketDefaults) -> Result<(), Refusal> {
        let topic = Name { vhost: vhost.clone(), name: rocketmq::dead_letter_topic(group).into() };
        if self.group(&topic, group).is_some() {
            return Ok(());
        }
        self.submit(CatalogCommand::DeclareExchange(TopicSettings::default().exchange(topic.clone()))).await?;
        self.add_group(&topic, group, None, defaults).await
    }

    /// A durable queue in that shard; one that is there stays as it is.
    pub async fn replicated(&self, name: &Name, arguments: &Table, shard: ShardId) -> Result<(), Refusal> {
        if self.catalog.read().queue(name).is_some() {
            return Ok(());
        }
        let spec = QueueSpec { name: name.clone(), durable: true, auto_delete: false, exclusive_owner: None, arguments: arguments.clone() };
        let (node, incarnation) = (self.config.node, self.config.incarnation);
        match self.submit(CatalogCommand::DeclareQueue { spec, node, incarnation, shard }).await {
            // Somebody else was faster.
            Err(Refusal::Inequivalent(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// All groups have a partition in the same shard, so that its messages lie there once.
    pub fn partition_shard(&self, topic: &Name, partition: u32) -> ShardId {
        let shards: Vec<ShardId> = self.catalog.read().shards().collect();
        let spread = topic.name.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        shards.get(spread.wrapping_add(partition as usize) % shards.len().max(1)).copied().unwrap_or(ShardId(1))
    }

    async fn delete_topic(&self, topic: &Name) -> Result<(), Refusal> {
        let settings = self.existing(topic)?;
        self.delete_queues(topic, |_| true).await?;
        let own: Vec<QueueId> = {
            let names = self.half_queues(topic);
            let catalog = self.catalog.read();
            names.iter().filter_map(|(_, name)| catalog.queue(name).map(|record| record.id)).collect()
        };
        let own = own.into_iter().chain(self.reserve(topic, settings.partitions));
        for id in own {
            self.submit(CatalogCommand::DeleteQueue { id }).await?;
        }
        let name = topic.clone();
        self.submit(CatalogCommand::DeleteExchange { name, if_unused: false }).await.map(drop)
    }

    /// Queues bound to a topic that `which` picks by name.
    async fn delete_queues(&self, topic: &Name, which: impl Fn(&str) -> bool) -> Result<CatalogReply, Refusal> {
        let ids: Vec<_> = {
            let catalog = self.catalog.read();
            let of_groups = |b: &Arc<BindingSpec>| rocketmq::group_of(&topic.name, &b.destination).is_some() && which(&b.destination);
            let names = catalog.bindings_from(topic).filter(|b| b.target == Target::Queue && of_groups(b));
            let named = |b: &Arc<BindingSpec>| Name { vhost: topic.vhost.clone(), name: b.destination.clone() };
            names.filter_map(|b| catalog.queue(&named(b)).map(|record| record.id)).collect()
        };
        for id in ids {
            self.submit(CatalogCommand::DeleteQueue { id }).await?;
        }
        Ok(CatalogReply::Done)
    }

    /// Rocket topics of a vhost, by name.
    pub fn topics(&self, vhost: &str) -> Vec<(Arc<ExchangeSpec>, TopicSettings)> {
        let all = self.catalog.read().exchanges(vhost);
        let is_topic = |exchange: &Arc<ExchangeSpec>| exchange.routes_as() == ExchangeKind::RocketTopic;
        all.into_iter().filter(is_topic).filter_map(|exchange| Some((exchange.clone(), TopicSettings::of(&exchange)?))).collect()
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    if rocketmq::is_name(name) {
        return Ok(());
    }
    let most = rocketmq::NAME_BYTES;
    Err(Refusal::Precondition(format!("'{name}' is no name of a {what}: 1 to {most} letters, digits and _ - % | .")))
}

fn group_names(topic: &Name, group: &str, partitions: u32) -> Vec<Name> {
    let name = |partition| rocketmq::group_queue(&topic.name, group, partition, partitions);
    (0..partitions).map(|partition| Name { vhost: topic.vhost.clone(), name: name(partition).into() }).collect()
}

fn reserve_names(topic: &Name, partitions: u32) -> Vec<Name> {
    let name = |partition| rocketmq::reserve_queue(&topic.name, partition, partitions);
    (0..partitions).map(|partition| Name { vhost: topic.vhost.clone(), name: name(partition).into() }).collect()
}

fn binding(topic: &Name, queue: &Name, key: &str, arguments: Table) -> BindingSpec {
    BindingSpec {
        vhost: topic.vhost.clone(),
        source: topic.name.clone(),
        target: Target::Queue,
        destination: queue.name.clone(),
        key: key.into(),
        arguments,
    }
}
