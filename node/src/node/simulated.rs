//! A node in one process with others, on a ground of the simulator's choice and without listeners: its clients are connections of
//! its edge. It is the composition that `warren server` runs; it can be killed at any moment.

use super::StartError;
use super::ground::Ground;
use super::start::{Started, compose};
use crate::config::ServerConfig;
use crate::consensus::{Consensus, Replicas};
use crate::edge::Edge;
use crate::management::Readiness;
use crate::model::ShardId;
use std::sync::Arc;

/// A serving node. Its tasks run on the runtime it was started on; to kill it, `kill` it and shut that runtime down.
pub struct SimulatedNode(Started);

impl SimulatedNode {
    /// Starts it; resolves when it serves clients. Dropping the future kills it.
    ///
    /// # Errors
    /// As for a process.
    pub async fn start(config: ServerConfig, ground: Ground) -> Result<SimulatedNode, StartError> {
        compose(config, ground, &Readiness::default()).await.map(SimulatedNode)
    }

    /// For clients.
    pub fn edge(&self) -> &Arc<Edge> {
        &self.0.running.edge
    }

    /// Leadership, logs, links.
    pub fn consensus(&self) -> &Consensus {
        &self.0.running.consensus
    }

    /// The machines.
    pub fn replicas(&self) -> &Replicas {
        &self.0.running.replicas
    }

    /// Data shards of the cluster.
    pub fn shards(&self) -> u16 {
        self.0.running.shards
    }

    /// No group's log was purged: the state store could be lost.
    pub fn log_reaches_back(&self) -> bool {
        (0..=self.shards()).all(|shard| self.0.running.wal.state(ShardId(shard)).purged.is_none())
    }

    /// Bytes of old messages that were written again because their files were to be used again.
    pub fn relocated_bytes(&self) -> u64 {
        self.0.running.wal.stats().relocated_bytes
    }

    /// Everything of consensus ends where it stands: no checkpoint, no hand-over.
    pub fn kill(&self) {
        self.0.running.consensus.kill();
    }
}
