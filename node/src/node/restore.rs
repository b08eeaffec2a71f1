//! The state of this node's groups as its last checkpoints hold it. What cannot be read is reported and starts empty: the log rebuilds
//! it, and where the log does not reach back, consensus refuses to start the group.

use super::StartError;
use super::groups::{CatalogGroup, DataGroup};
use crate::machine::catalog::Catalog;
use crate::machine::shard::DataMachine;
use crate::model::{LogId, ShardId};
use crate::serving::ServerHandle;
use crate::store::state::StateStore;
use crate::store::wal::Wal;
use parking_lot::RwLock;
use std::sync::Arc;

/// The catalog; entries of its log hold no bodies, so there is nothing to retain.
pub(super) fn catalog(store: &StateStore) -> Result<CatalogGroup, StartError> {
    let stored = store.load(ShardId::CATALOG)?;
    let (catalog, restored) = match Catalog::restore(stored.pairs) {
        Ok(catalog) => (catalog, stored.applied),
        Err(error) => {
            tracing::error!(%error, "checkpoint of the catalog cannot be read; rebuilding it from the log");
            (Catalog::new(), None)
        }
    };
    Ok(CatalogGroup::new(Arc::new(RwLock::new(catalog)), restored))
}

/// A data shard; tells the log which entries up to the checkpoint still hold messages.
pub(super) fn data(store: &StateStore, wal: &Wal, shard: ShardId, server: ServerHandle) -> Result<DataGroup, StartError> {
    let stored = store.load(shard)?;
    let (machine, restored) = match DataMachine::restore(shard, stored.pairs) {
        Ok(machine) => (machine, stored.applied),
        Err(error) => {
            tracing::error!(%shard, %error, "checkpoint cannot be read; rebuilding the shard from the log");
            (DataMachine::new(shard), None)
        }
    };
    if let Some(LogId { index, .. }) = restored {
        wal.retain_only(shard, index, &machine.live_entries());
    }
    Ok(DataGroup::new(shard, machine, restored, server))
}
