//! Ids as types, so that an index is never taken for an offset. Everybody uses them.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A process of the cluster as the operator numbers it (`--node-id`), from 1.
    NodeId(u16)
);
id!(
    /// How many times a node's disk was born: 1 when the cluster was formed, higher after a wipe (rule 1).
    Generation(u32)
);
id!(
    /// One start of a process; of one node's the later is larger. Guards in-memory state of an earlier start.
    Incarnation(u64)
);
id!(
    /// A queue's identity: the catalog's log index that created it. Never reused.
    QueueId(u64)
);
id!(
    /// A message's place in its queue, from 1, dense per queue.
    Seq(u64)
);
id!(
    /// A record's place in its stream, from 0, dense per stream.
    Offset(u64)
);
id!(
    /// An edge's session with a shard: the log index of its `EdgeHello` in that shard (rule 14). 0 = none.
    SessionId(u64)
);
id!(
    /// Number of an edge's batch within its session, from 1, dense (rule 12).
    BatchSeq(u64)
);
id!(
    /// A consumer, unique per edge process.
    ConsumerId(u64)
);
id!(
    /// A client connection, unique per edge process.
    ConnectionId(u64)
);

impl QueueId {
    const REPLY_BIT: u64 = 1 << 63;

    /// The queue behind a direct reply-to address: it lives as long as its one consumer, in the memory of the consumer's node, and the
    /// catalog does not know it. `secret`: what makes the address unguessable, 63 bits of it count.
    pub fn reply(secret: u64) -> QueueId {
        QueueId(Self::REPLY_BIT | secret)
    }

    /// Whether it is one of those.
    pub fn is_reply(self) -> bool {
        self.0 & Self::REPLY_BIT != 0
    }
}

/// A Raft group, or a node's own in-memory queues, which look the same to an edge.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl ShardId {
    /// Group 0: vhosts, users, exchanges, bindings, queues and their shards.
    pub const CATALOG: ShardId = ShardId(0);
    const LOCAL_BIT: u16 = 0x8000;
    const STREAMS_BIT: u16 = 0x4000;
    /// Where deliveries of streams say that they come from: the edge of the reader's node. No queue lives there, and no node has the number 0.
    pub const STREAMS: ShardId = ShardId(ShardId::LOCAL_BIT);

    /// The pseudo shard of exclusive and transient queues in the memory of `owner`; not a Raft group.
    pub fn local(owner: NodeId) -> ShardId {
        ShardId(Self::LOCAL_BIT | owner.0)
    }

    /// The streams of a data shard as a target of letters, apart from its queues: they take copies without counting them.
    pub fn streams_of(shard: ShardId) -> ShardId {
        ShardId(shard.0 | Self::STREAMS_BIT)
    }

    /// The data shard whose streams are meant.
    pub fn of_streams(self) -> Option<ShardId> {
        (self.owner().is_none() && self.0 & Self::STREAMS_BIT != 0).then_some(ShardId(self.0 & !Self::STREAMS_BIT))
    }

    /// The node that owns this pseudo shard, `None` for a Raft group.
    pub fn owner(self) -> Option<NodeId> {
        (self.0 & Self::LOCAL_BIT != 0).then_some(NodeId(self.0 & !Self::LOCAL_BIT))
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardId({self})")
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner() {
            Some(node) => write!(f, "local-{node}"),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A Raft voter: a node together with the generation of its disk (rule 1), packed for openraft's `u64` node id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VoterId {
    /// Which node.
    pub node: NodeId,
    /// Which life of its disk.
    pub generation: Generation,
}

impl VoterId {
    /// `generation << 16 | node`.
    pub fn pack(self) -> u64 {
        u64::from(self.generation.0) << 16 | u64::from(self.node.0)
    }

    /// The inverse of `pack`.
    pub fn unpack(packed: u64) -> VoterId {
        VoterId { node: NodeId(packed as u16), generation: Generation((packed >> 16) as u32) }
    }
}

/// A transaction over several shards: the process that commits it and its number there. Never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId {
    /// The node of the client's edge.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// Unique in the process.
    pub number: u64,
}

/// A leader's full identity; term alone is not unique (rule 11). Ordered as openraft orders it: term, then voter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaderId {
    /// Raft term; for a node's local shard its process incarnation.
    pub term: u64,
    /// Packed [`VoterId`].
    pub voter: u64,
}

impl LeaderId {
    /// The node that leads.
    pub fn node(self) -> NodeId {
        VoterId::unpack(self.voter).node
    }
}

/// A Raft log id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId {
    /// Who proposed it.
    pub leader: LeaderId,
    /// Raft log index.
    pub index: u64,
}
