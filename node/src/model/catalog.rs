//! What the catalog (shard 0) holds and the commands that change it. Serialised as MessagePack maps (named fields), so that a
//! field can be added without breaking an older node. Made by `edge` and `management`, applied by `machine::catalog`.

use super::admin::AdminCommand;
use super::consumer_group::{GroupChange, GroupMember, GroupName};
use super::{ConnectionId, Incarnation, NodeId, QueueId, ShardId, store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A value of an AMQP field table as a client wrote it; equality of declarations compares these (integer widths do not matter).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// No value (`V`).
    Void,
    /// Boolean (`t`).
    Bool(bool),
    /// Any integer (`b B s u I i l`); `u64` beyond `i64` is refused by the codec.
    Int(i64),
    /// 32-bit float (`f`).
    Float(f32),
    /// 64-bit float (`d`).
    Double(f64),
    /// Decimal (`D`): scale, value.
    Decimal(u8, i32),
    /// Long string (`S`), UTF-8 or not.
    Text(Vec<u8>),
    /// Byte array (`x`).
    Bytes(Vec<u8>),
    /// Seconds since the epoch (`T`).
    Timestamp(u64),
    /// Array (`A`).
    List(Vec<Value>),
    /// Nested table (`F`).
    Table(Table),
}

impl Value {
    /// The value as RabbitMQ's error texts write it.
    pub fn text(&self) -> String {
        match self {
            Value::Void => "undefined".to_owned(),
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Float(x) => format!("{x:?}"),
            Value::Double(x) => format!("{x:?}"),
            Value::Decimal(scale, value) => format!("{{{scale},{value}}}"),
            Value::Text(bytes) | Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Timestamp(t) => t.to_string(),
            Value::List(values) => format!("[{}]", values.iter().map(Value::text).collect::<Vec<_>>().join(",")),
            Value::Table(table) => format!("[{}]", table.iter().map(|(k, v)| format!("{k}={}", v.text())).collect::<Vec<_>>().join(",")),
        }
    }

    /// The type as RabbitMQ's error texts call it.
    pub fn type_text(&self) -> &'static str {
        match self {
            Value::Void => "void",
            Value::Bool(_) => "bool",
            Value::Int(n) if i32::try_from(*n).is_ok() => "signedint",
            Value::Int(_) => "long",
            Value::Float(_) => "float",
            Value::Double(_) => "double",
            Value::Decimal(..) => "decimal",
            Value::Text(_) => "longstr",
            Value::Bytes(_) => "binary",
            Value::Timestamp(_) => "timestamp",
            Value::List(_) => "array",
            Value::Table(_) => "table",
        }
    }
}

/// A field table, ordered by key so that equal tables have equal bytes.
pub type Table = BTreeMap<String, Value>;

/// Name of something within a vhost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    /// The vhost.
    pub vhost: Arc<str>,
    /// The name; "" is the default exchange.
    pub name: Arc<str>,
}

/// The exchange kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExchangeKind {
    /// Routing key equals binding key.
    Direct,
    /// Every binding.
    Fanout,
    /// Words with `*` and `#`.
    Topic,
    /// Header table against binding arguments.
    Headers,
    /// One binding by a hash of the routing key, a header or a property; binding keys are weights.
    ConsistentHash,
    /// One binding by a hash of the routing key modulo their number.
    ModulusHash,
    /// Any one binding.
    Random,
    /// Any one queue whose leader is the node that the publisher is connected to.
    LocalRandom,
    /// Like another kind, which its argument names, once a message's time has come.
    Delayed,
    /// Every binding; a new one gets the last messages.
    RecentHistory,
    /// Every binding, but for messages that came before.
    Deduplication,
    /// Words with `*` and `#`, and bindings of partitions (`super::rocketmq`).
    RocketTopic,
}

impl ExchangeKind {
    /// All of them.
    pub const ALL: [ExchangeKind; 12] = [
        ExchangeKind::Direct,
        ExchangeKind::Fanout,
        ExchangeKind::Topic,
        ExchangeKind::Headers,
        ExchangeKind::ConsistentHash,
        ExchangeKind::ModulusHash,
        ExchangeKind::Random,
        ExchangeKind::LocalRandom,
        ExchangeKind::Delayed,
        ExchangeKind::RecentHistory,
        ExchangeKind::Deduplication,
        ExchangeKind::RocketTopic,
    ];

    /// The name that clients use.
    pub fn text(self) -> &'static str {
        match self {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
            ExchangeKind::ConsistentHash => "x-consistent-hash",
            ExchangeKind::ModulusHash => "x-modulus-hash",
            ExchangeKind::Random => "x-random",
            ExchangeKind::LocalRandom => "x-local-random",
            ExchangeKind::RocketTopic => "x-rocketmq-topic",
            ExchangeKind::Delayed => "x-delayed-message",
            ExchangeKind::RecentHistory => "x-recent-history",
            ExchangeKind::Deduplication => "x-message-deduplication",
        }
    }

    /// The kind of this name.
    pub fn of_text(text: &[u8]) -> Option<ExchangeKind> {
        ExchangeKind::ALL.into_iter().find(|kind| kind.text().as_bytes() == text)
    }

    /// Whether an exchange of this kind keeps messages, in a queue of its own ([`QueueRecord::backs`]).
    pub fn keeps_messages(self) -> bool {
        matches!(self, ExchangeKind::Delayed | ExchangeKind::RecentHistory | ExchangeKind::Deduplication)
    }
}

/// An exchange as declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExchangeSpec {
    /// Where and how it is called.
    pub name: Name,
    /// Its kind.
    pub kind: ExchangeKind,
    /// Survives a restart of the whole cluster: the moment when no process that serves is left (see `CatalogCommand::NodeDown`).
    pub durable: bool,
    /// Goes with its last binding.
    pub auto_delete: bool,
    /// Cannot be published to.
    pub internal: bool,
    /// Arguments as declared.
    pub arguments: Table,
}

impl ExchangeSpec {
    /// The kind that says how it finds the targets of a message: its own, unless that only says when.
    pub fn routes_as(&self) -> ExchangeKind {
        match self.kind {
            ExchangeKind::RecentHistory | ExchangeKind::Deduplication => ExchangeKind::Fanout,
            // One that was not checked routes to nothing.
            ExchangeKind::Delayed => store::delayed_kind(&self.arguments).unwrap_or(ExchangeKind::Direct),
            ExchangeKind::Direct
            | ExchangeKind::Fanout
            | ExchangeKind::Topic
            | ExchangeKind::Headers
            | ExchangeKind::ConsistentHash
            | ExchangeKind::ModulusHash
            | ExchangeKind::Random
            | ExchangeKind::LocalRandom
            | ExchangeKind::RocketTopic => self.kind,
        }
    }
}

/// A queue as declared, before the catalog places it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueSpec {
    /// Where and how it is called.
    pub name: Name,
    /// Survives a restart of the whole cluster.
    pub durable: bool,
    /// Goes when its last consumer goes (never before it had one).
    pub auto_delete: bool,
    /// Belongs to one connection and goes with it.
    pub exclusive_owner: Option<Owner>,
    /// Arguments as declared.
    pub arguments: Table,
}

/// A connection of one start of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The node the client is connected to.
    pub node: NodeId,
    /// That process.
    pub incarnation: Incarnation,
    /// The connection.
    pub connection: ConnectionId,
}

/// A queue as it stands in the catalog.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueRecord {
    /// Identity: the catalog index that created it.
    pub id: QueueId,
    /// As declared.
    pub spec: QueueSpec,
    /// Durable and not exclusive: a data shard; else `ShardId::local(node)`.
    pub shard: ShardId,
    /// The process whose memory holds it, for a local shard.
    pub incarnation: Incarnation,
    /// The exchange that keeps messages in it. Such a queue has no name: nobody sees it, declares it or consumes from it, and it goes
    /// with its exchange.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backs: Option<Arc<str>>,
}

/// What a binding leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// A queue.
    Queue,
    /// Another exchange.
    Exchange,
}

/// A binding. Two are the same when all fields are equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BindingSpec {
    /// The vhost of both ends.
    pub vhost: Arc<str>,
    /// Source exchange.
    pub source: Arc<str>,
    /// Kind of the destination.
    pub target: Target,
    /// Destination's name.
    pub destination: Arc<str>,
    /// Routing (binding) key.
    pub key: Arc<str>,
    /// Arguments, for headers exchanges.
    pub arguments: Table,
}

/// A command into the catalog's log. Each is idempotent or answers what a repeated one should answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CatalogCommand {
    /// First entry of a cluster: vhost, user with RabbitMQ's salted SHA-256 hash, full permissions, data shards. No effect when it ran.
    Bootstrap {
        /// First vhost.
        vhost: String,
        /// First user.
        user: String,
        /// base64(salt ++ sha256(salt ++ password)).
        password_hash: String,
        /// Number of data shards, ids 1..=n.
        shards: u16,
    },
    /// A process of a node serves; in-memory queues of its earlier processes are dropped. No effect while a later one is up.
    NodeUp {
        /// The node.
        node: NodeId,
        /// Its present process.
        incarnation: Incarnation,
    },
    /// A process is gone, or nobody can reach it; its in-memory queues are dropped. With the last process that was up the cluster's run
    /// ends: exchanges that are not durable are dropped. No effect when that process is not up.
    NodeDown {
        /// The node.
        node: NodeId,
        /// The process.
        incarnation: Incarnation,
    },
    /// Declare; an equal one changes nothing.
    DeclareExchange(ExchangeSpec),
    /// Delete; `if_unused`: refuse while it has bindings as a source.
    DeleteExchange {
        /// Which.
        name: Name,
        /// Refuse while in use.
        if_unused: bool,
    },
    /// Declare; an equal one answers the existing record. `node`/`incarnation`: where it lives when it is in memory.
    DeclareQueue {
        /// What.
        spec: QueueSpec,
        /// The declaring node.
        node: NodeId,
        /// Its process.
        incarnation: Incarnation,
        /// The least loaded data shard as the proposer sees it; the apply checks that it exists.
        shard: ShardId,
    },
    /// Delete by identity (a re-declared queue of that name is left alone).
    DeleteQueue {
        /// Which.
        id: QueueId,
    },
    /// Queues get other names and arguments, and keep their bindings and what is in them: all or, where one is gone or a name taken, none.
    RenameQueues(Vec<Renaming>),
    /// Everything exclusive to this connection goes.
    ConnectionGone(Owner),
    /// Bind; idempotent.
    Bind(BindingSpec),
    /// Unbind; idempotent.
    Unbind(BindingSpec),
    /// A group of consumers of a stream changes.
    Group {
        /// Which.
        group: GroupName,
        /// Who.
        member: GroupMember,
        /// How.
        change: GroupChange,
    },
    /// Users, vhosts, permissions, policies, limits.
    Admin(AdminCommand),
    /// All nodes support this version of the log: the cluster uses it from now on. It never goes back.
    Raise {
        /// To it.
        version: u8,
    },
}

/// A queue with another name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Renaming {
    /// Which.
    pub id: QueueId,
    /// Its new name, in the same vhost.
    pub name: Arc<str>,
    /// Its new arguments, those of a queue of the same type.
    pub arguments: Table,
}

/// The catalog's answer; a refusal changed nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum CatalogReply {
    /// Done, or it was so already.
    Done,
    /// The queue as it stands; `created` says whether this command made it.
    Queue {
        /// The record.
        record: QueueRecord,
        /// Made now.
        created: bool,
    },
    /// Refused.
    Refused(Refusal),
}

/// Why the broker refuses, in its own terms; a protocol maps it to codes in one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Nothing of that name (404).
    #[error("no {kind} '{name}' in vhost '{vhost}'")]
    NotFound {
        /// `queue`, `exchange`, `vhost`.
        kind: String,
        /// Its name.
        name: String,
        /// Where.
        vhost: String,
    },
    /// Exists with another property (406). Text as RabbitMQ writes it: `inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'`.
    #[error("{0}")]
    Inequivalent(String),
    /// Any other failed precondition (406), text without code.
    #[error("{0}")]
    Precondition(String),
    /// Permission, reserved name, default exchange (403), text without code.
    #[error("{0}")]
    Access(String),
    /// Exclusive to another connection, or exclusive consumer (405 / 403 as the text says).
    #[error("{0}")]
    Locked(String),
    /// No quorum in time, shutdown, internal (541): says why and what to do.
    #[error("{0}")]
    Unavailable(String),
    /// Not done for a queue of this kind: 540, closes the connection.
    #[error("{0}")]
    NotImplemented(String),
    /// Refused on the level of the whole connection: 530.
    #[error("{0}")]
    NotAllowed(String),
}
