//! What the operator's tools ask, answered from the catalog, the edge and the Raft groups.

use super::neighbours::Neighbours;
use super::running::Running;
use super::start::rocket_defaults;
use crate::config::ServerConfig;
use crate::consensus::Shard;
use crate::listener::rocketmq::Hub;
use crate::machine::catalog::{User, password_digest, split_hash};
use crate::management::{
    AccessKeyRow, Active, AdminSource, CertificateFile, CertificateRow, ConnectionRow, ExchangeRow, Granted, GroupRow, Holder, ListenerRow,
    MemberStatus, PolicyRow, QueueRow, ReplicaRow, SettingRow, ShardStatus, StateHash, Status, StreamGroupRow, TopicRow, UserRow, VhostRow,
    implicit_binding,
};
use crate::model::admin::{AdminCommand, Limits, Permission, PolicyKind, TopicPermission};
use crate::model::catalog::{BindingSpec, CatalogCommand, CatalogReply, ExchangeSpec, Name, QueueRecord, Refusal};
use crate::model::consumer_group::GroupState;
use crate::model::link::QueueStat;
use crate::model::report::{ConnectionStat, Counted};
use crate::model::rocketmq::{Arrangement, group_of};
use crate::model::roster::{RosterChange, RosterMember};
use crate::model::stream::StreamMemory;
use crate::model::stream_step::Advertised;
use crate::model::{NodeId, QueueId, ShardId};
use crate::peer::auth::Secret;
use crate::tls::{Files, Mutual};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use warren_proto::admin::{CloseRequest, ListReply, ListRequest};

/// Between two looks at the routing lease.
const LEASE_POLL: Duration = Duration::from_millis(20);

/// Refuses until the node runs.
#[derive(Clone)]
pub(super) struct Admin {
    pub running: Arc<OnceLock<Arc<Running>>>,
    pub neighbours: Arc<Neighbours>,
    pub hub: Arc<OnceLock<Arc<Hub>>>,
}

fn not_found(kind: &str, name: &str) -> Refusal {
    Refusal::NotFound { kind: kind.into(), name: name.into(), vhost: name.into() }
}

fn certificates(path: &Path) -> CertificateFile {
    CertificateFile { path: path.display().to_string(), expire_s: Files::expirations(path) }
}

impl Admin {
    pub(super) fn new(config: &ServerConfig, tls: Option<Mutual>) -> Admin {
        Admin { running: Arc::default(), neighbours: Arc::new(Neighbours::new(config, tls)), hub: Arc::default() }
    }

    fn running(&self) -> Result<&Arc<Running>, Refusal> {
        self.running.get().ok_or_else(|| Refusal::Unavailable("this node is still starting".into()))
    }

    fn in_vhost(&self, vhost: &str) -> Result<&Arc<Running>, Refusal> {
        let running = self.running()?;
        if running.catalog.read().has_vhost(vhost) {
            return Ok(running);
        }
        Err(not_found("vhost", vhost))
    }

    fn granted<T: Clone>(&self, of: Holder, rows: impl Fn(&User) -> Vec<(String, String, T)>) -> Result<Vec<Granted<T>>, Refusal> {
        let (user, vhost) = match &of {
            Holder::User(user) => (Some(user), None),
            Holder::Vhost(vhost) => (None, Some(vhost)),
        };
        let catalog = self.running()?.catalog.read();
        if let Some(user) = user.filter(|user| catalog.user(user).is_none()) {
            return Err(not_found("user", user));
        }
        if let Some(vhost) = vhost.filter(|vhost| !catalog.has_vhost(vhost)) {
            return Err(not_found("vhost", vhost));
        }
        let users = catalog.users().filter(|(name, _)| user.is_none_or(|user| user == name));
        let all = users.flat_map(|(name, row)| {
            let granted = |(vhost, exchange, permission)| Granted { user: name.to_owned(), vhost, exchange, permission };
            rows(row).into_iter().map(granted).collect::<Vec<_>>()
        });
        Ok(all.filter(|row| vhost.is_none_or(|vhost| *vhost == row.vhost)).collect())
    }
}

impl AdminSource for Admin {
    fn advertised(&self) -> Advertised {
        self.running.get().map(|running| running.config.stream_address()).unwrap_or_default()
    }

    fn queues(&self, vhost: String) -> BoxFuture<'_, Result<Vec<QueueRow>, Refusal>> {
        async move {
            let running = self.in_vhost(&vhost)?;
            let mut records = running.catalog.read().queues();
            records.retain(|r| *r.spec.name.vhost == *vhost);
            records.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
            let ids: Vec<_> = records.iter().map(|r| r.id).collect();
            let stats: HashMap<_, _> = running.edge.stats(&ids).await.into_iter().map(|s| (s.queue, s)).collect();
            Ok(records.iter().map(|record| running.row(record, stats.get(&record.id))).collect())
        }
        .boxed()
    }

    fn exchanges(&self, vhost: String) -> BoxFuture<'_, Result<Vec<ExchangeRow>, Refusal>> {
        async move {
            let catalog = self.in_vhost(&vhost)?.catalog.read();
            let policy = |name: &Name| catalog.exchange_policies(name).and_then(|p| p.user.as_ref().map(|p| p.name.clone()));
            let row = |e: &Arc<ExchangeSpec>| ExchangeRow { spec: ExchangeSpec::clone(e), policy: policy(&e.name) };
            Ok(catalog.exchanges(&vhost).iter().map(row).collect())
        }
        .boxed()
    }

    fn bindings(&self, vhost: String) -> BoxFuture<'_, Result<Vec<BindingSpec>, Refusal>> {
        async move {
            let catalog = self.in_vhost(&vhost)?.catalog.read();
            let mut queues = catalog.queues();
            queues.retain(|r| *r.spec.name.vhost == *vhost);
            queues.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
            let implicit = queues.iter().map(|r| implicit_binding(&r.spec.name));
            let bound = catalog.bindings().filter(|b| *b.vhost == *vhost).map(|b| BindingSpec::clone(b));
            Ok(implicit.chain(bound).collect())
        }
        .boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, Refusal>> {
        async move { self.running().map(|running| running.status()) }.boxed()
    }

    fn state_hashes(&self) -> Result<Vec<StateHash>, Refusal> {
        let running = self.running()?;
        let replica = |shard: ShardId| {
            let (applied, hash) = if shard == ShardId::CATALOG {
                let catalog = running.catalog.read();
                (catalog.applied().index, catalog.state_hash())
            } else {
                running.consensus.shard(shard)?;
                let machine = running.replicas.data(shard)?;
                let machine = machine.lock();
                (machine.applied().index, machine.state_hash())
            };
            Some(StateHash { shard, applied, hash })
        };
        Ok((0..=running.shards).map(ShardId).filter_map(replica).collect())
    }

    fn users(&self) -> Result<Vec<UserRow>, Refusal> {
        let catalog = self.running()?.catalog.read();
        Ok(catalog.users().map(|(name, user)| UserRow { user: name.to_owned(), tags: user.tags.clone() }).collect())
    }

    fn vhosts(&self) -> Result<Vec<VhostRow>, Refusal> {
        let running = self.running()?;
        let nodes: Vec<NodeId> = running.status().members.iter().filter(|member| member.up).map(|member| member.node).collect();
        let catalog = running.catalog.read();
        let row =
            |name: Arc<str>| Some(VhostRow { name: name.to_string(), facts: catalog.vhost_facts(&name)?.clone(), nodes: nodes.clone() });
        Ok(catalog.vhosts().into_iter().filter_map(row).collect())
    }

    fn permissions(&self, of: Holder) -> Result<Vec<Granted<Permission>>, Refusal> {
        self.granted(of, |user| user.permissions.iter().map(|(vhost, p)| (vhost.clone(), String::new(), p.clone())).collect())
    }

    fn topic_permissions(&self, of: Holder) -> Result<Vec<Granted<TopicPermission>>, Refusal> {
        self.granted(of, |user| user.topic_permissions.iter().map(|((v, x), p)| (v.clone(), x.clone(), p.clone())).collect())
    }

    fn policies(&self, kind: PolicyKind, vhost: String) -> Result<Vec<PolicyRow>, Refusal> {
        let catalog = self.in_vhost(&vhost)?.catalog.read();
        let mut rows: Vec<_> = catalog.policies(kind, &vhost).map(|p| PolicyRow { vhost: vhost.clone(), policy: p.clone() }).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.policy.priority));
        Ok(rows)
    }

    fn vhost_limits(&self, vhost: Option<String>) -> Result<Vec<(String, Limits)>, Refusal> {
        let catalog = self.running()?.catalog.read();
        let limits = |name: &str| catalog.vhost_limits(name).cloned();
        match vhost {
            Some(vhost) => limits(&vhost).map(|limits| vec![(vhost.clone(), limits)]).ok_or_else(|| not_found("vhost", &vhost)),
            None => Ok(catalog.vhosts().iter().filter_map(|v| Some((v.to_string(), limits(v)?))).filter(|row| !row.1.is_empty()).collect()),
        }
    }

    fn user_limits(&self, user: Option<String>) -> Result<Vec<(String, Limits)>, Refusal> {
        let catalog = self.running()?.catalog.read();
        match user {
            Some(user) => catalog.user(&user).map(|row| vec![(user.clone(), row.limits.clone())]).ok_or_else(|| not_found("user", &user)),
            None => Ok(catalog.users().filter(|(_, u)| !u.limits.is_empty()).map(|(n, u)| (n.to_owned(), u.limits.clone())).collect()),
        }
    }

    fn connections(&self) -> BoxFuture<'_, Result<Vec<ConnectionRow>, Refusal>> {
        async move {
            let running = self.running()?;
            let node = running.config.node;
            let mut reports = running.edge.reports().await;
            let reports_of_streams = reports.iter_mut().filter_map(|(_, report)| report.as_mut());
            for subscription in reports_of_streams.flat_map(|report| &mut report.subscriptions) {
                let (stream, shard) = subscription.target;
                subscription.end = running.replicas.data(shard).and_then(|machine| Some(machine.lock().stream(stream)?.next()));
            }
            Ok(reports.into_iter().map(|(stat, report)| ConnectionRow { node, stat, report }).collect())
        }
        .boxed()
    }

    fn active(&self, vhost: String, queues: BTreeSet<Arc<str>>) -> BoxFuture<'_, Result<BTreeMap<Arc<str>, Active>, Refusal>> {
        async move {
            let running = self.running()?;
            let vhost: Arc<str> = vhost.into();
            let single: HashMap<QueueId, Arc<str>> = {
                let catalog = running.catalog.read();
                let records = queues.into_iter().filter_map(|name| catalog.queue(&Name { vhost: vhost.clone(), name }).cloned());
                let single = records.filter(|record| catalog.settings(record).single_active_consumer);
                single.map(|record| (record.id, record.spec.name.name.clone())).collect()
            };
            let ids: Vec<_> = single.keys().copied().collect();
            let stats = running.edge.stats(&ids).await;
            let told = stats.into_iter().filter_map(|stat| Some((single.get(&stat.queue)?.clone(), stat.active)));
            // Of a leader that does not answer nobody knows which one is active.
            let mut active: BTreeMap<Arc<str>, Active> = single.values().map(|name| (name.clone(), None)).collect();
            active.extend(told);
            Ok(active)
        }
        .boxed()
    }

    fn replica(&self, queue: Name) -> Result<Option<ReplicaRow>, Refusal> {
        let running = self.in_vhost(&queue.vhost)?;
        let shard = running.record(&queue)?.shard;
        if shard.owner().is_some() {
            return Err(Refusal::Precondition("Cannot get quorum status of a classic queue".into()));
        }
        let row = |shard: Shard| ReplicaRow { node: running.config.node, raft: shard.raft_figures() };
        Ok(running.consensus.shard(shard).map(row))
    }

    fn stream_groups(&self, vhost: String) -> Result<Vec<StreamGroupRow>, Refusal> {
        let catalog = self.in_vhost(&vhost)?.catalog.read();
        let row = |state: GroupState| {
            let name = catalog.queue_by_id(state.name.stream)?.spec.name.clone();
            (*name.vhost == *vhost).then(|| StreamGroupRow { stream: name.name.to_string(), state })
        };
        Ok(catalog.consumer_groups().into_iter().filter_map(row).collect())
    }

    fn stream_memory(&self, stream: Name) -> Result<Option<StreamMemory>, Refusal> {
        let running = self.in_vhost(&stream.vhost)?;
        let missing = || Refusal::NotFound { kind: "stream".into(), name: stream.name.to_string(), vhost: stream.vhost.to_string() };
        let record = running.record(&stream).map_err(|_| missing())?;
        if running.catalog.read().settings(&record).stream.is_none() {
            return Err(missing());
        }
        Ok(running.replicas.data(record.shard).and_then(|machine| Some(machine.lock().stream(record.id)?.memory())))
    }

    fn listeners(&self) -> Vec<ListenerRow> {
        let Ok(running) = self.running() else { return Vec::new() };
        let config = &running.config;
        let row = |protocol, port, purpose| {
            let interface = config.host.clone();
            ListenerRow { node: config.node, protocol, interface, port, purpose }
        };
        let with_tls = config.amqps.as_ref().map(|amqps| {
            let streams = row("stream/ssl", config.stream_tls_port, "stream protocol over TLS");
            [row("amqp/ssl", amqps.port, "AMQP 0-9-1 over TLS"), streams]
        });
        let mut rows = vec![
            row("amqp", config.amqp_port, "AMQP 0-9-1"),
            row("stream", config.stream_port, "stream protocol"),
            row("rocketmq", config.rocketmq.port, "RocketMQ over HTTP"),
            row("http", config.management_port, "readiness and metrics"),
            row("clustering", config.peer_port, "inter-node and CLI tool communication"),
        ];
        rows.retain(|row| row.port != 0);
        rows.extend(config.rocketmq.tls_port.map(|port| row("rocketmq/ssl", port, "RocketMQ over HTTPS")));
        rows.extend(with_tls.into_iter().flatten());
        rows
    }

    fn certificates(&self) -> Result<Vec<CertificateRow>, Refusal> {
        let running = self.running()?;
        let (clients, peers) = (running.config.amqps.as_ref().map(|amqps| &amqps.files), running.config.peer_tls.as_ref());
        let row = |listener: ListenerRow| {
            let files = match listener.protocol {
                "clustering" => peers?,
                protocol if protocol.ends_with("/ssl") => clients?,
                _ => return None,
            };
            Some(CertificateRow { listener, own: certificates(&files.certificate), authorities: files.ca.as_deref().map(certificates) })
        };
        Ok(self.listeners().into_iter().filter_map(row).collect())
    }

    fn settings(&self) -> Vec<SettingRow> {
        self.running().map(|running| settings(&running.config)).unwrap_or_default()
    }

    fn change(&self, command: AdminCommand) -> BoxFuture<'_, Result<(), Refusal>> {
        async move {
            let running = self.running()?;
            let deadline = Instant::now() + running.config.no_quorum_timeout;
            running.until_catalog_is_fresh(deadline).await?;
            running.catalog.read().check(&command)?;
            let command = match command {
                AdminCommand::Roster { change, .. } => running.roster_command(change).await?,
                other => other,
            };
            match running.consensus.catalog().submit(&CatalogCommand::Admin(command), deadline).await? {
                (_, CatalogReply::Refused(refusal)) => Err(refusal),
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn arrange(&self, arrangement: Arrangement) -> BoxFuture<'_, Result<(), Refusal>> {
        async move {
            let running = self.running()?;
            let deadline = Instant::now() + running.config.no_quorum_timeout;
            running.until_catalog_is_fresh(deadline).await?;
            running.edge.arrange(&arrangement, &rocket_defaults(&running.config)).await
        }
        .boxed()
    }

    fn errand(&self, errand: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Refusal>> {
        async move {
            let hub = self.hub.get().ok_or_else(|| Refusal::Unavailable("this node is still starting".into()))?;
            hub.errand(&errand).await
        }
        .boxed()
    }

    fn topics(&self, vhost: String) -> Result<Vec<TopicRow>, Refusal> {
        let running = self.in_vhost(&vhost)?;
        let all = running.edge.topics(&vhost).into_iter();
        Ok(all.map(|(exchange, settings)| TopicRow { name: exchange.name.name.to_string(), settings }).collect())
    }

    fn groups(&self, vhost: String) -> BoxFuture<'_, Result<Vec<GroupRow>, Refusal>> {
        async move {
            let queues = self.queues(vhost.clone()).await?;
            let topics = self.in_vhost(&vhost)?.edge.topics(&vhost);
            let mut rows: BTreeMap<(String, String), GroupRow> = BTreeMap::new();
            for (topic, queue) in topics.iter().flat_map(|(topic, _)| queues.iter().map(move |queue| (topic, queue))) {
                let Some(group) = group_of(&topic.name.name, &queue.record.spec.name.name) else { continue };
                let topic = topic.name.name.to_string();
                let new = GroupRow { topic: topic.clone(), group: group.to_owned(), ready: Some(0), unacknowledged: Some(0) };
                let row = rows.entry((topic, group.to_owned())).or_insert(new);
                row.ready = row.ready.zip(queue.messages_ready).map(|(a, b)| a + b);
                row.unacknowledged = row.unacknowledged.zip(queue.messages_unacknowledged).map(|(a, b)| a + b);
            }
            Ok(rows.into_values().collect())
        }
        .boxed()
    }

    fn access_keys(&self) -> Result<Vec<AccessKeyRow>, Refusal> {
        let catalog = self.running()?.catalog.read();
        Ok(catalog.access_keys().map(|(id, key)| AccessKeyRow { id: id.to_owned(), user: key.user.clone() }).collect())
    }

    fn salt(&self, user: &str) -> Result<[u8; 4], Refusal> {
        let catalog = self.running()?.catalog.read();
        Ok(catalog.user(user).and_then(|u| split_hash(&u.password_hash)).map_or_else(rand::random, |(salt, _)| salt))
    }

    fn authenticate(&self, user: &str, nonce: &[u8], proof: &[u8]) -> Result<Option<String>, Refusal> {
        let running = self.running()?;
        let secret = Secret::new(running.config.secret.bytes());
        let hash = running.catalog.read().user(user).and_then(|u| split_hash(&u.password_hash));
        // A blank password lets nobody in.
        let known = hash.filter(|(salt, digest)| *digest != password_digest(salt, b""));
        let is_right = known.is_some_and(|(_, digest)| secret.is_password_proof(user, nonce, &digest, proof));
        Ok((!is_right).then(|| format!("user '{user}' - invalid credentials")))
    }

    fn purge(&self, queue: Name) -> BoxFuture<'_, Result<u64, Refusal>> {
        async move {
            let running = self.in_vhost(&queue.vhost)?;
            running.record(&queue)?;
            running.edge.purge_queue(&queue).await
        }
        .boxed()
    }

    fn delete_queue(&self, queue: Name, if_unused: bool, if_empty: bool) -> BoxFuture<'_, Result<u64, Refusal>> {
        async move {
            let running = self.in_vhost(&queue.vhost)?;
            let record = running.record(&queue)?;
            if record.spec.exclusive_owner.is_some() {
                return Err(Refusal::Locked("The queue is locked or protected from deletion".into()));
            }
            running.edge.delete_queue(&record, if_unused, if_empty, 0).await
        }
        .boxed()
    }

    fn count(&self, counted: &Counted) -> Result<u64, Refusal> {
        Ok(self.running()?.edge.count(counted))
    }

    fn close(&self, reason: &str, which: &dyn Fn(&ConnectionRow) -> bool) -> Result<u64, Refusal> {
        let running = self.running()?;
        let node = running.config.node;
        let picks = |stat: &ConnectionStat| which(&ConnectionRow { node, stat: stat.clone(), report: None });
        Ok(running.edge.close_connections(reason, picks))
    }

    fn elsewhere(&self, request: ListRequest) -> BoxFuture<'_, Vec<ListReply>> {
        self.neighbours.list(request).boxed()
    }

    fn close_elsewhere(&self, request: CloseRequest) -> BoxFuture<'_, u64> {
        self.neighbours.close(request).boxed()
    }
}

fn settings(config: &ServerConfig) -> Vec<SettingRow> {
    let row = |name, value: String| SettingRow { name, value };
    let file = |files: Option<&Files>| files.map_or_else(|| "none".into(), |files| files.certificate.display().to_string());
    let cluster: Vec<String> = config.cluster.iter().map(|m| format!("{}@{}:{}", m.node.0, m.host, m.port)).collect();
    vec![
        row("node-id", config.node.0.to_string()),
        row("data-dir", config.data_dir.display().to_string()),
        row("host", config.host.clone()),
        row("amqp-port", config.amqp_port.to_string()),
        row("amqps-port", config.amqps.as_ref().map_or_else(|| "none".into(), |amqps| amqps.port.to_string())),
        row("tls-cert", file(config.amqps.as_ref().map(|amqps| &amqps.files))),
        row("peer-tls-cert", file(config.peer_tls.as_ref())),
        row("rocketmq-port", config.rocketmq.port.to_string()),
        row("rocketmq-tls-port", config.rocketmq.tls_port.map_or_else(|| "none".into(), |port| port.to_string())),
        row("rocketmq-invisible", format!("{} ms", config.rocketmq.invisible_ms)),
        row("rocketmq-ordered-invisible", format!("{} ms", config.rocketmq.ordered_invisible_ms)),
        row("rocketmq-half-invisible", format!("{} ms", config.rocketmq.half_invisible_ms)),
        row("rocketmq-max-retries", config.rocketmq.max_retries.to_string()),
        row("rocketmq-auto-create-topics", config.rocketmq.auto_create_topics.to_string()),
        row("management-port", config.management_port.to_string()),
        row("peer-port", config.peer_port.to_string()),
        row("cluster", cluster.join(",")),
        row("loopback-users", config.loopback_users.join(",")),
        row("disk-floor", config.disk_floor_bytes.to_string()),
        row("max-message-size", config.max_message_bytes.to_string()),
        row("catch-up-log", config.catch_up_log_bytes.to_string()),
        row("log-budget", config.log_budget_bytes.to_string()),
        row("workers", config.workers.to_string()),
        row("no-quorum-timeout", format!("{:?}", config.no_quorum_timeout)),
    ]
}

impl Running {
    /// Without a routing lease this node's catalog may be old: what it says of names that others just made or removed counts for nothing.
    async fn until_catalog_is_fresh(&self, deadline: Instant) -> Result<(), Refusal> {
        let is_fresh = self.consensus.routing_lease();
        while !is_fresh() {
            if Instant::now() >= deadline {
                let text = "this node has no contact with a majority of the cluster; ask again when it has, or ask another one";
                return Err(Refusal::Unavailable(text.into()));
            }
            tokio::time::sleep(LEASE_POLL).await;
        }
        Ok(())
    }

    fn record(&self, queue: &Name) -> Result<Arc<QueueRecord>, Refusal> {
        let missing = || Refusal::NotFound { kind: "queue".into(), name: queue.name.to_string(), vhost: queue.vhost.to_string() };
        self.catalog.read().queue(queue).cloned().ok_or_else(missing)
    }

    fn row(&self, record: &Arc<QueueRecord>, stat: Option<&QueueStat>) -> QueueRow {
        let policies = self.catalog.read().queue_policies(record.id).cloned().unwrap_or_default();
        QueueRow {
            record: QueueRecord::clone(record),
            messages_ready: stat.map(|s| s.ready),
            messages_unacknowledged: stat.map(|s| s.unacked),
            consumers: stat.map(|s| u64::from(s.consumers)),
            leader: self.leader_node(record.shard),
            online: self.members(record.shard).into_iter().filter(|node| self.is_up(*node)).collect(),
            members: self.members(record.shard),
            message_bytes: stat.map(|s| s.bytes),
            message_bytes_unacknowledged: stat.map(|s| s.unacked_bytes),
            definition: policies.definition(),
            policy: policies.user.map(|p| p.name.clone()),
            operator_policy: policies.operator.map(|p| p.name.clone()),
        }
    }

    fn leader_node(&self, shard: ShardId) -> Option<NodeId> {
        shard.owner().or_else(|| self.consensus.leadership(shard).borrow().leader.map(|l| l.node()))
    }

    /// This node itself, or one that answers.
    fn is_up(&self, node: NodeId) -> bool {
        node == self.config.node || self.consensus.link(node).up > 0
    }

    /// The first one says as well who formed the cluster.
    async fn roster_command(&self, change: RosterChange) -> Result<AdminCommand, Refusal> {
        let founders = self.config.founders();
        let configured: Vec<NodeId> = founders.iter().map(|(node, _)| *node).collect();
        let without = if let RosterChange::Remove { node } = &change { Some(*node) } else { None };
        self.consensus.may_change_members(&configured, without).await?;
        Ok(AdminCommand::Roster { change, founders })
    }

    fn members(&self, shard: ShardId) -> Vec<NodeId> {
        match shard.owner() {
            Some(owner) => vec![owner],
            None => self.consensus.members().now(shard),
        }
    }

    fn status(&self) -> Status {
        let roster = self.consensus.members().roster();
        let member = |(node, member): (&NodeId, &RosterMember)| MemberStatus {
            node: *node,
            address: member.address.clone(),
            up: self.is_up(*node),
            stage: member.stage,
        };
        let shard = |shard: ShardId| ShardStatus {
            shard,
            leader: self.consensus.leadership(shard).borrow().leader,
            members: self.members(shard),
            goal: roster.groups.get(&shard).and_then(|place| place.goal.clone()).unwrap_or_default(),
            applied: self.consensus.shard(shard).and_then(|s| *s.applied().borrow()).map_or(0, |id| id.index),
        };
        Status {
            node: self.config.node,
            cluster_id: self.consensus.cluster().map(|id| format!("{id:032x}")).unwrap_or_default(),
            members: roster.members.iter().map(member).collect(),
            shards: (0..=self.shards).map(|n| shard(ShardId(n))).collect(),
            connections: self.edge.connections().len() as u64,
            queues: self.catalog.read().queue_count() as u64,
            alarms: self.alarm.lock().iter().chain(self.clock_alarm.lock().iter()).cloned().collect(),
            local_alarm: self.is_low.load(Ordering::Relaxed),
        }
    }
}
