//! A small file beside the trees that remembers the last durable checkpoint of each shard: sled cuts off what it cannot read and opens
//! an older state without a word. Called by `trees`.
//!
//! marks := (shard u16 | term u64 | voter u64 | index u64)* crc32c u32        little endian, written anew each time

use super::trees::{RolledBack, StateError};
use crate::model::{LeaderId, LogId, ShardId};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const FILE: &str = "marks";
const MARK_BYTES: usize = 26;

/// Last checkpoint per shard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks(BTreeMap<ShardId, LogId>);

impl Marks {
    /// What the file says; nothing when there is none or a write was torn (the checkpoints themselves do not need it).
    pub fn read(path: &Path) -> Marks {
        std::fs::read(path.join(FILE)).ok().and_then(|bytes| Marks::decode(&bytes)).unwrap_or_default()
    }

    /// Writes and syncs the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().create(true).write(true).truncate(false).open(path.join(FILE))?;
        let bytes = self.encode();
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_data()
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
