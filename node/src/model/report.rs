//! What a connection says of itself when somebody lists connections, channels or consumers. Made by a session, completed by its
//! listener, shown by `management`; nothing is kept for it while nobody asks.

use super::catalog::Table;
use super::{ConnectionId, ConsumerId, Offset, QueueId, ShardId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

/// A connection as the node that it came to sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStat {
    /// Its id on this node.
    pub id: ConnectionId,
    /// The client's address.
    pub peer: SocketAddr,
    /// When it came.
    pub since: SystemTime,
    /// Its user, once it entered a vhost.
    pub user: Option<Arc<str>>,
    /// Its vhost.
    pub vhost: Option<Arc<str>>,
    /// Its publishes wait for a shard or for the node.
    pub blocked: bool,
}

/// A replica in Raft's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftFigures {
    /// `leader`, `follower`, ...
    pub state: &'static str,
    /// Term.
    pub term: u64,
    /// Last index in the log.
    pub last_index: u64,
    /// Committed as far as this node knows.
    pub committed: u64,
    /// Applied.
    pub applied: u64,
    /// Purged up to here: older state is in the checkpoint.
    pub purged: u64,
}

/// A client's conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// This side's address; filled in by the listener.
    pub local: Option<SocketAddr>,
    /// What TLS agreed on, if it is spoken; filled in by the listener.
    pub encryption: Option<Arc<Encryption>>,
    /// RabbitMQ's word: `running`, `blocked` is the edge's to say, `closing`.
    pub state: &'static str,
    /// What it speaks, as RabbitMQ lists it: `{0,9,1}`, `stream`.
    pub protocol: &'static str,
    /// How it logged in.
    pub mechanism: &'static str,
    /// Properties that the client sent of itself.
    pub client_properties: Table,
    /// Agreed limits.
    pub frame_max: u32,
    /// Agreed limits.
    pub channel_max: u16,
    /// Agreed heartbeat, seconds.
    pub heartbeat_seconds: u16,
    /// Bytes read from the socket; filled in by the listener, as all four.
    pub received_bytes: u64,
    /// Bytes written to it.
    pub sent_bytes: u64,
    /// Open channels, by number.
    pub channels: Vec<ChannelReport>,
    /// Publishers of the stream protocol, by number.
    pub publishers: Vec<PublisherReport>,
    /// Subscriptions of the stream protocol, by number.
    pub subscriptions: Vec<SubscriptionReport>,
}

/// A publisher of the stream protocol. A sub-entry batch counts as one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublisherReport {
    /// Its number on its connection.
    pub id: u8,
    /// Its stream.
    pub stream: Arc<str>,
    /// Its name, if it has one.
    pub reference: Option<Arc<str>>,
    /// Messages that it published.
    pub published: u64,
    /// Of those, confirmed.
    pub confirmed: u64,
    /// Messages that a PublishError was about.
    pub errored: u64,
}

/// A subscription of the stream protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionReport {
    /// Its number on its connection.
    pub id: u8,
    /// Its stream.
    pub stream: Arc<str>,
    /// Where that is.
    pub target: (QueueId, ShardId),
    /// The offset behind the stream's last message, where this node has a replica; filled in by the node.
    pub end: Option<Offset>,
    /// Messages in the chunks that were sent.
    pub delivered: u64,
    /// The offset behind the last of them; `None` before the first.
    pub next: Option<Offset>,
    /// Chunks that may come.
    pub credit: i32,
    /// It is of no group, or its turn has come.
    pub is_active: bool,
    /// It is one of a group of which one is active.
    pub is_of_group: bool,
    /// Properties that it was made with.
    pub properties: Table,
}

/// TLS of a connection, in RabbitMQ's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encryption {
    /// `tlsv1.2`, `tlsv1.3`.
    pub protocol: &'static str,
    /// `ecdhe_rsa`, `ecdhe_ecdsa`, `any`.
    pub key_exchange: &'static str,
    /// `aes_256_gcm` and the like.
    pub cipher: &'static str,
    /// How records are authenticated.
    pub hash: &'static str,
    /// The client's certificate, verified.
    pub certificate: Option<CertificateReport>,
}

/// What a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateReport {
    /// Whose, by RFC 4514.
    pub subject: String,
    /// By whom.
    pub issuer: String,
    /// From when to when.
    pub validity: String,
}

/// A channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelReport {
    /// Its number.
    pub number: u16,
    /// Publishes are confirmed.
    pub confirm: bool,
    /// In tx mode.
    pub transactional: bool,
    /// Messages of a transaction that is not committed.
    pub uncommitted: u64,
    /// Settlements of it.
    pub uncommitted_acks: u64,
    /// Deliveries that wait for an acknowledgement.
    pub unacknowledged: u64,
    /// Publishes that wait for a confirm.
    pub unconfirmed: u64,
    /// Prefetch for later consumers, 0 = none.
    pub prefetch: u32,
    /// Its consumers.
    pub consumers: Vec<ConsumerReport>,
}

/// A consumer.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsumerReport {
    /// Its id on its node.
    pub id: ConsumerId,
    /// Its queue.
    pub queue: Arc<str>,
    /// Its tag.
    pub tag: String,
    /// Deliveries need no acknowledgement.
    pub no_ack: bool,
    /// Messages it may hold, 0 = no limit.
    pub prefetch: u32,
    /// Arguments of basic.consume.
    pub arguments: Table,
}

/// Something that a vhost or a user may have only so many of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counted {
    /// Connections in a vhost.
    VhostConnections(Arc<str>),
    /// Connections of a user.
    UserConnections(Arc<str>),
    /// Channels of a user.
    UserChannels(Arc<str>),
}
