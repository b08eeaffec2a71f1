//! Reading entries back from files, checked against what the index expects. Called on the caller's thread.

use super::entry::{LogEntry, Payload};
use super::file::WalFile;
use super::format::{Kind, RECORD_HEAD, RecordHead};
use super::index::Location;
use super::state::Shared;
use crate::model::entry::{EntryBytes, trimmed};
use crate::model::stored::{Lent, Place, StoredEntry};
use crate::model::{LeaderId, ShardId};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Neighbouring entries are read together up to this many bytes.
pub(super) const RUN_BYTES: u64 = 1 << 20;

/// An entry that must come from disk.
pub(super) struct Wanted {
    pub index: u64,
    pub at: Location,
    pub file: Arc<WalFile>,
    pub leader: Option<LeaderId>,
}

/// Smaller entries are not sent from their file: copying them is cheaper.
const LENT_BYTES: usize = 16 << 10;

/// Fills a buffer from a file.
type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> io::Result<()>;

enum Source {
    Cache(LogEntry),
    Disk(Wanted),
}

impl Shared {
    pub fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let sources = self.plan(shard, range, max_bytes);
        let mut entries = Vec::with_capacity(sources.len());
        self.read_all(shard, sources, plain, |entry, _| entries.push(entry))?;
        Ok(entries)
    }

    pub fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes> {
        let entry = self.read(shard, index..index + 1, 0)?.pop().ok_or(io::ErrorKind::NotFound)?;
        body(entry)
    }

    pub fn read_bodies(&self, shard: ShardId, indices: &[u64]) -> io::Result<Vec<StoredEntry>> {
        let sources = self.plan(shard, indices.iter().copied(), usize::MAX);
        let (mut entries, mut lent) = (Vec::with_capacity(sources.len()), None);
        let buffer = |len: usize, fill: &mut dyn FnMut(&mut [u8]) -> io::Result<()>| self.buffers.fill(len, fill);
        self.read_all(shard, sources, buffer, |entry, at| {
            let as_it_is = matches!(entry.payload, Payload::Normal(_)) && entry.payload.len() >= LENT_BYTES;
            let place = at.filter(|_| as_it_is).and_then(|wanted| self.place(wanted, &mut lent));
            entries.push(body(entry).map(|bytes| StoredEntry { bytes, place }));
        })?;
        entries.into_iter().collect()
    }

    /// Where an entry can be sent from. `lent`: the file that was asked last.
    fn place(&self, wanted: &Wanted, lent: &mut Option<(u32, Arc<Lent>)>) -> Option<Place> {
        let seq = wanted.file.lap.seq;
        if lent.as_ref().is_none_or(|(known, _)| *known != seq) {
            *lent = Some((seq, wanted.file.clone())).filter(|_| wanted.file.lend(&*self.disk)).map(|(seq, file)| (seq, file as Arc<Lent>));
        }
        let (_, file) = lent.as_ref()?;
        Some(Place::new(file, u64::from(wanted.at.position) + RECORD_HEAD as u64))
    }

    fn plan(&self, shard: ShardId, indices: impl Iterator<Item = u64>, max_bytes: usize) -> Vec<Source> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(log) = state.shards.get_mut(&shard) else { return Vec::new() };
        let (mut sources, mut bytes) = (Vec::new(), 0);
        for index in indices {
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

    /// Hands over all entries in their order, with where those from disk lie.
    fn read_all(
        &self,
        shard: ShardId,
        sources: Vec<Source>,
        buffer: impl Fn(usize, Fill<'_>) -> io::Result<Bytes>,
        mut found: impl FnMut(LogEntry, Option<&Wanted>),
    ) -> io::Result<()> {
        let mut run: Vec<Wanted> = Vec::new();
        for source in sources {
            match source {
                Source::Cache(entry) => {
                    self.read_run(shard, &mut run, &buffer, &mut found)?;
                    found(entry, None);
                }
                Source::Disk(wanted) => {
                    if !continues(&run, &wanted) {
                        self.read_run(shard, &mut run, &buffer, &mut found)?;
                    }
                    run.push(wanted);
                }
            }
        }
        self.read_run(shard, &mut run, &buffer, &mut found)
    }

    /// Whether an entry can be read back.
    pub(super) fn is_readable(&self, shard: ShardId, wanted: Wanted) -> bool {
        self.read_run(shard, &mut vec![wanted], &plain, &mut |_, _| ()).is_ok()
    }

    /// Reads neighbours with one call and hands them over.
    fn read_run(
        &self,
        shard: ShardId,
        run: &mut Vec<Wanted>,
        buffer: &impl Fn(usize, Fill<'_>) -> io::Result<Bytes>,
        found: &mut impl FnMut(LogEntry, Option<&Wanted>),
    ) -> io::Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let start = first.at.position;
        let len = (end_of(last) - u64::from(start)) as usize;
        let buffer = buffer(len, &mut |buffer| first.file.file.read_exact_at(buffer, u64::from(start)))?;
        for wanted in run.drain(..) {
            let from = (wanted.at.position - start) as usize;
            let bytes = buffer.slice(from..from + RECORD_HEAD + wanted.at.len as usize);
            let entry = check(shard, &wanted, bytes).ok_or_else(|| self.bad_read(shard, &wanted))?;
            found(entry, Some(&wanted));
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

/// A buffer of its own.
fn plain(len: usize, fill: Fill<'_>) -> io::Result<Bytes> {
    let mut buffer = vec![0; len];
    fill(&mut buffer)?;
    Ok(buffer.into())
}

fn body(entry: LogEntry) -> io::Result<EntryBytes> {
    match entry.payload {
        Payload::Normal(rope) => Ok(rope),
        Payload::Trimmed(rope) => {
            trimmed::expand(&rope).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed copy of an entry"))
        }
        Payload::Blank | Payload::Membership(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "the entry has no body")),
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
