//! Crash matrix: random histories on a lying disk. What comes back must be a prefix of what was asked for, with all that was
//! acknowledged; damage to synced data must be told or be seen by the reader, never shorten the log in silence (see `damage_tests`).

use super::format::{FileHeader, HeaderRead, SECTOR};
use super::scan::Scan;
use super::tests::{DATA, entry, id, open, reopen, same, wait};
use super::*;
use crate::model::LeaderId;
use crate::model::entry::trimmed;
use crate::store::disk::sim::Crash;
use crate::store::disk::{Disk, SimDisk};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

const SHARDS: [ShardId; 3] = [ShardId::CATALOG, DATA, ShardId(2)];

#[derive(Clone, Debug)]
enum Ask {
    Append { shard: usize, entries: usize, len: usize },
    Vote { shard: usize },
    Truncate { shard: usize, back: u64 },
    Purge { shard: usize, part: u8 },
    Release { shard: usize, part: u8 },
    Relocate { part: u8 },
    Committed { shard: usize },
    Settle,
}

fn ask() -> impl Strategy<Value = Ask> {
    let shard = 0..SHARDS.len();
    prop_oneof![
        8 => (shard.clone(), 1..4usize, prop_oneof![3 => 0..200usize, 1 => 200..5000usize]).prop_map(|(shard, entries, len)| Ask::Append { shard, entries, len }),
        1 => shard.clone().prop_map(|shard| Ask::Vote { shard }),
        1 => (shard.clone(), 0..4u64).prop_map(|(shard, back)| Ask::Truncate { shard, back }),
        2 => (shard.clone(), any::<u8>()).prop_map(|(shard, part)| Ask::Purge { shard, part }),
        2 => (shard.clone(), any::<u8>()).prop_map(|(shard, part)| Ask::Release { shard, part }),
        2 => any::<u8>().prop_map(|part| Ask::Relocate { part }),
        1 => shard.prop_map(|shard| Ask::Committed { shard }),
        2 => Just(Ask::Settle),
    ]
}

/// One record's effect: histories are cut between these.
#[derive(Clone, Debug)]
enum Unit {
    Entry(ShardId, LogEntry),
    Vote(ShardId, Vote),
    Truncate(ShardId, Option<LogId>),
    Purge(ShardId, LogId),
}

#[derive(Clone, Debug, Default)]
struct Naive {
    vote: Option<Vote>,
    purged: Option<LogId>,
    log: BTreeMap<u64, LogEntry>,
    /// Purged, and may be read until it is released.
    pinned: BTreeMap<u64, LogEntry>,
}

impl Naive {
    fn last(&self) -> Option<LogId> {
        self.log.values().next_back().map(|e| e.id).or(self.purged)
    }

    fn apply(&mut self, unit: &Unit) {
        match unit {
            Unit::Entry(_, e) => {
                self.log.insert(e.id.index, e.clone());
            }
            Unit::Vote(_, vote) => self.vote = Some(*vote),
            Unit::Truncate(_, keep) => self.log.retain(|i, _| Some(*i) <= keep.map(|k| k.index)),
            Unit::Purge(_, upto) => {
                let rest = self.log.split_off(&(upto.index + 1));
                self.pinned.append(&mut std::mem::replace(&mut self.log, rest));
                self.purged = Some(*upto);
            }
        }
    }
}

fn state_after(units: &[Unit]) -> BTreeMap<ShardId, Naive> {
    let mut groups: BTreeMap<ShardId, Naive> = SHARDS.iter().map(|s| (*s, Naive::default())).collect();
    for unit in units {
        let (Unit::Entry(s, _) | Unit::Vote(s, _) | Unit::Truncate(s, _) | Unit::Purge(s, _)) = unit;
        groups.get_mut(s).unwrap().apply(unit);
    }
    groups
}

/// A history and how much of it is known to be durable.
struct History {
    units: Vec<Unit>,
    acked: Arc<AtomicUsize>,
    released: BTreeMap<ShardId, std::collections::BTreeSet<u64>>,
    term: u64,
}

impl History {
    fn ack(&self) -> impl FnOnce(io::Result<()>) + Send + use<> {
        let (acked, at) = (self.acked.clone(), self.units.len());
        move |result| {
            if result.is_ok() {
                acked.fetch_max(at, Ordering::SeqCst);
            }
        }
    }

    fn run(&mut self, wal: &Wal, ask: &Ask) {
        match *ask {
            Ask::Append { shard, entries, len } => self.append(wal, SHARDS[shard], entries, len),
            Ask::Vote { shard } => {
                self.term += 1;
                let vote = Vote { leader: LeaderId { term: self.term, voter: 65537 }, committed: self.term.is_multiple_of(2) };
                self.units.push(Unit::Vote(SHARDS[shard], vote));
                wal.save_vote(SHARDS[shard], vote, self.ack());
            }
            Ask::Truncate { shard, back } => self.truncate(wal, SHARDS[shard], back),
            Ask::Purge { shard, part } => {
                let state = wal.state(SHARDS[shard]);
                let (Some(flushed), from) = (wal.flushed(SHARDS[shard]), state.purged.map_or(0, |p| p.index)) else { return };
                let upto = from + (flushed.index - from) * u64::from(part) / 255;
                if upto > from {
                    let upto = wal.read(SHARDS[shard], upto..upto + 1, 0).map(|e| e[0].id);
                    let Ok(upto) = upto else { return };
                    self.units.push(Unit::Purge(SHARDS[shard], upto));
                    wal.purge(SHARDS[shard], upto);
                }
            }
            Ask::Release { shard, part } => {
                let Some(flushed) = wal.flushed(SHARDS[shard]) else { return };
                let indices: Vec<u64> = (0..=flushed.index).filter(|i| i * 7 % 256 <= u64::from(part)).collect();
                self.released.entry(SHARDS[shard]).or_default().extend(&indices);
                wal.release(SHARDS[shard], &indices);
            }
            Ask::Committed { shard } => {
                if let Some(last) = wal.state(SHARDS[shard]).last {
                    wal.save_committed(SHARDS[shard], last);
                }
            }
            Ask::Relocate { part } => relocate(wal, part),
            Ask::Settle => settle(wal),
        }
    }

    fn append(&mut self, wal: &Wal, shard: ShardId, count: usize, len: usize) {
        let next = wal.state(shard).last.map_or(1, |id| id.index + 1);
        let mut entries = Vec::new();
        for index in next..next + count as u64 {
            let e = match (self.units.len() + len) % 9 {
                0 => LogEntry { id: id(self.term, index), payload: Payload::Blank },
                1 => LogEntry { id: id(self.term, index), payload: Payload::Membership(vec![index as u8; 5].into()) },
                _ => entry(self.term, index, len),
            };
            self.units.push(Unit::Entry(shard, e.clone()));
            entries.push(e);
        }
        wal.append(shard, entries, self.ack());
    }

    /// Never below what was purged or released: that was applied.
    fn truncate(&mut self, wal: &Wal, shard: ShardId, back: u64) {
        let state = wal.state(shard);
        let Some(last) = state.last else { return };
        let applied = self.released.get(&shard).and_then(|r| r.last().copied()).max(state.purged.map(|p| p.index));
        let keep = last.index.saturating_sub(back).max(applied.unwrap_or(0));
        if keep >= last.index {
            return;
        }
        self.term += 1; // another leader writes there
        let keep = match wal.read(shard, keep..keep + 1, 0).ok().and_then(|mut e| e.pop()) {
            Some(e) => Some(e.id),
            None => state.purged,
        };
        self.units.push(Unit::Truncate(shard, keep));
        wal.truncate_after(shard, keep, self.ack());
    }

    /// How much of the history came back; fails the test when it is no prefix or lacks what was acknowledged.
    fn recovered(&self, wal: &Wal) -> usize {
        let acked = self.acked.load(Ordering::SeqCst);
        let found = (acked..=self.units.len()).rev().find(|n| matches(wal, &state_after(&self.units[..*n])));
        found.unwrap_or_else(|| {
            let expected: Vec<_> = state_after(&self.units[..acked]).iter().map(|(s, n)| (*s, n.purged, n.last())).collect();
            let shards: Vec<_> = SHARDS.iter().map(|s| wal.state(*s)).collect();
            panic!("no prefix from {acked} on of {} matches\nacknowledged {expected:?}\nfound {shards:?}", self.units.len())
        })
    }

    /// Purged and not released: still there.
    fn check_pinned(&self, wal: &Wal) {
        for (shard, naive) in state_after(&self.units) {
            for (index, e) in naive.pinned.iter().filter(|(_, e)| matches!(e.payload, Payload::Normal(_)) && shard != ShardId::CATALOG) {
                if !self.released.get(&shard).is_some_and(|r| r.contains(index)) {
                    let read = wal.read(shard, *index..index + 1, 0).unwrap();
                    assert!(read.len() == 1 && same(&read[0], e), "pinned entry {index} of {shard}");
                }
            }
        }
    }
}

/// Some of the entries that may leave their files do, whole.
fn relocate(wal: &Wal, part: u8) {
    for file in wal.old_files(0, u64::MAX).files {
        for (shard, index, _) in file.entries.into_iter().filter(|(_, index, _)| index * 7 % 256 <= u64::from(part)) {
            let Some(LogEntry { id, payload }) = wal.read(shard, index..index + 1, 0).ok().and_then(|mut read| read.pop()) else {
                continue;
            };
            let left = match payload {
                Payload::Normal(rope) => trimmed::whole(&rope),
                Payload::Trimmed(left) => left,
                Payload::Blank | Payload::Membership(_) => panic!("it holds no messages"),
            };
            wal.relocate(shard, vec![Moved { id, from: file.seq, left }], |_| ());
        }
    }
}

/// Wait until all earlier requests are answered, or until the dead disk looks like a full one.
fn settle(wal: &Wal) {
    let (tx, rx) = std::sync::mpsc::channel();
    wal.append(DATA, Vec::new(), move |_| tx.send(()).unwrap_or_default());
    while rx.recv_timeout(std::time::Duration::from_millis(1)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        if wal.stats().full {
            return;
        }
    }
}

fn matches(wal: &Wal, groups: &BTreeMap<ShardId, Naive>) -> bool {
    groups.iter().all(|(shard, naive)| {
        let state = wal.state(*shard);
        if (state.vote, state.purged, state.last) != (naive.vote, naive.purged, naive.last()) {
            return false;
        }
        let from = naive.purged.map_or(1, |p| p.index + 1);
        let read = wal.read(*shard, from..u64::MAX, usize::MAX).unwrap();
        read.len() == naive.log.len() && read.iter().zip(naive.log.values()).all(|(a, b)| same(a, b))
    })
}

fn crash_history(seed: u64, lives: Vec<(Vec<Ask>, u64, bool)>) {
    let mut disk = SimDisk::new(seed);
    let mut history = History { units: Vec::new(), acked: Arc::default(), released: BTreeMap::new(), term: 1 };
    let mut wal = open(&disk);
    for (asks, writes, power) in lives {
        disk.stop_after_writes(writes);
        asks.iter().for_each(|ask| history.run(&wal, ask));
        let crash = if power { Crash::Power } else { Crash::Process };
        disk = disk.crash(crash);
        drop(wal); // its threads see a dead disk
        wal = reopen(&disk);
        let n = history.recovered(&wal);
        history.units.truncate(n);
        history.acked.store(n, Ordering::SeqCst); // what was reported is a promise (rule 4)
        history.check_pinned(&wal);
    }
    drop(wal);
    let wal = reopen(&disk.crash(Crash::Power));
    assert_eq!(history.recovered(&wal), history.units.len());
    history.check_pinned(&wal);
}

/// `WAL_CRASH_CASES=5000` for a long run.
fn cases() -> u32 {
    std::env::var("WAL_CRASH_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

fn lives() -> impl Strategy<Value = Vec<(Vec<Ask>, u64, bool)>> {
    prop::collection::vec((prop::collection::vec(ask(), 1..60), prop_oneof![1..12u64, 1..400u64], any::<bool>()), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn after_any_crash_a_prefix_with_all_that_was_acknowledged_comes_back(seed: u64, lives in lives()) {
        crash_history(seed, lives);
    }
}

/// Bits where each intact batch lies, first to last, of the newest file.
pub(super) fn batches(disk: &SimDisk, name: &str) -> Vec<(u64, u64)> {
    let file = disk.open(name).unwrap();
    let mut sector = [0; SECTOR as usize];
    file.read_at(&mut sector, 0).unwrap();
    let HeaderRead::Valid(header) = FileHeader::decode(&sector) else { return Vec::new() };
    if Some(header.lap.seq) != file::seq_of(name, ".wal") {
        return Vec::new();
    }
    let (mut scan, mut at, mut found) = (Scan::new(&*file).unwrap(), SECTOR, Vec::new());
    while let Some(batch) = scan.header(at).unwrap().filter(|b| b.lap == header.lap) {
        found.push((at, at + u64::from(batch.len)));
        at = batch.end();
    }
    found
}

#[test]
fn a_crash_at_every_single_write_around_a_rotation_loses_nothing() {
    for writes in 1..110u64 {
        let power = writes.is_multiple_of(2);
        let fill = Ask::Append { shard: 1, entries: 1, len: 900 };
        let asks: Vec<Ask> = (0..40).flat_map(|_| [fill.clone(), Ask::Vote { shard: 2 }, Ask::Settle]).collect();
        crash_history(writes, vec![(asks.clone(), writes, power), (asks[..12].to_vec(), 10 + writes % 7, true)]);
    }
}

#[test]
fn entries_stay_truncated_when_the_file_that_says_so_is_recycled() {
    let disk = SimDisk::new(3);
    let wal = open(&disk);
    let append = |shard, entry| wait(|done| wal.append(shard, vec![entry], done)).unwrap();
    (1..=8).for_each(|index| append(DATA, entry(1, index, 10)));
    // The catalog fills files; the data shard's entries keep the first one.
    let mut next = 1;
    let mut fill_until = |file: u32| {
        while disk.contents(&file::file_name(file)).is_none_or(|_| batches(&disk, &file::file_name(file)).is_empty()) {
            append(ShardId::CATALOG, entry(1, next, 1000));
            next += 1;
        }
        next - 1
    };
    fill_until(2);
    wait(|done| wal.truncate_after(DATA, Some(id(1, 4)), done)).unwrap();
    let upto = fill_until(3);
    wal.purge(ShardId::CATALOG, id(1, upto));
    wait(|done| wal.append(DATA, Vec::new(), done)).unwrap();
    let began = std::time::Instant::now();
    while disk.contents(&file::file_name(2)).is_some() {
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "file 2 is not needed");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(disk.contents(&file::file_name(1)).is_some());
    drop(wal);
    let wal = open(&disk.crash(Crash::Process));
    assert_eq!(wal.state(DATA).last, Some(id(1, 4)));
    assert_eq!(wal.read(DATA, 1..9, usize::MAX).unwrap().len(), 4);
    wait(|done| wal.append(DATA, vec![entry(2, 5, 10)], done)).unwrap();
    assert!(same(&wal.read(DATA, 5..6, 0).unwrap()[0], &entry(2, 5, 10)));
}
