//! What a group keeps on this node beside its log: machine, durable checkpoint, members; and how a state that came from another node
//! takes their place (rule 6): its entries are staged and durable -> PREPARE -> the state store -> INSTALL -> acknowledged. A crash
//! before the state is durable leaves the old state, one behind it is finished at the next start.

use super::contact::Contact;
use super::journal::{Done, Journal};
use super::log::completion;
use super::machine::{Arrived, Departing, Machine};
use super::retry::Retry;
use super::types::*;
use crate::model::{LogId, ShardId};
use crate::store::state::{Change, StateError, StateStore};
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Between attempts to write a state that came. A disk that is full has space again some day, and a store that fails sets itself aside and
/// begins an empty one: until then the group waits. Given up, it would be gone until the node is started again.
const WRITE_RETRY: Duration = Duration::from_millis(50);
const WRITE_RETRY_MOST: Duration = Duration::from_secs(5);
/// What a broken transfer staged is kept this long for the next attempt.
const STAGED_FOR: Duration = Duration::from_secs(60);

/// A group's things on this node.
pub struct Holding {
    pub(super) shard: ShardId,
    pub(super) machine: Arc<dyn Machine>,
    pub(super) journal: Arc<dyn Journal>,
    /// Weak: whoever started this room says when the store is closed.
    store: Weak<StateStore>,
    /// As applied.
    pub(super) membership: Mutex<Ostored>,
    /// Hears who the voters are that an installed state names.
    pub(super) contact: OnceLock<Arc<Contact>>,
    /// The durable checkpoint: what openraft calls the snapshot.
    pub(super) checkpointed: Mutex<Option<LogId>>,
    /// Held while a checkpoint or an installed state is on its way into the store: the two must not mix.
    pub(super) saving: tokio::sync::Mutex<()>,
    /// Transfers that read entries of this node: nothing is released meanwhile.
    pins: AtomicUsize,
    /// One state is received at a time; a newer transfer ends the older one.
    receiving: tokio::sync::Mutex<()>,
    turn: AtomicU64,
    left_staged: Mutex<Option<Instant>>,
    pub(super) work: Arc<Work>,
}

/// What the group's machine does: by it a machine that takes long is told from one that hangs.
#[derive(Default)]
pub struct Work {
    /// Counts entries that are applied and steps of installations.
    steps: AtomicU64,
    /// Appends of which the log has not said that they are on the disk.
    unsaid: AtomicU64,
    installing: Mutex<Option<Installing>>,
    /// An entry cannot be applied, now or ever.
    refused: AtomicBool,
}

/// A state that came from another node takes the place of this one.
#[derive(Clone, Debug)]
pub struct Installing {
    pub(super) upto: LogId,
    pub(super) since: Instant,
    /// What is being done, and how often it was tried.
    pub(super) step: &'static str,
    pub(super) attempts: u32,
}

impl Work {
    pub(super) fn goes_on(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuses(&self) {
        self.refused.store(true, Ordering::Release);
    }

    /// The machine said that it cannot apply an entry.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Changes while anything is done.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    pub(super) fn appends(&self) {
        self.unsaid.fetch_add(1, Ordering::Relaxed);
    }

    /// The log said what became of an append.
    pub(super) fn has_said(&self) {
        self.unsaid.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn unsaid(&self) -> u64 {
        self.unsaid.load(Ordering::Relaxed)
    }

    /// The installation under way.
    pub(super) fn installing(&self) -> Option<Installing> {
        self.installing.lock().clone()
    }

    fn begin(&self, upto: LogId) -> Begun<'_> {
        *self.installing.lock() = Some(Installing { upto, since: Instant::now(), step: "waiting for a checkpoint to end", attempts: 0 });
        Begun(self)
    }

    fn attempt(&self, step: &'static str) {
        self.goes_on();
        if let Some(installing) = &mut *self.installing.lock() {
            installing.attempts = if installing.step == step { installing.attempts + 1 } else { 1 };
            installing.step = step;
        }
    }
}

/// Until it is dropped an installation is under way.
struct Begun<'a>(&'a Work);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.goes_on();
        *self.0.installing.lock() = None;
    }
}

/// The state of a group for another node; its entries can be read as long as this lives.
pub struct Outgoing {
    pub(super) departing: Departing,
    pub(super) membership: Ostored,
    _pin: Pin,
}

struct Pin(Arc<Holding>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Holding {
    /// `membership`: the group's members as the log last said, for a machine that was restored beyond that entry.
    pub fn new(
        shard: ShardId,
        machine: Arc<dyn Machine>,
        journal: Arc<dyn Journal>,
        store: Option<&Arc<StateStore>>,
        membership: Ostored,
    ) -> Arc<Holding> {
        let restored = machine.restored();
        let membership = if restored.is_some() { membership } else { Ostored::default() };
        Arc::new(Holding {
            shard,
            machine,
            journal,
            store: store.map(Arc::downgrade).unwrap_or_default(),
            membership: Mutex::new(membership),
            contact: OnceLock::new(),
            checkpointed: Mutex::new(restored),
            saving: tokio::sync::Mutex::default(),
            pins: AtomicUsize::new(0),
            receiving: tokio::sync::Mutex::default(),
            turn: AtomicU64::new(0),
            left_staged: Mutex::new(None),
            work: Arc::default(),
        })
    }

    /// The state as it is now, for another node; `None` when it is empty.
    pub fn outgoing(self: &Arc<Self>) -> Option<Outgoing> {
        // First the pin: what is released after the state was taken may belong to it.
        self.pins.fetch_add(1, Ordering::AcqRel);
        let pin = Pin(self.clone());
        loop {
            let membership = self.membership.lock().clone();
            let departing = self.machine.snapshot()?;
            let within = membership.log_id().as_ref().is_none_or(|id| id.index <= departing.applied.index);
            if within && *self.membership.lock() == membership {
                return Some(Outgoing { departing, membership, _pin: pin });
            }
            std::thread::yield_now();
        }
    }

    /// A transfer reads entries of this node.
    pub fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    /// Begin to receive; ends an older transfer and waits until it is gone.
    pub async fn receive(&self) -> Receiving<'_> {
        let turn = self.turn.fetch_add(1, Ordering::AcqRel) + 1;
        let guard = self.receiving.lock().await;
        Receiving { holding: self, turn, _guard: guard }
    }

    /// Whether a state that came can be kept: not without a store, it would be gone with the process.
    pub fn keeps_state(&self) -> bool {
        self.store.strong_count() > 0
    }

    /// A state that came takes the place of this one. All entries that it needs are in the log or staged.
    pub async fn install(&self, membership: Ostored, arrived: Arrived) -> io::Result<()> {
        let Arrived { applied, change, live, adopt } = arrived;
        let _begun = self.work.begin(applied);
        let _saving = self.saving.lock().await;
        let members = membership.log_id().as_ref().map(|id| (from_oid(*id), write_membership(membership.membership())));
        self.written("preparing the log", || {
            self.journaled(|done| self.journal.prepare_install(self.shard, applied, members.clone(), done))
        })
        .await?;
        self.written("storing it", || self.save(&change)).await?;
        self.written("putting it under the log", || self.journaled(|done| self.journal.finish_install(self.shard, applied, done))).await?;
        adopt();
        self.journal.retain_only(self.shard, applied.index, &live);
        if let Some(contact) = self.contact.get() {
            // The log may know of later ones.
            let logged = self.journal.state(self.shard).membership.and_then(|(_, bytes)| read_membership(&bytes));
            let members = logged.unwrap_or_else(|| membership.membership().clone());
            contact.changed(members.get_joint_config().clone());
        }
        *self.membership.lock() = membership;
        *self.checkpointed.lock() = Some(applied);
        tracing::info!(shard = %self.shard, index = applied.index, entries = live.len(), "state of another node installed");
        Ok(())
    }

    /// One step of an installation, until it is done or can never be.
    async fn written<F: Future<Output = Result<(), Unwritten>>>(&self, what: &'static str, step: impl Fn() -> F) -> io::Result<()> {
        let mut retry = Retry::new(WRITE_RETRY, WRITE_RETRY_MOST);
        loop {
            self.work.attempt(what);
            match step().await {
                Ok(()) => return Ok(()),
                Err(Unwritten::ForGood(error)) => return Err(io::Error::other(error)),
                Err(Unwritten::Yet(error)) => {
                    let pause = retry.pause();
                    tracing::warn!(shard = %self.shard, what, error, ?pause, "the state of another node cannot be installed yet");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn journaled(&self, write: impl FnOnce(Done)) -> Result<(), Unwritten> {
        let (done, written) = completion();
        write(done);
        written.await.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => Unwritten::Yet(error.to_string()),
            // The log is dead, and the process with it.
            _ => Unwritten::ForGood(error.to_string()),
        })
    }

    async fn save(&self, change: &Change) -> Result<(), Unwritten> {
        let store = self.store.upgrade().ok_or_else(|| Unwritten::ForGood("the state store is closed".into()))?;
        let (tx, rx) = oneshot::channel();
        store.checkpoint(self.shard, change.clone(), move |result| drop(tx.send(result)));
        drop(store);
        match rx.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error @ (StateError::Disk(_) | StateError::Damaged(_) | StateError::Busy))) => Err(Unwritten::Yet(error.to_string())),
            Ok(Err(error @ (StateError::NeedsFull(_) | StateError::Older { .. }))) => Err(Unwritten::ForGood(error.to_string())),
            Err(_) => Err(Unwritten::Yet("the state store gave no answer".into())),
        }
    }

    /// At a start: finish an installation whose state had become durable.
    pub async fn resume(&self) -> io::Result<()> {
        let restored = self.machine.restored();
        if let Some(upto) = self.journal.pending_install(self.shard).filter(|p| restored.is_some_and(|r| r.index >= p.index)) {
            let (done, finished) = completion();
            self.journal.finish_install(self.shard, upto, done);
            finished.await?;
            tracing::info!(shard = %self.shard, index = upto.index, "installation of a state finished");
        }
        if let Some(restored) = restored {
            self.journal.retain_only(self.shard, restored.index, &self.machine.live());
        }
        Ok(())
    }

    /// At a start: nothing that belongs to the group is missing on this disk, and what its state is made from can be read.
    pub fn is_complete(&self) -> io::Result<bool> {
        let (log, restored) = (self.journal.state(self.shard), self.machine.restored().map(|id| id.index));
        if self.journal.damage(self.shard).is_none() && restored > log.last.max(log.purged).map(|id| id.index) {
            tracing::error!(shard = %self.shard, ?restored, end = ?log.last, "the log ends before the checkpoint that was made of it: its end is lost");
            self.journal.forget(self.shard, Box::new(|_| ()));
        }
        if self.journal.damage(self.shard).is_none() && !self.is_hollow() {
            self.journal.verify(self.shard, self.machine.restored().map_or(0, |id| id.index))?;
        }
        Ok(self.journal.damage(self.shard).is_none() && !self.is_hollow())
    }

    /// The state cannot be made from what this disk holds: the log does not reach back to the checkpoint or lacks its beginning, or bodies
    /// are missing.
    pub fn is_hollow(&self) -> bool {
        let restored = self.machine.restored().map(|id| id.index);
        let log = self.journal.state(self.shard);
        let (begins, purged) = (log.last.is_none() || self.journal.log_id(self.shard, 0).is_some(), log.purged.map(|id| id.index));
        purged > restored
            || (purged.is_none() && !begins)
            || self.machine.live().iter().any(|index| self.journal.log_id(self.shard, *index).is_none())
    }

    /// Now and then: what a transfer left behind goes when nobody comes for it.
    pub fn tidy(&self) {
        let Ok(_nobody) = self.receiving.try_lock() else { return };
        let mut left = self.left_staged.lock();
        if left.is_some_and(|at| at.elapsed() >= STAGED_FOR) {
            self.journal.unstage(self.shard);
            *left = None;
        }
    }
}

/// A step of an installation that was not done.
enum Unwritten {
    Yet(String),
    ForGood(String),
}

/// The right to receive a state.
pub struct Receiving<'a> {
    pub(super) holding: &'a Holding,
    turn: u64,
    _guard: tokio::sync::MutexGuard<'a, ()>,
}

impl Receiving<'_> {
    /// A newer transfer waits.
    pub fn is_outdated(&self) -> bool {
        self.holding.turn.load(Ordering::Acquire) != self.turn
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        *self.holding.left_staged.lock() = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::MemoryJournal;
    use super::*;
    use crate::model::LeaderId;
    use crate::model::entry::EntryBytes;

    struct Empty;

    impl Machine for Empty {
        fn apply(&self, _: LogId, _: &EntryBytes) -> Result<Reply, super::super::Fault> {
            Ok(Reply::Nothing)
        }

        fn restored(&self) -> Option<LogId> {
            None
        }
    }

    #[tokio::test]
    async fn a_state_that_comes_to_a_full_disk_is_in_use_when_there_is_space_again() {
        let applied = LogId { leader: LeaderId { term: 1, voter: 1 }, index: 7 };
        let (dir, journal) = (tempfile::tempdir().expect("a directory"), Arc::new(MemoryJournal::default()));
        // More often than one would have patience for.
        let store = Arc::new(StateStore::out_of_space(&dir.path().join("state"), 6));
        journal.full.store(2, Ordering::SeqCst);
        let holding = Holding::new(ShardId(1), Arc::new(Empty), journal.clone(), Some(&store), Ostored::default());
        let adopted = Arc::new(AtomicBool::new(false));
        let adopts = adopted.clone();
        let change = Change { applied, full: true, ..Change::default() };
        let arrived = Arrived { applied, change, live: Vec::new(), adopt: Box::new(move || adopts.store(true, Ordering::SeqCst)) };
        holding.install(Ostored::default(), arrived).await.expect("installed");
        assert!(adopted.load(Ordering::SeqCst));
        assert_eq!(store.load(ShardId(1)).expect("loads").applied, Some(applied));
        assert_eq!((journal.full.load(Ordering::SeqCst), *holding.checkpointed.lock()), (0, Some(applied)));
    }

    #[tokio::test]
    async fn an_installation_ends_with_its_store() {
        let applied = LogId { leader: LeaderId { term: 1, voter: 1 }, index: 7 };
        let (dir, journal) = (tempfile::tempdir().expect("a directory"), Arc::new(MemoryJournal::default()));
        let store = Arc::new(StateStore::out_of_space(&dir.path().join("state"), usize::MAX));
        let holding = Holding::new(ShardId(1), Arc::new(Empty), journal, Some(&store), Ostored::default());
        let change = Change { applied, full: true, ..Change::default() };
        let arrived = Arrived { applied, change, live: Vec::new(), adopt: Box::new(|| panic!("nothing was stored")) };
        drop(store);
        assert!(holding.install(Ostored::default(), arrived).await.is_err());
    }
}
