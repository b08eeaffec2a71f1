//! Entries that leave old files: purged ones that still hold messages are written again at the log's end, with what of them is still
//! wanted, so that files in which little is alive can be used again. When the copy is durable the index names it, before the old one
//! counts. Who decides what goes is in `consensus`.

use super::entry::Done;
use super::index::{Location, NOWHERE, Row, ShardIndex};
use super::state::{Op, Shared, State};
use crate::model::entry::EntryBytes;
use crate::model::{LeaderId, LogId, ShardId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

/// Rows that are looked at under one lock: some 100 microseconds.
const ROWS: usize = 32 << 10;

/// A file of which every entry that is still needed may leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldFile {
    /// Its number.
    pub seq: u32,
    /// Its size.
    pub bytes: u64,
    /// Its entries, with their bytes on disk.
    pub entries: Vec<(ShardId, u64, u32)>,
}

/// Old files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OldFiles {
    /// Ascending.
    pub files: Vec<OldFile>,
    /// The last file that was looked at; `None`: all were.
    pub upto: Option<u32>,
}

/// An entry that leaves a file.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Which.
    pub id: LogId,
    /// The file where it was read.
    pub from: u32,
    /// What is left of it (`model::entry::trimmed`).
    pub left: EntryBytes,
}

/// Copies that recovery found, by index: the last one of each counts.
pub(super) type Copies = BTreeMap<u64, (LeaderId, Location)>;

impl ShardIndex {
    /// A copy of a purged entry is durable. False: nobody needs it, the entry has gone or is elsewhere by now.
    pub fn relocate(&mut self, id: LogId, from: u32, at: Location) -> bool {
        let is_purged = self.group.purged.is_some_and(|purged| id.index <= purged.index);
        if !is_purged || self.leader_at(id.index) != Some(id.leader) {
            return false;
        }
        let Some(row) = self.slot(id.index).map(|slot| &mut self.rows[slot]).filter(|row| !row.is_dead() && row.file == from) else {
            return false;
        };
        row.move_to(at);
        true
    }

    /// After recovery: purged entries are where they were copied to last.
    pub fn adopt(&mut self, copies: Copies) {
        let purged = self.group.purged.map(|id| id.index);
        let mut copies = copies.into_iter().filter(|(index, _)| Some(*index) <= purged).peekable();
        if copies.peek().is_none() {
            return;
        }
        let (rows, leaders) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.leaders));
        let mut runs = leaders.into_iter().peekable();
        let mut leader = LeaderId::default();
        self.rows.reserve(rows.len());
        for row in rows {
            while let Some((index, copy)) = copies.next_if(|(index, _)| *index < row.index) {
                self.push_copy(index, copy);
            }
            while let Some((_, next)) = runs.next_if(|(first, _)| *first <= row.index) {
                leader = next;
            }
            match copies.next_if(|(index, _)| *index == row.index) {
                Some((index, copy)) => self.push_copy(index, copy),
                None => self.push_known(row, leader),
            }
        }
        copies.for_each(|(index, copy)| self.push_copy(index, copy));
    }

    fn push_copy(&mut self, index: u64, (leader, at): (LeaderId, Location)) {
        self.push_known(Row::new(index, at), leader);
    }

    fn push_known(&mut self, row: Row, leader: LeaderId) {
        if self.leaders.back().is_none_or(|(_, last)| *last != leader) {
            self.leaders.push_back((row.index, leader));
        }
        self.rows.push_back(row);
    }

    /// Adds what the rows from `from` on say of `files`; the index to go on with.
    fn sort_into(
        &self,
        shard: ShardId,
        from: u64,
        files: &mut BTreeMap<u32, Vec<(ShardId, u64, u32)>>,
        kept: &mut BTreeSet<u32>,
    ) -> Option<u64> {
        let purged = self.group.purged.map(|id| id.index);
        let start = self.rows.partition_point(|row| row.index < from);
        let end = self.rows.len().min(start + ROWS);
        for row in self.rows.range(start..end).filter(|row| !row.is_dead() && row.file != NOWHERE) {
            let Some(entries) = files.get_mut(&row.file) else { continue };
            if Some(row.index) <= purged {
                entries.push((shard, row.index, row.at().len));
            } else {
                kept.insert(row.file);
            }
        }
        (end < self.rows.len()).then(|| self.rows[end].index)
    }
}

impl State {
    /// Files with data take more than they should, or than the disk has.
    pub fn is_over(&self, file_bytes: u64, budget_bytes: u64) -> bool {
        self.stats.low_space || self.files.len() as u64 * file_bytes > budget_bytes
    }
}

impl Shared {
    /// Files with data take more than they should, or than the disk has.
    pub fn is_over_budget(&self) -> bool {
        self.lock().is_over(self.config.file_bytes, self.config.budget_bytes)
    }

    /// There is a file to go on in when the open one is full.
    pub fn has_spare(&self) -> bool {
        !self.lock().ready.is_empty()
    }

    /// Closed files behind number `after` of which all that is needed may leave them, until they have `entries` together.
    pub fn old_files(&self, after: u32, entries: u64) -> OldFiles {
        let (mut files, mut kept, mut upto) = (BTreeMap::new(), BTreeSet::new(), None);
        let shards: Vec<ShardId> = {
            let state = self.lock();
            let mut found = 0;
            for (seq, held) in state.files.range(after.saturating_add(1)..state.current) {
                if found > 0 && found + held.needed > entries {
                    upto = files.last_key_value().map(|(seq, _)| *seq);
                    break;
                }
                found += held.needed;
                files.insert(*seq, Vec::new());
            }
            for index in state.shards.values() {
                kept.extend(index.staged.values().filter_map(|staged| Some(staged.at?.file)));
            }
            state.shards.keys().copied().collect()
        };
        for shard in shards {
            let mut next = Some(0);
            while let Some(from) = next {
                next = self.lock().shards.get(&shard).and_then(|index| index.sort_into(shard, from, &mut files, &mut kept));
            }
        }
        let movable = files.into_iter().filter(|(seq, entries)| !kept.contains(seq) && !entries.is_empty());
        OldFiles { files: movable.map(|(seq, entries)| OldFile { seq, bytes: self.config.file_bytes, entries }).collect(), upto }
    }

    /// Writes entries again. Those that have gone meanwhile, or are elsewhere, are written in vain.
    pub fn relocate(&self, shard: ShardId, entries: Vec<Moved>, done: Done) {
        self.submit(done, |_, done| {
            // What is left may be longer than the entry by what says where it stood.
            let largest = self.config.entry_bytes_max() + self.config.reserve();
            if entries.iter().any(|moved| moved.left.len() as u64 > largest) {
                return Err((done, io::Error::new(io::ErrorKind::InvalidInput, "what is left of an entry does not fit into a file")));
            }
            Ok(Op::Relocate { shard, entries: VecDeque::from(entries), done })
        });
    }
}
