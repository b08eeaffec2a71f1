//! The leader's volatile side of a shard: consumers, credit, checked-out messages, proposing. One actor per shard, the same for Raft
//! shards and for the node's own in-memory shard. Wired by the composition root: make a [`mailbox`], give its handle to whoever
//! replicates, [`spawn`] the server. Replicated state is in `machine`, the clients' side in `edge`.

mod aging;
mod delivery;
mod edges;
mod feed;
mod handle;
mod lateness;
mod letters;
mod level;
pub mod local;
mod parking;
mod posting;
mod proposing;
mod queue;
mod ranges;
mod replies;
mod requests;
mod sealing;
mod server;
mod stale;
mod stamp;
mod taking;
mod tending;
mod transactions;

pub use feed::{CatalogChanges, CatalogFeed, QueueFacts};
pub use handle::{Mailbox, ServerConfig, ServerEvent, ServerHandle, mailbox};
pub use lateness::Lateness;
pub use server::spawn;

#[cfg(test)]
mod tests;
