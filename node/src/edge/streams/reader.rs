//! Reading a stream on a node that holds a replica of it: whole chunks, in order, up to what is committed and applied here. Chunks that came
//! lately are slices of the log's cache; older ones are read from disk in runs, one ahead, to be checked, and say where they can be sent from.

use super::bells::Bell;
use super::source::Replica;
use crate::machine::LocatedChunk;
use crate::model::entry::{Op, OpsReader};
use crate::model::stored::StoredEntry;
use crate::model::stream::{OffsetSpec, StreamChunk};
use crate::model::{Offset, QueueId};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use std::collections::VecDeque;
use std::io;

/// Chunks looked up at a time.
const LOCATED: usize = 128;
/// Chunks' bytes of a run that is read from disk at once, unless one chunk is larger.
const RUN_BYTES: u64 = 768 << 10;
/// Runs under way or not used up.
const RUNS: usize = 2;

/// Why there is no next chunk.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream is deleted, or this node has not heard of it yet.
    #[error("no such stream")]
    Gone,
    /// This node holds no replica of the stream.
    #[error("this node holds no replica of the stream")]
    NotHere,
    /// No replica can give the chunk.
    #[error("a chunk cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads a stream. Dropping it ends the reading.
pub struct Reader {
    stream: QueueId,
    replica: Replica,
    bell: Bell,
    next: Offset,
    /// What comes next, looked up.
    located: VecDeque<LocatedChunk>,
    /// The entry that was used last; the next chunk may lie in it, too.
    entry: Option<(u64, StoredEntry)>,
    /// A run from the disk: what is left of it.
    run: Run,
    /// Runs on their way from the disk, in the order of their chunks.
    ahead: FuturesOrdered<BoxFuture<'static, io::Result<Run>>>,
    /// Index of the last entry of these.
    asked: u64,
}

/// Entries by index, in their order.
type Run = VecDeque<(u64, StoredEntry)>;

impl Reader {
    pub(super) fn new(stream: QueueId, replica: Replica, bell: Bell, from: OffsetSpec) -> Result<Reader, ReadError> {
        let next = replica.machine.lock().stream(stream).map(|stream| stream.find(from)).ok_or(ReadError::Gone)?;
        let (located, run, ahead) = (VecDeque::new(), Run::new(), FuturesOrdered::new());
        Ok(Reader { stream, replica, bell, next, located, entry: None, run, ahead, asked: 0 })
    }

    /// Offset of the first record of the chunk that comes next, unless retention takes it before.
    pub fn position(&self) -> Offset {
        self.next
    }

    /// The next chunk, as soon as there is one. Cancel safe. After an error the same chunk is tried again.
    ///
    /// # Errors
    /// The stream is gone, or no replica can give the chunk.
    pub async fn next(&mut self) -> Result<StreamChunk, ReadError> {
        loop {
            let Some(chunk) = self.located.front().copied() else {
                self.wait().await?;
                continue;
            };
            if self.entry.as_ref().is_none_or(|(index, _)| *index != chunk.index) {
                match self.fetch(chunk.index).await {
                    Ok(entry) => self.entry = Some((chunk.index, entry)),
                    Err(error) => {
                        self.go_on_behind(&chunk, error)?;
                        continue;
                    }
                }
            }
            let read = self.entry.as_ref().and_then(|(_, entry)| cut(self.stream, entry, &chunk));
            let Some(read) = read else {
                self.go_on_behind(&chunk, io::Error::new(io::ErrorKind::InvalidData, "the entry does not hold the chunk"))?;
                continue;
            };
            self.located.pop_front();
            self.next = read.next();
            return Ok(read);
        }
    }

    /// A chunk cannot be had. What was taken by retention meanwhile is no loss: the reader goes on behind it.
    fn go_on_behind(&mut self, chunk: &LocatedChunk, error: io::Error) -> Result<(), ReadError> {
        self.forget();
        match self.replica.machine.lock().stream(self.stream) {
            Some(stream) if stream.first() <= chunk.first => Err(error.into()),
            Some(_) => Ok(()),
            None => Err(ReadError::Gone),
        }
    }

    fn forget(&mut self) {
        self.located.clear();
        self.ahead = FuturesOrdered::new();
        (self.entry, self.run, self.asked) = (None, Run::new(), 0);
    }

    /// Looks up what comes next; waits until there is something.
    async fn wait(&mut self) -> Result<(), ReadError> {
        let rung = self.bell.notify().notified();
        tokio::pin!(rung);
        // Before looking: what comes after the look rings.
        rung.as_mut().enable();
        let mut found = Vec::new();
        match self.replica.machine.lock().stream(self.stream) {
            Some(stream) => stream.locate(self.next, LOCATED, &mut found),
            None => return Err(ReadError::Gone),
        }
        if found.is_empty() {
            rung.await;
            return Ok(());
        }
        self.located.extend(found);
        Ok(())
    }

    /// The entry of the next chunk; asks for those behind it.
    async fn fetch(&mut self, index: u64) -> io::Result<StoredEntry> {
        loop {
            while let Some((found, entry)) = self.run.pop_front() {
                if found == index {
                    return Ok(entry);
                }
            }
            if self.ahead.is_empty()
                && let Some(entry) = self.replica.bodies.cached(index)
            {
                return Ok(entry.into());
            }
            self.ask();
            match self.ahead.next().await {
                Some(run) => self.run = run?,
                None => self.asked = index.saturating_sub(1),
            }
            // A run before was shorter than asked for: once more from here.
            if self.run.front().is_some_and(|(first, _)| *first > index) {
                (self.run, self.ahead, self.asked) = (Run::new(), FuturesOrdered::new(), index.saturating_sub(1));
            }
        }
    }

    /// Asks for runs of what is looked up, until there are enough of them.
    fn ask(&mut self) {
        while self.ahead.len() < RUNS {
            let (mut indices, mut bytes) = (Vec::new(), 0);
            for chunk in self.located.iter().filter(|chunk| chunk.index > self.asked) {
                bytes += u64::from(chunk.bytes);
                if bytes > RUN_BYTES && !indices.is_empty() {
                    break;
                }
                if indices.last() != Some(&chunk.index) {
                    indices.push(chunk.index);
                }
            }
            let Some(last) = indices.last().copied() else { return };
            self.asked = last;
            let read = self.replica.bodies.read_run(indices.clone());
            self.ahead.push_back(Box::pin(async move { Ok(indices.into_iter().zip(read.await?).collect()) }));
        }
    }
}

/// A chunk out of its entry: slices, no copies. `None`: the entry is not the one that the chunk names.
fn cut(stream: QueueId, entry: &StoredEntry, chunk: &LocatedChunk) -> Option<StreamChunk> {
    let Some(Ok(Op::Append(op))) = OpsReader::at(&entry.bytes, chunk.position as usize).next() else { return None };
    let skipped = op.skip(chunk.skip);
    let fits = op.stream == stream && op.records.checked_sub(skipped.records) == Some(chunk.records);
    let data = op.data.slice(skipped.bytes..);
    let crc = if chunk.skip == 0 { op.crc } else { crc32fast::hash(&data) };
    let entries = op.entries.checked_sub(skipped.entries)?;
    let at = entry.place.as_ref().zip(entry.bytes.position_of(&data));
    let file = at.and_then(|(place, at)| place.part(at..at + data.len()));
    fits.then_some(StreamChunk {
        first: chunk.first,
        entries,
        records: chunk.records,
        time_ms: chunk.time_ms,
        crc,
        filter: op.filter,
        data,
        file,
    })
}
