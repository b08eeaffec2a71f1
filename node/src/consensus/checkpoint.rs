//! Checkpoints of all machines into the state store, off every confirm's path, and what follows from a durable one: entries without live
//! messages are released, logs are purged up to min(checkpoint, max(floor, slowest replica)) (rule 8). A replica that lags keeps the others'
//! logs only above the floor, and only while it is not away for long; then it catches up by snapshot.

use super::clock;
use super::core::Core;
use super::holding::Holding;
use super::order;
use super::retry::Retry;
use super::shard::Shard;
use crate::model::limits::AWAY;
use crate::model::{LogId, NodeId, ShardId};
use crate::store::state::{Change, StateError, StateStore};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// After failures the next attempt waits longer and longer: each is a full checkpoint, and a disk that is full stays so for a while.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the log is asked whether what was captured is on the disk.
const FLUSH_POLL: Duration = Duration::from_millis(5);
/// A disk that syncs nothing for so long gets its checkpoint another time.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);
/// Entries that may be purged before it is worth asking openraft.
const PURGE_STEP: u64 = 256;

/// The highest index that every member of a shard is known to have, as its leaders say; members that are away for long do not count. Never
/// goes back: a disk that loses entries is refused (rule 1).
#[derive(Default)]
pub(super) struct Floors(Mutex<BTreeMap<ShardId, u64>>);

impl Floors {
    pub(super) fn raise(&self, shard: ShardId, index: u64) {
        let floors = &mut *self.0.lock();
        let floor = floors.entry(shard).or_default();
        *floor = index.max(*floor);
    }

    fn of(&self, shard: ShardId) -> u64 {
        self.0.lock().get(&shard).copied().unwrap_or(0)
    }
}

/// Since when nodes are not connected.
#[derive(Default)]
pub(super) struct Away(Mutex<BTreeMap<NodeId, Instant>>);

impl Away {
    fn look(&self, core: &Core) {
        let Some(transport) = core.transport() else { return };
        let away = &mut *self.0.lock();
        for node in core.others() {
            if transport.link(node).up > 0 {
                away.remove(&node);
            } else {
                away.entry(node).or_insert_with(Instant::now);
            }
        }
    }

    fn is_long(&self, node: NodeId) -> bool {
        self.0.lock().get(&node).is_some_and(|since| since.elapsed() >= AWAY)
    }
}

/// How far all replicas are for which logs are kept; `None` when this node does not lead.
pub(super) fn slowest(core: &Core, group: &Shard) -> Option<u64> {
    group.slowest_matching(|node| !core.away.is_long(node))
}

/// A group with what became of its last attempts.
struct Round {
    group: Shard,
    retry: Retry,
    not_before: Instant,
}

impl Round {
    fn new(group: &Shard, period: Duration) -> Round {
        Round { group: group.clone(), retry: Retry::new(period, LONGEST_PAUSE), not_before: Instant::now() }
    }

    async fn checkpoint(&mut self, store: &StateStore) {
        if Instant::now() < self.not_before {
            return;
        }
        match checkpoint(&self.group.inner().holding, store).await {
            Ok(()) => self.retry.reset(),
            Err(error) => {
                let pause = self.retry.pause();
                self.not_before = Instant::now() + pause;
                tracing::warn!(shard = %self.group.id(), %error, ?pause, "checkpoint failed; the next one is a full one");
            }
        }
    }
}

/// Runs until the store is gone.
pub(super) async fn keep(core: Arc<Core>, store: Arc<StateStore>) {
    let mut rounds: Vec<Round> = Vec::new();
    let period = core.timing.checkpoint();
    loop {
        // Some join later, some leave.
        let groups = core.all_groups();
        rounds.retain(|round| groups.iter().any(|group| group.is(&round.group)));
        let new: Vec<&Shard> = groups.iter().filter(|group| !rounds.iter().any(|round| group.is(&round.group))).collect();
        rounds.extend(new.into_iter().map(|group| Round::new(group, period)));
        let step = period / rounds.len().max(1) as u32;
        core.away.look(&core);
        core.journal.forget_unread();
        for round in &mut rounds {
            clock::calm(step).await;
            let holding = &round.group.inner().holding.clone();
            holding.tidy();
            round.checkpoint(&store).await;
            let durable = *holding.checkpointed.lock();
            if let Some(durable) = durable {
                purge(&core, &round.group, durable).await;
            }
        }
    }
}

/// All machines now, for a stop in order.
pub(super) async fn all(core: &Core, store: &StateStore) {
    for group in core.all_groups() {
        if let Err(error) = checkpoint(&group.inner().holding, store).await {
            tracing::warn!(shard = %group.id(), %error, "no last checkpoint: the log has it");
        }
    }
}

/// Why there is no checkpoint.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Store(#[from] StateError),
    #[error("the log does not get to the disk")]
    Unflushed,
    #[error("the checkpoint was given up")]
    GivenUp,
}

/// The machine takes what it gave for stored. Unless that is true in the end, its next checkpoint must be full.
struct Owed(Option<Arc<Holding>>);

impl Owed {
    fn paid(mut self) {
        self.0 = None;
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(holding) = &self.0 {
            holding.machine.checkpoint_lost();
        }
    }
}

/// Captures the machine as it is. Whatever happens on the way, the debt is not forgotten.
async fn captured(holding: &Arc<Holding>) -> Result<Option<(Change, Owed)>, Failed> {
    let holding = holding.clone();
    let capture = move || {
        let owed = Owed(Some(holding.clone()));
        match holding.machine.checkpoint() {
            Some(change) => Some((change, owed)),
            None => {
                owed.paid();
                None
            }
        }
    };
    tokio::task::spawn_blocking(capture).await.map_err(|_| Failed::GivenUp)
}

/// One checkpoint. Nothing happens when there is nothing new.
async fn checkpoint(holding: &Arc<Holding>, store: &StateStore) -> Result<(), Failed> {
    let _saving = holding.saving.lock().await;
    let Some(applied) = holding.machine.restored().map(|id| id.index) else { return Ok(()) };
    if applied == holding.checkpointed.lock().map_or(0, |id| id.index) {
        release(holding);
        return Ok(());
    }
    let Some((change, owed)) = captured(holding).await? else { return Ok(()) };
    flushed(holding, change.applied).await?;
    let (tx, rx) = oneshot::channel();
    store.checkpoint(holding.shard, change, move |result| drop(tx.send(result)));
    let durable = rx.await.map_err(|_| Failed::GivenUp)??;
    owed.paid();
    *holding.checkpointed.lock() = Some(durable);
    release(holding);
    Ok(())
}

/// A checkpoint must not be newer than this disk's log (P6). What was applied meanwhile does not matter: on the slower disk of a group
/// something applied is nearly always still on its way.
async fn flushed(holding: &Holding, applied: LogId) -> Result<(), Failed> {
    let deadline = Instant::now() + FLUSH_PATIENCE;
    while holding.journal.flushed(holding.shard) < Some(applied) {
        if Instant::now() >= deadline {
            return Err(Failed::Unflushed);
        }
        tokio::time::sleep(FLUSH_POLL).await;
    }
    Ok(())
}

/// What the durable checkpoint shows to be without live messages, unless a transfer may still read it (rule 7).
fn release(holding: &Holding) {
    let durable = *holding.checkpointed.lock();
    if let Some(durable) = durable.filter(|_| !holding.is_pinned()) {
        let freed = holding.machine.released(durable.index);
        if !freed.is_empty() {
            holding.journal.release(holding.shard, &freed);
        }
    }
}

/// Purge the log as far as the checkpoint and the replicas allow. openraft purges only up to its "snapshot": the durable checkpoint.
async fn purge(core: &Core, group: &Shard, durable: LogId) {
    core.floors.raise(group.id(), slowest(core, group).unwrap_or(0));
    let replicas = core.floors.of(group.id());
    let upto = durable.index.min(replicas.max(group.inner().journal.floor(group.id())));
    // Without space, or beyond the log's budget, every file counts that a few entries keep, of idle groups too.
    let step = if core.journal.is_over_budget() { 1 } else { PURGE_STEP };
    if upto < group.purged() + step {
        return;
    }
    let raft = &group.inner().raft;
    if !order::in_time(raft.trigger().snapshot()).await.is_ok_and(|taken| taken.is_ok()) {
        return;
    }
    // Published by another task of openraft; a purge before that would be ignored. If it is late, the next round purges.
    let wait = raft.wait(Some(core.timing.checkpoint()));
    let published = wait.metrics(|m| m.snapshot.is_some_and(|id| id.index >= upto), "checkpoint published");
    if published.await.is_ok() && order::in_time(raft.trigger().purge_log(upto)).await.is_ok_and(|taken| taken.is_ok()) {
        tracing::debug!(shard = %group.id(), upto, "log purged");
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
