//! What this room needs of the write-ahead log (`store::wal`): one FIFO per node for entries and votes of all groups. A trait, so
//! that tests can put a log in memory behind it.

use crate::model::entry::EntryBytes;
use crate::model::{Generation, LeaderId, LogId, NodeId, ShardId};
use bytes::Bytes;
use std::io;
use std::ops::Range;

/// An entry of a group's log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// Its id.
    pub id: LogId,
    /// What is in it.
    pub payload: Payload,
}

/// Contents of an entry; cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    /// A command of the machine.
    Normal(EntryBytes),
    /// The group's members (`types::write_membership`).
    Membership(Bytes),
}

/// A Raft vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// For whom.
    pub leader: LeaderId,
    /// Granted by a quorum.
    pub committed: bool,
}

/// What a group's log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShardLog {
    /// Last vote.
    pub vote: Option<Vote>,
    /// Last purged entry.
    pub purged: Option<LogId>,
    /// Last entry.
    pub last: Option<LogId>,
    /// Committed as last saved; may lag.
    pub committed: Option<LogId>,
    /// The newest membership entry, committed or not.
    pub membership: Option<(LogId, Bytes)>,
}

/// Rule 1: who this disk belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The node.
    pub node: NodeId,
    /// Which life of its disk.
    pub generation: Generation,
}

/// Called once, on the log's thread, after the fdatasync.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

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
    /// An entry from memory.
    fn cached(&self, shard: ShardId, index: u64) -> Option<LogEntry>;
    /// Entries of `range` up to `max_bytes`, at least one when the first exists. May read the disk.
    fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>>;
    /// One entry's bytes from disk, also when purged and not released.
    fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes>;
    /// No live message points into these entries, and a durable checkpoint says so.
    fn release(&self, shard: ShardId, indices: &[u64]);
    /// After a restart: of all entries up to `upto` only `live` (sorted) are still live.
    fn retain_only(&self, shard: ShardId, upto: u64, live: &[u64]);
    /// Who this disk belongs to; `None` when it is empty.
    fn identity(&self) -> Option<Identity>;
    /// Make this disk belong to somebody.
    fn save_identity(&self, identity: Identity, done: Done);
}
