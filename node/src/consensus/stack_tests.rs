//! The production stack of three nodes in one process: the real log (on a disk that lies, and on a real one), the real machines and
//! checkpoints, over memory and over loopback.

use super::tests::{PATIENT, next_incarnation};
use super::*;
use crate::machine::Effect;
use crate::model::admin::AdminCommand;
use crate::model::catalog::{CatalogCommand, CatalogReply};
use crate::model::entry::{EntryBuilder, EntryBytes, Ops, SectionReply};
use crate::model::link::Batch;
use crate::model::ports::{ProposalOutcome, Proposer};
use crate::model::{BatchSeq, Incarnation, LogId, NodeId, QueueId, SessionId, ShardId, version};
use crate::peer::Transport;
use crate::peer::auth::Secret;
use crate::peer::client::{PeerConfig, TonicNetwork, own_port};
use crate::peer::memory::MemoryNetwork;
use crate::store::disk::sim::Crash;
use crate::store::disk::{Disk, RealDisk, SimDisk};
use crate::store::state::StateStore;
use crate::store::wal::{Wal, WalConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub(super) const DATA: ShardId = ShardId(1);
pub(super) const QUEUE: QueueId = QueueId(1);

struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _: ShardId, _: LogId, _: Vec<Effect>) {}
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) consensus: Consensus,
    pub(super) replicas: Replicas,
    pub(super) wal: Wal,
    pub(super) outcomes: mpsc::UnboundedReceiver<(u64, ProposalOutcome)>,
}

async fn boot(id: u16, n: u16, disk: Arc<dyn Disk>, store: Option<StateStore>, wire: start::Wire) -> Node {
    boot_with(id, n, disk, store, wire, large_files(), Timing::default()).await.expect("boots")
}

fn large_files() -> WalConfig {
    WalConfig { file_bytes: 4 << 20, ..WalConfig::default() }
}

/// `None`: the log died before the node could take part. It takes part in the data shard, too.
pub(super) async fn boot_with(
    id: u16,
    n: u16,
    disk: Arc<dyn Disk>,
    store: Option<StateStore>,
    wire: start::Wire,
    config: WalConfig,
    timing: Timing,
) -> Option<Node> {
    let node = boot_partly(id, n, disk, store, wire, config, timing).await?;
    in_data(node).await
}

/// Waits until it takes part in the data shard.
pub(super) async fn in_data(node: Node) -> Option<Node> {
    let whole = node.consensus.whole(DATA);
    tokio::select! {
        _ = whole => Some(node),
        () = dies(node.wal.clone()) => None,
    }
}

/// Its disk does not write any more: the log knows, or it waits for a file that cannot be prepared.
pub(super) fn is_stopped(wal: &Wal) -> bool {
    let stats = wal.stats();
    stats.dead || stats.low_space
}

async fn dies(wal: Wal) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_stopped(&wal) {
        assert!(Instant::now() < deadline, "does not take part in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Possibly without the data shard.
pub(super) async fn boot_partly(
    id: u16,
    n: u16,
    disk: Arc<dyn Disk>,
    store: Option<StateStore>,
    wire: start::Wire,
    config: WalConfig,
    timing: Timing,
) -> Option<Node> {
    let members = Members::founded((1..=n).map(NodeId), 1);
    boot_member(id, (members, false, version::SUPPORTED), disk, store, wire, config, timing).await
}

/// The same of a node that knows these members, and perhaps joins them.
pub(super) async fn boot_member(
    id: u16,
    (members, joins, supports): (Members, bool, u8),
    disk: Arc<dyn Disk>,
    store: Option<StateStore>,
    wire: start::Wire,
    config: WalConfig,
    timing: Timing,
) -> Option<Node> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    // A simulated crash is no reason to abort the test.
    let wal = Wal::open(disk, WalConfig { fatal: Some(Arc::new(|_| ())), ..config });
    let (id, wal) = (NodeId(id), wal.ok()?);
    let store = store.map(Arc::new);
    let replicas = Replicas::supporting(supports, store.clone(), Arc::new(Nobody));
    replicas.tell(&members);
    let journal: Arc<dyn journal::Journal> = Arc::new(wal.clone());
    let consensus = Consensus::start(ConsensusConfig {
        node: id,
        incarnation: next_incarnation(),
        members,
        joins,
        shards: 1,
        timing,
        clock: ClusterClock::new(Sources::default()),
        journal: journal.clone(),
        machines: replicas.machines(journal),
        supports,
        store,
        acceptor: Arc::new(|_, _| ()),
        wire,
    });
    let (tx, outcomes) = mpsc::unbounded_channel();
    let consensus = consensus.expect("starts");
    tokio::spawn(async move {
        tokio::select! {
            formed = consensus.formed() => formed.ok()?,
            () = dies(wal.clone()) => return None,
        }
        let sink = move |shard: &Shard| {
            let tx = tx.clone();
            shard.on_outcome(Arc::new(move |token, outcome| drop(tx.send((token, outcome)))));
        };
        let mut last = consensus.shard(DATA).filter(|_| !consensus.is_late(DATA));
        last.iter().for_each(&sink);
        // It may come late, leave, and come back.
        let core = Arc::downgrade(&consensus.core);
        tokio::spawn(async move {
            while let Some(core) = core.upgrade() {
                let new = core.group(DATA).filter(|shard| last.as_ref().is_none_or(|last| !last.is(shard)));
                drop(core);
                if let Some(shard) = new {
                    sink(&shard);
                    shard.run();
                    last = Some(shard);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        consensus.run();
        Some(Node { id, consensus, replicas, wal, outcomes })
    })
    .await
    .expect("boots")
}

pub(super) async fn boot_all(boots: impl IntoIterator<Item = impl Future<Output = Node>>) -> Vec<Node> {
    futures::future::join_all(boots).await
}

pub(super) async fn leader(nodes: &[Node]) -> (usize, crate::model::LeaderId) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for (at, node) in nodes.iter().enumerate() {
            let Some(shard) = node.consensus.shard(DATA) else { continue };
            let leadership = *shard.leadership().borrow();
            if let (true, Some(leader), true) = (leadership.is_me, leadership.leader, shard.lease_valid()) {
                return (at, leader);
            }
        }
        assert!(Instant::now() < deadline, "no leader");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(super) async fn propose(nodes: &mut [Node], entry: EntryBytes) -> (LogId, SectionReply) {
    let mut token = 7;
    loop {
        let (at, under) = leader(nodes).await;
        nodes[at].consensus.shard(DATA).expect("member").propose(token, under, entry.clone());
        let outcome = tokio::time::timeout(Duration::from_secs(60), nodes[at].outcomes.recv()).await.expect("in time");
        match outcome.expect("an outcome").1 {
            ProposalOutcome::Applied(id, mut replies) => return (id, replies.pop().expect("one section")),
            // Batches are numbered: proposing again is safe.
            ProposalOutcome::Failed(_) => {
                // A node that led before and leads again fails whatever was proposed before it heard of the failure.
                token = crate::model::ports::next_epoch(token);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

pub(super) async fn open_session(nodes: &mut [Node]) -> SessionId {
    let mut advance = EntryBuilder::new(1);
    advance.advance(0, 1, &[QUEUE], &[]);
    assert_eq!(propose(nodes, advance.finish()).await.1, SectionReply::Advanced { accepted: true });
    let mut hello = EntryBuilder::new(2);
    hello.hello(NodeId(9), Incarnation(1));
    let SectionReply::Hello { session, .. } = propose(nodes, hello.finish()).await.1 else { panic!("no session") };
    session
}

/// Publishes batches `from..to` of ten messages each and settles the first five of each.
pub(super) async fn publish(nodes: &mut [Node], session: SessionId, from: u64, to: u64) {
    for seq in from..to {
        let mut ops = Ops::default();
        (0..10).for_each(|n| {
            ops.enqueue(&[QUEUE], b"", b"q", &[0, 0], format!("message {seq}.{n}").as_bytes());
        });
        let first = crate::model::Seq((seq - 1) * 10 + 1);
        ops.settle(QUEUE, crate::model::entry::SettleReason::Ack, &[(first, crate::model::Seq(first.0 + 4))]);
        let version = nodes.iter().map(|node| node.replicas.catalog().read().version()).min();
        let mut entry = EntryBuilder::of_version(version.unwrap_or(version::FIRST), seq);
        let batch = Batch { session, seq: BatchSeq(seq), floor: BatchSeq(seq - 1), catalog_index: 1, ops: ops.take() };
        entry.batch(&batch);
        let reply = propose(nodes, entry.finish()).await.1;
        assert_eq!(reply, SectionReply::Batch { session, seq: BatchSeq(seq), refused: Vec::new() });
    }
}

/// Waits until all nodes have the same state with `live` messages.
pub(super) async fn agree(nodes: &[Node], live: u64) {
    let state = |node: &Node| {
        let machine = node.replicas.data(DATA).expect("restored");
        let machine = machine.lock();
        (machine.applied(), machine.state_hash(), machine.queue(QUEUE).map_or(0, |q| q.live_count()))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let states: Vec<_> = nodes.iter().map(state).collect();
        if states.iter().all(|s| *s == states[0] && s.2 == live) {
            return;
        }
        assert!(Instant::now() < deadline, "{states:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_of_all_nodes_loses_no_confirmed_message() {
    let network = MemoryNetwork::default();
    let mut disks: Vec<SimDisk> = (1..=3).map(SimDisk::new).collect();
    let boots = |disks: &[SimDisk]| {
        let disks: Vec<SimDisk> = disks.to_vec();
        let network = network.clone();
        disks.into_iter().zip(1u16..).map(move |(disk, id)| {
            let network = network.clone();
            boot(id, 3, Arc::new(disk), None, Box::new(move |handler| Ok(network.join(NodeId(id), handler))))
        })
    };
    let mut nodes = boot_all(boots(&disks)).await;
    let session = open_session(&mut nodes).await;
    let mut sent = 1;
    for round in 1..=3 {
        publish(&mut nodes, session, sent, sent + 20).await;
        sent += 20;
        disks = disks.iter().map(|disk| disk.crash(if round % 2 == 0 { Crash::Process } else { Crash::Power })).collect();
        drop(nodes);
        nodes = boot_all(boots(&disks)).await;
        agree(&nodes, (sent - 1) * 5).await;
    }
}

pub(super) fn loopback(id: u16, listener: std::net::TcpListener, peers: Vec<(NodeId, String)>) -> start::Wire {
    let edge_runtime = tokio::runtime::Handle::current();
    Box::new(move |handler| -> std::io::Result<Arc<dyn Transport>> {
        let routes = tonic::service::Routes::default();
        let secret = Secret::new(b"test");
        TonicNetwork::start(PeerConfig { node: NodeId(id), listener, peers, secret, tls: None, edge_runtime, routes }, handler)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_loopback_a_killed_leader_is_replaced_and_restarts_from_its_checkpoint_with_a_purged_log() {
    let dirs: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let listeners: Vec<_> = (0..3).map(|_| own_port()).collect();
    let peers: Vec<(NodeId, String)> =
        listeners.iter().zip(1..).map(|(l, id)| (NodeId(id), l.local_addr().expect("bound").to_string())).collect();
    let start = |id: u16, listener: std::net::TcpListener| {
        let dir = dirs[usize::from(id) - 1].path().to_path_buf();
        let wire = loopback(id, listener, peers.clone());
        async move {
            std::fs::create_dir_all(dir.join("wal")).expect("a directory");
            let store = StateStore::open(&dir.join("state")).expect("opens").0;
            let disk = Arc::new(RealDisk::new(dir.join("wal")).expect("a disk"));
            boot_with(id, 3, disk, Some(store), wire, large_files(), PATIENT).await.expect("boots")
        }
    };
    let mut nodes = boot_all(listeners.into_iter().zip(1u16..).map(|(l, id)| start(id, l))).await;
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 400).await;
    agree(&nodes, 399 * 5).await;
    let deadline = Instant::now() + Duration::from_secs(12);
    while nodes.iter().any(|n| n.wal.state(DATA).purged.is_none()) {
        assert!(Instant::now() < deadline, "nothing purged: {:?}", nodes.iter().map(|n| n.wal.state(DATA).purged).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Purging is written with the next batch.
    publish(&mut nodes, session, 400, 410).await;
    agree(&nodes, 409 * 5).await;
    let (at, _) = leader(&nodes).await;
    let old = nodes.remove(at);
    let (id, killed, core) = (old.id, Instant::now(), Arc::downgrade(&old.consensus.core));
    drop(old);
    tracing::info!(node = %id, "killed");
    leader(&nodes).await;
    println!("failover over loopback: {:?}", killed.elapsed());
    assert!(killed.elapsed() < PATIENT.ordinary_election(), "{:?}", killed.elapsed());
    publish(&mut nodes, session, 410, 450).await;
    assert!(core.upgrade().is_none(), "what was dropped is still there");
    let back = start(id.0, std::net::TcpListener::bind(&peers[usize::from(id.0) - 1].1).expect("its own port")).await;
    assert!(back.wal.state(DATA).purged.is_some());
    nodes.push(back);
    agree(&nodes, 449 * 5).await;
    // Live messages of purged entries are still readable.
    let machine = nodes[0].replicas.data(DATA).expect("restored");
    let oldest = machine.lock().live_entries()[0];
    assert!(nodes[0].wal.state(DATA).purged.is_some_and(|p| p.index >= oldest));
    assert!(!nodes[0].wal.read_body(DATA, oldest).expect("pinned").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalog_answers_with_what_its_machine_says() {
    let network = MemoryNetwork::default();
    let wire: start::Wire = Box::new(move |handler| Ok(network.join(NodeId(1), handler)));
    let node = boot(1, 1, Arc::new(SimDisk::new(5)), None, wire).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let bootstrap = CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash: "x".into(), shards: 1 };
    assert_eq!(node.consensus.catalog().submit(&bootstrap, deadline).await.expect("done").1, CatalogReply::Done);
    let vhost = CatalogCommand::Admin(AdminCommand::AddVhost { vhost: "v".into(), facts: Default::default() });
    let (index, reply) = node.consensus.catalog().submit(&vhost, deadline).await.expect("done");
    assert_eq!(reply, CatalogReply::Done);
    let catalog = node.replicas.catalog();
    assert!(catalog.read().has_vhost("v") && catalog.read().index() >= index);
}

fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("linux");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    (11..13).map(|at| fields[at].parse::<u64>().expect("ticks") * 10).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures: idle CPU of three nodes with two groups, latency of sequential entries over loopback"]
async fn figures_of_an_idle_and_a_sequential_cluster() {
    let dirs: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let listeners: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let peers: Vec<(NodeId, String)> =
        listeners.iter().zip(1..).map(|(l, id)| (NodeId(id), l.local_addr().expect("bound").to_string())).collect();
    let boots = listeners.into_iter().zip(1u16..).zip(&dirs).map(|((listener, id), dir)| {
        let disk = Arc::new(RealDisk::new(dir.path()).expect("a disk"));
        boot(id, 3, disk, None, loopback(id, listener, peers.clone()))
    });
    let mut nodes = boot_all(boots).await;
    let session = open_session(&mut nodes).await;
    let begun = Instant::now();
    publish(&mut nodes, session, 1, 201).await;
    println!("sequential entries: {:?} each", begun.elapsed() / 200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, seconds) = (cpu_ms(), 5);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    println!("idle: {} % of a core (unoptimized build)", (cpu_ms() - before) as f64 / (seconds as f64 * 10.0));
}
