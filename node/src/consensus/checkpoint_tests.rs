//! Checkpoints of one group: a machine and a log of the test's making, or the real ones over a disk that hangs, and a real store.

use super::super::tests::MemoryJournal;
use super::*;
use crate::consensus::journal::{Journal, LogEntry, Payload};
use crate::consensus::log::completion;
use crate::consensus::machine::{Fault, Machine};
use crate::consensus::replica::{Observer, Replicas};
use crate::consensus::types::{Ostored, Reply};
use crate::machine::Effect;
use crate::model::LeaderId;
use crate::model::entry::{EntryBuilder, EntryBytes};
use crate::store::disk::SimDisk;
use crate::store::wal::{Wal, WalConfig};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

const SHARD: ShardId = ShardId(1);

fn id(term: u64, index: u64) -> LogId {
    LogId { leader: LeaderId { term, voter: 1 }, index }
}

/// A machine that only counts.
#[derive(Default)]
struct Counter {
    applied: AtomicU64,
    captures: AtomicUsize,
    lost: AtomicUsize,
    panics: AtomicBool,
}

impl Machine for Counter {
    fn apply(&self, id: LogId, _: &EntryBytes) -> Result<Reply, Fault> {
        self.applied.store(id.index, Ordering::SeqCst);
        Ok(Reply::Nothing)
    }

    fn restored(&self) -> Option<LogId> {
        Some(id(1, self.applied.load(Ordering::SeqCst)))
    }

    fn checkpoint(&self) -> Option<Change> {
        assert!(!self.panics.load(Ordering::SeqCst), "on purpose");
        let applied = id(1, self.applied.load(Ordering::SeqCst));
        self.captures.fetch_add(1, Ordering::SeqCst);
        Some(Change { applied, full: true, ..Change::default() })
    }

    fn checkpoint_lost(&self) {
        self.lost.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    machine: Arc<Counter>,
    journal: Arc<MemoryJournal>,
    holding: Arc<Holding>,
    store: Arc<StateStore>,
    _dir: tempfile::TempDir,
}

/// Applied up to 5, of which the disk has 4.
fn bench() -> Bench {
    let (machine, journal) = (Arc::new(Counter::default()), Arc::new(MemoryJournal::default()));
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(StateStore::open(&dir.path().join("state")).expect("opens").0);
    let holding = Holding::new(SHARD, machine.clone(), journal.clone(), Some(&store), Ostored::default());
    machine.applied.store(5, Ordering::SeqCst);
    journal.lags.store(true, Ordering::SeqCst);
    *journal.flushed.lock() = Some(id(1, 4));
    Bench { machine, journal, holding, store, _dir: dir }
}

impl Bench {
    fn start(&self) -> tokio::task::JoinHandle<Result<(), Failed>> {
        let (holding, store) = (self.holding.clone(), self.store.clone());
        tokio::spawn(async move { checkpoint(&holding, &store).await })
    }

    async fn until(&self, what: impl Fn(&Counter) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !what(&self.machine) {
            assert!(Instant::now() < deadline, "not in time");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn what_was_captured_is_stored_when_the_disk_has_it_however_much_is_applied_meanwhile() {
    let bench = bench();
    let running = bench.start();
    bench.until(|machine| machine.captures.load(Ordering::SeqCst) == 1).await;
    assert_eq!(bench.store.load(SHARD).expect("loads").applied, None, "newer than the log on this disk");
    // The disk follows, and is always behind.
    for index in 6..20 {
        bench.machine.applied.store(index, Ordering::SeqCst);
        *bench.journal.flushed.lock() = Some(id(1, index - 1));
    }
    assert_eq!(running.await.expect("runs"), Ok(()));
    assert_eq!(bench.store.load(SHARD).expect("loads").applied, Some(id(1, 5)));
    assert_eq!(*bench.holding.checkpointed.lock(), Some(id(1, 5)));
    assert_eq!(bench.machine.lost.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_checkpoint_that_ends_on_its_way_leaves_a_machine_that_knows_that_nothing_was_stored() {
    let bench = bench();
    let running = bench.start();
    bench.until(|machine| machine.captures.load(Ordering::SeqCst) == 1).await;
    running.abort();
    assert!(running.await.is_err());
    bench.until(|machine| machine.lost.load(Ordering::SeqCst) == 1).await;
    bench.machine.panics.store(true, Ordering::SeqCst);
    assert_eq!(bench.start().await.expect("runs"), Err(Failed::GivenUp));
    assert_eq!(bench.machine.lost.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_store_without_space_is_asked_again_and_the_machine_told() {
    let mut bench = bench();
    let dir = tempfile::tempdir().expect("a directory");
    bench.store = Arc::new(StateStore::out_of_space(&dir.path().join("state"), 2));
    *bench.journal.flushed.lock() = Some(id(1, 5));
    for failures in 1..=2 {
        assert!(matches!(bench.start().await.expect("runs"), Err(Failed::Store(StateError::Disk(_)))));
        assert_eq!(bench.machine.lost.load(Ordering::SeqCst), failures);
    }
    assert_eq!(bench.start().await.expect("runs"), Ok(()));
    assert_eq!(bench.machine.lost.load(Ordering::SeqCst), 2);
}

struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _: ShardId, _: LogId, _: Vec<Effect>) {}
}

fn entries(term: u64, indices: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    indices.map(|index| LogEntry { id: id(term, index), payload: Payload::Normal(EntryBuilder::new(index).finish()) }).collect()
}

/// Between the truncation of 4 and 5 and the flush of what took their place the machine is at an index that was flushed once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_waits_while_what_it_holds_replaced_something_flushed_and_is_not_flushed_itself() {
    let disk = SimDisk::new(3);
    let wal = Wal::open(Arc::new(disk.clone()), WalConfig::default()).expect("opens");
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(StateStore::open(&dir.path().join("state")).expect("opens").0);
    let replicas = Replicas::new(None, Arc::new(Nobody));
    let machine = replicas.machines(Arc::new(wal.clone()))(SHARD).expect("of this version");
    let holding = Holding::new(SHARD, machine.clone(), Arc::new(wal.clone()), Some(&store), Ostored::default());
    let (done, flush) = completion();
    Journal::append(&wal, SHARD, entries(1, 1..=5), done);
    flush.await.expect("flushed");
    disk.hang_syncs(true);
    Journal::truncate_after(&wal, SHARD, Some(id(1, 3)), Box::new(|_| ()));
    let (done, flush) = completion();
    Journal::append(&wal, SHARD, entries(2, 4..=5), done);
    for entry in entries(1, 1..=3).into_iter().chain(entries(2, 4..=5)) {
        let Payload::Normal(bytes) = entry.payload else { continue };
        machine.apply(entry.id, &bytes).expect("applied");
    }
    let saving = {
        let (holding, store) = (holding.clone(), store.clone());
        async move { checkpoint(&holding, &store).await }
    };
    let mut saving = tokio::spawn(saving);
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut saving).await.is_err(), "5 of the old leader is not 5 of the new one");
    assert_eq!(store.load(SHARD).expect("loads").applied, None);
    disk.hang_syncs(false);
    flush.await.expect("flushed");
    assert_eq!(saving.await.expect("runs"), Ok(()));
    assert_eq!(store.load(SHARD).expect("loads").applied, Some(id(2, 5)));
}
