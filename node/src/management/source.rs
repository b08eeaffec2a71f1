//! What `warren ctl` and the HTTP API can ask of a node. `node` implements [`AdminSource`] over the catalog and the edge; the rows
//! carry the catalog's own records plus the live figures.

use crate::model::catalog::{BindingSpec, ExchangeSpec, Name, QueueRecord, Refusal, Table, Target};
use crate::model::{LeaderId, NodeId, ShardId};
use futures::future::BoxFuture;

/// A queue and its live figures.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueRow {
    /// As it stands in the catalog.
    pub record: QueueRecord,
    /// Ready messages; `None` while its shard's leader does not answer.
    pub messages_ready: Option<u64>,
    /// Delivered and not yet settled.
    pub messages_unacknowledged: Option<u64>,
    /// Consumers.
    pub consumers: Option<u64>,
    /// The node that serves it, if one does.
    pub leader: Option<NodeId>,
    /// Nodes with a replica (the owner alone for an in-memory queue).
    pub members: Vec<NodeId>,
}

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Which.
    pub node: NodeId,
    /// Peer address as configured, `host:port`.
    pub address: String,
    /// This node itself, or one that answers.
    pub up: bool,
}

/// A Raft group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which; 0 is the catalog.
    pub shard: ShardId,
    /// Who leads it.
    pub leader: Option<LeaderId>,
    /// Nodes with a replica.
    pub members: Vec<NodeId>,
    /// Last applied log index here, 0 without a replica here.
    pub applied: u64,
}

/// Answer to `warren ctl status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// The cluster's UUID, empty until it is formed.
    pub cluster_id: String,
    /// All nodes.
    pub members: Vec<MemberStatus>,
    /// All Raft groups.
    pub shards: Vec<ShardStatus>,
    /// Client connections of this node.
    pub connections: u64,
    /// Queues in the catalog.
    pub queues: u64,
    /// Alarms in force, e.g. `disk: 512 MiB free, floor 1 GiB`.
    pub alarms: Vec<String>,
}

/// Answers for the operator. A missing vhost is `Refusal::NotFound`, no majority is `Refusal::Unavailable`.
pub trait AdminSource: Send + Sync + 'static {
    /// All queues of a vhost, by name.
    fn queues(&self, vhost: String) -> BoxFuture<'_, Result<Vec<QueueRow>, Refusal>>;
    /// All exchanges of a vhost, the default one (with the name "") too.
    fn exchanges(&self, vhost: String) -> BoxFuture<'_, Result<Vec<ExchangeSpec>, Refusal>>;
    /// All bindings of a vhost, with one [`implicit_binding`] per queue.
    fn bindings(&self, vhost: String) -> BoxFuture<'_, Result<Vec<BindingSpec>, Refusal>>;
    /// The node and the cluster.
    fn status(&self) -> BoxFuture<'_, Result<Status, Refusal>>;
}

/// The binding of every queue to the default exchange, which `list_bindings` shows as RabbitMQ does.
pub fn implicit_binding(queue: &Name) -> BindingSpec {
    BindingSpec {
        vhost: queue.vhost.clone(),
        source: "".into(),
        target: Target::Queue,
        destination: queue.name.clone(),
        key: queue.name.clone(),
        arguments: Table::new(),
    }
}
