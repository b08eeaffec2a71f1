//! Sockets between nodes: a short preface names the class of the connection before HTTP/2 begins, so that the server can hand Raft's
//! connections and the edges' to different runtimes; the client learns at once when a connection is gone.

use super::auth::Gate;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tonic::transport::server::Connected;

const PREFACE: &[u8; 7] = b"WARREN\x01";
const PREFACE_TIME: Duration = Duration::from_secs(2);

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

/// Server side.
pub(super) type Accepted = Socket<Arc<Gate>>;
/// Client side: dropping the sender wakes the link's keeper.
pub(super) type Dialed = Socket<oneshot::Sender<()>>;

impl<T> Socket<T> {
    pub(super) fn new(inner: TcpStream, mark: T) -> Socket<T> {
        Socket { inner, mark }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Arc<Gate>;

    fn connect_info(&self) -> Arc<Gate> {
        self.mark.clone()
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
