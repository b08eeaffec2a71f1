//! What the handle, the writer and the file keeper share, behind locks that are never held across IO. Requests have a lock of their own:
//! the writer takes them while the groups go on with what they just appended.

use super::buffers::Buffers;
use super::cleaning::Moved;
use super::entry::{Done, Identity, LogEntry, Payload, Vote, WalConfig};
use super::file::{Held, ReadyFile};
use super::format::Record;
use super::group::Pending;
use super::index::{Frees, ShardIndex};
use super::pace::Pace;
use super::sidecar::Sidecar;
use super::stats::WalStats;
use crate::model::{Generation, LogId, NodeId, ShardId};
use crate::store::disk::Disk;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request in the FIFO.
pub(super) enum Op {
    Append {
        shard: ShardId,
        epoch: u64,
        entries: VecDeque<LogEntry>,
        done: Done,
    },
    Vote {
        shard: ShardId,
        vote: Vote,
        done: Done,
    },
    /// A small record that says it all: whose disk this is, or of damage.
    Note {
        record: Record,
        done: Done,
    },
    Truncate {
        shard: ShardId,
        keep: Option<LogId>,
        epoch: u64,
        frees: Frees,
        done: Done,
    },
    /// Entries that came by snapshot. Without any it only waits for what is before it.
    Stage {
        shard: ShardId,
        entries: VecDeque<LogEntry>,
        done: Done,
    },
    /// What is left of entries, written again.
    Relocate {
        shard: ShardId,
        entries: VecDeque<Moved>,
        done: Done,
    },
    Prepare {
        shard: ShardId,
        pending: Pending,
        done: Done,
    },
    Install {
        shard: ShardId,
        upto: LogId,
        keep_tail: bool,
        epoch: u64,
        frees: Frees,
        done: Done,
    },
    /// Does not wake the writer.
    Purge {
        shard: ShardId,
        upto: LogId,
        frees: Frees,
    },
    /// Records of these files are not needed once all earlier requests are durable; does not wake the writer.
    Free(Frees),
}

/// Requests for the writer, in the order in which the state took them. Locked after the state where both are.
#[derive(Default)]
pub(super) struct Inbox {
    pub queue: VecDeque<Op>,
    /// The queue holds something that somebody waits for.
    pub urgent: bool,
    pub stopping: bool,
    /// Commit points to be written with the next batch.
    pub commits: Commits,
}

/// The newest commit point of each group that has one.
pub(super) type Commits = BTreeMap<ShardId, LogId>;

pub(super) struct State {
    pub shards: HashMap<ShardId, ShardIndex>,
    pub identity: Option<Identity>,
    /// Of other nodes' disks.
    pub lives: BTreeMap<NodeId, Generation>,
    /// The writer waits for a prepared file.
    pub starved: bool,
    pub stats: WalStats,
    next_order: u64,
    /// When unread entries were last looked for, and the first order after that.
    looked: Option<(Instant, u64)>,
    /// Files with data by number; the writer fills the last one.
    pub files: BTreeMap<u32, Held>,
    /// The file that the writer fills.
    pub current: u32,
    /// Files prepared ahead, ascending.
    pub ready: VecDeque<ReadyFile>,
    /// Number of the next file to prepare.
    pub next_seq: u32,
    /// Closed files whose sidecars are to be written.
    pub sidecars: Vec<Sidecar>,
    /// Files of which something could not be read back: the next start must not trust their sidecars.
    pub doubtful: Vec<u32>,
}

impl State {
    pub fn new() -> State {
        State {
            shards: HashMap::new(),
            identity: None,
            lives: BTreeMap::new(),
            starved: false,
            stats: WalStats::default(),
            next_order: 0,
            looked: None,
            files: BTreeMap::new(),
            current: 0,
            ready: VecDeque::new(),
            next_seq: 1,
            sidecars: Vec::new(),
            doubtful: Vec::new(),
        }
    }

    /// These records are not needed any more.
    pub fn free(&mut self, frees: &Frees) {
        for (file, count) in frees.iter() {
            if let Some(held) = self.files.get_mut(&file) {
                held.needed = held.needed.saturating_sub(u64::from(count));
            }
        }
    }

    /// A closed file nobody needs, if any.
    pub fn has_unneeded(&self) -> bool {
        self.files.range(..self.current).any(|(_, held)| held.needed == 0)
    }

    /// Bring the tail cache within `budget`, oldest entries of all groups first; what is not synced stays.
    pub fn evict(&mut self, budget: usize) {
        while self.stats.cache_bytes > budget {
            let oldest = self.shards.values_mut().filter_map(|s| Some((s.evictable()?, s))).min_by_key(|(order, _)| *order);
            let Some((_, shard)) = oldest else { return };
            self.stats.cache_bytes -= shard.evict();
        }
    }

    /// Cached entries that are older than `age` and that nobody is about to read go; nothing happens when this was asked less than `age`
    /// ago.
    pub fn forget_unread(&mut self, age: Duration, now: Instant) {
        if self.looked.is_some_and(|(at, _)| now < at + age) {
            return;
        }
        let looked = self.looked.replace((now, self.next_order));
        let order = looked.map_or(0, |(_, order)| order);
        self.stats.cache_bytes -= self.shards.values_mut().map(|shard| shard.forget_unread(order)).sum::<usize>();
    }

    pub fn shard(&mut self, shard: ShardId) -> &mut ShardIndex {
        self.shards.entry(shard).or_default()
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    inbox: Mutex<Inbox>,
    /// Wakes the writer that waits for requests.
    pub work: Condvar,
    /// Wakes the writer that waits for a file.
    pub prepared: Condvar,
    /// Wakes the keeper.
    pub keep: Condvar,
    pub pace: Pace,
    pub config: WalConfig,
    pub disk: Arc<dyn Disk>,
    pub buffers: Arc<Buffers>,
}

impl Shared {
    pub fn new(config: WalConfig, state: State, disk: Arc<dyn Disk>) -> Arc<Shared> {
        let (work, prepared, keep) = (Condvar::new(), Condvar::new(), Condvar::new());
        let (state, inbox, pace, buffers) = (Mutex::new(state), Mutex::default(), Pace::new(), Arc::default());
        Arc::new(Shared { state, inbox, work, prepared, keep, pace, config, disk, buffers })
    }

    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock()
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The writer ends when the queue is empty; nothing more is taken.
    pub fn stop(&self) {
        // Under the state's lock, so that nobody is between the look at it and the wait.
        let _state = self.lock();
        self.inbox().stopping = true;
        self.work.notify_all();
        self.prepared.notify_all();
        self.keep.notify_all();
    }

    /// Queue what `make` returns, or fail `done` at once: the log is closed or `make` refuses.
    pub fn submit(&self, done: Done, make: impl FnOnce(&mut State, Done) -> Result<Op, (Done, io::Error)>) {
        let mut state = self.lock();
        let closed = state.stats.dead || self.inbox().stopping;
        let made = if closed { Err((done, io::Error::other("the log is closed"))) } else { make(&mut state, done) };
        match made {
            Ok(op) => {
                let mut inbox = self.inbox();
                inbox.queue.push_back(op);
                inbox.urgent = true;
                drop(inbox);
                self.work.notify_all();
            }
            Err((done, error)) => {
                drop(state);
                done(Err(error));
            }
        }
    }

    pub fn append(&self, shard: ShardId, entries: Vec<LogEntry>, done: Done) {
        self.submit(done, |state, done| {
            if let Err(error) = self.check(state.shard(shard).next(), &entries) {
                return Err((done, error));
            }
            let mut order = state.next_order;
            let index = state.shard(shard);
            let mut bytes = 0;
            for entry in &entries {
                bytes += index.push(shard, entry, order);
                order += 1;
            }
            let epoch = index.epoch;
            state.next_order = order;
            state.stats.cache_bytes += bytes;
            self.pace.queued(entries.iter().map(|e| e.payload.len()).sum());
            Ok(Op::Append { shard, epoch, entries: entries.into(), done })
        });
    }

    fn check(&self, mut next: Option<u64>, entries: &[LogEntry]) -> io::Result<()> {
        let refuse = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        for LogEntry { id, payload } in entries {
            if !next.map_or(id.index <= 1, |n| id.index == n) {
                return refuse(format!("entry {} does not follow, expected {next:?}", id.index));
            }
            if matches!(payload, Payload::Trimmed(_)) {
                return refuse(format!("what is left of entry {} is not appended", id.index));
            }
            if payload.len() as u64 > self.config.entry_bytes_max() {
                return refuse(format!("entry of {} bytes is too large for a file of {}", payload.len(), self.config.file_bytes));
            }
            next = Some(id.index + 1);
        }
        Ok(())
    }

    pub fn purge(&self, shard: ShardId, upto: LogId) {
        let mut state = self.lock();
        if let Some((frees, bytes)) = state.shard(shard).purge(upto) {
            state.stats.cache_bytes -= bytes;
            self.inbox().queue.push_back(Op::Purge { shard, upto, frees });
            self.hurry_when_short(&state);
        }
    }

    /// What gives space free rides with the next batch; when space is low, or the log too large, it does not wait for one.
    pub fn hurry_when_short(&self, state: &State) {
        let is_short = state.is_over(self.config.file_bytes, self.config.budget_bytes);
        let mut inbox = self.inbox();
        if is_short && !inbox.queue.is_empty() {
            inbox.urgent = true;
            self.work.notify_all();
            self.prepared.notify_all();
        }
    }

    pub fn release(&self, shard: ShardId, indices: impl Iterator<Item = u64>) {
        let mut state = self.lock();
        let (frees, bytes) = state.shard(shard).release(indices);
        state.stats.cache_bytes -= bytes;
        if frees.is_empty() {
            return;
        }
        let mut inbox = self.inbox();
        match inbox.queue.back_mut() {
            Some(Op::Free(all) | Op::Purge { frees: all, .. }) => all.append(frees),
            _ => inbox.queue.push_back(Op::Free(frees)),
        }
        drop(inbox);
        self.hurry_when_short(&state);
    }

    pub fn retain_only(&self, shard: ShardId, upto: u64, live: &[u64]) {
        let gone: Vec<u64> = {
            let mut state = self.lock();
            let mut live = live.iter().copied().peekable();
            let mut dead = |index: &u64| {
                while live.next_if(|l| l < index).is_some() {}
                live.peek() != Some(index)
            };
            state.shard(shard).pinned(upto).filter(|i| dead(i)).collect()
        };
        self.release(shard, gone.into_iter());
    }

    pub fn stats(&self) -> WalStats {
        let state = self.lock();
        let (files, spare_files) = (state.files.len(), state.ready.len());
        let bytes = (files + spare_files) as u64 * self.config.file_bytes;
        let (writing_for, queued_bytes) = (self.pace.writing_for(), self.pace.queued_bytes());
        WalStats { bytes, files, spare_files, writing_for, queued_bytes, ..state.stats.clone() }
    }
}
