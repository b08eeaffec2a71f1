//! Where a group's entries are: one sorted row of 24 bytes per entry that may still be read, also for purged ones that are pinned
//! because live messages point into them; and the group's part of the tail cache. What a snapshot brings is in `staging`.

use super::entry::{LogEntry, Payload};
use super::group::{Group, later};
use super::staging::Staged;
use crate::model::{LeaderId, LogId, ShardId};
use std::collections::{BTreeMap, VecDeque};

/// File number of an entry that is not on disk yet.
pub(super) const NOWHERE: u32 = 0;
/// Added to an entry's bytes for the cache budget.
const CACHE_OVERHEAD: usize = 96;
const RELEASED: u32 = 1 << 31;
const DEAD: u32 = 1 << 30;
const LEN: u32 = DEAD - 1;

/// A place in a file: its record's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub file: u32,
    pub position: u32,
    /// Payload bytes.
    pub len: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub index: u64,
    pub file: u32,
    position: u32,
    len_flags: u32,
}

impl Row {
    pub fn new(index: u64, at: Location) -> Row {
        Row { index, file: at.file, position: at.position, len_flags: at.len }
    }

    pub fn at(&self) -> Location {
        Location { file: self.file, position: self.position, len: self.len_flags & LEN }
    }

    /// A copy of it is there.
    pub fn move_to(&mut self, at: Location) {
        (self.file, self.position) = (at.file, at.position);
        self.len_flags = self.len_flags & !LEN | at.len;
    }

    pub fn is_dead(&self) -> bool {
        self.len_flags & DEAD != 0
    }
}

/// Files that lost needed records, with how many; neighbours are folded.
#[derive(Debug, Default)]
pub(super) struct Frees(Vec<(u32, u32)>);

impl Frees {
    pub fn add(&mut self, file: u32) {
        match self.0.last_mut() {
            _ if file == NOWHERE => {}
            Some((last, n)) if *last == file => *n += 1,
            _ => self.0.push((file, 1)),
        }
    }

    pub fn append(&mut self, other: Frees) {
        self.0.extend(other.0);
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().copied()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

struct Cached {
    order: u64,
    entry: LogEntry,
}

/// One group in memory.
#[derive(Default)]
pub(super) struct ShardIndex {
    pub group: Group,
    pub flushed: Option<LogId>,
    pub(super) rows: VecDeque<Row>,
    pub(super) dead: usize,
    /// First index of each run of entries with one leader.
    pub(super) leaders: VecDeque<(u64, LeaderId)>,
    cache: VecDeque<Cached>,
    /// Lowest index that was read from the cache since the last look, one more than it; 0: none was.
    read_from: u64,
    /// Grows with each truncation; an append under way that was issued before one lost what lies behind it.
    pub epoch: u64,
    pub(super) cuts: Vec<(u64, Option<u64>)>,
    /// Entries that came by a snapshot which is not installed yet.
    pub(super) staged: BTreeMap<u64, Staged>,
}

impl ShardIndex {
    /// The index that must come next, `None` for a group that never had an entry.
    pub fn next(&self) -> Option<u64> {
        self.group.last.map(|id| id.index + 1)
    }

    /// A new entry. Returns its cache bytes.
    pub fn push(&mut self, shard: ShardId, entry: &LogEntry, order: u64) -> usize {
        self.group.entry(entry.id, &entry.payload);
        self.push_row(
            shard,
            entry.id,
            matches!(entry.payload, Payload::Normal(_)),
            Location { file: NOWHERE, position: 0, len: entry.payload.len() as u32 },
        );
        self.cache.push_back(Cached { order, entry: entry.clone() });
        cache_bytes(entry)
    }

    /// A row for an entry; those from its index on must be gone. `normal`: may hold messages.
    pub fn push_row(&mut self, shard: ShardId, id: LogId, normal: bool, at: Location) {
        if self.leaders.back().is_none_or(|(_, leader)| *leader != id.leader) {
            self.leaders.push_back((id.index, id.leader));
        }
        let released = if normal && shard != ShardId::CATALOG { 0 } else { RELEASED };
        self.rows.push_back(Row { index: id.index, file: at.file, position: at.position, len_flags: at.len | released });
    }

    pub(super) fn slot(&self, index: u64) -> Option<usize> {
        let (front, back) = (self.rows.front()?.index, self.rows.back()?.index);
        if index < front || index > back {
            return None;
        }
        // Without holes up to the end (all that is not purged) the place is known.
        let from_back = (back - index) as usize;
        if let Some(guess) = self.rows.len().checked_sub(1 + from_back)
            && self.rows[guess].index == index
        {
            return Some(guess);
        }
        self.rows.binary_search_by_key(&index, |r| r.index).ok()
    }

    /// Where it is; `file == NOWHERE` when only in memory.
    pub fn find(&self, index: u64) -> Option<Location> {
        let row = self.rows[self.slot(index)?];
        (!row.is_dead()).then(|| row.at())
    }

    /// Who proposed the entry at `index`.
    pub fn leader_at(&self, index: u64) -> Option<LeaderId> {
        let after = self.leaders.partition_point(|(first, _)| *first <= index);
        Some(self.leaders.get(after.checked_sub(1)?)?.1)
    }

    /// From the tail cache, for somebody who goes on reading behind it.
    pub fn read_cached(&mut self, index: u64) -> Option<LogEntry> {
        let entry = self.cached(index)?.clone();
        self.read_from = if self.read_from == 0 { index + 1 } else { self.read_from.min(index + 1) };
        Some(entry)
    }

    /// Cached entries older than `order` that nobody has come near to reading since the last call go. Returns their bytes.
    pub fn forget_unread(&mut self, order: u64) -> usize {
        let wanted = std::mem::take(&mut self.read_from).checked_sub(1).unwrap_or(u64::MAX);
        let mut bytes = 0;
        while self.evictable().is_some_and(|oldest| oldest < order) && self.cache.front().is_some_and(|c| c.entry.id.index < wanted) {
            bytes += self.evict();
        }
        if self.cache.len() < self.cache.capacity() / 4 && self.cache.capacity() > 1024 {
            self.cache.shrink_to(self.cache.len() * 2);
        }
        bytes
    }

    #[cfg(test)]
    pub fn is_cached(&self, index: u64) -> bool {
        self.cached(index).is_some()
    }

    fn cached(&self, index: u64) -> Option<&LogEntry> {
        let back = self.cache.back()?.entry.id.index;
        let guess = self.cache.len().checked_sub(1 + back.checked_sub(index)? as usize);
        if let Some(entry) = guess.map(|g| &self.cache[g].entry).filter(|e| e.id.index == index) {
            return Some(entry);
        }
        self.cache.binary_search_by_key(&index, |c| c.entry.id.index).ok().map(|at| &self.cache[at].entry)
    }

    /// An entry appended under `epoch` is synced at `at`. False: nobody needs it any more.
    pub fn place(&mut self, epoch: u64, id: LogId, at: Location) -> bool {
        let cut = self.cuts.iter().any(|(e, keep)| *e > epoch && Some(id.index) > *keep);
        if cut {
            return false;
        }
        self.flushed = later(self.flushed, Some(id));
        match self.slot(id.index).map(|s| &mut self.rows[s]) {
            Some(row) if row.file == NOWHERE && row.len_flags & DEAD == 0 => {
                row.file = at.file;
                row.position = at.position;
                true
            }
            _ => false,
        }
    }

    /// Entries after `keep` go. Returns what was freed and the cache bytes.
    pub fn truncate(&mut self, keep: Option<LogId>) -> (Frees, usize) {
        self.group.truncate(keep);
        let limit = self.group.last.map(|id| id.index);
        if self.flushed.map(|id| id.index) > limit {
            self.flushed = self.group.last;
        }
        self.epoch += 1;
        self.cuts.push((self.epoch, limit));
        (self.drop_after(limit), self.uncache_after(limit))
    }

    /// The truncation of this epoch is durable.
    pub fn truncated(&mut self, epoch: u64) {
        self.cuts.retain(|(e, _)| *e > epoch);
    }

    /// Rows after `limit` go.
    pub fn drop_after(&mut self, limit: Option<u64>) -> Frees {
        let mut frees = Frees::default();
        while let Some(row) = self.rows.back().copied().filter(|r| Some(r.index) > limit) {
            self.rows.pop_back();
            if row.len_flags & DEAD == 0 {
                frees.add(row.file);
            } else {
                self.dead -= 1;
            }
        }
        let runs = self.leaders.partition_point(|(first, _)| Some(*first) <= limit);
        self.leaders.truncate(runs);
        frees
    }

    /// The cached entries up to `upto` go, readable or not.
    pub(super) fn uncache_upto(&mut self, upto: u64) -> usize {
        let mut bytes = 0;
        while let Some(first) = self.cache.front().filter(|c| c.entry.id.index <= upto) {
            bytes += cache_bytes(&first.entry);
            self.cache.pop_front();
        }
        bytes
    }

    pub(super) fn uncache_after(&mut self, limit: Option<u64>) -> usize {
        let mut bytes = 0;
        while let Some(last) = self.cache.back().filter(|c| Some(c.entry.id.index) > limit) {
            bytes += cache_bytes(&last.entry);
            self.cache.pop_back();
        }
        bytes
    }

    /// Entries up to `upto` go, except those that are not released. `None`: was so already.
    pub fn purge(&mut self, upto: LogId) -> Option<(Frees, usize)> {
        let from = self.group.purged.map_or(0, |p| p.index + 1);
        if !self.group.purge(upto) {
            return None;
        }
        let mut frees = Frees::default();
        let start = self.rows.partition_point(|r| r.index < from);
        for at in start..self.rows.len() {
            if self.rows[at].index > upto.index {
                break;
            }
            if self.rows[at].len_flags & RELEASED != 0 {
                self.kill(at, &mut frees);
            }
        }
        self.trim();
        let bytes = self.uncache_dead();
        Some((frees, bytes))
    }

    /// No message points into these entries any more.
    pub fn release(&mut self, indices: impl Iterator<Item = u64>) -> (Frees, usize) {
        let mut frees = Frees::default();
        let purged = self.group.purged.map(|p| p.index);
        for index in indices {
            if let Some(at) = self.slot(index) {
                self.rows[at].len_flags |= RELEASED;
                if Some(index) <= purged {
                    self.kill(at, &mut frees);
                }
            }
        }
        self.trim();
        let bytes = self.uncache_dead();
        (frees, bytes)
    }

    /// Indices up to `upto` that hold messages as far as is known, ascending.
    pub fn pinned(&self, upto: u64) -> impl Iterator<Item = u64> + '_ {
        self.rows.iter().take_while(move |r| r.index <= upto).filter(|r| r.len_flags & (RELEASED | DEAD) == 0).map(|r| r.index)
    }

    fn kill(&mut self, at: usize, frees: &mut Frees) {
        let row = &mut self.rows[at];
        if row.len_flags & DEAD == 0 {
            row.len_flags |= DEAD;
            frees.add(row.file);
            self.dead += 1;
        }
    }

    fn trim(&mut self) {
        while self.rows.front().is_some_and(|r| r.len_flags & DEAD != 0) {
            self.rows.pop_front();
            self.dead -= 1;
        }
        if self.dead > 64 && self.dead > self.rows.len() / 2 {
            self.rows.retain(|r| r.len_flags & DEAD == 0);
            self.dead = 0;
        }
        if self.rows.len() < self.rows.capacity() / 4 && self.rows.capacity() > 1024 {
            self.rows.shrink_to(self.rows.len() * 2);
        }
        let first = self.rows.front().map_or(u64::MAX, |r| r.index);
        while self.leaders.len() > 1 && self.leaders[1].0 <= first {
            self.leaders.pop_front();
        }
    }

    fn uncache_dead(&mut self) -> usize {
        let mut bytes = 0;
        while let Some(front) = self.cache.front()
            && self.find(front.entry.id.index).is_none()
        {
            bytes += cache_bytes(&front.entry);
            self.cache.pop_front();
        }
        bytes
    }

    /// Age of the oldest cached entry that may be evicted.
    pub fn evictable(&self) -> Option<u64> {
        let front = self.cache.front()?;
        let on_disk = self.find(front.entry.id.index).is_none_or(|at| at.file != NOWHERE);
        on_disk.then_some(front.order)
    }

    /// Drop the oldest cached entry; returns its bytes.
    pub fn evict(&mut self) -> usize {
        self.cache.pop_front().map_or(0, |c| cache_bytes(&c.entry))
    }

    /// After recovery: all that was read is durable; what is purged and may not hold messages goes.
    pub fn recovered(&mut self) {
        self.flushed = self.group.last;
        let Some(purged) = self.group.purged else { return };
        let mut frees = Frees::default();
        for at in 0..self.rows.partition_point(|r| r.index <= purged.index) {
            if self.rows[at].len_flags & RELEASED != 0 {
                self.kill(at, &mut frees);
            }
        }
        self.trim();
    }

    /// All places, for the count of needed records per file.
    pub fn locations(&self) -> impl Iterator<Item = u32> + '_ {
        let staged = self.staged.values().filter_map(|s| Some(s.at?.file));
        self.rows.iter().filter(|r| !r.is_dead()).map(|r| r.file).chain(staged)
    }

    /// First index that is not purged and missing, if the rows do not cover the log.
    pub fn gap(&self) -> Option<u64> {
        let last = self.group.last.map(|id| id.index)?;
        let first = match self.group.purged {
            Some(p) => p.index + 1,
            None => self.rows.front().map_or(1, |r| r.index.min(1)),
        };
        (first..=last).find(|i| self.find(*i).is_none())
    }
}

fn cache_bytes(entry: &LogEntry) -> usize {
    entry.payload.len() + CACHE_OVERHEAD
}
