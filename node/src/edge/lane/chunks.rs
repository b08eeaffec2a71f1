//! Chunks of streams that a lane is filling, and who waits for them: a chunk is one operation with one ordinal, whatever number of messages
//! of whatever clients is in it. Called by `batches`.

use super::Lane;
use super::run::Run;
use crate::model::entry::{ChunkBuilder, Ops};
use crate::model::stream::{PublishedEntry, StreamTarget};
use bytes::Bytes;
use std::time::Instant;

impl Lane {
    /// One message for a stream of this shard, from a publisher without a name. Returns the mark behind it.
    pub fn append_record(&self, to: &StreamTarget, entry: &PublishedEntry<'_>, run: &Run) -> u64 {
        let mut state = self.state.lock();
        if state.stuck {
            state.block(self.shard, &run.mailbox);
        }
        let wake = state.batches.append_entry(to, entry, run, Instant::now());
        let mark = state.batches.mark();
        self.unlock(state);
        if wake {
            self.wake.notify_one();
        }
        mark
    }
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
            let chunk = ChunkBuilder::new(to.stream, to.publisher.clone(), to.filter_bytes);
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
        self.bytes = 0;
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
