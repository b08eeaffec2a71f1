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
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

/// Between two looks at how far the clock is off.
const CLOCK_LOOK: Duration = Duration::from_millis(20);

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
        Ok(Ground { disk: Arc::new(disk), wal, wire, clocks: clocks(config.clock_off_file.clone())? })
    }
}

/// The machine's clocks; with a file that says by how many ms the one that can be set is off, for trials.
fn clocks(off_file: Option<PathBuf>) -> Result<Sources, StartError> {
    let machine = Sources::default();
    let Some(file) = off_file else { return Ok(machine) };
    let off_ms = Arc::new(AtomicI64::new(0));
    let (told, system) = (Arc::downgrade(&off_ms), machine.system.clone());
    let follow = move || {
        while let Some(off_ms) = told.upgrade() {
            let said = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            off_ms.store(said.unwrap_or(0), Ordering::Relaxed);
            drop(off_ms);
            std::thread::sleep(CLOCK_LOOK);
        }
    };
    std::thread::Builder::new().name("clock-off".into()).spawn(follow).map_err(doing("a thread that follows the clock's file"))?;
    Ok(Sources { system: Arc::new(move || system().saturating_add_signed(off_ms.load(Ordering::Relaxed))), ..machine })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    #[test]
    fn a_clock_is_off_as_its_file_says_and_right_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock-off");
        let clocks = clocks(Some(file.clone())).unwrap();
        let off_by = |ms: i64| {
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                let machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
                let off_ms = (clocks.system)() as i64 - machine;
                if (off_ms - ms).abs() < 10_000 {
                    return;
                }
                assert!(Instant::now() < deadline, "off by {off_ms} ms instead of {ms}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        off_by(0);
        for ms in [3_600_000, -120_000] {
            std::fs::write(&file, ms.to_string()).unwrap();
            off_by(ms);
        }
        std::fs::remove_file(&file).unwrap();
        off_by(0);
    }
}
