//! Checkpoints of all machines into the state store, off every confirm's path, and what follows from a durable one: entries without live
//! messages are released, logs are purged up to min(checkpoint, slowest replica). Never past a replica that lags: there is no snapshot
//! transfer yet, so a replica that is away for long keeps the others' logs.

use super::core::Core;
use super::shard::Shard;
use crate::model::{LogId, ShardId};
use crate::store::state::StateStore;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Between two checkpoints of a shard.
const PERIOD: Duration = Duration::from_millis(1500);
/// Entries that may be purged before it is worth asking openraft.
const PURGE_STEP: u64 = 256;

/// The highest index that every member of a shard is known to have, as its leaders say. Never goes back: a disk that loses entries is
/// refused (rule 1).
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

/// Runs until the store is gone.
pub(super) async fn keep(core: Arc<Core>, store: Arc<StateStore>) {
    let groups: Vec<Shard> = core.all_groups().cloned().collect();
    let step = PERIOD / groups.len().max(1) as u32;
    loop {
        for group in &groups {
            tokio::time::sleep(step).await;
            if let Some(durable) = checkpoint(group, &store).await {
                after(&core, group, durable).await;
            }
        }
    }
}

/// All machines now, for a stop in order.
pub(super) async fn all(core: &Core, store: &Arc<StateStore>) {
    for group in core.all_groups() {
        checkpoint(group, store).await;
    }
}

/// One checkpoint, durable when this returns its log id. `None`: nothing new, or it failed.
async fn checkpoint(group: &Shard, store: &Arc<StateStore>) -> Option<LogId> {
    let inner = group.inner();
    let (machine, shard) = (inner.machine.clone(), group.id());
    // A checkpoint must not be newer than this disk's log (P6).
    let flushed = inner.journal.flushed(shard)?.index;
    let applied = (*inner.applied_rx.borrow())?.index;
    if applied == inner.checkpointed.lock().map_or(0, |id| id.index) {
        return None;
    }
    let (tx, rx) = oneshot::channel();
    let store = store.clone();
    let taken = tokio::task::spawn_blocking(move || {
        let change = machine.checkpoint(flushed)?;
        store.checkpoint(shard, change, move |result| drop(tx.send(result)));
        Some(machine)
    });
    let machine = taken.await.ok()??;
    match rx.await {
        Ok(Ok(durable)) => {
            *inner.checkpointed.lock() = Some(durable);
            let freed = machine.released(durable.index);
            inner.journal.release(shard, &freed);
            Some(durable)
        }
        Ok(Err(error)) => {
            tracing::warn!(%shard, %error, "checkpoint failed; the next one is a full one");
            machine.checkpoint_lost();
            None
        }
        Err(_) => None,
    }
}

/// Purge the log as far as the checkpoint and all replicas allow. openraft purges only up to its "snapshot": the durable checkpoint.
async fn after(core: &Core, group: &Shard, durable: LogId) {
    let slowest = group.slowest_matching().unwrap_or(0);
    core.floors.raise(group.id(), slowest);
    let upto = durable.index.min(core.floors.of(group.id()));
    if upto < group.purged() + PURGE_STEP {
        return;
    }
    let raft = &group.inner().raft;
    if raft.trigger().snapshot().await.is_err() {
        return;
    }
    // Published by another task of openraft; a purge before that would be ignored. If it is late, the next round purges.
    let wait = raft.wait(Some(PERIOD));
    let published = wait.metrics(|m| m.snapshot.is_some_and(|id| id.index >= upto), "checkpoint published");
    if published.await.is_ok() && raft.trigger().purge_log(upto).await.is_ok() {
        tracing::debug!(shard = %group.id(), upto, "log purged");
    }
}
