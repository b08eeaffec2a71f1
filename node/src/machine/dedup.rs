//! What a queue remembers of messages so that none is taken twice: the values of the header `x-deduplication-header`, and per publisher
//! which of its publishing ids came. Replicated with the queue, bounded, and asked only in queues that were declared with it. Called by
//! `queue`; what a message says of itself is read by `model::deduplication`.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::shard::RestoreError;
use crate::model::deduplication::{Deduplication, Key, Marks};
use crate::model::limits;
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet};

/// Values remembered for messages whose seqs share this many upper bits are one value of a checkpoint: a change rewrites at most 32 KiB.
const PIECE_SHIFT: u32 = 10;

/// A value that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    key: Key,
    /// Forgotten at this time, ms since the epoch; 0: not by time.
    until_ms: u64,
}

/// Ids of a publisher that came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Publisher {
    /// Inclusive, ascending, not touching.
    taken: Vec<(u64, u64)>,
    /// Seq of its last message.
    used: u64,
}

impl Publisher {
    fn has(&self, id: u64) -> bool {
        let at = self.taken.partition_point(|range| range.1 < id);
        self.taken.get(at).is_some_and(|range| range.0 <= id)
    }

    fn put(&mut self, id: u64, ranges: u64) {
        let at = self.taken.partition_point(|range| range.1 < id);
        self.taken.insert(at, (id, id));
        if self.taken.get(at + 1).is_some_and(|next| Some(next.0) == id.checked_add(1)) {
            self.taken[at].1 = self.taken.remove(at + 1).1;
        }
        if at > 0 && self.taken[at - 1].1.checked_add(1) == Some(id) {
            self.taken[at - 1].1 = self.taken.remove(at).1;
        }
        self.keep(ranges);
    }

    /// Forgets the lowest ranges of more than so many. No gap is closed: what is missing there may have been refused, and its publisher is
    /// to be told the truth when it tries again. True: there were more.
    fn keep(&mut self, ranges: u64) -> bool {
        let surplus = (self.taken.len() as u64).saturating_sub(ranges);
        self.taken.drain(..surplus as usize);
        surplus > 0
    }
}

/// A queue's memory of what came.
#[derive(Clone, Debug, Default)]
pub(super) struct Dedup {
    settings: Deduplication,
    /// By the seq of the message.
    known: BTreeMap<u64, Known>,
    /// The other way round; follows from `known`.
    keys: HashMap<Key, u64>,
    publishers: BTreeMap<Key, Publisher>,
    /// By the seq of their last message; follows from `publishers`.
    by_use: BTreeMap<u64, Key>,
    /// Pieces that changed, and those that a checkpoint holds.
    dirty: BTreeSet<u64>,
    stored: BTreeSet<u64>,
    publishers_dirty: bool,
}

impl Dedup {
    /// What it was declared with, and what its policies say now. What is too much for that is forgotten.
    pub fn configure(&mut self, settings: Deduplication) {
        self.settings = settings;
        for publisher in self.publishers.values_mut() {
            self.publishers_dirty |= publisher.keep(settings.ids.ranges);
        }
        self.forget_publishers();
    }

    /// Those that were silent for longest, of more than may be remembered.
    fn forget_publishers(&mut self) {
        while self.publishers.len() as u64 > self.settings.ids.publishers {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            self.publishers.remove(&oldest);
            self.publishers_dirty = true;
        }
    }

    /// Whether a message with these marks came before.
    pub fn has(&self, marks: &Marks, now_ms: u64) -> bool {
        let known = |key| self.keys.get(key).and_then(|seq| self.known.get(seq));
        let is_known = self.header(marks).and_then(|(key, _)| known(key)).is_some_and(|k| k.until_ms == 0 || k.until_ms > now_ms);
        let publisher = |(key, id): (Key, u64)| self.publishers.get(&key).is_some_and(|publisher| publisher.has(id));
        is_known || marks.publisher.filter(|_| !marks.died).is_some_and(publisher)
    }

    /// A message with these marks is in the queue.
    pub fn put(&mut self, marks: &Marks, seq: u64, now_ms: u64) {
        if let Some((key, ttl_ms)) = self.header(marks) {
            let ttl_ms = self.settings.is_window().then_some(ttl_ms.or(self.settings.ttl_ms)).flatten();
            let until_ms = ttl_ms.map_or(0, |ttl| now_ms.saturating_add(ttl));
            self.remember(*key, seq, until_ms, now_ms);
        }
        if let Some((key, id)) = marks.publisher.filter(|_| !marks.died) {
            let publisher = self.publishers.entry(key).or_default();
            self.by_use.remove(&publisher.used);
            publisher.put(id, self.settings.ids.ranges);
            publisher.used = seq;
            self.by_use.insert(seq, key);
            self.publishers_dirty = true;
            self.forget_publishers();
        }
    }

    /// A message that comes back to its queue is not the same message published twice, as far as a window reaches beyond its first stay.
    fn header<'a>(&self, marks: &'a Marks) -> Option<&'a (Key, Option<u64>)> {
        marks.header.as_ref().filter(|_| !(marks.died && self.settings.is_window()))
    }

    fn remember(&mut self, key: Key, seq: u64, until_ms: u64, now_ms: u64) {
        if let Some(before) = self.keys.insert(key, seq) {
            self.forget(before);
        }
        self.known.insert(seq, Known { key, until_ms });
        self.dirty.insert(seq >> PIECE_SHIFT);
        if !self.settings.is_window() {
            return;
        }
        let most = self.settings.size.map_or(limits::DEDUPLICATION_VALUES, |size| size.min(limits::DEDUPLICATION_VALUES));
        while let Some((seq, oldest)) = self.known.first_key_value() {
            let over = oldest.until_ms > 0 && oldest.until_ms <= now_ms;
            if !over && self.known.len() as u64 <= most {
                return;
            }
            let (seq, key) = (*seq, oldest.key);
            self.keys.remove(&key);
            self.forget(seq);
        }
    }

    fn forget(&mut self, seq: u64) {
        self.known.remove(&seq);
        let piece = seq >> PIECE_SHIFT;
        // An empty one that no checkpoint holds is nobody's business: a queue in memory has no checkpoints.
        match self.known.range(seqs(piece)).next().is_none() && !self.stored.contains(&piece) {
            true => self.dirty.remove(&piece),
            false => self.dirty.insert(piece),
        };
    }

    /// Messages left the queue: without a window their values may come again.
    pub fn settled(&mut self, first: u64, last: u64) {
        if self.settings.is_window() || self.known.is_empty() || first > last {
            return;
        }
        while let Some((seq, known)) = self.known.range(first..=last).next() {
            let (seq, key) = (*seq, known.key);
            self.keys.remove(&key);
            self.forget(seq);
        }
    }

    /// Hands over what changed since the last call: pieces of values, and all publishers.
    pub fn take_changes(&mut self, mut put: impl FnMut(u64, Vec<u8>), mut delete: impl FnMut(u64), publishers: impl FnOnce(Vec<u8>)) {
        for piece in std::mem::take(&mut self.dirty) {
            match self.encode_piece(piece) {
                Some(value) => {
                    self.stored.insert(piece);
                    put(piece, value);
                }
                None if self.stored.remove(&piece) => delete(piece),
                None => {}
            }
        }
        if std::mem::take(&mut self.publishers_dirty) {
            publishers(self.encode_publishers());
        }
    }

    /// All of it.
    pub fn export(&self, mut put: impl FnMut(u64, Vec<u8>), publishers: impl FnOnce(Vec<u8>)) {
        let pieces: BTreeSet<u64> = self.known.keys().map(|seq| seq >> PIECE_SHIFT).collect();
        pieces.into_iter().filter_map(|piece| Some((piece, self.encode_piece(piece)?))).for_each(|(piece, value)| put(piece, value));
        if !self.publishers.is_empty() {
            publishers(self.encode_publishers());
        }
    }

    /// Pieces that a checkpoint holds.
    pub fn stored(&self) -> impl Iterator<Item = u64> + '_ {
        self.stored.iter().copied()
    }

    /// Everything counts as changed and nothing as stored.
    pub fn forget_stored(&mut self) {
        self.stored.clear();
        self.dirty = self.known.keys().map(|seq| seq >> PIECE_SHIFT).collect();
        self.publishers_dirty = !self.publishers.is_empty();
    }

    /// piece := (seq u64 | key u64 u64 | until u64)*
    fn encode_piece(&self, piece: u64) -> Option<Vec<u8>> {
        let mut out = Writer::default();
        for (seq, known) in self.known.range(seqs(piece)) {
            out.u64(*seq);
            known.key.0.into_iter().for_each(|half| out.u64(half));
            out.u64(known.until_ms);
        }
        Some(out.finish()).filter(|value| !value.is_empty())
    }

    /// publishers := (key u64 u64 | used u64 | n u32 | (first u64 | last u64)*)*
    fn encode_publishers(&self) -> Vec<u8> {
        let mut out = Writer::default();
        for (key, publisher) in &self.publishers {
            key.0.into_iter().for_each(|half| out.u64(half));
            out.u64(publisher.used);
            out.u32(publisher.taken.len() as u32);
            for (first, last) in &publisher.taken {
                out.u64(*first);
                out.u64(*last);
            }
        }
        out.finish()
    }

    /// Puts a piece back. `stored`: it came from the checkpoint that the next one builds on.
    pub fn import(&mut self, piece: u64, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        while !input.is_empty() {
            let (seq, key, until_ms) = (input.u64()?, Key([input.u64()?, input.u64()?]), input.u64()?);
            if seq >> PIECE_SHIFT != piece {
                return Err(RestoreError::Malformed("a remembered value in another piece"));
            }
            self.known.insert(seq, Known { key, until_ms });
            self.keys.insert(key, seq);
        }
        if stored {
            self.stored.insert(piece)
        } else {
            self.dirty.insert(piece)
        };
        Ok(())
    }

    /// Puts the publishers back.
    pub fn import_publishers(&mut self, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        while !input.is_empty() {
            let (key, used, n) = (Key([input.u64()?, input.u64()?]), input.u64()?, input.u32()?);
            let taken = (0..n).map(|_| Ok((input.u64()?, input.u64()?))).collect::<Result<_, RestoreError>>()?;
            self.by_use.insert(used, key);
            self.publishers.insert(key, Publisher { taken, used });
        }
        self.publishers_dirty = !stored;
        Ok(())
    }

    /// Folds into a state hash.
    pub fn hash(&self, hasher: &mut StateHasher) {
        for (seq, known) in &self.known {
            [*seq, known.key.0[0], known.key.0[1], known.until_ms].into_iter().for_each(|word| hasher.word(word));
        }
        hasher.bytes(&self.encode_publishers());
    }
}

/// The seqs of a piece.
fn seqs(piece: u64) -> std::ops::RangeInclusive<u64> {
    let first = piece << PIECE_SHIFT;
    first..=first | ((1 << PIECE_SHIFT) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_publisher_knows_every_id_that_came_and_few_ranges(ids in prop::collection::vec(1u64..80, 0..100)) {
            let (mut publisher, mut naive) = (Publisher::default(), BTreeSet::new());
            for id in ids {
                if !publisher.has(id) {
                    publisher.put(id, limits::PUBLISHER_RANGES);
                }
                naive.insert(id);
                for id in 0..82 {
                    prop_assert_eq!(publisher.has(id), naive.contains(&id), "{} in {:?}", id, publisher);
                }
                prop_assert!(publisher.taken.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", publisher);
            }
        }
    }

    #[test]
    fn of_too_many_ranges_the_lowest_is_forgotten_and_no_gap_is_closed() {
        let mut publisher = Publisher::default();
        let many = limits::PUBLISHER_RANGES + 5;
        (1..=many).for_each(|n| publisher.put(n * 10, limits::PUBLISHER_RANGES));
        assert_eq!(publisher.taken.len() as u64, limits::PUBLISHER_RANGES);
        assert!(!publisher.has(50) && publisher.has(60) && publisher.has(many * 10));
        assert!((0..many * 10).filter(|id| id % 10 > 0).all(|id| !publisher.has(id)));
    }
}
