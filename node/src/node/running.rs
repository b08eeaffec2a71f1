//! A node that serves: what its parts are, for the operator's questions, the figures and the end.

use crate::config::ServerConfig;
use crate::consensus::{ClusterClock, Consensus, Replicas};
use crate::edge::Edge;
use crate::machine::catalog::Catalog;
use crate::serving::Lateness;
use crate::store::wal::Wal;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The parts of a serving node.
pub(super) struct Running {
    pub config: ServerConfig,
    /// Data shards of the cluster.
    pub shards: u16,
    pub catalog: Arc<RwLock<Catalog>>,
    pub replicas: Replicas,
    pub consensus: Arc<Consensus>,
    pub edge: Arc<Edge>,
    pub wal: Wal,
    /// Of the shards that this node leads.
    pub lateness: Arc<Lateness>,
    /// The alarm in force that stops publishes.
    pub alarm: Mutex<Option<String>>,
    /// Nodes whose clocks are off.
    pub clock_alarm: Mutex<Option<String>>,
    pub clock: ClusterClock,
    /// This node itself is short of something.
    pub is_low: AtomicBool,
}
