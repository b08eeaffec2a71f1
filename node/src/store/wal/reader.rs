//! Reading entries back from files, checked against what the index expects. Called on the caller's thread.

use super::entry::{LogEntry, Payload};
use super::file::WalFile;
use super::format::{Kind, RECORD_HEAD, RecordHead};
use super::index::Location;
use super::state::Shared;
use crate::model::entry::{EntryBytes, trimmed};
use crate::model::{LeaderId, ShardId};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Neighbouring entries are read together up to this many bytes.
const RUN_BYTES: u64 = 1 << 20;

/// An entry that must come from disk.
pub(super) struct Wanted {
    pub index: u64,
    pub at: Location,
    pub file: Arc<WalFile>,
    pub leader: Option<LeaderId>,
}

enum Source {
    Cache(LogEntry),
    Disk(Wanted),
}

impl Shared {
    pub fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let sources = self.plan(shard, range, max_bytes);
        let mut entries = Vec::with_capacity(sources.len());
        let mut run: Vec<Wanted> = Vec::new();
        for source in sources {
            match source {
                Source::Cache(entry) => {
                    self.read_run(shard, &mut run, &mut entries)?;
                    entries.push(entry);
                }
                Source::Disk(wanted) => {
                    if !continues(&run, &wanted) {
                        self.read_run(shard, &mut run, &mut entries)?;
                    }
                    run.push(wanted);
                }
            }
        }
        self.read_run(shard, &mut run, &mut entries)?;
        Ok(entries)
    }

    pub fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes> {
        let entry = self.read(shard, index..index + 1, 0)?.pop().ok_or(io::ErrorKind::NotFound)?;
        match entry.payload {
            Payload::Normal(rope) => Ok(rope),
            Payload::Trimmed(rope) => {
                trimmed::expand(&rope).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed copy of an entry"))
            }
            Payload::Blank | Payload::Membership(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "the entry has no body")),
        }
    }

    fn plan(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> Vec<Source> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(log) = state.shards.get_mut(&shard) else { return Vec::new() };
        let (mut sources, mut bytes) = (Vec::new(), 0);
        for index in range {
            // An entry that is gone may linger in the cache: the index decides.
            let Some(at) = log.find(index) else { break };
            bytes += at.len as usize;
            if bytes > max_bytes && !sources.is_empty() {
                break;
            }
            if let Some(entry) = log.read_cached(index) {
                sources.push(Source::Cache(entry));
                continue;
            }
            let Some(file) = state.files.get(&at.file).map(|held| held.file.clone()) else { break };
            sources.push(Source::Disk(Wanted { index, at, file, leader: log.leader_at(index) }));
        }
        sources
    }

    /// Read neighbours with one call and append them to `entries`.
    pub(super) fn read_run(&self, shard: ShardId, run: &mut Vec<Wanted>, entries: &mut Vec<LogEntry>) -> io::Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let start = first.at.position;
        let mut buffer = vec![0; (end_of(last) - u64::from(start)) as usize];
        first.file.file.read_exact_at(&mut buffer, u64::from(start))?;
        let buffer = Bytes::from(buffer);
        for wanted in run.drain(..) {
            let from = (wanted.at.position - start) as usize;
            let bytes = buffer.slice(from..from + RECORD_HEAD + wanted.at.len as usize);
            let entry = check(shard, &wanted, bytes).ok_or_else(|| self.bad_read(shard, &wanted))?;
            entries.push(entry);
        }
        Ok(())
    }

    fn bad_read(&self, shard: ShardId, wanted: &Wanted) -> io::Error {
        let (file, position) = (wanted.file.lap.seq, wanted.at.position);
        {
            let mut state = self.lock();
            state.stats.bad_reads += 1;
            if !state.doubtful.contains(&file) {
                state.doubtful.push(file);
            }
            self.keep.notify_all();
        }
        tracing::error!(%shard, index = wanted.index, file, position, "the log's disk returned something else than was written");
        io::Error::new(io::ErrorKind::InvalidData, format!("log file {file} is damaged at byte {position}"))
    }
}

fn end_of(wanted: &Wanted) -> u64 {
    u64::from(wanted.at.position) + (RECORD_HEAD as u64) + u64::from(wanted.at.len)
}

/// Close behind the last one of `run` in the same file.
fn continues(run: &[Wanted], next: &Wanted) -> bool {
    const GAP: u64 = 4096;
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return true };
    let near = u64::from(next.at.position) >= end_of(last) && u64::from(next.at.position) - end_of(last) <= GAP;
    near && Arc::ptr_eq(&first.file, &next.file) && end_of(next) - u64::from(first.at.position) <= RUN_BYTES
}

fn check(shard: ShardId, wanted: &Wanted, bytes: Bytes) -> Option<LogEntry> {
    let (head, _, _) = RecordHead::decode(&bytes, wanted.file.lap)?;
    let expected = head.shard == shard && head.id.index == wanted.index && head.len == wanted.at.len;
    if !expected || wanted.leader.is_some_and(|leader| leader != head.id.leader) {
        return None;
    }
    let body = bytes.slice(RECORD_HEAD..);
    let payload = match head.kind {
        Kind::Blank => Payload::Blank,
        Kind::Staged if head.flag => Payload::Trimmed(body.into()),
        Kind::Relocated => Payload::Trimmed(body.into()),
        Kind::Normal | Kind::Staged => Payload::Normal(body.into()),
        Kind::Membership => Payload::Membership(body),
        _ => return None,
    };
    Some(LogEntry { id: head.id, payload })
}
