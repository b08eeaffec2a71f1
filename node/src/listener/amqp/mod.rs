//! The AMQP 0-9-1 port: accepts, limits, and at shutdown closes all connections politely. One task per connection (`connection`).

mod connection;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use super::Edge;
use crate::model::limits;
use crate::session::amqp::Options;
use connection::Connection;
use rustix::process::{Resource, getrlimit};
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// File descriptors kept for everything that is not a client (WAL, peers, management).
const RESERVED_DESCRIPTORS: u64 = 256;
/// After a failed accept (no descriptors, mostly) nothing is accepted for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Settings of the port.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shown to clients in connection.start.
    pub cluster_name: String,
    /// From accept to connection.open-ok.
    pub handshake: Duration,
}

impl Settings {
    /// With the defaults of `limits`.
    pub fn new(cluster_name: impl Into<String>) -> Settings {
        Settings { cluster_name: cluster_name.into(), handshake: limits::HANDSHAKE }
    }
}

/// Serves clients until `shutdown` holds true (or its sender is gone), then closes them with 320 and returns within about a second.
pub async fn serve<E: Edge>(listener: TcpListener, edge: Arc<E>, settings: Settings, shutdown: watch::Receiver<bool>) {
    let mut stop = shutdown.clone();
    let most = connections();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) if tasks.len() < most => start(&mut tasks, socket, peer, &*edge, &settings, &shutdown),
                Ok((_, peer)) => tracing::warn!(%peer, connections = tasks.len(), "connection refused: too many"),
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = tasks.join_next() => log_panic(ended),
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended)
        }
    };
    if tokio::time::timeout(2 * limits::CLOSING, all).await.is_err() {
        tracing::warn!(connections = tasks.len(), "connections cut at shutdown");
    }
}

fn start<E: Edge>(
    tasks: &mut JoinSet<()>,
    socket: TcpStream,
    peer: SocketAddr,
    edge: &E,
    settings: &Settings,
    shutdown: &watch::Receiver<bool>,
) {
    prepare(&socket, peer);
    let options = Options { cluster_name: settings.cluster_name.clone(), seed: rand::random() };
    let connection = Connection::new(socket, peer, edge.connect(peer), options, settings.handshake);
    tasks.spawn(connection.run(shutdown.clone()));
}

/// Small frames must not wait for each other; a peer that vanished without heartbeats must be noticed some day.
fn prepare(socket: &TcpStream, peer: SocketAddr) {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    if let Err(error) = socket.set_nodelay(true).and_then(|()| SockRef::from(socket).set_tcp_keepalive(&keepalive)) {
        tracing::debug!(%peer, %error, "socket options");
    }
}

/// As many as the limit and the file descriptors allow.
fn connections() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let free = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(descriptors / 2);
    limits::CONNECTIONS.min(usize::try_from(free).unwrap_or(usize::MAX))
}

/// Resolves when the broker stops.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone: that is the end as well.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
