//! What this node's groups apply, told to its servers; commands into the catalog and paths to leaders as `edge` asks for them.

use crate::consensus::{CatalogClient, Consensus, Observer};
use crate::edge::CatalogPort;
use crate::machine::Effect;
use crate::model::catalog::{CatalogCommand, CatalogReply, Refusal};
use crate::model::ports::{EdgeEnd, LeaderEnd, Paths, path};
use crate::model::{LogId, NodeId, ShardId};
use crate::serving::ServerHandle;
use futures::FutureExt;
use futures::future::BoxFuture;
use hashbrown::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

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

/// Tells servers what was applied to their shards, and everybody that the catalog moved.
pub(super) struct Applied {
    /// By shard.
    pub servers: HashMap<ShardId, ServerHandle>,
    /// Counts up whenever the catalog applied something.
    pub moved_tx: watch::Sender<u64>,
}

impl Observer for Applied {
    fn applied(&self, shard: ShardId, id: LogId, effects: Vec<Effect>) {
        if shard == ShardId::CATALOG {
            self.moved_tx.send_modify(|n| *n += 1);
        } else if let Some(server) = self.servers.get(&shard) {
            server.applied(id, effects);
        }
    }
}
