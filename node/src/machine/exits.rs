//! How messages leave queues: settled for good, or as dead letters where the queue names an exchange for those. Called by `shard` and
//! `limits`, with what the entry being applied needs.

use super::dead::{Dead, DeadLetters, Held};
use super::queue::{Located, Queue};
use super::shard::DataMachine;
use crate::model::entry::{EnqueueOp, SettleReason};
use crate::model::letters::Targets;
use crate::model::settings::Overflow;
use crate::model::{QueueId, Seq, ShardId};

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
    /// How many messages may still leave queues of their own accord in this entry.
    pub leaving: u64,
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
                let end = Seq(run.first.0 + u64::from(run.count) - 1);
                let bytes = queue.count_in(&[(run.first, end)]).body_bytes;
                self.bury(queue, Dead { queue: id, at: run, bytes, reason, time_ms: self.time_ms });
            }
        }
        queue.settle(first, last, &mut self.released)
    }

    /// A full queue did not take the enqueue at this place; it may want it dead-lettered.
    pub fn refused(&mut self, id: QueueId, queue: &Queue, (index, position): (u64, u32), body_bytes: u32) {
        let buries = queue.settings().is_some_and(|s| s.overflow == Overflow::RejectPublishDlx) && dies(queue, SettleReason::MaxLength);
        if buries && self.dead.room(id) > 0 {
            let at = Located { first: Seq(0), count: 1, index, position, skip: 0, deadline_ms: 0 };
            let (bytes, reason) = (body_bytes.into(), SettleReason::MaxLength);
            self.bury(queue, Dead { queue: id, at, bytes, reason, time_ms: self.time_ms });
        }
    }

    /// Copies of live messages go to where a binding leads.
    pub fn replay(&mut self, id: QueueId, queue: &Queue, binding: u64) {
        let mut runs = Vec::new();
        queue.locate_in(Seq(0), queue.tail(), &mut runs);
        for at in runs {
            let end = Seq(at.first.0 + u64::from(at.count) - 1);
            let bytes = queue.count_in(&[(at.first, end)]).body_bytes;
            self.bury(queue, Dead { queue: id, at, bytes, reason: SettleReason::Replay, time_ms: binding });
        }
    }

    /// A queue with a limit that refuses has too many letters waiting: they count as if they were in it.
    pub fn is_stuck(&self, id: QueueId, queue: &Queue) -> bool {
        let refuses = queue.settings().is_some_and(|s| s.is_limited() && s.overflow != Overflow::DropHead && s.dead_letter.is_some());
        refuses && self.dead.room(id) == 0
    }

    /// Messages are dead letters from now on, whatever becomes of their queue.
    fn bury(&mut self, queue: &Queue, dead: Dead) {
        let Some(address) = queue.address() else { return };
        self.any_died = true;
        if self.dead.add(Dead { at: Located { deadline_ms: 0, ..dead.at }, ..dead }, address) {
            self.taken.push(dead.at.index);
        }
    }

    /// How many messages may leave a queue of their own accord in this entry.
    pub fn may_leave(&self, id: QueueId, queue: &Queue, reason: SettleReason) -> u64 {
        let room = if dies(queue, reason) { self.dead.room(id) } else { u64::MAX };
        self.leaving.min(room)
    }

    /// So many did.
    pub fn left(&mut self, count: u64) {
        self.leaving = self.leaving.saturating_sub(count);
    }

    /// Letters have their way (rule 25).
    pub fn route(&mut self, letters: (QueueId, u64, u32), way: (u64, Targets)) {
        self.dead.route(letters, way, &mut Held { taken: &mut self.taken, released: &mut self.released });
    }

    /// A shard has letters.
    pub fn done(&mut self, letters: (u64, u64), shard: ShardId) {
        self.dead.done(letters, shard, &mut Held { taken: &mut self.taken, released: &mut self.released });
    }

    /// Queues of the shard itself have a letter.
    pub fn taken_here(&mut self, number: u64, shard: ShardId, queues: &[QueueId]) {
        self.dead.taken_here(number, shard, queues, &mut Held { taken: &mut self.taken, released: &mut self.released });
    }
}

impl DataMachine {
    /// Whether the copy for the `n`th queue is to be put there: a letter's only once (rule 25).
    pub(super) fn is_wanted(&self, op: &EnqueueOp, n: u64, queue: QueueId) -> bool {
        match op.source {
            None => true,
            Some(source) if source.shard == self.shard => self.exits.dead.is_due(source.number, self.shard, queue),
            Some(source) => self.exits.dead.inlets.wants(source, n),
        }
    }
}

/// Whether messages that leave this queue so become dead letters.
pub(super) fn dies(queue: &Queue, reason: SettleReason) -> bool {
    match reason {
        SettleReason::Ack | SettleReason::Purge | SettleReason::Replay => false,
        SettleReason::Due | SettleReason::First => queue.settings().and_then(|s| s.store?.leaving()) == Some(reason),
        SettleReason::Reject | SettleReason::Expired | SettleReason::MaxLength | SettleReason::DeliveryLimit => {
            queue.settings().is_some_and(|s| s.dead_letter.is_some())
        }
    }
}
