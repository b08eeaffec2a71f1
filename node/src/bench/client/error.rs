//! What can go wrong for a client, in the broker's words where it gave some.

use std::io;

/// Why a call failed. After any of these but `Unexpected` the connection is of no further use; a channel error ends its channel.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed or was closed without an AMQP close.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    /// Nothing came within the read timeout.
    #[error("nothing came within the read timeout")]
    Timeout,
    /// connection.close from the broker.
    #[error("connection closed by the broker: {code} {text}")]
    ConnectionClosed {
        /// Reply code.
        code: u16,
        /// Reply text.
        text: String,
    },
    /// channel.close from the broker.
    #[error("channel {channel} closed by the broker: {code} {text}")]
    ChannelClosed {
        /// Which.
        channel: u16,
        /// Reply code.
        code: u16,
        /// Reply text.
        text: String,
    },
    /// The broker broke the protocol.
    #[error("protocol: {0}")]
    Protocol(String),
}

impl ClientError {
    /// An io error as a timeout or a socket failure.
    pub fn from_io(error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout,
            _ => ClientError::Socket(error),
        }
    }

    /// The broker's reply code, if it gave one.
    pub fn code(&self) -> Option<u16> {
        match self {
            ClientError::ConnectionClosed { code, .. } | ClientError::ChannelClosed { code, .. } => Some(*code),
            ClientError::Socket(_) | ClientError::Timeout | ClientError::Protocol(_) => None,
        }
    }
}
