//! What the operator's tools ask, answered from the catalog, the edge and the Raft groups.

use super::neighbours::Neighbours;
use super::running::Running;
use crate::config::ServerConfig;
use crate::consensus::placement;
use crate::edge::ConnectionStat;
use crate::machine::catalog::{Catalog, User};
use crate::management::{
    AdminSource, ConnectionRow, ExchangeRow, Granted, Holder, ListenerRow, MemberStatus, PolicyRow, QueueRow, ReplicaRow, SettingRow,
    ShardStatus, Status, UserRow, VhostRow, implicit_binding,
};
use crate::model::admin::{AdminCommand, Limits, Permission, PolicyKind, TopicPermission};
use crate::model::catalog::{BindingSpec, CatalogCommand, CatalogReply, ExchangeSpec, Name, QueueRecord, Refusal};
use crate::model::limits::NAME_BYTES;
use crate::model::link::QueueStat;
use crate::model::report::{Counted, Report};
use crate::model::{NodeId, ShardId};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use tokio::time::Instant;
use warren_proto::admin::{CloseRequest, ListReply, ListRequest};

/// Refuses until the node runs.
#[derive(Clone)]
pub(super) struct Admin {
    pub running: Arc<OnceLock<Arc<Running>>>,
    pub neighbours: Arc<Neighbours>,
}

fn not_found(kind: &str, name: &str) -> Refusal {
    Refusal::NotFound { kind: kind.into(), name: name.into(), vhost: name.into() }
}

impl Admin {
    pub(super) fn new(config: &ServerConfig) -> Admin {
        Admin { running: Arc::default(), neighbours: Arc::new(Neighbours::new(config)) }
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

    fn users(&self) -> Result<Vec<UserRow>, Refusal> {
        let catalog = self.running()?.catalog.read();
        Ok(catalog.users().map(|(name, user)| UserRow { user: name.to_owned(), tags: user.tags.clone() }).collect())
    }

    fn vhosts(&self) -> Result<Vec<VhostRow>, Refusal> {
        let catalog = self.running()?.catalog.read();
        let row = |name: Arc<str>| Some(VhostRow { name: name.to_string(), facts: catalog.vhost_facts(&name)?.clone() });
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
            Ok(running.edge.reports().await.into_iter().map(|(stat, report)| connection_row(node, stat, report)).collect())
        }
        .boxed()
    }

    fn replica(&self, queue: Name) -> Result<Option<ReplicaRow>, Refusal> {
        let running = self.in_vhost(&queue.vhost)?;
        let shard = running.record(&queue)?.shard;
        if shard.owner().is_some() {
            return Err(Refusal::Precondition("Cannot get quorum status of a classic queue".into()));
        }
        Ok(running.consensus.shard(shard).map(|shard| {
            let raft = shard.raft_figures();
            ReplicaRow {
                node: running.config.node,
                state: raft.state,
                term: raft.term,
                last_index: raft.last_index,
                committed: raft.committed,
                applied: raft.applied,
                purged: raft.purged,
            }
        }))
    }

    fn listeners(&self) -> Vec<ListenerRow> {
        let Ok(running) = self.running() else { return Vec::new() };
        let config = &running.config;
        let row = |protocol, port, purpose| {
            let interface = config.host.clone();
            ListenerRow { node: config.node, protocol, interface, port, purpose }
        };
        vec![
            row("amqp", config.amqp_port, "AMQP 0-9-1"),
            row("http", config.management_port, "readiness and metrics"),
            row("clustering", config.peer_port, "inter-node and CLI tool communication"),
        ]
    }

    fn settings(&self) -> Vec<SettingRow> {
        self.running().map(|running| settings(&running.config)).unwrap_or_default()
    }

    fn change(&self, command: AdminCommand) -> BoxFuture<'_, Result<(), Refusal>> {
        async move {
            let running = self.running()?;
            check(&running.catalog.read(), &command)?;
            let deadline = Instant::now() + running.config.no_quorum_timeout;
            match running.consensus.catalog().submit(&CatalogCommand::Admin(command), deadline).await? {
                (_, CatalogReply::Refused(refusal)) => Err(refusal),
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn authenticate(&self, user: &str, password: &[u8]) -> Result<Option<String>, Refusal> {
        let is_right = self.running()?.catalog.read().authenticate(user, password);
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
        let picks = |stat: &ConnectionStat| which(&connection_row(running.config.node, stat.clone(), None));
        Ok(running.edge.close_connections(reason, picks))
    }

    fn elsewhere(&self, request: ListRequest) -> BoxFuture<'_, Vec<ListReply>> {
        self.neighbours.list(request).boxed()
    }

    fn close_elsewhere(&self, request: CloseRequest) -> BoxFuture<'_, u64> {
        self.neighbours.close(request).boxed()
    }
}

/// What is refused before it gets into the log: names that cannot be, and the end of things that are not there.
fn check(catalog: &Catalog, command: &AdminCommand) -> Result<(), Refusal> {
    let is_name = |what: &str, name: &str| match name.len() {
        0 => Err(Refusal::Precondition(format!("{what} cannot be an empty string"))),
        n if n > NAME_BYTES => Err(Refusal::Precondition(format!("{what} cannot be longer than {NAME_BYTES} bytes"))),
        _ => Ok(()),
    };
    match command {
        AdminCommand::AddUser { user, .. } => is_name("user", user),
        AdminCommand::AddVhost { vhost, .. } => is_name("vhost", vhost),
        AdminCommand::SetPolicy { policy, .. } => is_name("policy name", &policy.name),
        AdminCommand::DeleteUser { user } if catalog.user(user).is_none() => Err(not_found("user", user)),
        AdminCommand::DeleteVhost { vhost } if !catalog.has_vhost(vhost) => Err(not_found("vhost", vhost)),
        _ => Ok(()),
    }
}

fn connection_row(node: NodeId, stat: ConnectionStat, report: Option<Report>) -> ConnectionRow {
    let ConnectionStat { id, peer, since, user, vhost, blocked } = stat;
    ConnectionRow { node, id, peer, since, user, vhost, blocked, report }
}

fn settings(config: &ServerConfig) -> Vec<SettingRow> {
    let row = |name, value: String| SettingRow { name, value };
    let cluster: Vec<String> = config.cluster.iter().map(|m| format!("{}@{}:{}", m.node.0, m.host, m.port)).collect();
    vec![
        row("node-id", config.node.0.to_string()),
        row("data-dir", config.data_dir.display().to_string()),
        row("host", config.host.clone()),
        row("amqp-port", config.amqp_port.to_string()),
        row("management-port", config.management_port.to_string()),
        row("peer-port", config.peer_port.to_string()),
        row("cluster", cluster.join(",")),
        row("loopback-users", config.loopback_users.join(",")),
        row("disk-floor", config.disk_floor_bytes.to_string()),
        row("catch-up-log", config.catch_up_log_bytes.to_string()),
        row("workers", config.workers.to_string()),
        row("no-quorum-timeout", format!("{:?}", config.no_quorum_timeout)),
    ]
}

impl Running {
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
            members: self.members(record.shard),
            definition: policies.definition(),
            policy: policies.user.map(|p| p.name.clone()),
            operator_policy: policies.operator.map(|p| p.name.clone()),
        }
    }

    fn leader_node(&self, shard: ShardId) -> Option<NodeId> {
        shard.owner().or_else(|| self.consensus.leadership(shard).borrow().leader.map(|l| l.node()))
    }

    fn members(&self, shard: ShardId) -> Vec<NodeId> {
        match shard.owner() {
            Some(owner) => vec![owner],
            None => placement::voters(shard, &self.nodes()).iter().map(|v| v.node).collect(),
        }
    }

    fn status(&self) -> Status {
        let up = |node| node == self.config.node || self.consensus.link(node).up > 0;
        let member = |m: &crate::config::Member| MemberStatus { node: m.node, address: format!("{}:{}", m.host, m.port), up: up(m.node) };
        let shard = |shard: ShardId| ShardStatus {
            shard,
            leader: self.consensus.leadership(shard).borrow().leader,
            members: self.members(shard),
            applied: self.consensus.shard(shard).and_then(|s| *s.applied().borrow()).map_or(0, |id| id.index),
        };
        Status {
            node: self.config.node,
            cluster_id: self.consensus.cluster().map(|id| format!("{id:032x}")).unwrap_or_default(),
            members: self.config.cluster.iter().map(member).collect(),
            shards: (0..=self.shards).map(|n| shard(ShardId(n))).collect(),
            connections: self.edge.connections().len() as u64,
            queues: self.catalog.read().queue_count() as u64,
            alarms: self.alarm.lock().iter().chain(self.clock_alarm.lock().iter()).cloned().collect(),
            local_alarm: self.is_low.load(Ordering::Relaxed),
        }
    }
}
