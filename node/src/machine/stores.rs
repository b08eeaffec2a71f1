//! Queues behind exchanges that keep messages: when a delayed message leaves, how many a history holds, what a new binding gets of it.
//! Whatever leaves goes the way of dead letters, which is replicated and takes each message to its targets once. Called by `shard`.

use super::exits::Exits;
use super::notes::{AT_ONCE, Note};
use super::queue::Queue;
use crate::model::entry::{EnqueueOp, SettleReason, StoredView};
use crate::model::store::{Store, delay_ms};
use crate::model::{QueueId, Seq};

/// What such a queue notes of a message that comes at `now_ms`: when it is due.
pub(super) fn note(store: Store, op: &EnqueueOp, now_ms: u64) -> Note {
    let deadline_ms = match store {
        Store::History { .. } => 0,
        Store::Unique(_) => AT_ONCE,
        Store::Delayed => {
            let delay = StoredView::parse(&op.message).and_then(|message| delay_ms(message.properties));
            // The time is cut to whole milliseconds: the one that has begun counts when it is over, or the message would be early.
            delay.map_or(AT_ONCE, |ms| now_ms.saturating_add(u64::from(ms) + 1))
        }
    };
    Note { deadline_ms, body_bytes: op.body_bytes() }
}

/// After a message came: the oldest goes when the history is too long. True when any went.
pub(super) fn forget_oldest(id: QueueId, queue: &mut Queue, exits: &mut Exits) -> bool {
    let Some(Store::History { length }) = queue.settings().and_then(|s| s.store) else { return false };
    let mut any = false;
    while queue.live_count() > length {
        let oldest = queue.first_live();
        any |= exits.leave(id, queue, (oldest, oldest), SettleReason::MaxLength);
    }
    any
}

/// Messages whose time has come by `now_ms` leave in the order of their times, as many as one entry and the queue's letters have room for.
/// True when any went.
pub(super) fn let_go(id: QueueId, queue: &mut Queue, now_ms: u64, exits: &mut Exits) -> bool {
    let Some(reason) = queue.settings().and_then(|s| s.store?.leaving()) else { return false };
    let mut left = 0;
    for _ in 0..exits.may_leave(id, queue, reason) {
        let Some(seq) = queue.take_due(now_ms) else { break };
        left += u64::from(exits.leave(id, queue, (seq, seq), reason));
    }
    exits.left(left);
    left > 0
}

/// Delayed messages by their time. It follows from what the queue notes of its messages and is not state.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule(std::collections::BTreeSet<(u64, u64)>);

impl Schedule {
    /// One more.
    pub fn add(&mut self, due_ms: u64, seq: u64) {
        self.0.insert((due_ms, seq));
    }

    /// When the first is due, ms since the epoch.
    pub fn next_ms(&self) -> Option<u64> {
        self.0.first().map(|(due_ms, _)| *due_ms)
    }

    /// The first, if it is due.
    pub fn take(&mut self, now_ms: u64) -> Option<Seq> {
        self.next_ms().filter(|due_ms| *due_ms <= now_ms)?;
        self.0.pop_first().map(|(_, seq)| Seq(seq))
    }
}
