//! Everything of one run: three machines, the network between them, the judges, and what was noted on the way.

use super::host::Host;
use crate::oracle::Oracle;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::watch;
use warren::peer::memory::MemoryNetwork;

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
    pub phase_tx: watch::Sender<Phase>,
    /// What must not have happened.
    pub errors: Arc<Mutex<Vec<String>>>,
    /// Things that went as they should, counted: a run in which some never happened proves little.
    pub checks: AtomicU64,
    notes: Mutex<Vec<String>>,
    begun: Instant,
    next_id: AtomicU32,
}

impl World {
    pub fn new(seed: u64, dir: &Path) -> Arc<World> {
        let (network, errors) = (MemoryNetwork::new(seed), Arc::<Mutex<Vec<String>>>::default());
        let hosts = (1..=3).map(|id| Host::new(id, seed, dir, &network, &errors)).collect();
        Arc::new(World {
            seed,
            network,
            hosts,
            judges: QUEUES.iter().map(|(queue, _)| (*queue, Arc::new(Oracle::with_stories()))).collect(),
            phase_tx: watch::channel(Phase::Load).0,
            errors,
            checks: AtomicU64::new(0),
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

    /// For the reader of a failed run.
    pub fn note(&self, text: impl Into<String>) {
        let text = format!("{} ms: {}", self.begun.elapsed().as_millis(), text.into());
        tracing::info!(seed = self.seed, "{text}");
        self.notes.lock().unwrap_or_else(|poison| poison.into_inner()).push(text);
    }

    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Something was checked and right.
    pub fn checked(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }
}
