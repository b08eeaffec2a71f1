//! What `Wal::open` does with the files of an earlier process: read them in lap order, tell a torn tail from damage (rule 5, `damage`),
//! make the tail durable again (rule 4). Changes nothing before it knows whose disk this is.

use super::cleaning::Copies;
use super::damage::{Findings, Hole};
use super::entry::{Payload, WalConfig, WalError};
use super::file::{Held, ReadyFile, WalFile, file_name, lent_name, seq_of};
use super::format::{FileHeader, HeaderRead, Kind, Lap, RecordHead, SECTOR, VERSION};
use super::index::{Location, ShardIndex};
use super::meta::{self, Meta};
use super::scan::Scan;
use super::sidecar::{Item, Sidecar};
use super::state::{Op, State};
use crate::model::ShardId;
use crate::model::entry::EntryBytes;
use crate::store::disk::{Disk, DiskFile};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;

/// Part of an unused file that is searched for batches that should not be there: a lap's first batches lie at its front.
pub(super) const FRONT: u64 = 1 << 20;

/// What the writer goes on with.
pub(super) struct Tail {
    pub file: Arc<WalFile>,
    pub position: u64,
    pub closed: bool,
    pub next_batch: u64,
    pub items: Vec<Item>,
}

pub(super) struct Recovered {
    pub state: State,
    pub meta: Meta,
    /// About damage, to be written before anything else.
    pub notes: VecDeque<Op>,
    /// `None`: no file has data.
    pub tail: Option<Tail>,
}

pub(super) struct Opened {
    pub file: Arc<dyn DiskFile>,
    pub header: HeaderRead,
    lent: bool,
}

pub(super) struct Recovery<'a> {
    disk: &'a dyn Disk,
    pub opened: BTreeMap<u32, Opened>,
    pub shards: HashMap<ShardId, ShardIndex>,
    pub meta: Meta,
    files: BTreeMap<u32, Held>,
    pub next_batch: u64,
    sidecars: Vec<Sidecar>,
    /// Entries that were written again.
    copies: HashMap<ShardId, Copies>,
    pub findings: Findings,
}

/// Place and length of the last batch, and whether something torn follows it.
struct End {
    tail: Tail,
    last_batch: u64,
    torn: bool,
}

pub(super) fn recover(disk: &dyn Disk, config: &WalConfig) -> Result<Recovered, WalError> {
    let mut recovery = Recovery {
        disk,
        opened: BTreeMap::new(),
        shards: HashMap::new(),
        meta: Meta::default(),
        files: BTreeMap::new(),
        next_batch: 0,
        sidecars: Vec::new(),
        copies: HashMap::new(),
        findings: Findings::default(),
    };
    recovery.open_all()?;
    let end = recovery.read_all()?;
    let damages = recovery.assess();
    if let Some(hole) = recovery.findings.holes.first().filter(|_| recovery.meta.identity.is_none()) {
        return Err(corrupt(hole.file, hole.position, "what tells whose disk this is went with it"));
    }
    let notes = recovery.note_damage(&damages);
    if let Some(end) = &end {
        recovery.secure(end).map_err(io_error("make the log's tail durable"))?;
    }
    recovery.finish(config, end, notes)
}

fn corrupt(file: u32, position: u64, detail: impl Into<String>) -> WalError {
    WalError::Corrupt { file, position, detail: detail.into() }
}

pub(super) fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> WalError {
    let doing = doing.into();
    |source| WalError::Io { doing, source }
}

impl Recovery<'_> {
    fn open_all(&mut self) -> Result<(), WalError> {
        let names = self.disk.list().map_err(io_error("list the log's files"))?;
        for seq in names.iter().filter_map(|n| seq_of(n, ".wal")) {
            let open = || {
                let file = self.disk.open(&file_name(seq))?;
                let mut sector = [0; SECTOR as usize];
                let n = file.read_at(&mut sector, 0)?;
                let lent = names.contains(&lent_name(seq));
                Ok(Opened { header: FileHeader::decode(&sector[..n]), file, lent })
            };
            let opened = open().map_err(io_error(format!("open log file {seq}")))?;
            if let HeaderRead::Newer(version) = opened.header {
                return Err(WalError::Version { file: seq, version, known: VERSION });
            }
            self.opened.insert(seq, opened);
        }
        Ok(())
    }

    /// Everything in lap order; `None` when no file has data.
    fn read_all(&mut self) -> Result<Option<End>, WalError> {
        let Some((last, header)) = self.find_last()? else { return Ok(None) };
        let closed: Vec<u32> = self.opened.range(..last).map(|(seq, _)| *seq).collect();
        let restated = self.read_meta(last)?;
        for seq in closed {
            // Sidecars have no votes: the last META has them all, if it is intact.
            self.read_closed(seq, restated.is_some())?;
        }
        self.meta = restated.unwrap_or_else(|| std::mem::take(&mut self.meta));
        let end = self.read_last(header)?;
        for (shard, group) in &self.meta.groups {
            self.shards.entry(*shard).or_default().group = group.clone();
        }
        Ok(Some(end))
    }

    fn wal_file(&self, lap: Lap) -> Arc<WalFile> {
        let opened = &self.opened[&lap.seq];
        Arc::new(WalFile::new(lap, opened.file.clone(), opened.lent))
    }

    /// The newest file with data. Newer ones must never have got beyond their META.
    fn find_last(&mut self) -> Result<Option<(u32, FileHeader)>, WalError> {
        let seqs: Vec<u32> = self.opened.keys().rev().copied().collect();
        for seq in seqs {
            if let Some(header) = self.start_of(seq)? {
                return Ok(Some((seq, header)));
            }
        }
        Ok(None)
    }

    /// A file with newer ones behind it: complete, or damaged, or prepared and never used.
    fn read_closed(&mut self, seq: u32, sidecars: bool) -> Result<(), WalError> {
        let Some(header) = self.start_of(seq)? else { return Ok(()) };
        if header.first_batch < self.next_batch {
            return Err(corrupt(seq, 0, "its first batch is older than the file before it"));
        }
        let file = self.wal_file(header.lap);
        if let Some(sidecar) = Sidecar::load(self.disk, header.lap).filter(|_| sidecars) {
            sidecar.items.iter().for_each(|item| self.replay(seq, &item.head, item.position));
            self.next_batch = sidecar.next_batch;
        } else {
            let mut end = self.scan(&file, header)?;
            if !end.tail.closed {
                let hole = Hole { file: seq, salt: header.lap.salt, position: end.tail.position };
                let mut scan = Scan::new(&*file.file).map_err(io_error(format!("read log file {seq}")))?;
                self.salvage(&mut scan, hole, None, &mut end.tail.items)?;
            }
            // Not of a damaged one: it would hide the damage from a start before this one has noted it.
            if self.findings.holes.iter().all(|hole| hole.file != seq) {
                self.sidecars.push(Sidecar { lap: header.lap, next_batch: self.next_batch, items: end.tail.items });
            }
        }
        self.files.insert(seq, Held { file, needed: 0 });
        Ok(())
    }

    fn read_last(&mut self, header: FileHeader) -> Result<End, WalError> {
        let seq = header.lap.seq;
        if header.first_batch < self.next_batch {
            return Err(corrupt(seq, 0, "its first batch is older than the file before it"));
        }
        let file = self.wal_file(header.lap);
        self.findings.term = self.meta.term();
        let mut end = self.scan(&file, header)?;
        self.files.insert(seq, Held { file: file.clone(), needed: 0 });
        if !end.tail.closed {
            let failed = || format!("read log file {seq}");
            let mut scan = Scan::new(&*file.file).map_err(io_error(failed()))?;
            end.torn = scan.header(end.tail.position).map_err(io_error(failed()))?.is_some_and(|h| h.lap == header.lap);
        }
        Ok(end)
    }

    /// Replay batches up to the first one that is not there or not intact and has no later one behind it: such a one proves that the bad
    /// one was synced.
    fn scan(&mut self, file: &Arc<WalFile>, header: FileHeader) -> Result<End, WalError> {
        let seq = header.lap.seq;
        let failed = || format!("read log file {seq}");
        let mut scan = Scan::new(&*file.file).map_err(io_error(failed()))?;
        self.next_batch = header.first_batch;
        let (mut position, mut last_batch, mut closed, mut items) = (SECTOR, SECTOR, false, Vec::new());
        while !closed {
            let found = scan.header(position).map_err(io_error(failed()))?;
            let here = found.filter(|b| b.lap == header.lap && b.number == self.next_batch);
            let bytes = here.map(|b| scan.bytes(position, b.len as usize)).transpose().map_err(io_error(failed()))?;
            let Some((batch, records)) = here.and_then(|b| Some((b, b.records(bytes?)?))) else {
                let after = here.map_or(position + SECTOR, |b| b.end());
                let next = scan.later(header.lap, after, self.next_batch).map_err(io_error(failed()))?;
                let Some(next) = next else { break };
                let hole = Hole { file: seq, salt: header.lap.salt, position };
                self.salvage(&mut scan, hole, Some(next.number), &mut items)?;
                (position, self.next_batch) = (next.position, next.number);
                continue;
            };
            for (head, at, body) in records {
                self.record(seq, &head, at, body, &mut items).ok_or_else(|| corrupt(seq, u64::from(at), "a record makes no sense"))?;
                closed |= head.kind == Kind::Close;
            }
            self.findings.term = self.findings.term.max(batch.term);
            last_batch = position;
            position = batch.end();
            self.next_batch += 1;
        }
        let tail = Tail { file: file.clone(), position, closed, next_batch: self.next_batch, items };
        Ok(End { tail, last_batch, torn: false })
    }

    pub(super) fn record(&mut self, seq: u32, head: &RecordHead, position: u32, body: &[u8], items: &mut Vec<Item>) -> Option<()> {
        let body = match head.kind {
            Kind::Membership | Kind::Identity | Kind::Meta | Kind::Prepare | Kind::Hole => EntryBytes::from(Bytes::copy_from_slice(body)),
            _ => EntryBytes::default(),
        };
        if !meta::apply(&mut self.meta, head, &body) {
            return None;
        }
        let from = items.len();
        match head.kind {
            Kind::Meta => items.extend(meta::items(&self.meta.groups)),
            kind if kind.is_indexed() => items.push(Item { head: *head, position }),
            _ => {}
        }
        items[from..].iter().for_each(|item| self.replay(seq, &item.head, item.position));
        Some(())
    }

    /// What a record means for the rows. Files between may have been recycled: a jump forward is checked at the end, a step back means
    /// that a truncation went with such a file.
    fn replay(&mut self, file: u32, head: &RecordHead, position: u32) {
        let index = self.shards.entry(head.shard).or_default();
        match head.kind {
            Kind::Truncate => {
                index.group.truncate(head.flag.then_some(head.id));
                index.drop_after(index.group.last.map(|id| id.index));
            }
            Kind::Purge => {
                index.group.purge(head.id);
            }
            Kind::Staged => {
                index.stage(head.id);
                index.place_staged(head.id, Location { file, position, len: head.len });
            }
            // A META repeats it; it is where its own record, the only one with a place, says.
            Kind::Install if position == 0 => index.restate_install(head.id),
            Kind::Install => {
                if let Some(copies) = self.copies.get_mut(&head.shard) {
                    // What came by snapshot came because the copy could not be read.
                    let came = index.staged.iter().filter(|(at, staged)| **at <= head.id.index && staged.at.is_some());
                    came.for_each(|(at, _)| {
                        copies.remove(at);
                    });
                }
                index.install(head.id, head.flag);
            }
            Kind::Relocated => {
                let at = Location { file, position, len: head.len };
                self.copies.entry(head.shard).or_default().insert(head.id.index, (head.id.leader, at));
            }
            kind if kind.is_entry() && index.group.purged.is_none_or(|p| p.index < head.id.index) => {
                index.drop_after(head.id.index.checked_sub(1));
                index.push_row(head.shard, head.id, kind == Kind::Normal, Location { file, position, len: head.len });
                index.group.entry(head.id, &Payload::Blank);
            }
            _ => {}
        }
    }

    /// Rule 4: the last batch may be in the page cache only, even after a sync that seemed to succeed. All before it is proven.
    fn secure(&self, end: &End) -> io::Result<()> {
        let file = &end.tail.file.file;
        // A last file with nothing but its META may lack its header on the platter, too.
        let from = if end.last_batch == SECTOR { 0 } else { end.last_batch };
        let mut bytes = vec![0; (end.tail.position - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        file.write_all_vectored_at(&[io::IoSlice::new(&bytes)], from)?;
        if end.torn {
            file.zero(end.tail.position, SECTOR)?;
        }
        file.sync_data()?;
        self.disk.sync_dir()
    }

    fn finish(mut self, config: &WalConfig, end: Option<End>, notes: Vec<Op>) -> Result<Recovered, WalError> {
        let mut state = State::new();
        for (shard, index) in &mut self.shards {
            index.adopt(self.copies.remove(shard).unwrap_or_default());
            index.recovered();
            for file in index.locations() {
                self.files.get_mut(&file).expect("rows only name files that were read").needed += 1;
            }
        }
        let current = end.as_ref().map_or(0, |e| e.tail.file.lap.seq);
        state.next_seq = self.opened.keys().next_back().map_or(1, |seq| seq + 1);
        self.sort_unused(&mut state, config, current).map_err(io_error("tidy the log's directory"))?;
        if let Some(end) = &end {
            let (groups, files, torn) = (self.meta.groups.len(), self.files.len(), end.torn);
            tracing::info!(files, groups, file = current, position = end.tail.position, torn, "log recovered");
        }
        state.shards = self.shards;
        state.identity = self.meta.identity;
        state.lives = self.meta.lives.clone();
        state.stats.damages = self.findings.holes.len() as u64;
        state.files = self.files;
        state.current = current;
        state.sidecars = self.sidecars;
        Ok(Recovered { state, meta: self.meta, notes: notes.into(), tail: end.map(|e| e.tail) })
    }

    /// Prepared files that come after the open one are ready; other leftovers go.
    fn sort_unused(&self, state: &mut State, config: &WalConfig, current: u32) -> io::Result<()> {
        let mut removed = false;
        for (seq, opened) in self.opened.iter().filter(|(seq, _)| !self.files.contains_key(seq)) {
            if *seq > current && opened.file.len()? == config.file_bytes {
                state.ready.push_back(ReadyFile { seq: *seq, file: opened.file.clone() });
            } else {
                self.disk.remove(&file_name(*seq))?;
                removed = true;
            }
        }
        for name in self.disk.list()? {
            let beside = seq_of(&name, ".idx").or_else(|| seq_of(&name, ".lent"));
            let orphan = beside.is_some_and(|seq| !self.files.contains_key(&seq));
            if orphan || seq_of(&name, ".tmp").is_some() {
                self.disk.remove(&name)?;
                removed = true;
            }
        }
        if removed { self.disk.sync_dir() } else { Ok(()) }
    }
}
