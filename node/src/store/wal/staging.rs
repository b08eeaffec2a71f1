//! Entries that come by snapshot (rule 6): staged beside the log while a transfer runs, merged into the index when the state that
//! needs them is durable. A crash before that leaves the old log; what was staged is dropped or used by the next attempt.

use super::entry::{Done, LogEntry, Payload};
use super::group::Pending;
use super::index::{Frees, Location, NOWHERE, Row, ShardIndex};
use super::reader::Wanted;
use super::state::{Op, Shared};
use crate::model::{LeaderId, LogId, ShardId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// An entry that came by snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Staged {
    pub leader: LeaderId,
    /// `None`: not durable yet.
    pub at: Option<Location>,
}

impl ShardIndex {
    /// An entry comes.
    pub fn stage(&mut self, id: LogId) {
        self.staged.entry(id.index).or_insert(Staged { leader: id.leader, at: None });
    }

    /// It is durable. False: nobody needs it any more, or it is there already.
    pub fn place_staged(&mut self, id: LogId, at: Location) -> bool {
        match self.staged.get_mut(&id.index) {
            Some(staged) if staged.leader == id.leader && staged.at.is_none() => {
                staged.at = Some(at);
                true
            }
            _ => false,
        }
    }

    /// All that is staged goes.
    pub fn unstage(&mut self) -> Frees {
        let mut frees = Frees::default();
        std::mem::take(&mut self.staged).into_values().filter_map(|s| s.at).for_each(|at| frees.add(at.file));
        frees
    }

    /// Whether entries behind `upto` may stay when a snapshot at `upto` is installed.
    pub fn continues(&self, upto: LogId) -> bool {
        let here = self.find(upto.index).and_then(|_| self.leader_at(upto.index));
        let passed = self.group.purged.is_some_and(|p| p.index >= upto.index);
        passed || here == Some(upto.leader) || self.group.last.is_none_or(|last| last.index < upto.index)
    }

    /// The state at `upto` is durable. Returns what was freed and the cache bytes.
    pub fn install(&mut self, upto: LogId, keep_tail: bool) -> (Frees, usize) {
        let mut frees = Frees::default();
        let mut bytes = self.uncache_upto(upto.index);
        if !keep_tail {
            frees.append(self.drop_after(Some(upto.index)));
            bytes += self.uncache_after(Some(upto.index));
            self.epoch += 1;
            self.cuts.push((self.epoch, Some(upto.index)));
            self.flushed = self.flushed.filter(|f| f.index < upto.index);
        }
        self.merge(upto.index, &mut frees);
        if let Some((purged, more)) = self.purge(upto) {
            frees.append(purged);
            bytes += more;
        }
        self.group.install(upto, keep_tail);
        (frees, bytes)
    }

    /// An installation whose own record may be gone with its file. What was staged since for a later one stays staged: by now somebody
    /// may count on it (rule 6).
    pub fn restate_install(&mut self, upto: LogId) {
        let later = self.staged.split_off(&(upto.index + 1));
        self.install(upto, true);
        self.staged = later;
    }

    /// Staged entries take their places among the rows, instead of others with their index.
    fn merge(&mut self, upto: u64, frees: &mut Frees) {
        let staged = std::mem::take(&mut self.staged);
        if staged.is_empty() {
            return;
        }
        let mut all: BTreeMap<u64, (Row, LeaderId)> = BTreeMap::new();
        for row in self.rows.iter().filter(|r| !r.is_dead()) {
            if let Some(leader) = self.leader_at(row.index) {
                all.insert(row.index, (*row, leader));
            }
        }
        for (index, Staged { leader, at }) in staged {
            let Some(at) = at else { continue };
            // It was staged because what is here is missing, or could not be read.
            if index > upto {
                frees.add(at.file);
            } else if let Some((old, _)) = all.insert(index, (Row::new(index, at), leader)) {
                frees.add(old.file);
            }
        }
        self.dead = 0;
        self.leaders = VecDeque::new();
        for (index, (_, leader)) in &all {
            if self.leaders.back().is_none_or(|(_, last)| last != leader) {
                self.leaders.push_back((*index, *leader));
            }
        }
        self.rows = all.into_values().map(|(row, _)| row).collect();
    }

    /// The last index that is in the log and in a file before `file`; 0: none.
    fn last_before(&self, file: u32) -> u64 {
        let purged = self.group.purged.map(|p| p.index);
        let older = |row: &Row| Some(row.index) <= purged || (row.file != NOWHERE && row.file < file);
        let end = self.rows.partition_point(older);
        end.checked_sub(1).map(|at| self.rows[at].index).filter(|index| Some(*index) > purged).unwrap_or(0)
    }
}

impl Shared {
    pub fn stage(&self, shard: ShardId, entries: Vec<LogEntry>, done: Done) {
        self.submit(done, |state, done| {
            let largest = self.config.entry_bytes_max() + self.config.reserve();
            let is_body = |payload: &Payload| matches!(payload, Payload::Normal(_) | Payload::Trimmed(_));
            if entries.iter().any(|e| !is_body(&e.payload) || e.payload.len() as u64 > largest) {
                return Err((done, io::Error::new(io::ErrorKind::InvalidInput, "only normal entries that fit into a file are staged")));
            }
            entries.iter().for_each(|e| state.shard(shard).stage(e.id));
            Ok(Op::Stage { shard, entries: entries.into(), done })
        });
    }

    pub fn unstage(&self, shard: ShardId) {
        let mut state = self.lock();
        let frees = state.shard(shard).unstage();
        if !frees.is_empty() {
            self.inbox().queue.push_back(Op::Free(frees));
        }
    }

    pub fn prepare_install(&self, shard: ShardId, upto: LogId, membership: Option<(LogId, Bytes)>, done: Done) {
        self.submit(done, |state, done| {
            let pending = Pending { upto, membership };
            state.shard(shard).group.pending = Some(pending.clone());
            Ok(Op::Prepare { shard, pending, done })
        });
    }

    pub fn finish_install(&self, shard: ShardId, upto: LogId, done: Done) {
        self.submit(done, |state, done| {
            let index = state.shard(shard);
            // Behind damage nothing here is known to be what was acknowledged.
            let keep_tail = index.group.damaged.is_none() && index.continues(upto);
            let (frees, bytes) = index.install(upto, keep_tail);
            // The epoch before, when nothing was cut: then there is nothing to forget.
            let epoch = if keep_tail { 0 } else { index.epoch };
            state.stats.cache_bytes -= bytes;
            Ok(Op::Install { shard, upto, keep_tail, epoch, frees, done })
        });
    }

    pub fn log_id(&self, shard: ShardId, index: u64) -> Option<LogId> {
        let state = self.lock();
        let log = state.shards.get(&shard)?;
        log.find(index)?;
        Some(LogId { leader: log.leader_at(index)?, index })
    }

    pub fn holds(&self, shard: ShardId, id: LogId) -> bool {
        let wanted = || {
            let state = self.lock();
            let log = state.shards.get(&shard)?;
            let row = log.find(id.index).filter(|at| at.file != NOWHERE && log.leader_at(id.index) == Some(id.leader));
            let staged = log.staged.get(&id.index).filter(|s| s.leader == id.leader).and_then(|s| s.at);
            let at = row.or(staged)?;
            let file = state.files.get(&at.file)?.file.clone();
            Some(Wanted { index: id.index, at, file, leader: Some(id.leader) })
        };
        let Some(wanted) = wanted() else { return false };
        self.is_readable(shard, wanted)
    }

    pub fn floor(&self, shard: ShardId) -> u64 {
        let state = self.lock();
        let files = (self.config.catch_up_bytes / self.config.file_bytes).max(1) as usize;
        let oldest_kept = state.files.keys().rev().nth(files - 1).copied().unwrap_or(0);
        state.shards.get(&shard).map_or(0, |log| log.last_before(oldest_kept))
    }
}
