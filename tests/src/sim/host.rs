//! A simulated machine: a disk and a directory that outlive its processes, and at most one process on them: a node with runtimes of its
//! own, which can die at any moment.

use crate::oracle::Oracle;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use warren::config::{ServerConfig, Settings};
use warren::consensus::Sources;
use warren::edge::Edge;
use warren::model::NodeId;
use warren::node::{Ground, SimulatedNode};
use warren::peer::memory::MemoryNetwork;
use warren::store::disk::SimDisk;
use warren::store::disk::sim::Crash;
use warren::store::wal::WalConfig;

/// Small, so that files are closed and used again.
const WAL_FILE_BYTES: u64 = 512 << 10;
/// So small that old files are cleaned all the time.
const LOG_BUDGET_BYTES: u64 = WAL_FILE_BYTES;
/// An ended process lets go of its state store within this time.
const LET_GO: Duration = Duration::from_secs(20);

/// What clients see of a machine.
#[derive(Clone)]
pub struct Life {
    /// Which start of its process; 0 before the first.
    pub number: u64,
    /// While it serves.
    pub edge: Option<Arc<Edge>>,
}

impl Life {
    /// Its start of that number serves.
    pub fn serves(&self, number: u64) -> bool {
        self.number == number && self.edge.is_some()
    }
}

/// Runs `then` if that start serves, and keeps it from its end meanwhile; whether it did.
pub fn while_serving(life_rx: &watch::Receiver<Life>, number: u64, then: impl FnOnce()) -> bool {
    let life = life_rx.borrow();
    let serves = life.serves(number);
    if serves {
        then();
    }
    serves
}

/// A machine.
pub struct Host {
    pub id: NodeId,
    /// How far its clock is ahead.
    pub ahead_ms: Arc<AtomicI64>,
    /// Bytes that left old files of the log, of lives that are over.
    pub relocated_bytes: AtomicU64,
    seed: u64,
    dir: PathBuf,
    network: MemoryNetwork,
    state: Mutex<State>,
    life_tx: watch::Sender<Life>,
    errors: Arc<Mutex<Vec<String>>>,
    starved: Arc<AtomicBool>,
}

struct State {
    disk: SimDisk,
    life: u64,
    runtime: Option<Runtime>,
    node: Option<Arc<SimulatedNode>>,
    /// Consumers of this life: what they hold may come again when it ends.
    consumers: Vec<(Arc<Oracle>, u32)>,
}

/// In some runs publishes are refused soon: at the first longer pause.
fn config(id: NodeId, seed: u64, dir: &Path) -> ServerConfig {
    let settings = Settings {
        node_id: Some(id.0),
        cluster: Some("1@sim:1,2@sim:2,3@sim:3".into()),
        data_dir: Some(dir.to_owned()),
        no_quorum_timeout: Some(if seed.is_multiple_of(3) { "700ms" } else { "2s" }.into()),
        ..Settings::default()
    };
    let secret = |name: &str| (name == "WARREN_CLUSTER_SECRET").then(|| "simulated, never on a wire".to_owned());
    ServerConfig::load(settings, &secret).expect("the settings are good")
}

impl Host {
    pub fn new(
        id: u16,
        seed: u64,
        dir: &Path,
        network: &MemoryNetwork,
        errors: &Arc<Mutex<Vec<String>>>,
        starved: &Arc<AtomicBool>,
    ) -> Arc<Host> {
        let disk = SimDisk::new(seed.wrapping_mul(31).wrapping_add(u64::from(id)));
        let state = State { disk, life: 0, runtime: None, node: None, consumers: Vec::new() };
        Arc::new(Host {
            id: NodeId(id),
            ahead_ms: Arc::default(),
            relocated_bytes: AtomicU64::new(0),
            seed,
            dir: dir.join(format!("node-{id}")),
            network: network.clone(),
            state: Mutex::new(state),
            life_tx: watch::channel(Life { number: 0, edge: None }).0,
            errors: errors.clone(),
            starved: starved.clone(),
        })
    }

    fn clocks(&self) -> Sources {
        let (Sources { system, steady }, ahead) = (Sources::default(), self.ahead_ms.clone());
        Sources { system: Arc::new(move || system().saturating_add_signed(ahead.load(Ordering::SeqCst))), steady }
    }

    /// Starts a process unless one runs. It serves when `life` says so.
    pub fn start(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.runtime.is_some() {
            return;
        }
        state.life += 1;
        let life = state.life;
        let name = format!("node-{}", self.id);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build();
        let runtime = runtime.expect("threads are to be had");
        let (network, id) = (self.network.clone(), self.id);
        let host = Arc::downgrade(self);
        let died = move |error: &std::io::Error| {
            if let Some(host) = host.upgrade() {
                host.abort(life, error.to_string());
            }
        };
        let ground = Ground {
            disk: Arc::new(state.disk.clone()),
            wal: WalConfig {
                file_bytes: WAL_FILE_BYTES,
                budget_bytes: LOG_BUDGET_BYTES,
                fatal: Some(Arc::new(died)),
                ..WalConfig::default()
            },
            wire: Box::new(move |handler| Ok(network.join(id, handler))),
            clocks: self.clocks(),
        };
        runtime.spawn(self.clone().run(life, ground));
        runtime.spawn(super::world::watch_clock(self.starved.clone()));
        state.runtime = Some(runtime);
    }

    async fn run(self: Arc<Self>, life: u64, ground: Ground) {
        match SimulatedNode::start(config(self.id, self.seed, &self.dir), ground).await {
            Ok(node) => self.serves(life, node),
            // A sync that was told to fail, met by the recovery: the process ends and is started again.
            Err(error) if self.is_current(life) && error.to_string().contains("os error 5") => self.abort(life, error.to_string()),
            // A crash during the start ends in an error of the disk, which is none of the node.
            Err(error) if self.is_current(life) => {
                self.errors.lock().expect("no panic under it").push(format!("node {} does not start: {error}", self.id));
            }
            Err(_) => {}
        }
    }

    fn is_current(&self, life: u64) -> bool {
        let state = self.lock();
        state.life == life && state.runtime.is_some()
    }

    fn serves(&self, life: u64, node: SimulatedNode) {
        let mut state = self.lock();
        if state.life == life && state.runtime.is_some() {
            let edge = node.edge().clone();
            state.node = Some(Arc::new(node));
            self.life_tx.send_replace(Life { number: life, edge: Some(edge) });
        } else {
            node.kill();
        }
    }

    /// The process ends in the middle of whatever it does. With `Crash::Power` its unsynced writes may go with it.
    pub fn kill(&self, crash: Crash) {
        let (runtime, node) = {
            let mut state = self.lock();
            self.fall_silent(&mut state);
            state.disk = state.disk.crash(crash);
            (state.runtime.take(), state.node.take())
        };
        if let Some(node) = &node {
            self.relocated_bytes.fetch_add(node.relocated_bytes(), Ordering::Relaxed);
            node.kill();
        }
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }

    /// First of all nobody else may learn of what it still does. For its clients and their judges it ends at one moment: what a client
    /// says under `while_serving` is said before, or not at all.
    fn fall_silent(&self, state: &mut State) {
        self.life_tx.send_modify(|life| {
            for (oracle, consumer) in state.consumers.drain(..) {
                oracle.ended(consumer);
            }
            *life = Life { number: state.life, edge: None };
        });
        self.network.kill(self.id);
    }

    /// Its log could not be written: where a process aborts.
    fn abort(self: &Arc<Self>, life: u64, error: String) {
        {
            // The disk of an ended life answers with errors.
            if !self.is_current(life) {
                return;
            }
            self.fall_silent(&mut self.lock());
        }
        let host = self.clone();
        // This is a thread of the log, which the kill waits for.
        std::thread::spawn(move || {
            tracing::info!(node = %host.id, error, "a node aborts");
            host.kill(Crash::Process);
            std::thread::sleep(Duration::from_millis(100));
            host.start_again(false);
        });
    }

    /// Starts when the last process has let go of everything; `forget`: without its state store.
    pub fn start_again(self: &Arc<Self>, forget: bool) {
        let state_dir = self.dir.join("state");
        let until = Instant::now() + LET_GO;
        // sled is locked as long as a task of the last life holds it.
        while self.lock().runtime.is_none() && state_dir.exists() {
            match warren::store::state::StateStore::open(&state_dir) {
                Ok(_) => break,
                Err(error) if Instant::now() > until => {
                    self.errors.lock().expect("no panic under it").push(format!("the state of node {} is held: {error}", self.id));
                    return;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        if forget && self.lock().runtime.is_none() {
            let _ = std::fs::remove_dir_all(&state_dir);
        }
        self.start();
    }

    /// For clients.
    pub fn life(&self) -> watch::Receiver<Life> {
        self.life_tx.subscribe()
    }

    /// The node, while it serves.
    pub fn node(&self) -> Option<Arc<SimulatedNode>> {
        self.lock().node.clone()
    }

    /// A process runs, serving or not yet.
    pub fn is_up(&self) -> bool {
        self.lock().runtime.is_some()
    }

    pub fn disk(&self) -> SimDisk {
        self.lock().disk.clone()
    }

    /// A consumer of this life; false when the life is over.
    pub fn enter(&self, life: u64, oracle: &Arc<Oracle>, consumer: u32) -> bool {
        let mut state = self.lock();
        let alive = state.life == life && state.node.is_some();
        if alive {
            state.consumers.push((oracle.clone(), consumer));
        }
        alive
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{client::Client, in_world};
    use super::*;
    use warren::model::step::{Outcome, Step};

    #[test]
    fn what_a_client_says_while_its_node_dies_counts_or_is_not_said() {
        in_world(1, async |world| {
            let host = world.hosts[0].clone();
            let mut client = Client::connect(&host).await;
            let (judge, message) = (Arc::new(Oracle::default()), (0, 1));
            judge.published(message);
            assert!(host.enter(client.life, &judge, 7));
            judge.got(7, message, false);
            let settle = || Step::Settle { held: Vec::new(), outcome: Outcome::Ack, asked: true };
            let (mut killing, victim) = (None, host.clone());
            client.tell_with(settle(), || {
                killing = Some(std::thread::spawn(move || victim.kill(Crash::Process)));
                crate::eventually(Duration::from_secs(5), || host.state.try_lock().is_err());
                assert!(judge.settled_by(7, message), "the node was gone before the word was said");
            });
            killing.expect("the node served").join().expect("it dies");
            assert!(!judge.settled_by(7, message));
            client.tell_with(settle(), || panic!("said to a dead node"));
        });
    }
}
