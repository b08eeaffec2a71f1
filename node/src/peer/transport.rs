//! The seam between whoever speaks (`consensus`, edge paths) and whatever carries: tonic (`client`, `server`) or a network in memory
//! (`memory`) that tests and the simulator can cut, delay and shuffle.

use crate::model::{Generation, Incarnation, NodeId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A small typed head and payload pieces that are carried unparsed and uncopied.
pub use warren_proto::peer::Frame;

/// Frames that fit into one direction of a stream before its writer waits.
pub const STREAM_CAPACITY: usize = 32;

/// A frame that is only a head.
pub fn head_only(head: Bytes) -> Frame {
    Frame { head, body: Vec::new() }
}

/// The long-lived streams of a pair of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Append entries of one Raft group.
    Append,
    /// Heartbeats of all groups.
    Heartbeat,
    /// A snapshot.
    Snapshot,
    /// Edge to leader and verdicts.
    Edge,
    /// Deliveries.
    Deliver,
}

/// Why a peer did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it broke: the fate of what was sent is unknown.
    #[error("node {node} cannot be reached: {why}")]
    Unreachable {
        /// Whom.
        node: NodeId,
        /// The cause in words.
        why: String,
    },
    /// No answer in time.
    #[error("node {node} did not answer within {after:?}")]
    Timeout {
        /// Whom.
        node: NodeId,
        /// The limit.
        after: Duration,
    },
    /// It answered and refused.
    #[error("{0}")]
    Refused(String),
    /// Bytes that are not what they should be.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
}

/// Who a node is (rule 1): exchanged and proved on every connection before anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// Its number.
    pub node: NodeId,
    /// The life of its disk; 0 before the cluster is formed.
    pub generation: Generation,
    /// This start of its process.
    pub incarnation: Incarnation,
    /// The cluster it belongs to; `None` while its disk is empty.
    pub cluster: Option<u128>,
}

impl Card {
    /// Length of the encoding.
    pub const BYTES: usize = 2 + 4 + 8 + 1 + 16;

    /// Append the encoding.
    pub fn write(&self, to: &mut BytesMut) {
        to.put_u16_le(self.node.0);
        to.put_u32_le(self.generation.0);
        to.put_u64_le(self.incarnation.0);
        to.put_u8(self.cluster.is_some().into());
        to.put_u128_le(self.cluster.unwrap_or(0));
    }

    /// The inverse of `write`.
    pub fn read(from: &mut impl Buf) -> Option<Card> {
        if from.remaining() < Self::BYTES {
            return None;
        }
        let (node, generation) = (NodeId(from.get_u16_le()), Generation(from.get_u32_le()));
        let (incarnation, formed) = (Incarnation(from.get_u64_le()), from.get_u8() != 0);
        let cluster = from.get_u128_le();
        Some(Card { node, generation, incarnation, cluster: formed.then_some(cluster) })
    }

    /// Whether Raft frames may pass between the two: same cluster, both formed.
    pub fn same_cluster(&self, other: &Card) -> bool {
        self.cluster.is_some() && self.cluster == other.cluster
    }
}

/// What is known of the connections to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Log and heartbeat connections that are up (0 to 2).
    pub up: u8,
    /// The last attempt to dial was answered by ECONNREFUSED: the process is gone, the host is alive.
    pub refused: bool,
    /// It was connected at least once since this process started.
    pub seen: bool,
}

impl LinkState {
    /// Every link is down and a re-dial was refused: the process died (T4).
    pub fn process_gone(self) -> bool {
        self.seen && self.up == 0 && self.refused
    }
}

/// Both directions of a stream. Dropping `tx` ends it for the other side; `rx` ends or fails when the path is gone.
pub struct Duplex {
    /// To the peer.
    pub tx: mpsc::Sender<Frame>,
    /// From the peer.
    pub rx: BoxStream<'static, Result<Frame, PeerError>>,
}

/// Carries frames to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// One question, one answer, on the heartbeat class of connection.
    fn ask(&self, to: NodeId, frame: Frame, timeout: Duration) -> BoxFuture<'static, Result<Frame, PeerError>>;
    /// A new stream; fails at once when there is no connection.
    fn open(&self, to: NodeId, kind: StreamKind) -> BoxFuture<'static, Result<Duplex, PeerError>>;
    /// The connections to `to` as they are now.
    fn link(&self, to: NodeId) -> LinkState;
    /// Fires whenever a `link` changed.
    fn link_changes(&self) -> watch::Receiver<u64>;
    /// This node's card changed (the cluster was formed): connections are made anew with the new card.
    fn card_changed(&self);
    /// Another node is to be reached there, unless this one is configured with another address of it.
    fn know(&self, _node: NodeId, _address: &str) {}
    /// A node is no member any more: no connection to it is made.
    fn forget(&self, _node: NodeId) {}
    /// Stop listening and close all connections.
    fn shutdown(&self);
}

/// Answers frames of other nodes. `from` is what that node proved of itself on this connection.
pub trait Handler: Send + Sync + 'static {
    /// This node's card now.
    fn card(&self) -> Card;
    /// A node with this card is not to be spoken to: its disk was replaced by a later one.
    fn is_outlived(&self, _card: &Card) -> bool {
        false
    }
    /// Answer a question.
    fn ask(&self, from: Card, frame: Frame) -> BoxFuture<'static, Result<Frame, PeerError>>;
    /// Serve a stream (spawns what it needs; never blocks). Dropping `tx` ends it.
    fn stream(&self, from: Card, kind: StreamKind, rx: BoxStream<'static, Result<Frame, PeerError>>, tx: mpsc::Sender<Frame>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_survives_the_wire_and_a_short_one_is_refused() {
        for cluster in [None, Some(0), Some(u128::MAX - 7)] {
            let card = Card { node: NodeId(3), generation: Generation(2), incarnation: Incarnation(9), cluster };
            let mut bytes = BytesMut::new();
            card.write(&mut bytes);
            assert_eq!(bytes.len(), Card::BYTES);
            assert_eq!(Card::read(&mut bytes.clone().freeze()), Some(card));
            assert_eq!(Card::read(&mut bytes.freeze().slice(1..)), None);
        }
    }

    #[test]
    fn an_empty_node_shares_no_cluster_with_another_empty_one() {
        assert!(!Card::default().same_cluster(&Card::default()));
    }
}
