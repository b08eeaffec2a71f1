//! The client's socket, in the clear or over TLS. Handles of one connection may be used by two threads, one that reads and one that writes.

use super::connection::Dial;
use super::error::ClientError;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Bytes read of TLS at once.
const READ_BYTES: usize = 64 * 1024;

/// A connected socket; a clone is another handle on it.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    tls: Option<Arc<Tls>>,
}

/// What both handles share.
#[derive(Debug)]
struct Tls {
    session: Mutex<ClientConnection>,
    /// Held while records are made and sent, so that they arrive in order. Taken before `session`.
    sending: Mutex<()>,
    /// Read and not yet taken by the session; the thread that reads holds it.
    raw: Mutex<Bytes>,
}

impl Socket {
    /// Connects, and shakes hands when the broker is to be spoken to over TLS.
    pub fn connect(dial: &Dial) -> Result<Socket, ClientError> {
        let address = dial.address.to_socket_addrs()?.next().ok_or_else(|| ClientError::Protocol("no such host".into()))?;
        let mut tcp = TcpStream::connect_timeout(&address, dial.timeout).map_err(ClientError::from_io)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(dial.timeout))?;
        tcp.set_write_timeout(Some(dial.timeout.max(Duration::from_secs(60))))?;
        let Some(ca) = &dial.ca else { return Ok(Socket { tcp, tls: None }) };
        let host = dial.address.rsplit_once(':').map_or(dial.address.as_str(), |(host, _)| host);
        let mut session = session(ca, host).map_err(ClientError::Protocol)?;
        session.set_buffer_limit(None);
        while session.is_handshaking() {
            session.complete_io(&mut tcp).map_err(ClientError::from_io)?;
        }
        Ok(Socket { tcp, tls: Some(Arc::new(Tls { session: Mutex::new(session), sending: Mutex::default(), raw: Mutex::default() })) })
    }

    /// Another handle.
    pub fn try_clone(&self) -> io::Result<Socket> {
        Ok(Socket { tcp: self.tcp.try_clone()?, tls: self.tls.clone() })
    }

    /// How long reads wait; `None` for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.tcp.set_read_timeout(timeout)
    }

    /// How long writes wait; `None` for ever.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.tcp.set_write_timeout(timeout)
    }

    /// Ends the connection for all handles.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.tcp.shutdown(how)
    }
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Socket {
        Socket { tcp, tls: None }
    }
}

fn session(ca: &Path, host: &str) -> Result<ClientConnection, String> {
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
    for certificate in found {
        let certificate = certificate.map_err(|error| format!("{}: {error}", ca.display()))?;
        roots.add(certificate).map_err(|error| format!("{}: {error}", ca.display()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|error| format!("{host}: {error}"))?;
    ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Tls {
    /// Sends what waits. Only with `sending` held.
    fn flush(&self, mut tcp: &TcpStream) -> io::Result<()> {
        let mut records = Vec::new();
        {
            let mut session = self.session.lock();
            while session.wants_write() {
                session.write_tls(&mut records)?;
            }
        }
        tcp.write_all(&records)
    }

    fn read(&self, mut tcp: &TcpStream, out: &mut [u8]) -> io::Result<usize> {
        let mut raw = self.raw.lock();
        loop {
            match self.session.lock().reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if raw.is_empty() {
                // The other thread may write while this one waits.
                let mut bytes = vec![0; READ_BYTES];
                let n = tcp.read(&mut bytes)?;
                *raw = Bytes::from(bytes).slice(..n);
            }
            // Not more at once than the session has room for.
            let mut session = self.session.lock();
            let mut left = &raw[..];
            session.read_tls(&mut left)?;
            let taken = raw.len() - left.len();
            raw.advance(taken);
            session.process_new_packets().map_err(broken)?;
            let answers = session.wants_write();
            drop(session);
            // When somebody is sending just now, it goes with his next.
            if let Some(_sending) = self.sending.try_lock().filter(|_| answers) {
                self.flush(tcp)?;
            }
        }
    }

    fn write(&self, tcp: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let _sending = self.sending.lock();
        self.session.lock().writer().write_all(bytes)?;
        self.flush(tcp)?;
        Ok(bytes.len())
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.tcp.read(out),
            Some(tls) => tls.read(&self.tcp, out),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.tcp.write(bytes),
            Some(tls) => tls.write(&self.tcp, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
