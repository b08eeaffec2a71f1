//! A node that serves: what its parts are, for the operator's questions, the figures and the end.

use crate::config::ServerConfig;
use crate::consensus::Consensus;
use crate::edge::{ConnectionInfo, Edge};
use crate::listener;
use crate::machine::catalog::Catalog;
use crate::model::NodeId;
use crate::store::wal::Wal;
use parking_lot::{Mutex, RwLock};
use std::net::SocketAddr;
use std::sync::Arc;

/// The parts of a serving node.
pub(super) struct Running {
    pub config: ServerConfig,
    /// Data shards of the cluster.
    pub shards: u16,
    pub catalog: Arc<RwLock<Catalog>>,
    pub consensus: Arc<Consensus>,
    pub edge: Arc<Edge>,
    pub wal: Wal,
    /// The disk alarm in force.
    pub alarm: Mutex<Option<String>>,
}

impl Running {
    /// All configured nodes, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.config.cluster.iter().map(|m| m.node).collect()
    }
}

/// The edge as the listener wants it.
pub(super) struct Clients(pub Arc<Edge>);

impl listener::Edge for Clients {
    type Connection = crate::edge::Connection;

    fn connect(&self, peer: SocketAddr) -> Self::Connection {
        self.0.connect(ConnectionInfo { peer })
    }
}
