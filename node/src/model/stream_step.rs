//! What a stream client's conversation asks of the edge beyond `Step`s, and the answers. A connection asks one thing at a time: what the
//! client sends meanwhile waits, so answers come in order, as from RabbitMQ.

use super::Offset;
use super::stream::{OffsetSpec, StreamState, StreamTarget};
use std::sync::Arc;

/// A question of a client in its vhost, with its user's rights.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// May it write to that stream, and where is it? Answer: `Answer::Target`.
    Write {
        /// Which.
        stream: Arc<str>,
        /// The publisher's name, if it has one.
        reference: Option<Arc<str>>,
    },
    /// May it read that stream, and where is it? Answer: `Answer::Target`.
    Read {
        /// Which.
        stream: Arc<str>,
    },
    /// The last publishing id of a publisher. Answer: `Answer::State`.
    PublishingId {
        /// Of which stream.
        stream: Arc<str>,
        /// Whose.
        reference: Arc<str>,
    },
    /// The offset that a reader has stored. Answer: `Answer::State`.
    StoredOffset {
        /// Of which stream.
        stream: Arc<str>,
        /// Whose.
        reference: Arc<str>,
    },
    /// How far is it? Answer: `Answer::State`.
    State {
        /// Which.
        stream: Arc<str>,
    },
    /// Where would a reader begin? Answer: `Answer::Resolved`.
    Resolve {
        /// Of which stream.
        stream: Arc<str>,
        /// As the reader says it.
        from: OffsetSpec,
        /// Chunks that it wants.
        wanted: Option<Arc<Wanted>>,
    },
    /// A new stream. Answer: `Answer::Done`.
    Create {
        /// Its name.
        stream: Arc<str>,
        /// Arguments of the protocol, without `x-`.
        arguments: Vec<(String, String)>,
    },
    /// A stream goes. Answer: `Answer::Done`.
    Delete {
        /// Which.
        stream: Arc<str>,
    },
    /// Where are these streams? Answer: `Answer::Places`.
    Places {
        /// Which.
        streams: Vec<Arc<str>>,
    },
    /// Partitions that a routing key leads to. Answer: `Answer::Streams`.
    Route {
        /// The key.
        routing_key: Arc<str>,
        /// Of which super stream.
        super_stream: Arc<str>,
    },
    /// All partitions, in their order. Answer: `Answer::Streams`.
    Partitions {
        /// Of which super stream.
        super_stream: Arc<str>,
    },
    /// A new super stream. Answer: `Answer::Done`.
    CreateSuper {
        /// Its name.
        name: Arc<str>,
        /// Partitions with their binding keys.
        partitions: Vec<(Arc<str>, Arc<str>)>,
        /// Arguments of each partition.
        arguments: Vec<(String, String)>,
    },
    /// A super stream goes, with its partitions. Answer: `Answer::Streams`, those that went.
    DeleteSuper {
        /// Which.
        name: Arc<str>,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done.
    Done,
    /// A stream.
    Target(Arc<StreamTarget>),
    /// How far a stream is.
    State(StreamState),
    /// An offset.
    Resolved(Offset),
    /// Names of streams.
    Streams(Vec<Arc<str>>),
    /// Where streams are.
    Places(Places),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No such stream, or it is a queue of another kind.
    #[error("there is no such stream")]
    Missing,
    /// There is something of that name.
    #[error("there is something of that name")]
    Exists,
    /// No permission.
    #[error("no permission")]
    Refused,
    /// An argument, a name, or the state of the node stands against it.
    #[error("a precondition failed")]
    Precondition,
    /// No leader, no quorum.
    #[error("the stream is not available")]
    Unavailable,
    /// Nothing fits.
    #[error("there is no such offset")]
    NoOffset,
    /// The broker's own fault.
    #[error("internal error")]
    Internal,
}

/// Chunks that a reader wants, by their filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Messages with one of these filter values.
    pub values: Vec<Box<[u8]>>,
    /// And those without any.
    pub unfiltered: bool,
}

/// Where streams are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Nodes, as clients reach them.
    pub brokers: Vec<Advertised>,
    /// Each stream that was asked for.
    pub streams: Vec<(Arc<str>, Result<Place, Failure>)>,
}

/// A stream's nodes, as places in `Places::brokers`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Who leads it, as far as this node knows.
    pub leader: Option<u16>,
    /// The others.
    pub replicas: Vec<u16>,
}

/// A node as stream clients reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertised {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Port with TLS; 0: it has none.
    pub tls_port: u16,
}

impl Advertised {
    /// The port for clients that speak TLS, or do not.
    pub fn port(&self, over_tls: bool) -> u16 {
        if over_tls && self.tls_port != 0 { self.tls_port } else { self.port }
    }
}

/// A subscription as one of a group on its stream, of which one is active at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number on its connection.
    pub subscription: u8,
    /// The stream.
    pub target: Arc<StreamTarget>,
    /// The group's name.
    pub group: Arc<str>,
    /// The super stream that the stream is a partition of, as the client says.
    pub super_stream: Option<Arc<str>>,
}
