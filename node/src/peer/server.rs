//! The server side of all pairs: accepts connections, asks for the proof, hands frames to the `Handler`. Nothing but `Hello` is answered
//! before the proof. Raft's connections run on the runtime that started the server, all others on the edges' runtime.

use super::auth::{Gate, Secret};
use super::client::{CONNECTION_WINDOW, Credentials, FRAME_BYTES, HTTP_FRAME, KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, STREAM_WINDOW};
use super::socket::{self, Accepted, SocketError};
use super::strangers::{Place, Strangers};
use super::transport::{Card, Frame, Handler, PeerError, STREAM_CAPACITY, StreamKind, head_only};
use crate::model::NodeId;
use futures::future::{BoxFuture, Either};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use warren_proto::peer::peer_server::{Peer, PeerServer};

const HELLO: &str = "/warren.peer.Peer/Hello";
const PEER: &str = "/warren.peer.Peer/";
/// Streams and questions at once on one connection; votes must not wait behind catalog commands.
const STREAMS: u32 = 4096;
/// Connections that wait to be taken over by their runtime.
const BACKLOG: usize = 64;
/// Connections that have proved nothing yet; all nodes together make 20 at a start.
pub(super) const STRANGERS: usize = 128;

pub(super) struct ServerConfig {
    pub(super) credentials: Credentials,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) edge_runtime: Handle,
    pub(super) routes: Routes,
    pub(super) stop_rx: watch::Receiver<bool>,
}

/// Starts accepting on the current runtime.
pub(super) fn start(listener: std::net::TcpListener, config: ServerConfig) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let raft_tx = serve(&Handle::current(), &config);
    let edge_tx = serve(&config.edge_runtime, &config);
    tokio::spawn(accept(listener, config.credentials.tls.is_some(), [raft_tx, edge_tx], config.stop_rx));
    Ok(())
}

/// A socket on its way to its runtime, with its place among the strangers.
struct Newcomer {
    socket: std::net::TcpStream,
    from: SocketAddr,
    place: Place,
}

/// Refusals over TLS are told as warnings this often, for an operator who has forgotten a node; the rest as details: a node tries
/// again many times a second.
const TELL_AGAIN: Duration = Duration::from_secs(10);

fn tell(from: SocketAddr, error: &SocketError) {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let is_about_tls = matches!(error, SocketError::Tls(_) | SocketError::CameWithoutTls | SocketError::CameWithTls);
    let mut told = TOLD.lock();
    if is_about_tls && told.is_none_or(|told| told.elapsed() > TELL_AGAIN) {
        *told = Some(Instant::now());
        tracing::warn!(%from, %error, "a node or operator was refused");
    } else {
        tracing::debug!(%from, %error, "connection refused");
    }
}

async fn accept(
    listener: TcpListener,
    demands_tls: bool,
    [raft_tx, edge_tx]: [mpsc::Sender<Newcomer>; 2],
    mut stop_rx: watch::Receiver<bool>,
) {
    let strangers = Arc::new(Strangers::new(STRANGERS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop_rx.changed() => return,
        };
        let Ok((mut socket, from)) = accepted else {
            // Out of descriptors: do not spin.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let place = match strangers.admit(&socket, from.ip()) {
            Ok(place) => place,
            Err(error) => {
                tracing::warn!(%from, %error, "connection without a place");
                continue;
            }
        };
        let (raft_tx, edge_tx) = (raft_tx.clone(), edge_tx.clone());
        tokio::spawn(async move {
            let sorted = socket::accept(&mut socket, demands_tls).await.and_then(|class| {
                let runtime_tx = if class.is_raft() { raft_tx } else { edge_tx };
                Ok(runtime_tx.try_send(Newcomer { socket: socket.into_std()?, from, place }))
            });
            match sorted {
                Ok(Ok(())) => {}
                Ok(Err(_)) => tracing::warn!(%from, "too many new connections at once, one dropped"),
                Err(error) => tell(from, &error),
            }
        });
    }
}

/// A tonic server on `runtime` for the sockets that are sent to it.
fn serve(runtime: &Handle, config: &ServerConfig) -> mpsc::Sender<Newcomer> {
    let (tx, rx) = mpsc::channel(BACKLOG);
    let service = PeerService { secret: config.credentials.secret.clone(), handler: config.handler.clone() };
    let peer = PeerServer::new(service).max_decoding_message_size(FRAME_BYTES).max_encoding_message_size(FRAME_BYTES);
    let routes = config.routes.clone().add_service(peer).prepare();
    let (mut stop_rx, accepted_stop_rx) = (config.stop_rx.clone(), config.stop_rx.clone());
    let tls = config.credentials.tls.clone();
    let newcomers = ReceiverStream::new(rx).map(move |Newcomer { socket, from, place }| {
        let (tls, stop_rx) = (tls.clone(), accepted_stop_rx.clone());
        async move {
            let secured = async { socket::secured(TcpStream::from_std(socket)?, tls.as_ref()).await };
            match secured.await {
                Ok(socket) => Some(Ok::<_, io::Error>(Accepted::new(socket, place, stop_rx))),
                Err(error) => {
                    tell(from, &error);
                    None
                }
            }
        }
    });
    // A slow handshake keeps nobody waiting.
    let incoming = newcomers.buffer_unordered(STRANGERS).filter_map(std::future::ready);
    runtime.spawn(async move {
        let mut server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(HTTP_FRAME)
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .http2_max_pending_accept_reset_streams(Some(STREAMS as usize))
            .layer(GuardLayer);
        let stopped = async move {
            let _ = stop_rx.wait_for(|stop| *stop).await;
        };
        // Not graceful: streams between nodes never end by themselves.
        tokio::select! {
            served = server.add_routes(routes).serve_with_incoming(incoming) => {
                if let Err(error) = served {
                    tracing::error!(%error, "peer server stopped");
                }
            }
            () = stopped => {}
        }
    });
    tx
}

/// Lets only proved connections through.
#[derive(Clone)]
struct GuardLayer;

impl<S> tower::Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard(inner)
    }
}

#[derive(Clone)]
struct Guard<S>(S);

impl<S, B, R> tower::Service<http::Request<B>> for Guard<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = http::Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, std::future::Ready<Result<http::Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let card = request.extensions().get::<Arc<Gate>>().and_then(|gate| gate.card());
        let allowed = match card {
            _ if path == HELLO => true,
            // An operator's tool is no node.
            Some(card) => card.node != NodeId(0) || !path.starts_with(PEER),
            None => false,
        };
        if allowed {
            return Either::Left(self.0.call(request));
        }
        Either::Right(std::future::ready(Ok(Status::unauthenticated("").into_http())))
    }
}

struct PeerService {
    secret: Secret,
    handler: Arc<dyn Handler>,
}

fn status(error: PeerError) -> Status {
    Status::failed_precondition(error.to_string())
}

fn card<T>(request: &Request<T>) -> Result<Card, Status> {
    let gate = request.extensions().get::<Arc<Gate>>();
    gate.and_then(|gate| gate.card()).ok_or_else(|| Status::unauthenticated(""))
}

type Frames = BoxStream<'static, Result<Frame, Status>>;

impl PeerService {
    fn stream(&self, kind: StreamKind, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        let card = card(&request)?;
        let (tx, rx) = mpsc::channel(STREAM_CAPACITY);
        let broken = move |s: Status| PeerError::Unreachable { node: card.node, why: s.message().to_string() };
        self.handler.stream(card, kind, request.into_inner().map_err(broken).boxed(), tx);
        Ok(Response::new(ReceiverStream::new(rx).map(Ok).boxed()))
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStream = Frames;
    type HeartbeatStream = Frames;
    type SnapshotStream = Frames;
    type EdgeStream = Frames;
    type DeliverStream = Frames;

    async fn hello(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let gate = request.extensions().get::<Arc<Gate>>().cloned().ok_or_else(|| Status::unauthenticated(""))?;
        match gate.hello(&self.secret, &self.handler.card(), request.into_inner().head) {
            Ok(answer) => Ok(Response::new(head_only(answer))),
            Err(error) => {
                tracing::warn!(%error, "connection refused");
                Err(Status::unauthenticated(""))
            }
        }
    }

    async fn ask(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let card = card(&request)?;
        let answer: BoxFuture<'static, _> = self.handler.ask(card, request.into_inner());
        answer.await.map(Response::new).map_err(status)
    }

    async fn append(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        self.stream(StreamKind::Append, request)
    }

    async fn heartbeat(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        self.stream(StreamKind::Heartbeat, request)
    }

    async fn snapshot(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        self.stream(StreamKind::Snapshot, request)
    }

    async fn edge(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        self.stream(StreamKind::Edge, request)
    }

    async fn deliver(&self, request: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        self.stream(StreamKind::Deliver, request)
    }
}
