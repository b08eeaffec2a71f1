//! Checkpoints of all machines into the state store, off every confirm's path, and what follows from a durable one: entries without live
//! messages are released, logs are purged up to min(checkpoint, max(floor, slowest replica)) (rule 8). A replica that lags keeps the others'
//! logs only above the floor, and only while it is not away for long; then it catches up by snapshot.

use super::core::Core;
use super::shard::Shard;
use crate::model::limits::AWAY;
use crate::model::{LogId, NodeId, ShardId};
use crate::store::state::StateStore;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Between two checkpoints of a shard.
const PERIOD: Duration = Duration::from_millis(1500);
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

/// Runs until the store is gone.
pub(super) async fn keep(core: Arc<Core>, store: Arc<StateStore>) {
    loop {
        let groups: Vec<Shard> = core.all_groups().cloned().collect();
        let step = PERIOD / groups.len().max(1) as u32;
        core.away.look(&core);
        core.journal.forget_unread();
        for group in &groups {
            tokio::time::sleep(step).await;
            group.inner().holding.tidy();
            checkpoint(group, &store).await;
            let durable = *group.inner().holding.checkpointed.lock();
            if let Some(durable) = durable {
                purge(&core, group, durable).await;
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

/// One checkpoint. Nothing happens when there is nothing new.
async fn checkpoint(group: &Shard, store: &Arc<StateStore>) {
    let (inner, holding, shard) = (group.inner(), &group.inner().holding, group.id());
    let _saving = holding.saving.lock().await;
    let journal = inner.journal.clone();
    let Some(applied) = holding.machine.restored().map(|id| id.index) else { return };
    if applied == holding.checkpointed.lock().map_or(0, |id| id.index) {
        return release(group);
    }
    let (tx, rx) = oneshot::channel();
    let (store, machine) = (store.clone(), holding.machine.clone());
    let taken = tokio::task::spawn_blocking(move || {
        // A checkpoint must not be newer than this disk's log (P6).
        let change = machine.checkpoint(&|| journal.flushed(shard))?;
        store.checkpoint(shard, change, move |result| drop(tx.send(result)));
        Some(())
    });
    let Ok(Some(())) = taken.await else { return };
    match rx.await {
        Ok(Ok(durable)) => {
            *holding.checkpointed.lock() = Some(durable);
            release(group);
        }
        Ok(Err(error)) => {
            tracing::warn!(%shard, %error, "checkpoint failed; the next one is a full one");
            holding.machine.checkpoint_lost();
        }
        Err(_) => {}
    }
}

/// What the durable checkpoint shows to be without live messages, unless a transfer may still read it (rule 7).
fn release(group: &Shard) {
    let (inner, holding) = (group.inner(), &group.inner().holding);
    let durable = *holding.checkpointed.lock();
    if let Some(durable) = durable.filter(|_| !holding.is_pinned()) {
        let freed = holding.machine.released(durable.index);
        if !freed.is_empty() {
            inner.journal.release(group.id(), &freed);
        }
    }
}

/// Purge the log as far as the checkpoint and the replicas allow. openraft purges only up to its "snapshot": the durable checkpoint.
async fn purge(core: &Core, group: &Shard, durable: LogId) {
    core.floors.raise(group.id(), slowest(core, group).unwrap_or(0));
    let replicas = core.floors.of(group.id());
    let upto = durable.index.min(replicas.max(group.inner().journal.floor(group.id())));
    // Without space every log file counts that a few entries keep.
    let step = if core.journal.is_full() { 1 } else { PURGE_STEP };
    if upto < group.purged() + step {
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
