//! A replica behind the others' purged logs, one that dies at every write of an installation, one whose state store is gone: three nodes
//! of the production stack in one process, traffic going on.

use super::stack_tests::*;
use super::*;
use crate::model::{LeaderId, LogId, NodeId, SessionId, version};
use crate::peer::client::own_port;
use crate::peer::memory::MemoryNetwork;
use crate::store::disk::sim::Crash;
use crate::store::disk::{Disk, RealDisk, SimDisk};
use crate::store::state::StateStore;
use crate::store::wal::WalConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the nodes' things are, and how each is started.
pub(super) struct World {
    pub(super) dirs: Vec<tempfile::TempDir>,
    /// `None`: real disks.
    pub(super) disks: Option<Vec<SimDisk>>,
    network: MemoryNetwork,
    /// Over loopback instead of memory.
    peers: Option<Vec<(NodeId, String)>>,
    timing: Timing,
    /// Of a file of the log.
    file_bytes: u64,
    /// Versions of the log that the nodes' programs apply.
    pub(super) supports: u8,
}

/// What a node has: the disk of its log, and where its state is.
pub(super) type Data = (SimDisk, tempfile::TempDir);

fn files_of(size: u64) -> WalConfig {
    WalConfig { file_bytes: size, budget_bytes: 4 * size, catch_up_bytes: size, tail_cache_bytes: 16 << 10, ..WalConfig::default() }
}

impl World {
    pub(super) fn simulated() -> World {
        World::of(3)
    }

    /// With so many machines, of which the first three form the cluster.
    pub(super) fn of(machines: u64) -> World {
        let dirs = (0..machines).map(|_| tempfile::tempdir().expect("a directory")).collect();
        World {
            dirs,
            disks: Some((1..=machines).map(SimDisk::new).collect()),
            network: MemoryNetwork::default(),
            peers: None,
            timing: Timing::default(),
            file_bytes: 64 << 10,
            supports: version::SUPPORTED,
        }
    }

    /// All of the log is needed, however long a test takes.
    pub(super) fn without_checkpoints() -> World {
        World { timing: Timing { checkpoint_ms: 3_600_000, ..Timing::default() }, ..World::simulated() }
    }

    /// Each log in one file, however it came to be written.
    pub(super) fn with_large_files() -> World {
        World { file_bytes: 512 << 10, ..World::without_checkpoints() }
    }

    fn real() -> World {
        let ports: Vec<_> = (0..3).map(|_| own_port()).collect();
        let addresses: Vec<_> = ports.iter().map(|port| port.local_addr().expect("bound")).collect();
        let peers = addresses.iter().zip(1..).map(|(address, id)| (NodeId(id), address.to_string())).collect();
        World { disks: None, peers: Some(peers), ..World::simulated() }
    }

    pub(super) fn start(&self, id: u16) -> impl Future<Output = Option<Node>> + 'static {
        let partly = self.start_partly(id);
        async move { in_data(partly.await?).await }
    }

    /// Resolves although the node may not take part in the data shard yet.
    pub(super) fn start_partly(&self, id: u16) -> impl Future<Output = Option<Node>> + 'static {
        self.start_member(id, Members::founded((1..=3).map(NodeId), 1), false)
    }

    /// The same of a node that knows these members, and perhaps joins them.
    pub(super) fn start_member(&self, id: u16, members: Members, joins: bool) -> impl Future<Output = Option<Node>> + 'static {
        let at = usize::from(id) - 1;
        let dir = self.dirs[at].path().to_path_buf();
        let disk: Arc<dyn Disk> = match &self.disks {
            Some(disks) => Arc::new(disks[at].clone()),
            None => Arc::new(RealDisk::new(dir.join("wal")).expect("a disk")),
        };
        let (network, peers, timing, wal) = (self.network.clone(), self.peers.clone(), self.timing, files_of(self.file_bytes));
        let supports = self.supports;
        async move {
            let wire: start::Wire = match peers {
                Some(peers) => loopback(id, in_time(|| std::net::TcpListener::bind(&peers[at].1)).await, peers),
                None => Box::new(move |handler| Ok(network.join(NodeId(id), handler))),
            };
            let (store, _) = in_time(|| StateStore::open(&dir.join("state"))).await;
            boot_member(id, (members, joins, supports), disk, Some(store), wire, wal, timing).await
        }
    }

    pub(super) async fn start_all(&self) -> Vec<Node> {
        let nodes = futures::future::join_all((1..=3).map(|id| self.start(id))).await;
        nodes.into_iter().map(|node| node.expect("boots")).collect()
    }

    /// An empty data directory for a node that is down; the one that it had.
    pub(super) fn wipe(&mut self, id: u16) -> Data {
        self.replace(id, (SimDisk::new(100 + u64::from(id)), tempfile::tempdir().expect("a directory")))
    }

    /// Another data directory for a node that is down; the one that it had.
    pub(super) fn replace(&mut self, id: u16, (disk, dir): Data) -> Data {
        let at = usize::from(id) - 1;
        let disks = self.disks.as_mut().expect("simulated");
        (std::mem::replace(&mut disks[at], disk), std::mem::replace(&mut self.dirs[at], dir))
    }

    /// Everything from the batch with this text on is unreadable.
    pub(super) fn cut_log(&self, id: u16, text: &[u8]) {
        let sim = &self.disks.as_ref().expect("simulated")[usize::from(id) - 1];
        let mut cut = false;
        for name in sim.list().expect("listed").iter().filter(|name| name.ends_with(".wal")) {
            let bytes = sim.contents(name).expect("a file");
            let from = if cut { Some(0) } else { bytes.windows(text.len()).position(|here| here == text) };
            cut |= from.is_some();
            for byte in from.into_iter().flat_map(|from| (from..bytes.len()).filter(|at| bytes[*at] != 0)) {
                sim.flip_bit(name, byte as u64 * 8 + 3);
            }
        }
        assert!(cut, "the message is not on the disk of node {id}");
    }

    /// How logs are opened.
    pub(super) fn log(&self) -> WalConfig {
        files_of(self.file_bytes)
    }

    /// The state store of a node that is down is gone.
    async fn lose_state(&self, id: u16) {
        let state = self.dirs[usize::from(id) - 1].path().join("state");
        drop(in_time(|| StateStore::open(&state)).await);
        in_time(|| std::fs::remove_dir_all(&state)).await;
    }

    pub(super) fn crash(&mut self, id: u16, crash: Crash) {
        if let Some(disks) = &mut self.disks {
            disks[usize::from(id) - 1] = disks[usize::from(id) - 1].crash(crash);
        }
    }
}

/// The tasks of a dropped node let go of its store and its port a moment later.
async fn in_time<T, E: std::fmt::Display>(open: impl Fn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match open() {
            Ok(opened) => return opened,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn take_follower(nodes: &mut Vec<Node>, leader: usize) -> Node {
    nodes.remove((leader + 1) % 3)
}

pub(super) fn last(node: &Node) -> u64 {
    node.wal.state(DATA).last.map_or(0, |id| id.index)
}

fn purged(node: &Node) -> u64 {
    node.wal.state(DATA).purged.map_or(0, |id| id.index)
}

/// Publishes until all of `nodes` have forgotten what is up to `index`; the next batch.
async fn publish_past(nodes: &mut [Node], session: SessionId, mut sent: u64, index: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    while nodes.iter().any(|node| purged(node) <= index) {
        assert!(Instant::now() < deadline, "nothing is purged: {:?}", nodes.iter().map(purged).collect::<Vec<_>>());
        publish(nodes, session, sent, sent + 50).await;
        sent += 50;
    }
    sent
}

/// Every entry with live messages can be read and is what the others have.
pub(super) fn all_bodies_are_there(node: &Node, other: &Node) {
    let live = node.replicas.data(DATA).expect("restored").lock().live_entries();
    assert!(live.len() > 100, "{}", live.len());
    for index in live {
        let body = |of: &Node| of.wal.read_body(DATA, index).unwrap_or_else(|e| panic!("entry {index} of node {}: {e}", of.id));
        // Of either something may have been left behind already.
        let bytes = |of: &Node| messages(node, index, &body(of));
        assert_eq!(bytes(node), bytes(other), "entry {index}");
    }
}

fn messages(node: &Node, index: u64, entry: &crate::model::entry::EntryBytes) -> Vec<(crate::model::Seq, bytes::Bytes)> {
    let (mut runs, mut found) = (Vec::new(), Vec::new());
    let machine = node.replicas.data(DATA).expect("restored");
    machine.lock().queue(QUEUE).expect("there").locate(0, crate::model::Seq(1), usize::MAX, &mut runs);
    for run in runs.iter().filter(|run| run.index == index) {
        let before = found.len();
        crate::machine::read_run(entry, QUEUE, run, &mut found);
        assert_eq!(found.len() - before, run.count as usize, "entry {index}");
    }
    found
}

async fn a_follower_comes_back_behind_the_purged_log(mut world: World) {
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 30).await;
    agree(&nodes, 29 * 5).await;
    let (leader_at, _) = leader(&nodes).await;
    let away = take_follower(&mut nodes, leader_at);
    let (id, behind) = (away.id.0, last(&away));
    drop(away);
    world.crash(id, Crash::Process);
    let sent = publish_past(&mut nodes, session, 30, behind).await;
    // Traffic goes on while it comes back.
    let ((), back) = tokio::join!(publish(&mut nodes, session, sent, sent + 100), world.start(id));
    nodes.push(back.expect("boots"));
    agree(&nodes, (sent + 99) * 5).await;
    all_bodies_are_there(&nodes[2], &nodes[0]);
    // Nothing of it is only in memory.
    drop(nodes.pop());
    world.crash(id, Crash::Power);
    let back = world.start(id).await.expect("boots");
    all_bodies_are_there(&back, &nodes[0]);
    nodes.push(back);
    publish(&mut nodes, session, sent + 100, sent + 110).await;
    agree(&nodes, (sent + 109) * 5).await;
    // It can lead with what it got: the others' bodies are not needed.
    drop(nodes.remove(leader(&nodes).await.0));
    publish(&mut nodes, session, sent + 110, sent + 120).await;
    agree(&nodes, (sent + 119) * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_the_purged_log_catches_up_with_bodies_and_keeps_them_through_a_power_loss() {
    a_follower_comes_back_behind_the_purged_log(World::simulated()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_loopback_and_on_a_real_disk_a_follower_behind_the_purged_log_catches_up() {
    a_follower_comes_back_behind_the_purged_log(World::real()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_of_an_installation_leaves_the_old_state_or_the_new_one() {
    let mut world = World::simulated();
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 30).await;
    agree(&nodes, 29 * 5).await;
    let (leader_at, _) = leader(&nodes).await;
    let away = take_follower(&mut nodes, leader_at);
    let (id, behind) = (away.id.0, last(&away));
    drop(away);
    world.crash(id, Crash::Process);
    let sent = publish_past(&mut nodes, session, 30, behind).await;
    let deadline = Instant::now() + Duration::from_secs(240);
    let mut crashes = 0;
    for writes in 0.. {
        assert!(Instant::now() < deadline, "{writes} writes are not enough");
        world.disks.as_ref().expect("simulated")[usize::from(id) - 1].stop_after_writes(writes);
        let node = world.start(id).await;
        let caught_up = match &node {
            Some(node) => until_dead_or_at(node, applied(&nodes[0])).await,
            None => false,
        };
        let installed = node.as_ref().is_some_and(|n| purged(n) > behind);
        drop(node);
        world.crash(id, if writes % 2 == 0 { Crash::Power } else { Crash::Process });
        if caught_up {
            break;
        }
        crashes += usize::from(!installed);
    }
    assert!(crashes > 3, "only {crashes} crashes hit the transfer");
    nodes.push(world.start(id).await.expect("boots"));
    all_bodies_are_there(&nodes[2], &nodes[0]);
    publish(&mut nodes, session, sent, sent + 5).await;
    agree(&nodes, (sent + 4) * 5).await;
}

fn applied(node: &Node) -> LogId {
    node.replicas.data(DATA).expect("restored").lock().applied()
}

/// True: it caught up; false: its disk died.
async fn until_dead_or_at(node: &Node, target: LogId) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if is_stopped(&node.wal) {
            return false;
        }
        if applied(node).index >= target.index {
            return true;
        }
        assert!(Instant::now() < deadline, "neither dead nor caught up: {:?}", node.wal.state(DATA));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_state_store_and_with_a_purged_log_gets_its_state_from_another() {
    let world = World::real();
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    let sent = publish_past(&mut nodes, session, 1, 10).await;
    agree(&nodes, (sent - 1) * 5).await;
    let (leader_at, _) = leader(&nodes).await;
    let lost = nodes.remove(leader_at);
    let (id, before) = (lost.id.0, lost.wal.state(DATA));
    drop(lost);
    world.lose_state(id).await;
    let ((), back) = tokio::join!(publish(&mut nodes, session, sent, sent + 20), world.start(id));
    let back = back.expect("boots");
    let after = back.wal.state(DATA);
    assert!(after.vote.map(|v| v.leader) >= before.vote.map(|v| v.leader), "a vote is never forgotten");
    assert!(after.last.map(|l| l.index) >= before.last.map(|l| l.index), "nothing that it acknowledged is forgotten");
    nodes.push(back);
    agree(&nodes, (sent + 19) * 5).await;
    all_bodies_are_there(&nodes[2], &nodes[0]);
}

/// A state of the log, once all of it is on the disk: a vote that is not was told to nobody.
pub(super) async fn durable(node: &Node) -> journal::ShardLog {
    let state = node.wal.state(DATA);
    let (done, saved) = log::completion();
    node.wal.save_identity(node.wal.identity().expect("formed"), done);
    saved.await.expect("behind everything in that state");
    state
}

/// Fault test 4 of the rules: the files that held the votes are used again, state stores are deleted, nodes restart inside elections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_outlive_their_files_and_lost_state_stores_and_nobody_makes_up_a_state_that_all_have_lost() {
    let mut world = World::simulated();
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    let mut sent = 1;
    for round in 0..3 {
        let forgotten = nodes.iter().map(last).max().unwrap_or(0);
        sent = publish_past(&mut nodes, session, sent, forgotten).await;
        let mut down = Vec::new();
        for crash in [Crash::Power, Crash::Process] {
            // The second one goes in the middle of the election that the end of the first began.
            let (at, _) = if down.is_empty() { leader(&nodes).await } else { (round % 2, LeaderId::default()) };
            let node = nodes.remove(at);
            down.push((node.id.0, durable(&node).await));
            drop(node);
            let (id, _) = down[down.len() - 1];
            world.crash(id, crash);
            world.lose_state(id).await;
        }
        let back = futures::future::join_all(down.iter().map(|(id, _)| world.start(*id))).await;
        for (node, (id, before)) in back.into_iter().zip(down) {
            let node = node.expect("boots");
            let after = node.wal.state(DATA);
            assert!(
                after.vote.map(|v| v.leader) >= before.vote.map(|v| v.leader),
                "node {id} forgot its vote {:?}: {after:?}",
                before.vote
            );
            nodes.push(node);
        }
        agree(&nodes, (sent - 1) * 5).await;
    }
    nodes.clear();
    for id in 1..=3 {
        world.crash(id, Crash::Process);
        world.lose_state(id).await;
    }
    let started = tokio::time::timeout(Duration::from_secs(2), futures::future::select_all((1..=3).map(|id| Box::pin(world.start(id)))));
    assert!(started.await.is_err(), "the logs do not reach back: whoever serves has made up its state");
}

/// Breaks every copy of `text` in the files of a node's log.
fn rot(world: &World, id: u16, text: &[u8]) {
    let mut hits = 0;
    for file in std::fs::read_dir(world.dirs[usize::from(id) - 1].path().join("wal")).expect("a log") {
        let path = file.expect("a file").path();
        let mut bytes = std::fs::read(&path).expect("readable");
        let found: Vec<usize> = bytes.windows(text.len()).enumerate().filter(|(_, at)| *at == text).map(|(at, _)| at).collect();
        hits += found.len();
        found.iter().for_each(|at| bytes[*at] ^= 0x20);
        let file = std::fs::File::options().write(true).open(&path).expect("writable");
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("written");
    }
    assert!(hits > 0, "the message is not on the disk of node {id}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_rotted_on_the_leaders_disk_comes_from_another_replica() {
    use crate::model::ports::Bodies;
    let world = World::real();
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 200).await;
    agree(&nodes, 199 * 5).await;
    let (leader_at, _) = leader(&nodes).await;
    let (shard, bodies) = (nodes[leader_at].consensus.shard(DATA).expect("member"), nodes[leader_at].consensus.bodies());
    let index = nodes[leader_at].replicas.data(DATA).expect("restored").lock().live_entries()[5];
    let good = nodes[leader_at].wal.read_body(DATA, index).expect("good").flatten();
    let text = b"message 6.7";
    assert!(good.windows(text.len()).any(|at| at == text) && nodes[leader_at].wal.cached(DATA, index).is_none(), "or nothing is proved");
    rot(&world, nodes[leader_at].id.0, text);
    assert!(nodes[leader_at].wal.read_body(DATA, index).is_err());
    assert_eq!(shard.read(index).await.expect("from another node").flatten(), good);
    assert_eq!((bodies.fetched(), bodies.missing(), nodes[leader_at].wal.stats().bad_reads), (1, 0, 2));
    // One good copy is enough.
    let others: Vec<u16> = nodes.iter().map(|node| node.id.0).filter(|id| *id != nodes[leader_at].id.0).collect();
    rot(&world, others[0], text);
    assert_eq!(shard.read(index).await.expect("from the last good copy").flatten(), good);
    rot(&world, others[1], text);
    let error = shard.read(index).await.expect_err("no good copy is left");
    assert!(others.iter().all(|id| error.to_string().contains(&format!("node {id}"))), "{error}");
    assert_eq!((bodies.fetched(), bodies.missing()), (2, 1));
    assert_eq!(shard.read(9_999_999).await.expect_err("never written").kind(), std::io::ErrorKind::NotFound);
    assert_eq!(bodies.missing(), 1, "what is not in the log is not asked for");
}
