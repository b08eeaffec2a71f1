//! Damage to synced data: each group that may have lost something is told so at every start until it is mended, the others go on with
//! all that they had.

use super::crash_tests::batches;
use super::tests::{DATA, config, entry, id, open, same, wait};
use super::*;
use crate::model::{Generation, LeaderId, NodeId};
use crate::store::disk::sim::Crash;
use crate::store::disk::{Disk, SimDisk};
use proptest::prelude::*;

const OTHER: ShardId = ShardId(2);
const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), generation: Generation(1), shards: 2 };

/// Files with data, ascending, after some appends with one batch each.
fn filled(seed: u64, entries: u64) -> (SimDisk, Vec<String>) {
    let disk = SimDisk::new(seed);
    let wal = open(&disk);
    wait(|done| wal.save_identity(IDENTITY, done)).unwrap();
    for index in 1..=entries {
        wait(|done| wal.append(DATA, vec![entry(1, index, 300)], done)).unwrap();
    }
    drop(wal);
    let names = files(&disk);
    (disk, names)
}

fn files(disk: &SimDisk) -> Vec<String> {
    let mut names: Vec<String> = disk.list().unwrap().into_iter().filter(|n| !batches(disk, n).is_empty()).collect();
    names.sort();
    names
}

fn remove_sidecars(disk: &SimDisk) {
    for name in disk.list().unwrap().iter().filter(|n| n.ends_with(".idx")) {
        disk.remove(name).unwrap();
    }
}

fn vote(term: u64) -> Vote {
    Vote { leader: LeaderId { term, voter: 65537 }, committed: false }
}

/// Every bit of a place, so that nothing of it makes sense.
fn wreck(disk: &SimDisk, name: &str, (from, to): (u64, u64)) {
    (from * 8..to * 8).step_by(3).for_each(|bit| disk.flip_bit(name, bit));
}

fn after_power_cut(wal: Wal, disk: SimDisk) -> (Wal, SimDisk) {
    drop(wal);
    let disk = disk.crash(Crash::Power);
    (open(&disk), disk)
}

/// What a complete log reads: exactly what was written, or an error where the disk lies.
fn is_complete_or_says_so(wal: &Wal, entries: u64) -> Result<(), TestCaseError> {
    prop_assert_eq!(wal.state(DATA).last.map(|l| l.index), Some(entries));
    for index in 1..=entries {
        match wal.read(DATA, index..index + 1, 0) {
            Ok(read) => prop_assert!(same(&read[0], &entry(1, index, 300))),
            Err(e) => prop_assert_eq!(e.kind(), io::ErrorKind::InvalidData),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn a_flipped_bit_in_a_synced_batch_is_told_and_never_shortens_the_log_in_silence(
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
        let wal = match Wal::open(Arc::new(disk.clone()), config()) {
            Ok(wal) => wal,
            // The first file's first batches are all that tells whose disk this is.
            Err(error) => {
                prop_assert!(matches!(error, WalError::Corrupt { .. }) && newest && names.len() == 1 && chosen <= 1, "{}", error);
                return Ok(());
            }
        };
        if newest && chosen + 1 == places.len() {
            // The newest batch cannot be told from a torn one.
            prop_assert!(wal.damage(DATA).is_none() && wal.state(DATA).last.map_or(0, |l| l.index) + 1 >= entries);
        } else if wal.damage(DATA).is_none() {
            is_complete_or_says_so(&wal, entries)?;
        } else {
            let told = wal.damage(DATA);
            let (wal, _) = after_power_cut(wal, disk);
            prop_assert_eq!(wal.damage(DATA), told, "told again until it is mended");
        }
    }

    #[test]
    fn a_flipped_bit_in_a_file_header_loses_nothing(seed: u64, entries in 40..90u64, file: prop::sample::Index, bit in 0..36 * 8u64, sidecars: bool) {
        let (disk, names) = filled(seed, entries);
        let name = file.get(&names);
        if batches(&disk, name).len() > 1 {
            disk.flip_bit(name, bit);
            if !sidecars {
                remove_sidecars(&disk);
            }
            match Wal::open(Arc::new(disk), config()) {
                Ok(wal) => {
                    prop_assert_eq!(wal.damage(DATA), None);
                    is_complete_or_says_so(&wal, entries)?;
                }
                Err(error) => prop_assert!(matches!(error, WalError::Version { .. }), "{}", error),
            }
        }
    }
}

#[test]
fn a_missing_file_is_told() {
    let (disk, names) = filled(1, 80);
    assert!(names.len() >= 3);
    disk.remove(&names[1]).unwrap();
    let wal = open(&disk);
    assert_eq!(wal.damage(DATA), Some(Damage { votes: None }));
    assert_eq!(wal.damage(ShardId::CATALOG), None, "nothing of it is missing");
}

#[test]
fn a_log_that_does_not_know_whose_it_is_any_more_is_refused_and_left_as_it_was() {
    let (disk, names) = filled(2, 5);
    let places = batches(&disk, &names[0]);
    wreck(&disk, &names[0], (places[0].0, places[2].1));
    let picture = || -> Vec<_> { disk.list().unwrap().iter().map(|n| (n.clone(), disk.contents(n))).collect() };
    let before = picture();
    let Err(error) = Wal::open(Arc::new(disk.clone()), config()) else { panic!("accepted") };
    assert!(error.to_string().contains("does not know what it has confirmed"), "{error}");
    assert!(before == picture());
}

/// One batch each: entries of both groups, a vote of the other.
fn two_groups(seed: u64) -> (SimDisk, String) {
    let disk = SimDisk::new(seed);
    let wal = open(&disk);
    wait(|done| wal.save_identity(IDENTITY, done)).unwrap();
    for index in 1..=4 {
        wait(|done| wal.append(DATA, vec![entry(1, index, 300)], done)).unwrap();
        wait(|done| wal.append(OTHER, vec![entry(1, index, 200)], done)).unwrap();
    }
    wait(|done| wal.save_vote(OTHER, vote(9), done)).unwrap();
    wait(|done| wal.append(DATA, vec![entry(1, 5, 300)], done)).unwrap();
    drop(wal);
    let name = files(&disk).pop().unwrap();
    (disk, name)
}

#[test]
fn a_rotten_payload_takes_only_its_own_group() {
    let (disk, name) = two_groups(3);
    // META, identity, then DATA 1.
    let (from, _) = batches(&disk, &name)[2];
    disk.flip_bit(&name, (from + 64 + 40 + 50) * 8);
    let wal = open(&disk);
    assert_eq!((wal.damage(DATA), wal.damage(OTHER), wal.damage(ShardId::CATALOG)), (Some(Damage { votes: None }), None, None));
    assert_eq!(wal.stats().damages, 1);
    // The other one goes on where it was.
    assert_eq!((wal.state(OTHER).last, wal.state(OTHER).vote), (Some(id(1, 4)), Some(vote(9))));
    wait(|done| wal.append(OTHER, vec![entry(9, 5, 10)], done)).unwrap();
    let (wal, _) = after_power_cut(wal, disk);
    assert_eq!((wal.damage(DATA), wal.damage(OTHER)), (Some(Damage { votes: None }), None));
    assert_eq!(wal.read(OTHER, 1..9, usize::MAX).unwrap().len(), 5);
}

#[test]
fn what_nobody_can_read_any_more_may_have_been_anybodys_vote() {
    let (disk, name) = two_groups(4);
    // The vote, before the last entry of DATA.
    let places = batches(&disk, &name);
    wreck(&disk, &name, places[places.len() - 2]);
    let wal = open(&disk);
    let told = Some(Damage { votes: Some(9) });
    assert_eq!([ShardId::CATALOG, DATA, OTHER].map(|shard| wal.damage(shard)), [told; 3]);
    // The first one is mended: with a vote that is not older than the lost one.
    wait(|done| wal.save_vote(DATA, vote(10), done)).unwrap();
    wait(|done| wal.mended(DATA, done)).unwrap();
    let (wal, _) = after_power_cut(wal, disk);
    assert_eq!([ShardId::CATALOG, DATA, OTHER].map(|shard| wal.damage(shard)), [told, None, told]);
    assert_eq!(wal.state(DATA).vote, Some(vote(10)));
}

#[test]
fn damage_that_was_dealt_with_is_not_told_again_when_it_is_met_again_nor_when_its_notes_moved_on() {
    let (disk, name) = two_groups(5);
    let places = batches(&disk, &name);
    wreck(&disk, &name, places[4]);
    let wal = open(&disk);
    assert!(wal.damage(DATA).is_some() && wal.damage(OTHER).is_some());
    for shard in [ShardId::CATALOG, DATA, OTHER] {
        wait(|done| wal.prepare_install(shard, id(8, 20), None, done)).unwrap();
        wait(|done| wal.finish_install(shard, id(8, 20), done)).unwrap();
        wait(|done| wal.mended(shard, done)).unwrap();
    }
    // A pinned entry of the damaged file keeps it.
    assert_eq!(wal.state(DATA).last, Some(id(8, 20)), "nothing behind the state stays");
    let (mut wal, mut disk) = after_power_cut(wal, disk);
    for round in 0..40 {
        assert_eq!([ShardId::CATALOG, DATA, OTHER].map(|shard| wal.damage(shard)), [None; 3], "round {round}");
        wait(|done| wal.append(DATA, vec![entry(8, 21 + round, 900)], done)).unwrap();
        if round % 10 == 9 {
            (wal, disk) = after_power_cut(wal, disk);
        }
    }
    assert!(disk.contents(&name).is_some() && files(&disk).len() > 2, "the damaged file is still kept, and its notes are in a META");
}

#[test]
fn old_damage_of_what_nobody_needs_any_more_is_nobodys() {
    let disk = SimDisk::new(6);
    let wal = open(&disk);
    wait(|done| wal.save_identity(IDENTITY, done)).unwrap();
    wait(|done| wal.append(OTHER, vec![entry(1, 1, 10)], done)).unwrap();
    for index in 1..=60 {
        wait(|done| wal.append(DATA, vec![entry(1, index, 300)], done)).unwrap();
    }
    // OTHER's entry keeps the first file; DATA's are gone.
    wal.release(DATA, &(1..=59).collect::<Vec<_>>());
    wal.purge(DATA, id(1, 59));
    wait(|done| wal.append(DATA, vec![entry(1, 61, 300)], done)).unwrap();
    drop(wal);
    let name = files(&disk).remove(0);
    let places = batches(&disk, &name);
    wreck(&disk, &name, places[6]);
    remove_sidecars(&disk);
    let wal = open(&disk);
    assert_eq!(wal.damage(DATA), None, "all that was there is purged");
    assert_eq!(wal.damage(OTHER), Some(Damage { votes: None }), "its entry 1 may have been replaced there");
    assert_eq!(wal.damage(ShardId::CATALOG), None, "it had nothing then");
}

#[test]
fn what_could_not_be_read_back_is_looked_for_at_the_next_start() {
    let (disk, names) = filled(7, 80);
    let wal = open(&disk);
    let began = std::time::Instant::now();
    while disk.open(&file::sidecar_name(1)).is_err() {
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "the first file has a sidecar");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (from, _) = batches(&disk, &names[0])[3];
    disk.flip_bit(&names[0], (from + 64 + 40 + 7) * 8);
    drop(wal);
    let wal = open(&disk);
    assert_eq!(wal.damage(DATA), None, "the sidecar hides it");
    wal.verify(DATA, 40).unwrap();
    assert_eq!(wal.damage(DATA), None, "it lies before that");
    let bad: Vec<u64> = (1..=80).filter(|index| wal.read(DATA, *index..index + 1, 0).is_err()).collect();
    assert_eq!(bad.len(), 1);
    drop(wal);
    let wal = open(&disk);
    assert_eq!(wal.damage(DATA), Some(Damage { votes: None }));
}

#[test]
fn what_a_group_is_made_from_is_read_before_and_is_damage_when_it_cannot_be() {
    let (disk, names) = filled(8, 80);
    let (from, _) = batches(&disk, &names[0])[6];
    disk.flip_bit(&names[0], (from + 64 + 40 + 7) * 8);
    let wal = open(&disk);
    if wal.damage(DATA).is_none() {
        // There was a sidecar.
        wal.verify(DATA, 0).unwrap();
    }
    assert_eq!(wal.damage(DATA), Some(Damage { votes: None }));
    let (wal, _) = after_power_cut(wal, disk);
    assert_eq!(wal.damage(DATA), Some(Damage { votes: None }));
}

#[test]
fn where_a_log_begins_is_read_before_too() {
    let (disk, names) = filled(9, 80);
    let wal = open(&disk);
    wal.purge(DATA, id(1, 4));
    wait(|done| wal.append(DATA, vec![entry(1, 81, 300)], done)).unwrap();
    let at = wal.shared.lock().shards[&DATA].find(5).unwrap();
    drop(wal);
    assert_eq!(at.file, 1);
    disk.flip_bit(&names[0], (u64::from(at.position) + 40 + 7) * 8);
    let wal = open(&disk);
    if wal.damage(DATA).is_none() {
        wal.verify(DATA, 60).unwrap();
    }
    assert_eq!(wal.damage(DATA), Some(Damage { votes: None }));
}

/// The notes are written like everything else: a crash at any of the first writes after the damage was found forgets nothing.
#[test]
fn a_crash_while_damage_is_noted_does_not_hide_it() {
    for writes in 1..8 {
        let (mut disk, name) = two_groups(100 + writes);
        let places = batches(&disk, &name);
        wreck(&disk, &name, places[5]);
        disk.stop_after_writes(writes);
        for crash in [Crash::Power, Crash::Process] {
            drop(Wal::open(Arc::new(disk.clone()), WalConfig { fatal: Some(Arc::new(|_| ())), ..config() }));
            disk = disk.crash(crash);
        }
        let wal = open(&disk);
        assert!([ShardId::CATALOG, DATA, OTHER].iter().all(|shard| wal.damage(*shard).is_some()), "after {writes} writes");
    }
}
