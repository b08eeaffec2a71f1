//! The TLS handshake of a client, before its conversation begins: within its time, with a log line that says what went wrong.

use super::socket::Socket;
use crate::model::report::Encryption;
use crate::tls::{self, Front, LoginName};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Content type of a TLS handshake record (RFC 8446, section 5.1): the first byte that a TLS client sends.
const HANDSHAKE_RECORD: u8 = 22;

/// Whether a conversation's first bytes are those of a TLS client.
pub(super) fn looks_like_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE_RECORD, 3, ..])
}

/// A client whose handshake is done.
pub(super) struct Welcomed {
    pub(super) socket: Socket,
    pub(super) encryption: Arc<Encryption>,
    /// Who it is by its certificate, if that was asked for and verified.
    pub(super) certificate_name: Option<Arc<str>>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("a client without TLS on the TLS port: use the port without it, or TLS in the client")]
    Plain,
    #[error("the client hung up before the TLS handshake")]
    HungUp,
    #[error("the TLS handshake took too long")]
    Late,
    #[error("the TLS handshake failed: {0}")]
    Failed(#[from] io::Error),
}

/// The server's side of the handshake, within `limit`; `None` after a line in the log.
pub(super) async fn welcome(tcp: TcpStream, peer: SocketAddr, front: &Front, limit: Duration) -> Option<Welcomed> {
    let done = tokio::time::timeout(limit, shake_hands(tcp, front)).await.unwrap_or(Err(Refused::Late));
    let stream = match done {
        Ok(stream) => stream,
        Err(Refused::HungUp) => {
            tracing::debug!(%peer, why = %Refused::HungUp, "connection closed");
            return None;
        }
        Err(why) => {
            tracing::warn!(%peer, %why, "connection refused");
            return None;
        }
    };
    let (tcp, session) = stream.into_inner();
    let certificate_name = match front.login_name(&session) {
        Some(LoginName::User(name)) => Some(name),
        Some(LoginName::Missing) => {
            tracing::info!(%peer, "the client's certificate has no name to log in with: EXTERNAL is not offered");
            None
        }
        None => None,
    };
    let encryption = Arc::new(tls::encryption(&session));
    Some(Welcomed { socket: Socket::secure(tcp, session), encryption, certificate_name })
}

async fn shake_hands(tcp: TcpStream, front: &Front) -> Result<TlsStream<TcpStream>, Refused> {
    let mut first = [0; 1];
    match tcp.peek(&mut first).await {
        Ok(0) => return Err(Refused::HungUp),
        Ok(_) if first[0] != HANDSHAKE_RECORD => {
            // Its input is read to the end, so that it sees an orderly close.
            Socket::Plain(tcp).linger().await;
            return Err(Refused::Plain);
        }
        Ok(_) => {}
        Err(error) => return Err(Refused::Failed(error)),
    }
    Ok(front.acceptor().accept(tcp).await?)
}
