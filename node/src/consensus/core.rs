//! What all parts of this room share on one node: who we are, our groups, who leads the others, the way to the other nodes.

use super::bodies::BodyCounters;
use super::checkpoint::{Away, Floors};
use super::heartbeat::Beats;
use super::journal::Journal;
use super::lease::Leases;
use super::members::Members;
use super::placement::FIRST_GENERATION;
use super::shard::Shard;
use super::slow_disk::SlowDisks;
use super::start::Progress;
use super::time::ClusterClock;
use super::watch::Watch;
use crate::model::ports::Leadership;
use crate::model::{Generation, Incarnation, LeaderId, NodeId, ShardId};
use crate::peer::{Card, Transport};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Raft's clock and the checkpoints', milliseconds. The defaults are measured: a heartbeat each second tick of the grid (see `clock`),
/// election 200-400 after a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest election timeout.
    pub election_min_ms: u64,
    /// Longest election timeout; also the leader's lease.
    pub election_max_ms: u64,
    /// Between two checkpoints of a shard.
    pub checkpoint_ms: u64,
    /// Between two questions to a group whether it works; after five without a move it is given up.
    pub watch_ms: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { heartbeat_ms: 80, election_min_ms: 200, election_max_ms: 400, checkpoint_ms: 1500, watch_ms: 2000 }
    }
}

impl Timing {
    /// How long a leader may believe in itself after a quorum's answer.
    pub fn lease(self) -> Duration {
        Duration::from_millis(self.election_max_ms)
    }

    /// Between two questions to a group.
    pub(super) fn watch(self) -> Duration {
        Duration::from_millis(self.watch_ms)
    }

    /// Between two checkpoints of a shard.
    pub(super) fn checkpoint(self) -> Duration {
        Duration::from_millis(self.checkpoint_ms)
    }
}

/// Where a group of this node goes.
#[derive(Default)]
pub(super) struct Place {
    /// Empty while this disk lacks what belongs to the group: it takes part in nothing until another replica gave it.
    pub(super) shard: Option<Shard>,
    /// It was not whole when the node started.
    pub(super) late: bool,
    /// Gets what is missing.
    pub(super) making: Option<AbortHandle>,
}

/// Shared by everything in this room.
pub(super) struct Core {
    pub(super) me: NodeId,
    pub(super) incarnation: Incarnation,
    /// The latest version of the log that this program applies.
    pub(super) supports: u8,
    pub(super) members: Members,
    /// Data shards are 1..=shards.
    pub(super) shards: u16,
    pub(super) timing: Timing,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) transport: OnceLock<Arc<dyn Transport>>,
    pub(super) groups: RwLock<BTreeMap<ShardId, Place>>,
    /// Counts the groups that joined late, and those that left.
    pub(super) whole: watch::Sender<u64>,
    /// Groups whose records were damaged here and that have been rebuilt since the start.
    pub(super) rebuilt: AtomicU64,
    pub(super) leases: Leases,
    pub(super) floors: Floors,
    pub(super) away: Away,
    pub(super) bodies: Arc<BodyCounters>,
    pub(super) slow_disks: SlowDisks,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) watch: Arc<Watch>,
    pub(super) beats: Beats,
    /// Held while a replica is given up.
    pub(super) giving: tokio::sync::Mutex<()>,
    pub(super) myself: Weak<Core>,
    hints: Mutex<BTreeMap<ShardId, watch::Sender<Leadership>>>,
}

impl Core {
    pub(super) fn new(
        (me, incarnation): (NodeId, Incarnation),
        supports: u8,
        members: Members,
        shards: u16,
        timing: Timing,
        journal: Arc<dyn Journal>,
        clock: ClusterClock,
    ) -> Arc<Core> {
        let leases = Leases::new(members.clone(), timing.lease(), clock);
        Arc::new_cyclic(|myself| Core {
            me,
            incarnation,
            supports,
            members,
            shards,
            timing,
            journal,
            transport: OnceLock::new(),
            groups: RwLock::default(),
            whole: watch::channel(0).0,
            rebuilt: AtomicU64::new(0),
            leases,
            floors: Floors::default(),
            away: Away::default(),
            bodies: Arc::default(),
            slow_disks: SlowDisks::default(),
            progress: watch::channel(Progress::default()).0,
            watch: Arc::default(),
            beats: Beats::default(),
            giving: tokio::sync::Mutex::default(),
            myself: myself.clone(),
            hints: Mutex::default(),
        })
    }

    /// This node's card as it is now.
    pub(super) fn card(&self) -> Card {
        let identity = self.journal.identity();
        Card {
            node: self.me,
            generation: identity.map(|i| i.generation).unwrap_or_default(),
            incarnation: self.incarnation,
            cluster: identity.map(|i| i.cluster),
        }
    }

    /// The life of a node's disk, as far as it was heard of.
    pub(super) fn life(&self, node: NodeId) -> Generation {
        self.journal.life(node).unwrap_or(FIRST_GENERATION)
    }

    /// A disk that another one has taken the place of: what it promised since then is not on it.
    pub(super) fn is_outlived(&self, card: &Card) -> bool {
        card.cluster.is_some() && card.generation < self.life(card.node)
    }

    /// The way to other nodes; `None` before it is started.
    pub(super) fn transport(&self) -> Option<&Arc<dyn Transport>> {
        self.transport.get()
    }

    /// A group of this node, once the cluster is formed.
    pub(super) fn group(&self, shard: ShardId) -> Option<Shard> {
        self.groups.read().get(&shard)?.shard.clone()
    }

    /// Whether a group has a place on this node and was not whole when that was made.
    pub(super) fn is_late(&self, shard: ShardId) -> bool {
        self.groups.read().get(&shard).is_some_and(|place| place.late)
    }

    /// All groups of this node that are whole.
    pub(super) fn all_groups(&self) -> Vec<Shard> {
        self.groups.read().values().filter_map(|place| place.shard.clone()).collect()
    }

    /// Groups of this node that are not whole.
    pub(super) fn incomplete(&self) -> usize {
        self.groups.read().values().filter(|place| place.shard.is_none()).count()
    }

    /// A group became whole. Those who followed its leader by hints hear of it from the group itself, when that was after the start.
    pub(super) fn join(self: &Arc<Self>, shard: Shard) {
        let (core, id, mut leadership_rx) = (Arc::downgrade(self), shard.id(), shard.leadership());
        {
            let mut groups = self.groups.write();
            let Some(place) = groups.get_mut(&id).filter(|place| place.shard.is_none()) else { return };
            place.shard = Some(shard);
            place.making = None;
            if !place.late {
                return;
            }
        }
        self.whole.send_modify(|n| *n += 1);
        tokio::spawn(async move {
            loop {
                let now = *leadership_rx.borrow_and_update();
                let Some(core) = core.upgrade() else { return };
                if now.leader.is_some() {
                    core.hints.lock().entry(id).or_default().send_if_modified(|known| std::mem::replace(known, now) != now);
                }
                drop(core);
                if leadership_rx.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// A group is no more on this node. Who leads it is known by hints from now on.
    pub(super) fn part(&self, id: ShardId) -> Option<Shard> {
        let place = self.groups.write().remove(&id)?;
        if let Some(making) = place.making {
            making.abort();
        }
        let shard = place.shard?;
        let leader = shard.leadership().borrow().leader.filter(|leader| leader.node() != self.me);
        shard.leave();
        self.hints.lock().entry(id).or_default().send_replace(Leadership { leader, is_me: false });
        self.whole.send_modify(|n| *n += 1);
        Some(shard)
    }

    /// The members, ascending.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.members.nodes()
    }

    /// The other members.
    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let me = self.me;
        self.members.nodes().into_iter().filter(move |n| *n != me)
    }

    /// Ids of all Raft groups of the cluster.
    pub(super) fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..=self.shards).map(ShardId)
    }

    /// Who leads `shard`, also when this node is not a member of it.
    pub(super) fn leadership(&self, shard: ShardId) -> watch::Receiver<Leadership> {
        match self.group(shard) {
            Some(group) => group.leadership(),
            None => self.hints.lock().entry(shard).or_default().subscribe(),
        }
    }

    /// `leader` says that it leads `shard`, of which this node may not be a member.
    pub(super) fn hint(&self, shard: ShardId, leader: LeaderId) {
        if let Some(group) = self.group(shard) {
            return group.heard_of(leader);
        }
        let hints = &mut *self.hints.lock();
        hints.entry(shard).or_default().send_if_modified(|now| {
            let newer = now.leader.is_none_or(|old| old < leader);
            if newer {
                *now = Leadership { leader: Some(leader), is_me: false };
            }
            newer
        });
    }

    /// Any group's log holds anything: this node took part in a formed cluster.
    pub(super) fn has_log(&self) -> bool {
        self.shard_ids().any(|shard| {
            let state = self.journal.state(shard);
            state.last.is_some() || state.purged.is_some() || state.vote.is_some_and(|v| v.leader.term > 0)
        })
    }
}
