//! Copying a data shard's state out while entries go on being applied: a capture is begun, continued a slice at a time with the lock given
//! back in between, and encoded when nothing is locked. It shows the state of its beginning: a queue that is not copied yet when an entry
//! changes it is copied first. Called by `consensus` through `checkpoint` and for states that go to other nodes.

use super::checkpoint::{DEAD, DEAD_META, Delta, KNOWN, MAGIC, META, PUBLISHERS, QUEUE, SESSION, VERSION, chunk_key, key, tx_key};
use super::codec::Writer;
use super::extents::{Captured, Extents};
use super::queue::Row;
use super::shard::DataMachine;
use super::stream::{CapturedStream, LocatedChunk};
use crate::model::{LogId, QueueId};
use std::collections::BTreeSet;

/// A slice ends at so many copied queues and chunks: some 100 microseconds.
const SLICE: usize = 1024;

/// Names a capture of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureId(u64);

/// How far a capture is.
#[derive(Debug)]
pub enum Progress {
    /// Not everything is copied.
    More,
    /// All is copied; the capture is over.
    Done(Box<Image>),
    /// The machine does not know it: another state took its place.
    Unknown,
}

/// One under way.
#[derive(Clone, Debug)]
pub(super) struct Capture {
    id: CaptureId,
    /// Takes all there is and leaves the marks of what changed alone.
    whole: bool,
    pending: BTreeSet<QueueId>,
    image: Image,
}

/// A state, or what changed of it, copied and not encoded. Chunks are shared with the machine until it changes them.
#[derive(Clone, Debug, Default)]
pub struct Image {
    applied: LogId,
    full: bool,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    deletes: Vec<Vec<u8>>,
    /// Each with its priorities.
    queues: Vec<(QueueId, Row, Vec<Captured>)>,
    streams: Vec<(QueueId, CapturedStream)>,
    /// Indices of entries with dead letters and undecided transactions; of a whole state.
    letters: Vec<u64>,
}

impl DataMachine {
    /// Begins to copy what changed since the last one; everything after `new`, `from_snapshot` and `forget_checkpoint`.
    pub fn begin_checkpoint(&mut self) -> CaptureId {
        let full = std::mem::take(&mut self.full);
        let (mut rows, mut deletes) = (vec![(vec![META], self.encode_meta())], std::mem::take(&mut self.gone));
        self.sessions.take_changes(|id, row| rows.push((key(SESSION, &[id.0]), row)), |id| deletes.push(key(SESSION, &[id.0])));
        if !self.exits.dead.is_untouched() {
            rows.push((vec![DEAD_META], self.exits.dead.encode_meta()));
            self.exits.dead.take_changes(|n, row| rows.push((key(DEAD, &[n]), row)), |n| deletes.push(key(DEAD, &[n])));
        }
        self.transactions.take_changes(|tx, row| rows.push((tx_key(tx), row)), |tx| deletes.push(tx_key(tx)));
        let pending = std::mem::take(&mut self.dirty);
        for id in &pending {
            if let Some(queue) = self.queues.get_mut(id).filter(|queue| queue.dedup().is_some()) {
                let put = |piece, value| rows.push((key(KNOWN, &[id.0, piece]), value));
                let mut publishers = None;
                queue.dedup_mut().take_changes(put, |piece| deletes.push(key(KNOWN, &[id.0, piece])), |value| publishers = Some(value));
                rows.extend(publishers.map(|value| (key(PUBLISHERS, &[id.0]), value)));
            }
        }
        let (queues, streams, letters) = (Vec::new(), Vec::new(), Vec::new());
        self.begin(false, pending, Image { applied: self.applied, full, rows, deletes, queues, streams, letters })
    }

    /// Begins to copy all of the state, for another node.
    pub fn begin_snapshot(&mut self) -> CaptureId {
        let mut rows = vec![(vec![META], self.encode_meta())];
        self.sessions.export(|id, row| rows.push((key(SESSION, &[id.0]), row)));
        if !self.exits.dead.is_untouched() {
            rows.push((vec![DEAD_META], self.exits.dead.encode_meta()));
            self.exits.dead.export(|n, row| rows.push((key(DEAD, &[n]), row)));
        }
        self.transactions.export(|tx, row| rows.push((tx_key(tx), row)));
        for (id, dedup) in self.queues().filter_map(|(id, queue)| Some((id, queue.dedup()?))) {
            let mut publishers = None;
            dedup.export(|piece, value| rows.push((key(KNOWN, &[id.0, piece]), value)), |value| publishers = Some(value));
            rows.extend(publishers.map(|value| (key(PUBLISHERS, &[id.0]), value)));
        }
        let pending = self.queues.keys().chain(self.streams.keys()).copied().collect();
        let letters = self.exits.dead.indices().chain(self.transactions.indices()).collect();
        let (queues, streams, deletes) = (Vec::new(), Vec::new(), Vec::new());
        self.begin(true, pending, Image { applied: self.applied, full: true, rows, deletes, queues, streams, letters })
    }

    /// Begins to copy where all messages lie, and nothing else.
    pub(super) fn begin_whole(&mut self) -> CaptureId {
        let pending = self.queues.keys().chain(self.streams.keys()).copied().collect();
        self.begin(true, pending, Image { applied: self.applied, ..Image::default() })
    }

    fn begin(&mut self, whole: bool, pending: BTreeSet<QueueId>, image: Image) -> CaptureId {
        self.last_capture += 1;
        let id = CaptureId(self.last_capture);
        self.captures.push(Capture { id, whole, pending, image });
        id
    }

    /// Copies some more. Between two calls entries may be applied.
    pub fn capture(&mut self, id: CaptureId) -> Progress {
        let Some(at) = self.captures.iter().position(|c| c.id == id) else { return Progress::Unknown };
        let mut copied = 0;
        while copied < SLICE {
            let Some(queue) = self.captures[at].pending.pop_first() else {
                return Progress::Done(Box::new(self.captures.swap_remove(at).image));
            };
            copied += 1 + self.copy(at, queue);
        }
        Progress::More
    }

    /// All that is left of a capture.
    pub(super) fn capture_rest(&mut self, id: CaptureId) -> Option<Image> {
        loop {
            match self.capture(id) {
                Progress::More => {}
                Progress::Done(image) => return Some(*image),
                Progress::Unknown => return None,
            }
        }
    }

    /// Call before a queue is changed or dropped: captures that have not copied it yet do so now.
    pub(super) fn keep_captured(&mut self, queue: QueueId) {
        for at in 0..self.captures.len() {
            if self.captures[at].pending.remove(&queue) {
                self.copy(at, queue);
            }
        }
    }

    /// Returns how many chunks it copied.
    fn copy(&mut self, at: usize, id: QueueId) -> usize {
        if let Some(stream) = self.copy_stream(id, self.captures[at].whole) {
            let copied = stream.blocks();
            self.captures[at].image.streams.push((id, stream));
            return copied;
        }
        let Some(queue) = self.queues.get_mut(&id) else { return 0 };
        let capture = &mut self.captures[at];
        let chunks: Vec<Captured> = if capture.whole {
            queue.extents().map(Extents::capture_all).collect()
        } else {
            queue.stored = true;
            queue.extents_mut().map(Extents::capture).collect()
        };
        let copied = chunks.iter().map(Captured::chunks).sum();
        capture.image.queues.push((id, queue.row(), chunks));
        copied
    }
}

impl Image {
    /// The state after this entry.
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// What was copied of queues, a row for each priority.
    pub(super) fn extents(&self) -> impl Iterator<Item = (QueueId, &Captured)> {
        self.queues.iter().flat_map(|(id, _, levels)| levels.iter().map(|level| (*id, level)))
    }

    /// Where the chunks of streams lie.
    pub(super) fn stream_chunks(&self) -> impl Iterator<Item = (QueueId, LocatedChunk)> {
        self.streams.iter().flat_map(|(id, stream)| stream.chunks().map(|chunk| (*id, chunk)))
    }

    /// Indices of the entries with live messages, ascending; of a whole state.
    pub fn live_entries(&self) -> Vec<u64> {
        let mut live: Vec<u64> = self.queues.iter().flat_map(|(_, _, levels)| levels.iter().flat_map(Captured::indices)).collect();
        live.extend(self.streams.iter().flat_map(|(_, stream)| stream.indices()));
        live.extend(&self.letters);
        live.sort_unstable();
        live.dedup();
        live
    }

    /// As keys and values for the store.
    pub fn into_delta(self) -> Delta {
        let mut delta = Delta { applied: self.applied, full: self.full, puts: self.rows, deletes: self.deletes };
        let (puts, deletes) = (&mut delta.puts, &mut delta.deletes);
        for (id, row, levels) in self.queues {
            puts.push((key(QUEUE, &[id.0]), row.encode()));
            for (level, chunks) in levels.iter().enumerate() {
                let key = |chunk| chunk_key(id, level, chunk);
                chunks.encode(|chunk, value| puts.push((key(chunk), value)), |chunk| deletes.push(key(chunk)));
            }
        }
        Image::encode_streams(self.streams, puts, deletes);
        delta
    }

    /// As bytes for another node: the same keys and values in one piece, queues in their order.
    pub fn into_snapshot(mut self) -> Vec<u8> {
        self.queues.sort_unstable_by_key(|(id, _, _)| *id);
        self.streams.sort_unstable_by_key(|(id, _)| *id);
        let pairs = self.into_delta().puts;
        let mut out = Writer::with_capacity(32 + pairs.iter().map(|(k, v)| 8 + k.len() + v.len()).sum::<usize>());
        MAGIC.iter().for_each(|b| out.u8(*b));
        out.u8(VERSION);
        out.u64(pairs.len() as u64);
        for (key, value) in &pairs {
            out.bytes(key);
            out.bytes(value);
        }
        let mut bytes = out.finish();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }
}
