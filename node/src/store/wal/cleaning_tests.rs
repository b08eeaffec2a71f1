//! Entries that leave old files: found at the new place from when it is durable, through restarts, used files and crashes at every write;
//! those that have gone do not come back.

use super::tests::{DATA, config, entry, id, open, reopen, wait};
use super::*;
use crate::model::entry::trimmed;
use crate::store::disk::sim::Crash;
use crate::store::disk::{Disk, SimDisk};
use std::time::Instant;

const OTHER: ShardId = ShardId(2);

fn body(wal: &Wal, index: u64) -> Option<Bytes> {
    wal.read_body(DATA, index).ok().map(|rope| rope.flatten())
}

fn full(index: u64) -> Bytes {
    let Payload::Normal(rope) = entry(1, index, 400).payload else { panic!() };
    rope.flatten()
}

/// The first `n` bytes of an entry, and zeros.
fn part(index: u64, n: usize) -> Bytes {
    let mut bytes = full(index).to_vec();
    bytes[n..].fill(0);
    Bytes::from(bytes)
}

/// What is left when only the first `n` bytes are wanted.
fn left(index: u64, n: usize) -> EntryBytes {
    let mut stored = vec![];
    [400, 1, 0, n as u32].into_iter().for_each(|word: u32| stored.extend_from_slice(&word.to_le_bytes()));
    stored.extend_from_slice(&full(index)[..n]);
    Bytes::from(stored).into()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Entries 1 to 100 in several files; all but every tenth are released, all but the last one purged.
fn sparse(disk: &SimDisk) -> Wal {
    let wal = open(disk);
    for first in (1..=100).step_by(10) {
        wait(|done| wal.append(DATA, (first..first + 10).map(|i| entry(1, i, 400)).collect(), done)).unwrap();
    }
    wal.purge(DATA, id(1, 99));
    wal.release(DATA, &(1..=99).filter(|i| i % 10 != 0).collect::<Vec<_>>());
    wait(|done| wal.append(DATA, vec![], done)).unwrap();
    wal
}

fn moved(wal: &Wal, n: usize) -> Vec<Moved> {
    let files = wal.old_files(0, u64::MAX).files;
    let entries = files.iter().flat_map(|file| file.entries.iter().map(|(_, index, _)| (file.seq, *index)));
    entries.map(|(from, index)| Moved { id: id(1, index), from, left: left(index, n) }).collect()
}

fn attempt(wal: &Wal, entries: Vec<Moved>) -> io::Result<()> {
    let (tx, rx) = std::sync::mpsc::channel();
    wal.relocate(DATA, entries, move |result| drop(tx.send(result)));
    rx.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}

/// Fills files with what is gone at once.
fn pass_files(wal: &Wal, from: u64) {
    for first in (from..from + 200).step_by(10) {
        wait(|done| wal.append(OTHER, (first..first + 10).map(|i| entry(1, i, 400)).collect(), done)).unwrap();
        wal.purge(OTHER, id(1, first + 9));
        wal.release(OTHER, &(first..first + 10).collect::<Vec<_>>());
    }
    wait(|done| wal.append(OTHER, vec![], done)).unwrap();
}

#[test]
fn entries_that_leave_their_files_are_found_and_the_files_used_again() {
    let disk = SimDisk::new(1);
    let wal = sparse(&disk);
    let old = wal.old_files(0, u64::MAX);
    assert!(old.files.len() >= 2 && old.upto.is_none(), "{old:?}");
    let named: Vec<u64> = old.files.iter().flat_map(|file| file.entries.iter().map(|(_, index, _)| *index)).collect();
    assert!(named.iter().all(|index| index % 10 == 0 && *index < 100), "{named:?}");
    let few = wal.old_files(0, 1);
    assert_eq!((few.files.len(), few.upto), (1, Some(old.files[0].seq)));
    assert_eq!(wal.old_files(old.files[0].seq, u64::MAX).files, old.files[1..]);
    attempt(&wal, moved(&wal, 50)).unwrap();
    assert!(wal.stats().relocated_bytes > 0);
    let check = |wal: &Wal, n: usize| {
        for index in &named {
            assert_eq!(body(wal, *index), Some(part(*index, n)), "{index}");
            let read = wal.read(DATA, *index..index + 1, 0).unwrap().pop().unwrap();
            assert!(read.id == id(1, *index) && matches!(read.payload, Payload::Trimmed(_)), "never taken for the entry");
            assert_eq!(wal.log_id(DATA, *index), Some(id(1, *index)));
            assert!(wal.holds(DATA, id(1, *index)) && !wal.holds(DATA, id(2, *index)));
        }
    };
    check(&wal, 50);
    let is_used = |file: &OldFile| disk.contents(&file::file_name(file.seq)).is_none();
    until("the files are used again", || old.files.iter().all(is_used));
    // Once more, from the copies.
    wal.purge(DATA, id(1, 100));
    pass_files(&wal, 1);
    let again = moved(&wal, 20);
    assert!(named.iter().all(|index| again.iter().any(|moved| moved.id.index == *index)));
    attempt(&wal, again).unwrap();
    check(&wal, 20);
    pass_files(&wal, 201);
    drop(wal);
    // With indexes beside the files and without.
    let mut disk = disk.crash(Crash::Process);
    for without in [false, true] {
        for name in disk.list().unwrap().iter().filter(|name| without && name.ends_with(".idx")) {
            disk.remove(name).unwrap();
        }
        let wal = open(&disk);
        check(&wal, 20);
        assert_eq!((wal.state(DATA).purged, wal.state(DATA).last), (Some(id(1, 100)), Some(id(1, 100))));
        drop(wal);
        disk = disk.crash(Crash::Power);
    }
    let wal = open(&disk);
    wait(|done| wal.append(DATA, vec![entry(1, 101, 400)], done)).unwrap();
    wal.retain_only(DATA, 100, &named[1..]);
    assert_eq!((body(&wal, named[0]), body(&wal, named[1])), (None, Some(part(named[1], 20))));
}

#[test]
fn what_has_gone_or_is_not_purged_does_not_move_and_no_entry_moves_twice_at_once() {
    let disk = SimDisk::new(2);
    let wal = sparse(&disk);
    let mut entries = moved(&wal, 50);
    let (released, twice) = (entries[0].clone(), entries[1].clone());
    entries.push(twice.clone());
    entries.push(Moved { left: left(100, 50), id: id(1, 100), from: wal.shared.lock().current });
    entries.push(Moved { id: id(2, entries[2].id.index), ..entries[2].clone() });
    wal.release(DATA, &[released.id.index]);
    attempt(&wal, entries).unwrap();
    assert_eq!(body(&wal, released.id.index), None);
    assert_eq!(body(&wal, twice.id.index), Some(part(twice.id.index, 50)));
    assert_eq!(body(&wal, 100), Some(full(100)), "it is part of the log");
    let largest = EntryBytes::from(Bytes::from(vec![0; config().file_bytes as usize]));
    assert!(attempt(&wal, vec![Moved { left: largest, ..twice }]).is_err());
    drop(wal);
    let wal = open(&disk.crash(Crash::Process));
    wal.retain_only(DATA, 99, &(2..10).map(|n| n * 10).collect::<Vec<_>>());
    assert_eq!((body(&wal, released.id.index), body(&wal, 100)), (None, Some(full(100))));
    // Nothing holds a file for an entry that is not there.
    let held = wal.old_files(0, u64::MAX).files;
    assert!(held.iter().flat_map(|file| &file.entries).all(|(_, index, _)| *index != released.id.index), "{held:?}");
}

#[test]
fn a_crash_at_any_write_leaves_the_old_place_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for writes in 0..16 {
        let disk = SimDisk::new(100 + writes);
        let wal = sparse(&disk);
        let entries = moved(&wal, 50);
        let indices: Vec<u64> = entries.iter().map(|moved| moved.id.index).collect();
        disk.stop_after_writes(writes);
        // One after the other, so that a crash comes between them.
        let done = entries.into_iter().take_while(|moved| attempt(&wal, vec![moved.clone()]).is_ok()).count();
        drop(wal);
        let wal = reopen(&disk.crash(if writes % 2 == 0 { Crash::Power } else { Crash::Process }));
        for (at, index) in indices.iter().enumerate() {
            let found = body(&wal, *index).unwrap_or_else(|| panic!("entry {index} is lost after {writes} writes"));
            assert!(found == full(*index) || found == part(*index, 50));
            assert!(at >= done || found == part(*index, 50), "durable is durable");
            old += usize::from(found == full(*index));
            new += usize::from(found != full(*index));
        }
        // What did not move can move now.
        attempt(&wal, moved(&wal, 50)).unwrap();
    }
    assert!(old > 5 && new > 5, "{old} {new}");
}

#[test]
fn what_is_left_of_an_entry_comes_by_snapshot_and_is_installed_but_not_appended() {
    let disk = SimDisk::new(3);
    let wal = open(&disk);
    let trimmed = |index| LogEntry { id: id(1, index), payload: Payload::Trimmed(left(index, 30)) };
    assert!(wait(|done| wal.append(DATA, vec![trimmed(1)], done)).is_err());
    wait(|done| wal.stage(DATA, vec![trimmed(7), entry(1, 8, 400)], done)).unwrap();
    wait(|done| wal.prepare_install(DATA, id(1, 9), None, done)).unwrap();
    wait(|done| wal.finish_install(DATA, id(1, 9), done)).unwrap();
    let check = |wal: &Wal| assert_eq!((body(wal, 7), body(wal, 8)), (Some(part(7, 30)), Some(full(8))));
    check(&wal);
    drop(wal);
    let disk = disk.crash(Crash::Power);
    check(&open(&disk));
    // A copy of what came by snapshot, and a snapshot after the copy.
    let wal = open(&disk.crash(Crash::Process));
    pass_files(&wal, 1);
    attempt(&wal, moved(&wal, 20).into_iter().filter(|moved| moved.id.index < 10).collect()).unwrap();
    assert_eq!(body(&wal, 7), Some(part(7, 20)));
    wait(|done| wal.stage(DATA, vec![trimmed(7)], done)).unwrap();
    wait(|done| wal.prepare_install(DATA, id(1, 12), None, done)).unwrap();
    wait(|done| wal.finish_install(DATA, id(1, 12), done)).unwrap();
    assert_eq!(body(&wal, 7), Some(part(7, 30)));
    drop(wal);
    let wal = open(&disk.crash(Crash::Power));
    assert_eq!((body(&wal, 7), body(&wal, 8)), (Some(part(7, 30)), Some(part(8, 20))));
}

#[test]
fn a_log_within_its_budget_is_left_alone() {
    let disk = SimDisk::new(4);
    let wal = open(&disk);
    assert!(!wal.is_over_budget());
    until("a spare file", || wal.has_spare());
    wait(|done| wal.append(DATA, (1..=20).map(|i| entry(1, i, 400)).collect(), done)).unwrap();
    assert!(!wal.is_over_budget() && wal.stats().files == 1);
    wait(|done| wal.append(DATA, (21..=200).map(|i| entry(1, i, 400)).collect(), done)).unwrap();
    assert!(wal.is_over_budget());
    assert_eq!(wal.old_files(0, u64::MAX), OldFiles::default(), "nothing is purged");
    assert_eq!(trimmed::expand(&left(3, 30)).unwrap().flatten(), part(3, 30));
}
