//! What a group keeps on this node beside its log: machine, durable checkpoint, members; and how a state that came from another node
//! takes their place (rule 6): its entries are staged and durable -> PREPARE -> the state store -> INSTALL -> acknowledged. A crash
//! before the state is durable leaves the old state, one behind it is finished at the next start.

use super::journal::Journal;
use super::log::completion;
use super::machine::{Arrived, Departing, Machine};
use super::types::*;
use crate::model::{LogId, ShardId};
use crate::store::state::{Change, StateStore};
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A store that fails sets itself aside and begins an empty one: a full state can be given again.
const STORE_ATTEMPTS: u32 = 5;
const STORE_RETRY: Duration = Duration::from_millis(200);
/// What a broken transfer staged is kept this long for the next attempt.
const STAGED_FOR: Duration = Duration::from_secs(60);

/// A group's things on this node.
pub struct Holding {
    pub(super) shard: ShardId,
    pub(super) machine: Arc<dyn Machine>,
    pub(super) journal: Arc<dyn Journal>,
    /// Weak: whoever started this room says when the store is closed.
    store: Weak<StateStore>,
    /// As applied.
    pub(super) membership: Mutex<Ostored>,
    /// The durable checkpoint: what openraft calls the snapshot.
    pub(super) checkpointed: Mutex<Option<LogId>>,
    /// Held while a checkpoint or an installed state is on its way into the store: the two must not mix.
    pub(super) saving: tokio::sync::Mutex<()>,
    /// Transfers that read entries of this node: nothing is released meanwhile.
    pins: AtomicUsize,
    /// One state is received at a time; a newer transfer ends the older one.
    receiving: tokio::sync::Mutex<()>,
    turn: AtomicU64,
    left_staged: Mutex<Option<Instant>>,
}

/// The state of a group for another node; its entries can be read as long as this lives.
pub struct Outgoing {
    pub(super) departing: Departing,
    pub(super) membership: Ostored,
    _pin: Pin,
}

struct Pin(Arc<Holding>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Holding {
    /// `membership`: the group's members as the log last said, for a machine that was restored beyond that entry.
    pub fn new(
        shard: ShardId,
        machine: Arc<dyn Machine>,
        journal: Arc<dyn Journal>,
        store: Option<&Arc<StateStore>>,
        membership: Ostored,
    ) -> Arc<Holding> {
        let restored = machine.restored();
        let membership = if restored.is_some() { membership } else { Ostored::default() };
        Arc::new(Holding {
            shard,
            machine,
            journal,
            store: store.map(Arc::downgrade).unwrap_or_default(),
            membership: Mutex::new(membership),
            checkpointed: Mutex::new(restored),
            saving: tokio::sync::Mutex::default(),
            pins: AtomicUsize::new(0),
            receiving: tokio::sync::Mutex::default(),
            turn: AtomicU64::new(0),
            left_staged: Mutex::new(None),
        })
    }

    /// The state as it is now, for another node; `None` when it is empty.
    pub fn outgoing(self: &Arc<Self>) -> Option<Outgoing> {
        // First the pin: what is released after the state was taken may belong to it.
        self.pins.fetch_add(1, Ordering::AcqRel);
        let pin = Pin(self.clone());
        loop {
            let membership = self.membership.lock().clone();
            let departing = self.machine.snapshot()?;
            let within = membership.log_id().as_ref().is_none_or(|id| id.index <= departing.applied.index);
            if within && *self.membership.lock() == membership {
                return Some(Outgoing { departing, membership, _pin: pin });
            }
            std::thread::yield_now();
        }
    }

    /// A transfer reads entries of this node.
    pub fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    /// Begin to receive; ends an older transfer and waits until it is gone.
    pub async fn receive(&self) -> Receiving<'_> {
        let turn = self.turn.fetch_add(1, Ordering::AcqRel) + 1;
        let guard = self.receiving.lock().await;
        Receiving { holding: self, turn, _guard: guard }
    }

    /// Whether a state that came can be kept: not without a store, it would be gone with the process.
    pub fn keeps_state(&self) -> bool {
        self.store.strong_count() > 0
    }

    /// A state that came takes the place of this one. All entries that it needs are in the log or staged.
    pub async fn install(&self, membership: Ostored, arrived: Arrived) -> io::Result<()> {
        let Arrived { applied, change, live, adopt } = arrived;
        let _saving = self.saving.lock().await;
        let members = membership.log_id().as_ref().map(|id| (from_oid(*id), write_membership(membership.membership())));
        let (done, prepared) = completion();
        self.journal.prepare_install(self.shard, applied, members, done);
        prepared.await?;
        self.save(change).await?;
        let (done, finished) = completion();
        self.journal.finish_install(self.shard, applied, done);
        finished.await?;
        adopt();
        self.journal.retain_only(self.shard, applied.index, &live);
        *self.membership.lock() = membership;
        *self.checkpointed.lock() = Some(applied);
        tracing::info!(shard = %self.shard, index = applied.index, entries = live.len(), "state of another node installed");
        Ok(())
    }

    async fn save(&self, change: Change) -> io::Result<()> {
        let mut attempt = 1;
        loop {
            let store = self.store.upgrade().ok_or_else(|| io::Error::other("this node keeps no states"))?;
            let (tx, rx) = oneshot::channel();
            store.checkpoint(self.shard, change.clone(), move |result| drop(tx.send(result)));
            drop(store);
            let error = match rx.await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the state store is closed".to_string(),
            };
            tracing::warn!(shard = %self.shard, error, attempt, "the state of another node cannot be stored");
            if attempt == STORE_ATTEMPTS {
                return Err(io::Error::other(error));
            }
            attempt += 1;
            tokio::time::sleep(STORE_RETRY).await;
        }
    }

    /// At a start: finish an installation whose state had become durable.
    pub async fn resume(&self) -> io::Result<()> {
        let restored = self.machine.restored();
        if let Some(upto) = self.journal.pending_install(self.shard).filter(|p| restored.is_some_and(|r| r.index >= p.index)) {
            let (done, finished) = completion();
            self.journal.finish_install(self.shard, upto, done);
            finished.await?;
            tracing::info!(shard = %self.shard, index = upto.index, "installation of a state finished");
        }
        if let Some(restored) = restored {
            self.journal.retain_only(self.shard, restored.index, &self.machine.live());
        }
        Ok(())
    }

    /// At a start: nothing that belongs to the group is missing on this disk, and what its state is made from can be read.
    pub fn is_complete(&self) -> io::Result<bool> {
        if self.journal.damage(self.shard).is_none() && !self.is_hollow() {
            self.journal.verify(self.shard, self.machine.restored().map_or(0, |id| id.index))?;
        }
        Ok(self.journal.damage(self.shard).is_none() && !self.is_hollow())
    }

    /// The state cannot be made from what this disk holds: the log does not reach back to the checkpoint, or bodies are missing.
    pub fn is_hollow(&self) -> bool {
        let restored = self.machine.restored().map(|id| id.index);
        let purged = self.journal.state(self.shard).purged.map(|id| id.index);
        purged > restored || self.machine.live().iter().any(|index| self.journal.log_id(self.shard, *index).is_none())
    }

    /// Now and then: what a transfer left behind goes when nobody comes for it.
    pub fn tidy(&self) {
        let Ok(_nobody) = self.receiving.try_lock() else { return };
        let mut left = self.left_staged.lock();
        if left.is_some_and(|at| at.elapsed() >= STAGED_FOR) {
            self.journal.unstage(self.shard);
            *left = None;
        }
    }
}

/// The right to receive a state.
pub struct Receiving<'a> {
    pub(super) holding: &'a Holding,
    turn: u64,
    _guard: tokio::sync::MutexGuard<'a, ()>,
}

impl Receiving<'_> {
    /// A newer transfer waits.
    pub fn is_outdated(&self) -> bool {
        self.holding.turn.load(Ordering::Acquire) != self.turn
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        *self.holding.left_staged.lock() = Some(Instant::now());
    }
}
