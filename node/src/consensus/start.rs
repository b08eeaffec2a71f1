//! Starting this room on a node, and the handle that the composition root keeps.

use super::bodies::{BodyCounters, Others};
use super::catalog::CatalogClient;
use super::contact::{Configs, Contact};
use super::core::{Core, Place, Timing};
use super::formation::{self, FormationError};
use super::hearing::Heard;
use super::holding::Holding;
use super::journal::Journal;
use super::log::GroupLog;
use super::machine::{GroupMachine, Machine};
use super::members::Members;
use super::network::Network;
use super::placement::FIRST_GENERATION;
use super::service::Service;
use super::shard::{Group, Parts, Shard};
use super::slow_disk::{self, SlowDisks};
use super::thread::RaftThread;
use super::time::ClusterClock;
use super::types::{Lid, Oid, Omembership, Ostored, read_membership, to_oid};
use super::watch::Loss;
use super::{checkpoint, failover, fetch, lease, mover, rebuild, relocation, watchdog};
use crate::model::catalog::Refusal;
use crate::model::ports::{EdgeEnd, Leadership, Proposer};
use crate::model::shortage::{Shortage, Shortages};
use crate::model::version::TooNew;
use crate::model::{Incarnation, NodeId, ShardId, VoterId};
use crate::peer::paths::{self, Acceptor};
use crate::peer::{Handler, LinkState, Transport};
use crate::store::state::StateStore;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Makes the machine of each group of this node, restored from its checkpoint; called once per group when the cluster is formed. `Err`: a
/// newer program has been here.
pub type Machines = Box<dyn Fn(ShardId) -> Result<Arc<dyn Machine>, TooNew> + Send + Sync>;

/// Starts the network with the handler of this node's answers: tonic in a process, memory in tests and the simulator.
pub type Wire = Box<dyn FnOnce(Arc<dyn Handler>) -> io::Result<Arc<dyn Transport>> + Send>;

/// What this room is started with.
pub struct ConsensusConfig {
    /// This node.
    pub node: NodeId,
    /// This start of its process.
    pub incarnation: Incarnation,
    /// Who is a member, as far as this node knows.
    pub members: Members,
    /// An empty disk of this node was never a member's: it takes the cluster's identity as it is.
    pub joins: bool,
    /// Data shards: ids 1..=shards; the same on every node, and what the disk says if it belongs to a cluster already.
    pub shards: u16,
    /// Raft's clock.
    pub timing: Timing,
    /// Learns the cluster's time.
    pub clock: ClusterClock,
    /// The node's write-ahead log.
    pub journal: Arc<dyn Journal>,
    /// Makes machines.
    pub machines: Machines,
    /// Versions of the log that they apply: up to this one.
    pub supports: u8,
    /// Where checkpoints go; `None`: none are made and logs are never purged.
    pub store: Option<Arc<StateStore>>,
    /// Gets the leader's ends of edge paths that other nodes open.
    pub acceptor: Acceptor,
    /// Starts the network, on this room's runtime.
    pub wire: Wire,
}

/// This room on a running node. Dropping it stops all groups at once; `stop` does it in order.
pub struct Consensus {
    pub(super) core: Arc<Core>,
    store: Option<Arc<StateStore>>,
    thread: Mutex<Option<RaftThread>>,
}

impl Consensus {
    /// Starts the runtime and the network and begins to form or rejoin the cluster. Does not wait: see `formed`.
    pub fn start(config: ConsensusConfig) -> Result<Consensus, io::Error> {
        let thread = RaftThread::start()?;
        let ConsensusConfig {
            node,
            incarnation,
            members,
            joins,
            shards,
            timing,
            clock,
            journal,
            machines,
            supports,
            store,
            acceptor,
            wire,
        } = config;
        let core = Core::new((node, incarnation), supports, members, shards, timing, journal, clock);
        let service = Arc::new(Service::new(core.clone(), acceptor));
        let transport = {
            let _on_our_runtime = thread.handle().enter();
            wire(service)?
        };
        let _ = core.transport.set(transport);
        {
            let _on_our_runtime = thread.handle().enter();
            core.watch.spawn("the list of members' addresses", mover::keep_known(core.clone()));
        }
        {
            let (_on_our_runtime, forming) = (thread.handle().enter(), form(core.clone(), joins, machines, store.clone()));
            core.watch.spawn("the forming of the cluster", async move {
                forming.await;
                std::future::pending().await
            });
        }
        Ok(Consensus { core, store, thread: Mutex::new(Some(thread)) })
    }

    /// Waits until this node belongs to the cluster and its groups are built (not yet running, see `run`), but for data groups of which
    /// this disk lacks something (`is_late`). A wiped node waits for ever; the log says why.
    pub async fn formed(&self) -> Result<(), FormationError> {
        let mut progress_rx = self.core.progress.subscribe();
        let progress = progress_rx.wait_for(|p| *p != Progress::Forming).await;
        let progress = progress.map(|p| p.clone()).map_err(|_| FormationError::Stopped("the node is stopping".into()))?;
        match progress {
            Progress::Failed(why) => Err(FormationError::Stopped(why)),
            Progress::Forming | Progress::Built | Progress::Running => Ok(()),
        }
    }

    /// Starts the groups: call after `formed`, when every shard's `on_outcome` is set.
    pub fn run(&self) {
        self.core.progress.send_if_modified(|p| {
            let built = *p == Progress::Built;
            if built {
                *p = Progress::Running;
            }
            built
        });
    }

    /// A group of this node that was not whole when `formed` returned: its owner waits for `whole` and runs it.
    pub fn is_late(&self, shard: ShardId) -> bool {
        self.core.is_late(shard)
    }

    /// A group of this node, as soon as this disk has everything that belongs to it; for ever when it has no such group.
    pub fn whole(&self, shard: ShardId) -> impl Future<Output = Shard> + Send + 'static {
        let core = self.core.clone();
        async move {
            let mut whole_rx = core.whole.subscribe();
            loop {
                whole_rx.borrow_and_update();
                if let Some(group) = core.group(shard) {
                    return group;
                }
                if whole_rx.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Until this node has this group no more.
    pub fn left(&self, shard: &Shard) -> impl Future<Output = ()> + Send + 'static {
        shard.left()
    }

    /// Fires when a group joined late or left.
    pub fn regrouped(&self) -> watch::Receiver<u64> {
        self.core.whole.subscribe()
    }

    /// Who is a member, and where groups are.
    pub fn members(&self) -> &Members {
        &self.core.members
    }

    /// Why a change of members may not be asked for through this node, which is configured with these nodes; `without` is one that may be
    /// down for good.
    pub async fn may_change_members(&self, configured: &[NodeId], without: Option<NodeId>) -> Result<(), Refusal> {
        mover::may_change(&self.core, configured, without).await
    }

    /// Groups of this node that do not take part because this disk lacks what belongs to them.
    pub fn incomplete(&self) -> usize {
        self.core.incomplete()
    }

    /// Groups whose records were damaged on this disk and that have been rebuilt since the start.
    pub fn rebuilt(&self) -> u64 {
        self.core.rebuilt.load(Ordering::Relaxed)
    }

    /// A group of this node.
    pub fn shard(&self, shard: ShardId) -> Option<Shard> {
        self.core.group(shard)
    }

    /// The nodes with a replica of a shard, ascending.
    pub fn holders(&self, shard: ShardId) -> Vec<NodeId> {
        let mut nodes = self.core.members.now(shard);
        nodes.sort_unstable();
        nodes
    }

    /// All groups of this node, the catalog included.
    pub fn shards(&self) -> Vec<Shard> {
        self.core.all_groups()
    }

    /// Who leads `shard`, also when this node is not a member.
    pub fn leadership(&self, shard: ShardId) -> watch::Receiver<Leadership> {
        self.core.leadership(shard)
    }

    /// Submits catalog commands.
    pub fn catalog(&self) -> CatalogClient {
        CatalogClient { core: self.core.clone() }
    }

    /// Whether this node may route by its catalog now (rule 28); cheap enough for every batch.
    pub fn routing_lease(&self) -> impl Fn() -> bool + Send + Sync + Clone + 'static {
        self.core.leases.check()
    }

    /// Who is alive, while this node leads the catalog with a quorum behind it.
    pub fn heard(&self) -> Option<Heard> {
        let catalog = self.core.group(ShardId::CATALOG)?;
        if catalog.leadership().borrow().is_me && catalog.lease_valid() { self.core.leases.heard() } else { None }
    }

    /// What this node is short of: the others are told.
    pub fn set_alarm(&self, shortage: Shortage) {
        self.core.leases.set_alarm(shortage);
    }

    /// Nodes of the cluster that are short of something.
    pub fn alarms(&self) -> watch::Receiver<Shortages> {
        self.core.leases.watch_alarms()
    }

    /// A group, or a task that all need, that ended on this node by a fault, with its cause: only a restart, if anything, brings it back.
    pub fn fault(&self) -> Option<Loss> {
        self.core.watch.fault()
    }

    /// A path to `shard` on another node, for `model::ports::Paths`. Call it on the edge's runtime: its tasks run there.
    pub fn connect(&self, shard: ShardId, leader: NodeId) -> impl Future<Output = io::Result<EdgeEnd>> + Send + 'static {
        let core = self.core.clone();
        async move {
            let transport = core.transport().ok_or_else(|| io::Error::other("the network is not started"))?;
            paths::connect(transport.as_ref(), core.me, shard, leader).await
        }
    }

    /// How deliveries fared that this node's disk could not serve.
    pub fn bodies(&self) -> &BodyCounters {
        &self.core.bodies
    }

    /// How long a checkpoint has been taking that is under way.
    pub fn checkpointing_for(&self) -> Option<Duration> {
        self.store.as_ref()?.writing_for()
    }

    /// Which disks are slow, and what this node did about it.
    pub fn slow_disks(&self) -> &SlowDisks {
        &self.core.slow_disks
    }

    /// The connections to another node.
    pub fn link(&self, node: NodeId) -> LinkState {
        self.core.transport().map(|t| t.link(node)).unwrap_or_default()
    }

    /// The cluster's UUID, once formed.
    pub fn cluster(&self) -> Option<u128> {
        self.core.journal.identity().map(|i| i.cluster)
    }

    /// Gives all leaderships away; returns when they are gone or after `patience`.
    pub async fn hand_over_leadership(&self, patience: Duration) {
        let core = self.core.clone();
        let handle = self.thread.lock().as_ref().map(|thread| thread.handle().clone());
        if let Some(handle) = handle {
            let _ = handle.spawn(async move { failover::hand_over(&core, patience).await }).await;
        }
    }

    /// Stops groups, makes a last checkpoint, stops network and runtime, all that within `patience`: what is left out is done at the next
    /// start. The write-ahead log stays open.
    pub async fn stop(&self, patience: Duration) {
        self.core.watch.stopping();
        let core = self.core.clone();
        let store = self.store.clone();
        let Some(thread) = self.thread.lock().take() else { return };
        let stopping = thread.handle().spawn(async move {
            for group in core.all_groups() {
                let _ = group.inner().raft.shutdown().await;
            }
            if let Some(transport) = core.transport() {
                transport.shutdown();
            }
            if let Some(store) = store {
                checkpoint::all(&core, &store).await;
            }
        });
        if tokio::time::timeout(patience, stopping).await.is_err() {
            tracing::warn!("the last checkpoint is not finished; the next start reads more of the log");
        }
    }
}

impl Consensus {
    /// Rounds of the watchdog.
    #[cfg(test)]
    pub(super) fn watched(&self) -> u64 {
        self.core.watch.rounds()
    }

    /// Ends everything where it stands, as the end of the process would.
    pub fn kill(&self) {
        self.core.watch.stopping();
        if let Some(transport) = self.core.transport() {
            transport.shutdown();
        }
        drop(self.thread.lock().take());
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How far this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Progress {
    /// Waiting for other nodes.
    #[default]
    Forming,
    /// Groups exist.
    Built,
    /// Groups run.
    Running,
    /// It cannot go on.
    Failed(String),
}

async fn form(core: Arc<Core>, joins: bool, machines: Machines, store: Option<Arc<StateStore>>) {
    let built = async {
        formation::identify(&core, joins).await?;
        build(&core, machines, &store).await
    };
    let maker = match built.await {
        Ok(maker) => maker,
        Err(error) => {
            tracing::error!(%error, "this node cannot take part");
            core.progress.send_replace(Progress::Failed(error.to_string()));
            return;
        }
    };
    core.progress.send_replace(Progress::Built);
    let mut progress_rx = core.progress.subscribe();
    if progress_rx.wait_for(|p| *p == Progress::Running).await.is_err() {
        return;
    }
    core.all_groups().iter().filter(|group| !core.is_late(group.id())).for_each(Shard::run);
    core.watch.spawn("the keeper of routing leases", lease::keep(core.clone()));
    core.watch.spawn("the watch of other processes", failover::watch_processes(core.clone()));
    core.watch.spawn("the balance of leaders", failover::balance(core.clone()));
    core.watch.spawn("the watch of the disk", slow_disk::watch(core.clone(), store.as_ref().map(Arc::downgrade).unwrap_or_default()));
    core.watch.spawn("the watchdog of the groups", watchdog::keep(core.clone()));
    core.watch.spawn("the teller of leaders", failover::tell(core.clone()));
    core.watch.spawn("the keeper of replicas", mover::keep_replicas(core.clone(), maker));
    core.watch.spawn("the mover of replicas", mover::keep_moving(core.clone()));
    core.watch.spawn("the planner of replicas", mover::keep_planning(core.clone()));
    if let Some(store) = store {
        core.watch.spawn("the keeper of checkpoints", checkpoint::keep(core.clone(), store));
        core.watch.spawn("the cleaner of the log", relocation::keep(core.clone()));
    }
    formation::complete(core).await;
}

/// Groups of which this disk lacks something join when another replica gave it; the catalog is waited for, and without other replicas
/// nothing can be given.
async fn build(core: &Arc<Core>, machines: Machines, store: &Option<Arc<StateStore>>) -> Result<Maker, FormationError> {
    let Some(transport) = core.transport() else { return Err(FormationError::Stopped("no network".into())) };
    let maker = Maker {
        network: Network::new(transport.clone(), core.watch.clone()),
        me: VoterId { node: core.me, generation: FIRST_GENERATION },
        machines: Arc::new(machines),
        store: store.as_ref().map(Arc::downgrade).unwrap_or_default(),
    };
    let (mut whole, mut late) = (Vec::new(), Vec::new());
    for shard in core.shard_ids() {
        // The catalog comes first: what it says of the members counts for the others.
        if !core.members.roster().holds(shard, core.me) {
            continue;
        }
        let holding = maker.hold(core, shard)?;
        holding.resume().await?;
        let complete = maker.is_complete(&holding).await?;
        let is_late = !complete && shard != ShardId::CATALOG;
        core.groups.write().insert(shard, Place { late: is_late, ..Place::default() });
        if complete { whole.push(holding) } else { late.push(holding) }
    }
    for holding in whole {
        core.journal.unstage(holding.shard);
        core.join(maker.group(core, holding).await?);
    }
    for holding in late {
        let (shard, alone) = (holding.shard, core.members.around(holding.shard).len() == 1);
        // Making the catalog, this node may have heard for the first time where groups are.
        if !core.members.roster().holds(shard, core.me) {
            core.groups.write().remove(&shard);
            continue;
        }
        let made = complete_and_join(core.clone(), maker.clone(), holding);
        if shard == ShardId::CATALOG || alone {
            made.await?;
        } else {
            make_aside(core, shard, made);
        }
    }
    Ok(maker)
}

/// A group of this node is made by a task of its own, until then its place is empty.
fn make_aside(core: &Arc<Core>, shard: ShardId, made: impl Future<Output = Result<(), FormationError>> + Send + 'static) {
    let making = core.watch.spawn_until(format!("the making of shard {shard}"), async move {
        if let Err(error) = made.await {
            tracing::error!(%shard, %error, "this node does not take part in the shard");
        }
        None
    });
    if let Some(place) = core.groups.write().get_mut(&shard).filter(|place| place.shard.is_none()) {
        place.making = Some(making);
    }
}

/// Afterwards this node's state of a group, its log and its entries fit together.
async fn complete_and_join(core: Arc<Core>, maker: Maker, holding: Arc<Holding>) -> Result<(), FormationError> {
    match core.journal.damage(holding.shard) {
        Some(damage) => rebuild::group(&core, &holding, damage).await?,
        None => fetch::state(&core, &holding).await?,
    }
    core.journal.unstage(holding.shard);
    core.join(maker.group(&core, holding).await?);
    Ok(())
}

fn stopped(shard: ShardId) -> impl Fn(&dyn std::fmt::Display) -> FormationError {
    move |e| FormationError::Stopped(format!("shard {shard}: {e}"))
}

/// What all groups of this node are made with. Cheap to clone.
#[derive(Clone)]
pub(super) struct Maker {
    network: Arc<Network>,
    me: VoterId,
    machines: Arc<Machines>,
    store: Weak<StateStore>,
}

impl Maker {
    /// A group that came to this node while it runs: it joins when it is whole.
    pub(super) async fn add(&self, core: &Arc<Core>, shard: ShardId) -> Result<(), FormationError> {
        let holding = self.hold(core, shard)?;
        holding.resume().await?;
        let complete = self.is_complete(&holding).await?;
        core.groups.write().insert(shard, Place { late: true, ..Place::default() });
        let (core_of, maker) = (core.clone(), self.clone());
        make_aside(core, shard, async move {
            if !complete {
                return complete_and_join(core_of, maker, holding).await;
            }
            core_of.join(maker.group(&core_of, holding).await?);
            Ok(())
        });
        Ok(())
    }

    async fn is_complete(&self, holding: &Arc<Holding>) -> Result<bool, FormationError> {
        let looked = holding.clone();
        Ok(tokio::task::spawn_blocking(move || looked.is_complete()).await.map_err(io::Error::other)??)
    }

    fn hold(&self, core: &Core, shard: ShardId) -> Result<Arc<Holding>, FormationError> {
        let machine = (self.machines)(shard)?;
        let voters = core.members.now(shard).into_iter().map(|node| VoterId { node, generation: FIRST_GENERATION });
        let voters: Vec<VoterId> = voters.collect();
        let ids: BTreeSet<u64> = voters.iter().map(|v| v.pack()).collect();
        let nodes: BTreeMap<u64, openraft::EmptyNode> = ids.iter().map(|id| (*id, openraft::EmptyNode {})).collect();
        let members = Omembership::new(vec![ids], nodes).map_err(|e| stopped(shard)(&e))?;
        let (applied, first) = (machine.restored().map_or(0, |id| id.index), voters.first().copied());
        let membership = stored_membership(core, shard, applied, members, first.unwrap_or(self.me));
        Ok(Holding::new(shard, machine, core.journal.clone(), self.store.upgrade().as_ref(), membership))
    }

    async fn group(&self, core: &Arc<Core>, holding: Arc<Holding>) -> Result<Shard, FormationError> {
        let (id, me) = (holding.shard, self.me);
        let Some(transport) = core.transport() else { return Err(FormationError::Stopped("no network".into())) };
        let (sm, heard) = GroupMachine::new(holding.clone());
        let forced = Arc::new(AtomicBool::new(false));
        let config = raft_config(core.timing).validate().map_err(|e| stopped(id)(&e))?;
        let contact = Arc::new(Contact::new(me.pack(), voters(core, &holding)));
        let _ = holding.contact.set(contact.clone());
        let log = GroupLog::new(id, core.journal.clone(), holding.work.clone()).with_contact(contact.clone());
        let network = self.network.group(holding.clone(), forced.clone(), contact.clone());
        let raft = Group::build(me.pack(), Arc::new(config), network, log, sm);
        let raft = raft.await.map_err(|e| stopped(id)(&e))?;
        let (journal, lease, members) = (core.journal.clone(), core.timing.lease(), core.members.clone());
        let others = Others { transport: transport.clone(), me: core.me, members: members.clone(), counters: core.bodies.clone() };
        let parts = Parts { id, me, members, raft, journal, holding, heard, forced, others, lease, contact };
        Ok(Shard::start(parts, &core.watch))
    }
}

/// The sets of voters as the log says last; before there is a log, those that form the group.
fn voters(core: &Core, holding: &Holding) -> Configs {
    let logged = core.journal.state(holding.shard).membership.and_then(|(_, bytes)| read_membership(&bytes));
    let membership = logged.unwrap_or_else(|| holding.membership.lock().membership().clone());
    let configs = membership.get_joint_config().clone();
    if configs.iter().any(|config| !config.is_empty()) {
        return configs;
    }
    let founders = core.members.now(holding.shard).into_iter().map(|node| VoterId { node, generation: FIRST_GENERATION }.pack());
    vec![founders.collect()]
}

/// The newest membership of what is applied: a later one in the log may never have been agreed on. Else what `initialize` wrote as the log's
/// first entry.
fn stored_membership(core: &Core, shard: ShardId, applied: u64, members: Omembership, initializer: VoterId) -> Ostored {
    let logged = core.journal.membership_upto(shard, applied);
    if let Some((id, membership)) = logged.and_then(|(id, bytes)| Some((id, read_membership(&bytes)?))) {
        return Ostored::new(Some(to_oid(id)), membership);
    }
    let first = Oid { leader_id: Lid { term: 0, node_id: initializer.pack() }, index: 0 };
    Ostored::new(Some(first), members)
}

fn raft_config(timing: Timing) -> openraft::Config {
    openraft::Config {
        cluster_name: "warren".into(),
        heartbeat_interval: timing.heartbeat_ms,
        heartbeat_min_interval: Some(timing.heartbeat_ms),
        election_timeout_min: timing.election_min_ms,
        election_timeout_max: timing.election_max_ms,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        // The leader's own fdatasync runs beside the followers', not before them.
        broadcast_submitted_on_append: Some(true),
        max_payload_entries: 64,
        max_append_entries: Some(1024),
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: u64::MAX / 2,
        install_snapshot_timeout: 600_000,
        backoff: "20ms 50ms 100ms ...500ms".into(),
        ..Default::default()
    }
}
