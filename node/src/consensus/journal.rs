//! What this room needs of the write-ahead log (`store::wal`): one FIFO per node for entries and votes of all groups. A trait, so
//! that tests can put a log in memory behind it.

use crate::model::entry::EntryBytes;
use crate::model::stored::StoredEntry;
use crate::model::{Generation, LogId, NodeId, ShardId};
use crate::store::wal::{Moved, OldFiles, Wal};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::time::Duration;

pub use crate::store::wal::{Damage, Done, Identity, LogEntry, Payload, ShardLog, Vote};

/// The log of a node.
pub trait Journal: Send + Sync + 'static {
    /// What a group's log holds.
    fn state(&self, shard: ShardId) -> ShardLog;
    /// Append; readable at once, `done` once durable.
    fn append(&self, shard: ShardId, entries: Vec<LogEntry>, done: Done);
    /// Save a vote, in the same order as appends.
    fn save_vote(&self, shard: ShardId, vote: Vote, done: Done);
    /// Keep `last`, drop what is after it (`None`: everything).
    fn truncate_after(&self, shard: ShardId, last: Option<LogId>, done: Done);
    /// Forget up to and with `upto`; lazily.
    fn purge(&self, shard: ShardId, upto: LogId);
    /// Remember how far is committed; lazily.
    fn save_committed(&self, shard: ShardId, id: LogId);
    /// Last entry known to be on this disk.
    fn flushed(&self, shard: ShardId) -> Option<LogId>;
    /// How long the write that is under way has been taking; `None`: none is.
    fn writing_for(&self) -> Option<Duration> {
        None
    }
    /// Bytes of entries that are not on this disk yet.
    fn unflushed(&self) -> usize {
        0
    }
    /// Now and then: memory that is held for no reader can go.
    fn forget_unread(&self) {}
    /// An entry from memory.
    fn cached(&self, shard: ShardId, index: u64) -> Option<LogEntry>;
    /// Entries of `range` up to `max_bytes`, at least one when the first exists. May read the disk.
    fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>>;
    /// One entry's bytes from disk, also when purged and not released.
    fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes>;
    /// Several of them, ascending, up to the first one that is not there, and where each lies.
    fn read_bodies(&self, shard: ShardId, indices: &[u64]) -> io::Result<Vec<StoredEntry>> {
        indices.iter().map(|index| self.read_body(shard, *index).map(StoredEntry::from)).collect()
    }
    /// No live message points into these entries, and a durable checkpoint says so.
    fn release(&self, shard: ShardId, indices: &[u64]);
    /// After a restart: of all entries up to `upto` only `live` (sorted) are still live.
    fn retain_only(&self, shard: ShardId, upto: u64, live: &[u64]);
    /// The id of an entry that can be read, purged or not.
    fn log_id(&self, shard: ShardId, index: u64) -> Option<LogId> {
        self.read(shard, index..index + 1, 0).ok()?.pop().map(|entry| entry.id)
    }
    /// Whether exactly this entry is on this disk and intact, staged or not. Reads the disk.
    fn holds(&self, _shard: ShardId, _id: LogId) -> bool {
        false
    }
    /// The last index of the log that is older than what is kept for replicas that lag; 0: none.
    fn floor(&self, _shard: ShardId) -> u64 {
        0
    }
    /// Entries that come by snapshot, beside the log; `done` once durable.
    fn stage(&self, _shard: ShardId, _entries: Vec<LogEntry>, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// Forget what is staged.
    fn unstage(&self, _shard: ShardId) {}
    /// A state at `upto`, whose entries are all here or staged, is about to be made durable; `done` once this and all before is durable.
    fn prepare_install(&self, _shard: ShardId, _upto: LogId, _membership: Option<(LogId, Bytes)>, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// What was prepared last and not finished.
    fn pending_install(&self, _shard: ShardId) -> Option<LogId> {
        None
    }
    /// That state is durable: what is staged becomes readable, the log is purged up to `upto`.
    fn finish_install(&self, _shard: ShardId, _upto: LogId, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// The log's files take more than they should, or than the disk has.
    fn is_over_budget(&self) -> bool {
        false
    }
    /// There is a file to go on in when the open one is full.
    fn has_spare(&self) -> bool {
        true
    }
    /// Files behind number `after` that everything may leave, until they have `entries` together.
    fn old_files(&self, _after: u32, _entries: u64) -> OldFiles {
        OldFiles::default()
    }
    /// Write purged entries again, with what is left of them; `done` once durable.
    fn relocate(&self, _shard: ShardId, _entries: Vec<Moved>, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// The newest membership entry that is not behind this index.
    fn membership_upto(&self, shard: ShardId, index: u64) -> Option<(LogId, Bytes)> {
        self.state(shard).membership.filter(|(id, _)| id.index <= index)
    }
    /// What this disk has lost of a group, which must not take part before it is rebuilt.
    fn damage(&self, _shard: ShardId) -> Option<Damage> {
        None
    }
    /// See whether the log can be read behind this index; what cannot is damage. Reads the disk.
    fn verify(&self, _shard: ShardId, _after: u64) -> io::Result<()> {
        Ok(())
    }
    /// The disk is new, what its predecessor held of the group is not known: damage.
    fn forget(&self, _shard: ShardId, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// This disk is about to give up what it holds of the group: damage, but for its votes, which stay.
    fn give_up(&self, _shard: ShardId, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// The newest life of another node's disk that was saved.
    fn life(&self, _node: NodeId) -> Option<Generation> {
        None
    }
    /// Save that another node's disk is in this life.
    fn save_life(&self, _node: NodeId, _generation: Generation, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// The group is rebuilt.
    fn mended(&self, _shard: ShardId, done: Done) {
        done(Err(io::ErrorKind::Unsupported.into()));
    }
    /// Who this disk belongs to; `None` when it is empty.
    fn identity(&self) -> Option<Identity>;
    /// Make this disk belong to somebody.
    fn save_identity(&self, identity: Identity, done: Done);
}

impl Journal for Wal {
    fn state(&self, shard: ShardId) -> ShardLog {
        Wal::state(self, shard)
    }

    fn append(&self, shard: ShardId, entries: Vec<LogEntry>, done: Done) {
        Wal::append(self, shard, entries, done)
    }

    fn save_vote(&self, shard: ShardId, vote: Vote, done: Done) {
        Wal::save_vote(self, shard, vote, done)
    }

    fn truncate_after(&self, shard: ShardId, last: Option<LogId>, done: Done) {
        Wal::truncate_after(self, shard, last, done)
    }

    fn purge(&self, shard: ShardId, upto: LogId) {
        Wal::purge(self, shard, upto)
    }

    fn save_committed(&self, shard: ShardId, id: LogId) {
        Wal::save_committed(self, shard, id)
    }

    fn flushed(&self, shard: ShardId) -> Option<LogId> {
        Wal::flushed(self, shard)
    }

    fn forget_unread(&self) {
        Wal::forget_unread(self)
    }

    fn cached(&self, shard: ShardId, index: u64) -> Option<LogEntry> {
        Wal::cached(self, shard, index)
    }

    fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        Wal::read(self, shard, range, max_bytes)
    }

    fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes> {
        Wal::read_body(self, shard, index)
    }

    fn read_bodies(&self, shard: ShardId, indices: &[u64]) -> io::Result<Vec<StoredEntry>> {
        Wal::read_bodies(self, shard, indices)
    }

    fn release(&self, shard: ShardId, indices: &[u64]) {
        Wal::release(self, shard, indices)
    }

    fn retain_only(&self, shard: ShardId, upto: u64, live: &[u64]) {
        Wal::retain_only(self, shard, upto, live)
    }

    fn log_id(&self, shard: ShardId, index: u64) -> Option<LogId> {
        Wal::log_id(self, shard, index)
    }

    fn holds(&self, shard: ShardId, id: LogId) -> bool {
        Wal::holds(self, shard, id)
    }

    fn floor(&self, shard: ShardId) -> u64 {
        Wal::floor(self, shard)
    }

    fn stage(&self, shard: ShardId, entries: Vec<LogEntry>, done: Done) {
        Wal::stage(self, shard, entries, done)
    }

    fn writing_for(&self) -> Option<Duration> {
        Wal::writing_for(self)
    }

    fn unflushed(&self) -> usize {
        Wal::unflushed(self)
    }

    fn unstage(&self, shard: ShardId) {
        Wal::unstage(self, shard)
    }

    fn prepare_install(&self, shard: ShardId, upto: LogId, membership: Option<(LogId, Bytes)>, done: Done) {
        Wal::prepare_install(self, shard, upto, membership, done)
    }

    fn pending_install(&self, shard: ShardId) -> Option<LogId> {
        Wal::pending_install(self, shard)
    }

    fn finish_install(&self, shard: ShardId, upto: LogId, done: Done) {
        Wal::finish_install(self, shard, upto, done)
    }

    fn is_over_budget(&self) -> bool {
        Wal::is_over_budget(self)
    }

    fn has_spare(&self) -> bool {
        Wal::has_spare(self)
    }

    fn old_files(&self, after: u32, entries: u64) -> OldFiles {
        Wal::old_files(self, after, entries)
    }

    fn relocate(&self, shard: ShardId, entries: Vec<Moved>, done: Done) {
        Wal::relocate(self, shard, entries, done)
    }

    fn membership_upto(&self, shard: ShardId, index: u64) -> Option<(LogId, Bytes)> {
        Wal::membership_upto(self, shard, index)
    }

    fn damage(&self, shard: ShardId) -> Option<Damage> {
        Wal::damage(self, shard)
    }

    fn verify(&self, shard: ShardId, after: u64) -> io::Result<()> {
        Wal::verify(self, shard, after)
    }

    fn mended(&self, shard: ShardId, done: Done) {
        Wal::mended(self, shard, done)
    }

    fn forget(&self, shard: ShardId, done: Done) {
        Wal::forget(self, shard, done)
    }

    fn give_up(&self, shard: ShardId, done: Done) {
        Wal::give_up(self, shard, done)
    }

    fn life(&self, node: NodeId) -> Option<Generation> {
        Wal::life(self, node)
    }

    fn save_life(&self, node: NodeId, generation: Generation, done: Done) {
        Wal::save_life(self, node, generation, done)
    }

    fn identity(&self) -> Option<Identity> {
        Wal::identity(self)
    }

    fn save_identity(&self, identity: Identity, done: Done) {
        Wal::save_identity(self, identity, done)
    }
}
