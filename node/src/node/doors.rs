//! The ports for clients: taken when the node starts, so that one that is not to be had is told at once, and opened when it serves. Until
//! then clients hear that nobody is there, and try another node, instead of waiting for this one. Called by `run`.

use super::{StartError, doing};
use crate::config::{Ports, ServerConfig};
use std::io;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 1024;

/// A port that is taken and not open.
pub(super) struct Door {
    socket: TcpSocket,
    name: String,
}

impl Door {
    /// Takes a port.
    ///
    /// # Errors
    /// It is somebody else's, or there is no such address.
    pub async fn take(config: &ServerConfig, port: u16, what: &str) -> Result<Door, StartError> {
        let name = format!("{what} port {}:{port}", config.host);
        match bind(&config.host, port).await {
            Ok(socket) => Ok(Door { socket, name }),
            Err(error) => Err(doing(name)(error)),
        }
    }

    /// Its number.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().as_ref().map_or(0, SocketAddr::port)
    }

    /// Clients may come.
    ///
    /// # Errors
    /// Another process took the port at the same moment and was faster to open it.
    pub fn open(self) -> Result<TcpListener, StartError> {
        self.socket.listen(BACKLOG).map_err(doing(self.name))
    }
}

async fn bind(host: &str, port: u16) -> io::Result<TcpSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for address in lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Connections of an earlier process may still be closing.
        socket.set_reuseaddr(true)?;
        match socket.bind(address) {
            Ok(()) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// All of a node.
pub(super) struct Doors {
    amqp: Door,
    amqps: Option<Door>,
    streams: Door,
    streams_over_tls: Option<Door>,
    rocketmq: Option<Door>,
    rocketmq_over_tls: Option<Door>,
}

/// The same, open.
pub(super) struct Open {
    pub amqp: TcpListener,
    pub amqps: Option<TcpListener>,
    pub streams: TcpListener,
    pub streams_over_tls: Option<TcpListener>,
    pub rocketmq: Option<TcpListener>,
    pub rocketmq_over_tls: Option<TcpListener>,
}

impl Doors {
    /// Takes the ports that the configuration names.
    ///
    /// # Errors
    /// As [`Door::take`].
    pub async fn take(config: &ServerConfig) -> Result<Doors, StartError> {
        let maybe = async |port: Option<u16>, what: &str| match port {
            Some(port) => Door::take(config, port, what).await.map(Some),
            None => Ok(None),
        };
        Ok(Doors {
            amqp: Door::take(config, config.amqp_port, "AMQP").await?,
            amqps: maybe(config.amqps.as_ref().map(|amqps| amqps.port), "AMQP over TLS").await?,
            streams: Door::take(config, config.stream_port, "stream").await?,
            streams_over_tls: maybe(config.amqps.as_ref().map(|_| config.stream_tls_port), "streams over TLS").await?,
            rocketmq: maybe(Some(config.rocketmq.port).filter(|port| *port != 0), "RocketMQ").await?,
            rocketmq_over_tls: maybe(config.rocketmq.tls_port, "RocketMQ over TLS").await?,
        })
    }

    /// Numbers of the ports for clients; 0: none.
    pub fn ports(&self) -> Ports {
        let number = |door: &Option<Door>| door.as_ref().map_or(0, Door::port);
        Ports {
            amqp: self.amqp.port(),
            amqps: number(&self.amqps),
            stream: self.streams.port(),
            stream_tls: number(&self.streams_over_tls),
            rocketmq: number(&self.rocketmq),
            rocketmq_tls: number(&self.rocketmq_over_tls),
            ..Ports::default()
        }
    }

    /// Opens all.
    ///
    /// # Errors
    /// As [`Door::open`].
    pub fn open(self) -> Result<Open, StartError> {
        Ok(Open {
            amqp: self.amqp.open()?,
            amqps: self.amqps.map(Door::open).transpose()?,
            streams: self.streams.open()?,
            streams_over_tls: self.streams_over_tls.map(Door::open).transpose()?,
            rocketmq: self.rocketmq.map(Door::open).transpose()?,
            rocketmq_over_tls: self.rocketmq_over_tls.map(Door::open).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[tokio::test]
    async fn nobody_is_let_in_before_the_door_is_open_and_a_taken_port_is_told() {
        let socket = bind("127.0.0.1", 0).await.unwrap();
        let door = Door { socket, name: "door".into() };
        let address = SocketAddr::from(([127, 0, 0, 1], door.port()));
        assert_eq!(TcpStream::connect(address).map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionRefused));
        let listener = door.open().unwrap();
        TcpStream::connect(address).unwrap();
        let error = bind("127.0.0.1", address.port()).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
    }
}
