//! A small file beside the trees that remembers the last durable checkpoint of each shard: sled cuts off what it cannot read and opens
//! an older state without a word. Called by `trees`.
//!
//! marks := (shard u16 | term u64 | voter u64 | index u64)* crc32c u32        little endian, replaced as a whole each time

use super::trees::{RolledBack, StateError};
use crate::model::{LeaderId, LogId, ShardId};
use crate::store::disk::{Disk, RealDisk};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;

const FILE: &str = "marks";
const DRAFT: &str = "marks.new";
const MARK_BYTES: usize = 26;

/// Last checkpoint per shard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks(BTreeMap<ShardId, LogId>);

impl Marks {
    /// What the file in this directory says; `None`: there is none, or nothing can be told from it.
    pub fn read(path: &Path) -> Option<Marks> {
        std::fs::read(path.join(FILE)).ok().and_then(|bytes| Marks::decode(&bytes))
    }

    /// Writes the file anew: a crash leaves the old one or this one.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        self.write_to(&RealDisk::new(path)?)
    }

    fn write_to(&self, disk: &dyn Disk) -> io::Result<()> {
        let file = disk.create(DRAFT)?;
        file.write_all_vectored_at(&[IoSlice::new(&self.encode())], 0)?;
        file.sync_data()?;
        disk.rename(DRAFT, FILE)?;
        disk.sync_dir()
    }

    /// A shard was checkpointed.
    pub fn set(&mut self, shard: ShardId, applied: LogId) {
        self.0.insert(shard, applied);
    }

    /// Whether every shard of `older` has a checkpoint here that is as new.
    pub fn cover(&self, older: &Marks) -> bool {
        older.0.iter().all(|(shard, old)| self.0.get(shard).is_some_and(|new| new.index >= old.index))
    }

    /// Forget a shard.
    pub fn remove(&mut self, shard: ShardId) {
        self.0.remove(&shard);
    }

    /// Forget all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Shards that are stored older than marked.
    pub fn behind(&self, stored: impl Fn(ShardId) -> Result<Option<LogId>, StateError>) -> Result<Vec<RolledBack>, StateError> {
        let mut behind = Vec::new();
        for (&shard, &from) in &self.0 {
            let to = stored(shard)?;
            if to.is_none_or(|to| to.index < from.index) {
                behind.push(RolledBack { shard, from, to });
            }
        }
        Ok(behind)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() * MARK_BYTES + 4);
        for (shard, id) in &self.0 {
            out.extend_from_slice(&shard.0.to_le_bytes());
            [id.leader.term, id.leader.voter, id.index].iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Marks> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let (rows, rest) = body.as_chunks::<MARK_BYTES>();
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) || !rest.is_empty() {
            return None;
        }
        let row = |row: &[u8; MARK_BYTES]| {
            let word = |at: usize| row[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
            let leader = LeaderId { term: word(2), voter: word(10) };
            (ShardId(u16::from_le_bytes([row[0], row[1]])), LogId { leader, index: word(18) })
        };
        Some(Marks(rows.iter().map(row).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::SimDisk;
    use crate::store::disk::sim::Crash;

    fn marks(index: u64, shards: u16) -> Marks {
        let id = LogId { leader: LeaderId { term: 3, voter: 2 }, index };
        Marks((0..shards).map(|shard| (ShardId(shard), id)).collect())
    }

    fn there(disk: &SimDisk) -> Option<Marks> {
        Marks::decode(&disk.contents(FILE)?)
    }

    #[test]
    fn a_crash_at_any_point_of_writing_leaves_the_old_marks_or_the_new_ones() {
        let (old, new) = (marks(5, 40), marks(9, 40));
        let (mut olds, mut news) = (0, 0);
        for seed in 0..60 {
            let disk = SimDisk::new(seed);
            old.write_to(&disk).unwrap();
            // At the write, at the sync, behind the sync, or only the directory is not synced.
            match seed % 4 {
                0 => disk.stop_after_writes(1),
                1 => disk.fail_syncs(1),
                _ => {}
            }
            let written = if seed % 4 == 3 {
                let file = disk.create(DRAFT).unwrap();
                file.write_all_vectored_at(&[IoSlice::new(&new.encode())], 0).unwrap();
                file.sync_data().unwrap();
                disk.rename(DRAFT, FILE)
            } else {
                new.write_to(&disk)
            };
            assert_eq!(written.is_ok(), seed % 4 >= 2, "seed {seed}");
            let found = there(&disk.crash(Crash::Power));
            match found {
                Some(found) if found == old && seed % 4 != 2 => olds += 1,
                Some(found) if found == new && seed % 4 >= 2 => news += 1,
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        assert!(olds > 30 && news > 15, "{olds} and {news}");
    }

    #[test]
    fn nothing_is_told_from_marks_that_rotted_or_are_not_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marks::read(dir.path()), None);
        marks(5, 3).write(dir.path()).unwrap();
        assert_eq!(Marks::read(dir.path()), Some(marks(5, 3)));
        let file = dir.path().join(FILE);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[30] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(Marks::read(dir.path()), None);
    }
}
