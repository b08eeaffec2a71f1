//! Queues made and dropped per shard, for `CatalogAdvance` (rule 27): a data shard's leader asks what changed since the catalog index
//! its shard knows. Called by the catalog.

use crate::model::QueueId;
use crate::model::entry::Replay;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Changes remembered per shard; a shard that is further behind compares whole sets instead. 8192 * 24 B = 192 KiB.
const REMEMBERED: usize = 8192;

/// One queue made, dropped or set differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    index: u64,
    queue: QueueId,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Created,
    Dropped,
    /// Its settings are others than before.
    Configured,
}

/// A shard's queues and how they came to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ShardQueues {
    pub(super) queues: BTreeSet<QueueId>,
    pub(super) history: History,
    /// Bindings of exchanges that remember messages, with the queue of this shard that holds those. Not written down: it follows from the
    /// bindings, whose numbers are catalog indices.
    remembering: BTreeMap<u64, QueueId>,
}

/// The last changes of a shard's queues.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    log: VecDeque<Change>,
    /// Changes up to this index may be forgotten.
    floor: u64,
}

impl ShardQueues {
    pub(super) fn bound(&mut self, binding: u64, queue: QueueId) {
        self.remembering.insert(binding, queue);
    }

    pub(super) fn unbound(&mut self, binding: u64) {
        self.remembering.remove(&binding);
    }

    pub(super) fn replays_since(&self, index: u64) -> Vec<Replay> {
        self.remembering.range(index.saturating_add(1)..).map(|(binding, queue)| (*queue, *binding)).collect()
    }

    pub(super) fn created(&mut self, index: u64, queue: QueueId) {
        self.queues.insert(queue);
        self.history.push(Change { index, queue, kind: Kind::Created });
    }

    pub(super) fn dropped(&mut self, index: u64, queue: QueueId) {
        self.queues.remove(&queue);
        self.history.push(Change { index, queue, kind: Kind::Dropped });
    }

    pub(super) fn configured(&mut self, index: u64, queue: QueueId) {
        self.history.push(Change { index, queue, kind: Kind::Configured });
    }

    /// Queues whose settings changed after `index`, as far back as `since` reaches.
    pub(super) fn configured_since(&self, index: u64) -> impl Iterator<Item = QueueId> + '_ {
        let log = &self.history.log;
        let changes = log.range(log.partition_point(|c| c.index <= index)..);
        changes.filter(|c| c.kind == Kind::Configured).map(|c| c.queue)
    }

    /// What changed after `index` as a whole (made and dropped since: neither); `None`: too long ago.
    pub(super) fn since(&self, index: u64) -> Option<(Vec<QueueId>, Vec<QueueId>)> {
        self.history.since(index)
    }
}

impl History {
    fn since(&self, index: u64) -> Option<(Vec<QueueId>, Vec<QueueId>)> {
        if index < self.floor {
            return None;
        }
        let (mut creates, mut drops) = (BTreeSet::new(), Vec::new());
        for change in self.log.range(self.log.partition_point(|c| c.index <= index)..) {
            match change.kind {
                Kind::Created => drop(creates.insert(change.queue)),
                Kind::Dropped if creates.remove(&change.queue) => {}
                Kind::Dropped => drops.push(change.queue),
                Kind::Configured => {}
            }
        }
        Some((creates.into_iter().collect(), drops))
    }

    fn push(&mut self, change: Change) {
        if self.log.len() == REMEMBERED
            && let Some(old) = self.log.pop_front()
        {
            self.floor = old.index;
        }
        self.log.push_back(change);
    }
}
