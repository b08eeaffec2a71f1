//! Sockets between nodes: a short preface names the class of the connection and whether TLS follows, so that the server can hand Raft's
//! connections and the edges' to different runtimes, and that nodes which disagree about TLS say so instead of failing strangely. Then
//! comes TLS, if both have it, then HTTP/2. The client learns at once when a connection is gone.
//!
//! `> "WARREN\x02" | class u8, 0x80 for TLS` `< 0 go on, 1 TLS is demanded, 2 there is no TLS here`, and over TLS once more `< 0`

use super::auth::Gate;
use super::strangers::Place;
use crate::tls::Mutual;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::Sleep;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

const PREFACE: &[u8; 7] = b"WARREN\x02";
/// In the preface, beside the class: TLS follows.
const TLS: u8 = 0x80;
const GO_ON: u8 = 0;
const TLS_DEMANDED: u8 = 1;
const NO_TLS: u8 = 2;
/// For the preface, and again for the TLS handshake.
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

/// Why a socket does not become a connection between nodes.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// TCP, or TLS under way.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The handshake: wrong authority, wrong name, out of date.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// We have no certificate to show.
    #[error(
        "the node there demands TLS: --peer-tls-cert, --peer-tls-key and --peer-tls-ca are to be set on all nodes and for `warren ctl`"
    )]
    TlsDemanded,
    /// We would not speak without.
    #[error("the node there has no TLS (--peer-tls-cert), and we do not speak without")]
    NoTls,
    /// The other side dialled without, and is refused.
    #[error("without TLS, which --peer-tls-cert makes a must here")]
    CameWithoutTls,
    /// The other side dialled with TLS, and is refused.
    #[error("with TLS, for which --peer-tls-cert is missing here")]
    CameWithTls,
}

/// Connect, say what for, and prove by certificates who we are if there is `tls`.
pub(super) async fn dial(address: &str, class: Class, tls: Option<&Mutual>) -> Result<Pipe, SocketError> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut preface = [0; 8];
    preface[..7].copy_from_slice(PREFACE);
    preface[7] = class as u8 | if tls.is_some() { TLS } else { 0 };
    socket.write_all(&preface).await?;
    match (socket.read_u8().await?, tls) {
        (GO_ON, None) => Ok(Pipe::Plain(socket)),
        (GO_ON, Some(tls)) => {
            let mut stream = tls.connect(host(address), socket).await.map_err(SocketError::Tls)?;
            // Our handshake is complete before the other side has seen our certificate: hear what it thinks of it.
            match stream.read_u8().await.map_err(SocketError::Tls)? {
                GO_ON => Ok(Pipe::Tls(Box::new(stream.into()))),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a node of this product").into()),
            }
        }
        (TLS_DEMANDED, _) => Err(SocketError::TlsDemanded),
        (NO_TLS, _) => Err(SocketError::NoTls),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a node of this product").into()),
    }
}

/// Of `host:port`, without an IPv6 address's brackets.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// The class of an accepted connection, with TLS still to come where it is demanded; an error for strangers.
pub(super) async fn accept(socket: &mut TcpStream, demands_tls: bool) -> Result<Class, SocketError> {
    socket.set_nodelay(true)?;
    let mut preface = [0; 8];
    tokio::time::timeout(PREFACE_TIME, socket.read_exact(&mut preface)).await.map_err(io::Error::from)??;
    let classes = [Class::Log, Class::Beat, Class::Edge, Class::Deliver, Class::Operator];
    let class = classes.into_iter().find(|c| *c as u8 == preface[7] & !TLS);
    let Some(class) = class.filter(|_| preface[..7] == PREFACE[..]) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a node of this product").into());
    };
    // One byte into an empty buffer never waits.
    match (preface[7] & TLS != 0, demands_tls) {
        (false, true) => {
            socket.write_u8(TLS_DEMANDED).await?;
            Err(SocketError::CameWithoutTls)
        }
        (true, false) => {
            socket.write_u8(NO_TLS).await?;
            Err(SocketError::CameWithTls)
        }
        (true, true) | (false, false) => {
            socket.write_u8(GO_ON).await?;
            Ok(class)
        }
    }
}

/// The rest of accepting, on the runtime that will serve the connection.
pub(super) async fn secured(socket: TcpStream, tls: Option<&Mutual>) -> Result<Pipe, SocketError> {
    let Some(tls) = tls else { return Ok(Pipe::Plain(socket)) };
    let stream = tokio::time::timeout(PREFACE_TIME, tls.accept(socket)).await.map_err(io::Error::from)?;
    let mut stream = stream.map_err(SocketError::Tls)?;
    stream.write_u8(GO_ON).await?;
    stream.flush().await?;
    Ok(Pipe::Tls(Box::new(stream.into())))
}

/// A socket, plain or under TLS.
pub(super) enum Pipe {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Pipe {
    /// What ties a proof to this connection; the same at both ends.
    pub(super) fn binding(&self) -> [u8; 32] {
        match self {
            Pipe::Plain(_) => [0; 32],
            Pipe::Tls(stream) => Mutual::binding(stream),
        }
    }
}

/// A socket that belongs to one gate (server) or tells when it is dropped (client).
pub(super) struct Socket<T> {
    inner: Pipe,
    mark: T,
}

/// Client side: dropping the sender wakes the link's keeper.
pub(super) type Dialed = Socket<oneshot::Sender<()>>;

impl<T> Socket<T> {
    pub(super) fn new(inner: Pipe, mark: T) -> Socket<T> {
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
    _place: Place,
}

impl Accepted {
    /// Call inside the runtime that will serve it.
    pub(super) fn new(socket: Pipe, place: Place, mut stop_rx: watch::Receiver<bool>) -> Accepted {
        let stranger = Stranger { deadline: Box::pin(tokio::time::sleep(PROOF_TIME)), received: 0, _place: place };
        let stopped = async move {
            let _ = stop_rx.wait_for(|stop| *stop).await;
        };
        let gate = Arc::new(Gate::new(socket.binding()));
        Accepted { socket: Socket::new(socket, gate), stranger: Some(stranger), stopped: Some(stopped.boxed()) }
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

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Pipe::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Pipe::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Pipe::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Pipe::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Pipe::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Pipe::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Pipe::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Pipe::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Pipe::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Pipe::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Pipe::Plain(socket) => socket.is_write_vectored(),
            Pipe::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn a_certificate_is_for_the_host_that_was_dialled() {
        assert_eq!(["alpha:7671", "10.0.0.1:1", "[::1]:7671", "::1:7671"].map(host), ["alpha", "10.0.0.1", "::1", "::1"]);
    }
}
