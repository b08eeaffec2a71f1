//! The AMQP 0-9-1 ports, plain and TLS: joins what is spoken there (`connection`) to a port.

mod connection;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use super::Edge;
use super::port::{self, Client, Host};
use crate::session::amqp::Options;
use connection::Connection;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use super::port::Settings;

/// Serves clients until `shutdown` holds true (or its sender is gone), then closes them with 320 and returns within about a second.
pub async fn serve<E: Edge>(listener: TcpListener, edge: Arc<E>, settings: Settings, shutdown: watch::Receiver<bool>) {
    let Settings { cluster_name, max_message_bytes, leaving, .. } = settings.clone();
    let broker = Broker { edge, cluster_name, max_message_bytes, leaving };
    port::serve(listener, Arc::new(broker), settings, shutdown).await;
}

/// Speaks AMQP 0-9-1.
struct Broker<E> {
    edge: Arc<E>,
    cluster_name: String,
    max_message_bytes: u64,
    leaving: Duration,
}

impl<E: Edge> Host for Broker<E> {
    async fn converse(&self, client: Client, shutdown: watch::Receiver<bool>) {
        let Client { socket, peer, encryption, certificate_name, until } = client;
        let (cluster_name, max_message_bytes) = (self.cluster_name.clone(), self.max_message_bytes);
        let options = Options { cluster_name, seed: rand::random(), certificate_name, max_message_bytes };
        let connection = Connection::new(socket, peer, self.edge.connect(peer), options, (until, self.leaving));
        let connection = match encryption {
            Some(encryption) => connection.encrypted(encryption),
            None => connection,
        };
        connection.run(shutdown).await;
    }
}
