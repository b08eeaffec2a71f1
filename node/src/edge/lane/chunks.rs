//! Chunks of streams that a lane is filling, and who waits for them: a chunk is one operation with one ordinal, whatever number of messages
//! of whatever clients is in it. Called by `batches`.

use super::Lane;
use super::run::Run;
use crate::model::entry::{ChunkBuilder, Ops};
use crate::model::limits;
use crate::model::stream::{Published, PublishedEntry, StreamTarget};
use bytes::Bytes;
use parking_lot::MutexGuard;
use std::time::Instant;

impl Lane {
    /// Messages for a stream of this shard. Returns the mark behind them, and their number.
    pub fn append(&self, to: &StreamTarget, mut published: Published, run: &Run) -> (u64, u64) {
        let (now, mut wake, mut count) = (Instant::now(), false, 0);
        let mut state = self.state.lock();
        if state.stuck {
            state.block(self.shard, &run.mailbox);
        }
        while let Some((entry, len)) = published.first() {
            wake |= match is_large(&entry) {
                true => {
                    let chunk = MutexGuard::unlocked(&mut state, || alone(to, &entry));
                    state.batches.append_alone(to, chunk, entry.id, run, now)
                }
                false => state.batches.append_entry(to, &entry, run, now),
            };
            published.advance(len);
            count += 1;
        }
        let mark = state.batches.mark();
        self.unlock(state);
        if wake {
            self.wake.notify_one();
        }
        (mark, count)
    }

    /// One message for a stream of this shard, from a publisher without a name. Returns the mark behind it.
    pub fn append_record(&self, to: &StreamTarget, entry: &PublishedEntry<'_>, run: &Run) -> u64 {
        let (chunk, now) = (is_large(entry).then(|| alone(to, entry)), Instant::now());
        let mut state = self.state.lock();
        if state.stuck {
            state.block(self.shard, &run.mailbox);
        }
        let wake = match chunk {
            Some(chunk) => state.batches.append_alone(to, chunk, entry.id, run, now),
            None => state.batches.append_entry(to, entry, run, now),
        };
        let mark = state.batches.mark();
        self.unlock(state);
        if wake {
            self.wake.notify_one();
        }
        mark
    }
}

/// So large that copying it must not keep others waiting: a chunk of its own, made before the lane is locked.
fn is_large(entry: &PublishedEntry<'_>) -> bool {
    entry.entry.len() >= limits::BATCH_BYTES
}

/// As the operations of a batch of its own.
fn alone(to: &StreamTarget, entry: &PublishedEntry<'_>) -> Bytes {
    let mut chunk = ChunkBuilder::new(to.stream, to.publisher.clone(), to.filter_bytes);
    chunk.reserve(entry.entry.len());
    chunk.push(entry);
    chunk.finish()
}

/// Chunks filled at a time: beyond it the batch is closed.
const OPEN: usize = 128;

/// Who waits for a chunk.
#[derive(Debug)]
pub(super) struct ChunkRuns {
    /// Of its operation.
    pub ordinal: u32,
    /// `first` of a run counts entries of the chunk.
    pub runs: Vec<Run>,
}

/// Those of the open batch, in the order in which they were begun.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    open: Vec<(ChunkBuilder, Vec<Run>)>,
    bytes: usize,
    /// Size of a chunk of the batch before, on average: room for as much is made at once, so that bytes are not moved while it fills and no
    /// chunk holds twice its memory.
    usual: usize,
}

impl Chunks {
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// No further stream fits.
    pub fn is_full(&self) -> bool {
        self.open.len() >= OPEN
    }

    /// How many runs there are.
    pub fn waiting(&self) -> usize {
        self.open.iter().map(|(_, runs)| runs.len()).sum()
    }

    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.open.iter().flat_map(|(_, runs)| runs)
    }

    /// One entry, copied into the chunk of its stream and publisher. Who waits for that chunk, and the entry's place in it.
    pub fn push(&mut self, to: &StreamTarget, entry: &PublishedEntry<'_>) -> (&mut Vec<Run>, u32) {
        // The last one of them: a publisher's order is that of its chunks.
        let found = self.open.iter().rposition(|(chunk, _)| chunk.is_of(to.stream, to.publisher.as_deref()));
        let at = found.filter(|at| self.open[*at].0.fits(entry)).unwrap_or_else(|| {
            let mut chunk = ChunkBuilder::new(to.stream, to.publisher.clone(), to.filter_bytes);
            chunk.reserve(self.usual + self.usual / 8);
            self.bytes += chunk.len();
            self.open.push((chunk, Vec::new()));
            self.open.len() - 1
        });
        let (chunk, runs) = &mut self.open[at];
        let first = u32::from(chunk.entries());
        self.bytes -= chunk.len();
        chunk.push(entry);
        self.bytes += chunk.len();
        (runs, first)
    }

    /// Closes them. What they are in a batch with these other operations; a chunk that is alone is not copied.
    pub fn close(&mut self, ops: &mut Ops) -> (Bytes, Vec<ChunkRuns>) {
        let bytes = std::mem::take(&mut self.bytes);
        self.usual = bytes.checked_div(self.open.len()).map_or(self.usual, |mean| mean.min(limits::BATCH_BYTES));
        if ops.is_empty()
            && self.open.len() == 1
            && let Some((chunk, runs)) = self.open.pop()
        {
            return (chunk.finish(), vec![ChunkRuns { ordinal: 0, runs }]);
        }
        let chunks = self.open.drain(..).map(|(chunk, runs)| ChunkRuns { ordinal: ops.append_chunk(&chunk.finish()), runs });
        let chunks = chunks.collect();
        (ops.take(), chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::QueueId;
    use crate::model::entry::{EntryBytes, Op, OpsReader, is_batch};

    fn to() -> StreamTarget {
        let (stream, shard) = (QueueId(5), crate::model::ShardId(1));
        StreamTarget { stream, shard, publisher: Some("me".into()), catalog_index: 1, filter_bytes: 16, leader: None }
    }

    #[test]
    fn a_chunk_has_room_for_as_much_as_the_one_before_from_its_first_entry_on() {
        let entry = [&1000u32.to_be_bytes()[..], &[7; 1000]].concat();
        let (mut chunks, mut ops) = (Chunks::default(), Ops::default());
        let mut fill = |entries: u64, entry: &[u8]| {
            let mut capacities = Vec::new();
            for id in 0..entries {
                chunks.push(&to(), &PublishedEntry { id, filter: None, records: 1, entry });
                capacities.push(chunks.open[0].0.capacity());
            }
            let (bytes, _) = chunks.close(&mut ops);
            assert!(is_batch(&bytes));
            capacities.dedup();
            (bytes.len(), capacities)
        };
        let (len, _) = fill(130, &entry);
        let (_, capacities) = fill(130, &entry);
        assert!(capacities.len() == 1 && (len..len * 5 / 4).contains(&capacities[0]), "{len} bytes: {capacities:?}");
        fill(1, b"\0\0\0\x02hi");
        let (_, capacities) = fill(1, b"\0\0\0\x02hi");
        assert!(capacities[0] < 2000, "{capacities:?}");
    }

    #[test]
    fn a_large_entry_is_copied_once_into_a_chunk_of_its_own() {
        let entry = [&(16u32 << 20).to_be_bytes()[..], &vec![7; 16 << 20]].concat();
        let published = |entry| PublishedEntry { id: 9, filter: Some(b"f"), records: 1, entry };
        assert!(is_large(&published(&entry)) && !is_large(&published(&entry[..1000])));
        let to = to();
        let mut chunk = ChunkBuilder::new(to.stream, to.publisher.clone(), to.filter_bytes);
        chunk.reserve(entry.len());
        let before = chunk.address();
        chunk.push(&published(&entry));
        let chunk = chunk.finish();
        assert_eq!(chunk.as_ptr(), before, "neither the entry nor what is behind it made it move");
        assert_eq!(chunk, alone(&to, &published(&entry)));
        assert!(is_batch(&chunk));
        let Some(Ok(Op::Append(op))) = OpsReader::at(&EntryBytes::from(chunk), 0).next() else { panic!("no append") };
        assert_eq!((op.stream, op.entries, op.last_id(), op.data == entry), (to.stream, 1, Some(9), true));
    }
}
