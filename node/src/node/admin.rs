//! What the operator's tools ask, answered from the catalog, the edge and the Raft groups.

use super::running::Running;
use crate::consensus::placement;
use crate::management::{AdminSource, MemberStatus, QueueRow, ShardStatus, Status, implicit_binding};
use crate::model::catalog::{BindingSpec, ExchangeSpec, QueueRecord, Refusal};
use crate::model::link::QueueStat;
use crate::model::{NodeId, ShardId};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::{Arc, OnceLock};

/// Refuses until the node runs.
#[derive(Clone, Default)]
pub(super) struct Admin(pub Arc<OnceLock<Arc<Running>>>);

impl Admin {
    fn running(&self) -> Result<&Arc<Running>, Refusal> {
        self.0.get().ok_or_else(|| Refusal::Unavailable("this node is still starting".into()))
    }

    fn in_vhost(&self, vhost: &str) -> Result<&Arc<Running>, Refusal> {
        let running = self.running()?;
        if running.catalog.read().has_vhost(vhost) {
            return Ok(running);
        }
        Err(Refusal::NotFound { kind: "vhost".into(), name: vhost.into(), vhost: vhost.into() })
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
            let stats = running.edge.stats(&ids).await;
            let stat = |id| stats.iter().find(|s| s.queue == id);
            Ok(records.iter().map(|record| running.row(record, stat(record.id))).collect())
        }
        .boxed()
    }

    fn exchanges(&self, vhost: String) -> BoxFuture<'_, Result<Vec<ExchangeSpec>, Refusal>> {
        async move {
            let running = self.in_vhost(&vhost)?;
            let catalog = running.catalog.read();
            Ok(catalog.exchanges(&vhost).iter().map(|e| ExchangeSpec::clone(e)).collect())
        }
        .boxed()
    }

    fn bindings(&self, vhost: String) -> BoxFuture<'_, Result<Vec<BindingSpec>, Refusal>> {
        async move {
            let running = self.in_vhost(&vhost)?;
            let catalog = running.catalog.read();
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
}

impl Running {
    fn row(&self, record: &Arc<QueueRecord>, stat: Option<&QueueStat>) -> QueueRow {
        QueueRow {
            record: QueueRecord::clone(record),
            messages_ready: stat.map(|s| s.ready),
            messages_unacknowledged: stat.map(|s| s.unacked),
            consumers: stat.map(|s| u64::from(s.consumers)),
            leader: self.leader_node(record.shard),
            members: self.members(record.shard),
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
            alarms: self.alarm.lock().iter().cloned().collect(),
        }
    }
}
