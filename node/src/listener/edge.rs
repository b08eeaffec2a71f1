//! The production edge behind the listener's traits. The composition root wraps `edge::Edge` in `Clients` and hands it to `serve`.

use super::stream::{StreamConnection, StreamReader};
use super::{Edge, EdgeConnection};
use crate::edge;
use crate::model::consumer_group::Turn;
use crate::model::step::{Event, Step};
use crate::model::stream::{OffsetSpec, StreamChunk, StreamTarget};
use crate::model::stream_step::{Answer, Ask, Failure, Member};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// Clients of this node's edge.
pub struct Clients(pub Arc<edge::Edge>);

impl Edge for Clients {
    type Connection = edge::Connection;
    fn connect(&self, peer: SocketAddr) -> edge::Connection {
        self.0.connect(edge::ConnectionInfo { peer })
    }
}

impl EdgeConnection for edge::Connection {
    fn submit(&mut self, step: Step) -> Result<(), Step> {
        edge::Connection::submit(self, step)
    }

    fn take_events(&mut self, out: &mut Vec<Event>, bytes: usize) {
        edge::Connection::take_events(self, out, bytes);
    }

    async fn changed(&self) {
        edge::Connection::changed(self).await;
    }

    async fn writable(&self) {
        edge::Connection::writable(self).await;
    }
}

impl StreamConnection for edge::Connection {
    type Reader = edge::StreamReading;

    fn ask(&mut self, ask: Ask) -> BoxFuture<'static, Result<Answer, Failure>> {
        edge::Connection::ask(self, ask)
    }

    fn store(&mut self, stream: &str, reference: &str, offset: u64) {
        self.store_stream_offset(stream, reference, offset);
    }

    fn read(&mut self, target: &StreamTarget, from: OffsetSpec) -> Result<edge::StreamReading, Failure> {
        Ok(self.open_stream(target, from)?)
    }

    fn join_group(&mut self, member: &Member) {
        edge::Connection::join_group(self, member);
    }

    fn leave_group(&mut self, member: &Member) {
        edge::Connection::leave_group(self, member);
    }

    fn yield_turn(&mut self, member: &Member) {
        edge::Connection::yield_turn(self, member);
    }

    fn turn(&self, member: &Member) -> Option<Turn> {
        edge::Connection::turn(self, member)
    }

    fn has_stream(&self, target: &StreamTarget) -> bool {
        edge::Connection::has_stream(self, target)
    }

    fn catalog(&self) -> watch::Receiver<()> {
        edge::Connection::catalog(self)
    }
}

impl StreamReader for edge::StreamReading {
    async fn next(&mut self) -> Result<StreamChunk, Failure> {
        Ok(edge::StreamReading::next(self).await?)
    }
}
