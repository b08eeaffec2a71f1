//! Crash matrix: random histories on a lying disk. What comes back must be a prefix of what was asked for, with all that was
//! acknowledged; damage to synced data must be refused or be seen by the reader, never shorten the log in silence.

use super::format::{FileHeader, HeaderRead, SECTOR};
use super::scan::Scan;
use super::tests::{DATA, config, entry, id, open, same, wait};
use super::*;
use crate::model::LeaderId;
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
            Ask::Settle => {
                let _ = wait(|done| wal.append(DATA, Vec::new(), done)); // fails after a crash
            }
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
        wal = open(&disk);
        let n = history.recovered(&wal);
        history.units.truncate(n);
        history.acked.store(n, Ordering::SeqCst); // what was reported is a promise (rule 4)
        history.check_pinned(&wal);
    }
    drop(wal);
    let wal = open(&disk.crash(Crash::Power));
    assert_eq!(history.recovered(&wal), history.units.len());
    history.check_pinned(&wal);
}

fn lives() -> impl Strategy<Value = Vec<(Vec<Ask>, u64, bool)>> {
    prop::collection::vec((prop::collection::vec(ask(), 1..60), prop_oneof![1..12u64, 1..400u64], any::<bool>()), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn after_any_crash_a_prefix_with_all_that_was_acknowledged_comes_back(seed: u64, lives in lives()) {
        crash_history(seed, lives);
    }
}

/// Bits where each intact batch lies, first to last, of the newest file.
fn batches(disk: &SimDisk, name: &str) -> Vec<(u64, u64)> {
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

/// Files with data, ascending, after some appends with one batch each.
fn filled(seed: u64, entries: u64) -> (SimDisk, Vec<String>) {
    let disk = SimDisk::new(seed);
    let wal = open(&disk);
    for index in 1..=entries {
        wait(|done| wal.append(DATA, vec![entry(1, index, 300)], done)).unwrap();
    }
    drop(wal);
    let mut names: Vec<String> = disk.list().unwrap().into_iter().filter(|n| !batches(&disk, n).is_empty()).collect();
    names.sort();
    (disk, names)
}

fn remove_sidecars(disk: &SimDisk) {
    for name in disk.list().unwrap().iter().filter(|n| n.ends_with(".idx")) {
        disk.remove(name).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_flipped_bit_in_a_synced_batch_is_refused_and_never_shortens_the_log(
        seed: u64, entries in 1..90u64, file: prop::sample::Index, batch: prop::sample::Index, bit: prop::sample::Index, sidecars: bool,
    ) {
        let (disk, names) = filled(seed, entries);
        let name = file.get(&names);
        let places = batches(&disk, name);
        let chosen = batch.index(places.len());
        let (from, to) = places[chosen];
        disk.flip_bit(name, from * 8 + bit.index((to - from) as usize * 8) as u64);
        if !sidecars {
            remove_sidecars(&disk);
        }
        let newest = names.last() == Some(name);
        match Wal::open(Arc::new(disk), config()) {
            Err(WalError::Corrupt { groups, .. }) => {
                prop_assert!(!(newest && chosen + 1 == places.len()) || chosen == 0, "a torn last batch was refused");
                prop_assert!(groups.contains(&DATA) || entries < 2 || names.len() == 1, "{:?}", groups);
            }
            Err(other) => prop_assert!(false, "{other}"),
            Ok(wal) if newest => {
                // The newest batch cannot be told from a torn one.
                prop_assert_eq!(chosen + 1, places.len());
                prop_assert!(wal.state(DATA).last.map_or(0, |l| l.index) + 1 >= entries);
            }
            Ok(wal) => {
                prop_assert!(sidecars, "a scanned file was accepted with a flipped bit");
                prop_assert_eq!(wal.state(DATA).last.map(|l| l.index), Some(entries));
                for index in 1..=entries {
                    match wal.read(DATA, index..index + 1, 0) {
                        Ok(read) => prop_assert!(same(&read[0], &entry(1, index, 300))),
                        Err(e) => prop_assert_eq!(e.kind(), io::ErrorKind::InvalidData),
                    }
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_in_a_file_header_is_refused(seed: u64, entries in 40..90u64, file: prop::sample::Index, bit in 0..36 * 8u64, sidecars: bool) {
        let (disk, names) = filled(seed, entries);
        let name = file.get(&names);
        if batches(&disk, name).len() > 1 {
            disk.flip_bit(name, bit);
            if !sidecars {
                remove_sidecars(&disk);
            }
            let refused = matches!(Wal::open(Arc::new(disk), config()), Err(WalError::Corrupt { .. }));
            prop_assert!(refused);
        }
    }
}

#[test]
fn a_missing_file_is_refused() {
    let (disk, names) = filled(1, 80);
    assert!(names.len() >= 3);
    disk.remove(&names[1]).unwrap();
    let Err(WalError::Corrupt { groups, .. }) = Wal::open(Arc::new(disk), config()) else { panic!("accepted") };
    assert_eq!(groups, [DATA]);
}

#[test]
fn a_refused_log_is_left_as_it_was() {
    let (disk, names) = filled(2, 80);
    let (from, _) = batches(&disk, &names[0])[3];
    disk.flip_bit(&names[0], from * 8 + 70 * 8);
    remove_sidecars(&disk);
    let before: Vec<_> = disk.list().unwrap().iter().map(|n| (n.clone(), disk.contents(n))).collect();
    assert!(Wal::open(Arc::new(disk.clone()), config()).is_err());
    let after: Vec<_> = disk.list().unwrap().iter().map(|n| (n.clone(), disk.contents(n))).collect();
    assert!(before == after);
}

#[test]
fn a_crash_at_every_single_write_around_a_rotation_loses_nothing() {
    for writes in 1..140 {
        for power in [false, true] {
            let fill = Ask::Append { shard: 1, entries: 1, len: 900 };
            let asks: Vec<Ask> = (0..40).flat_map(|_| [fill.clone(), Ask::Vote { shard: 2 }, Ask::Settle]).collect();
            crash_history(writes, vec![(asks.clone(), writes, power), (asks[..12].to_vec(), 10 + writes % 7, true)]);
        }
    }
}
