//! A stream's replicated state in a data shard: where its chunks lie in the log, what its publishers and readers are remembered by, what
//! has to go. Chunks come at the end and go from the front, in whole segments; clients settle nothing. Called by `streams` (changes) and
//! by readers. Knows nothing of bytes.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::shard::RestoreError;
use crate::model::Offset;
use crate::model::entry::AppendOp;
use crate::model::limits::{STREAM_PUBLISHERS, STREAM_READERS};
use crate::model::stream::{CHUNK_HEAD, OffsetSpec, SEGMENT_CHUNKS, StreamMemory, StreamSettings, StreamState};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Chunks of a block: what a change rewrites in a checkpoint at most (7 KiB).
const BLOCK_CHUNKS: usize = 256;

/// A chunk in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocatedChunk {
    /// Offset of its first record.
    pub first: Offset,
    /// Log index of its entry.
    pub index: u64,
    /// Position of its append in the entry.
    pub position: u32,
    /// Entries of the append that were known already: the chunk begins behind them.
    pub skip: u16,
    /// Its records.
    pub records: u32,
    /// Bytes as it is served.
    pub bytes: u32,
    /// When it came, ms since the epoch.
    pub time_ms: u64,
}

/// The same, told from where its block begins: 28 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    first: u32,
    index: u32,
    time_ms: u32,
    position: u32,
    bytes: u32,
    records: u32,
    skip: u16,
}

/// Neighbouring chunks of one segment.
#[derive(Clone, Debug)]
struct Block {
    first: u64,
    index: u64,
    time_ms: u64,
    /// Its first chunk begins a segment.
    begins: bool,
    /// Shared with a capture that is not encoded yet; copied when it changes before that.
    rows: Arc<Vec<Row>>,
    /// A checkpoint holds it, so that its end must be told.
    stored: bool,
}

impl Block {
    fn at(chunk: &LocatedChunk, begins: bool) -> Block {
        let (first, index, time_ms) = (chunk.first.0, chunk.index, chunk.time_ms);
        Block { first, index, time_ms, begins, rows: Arc::default(), stored: false }
    }

    /// False: it is full, or the chunk is too far from its beginning.
    fn push(&mut self, chunk: &LocatedChunk) -> bool {
        let delta = |now: u64, then: u64| u32::try_from(now.saturating_sub(then)).ok();
        let deltas = (delta(chunk.first.0, self.first), delta(chunk.index, self.index), delta(chunk.time_ms, self.time_ms));
        let (Some(first), Some(index), Some(time_ms)) = deltas else { return false };
        if self.rows.len() >= BLOCK_CHUNKS {
            return false;
        }
        let LocatedChunk { position, bytes, records, skip, .. } = *chunk;
        Arc::make_mut(&mut self.rows).push(Row { first, index, time_ms, position, bytes, records, skip });
        true
    }

    fn chunk(&self, row: &Row) -> LocatedChunk {
        LocatedChunk {
            first: Offset(self.first + u64::from(row.first)),
            index: self.index + u64::from(row.index),
            position: row.position,
            skip: row.skip,
            records: row.records,
            bytes: row.bytes,
            time_ms: self.time_ms + u64::from(row.time_ms),
        }
    }

    fn chunks(&self) -> impl DoubleEndedIterator<Item = LocatedChunk> + '_ {
        self.rows.iter().map(|row| self.chunk(row))
    }

    fn last(&self) -> Option<LocatedChunk> {
        self.rows.last().map(|row| self.chunk(row))
    }

    /// block := begins u8 | index u64 | time_ms u64 | n u32
    ///        | (first u32, index u32, time u32, position u32, bytes u32, records u32, skip u16)*, the first three from the block's on
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(21 + 26 * self.rows.len());
        out.u8(self.begins.into());
        out.u64(self.index);
        out.u64(self.time_ms);
        out.u32(self.rows.len() as u32);
        for row in self.rows.iter() {
            [row.first, row.index, row.time_ms, row.position, row.bytes, row.records].into_iter().for_each(|n| out.u32(n));
            out.u16(row.skip);
        }
        out.finish()
    }

    fn decode(first: u64, value: &[u8], stored: bool) -> Result<Block, RestoreError> {
        let mut input = Reader::new(value);
        let (begins, index, time_ms) = (input.u8()? != 0, input.u64()?, input.u64()?);
        let mut rows = Vec::new();
        for _ in 0..input.u32()? {
            let (first, index, time_ms) = (input.u32()?, input.u32()?, input.u32()?);
            let (position, bytes, records, skip) = (input.u32()?, input.u32()?, input.u32()?, input.u16()?);
            rows.push(Row { first, index, time_ms, position, bytes, records, skip });
        }
        input.end()?;
        if rows.is_empty() {
            return Err(RestoreError::Malformed("block without chunks"));
        }
        Ok(Block { first, index, time_ms, begins, rows: Arc::new(rows), stored })
    }
}

/// What goes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Segment {
    first: u64,
    bytes: u64,
    chunks: u32,
    last_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Publisher {
    id: u64,
    /// Offset of its last chunk.
    chunk: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    offset: u64,
    /// Ascends with every store.
    turn: u64,
}

/// A stream.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    settings: StreamSettings,
    tail: u64,
    blocks: VecDeque<Block>,
    /// Follows from the blocks.
    segments: VecDeque<Segment>,
    bytes: u64,
    publishers: BTreeMap<Box<str>, Publisher>,
    readers: BTreeMap<Box<str>, Stored>,
    turn: u64,
    /// Changed since the last checkpoint.
    readers_changed: bool,
    /// First offsets of blocks that are other than in the last checkpoint, or not there any more.
    changed: BTreeSet<u64>,
    gone: Vec<u64>,
    /// A checkpoint holds its row.
    pub(super) stored: bool,
    /// The entry whose effects name this stream already; not state.
    pub(super) appended_in: u64,
}

/// A stream, or what changed of it, copied and not encoded.
#[derive(Clone, Debug)]
pub(super) struct CapturedStream {
    row: Vec<u8>,
    readers: Option<Vec<u8>>,
    blocks: Vec<Block>,
    gone: Vec<u64>,
}

impl Stream {
    /// An empty one.
    pub(super) fn new(settings: StreamSettings) -> Stream {
        Stream { settings, ..Stream::default() }
    }

    /// What it was declared with.
    pub fn settings(&self) -> &StreamSettings {
        &self.settings
    }

    /// Offset of the first record that is there; where none is, of the next one.
    pub fn first(&self) -> Offset {
        Offset(self.blocks.front().map_or(self.tail, |block| block.first))
    }

    /// Offset that the next record gets.
    pub fn next(&self) -> Offset {
        Offset(self.tail)
    }

    /// Bytes as they are served.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How far it is, and what it remembers of a publisher and a reader.
    pub fn state(&self, publisher: Option<&str>, reader: Option<&str>) -> StreamState {
        StreamState {
            first: self.first(),
            next: self.next(),
            last_chunk: self.last_chunk().map(|chunk| chunk.first),
            first_time_ms: self.blocks.front().map_or(0, |block| block.time_ms),
            bytes: self.bytes,
            publishing_id: publisher.and_then(|name| self.publishers.get(name)).map(|publisher| publisher.id),
            stored: reader.and_then(|name| self.readers.get(name)).map(|stored| Offset(stored.offset)),
        }
    }

    /// All that it remembers of its clients.
    pub fn memory(&self) -> StreamMemory {
        let readers = self.readers.iter().map(|(name, stored)| (name.to_string(), Offset(stored.offset)));
        let publishers = self.publishers.iter().map(|(name, publisher)| (name.to_string(), Offset(publisher.chunk), publisher.id));
        StreamMemory { readers: readers.collect(), publishers: publishers.collect() }
    }

    fn last_chunk(&self) -> Option<LocatedChunk> {
        self.blocks.back().and_then(Block::last)
    }

    /// The first offset of the chunk that a reader begins with.
    pub fn find(&self, spec: OffsetSpec) -> Offset {
        match spec {
            OffsetSpec::First => self.first(),
            OffsetSpec::Last => self.last_chunk().map_or(self.next(), |chunk| chunk.first),
            OffsetSpec::Next => self.next(),
            OffsetSpec::Offset(offset) => self.locate_from(offset).next().map_or(self.next(), |chunk| chunk.first),
            OffsetSpec::Timestamp(ms) => {
                let at = self.blocks.partition_point(|block| block.last().is_some_and(|chunk| chunk.time_ms < ms));
                let found = self.blocks.get(at).and_then(|block| block.chunks().find(|chunk| chunk.time_ms >= ms));
                found.map_or(self.next(), |chunk| chunk.first)
            }
        }
    }

    /// Appends up to `max` chunks, from the one that holds `from` on; from the first one when that is gone.
    pub fn locate(&self, from: Offset, max: usize, out: &mut Vec<LocatedChunk>) {
        out.extend(self.locate_from(from).take(max));
    }

    fn locate_from(&self, from: Offset) -> impl Iterator<Item = LocatedChunk> + '_ {
        let at = self.blocks.partition_point(|block| block.first <= from.0).saturating_sub(1);
        let ahead = move |block: &Block| {
            let delta = from.0.saturating_sub(block.first);
            block.rows.partition_point(|row| u64::from(row.first) + u64::from(row.records) <= delta)
        };
        self.blocks.range(at..).flat_map(move |block| block.rows[ahead(block)..].iter().map(|row| block.chunk(row)))
    }

    /// Puts a chunk at the end, but for what its publisher is known to have published. False: that was all of it. Log indices of chunks
    /// that go go to `released`.
    pub(super) fn append(&mut self, index: u64, op: &AppendOp, time_ms: u64, released: &mut Vec<u64>) -> bool {
        let skip = self.publish(op);
        if skip == op.entries {
            return false;
        }
        let skipped = op.skip(skip);
        let bytes = CHUNK_HEAD + op.filter.len() + op.data.len() - skipped.bytes;
        let chunk = LocatedChunk {
            first: Offset(self.tail),
            index,
            position: op.position as u32,
            skip,
            records: op.records - skipped.records,
            bytes: bytes as u32,
            time_ms,
        };
        let full = |s: &Segment| s.bytes >= self.settings.segment_bytes || s.chunks >= SEGMENT_CHUNKS;
        let begins = self.segments.back().is_none_or(full);
        if begins {
            self.segments.push_back(Segment { first: self.tail, last_ms: time_ms, ..Segment::default() });
        }
        self.retain(time_ms, released);
        self.put(&chunk, begins);
        self.tail += u64::from(chunk.records);
        true
    }

    /// What of a chunk its publisher has published before: that many entries at its beginning.
    fn publish(&mut self, op: &AppendOp) -> u16 {
        let Some((name, id)) = op.publisher.as_ref().zip(op.last_id()) else { return 0 };
        // What is not UTF-8 is let into no log.
        let name = std::str::from_utf8(name).unwrap_or_default();
        if let Some(known) = self.publishers.get_mut(name) {
            let skip = op.known(known.id);
            if skip < op.entries {
                *known = Publisher { id, chunk: self.tail };
            }
            return skip;
        }
        if self.publishers.len() >= STREAM_PUBLISHERS
            && let Some(silent) = self.publishers.iter().min_by_key(|(_, p)| p.chunk).map(|(name, _)| name.clone())
        {
            self.publishers.remove(&silent);
        }
        self.publishers.insert(name.into(), Publisher { id, chunk: self.tail });
        0
    }

    fn put(&mut self, chunk: &LocatedChunk, begins: bool) {
        self.bytes += u64::from(chunk.bytes);
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes += u64::from(chunk.bytes);
            segment.chunks += 1;
            segment.last_ms = chunk.time_ms;
        }
        if begins || !self.blocks.back_mut().is_some_and(|block| block.push(chunk)) {
            let mut block = Block::at(chunk, begins);
            block.push(chunk);
            self.blocks.push_back(block);
        }
        self.changed.extend(self.blocks.back().map(|block| block.first));
    }

    /// Segments that are too many or too old go, but never the last one.
    fn retain(&mut self, now_ms: u64, released: &mut Vec<u64>) {
        self.retain_aged(now_ms, released);
        while self.segments.len() > 1 && self.settings.max_length_bytes.is_some_and(|max| self.bytes > max) {
            self.drop_oldest(released);
        }
    }

    /// Segments that are too old go, but never the last one. True when any went.
    pub(super) fn retain_aged(&mut self, now_ms: u64, released: &mut Vec<u64>) -> bool {
        let before = self.segments.len();
        while self.ends_ms().is_some_and(|ends_ms| ends_ms < now_ms) {
            self.drop_oldest(released);
        }
        self.segments.len() < before
    }

    /// The last time at which its oldest segment is not too old, ms since the epoch; `None`: age takes none.
    pub(super) fn ends_ms(&self) -> Option<u64> {
        let oldest = self.segments.front().filter(|_| self.segments.len() > 1)?;
        self.settings.max_age_ms.map(|age| oldest.last_ms.saturating_add(age))
    }

    fn drop_oldest(&mut self, released: &mut Vec<u64>) {
        let Some(oldest) = self.segments.pop_front() else { return };
        self.bytes -= oldest.bytes;
        let end = self.segments.front().map_or(self.tail, |segment| segment.first);
        while self.blocks.front().is_some_and(|block| block.first < end)
            && let Some(block) = self.blocks.pop_front()
        {
            released.extend(block.chunks().map(|chunk| chunk.index));
            self.changed.remove(&block.first);
            if block.stored {
                self.gone.push(block.first);
            }
        }
    }

    /// Other settings. True when they are others than before.
    pub(super) fn configure(&mut self, settings: StreamSettings, now_ms: u64, released: &mut Vec<u64>) -> bool {
        let changed = std::mem::replace(&mut self.settings, settings) != settings;
        if changed {
            self.retain(now_ms, released);
        }
        changed
    }

    /// A reader is this far.
    pub(super) fn store(&mut self, reader: &str, offset: Offset) {
        self.turn += 1;
        self.readers_changed = true;
        let stored = Stored { offset: offset.0, turn: self.turn };
        if let Some(known) = self.readers.get_mut(reader) {
            *known = stored;
            return;
        }
        if self.readers.len() >= STREAM_READERS
            && let Some(silent) = self.readers.iter().min_by_key(|(_, stored)| stored.turn).map(|(name, _)| name.clone())
        {
            self.readers.remove(&silent);
        }
        self.readers.insert(reader.into(), stored);
    }

    /// The log index of each chunk.
    pub(super) fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().flat_map(|block| block.chunks().map(|chunk| chunk.index))
    }

    /// First offsets of the blocks that a checkpoint holds.
    pub(super) fn stored_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().filter(|block| block.stored).map(|block| block.first).chain(self.gone.iter().copied())
    }

    /// What changed since the last call.
    pub(super) fn capture(&mut self) -> CapturedStream {
        let changed = std::mem::take(&mut self.changed);
        let mut blocks = Vec::with_capacity(changed.len());
        for first in changed {
            if let Ok(at) = self.blocks.binary_search_by_key(&first, |block| block.first) {
                self.blocks[at].stored = true;
                blocks.push(self.blocks[at].clone());
            }
        }
        self.stored = true;
        let readers = std::mem::take(&mut self.readers_changed).then(|| self.encode_readers());
        CapturedStream { row: self.encode_row(), readers, blocks, gone: std::mem::take(&mut self.gone) }
    }

    /// All of it; what counts as changed stays so.
    pub(super) fn capture_all(&self) -> CapturedStream {
        let (row, readers) = (self.encode_row(), Some(self.encode_readers()));
        CapturedStream { row, readers, blocks: self.blocks.iter().cloned().collect(), gone: Vec::new() }
    }

    /// Everything counts as changed and nothing as stored.
    pub(super) fn forget_stored(&mut self) {
        self.stored = false;
        self.readers_changed = true;
        self.gone.clear();
        self.blocks.iter_mut().for_each(|block| block.stored = false);
        self.changed = self.blocks.iter().map(|block| block.first).collect();
    }

    /// row := tail u64 | turn u64 | len u32 | settings (MessagePack map) | n u16 | (len u32, publisher, id u64, chunk u64)*
    fn encode_row(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.tail);
        out.u64(self.turn);
        out.bytes(&rmp_serde::to_vec_named(&self.settings).expect("plain data, writing to memory cannot fail"));
        out.u16(self.publishers.len() as u16);
        for (name, publisher) in &self.publishers {
            out.bytes(name.as_bytes());
            out.u64(publisher.id);
            out.u64(publisher.chunk);
        }
        out.finish()
    }

    pub(super) fn decode_row(&mut self, value: &[u8]) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        self.tail = input.u64()?;
        self.turn = input.u64()?;
        self.settings = rmp_serde::from_slice(input.bytes()?).map_err(|_| RestoreError::Malformed("settings of a stream"))?;
        for _ in 0..input.u16()? {
            let name = name(input.bytes()?)?;
            self.publishers.insert(name, Publisher { id: input.u64()?, chunk: input.u64()? });
        }
        input.end()
    }

    /// readers := n u32 | (len u32, reader, offset u64, turn u64)*
    fn encode_readers(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(self.readers.len() as u32);
        for (name, stored) in &self.readers {
            out.bytes(name.as_bytes());
            out.u64(stored.offset);
            out.u64(stored.turn);
        }
        out.finish()
    }

    pub(super) fn decode_readers(&mut self, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        for _ in 0..input.u32()? {
            let name = name(input.bytes()?)?;
            self.readers.insert(name, Stored { offset: input.u64()?, turn: input.u64()? });
        }
        self.readers_changed = !stored;
        input.end()
    }

    pub(super) fn import_block(&mut self, first: u64, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let block = Block::decode(first, value, stored)?;
        if !stored {
            self.changed.insert(first);
        }
        let at = self.blocks.partition_point(|block| block.first < first);
        self.blocks.insert(at, block);
        Ok(())
    }

    /// After all rows and blocks are in: checks that they fit and counts what is not stored.
    pub(super) fn complete(&mut self) -> Result<(), RestoreError> {
        let mut expected = None;
        for block in &self.blocks {
            if block.begins || self.segments.is_empty() {
                self.segments.push_back(Segment { first: block.first, ..Segment::default() });
            }
            for chunk in block.chunks() {
                if expected.is_some_and(|offset| offset != chunk.first.0) {
                    return Err(RestoreError::Malformed("chunks out of order"));
                }
                expected = Some(chunk.first.0 + u64::from(chunk.records));
                self.bytes += u64::from(chunk.bytes);
                if let Some(segment) = self.segments.back_mut() {
                    segment.bytes += u64::from(chunk.bytes);
                    segment.chunks += 1;
                    segment.last_ms = chunk.time_ms;
                }
            }
        }
        match expected.is_none_or(|offset| offset == self.tail) {
            true => Ok(()),
            false => Err(RestoreError::Malformed("chunks do not reach the tail")),
        }
    }

    pub(super) fn hash(&self, hasher: &mut StateHasher) {
        hasher.bytes(&self.encode_row());
        hasher.bytes(&self.encode_readers());
        for (first, segment) in self.segments.iter().map(|segment| (segment.first, segment)) {
            [first, segment.bytes, u64::from(segment.chunks), segment.last_ms].into_iter().for_each(|word| hasher.word(word));
        }
        for chunk in self.blocks.iter().flat_map(Block::chunks) {
            let small = [(chunk.position, chunk.bytes), (chunk.records, chunk.skip.into())];
            [chunk.first.0, chunk.index, chunk.time_ms].into_iter().for_each(|word| hasher.word(word));
            small.into_iter().for_each(|(a, b)| hasher.word(u64::from(a) << 32 | u64::from(b)));
        }
    }
}

impl CapturedStream {
    /// Blocks copied.
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Its chunks, in their order.
    pub(super) fn chunks(&self) -> impl Iterator<Item = LocatedChunk> + '_ {
        self.blocks.iter().flat_map(Block::chunks)
    }

    /// The log index of each chunk.
    pub(super) fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks().map(|chunk| chunk.index)
    }

    /// The rows; those of readers when they changed.
    pub(super) fn rows(&mut self) -> (Vec<u8>, Option<Vec<u8>>) {
        (std::mem::take(&mut self.row), self.readers.take())
    }

    /// Hands over each changed block, by its first offset, and the first offsets of those that are gone.
    pub(super) fn encode(&self, mut put: impl FnMut(u64, Vec<u8>), delete: impl FnMut(u64)) {
        self.blocks.iter().for_each(|block| put(block.first, block.encode()));
        self.gone.iter().copied().for_each(delete);
    }
}

fn name(bytes: &[u8]) -> Result<Box<str>, RestoreError> {
    std::str::from_utf8(bytes).map(Box::from).map_err(|_| RestoreError::Malformed("name that is not UTF-8"))
}
