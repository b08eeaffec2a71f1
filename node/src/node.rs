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
use crate::consensus::{FormationError, Loss};
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

/// Linux's number of an input/output error.
const EIO: i32 = 5;

/// Between two looks for groups that have ended.
const GROUPS_CHECK: Duration = Duration::from_secs(1);
/// A process that has served so long ends when a part of it is lost: its supervisor starts it again. One that loses it sooner would only be
/// started again and again.
const PROVEN: Duration = Duration::from_secs(60);

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
    /// It served, and lost what it needs.
    #[error("a part that this node needs is gone: {0}")]
    Lost(String),
}

/// For a disk that answers with input/output errors, whichever file was met first.
const SICK_DISK: &str = "the disk of the data directory fails (input/output error): the system's log names the device. Replace the disk and start the \
     node with an empty data directory: the other nodes fill it again, as long as a majority of them has its data";

impl StartError {
    /// What to do, where the error itself does not say it.
    pub fn advice(&self) -> Option<&'static str> {
        let is_sick = match self {
            StartError::Wal(WalError::Io { source, .. }) | StartError::Io { source, .. } => source.raw_os_error() == Some(EIO),
            // sled says it in words.
            StartError::State(error) => error.to_string().contains(&format!("os error {EIO}")),
            StartError::Formation(FormationError::Io(source)) => source.raw_os_error() == Some(EIO),
            StartError::Wal(_) | StartError::Formation(_) | StartError::Tls(_) | StartError::Lost(_) => false,
        };
        is_sick.then_some(SICK_DISK)
    }
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
    let groups = watch_groups(move || consensus.fault(), readiness.clone(), PROVEN);
    let signal = tokio::select! {
        signal = shutdown.requested() => signal,
        lost = groups => {
            // Nothing can be handed over by what is lost; the others see that this process is gone, and elect at once.
            end_in_time(1);
            return Err(StartError::Lost(lost));
        }
    };
    tracing::info!(signal, "stopping");
    let until = Instant::now() + STOP;
    end_in_time(0);
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
fn end_in_time(code: i32) {
    let end = move || {
        thread::sleep(STOP);
        tracing::warn!("the stop takes too long; the process ends as it is");
        std::process::exit(code);
    };
    if let Err(error) = thread::Builder::new().name("end-in-time".into()).spawn(end) {
        tracing::error!(%error, "nobody sees to it that this process ends in time");
    }
}

/// Ends with the loss for which this process must end. A node that lost something soon after its start, or that would lose it again, stays,
/// not ready: an operator must look, and its other groups still serve.
async fn watch_groups(fault: impl Fn() -> Option<Loss>, readiness: Arc<Readiness>, proven: Duration) -> String {
    let started = Instant::now();
    loop {
        if let Some(Loss { what, may_pass }) = fault() {
            let ends = may_pass && started.elapsed() >= proven;
            tracing::error!(fault = what, ends, "this node cannot do its part any more");
            readiness.not_serving(&what);
            return if ends { what } else { std::future::pending().await };
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

    #[test]
    fn a_disk_with_input_output_errors_at_the_start_is_named_as_one() {
        let sick = || io::Error::from_raw_os_error(EIO);
        let (wal, full) = (WalError::Io { doing: "read log file 7".into(), source: sick() }, io::Error::from(io::ErrorKind::StorageFull));
        let sled = StateError::from(sick());
        for error in [doing("numbering this start")(sick()), wal.into(), sled.into(), FormationError::Io(sick()).into()] {
            assert_eq!(error.advice(), Some(SICK_DISK), "{error}");
        }
        assert_eq!(doing("the same")(full).advice(), None);
        assert_eq!(StartError::Lost("shard 1".into()).advice(), None);
    }

    async fn watched(loss: Option<Loss>, proven: Duration) -> (Option<String>, Option<String>) {
        let readiness = Arc::new(Readiness::default());
        readiness.serving();
        let ended = watch_groups(move || loss.clone(), readiness.clone(), proven);
        let ended = tokio::time::timeout(Duration::from_millis(50), ended).await;
        (ended.ok(), readiness.waiting_for())
    }

    #[tokio::test]
    async fn a_node_that_lost_a_group_is_not_ready_and_ends_when_that_may_help() {
        let hangs = Some("shard 1 hangs".to_owned());
        let loss = |may_pass| Some(Loss { what: "shard 1 hangs".into(), may_pass });
        assert_eq!(watched(None, Duration::ZERO).await, (None, None));
        assert_eq!(watched(loss(true), Duration::ZERO).await, (hangs.clone(), hangs.clone()));
        assert_eq!(watched(loss(true), PROVEN).await, (None, hangs.clone()), "it would end again and again");
        assert_eq!(watched(loss(false), Duration::ZERO).await, (None, hangs), "the next start meets the same");
    }
}
