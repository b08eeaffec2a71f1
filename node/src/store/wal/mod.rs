//! The write-ahead log: one per node, entries and votes of all Raft groups in one FIFO, one write and one fdatasync per batch.
//! `consensus` appends and reads, deliveries read bodies, `state` says what may be forgotten. Format: docs/formats.md.

mod buffers;
mod cleaning;
#[cfg(test)]
mod cleaning_tests;
#[cfg(test)]
mod crash_tests;
mod damage;
#[cfg(test)]
mod damage_tests;
mod entry;
mod file;
mod format;
mod group;
mod index;
mod keeper;
#[cfg(test)]
mod lending_tests;
mod meta;
mod pace;
mod reader;
mod recovery;
mod scan;
mod sidecar;
mod staging;
#[cfg(test)]
mod staging_tests;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod writer;

pub use cleaning::{Moved, OldFile, OldFiles};
pub use entry::{Damage, Done, FatalHook, Identity, LogEntry, Payload, ShardLog, Vote, WalConfig, WalError};
pub use stats::{SYNC_BUCKETS, WalStats};

use crate::model::entry::EntryBytes;
use crate::model::stored::StoredEntry;
use crate::model::{Generation, LogId, NodeId, ShardId, limits};
use crate::store::disk::Disk;
use bytes::Bytes;
use file::{WalFile, prepare};
use format::Lap;
use keeper::Keeper;
use parking_lot::Mutex;
use recovery::{Recovered, Tail, recover};
use state::{Commits, Op, Shared};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use writer::Writer;

/// Handle of the log; clones share it. When the last one is dropped the queue is written out and the threads end.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
}

/// Ends the threads with the last handle.
struct Threads {
    shared: Arc<Shared>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    fn stop(&self) {
        self.shared.stop();
        let running = std::mem::take(&mut *self.running.lock());
        for thread in running.into_iter().filter(|t| t.thread().id() != thread::current().id()) {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Wal {
    /// Recover what is in `disk`, make the tail durable again (rule 4), start the writer. Groups that lost something are told by `damage`.
    ///
    /// Errors: `WalError::Corrupt` when not even whose disk this is can be read: nothing was changed then.
    pub fn open(disk: Arc<dyn Disk>, config: WalConfig) -> Result<Wal, WalError> {
        config.check()?;
        let mut recovered = recover(&*disk, &config)?;
        let io_error = |source| WalError::Io { doing: "start the log".into(), source };
        let (tail, fresh) = match recovered.tail.take() {
            Some(tail) => (tail, false),
            None => (first_file(&*disk, &config, &mut recovered).map_err(io_error)?, true),
        };
        let Recovered { state, meta, notes, .. } = recovered;
        let shared = Shared::new(config, state, disk.clone());
        let Tail { file, position, closed, next_batch, items } = tail;
        let mut writer = Writer {
            shared: shared.clone(),
            file,
            position,
            closed,
            next_batch,
            meta,
            items,
            heads: Vec::new(),
            waiting: notes,
            commits: Commits::new(),
        };
        if fresh {
            writer.begin(writer.file.clone()).map_err(io_error)?;
        }
        let keeper = Keeper { shared: shared.clone(), disk };
        let threads = Arc::new(Threads { shared: shared.clone(), running: Mutex::new(Vec::new()) });
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into()).spawn(run).map_err(io_error)?;
            threads.running.lock().push(thread);
            Ok(())
        };
        spawn("wal", Box::new(|| writer.run()))?;
        spawn("wal-keeper", Box::new(|| keeper.run()))?;
        Ok(Wal { shared, threads })
    }

    /// Write out what is queued, end the threads, refuse all later requests. Also happens with the last handle.
    pub fn close(&self) {
        self.threads.stop();
    }

    /// The group's state; default for one never heard of.
    pub fn state(&self, shard: ShardId) -> ShardLog {
        self.shared.lock().shards.get(&shard).map(|s| s.group.log()).unwrap_or_default()
    }

    /// The newest membership entry that is not behind this index.
    pub fn membership_upto(&self, shard: ShardId, index: u64) -> Option<(LogId, Bytes)> {
        let state = self.shared.lock();
        let memberships = &state.shards.get(&shard)?.group.memberships;
        memberships.iter().rfind(|(id, _)| id.index <= index).cloned()
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
            Ok(Op::Vote { shard, vote, done })
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
            Ok(Op::Truncate { shard, keep, epoch, frees, done })
        });
    }

    /// Forget entries up to `upto`, inclusive; those not released stay readable. Beyond the last entry it resets the log (snapshot).
    pub fn purge(&self, shard: ShardId, upto: LogId) {
        self.shared.purge(shard, upto);
    }

    /// Remember the commit point; written with the next batch.
    pub fn save_committed(&self, shard: ShardId, id: LogId) {
        let mut state = self.shared.lock();
        state.shard(shard).group.committed = Some(id);
        self.shared.inbox().commits.insert(shard, id);
    }

    /// Last id that is durable here; a checkpoint must not be newer.
    pub fn flushed(&self, shard: ShardId) -> Option<LogId> {
        self.shared.lock().shards.get(&shard).and_then(|s| s.flushed)
    }

    /// From the tail cache only.
    pub fn cached(&self, shard: ShardId, index: u64) -> Option<LogEntry> {
        self.shared.lock().shards.get_mut(&shard)?.read_cached(index)
    }

    /// Gives back what the tail cache holds for nobody: entries that have been there for a while and that no reader is close to. Call it
    /// now and then.
    pub fn forget_unread(&self) {
        self.shared.lock().forget_unread(limits::TAIL_CACHE_AGE, Instant::now());
        self.shared.buffers.forget();
    }

    /// Entries of `range` from its start up to the first missing one or `max_bytes`, but at least one when the first exists. May
    /// block on the disk. Errors: `InvalidData` when the disk returned something else than was written.
    pub fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        self.shared.read(shard, range, max_bytes)
    }

    /// The bytes of one normal entry, purged or not, for deliveries. Blocks on the disk; does not touch the tail cache's content.
    /// Errors: `NotFound`, `InvalidData` as in `read`.
    pub fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes> {
        self.shared.read_body(shard, index)
    }

    /// Several of them, ascending, up to the first one that is not there, and where each lies: those from disk can be sent from there, and
    /// their buffers are to be let go soon. Errors as in `read_body`, for all when one of them is damaged.
    pub fn read_bodies(&self, shard: ShardId, indices: &[u64]) -> io::Result<Vec<StoredEntry>> {
        self.shared.read_bodies(shard, indices)
    }

    /// No live message points into these entries any more and a durable checkpoint says so.
    pub fn release(&self, shard: ShardId, indices: &[u64]) {
        self.shared.release(shard, indices.iter().copied());
    }

    /// Of all entries up to `upto` only `live` (ascending) still hold messages. For the start and after an installed snapshot.
    pub fn retain_only(&self, shard: ShardId, upto: u64, live: &[u64]) {
        self.shared.retain_only(shard, upto, live);
    }

    /// Bytes of entries that come by snapshot. They are not part of the log; once durable they count for `holds`, and after
    /// `finish_install` they are read like purged entries.
    pub fn stage(&self, shard: ShardId, entries: Vec<LogEntry>, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        self.shared.stage(shard, entries, Box::new(done));
    }

    /// Forget what is staged.
    pub fn unstage(&self, shard: ShardId) {
        self.shared.unstage(shard);
    }

    /// All that the state at `upto` needs is staged or in the log, and that state is about to be made durable elsewhere. When `done`
    /// runs, this and everything asked for before is durable.
    pub fn prepare_install(
        &self,
        shard: ShardId,
        upto: LogId,
        membership: Option<(LogId, Bytes)>,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        self.shared.prepare_install(shard, upto, membership, Box::new(done));
    }

    /// The prepared snapshot, whose state may or may not be durable.
    pub fn pending_install(&self, shard: ShardId) -> Option<LogId> {
        self.shared.lock().shards.get(&shard)?.group.pending.as_ref().map(|p| p.upto)
    }

    /// The state at `upto` is durable: staged entries become readable, the log up to there is purged. Entries behind `upto` stay if the
    /// log holds exactly that entry, else they go: they contradict what is committed.
    pub fn finish_install(&self, shard: ShardId, upto: LogId, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        self.shared.finish_install(shard, upto, Box::new(done));
    }

    /// Files with data take more than they should, or than the disk has: what is alive in old ones is to leave them.
    pub fn is_over_budget(&self) -> bool {
        self.shared.is_over_budget()
    }

    /// There is a file to go on in when the open one is full.
    pub fn has_spare(&self) -> bool {
        self.shared.has_spare()
    }

    /// Closed files behind number `after` of which everything that is needed is purged and may leave them, until they have `entries`
    /// together; at least one file is looked at.
    pub fn old_files(&self, after: u32, entries: u64) -> OldFiles {
        self.shared.old_files(after, entries)
    }

    /// Writes purged entries again, with what is left of them; durable when `done` runs, and found there from then on. An entry that has
    /// gone meanwhile, or is not in the file any more where it was read, stays as it is.
    pub fn relocate(&self, shard: ShardId, entries: Vec<Moved>, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        self.shared.relocate(shard, entries, Box::new(done));
    }

    /// The id of an entry that can be read.
    pub fn log_id(&self, shard: ShardId, index: u64) -> Option<LogId> {
        self.shared.log_id(shard, index)
    }

    /// Whether exactly this entry is on this disk, staged or not. Reads it: rot counts as absence.
    pub fn holds(&self, shard: ShardId, id: LogId) -> bool {
        self.shared.holds(shard, id)
    }

    /// The last index of the group's log that lies before the newest `catch_up_bytes` of the WAL; 0: none.
    pub fn floor(&self, shard: ShardId) -> u64 {
        self.shared.floor(shard)
    }

    /// What this disk has lost of the group, which must not vote or acknowledge anything before it is rebuilt.
    pub fn damage(&self, shard: ShardId) -> Option<Damage> {
        self.shared.lock().shards.get(&shard)?.group.damaged
    }

    /// Reads the log's first entry, which tells where it begins, and what it holds behind `after`, which the group is about to be made
    /// from. A sidecar tells that an entry is there, not that it can be read: when one cannot, the group is damaged. Blocks on the disk.
    pub fn verify(&self, shard: ShardId, after: u64) -> io::Result<()> {
        const STEP: usize = 1 << 20;
        let state = self.state(shard);
        let mut next = state.purged.map_or(0, |id| id.index + 1);
        while state.last.is_some_and(|last| next <= last.index) {
            let to = if next <= after { next + 1 } else { u64::MAX };
            match self.read(shard, next..to, STEP) {
                Ok(read) if read.is_empty() && next > after => return Ok(()),
                Ok(read) => next = (next + read.len() as u64).max(after + 1),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.note_damage(shard, Damage { votes: None }, Box::new(|_| ()));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The group is rebuilt: what it may have acknowledged is here again, and its vote is not older than any it may have given.
    pub fn mended(&self, shard: ShardId, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let done: Done = Box::new(done);
        self.shared.submit(done, |state, done| {
            state.shard(shard).group.damaged = None;
            Ok(Op::Note { record: meta::mended_record(shard), done })
        });
    }

    /// The disk is new, what its predecessor held of a group is not known: damage until `mended`.
    pub fn forget(&self, shard: ShardId, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        self.note_damage(shard, Damage::FORGOTTEN, Box::new(done));
    }

    /// What this disk holds of the group is given up, but for its votes: damage until `mended`.
    pub fn give_up(&self, shard: ShardId, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        self.note_damage(shard, Damage { votes: None }, Box::new(done));
    }

    fn note_damage(&self, shard: ShardId, damage: Damage, done: Done) {
        self.shared.submit(done, |state, done| {
            state.shard(shard).group.damaged = Some(damage);
            Ok(Op::Note { record: meta::damaged_record(shard, damage), done })
        });
    }

    /// Save that another node's disk is in this life.
    pub fn save_life(&self, node: NodeId, generation: Generation, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let done: Done = Box::new(done);
        self.shared.submit(done, |state, done| {
            state.lives.insert(node, generation);
            Ok(Op::Note { record: meta::life_record(node, generation), done })
        });
    }

    /// The newest life of another node's disk that was saved.
    pub fn life(&self, node: NodeId) -> Option<Generation> {
        self.shared.lock().lives.get(&node).copied()
    }

    /// Save whose disk this is.
    pub fn save_identity(&self, identity: Identity, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let shared = self.shared.clone();
        // Nobody may be told before it is on the disk.
        let done: Done = Box::new(move |saved| {
            if saved.is_ok() {
                shared.lock().identity = Some(identity);
            }
            done(saved);
        });
        self.shared.submit(done, |_, done| Ok(Op::Note { record: meta::identity_record(identity), done }));
    }

    /// Whose disk this is; `None` on an empty one.
    pub fn identity(&self) -> Option<Identity> {
        self.shared.lock().identity
    }

    /// A spare file could not be prepared: stop taking messages now. What is appended still goes into what is prepared, then waits.
    pub fn is_full(&self) -> bool {
        self.shared.lock().stats.low_space
    }

    /// How long the write and sync under way have been taking; `None`: none is under way. Takes no lock.
    pub fn writing_for(&self) -> Option<Duration> {
        self.shared.pace.writing_for()
    }

    /// Bytes of appended entries that are not durable yet. Takes no lock.
    pub fn unflushed(&self) -> usize {
        self.shared.pace.queued_bytes()
    }

    /// Counters.
    pub fn stats(&self) -> WalStats {
        self.shared.stats()
    }
}

/// A file for the first lap.
fn first_file(disk: &dyn Disk, config: &WalConfig, recovered: &mut Recovered) -> io::Result<Tail> {
    let state = &mut recovered.state;
    let ready = match state.ready.pop_front() {
        Some(ready) => ready,
        None => {
            state.next_seq += 1;
            prepare(disk, state.next_seq - 1, config.file_bytes, || {})?
        }
    };
    let lap = Lap { seq: ready.seq, salt: rand::random() };
    let file = Arc::new(WalFile::new(lap, ready.file, false));
    Ok(Tail { file, position: 0, closed: false, next_batch: 1, items: Vec::new() })
}
