//! What is noted of queues (rule 22): that they had consumers, and that they end. A sealed queue takes no message any more, under no
//! leader, so that a condition that held when it was sealed still holds when the catalog deletes it. Called by `shard`.

use super::queue::Queue;
use super::shard::DataMachine;
use crate::model::QueueId;
use crate::model::entry::Mark;

const CONSUMED: u8 = 1;
const EXCLUSIVE: u8 = 2;
const SEALED: u8 = 4;

/// The notes of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes(pub u8);

impl Notes {
    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

impl Queue {
    /// It has, or had, a consumer; noted of replicated auto-delete queues only.
    pub fn had_consumer(&self) -> bool {
        self.notes.has(CONSUMED)
    }

    /// It has, or had, a consumer that is alone.
    pub fn had_exclusive(&self) -> bool {
        self.notes.has(EXCLUSIVE)
    }

    /// It takes no message any more and is to be deleted.
    pub fn is_sealed(&self) -> bool {
        self.notes.has(SEALED)
    }
}

impl DataMachine {
    /// Messages that undecided transactions bring to a queue, and the bytes of their bodies.
    pub fn coming(&self, queue: QueueId) -> (u64, u64) {
        self.transactions.coming(queue)
    }

    pub(super) fn mark(&mut self, id: QueueId, mark: Mark) {
        self.keep_captured(id);
        let awaits = self.coming(id).0 > 0;
        let Some(queue) = self.queues.get_mut(&id) else { return };
        queue.notes.0 |= match mark {
            Mark::Consumed => CONSUMED,
            Mark::Exclusive => EXCLUSIVE,
            Mark::Sealed { tail: Some(tail) } if tail != queue.tail() || awaits => return,
            Mark::Sealed { .. } => SEALED,
        };
        self.dirty.insert(id);
    }
}
