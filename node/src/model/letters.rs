//! Messages that leave one queue for others without a client's hand: dead letters on their way. The machine keeps them until every target
//! has them, `serving` decides when they go, `edge` finds the way (`model::ports::DeadLetterOffice`). Each copy for a queue of another
//! shard has a number of its own, given once and kept over leader changes: the target takes each number once.

use super::entry::SettleReason;
use super::{QueueId, ShardId};
use bytes::Bytes;

/// What a target knows a copy by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The shard of the queue that the message left.
    pub shard: ShardId,
    /// 0; of a shard in memory: its process, whose numbers begin anew.
    pub epoch: u64,
    /// Of the copy for the first queue named, the others follow, then those of the next letter; within the source shard itself: the
    /// letter's own number.
    pub number: u64,
}

/// Queues by shard.
pub type Targets = Vec<(ShardId, Vec<QueueId>)>;

/// Queues of one shard that are still to get a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlet {
    /// Their shard.
    pub shard: ShardId,
    /// Number of the first letter's copy for the first of them, the others follow, then those of the next letter; nothing in the source
    /// shard itself.
    pub first: u64,
    /// Which.
    pub queues: Vec<QueueId>,
}

/// What a letter is routed and written by: fixed when it leaves its queue, which may be gone or set differently before it is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Where the queue is, and the exchange.
    pub vhost: String,
    /// Name of the queue that it left; of an exchange's own queue: nothing.
    pub queue: String,
    /// Exchange it goes to; of an exchange's own queue: that exchange.
    pub exchange: String,
    /// Instead of its own keys.
    pub routing_key: Option<String>,
}

/// A message that left its queue unconsumed.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// Why.
    pub reason: SettleReason,
    /// When, ms since the epoch; of a replay: the number of the binding that it is for.
    pub time_ms: u64,
    /// The stored message.
    pub message: Bytes,
}

/// The message that a letter becomes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LetterMessage {
    /// Exchange it is published to.
    pub exchange: Bytes,
    /// Routing key.
    pub key: Bytes,
    /// Property flags and list.
    pub properties: Bytes,
    /// Body.
    pub body: Bytes,
}

/// Letters side by side with the same way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutedRun {
    /// The catalog index that they were routed by: a target shard that follows the catalog to here and has not the queue has it no more.
    pub catalog_index: u64,
    /// What they became, in order.
    pub messages: Vec<LetterMessage>,
    /// The queues that take them; none: they are dropped.
    pub targets: Targets,
}

/// What a shard said to a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterFate {
    /// Its queues have it, durably, or are gone.
    Taken,
    /// Some queue is full and refuses: again later.
    Refused,
}
