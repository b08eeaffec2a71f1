//! A port for clients, plain or TLS, whatever they speak: accepts, keeps the limits, and at shutdown lets all conversations end politely.
//! One task per connection. What is spoken there is a `Host`'s.

use super::secure::{self, Welcomed};
use super::socket::Socket;
use crate::model::limits;
use crate::model::panics::contained_task;
use crate::model::report::Encryption;
use crate::tls::Front;
use rustix::process::{Resource, getrlimit};
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// File descriptors kept for everything that is not a client (WAL, peers, management).
const RESERVED_DESCRIPTORS: u64 = 256;
/// After a failed accept (no descriptors, mostly) nothing is accepted for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Settings of a port.
#[derive(Clone)]
pub struct Settings {
    /// Shown to clients.
    pub cluster_name: String,
    /// Largest body of an AMQP message, bytes.
    pub max_message_bytes: u64,
    /// From accept to the moment when the client is in a vhost.
    pub handshake: Duration,
    /// How long a client that has said goodbye waits for publishes of its that cannot go on.
    pub leaving: Duration,
    /// The port speaks TLS.
    pub tls: Option<Front>,
    /// Connections that there may be, all ports together.
    pub(super) places: Arc<Semaphore>,
}

impl Settings {
    /// With the defaults of `limits`.
    pub fn new(cluster_name: impl Into<String>) -> Settings {
        let places = Arc::new(Semaphore::new(connections()));
        let (max_message_bytes, handshake, leaving) = (limits::MESSAGE_BYTES as u64, limits::HANDSHAKE, limits::LEAVING);
        Settings { cluster_name: cluster_name.into(), max_message_bytes, handshake, leaving, tls: None, places }
    }

    /// Another port beside this one, for TLS: both together take as many connections as this one alone.
    pub fn with_tls(&self, front: Front) -> Settings {
        Settings { tls: Some(front), ..self.clone() }
    }
}

/// Somebody who came, its TLS handshake done.
pub(super) struct Client {
    pub socket: Socket,
    pub peer: SocketAddr,
    /// What TLS agreed on.
    pub encryption: Option<Arc<Encryption>>,
    /// Who it is by its certificate, if that was asked for and verified.
    pub certificate_name: Option<Arc<str>>,
    /// It must be in a vhost by then.
    pub until: Instant,
}

/// What is spoken on a port.
pub(super) trait Host: Send + Sync + 'static {
    /// A conversation from its first byte to its end; it ends politely when `shutdown` holds true.
    fn converse(&self, client: Client, shutdown: watch::Receiver<bool>) -> impl Future<Output = ()> + Send;
}

/// Serves clients until `shutdown` holds true (or its sender is gone), then waits about a second for their conversations to end.
pub(super) async fn serve<H: Host>(listener: TcpListener, host: Arc<H>, settings: Settings, shutdown: watch::Receiver<bool>) {
    let mut stop = shutdown.clone();
    let handshakes = Arc::new(Semaphore::new(limits::TLS_HANDSHAKES));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if handshakes.available_permits() > 0 => match accepted {
                Ok((socket, peer)) => match settings.places.clone().try_acquire_owned() {
                    Ok(place) => {
                        let newcomer = Newcomer { socket, peer, place, settings: settings.clone(), shutdown: shutdown.clone() };
                        newcomer.start(&mut tasks, &host, &handshakes);
                    }
                    Err(_) => tracing::warn!(%peer, connections = tasks.len(), "connection refused: too many"),
                },
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            // The handshakes under way have their time limit: one of them makes room soon.
            _ = handshakes.acquire(), if handshakes.available_permits() == 0 => {}
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

/// An accepted socket.
struct Newcomer {
    socket: TcpStream,
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    settings: Settings,
    shutdown: watch::Receiver<bool>,
}

impl Newcomer {
    fn start<H: Host>(self, tasks: &mut JoinSet<()>, host: &Arc<H>, handshakes: &Arc<Semaphore>) {
        prepare(&self.socket, self.peer);
        let until = Instant::now() + self.settings.handshake;
        let limit = self.settings.handshake.min(limits::TLS_HANDSHAKE);
        let Newcomer { socket, peer, place, settings, shutdown } = self;
        let host = host.clone();
        let Some(front) = settings.tls else {
            let client = Client { socket: Socket::Plain(socket), peer, encryption: None, certificate_name: None, until };
            tasks.spawn(contained_task(async move {
                host.converse(client, shutdown).await;
                drop(place);
            }));
            return;
        };
        let handshake = handshakes.clone().try_acquire_owned();
        tasks.spawn(contained_task(async move {
            let mut stop = shutdown.clone();
            // In a box: what the handshake needs is gone when the conversation begins.
            let welcome = Box::pin(secure::welcome(socket, peer, &front, limit));
            let welcomed = tokio::select! {
                welcomed = welcome => welcomed,
                () = stopped(&mut stop) => None,
            };
            drop(handshake);
            let Some(Welcomed { socket, encryption, certificate_name }) = welcomed else { return };
            let client = Client { socket, peer, encryption: Some(encryption), certificate_name, until };
            host.converse(client, shutdown).await;
            drop(place);
        }));
    }
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
pub(super) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
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
