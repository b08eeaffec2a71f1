//! What a shard's server reads from the node's copy of the catalog: which queues its shard should know (rule 27), and the little
//! about a queue that only the catalog says. Implemented for the catalog itself; tests bring their own.

use crate::machine::catalog::Catalog;
use crate::model::catalog::Name;
use crate::model::entry::Replay;
use crate::model::settings::QueueSettings;
use crate::model::{QueueId, ShardId};
use parking_lot::RwLock;

/// How a shard gets from one catalog index to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogChanges {
    /// The catalog index it leads to.
    pub to: u64,
    /// The version that entries are to be written in by then.
    pub version: u8,
    /// Queues made.
    pub creates: Vec<QueueId>,
    /// Queues dropped.
    pub drops: Vec<QueueId>,
    /// Settings of queues that were made with more than a plain queue has, or whose settings changed.
    pub settings: Vec<(QueueId, QueueSettings)>,
    /// Queues whose messages go to bindings made since.
    pub replays: Vec<Replay>,
}

/// What the catalog says of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueFacts {
    /// How it is called, for refusals.
    pub name: Name,
    /// Goes with its last consumer.
    pub auto_delete: bool,
}

/// The node's copy of the catalog. Every call is short and takes one read lock.
pub trait CatalogFeed: Send + Sync + 'static {
    /// The index it has applied.
    fn index(&self) -> u64;
    /// What a shard at catalog index `from` must do to reach the present index. `known` lists the queues that the shard has at `from`,
    /// for when the change log does not reach back to it. `None`: it does not, and `known` cannot tell yet.
    fn changes(&self, shard: ShardId, from: u64, known: &dyn Fn() -> Option<Vec<QueueId>>) -> Option<CatalogChanges>;
    /// A queue, unless it is gone.
    fn facts(&self, queue: QueueId) -> Option<QueueFacts>;
}

impl CatalogFeed for RwLock<Catalog> {
    fn index(&self) -> u64 {
        self.read().index()
    }

    fn changes(&self, shard: ShardId, from: u64, known: &dyn Fn() -> Option<Vec<QueueId>>) -> Option<CatalogChanges> {
        let catalog = self.read();
        if let Some((creates, drops)) = catalog.changes_since(from, shard) {
            let settings = catalog.settings_since(from, shard, &creates);
            let replays = catalog.replays_since(from, shard);
            return Some(CatalogChanges { to: catalog.index(), version: catalog.version(), creates, drops, settings, replays });
        }
        // Not under the catalog's lock: `known` takes the shard's.
        drop(catalog);
        let known = known()?;
        let catalog = self.read();
        let (creates, drops) = catalog.difference(shard, known);
        let (settings, replays) = (catalog.all_settings(shard), catalog.replays_since(from, shard));
        Some(CatalogChanges { to: catalog.index(), version: catalog.version(), creates, drops, settings, replays })
    }

    fn facts(&self, queue: QueueId) -> Option<QueueFacts> {
        let catalog = self.read();
        let record = catalog.queue_by_id(queue)?;
        Some(QueueFacts { name: record.spec.name.clone(), auto_delete: record.spec.auto_delete })
    }
}
