//! The client side of all pairs: four connections to each other node, kept up with backoff, each authenticated before use.
//! `TonicNetwork` is the `Transport` of a running process; `dial_operator` is how `warren ctl` gets in.

use super::auth::{AuthError, Secret, Visitor};
use super::server::{self, ServerConfig};
use super::socket::{self, Class, Dialed, SocketError};
use super::transport::{Card, Duplex, Frame, Handler, LinkState, PeerError, STREAM_CAPACITY, StreamKind, Transport, head_only};
use crate::model::NodeId;
use crate::tls::Mutual;
use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use warren_proto::peer::peer_client::PeerClient;

/// Largest frame that is read: an append request of 1 MiB or one entry with a message of 16 MiB, with room.
pub(super) const FRAME_BYTES: usize = 64 << 20;
/// HTTP/2 windows: a full pipeline of append requests fits.
pub(super) const STREAM_WINDOW: u32 = 8 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 32 << 20;
pub(super) const HTTP_FRAME: u32 = 1 << 20;
const DIAL_TIME: Duration = Duration::from_millis(1000);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// A host that vanished without a reset, or a process that was stopped, is noticed after this much silence: by both ends, for each opens
/// paths over its own connection.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(1);
pub(super) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a process talks to the others.
pub struct PeerConfig {
    /// This node.
    pub node: NodeId,
    /// Bound already, so that a port in use is seen at start.
    pub listener: std::net::TcpListener,
    /// The other nodes, `host:port`; names are resolved at each dial.
    pub peers: Vec<(NodeId, String)>,
    /// Proves that we belong.
    pub secret: Secret,
    /// Certificates to prove it with as well, and to encrypt; then nobody without gets in.
    pub tls: Option<Mutual>,
    /// Where edge paths, deliveries and operators' calls are served; Raft's connections stay on the runtime that starts the network.
    pub edge_runtime: Handle,
    /// More services for operators and nodes, behind the same authentication.
    pub routes: tonic::service::Routes,
}

/// What a connection is made with.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) secret: Secret,
    pub(super) tls: Option<Mutual>,
}

/// The network of a process.
pub struct TonicNetwork {
    me: NodeId,
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    credentials: Credentials,
    /// Until the end: it holds whoever holds this.
    handler: Mutex<Option<Arc<dyn Handler>>>,
    raft_runtime: Handle,
    edge_runtime: Handle,
    changes_tx: watch::Sender<u64>,
    stop_tx: watch::Sender<bool>,
    redial_tx: watch::Sender<u64>,
}

struct Peer {
    node: NodeId,
    address: String,
    links: [ArcSwapOption<PeerClient<Channel>>; 4],
    refused: AtomicBool,
    seen: AtomicBool,
    forgotten_tx: watch::Sender<bool>,
}

impl TonicNetwork {
    /// Listens and begins to dial; call inside Raft's runtime.
    pub fn start(config: PeerConfig, handler: Arc<dyn Handler>) -> io::Result<Arc<dyn Transport>> {
        let PeerConfig { node, listener, peers, secret, tls, edge_runtime, routes } = config;
        let credentials = Credentials { secret, tls };
        let (stop_tx, stop_rx) = watch::channel(false);
        let server = ServerConfig {
            credentials: credentials.clone(),
            handler: handler.clone(),
            edge_runtime: edge_runtime.clone(),
            routes,
            stop_rx,
        };
        server::start(listener, server)?;
        let network = TonicNetwork {
            me: node,
            peers: RwLock::default(),
            credentials,
            handler: Mutex::new(Some(handler)),
            raft_runtime: Handle::current(),
            edge_runtime,
            changes_tx: watch::channel(0).0,
            stop_tx,
            redial_tx: watch::channel(0).0,
        };
        peers.iter().for_each(|(node, address)| network.know(*node, address));
        Ok(Arc::new(network))
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().get(&node).cloned()
    }

    fn client(&self, to: NodeId, class: Class) -> Result<PeerClient<Channel>, PeerError> {
        let gone = |why: &str| PeerError::Unreachable { node: to, why: why.into() };
        let peer = self.peer(to).ok_or_else(|| gone("not configured"))?;
        let client = peer.links[class as usize].load_full();
        client.map(|c| c.as_ref().clone()).ok_or_else(|| gone("not connected"))
    }
}

impl Peer {
    fn new(node: NodeId, address: String) -> Peer {
        Peer {
            node,
            address,
            links: Default::default(),
            refused: AtomicBool::new(false),
            seen: AtomicBool::new(false),
            forgotten_tx: watch::channel(false).0,
        }
    }
}

fn peer_error(node: NodeId, status: &Status) -> PeerError {
    match status.code() {
        tonic::Code::FailedPrecondition => PeerError::Refused(status.message().to_string()),
        _ => PeerError::Unreachable { node, why: format!("{:?} {}", status.code(), status.message()) },
    }
}

impl Transport for TonicNetwork {
    fn ask(&self, to: NodeId, frame: Frame, timeout: Duration) -> BoxFuture<'static, Result<Frame, PeerError>> {
        let client = self.client(to, Class::Beat);
        Box::pin(async move {
            let mut client = client?;
            match tokio::time::timeout(timeout, client.ask(frame)).await {
                Ok(answer) => answer.map(|a| a.into_inner()).map_err(|s| peer_error(to, &s)),
                Err(_) => Err(PeerError::Timeout { node: to, after: timeout }),
            }
        })
    }

    fn open(&self, to: NodeId, kind: StreamKind) -> BoxFuture<'static, Result<Duplex, PeerError>> {
        let class = match kind {
            StreamKind::Append | StreamKind::Snapshot => Class::Log,
            StreamKind::Heartbeat => Class::Beat,
            StreamKind::Edge => Class::Edge,
            StreamKind::Deliver => Class::Deliver,
        };
        let client = self.client(to, class);
        Box::pin(async move {
            let mut client = client?;
            let (tx, rx) = mpsc::channel(STREAM_CAPACITY);
            let up = Request::new(ReceiverStream::new(rx));
            let opened = async {
                match kind {
                    StreamKind::Append => client.append(up).await,
                    StreamKind::Heartbeat => client.heartbeat(up).await,
                    StreamKind::Snapshot => client.snapshot(up).await,
                    StreamKind::Edge => client.edge(up).await,
                    StreamKind::Deliver => client.deliver(up).await,
                }
            };
            let late = |_| PeerError::Timeout { node: to, after: DIAL_TIME };
            let opened = tokio::time::timeout(DIAL_TIME, opened).await.map_err(late)?.map_err(|s| peer_error(to, &s))?;
            Ok(Duplex { tx, rx: opened.into_inner().map_err(move |s| peer_error(to, &s)).boxed() })
        })
    }

    fn link(&self, to: NodeId) -> LinkState {
        let Some(peer) = self.peer(to) else { return LinkState::default() };
        let up = [Class::Log, Class::Beat].into_iter().filter(|c| peer.links[*c as usize].load().is_some()).count() as u8;
        LinkState { up, refused: peer.refused.load(Ordering::Acquire), seen: peer.seen.load(Ordering::Acquire) }
    }

    fn link_changes(&self) -> watch::Receiver<u64> {
        self.changes_tx.subscribe()
    }

    fn card_changed(&self) {
        self.redial_tx.send_modify(|n| *n += 1);
    }

    fn know(&self, node: NodeId, address: &str) {
        let Some(handler) = self.handler.lock().clone() else { return };
        let peer = {
            let mut peers = self.peers.write();
            if node == self.me || peers.contains_key(&node) {
                return;
            }
            let peer = Arc::new(Peer::new(node, address.to_owned()));
            peers.insert(node, peer.clone());
            peer
        };
        for class in Class::LINKS {
            let keeper = Keeper {
                peer: peer.clone(),
                class,
                credentials: self.credentials.clone(),
                handler: handler.clone(),
                changes_tx: self.changes_tx.clone(),
                stop_rx: self.stop_tx.subscribe(),
                forgotten_rx: peer.forgotten_tx.subscribe(),
                redial_rx: self.redial_tx.subscribe(),
            };
            let runtime = if class.is_raft() { &self.raft_runtime } else { &self.edge_runtime };
            runtime.spawn(keeper.run());
        }
    }

    fn forget(&self, node: NodeId) {
        if let Some(peer) = self.peers.write().remove(&node) {
            peer.forgotten_tx.send_replace(true);
        }
    }

    fn shutdown(&self) {
        drop(self.handler.lock().take());
        self.stop_tx.send_replace(true);
    }
}

/// Keeps one connection up.
struct Keeper {
    peer: Arc<Peer>,
    class: Class,
    credentials: Credentials,
    handler: Arc<dyn Handler>,
    changes_tx: watch::Sender<u64>,
    stop_rx: watch::Receiver<bool>,
    forgotten_rx: watch::Receiver<bool>,
    redial_rx: watch::Receiver<u64>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut said = false;
        while !*self.stop_rx.borrow() && !*self.forgotten_rx.borrow() {
            let card = self.handler.card();
            self.redial_rx.mark_unchanged();
            match connect(&self.peer.address, self.class, card, &self.credentials, Some(self.peer.node)).await {
                Ok((_, theirs, _)) if self.handler.is_outlived(&theirs) => {
                    if !std::mem::replace(&mut said, true) && self.class == Class::Beat {
                        let (node, generation) = (theirs.node, theirs.generation);
                        tracing::error!(%node, %generation, "peer runs on a disk that was replaced by a later one: it is left out");
                    }
                }
                Ok((client, theirs, gone_rx)) => {
                    tracing::debug!(node = %self.peer.node, formed = theirs.cluster.is_some(), class = ?self.class, "connected");
                    (backoff, said) = (BACKOFF_MIN, false);
                    self.up(client);
                    let mut redial_rx = self.redial_rx.clone();
                    tokio::select! {
                        _ = gone_rx => {}
                        _ = redial_rx.changed() => {}
                        _ = self.stop_rx.changed() => {}
                        _ = self.forgotten_rx.changed() => {}
                    }
                    self.down();
                    continue;
                }
                Err(error) => {
                    let refused = matches!(&error, DialError::Socket(SocketError::Io(e)) if e.kind() == io::ErrorKind::ConnectionRefused);
                    if refused != self.peer.refused.swap(refused, Ordering::AcqRel) {
                        self.changed();
                    }
                    if !std::mem::replace(&mut said, true) && self.class == Class::Beat {
                        tracing::info!(node = %self.peer.node, address = %self.peer.address, %error, "peer cannot be reached");
                    }
                }
            }
            let jitter = backoff.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = tokio::time::sleep(jitter) => {}
                _ = self.stop_rx.changed() => {}
                _ = self.forgotten_rx.changed() => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn up(&self, client: PeerClient<Channel>) {
        self.peer.links[self.class as usize].store(Some(Arc::new(client)));
        self.peer.refused.store(false, Ordering::Release);
        self.peer.seen.store(true, Ordering::Release);
        self.changed();
    }

    fn down(&self) {
        self.peer.links[self.class as usize].store(None);
        self.changed();
    }

    fn changed(&self) {
        self.changes_tx.send_modify(|n| *n += 1);
    }
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// TCP or TLS.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// HTTP/2.
    #[error(transparent)]
    Http(#[from] tonic::transport::Error),
    /// Refused by the other side.
    #[error("{0}")]
    Status(Box<Status>),
    /// Refused by this side.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// Too slow.
    #[error("no answer in {DIAL_TIME:?}")]
    Late,
}

/// A connection for an operator's tool: authenticated by the secret, and by certificates with `tls`; good for the additional services.
///
/// # Errors
/// Nobody there, or no agreement.
pub async fn dial_operator(address: &str, secret: &Secret, tls: Option<&Mutual>) -> Result<Channel, DialError> {
    let credentials = Credentials { secret: secret.clone(), tls: tls.cloned() };
    let (_, channel, _) = timed(dial(address, Class::Operator, Card::default(), &credentials, None)).await?;
    Ok(channel)
}

async fn connect(
    address: &str,
    class: Class,
    card: Card,
    credentials: &Credentials,
    expected: Option<NodeId>,
) -> Result<(PeerClient<Channel>, Card, oneshot::Receiver<()>), DialError> {
    let (theirs, channel, gone_rx) = timed(dial(address, class, card, credentials, expected)).await?;
    let client = PeerClient::new(channel).max_decoding_message_size(FRAME_BYTES).max_encoding_message_size(FRAME_BYTES);
    Ok((client, theirs, gone_rx))
}

async fn timed<T>(dialing: impl Future<Output = Result<T, DialError>>) -> Result<T, DialError> {
    tokio::time::timeout(DIAL_TIME, dialing).await.unwrap_or(Err(DialError::Late))
}

async fn dial(
    address: &str,
    class: Class,
    card: Card,
    credentials: &Credentials,
    expected: Option<NodeId>,
) -> Result<(Card, Channel, oneshot::Receiver<()>), DialError> {
    let secret = &credentials.secret;
    let socket = socket::dial(address, class, credentials.tls.as_ref()).await?;
    let binding = socket.binding();
    let (gone_tx, gone_rx) = oneshot::channel();
    let one = OneConnection(Mutex::new(Some(Dialed::new(socket, gone_tx))));
    let endpoint = Endpoint::from_static("http://node")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP_FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect_with_connector(one).await?;
    let mut client = PeerClient::new(channel.clone());
    let visitor = Visitor::new(card, expected, binding);
    let refused = |status: Status| DialError::Status(Box::new(status));
    let nonce = client.hello(head_only(visitor.ask())).await.map_err(refused)?.into_inner().head;
    let proof = visitor.prove(secret, &nonce)?;
    let answer = client.hello(head_only(proof)).await.map_err(refused)?.into_inner().head;
    let theirs = visitor.check(secret, &nonce, answer)?;
    Ok((theirs, channel, gone_rx))
}

/// Gives tonic our one authenticated socket; a channel must never reconnect behind our back.
struct OneConnection(Mutex<Option<Dialed>>);

impl tower::Service<Uri> for OneConnection {
    type Response = TokioIo<Dialed>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<TokioIo<Dialed>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let socket = self.0.lock().take().map(TokioIo::new);
        std::future::ready(socket.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is gone")))
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
#[cfg(test)]
pub(crate) use tests::own_port;
