//! Letters of a data shard (rule 25): messages that left their queue unconsumed and are still to be put into other queues. They keep
//! their entry alive. First they *wait*, as runs, which cost what waiting messages cost. Then the first of a queue is *routed*: its
//! targets are fixed, each copy for another shard has its number. It ends when every target has it: queues of this shard with the entry
//! that puts the copy there, other shards when they have said so. What this shard takes from others is in `inlets`.

use super::hash::StateHasher;
use super::inlets::Inlets;
use super::letter_rows::{decode_counts, decode_row, encode_counts, encode_row};
use super::queue::Located;
use super::shard::RestoreError;
use crate::model::entry::SettleReason;
use crate::model::letters::{Address, Outlet, Targets};
use crate::model::{QueueId, Seq, ShardId, limits};
use std::collections::{BTreeMap, BTreeSet};

/// Letters with consecutive numbers that lie side by side in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The queue they left.
    pub queue: QueueId,
    /// Where they lie.
    pub at: Located,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Why they left.
    pub reason: SettleReason,
    /// When, ms since the epoch; of a replay: the number of the binding that it is for.
    pub time_ms: u64,
}

/// A letter with a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// One letter.
    pub dead: Dead,
    /// The catalog index it was routed by.
    pub catalog_index: u64,
    /// What it is written by.
    pub address: Address,
    /// What is still to get it.
    pub outlets: Vec<Outlet>,
}

/// A row of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Waiting(Dead),
    Routed(Routed),
}

/// The letters of a queue.
#[derive(Clone, Debug, Default)]
struct Outbox {
    waiting: BTreeMap<u64, Dead>,
    /// Waiting and routed.
    letters: u64,
    bytes: u64,
}

/// All of a shard, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct DeadLetters {
    outboxes: BTreeMap<QueueId, Outbox>,
    routed: BTreeMap<u64, Routed>,
    /// The last number given to a letter.
    pub(super) last: u64,
    /// The last number given to a copy for each shard.
    pub(super) outlets: BTreeMap<ShardId, u64>,
    /// What was taken from other shards.
    pub inlets: Inlets,
    /// With the queue each left.
    dirty: BTreeMap<u64, QueueId>,
    stored: BTreeSet<u64>,
}

impl Dead {
    /// The part from the `n`th letter on.
    fn after(&self, n: u32) -> Dead {
        let at = Located { first: Seq(self.at.first.0 + u64::from(n)), count: self.at.count - n, skip: self.at.skip + n, ..self.at };
        Dead { at, bytes: self.bytes - self.bytes / u64::from(self.at.count) * u64::from(n), ..*self }
    }

    /// The first letter, which counts by the mean.
    fn head(&self) -> Dead {
        Dead { at: Located { count: 1, ..self.at }, bytes: self.bytes / u64::from(self.at.count), ..*self }
    }

    /// `next` lies right behind it and left for the same reason.
    fn continues(&self, next: &Dead) -> bool {
        let end = |at: &Located| (at.first.0 + u64::from(at.count), at.skip + at.count, at.index, at.position);
        let alike = (self.queue, self.reason, self.time_ms) == (next.queue, next.reason, next.time_ms);
        alike && next.at.first.0 > 0 && end(&self.at) == (next.at.first.0, next.at.skip, next.at.index, next.at.position)
    }
}

impl DeadLetters {
    /// Some more. True when they keep their entry by a reference of their own.
    pub fn add(&mut self, dead: Dead) -> bool {
        let outbox = self.outboxes.entry(dead.queue).or_default();
        outbox.letters += u64::from(dead.at.count);
        outbox.bytes += dead.bytes;
        let number = self.last + 1;
        self.last += u64::from(dead.at.count);
        if let Some((&first, run)) = outbox.waiting.iter_mut().next_back()
            && first + u64::from(run.at.count) == number
            && run.continues(&dead)
        {
            run.at.count += dead.at.count;
            run.bytes += dead.bytes;
            self.dirty.insert(first, dead.queue);
            return false;
        }
        self.dirty.insert(number, dead.queue);
        outbox.waiting.insert(number, dead);
        true
    }

    /// Queues with letters that wait.
    pub fn sources(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.outboxes.iter().filter(|(_, outbox)| !outbox.waiting.is_empty()).map(|(queue, _)| *queue)
    }

    /// The first waiting letters of a queue from a number on.
    pub fn waiting(&self, queue: QueueId, from: u64) -> Option<(u64, Dead)> {
        let waiting = &self.outboxes.get(&queue)?.waiting;
        let inside = waiting.range(..from).next_back().filter(|(first, run)| *first + u64::from(run.at.count) > from);
        match inside {
            Some((first, run)) => Some((from, run.after((from - first) as u32))),
            None => waiting.range(from..).next().map(|(number, run)| (*number, *run)),
        }
    }

    /// A routed one.
    pub fn routed(&self, number: u64) -> Option<&Routed> {
        self.routed.get(&number)
    }

    /// All routed ones.
    pub fn all_routed(&self) -> impl Iterator<Item = (u64, &Routed)> {
        self.routed.iter().map(|(number, routed)| (*number, routed))
    }

    /// Letters of a queue, and the bytes of their bodies.
    pub fn size(&self, queue: QueueId) -> (u64, u64) {
        self.outboxes.get(&queue).map_or((0, 0), |outbox| (outbox.letters, outbox.bytes))
    }

    /// How many more a queue may add of its own accord.
    pub fn room(&self, queue: QueueId) -> u64 {
        let (letters, bytes) = self.size(queue);
        if bytes >= limits::OUTBOX_BYTES { 0 } else { limits::OUTBOX_LETTERS.saturating_sub(letters) }
    }

    /// The first waiting letter of a queue goes to these targets. True when it counts: it is that letter. `refer` is called when it needs a
    /// reference to its entry beside that of its run.
    pub fn route(&mut self, (queue, number): (QueueId, u64), way: (u64, Address, Targets), mut refer: impl FnMut(u64)) -> bool {
        let Some(outbox) = self.outboxes.get_mut(&queue) else { return false };
        let Some(run) = outbox.waiting.first_entry().filter(|run| *run.key() == number).map(|run| run.remove()) else { return false };
        self.dirty.insert(number, queue);
        if run.at.count > 1 {
            self.dirty.insert(number + 1, queue);
            outbox.waiting.insert(number + 1, run.after(1));
            refer(run.at.index);
        }
        let (catalog_index, address, targets) = way;
        let outlets = targets.into_iter().map(|(shard, queues)| {
            let last = self.outlets.entry(shard).or_default();
            let first = *last + 1;
            *last += queues.len() as u64;
            Outlet { shard, first, queues }
        });
        self.routed.insert(number, Routed { dead: run.head(), catalog_index, address, outlets: outlets.collect() });
        true
    }

    /// A shard has it. The log index that it lets go of, if any.
    pub fn done(&mut self, number: u64, shard: ShardId) -> Option<u64> {
        let routed = self.routed.get_mut(&number)?;
        routed.outlets.retain(|outlet| outlet.shard != shard);
        self.dirty.insert(number, routed.dead.queue);
        self.end(number)
    }

    /// A queue of the shard itself is still to get it.
    pub fn is_due(&self, number: u64, shard: ShardId, queue: QueueId) -> bool {
        let outlets = self.routed.get(&number).into_iter().flat_map(|routed| &routed.outlets);
        outlets.filter(|outlet| outlet.shard == shard).any(|outlet| outlet.queues.contains(&queue))
    }

    /// A queue of the shard itself has it, or is gone.
    pub fn taken_here(&mut self, number: u64, shard: ShardId, queue: QueueId) {
        let Some(routed) = self.routed.get_mut(&number) else { return };
        routed.outlets.iter_mut().filter(|outlet| outlet.shard == shard).for_each(|outlet| outlet.queues.retain(|q| *q != queue));
        routed.outlets.retain(|outlet| !outlet.queues.is_empty());
        self.dirty.insert(number, routed.dead.queue);
    }

    /// When every target has it, it is over. The log index that it lets go of, if any.
    pub fn end(&mut self, number: u64) -> Option<u64> {
        let over = self.routed.get(&number).is_some_and(|routed| routed.outlets.is_empty());
        let dead = over.then(|| self.routed.remove(&number)).flatten()?.dead;
        if let Some(outbox) = self.outboxes.get_mut(&dead.queue) {
            outbox.letters = outbox.letters.saturating_sub(1);
            outbox.bytes = outbox.bytes.saturating_sub(dead.bytes);
            if outbox.letters == 0 {
                self.outboxes.remove(&dead.queue);
            }
        }
        Some(dead.at.index)
    }

    /// The queue is gone, and its letters that wait with it. The log indices they let go of.
    pub fn queue_dropped(&mut self, queue: QueueId) -> Vec<u64> {
        let Some(outbox) = self.outboxes.remove(&queue) else { return Vec::new() };
        self.dirty.extend(outbox.waiting.keys().map(|number| (*number, queue)));
        let mut left = Outbox::default();
        for routed in self.routed.values().filter(|routed| routed.dead.queue == queue) {
            left.letters += 1;
            left.bytes += routed.dead.bytes;
        }
        if left.letters > 0 {
            self.outboxes.insert(queue, left);
        }
        outbox.waiting.values().map(|run| run.at.index).collect()
    }

    /// All letters, a row for each run.
    pub fn all(&self) -> impl Iterator<Item = &Dead> {
        let waiting = self.outboxes.values().flat_map(|outbox| outbox.waiting.values());
        waiting.chain(self.routed.values().map(|routed| &routed.dead))
    }

    /// The log index of each row.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.all().map(|dead| dead.at.index)
    }

    fn row(&self, number: u64, queue: QueueId) -> Option<Row> {
        let waiting = || self.outboxes.get(&queue)?.waiting.get(&number).map(|run| Row::Waiting(*run));
        self.routed.get(&number).map(|routed| Row::Routed(routed.clone())).or_else(waiting)
    }

    /// By number.
    fn rows(&self) -> BTreeMap<u64, Row> {
        let waiting = self.outboxes.values().flat_map(|outbox| &outbox.waiting).map(|(number, run)| (*number, Row::Waiting(*run)));
        waiting.chain(self.routed.iter().map(|(number, routed)| (*number, Row::Routed(routed.clone())))).collect()
    }

    /// Hands over what changed since the last call.
    pub fn take_changes(&mut self, mut put: impl FnMut(u64, Vec<u8>), mut delete: impl FnMut(u64)) {
        for (number, queue) in std::mem::take(&mut self.dirty) {
            match self.row(number, queue) {
                Some(row) => {
                    self.stored.insert(number);
                    put(number, encode_row(&row));
                }
                None if self.stored.remove(&number) => delete(number),
                None => {}
            }
        }
    }

    /// All rows.
    pub fn export(&self, mut put: impl FnMut(u64, Vec<u8>)) {
        self.rows().iter().for_each(|(number, row)| put(*number, encode_row(row)));
    }

    /// Puts a row back. `stored`: it came from the checkpoint that the next one builds on.
    pub fn import(&mut self, number: u64, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let row = decode_row(value)?;
        let dead = match &row {
            Row::Waiting(dead) => *dead,
            Row::Routed(routed) => routed.dead,
        };
        let outbox = self.outboxes.entry(dead.queue).or_default();
        outbox.letters += u64::from(dead.at.count);
        outbox.bytes += dead.bytes;
        match row {
            Row::Waiting(dead) => drop(outbox.waiting.insert(number, dead)),
            Row::Routed(routed) => drop(self.routed.insert(number, routed)),
        }
        if stored {
            self.stored.insert(number);
        } else {
            self.dirty.insert(number, dead.queue);
        }
        Ok(())
    }

    /// Everything counts as changed and nothing as stored.
    pub fn forget_stored(&mut self) {
        self.stored.clear();
        let queue = |row: Row| match row {
            Row::Waiting(dead) => dead.queue,
            Row::Routed(routed) => routed.dead.queue,
        };
        self.dirty = self.rows().into_iter().map(|(number, row)| (number, queue(row))).collect();
    }

    /// What is kept beside the rows.
    pub fn encode_meta(&self) -> Vec<u8> {
        encode_counts(self)
    }

    /// The way back.
    pub fn decode_meta(&mut self, value: &[u8]) -> Result<(), RestoreError> {
        decode_counts(self, value)
    }

    /// Nothing was ever in it.
    pub fn is_untouched(&self) -> bool {
        self.last == 0 && self.inlets.is_empty()
    }

    /// Folds into a state hash.
    pub fn hash(&self, hasher: &mut StateHasher) {
        hasher.bytes(&self.encode_meta());
        for (number, row) in &self.rows() {
            hasher.word(*number);
            hasher.bytes(&encode_row(row));
        }
    }
}
