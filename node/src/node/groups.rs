//! The machines of this node's Raft groups: what `consensus` applies to, restored from checkpoints, and what a checkpoint takes from
//! them. Entries whose messages are all gone are collected here until a durable checkpoint covers them.

use crate::consensus::{Fault, Machine, Reply};
use crate::machine::catalog::{Catalog, decode_command};
use crate::machine::shard::DataMachine;
use crate::model::entry::EntryBytes;
use crate::model::{LogId, ShardId};
use crate::serving::ServerHandle;
use crate::store::state::Change;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use tokio::sync::watch;

/// A data shard's machine on this node.
pub(super) struct DataGroup {
    shard: ShardId,
    pub machine: Arc<Mutex<DataMachine>>,
    restored: Option<LogId>,
    /// Log indices freed since the last checkpoint; taken under the machine's lock.
    freed: Mutex<Vec<u64>>,
    server: ServerHandle,
}

impl DataGroup {
    /// Around a restored (or new) machine; effects go to `server`.
    pub fn new(shard: ShardId, machine: DataMachine, restored: Option<LogId>, server: ServerHandle) -> DataGroup {
        DataGroup { shard, machine: Arc::new(Mutex::new(machine)), restored, freed: Mutex::default(), server }
    }
}

impl Machine for DataGroup {
    fn apply(&self, id: LogId, entry: &EntryBytes) -> Result<Reply, Fault> {
        let mut machine = self.machine.lock();
        let applied = machine.apply(id, entry).map_err(|fault| Fault { index: id.index, why: fault.to_string() })?;
        self.freed.lock().extend(applied.freed);
        drop(machine);
        self.server.applied(id, applied.effects);
        Ok(Reply::Sections(applied.replies))
    }

    fn restored(&self) -> Option<LogId> {
        self.restored
    }
}

/// The catalog's machine on this node.
pub(super) struct CatalogGroup {
    pub catalog: Arc<RwLock<Catalog>>,
    restored: Option<LogId>,
    /// Counts up whenever something was applied.
    pub moved_tx: watch::Sender<u64>,
}

impl CatalogGroup {
    /// Around a restored (or new) catalog.
    pub fn new(catalog: Arc<RwLock<Catalog>>, restored: Option<LogId>) -> CatalogGroup {
        CatalogGroup { catalog, restored, moved_tx: watch::channel(0).0 }
    }
}

impl Machine for CatalogGroup {
    fn apply(&self, id: LogId, entry: &EntryBytes) -> Result<Reply, Fault> {
        let command = decode_command(&entry.flatten());
        let command = command.ok_or(Fault { index: id.index, why: "not a catalog command of this version".into() })?;
        let reply = self.catalog.write().apply(id, &command);
        self.moved_tx.send_modify(|n| *n += 1);
        Ok(Reply::Catalog(reply))
    }

    fn restored(&self) -> Option<LogId> {
        self.restored
    }
}

/// What a checkpoint takes from a group: the change, and the log indices that are free once it is durable.
pub(super) trait Checkpointed: Send + Sync + 'static {
    /// Which group.
    fn shard(&self) -> ShardId;
    /// Last applied entry.
    fn applied(&self) -> LogId;
    /// What changed, `None` when nothing did or when more than `flushed` is applied (rule: checkpoint <= locally flushed).
    fn take(&self, flushed: LogId) -> Option<(Change, Vec<u64>)>;
    /// The store refused: the next one holds everything, and these indices stay freed.
    fn give_back(&self, freed: Vec<u64>);
}

impl Checkpointed for DataGroup {
    fn shard(&self) -> ShardId {
        self.shard
    }

    fn applied(&self) -> LogId {
        self.machine.lock().applied()
    }

    fn take(&self, flushed: LogId) -> Option<(Change, Vec<u64>)> {
        let mut machine = self.machine.lock();
        if machine.applied() > flushed {
            return None;
        }
        let delta = machine.checkpoint();
        let freed = std::mem::take(&mut *self.freed.lock());
        Some((Change { applied: delta.applied, full: delta.full, puts: delta.puts, deletes: delta.deletes }, freed))
    }

    fn give_back(&self, freed: Vec<u64>) {
        self.machine.lock().forget_checkpoint();
        self.freed.lock().extend(freed);
    }
}

impl Checkpointed for CatalogGroup {
    fn shard(&self) -> ShardId {
        ShardId::CATALOG
    }

    fn applied(&self) -> LogId {
        self.catalog.read().applied()
    }

    fn take(&self, flushed: LogId) -> Option<(Change, Vec<u64>)> {
        let mut catalog = self.catalog.write();
        if catalog.applied() > flushed {
            return None;
        }
        let delta = catalog.checkpoint()?;
        Some((Change { applied: delta.applied, full: delta.full, puts: delta.puts, deletes: delta.deletes }, Vec::new()))
    }

    fn give_back(&self, _freed: Vec<u64>) {
        self.catalog.write().forget_checkpoint();
    }
}
