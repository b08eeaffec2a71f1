//! What an edge and a shard's leader say to each other. The same values travel in process and over `peer` (which encodes them).
//! Up: everything of one edge process to one shard, in order. Down: verdicts and answers on one path, deliveries on another
//! (rule 16), so that a slow consumer never holds up a confirm.

use super::catalog::Refusal;
use super::stream::StreamState;
use super::{BatchSeq, ConsumerId, Incarnation, LeaderId, NodeId, QueueId, Seq, SessionId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Inclusive ranges of sequence numbers, ascending, disjoint.
pub type Ranges = Vec<(Seq, Seq)>;

/// Edge to leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToLeader {
    /// First on every new path. The leader commits an `EdgeHello` (unless this process has a session already) and answers `Welcome`.
    Hello {
        /// The edge's node.
        node: NodeId,
        /// Its process.
        incarnation: Incarnation,
    },
    /// A numbered batch of replicated operations; immutable once sent, resent as it is after a leader change.
    Batch(Batch),
    /// Consumers and unacknowledged messages of this edge under a new leader; sent once after `Welcome`, also when empty (rule 18).
    Attach {
        /// The leader this attach is for; refused when another leads.
        leader: LeaderId,
        /// The edge's consumers on this shard.
        consumers: Vec<Attached>,
        /// Those whose start was not answered: each is a `Consume`, said here so that nobody takes them for gone meanwhile (rule 22).
        asked: Vec<Consumer>,
        /// Checked out by basic.get or by consumers that were cancelled since: nobody's credit.
        loose: Vec<(QueueId, Ranges)>,
    },
    /// Start a consumer. Answer: `Consuming`.
    Consume(Consumer),
    /// Stop a consumer; what it holds stays checked out (AMQP). Answer: `Cancelled` with `asked = true`, after its last delivery.
    Cancel {
        /// Whom.
        consumer: ConsumerId,
    },
    /// More credit; not replicated.
    Credit {
        /// Whose.
        consumer: ConsumerId,
        /// Messages settled or returned since the last credit.
        messages: u32,
        /// Bytes written to the socket since the last credit.
        bytes: u64,
    },
    /// Another prefetch for a running consumer (`basic.qos global=true` came after it); not replicated.
    Prefetch {
        /// Whose.
        consumer: ConsumerId,
        /// Messages it may hold unsettled from now on; `None` = no limit.
        limit: Option<u32>,
        /// Messages that the edge knows it to hold.
        held: u64,
    },
    /// One message now, or none. Answer: `Got` with the same `request`.
    Get {
        /// Echoed.
        request: u64,
        /// From where.
        queue: QueueId,
        /// Settled at once by the edge when true (the settle rides in a batch as usual).
        no_ack: bool,
    },
    /// Up to so many messages now, or, when patient, as soon as there are some. Answer: `Took` with the same `request`.
    Take {
        /// Echoed.
        request: u64,
        /// From where.
        queue: QueueId,
        /// So many at most.
        most: u32,
        /// Only while nobody holds messages of the queue.
        alone: bool,
        /// It waits until there are some, or until it is withdrawn.
        patient: bool,
    },
    /// A question about a queue is not waited for any more: it has no effect from now on. Its answer may be on its way.
    Withdraw {
        /// Which.
        request: u64,
        /// Which queue it is about.
        queue: QueueId,
    },
    /// Give back checked-out messages to their original places, redelivered (requeue, closed channel, lost connection).
    /// That a client saw them is put on record when it is not yet; then `Recorded` is said.
    Return {
        /// From where.
        queue: QueueId,
        /// Which.
        ranges: Ranges,
        /// False when the client never saw them (undelivered, unwritten): `redelivered` stays as it was.
        seen: bool,
        /// Those that came with failed deliveries, and how many: a return that is told twice counts once (rule 23).
        failures: Vec<(Seq, u32)>,
    },
    /// Counts, and for `Purge`-like operations the basis. Answer: `Stats`.
    Stat {
        /// Echoed.
        request: u64,
        /// Which; empty = all queues of the shard.
        queues: Vec<QueueId>,
        /// A client declared them: they count as used.
        used: bool,
    },
    /// Delete a queue if nobody consumes from it, or if it is empty. Answer: `Purged`, once the shard has sealed it: then the catalog
    /// is to delete it.
    Seal {
        /// Echoed.
        request: u64,
        /// Which.
        queue: QueueId,
        /// Only without consumers.
        if_unused: bool,
        /// Only without ready messages.
        if_empty: bool,
    },
    /// How far a stream is, and what it remembers. Answer: `Stream`.
    Stream {
        /// Echoed.
        request: u64,
        /// Which.
        stream: QueueId,
        /// The last publishing id of this publisher is wanted.
        publisher: Option<String>,
        /// The stored offset of this reader is wanted.
        reader: Option<String>,
    },
    /// Messages come or wait, and the leader's last word under its lease is a while ago. Answer: `Pong` with the same number, under a valid lease only.
    Ping {
        /// Echoed.
        number: u64,
    },
    /// Drop all ready messages. Answer: `Purged`, after the settle is applied.
    Purge {
        /// Echoed.
        request: u64,
        /// Which.
        queue: QueueId,
    },
}

/// A batch as it goes into the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The session it belongs to.
    pub session: SessionId,
    /// Its number.
    pub seq: BatchSeq,
    /// Verdicts up to here were received by the edge: the machine may forget them (rule 13).
    pub floor: BatchSeq,
    /// The catalog index the edge routed by; the shard advances to it first (rule 27).
    pub catalog_index: u64,
    /// `Enqueue`, `Settle` operations (model::entry), ready for the log.
    pub ops: Bytes,
}

/// A consumer as the leader needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Consumer {
    /// Its id.
    pub id: ConsumerId,
    /// Which queue.
    pub queue: QueueId,
    /// Deliveries are settled by the edge as soon as they are written.
    pub no_ack: bool,
    /// Wants to be alone.
    pub exclusive: bool,
    /// Messages it may hold unsettled; `None` = no limit (no-ack, or prefetch 0).
    pub prefetch: Option<u32>,
    /// Bytes in flight to it.
    pub window_bytes: u64,
    /// The client's tag, for listings.
    pub tag: String,
    /// Those of a higher priority are served first.
    pub priority: i64,
    /// Rank among those of its priority: the leader that it was started under gave it, later ones are larger.
    pub order: u64,
}

/// A consumer that lives on under a new leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// As it was started.
    pub consumer: Consumer,
    /// What it holds.
    pub unacked: Ranges,
    /// Bytes delivered to the edge and not yet written.
    pub unwritten_bytes: u64,
}

/// Leader to edge: verdicts and answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToEdge {
    /// This node leads, an entry of its own leader id is applied, the session is known.
    Welcome {
        /// Under which leader id.
        leader: LeaderId,
        /// The edge's session.
        session: SessionId,
        /// Last batch of the session that the shard applied: resend from the next.
        last: BatchSeq,
    },
    /// This node does not lead this shard (any more); the edge looks for the leader again.
    NotLeader,
    /// The batch was applied: the only ground for a confirm (rule 13).
    Verdict {
        /// Which batch.
        seq: BatchSeq,
        /// Ordinals (from 0) of `Enqueue` operations in the batch that were refused, with the reason.
        refused: Vec<(u32, RefusedEnqueue)>,
    },
    /// A batch came out of order or its proposal failed: resend from `from`.
    Rewind {
        /// First batch to resend.
        from: BatchSeq,
    },
    /// Answer to `Consume`.
    Consuming {
        /// Whose.
        consumer: ConsumerId,
        /// Its order, or why not.
        result: Result<u64, Refusal>,
    },
    /// The consumer is gone: asked for, or its queue was deleted.
    Cancelled {
        /// Whose.
        consumer: ConsumerId,
        /// The edge asked.
        asked: bool,
    },
    /// Answer to `Get`.
    Got {
        /// Echoed.
        request: u64,
        /// A message and how many ready ones remain, nothing, or why not.
        result: Result<Option<(Delivery, u64)>, Refusal>,
    },
    /// Answer to `Take`.
    Took {
        /// Echoed.
        request: u64,
        /// Messages in queue order, none when there are none, or why not.
        result: Result<Vec<Delivery>, Refusal>,
    },
    /// Answer to `Stat`.
    Stats {
        /// Echoed.
        request: u64,
        /// One for each known queue asked for.
        stats: Vec<QueueStat>,
    },
    /// Answer to `Stream`.
    Stream {
        /// Echoed.
        request: u64,
        /// How far it is.
        result: Result<StreamState, Refusal>,
    },
    /// It is on record that a client saw messages that were returned: the edge need not tell a later leader.
    Recorded {
        /// Of which queue.
        queue: QueueId,
        /// Which, as they were returned.
        ranges: Ranges,
    },
    /// Answer to `Ping`: a quorum acknowledged this leader within its lease, and this path is the edge's.
    Pong {
        /// Echoed.
        number: u64,
    },
    /// Answer to `Purge` and `Seal`.
    Purged {
        /// Echoed.
        request: u64,
        /// How many messages went, or go.
        result: Result<u64, Refusal>,
    },
}

/// Why an enqueue had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusedEnqueue {
    /// None of its queues exists in the shard: route again, once (rule 27).
    UnknownQueue,
    /// A queue of it is full and refuses publishes; the other queues have it. Of a transaction's part: some message of it would be
    /// refused, by a full queue or since its queues are being deleted, and nothing of the part is kept.
    Full,
    /// Its queues are being deleted, and take nothing any more: as good as gone.
    Sealed,
    /// Its transaction was given up: the shard that decides lost contact with the edge.
    GivenUp,
    /// Of a strict part: what it settles is not its edge's any more.
    Lost,
}

/// Leader to edge: messages for one consumer.
#[derive(Clone, Debug, PartialEq)]
pub struct Deliveries {
    /// Under which leader (the edge drops those of an older one).
    pub leader: LeaderId,
    /// For whom.
    pub consumer: ConsumerId,
    /// In queue order.
    pub messages: Vec<Delivery>,
}

/// One message on its way out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its queue.
    pub queue: QueueId,
    /// Its place.
    pub seq: Seq,
    /// May have been delivered before; false is never a lie.
    pub redelivered: bool,
    /// Deliveries of it that failed, where the queue counts them.
    pub failures: u32,
    /// When the first of those failed, ms since the epoch; 0: none has.
    pub failed_ms: u64,
    /// The stored message (model::entry::StoredMessage).
    pub message: Bytes,
}

/// A queue's counts as its leader sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStat {
    /// Which.
    pub queue: QueueId,
    /// Messages that wait.
    pub ready: u64,
    /// Messages checked out.
    pub unacked: u64,
    /// Bodies of all, bytes.
    pub bytes: u64,
    /// Bodies of those checked out, bytes; 0 in the answer to a client's declare.
    pub unacked_bytes: u64,
    /// Consumers.
    pub consumers: u32,
    /// The single active one, where the queue has one, and its node.
    pub active: Option<(NodeId, ConsumerId)>,
}
