//! What a node stands on: the disk under its log, the wire to the other nodes, its clocks. Those of the machine in a process; a faulty disk
//! and a network in memory in the simulator, under the same composition.

use super::admin::Admin;
use super::{StartError, doing};
use crate::config::ServerConfig;
use crate::consensus::{Sources, Wire};
use crate::management::{self, Readiness};
use crate::peer::auth::Secret;
use crate::peer::client::{PeerConfig, TonicNetwork};
use crate::store::disk::{Disk, RealDisk};
use crate::store::wal::WalConfig;
use crate::tls::Mutual;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

/// Disk and wire of a node.
pub struct Ground {
    /// The directory of the write-ahead log.
    pub disk: Arc<dyn Disk>,
    /// How the log uses it.
    pub wal: WalConfig,
    /// Starts the network.
    pub wire: Wire,
    /// What time it is.
    pub clocks: Sources,
}

impl Ground {
    /// The data directory's disk, and tonic on the peer port.
    pub(super) fn real(
        config: &ServerConfig,
        (peer, tls): (TcpListener, Option<Mutual>),
        admin: &Admin,
        readiness: &Arc<Readiness>,
    ) -> Result<Ground, StartError> {
        let directory = config.data_dir.join("wal");
        let disk = RealDisk::new(&directory).map_err(doing(format!("directory {}", directory.display())))?;
        let service = management::admin::service(config.node, Arc::new(admin.clone()), readiness.clone());
        let network = PeerConfig {
            node: config.node,
            listener: peer.into_std().map_err(doing("peer port"))?,
            peers: config.cluster.iter().map(|m| (m.node, format!("{}:{}", m.host, m.port))).collect(),
            secret: Secret::new(config.secret.bytes()),
            tls,
            edge_runtime: Handle::current(),
            routes: tonic::service::Routes::new(service),
        };
        let wire: Wire = Box::new(move |handler| TonicNetwork::start(network, handler));
        let wal = WalConfig { catch_up_bytes: config.catch_up_log_bytes, budget_bytes: config.log_budget_bytes, ..WalConfig::default() };
        Ok(Ground { disk: Arc::new(disk), wal, wire, clocks: Sources::default() })
    }
}
