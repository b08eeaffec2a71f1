//! Where a queue's live messages lie in the log: one extent per (queue, batch), kept in chunks that are also the unit of a
//! checkpoint. A message that is settled is a bit in its extent; an extent without live messages goes at once, also in the middle.
//! Called by `queue`. Knows nothing of bodies.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::notes::{Note, Notes};
use super::queue::Located;
use super::shard::RestoreError;
use crate::model::Seq;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A chunk takes no further extent at this many: a change rewrites at most this in a checkpoint.
const CHUNK_EXTENTS: usize = 64;
/// ... or at this many messages: bounds the settled bits of a chunk's checkpoint value (2 KiB).
const CHUNK_MESSAGES: u64 = 16_384;

/// ... or at this many notes of messages that differ (64 KiB): delayed messages each have their own time.
const CHUNK_NOTES: usize = 4096;

/// A run of messages of one queue in one section of one entry.
#[derive(Clone, Debug)]
struct Extent {
    first: u64,
    index: u64,
    count: u32,
    position: u32,
    /// Stored bytes of all `count` messages.
    bytes: u32,
    /// Bytes of their bodies.
    body_bytes: u32,
    /// `None`: all live.
    settled: Option<Box<Settled>>,
}

#[derive(Clone, Debug)]
struct Settled {
    live: u32,
    bits: Vec<u64>,
}

impl Extent {
    fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    fn live(&self) -> u32 {
        self.settled.as_ref().map_or(self.count, |s| s.live)
    }

    /// Bytes of the live messages: exact for all or none, in between by the mean (sizes of single messages are not kept).
    fn live_bytes(&self) -> u64 {
        u64::from(self.bytes) * u64::from(self.live()) / u64::from(self.count)
    }

    fn is_live(&self, seq: u64) -> bool {
        let at = (seq - self.first) as usize;
        self.settled.as_ref().is_none_or(|s| s.bits[at / 64] & (1 << (at % 64)) == 0)
    }

    /// Live messages in `first..=last`, which lies within the extent.
    fn live_in(&self, first: u64, last: u64) -> u64 {
        let Some(settled) = &self.settled else { return last - first + 1 };
        let (from, to) = (first - self.first, last - self.first);
        let live = |word: u64| u64::from((mask(word, from, to) & !settled.bits[word as usize]).count_ones());
        (from / 64..=to / 64).map(live).sum()
    }

    /// Settles the part of `first..=last` that lies in this extent; the caller drops it when nothing is live.
    fn settle(&mut self, first: u64, last: u64) {
        let (from, to) = (first.max(self.first) - self.first, last.min(self.last()) - self.first);
        let words = (self.count as usize).div_ceil(64);
        let count = self.count;
        let settled = self.settled.get_or_insert_with(|| Box::new(Settled { live: count, bits: vec![0; words] }));
        for word in from / 64..=to / 64 {
            let mask = mask(word, from, to);
            let bits = &mut settled.bits[word as usize];
            settled.live -= (mask & !*bits).count_ones();
            *bits |= mask;
        }
    }

    /// The next live run at or after `from`, at most `max` long, as (first, count).
    fn next_run(&self, from: u64, max: u64) -> Option<(u64, u64)> {
        let mut first = from.max(self.first);
        if self.settled.is_none() {
            return (first <= self.last()).then(|| (first, max.min(self.last() - first + 1)));
        }
        while first <= self.last() && !self.is_live(first) {
            first += 1;
        }
        let mut count = 0;
        while count < max && first + count <= self.last() && self.is_live(first + count) {
            count += 1;
        }
        (count > 0).then_some((first, count))
    }
}

impl Extent {
    /// As position, messages to skip, messages, stored bytes by the mean.
    fn live_runs(&self) -> impl Iterator<Item = (u32, u32, u32, u64)> + '_ {
        let mut at = self.first;
        std::iter::from_fn(move || {
            let (first, count) = self.next_run(at, u64::MAX)?;
            at = first + count;
            Some((self.position, (first - self.first) as u32, count as u32, u64::from(self.bytes) * count / u64::from(self.count)))
        })
    }
}

/// The bits of a word that lie in `from..=to`.
fn mask(word: u64, from: u64, to: u64) -> u64 {
    let (low, high) = (from.max(word * 64) % 64, to.min(word * 64 + 63) % 64);
    (u64::MAX << low) & (u64::MAX >> (63 - high))
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    /// Shared with a capture that is not encoded yet; copied when it changes before that.
    extents: Arc<Vec<Extent>>,
    /// What is known of single messages, where that is more than their extent says; shared likewise.
    notes: Option<Arc<Notes>>,
    messages: u64,
    dirty: bool,
    /// A checkpoint holds it, so that its end must be told.
    stored: bool,
}

impl Chunk {
    /// The extents that touch `first..=last`.
    fn touched(&self, first: u64, last: u64) -> std::ops::Range<usize> {
        let from = self.extents.partition_point(|e| e.last() < first);
        from..self.extents.partition_point(|e| e.first <= last)
    }
}

impl Chunk {
    /// The next live run of an extent at or after `from`, at most `max` long, its messages alike.
    fn run(&self, extent: &Extent, from: u64, max: u64) -> Option<Located> {
        let (first, count) = extent.next_run(from, max)?;
        let (deadline_ms, until) = self.notes.as_ref().map_or((0, u64::MAX), |n| n.deadline(first));
        Some(Located {
            first: Seq(first),
            count: count.min(until - first) as u32,
            index: extent.index,
            position: extent.position,
            skip: (first - extent.first) as u32,
            deadline_ms,
        })
    }

    /// A message is new at the end.
    fn note_deadline(&mut self, seq: u64, deadline_ms: u64) {
        if self.notes.is_some() || deadline_ms > 0 {
            Arc::make_mut(self.notes.get_or_insert_default()).add_deadline(seq, deadline_ms);
        }
    }

    /// A message continues this extent; where bodies differ, their sizes are noted.
    fn note_size(&mut self, first: u64, (seq, count): (u64, u32), before: u32, body_bytes: u32) {
        let is_mixed = self.notes.as_ref().is_some_and(|notes| !notes.sizes(first, seq).is_empty());
        if is_mixed || before / count != body_bytes {
            Arc::make_mut(self.notes.get_or_insert_default()).add_size(first, before / count, seq, body_bytes);
        }
    }

    /// Body bytes of the live messages of an extent within `first..=last`.
    fn body_bytes(&self, extent: &Extent, first: u64, last: u64) -> u64 {
        let (from, to) = (first.max(extent.first), last.min(extent.last()));
        if extent.settled.is_none() && (from, to) == (extent.first, extent.last()) {
            return extent.body_bytes.into();
        }
        let steps = self.notes.as_ref().map_or(&[][..], |notes| notes.sizes(extent.first, extent.last()));
        if steps.is_empty() {
            return u64::from(extent.body_bytes / extent.count) * extent.live_in(from, to);
        }
        let ends = steps.iter().skip(1).map(|step| step.0 - 1).chain([extent.last()]);
        let parts = steps.iter().zip(ends).map(|(step, end)| (step.0.max(from), end.min(to), step.1));
        parts.filter(|(first, last, _)| first <= last).map(|(first, last, size)| u64::from(size) * extent.live_in(first, last)).sum()
    }

    /// Extents with these messages ended.
    fn forget(&mut self, first: u64, last: u64) {
        let Some(notes) = &mut self.notes else { return };
        let notes = Arc::make_mut(notes);
        notes.forget(first, last);
        if notes.is_empty() {
            self.notes = None;
        }
    }
}

/// What a settle took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Messages.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
}

/// A chunk's key and content.
type Shared = (u64, Arc<Vec<Extent>>, Option<Arc<Notes>>);

/// Chunks as they were when they were captured.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    chunks: Vec<Shared>,
    gone: Vec<u64>,
}

impl Captured {
    /// How many chunks.
    pub fn chunks(&self) -> usize {
        self.chunks.len() + self.gone.len()
    }

    /// The log index of each extent.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().flat_map(|(_, extents, _)| extents.iter()).map(|e| e.index)
    }

    /// Each extent of an entry in `wanted` with its live runs: position, messages to skip, messages, stored bytes.
    pub fn live_runs(&self, wanted: RangeInclusive<u64>, mut each: impl FnMut(u64, &mut dyn Iterator<Item = (u32, u32, u32, u64)>)) {
        let extents = self.chunks.iter().flat_map(|(_, extents, _)| extents.iter());
        extents.filter(|e| wanted.contains(&e.index)).for_each(|extent| each(extent.index, &mut extent.live_runs()));
    }

    /// Chunks as (key, value), and keys of chunks that are gone.
    pub fn encode(&self, mut put: impl FnMut(u64, Vec<u8>), delete: impl FnMut(u64)) {
        self.chunks.iter().for_each(|(key, extents, notes)| put(*key, encode(extents, notes.as_deref())));
        self.gone.iter().copied().for_each(delete);
    }
}

/// A queue's extents, in chunks by the first seq a chunk was made with.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    chunks: BTreeMap<u64, Chunk>,
    dirty: BTreeSet<u64>,
    gone: Vec<u64>,
}

impl Extents {
    /// A new extent of one message at the end.
    pub fn push(&mut self, seq: Seq, index: u64, position: u32, bytes: u32, note: Note) {
        let extent = Extent { first: seq.0, index, count: 1, position, bytes, body_bytes: note.body_bytes, settled: None };
        if let Some((&key, chunk)) = self.chunks.iter_mut().next_back()
            && chunk.extents.len() < CHUNK_EXTENTS
            && chunk.messages < CHUNK_MESSAGES
            && chunk.notes.as_ref().is_none_or(|notes| notes.steps() < CHUNK_NOTES)
        {
            Arc::make_mut(&mut chunk.extents).push(extent);
            chunk.messages += 1;
            chunk.note_deadline(seq.0, note.deadline_ms);
            mark(&mut self.dirty, key, chunk);
            return;
        }
        let mut chunk = Chunk { extents: Arc::new(vec![extent]), messages: 1, ..Chunk::default() };
        chunk.note_deadline(seq.0, note.deadline_ms);
        mark(&mut self.dirty, seq.0, &mut chunk);
        self.chunks.insert(seq.0, chunk);
    }

    /// One more message in the extent pushed last (same queue, same section), if that ends with `tail` and is wholly live.
    pub fn extend(&mut self, tail: Seq, bytes: u32, note: Note) -> bool {
        let Some(mut entry) = self.chunks.last_entry() else { return false };
        let chunk = entry.get_mut();
        let last = Arc::make_mut(&mut chunk.extents).last_mut();
        let Some(extent) = last.filter(|e| e.last() == tail.0 && e.settled.is_none()) else { return false };
        let (first, count, before) = (extent.first, extent.count, extent.body_bytes);
        extent.count += 1;
        extent.bytes = extent.bytes.saturating_add(bytes);
        extent.body_bytes = extent.body_bytes.saturating_add(note.body_bytes);
        chunk.messages += 1;
        chunk.note_deadline(tail.0 + 1, note.deadline_ms);
        chunk.note_size(first, (tail.0 + 1, count), before, note.body_bytes);
        true
    }

    /// Settles what is live in `first..=last`; the log index of every extent that ends goes to `released`.
    pub fn settle(&mut self, first: u64, last: u64, released: &mut Vec<u64>) -> Taken {
        let mut taken = Taken::default();
        if first > last {
            return taken;
        }
        let mut from = self.chunks.range(..=first).next_back().map_or(first, |(key, _)| *key);
        while let Some((&key, chunk)) = self.chunks.range_mut(from..).next() {
            if key > last {
                break;
            }
            let part = settle_chunk(chunk, first, last, released);
            if part.count > 0 {
                taken.count += part.count;
                taken.bytes += part.bytes;
                taken.body_bytes += part.body_bytes;
                mark(&mut self.dirty, key, chunk);
                if chunk.extents.is_empty() {
                    self.remove(key);
                }
            }
            from = key + 1;
        }
        taken
    }

    /// The first live run with seq >= `from`, if any.
    pub fn locate_run(&self, from: Seq) -> Option<Located> {
        let start = self.chunks.range(..=from.0).next_back().map_or(from.0, |(key, _)| *key);
        self.chunks.range(start..).find_map(|(_, chunk)| {
            let skip = chunk.extents.partition_point(|e| e.last() < from.0);
            chunk.extents[skip..].iter().find_map(|extent| chunk.run(extent, from.0, u64::from(extent.count)))
        })
    }

    /// Live runs with seq >= `from`, in order, up to `max` messages in all.
    pub fn locate(&self, from: Seq, max: usize, out: &mut Vec<Located>) {
        let (mut at, mut left) = (from.0, max as u64);
        let start = self.chunks.range(..=at).next_back().map_or(at, |(key, _)| *key);
        for chunk in self.chunks.range(start..).map(|(_, chunk)| chunk) {
            let skip = chunk.extents.partition_point(|e| e.last() < at);
            for extent in &chunk.extents[skip..] {
                while left > 0 {
                    let Some(run) = chunk.run(extent, at, left) else { break };
                    out.push(run);
                    left -= u64::from(run.count);
                    at = run.first.0 + u64::from(run.count);
                }
                if left == 0 {
                    return;
                }
            }
        }
    }

    /// Some message has a time to live.
    pub fn is_timed(&self) -> bool {
        self.chunks.values().any(|c| c.notes.as_ref().is_some_and(|n| n.is_timed()))
    }

    /// The live message with the lowest seq.
    pub fn first_live(&self) -> Option<u64> {
        self.chunks.values().flat_map(|c| c.extents.iter()).next().and_then(|e| e.next_run(0, 1)).map(|run| run.0)
    }

    /// Whether this message is there and not settled.
    pub fn is_live(&self, seq: Seq) -> bool {
        let Some((_, chunk)) = self.chunks.range(..=seq.0).next_back() else { return false };
        let at = chunk.extents.partition_point(|e| e.last() < seq.0);
        chunk.extents.get(at).is_some_and(|e| e.first <= seq.0 && e.is_live(seq.0))
    }

    /// Messages and bytes that are live, counted afresh.
    pub fn count(&self) -> Taken {
        let mut all = Taken::default();
        for chunk in self.chunks.values() {
            for extent in chunk.extents.iter() {
                all.count += u64::from(extent.live());
                all.bytes += extent.live_bytes();
                all.body_bytes += chunk.body_bytes(extent, extent.first, extent.last());
            }
        }
        all
    }

    /// Live messages in `first..=last`, and the bytes of their bodies.
    pub fn count_in(&self, first: u64, last: u64) -> Taken {
        let mut all = Taken::default();
        if first > last {
            return all;
        }
        let from = self.chunks.range(..=first).next_back().map_or(first, |(key, _)| *key);
        for chunk in self.chunks.range(from..=last).map(|(_, chunk)| chunk) {
            for extent in &chunk.extents[chunk.touched(first, last)] {
                let (from, to) = (first.max(extent.first), last.min(extent.last()));
                all.count += extent.live_in(from, to);
                all.body_bytes += chunk.body_bytes(extent, from, to);
            }
        }
        all
    }

    /// The log index of each extent.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.values().flat_map(|c| c.extents.iter()).map(|e| e.index)
    }

    /// Keys of chunks that a checkpoint holds.
    pub fn stored(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().filter(|(_, c)| c.stored).map(|(key, _)| *key).chain(self.gone.iter().copied())
    }

    /// Last seq that lies in an extent.
    pub fn last(&self) -> u64 {
        self.chunks.values().next_back().and_then(|c| c.extents.last()).map_or(0, Extent::last)
    }

    /// What changed since the last call, shared: to be encoded later, by somebody who holds no lock.
    pub fn capture(&mut self) -> Captured {
        let mut captured = Captured { chunks: Vec::with_capacity(self.dirty.len()), gone: std::mem::take(&mut self.gone) };
        for key in std::mem::take(&mut self.dirty) {
            if let Some(chunk) = self.chunks.get_mut(&key) {
                chunk.dirty = false;
                chunk.stored = true;
                captured.chunks.push((key, chunk.extents.clone(), chunk.notes.clone()));
            }
        }
        captured
    }

    /// All of it, shared; what counts as changed stays so.
    pub fn capture_all(&self) -> Captured {
        let all = self.chunks.iter().map(|(key, chunk)| (*key, chunk.extents.clone(), chunk.notes.clone()));
        Captured { chunks: all.collect(), gone: Vec::new() }
    }

    /// Puts a chunk back. `stored`: it came from the checkpoint that the next one builds on.
    pub fn import(&mut self, key: u64, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let mut chunk = decode(value)?;
        chunk.stored = stored;
        if !stored {
            mark(&mut self.dirty, key, &mut chunk);
        }
        self.chunks.insert(key, chunk);
        Ok(())
    }

    /// Everything counts as changed and nothing as stored.
    pub fn forget_stored(&mut self) {
        self.gone.clear();
        for (key, chunk) in &mut self.chunks {
            chunk.stored = false;
            mark(&mut self.dirty, *key, chunk);
        }
    }

    /// Whether extents are in order and not empty (after an import).
    pub fn is_sound(&self) -> bool {
        let mut after = 0;
        self.chunks.iter().all(|(key, chunk)| {
            chunk.extents.first().is_some_and(|e| *key <= e.first)
                && chunk.extents.iter().all(|e| {
                    let fits = e.first > after && e.live() > 0;
                    after = e.last();
                    fits
                })
        })
    }

    /// Folds the extents into a state hash; how they are chunked does not matter.
    pub fn hash(&self, hasher: &mut StateHasher) {
        for extent in self.chunks.values().flat_map(|c| c.extents.iter()) {
            hasher.word(extent.first);
            hasher.word(extent.index);
            hasher.word(u64::from(extent.count) << 32 | u64::from(extent.position));
            hasher.word(u64::from(extent.bytes) << 32 | u64::from(extent.body_bytes));
            if let Some(settled) = &extent.settled {
                settled.bits.iter().for_each(|bits| hasher.word(*bits));
            }
        }
        self.chunks.values().filter_map(|c| c.notes.as_ref()).for_each(|notes| notes.hash(hasher));
    }

    fn remove(&mut self, key: u64) {
        self.dirty.remove(&key);
        if self.chunks.remove(&key).is_some_and(|chunk| chunk.stored) {
            self.gone.push(key);
        }
    }
}

fn mark(dirty: &mut BTreeSet<u64>, key: u64, chunk: &mut Chunk) {
    if !chunk.dirty {
        chunk.dirty = true;
        dirty.insert(key);
    }
}

fn settle_chunk(chunk: &mut Chunk, first: u64, last: u64, released: &mut Vec<u64>) -> Taken {
    let touched = chunk.touched(first, last);
    let mut taken = Taken::default();
    if touched.is_empty() {
        return taken;
    }
    taken.body_bytes = chunk.extents[touched.clone()].iter().map(|e| chunk.body_bytes(e, first, last)).sum();
    let extents = Arc::make_mut(&mut chunk.extents);
    let mut dead = touched.end..touched.start;
    for at in touched {
        let extent = &mut extents[at];
        let (count, bytes) = (extent.live(), extent.live_bytes());
        if first <= extent.first && extent.last() <= last {
            taken.count += u64::from(count);
            taken.bytes += bytes;
        } else {
            extent.settle(first, last);
            taken.count += u64::from(count - extent.live());
            taken.bytes += bytes - extent.live_bytes();
            if extent.live() > 0 {
                continue;
            }
        }
        // Only the first and the last touched extent can survive, so the dead ones are neighbours.
        dead = dead.start.min(at)..at + 1;
    }
    if dead.start < dead.end {
        let (first, last) = (extents[dead.start].first, extents[dead.end - 1].last());
        for extent in extents.drain(dead) {
            chunk.messages -= u64::from(extent.count);
            released.push(extent.index);
        }
        chunk.forget(first, last);
    }
    taken
}

/// chunk := count u32 | (first u64, index u64, count u32, position u32, bytes u32, body bytes u32, words u32, bits u64*)* | notes?
fn encode(extents: &[Extent], notes: Option<&Notes>) -> Vec<u8> {
    let mut out = Writer::with_capacity(4 + 36 * extents.len());
    out.u32(extents.len() as u32);
    for extent in extents {
        out.u64(extent.first);
        out.u64(extent.index);
        out.u32(extent.count);
        out.u32(extent.position);
        out.u32(extent.bytes);
        out.u32(extent.body_bytes);
        let bits = extent.settled.as_ref().map_or(&[][..], |s| &s.bits);
        out.u32(bits.len() as u32);
        bits.iter().for_each(|b| out.u64(*b));
    }
    if let Some(notes) = notes {
        notes.encode(&mut out);
    }
    out.finish()
}

fn decode(value: &[u8]) -> Result<Chunk, RestoreError> {
    let mut input = Reader::new(value);
    let (mut chunk, mut extents) = (Chunk::default(), Vec::new());
    for _ in 0..input.u32()? {
        let extent = decode_extent(&mut input)?;
        chunk.messages += u64::from(extent.count);
        extents.push(extent);
    }
    if !input.is_empty() {
        chunk.notes = Some(Arc::new(Notes::decode(&mut input)?));
    }
    input.end()?;
    chunk.extents = Arc::new(extents);
    Ok(chunk)
}

fn decode_extent(input: &mut Reader<'_>) -> Result<Extent, RestoreError> {
    let (first, index) = (input.u64()?, input.u64()?);
    let (count, position, bytes, body_bytes) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
    let words = input.u32()? as usize;
    if count == 0 || first.checked_add(u64::from(count)).is_none() {
        return Err(RestoreError::Malformed("extent without messages"));
    }
    let settled = match words {
        0 => None,
        n if n == (count as usize).div_ceil(64) => {
            let bits = (0..n).map(|_| input.u64()).collect::<Result<Vec<_>, _>>()?;
            let settled: u32 = bits.iter().map(|b| b.count_ones()).sum();
            let live = count.checked_sub(settled).ok_or(RestoreError::Malformed("more settled than there are"))?;
            Some(Box::new(Settled { live, bits }))
        }
        _ => return Err(RestoreError::Malformed("settled bits")),
    };
    Ok(Extent { first, index, count, position, bytes, body_bytes, settled })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_of_messages_goes_with_them() {
        let mut extents = Extents::default();
        let note = |seq: u64| Note { deadline_ms: 1000 + seq, body_bytes: (seq % 7) as u32 };
        for first in (1..=4000).step_by(100) {
            extents.push(Seq(first), first, 0, 9, note(first));
            (first + 1..first + 100).for_each(|seq| assert!(extents.extend(Seq(seq - 1), 9, note(seq))));
        }
        let steps = |extents: &Extents| extents.chunks.values().filter_map(|c| c.notes.as_ref()).map(|n| n.steps()).sum::<usize>();
        assert!(steps(&extents) > 7000, "{}", steps(&extents));
        let bytes = |from: u64| (from..=4000).map(|seq| seq % 7).sum::<u64>();
        assert_eq!(extents.count_in(1950, 4000).body_bytes, bytes(1950));
        let taken = extents.settle(1, 3899, &mut Vec::new());
        assert_eq!((taken.count, taken.body_bytes), (3899, bytes(1) - bytes(3900)));
        assert_eq!((extents.count().count, extents.count().body_bytes), (101, bytes(3900)));
        assert!(steps(&extents) <= 402, "two extents are left: {}", steps(&extents));
        assert_eq!(extents.locate_run(Seq(1)).unwrap().deadline_ms, 1000 + 3900);
        extents.settle(1, 4000, &mut Vec::new());
        assert_eq!(steps(&extents), 0);
    }
}
