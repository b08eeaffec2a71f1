//! A disk that hangs (rule 9). Followers commit without the disk of their leader, so such a leader would go on for as long as memory lasts,
//! and with a follower less stand still while its heartbeats keep others from taking over. So a node on whose disk a write does not end in
//! time gives what it leads to nodes whose disks work, tells all, and gets no leadership back before its disk has been well for a while.

use super::clock;
use super::core::Core;
use super::shard::Shard;
use crate::model::limits::{SLOW_CHECKPOINT, SLOW_DISK_CALM, SLOW_WRITE};
use crate::model::{LeaderId, NodeId, ShardId};
use crate::store::state::StateStore;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Between two looks at the disk.
const LOOK: Duration = Duration::from_millis(192);
/// What a node said of its disk holds so long: it says it every second.
const TOLD: Duration = Duration::from_secs(5);
/// A group takes an order at once, or it waits for the disk itself.
const ORDER: Duration = Duration::from_millis(100);

/// Which disks of the cluster are slow, as far as this node knows.
#[derive(Debug, Default)]
pub struct SlowDisks {
    /// When this node's own was last seen to be.
    own: Mutex<Option<Instant>>,
    /// Nodes that said so of theirs, and when.
    others: Mutex<BTreeMap<NodeId, Instant>>,
    /// There is something to tell.
    pub(super) news: Notify,
    given_away: AtomicU64,
}

impl SlowDisks {
    /// Leaderships that this node gave away because its disk hung.
    pub fn given_away(&self) -> u64 {
        self.given_away.load(Ordering::Relaxed)
    }

    /// This node's disk hangs now. True: it was well before.
    fn hangs(&self, now: Instant) -> bool {
        let before = self.own.lock().replace(now);
        before.is_none_or(|at| now >= at + SLOW_DISK_CALM)
    }

    /// This node's disk hangs, or did so a little while ago.
    pub(super) fn is_own_slow(&self) -> bool {
        self.was_own_slow(Instant::now())
    }

    fn was_own_slow(&self, now: Instant) -> bool {
        self.own.lock().is_some_and(|at| now < at + SLOW_DISK_CALM)
    }

    /// Another node says how its disk is.
    pub(super) fn told(&self, node: NodeId, is_slow: bool) {
        let others = &mut *self.others.lock();
        if is_slow {
            others.insert(node, Instant::now());
        } else {
            others.remove(&node);
        }
    }

    /// Another node's disk is not fit to lead with.
    pub(super) fn is_slow(&self, node: NodeId) -> bool {
        self.was_slow(node, Instant::now())
    }

    fn was_slow(&self, node: NodeId, now: Instant) -> bool {
        self.others.lock().get(&node).is_some_and(|at| now < *at + TOLD)
    }
}

/// Watches the disk of this node.
pub(super) async fn watch(core: Arc<Core>, store: Weak<StateStore>) {
    let (mut was_slow, mut asked, mut checkpoint_hangs) = (false, BTreeMap::new(), false);
    loop {
        clock::calm(LOOK).await;
        let checkpointing = store.upgrade().and_then(|store| store.writing_for()).filter(|took| *took >= SLOW_CHECKPOINT);
        match (checkpointing, std::mem::replace(&mut checkpoint_hangs, checkpointing.is_some())) {
            (Some(took), false) => tracing::warn!(?took, "a checkpoint does not end: until it does the log's files are kept"),
            (None, true) => tracing::info!("checkpoints get to the disk again"),
            (Some(_), true) | (None, false) => {}
        }
        if let Some(took) = core.journal.writing_for().filter(|took| *took >= SLOW_WRITE) {
            if core.slow_disks.hangs(Instant::now()) {
                let waiting_bytes = core.journal.unflushed();
                tracing::warn!(?took, waiting_bytes, "a write to the log's disk does not end: what this node leads goes to other nodes");
                core.slow_disks.news.notify_one();
            }
            give_away(&core, &mut asked).await;
        }
        let is_slow = core.slow_disks.is_own_slow();
        if was_slow && !is_slow {
            tracing::info!("the log's disk is well again: this node may lead");
        }
        was_slow = is_slow;
    }
}

/// `asked`: the leaderships that were given away. Whether or not the heir takes over, openraft has laid them down.
async fn give_away(core: &Core, asked: &mut BTreeMap<ShardId, LeaderId>) {
    for group in core.all_groups() {
        let leader = group.leadership().borrow().as_me();
        let Some(leader) = leader.filter(|leader| asked.get(&group.id()) != Some(leader)) else { continue };
        let Some(to) = heir(core, &group) else { continue };
        tracing::info!(shard = %group.id(), %to, "leadership goes to a node whose disk works");
        if let Ok(true) = tokio::time::timeout(ORDER, group.transfer_to(to)).await {
            asked.insert(group.id(), leader);
            core.slow_disks.given_away.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Who is furthest of the other members whose disks work. Nobody when they are no majority: then nothing can be committed without this
/// disk, whoever leads.
pub(super) fn heir(core: &Core, group: &Shard) -> Option<NodeId> {
    let transport = core.transport()?;
    let fit = |node| node != core.me && transport.link(node).up > 0 && !core.slow_disks.is_slow(node);
    let voters = group.voters();
    let fit = voters.iter().filter(|v| fit(v.node)).map(|v| (v.node, group.matching(*v)));
    furthest(fit.collect(), voters.len())
}

fn furthest(fit: Vec<(NodeId, Option<u64>)>, members: usize) -> Option<NodeId> {
    let is_majority = fit.len() > members / 2;
    fit.into_iter().max_by_key(|(_, matching)| *matching).map(|(node, _)| node).filter(|_| is_majority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_slow_until_it_was_well_for_a_while() {
        let (disks, begun) = (SlowDisks::default(), Instant::now());
        assert!(!disks.is_own_slow());
        assert!(disks.hangs(begun));
        let almost = begun + SLOW_DISK_CALM - Duration::from_millis(1);
        assert!(disks.was_own_slow(almost) && !disks.hangs(almost), "it is one story");
        let well = almost + SLOW_DISK_CALM;
        assert!(disks.was_own_slow(begun + SLOW_DISK_CALM) && !disks.was_own_slow(well));
        assert!(disks.hangs(well), "another story");
    }

    #[test]
    fn the_furthest_of_a_majority_inherits() {
        let fit = |matching: &[u64]| (2..).map(NodeId).zip(matching.iter().copied().map(Some)).collect::<Vec<_>>();
        assert_eq!(furthest(fit(&[7, 9, 8]), 5), Some(NodeId(3)));
        assert_eq!(furthest(fit(&[7, 9]), 3), Some(NodeId(3)));
        assert_eq!((furthest(fit(&[7, 9]), 5), furthest(fit(&[7]), 3), furthest(fit(&[]), 1)), (None, None, None));
    }

    #[test]
    fn what_a_node_said_of_its_disk_holds_until_it_says_otherwise_or_nothing() {
        let (disks, node) = (SlowDisks::default(), NodeId(2));
        disks.told(node, true);
        assert!(disks.is_slow(node) && !disks.is_slow(NodeId(3)));
        assert!(!disks.was_slow(node, Instant::now() + TOLD));
        disks.told(node, false);
        assert!(!disks.is_slow(node));
    }
}
