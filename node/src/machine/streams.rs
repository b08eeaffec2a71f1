//! Streams of a data shard: chunks come, readers say how far they are, queues of the catalog turn out to be streams. Called by `shard`.

use super::capture::Image;
use super::checkpoint::key;
use super::shard::{DataMachine, Effect};
use super::stream::{CapturedStream, Stream};
use crate::model::entry::AppendOp;
use crate::model::link::RefusedEnqueue;
use crate::model::stream::StreamSettings;
use crate::model::{Offset, QueueId};

/// Kinds of keys of a checkpoint.
pub(super) const STREAM: u8 = b'v';
pub(super) const BLOCK: u8 = b'w';
pub(super) const READERS: u8 = b'o';

impl DataMachine {
    /// A stream.
    pub fn stream(&self, id: QueueId) -> Option<&Stream> {
        self.streams.get(&id)
    }

    /// All streams, by id.
    pub fn streams(&self) -> impl Iterator<Item = (QueueId, &Stream)> {
        self.streams.iter().map(|(id, stream)| (*id, stream))
    }

    /// Why not, if there is no such stream.
    pub(super) fn append(&mut self, index: u64, op: &AppendOp, effects: &mut Vec<Effect>) -> Option<RefusedEnqueue> {
        self.keep_captured(op.stream);
        let Some(stream) = self.streams.get_mut(&op.stream) else { return Some(RefusedEnqueue::UnknownQueue) };
        if stream.append(index, op, self.last_time_ms, &mut self.exits.released) {
            self.streams_end_ms = self.streams_end_ms.min(stream.ends_ms().unwrap_or(u64::MAX));
            self.references += 1;
            if std::mem::replace(&mut stream.appended_in, index) != index {
                effects.push(Effect::Appended { stream: op.stream });
                self.dirty.insert(op.stream);
            }
        }
        None
    }

    /// A reader is this far.
    pub(super) fn store(&mut self, id: QueueId, reader: &[u8], offset: Offset) {
        self.keep_captured(id);
        // What is not UTF-8 is let into no log.
        if let (Some(stream), Ok(reader)) = (self.streams.get_mut(&id), std::str::from_utf8(reader)) {
            stream.store(reader, offset);
            self.dirty.insert(id);
        }
    }

    /// The catalog's settings of a stream; one that is new was made as a queue a moment ago, in the same entry.
    pub(super) fn configure_stream(&mut self, id: QueueId, settings: StreamSettings) {
        if self.queues.remove(&id).is_some() {
            self.streams.insert(id, Stream::new(settings));
            self.dirty.insert(id);
        } else if let Some(stream) = self.streams.get_mut(&id)
            && stream.configure(settings, self.last_time_ms, &mut self.exits.released)
        {
            self.streams_end_ms = self.streams_end_ms.min(stream.ends_ms().unwrap_or(u64::MAX));
            self.dirty.insert(id);
        }
    }

    /// Time has passed: segments that are too old go, also of streams that nobody appends to. Looks at nothing before the first is due.
    pub(super) fn age_streams(&mut self) {
        if self.last_time_ms <= self.streams_end_ms {
            return;
        }
        let due = |stream: &Stream| stream.ends_ms().is_some_and(|ends_ms| ends_ms < self.last_time_ms);
        let aged: Vec<QueueId> = self.streams.iter().filter(|(_, stream)| due(stream)).map(|(id, _)| *id).collect();
        for id in aged {
            self.keep_captured(id);
            if let Some(stream) = self.streams.get_mut(&id)
                && stream.retain_aged(self.last_time_ms, &mut self.exits.released)
            {
                self.dirty.insert(id);
            }
        }
        self.streams_end_ms = self.streams.values().filter_map(Stream::ends_ms).min().unwrap_or(u64::MAX);
    }

    /// The last time at which no segment is too old, ms since the epoch, or an earlier one; `None`: age takes none.
    pub fn streams_end_ms(&self) -> Option<u64> {
        let looked = self.streams_end_ms;
        let ends_ms = if looked > 0 { Some(looked) } else { self.streams.values().filter_map(Stream::ends_ms).min() };
        ends_ms.filter(|ms| *ms < u64::MAX)
    }

    /// The catalog dropped it. False: there was none.
    pub(super) fn drop_stream(&mut self, id: QueueId) -> bool {
        let Some(stream) = self.streams.remove(&id) else { return false };
        self.dirty.remove(&id);
        self.exits.released.extend(stream.indices());
        if stream.stored {
            self.gone.push(key(STREAM, &[id.0]));
            self.gone.push(key(READERS, &[id.0]));
        }
        self.gone.extend(stream.stored_blocks().map(|first| key(BLOCK, &[id.0, first])));
        true
    }

    /// Copies a stream into a capture. `None`: there is none.
    pub(super) fn copy_stream(&mut self, id: QueueId, whole: bool) -> Option<CapturedStream> {
        let stream = self.streams.get_mut(&id)?;
        Some(if whole { stream.capture_all() } else { stream.capture() })
    }

    pub(super) fn imported_stream(&mut self, id: QueueId, stored: bool) -> &mut Stream {
        if !stored {
            self.dirty.insert(id);
        }
        let stream = self.streams.entry(id).or_default();
        stream.stored = stored;
        stream
    }
}

impl Image {
    /// Keys and values of its streams.
    pub(super) fn encode_streams(streams: Vec<(QueueId, CapturedStream)>, puts: &mut Vec<(Vec<u8>, Vec<u8>)>, deletes: &mut Vec<Vec<u8>>) {
        for (id, mut stream) in streams {
            let (row, readers) = stream.rows();
            puts.push((key(STREAM, &[id.0]), row));
            puts.extend(readers.map(|readers| (key(READERS, &[id.0]), readers)));
            let key = |first| key(BLOCK, &[id.0, first]);
            stream.encode(|first, value| puts.push((key(first), value)), |first| deletes.push(key(first)));
        }
    }
}
