//! The writer's thread: drains the queue, one write and one fdatasync per batch, then all callbacks. A failed write or sync ends the
//! process: what the disk holds then is unknown, and trying again proves nothing.

use super::cleaning::Moved;
use super::entry::{Done, LogEntry, Payload};
use super::file::{Held, WalFile};
use super::format::{FileHeader, Kind, Lap, RECORD_HEAD, Record, SECTOR, batch_size, encode, slices};
use super::index::{Frees, Location};
use super::meta::{self, Meta};
use super::sidecar::{Item, Sidecar};
use super::state::{Commits, Op, Shared, State};
use crate::model::entry::EntryBytes;
use crate::model::{LogId, ShardId};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between two looks for space when there is none.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// The writer owns what is on disk: the open file and the state its records say.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub file: Arc<WalFile>,
    /// End of the last batch.
    pub position: u64,
    /// The file ends with a CLOSE record.
    pub closed: bool,
    pub next_batch: u64,
    pub meta: Meta,
    /// Of the open file.
    pub items: Vec<Item>,
    pub heads: Vec<u8>,
    /// Taken and not in a batch yet.
    pub waiting: VecDeque<Op>,
    /// Commit points for the next batch.
    pub commits: Commits,
}

/// Requests that become durable together.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    bytes: usize,
    dones: Vec<Done>,
    truncations: Vec<(ShardId, u64)>,
    purges: Vec<(ShardId, LogId)>,
    frees: Frees,
}

impl Batch {
    fn push(&mut self, record: Record) {
        self.bytes += record.size();
        self.records.push(record);
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.frees.is_empty() && self.dones.is_empty()
    }
}

/// How much one batch may take.
#[derive(Clone, Copy)]
struct Limit {
    /// Bytes left in the file.
    room: u64,
    /// Wanted size; a single record may be larger.
    batch_bytes: usize,
    /// Bytes of records that join every batch.
    dirty: usize,
}

impl Limit {
    fn admits(self, batch: &Batch, more: usize) -> bool {
        let total = self.dirty + batch.bytes + more;
        batch_size(total) <= self.room && (batch.records.is_empty() || total <= self.batch_bytes)
    }
}

/// Why the thread ends.
enum End {
    Stopped,
    Failed(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Failed(error)
    }
}

impl Writer {
    pub fn run(mut self) {
        let end = loop {
            if let Err(end) = self.step() {
                break end;
            }
        };
        if let End::Failed(error) = &end {
            tracing::error!(%error, file = self.file.lap.seq, position = self.position, "the log cannot be written");
            match &self.shared.config.fatal {
                Some(hook) => hook(error),
                None => std::process::abort(),
            }
        }
        self.refuse_rest();
    }

    fn step(&mut self) -> Result<(), End> {
        let batch = self.next_batch()?;
        if batch.is_empty() {
            return self.rotate();
        }
        Ok(self.write(batch)?)
    }

    /// Wait for work and take what fits into the file; an empty batch: nothing fits.
    fn next_batch(&mut self) -> Result<Batch, End> {
        let mut inbox = self.shared.inbox();
        while self.waiting.is_empty() && !inbox.urgent && !inbox.stopping {
            self.shared.work.wait(&mut inbox);
        }
        let stopping = inbox.stopping;
        drop(inbox);
        self.take_inbox();
        if self.waiting.is_empty() && stopping {
            return Err(End::Stopped);
        }
        Ok(self.take(self.room(), self.shared.config.batch_bytes))
    }

    fn take_inbox(&mut self) {
        let mut inbox = self.shared.inbox();
        self.waiting.append(&mut inbox.queue);
        self.commits.append(&mut inbox.commits);
        inbox.urgent = false;
    }

    /// Take requests in order while they fit into `room` bytes of the file and the size of a batch.
    fn take(&mut self, room: u64, batch_bytes: usize) -> Batch {
        let mut batch = Batch::default();
        let limit = Limit { room, batch_bytes, dirty: self.commits.len() * RECORD_HEAD };
        while let Some(op) = self.waiting.pop_front() {
            if let Some(rest) = absorb(&mut batch, op, limit) {
                self.waiting.push_front(rest);
                break;
            }
        }
        if !batch.records.is_empty() {
            for (shard, id) in std::mem::take(&mut self.commits) {
                batch.push(Record::new(Kind::Committed, shard, id, EntryBytes::default()));
            }
        }
        batch
    }

    /// Bytes that entries may still take in the open file.
    fn room(&self) -> u64 {
        self.control_room().saturating_sub(self.shared.config.reserve())
    }

    fn control_room(&self) -> u64 {
        if self.closed { 0 } else { (self.shared.config.file_bytes - SECTOR).saturating_sub(self.position) }
    }

    fn write(&mut self, mut batch: Batch) -> io::Result<()> {
        if !batch.records.is_empty() {
            self.put(&mut batch.records)?;
        }
        self.note(&batch.records);
        let dones = {
            let mut state = self.shared.lock();
            self.settle(&mut state, &batch);
            std::mem::take(&mut batch.dones)
        };
        dones.into_iter().for_each(|done| done(Ok(())));
        Ok(())
    }

    /// Write and sync one batch at the end of the open file.
    fn put(&mut self, records: &mut [Record]) -> io::Result<()> {
        let mut heads = std::mem::take(&mut self.heads);
        let header = encode(self.file.lap, (self.next_batch, self.term(records)), self.position, records, &mut heads);
        let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(3 * records.len() + 1);
        slices(&header, records, &heads, &mut parts);
        self.shared.pace.began();
        self.file.file.write_all_vectored_at(&parts, self.position)?;
        drop(parts);
        self.heads = heads;
        self.sync()?;
        self.next_batch += 1;
        let mut state = self.shared.lock();
        state.stats.batches += 1;
        state.stats.records += records.len() as u64;
        state.stats.written_bytes += header.end() - self.position;
        self.position = header.end();
        Ok(())
    }

    /// Highest term of a vote, those in `records` included.
    fn term(&self, records: &[Record]) -> u64 {
        let votes = records.iter().filter(|record| matches!(record.head.kind, Kind::Vote | Kind::Damaged));
        votes.map(|record| record.head.id.leader.term).fold(self.meta.term(), u64::max)
    }

    fn sync(&self) -> io::Result<()> {
        let began = Instant::now();
        let result = self.file.file.sync_data();
        self.shared.pace.ended();
        self.shared.lock().stats.synced(began.elapsed());
        result
    }

    /// What is on disk now says this of the groups.
    fn note(&mut self, records: &[Record]) {
        for record in records {
            meta::apply(&mut self.meta, &record.head, &record.body);
            if record.head.kind.is_indexed() {
                self.items.push(Item { head: record.head, position: record.position });
            }
        }
    }

    /// The batch is durable: places, marks, free files, the cache.
    fn settle(&self, state: &mut State, batch: &Batch) {
        let file = self.file.lap.seq;
        let (mut needed, mut bytes, mut left) = (0, 0, Frees::default());
        for record in batch.records.iter().filter(|r| r.head.kind.is_entry()) {
            bytes += record.body.len();
            let at = Location { file, position: record.position, len: record.head.len };
            needed += u64::from(state.shard(record.head.shard).place(record.epoch, record.head.id, at));
        }
        for record in batch.records.iter().filter(|r| r.head.kind == Kind::Staged) {
            let at = Location { file, position: record.position, len: record.head.len };
            needed += u64::from(state.shard(record.head.shard).place_staged(record.head.id, at));
        }
        for record in batch.records.iter().filter(|r| r.head.kind == Kind::Relocated) {
            let at = Location { file, position: record.position, len: record.head.len };
            if state.shard(record.head.shard).relocate(record.head.id, record.from, at) {
                needed += 1;
                left.add(record.from);
                state.stats.relocated_bytes += record.size() as u64;
            }
        }
        state.free(&left);
        state.files.get_mut(&file).expect("the open file is always held").needed += needed;
        self.shared.pace.settled(bytes);
        for (shard, epoch) in &batch.truncations {
            state.shard(*shard).truncated(*epoch);
        }
        for (shard, upto) in &batch.purges {
            let index = state.shard(*shard);
            // Of two ids with this index the installed one holds.
            index.flushed = index.flushed.filter(|f| f.index > upto.index).or(Some(*upto));
        }
        state.free(&batch.frees);
        state.evict(self.shared.config.tail_cache_bytes);
        if state.has_unneeded() {
            self.shared.keep.notify_all();
        }
    }

    /// Go on in the next prepared file. Waits for one when there is none: a disk on which it does not get ready hangs as one does that
    /// syncs nothing; a full disk does not.
    fn rotate(&mut self) -> Result<(), End> {
        let shared = self.shared.clone();
        let mut is_timed = false;
        let next = loop {
            let mut state = shared.lock();
            state.starved = state.ready.is_empty();
            if let Some(next) = state.ready.pop_front() {
                state.stats.full = false;
                self.shared.keep.notify_all();
                break next;
            }
            if state.stats.low_space && self.shared.inbox().stopping {
                return Err(End::Stopped);
            }
            state.stats.full = state.stats.low_space;
            match (state.stats.full, is_timed) {
                (true, _) => shared.pace.ended(),
                (false, false) => shared.pace.began(),
                (false, true) => {}
            }
            is_timed = !state.stats.full;
            if state.stats.full {
                self.take_inbox();
                let room = self.control_room();
                if let Some(batch) = take_frees(&mut self.waiting, &state, room) {
                    drop(state);
                    self.write(batch)?;
                    continue;
                }
            }
            self.shared.prepared.wait_for(&mut state, FULL_RETRY);
        };
        if !is_timed {
            shared.pace.began();
        }
        self.close()?;
        let lap = Lap { seq: next.seq, salt: rand::random() };
        self.begin(Arc::new(WalFile::new(lap, next.file, false)))?;
        shared.pace.ended();
        Ok(())
    }

    /// End the open file with a CLOSE record, so that its end is known whatever becomes of its successor.
    fn close(&mut self) -> io::Result<()> {
        if !self.closed {
            self.put(&mut [Record::new(Kind::Close, ShardId::CATALOG, LogId::default(), EntryBytes::default())])?;
            self.closed = true;
        }
        let sidecar = Sidecar { lap: self.file.lap, next_batch: self.next_batch, items: std::mem::take(&mut self.items) };
        self.shared.lock().sidecars.push(sidecar);
        Ok(())
    }

    /// Header and META of a new file; durable before anything else goes into it (rule 2).
    pub fn begin(&mut self, file: Arc<WalFile>) -> io::Result<()> {
        let header = FileHeader { lap: file.lap, first_batch: self.next_batch };
        file.file.write_all_vectored_at(&[IoSlice::new(&header.encode())], 0)?;
        self.file = file;
        self.position = SECTOR;
        self.closed = false;
        {
            let state = self.shared.lock();
            self.meta.holes.retain(|hole| state.files.contains_key(&hole.file));
        }
        self.put(&mut [meta::record(&self.meta)])?;
        self.items = meta::items(&self.meta.groups);
        let mut state = self.shared.lock();
        state.current = self.file.lap.seq;
        state.files.insert(self.file.lap.seq, Held { file: self.file.clone(), needed: 0 });
        self.shared.keep.notify_all();
        Ok(())
    }

    /// The thread ends: nobody waits for ever.
    fn refuse_rest(&mut self) {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        state.stats.dead = true;
        self.take_inbox();
        self.shared.keep.notify_all();
        drop(state);
        for op in std::mem::take(&mut self.waiting) {
            match op {
                Op::Append { done, .. } | Op::Vote { done, .. } | Op::Truncate { done, .. } => done(closed()),
                Op::Stage { done, .. }
                | Op::Relocate { done, .. }
                | Op::Prepare { done, .. }
                | Op::Install { done, .. }
                | Op::Note { done, .. } => done(closed()),
                Op::Purge { .. } | Op::Free(_) => {}
            }
        }
    }
}

fn closed() -> io::Result<()> {
    Err(io::Error::other("the log is closed"))
}

/// Move a request into the batch; what does not fit comes back.
fn absorb(batch: &mut Batch, op: Op, limit: Limit) -> Option<Op> {
    let small = |kind, shard, id| Record::new(kind, shard, id, EntryBytes::default());
    match op {
        Op::Append { shard, epoch, mut entries, done } => {
            while let Some(entry) = entries.front() {
                if !limit.admits(batch, RECORD_HEAD + entry.payload.len()) {
                    return Some(Op::Append { shard, epoch, entries, done });
                }
                let entry = entries.pop_front().expect("the front was just seen");
                let (kind, body) = content(entry.payload);
                let mut record = Record::new(kind, shard, entry.id, body);
                record.epoch = epoch;
                batch.push(record);
            }
            batch.dones.push(done);
        }
        Op::Stage { shard, entries, done } => return stage(batch, (shard, entries, done), limit),
        Op::Relocate { shard, entries, done } => return relocate(batch, (shard, entries, done), limit),
        Op::Prepare { shard, pending, done } => {
            let record = meta::prepare_record(shard, &pending);
            if !limit.admits(batch, record.size()) {
                return Some(Op::Prepare { shard, pending, done });
            }
            batch.push(record);
            batch.dones.push(done);
        }
        other if !limit.admits(batch, 2 * RECORD_HEAD + 64) => return Some(other),
        Op::Install { shard, upto, keep_tail, epoch, frees, done } => {
            batch.push(small(Kind::Install, shard, upto).flagged(keep_tail));
            batch.truncations.push((shard, epoch));
            batch.purges.push((shard, upto));
            batch.frees.append(frees);
            batch.dones.push(done);
        }
        Op::Vote { shard, vote, done } => {
            batch.push(small(Kind::Vote, shard, LogId { leader: vote.leader, index: 0 }).flagged(vote.committed));
            batch.dones.push(done);
        }
        Op::Note { record, done } => {
            batch.push(record);
            batch.dones.push(done);
        }
        Op::Truncate { shard, keep, epoch, frees, done } => {
            batch.push(small(Kind::Truncate, shard, keep.unwrap_or_default()).flagged(keep.is_some()));
            batch.truncations.push((shard, epoch));
            batch.frees.append(frees);
            batch.dones.push(done);
        }
        Op::Purge { shard, upto, frees } => {
            batch.push(small(Kind::Purge, shard, upto));
            batch.purges.push((shard, upto));
            batch.frees.append(frees);
        }
        Op::Free(frees) => batch.frees.append(frees),
    }
    None
}

/// Entries that came by snapshot, as many as fit.
fn stage(batch: &mut Batch, (shard, mut entries, done): (ShardId, VecDeque<LogEntry>, Done), limit: Limit) -> Option<Op> {
    while let Some(entry) = entries.front() {
        if !limit.admits(batch, RECORD_HEAD + entry.payload.len()) {
            return Some(Op::Stage { shard, entries, done });
        }
        let LogEntry { id, payload } = entries.pop_front().expect("the front was just seen");
        let is_trimmed = matches!(payload, Payload::Trimmed(_));
        if let Payload::Normal(rope) | Payload::Trimmed(rope) = payload {
            batch.push(Record::new(Kind::Staged, shard, id, rope).flagged(is_trimmed));
        }
    }
    batch.dones.push(done);
    None
}

/// Entries that leave their files, as many as fit.
fn relocate(batch: &mut Batch, (shard, mut entries, done): (ShardId, VecDeque<Moved>, Done), limit: Limit) -> Option<Op> {
    while let Some(moved) = entries.front() {
        if !limit.admits(batch, RECORD_HEAD + moved.left.len()) {
            return Some(Op::Relocate { shard, entries, done });
        }
        let Moved { id, from, left } = entries.pop_front().expect("the front was just seen");
        let mut record = Record::new(Kind::Relocated, shard, id, left);
        record.from = from;
        batch.push(record);
    }
    batch.dones.push(done);
    None
}

/// How a payload stands in a record.
fn content(payload: Payload) -> (Kind, EntryBytes) {
    match payload {
        Payload::Blank => (Kind::Blank, EntryBytes::default()),
        Payload::Normal(rope) => (Kind::Normal, rope),
        Payload::Trimmed(rope) => (Kind::Relocated, rope), // never appended, see `Shared::check`
        Payload::Membership(bytes) => (Kind::Membership, bytes.into()),
    }
}

/// When there is no space: purges may overtake what waits, since they commute with it, if that makes a file free.
fn take_frees(waiting: &mut VecDeque<Op>, state: &State, room: u64) -> Option<Batch> {
    let (mut batch, mut rest) = (Batch::default(), VecDeque::new());
    let mut lost = std::collections::HashMap::<u32, u64>::new();
    for op in &*waiting {
        if let Op::Purge { frees, .. } | Op::Free(frees) = op {
            frees.iter().for_each(|(file, n)| *lost.entry(file).or_default() += u64::from(n));
        }
    }
    let gains = |(file, held): (&u32, &Held)| lost.get(file).is_some_and(|n| *n >= held.needed);
    if !state.files.range(..state.current).any(gains) {
        return None;
    }
    let limit = Limit { room, batch_bytes: usize::MAX, dirty: 0 };
    for op in std::mem::take(waiting) {
        match op {
            Op::Purge { .. } | Op::Free(_) => rest.extend(absorb(&mut batch, op, limit)),
            other => rest.push_back(other),
        }
    }
    *waiting = rest;
    (!batch.is_empty()).then_some(batch)
}
