//! The composition root: the one file that knows every room. Opens the stores, starts consensus, serving, edge, listeners and
//! management, waits for the end and takes everything down in order.

mod admin;
mod alarm;
mod doors;
mod feed;
mod figures;
mod ground;
mod joining;
mod leaders;
mod neighbours;
mod presence;
mod renewal;
mod running;
mod simulated;
mod start;
mod streams;
mod unused;

pub use ground::Ground;
pub use simulated::SimulatedNode;

use crate::cli::Shutdown;
use crate::config::{Amqps, DataDir, Ports, ServerConfig};
use crate::consensus::FormationError;
use crate::edge::Addresses;
use crate::listener::{amqp, edge::Clients, rocketmq, stream};
use crate::management::{self, Metrics, Readiness};
use crate::model::limits;
use crate::store::state::StateError;
use crate::store::wal::WalError;
use crate::tls::{Front, Mutual, Renewed, TlsError};
use doors::Doors;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// An ordered stop takes no longer, whoever does not answer; an operator's tools kill after 5 s.
const STOP: Duration = Duration::from_millis(4500);
/// Of that: leaderships are given away within this time,
const HAND_OVER: Duration = Duration::from_millis(1500);
/// and so much is kept for the last checkpoint, when clients are slow to go.
const LAST: Duration = Duration::from_millis(1500);

/// Between two looks for groups that have ended.
const GROUPS_CHECK: Duration = Duration::from_secs(1);

/// Why a node cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refuses; says what was tried.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Its error.
        source: io::Error,
    },
    /// A certificate or a key.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The write-ahead log.
    #[error("write-ahead log: {0}")]
    Wal(#[from] WalError),
    /// The state store.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cluster cannot be formed or rejoined.
    #[error(transparent)]
    Formation(#[from] FormationError),
}

fn doing(doing: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let doing = doing.into();
    move |source| StartError::Io { doing, source }
}

fn settings_of_clients(config: &ServerConfig) -> amqp::Settings {
    let mut settings = amqp::Settings::new("warren");
    settings.max_message_bytes = config.max_message_bytes;
    // Its publishes are nacked by then; a moment more, and the farewell is heard as well.
    settings.leaving = config.no_quorum_timeout + limits::CLOSING;
    settings
}

/// Serve until SIGTERM or SIGINT; the data directory is locked by the caller.
///
/// # Errors
/// [`StartError`] says what failed and with which address or file.
pub async fn run(config: ServerConfig) -> Result<(), StartError> {
    let mut shutdown = Shutdown::listen().map_err(doing("signals"))?;
    let (stop_tx, stop_rx) = watch::channel(false);
    let (metrics, readiness) = (Metrics::new(), Arc::new(Readiness::default()));
    let tls = Certificates::load(&config)?;
    let http = bind(&config, config.management_port, "management").await?;
    let doors = Doors::take(&config).await?;
    let peer = bind(&config, config.peer_port, "peer").await?;
    DataDir::write_peer_tls(&config.data_dir, config.peer_tls.as_ref()).map_err(doing("peer-tls file"))?;
    let bound = Ports { management: port(&http), peer: port(&peer), ..doors.ports() };
    DataDir::write_ports(&config.data_dir, &config.host, bound).map_err(doing("ports file"))?;
    let http = tokio::spawn(management::http::serve(http, readiness.clone(), metrics.clone(), stopped(stop_rx.clone())));
    let renewal = tls.renewal().map(tokio::spawn);
    readiness.not_serving("recovering the log and forming the cluster");

    let (address, only_own) = (config.stream_address(), config.stream_advertise_self);
    let starting = start::start(config, peer, tls.peers, readiness.clone());
    let (node, hub) = tokio::select! {
        started = starting => started?,
        signal = shutdown.requested() => {
            tracing::info!(signal, "stopped before the node was serving");
            return Ok(());
        }
    };
    node.running.edge.set_addresses(Addresses::new(address.clone(), only_own));
    let stream_figures = Arc::new(stream::Figures::default());
    figures::register(&metrics, &node.running, &stream_figures);
    let open = doors.open()?;
    readiness.serving();
    tracing::info!("Server startup complete");
    let clients = Arc::new(Clients(node.running.edge.clone()));
    let settings = settings_of_clients(&node.running.config);
    let mut listeners = JoinSet::new();
    if let (Some(rocket), Some(front)) = (open.rocketmq_over_tls, tls.clients.clone()) {
        listeners.spawn(rocketmq::serve(rocket, hub.clone(), Some(front), stop_rx.clone()));
    }
    if let Some(rocket) = open.rocketmq {
        listeners.spawn(rocketmq::serve(rocket, hub, None, stop_rx.clone()));
    }
    if let (Some(amqps), Some(streams), Some(front)) = (open.amqps, open.streams_over_tls, tls.clients) {
        let settings = settings.with_tls(front);
        listeners.spawn(amqp::serve(amqps, clients.clone(), settings.clone(), stop_rx.clone()));
        listeners.spawn(stream::serve(streams, clients.clone(), settings, (address.clone(), stream_figures.clone()), stop_rx.clone()));
    }
    listeners.spawn(amqp::serve(open.amqp, clients.clone(), settings.clone(), stop_rx.clone()));
    listeners.spawn(stream::serve(open.streams, clients, settings, (address, stream_figures), stop_rx));

    let consensus = node.running.consensus.clone();
    let groups = tokio::spawn(watch_groups(move || consensus.fault(), readiness.clone()));
    let signal = shutdown.requested().await;
    tracing::info!(signal, "stopping");
    let until = Instant::now() + STOP;
    end_in_time();
    groups.abort();
    readiness.not_serving("stopping");
    let handing_over = node.running.consensus.hand_over_leadership(HAND_OVER);
    // A thread that is stuck hands nothing over.
    let _ = tokio::time::timeout(HAND_OVER, handing_over).await;
    let _ = stop_tx.send(true);
    if tokio::time::timeout_at(until - LAST, listeners.join_all()).await.is_err() {
        tracing::warn!("clients are cut off: they do not go in time");
    }
    node.stop(until).await;
    http.abort();
    renewal.inspect(|task| task.abort());
    tracing::info!("stopped");
    Ok(())
}

/// The process ends when its time is over, whatever holds it up: nothing that was answered depends on what is still to be done.
fn end_in_time() {
    let end = || {
        thread::sleep(STOP);
        tracing::warn!("the stop takes too long; the process ends as it is");
        std::process::exit(0);
    };
    if let Err(error) = thread::Builder::new().name("end-in-time".into()).spawn(end) {
        tracing::error!(%error, "nobody sees to it that this process ends in time");
    }
}

/// A node with a group that ended by a fault is not ready: an operator must look.
async fn watch_groups(fault: impl Fn() -> Option<String>, readiness: Arc<Readiness>) {
    loop {
        if let Some(fault) = fault() {
            tracing::error!(fault, "this node cannot do its part any more");
            readiness.not_serving(&fault);
            return;
        }
        tokio::time::sleep(GROUPS_CHECK).await;
    }
}

async fn stopped(mut stop_rx: watch::Receiver<bool>) {
    let _ = stop_rx.wait_for(|stop| *stop).await;
}

async fn bind(config: &ServerConfig, port: u16, what: &str) -> Result<TcpListener, StartError> {
    let address = (config.host.as_str(), port);
    TcpListener::bind(address).await.map_err(doing(format!("{what} port {}:{port}", config.host)))
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().as_ref().map_or(0, SocketAddr::port)
}

/// What this node shows clients and other nodes.
struct Certificates {
    clients: Option<Front>,
    peers: Option<Mutual>,
}

impl Certificates {
    fn load(config: &ServerConfig) -> Result<Certificates, TlsError> {
        let front = |amqps: Amqps| Front::load(amqps.files, amqps.verify, amqps.login_from);
        Ok(Certificates {
            clients: config.amqps.clone().map(front).transpose()?,
            peers: config.peer_tls.clone().map(Mutual::load).transpose()?,
        })
    }

    /// Watches the files, if there are some.
    fn renewal(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let clients = self.clients.clone().map(|front| Arc::new(front) as Arc<dyn Renewed>);
        let peers = self.peers.clone().map(|mutual| Arc::new(mutual) as Arc<dyn Renewed>);
        let all: Vec<_> = clients.into_iter().chain(peers).collect();
        (!all.is_empty()).then(|| renewal::watch(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_with_a_group_that_stopped_is_not_ready_and_says_which() {
        let readiness = Arc::new(Readiness::default());
        readiness.serving();
        let healthy = watch_groups(|| None, readiness.clone());
        assert!(tokio::time::timeout(Duration::from_millis(5), healthy).await.is_err(), "it looks again and again");
        assert_eq!(readiness.waiting_for(), None);
        watch_groups(|| Some("the log is full".into()), readiness.clone()).await;
        assert_eq!(readiness.waiting_for().as_deref(), Some("the log is full"));
    }
}
