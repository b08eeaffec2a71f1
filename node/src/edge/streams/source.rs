//! What reading streams needs of the rest of the node; the composition root implements it.

use crate::machine::DataMachine;
use crate::model::ports::Bodies;
use crate::model::{NodeId, ShardId};
use parking_lot::Mutex;
use std::sync::Arc;

/// A shard's state and its entries on this node.
#[derive(Clone)]
pub struct Replica {
    /// What is applied.
    pub machine: Arc<Mutex<DataMachine>>,
    /// Where its bytes are.
    pub bodies: Arc<dyn Bodies>,
}

/// The replicas of data shards.
pub trait StreamSource: Send + Sync + 'static {
    /// This node's, if it holds one.
    fn replica(&self, shard: ShardId) -> Option<Replica>;
    /// The nodes that hold one, ascending.
    fn holders(&self, shard: ShardId) -> Vec<NodeId>;
}
