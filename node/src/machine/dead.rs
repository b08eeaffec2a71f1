//! Letters of a data shard (rule 25): messages that left their queue unconsumed and are still to be put into other queues. They keep
//! their entry alive. First they *wait*, as runs, which cost what waiting messages cost; what they go by is fixed already, so that they
//! outlive their queue and what it was set to. Then the first of a queue are *routed*: their targets are fixed, each copy for another shard
//! has its number. Those side by side with one way stay a run, until it ends for some and not for others. A letter ends when every target
//! has it: queues of this shard with the entry that puts the copy there, other shards when they have said so. What this shard takes from
//! others is in `inlets`.

use super::hash::StateHasher;
use super::inlets::Inlets;
use super::letter_rows::{decode_counts, decode_row, encode_counts, encode_row};
use super::queue::Located;
use super::shard::RestoreError;
use crate::model::entry::SettleReason;
use crate::model::letters::{Address, Outlet, Targets};
use crate::model::{QueueId, Seq, ShardId, limits};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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

/// Letters without a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// A run of them.
    pub dead: Dead,
    /// What they are routed and written by: that of their queue when they left it.
    pub address: Arc<Address>,
}

/// Letters with one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// A run of them.
    pub dead: Dead,
    /// The catalog index they were routed by.
    pub catalog_index: u64,
    /// What they are written by.
    pub address: Arc<Address>,
    /// What is still to get them.
    pub outlets: Vec<Outlet>,
}

/// What happens to the entries that hold letters.
#[derive(Debug)]
pub(super) struct Held<'a> {
    /// Log indices that are held once more.
    pub taken: &'a mut Vec<u64>,
    /// Log indices that are let go of.
    pub released: &'a mut Vec<u64>,
}

/// A row of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Waiting(Waiting),
    Routed(Routed),
}

/// The letters of a queue, which may be gone.
#[derive(Clone, Debug, Default)]
struct Outbox {
    waiting: BTreeMap<u64, Waiting>,
    /// Waiting and routed.
    letters: u64,
    bytes: u64,
}

/// All of a shard.
#[derive(Clone, Debug, Default)]
pub(super) struct DeadLetters {
    outboxes: BTreeMap<QueueId, Outbox>,
    /// By the number of the last of each run: those in front end first, mostly.
    routed: BTreeMap<u64, Routed>,
    /// The last number given to a letter.
    pub(super) last: u64,
    /// The last number given to a copy for each shard.
    pub(super) outlets: BTreeMap<ShardId, u64>,
    /// What was taken from other shards.
    pub inlets: Inlets,
    /// By number of the row: of its first letter when they wait, of its last when they have a way. With the queue they left.
    dirty: BTreeMap<u64, QueueId>,
    stored: BTreeSet<u64>,
}

impl Dead {
    /// The part from the `n`th letter on.
    fn after(&self, n: u32) -> Dead {
        let at = Located { first: Seq(self.at.first.0 + u64::from(n)), count: self.at.count - n, skip: self.at.skip + n, ..self.at };
        Dead { at, bytes: self.bytes - self.bytes / u64::from(self.at.count) * u64::from(n), ..*self }
    }

    /// The first `n` letters, which count by the mean unless they are all.
    fn head(&self, n: u32) -> Dead {
        let bytes = if n == self.at.count { self.bytes } else { self.bytes / u64::from(self.at.count) * u64::from(n) };
        Dead { at: Located { count: n, ..self.at }, bytes, ..*self }
    }

    /// `next` lies right behind it and left for the same reason.
    fn continues(&self, next: &Dead) -> bool {
        let end = |at: &Located| (at.first.0 + u64::from(at.count), at.skip + at.count, at.index, at.position);
        let alike = (self.queue, self.reason, self.time_ms) == (next.queue, next.reason, next.time_ms);
        alike && next.at.first.0 > 0 && end(&self.at) == (next.at.first.0, next.at.skip, next.at.index, next.at.position)
    }
}

impl Routed {
    /// The letters from the `from`th to before the `to`th.
    fn part(&self, from: u32, to: u32) -> Routed {
        let mut part = Routed { dead: self.dead.head(to), ..self.clone() };
        part.drop_front(from);
        part
    }

    /// Without the first `n`.
    fn drop_front(&mut self, n: u32) {
        self.dead = if n == 0 { self.dead } else { self.dead.after(n) };
        self.outlets.iter_mut().for_each(|outlet| outlet.first += u64::from(n) * outlet.queues.len() as u64);
    }

    /// Number of the first letter of a run with this last one.
    fn first(&self, last: u64) -> u64 {
        last + 1 - u64::from(self.dead.at.count)
    }

    fn goes_to(&self, shard: ShardId) -> bool {
        self.outlets.iter().any(|outlet| outlet.shard == shard)
    }
}

impl Row {
    fn dead(&self) -> &Dead {
        match self {
            Row::Waiting(waiting) => &waiting.dead,
            Row::Routed(routed) => &routed.dead,
        }
    }
}

impl DeadLetters {
    /// Some more. True when they keep their entry by a reference of their own.
    pub fn add(&mut self, dead: Dead, address: &Arc<Address>) -> bool {
        let outbox = self.outboxes.entry(dead.queue).or_default();
        outbox.letters += u64::from(dead.at.count);
        outbox.bytes += dead.bytes;
        let number = self.last + 1;
        self.last += u64::from(dead.at.count);
        if let Some((&first, run)) = outbox.waiting.iter_mut().next_back()
            && first + u64::from(run.dead.at.count) == number
            && run.dead.continues(&dead)
            && run.address == *address
        {
            run.dead.at.count += dead.at.count;
            run.dead.bytes += dead.bytes;
            self.dirty.insert(first, dead.queue);
            return false;
        }
        self.dirty.insert(number, dead.queue);
        outbox.waiting.insert(number, Waiting { dead, address: address.clone() });
        true
    }

    /// Queues with letters that wait.
    pub fn sources(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.outboxes.iter().filter(|(_, outbox)| !outbox.waiting.is_empty()).map(|(queue, _)| *queue)
    }

    /// The first waiting letters of a queue from a number on.
    pub fn waiting(&self, queue: QueueId, from: u64) -> Option<(u64, Waiting)> {
        let waiting = &self.outboxes.get(&queue)?.waiting;
        let inside = waiting.range(..from).next_back().filter(|(first, run)| *first + u64::from(run.dead.at.count) > from);
        match inside {
            Some((first, run)) => Some((from, Waiting { dead: run.dead.after((from - first) as u32), address: run.address.clone() })),
            None => waiting.range(from..).next().map(|(number, run)| (*number, run.clone())),
        }
    }

    /// The run that a routed letter is in, with the numbers of its first and last letter.
    fn run_of(&self, number: u64) -> Option<(u64, u64, &Routed)> {
        let (last, run) = self.routed.range(number..).next()?;
        let first = run.first(*last);
        (first <= number).then_some((first, *last, run))
    }

    /// What of these letters is routed, with the number of the first of each run.
    pub fn routed(&self, first: u64, last: u64) -> Vec<(u64, Routed)> {
        let runs = self.routed.range(first..).map(|(end, run)| (run.first(*end), *end, run)).take_while(|(begin, ..)| *begin <= last);
        let part = |(begin, end, run): (u64, u64, &Routed)| {
            let from = begin.max(first);
            (from, run.part((from - begin) as u32, (end.min(last) - begin) as u32 + 1))
        };
        runs.map(part).collect()
    }

    /// All routed ones, with the number of the first of each run.
    pub fn all_routed(&self) -> impl Iterator<Item = (u64, &Routed)> {
        self.routed.iter().map(|(last, run)| (run.first(*last), run))
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

    /// The first waiting letters of a queue, of one run, go to these targets. Nothing happens unless they are that.
    pub fn route(&mut self, (queue, number, count): (QueueId, u64, u32), way: (u64, Targets), held: &mut Held<'_>) {
        let Some(outbox) = self.outboxes.get_mut(&queue) else { return };
        let fits = |run: &Waiting| (1..=run.dead.at.count).contains(&count);
        let first = outbox.waiting.first_entry().filter(|run| *run.key() == number && fits(run.get()));
        let Some(Waiting { dead: run, address }) = first.map(|run| run.remove()) else { return };
        let last = number + u64::from(count) - 1;
        self.dirty.extend([(number, queue), (last, queue)]);
        if run.at.count > count {
            self.dirty.insert(last + 1, queue);
            outbox.waiting.insert(last + 1, Waiting { dead: run.after(count), address: address.clone() });
            held.taken.push(run.at.index);
        }
        let (catalog_index, targets) = way;
        let outlets = targets.into_iter().map(|(shard, queues)| {
            let given = self.outlets.entry(shard).or_default();
            let first = *given + 1;
            *given += queues.len() as u64 * u64::from(count);
            Outlet { shard, first, queues }
        });
        self.routed.insert(last, Routed { dead: run.head(count), catalog_index, address, outlets: outlets.collect() });
        self.end(last, held);
    }

    /// From here on a run begins with this letter, if it is one with a way.
    fn cut(&mut self, number: u64, held: &mut Held<'_>) {
        let Some((first, last, run)) = self.run_of(number).filter(|(first, ..)| *first < number) else { return };
        let queue = run.dead.queue;
        let n = (number - first) as u32;
        let front = run.part(0, n);
        held.taken.push(front.dead.at.index);
        self.routed.insert(number - 1, front);
        self.routed.entry(last).and_modify(|run| run.drop_front(n));
        self.dirty.extend([(number - 1, queue), (last, queue)]);
    }

    /// A shard has these.
    pub fn done(&mut self, (first, last): (u64, u64), shard: ShardId, held: &mut Held<'_>) {
        if first > last {
            return;
        }
        for number in [first, last.saturating_add(1)] {
            if self.run_of(number).is_some_and(|(.., run)| run.goes_to(shard)) {
                self.cut(number, held);
            }
        }
        let runs = self.routed.range_mut(first..=last).filter(|(_, run)| run.goes_to(shard));
        let runs: Vec<u64> = runs.map(|(end, run)| (run.outlets.retain(|outlet| outlet.shard != shard), *end).1).collect();
        for end in runs {
            self.end(end, held);
        }
    }

    /// A queue of the shard itself is still to get it.
    pub fn is_due(&self, number: u64, shard: ShardId, queue: QueueId) -> bool {
        let outlets = self.run_of(number).into_iter().flat_map(|(.., run)| &run.outlets);
        outlets.filter(|outlet| outlet.shard == shard).any(|outlet| outlet.queues.contains(&queue))
    }

    /// These queues of the shard itself have it, or are gone.
    pub fn taken_here(&mut self, number: u64, shard: ShardId, queues: &[QueueId], held: &mut Held<'_>) {
        let Some((first, last, run)) = self.run_of(number) else { return };
        let is_over = matches!(&run.outlets[..], [own] if own.shard == shard && own.queues.iter().all(|q| queues.contains(q)));
        if is_over && first == number && last > number {
            return self.end_first(last);
        }
        self.cut(number, held);
        self.cut(number + 1, held);
        let Some(run) = self.routed.get_mut(&number) else { return };
        // The numbers of copies within the shard mean nothing.
        run.outlets.iter_mut().filter(|outlet| outlet.shard == shard).for_each(|outlet| outlet.queues.retain(|q| !queues.contains(q)));
        run.outlets.retain(|outlet| !outlet.queues.is_empty());
        self.end(number, held);
    }

    /// The first letter of a longer run is over.
    fn end_first(&mut self, last: u64) {
        let Some(run) = self.routed.get_mut(&last) else { return };
        let (queue, before) = (run.dead.queue, run.dead.bytes);
        run.drop_front(1);
        let bytes = before - run.dead.bytes;
        self.dirty.insert(last, queue);
        self.shrink(queue, 1, bytes);
    }

    /// A run changed: when every target has it, it is over.
    fn end(&mut self, last: u64, held: &mut Held<'_>) {
        let Some(run) = self.routed.get(&last) else { return };
        let dead = run.dead;
        self.dirty.insert(last, dead.queue);
        if run.outlets.is_empty() {
            self.routed.remove(&last);
            self.shrink(dead.queue, dead.at.count.into(), dead.bytes);
            held.released.push(dead.at.index);
        }
    }

    fn shrink(&mut self, queue: QueueId, letters: u64, bytes: u64) {
        if let Some(outbox) = self.outboxes.get_mut(&queue) {
            outbox.letters = outbox.letters.saturating_sub(letters);
            outbox.bytes = outbox.bytes.saturating_sub(bytes);
            if outbox.letters == 0 {
                self.outboxes.remove(&queue);
            }
        }
    }

    /// All letters, a row for each run.
    pub fn all(&self) -> impl Iterator<Item = &Dead> {
        let waiting = self.outboxes.values().flat_map(|outbox| outbox.waiting.values().map(|run| &run.dead));
        waiting.chain(self.routed.values().map(|routed| &routed.dead))
    }

    /// The log index of each row.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.all().map(|dead| dead.at.index)
    }

    fn row(&self, number: u64, queue: QueueId) -> Option<Row> {
        let waiting = || self.outboxes.get(&queue)?.waiting.get(&number).map(|run| Row::Waiting(run.clone()));
        self.routed.get(&number).map(|routed| Row::Routed(routed.clone())).or_else(waiting)
    }

    /// By number.
    fn rows(&self) -> BTreeMap<u64, Row> {
        let waiting = self.outboxes.values().flat_map(|outbox| &outbox.waiting).map(|(number, run)| (*number, Row::Waiting(run.clone())));
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
        if matches!(&row, Row::Routed(run) if number < u64::from(run.dead.at.count)) {
            return Err(RestoreError::Malformed("number of letters"));
        }
        let dead = *row.dead();
        let outbox = self.outboxes.entry(dead.queue).or_default();
        outbox.letters += u64::from(dead.at.count);
        outbox.bytes += dead.bytes;
        match row {
            Row::Waiting(mut run) => {
                // Rows come in the order of their numbers: runs with one address have it once.
                let before = outbox.waiting.last_key_value().map(|(_, before)| &before.address);
                if let Some(same) = before.filter(|before| **before == run.address) {
                    run.address = same.clone();
                }
                outbox.waiting.insert(number, run);
            }
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
        self.dirty = self.rows().into_iter().map(|(number, row)| (number, row.dead().queue)).collect();
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
