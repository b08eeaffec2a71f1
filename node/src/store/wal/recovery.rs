//! What `Wal::open` does with the files of an earlier process: read them in lap order, tell a torn tail from damage (rule 5), make the
//! tail durable again (rule 4). Changes nothing before it knows that nothing is damaged.

use super::entry::{Identity, Payload, WalConfig, WalError};
use super::file::{Held, ReadyFile, WalFile, file_name, seq_of};
use super::format::{FileHeader, HeaderRead, Kind, Lap, RecordHead, SECTOR, VERSION};
use super::group::Groups;
use super::index::{Location, ShardIndex};
use super::meta;
use super::scan::{Scan, proof_of_sync};
use super::sidecar::{Item, Sidecar};
use super::state::State;
use crate::model::ShardId;
use crate::model::entry::EntryBytes;
use crate::store::disk::{Disk, DiskFile};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

/// Part of an unused file that is searched for batches that should not be there: a lap's first batches lie at its front.
const FRONT: u64 = 1 << 20;

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
    pub groups: Groups,
    pub identity: Option<Identity>,
    /// `None`: no file has data.
    pub tail: Option<Tail>,
}

struct Opened {
    file: Arc<dyn DiskFile>,
    header: HeaderRead,
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    opened: BTreeMap<u32, Opened>,
    shards: HashMap<ShardId, ShardIndex>,
    groups: Groups,
    identity: Option<Identity>,
    files: BTreeMap<u32, Held>,
    next_batch: u64,
    sidecars: Vec<Sidecar>,
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
        groups: Groups::new(),
        identity: None,
        files: BTreeMap::new(),
        next_batch: 0,
        sidecars: Vec::new(),
    };
    recovery.open_all()?;
    let end = recovery.read_all().map_err(|error| recovery.complete(error))?;
    if let Some(end) = &end {
        recovery.secure(end).map_err(io_error("make the log's tail durable"))?;
    }
    recovery.finish(config, end)
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> WalError {
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
                Ok(Opened { header: FileHeader::decode(&sector[..n]), file })
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
        let Some(last) = self.find_last()? else { return Ok(None) };
        let closed: Vec<u32> = self.opened.range(..last).map(|(seq, _)| *seq).collect();
        for seq in closed {
            self.read_closed(seq)?;
        }
        let end = self.read_last(last)?;
        self.check_gaps(last)?;
        Ok(Some(end))
    }

    /// Add to a report of damage what any intact record of any file still tells.
    fn complete(&self, error: WalError) -> WalError {
        let WalError::Corrupt { file, position, detail, groups, mut identity } = error else { return error };
        let mut found: BTreeSet<ShardId> = groups.into_iter().collect();
        for (seq, opened) in &self.opened {
            let Ok(mut scan) = Scan::new(&*opened.file) else { continue };
            let mut at = SECTOR;
            while let Ok(Some(next)) = scan.find(at, u64::MAX, |h| h.lap.seq == *seq) {
                at = next + SECTOR;
                let Ok(Some(batch)) = scan.header(next) else { continue };
                let Some(records) = scan.bytes(next, batch.len as usize).ok().and_then(|bytes| batch.records(bytes)) else { continue };
                for (head, _, body) in records {
                    let mut groups = Groups::new();
                    meta::apply(&mut groups, &mut identity, &head, &Bytes::copy_from_slice(body).into());
                    found.extend(groups.keys());
                }
                at = batch.end();
            }
        }
        WalError::Corrupt { file, position, detail, groups: found.into_iter().collect(), identity }
    }

    fn corrupt(&self, file: u32, position: u64, detail: impl Into<String>) -> WalError {
        let mut groups: Vec<ShardId> = self.groups.keys().chain(self.shards.keys()).copied().collect();
        groups.sort_unstable();
        groups.dedup();
        WalError::Corrupt { file, position, detail: detail.into(), groups, identity: self.identity }
    }

    fn data(&self, seq: u32) -> Option<FileHeader> {
        match self.opened[&seq].header {
            HeaderRead::Valid(header) if header.lap.seq == seq => Some(header),
            _ => None,
        }
    }

    fn wal_file(&self, seq: u32, lap: Lap) -> Arc<WalFile> {
        Arc::new(WalFile { lap, file: self.opened[&seq].file.clone() })
    }

    /// The newest file whose META is intact. Newer ones must never have got beyond their META.
    fn find_last(&mut self) -> Result<Option<u32>, WalError> {
        let seqs: Vec<u32> = self.opened.keys().rev().copied().collect();
        let mut unused = Vec::new();
        let mut last = None;
        for seq in seqs {
            if self.read_meta(seq)? {
                last = Some(seq);
                break;
            }
            unused.push(seq);
        }
        for seq in unused {
            self.check_unused(seq, SECTOR + SECTOR)?;
        }
        Ok(last)
    }

    /// Read the META of `seq` into `groups` and `identity`; false when there is none.
    fn read_meta(&mut self, seq: u32) -> Result<bool, WalError> {
        let Some(header) = self.data(seq) else { return Ok(false) };
        let file = self.opened[&seq].file.clone();
        let mut read = || -> io::Result<bool> {
            let mut scan = Scan::new(&*file)?;
            let Some(batch) = scan.header(SECTOR)?.filter(|b| b.lap == header.lap && b.number == header.first_batch) else {
                return Ok(false);
            };
            let Some(records) = batch.records(scan.bytes(SECTOR, batch.len as usize)?) else { return Ok(false) };
            let Some((head, _, body)) = records.first().filter(|(head, _, _)| head.kind == Kind::Meta) else { return Ok(false) };
            Ok(meta::apply(&mut self.groups, &mut self.identity, head, &Bytes::copy_from_slice(body).into()))
        };
        read().map_err(io_error(format!("read log file {seq}")))
    }

    /// A file that holds nothing of its lap must not have a batch from `from` on: that would prove that its front was synced.
    fn check_unused(&self, seq: u32, from: u64) -> Result<(), WalError> {
        let header = self.data(seq);
        let find = || {
            let mut scan = Scan::new(&*self.opened[&seq].file)?;
            let to = if header.is_some() { scan.len } else { FRONT };
            scan.find(from, to, |b| match header {
                Some(h) => b.lap == h.lap && b.number > h.first_batch,
                None => b.lap.seq == seq,
            })
        };
        match find().map_err(io_error(format!("read log file {seq}")))? {
            Some(at) => Err(self.corrupt(seq, 0, format!("its front is damaged, a batch at byte {at} proves that it was synced"))),
            None => Ok(()),
        }
    }

    /// A file with newer ones behind it: complete, or damaged, or prepared and never used.
    fn read_closed(&mut self, seq: u32) -> Result<(), WalError> {
        let Some(header) = self.data(seq) else {
            return self.check_unused(seq, SECTOR);
        };
        if header.first_batch < self.next_batch {
            return Err(self.corrupt(seq, 0, "its first batch is older than the file before it"));
        }
        let file = self.wal_file(seq, header.lap);
        if let Some(sidecar) = Sidecar::load(self.disk, header.lap) {
            sidecar.items.iter().for_each(|item| self.replay(seq, &item.head, item.position));
            self.next_batch = sidecar.next_batch;
        } else {
            let end = self.scan(&file, header)?;
            if !end.tail.closed {
                return Err(self.corrupt(seq, end.tail.position, "a synced batch is damaged"));
            }
            self.sidecars.push(Sidecar { lap: header.lap, next_batch: self.next_batch, items: end.tail.items });
        }
        self.files.insert(seq, Held { file, needed: 0 });
        Ok(())
    }

    fn read_last(&mut self, seq: u32) -> Result<End, WalError> {
        let header = self.data(seq).expect("the last file was chosen by its header");
        if header.first_batch < self.next_batch {
            return Err(self.corrupt(seq, 0, "its first batch is older than the file before it"));
        }
        let file = self.wal_file(seq, header.lap);
        let mut end = self.scan(&file, header)?;
        self.files.insert(seq, Held { file: file.clone(), needed: 0 });
        if !end.tail.closed {
            let bad = end.tail.position;
            let proof = proof_of_sync(&file, bad, self.next_batch).map_err(io_error(format!("read log file {seq}")))?;
            if let Some(at) = proof {
                return Err(self.corrupt(seq, bad, format!("a batch at byte {at} proves that it was synced")));
            }
            let mut scan = Scan::new(&*file.file).map_err(io_error(format!("read log file {seq}")))?;
            end.torn = scan.header(bad).map_err(io_error(format!("read log file {seq}")))?.is_some_and(|h| h.lap == header.lap);
        }
        Ok(end)
    }

    /// Replay batches up to the first one that is not there or not intact.
    fn scan(&mut self, file: &Arc<WalFile>, header: FileHeader) -> Result<End, WalError> {
        let seq = header.lap.seq;
        let failed = || format!("read log file {seq}");
        let mut scan = Scan::new(&*file.file).map_err(io_error(failed()))?;
        self.next_batch = header.first_batch;
        let (mut position, mut last_batch, mut closed, mut items) = (SECTOR, SECTOR, false, Vec::new());
        while !closed {
            let found = scan.header(position).map_err(io_error(failed()))?;
            let Some(batch) = found.filter(|b| b.lap == header.lap && b.number == self.next_batch) else { break };
            let Some(records) = batch.records(scan.bytes(position, batch.len as usize).map_err(io_error(failed()))?) else { break };
            for (head, at, body) in records {
                self.record(seq, &head, at, body, &mut items).ok_or_else(|| self.corrupt(seq, u64::from(at), "a record makes no sense"))?;
                closed |= head.kind == Kind::Close;
            }
            last_batch = position;
            position = batch.end();
            self.next_batch += 1;
        }
        let tail = Tail { file: file.clone(), position, closed, next_batch: self.next_batch, items };
        Ok(End { tail, last_batch, torn: false })
    }

    fn record(&mut self, seq: u32, head: &RecordHead, position: u32, body: &[u8], items: &mut Vec<Item>) -> Option<()> {
        let body = match head.kind {
            Kind::Membership | Kind::Identity | Kind::Meta | Kind::Prepare => EntryBytes::from(Bytes::copy_from_slice(body)),
            _ => EntryBytes::default(),
        };
        if !meta::apply(&mut self.groups, &mut self.identity, head, &body) {
            return None;
        }
        let from = items.len();
        match head.kind {
            Kind::Meta => items.extend(meta::items(&self.groups)),
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
            Kind::Install => {
                index.install(head.id, head.flag);
            }
            kind if kind.is_entry() && index.group.purged.is_none_or(|p| p.index < head.id.index) => {
                index.drop_after(head.id.index.checked_sub(1));
                index.push_row(head.shard, head.id, kind == Kind::Normal, Location { file, position, len: head.len });
                index.group.entry(head.id, &Payload::Blank);
            }
            _ => {}
        }
    }

    fn check_gaps(&mut self, last_file: u32) -> Result<(), WalError> {
        for (shard, group) in &self.groups {
            self.shards.entry(*shard).or_default().group = group.clone();
        }
        let gap = self.shards.iter().find_map(|(shard, index)| Some((*shard, index.gap()?)));
        match gap {
            Some((shard, index)) => Err(self.corrupt(last_file, 0, format!("entry {index} of group {shard} is missing"))),
            None => Ok(()),
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

    fn finish(mut self, config: &WalConfig, end: Option<End>) -> Result<Recovered, WalError> {
        let mut state = State::new();
        for index in self.shards.values_mut() {
            index.recovered();
            for file in index.locations() {
                self.files.get_mut(&file).expect("rows only name files that were read").needed += 1;
            }
        }
        let current = end.as_ref().map_or(0, |e| e.tail.file.lap.seq);
        state.next_seq = self.opened.keys().next_back().map_or(1, |seq| seq + 1);
        self.sort_unused(&mut state, config, current).map_err(io_error("tidy the log's directory"))?;
        if let Some(end) = &end {
            let (groups, files, torn) = (self.groups.len(), self.files.len(), end.torn);
            tracing::info!(files, groups, file = current, position = end.tail.position, torn, "log recovered");
        }
        state.shards = self.shards;
        state.identity = self.identity;
        state.files = self.files;
        state.current = current;
        state.sidecars = self.sidecars;
        Ok(Recovered { state, groups: self.groups, identity: self.identity, tail: end.map(|e| e.tail) })
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
            let orphan = seq_of(&name, ".idx").is_some_and(|seq| !self.files.contains_key(&seq));
            if orphan || seq_of(&name, ".tmp").is_some() {
                self.disk.remove(&name)?;
                removed = true;
            }
        }
        if removed { self.disk.sync_dir() } else { Ok(()) }
    }
}
