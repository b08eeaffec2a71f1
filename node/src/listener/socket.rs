//! A client's socket, plain or under TLS, as `connection` uses it: readiness, reads and writes that never wait. Plain TCP costs one
//! branch more than a bare socket. TLS is fed and emptied here in large pieces; its handshake is in `secure`.

use crate::model::limits;
use crate::model::stored::FileBytes;
use bytes::{Buf, Bytes, BytesMut};
use rustix::fs::sendfile;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use rustls::ServerConnection;
use std::io::{self, BufRead, ErrorKind, IoSlice, Write};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

/// Ciphertext read at a time.
const CIPHER_BYTES: usize = 32 << 10;

/// A client's socket.
#[derive(Debug)]
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<Secure>),
}

/// TLS over TCP, after its handshake.
#[derive(Debug)]
pub(super) struct Secure {
    tcp: TcpStream,
    session: ServerConnection,
    /// Read from the socket, not decrypted yet.
    cipher: BytesMut,
    /// There may be input that the socket does not tell of any more.
    has_input: bool,
    /// The client has said that it sends no more.
    ended: bool,
}

impl Socket {
    pub(super) fn secure(tcp: TcpStream, session: ServerConnection) -> Socket {
        // What came with the end of the handshake is in the session already.
        Socket::Tls(Box::new(Secure { tcp, session, cipher: BytesMut::new(), has_input: true, ended: false }))
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(tls) => &tls.tcp,
        }
    }

    pub(super) fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp().local_addr().ok()
    }

    /// Bytes that came and were not read.
    pub(super) fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(self.tcp()).unwrap_or(0)
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Socket::Plain(_))
    }

    /// Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Socket::Tls(tls) if tls.has_input => Ok(()),
            Socket::Plain(_) | Socket::Tls(_) => self.tcp().readable().await,
        }
    }

    /// Cancel safe.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.tcp().writable().await
    }

    /// Appends what there is, as far as `to` has room, which it must have; 0 is the end.
    pub(super) fn try_read_buf(&mut self, to: &mut BytesMut) -> io::Result<usize> {
        match self {
            Socket::Plain(tcp) => tcp.try_read_buf(to),
            Socket::Tls(tls) => tls.try_read_buf(to),
        }
    }

    /// `more`: what follows comes at once, and the last of it may wait for that.
    pub(super) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
        match self {
            Socket::Plain(tcp) if more => tcp.try_io(Interest::WRITABLE, || {
                Ok(sendmsg(&*tcp, slices, &mut SendAncillaryBuffer::default(), SendFlags::MORE | SendFlags::NOSIGNAL)?)
            }),
            Socket::Plain(tcp) => tcp.try_write_vectored(slices),
            Socket::Tls(tls) => tls.try_write_vectored(slices),
        }
    }

    /// Sends the first of a file's bytes, without a copy where there is no TLS.
    pub(super) fn try_send_file(&mut self, bytes: &FileBytes) -> io::Result<usize> {
        if let Socket::Plain(tcp) = self {
            let mut position = bytes.position();
            match tcp.try_io(Interest::WRITABLE, || Ok(sendfile(&*tcp, bytes, Some(&mut position), bytes.len())?)) {
                // The file's system knows no such thing.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                sent => return sent,
            }
        }
        let piece = read_file(bytes, CIPHER_BYTES)?;
        self.try_write_vectored(&[IoSlice::new(&piece)], false)
    }

    /// Bytes were taken that the socket does not have yet.
    pub(super) fn has_pending(&self) -> bool {
        match self {
            Socket::Plain(_) => false,
            Socket::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Hands such bytes on, as many as the socket takes now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Socket::Plain(_) => Ok(()),
            Socket::Tls(tls) => tls.flush(),
        }
    }

    /// Gives memory back that an idle connection does not need.
    pub(super) fn slim(&mut self) {
        match self {
            Socket::Tls(tls) if tls.cipher.is_empty() => tls.cipher = BytesMut::new(),
            Socket::Plain(_) | Socket::Tls(_) => {}
        }
    }

    /// Says that nothing more comes and reads to the client's end: closing with unread input would destroy what is on its way to it.
    pub(super) async fn linger(self) {
        let drain = async {
            let mut tcp = match self {
                Socket::Plain(tcp) => tcp,
                Socket::Tls(tls) => tls.close().await?,
            };
            tcp.shutdown().await?;
            let mut waste = [0; 512];
            while tcp.read(&mut waste).await? > 0 {}
            io::Result::Ok(())
        };
        if !matches!(tokio::time::timeout(limits::CLOSING, drain).await, Ok(Ok(()))) {
            tracing::trace!("the client did not close its side in time");
        }
    }
}

/// The first bytes of a file's, `most` of them.
pub(super) fn read_file(bytes: &FileBytes, most: usize) -> io::Result<Bytes> {
    let mut piece = vec![0; bytes.len().min(most)];
    let mut done = 0;
    while done < piece.len() {
        match rustix::io::pread(bytes, &mut piece[done..], bytes.position() + done as u64) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(piece.into())
}

impl Secure {
    /// One read of the socket at most, unless that brings no plaintext.
    fn try_read_buf(&mut self, to: &mut BytesMut) -> io::Result<usize> {
        let before = to.len();
        loop {
            self.take_plaintext(to)?;
            self.has_input = self.ended || to.len() == to.capacity();
            if self.has_input || (self.cipher.is_empty() && to.len() > before) {
                return Ok(to.len() - before);
            }
            if self.cipher.is_empty() {
                self.cipher.reserve(CIPHER_BYTES);
                if self.tcp.try_read_buf(&mut self.cipher)? == 0 {
                    return Ok(0);
                }
            }
            self.decrypt()?;
        }
    }

    /// Plaintext that the session holds, as far as there is room.
    fn take_plaintext(&mut self, to: &mut BytesMut) -> io::Result<()> {
        let mut reader = self.session.reader();
        while to.len() < to.capacity() {
            let chunk = match reader.fill_buf() {
                Ok(chunk) => chunk,
                // None now. An end without close_notify is the socket's to tell.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::UnexpectedEof) => return Ok(()),
                Err(error) => return Err(error),
            };
            let count = chunk.len().min(to.capacity() - to.len());
            if count == 0 {
                return Ok(());
            }
            to.extend_from_slice(&chunk[..count]);
            reader.consume(count);
        }
        Ok(())
    }

    /// Some of the ciphertext at hand to the session.
    fn decrypt(&mut self) -> io::Result<()> {
        let taken = self.session.read_tls(&mut &self.cipher[..])?;
        self.cipher.advance(taken);
        match self.session.process_new_packets() {
            Ok(state) => {
                // It takes nothing more after close_notify.
                self.ended = taken == 0 || state.peer_has_closed();
                Ok(())
            }
            Err(error) => {
                // The alert that says why, if the socket takes it.
                let _ = self.flush();
                Err(io::Error::new(ErrorKind::InvalidData, error))
            }
        }
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush()?;
        if self.session.wants_write() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = self.session.writer().write_vectored(slices)?;
        self.flush()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Unwaiting(&self.tcp)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// close_notify, and everything before it.
    async fn close(mut self: Box<Self>) -> io::Result<TcpStream> {
        self.session.send_close_notify();
        loop {
            self.flush()?;
            if !self.session.wants_write() {
                return Ok(self.tcp);
            }
            self.tcp.writable().await?;
        }
    }
}

/// A socket as a writer that never waits.
struct Unwaiting<'a>(&'a TcpStream);

impl Write for Unwaiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
