//! Records of a stream as AMQP deliveries: walks chunks as they come from the reader, unpacks sub-entry batches, maps records. Chunks are
//! what clients of streams wrote: whatever is in them, offsets go on.

use crate::model::link::Delivery;
use crate::model::stream::StreamChunk;
use crate::model::{Offset, QueueId, Seq};
use crate::records::{BadBatch, Batch, Compression, Entries, Entry, Reading, append_stored, inflate};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Larger batches are unpacked on a thread that may take its time, ...
const UNPACKED_HERE_BYTES: u32 = 32 << 10;
/// ... so many at once on this node.
static UNPACKING: Semaphore = Semaphore::const_new(4);

/// Where a consumer is in its stream.
pub(super) struct Cursor {
    stream: QueueId,
    name: Arc<str>,
    /// Records before it are not wanted, though their chunk is.
    start: Offset,
    open: Option<Open>,
    reading: Reading,
    out: BytesMut,
}

/// A chunk.
struct Open {
    data: Bytes,
    position: usize,
    /// Of the next record.
    offset: u64,
    batch: Option<Unpacked>,
}

/// Records of a batch.
struct Unpacked {
    bytes: Bytes,
    position: usize,
    /// Offsets that are left for them.
    left: u16,
}

/// A batch that has to be unpacked before the cursor moves on.
#[derive(Debug)]
pub(super) struct Packed {
    compression: Option<Compression>,
    records: u16,
    inflated: u32,
    data: Bytes,
}

/// What the cursor found.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub messages: Vec<Delivery>,
    /// Their bytes, as they count for credit.
    pub bytes: u64,
    /// What is next. Tell the cursor of it with `unpacked`.
    pub packed: Option<Packed>,
}

impl Packed {
    pub async fn unpack(self) -> Result<Bytes, BadBatch> {
        let is_small = self.inflated <= UNPACKED_HERE_BYTES;
        let unpack = move || {
            let Packed { compression, records, inflated, data } = &self;
            inflate(&Batch { compression: *compression, records: *records, inflated: *inflated, data }).map(Bytes::from)
        };
        if is_small {
            return unpack();
        }
        let permit = UNPACKING.acquire().await;
        let unpacked = tokio::task::spawn_blocking(unpack).await;
        drop(permit);
        unpacked.unwrap_or_else(|error| Err(BadBatch::Garbled(error.to_string())))
    }
}

impl Cursor {
    /// Before a chunk.
    pub fn new(stream: QueueId, name: Arc<str>, start: Offset) -> Cursor {
        Cursor { stream, name, start, open: None, reading: Reading::default(), out: BytesMut::new() }
    }

    /// The chunk before is done.
    pub fn is_done(&self) -> bool {
        self.open.is_none()
    }

    /// The next chunk.
    pub fn open(&mut self, chunk: StreamChunk) {
        if chunk.next() > self.start {
            self.open = Some(Open { data: chunk.data, position: 0, offset: chunk.first.0, batch: None });
        }
    }

    /// So many messages at most, and none when the ones before it have so many bytes.
    pub fn take(&mut self, count: usize, bytes: u64) -> Taken {
        let mut taken = Taken::default();
        while taken.messages.len() < count && taken.bytes < bytes {
            let Some(open) = &mut self.open else { break };
            if let Some(batch) = &mut open.batch {
                let mut entries = Entries::at(&batch.bytes, batch.position);
                match entries.next() {
                    Some(Ok(Entry::Record(record))) if batch.left > 0 => {
                        (batch.position, batch.left) = (entries.position(), batch.left - 1);
                        let offset = open.offset;
                        open.offset += 1;
                        if offset >= self.start.0 {
                            taken.push(self.stream, offset, map(&mut self.out, &mut self.reading, record, offset, &self.name));
                        }
                    }
                    // There are fewer than was said, or what a batch must not hold.
                    Some(_) | None => {
                        open.offset += u64::from(batch.left);
                        open.batch = None;
                    }
                }
                continue;
            }
            let mut entries = Entries::at(&open.data, open.position);
            match entries.next() {
                Some(Ok(Entry::Record(record))) => {
                    open.position = entries.position();
                    let offset = open.offset;
                    open.offset += 1;
                    if offset >= self.start.0 {
                        taken.push(self.stream, offset, map(&mut self.out, &mut self.reading, record, offset, &self.name));
                    }
                }
                Some(Ok(Entry::Batch(batch))) => {
                    let data = open.data.slice_ref(batch.data);
                    let packed = Packed { compression: batch.compression, records: batch.records, inflated: batch.inflated, data };
                    open.position = entries.position();
                    taken.packed = open.begin(packed, self.start);
                    if taken.packed.is_some() {
                        return taken;
                    }
                }
                Some(Err(_)) | None => self.open = None,
            }
        }
        taken
    }

    /// The batch that `take` found is unpacked; `records`: how many offsets it has.
    pub fn unpacked(&mut self, records: u16, unpacked: Result<Bytes, BadBatch>) {
        let Some(open) = &mut self.open else { return };
        match unpacked {
            Ok(bytes) => open.batch = Some(Unpacked { bytes, position: 0, left: records }),
            Err(error) => {
                tracing::warn!(stream = %self.stream, offset = open.offset, records, %error, "a batch of a stream is not delivered to AMQP consumers");
                open.offset += u64::from(records);
            }
        }
    }
}

impl Packed {
    /// Offsets that it has.
    pub fn records(&self) -> u16 {
        self.records
    }
}

impl Open {
    /// Begins a batch. Returned: it has to be unpacked first.
    fn begin(&mut self, batch: Packed, start: Offset) -> Option<Packed> {
        if self.offset + u64::from(batch.records) <= start.0 {
            self.offset += u64::from(batch.records);
            return None;
        }
        if batch.compression == Some(Compression::None) {
            self.batch = Some(Unpacked { bytes: batch.data, position: 0, left: batch.records });
            return None;
        }
        Some(batch)
    }
}

impl Taken {
    fn push(&mut self, stream: QueueId, offset: u64, message: Bytes) {
        self.bytes += message.len() as u64;
        self.messages.push(Delivery { queue: stream, seq: Seq(offset), redelivered: false, failures: 0, failed_ms: 0, message });
    }
}

/// One allocation for many messages.
fn map(out: &mut BytesMut, reading: &mut Reading, record: &[u8], offset: u64, stream: &str) -> Bytes {
    append_stored(out, reading, record, offset, stream.as_bytes());
    out.split().freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::StoredView;
    use std::io::Write;

    fn record(body: &str) -> Vec<u8> {
        [&(body.len() as u32).to_be_bytes(), body.as_bytes()].concat()
    }

    fn batch(compression: u8, records: u16, inflated: u32, data: &[u8]) -> Vec<u8> {
        let head = [&[0x80 | compression << 4][..], &records.to_be_bytes(), &inflated.to_be_bytes(), &(data.len() as u32).to_be_bytes()];
        [&head.concat(), data].concat()
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn chunk(first: u64, records: u32, data: Vec<u8>) -> StreamChunk {
        let (entries, crc, time_ms, filter) = (1, 0, 0, Bytes::new());
        StreamChunk { first: Offset(first), entries, records, time_ms, crc, filter, data: data.into(), file: None }
    }

    /// Offsets and bodies, by as many messages at a time.
    async fn all(cursor: &mut Cursor, count: usize) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        while !cursor.is_done() {
            let taken = cursor.take(count, u64::MAX);
            assert!(taken.messages.len() <= count);
            found.extend(taken.messages.iter().map(|m| {
                let body = &m.message[StoredView::parse(&m.message).unwrap().body_at..];
                (m.seq.0, String::from_utf8_lossy(body).into_owned())
            }));
            if let Some(packed) = taken.packed {
                cursor.unpacked(packed.records(), packed.unpack().await);
            }
        }
        found
    }

    fn expected(pairs: &[(u64, &str)]) -> Vec<(u64, String)> {
        pairs.iter().map(|(offset, body)| (*offset, (*body).to_owned())).collect()
    }

    #[tokio::test]
    async fn records_and_batches_come_in_their_order_however_few_at_a_time() {
        let plain = [record("c"), record("d")].concat();
        let large = [record(&"e".repeat(40_000)), record("f")].concat();
        let data = [
            record("a"),
            batch(0, 2, plain.len() as u32, &plain),
            record("b"),
            batch(1, 2, large.len() as u32, &gzip(&large)),
            record("g"),
        ];
        let e = "e".repeat(40_000);
        let wanted = expected(&[(10, "a"), (11, "c"), (12, "d"), (13, "b"), (14, &e), (15, "f"), (16, "g")]);
        for count in [1, 2, 100] {
            let mut cursor = Cursor::new(QueueId(1), "s".into(), Offset(0));
            cursor.open(chunk(10, 7, data.concat()));
            assert_eq!(all(&mut cursor, count).await, wanted, "{count}");
        }
    }

    #[tokio::test]
    async fn a_reader_begins_at_its_offset_within_a_chunk_and_within_a_batch() {
        let plain = [record("b"), record("c")].concat();
        let data = [record("a"), batch(1, 2, plain.len() as u32, &gzip(&plain)), record("d")].concat();
        for (start, wanted) in [(2, &[(2, "c"), (3, "d")][..]), (3, &[(3, "d")]), (4, &[])] {
            let mut cursor = Cursor::new(QueueId(1), "s".into(), Offset(start));
            cursor.open(chunk(0, 4, data.clone()));
            assert_eq!(all(&mut cursor, 9).await, expected(wanted), "{start}");
        }
    }

    #[tokio::test]
    async fn a_batch_that_cannot_be_read_takes_its_offsets_and_nothing_else() {
        let plain = record("x");
        let fine = [record("ok"), batch(1, 5, 7, b"no gzip"), batch(6, 2, 3, b"???")].concat();
        let fewer = [batch(0, 4, plain.len() as u32, &plain), batch(1, 3, plain.len() as u32, &gzip(&plain)), record("end")].concat();
        let mut cursor = Cursor::new(QueueId(1), "s".into(), Offset(0));
        cursor.open(chunk(0, 16, [fine, fewer].concat()));
        assert_eq!(all(&mut cursor, 9).await, expected(&[(0, "ok"), (8, "x"), (12, "x"), (15, "end")]));
    }

    #[test]
    fn bytes_bound_what_is_taken_at_once() {
        let mut cursor = Cursor::new(QueueId(1), "s".into(), Offset(0));
        cursor.open(chunk(0, 3, [record(&"a".repeat(100)), record("b"), record("c")].concat()));
        assert_eq!(cursor.take(9, 50).messages.len(), 1);
        assert_eq!(cursor.take(9, 0).messages.len(), 0);
        assert_eq!(cursor.take(9, 1000).messages.len(), 2);
    }
}
