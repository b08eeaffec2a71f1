//! Sockets: accepts clients, runs one task per connection, joins a protocol's session to the edge. Started by the composition root.
//! Holds no protocol semantics and no broker state.

pub mod amqp;
pub mod edge;
mod line;
pub mod port;
pub mod rocketmq;
mod secure;
mod socket;
pub mod stream;

use crate::model::step::{Event, Step};
use std::net::SocketAddr;

/// Where client connections come from: the edge of this node.
pub trait Edge: Send + Sync + 'static {
    /// One client's side of it.
    type Connection: EdgeConnection;
    /// A client is there.
    fn connect(&self, peer: SocketAddr) -> Self::Connection;
}

/// A client's side of the edge. Dropping it says that the client is gone: its consumers end, what it holds goes back, its exclusive
/// queues are deleted.
pub trait EdgeConnection: Send + Sync + 'static {
    /// Takes a step, or gives it back while a lane is full or publishing is blocked: wait for `writable`, then submit it again
    /// before any other publish. Settlements and `Written` are never refused for the sake of a publish.
    #[expect(clippy::result_large_err, reason = "the step itself comes back, rarely; a box would cost an allocation per step")]
    fn submit(&mut self, step: Step) -> Result<(), Step>;
    /// Moves events to the end of `out` until the messages among them come to `bytes`; a message of any size goes when nothing went before
    /// it. All that is taken is to be written at once: what stays can still go to somebody else. Never waits.
    fn take_events(&mut self, out: &mut Vec<Event>, bytes: usize);
    /// Resolves when there are events, at once if there are some already. Cancel safe.
    fn changed(&self) -> impl Future<Output = ()> + Send;
    /// Resolves when a step that was given back may be tried again. Cancel safe.
    fn writable(&self) -> impl Future<Output = ()> + Send;
}
