//! How messages leave queues: settled for good, or as dead letters where the queue names an exchange for those. Called by `shard` and
//! `limits`, with what the entry being applied needs.

use super::dead::{Dead, DeadLetters};
use super::queue::{Located, Queue};
use crate::model::entry::SettleReason;
use crate::model::settings::Overflow;
use crate::model::store::Store;
use crate::model::{QueueId, Seq, limits};

/// Dead letters, and what the entry being applied lets go of.
#[derive(Clone, Debug, Default)]
pub(super) struct Exits {
    pub dead: DeadLetters,
    /// Log indices that lost an extent or a dead letter.
    pub released: Vec<u64>,
    /// Log indices that got a dead letter.
    pub taken: Vec<u64>,
    /// The entry's time, ms.
    pub time_ms: u64,
    /// There are more dead letters than before the entry.
    pub any_died: bool,
}

impl Exits {
    /// Messages leave a queue for this reason; unknown ones are ignored. True when any left.
    pub fn leave(&mut self, id: QueueId, queue: &mut Queue, (first, last): (Seq, Seq), reason: SettleReason) -> bool {
        if dies(queue, reason) {
            let mut runs = Vec::new();
            queue.locate_in(first, last, &mut runs);
            for run in runs {
                (0..run.count).for_each(|n| self.bury(id, one(&run, n), reason));
            }
        }
        queue.settle(first, last, &mut self.released)
    }

    /// A full queue did not take the enqueue at this place; it may want it dead-lettered.
    pub fn refused(&mut self, id: QueueId, queue: &Queue, index: u64, position: u32) {
        if queue.settings().is_some_and(|s| s.overflow == Overflow::RejectPublishDlx) && dies(queue, SettleReason::MaxLength) {
            let at = Located { first: Seq(0), count: 1, index, position, skip: 0, deadline_ms: 0 };
            self.bury(id, at, SettleReason::MaxLength);
        }
    }

    /// One message is a dead letter.
    pub fn bury(&mut self, queue: QueueId, at: Located, reason: SettleReason) {
        self.send(Dead { queue, at, reason, time_ms: self.time_ms, targets: None });
    }

    /// Copies of live messages go to where a binding leads.
    pub fn replay(&mut self, id: QueueId, queue: &Queue, binding: u64) {
        let mut runs = Vec::new();
        queue.locate_in(Seq(0), queue.tail(), &mut runs);
        for run in runs {
            for at in (0..run.count).map(|n| one(&run, n)) {
                self.send(Dead { queue: id, at, reason: SettleReason::Replay, time_ms: binding, targets: None });
            }
        }
    }

    /// How many more letters a queue may add of its own accord.
    pub fn room(&self) -> u64 {
        limits::LETTERS_AHEAD.saturating_sub(self.dead.len())
    }

    fn send(&mut self, dead: Dead) {
        self.taken.push(dead.at.index);
        self.any_died = true;
        self.dead.add(dead);
    }
}

/// Whether messages that leave this queue so become dead letters.
fn dies(queue: &Queue, reason: SettleReason) -> bool {
    match reason {
        SettleReason::Ack | SettleReason::Purge | SettleReason::Replay => false,
        SettleReason::Due => queue.settings().is_some_and(|s| s.store == Some(Store::Delayed)),
        SettleReason::Reject | SettleReason::Expired | SettleReason::MaxLength | SettleReason::DeliveryLimit => {
            queue.settings().is_some_and(|s| s.dead_letter.is_some())
        }
    }
}

fn one(run: &Located, n: u32) -> Located {
    Located { first: Seq(run.first.0 + u64::from(n)), count: 1, skip: run.skip + n, deadline_ms: 0, ..*run }
}
