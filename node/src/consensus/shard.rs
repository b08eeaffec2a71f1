//! One Raft group on this node: the handle that `serving` proposes through and reads bodies from, and that the catalog client uses.

use super::bodies::{self, Others};
use super::boot::BootTime;
use super::contact::Contact;
use super::holding::Holding;
use super::journal::{Journal, Payload};
use super::machine::{GroupMachine, Heard};
use super::members::Members;
use super::order;
use super::types::*;
use super::watch::{Loss, Watch};
use crate::model::entry::EntryBytes;
use crate::model::limits::UNFLUSHED_BYTES;
use crate::model::ports::{Bodies, EPOCH_SHIFT, Leadership, ProposalOutcome, Proposer};
use crate::model::report::RaftFigures;
use crate::model::stored::StoredEntry;
use crate::model::{LeaderId, LogId, NodeId, ShardId, VoterId};
use futures::future::BoxFuture;
use openraft::ServerState;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason};
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// openraft's handle of a group.
pub type Group = openraft::Raft<Types, GroupMachine>;
/// Receives the outcome of proposals, in log order. Called inside openraft's tasks: must not block.
pub type OutcomeSink = Arc<dyn Fn(u64, ProposalOutcome) + Send + Sync>;

/// Proposals that wait for openraft; serving keeps `limits::ENTRIES_IN_FLIGHT`, the rest is room for its own entries.
const QUEUE: usize = 64;
/// The core ends at once when the machine ended by its error; after a panic of the machine it stays.
const CORE_ENDS: Duration = Duration::from_secs(1);
/// How long a proposal is held while the lease is not (yet) confirmed by a quorum (P4, P5).
const LEASE_PATIENCE: Duration = Duration::from_millis(200);

struct Proposal {
    token: u64,
    leader: LeaderId,
    entry: EntryBytes,
    slot: Slot,
}

/// A data shard or the catalog on this node. Cheap to clone.
#[derive(Clone)]
pub struct Shard {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) id: ShardId,
    pub(super) me: u64,
    members: Members,
    pub(super) raft: Group,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) holding: Arc<Holding>,
    pub(super) applied_rx: watch::Receiver<Option<LogId>>,
    /// Campaigns of this node are forced failovers, not ordered transfers.
    pub(super) forced: Arc<AtomicBool>,
    pub(super) others: Others,
    lease: Duration,
    contact: Arc<Contact>,
    data_rx: watch_of::Data,
    server_rx: watch_of::Server,
    leadership_tx: watch::Sender<Leadership>,
    /// Who said last of itself that it leads.
    heard_tx: watch::Sender<Option<LeaderId>>,
    proposals_tx: mpsc::Sender<Proposal>,
    outbox: Arc<Outbox>,
    running: AtomicBool,
    /// This node has the group no more.
    left_tx: watch::Sender<bool>,
}

/// How far a group is, in all that must go on while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The core's last entry.
    pub(super) last: Option<LogId>,
    /// How far the disk is,
    pub(super) flushed: Option<LogId>,
    /// and of how many appends the core has not heard.
    pub(super) unsaid: u64,
    /// Of the entries that are here.
    pub(super) committed: Option<LogId>,
    pub(super) applied: Option<LogId>,
    /// What the machine has done.
    pub(super) steps: u64,
}

mod watch_of {
    use super::Types;
    use openraft::RaftTypeConfig;
    use openraft::async_runtime::AsyncRuntime;
    use openraft::async_runtime::watch::Watch;

    type Watched = <<Types as RaftTypeConfig>::AsyncRuntime as AsyncRuntime>::Watch;
    /// openraft's replication metrics.
    pub(super) type Data = <Watched as Watch>::Receiver<openraft::metrics::RaftDataMetrics<Types>>;
    /// openraft's role and vote.
    pub(super) type Server = <Watched as Watch>::Receiver<openraft::metrics::RaftServerMetrics<Types>>;
}

impl Shard {
    /// Wrap a built (not yet running) group and start its tasks on the current runtime.
    pub(super) fn start(parts: Parts, watch: &Arc<Watch>) -> Shard {
        let (proposals_tx, proposals_rx) = mpsc::channel(QUEUE);
        let (leadership_tx, _) = watch::channel(Leadership::default());
        let (data_rx, server_rx) = (parts.raft.data_metrics(), parts.raft.server_metrics());
        let inner = Arc::new(Inner {
            id: parts.id,
            me: parts.me.pack(),
            members: parts.members,
            raft: parts.raft,
            journal: parts.journal,
            holding: parts.holding,
            applied_rx: parts.heard.applied_rx,
            forced: parts.forced,
            others: parts.others,
            lease: parts.lease,
            contact: parts.contact,
            data_rx,
            server_rx,
            leadership_tx,
            heard_tx: watch::channel(None).0,
            proposals_tx,
            outbox: Arc::new(Outbox::default()),
            running: AtomicBool::new(false),
            left_tx: watch::channel(false).0,
        });
        let shard = Shard { inner };
        let proposer = propose_in_order(shard.clone(), proposals_rx);
        let proposer = async move {
            proposer.await;
            Some(Loss::passing(format!("the proposer of shard {} has ended", parts.id)))
        };
        watch.spawn_until(format!("the proposer of shard {}", parts.id), shard.until_left(proposer));
        let end = watch_leadership(shard.clone(), parts.heard.gone_rx);
        watch.spawn_until(format!("the watch of shard {}'s leadership", parts.id), shard.until_left(end));
        shard
    }

    /// Whether both are the same start of the same group.
    pub(super) fn is(&self, other: &Shard) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// `task`, which may end, and is ended, when the group is no more on this node.
    fn until_left(&self, task: impl Future<Output = Option<Loss>> + Send + 'static) -> impl Future<Output = Option<Loss>> + Send + 'static {
        let mut left_rx = self.inner.left_tx.subscribe();
        async move {
            let ended = tokio::select! {
                biased;
                _ = left_rx.wait_for(|left| *left) => return None,
                ended = task => ended,
            };
            ended.filter(|_| !*left_rx.borrow())
        }
    }

    /// Until it is no more on this node.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut left_rx = self.inner.left_tx.subscribe();
        async move { drop(left_rx.wait_for(|left| *left).await) }
    }

    /// It is no more on this node.
    pub(super) fn has_left(&self) -> bool {
        *self.inner.left_tx.borrow()
    }

    /// Which.
    pub fn id(&self) -> ShardId {
        self.inner.id
    }

    /// A proposal of the token's epoch has failed, perhaps behind others whose outcome is open.
    #[cfg(test)]
    pub(super) fn has_failed(&self, token: u64) -> bool {
        self.inner.outbox.has_failed(token)
    }

    /// Its voters, those of both sets while they change; the preferred leader first, if it is one of them.
    pub fn voters(&self) -> Vec<VoterId> {
        let ids: BTreeSet<u64> = self.inner.contact.configs().into_iter().flatten().collect();
        let now = self.inner.members.now(self.inner.id);
        let mut voters: Vec<VoterId> = ids.into_iter().map(VoterId::unpack).collect();
        voters.sort_by_key(|voter| now.iter().position(|node| *node == voter.node).unwrap_or(usize::MAX));
        voters
    }

    /// The node that is to lead when nothing speaks against it.
    pub(super) fn preferred(&self) -> Option<VoterId> {
        let node = self.inner.members.now(self.inner.id).first().copied()?;
        self.voters().into_iter().find(|voter| voter.node == node)
    }

    /// This node has the group no more: nothing is proposed, nobody believes that it leads.
    pub(super) fn leave(&self) {
        self.inner.left_tx.send_replace(true);
        self.inner.leadership_tx.send_replace(Leadership::default());
    }

    /// Where outcomes of `propose` go; once, before the first proposal.
    pub fn on_outcome(&self, sink: OutcomeSink) {
        let _ = self.inner.outbox.sink.set(sink);
    }

    /// Starts a group that became whole after `Consensus::run`: call it when `on_outcome` is set. No effect on one that runs.
    pub fn run(&self) {
        self.inner.raft.run();
        self.inner.running.store(true, Ordering::Release);
    }

    /// It was started.
    pub(super) fn is_running(&self) -> bool {
        self.inner.running.load(Ordering::Acquire)
    }

    /// How far it is.
    pub(super) fn standing(&self) -> Standing {
        use openraft::async_runtime::watch::WatchReceiver;
        let inner = &self.inner;
        let flushed = inner.journal.flushed(inner.id);
        let data = inner.data_rx.borrow_watched();
        Standing {
            last: data.last_log.map(from_oid),
            flushed,
            unsaid: inner.holding.work.unsaid(),
            committed: data.local_committed.map(from_oid),
            applied: *inner.applied_rx.borrow(),
            steps: inner.holding.work.steps(),
        }
    }

    /// Who leads. `is_me` only once an entry of this node's own leader id is applied (rule 24).
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership_tx.subscribe()
    }

    /// Another node says that it leads as `leader`. A group whose vote waits for a disk that hangs learns it in no other way.
    pub(super) fn heard_of(&self, leader: LeaderId) {
        self.inner.heard_tx.send_if_modified(|known| {
            let is_newer = *known < Some(leader);
            *known = (*known).max(Some(leader));
            is_newer
        });
    }

    /// The last applied entry.
    pub fn applied(&self) -> watch::Receiver<Option<LogId>> {
        self.inner.applied_rx.clone()
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The last index that `voter` acknowledged; `None` when this node does not lead.
    pub fn matching(&self, voter: VoterId) -> Option<u64> {
        use openraft::async_runtime::watch::WatchReceiver;
        let data = self.inner.data_rx.borrow_watched();
        data.replication.as_ref()?.get(&voter.pack())?.as_ref().map(|id| id.index)
    }

    /// The lowest index that the replicas which `counts` names have acknowledged, as the leader knows it; `None` when this node does not
    /// lead.
    pub fn slowest_matching(&self, counts: impl Fn(NodeId) -> bool) -> Option<u64> {
        use openraft::async_runtime::watch::WatchReceiver;
        let data = self.inner.data_rx.borrow_watched();
        let replication = data.replication.as_ref()?.iter().filter(|(id, _)| counts(VoterId::unpack(**id).node));
        replication.map(|(_, matching)| matching.as_ref().map_or(0, |id| id.index)).min()
    }

    /// The log is purged up to here.
    pub fn purged(&self) -> u64 {
        self.inner.journal.state(self.inner.id).purged.map_or(0, |id| id.index)
    }

    /// Raft's own figures of this replica, for operators.
    pub fn raft_figures(&self) -> RaftFigures {
        use openraft::async_runtime::watch::WatchReceiver;
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        RaftFigures {
            state: match metrics.state {
                ServerState::Learner => "learner",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Leader => "leader",
                ServerState::Shutdown => "shutdown",
            },
            term: metrics.current_term,
            last_index: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.as_ref().map_or(0, |id| id.index),
            applied: metrics.last_applied.as_ref().map_or(0, |id| id.index),
            purged: metrics.purged.as_ref().map_or(0, |id| id.index),
        }
    }

    /// Ask the leader (this node) to hand over to `to`.
    pub async fn transfer_to(&self, to: NodeId) -> bool {
        let Some(voter) = self.voters().into_iter().find(|v| v.node == to) else { return false };
        order::in_time(self.inner.raft.trigger().transfer_leader(voter.pack())).await.is_ok_and(|taken| taken.is_ok())
    }

    /// The leader id under which a majority acknowledged this node within the lease.
    pub(super) fn leased_as(&self) -> Option<LeaderId> {
        use openraft::async_runtime::watch::WatchReceiver;
        if *self.inner.left_tx.borrow() {
            return None;
        }
        if self.inner.contact.is_alone() {
            return self.inner.leadership_tx.borrow().as_me();
        }
        let leader = {
            let server = self.inner.server_rx.borrow_watched();
            let leads = server.state == ServerState::Leader && server.vote.committed;
            leads.then(|| from_lid(server.vote.leader_id)).filter(|leader| leader.voter == self.inner.me)
        }?;
        let acked = self.inner.contact.quorum(leader)?;
        (BootTime::now() < acked + self.inner.lease).then_some(leader)
    }

    /// Write an entry and wait for its reply, without a leader id: for the catalog, whose commands are idempotent.
    pub(super) async fn write(&self, entry: EntryBytes) -> Result<(LogId, Reply), WriteError> {
        let (tx, rx) = oneshot::channel();
        let answer = Answer::new(move |result| {
            let _ = tx.send(result);
        });
        self.inner.raft.write(Command(entry)).responder(answer).await.map_err(|fatal| WriteError::Stopped(fatal.to_string()))?;
        let result: ClientWriteResult<Types> = rx.await.map_err(|_| WriteError::Stopped("the group stopped".into()))?;
        match result {
            Ok(done) => Ok((from_oid(done.log_id), done.data)),
            Err(ClientWriteError::ForwardToLeader(forward)) if forward.reason == ForwardReason::LeaseExpired => Err(WriteError::NoQuorum),
            Err(ClientWriteError::ForwardToLeader(_)) => Err(WriteError::NotLeader),
            Err(other) => Err(WriteError::Unknown(other.to_string())),
        }
    }
}

/// Why a write has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Nothing was written: another node leads.
    #[error("this node does not lead the shard")]
    NotLeader,
    /// Nothing was written: no quorum answered this leader lately.
    #[error("no majority of the shard's replicas answers")]
    NoQuorum,
    /// May or may not be committed later.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The group does not run.
    #[error("{0}")]
    Stopped(String),
}

/// What `Shard::start` needs.
pub(super) struct Parts {
    pub(super) id: ShardId,
    pub(super) me: VoterId,
    pub(super) members: Members,
    pub(super) raft: Group,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) holding: Arc<Holding>,
    pub(super) heard: Heard,
    pub(super) forced: Arc<AtomicBool>,
    pub(super) others: Others,
    pub(super) lease: Duration,
    pub(super) contact: Arc<Contact>,
}

impl Proposer for Shard {
    fn propose(&self, token: u64, leader: LeaderId, entry: EntryBytes) {
        let slot = self.inner.outbox.clone().open(token);
        if let Err(refused) = self.inner.proposals_tx.try_send(Proposal { token, leader, entry, slot }) {
            refused.into_inner().slot.fill(ProposalOutcome::Failed("too many proposals in flight".into()));
        }
    }

    fn lease_valid(&self) -> bool {
        self.leased_as().is_some()
    }
}

impl Bodies for Shard {
    fn cached(&self, index: u64) -> Option<EntryBytes> {
        match self.inner.journal.cached(self.inner.id, index)?.payload {
            Payload::Normal(bytes) => Some(bytes),
            Payload::Blank | Payload::Membership(_) | Payload::Trimmed(_) => None,
        }
    }

    fn read(&self, index: u64) -> BoxFuture<'static, io::Result<EntryBytes>> {
        let shard = self.clone();
        Box::pin(async move { bodies::read(&shard.inner, index).await })
    }

    fn read_run(&self, indices: Vec<u64>) -> BoxFuture<'static, io::Result<Vec<StoredEntry>>> {
        let shard = self.clone();
        Box::pin(async move { bodies::read_run(&shard.inner, indices).await })
    }
}

/// Hands proposals to openraft one after the other, so that log order is the order of `propose`. What was queued behind a failed
/// proposal was made without knowledge of its failure and fails with it.
async fn propose_in_order(shard: Shard, mut proposals_rx: mpsc::Receiver<Proposal>) {
    while let Some(Proposal { token, leader, entry, slot }) = proposals_rx.recv().await {
        if shard.inner.outbox.has_failed(token) {
            slot.fill(ProposalOutcome::Failed("an earlier proposal failed".into()));
            continue;
        }
        disk_in_time(&shard).await;
        if !lease_in_time(&shard).await {
            slot.fill(ProposalOutcome::Failed("no majority of the shard's replicas answers".into()));
            continue;
        }
        let answer = Answer::new(move |result: ClientWriteResult<Types>| slot.fill(outcome(result)));
        match shard.inner.raft.write(Command(entry)).with_leader(to_lid(leader)).responder(answer).await {
            Ok(_) => {}
            Err(Fatal::Stopped) => return,
            Err(fatal) => tracing::error!(shard = %shard.id(), error = %fatal, "the group stopped"),
        }
    }
}

/// Waits for a quorum's answer instead of failing at once: after an election, and when a disk was slow.
async fn lease_in_time(shard: &Shard) -> bool {
    let mut waited = Duration::ZERO;
    while !shard.lease_valid() {
        if waited >= LEASE_PATIENCE {
            return false;
        }
        let step = Duration::from_millis(2);
        tokio::time::sleep(step).await;
        waited += step;
    }
    true
}

/// Waits while this node's disk is too far behind: followers commit without it, so nothing else bounds what waits for it (rule 9).
async fn disk_in_time(shard: &Shard) {
    while shard.inner.journal.unflushed() > UNFLUSHED_BYTES && shard.lease_valid() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn outcome(result: ClientWriteResult<Types>) -> ProposalOutcome {
    match result {
        Ok(done) => match done.data {
            Reply::Sections(replies) => ProposalOutcome::Applied(from_oid(done.log_id), replies),
            Reply::Nothing | Reply::Catalog(_) => ProposalOutcome::Applied(from_oid(done.log_id), Vec::new()),
        },
        Err(error) => ProposalOutcome::Failed(error.to_string()),
    }
}

/// Puts outcomes back into the order of proposals: errors overtake applied entries inside openraft.
#[derive(Default)]
struct Outbox {
    sink: OnceLock<OutcomeSink>,
    queue: Mutex<OutboxQueue>,
    /// One more than the latest epoch of a failed proposal.
    failed: AtomicU64,
}

#[derive(Default)]
struct OutboxQueue {
    first: u64,
    slots: VecDeque<(u64, Option<ProposalOutcome>)>,
}

impl Outbox {
    fn open(self: Arc<Self>, token: u64) -> Slot {
        let mut queue = self.queue.lock();
        let number = queue.first + queue.slots.len() as u64;
        queue.slots.push_back((token, None));
        drop(queue);
        Slot { outbox: self, number, filled: false }
    }

    /// An earlier proposal of the token's epoch failed.
    fn has_failed(&self, token: u64) -> bool {
        token >> EPOCH_SHIFT < self.failed.load(Ordering::Acquire)
    }

    fn fill(&self, number: u64, outcome: ProposalOutcome) {
        let mut queue = self.queue.lock();
        let at = (number - queue.first) as usize;
        if let Some(slot) = queue.slots.get_mut(at) {
            if matches!(outcome, ProposalOutcome::Failed(_)) {
                self.failed.fetch_max((slot.0 >> EPOCH_SHIFT) + 1, Ordering::AcqRel);
            }
            slot.1 = Some(outcome);
        }
        while matches!(queue.slots.front(), Some((_, Some(_)))) {
            queue.first += 1;
            if let (Some((token, Some(outcome))), Some(sink)) = (queue.slots.pop_front(), self.sink.get()) {
                sink(token, outcome);
            }
        }
    }
}

/// The place of one proposal's outcome; a dropped one counts as failed, so that every proposal is answered.
struct Slot {
    outbox: Arc<Outbox>,
    number: u64,
    filled: bool,
}

impl Slot {
    fn fill(mut self, outcome: ProposalOutcome) {
        self.filled = true;
        self.outbox.fill(self.number, outcome);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.filled {
            self.outbox.fill(self.number, ProposalOutcome::Failed("the group stopped".into()));
        }
    }
}

/// Ends with the group, and says why.
async fn watch_leadership(shard: Shard, mut gone_rx: oneshot::Receiver<()>) -> Option<Loss> {
    use openraft::async_runtime::watch::WatchReceiver;
    let mut server_rx = shard.inner.raft.server_metrics();
    let mut applied_rx = shard.inner.applied_rx.clone();
    let mut heard_rx = shard.inner.heard_tx.subscribe();
    loop {
        let now = {
            let server = server_rx.borrow_and_update();
            let voted = from_lid(server.vote.leader_id);
            let heard = heard_rx.borrow_and_update().filter(|heard| *heard >= voted);
            let leader = heard.or(server.vote.committed.then_some(voted)).filter(|l| l.term > 0);
            let leads = server.state == ServerState::Leader && leader.is_some_and(|l| l.voter == shard.inner.me);
            let applied = applied_rx.borrow_and_update().map(|id| id.leader);
            Leadership { leader, is_me: leads && applied == leader }
        };
        let changed = shard.inner.leadership_tx.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
        if changed {
            shard.inner.forced.store(false, Ordering::Relaxed);
            tracing::info!(shard = %shard.id(), leader = ?now.leader, is_me = now.is_me, "leadership");
        }
        let waiting_for_own_entry = now.leader.is_some_and(|l| l.voter == shard.inner.me) && !now.is_me;
        tokio::select! {
            changed = server_rx.changed() => if changed.is_err() { break },
            changed = heard_rx.changed() => if changed.is_err() { break },
            // Every applied entry wakes this only between an election and the first own entry.
            changed = applied_rx.changed(), if waiting_for_own_entry => if changed.is_err() { break },
            _ = &mut gone_rx => break,
        }
    }
    shard.inner.leadership_tx.send_replace(Leadership::default());
    Some(cause(&shard).await)
}

/// Why the group ended. Its core and its machine end one after the other.
async fn cause(shard: &Shard) -> Loss {
    use openraft::async_runtime::watch::WatchReceiver;
    let mut metrics_rx = shard.inner.raft.metrics();
    let core_ends = async { while metrics_rx.changed().await.is_ok() {} };
    let core_ended = tokio::time::timeout(CORE_ENDS, core_ends).await.is_ok();
    let state = metrics_rx.borrow_watched().running_state.clone();
    let stopped = |why: &dyn std::fmt::Display| format!("shard {} has stopped on this node: {why}", shard.id());
    match state {
        Err(fatal) if shard.inner.holding.work.has_refused() => Loss::lasting(stopped(&fatal)),
        Err(fatal) => Loss::passing(stopped(&fatal)),
        Ok(()) if core_ended => Loss::passing(stopped(&"its core panicked")),
        Ok(()) => Loss::passing(stopped(&"what applies its entries panicked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_in_the_order_of_proposals_and_a_dropped_one_has_failed() {
        let outbox = Arc::new(Outbox::default());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let _ = outbox.sink.set(Arc::new(move |token, outcome| sink.lock().push((token, matches!(outcome, ProposalOutcome::Applied(..))))));
        let slots: Vec<Slot> = (10..14).map(|token| outbox.clone().open(token)).collect();
        let mut slots = slots.into_iter();
        let (a, b, c, d) = (slots.next(), slots.next(), slots.next(), slots.next());
        c.expect("c").fill(ProposalOutcome::Failed("lease".into()));
        assert!(seen.lock().is_empty());
        a.expect("a").fill(ProposalOutcome::Applied(LogId::default(), Vec::new()));
        drop(b);
        d.expect("d").fill(ProposalOutcome::Applied(LogId::default(), Vec::new()));
        assert_eq!(*seen.lock(), [(10, true), (11, false), (12, false), (13, true)]);
    }

    #[test]
    fn a_failure_takes_the_later_proposals_of_its_epoch_with_it() {
        let outbox = Arc::new(Outbox::default());
        let first = outbox.clone().open(1);
        assert!(!outbox.has_failed(2));
        first.fill(ProposalOutcome::Failed("lease".into()));
        assert!(outbox.has_failed(2), "queued before anybody heard of it");
        let anew = crate::model::ports::next_epoch(2);
        assert!(!outbox.has_failed(anew), "proposed by somebody who knows");
        outbox.clone().open(anew).fill(ProposalOutcome::Applied(LogId::default(), Vec::new()));
        drop(outbox.clone().open(anew + 1));
        assert!(outbox.has_failed(anew + 2) && !outbox.has_failed(crate::model::ports::next_epoch(anew)));
    }
}
