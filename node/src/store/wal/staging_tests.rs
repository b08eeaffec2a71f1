//! Entries that come by snapshot: invisible until installed, readable from then on through restarts and recycled files, a crash at every
//! write leaves either; and how far back the log may be forgotten.

use super::tests::{DATA, config, entry, id, open, reopen, same, wait};
use super::*;
use crate::store::disk::SimDisk;
use crate::store::disk::sim::Crash;

fn body(wal: &Wal, index: u64) -> Option<Bytes> {
    wal.read_body(DATA, index).ok().map(|rope| rope.flatten())
}

fn expected(index: u64) -> Option<Bytes> {
    let Payload::Normal(rope) = entry(3, index, 100).payload else { return None };
    Some(rope.flatten())
}

/// As `wait`; a log that dies forgets to answer.
fn attempt(request: impl FnOnce(Done)) -> io::Result<()> {
    let (tx, rx) = std::sync::mpsc::channel();
    request(Box::new(move |result| drop(tx.send(result))));
    rx.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}

fn stage(wal: &Wal, indices: &[u64]) -> io::Result<()> {
    attempt(|done| wal.stage(DATA, indices.iter().map(|i| entry(3, *i, 100)).collect(), done))
}

fn install(wal: &Wal, upto: u64) -> io::Result<()> {
    let members = Some((id(2, 20), Bytes::from_static(b"members")));
    attempt(|done| wal.prepare_install(DATA, id(3, upto), members, done))?;
    attempt(|done| wal.finish_install(DATA, id(3, upto), done))
}

fn append(wal: &Wal, term: u64, indices: std::ops::RangeInclusive<u64>) -> io::Result<()> {
    attempt(|done| wal.append(DATA, indices.map(|i| entry(term, i, 100)).collect(), done))
}

#[test]
fn staged_entries_become_readable_with_the_installation_and_stay_so() {
    let disk = SimDisk::new(1);
    let wal = open(&disk);
    append(&wal, 1, 1..=10).unwrap();
    stage(&wal, &[12, 30, 31]).unwrap();
    assert!(wal.holds(DATA, id(3, 30)) && !wal.holds(DATA, id(2, 30)) && wal.holds(DATA, id(1, 4)));
    assert_eq!((body(&wal, 30), wal.state(DATA).last), (None, Some(id(1, 10))));
    install(&wal, 40).unwrap();
    let check = |wal: &Wal| {
        let state = wal.state(DATA);
        assert_eq!((state.purged, state.last), (Some(id(3, 40)), Some(id(3, 40))));
        assert_eq!(state.membership, Some((id(2, 20), Bytes::from_static(b"members"))));
        assert_eq!(wal.pending_install(DATA), None);
        for index in [12, 30, 31] {
            assert_eq!(body(wal, index), expected(index), "{index}");
        }
        assert_eq!(wal.log_id(DATA, 31), Some(id(3, 31)));
        assert!(body(wal, 4).is_some(), "an older entry may hold messages until somebody says that it does not");
    };
    check(&wal);
    append(&wal, 3, 41..=43).unwrap();
    wal.retain_only(DATA, 40, &[12, 30, 31]);
    assert_eq!(body(&wal, 4), None);
    drop(wal);
    let wal = open(&disk.crash(Crash::Power));
    wal.retain_only(DATA, 40, &[12, 30, 31]);
    assert!(same(&wal.read(DATA, 41..44, 1 << 20).unwrap()[2], &entry(3, 43, 100)));
    assert_eq!((body(&wal, 30), wal.state(DATA).purged), (expected(30), Some(id(3, 40))));
}

#[test]
fn an_installation_outlives_the_files_that_its_records_were_in() {
    let disk = SimDisk::new(2);
    let wal = open(&disk);
    append(&wal, 1, 1..=10).unwrap();
    stage(&wal, &[30]).unwrap();
    install(&wal, 40).unwrap();
    wal.retain_only(DATA, 40, &[30]);
    // Many files later only the staged entry's own file is left of that time.
    for n in 0..40 {
        append(&wal, 3, 41 + n * 10..=50 + n * 10).unwrap();
        wal.purge(DATA, id(3, 50 + n * 10));
        wal.release(DATA, &(41 + n * 10..=50 + n * 10).collect::<Vec<_>>());
    }
    let disk = disk.crash(Crash::Process);
    let wal = open(&disk);
    assert_eq!(body(&wal, 30), expected(30));
    assert_eq!(wal.state(DATA).last, Some(id(3, 440)));
}

#[test]
fn a_log_that_holds_the_snapshots_last_entry_goes_on_behind_it_and_another_one_ends() {
    let (same_log, other_log) = (SimDisk::new(3), SimDisk::new(4));
    for (disk, term) in [(&same_log, 3), (&other_log, 2)] {
        let wal = open(disk);
        append(&wal, term, 1..=20).unwrap();
        stage(&wal, &[5]).unwrap();
        install(&wal, 10).unwrap();
        let check = |wal: &Wal| {
            let last = if term == 3 { id(3, 20) } else { id(3, 10) };
            assert_eq!(wal.state(DATA).last, Some(last));
            assert_eq!(body(wal, 5), expected(5), "what is committed wins");
        };
        check(&wal);
        drop(wal);
        let wal = open(&disk.crash(Crash::Power));
        check(&wal);
        let next = wal.state(DATA).last.unwrap().index + 1;
        append(&wal, 3, next..=next).unwrap();
    }
}

#[test]
fn a_crash_at_any_write_leaves_the_old_log_or_the_installed_one() {
    let (mut old, mut new) = (0, 0);
    for writes in 0..12 {
        let disk = SimDisk::new(100 + writes);
        let wal = open(&disk);
        append(&wal, 1, 1..=10).unwrap();
        disk.stop_after_writes(writes);
        let run = || -> io::Result<()> {
            stage(&wal, &[12, 13])?;
            stage(&wal, &[30])?;
            install(&wal, 40)?;
            append(&wal, 3, 41..=42)
        };
        let done = run().is_ok();
        drop(wal);
        let wal = reopen(&disk.crash(if writes % 2 == 0 { Crash::Power } else { Crash::Process }));
        let state = wal.state(DATA);
        if state.purged == Some(id(3, 40)) {
            new += 1;
            assert!([12, 13, 30].iter().all(|i| body(&wal, *i) == expected(*i)));
        } else {
            old += 1;
            assert!(!done);
            assert_eq!((state.purged, state.last), (None, Some(id(1, 10))));
            assert!([12, 13, 30].iter().all(|i| body(&wal, *i).is_none()));
            if wal.pending_install(DATA) == Some(id(3, 40)) {
                // The state store may hold the state: then the start goes on with it.
                wait(|done| wal.finish_install(DATA, id(3, 40), done)).unwrap();
                assert!([12, 13, 30].iter().all(|i| body(&wal, *i) == expected(*i)));
            } else {
                wal.unstage(DATA);
                assert!(!wal.holds(DATA, id(3, 12)));
            }
        }
    }
    assert!(old > 2 && new > 2, "{old} {new}");
}

#[test]
fn what_is_staged_for_a_second_snapshot_outlives_files_that_begin_meanwhile() {
    for prepared in [false, true] {
        let disk = SimDisk::new(7);
        let wal = open(&disk);
        append(&wal, 1, 1..=10).unwrap();
        stage(&wal, &[30]).unwrap();
        install(&wal, 40).unwrap();
        stage(&wal, &[35, 50, 51]).unwrap();
        if prepared {
            attempt(|done| wal.prepare_install(DATA, id(3, 60), None, done)).unwrap();
        }
        // Each new file begins with what was installed.
        let files = wal.stats().files;
        for n in 0..40 {
            let entries = (n * 10 + 1..=n * 10 + 10).map(|i| entry(1, i, 100)).collect();
            attempt(|done| wal.append(ShardId(7), entries, done)).unwrap();
        }
        assert!(wal.stats().files > files + 2);
        let disk = disk.crash(Crash::Power);
        let wal = open(&disk);
        assert_eq!(body(&wal, 30), expected(30));
        assert!([35, 50, 51].iter().all(|i| wal.holds(DATA, id(3, *i))), "prepared: {prepared}");
        assert_eq!(wal.pending_install(DATA), prepared.then(|| id(3, 60)));
        attempt(|done| wal.finish_install(DATA, id(3, 60), done)).unwrap();
        let check = |wal: &Wal| [30, 35, 50, 51].iter().for_each(|i| assert_eq!(body(wal, *i), expected(*i), "{i}, prepared: {prepared}"));
        check(&wal);
        drop(wal);
        check(&open(&disk.crash(Crash::Power)));
    }
}

#[test]
fn entries_that_wait_for_the_disk_while_a_snapshot_replaces_them_do_not_come_back() {
    let disk = SimDisk::new(5);
    let wal = open(&disk);
    append(&wal, 1, 1..=4).unwrap();
    stage(&wal, &[5, 7]).unwrap();
    disk.hang_syncs(true);
    let (tx, rx) = std::sync::mpsc::channel();
    let (first, second) = (tx.clone(), tx);
    wal.append(DATA, (5..=12).map(|i| entry(2, i, 100)).collect(), move |r| first.send(r.is_ok()).unwrap());
    wal.finish_install(DATA, id(3, 8), move |r| second.send(r.is_ok()).unwrap());
    disk.hang_syncs(false);
    assert!(rx.recv().unwrap() && rx.recv().unwrap());
    assert_eq!((body(&wal, 5), body(&wal, 7), wal.state(DATA).last), (expected(5), expected(7), Some(id(3, 8))));
    assert_eq!(wal.flushed(DATA), Some(id(3, 8)));
    append(&wal, 3, 9..=9).unwrap();
    drop(wal);
    let wal = open(&disk.crash(Crash::Power));
    assert_eq!((body(&wal, 5), body(&wal, 7), wal.state(DATA).last), (expected(5), expected(7), Some(id(3, 9))));
}

#[test]
fn the_floor_is_the_last_entry_before_the_newest_files() {
    let disk = SimDisk::new(6);
    let wal = open(&disk);
    append(&wal, 1, 1..=10).unwrap();
    assert_eq!((wal.floor(DATA), wal.floor(ShardId(9))), (0, 0));
    for n in 1..=20 {
        append(&wal, 1, n * 10 + 1..=n * 10 + 10).unwrap();
    }
    let floor = wal.floor(DATA);
    let kept = config().catch_up_bytes / 100;
    assert!(floor > 0 && 210 - floor <= kept, "{floor}");
    wal.purge(DATA, id(1, floor));
    assert_eq!(wal.floor(DATA), 0, "nothing of the log is older");
}
