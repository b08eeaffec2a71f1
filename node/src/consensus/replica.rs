//! The machines behind this node's groups: joins `machine` (pure), the state store's checkpoints and whoever watches what is applied.
//! The composition root makes one `Replicas`, gives `Replicas::machines` to `Consensus` and reads the machines.

use super::journal::Journal;
use super::machine::{Arrived, Departing, Fault, Machine};
use super::members::Members;
use super::start::Machines;
use super::types::Reply;
use crate::machine::catalog::Catalog;
use crate::machine::{CaptureId, DataMachine, Delta, Effect, Image, Living, Progress, RestoreError};
use crate::model::catalog::CatalogCommand;
use crate::model::entry::EntryBytes;
use crate::model::version::TooNew;
use crate::model::{LogId, ShardId, version};
use crate::store::state::{Change, StateStore};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

/// Sees every applied entry, in log order, before the proposer gets its outcome. Called inside openraft's tasks: must not block.
pub trait Observer: Send + Sync + 'static {
    /// `effects` is empty for the catalog.
    fn applied(&self, shard: ShardId, id: LogId, effects: Vec<Effect>);
}

/// A data shard's machine as `serving` reads it.
pub type SharedData = Arc<Mutex<DataMachine>>;

/// All machines of a node. Cheap to clone.
#[derive(Clone)]
pub struct Replicas {
    inner: Arc<Inner>,
}

struct Inner {
    store: Option<Arc<StateStore>>,
    observer: Arc<dyn Observer>,
    catalog: Arc<RwLock<Catalog>>,
    data: Mutex<BTreeMap<ShardId, SharedData>>,
    members: OnceLock<Members>,
    /// Versions of the log up to this one can be applied.
    supports: u8,
}

impl Replicas {
    /// Machines that are restored from `store` and checkpointed into it; without one the whole log is applied at each start.
    pub fn new(store: Option<Arc<StateStore>>, observer: Arc<dyn Observer>) -> Replicas {
        Replicas::supporting(version::SUPPORTED, store, observer)
    }

    /// The same of a program that applies versions of the log up to this one.
    pub fn supporting(supports: u8, store: Option<Arc<StateStore>>, observer: Arc<dyn Observer>) -> Replicas {
        let (catalog, data) = (Arc::new(RwLock::new(Catalog::new())), Mutex::default());
        Replicas { inner: Arc::new(Inner { store, observer, catalog, data, members: OnceLock::new(), supports }) }
    }

    fn empty(&self, shard: ShardId) -> DataMachine {
        DataMachine::supporting(self.inner.supports, shard)
    }

    /// Who hears of the members as the catalog knows them, before anybody else acts by an entry; call it before `machines`.
    pub fn tell(&self, members: &Members) {
        // A second call would name the same.
        let _ = self.inner.members.set(members.clone());
    }

    /// The catalog; empty until `Consensus::formed`.
    pub fn catalog(&self) -> Arc<RwLock<Catalog>> {
        self.inner.catalog.clone()
    }

    /// A data shard's machine, after `Consensus::formed`, when this node holds the shard.
    pub fn data(&self, shard: ShardId) -> Option<SharedData> {
        self.inner.data.lock().get(&shard).cloned()
    }

    /// The same; an empty one, for the case that this node gets the shard.
    pub fn data_or_empty(&self, shard: ShardId) -> SharedData {
        self.inner.data.lock().entry(shard).or_insert_with(|| Arc::new(Mutex::new(self.empty(shard)))).clone()
    }

    /// For `ConsensusConfig::machines`; `journal` learns which entries are still live.
    pub fn machines(&self, journal: Arc<dyn Journal>) -> Machines {
        let replicas = self.clone();
        Box::new(move |shard| if shard == ShardId::CATALOG { replicas.restore_catalog() } else { replicas.restore_data(shard, &*journal) })
    }

    fn stored(&self, shard: ShardId) -> Vec<(Vec<u8>, Vec<u8>)> {
        let Some(store) = &self.inner.store else { return Vec::new() };
        match store.load(shard) {
            Ok(stored) => stored.pairs,
            Err(error) => {
                tracing::error!(%shard, %error, "the shard's checkpoint cannot be read: applying its log from the beginning");
                Vec::new()
            }
        }
    }

    fn restore_catalog(&self) -> Result<Arc<dyn Machine>, TooNew> {
        match Catalog::restore(self.stored(ShardId::CATALOG)) {
            Ok(catalog) => {
                version::check(catalog.version(), self.inner.supports)?;
                *self.inner.catalog.write() = catalog;
                tell_members(&self.inner.catalog, self.inner.members.get());
            }
            Err(error) => tracing::error!(%error, "the catalog's checkpoint is not usable: applying its log from the beginning"),
        }
        let (catalog, observer) = (self.inner.catalog.clone(), self.inner.observer.clone());
        let (members, supports) = (self.inner.members.get().cloned(), self.inner.supports);
        Ok(Arc::new(CatalogReplica { catalog, observer, members, supports }))
    }

    fn restore_data(&self, shard: ShardId, journal: &dyn Journal) -> Result<Arc<dyn Machine>, TooNew> {
        // Of a replica that this process gave up: whoever serves the shard has this one, and it is empty.
        if let Some(machine) = self.data(shard) {
            return Ok(self.replica(shard, machine));
        }
        let pairs = self.stored(shard);
        let restored = if pairs.is_empty() { Ok(self.empty(shard)) } else { self.empty(shard).restored(pairs) };
        let machine = match restored {
            Ok(machine) => machine,
            Err(RestoreError::TooNew(why)) => return Err(why),
            Err(error) => {
                tracing::error!(%shard, %error, "the shard's checkpoint is not usable: applying its log from the beginning");
                self.empty(shard)
            }
        };
        let applied = machine.applied();
        if applied.index > 0 {
            journal.retain_only(shard, applied.index, &machine.live_entries());
        }
        tracing::info!(%shard, index = applied.index, "machine restored");
        let machine = Arc::new(Mutex::new(machine));
        self.inner.data.lock().insert(shard, machine.clone());
        Ok(self.replica(shard, machine))
    }

    fn replica(&self, shard: ShardId, machine: SharedData) -> Arc<dyn Machine> {
        let (observer, supports) = (self.inner.observer.clone(), self.inner.supports);
        Arc::new(DataReplica { shard, machine, observer, freed: Arc::default(), supports })
    }
}

/// Tells who is a member as the catalog says.
fn tell_members(catalog: &RwLock<Catalog>, members: Option<&Members>) {
    let Some(members) = members else { return };
    if let Some(roster) = catalog.read().roster() {
        members.told(roster);
    }
}

fn change(delta: Delta) -> Change {
    Change { applied: delta.applied, full: delta.full, puts: delta.puts, deletes: delta.deletes }
}

fn restored(applied: LogId) -> Option<LogId> {
    (applied.index > 0).then_some(applied)
}

struct CatalogReplica {
    members: Option<Members>,
    catalog: Arc<RwLock<Catalog>>,
    observer: Arc<dyn Observer>,
    supports: u8,
}

impl Machine for CatalogReplica {
    fn apply(&self, id: LogId, entry: &EntryBytes) -> Result<Reply, Fault> {
        let command = crate::machine::catalog::decode_command(&entry.flatten());
        let fault = |why| Fault { index: id.index, why };
        let command = command.ok_or_else(|| fault("unknown catalog command: was a newer version of this program here?".into()))?;
        if let CatalogCommand::Raise { version } = command {
            version::check(version, self.supports).map_err(|why| fault(why.to_string()))?;
        }
        let reply = self.catalog.write().apply(id, &command);
        tell_members(&self.catalog, self.members.as_ref());
        self.observer.applied(ShardId::CATALOG, id, Vec::new());
        Ok(Reply::Catalog(reply))
    }

    fn pass(&self, id: LogId) -> Result<(), Fault> {
        self.catalog.write().pass(id);
        self.observer.applied(ShardId::CATALOG, id, Vec::new());
        Ok(())
    }

    fn restored(&self) -> Option<LogId> {
        restored(self.catalog.read().applied())
    }

    fn checkpoint(&self) -> Option<Change> {
        let image = self.catalog.read().capture()?;
        self.catalog.write().captured(image.applied());
        Some(change(image.into_delta()))
    }

    fn checkpoint_lost(&self) {
        self.catalog.write().forget_checkpoint();
    }

    fn snapshot(&self) -> Option<Departing> {
        let image = self.catalog.read().image();
        let applied = restored(image.applied())?;
        Some(Departing { applied, state: image.into_snapshot(), live: Vec::new() })
    }

    fn arrived(&self, state: &[u8]) -> Result<Arrived, String> {
        let mut catalog = Catalog::from_snapshot(state).map_err(|e| e.to_string())?;
        version::check(catalog.version(), self.supports).map_err(|e| e.to_string())?;
        let applied = catalog.applied();
        let change = change(catalog.image().into_delta());
        catalog.captured(applied);
        let (mine, observer, members) = (self.catalog.clone(), self.observer.clone(), self.members.clone());
        let adopt = Box::new(move || {
            *mine.write() = catalog;
            tell_members(&mine, members.as_ref());
            observer.applied(ShardId::CATALOG, applied, Vec::new());
        });
        Ok(Arrived { applied, change, live: Vec::new(), adopt })
    }
}

/// Copies a state slice by slice; between two of them entries are applied. `None`: another state took its place.
fn captured(machine: &Mutex<DataMachine>, id: CaptureId) -> Option<Image> {
    loop {
        let mut locked = machine.lock();
        match locked.capture(id) {
            Progress::More => MutexGuard::unlock_fair(locked),
            Progress::Done(image) => return Some(*image),
            Progress::Unknown => return None,
        }
    }
}

type Freed = VecDeque<(u64, Vec<u64>)>;

struct DataReplica {
    shard: ShardId,
    machine: SharedData,
    observer: Arc<dyn Observer>,
    /// Entries without live messages, by the index whose application freed them: not released before a durable checkpoint says so
    /// (rule 7).
    freed: Arc<Mutex<Freed>>,
    supports: u8,
}

impl DataReplica {
    fn empty(&self) -> DataMachine {
        DataMachine::supporting(self.supports, self.shard)
    }
}

impl Machine for DataReplica {
    fn apply(&self, id: LogId, entry: &EntryBytes) -> Result<Reply, Fault> {
        let applied = self.machine.lock().apply(id, entry).map_err(|e| Fault { index: id.index, why: e.to_string() })?;
        if !applied.freed.is_empty() {
            self.freed.lock().push_back((id.index, applied.freed));
        }
        self.observer.applied(self.shard, id, applied.effects);
        Ok(Reply::Sections(applied.replies))
    }

    fn pass(&self, id: LogId) -> Result<(), Fault> {
        self.machine.lock().pass(id).map_err(|e| Fault { index: id.index, why: e.to_string() })?;
        self.observer.applied(self.shard, id, Vec::new());
        Ok(())
    }

    fn restored(&self) -> Option<LogId> {
        restored(self.machine.lock().applied())
    }

    fn checkpoint(&self) -> Option<Change> {
        let id = self.machine.lock().begin_checkpoint();
        captured(&self.machine, id).map(|image| change(image.into_delta()))
    }

    fn checkpoint_lost(&self) {
        self.machine.lock().forget_checkpoint();
    }

    fn live(&self) -> Vec<u64> {
        self.machine.lock().live_entries()
    }

    fn living(&self, indices: &[u64]) -> Option<Living> {
        let survey = self.machine.lock().begin_survey(indices);
        captured(&self.machine, survey.capture).map(|image| image.living(survey))
    }

    fn snapshot(&self) -> Option<Departing> {
        let id = {
            let mut machine = self.machine.lock();
            restored(machine.applied())?;
            machine.begin_snapshot()
        };
        let image = captured(&self.machine, id)?;
        Some(Departing { applied: image.applied(), live: image.live_entries(), state: image.into_snapshot() })
    }

    fn arrived(&self, state: &[u8]) -> Result<Arrived, String> {
        let mut machine = self.empty().with_snapshot(state).map_err(|e| e.to_string())?;
        let (applied, live, change) = (machine.applied(), machine.live_entries(), change(machine.checkpoint()));
        let (mine, freed, observer, shard) = (self.machine.clone(), self.freed.clone(), self.observer.clone(), self.shard);
        let adopt = Box::new(move || {
            *mine.lock() = machine;
            // Of the old state; what the new one does not need is given free by whoever installs it.
            freed.lock().clear();
            observer.applied(shard, applied, Vec::new());
        });
        Ok(Arrived { applied, change, live, adopt })
    }

    fn clear(&self) {
        *self.machine.lock() = self.empty();
        self.freed.lock().clear();
        self.observer.applied(self.shard, LogId::default(), Vec::new());
    }

    fn released(&self, upto: u64) -> Vec<u64> {
        let mut freed = self.freed.lock();
        let ready = freed.partition_point(|(at, _)| *at <= upto);
        freed.drain(..ready).flat_map(|(_, indices)| indices).collect()
    }
}
