//! What this node's groups apply, told to its servers; commands into the catalog and paths to leaders as `edge` asks for them.

use crate::consensus::{CatalogClient, Consensus, Observer};
use crate::edge::{Bells, CatalogPort};
use crate::machine::Effect;
use crate::machine::catalog::Catalog;
use crate::model::catalog::{CatalogCommand, CatalogReply, Refusal};
use crate::model::ports::{EdgeEnd, LeaderEnd, Lease, Paths, Proposer, path};
use crate::model::{Incarnation, LogId, NodeId, ShardId};
use crate::serving::ServerHandle;
use futures::FutureExt;
use futures::future::BoxFuture;
use hashbrown::HashMap;
use parking_lot::RwLock;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Commands into the catalog, for `edge`.
pub(super) struct Port {
    /// The way in.
    pub client: CatalogClient,
    /// Rule 28: this node has a routing lease, and the catalog says that it is up.
    pub may_route: Box<dyn Fn() -> bool + Send + Sync>,
    /// How long a command may take before it is refused.
    pub patience: Duration,
}

impl CatalogPort for Port {
    fn submit(&self, command: CatalogCommand) -> BoxFuture<'static, Result<(u64, CatalogReply), Refusal>> {
        let (client, patience) = (self.client.clone(), self.patience);
        async move { client.submit(&command, Instant::now() + patience).await }.boxed()
    }

    fn routing_lease(&self) -> bool {
        (self.may_route)()
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
        let lease = match (shard.owner(), self.consensus.shard(shard)) {
            (Some(_), _) => Some(Lease::new(|| true)),
            (None, group) => group.map(|group| Lease::new(move || group.lease_valid())),
        };
        async move {
            let none = || io::Error::new(io::ErrorKind::NotFound, "this node has no replica of the shard");
            let (server, lease) = server.zip(lease).ok_or_else(none)?;
            let (edge, leader): (EdgeEnd, LeaderEnd) = path(node);
            server.connected(leader);
            Ok(EdgeEnd { lease: Some(lease), ..edge })
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
    /// Rung when chunks come to streams.
    pub bells: Arc<Bells>,
    process: (NodeId, Incarnation),
    catalog: OnceLock<Arc<RwLock<Catalog>>>,
    is_up: AtomicBool,
}

impl Applied {
    /// For a process of a node.
    pub fn new(servers: HashMap<ShardId, ServerHandle>, node: NodeId, incarnation: Incarnation) -> Applied {
        let (moved_tx, is_up) = (watch::channel(0).0, AtomicBool::new(false));
        Applied { servers, moved_tx, bells: Arc::default(), process: (node, incarnation), catalog: OnceLock::new(), is_up }
    }

    /// Call it before anything is applied.
    pub fn follow(&self, catalog: Arc<RwLock<Catalog>>) {
        // A second call would name the same catalog.
        let _ = self.catalog.set(catalog);
    }

    /// The catalog, as this node has applied it, lists this process. A node that was cut off finds itself missing before it gets a
    /// routing lease again, and is missing until its in-memory queues are gone.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    /// Wakes readers of streams. No effects may mean that another node's state took the place of this one's.
    fn ring(&self, effects: &[Effect]) {
        if effects.is_empty() {
            self.bells.ring_all();
        }
        for effect in effects {
            match effect {
                Effect::Appended { stream } | Effect::Dropped { queue: stream } => self.bells.ring(*stream),
                Effect::Enqueued { .. }
                | Effect::Settled { .. }
                | Effect::Reserved { .. }
                | Effect::Configured { .. }
                | Effect::Died
                | Effect::Timed { .. }
                | Effect::Created { .. }
                | Effect::SessionOpened { .. }
                | Effect::SessionGone { .. }
                | Effect::Transaction { .. }
                | Effect::Advanced { .. } => {}
            }
        }
    }

    fn catalog_applied(&self) {
        let (node, incarnation) = self.process;
        let is_up = self.catalog.get().is_some_and(|catalog| catalog.read().incarnation(node) == Some(incarnation));
        if self.is_up.swap(is_up, Ordering::AcqRel) && !is_up {
            tracing::warn!("the cluster has taken this node for down; its in-memory queues are gone");
        }
        self.moved_tx.send_modify(|n| *n += 1);
    }
}

impl Observer for Applied {
    fn applied(&self, shard: ShardId, id: LogId, effects: Vec<Effect>) {
        if shard == ShardId::CATALOG {
            self.catalog_applied();
            return;
        }
        self.ring(&effects);
        if let Some(server) = self.servers.get(&shard) {
            server.applied(id, effects);
        }
    }
}
