//! Sockets between nodes: a short preface names the class of the connection before HTTP/2 begins, so that the server can hand Raft's
//! connections and the edges' to different runtimes; the client learns at once when a connection is gone.

use super::auth::Gate;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

const PREFACE: &[u8; 7] = b"WARREN\x01";
const PREFACE_TIME: Duration = Duration::from_secs(2);
/// From the preface to the proof; a node gives up sooner.
const PROOF_TIME: Duration = Duration::from_secs(2);
/// Bytes before the proof: HTTP/2's settings and two hellos of about 200 bytes each need less than 1 KiB.
pub(super) const STRANGER_BYTES: usize = 4 << 10;

/// What a connection carries. Each class has its own, so that none waits behind another (rule 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Append streams and snapshots.
    Log = 0,
    /// Heartbeats, votes, questions.
    Beat = 1,
    /// Batches and verdicts.
    Edge = 2,
    /// Deliveries.
    Deliver = 3,
    /// An operator's tool.
    Operator = 4,
}

impl Class {
    /// Those that connect two nodes.
    pub(super) const LINKS: [Class; 4] = [Class::Log, Class::Beat, Class::Edge, Class::Deliver];

    /// Served on Raft's own runtime.
    pub(super) fn is_raft(self) -> bool {
        matches!(self, Class::Log | Class::Beat)
    }
}

/// Connect and say what for.
pub(super) async fn dial(address: &str, class: Class) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut preface = [0; 8];
    preface[..7].copy_from_slice(PREFACE);
    preface[7] = class as u8;
    socket.write_all(&preface).await?;
    Ok(socket)
}

/// The class of an accepted connection; an error for strangers.
pub(super) async fn accept(socket: &mut TcpStream) -> io::Result<Class> {
    socket.set_nodelay(true)?;
    let mut preface = [0; 8];
    tokio::time::timeout(PREFACE_TIME, socket.read_exact(&mut preface)).await??;
    let classes = [Class::Log, Class::Beat, Class::Edge, Class::Deliver, Class::Operator];
    let class = classes.into_iter().find(|c| *c as u8 == preface[7]);
    match class {
        Some(class) if preface[..7] == PREFACE[..] => Ok(class),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a node of this product")),
    }
}

/// A socket that belongs to one gate (server) or tells when it is dropped (client).
pub(super) struct Socket<T> {
    inner: TcpStream,
    mark: T,
}

/// Client side: dropping the sender wakes the link's keeper.
pub(super) type Dialed = Socket<oneshot::Sender<()>>;

impl<T> Socket<T> {
    pub(super) fn new(inner: TcpStream, mark: T) -> Socket<T> {
        Socket { inner, mark }
    }
}

/// Server side. Until the other side has proved itself it has little time and may send little. Ends when the network is shut down: what
/// serves it would outlive the network otherwise, for streams between nodes never end by themselves.
pub(super) struct Accepted {
    socket: Socket<Arc<Gate>>,
    stranger: Option<Stranger>,
    /// `None` once it has resolved.
    stopped: Option<BoxFuture<'static, ()>>,
}

struct Stranger {
    deadline: Pin<Box<Sleep>>,
    received: usize,
    /// Its place among those that have proved nothing; free again with the proof or the end.
    _place: OwnedSemaphorePermit,
}

impl Accepted {
    /// Call inside the runtime that will serve it.
    pub(super) fn new(socket: TcpStream, place: OwnedSemaphorePermit, mut stop_rx: watch::Receiver<bool>) -> Accepted {
        let stranger = Stranger { deadline: Box::pin(tokio::time::sleep(PROOF_TIME)), received: 0, _place: place };
        let stopped = async move {
            let _ = stop_rx.wait_for(|stop| *stop).await;
        };
        Accepted { socket: Socket::new(socket, Arc::new(Gate::default())), stranger: Some(stranger), stopped: Some(stopped.boxed()) }
    }

    fn is_stopped(&mut self, cx: &mut Context<'_>) -> bool {
        if self.stopped.as_mut().is_some_and(|stopped| stopped.as_mut().poll(cx).is_ready()) {
            self.stopped = None;
        }
        self.stopped.is_none()
    }
}

impl Connected for Accepted {
    type ConnectInfo = Arc<Gate>;

    fn connect_info(&self) -> Arc<Gate> {
        self.socket.mark.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_stopped(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if this.socket.mark.card().is_some() {
            this.stranger = None;
        }
        let before = buf.filled().len();
        let Some(stranger) = &mut this.stranger else { return Pin::new(&mut this.socket).poll_read(cx, buf) };
        if stranger.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no proof in time")));
        }
        std::task::ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        stranger.received += buf.filled().len() - before;
        if stranger.received > STRANGER_BYTES {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too much without a proof")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

impl<T: Unpin> AsyncRead for Socket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: Unpin> AsyncWrite for Socket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
