//! The write-ahead log: one per node, entries and votes of all Raft groups in one FIFO, one write and one fdatasync per batch.
//! `consensus` appends and reads, deliveries read bodies, `state` says what may be forgotten. Format: docs/formats.md.

mod entry;
mod group;
mod index;
mod state;
mod stats;

pub use entry::{Done, FatalHook, Identity, LogEntry, Payload, ShardLog, Vote, WalConfig, WalError};
pub use stats::{SYNC_BUCKETS, WalStats};

use crate::model::entry::EntryBytes;
use crate::model::{LogId, ShardId};
use crate::store::disk::Disk;
use state::{Op, Shared};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Handle of the log; clones share it. When the last one is dropped the queue is written out and the threads end.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
}

impl Wal {
    /// Recover what is in `disk`, make the tail durable again (rule 4), start the writer.
    ///
    /// Errors: `WalError::Corrupt` when synced data is damaged: nothing was changed then.
    pub fn open(disk: Arc<dyn Disk>, config: WalConfig) -> Result<Wal, WalError> {
        let _ = disk;
        Ok(Wal { shared: Shared::new(config) })
    }

    /// The group's state; default for one never heard of.
    pub fn state(&self, shard: ShardId) -> ShardLog {
        self.shared.lock().shards.get(&shard).map(|s| s.group.log()).unwrap_or_default()
    }

    /// All groups that left anything in the log.
    pub fn shards(&self) -> Vec<ShardId> {
        let mut shards: Vec<ShardId> = self.shared.lock().shards.keys().copied().collect();
        shards.sort_unstable();
        shards
    }

    /// Append entries that follow the group's last one. They can be read when this returns; `done` runs when they are durable.
    pub fn append(&self, shard: ShardId, entries: Vec<LogEntry>, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        self.shared.append(shard, entries, Box::new(done));
    }

    /// Save a vote, in the same order as everything else.
    pub fn save_vote(&self, shard: ShardId, vote: Vote, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let done: Done = Box::new(done);
        self.shared.submit(done, |state, done| {
            state.shard(shard).group.vote = Some(vote);
            Op::Vote { shard, vote, done }
        });
    }

    /// Keep `last`, drop what follows; `None` drops all that is not purged.
    pub fn truncate_after(&self, shard: ShardId, last: Option<LogId>, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let done: Done = Box::new(done);
        self.shared.submit(done, |state, done| {
            let index = state.shard(shard);
            let (frees, bytes) = index.truncate(last);
            let (keep, epoch) = (index.group.last, index.epoch);
            state.stats.cache_bytes -= bytes;
            Op::Truncate { shard, keep, epoch, frees, done }
        });
    }

    /// Forget entries up to `upto`, inclusive; those not released stay readable. Beyond the last entry it resets the log (snapshot).
    pub fn purge(&self, shard: ShardId, upto: LogId) {
        self.shared.purge(shard, upto);
    }

    /// Remember the commit point; written with the next batch.
    pub fn save_committed(&self, shard: ShardId, id: LogId) {
        let mut state = self.shared.lock();
        let index = state.shard(shard);
        index.group.committed = Some(id);
        index.committed_dirty = true;
    }

    /// Last id that is durable here; a checkpoint must not be newer.
    pub fn flushed(&self, shard: ShardId) -> Option<LogId> {
        self.shared.lock().shards.get(&shard).and_then(|s| s.flushed)
    }

    /// From the tail cache only.
    pub fn cached(&self, shard: ShardId, index: u64) -> Option<LogEntry> {
        self.shared.lock().shards.get(&shard)?.cached(index).cloned()
    }

    /// Entries of `range` from its start up to the first missing one or `max_bytes`, but at least one when the first exists. May
    /// block on the disk. Errors: `InvalidData` when the disk returned something else than was written.
    pub fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let _ = (shard, range, max_bytes);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The bytes of one normal entry, purged or not, for deliveries. Blocks on the disk; does not touch the tail cache's content.
    /// Errors: `NotFound`, `InvalidData` as in `read`.
    pub fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes> {
        let _ = (shard, index);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// No live message points into these entries any more and a durable checkpoint says so.
    pub fn release(&self, shard: ShardId, indices: &[u64]) {
        self.shared.release(shard, indices.iter().copied());
    }

    /// Of all entries up to `upto` only `live` (ascending) still hold messages. For the start and after an installed snapshot.
    pub fn retain_only(&self, shard: ShardId, upto: u64, live: &[u64]) {
        self.shared.retain_only(shard, upto, live);
    }

    /// Save whose disk this is.
    pub fn save_identity(&self, identity: Identity, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let done: Done = Box::new(done);
        self.shared.submit(done, |state, done| {
            state.identity = Some(identity);
            Op::Identity { identity, done }
        });
    }

    /// Whose disk this is; `None` on an empty one.
    pub fn identity(&self) -> Option<Identity> {
        self.shared.lock().identity
    }

    /// There is no space for another file: entries wait.
    pub fn is_full(&self) -> bool {
        self.shared.lock().stats.full
    }

    /// Counters.
    pub fn stats(&self) -> WalStats {
        self.shared.stats()
    }
}
