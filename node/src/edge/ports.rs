//! What the edge needs of the rest of the node; the composition root implements it.

use crate::model::catalog::{CatalogCommand, CatalogReply, Refusal};
use crate::model::report::Counted;
use crate::model::stream_step::Advertised;
use crate::model::{LeaderId, NodeId, ShardId};
use futures::future::BoxFuture;
use tokio::sync::watch;

/// The way into the catalog's log.
pub trait CatalogPort: Send + Sync + 'static {
    /// Commits a command. Resolves with the index and the answer when all nodes with a routing lease have applied it (rule 28).
    fn submit(&self, command: CatalogCommand) -> BoxFuture<'static, Result<(u64, CatalogReply), Refusal>>;
    /// Whether this node may route by its copy of the catalog. Cheap: asked for every publish. While false, publishes are held.
    fn routing_lease(&self) -> bool;
}

/// Who leads a shard, as this node sees it.
pub trait LeaderFinder: Send + Sync + 'static {
    /// Follows a shard's leader. Of a node's local shard the leader is its owner's present process (term = incarnation).
    fn leadership(&self, shard: ShardId) -> watch::Receiver<Option<LeaderId>>;
}

/// The edges of the other nodes.
pub trait Neighbours: Send + Sync + 'static {
    /// How many there are on each of these nodes. One that does not answer soon is left out.
    fn count(&self, counted: Counted, nodes: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, u64)>>;
    /// Where stream clients reach each of these nodes; `None`: nobody is there, or clients are not let in. One that does not answer soon is
    /// left out: it may be busy.
    fn addresses(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, Option<Advertised>)>>;
}
