//! What `edge` reads streams from: this node's machines and logs.

use crate::consensus::{Consensus, Replicas};
use crate::edge::{Replica, StreamSource};
use crate::model::{NodeId, ShardId};
use std::sync::Arc;

/// The replicas of data shards.
pub(super) struct Held {
    /// This node's machines.
    pub replicas: Replicas,
    /// Its groups.
    pub consensus: Arc<Consensus>,
}

impl StreamSource for Held {
    fn replica(&self, shard: ShardId) -> Option<Replica> {
        let (machine, bodies) = (self.replicas.data(shard)?, self.consensus.shard(shard)?);
        Some(Replica { machine, bodies: Arc::new(bodies) })
    }

    fn holders(&self, shard: ShardId) -> Vec<NodeId> {
        self.consensus.holders(shard)
    }
}
