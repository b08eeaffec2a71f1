//! What the handle, the writer and the file keeper share, behind one lock that is never held across IO.

use super::entry::{Done, Identity, LogEntry, Vote, WalConfig};
use super::index::{Frees, ShardIndex};
use super::stats::WalStats;
use crate::model::{LogId, ShardId};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

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
    Identity {
        identity: Identity,
        done: Done,
    },
    Truncate {
        shard: ShardId,
        keep: Option<LogId>,
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

pub(super) struct State {
    pub shards: HashMap<ShardId, ShardIndex>,
    pub identity: Option<Identity>,
    pub queue: VecDeque<Op>,
    /// The queue holds something that somebody waits for.
    pub urgent: bool,
    pub stopping: bool,
    pub stats: WalStats,
    pub sync_began: Option<Instant>,
    next_order: u64,
}

impl State {
    pub fn shard(&mut self, shard: ShardId) -> &mut ShardIndex {
        self.shards.entry(shard).or_default()
    }
}

pub(super) struct Shared {
    state: Mutex<State>,
    pub work: Condvar,
    pub config: WalConfig,
}

impl Shared {
    pub fn new(config: WalConfig) -> Arc<Shared> {
        let state = State {
            shards: HashMap::new(),
            identity: None,
            queue: VecDeque::new(),
            urgent: false,
            stopping: false,
            stats: WalStats::default(),
            sync_began: None,
            next_order: 0,
        };
        Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), config })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Queue what `make` returns, or fail `done` at once when the log is dead.
    pub fn submit(&self, done: Done, make: impl FnOnce(&mut State, Done) -> Op) {
        let mut state = self.lock();
        if state.stats.dead || state.stopping {
            drop(state);
            return done(Err(io::Error::other("the log is closed")));
        }
        let op = make(&mut state, done);
        state.queue.push_back(op);
        state.urgent = true;
        self.work.notify_all();
    }

    pub fn append(&self, shard: ShardId, entries: Vec<LogEntry>, done: Done) {
        if let Err(e) = self.check(shard, &entries) {
            return done(Err(e));
        }
        self.submit(done, |state, done| {
            let mut order = state.next_order;
            let index = state.shards.entry(shard).or_default();
            let mut bytes = 0;
            for entry in &entries {
                bytes += index.push(shard, entry, order);
                order += 1;
            }
            let epoch = index.epoch;
            state.next_order = order;
            state.stats.cache_bytes += bytes;
            state.stats.queued_bytes += entries.iter().map(|e| e.payload.len()).sum::<usize>();
            Op::Append { shard, epoch, entries: entries.into(), done }
        });
    }

    fn check(&self, shard: ShardId, entries: &[LogEntry]) -> io::Result<()> {
        let mut state = self.lock();
        let mut next = state.shard(shard).next();
        for entry in entries {
            let fits = next.map_or(entry.id.index <= 1, |n| entry.id.index == n);
            if !fits {
                let text = format!("shard {shard}: entry {} does not follow, expected {next:?}", entry.id.index);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            next = Some(entry.id.index + 1);
        }
        Ok(())
    }

    pub fn purge(&self, shard: ShardId, upto: LogId) {
        let mut state = self.lock();
        if let Some((frees, bytes)) = state.shard(shard).purge(upto) {
            state.stats.cache_bytes -= bytes;
            state.queue.push_back(Op::Purge { shard, upto, frees });
        }
    }

    pub fn release(&self, shard: ShardId, indices: impl Iterator<Item = u64>) {
        let mut state = self.lock();
        let (frees, bytes) = state.shard(shard).release(indices);
        state.stats.cache_bytes -= bytes;
        if frees.is_empty() {
            return;
        }
        match state.queue.back_mut() {
            Some(Op::Free(all) | Op::Purge { frees: all, .. }) => all.append(frees),
            _ => state.queue.push_back(Op::Free(frees)),
        }
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
        WalStats { syncing_for: state.sync_began.map(|b| b.elapsed()), ..state.stats.clone() }
    }
}
