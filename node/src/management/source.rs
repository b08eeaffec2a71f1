//! What `warren ctl` and the HTTP API can ask of a node. `node` implements [`AdminSource`] over the catalog and the edge; the rows
//! carry the catalog's own records plus the live figures.

use crate::model::admin::{AdminCommand, Limits, Permission, Policy, PolicyKind, TopicPermission, VhostFacts};
use crate::model::catalog::{BindingSpec, ExchangeSpec, Name, QueueRecord, Refusal, Table, Target};
use crate::model::consumer_group::GroupState;
use crate::model::report::{ConnectionStat, Counted, RaftFigures, Report};
use crate::model::rocketmq::{Arrangement, TopicSettings};
use crate::model::roster::Stage;
use crate::model::stream::StreamMemory;
use crate::model::stream_step::Advertised;
use crate::model::{ConsumerId, LeaderId, NodeId, ShardId};
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use warren_proto::admin::{CloseRequest, ListReply, ListRequest};

/// A queue and its live figures.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueRow {
    /// As it stands in the catalog.
    pub record: QueueRecord,
    /// Ready messages; `None` while its shard's leader does not answer.
    pub messages_ready: Option<u64>,
    /// Delivered and not yet settled.
    pub messages_unacknowledged: Option<u64>,
    /// Consumers.
    pub consumers: Option<u64>,
    /// The node that serves it, if one does.
    pub leader: Option<NodeId>,
    /// Nodes with a replica (the owner alone for an in-memory queue).
    pub members: Vec<NodeId>,
    /// Those of them that are up.
    pub online: Vec<NodeId>,
    /// Bytes of the bodies of all its messages.
    pub message_bytes: Option<u64>,
    /// Of those delivered and not yet settled.
    pub message_bytes_unacknowledged: Option<u64>,
    /// Name of the policy that applies.
    pub policy: Option<String>,
    /// Name of the operator policy that applies.
    pub operator_policy: Option<String>,
    /// What the two say together.
    pub definition: Table,
}

/// An exchange and its policy.
#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeRow {
    /// As declared.
    pub spec: ExchangeSpec,
    /// Name of the policy that applies.
    pub policy: Option<String>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// Name.
    pub user: String,
    /// Tags.
    pub tags: Vec<String>,
}

/// A rocket topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRow {
    /// Name.
    pub name: String,
    /// As it was made.
    pub settings: TopicSettings,
}

/// A consumer group on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    /// The topic.
    pub topic: String,
    /// The group.
    pub group: String,
    /// Messages that wait; `None` while a leader does not answer.
    pub ready: Option<u64>,
    /// Messages that are out.
    pub unacknowledged: Option<u64>,
}

/// A group of consumers of which one is active, on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamGroupRow {
    /// Name of the stream.
    pub stream: String,
    /// The group.
    pub state: GroupState,
}

/// An access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKeyRow {
    /// What requests name it by.
    pub id: String,
    /// Whose it is.
    pub user: String,
}

/// A vhost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostRow {
    /// Name.
    pub name: String,
    /// What it was created with.
    pub facts: VhostFacts,
    /// Nodes that are up: it is served on all of them.
    pub nodes: Vec<NodeId>,
}

/// A user in a vhost, with something of type `T` that it has there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted<T> {
    /// Who.
    pub user: String,
    /// Where.
    pub vhost: String,
    /// On which exchange, for topic permissions.
    pub exchange: String,
    /// What.
    pub permission: T,
}

/// Whose permissions are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Of one user, everywhere.
    User(String),
    /// In one vhost, of everybody.
    Vhost(String),
}

/// A policy of a vhost.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRow {
    /// Where.
    pub vhost: String,
    /// What.
    pub policy: Arc<Policy>,
}

/// A client's connection to this node.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionRow {
    /// This node.
    pub node: NodeId,
    /// What the node knows.
    pub stat: ConnectionStat,
    /// What its session says; `None` when it does not answer.
    pub report: Option<Report>,
}

/// The consumer that gets the messages of a queue with a single active one, and the node that it is connected to; `None`: there is none.
pub type Active = Option<(NodeId, ConsumerId)>;

/// This node's replica of a queue's shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// This node.
    pub node: NodeId,
    /// Raft's figures.
    pub raft: RaftFigures,
}

/// A port that this node serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerRow {
    /// This node.
    pub node: NodeId,
    /// RabbitMQ's word: `amqp`, `http`, `clustering`.
    pub protocol: &'static str,
    /// Address as configured.
    pub interface: String,
    /// Port.
    pub port: u16,
    /// For people.
    pub purpose: &'static str,
}

/// The certificates of a port of this node: those in the file that it shows, and those that it verifies others against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRow {
    /// Which port.
    pub listener: ListenerRow,
    /// Its own, then those between it and its authority.
    pub own: CertificateFile,
    /// Authorities, if others are asked for certificates.
    pub authorities: Option<CertificateFile>,
}

/// A file with certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFile {
    /// Where.
    pub path: String,
    /// When each expires, seconds since 1970; or why the file is of no use.
    pub expire_s: Result<Vec<i64>, String>,
}

/// A setting of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingRow {
    /// Name of the option.
    pub name: &'static str,
    /// In effect.
    pub value: String,
}

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Which.
    pub node: NodeId,
    /// Peer address as configured, `host:port`.
    pub address: String,
    /// This node itself, or one that answers.
    pub up: bool,
    /// How far it is.
    pub stage: Stage,
}

/// A Raft group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which; 0 is the catalog.
    pub shard: ShardId,
    /// Who leads it.
    pub leader: Option<LeaderId>,
    /// Nodes with a replica, the preferred leader first.
    pub members: Vec<NodeId>,
    /// Nodes with a replica once it is moved; empty: it is not.
    pub goal: Vec<NodeId>,
    /// Last applied log index here, 0 without a replica here.
    pub applied: u64,
}

/// What a replica holds, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// Which; 0 is the catalog.
    pub shard: ShardId,
    /// Index of the last applied log entry.
    pub applied: u64,
    /// The same on all nodes that have applied so much.
    pub hash: u64,
}

/// Answer to `warren ctl status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// The cluster's UUID, empty until it is formed.
    pub cluster_id: String,
    /// All nodes.
    pub members: Vec<MemberStatus>,
    /// All Raft groups.
    pub shards: Vec<ShardStatus>,
    /// Client connections of this node.
    pub connections: u64,
    /// Queues in the catalog.
    pub queues: u64,
    /// Alarms in force, e.g. `disk: 512 MiB free, floor 1 GiB`.
    pub alarms: Vec<String>,
    /// One of them is about this node.
    pub local_alarm: bool,
}

/// Answers for the operator. A missing vhost is `Refusal::NotFound`, no majority is `Refusal::Unavailable`.
pub trait AdminSource: Send + Sync + 'static {
    /// Where stream clients reach this node.
    fn advertised(&self) -> Advertised;
    /// All queues of a vhost, by name.
    fn queues(&self, vhost: String) -> BoxFuture<'_, Result<Vec<QueueRow>, Refusal>>;
    /// All exchanges of a vhost, the default one (with the name "") too.
    fn exchanges(&self, vhost: String) -> BoxFuture<'_, Result<Vec<ExchangeRow>, Refusal>>;
    /// All bindings of a vhost, with one [`implicit_binding`] per queue.
    fn bindings(&self, vhost: String) -> BoxFuture<'_, Result<Vec<BindingSpec>, Refusal>>;
    /// The node and the cluster.
    fn status(&self) -> BoxFuture<'_, Result<Status, Refusal>>;
    /// What this node's replicas hold. Reads all of their state: for tests of a cluster, not for every minute.
    fn state_hashes(&self) -> Result<Vec<StateHash>, Refusal>;
    /// All users, by name.
    fn users(&self) -> Result<Vec<UserRow>, Refusal>;
    /// All vhosts, by name.
    fn vhosts(&self) -> Result<Vec<VhostRow>, Refusal>;
    /// Permissions.
    fn permissions(&self, of: Holder) -> Result<Vec<Granted<Permission>>, Refusal>;
    /// Topic permissions.
    fn topic_permissions(&self, of: Holder) -> Result<Vec<Granted<TopicPermission>>, Refusal>;
    /// Policies of one kind, the highest priority first.
    fn policies(&self, kind: PolicyKind, vhost: String) -> Result<Vec<PolicyRow>, Refusal>;
    /// Limits of one vhost, or of all that have some.
    fn vhost_limits(&self, vhost: Option<String>) -> Result<Vec<(String, Limits)>, Refusal>;
    /// Limits of one user, or of all that have some.
    fn user_limits(&self, user: Option<String>) -> Result<Vec<(String, Limits)>, Refusal>;
    /// Connections to this node.
    fn connections(&self) -> BoxFuture<'_, Result<Vec<ConnectionRow>, Refusal>>;
    /// Of those of these queues that have a single active consumer: which it is.
    fn active(&self, vhost: String, queues: BTreeSet<Arc<str>>) -> BoxFuture<'_, Result<BTreeMap<Arc<str>, Active>, Refusal>>;
    /// This node's replica of a queue's shard, if it has one.
    fn replica(&self, queue: Name) -> Result<Option<ReplicaRow>, Refusal>;
    /// Groups of consumers on the streams of a vhost of which one is active.
    fn stream_groups(&self, vhost: String) -> Result<Vec<StreamGroupRow>, Refusal>;
    /// What a stream remembers of its clients, as far as this node's replica is; `None`: it has none.
    fn stream_memory(&self, stream: Name) -> Result<Option<StreamMemory>, Refusal>;
    /// Ports of this node.
    fn listeners(&self) -> Vec<ListenerRow>;
    /// Certificates of those that speak TLS, read from their files.
    fn certificates(&self) -> Result<Vec<CertificateRow>, Refusal>;
    /// Settings of this node, but no secret.
    fn settings(&self) -> Vec<SettingRow>;
    /// Commits a change.
    fn change(&self, command: AdminCommand) -> BoxFuture<'_, Result<(), Refusal>>;
    /// Rocket topics of a vhost, by name.
    fn topics(&self, vhost: String) -> Result<Vec<TopicRow>, Refusal>;
    /// Consumer groups on the rocket topics of a vhost.
    fn groups(&self, vhost: String) -> BoxFuture<'_, Result<Vec<GroupRow>, Refusal>>;
    /// Access keys without their secrets.
    fn access_keys(&self) -> Result<Vec<AccessKeyRow>, Refusal>;
    /// Makes or removes a topic or a group.
    fn arrange(&self, arrangement: Arrangement) -> BoxFuture<'_, Result<(), Refusal>>;
    /// Another node asks about deliveries (`listener::rocketmq`).
    fn errand(&self, errand: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Refusal>>;
    /// What a user's password is hashed with; anything for a user that is not there.
    fn salt(&self, user: &str) -> Result<[u8; 4], Refusal>;
    /// Whether a proof (`peer::auth`) shows the knowledge of a user's password; if not, why.
    fn authenticate(&self, user: &str, nonce: &[u8], proof: &[u8]) -> Result<Option<String>, Refusal>;
    /// Removes the ready messages of a queue; how many.
    fn purge(&self, queue: Name) -> BoxFuture<'_, Result<u64, Refusal>>;
    /// Deletes a queue; how many ready messages went.
    fn delete_queue(&self, queue: Name, if_unused: bool, if_empty: bool) -> BoxFuture<'_, Result<u64, Refusal>>;
    /// How many there are on this node.
    fn count(&self, counted: &Counted) -> Result<u64, Refusal>;
    /// Closes connections of this node; how many.
    fn close(&self, reason: &str, which: &dyn Fn(&ConnectionRow) -> bool) -> Result<u64, Refusal>;
    /// What the other nodes answer to the same question; those that do not answer are left out.
    fn elsewhere(&self, request: ListRequest) -> BoxFuture<'_, Vec<ListReply>>;
    /// What the other nodes close; how many.
    fn close_elsewhere(&self, request: CloseRequest) -> BoxFuture<'_, u64>;
}

/// The binding of every queue to the default exchange, which `list_bindings` shows as RabbitMQ does.
pub fn implicit_binding(queue: &Name) -> BindingSpec {
    BindingSpec {
        vhost: queue.vhost.clone(),
        source: "".into(),
        target: Target::Queue,
        destination: queue.name.clone(),
        key: queue.name.clone(),
        arguments: Table::new(),
    }
}
