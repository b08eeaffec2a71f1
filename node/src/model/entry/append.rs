//! Chunks of streams and stored offsets in a log: the data section of a chunk lies there as it is served, so that delivering it is a slice.
//! Written by `edge`, applied by `machine`, read back by readers.

use super::FRAME_HEAD;
use super::ops::{OP_APPEND, OP_STORE, Ops};
use crate::model::stream::{Filter, PublishedEntry, entry_size};
use crate::model::{Offset, QueueId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::ops::Range;
use std::sync::Arc;

/// queue u64 | flags u8 | entries u16 | records u32 | crc u32 | data length u32
const HEAD: usize = 23;
/// Length of a run of publishing ids.
const RUN: usize = 10;
/// Flag of an append: a publisher and the publishing ids follow the data.
const HAS_PUBLISHER: u8 = 1;
/// Flag of an append: a filter follows.
const HAS_FILTER: u8 = 2;
/// Entries of a chunk at most: its header counts them in 16 bits.
const ENTRIES: u16 = u16::MAX;

/// A chunk of a stream that is being filled, written as the operation it becomes: entries are copied once, from where they came.
///
/// append := head | data | (publisher u8 length, bytes, n u16, (first id u64, count u16)*)? | (filter u8 length, bytes)?
#[derive(Debug)]
pub struct ChunkBuilder {
    stream: QueueId,
    publisher: Option<Arc<str>>,
    /// Runs of consecutive publishing ids; of a publisher with a name.
    ids: Vec<(u64, u16)>,
    entries: u16,
    records: u32,
    filter: Filter,
    buffer: BytesMut,
}

impl ChunkBuilder {
    /// An empty one. `filter_bytes`: the size of its filter.
    pub fn new(stream: QueueId, publisher: Option<Arc<str>>, filter_bytes: u8) -> ChunkBuilder {
        let buffer = BytesMut::zeroed(FRAME_HEAD + HEAD);
        ChunkBuilder { stream, publisher, ids: Vec::new(), entries: 0, records: 0, filter: Filter::new(filter_bytes), buffer }
    }

    /// Room for entries of so many bytes and all that comes behind them, so that they are not moved.
    pub fn reserve(&mut self, bytes: usize) {
        let publisher = self.publisher.as_ref().map_or(0, |name| 3 + name.len() + RUN);
        self.buffer.reserve(bytes + publisher + 1 + usize::from(u8::MAX));
    }

    /// Where its bytes are.
    #[cfg(test)]
    pub fn address(&self) -> *const u8 {
        self.buffer.as_ptr()
    }

    /// Bytes that it has room for.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Of this stream and publisher.
    pub fn is_of(&self, stream: QueueId, publisher: Option<&str>) -> bool {
        self.stream == stream && self.publisher.as_deref() == publisher
    }

    /// Whether the entry may join: there is room, and its id is higher than those before it, so that duplicates are always the first ones
    /// of a chunk.
    pub fn fits(&self, entry: &PublishedEntry<'_>) -> bool {
        let next = self.ids.last().map_or(Some(0), |(first, count)| first.checked_add(u64::from(*count)));
        let follows = next.is_some_and(|next| entry.id >= next);
        self.entries < ENTRIES && follows && self.records.checked_add(entry.records).is_some()
    }

    /// One more entry, which fits.
    pub fn push(&mut self, entry: &PublishedEntry<'_>) {
        self.buffer.extend_from_slice(entry.entry);
        self.entries += 1;
        self.records += entry.records;
        self.filter.insert(entry.filter);
        if self.publisher.is_none() {
            return;
        }
        match self.ids.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == entry.id => *count += 1,
            _ => self.ids.push((entry.id, 1)),
        }
    }

    /// Entries so far.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Bytes of the operation so far, nearly.
    pub fn len(&self) -> usize {
        self.buffer.len() + RUN * self.ids.len()
    }

    /// No entry yet.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The operation.
    pub fn finish(mut self) -> Bytes {
        let data = self.buffer.len() - FRAME_HEAD - HEAD;
        let crc = crc32fast::hash(&self.buffer[FRAME_HEAD + HEAD..]);
        let mut flags = 0;
        if let Some(publisher) = &self.publisher {
            flags |= HAS_PUBLISHER;
            self.buffer.put_u8(publisher.len() as u8);
            self.buffer.put_slice(publisher.as_bytes());
            self.buffer.put_u16_le(self.ids.len() as u16);
            for (first, count) in &self.ids {
                self.buffer.put_u64_le(*first);
                self.buffer.put_u16_le(*count);
            }
        }
        if !self.filter.bytes().is_empty() {
            flags |= HAS_FILTER;
            self.buffer.put_u8(self.filter.bytes().len() as u8);
            self.buffer.put_slice(self.filter.bytes());
        }
        let len = self.buffer.len() - FRAME_HEAD;
        let mut head = &mut self.buffer[..FRAME_HEAD + HEAD];
        head.put_u8(OP_APPEND);
        head.put_u32_le(len as u32);
        head.put_u64_le(self.stream.0);
        head.put_u8(flags);
        head.put_u16_le(self.entries);
        head.put_u32_le(self.records);
        head.put_u32_le(crc);
        head.put_u32_le(data as u32);
        self.buffer.freeze()
    }
}

impl Ops {
    /// An append that a [`ChunkBuilder`] made. Returns its ordinal.
    pub fn append_chunk(&mut self, chunk: &[u8]) -> u32 {
        self.copy(chunk)
    }

    /// A reader of a stream is this far. No ordinal: nobody is told.
    pub fn store(&mut self, stream: QueueId, reader: &str, offset: Offset) {
        self.frame(OP_STORE, 16 + reader.len());
        self.buffer.put_u64_le(stream.0);
        self.buffer.put_u64_le(offset.0);
        self.buffer.put_slice(reader.as_bytes());
    }
}

/// A chunk of a stream as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct AppendOp {
    /// Position of the operation in the entry.
    pub position: usize,
    /// Whose.
    pub stream: QueueId,
    /// Entries in `data`.
    pub entries: u16,
    /// Records in `data`.
    pub records: u32,
    /// Of `data`.
    pub crc: u32,
    /// Who published it.
    pub publisher: Option<Bytes>,
    ids: Bytes,
    /// Its filter; empty: none.
    pub filter: Bytes,
    /// The data section.
    pub data: Bytes,
}

/// What is left out at the beginning of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Entries.
    pub entries: u16,
    /// Their records.
    pub records: u32,
    /// Their bytes.
    pub bytes: usize,
}

impl AppendOp {
    /// The highest publishing id; of a publisher with a name.
    pub fn last_id(&self) -> Option<u64> {
        runs(&self.ids).last().map(|(first, count)| first + (u64::from(count) - 1))
    }

    /// How many entries have publishing ids up to `last`: they are the first ones.
    pub fn known(&self, last: u64) -> u16 {
        let known = |(first, count): (u64, u16)| last.checked_sub(first).map_or(0, |more| more.saturating_add(1).min(count.into()) as u16);
        runs(&self.ids).map(known).sum()
    }

    /// What the first `entries` entries take.
    pub fn skip(&self, entries: u16) -> Skipped {
        let mut skipped = Skipped::default();
        while skipped.entries < entries
            && let Some((len, records)) = entry_size(&self.data[skipped.bytes..])
        {
            skipped = Skipped { entries: skipped.entries + 1, records: skipped.records + records, bytes: skipped.bytes + len };
        }
        skipped
    }

    pub(super) fn read(body: Bytes, position: usize) -> Option<AppendOp> {
        let Layout { stream, entries, records, crc, data, publisher, ids, filter } = Layout::of(&body)?;
        let part = |range: Range<usize>| body.slice(range);
        let (publisher, ids, filter) = (publisher.map(part), part(ids), part(filter));
        Some(AppendOp { position, stream, entries, records, crc, publisher, ids, filter, data: part(data) })
    }
}

/// Whether an append is what its head says, entry by entry: it comes from another node.
pub(super) fn is_sound(body: &[u8]) -> bool {
    let Some(layout) = Layout::of(body) else { return false };
    let (mut rest, mut entries, mut records) = (&body[layout.data.clone()], 0u32, 0u64);
    while let Some((len, n)) = entry_size(rest) {
        (rest, entries, records) = (&rest[len..], entries + 1, records + u64::from(n));
    }
    let whole = rest.is_empty() && entries == u32::from(layout.entries) && records == u64::from(layout.records);
    let (mut next, mut counted) = (Some(0), 0);
    let ascending = runs(&body[layout.ids]).all(|(first, count)| {
        let fits = count > 0 && next.is_some_and(|next| first >= next);
        (next, counted) = (first.checked_add(count.into()), counted + u32::from(count));
        fits && first.checked_add(u64::from(count) - 1).is_some()
    });
    let named = layout.publisher.is_none_or(|name| std::str::from_utf8(&body[name]).is_ok() && counted == entries);
    entries > 0 && whole && ascending && named && crc32fast::hash(&body[layout.data]) == layout.crc
}

/// Where the parts of an append are.
struct Layout {
    stream: QueueId,
    entries: u16,
    records: u32,
    crc: u32,
    data: Range<usize>,
    publisher: Option<Range<usize>>,
    ids: Range<usize>,
    filter: Range<usize>,
}

impl Layout {
    fn of(body: &[u8]) -> Option<Layout> {
        let mut head = body;
        let (stream, flags) = (QueueId(head.try_get_u64_le().ok()?), head.try_get_u8().ok()?);
        let (entries, records) = (head.try_get_u16_le().ok()?, head.try_get_u32_le().ok()?);
        let (crc, data) = (head.try_get_u32_le().ok()?, head.try_get_u32_le().ok()? as usize);
        let mut at = HEAD;
        let mut cut = |len: usize| {
            let range = at..at.checked_add(len).filter(|end| *end <= body.len())?;
            at = range.end;
            Some(range)
        };
        let data = cut(data)?;
        let (mut publisher, mut ids, mut filter) = (None, 0..0, 0..0);
        if flags & HAS_PUBLISHER != 0 {
            let len = usize::from(body[cut(1)?.start]);
            publisher = Some(cut(len)?);
            let n = cut(2)?.start;
            ids = cut(RUN * usize::from(u16::from_le_bytes([body[n], body[n + 1]])))?;
        }
        if flags & HAS_FILTER != 0 {
            let len = usize::from(body[cut(1)?.start]);
            filter = cut(len)?;
        }
        let known = flags & !(HAS_PUBLISHER | HAS_FILTER) == 0;
        (known && at == body.len()).then_some(Layout { stream, entries, records, crc, data, publisher, ids, filter })
    }
}

/// Runs of publishing ids: the first and how many.
fn runs(ids: &[u8]) -> impl Iterator<Item = (u64, u16)> {
    ids.chunks_exact(RUN).map(|mut run| (run.get_u64_le(), run.get_u16_le()))
}

#[cfg(test)]
mod tests {
    use super::super::{EntryBytes, Op, OpsReader, is_batch};
    use super::*;

    fn entry<'a>(id: u64, bytes: &'a [u8], filter: Option<&'a [u8]>) -> PublishedEntry<'a> {
        PublishedEntry { id, filter, records: entry_size(bytes).unwrap().1, entry: bytes }
    }

    fn read(chunk: &Bytes) -> AppendOp {
        let Some(Ok(Op::Append(op))) = OpsReader::at(&EntryBytes::from(chunk.clone()), 0).next() else { panic!("{chunk:?}") };
        op
    }

    const HI: &[u8] = b"\0\0\0\x02hi";
    const THREE: &[u8] = b"\x90\0\x03\0\0\0\x09\0\0\0\x04zip!";

    #[test]
    fn a_chunk_is_read_as_it_was_written() {
        let mut chunk = ChunkBuilder::new(QueueId(9), Some("me".into()), 16);
        assert!(chunk.is_of(QueueId(9), Some("me")) && !chunk.is_of(QueueId(9), None));
        for (id, bytes) in [(4, HI), (5, THREE), (8, HI)] {
            assert!(chunk.fits(&entry(id, bytes, None)));
            chunk.push(&entry(id, bytes, (id == 4).then_some(b"f")));
        }
        assert!(!chunk.fits(&entry(8, HI, None)) && chunk.fits(&entry(9, HI, None)), "ids ascend");
        let chunk = chunk.finish();
        let op = read(&chunk);
        assert_eq!((op.stream, op.entries, op.records, op.last_id()), (QueueId(9), 3, 5, Some(8)));
        assert_eq!((op.publisher.as_deref(), op.filter.len()), (Some(&b"me"[..]), 16));
        assert_eq!(op.data, [HI, THREE, HI].concat());
        assert_eq!(op.crc, crc32fast::hash(&op.data));
        assert_eq!([3, 4, 5, 7, 8, 9].map(|last| op.known(last)), [0, 1, 2, 2, 3, 3]);
        assert_eq!(op.skip(2), Skipped { entries: 2, records: 4, bytes: HI.len() + THREE.len() });
        assert!(is_batch(&chunk));
    }

    #[test]
    fn nameless_publishers_have_no_ids_and_offsets_need_no_answer() {
        let mut chunk = ChunkBuilder::new(QueueId(9), None, 16);
        [7, 7, 3].iter().for_each(|id| chunk.push(&entry(*id, HI, None)));
        let op = read(&chunk.finish());
        assert_eq!((op.entries, op.last_id(), op.publisher, op.filter.len()), (3, None, None, 0));
        let mut ops = Ops::default();
        ops.store(QueueId(9), "reader", Offset(77));
        assert_eq!(ops.ordinals(), 0);
        let bytes = ops.take();
        assert!(is_batch(&bytes));
        let stored = OpsReader::at(&EntryBytes::from(bytes), 0).next().unwrap().unwrap();
        assert_eq!(stored, Op::Store { stream: QueueId(9), reader: Bytes::from_static(b"reader"), offset: Offset(77) });
    }

    #[test]
    fn a_chunk_that_is_not_what_it_says_is_no_batch() {
        let mut chunk = ChunkBuilder::new(QueueId(9), Some("me".into()), 16);
        [(4, HI), (5, THREE)].iter().for_each(|(id, bytes)| chunk.push(&entry(*id, bytes, None)));
        let chunk = chunk.finish();
        for at in FRAME_HEAD + 8..chunk.len() {
            let mut bad = chunk.to_vec();
            bad[at] ^= 0x40;
            // Another name, and ids that ascend all the same, say nothing false.
            let name = FRAME_HEAD + HEAD + HI.len() + THREE.len() + 1;
            let says_so = (name..name + 2).contains(&at) || (name + 4..name + 12).contains(&at);
            assert_eq!(is_batch(&bad), says_so, "byte {at}");
        }
        assert!((1..chunk.len()).all(|len| !is_batch(&chunk[..len])));
    }
}
