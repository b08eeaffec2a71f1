//! A node that serves: what its parts are, for the operator's questions, the figures and the end.

use crate::config::ServerConfig;
use crate::consensus::Consensus;
use crate::edge::{self, ConnectionInfo, Edge};
use crate::listener;
use crate::machine::catalog::Catalog;
use crate::model::NodeId;
use crate::model::step::{Event, Step};
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

impl listener::EdgeConnection for edge::Connection {
    fn submit(&mut self, step: Step) -> Result<(), Step> {
        edge::Connection::submit(self, step)
    }

    fn take_events(&mut self, out: &mut Vec<Event>) {
        edge::Connection::take_events(self, out);
    }

    async fn changed(&self) {
        edge::Connection::changed(self).await;
    }

    async fn writable(&self) {
        edge::Connection::writable(self).await;
    }
}

/// The edge as the listener wants it.
pub(super) struct Clients(pub Arc<Edge>);

impl listener::Edge for Clients {
    type Connection = edge::Connection;

    fn connect(&self, peer: SocketAddr) -> Self::Connection {
        self.0.connect(ConnectionInfo { peer })
    }
}
