//! What callers put into the WAL and get back: log entries, votes, the identity of the disk, a group's state, errors, settings.

use super::format::SECTOR;
use crate::model::entry::EntryBytes;
use crate::model::{Generation, LeaderId, LogId, NodeId, limits};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;

/// An entry of a group's log. Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub id: LogId,
    /// What it says.
    pub payload: Payload,
}

/// Content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    /// For the machine.
    Normal(EntryBytes),
    /// A membership, as `consensus` encodes it.
    Membership(Bytes),
    /// What is left of an entry for the machine (`model::entry::trimmed`): of purged ones, and of those that come by snapshot.
    Trimmed(EntryBytes),
}

impl Payload {
    /// Bytes on disk, without the record's head.
    pub fn len(&self) -> usize {
        match self {
            Payload::Blank => 0,
            Payload::Normal(rope) | Payload::Trimmed(rope) => rope.len(),
            Payload::Membership(bytes) => bytes.len(),
        }
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A Raft vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// For whom.
    pub leader: LeaderId,
    /// A quorum granted it.
    pub committed: bool,
}

/// A damaged place in the log took records of a group: the group may neither vote nor acknowledge here until it has been rebuilt (rules
/// 1, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Votes of terms up to this one may have been lost; `None`: the last vote is known.
    pub votes: Option<u64>,
}

impl Damage {
    /// The disk is empty: nobody knows which votes were on it.
    pub const FORGOTTEN: Damage = Damage { votes: Some(u64::MAX) };
}

/// Whose disk this is (rule 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's UUID.
    pub cluster: u128,
    /// The node.
    pub node: NodeId,
    /// Which life of its disk.
    pub generation: Generation,
    /// Data shards of the cluster, fixed when it was formed.
    pub shards: u16,
}

/// A group's part of the WAL as openraft asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardLog {
    /// The newest vote given to `save_vote`.
    pub vote: Option<Vote>,
    /// Entries up to here are logically gone.
    pub purged: Option<LogId>,
    /// Last entry; `purged` when the log is empty.
    pub last: Option<LogId>,
    /// As `save_committed` said; after a restart possibly an older one.
    pub committed: Option<LogId>,
    /// The newest membership entry, committed or not. A membership that came by snapshot is not here.
    pub membership: Option<(LogId, Bytes)>,
}

/// Called instead of `abort` when a write or sync failed; afterwards the WAL answers every request with an error.
pub type FatalHook = Arc<dyn Fn(&io::Error) + Send + Sync>;

/// Settings.
#[derive(Clone)]
pub struct WalConfig {
    /// Size of one file, bytes; an entry must fit into one.
    pub file_bytes: u64,
    /// Recycled files are kept for reuse while all files together are within this; more is used when entries need it. Files with data
    /// beyond it are to be cleaned (`Wal::is_over_budget`).
    pub budget_bytes: u64,
    /// Log files up to this size together are kept for replicas that lag or are away; older entries are not.
    pub catch_up_bytes: u64,
    /// Bytes of recent entries kept in memory, all groups together. Entries that are not synced stay in any case.
    pub tail_cache_bytes: usize,
    /// Files prepared ahead.
    pub spare_files: usize,
    /// Most bytes of one batch.
    pub batch_bytes: usize,
    /// `None`: abort the process.
    pub fatal: Option<FatalHook>,
}

impl Default for WalConfig {
    fn default() -> WalConfig {
        WalConfig {
            file_bytes: limits::WAL_FILE_BYTES,
            budget_bytes: limits::LOG_BUDGET_BYTES,
            catch_up_bytes: limits::CATCH_UP_BYTES,
            tail_cache_bytes: limits::TAIL_CACHE_BYTES,
            spare_files: 2,
            batch_bytes: 8 << 20,
            fatal: None,
        }
    }
}

impl WalConfig {
    /// Largest payload of an entry, bytes.
    pub fn entry_bytes_max(&self) -> u64 {
        self.file_bytes / 2
    }

    /// Kept free at a file's end for records that free space when there is none for another file.
    pub(super) fn reserve(&self) -> u64 {
        (self.file_bytes / 16).min(64 << 10).next_multiple_of(SECTOR)
    }

    pub(super) fn check(&self) -> Result<(), WalError> {
        let refuse = |text: &str| Err(WalError::Config(text.into()));
        if self.file_bytes < 16 << 10 || self.file_bytes > 1 << 30 || !self.file_bytes.is_multiple_of(SECTOR) {
            return refuse("file_bytes must be a multiple of 512 from 16 KiB to 1 GiB");
        }
        if self.spare_files == 0 || self.batch_bytes == 0 {
            return refuse("spare_files and batch_bytes must not be 0");
        }
        Ok(())
    }
}

/// Why a WAL cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The file layer failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Its error.
        source: io::Error,
    },
    /// Synced data is damaged in a way that no group can be told from another: even whose disk this is, is lost.
    #[error(
        "WAL file {file} is damaged at byte {position}: {detail}. Restore the data directory, or leave this node out: it does not know \
         what it has confirmed"
    )]
    Corrupt {
        /// Lap number of the file, which is also its name.
        file: u32,
        /// Where.
        position: u64,
        /// What.
        detail: String,
    },
    /// Written by a newer version.
    #[error("WAL file {file} has format version {version}; this version reads {known}")]
    Version {
        /// Lap number.
        file: u32,
        /// Found.
        version: u32,
        /// Known.
        known: u32,
    },
    /// Settings that cannot work.
    #[error("WAL settings: {0}")]
    Config(String),
}

/// Called on the WAL's thread, once, when the request is durable or has failed. Must not block.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send + 'static>;
