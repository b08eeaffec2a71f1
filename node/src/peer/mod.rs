//! Talks between nodes: authenticated connections, one per class of traffic, that carry frames. `consensus` sends Raft through it, the
//! composition root opens edge paths with it. What a frame means is decided elsewhere; this room knows only `model::link` values
//! (`link_codec`), because their bodies must travel uncopied.

pub mod auth;
pub mod client;
pub mod link_codec;
pub mod memory;
pub mod paths;
pub mod server;
mod socket;
mod strangers;
pub mod transport;

pub use transport::{Card, Duplex, Frame, Handler, LinkState, PeerError, StreamKind, Transport};
