//! The production edge behind the listener's traits. The composition root wraps `edge::Edge` in `Clients` and hands it to `serve`.

use super::{Edge, EdgeConnection};
use crate::edge;
use crate::model::step::{Event, Step};
use std::net::SocketAddr;
use std::sync::Arc;

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
