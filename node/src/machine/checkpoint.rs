//! A data shard's state as keys and values: what changed since the last checkpoint, or all of it as a snapshot, and the way back.
//! Called by `consensus`, which hands deltas to `store::state`. How the state is copied out is in `capture`; the formats of values are
//! with their types.
//!
//! key := 'm' | 's' session | 'q' queue | 'x' queue chunk | 'n' | 'd' number | 'k' queue piece | 'p' queue
//!      | 'v' | 'o' stream | 'w' stream offset     (numbers u64, big endian, so that keys sort)
//! snapshot := "WSNP" version u8 pairs u64 (len u32 key, len u32 value)* crc32c u32

use super::capture::Image;
use super::codec::{Reader, Writer};
use super::extents::Extents;
use super::queue::Queue;
use super::shard::{DataMachine, RestoreError};
use super::stream::Stream;
use super::streams::{BLOCK, READERS, STREAM};
use crate::model::{Incarnation, LeaderId, LogId, NodeId, QueueId, SessionId, ShardId, TxId, version};

pub(super) const VERSION: u8 = 1;
pub(super) const MAGIC: &[u8; 4] = b"WSNP";
pub(super) const META: u8 = b'm';
pub(super) const SESSION: u8 = b's';
pub(super) const QUEUE: u8 = b'q';
pub(super) const DEAD: u8 = b'd';
pub(super) const DEAD_META: u8 = b'n';
pub(super) const TRANSACTION: u8 = b't';
const CHUNK: u8 = b'x';
pub(super) const KNOWN: u8 = b'k';
pub(super) const PUBLISHERS: u8 = b'p';

/// A chunk's number has its level (priority) on top.
const LEVEL_SHIFT: u32 = 56;
const CHUNK_MASK: u64 = (1 << LEVEL_SHIFT) - 1;

pub(super) fn chunk_key(queue: QueueId, level: usize, chunk: u64) -> Vec<u8> {
    key(CHUNK, &[queue.0, (level as u64) << LEVEL_SHIFT | chunk])
}

/// What a checkpoint changes, as one atomic step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// The state after this entry.
    pub applied: LogId,
    /// Stands for itself: whatever else is stored goes.
    pub full: bool,
    /// Keys and values to set.
    pub puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys to remove.
    pub deletes: Vec<Vec<u8>>,
}

pub(super) fn tx_key(tx: TxId) -> Vec<u8> {
    key(TRANSACTION, &[u64::from(tx.node.0), tx.incarnation.0, tx.number])
}

pub(super) fn key(kind: u8, numbers: &[u64]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len());
    key.push(kind);
    numbers.iter().for_each(|n| key.extend_from_slice(&n.to_be_bytes()));
    key
}

fn numbers<const N: usize>(key: &[u8]) -> Result<[u64; N], RestoreError> {
    if key.len() != 8 * N {
        return Err(RestoreError::Malformed("key"));
    }
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(key.as_chunks::<8>().0) {
        *number = u64::from_be_bytes(*bytes);
    }
    Ok(numbers)
}

impl DataMachine {
    /// What changed since the last call; everything after `new`, `from_snapshot` and `forget_checkpoint`. All at once: for a machine
    /// that nobody else uses.
    pub fn checkpoint(&mut self) -> Delta {
        let id = self.begin_checkpoint();
        self.capture_rest(id).map(Image::into_delta).unwrap_or_default()
    }

    /// The stored checkpoint is lost: the next one holds everything.
    pub fn forget_checkpoint(&mut self) {
        self.full = true;
        self.gone.clear();
        self.sessions.forget_stored();
        self.exits.dead.forget_stored();
        self.transactions.forget_stored();
        self.dirty = self.queues.keys().chain(self.streams.keys()).copied().collect();
        self.streams.values_mut().for_each(Stream::forget_stored);
        for queue in self.queues.values_mut() {
            queue.stored = false;
            queue.extents_mut().for_each(Extents::forget_stored);
            if queue.dedup().is_some() {
                queue.dedup_mut().forget_stored();
            }
        }
    }

    /// The state that a store's keys and values hold; without any, a new machine.
    pub fn restore<K, V>(shard: ShardId, pairs: impl IntoIterator<Item = (K, V)>) -> Result<DataMachine, RestoreError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        DataMachine::new(shard).restored(pairs)
    }

    /// The same into an empty machine.
    pub fn restored<K, V>(self, pairs: impl IntoIterator<Item = (K, V)>) -> Result<DataMachine, RestoreError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        self.import(pairs, true)
    }

    /// All of the state, for another node. All at once: for a machine that nobody else uses.
    pub fn snapshot(&mut self) -> Vec<u8> {
        let id = self.begin_snapshot();
        self.capture_rest(id).map(Image::into_snapshot).unwrap_or_default()
    }

    /// The way back from `snapshot`. The next checkpoint holds everything.
    pub fn from_snapshot(shard: ShardId, bytes: &[u8]) -> Result<DataMachine, RestoreError> {
        DataMachine::new(shard).with_snapshot(bytes)
    }

    /// The same into an empty machine.
    pub fn with_snapshot(self, bytes: &[u8]) -> Result<DataMachine, RestoreError> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(RestoreError::Malformed("short snapshot"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(RestoreError::Checksum);
        }
        let body = body.strip_prefix(MAGIC).ok_or(RestoreError::Malformed("not a snapshot"))?;
        let mut input = Reader::new(body);
        match input.u8()? {
            VERSION => {}
            other => return Err(RestoreError::Version(other)),
        }
        let mut pairs = Vec::new();
        for _ in 0..input.u64()? {
            pairs.push((input.bytes()?, input.bytes()?));
        }
        input.end()?;
        self.import(pairs, false)
    }

    pub(super) fn forget_queue(&mut self, id: QueueId, queue: &Queue) {
        if queue.stored {
            self.gone.push(key(QUEUE, &[id.0]));
        }
        for (level, extents) in queue.extents().enumerate() {
            self.gone.extend(extents.stored().map(|chunk| chunk_key(id, level, chunk)));
        }
        if let Some(dedup) = queue.dedup() {
            self.gone.extend(dedup.stored().map(|piece| key(KNOWN, &[id.0, piece])));
            self.gone.push(key(PUBLISHERS, &[id.0]));
        }
    }

    fn import<K, V>(self, pairs: impl IntoIterator<Item = (K, V)>, stored: bool) -> Result<DataMachine, RestoreError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut machine = self;
        let (mut meta, mut any) = (false, false);
        for (key, value) in pairs {
            any = true;
            meta |= key.as_ref() == [META];
            machine.import_pair(key.as_ref(), value.as_ref(), stored)?;
        }
        if any && !meta {
            return Err(RestoreError::Malformed("no meta row"));
        }
        machine.full = !(stored && any);
        for queue in machine.queues.values_mut() {
            queue.complete()?;
            for index in queue.extents().flat_map(Extents::indices) {
                *machine.entries.entry(index).or_insert(0) += 1;
            }
        }
        for stream in machine.streams.values_mut() {
            stream.complete()?;
            for index in stream.indices() {
                *machine.entries.entry(index).or_insert(0) += 1;
            }
        }
        for index in machine.exits.dead.indices().chain(machine.transactions.indices()) {
            *machine.entries.entry(index).or_insert(0) += 1;
        }
        if machine.entries.last_key_value().is_some_and(|(index, _)| *index > machine.applied.index) {
            return Err(RestoreError::Malformed("extents beyond the applied entry"));
        }
        Ok(machine)
    }

    fn import_pair(&mut self, key: &[u8], value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let (kind, rest) = key.split_first().ok_or(RestoreError::Malformed("empty key"))?;
        match *kind {
            META => self.decode_meta(value),
            SESSION => self.sessions.import(SessionId(numbers::<1>(rest)?[0]), value, stored),
            QUEUE => self.imported_queue(QueueId(numbers::<1>(rest)?[0]), stored).decode_row(value),
            CHUNK => {
                let [queue, chunk] = numbers::<2>(rest)?;
                let extents = self.imported_queue(QueueId(queue), stored).level_mut((chunk >> LEVEL_SHIFT) as u8);
                extents.import(chunk & CHUNK_MASK, value, stored)
            }
            KNOWN => {
                let [queue, piece] = numbers::<2>(rest)?;
                self.imported_queue(QueueId(queue), stored).dedup_mut().import(piece, value, stored)
            }
            PUBLISHERS => {
                let [queue] = numbers::<1>(rest)?;
                self.imported_queue(QueueId(queue), stored).dedup_mut().import_publishers(value, stored)
            }
            DEAD => self.exits.dead.import(numbers::<1>(rest)?[0], value, stored),
            TRANSACTION => {
                let [node, incarnation, number] = numbers::<3>(rest)?;
                let node = u16::try_from(node).map_err(|_| RestoreError::Malformed("node of a transaction"))?;
                let tx = TxId { node: NodeId(node), incarnation: Incarnation(incarnation), number };
                self.transactions.import(tx, value, stored)
            }
            DEAD_META => self.exits.dead.decode_meta(value),
            STREAM => self.imported_stream(QueueId(numbers::<1>(rest)?[0]), stored).decode_row(value),
            READERS => self.imported_stream(QueueId(numbers::<1>(rest)?[0]), stored).decode_readers(value, stored),
            BLOCK => {
                let [stream, first] = numbers::<2>(rest)?;
                self.imported_stream(QueueId(stream), stored).import_block(first, value, stored)
            }
            _ => Err(RestoreError::Malformed("kind of key")),
        }
    }

    fn imported_queue(&mut self, id: QueueId, stored: bool) -> &mut Queue {
        if !stored {
            self.dirty.insert(id);
        }
        let queue = self.queues.entry(id).or_default();
        queue.stored = stored;
        queue
    }

    /// meta := version of the latest entry u8 | shard u16 | term u64 | voter u64 | index u64 | catalog index u64 | time_ms u64
    pub(super) fn encode_meta(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(43);
        out.u8(self.version);
        out.u16(self.shard.0);
        out.u64(self.applied.leader.term);
        out.u64(self.applied.leader.voter);
        out.u64(self.applied.index);
        out.u64(self.catalog_index);
        out.u64(self.last_time_ms);
        out.finish()
    }

    fn decode_meta(&mut self, value: &[u8]) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        self.version = input.u8()?;
        version::check(self.version, self.supports)?;
        let shard = ShardId(input.u16()?);
        if shard != self.shard {
            return Err(RestoreError::OtherShard(shard));
        }
        let leader = LeaderId { term: input.u64()?, voter: input.u64()? };
        self.applied = LogId { leader, index: input.u64()? };
        self.catalog_index = input.u64()?;
        self.last_time_ms = input.u64()?;
        input.end()
    }
}
