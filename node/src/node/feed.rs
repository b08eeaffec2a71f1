//! The node's copy of the catalog as `serving` asks for it, commands into the catalog and paths to leaders as `edge` asks for them.

use crate::consensus::{CatalogClient, Consensus};
use crate::edge::CatalogPort;
use crate::machine::catalog::Catalog;
use crate::model::catalog::{CatalogCommand, CatalogReply, Refusal};
use crate::model::ports::{EdgeEnd, LeaderEnd, Paths, path};
use crate::model::{NodeId, QueueId, ShardId};
use crate::serving::{CatalogChanges, CatalogFeed, QueueFacts, ServerHandle};
use futures::FutureExt;
use futures::future::BoxFuture;
use hashbrown::HashMap;
use parking_lot::RwLock;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The catalog for shard servers.
pub(super) struct Feed(pub Arc<RwLock<Catalog>>);

impl CatalogFeed for Feed {
    fn index(&self) -> u64 {
        self.0.read().index()
    }

    fn changes(&self, shard: ShardId, from: u64, known: &dyn Fn() -> Vec<QueueId>) -> CatalogChanges {
        let catalog = self.0.read();
        let (creates, drops) = catalog.changes_since(from, shard).unwrap_or_else(|| catalog.difference(shard, known()));
        CatalogChanges { to: catalog.index(), creates, drops }
    }

    fn facts(&self, queue: QueueId) -> Option<QueueFacts> {
        let catalog = self.0.read();
        let record = catalog.queue_by_id(queue)?;
        Some(QueueFacts { name: record.spec.name.clone(), auto_delete: record.spec.auto_delete })
    }
}

/// Commands into the catalog, for `edge`.
pub(super) struct Port {
    /// The way in.
    pub client: CatalogClient,
    /// Rule 28.
    pub lease: Box<dyn Fn() -> bool + Send + Sync>,
    /// How long a command may take before it is refused.
    pub patience: Duration,
}

impl CatalogPort for Port {
    fn submit(&self, command: CatalogCommand) -> BoxFuture<'static, Result<(u64, CatalogReply), Refusal>> {
        let (client, patience) = (self.client.clone(), self.patience);
        async move { client.submit(&command, Instant::now() + patience).await }.boxed()
    }

    fn routing_lease(&self) -> bool {
        (self.lease)()
    }
}

/// Paths to leaders: in process when this node leads, else over `peer`.
pub(super) struct Connector {
    pub node: NodeId,
    pub servers: HashMap<ShardId, ServerHandle>,
    pub consensus: Arc<Consensus>,
}

impl Paths for Connector {
    fn connect(&self, shard: ShardId, leader: NodeId) -> BoxFuture<'static, io::Result<EdgeEnd>> {
        if leader != self.node {
            return self.consensus.connect(shard, leader).boxed();
        }
        let server = self.servers.get(&shard).cloned();
        let node = self.node;
        async move {
            let server = server.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this node has no replica of the shard"))?;
            let (edge, leader): (EdgeEnd, LeaderEnd) = path(node);
            server.connected(leader);
            Ok(edge)
        }
        .boxed()
    }
}
