//! Everything of one run: three machines, the network between them, the judges, and what was noted on the way.

use super::host::Host;
use crate::oracle::Oracle;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use warren::model::{Incarnation, NodeId, SessionId, ShardId};
use warren::node::SimulatedNode;
use warren::peer::memory::MemoryNetwork;

/// A nap takes so long ...
const NAP: Duration = Duration::from_millis(20);
/// ... and when it takes this long, nobody's second is a second.
const STARVED: Duration = Duration::from_millis(150);

/// Sessions of edges by shard and process, and how far the replica was that told.
type Known = HashMap<(ShardId, (NodeId, Incarnation)), (SessionId, u64)>;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everybody works while things go wrong.
    Load,
    /// No more publishes; consumers take all.
    Drain,
    /// Everybody goes.
    End,
}

/// What a queue promises beside that nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One consumer, which only acknowledges: each publisher's order holds.
    Ordered,
    /// Several that give back, go and come.
    Wild,
    /// Deleted and declared again and again: what was in it may go.
    Churned,
}

/// The queues of every run, with the exchange that feeds them beside the default one.
pub const QUEUES: [(&str, Kind); 5] = [
    ("ordered-1", Kind::Ordered),
    ("ordered-2", Kind::Ordered),
    ("wild-1", Kind::Wild),
    ("wild-2", Kind::Wild),
    ("churned", Kind::Churned),
];
/// Feeds these.
pub const FANOUT: (&str, [&str; 2]) = ("all", ["ordered-2", "wild-2"]);

/// One run.
pub struct World {
    pub seed: u64,
    pub network: MemoryNetwork,
    pub hosts: Vec<Arc<Host>>,
    pub judges: BTreeMap<&'static str, Arc<Oracle>>,
    pub stream: super::streams::Judge,
    pub phase_tx: watch::Sender<Phase>,
    /// What must not have happened.
    pub errors: Arc<Mutex<Vec<String>>>,
    /// Things that went as they should, counted: a run in which some never happened proves little.
    pub checks: AtomicU64,
    /// The machine was so busy that an edge may have been taken for gone. Shared with the hosts, whose threads are watched too.
    pub starved: Arc<AtomicBool>,
    /// A leader took an edge for gone although its process lived: what its clients hold came to others.
    pub parted: AtomicBool,
    notes: Mutex<Vec<String>>,
    begun: Instant,
    next_id: AtomicU32,
}

impl World {
    pub fn new(seed: u64, dir: &Path) -> Arc<World> {
        let (network, errors) = (MemoryNetwork::new(seed), Arc::<Mutex<Vec<String>>>::default());
        let starved = Arc::<AtomicBool>::default();
        let hosts = (1..=3).map(|id| Host::new(id, seed, dir, &network, &errors, &starved)).collect();
        Arc::new(World {
            seed,
            network,
            hosts,
            judges: QUEUES.iter().map(|(queue, _)| (*queue, Arc::new(Oracle::with_stories()))).collect(),
            stream: super::streams::Judge::default(),
            phase_tx: watch::channel(Phase::Load).0,
            errors,
            checks: AtomicU64::new(0),
            starved,
            parted: AtomicBool::new(false),
            notes: Mutex::default(),
            begun: Instant::now(),
            next_id: AtomicU32::new(1),
        })
    }

    /// For publishers and consumers: never the same twice.
    pub fn id(&self) -> u32 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub fn phase(&self) -> Phase {
        *self.phase_tx.borrow()
    }

    /// Something that must not be.
    pub fn error(&self, text: impl Into<String>) {
        let text = format!("{} ms: {}", self.begun.elapsed().as_millis(), text.into());
        tracing::error!(seed = self.seed, "{text}");
        self.errors.lock().unwrap_or_else(|poison| poison.into_inner()).push(text);
    }

    /// How often something happened that must not.
    pub fn errors_so_far(&self) -> usize {
        self.errors.lock().unwrap_or_else(|poison| poison.into_inner()).len()
    }

    /// For the reader of a failed run.
    pub fn note(&self, text: impl Into<String>) {
        let text = format!("{} ms: {}", self.begun.elapsed().as_millis(), text.into());
        tracing::info!(seed = self.seed, "{text}");
        self.notes.lock().unwrap_or_else(|poison| poison.into_inner()).push(text);
    }

    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Looks at the sessions of the edges for as long as the load lasts: a process that lives and lost its session was taken for gone.
    pub async fn watch_sessions(self: Arc<World>) {
        let mut known = HashMap::new();
        while self.phase() < Phase::End {
            let nodes: Vec<_> = self.hosts.iter().filter_map(|host| Some((host.id, host.node()?))).collect();
            let process = |(id, node): &(NodeId, Arc<SimulatedNode>)| Some((*id, node.replicas().catalog().read().incarnation(*id)?));
            let alive: Vec<_> = nodes.iter().filter_map(process).collect();
            let shards = nodes.first().map_or(0, |(_, node)| node.shards());
            for shard in (1..=shards).map(ShardId) {
                if let Some(node) = self.look_at_sessions(shard, &nodes, &alive, &mut known) {
                    self.note(format!("shard {shard} took the edge of node {node} for gone"));
                    self.parted.store(true, Ordering::Relaxed);
                }
            }
            tokio::time::sleep(NAP).await;
        }
    }

    /// The replica that is furthest is asked, if it has seen as much as the one that was asked before.
    fn look_at_sessions(
        &self,
        shard: ShardId,
        nodes: &[(NodeId, Arc<SimulatedNode>)],
        alive: &[(NodeId, Incarnation)],
        known: &mut Known,
    ) -> Option<NodeId> {
        let replicas = nodes.iter().filter_map(|(_, node)| {
            let machine = node.replicas().data(shard)?;
            let machine = machine.lock();
            let rows: HashMap<_, _> = machine.sessions().map(|(id, node, process, _)| ((node, process), id)).collect();
            Some((machine.applied().index, rows))
        });
        let (applied, rows) = replicas.max_by_key(|(applied, _)| *applied)?;
        let mut gone = None;
        for edge in alive {
            let (before, now) = (known.get(&(shard, *edge)).copied(), rows.get(edge).copied());
            if before.is_some_and(|(_, seen)| seen > applied) {
                continue;
            }
            if before.is_some_and(|(session, _)| now != Some(session)) {
                gone = Some(edge.0);
                known.remove(&(shard, *edge));
            }
            if let Some(session) = now {
                known.insert((shard, *edge), (session, applied));
            }
        }
        gone
    }

    /// Something was checked and right.
    pub fn checked(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Watches the clock on the threads of its runtime, for as long as that lasts.
pub async fn watch_clock(starved: Arc<AtomicBool>) {
    loop {
        let before = Instant::now();
        tokio::time::sleep(NAP).await;
        if before.elapsed() > STARVED {
            starved.store(true, Ordering::Relaxed);
        }
    }
}
