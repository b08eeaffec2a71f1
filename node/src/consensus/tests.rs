//! Three nodes in one process over a network in memory: elections, replication, crashes, restarts, formation, leases.

mod hanging;
mod in_flight;

use super::journal::*;
use super::*;
use crate::model::admin::AdminCommand;
use crate::model::catalog::{CatalogCommand, CatalogReply, Refusal};
use crate::model::entry::{EntryBytes, SectionReply};
use crate::model::ports::{Bodies, Clock, Leadership, ProposalOutcome, Proposer, next_epoch};
use crate::model::{Incarnation, LeaderId, LogId, NodeId, SessionId, ShardId};
use crate::peer::memory::MemoryNetwork;
use crate::peer::{Frame, Transport};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What must come true does within this time, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

type MemoryLog = (ShardLog, BTreeMap<u64, LogEntry>);

/// A journal in memory that survives the "process" and loses nothing.
#[derive(Default)]
pub(super) struct MemoryJournal {
    shards: Mutex<HashMap<ShardId, MemoryLog>>,
    identity: Mutex<Option<Identity>>,
    read_bytes: AtomicUsize,
    /// What the disk has, where the test says so.
    pub(super) flushed: Mutex<Option<LogId>>,
    pub(super) lags: AtomicBool,
    /// So many writes of an installation find no space.
    pub(super) full: AtomicUsize,
    /// What is done is not said, nor is it said that it never will be.
    silent: AtomicBool,
    unsaid: Mutex<Vec<Done>>,
    /// Reads come to no end.
    stuck: AtomicBool,
}

impl MemoryJournal {
    fn say(&self, done: Done) {
        if self.silent.load(Ordering::SeqCst) { self.unsaid.lock().push(done) } else { done(Ok(())) }
    }

    fn with<T>(&self, shard: ShardId, f: impl FnOnce(&mut ShardLog, &mut BTreeMap<u64, LogEntry>) -> T) -> T {
        let mut shards = self.shards.lock();
        let (state, entries) = shards.entry(shard).or_default();
        f(state, entries)
    }

    /// Of all entries read so far.
    pub(super) fn bytes_read(&self) -> usize {
        self.read_bytes.load(Ordering::Relaxed)
    }

    fn write(&self, done: Done) {
        let full = self.full.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        done(if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) });
    }
}

impl Journal for MemoryJournal {
    fn state(&self, shard: ShardId) -> ShardLog {
        self.with(shard, |state, entries| ShardLog { last: entries.values().next_back().map(|e| e.id).or(state.purged), ..state.clone() })
    }

    fn append(&self, shard: ShardId, new: Vec<LogEntry>, done: Done) {
        self.with(shard, |_, entries| new.into_iter().for_each(|e| drop(entries.insert(e.id.index, e))));
        self.say(done);
    }

    fn save_vote(&self, shard: ShardId, vote: Vote, done: Done) {
        self.with(shard, |state, _| state.vote = Some(vote));
        self.say(done);
    }

    fn truncate_after(&self, shard: ShardId, last: Option<LogId>, done: Done) {
        self.with(shard, |_, entries| entries.retain(|index, _| last.is_some_and(|l| *index <= l.index)));
        done(Ok(()));
    }

    fn purge(&self, shard: ShardId, upto: LogId) {
        self.with(shard, |state, entries| {
            state.purged = Some(upto);
            entries.retain(|index, _| *index > upto.index);
        });
    }

    fn save_committed(&self, shard: ShardId, id: LogId) {
        self.with(shard, |state, _| state.committed = Some(id));
    }

    fn flushed(&self, shard: ShardId) -> Option<LogId> {
        if self.lags.load(Ordering::Relaxed) { *self.flushed.lock() } else { self.state(shard).last }
    }

    fn prepare_install(&self, _: ShardId, _: LogId, _: Option<(LogId, Bytes)>, done: Done) {
        self.write(done);
    }

    fn finish_install(&self, shard: ShardId, upto: LogId, done: Done) {
        self.purge(shard, upto);
        self.write(done);
    }

    fn cached(&self, shard: ShardId, index: u64) -> Option<LogEntry> {
        let is_stuck = self.stuck.load(Ordering::SeqCst);
        self.with(shard, |_, entries| entries.get(&index).cloned()).filter(|_| !is_stuck)
    }

    fn read(&self, shard: ShardId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        while self.stuck.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let found: Vec<LogEntry> = self.with(shard, |_, entries| entries.range(range).map(|(_, e)| e.clone()).collect());
        let mut read = 0;
        let fits = |entry: &LogEntry| {
            read += entry.payload.len();
            read == entry.payload.len() || read <= max_bytes
        };
        let taken: Vec<LogEntry> = found.into_iter().take_while(fits).collect();
        self.read_bytes.fetch_add(taken.iter().map(|e| e.payload.len()).sum(), Ordering::Relaxed);
        Ok(taken)
    }

    fn read_body(&self, shard: ShardId, index: u64) -> io::Result<EntryBytes> {
        match self.cached(shard, index).map(|e| e.payload) {
            Some(Payload::Normal(bytes)) => Ok(bytes),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn release(&self, _: ShardId, _: &[u64]) {}

    fn retain_only(&self, _: ShardId, _: u64, _: &[u64]) {}

    fn identity(&self) -> Option<Identity> {
        *self.identity.lock()
    }

    fn save_identity(&self, identity: Identity, done: Done) {
        *self.identity.lock() = Some(identity);
        done(Ok(()));
    }
}

/// Remembers what was applied; answers with the entry's length as a session id.
#[derive(Default)]
struct Tape {
    applied: Mutex<Vec<(LogId, EntryBytes)>>,
    catalog: bool,
    /// It can read no entry any more.
    faulty: AtomicBool,
    panics: AtomicBool,
}

impl Machine for Tape {
    fn apply(&self, id: LogId, entry: &EntryBytes) -> Result<Reply, Fault> {
        assert!(!self.panics.load(Ordering::SeqCst), "on purpose");
        if self.faulty.load(Ordering::SeqCst) {
            return Err(Fault { index: id.index, why: "told so".into() });
        }
        self.applied.lock().push((id, entry.clone()));
        let session = SessionId(entry.len() as u64);
        Ok(if self.catalog { Reply::Catalog(CatalogReply::Done) } else { Reply::Sections(vec![SectionReply::UnknownSession { session }]) })
    }

    fn restored(&self) -> Option<LogId> {
        None
    }
}

struct Node {
    consensus: Consensus,
    tapes: Arc<Mutex<BTreeMap<ShardId, Arc<Tape>>>>,
    outcomes: HashMap<ShardId, mpsc::UnboundedReceiver<(u64, ProposalOutcome)>>,
}

struct Cluster {
    network: MemoryNetwork,
    transports: Arc<Mutex<BTreeMap<NodeId, Arc<dyn Transport>>>>,
    journals: BTreeMap<NodeId, Arc<MemoryJournal>>,
    nodes: BTreeMap<NodeId, Node>,
    shards: u16,
    timing: Timing,
    /// Of nodes whose clocks the test sets.
    clocks: BTreeMap<NodeId, ClusterClock>,
}

const DATA: ShardId = ShardId(1);

/// Later starts have larger numbers.
pub(super) fn next_incarnation() -> Incarnation {
    static STARTS: AtomicU64 = AtomicU64::new(1);
    Incarnation(STARTS.fetch_add(1, Ordering::Relaxed))
}

/// Ordinary elections are so late that a leader which comes before one came by a forced failover, on a busy machine too.
pub(super) const PATIENT: Timing =
    Timing { heartbeat_ms: 70, election_min_ms: 2000, election_max_ms: 3000, checkpoint_ms: 1500, watch_ms: 2000 };

impl Timing {
    /// Earliest time after the death of a leader that an ordinary election begins.
    pub(super) fn ordinary_election(self) -> Duration {
        self.lease() + Duration::from_millis(self.election_min_ms)
    }
}

impl Cluster {
    fn new(n: u16, shards: u16) -> Cluster {
        let journals = (1..=n).map(|id| (NodeId(id), Arc::default())).collect();
        let (network, timing) = (MemoryNetwork::default(), Timing::default());
        Cluster { network, transports: Arc::default(), journals, nodes: BTreeMap::new(), shards, timing, clocks: BTreeMap::new() }
    }

    async fn started(n: u16, shards: u16) -> Cluster {
        Cluster::started_with(n, shards, Timing::default()).await
    }

    async fn started_with(n: u16, shards: u16, timing: Timing) -> Cluster {
        let mut cluster = Cluster { timing, ..Cluster::new(n, shards) };
        (1..=n).for_each(|id| cluster.boot(NodeId(id)));
        cluster.run_all().await;
        cluster
    }

    fn boot(&mut self, id: NodeId) {
        let tapes: Arc<Mutex<BTreeMap<ShardId, Arc<Tape>>>> = Arc::default();
        let (network, made, transports) = (self.network.clone(), tapes.clone(), self.transports.clone());
        let consensus = Consensus::start(ConsensusConfig {
            node: id,
            incarnation: next_incarnation(),
            members: Members::founded(self.journals.keys().copied(), self.shards),
            joins: false,
            shards: self.shards,
            timing: self.timing,
            clock: self.clocks.get(&id).cloned().unwrap_or_else(|| ClusterClock::new(Sources::default())),
            journal: self.journals[&id].clone(),
            machines: Box::new(move |shard| {
                let tape = Arc::new(Tape { catalog: shard == ShardId::CATALOG, ..Tape::default() });
                made.lock().insert(shard, tape.clone());
                Ok(tape)
            }),
            supports: crate::model::version::SUPPORTED,
            store: None,
            acceptor: Arc::new(|_, _| ()),
            wire: Box::new(move |handler| {
                let transport = network.join(id, handler);
                transports.lock().insert(id, transport.clone());
                Ok(transport)
            }),
        });
        let consensus = consensus.expect("starts");
        self.nodes.insert(id, Node { consensus, tapes, outcomes: HashMap::new() });
    }

    async fn run(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("booted");
        tokio::time::timeout(Duration::from_secs(60), node.consensus.formed()).await.expect("in time").expect("formed");
        for shard in node.consensus.shards() {
            let (tx, rx) = mpsc::unbounded_channel();
            shard.on_outcome(Arc::new(move |token, outcome| drop(tx.send((token, outcome)))));
            node.outcomes.insert(shard.id(), rx);
        }
        node.consensus.run();
    }

    async fn run_all(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.run(id).await;
        }
    }

    fn kill(&mut self, id: NodeId) {
        drop(self.nodes.remove(&id));
    }

    async fn leader(&self, shard: ShardId) -> (NodeId, LeaderId) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            for (id, node) in &self.nodes {
                let Some(group) = node.consensus.shard(shard) else { continue };
                let Leadership { leader, is_me } = *group.leadership().borrow();
                if let (Some(leader), true, true) = (leader, is_me, group.lease_valid()) {
                    return (*id, leader);
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("no leader of shard {shard}");
    }

    async fn propose(&mut self, token: u64) -> ProposalOutcome {
        let (id, leader) = self.leader(DATA).await;
        let node = self.nodes.get_mut(&id).expect("alive");
        node.consensus.shard(DATA).expect("member").propose(token, leader, entry(token));
        let outcome = node.outcomes.get_mut(&DATA).expect("wired").recv();
        let (answered, outcome) = tokio::time::timeout(Duration::from_secs(60), outcome).await.expect("in time").expect("an outcome");
        assert_eq!(answered, token);
        outcome
    }

    fn applied(&self, id: NodeId, shard: ShardId) -> Vec<EntryBytes> {
        let tape = self.nodes[&id].tapes.lock()[&shard].clone();
        let applied = tape.applied.lock();
        applied.iter().map(|(_, e)| EntryBytes::from(e.flatten())).collect()
    }

    async fn until_all_applied(&self, shard: ShardId, expected: &[EntryBytes]) {
        let deadline = Instant::now() + Duration::from_secs(60);
        for id in self.nodes.keys() {
            while self.applied(*id, shard) != expected {
                assert!(Instant::now() < deadline, "node {id} has {:?}", self.applied(*id, shard).len());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

fn entry(token: u64) -> EntryBytes {
    let mut rope = EntryBytes::from(Bytes::from(format!("entry {token} ")));
    rope.push(Bytes::from(vec![token as u8; 100]));
    rope
}

fn flat(tokens: Range<u64>) -> Vec<EntryBytes> {
    tokens.map(|t| EntryBytes::from(entry(t).flatten())).collect()
}

fn applied(outcome: &ProposalOutcome) -> bool {
    matches!(outcome, ProposalOutcome::Applied(_, replies) if replies.len() == 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_elect_and_replicate_in_order() {
    let mut cluster = Cluster::started(3, 3).await;
    for shard in 0..=3 {
        let (leader, _) = cluster.leader(ShardId(shard)).await;
        assert_eq!(leader, Members::founded((1..=3).map(NodeId), 3).now(ShardId(shard))[0], "leaders spread");
    }
    let (id, leader) = cluster.leader(DATA).await;
    let group = cluster.nodes[&id].consensus.shard(DATA).expect("member");
    (0..40).for_each(|token| group.propose(token, leader, entry(token)));
    let outcomes = cluster.nodes.get_mut(&id).and_then(|n| n.outcomes.get_mut(&DATA)).expect("wired");
    let mut last = 0;
    for token in 0..40 {
        let (answered, outcome) = outcomes.recv().await.expect("an outcome");
        let ProposalOutcome::Applied(at, _) = outcome else { panic!("{outcome:?}") };
        assert!(answered == token && at.index > last && at.leader == leader);
        last = at.index;
    }
    cluster.until_all_applied(DATA, &flat(0..40)).await;
    assert_eq!(group.cached(last), Some(entry(39)));
    assert_eq!(group.read(last).await.expect("on disk"), entry(39));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_at_once_and_nothing_committed_is_lost() {
    let mut cluster = Cluster::started_with(3, 1, PATIENT).await;
    for token in 0..10 {
        assert!(applied(&cluster.propose(token).await));
    }
    let (old, under) = cluster.leader(DATA).await;
    let killed = Instant::now();
    cluster.kill(old);
    let (new, leader) = cluster.leader(DATA).await;
    let took = killed.elapsed();
    assert!(new != old && leader > under);
    assert!(took < PATIENT.ordinary_election(), "forced failover took {took:?}");
    for token in 10..20 {
        assert!(applied(&cluster.propose(token).await));
    }
    cluster.boot(old);
    cluster.run(old).await;
    cluster.until_all_applied(DATA, &flat(0..20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_nodes_finds_every_committed_entry() {
    let mut cluster = Cluster::started(3, 1).await;
    for token in 0..10 {
        assert!(applied(&cluster.propose(token).await));
    }
    let uuid = cluster.nodes[&NodeId(1)].consensus.cluster();
    (1..=3).for_each(|id| cluster.kill(NodeId(id)));
    (1..=3).for_each(|id| cluster.boot(NodeId(id)));
    cluster.run_all().await;
    assert!(applied(&cluster.propose(10).await));
    cluster.until_all_applied(DATA, &flat(0..11)).await;
    assert_eq!(cluster.nodes[&NodeId(3)].consensus.cluster(), uuid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_fails_proposals_and_its_lease_and_serves_again_when_healed() {
    let mut cluster = Cluster::started(3, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (old, leader) = cluster.leader(DATA).await;
    for other in (1..=3).map(NodeId).filter(|n| *n != old) {
        cluster.network.cut(old, other);
        cluster.network.cut(other, old);
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    let group = cluster.nodes[&old].consensus.shard(DATA).expect("member");
    assert!(!group.lease_valid());
    group.propose(99, leader, entry(99));
    let outcome = cluster.nodes.get_mut(&old).and_then(|n| n.outcomes.get_mut(&DATA)).expect("wired").recv().await;
    assert!(matches!(outcome, Some((99, ProposalOutcome::Failed(_)))), "{outcome:?}");
    let (new, _) = cluster.leader(DATA).await;
    assert_ne!(new, old);
    assert!(applied(&cluster.propose(1).await));
    cluster.network.heal();
    cluster.until_all_applied(DATA, &flat(0..2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_command_that_found_no_majority_in_time_is_not_proposed_later() {
    let cluster = Cluster::started(3, 1).await;
    let (old, _) = cluster.leader(ShardId::CATALOG).await;
    for other in (1..=3).map(NodeId).filter(|n| *n != old) {
        cluster.network.cut(old, other);
        cluster.network.cut(other, old);
    }
    let core = cluster.nodes[&old].consensus.core.clone();
    let group = core.group(ShardId::CATALOG).expect("member");
    while group.lease_valid() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(group.leadership().borrow().is_me, "it does not know yet");
    let command = rmp_serde::to_vec_named(&CatalogCommand::DeleteQueue { id: crate::model::QueueId(77) }).expect("encodes");
    let question = Frame { head: Bytes::copy_from_slice(&100_u64.to_le_bytes()), body: vec![command.into()] };
    let answer = tokio::time::timeout(PATIENCE, super::catalog::answer(&core, question)).await.expect("in time").expect("an answer");
    assert!(String::from_utf8_lossy(&answer.head).contains("no majority"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_under_an_old_leader_id_fails() {
    let mut cluster = Cluster::started(1, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let group = cluster.nodes[&NodeId(1)].consensus.shard(DATA).expect("member");
    group.propose(1, LeaderId { term: 0, voter: 1 }, entry(1));
    let outcome = cluster.nodes.get_mut(&NodeId(1)).and_then(|n| n.outcomes.get_mut(&DATA)).expect("wired").recv().await;
    assert!(matches!(outcome, Some((1, ProposalOutcome::Failed(_)))), "{outcome:?}");
    // What follows in the failed epoch fails with it; a new epoch is served.
    assert!(!applied(&cluster.propose(2).await));
    assert!(applied(&cluster.propose(next_epoch(2)).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_machine_fails_stops_on_that_node_alone_and_says_so() {
    let mut cluster = Cluster::started(3, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (old, _) = cluster.leader(DATA).await;
    assert!(cluster.nodes.values().all(|node| node.consensus.fault().is_none()));
    cluster.nodes[&old].tapes.lock()[&DATA].faulty.store(true, Ordering::SeqCst);
    assert!(!applied(&cluster.propose(1).await), "its proposer is told");
    let mut leadership_rx = cluster.nodes[&old].consensus.leadership(DATA);
    let ended = leadership_rx.wait_for(|now| *now == Leadership::default());
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it does not believe to lead any more").expect("told");
    until(|| cluster.nodes[&old].consensus.fault().is_some()).await;
    let why = cluster.nodes[&old].consensus.fault().expect("a group has stopped");
    assert!(why.what.contains("shard 1") && why.what.contains("told so") && !why.may_pass, "{why:?}");
    assert_ne!(cluster.leader(DATA).await.0, old);
    assert!(applied(&cluster.propose(next_epoch(1)).await), "the others serve on");
    assert!(cluster.nodes.iter().all(|(id, node)| *id == old || node.consensus.fault().is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_node_stays_in_memory_when_it_is_dropped() {
    let mut cluster = Cluster::started(3, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let cores: Vec<_> = cluster.nodes.values().map(|node| Arc::downgrade(&node.consensus.core)).collect();
    drop(cluster);
    let deadline = Instant::now() + Duration::from_secs(60);
    while cores.iter().any(|core| core.strong_count() > 0) {
        assert!(Instant::now() < deadline, "held by {:?}", cores.iter().map(|core| core.strong_count()).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn formation_waits_for_every_node_and_survives_a_kill_between_its_steps() {
    let mut cluster = Cluster::new(3, 1);
    cluster.boot(NodeId(1));
    cluster.boot(NodeId(2));
    let formed = cluster.nodes[&NodeId(1)].consensus.formed();
    assert!(tokio::time::timeout(Duration::from_millis(300), formed).await.is_err());
    cluster.kill(NodeId(1));
    // Killed after it had written its identity, before anybody else had.
    let identity = Identity { cluster: 77, node: NodeId(1), generation: placement::FIRST_GENERATION, shards: 1 };
    cluster.journals[&NodeId(1)].save_identity(identity, Box::new(|_| ()));
    cluster.boot(NodeId(3));
    cluster.boot(NodeId(1));
    cluster.run(NodeId(1)).await;
    cluster.run_all().await;
    assert!(applied(&cluster.propose(0).await));
    assert!((1..=3).all(|id| cluster.nodes[&NodeId(id)].consensus.cluster() == Some(77)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_different_numbers_of_shards_form_no_cluster_and_say_why() {
    let mut cluster = Cluster::new(3, 3);
    cluster.boot(NodeId(1));
    cluster.shards = 5;
    cluster.boot(NodeId(2));
    for (id, words) in [(1, ["node 2", "5 shards", "this node with 3"]), (2, ["node 1", "3 shards", "this node with 5"])] {
        let formed = cluster.nodes[&NodeId(id)].consensus.formed();
        let error =
            tokio::time::timeout(Duration::from_secs(60), formed).await.expect("it does not wait").expect_err("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "node {id}: {error}");
        assert_eq!(cluster.journals[&NodeId(id)].identity(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_with_another_number_of_shards_adopts_no_cluster() {
    let mut cluster = Cluster::new(3, 1);
    let identity = Identity { cluster: 77, node: NodeId(1), generation: placement::FIRST_GENERATION, shards: 1 };
    cluster.journals[&NodeId(1)].save_identity(identity, Box::new(|_| ()));
    cluster.boot(NodeId(1));
    cluster.boot(NodeId(2));
    cluster.shards = 4;
    cluster.boot(NodeId(3));
    let formed = cluster.nodes[&NodeId(3)].consensus.formed();
    let error = tokio::time::timeout(Duration::from_secs(60), formed).await.expect("it does not wait").expect_err("refused").to_string();
    assert!(error.contains("this node with 4"), "{error}");
    assert_eq!(cluster.journals[&NodeId(3)].identity(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_command_from_any_node_is_applied_on_all_before_it_is_answered() {
    let mut cluster = Cluster::started(3, 1).await;
    cluster.leader(ShardId::CATALOG).await;
    let command = CatalogCommand::Admin(AdminCommand::AddVhost { vhost: "v".into(), facts: Default::default() });
    let mut waits = Vec::new();
    for round in 0..9 {
        let from = NodeId(round % 3 + 1);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let begun = Instant::now();
        let (index, reply) = cluster.nodes[&from].consensus.catalog().submit(&command, deadline).await.expect("done");
        waits.push(begun.elapsed());
        assert_eq!(reply, CatalogReply::Done);
        for (id, node) in &cluster.nodes {
            let seen = node.consensus.shard(ShardId::CATALOG).expect("member").applied().borrow().map(|id| id.index);
            let routes = node.consensus.routing_lease()();
            assert!(!routes || seen >= Some(index), "node {id} routes by an older catalog: {seen:?} < {index}");
        }
    }
    println!("catalog commands took {waits:?}");
    // A node that is cut off loses its lease before the others go on without it.
    let (leader, _) = cluster.leader(ShardId::CATALOG).await;
    let lonely = (1..=3).map(NodeId).find(|n| *n != leader).expect("three nodes");
    for other in (1..=3).map(NodeId).filter(|n| *n != lonely) {
        cluster.network.cut(lonely, other);
        cluster.network.cut(other, lonely);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    cluster.nodes[&leader].consensus.catalog().submit(&command, deadline).await.expect("two of three");
    assert!(!cluster.nodes[&lonely].consensus.routing_lease()());
    let deadline = tokio::time::Instant::now() + Duration::from_millis(300);
    let refused = cluster.nodes[&lonely].consensus.catalog().submit(&command, deadline).await;
    assert!(matches!(refused, Err(Refusal::Unavailable(_))));
    cluster.network.heal();
    let routes = cluster.nodes[&lonely].consensus.routing_lease();
    tokio::time::timeout(Duration::from_secs(60), async {
        while !routes() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the lease comes back");
    cluster.kill(lonely);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_before_a_stop() {
    let mut cluster = Cluster::started(3, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (old, _) = cluster.leader(DATA).await;
    let handed_over = cluster.nodes[&old].consensus.hand_over_leadership(Duration::from_secs(600));
    tokio::time::timeout(PATIENCE, handed_over).await.expect("it is not waited for its time to end");
    let node = cluster.nodes.remove(&old).expect("alive");
    node.consensus.stop(PATIENCE).await;
    assert_ne!(cluster.leader(DATA).await.0, old);
    assert!(applied(&cluster.propose(1).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_others_waits_for_nobody_before_a_stop() {
    let mut cluster = Cluster::started(1, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (only, _) = cluster.leader(DATA).await;
    let handed_over = cluster.nodes[&only].consensus.hand_over_leadership(Duration::from_secs(600));
    tokio::time::timeout(Duration::from_secs(20), handed_over).await.expect("nothing to wait for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_know_the_leaders_of_shards_that_they_do_not_hold() {
    let cluster = Cluster::started(5, 5).await;
    for shard in (1..=5).map(ShardId) {
        let (_, leader) = cluster.leader(shard).await;
        for node in cluster.nodes.values() {
            let mut leadership_rx = node.consensus.leadership(shard);
            let known = leadership_rx.wait_for(|l| l.leader == Some(leader));
            tokio::time::timeout(Duration::from_secs(60), known).await.expect("in time").expect("runs");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_vote_is_refused_by_a_voter_that_still_sees_the_leader() {
    let mut cluster = Cluster::started(3, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (leader, under) = cluster.leader(DATA).await;
    let voters = cluster.nodes[&leader].consensus.shard(DATA).expect("member").voters();
    let mut others = voters.iter().filter(|v| v.node != leader);
    let (from, to) = (others.next().expect("three"), others.next().expect("three"));
    let transport = cluster.transports.lock()[&from.node].clone();
    let campaign = |forced| {
        let vote = types::Ovote { leader_id: types::Lid { term: under.term + 5, node_id: from.pack() }, committed: false };
        let last = types::Oid { leader_id: types::to_lid(under), index: 1000 };
        let mut request = openraft::raft::VoteRequest::new(vote, Some(last));
        request.leadership_transfer = true;
        let head = wire::write_campaign(wire::Ask::Vote, &wire::Campaign { shard: DATA, request, forced });
        let answer = transport.ask(to.node, crate::peer::transport::head_only(head), Duration::from_secs(1));
        async { wire::read_ballot(&mut answer.await.expect("an answer").head).expect("a ballot") }
    };
    assert!(!campaign(true).await.vote_granted, "its own connection to the leader is up");
    assert_eq!(cluster.leader(DATA).await.1, under);
    assert!(campaign(false).await.vote_granted, "a transfer that the leader ordered passes the lease");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 20 s: the balancer waits until the cluster is calm"]
async fn leadership_goes_back_to_the_preferred_node_when_it_is_back() {
    let mut cluster = Cluster::started(3, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (preferred, _) = cluster.leader(DATA).await;
    cluster.kill(preferred);
    assert!(applied(&cluster.propose(1).await));
    cluster.boot(preferred);
    cluster.run(preferred).await;
    let deadline = Instant::now() + Duration::from_secs(40);
    while cluster.leader(DATA).await.0 != preferred {
        assert!(Instant::now() < deadline, "leadership has not gone back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(applied(&cluster.propose(2).await));
    cluster.until_all_applied(DATA, &flat(0..3)).await;
}

#[tokio::test]
async fn a_commit_point_beyond_the_log_of_this_disk_is_learnt_again_and_missing_entries_are_an_error() {
    use futures::StreamExt;
    use openraft::storage::{RaftLogReader, RaftLogStorage};
    let journal = Arc::new(MemoryJournal::default());
    let id = |term, index| LogId { leader: LeaderId { term, voter: 1 }, index };
    let entries = (1..=4).map(|index| LogEntry { id: id(2, index), payload: Payload::Blank }).collect();
    journal.append(DATA, entries, Box::new(|_| ()));
    let mut log = super::log::GroupLog::new(DATA, journal.clone(), Arc::default());
    for (committed, believed) in [(id(2, 3), true), (id(2, 9), false), (id(3, 2), false), (id(2, 4), true)] {
        journal.save_committed(DATA, committed);
        assert_eq!(log.read_committed().await.expect("reads").is_some(), believed, "{committed:?}");
    }
    let whole: Vec<_> = log.entries_stream(1..5).await.collect().await;
    assert!(whole.len() == 4 && whole.iter().all(Result::is_ok));
    let short: Vec<_> = log.entries_stream(3..7).await.collect().await;
    assert!(matches!(short.as_slice(), [Ok(_), Ok(_), Err(_)]), "a short read must not pass for a whole one");
}

/// The machine's clock, `ahead` ms ahead.
fn clock_ahead(ahead: Arc<AtomicI64>) -> ClusterClock {
    let Sources { system, steady } = Sources::default();
    ClusterClock::new(Sources { system: Arc::new(move || system().saturating_add_signed(ahead.load(Ordering::Relaxed))), steady })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_learns_the_time_of_the_majority_and_one_whose_clock_is_off_is_not_sure_of_its_own() {
    const HOUR: i64 = 3_600_000;
    let (mut cluster, odd) = (Cluster::new(3, 3), NodeId(1));
    let ahead: Vec<Arc<AtomicI64>> = [HOUR, 0, 0].map(|ms| Arc::new(AtomicI64::new(ms))).into();
    cluster.clocks = (1..).map(NodeId).zip(ahead.iter().map(|a| clock_ahead(a.clone()))).collect();
    (1..=3).for_each(|id| cluster.boot(NodeId(id)));
    cluster.run_all().await;
    // The first life of the catalog's preferred leader, then another one that knows nothing and is not the leader.
    for life in 0..2 {
        let clocks = cluster.clocks.clone();
        let own = |id: &NodeId| (Sources::default().system)().abs_diff(clocks[id].read().clock_ms.unwrap_or(0)) < 500;
        let knows = |clock: &ClusterClock| clock.offset_ms().is_some();
        until(|| clocks.iter().all(|(id, clock)| own(id) && knows(clock) && clock.read().is_sure == (*id != odd))).await;
        assert!(clocks.iter().all(|(id, clock)| clock.is_off() == (*id == odd)), "life {life}");
        assert!(clocks[&odd].offset_ms().expect("known").abs_diff(HOUR) < 500);
        if life == 0 {
            cluster.kill(odd);
            cluster.clocks.insert(odd, clock_ahead(ahead[0].clone()));
            cluster.boot(odd);
            cluster.run(odd).await;
        }
    }
    let clock = cluster.clocks[&odd].clone();
    ahead[0].store(0, Ordering::Relaxed);
    until(|| clock.read().is_sure && !clock.is_off()).await;
    // The majority is set: the others' time is the time.
    ahead[1..].iter().for_each(|a| a.store(-HOUR, Ordering::Relaxed));
    until(|| clock.is_off() && clock.offset_ms().is_some_and(|ms| ms.abs_diff(HOUR) < 500)).await;
}

pub(super) async fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
