//! The ports of the RabbitMQ stream protocol, plain and TLS: joins what is spoken there (`connection`) to a port.

mod connection;
mod figures;
mod readers;
#[cfg(test)]
mod tests;
mod turns;

pub use figures::Figures;

use super::port::{self, Client, Host, Settings};
use super::{Edge, EdgeConnection};
use crate::model::consumer_group::Turn;
use crate::model::stream::{OffsetSpec, StreamChunk, StreamTarget};
use crate::model::stream_step::{Advertised, Answer, Ask, Failure, Member};
use crate::session::stream::Options;
use connection::Connection;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A client's side of the edge, with what only stream clients want of it.
pub trait StreamConnection: EdgeConnection {
    /// Reads a stream.
    type Reader: StreamReader;
    /// Answers a question. One at a time.
    fn ask(&mut self, ask: Ask) -> BoxFuture<'static, Result<Answer, Failure>>;
    /// A reader is this far, if it may read.
    fn store(&mut self, stream: &str, reference: &str, offset: u64);
    /// Begins to read.
    ///
    /// # Errors
    /// The stream is gone, or cannot be read here.
    fn read(&mut self, target: &StreamTarget, from: OffsetSpec) -> Result<Self::Reader, Failure>;
    /// A subscription becomes a member of a group.
    fn join_group(&mut self, member: &Member);
    /// It is none any more.
    fn leave_group(&mut self, member: &Member);
    /// It has stopped reading, as it was told.
    fn yield_turn(&mut self, member: &Member);
    /// What it may do; `None`: the cluster does not know it.
    fn turn(&self, member: &Member) -> Option<Turn>;
    /// Whether the stream is still there.
    fn has_stream(&self, target: &StreamTarget) -> bool;
    /// Tells when streams may have gone.
    fn catalog(&self) -> watch::Receiver<()>;
}

/// Reads a stream; dropping it ends the reading.
pub trait StreamReader: Send + 'static {
    /// The next chunk, as soon as there is one. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Result<StreamChunk, Failure>> + Send;
}

/// Clients are told of `advertised`; what they do is added to `figures`. Serves clients until `shutdown` holds true (or its sender is gone), then closes them and returns within about a second.
pub async fn serve<E: Edge<Connection: StreamConnection>>(
    listener: TcpListener,
    edge: Arc<E>,
    settings: Settings,
    (advertised, figures): (Advertised, Arc<Figures>),
    shutdown: watch::Receiver<bool>,
) {
    let broker = Broker { edge, cluster_name: settings.cluster_name.as_str().into(), advertised, figures };
    port::serve(listener, Arc::new(broker), settings, shutdown).await;
}

/// Speaks the stream protocol.
struct Broker<E> {
    edge: Arc<E>,
    cluster_name: Arc<str>,
    advertised: Advertised,
    figures: Arc<Figures>,
}

impl<E: Edge<Connection: StreamConnection>> Host for Broker<E> {
    async fn converse(&self, client: Client, shutdown: watch::Receiver<bool>) {
        let (cluster_name, advertised) = (self.cluster_name.clone(), self.advertised.clone());
        let (over_tls, certificate_name) = (client.encryption.is_some(), client.certificate_name.clone());
        let options = Options { cluster_name, advertised, over_tls, certificate_name };
        let edge = self.edge.connect(client.peer);
        Connection::new(client, edge, options, self.figures.clone()).run(shutdown).await;
    }
}
