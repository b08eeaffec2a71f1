//! Nodes that are stopped at every write of theirs while a cluster forms, and started again: one cluster comes of it, and no disk loses
//! what it was told to be.

use super::stack_tests::*;
use super::*;
use crate::consensus::journal::Identity;
use crate::model::ports::Proposer;
use crate::model::{NodeId, ShardId};
use crate::peer::memory::MemoryNetwork;
use crate::store::disk::SimDisk;
use crate::store::disk::sim::Crash;
use crate::store::wal::{Wal, WalConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Formation needs fewer writes of a node than this, beside those that prepare the log's files.
const MOST_WRITES: u64 = 60;
const N: usize = 3;

/// Small: each disk is in memory, and is looked at after each crash.
fn small_files() -> WalConfig {
    WalConfig { file_bytes: 1 << 20, ..WalConfig::default() }
}

struct Machine {
    id: u16,
    disk: SimDisk,
    crash: Crash,
    /// What its disk said after it was stopped.
    kept: Option<Identity>,
    stopped: bool,
}

impl Machine {
    /// Starts it until it takes part.
    async fn boot(&mut self, network: &MemoryNetwork) -> Node {
        loop {
            let (id, network) = (NodeId(self.id), network.clone());
            let wire: Wire = Box::new(move |handler| Ok(network.join(id, handler)));
            let disk = Arc::new(self.disk.clone());
            if let Some(node) = boot_with(self.id, N as u16, disk, None, wire, small_files(), Timing::default()).await {
                return node;
            }
            self.crash();
        }
    }

    fn crash(&mut self) {
        assert!(self.disk.is_stopped(), "node {} died of something else", self.id);
        self.disk = self.disk.crash(self.crash);
        let wal = Wal::open(Arc::new(self.disk.clone()), WalConfig { fatal: Some(Arc::new(|_| ())), ..small_files() }).expect("opens");
        self.kept = wal.identity();
        // Its thread may still write.
        drop(wal);
        self.disk = self.disk.crash(Crash::Process);
        self.stopped = true;
    }
}

/// Both groups have a leader, and all have applied what it began with.
fn is_formed(nodes: &[Node]) -> bool {
    [ShardId::CATALOG, DATA].into_iter().all(|shard| {
        let Some(groups) = nodes.iter().map(|node| node.consensus.shard(shard)).collect::<Option<Vec<_>>>() else { return false };
        let applied = groups.iter().map(|group| *group.applied().borrow()).collect::<Vec<_>>();
        let leads = groups.iter().any(|group| group.leadership().borrow().is_me && group.lease_valid());
        leads && applied[0].is_some() && applied.iter().all(|id| *id == applied[0])
    })
}

/// Forms a cluster whose `victims` are stopped after so many writes; whether any was.
async fn form(victims: &[usize], writes: u64, crash: Crash) -> bool {
    let network = MemoryNetwork::default();
    let machine = |id| Machine { id, disk: SimDisk::new(writes * 10 + u64::from(id)), crash, kept: None, stopped: false };
    let mut machines: Vec<Machine> = (1..=N as u16).map(machine).collect();
    victims.iter().for_each(|at| machines[*at].disk.stop_after_words(writes));
    let mut nodes = boot_all(machines.iter_mut().map(|machine| machine.boot(&network))).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for (at, machine) in machines.iter_mut().enumerate().filter(|(_, machine)| machine.disk.is_stopped()) {
            drop(nodes.remove(at));
            machine.crash();
            nodes.insert(at, machine.boot(&network).await);
        }
        if is_formed(&nodes) && machines.iter().all(|machine| machine.disk.stop_no_more()) {
            break;
        }
        assert!(Instant::now() < deadline, "{victims:?} stopped after {writes} writes: no cluster");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let identity = |at: usize| nodes[at].wal.identity().expect("it takes part");
    for (at, machine) in machines.iter().enumerate() {
        let (found, context) = (identity(at), format!("{victims:?} stopped after {writes} writes, node {}", machine.id));
        assert!(found.cluster == identity(0).cluster && found.node == NodeId(machine.id), "two clusters: {context}");
        // A later one would be the life of a disk that was taken for wiped.
        assert_eq!(found.generation, placement::FIRST_GENERATION, "{context}");
        assert!(machine.kept.is_none_or(|kept| kept == found), "{:?} was lost: {context}", machine.kept);
    }
    open_session(&mut nodes).await;
    machines.iter().any(|machine| machine.stopped)
}

/// Stopped at the first write, at the second, until the cluster is formed before.
async fn at_every_write(victims: &[usize], crash: Crash) {
    let mut writes = 1;
    while form(victims, writes, crash).await {
        writes += 1;
        assert!(writes < MOST_WRITES, "formation never ends");
    }
    println!("{victims:?}, {crash:?}: formed after {} writes at most", writes - 1);
    assert!(writes > 3, "a node that forms a cluster writes who it is, a vote and an entry: it was not stopped while it did");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_stopped_at_any_write_of_theirs_while_a_cluster_forms_form_one_and_keep_who_they_are() {
    // The one that proposes the cluster, one that takes it, all.
    let cases: [(&[usize], Crash); 4] =
        [(&[0], Crash::Power), (&[1], Crash::Power), (&[0, 1, 2], Crash::Power), (&[0, 1, 2], Crash::Process)];
    futures::future::join_all(cases.map(|(victims, crash)| at_every_write(victims, crash))).await;
}
