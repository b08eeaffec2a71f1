//! The WAL from outside: order, durability, reading, forgetting, lack of space. Crashes are in `crash_tests`.

use super::*;
use crate::model::entry::trimmed;
use crate::model::{Generation, LeaderId, NodeId};
use crate::store::disk::sim::Crash;
use crate::store::disk::{RealDisk, SimDisk};
use bytes::Bytes;
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub(super) const DATA: ShardId = ShardId(1);

pub(super) fn config() -> WalConfig {
    WalConfig {
        file_bytes: 16 << 10,
        budget_bytes: 64 << 10,
        catch_up_bytes: 32 << 10,
        tail_cache_bytes: 4 << 10,
        spare_files: 1,
        batch_bytes: 4 << 10,
        fatal: Some(Arc::new(|_| ())),
    }
}

pub(super) fn open(disk: &SimDisk) -> Wal {
    Wal::open(Arc::new(disk.clone()), config()).unwrap()
}

/// After a crash: what was cut off is no damage (rule 5).
pub(super) fn reopen(disk: &SimDisk) -> Wal {
    let wal = open(disk);
    for shard in [ShardId::CATALOG, DATA, ShardId(2)] {
        assert_eq!(wal.damage(shard), None, "{shard}: a torn tail was taken for damage");
    }
    wal
}

pub(super) fn id(term: u64, index: u64) -> LogId {
    LogId { leader: LeaderId { term, voter: 65536 + 1 }, index }
}

/// An entry whose content follows from its place, in two parts.
pub(super) fn entry(term: u64, index: u64, len: usize) -> LogEntry {
    let mut rope = EntryBytes::default();
    rope.push(Bytes::from(vec![(term * 31 + index) as u8; len / 2]));
    rope.push(Bytes::from(vec![(term * 17 + index * 3) as u8; len - len / 2]));
    LogEntry { id: id(term, index), payload: Payload::Normal(rope) }
}

pub(super) fn same(a: &LogEntry, b: &LogEntry) -> bool {
    let flat = |e: &LogEntry| match &e.payload {
        Payload::Normal(rope) => (2, rope.flatten()),
        Payload::Trimmed(rope) => (2, trimmed::expand(rope).unwrap().flatten()),
        Payload::Membership(bytes) => (3, bytes.clone()),
        Payload::Blank => (1, Bytes::new()),
    };
    a.id == b.id && flat(a) == flat(b)
}

pub(super) fn wait(request: impl FnOnce(Done)) -> io::Result<()> {
    let (tx, rx) = mpsc::channel();
    request(Box::new(move |result| tx.send(result).unwrap()));
    rx.recv_timeout(Duration::from_secs(20)).expect("every request is answered")
}

fn append(wal: &Wal, shard: ShardId, entries: Vec<LogEntry>) {
    wait(|done| wal.append(shard, entries, done)).unwrap();
}

pub(super) fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn entries_are_readable_at_once_and_durable_when_done_says_so() {
    let disk = SimDisk::new(1);
    let wal = open(&disk);
    disk.hang_syncs(true);
    let (tx, rx) = mpsc::channel();
    wal.append(DATA, vec![entry(1, 1, 10), entry(1, 2, 0)], move |r| tx.send(r.is_ok()).unwrap());
    assert!(same(&wal.read(DATA, 1..9, 1000).unwrap()[1], &entry(1, 2, 0)));
    assert_eq!(wal.state(DATA).last, Some(id(1, 2)));
    until("the sync hangs", || wal.writing_for().is_some());
    assert_eq!(wal.flushed(DATA), None);
    assert!(rx.try_recv().is_err());
    disk.hang_syncs(false);
    assert!(rx.recv().unwrap());
    assert_eq!(wal.flushed(DATA), Some(id(1, 2)));
}

#[test]
fn a_reopened_log_is_the_same() {
    let disk = SimDisk::new(2);
    let identity = Identity { cluster: 7 << 100, node: NodeId(3), generation: Generation(1), shards: 3 };
    let vote = Vote { leader: LeaderId { term: 2, voter: 65537 }, committed: true };
    let membership = LogEntry { id: id(1, 0), payload: Payload::Membership(Bytes::from_static(b"123")) };
    let blank = LogEntry { id: id(1, 1), payload: Payload::Blank };
    let before = {
        let wal = open(&disk);
        assert_eq!(wal.identity(), None);
        wait(|done| wal.save_identity(identity, done)).unwrap();
        append(&wal, DATA, vec![membership.clone(), blank.clone(), entry(1, 2, 100), entry(2, 3, 3000)]);
        wal.save_committed(DATA, id(1, 2));
        wait(|done| wal.save_vote(DATA, vote, done)).unwrap();
        append(&wal, ShardId::CATALOG, vec![entry(1, 1, 5)]);
        wal.state(DATA)
    };
    assert_eq!(before.membership, Some((id(1, 0), Bytes::from_static(b"123"))));
    let wal = open(&disk);
    assert_eq!(wal.state(DATA), before);
    assert_eq!(wal.flushed(DATA), Some(id(2, 3)));
    assert_eq!(wal.identity(), Some(identity));
    assert_eq!(wal.shards(), [ShardId::CATALOG, DATA]);
    assert!(wal.cached(DATA, 2).is_none());
    let all = wal.read(DATA, 0..100, usize::MAX).unwrap();
    let expected = [membership, blank, entry(1, 2, 100), entry(2, 3, 3000)];
    assert!(all.len() == 4 && all.iter().zip(&expected).all(|(a, b)| same(a, b)));
    assert_eq!(wal.read(DATA, 0..100, 0).unwrap().len(), 1, "at least one");
    assert!(wal.read(DATA, 4..9, 100).unwrap().is_empty());
    assert_eq!(wal.read_body(DATA, 3).unwrap().len(), 3000);
    assert_eq!(wal.read_body(DATA, 9).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn an_entry_that_does_not_follow_is_refused() {
    let wal = open(&SimDisk::new(3));
    append(&wal, DATA, vec![entry(1, 1, 1)]);
    for wrong in [1, 3] {
        let error = wait(|done| wal.append(DATA, vec![entry(1, wrong, 1)], done)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    let large = entry(1, 2, 9 << 10);
    assert!(wait(|done| wal.append(DATA, vec![large], done)).is_err());
    append(&wal, DATA, vec![entry(1, 2, 1)]);
}

#[test]
fn truncation_lowers_the_flushed_mark_at_once_and_writes_in_flight_do_not_raise_it() {
    let disk = SimDisk::new(4);
    let wal = open(&disk);
    append(&wal, DATA, (1..=4).map(|i| entry(1, i, 10)).collect());
    disk.hang_syncs(true);
    let (tx, rx) = mpsc::channel();
    for index in 5..=6 {
        let tx = tx.clone();
        wal.append(DATA, vec![entry(1, index, 10)], move |_| tx.send(()).unwrap());
        until("in flight", || wal.writing_for().is_some());
    }
    wal.truncate_after(DATA, Some(id(1, 2)), {
        let tx = tx.clone();
        move |_| tx.send(()).unwrap()
    });
    assert_eq!(wal.flushed(DATA), Some(id(1, 2)));
    // The same leader sends the same entry again: the copy on its way to the disk before the truncation must not count for it.
    wal.append(DATA, vec![entry(1, 3, 10)], move |_| tx.send(()).unwrap());
    assert_eq!(wal.state(DATA).last, Some(id(1, 3)));
    disk.hang_syncs(false);
    rx.recv().unwrap();
    assert!(wal.flushed(DATA) <= Some(id(1, 3)));
    (0..3).for_each(|_| rx.recv().unwrap());
    assert_eq!(wal.flushed(DATA), Some(id(1, 3)));
    drop(wal);
    let wal = open(&disk);
    assert_eq!(wal.state(DATA).last, Some(id(1, 3)));
    assert!(same(&wal.read(DATA, 3..4, 0).unwrap()[0], &entry(1, 3, 10)));
    wait(|done| wal.truncate_after(DATA, None, done)).unwrap();
    assert_eq!(wal.state(DATA).last, None);
}

#[test]
fn purged_and_released_entries_free_their_files_and_votes_survive_that() {
    let disk = SimDisk::new(5);
    let vote = Vote { leader: LeaderId { term: 9, voter: 65537 }, committed: false };
    let wal = open(&disk);
    wait(|done| wal.save_vote(ShardId(7), vote, done)).unwrap();
    for index in 1..=300 {
        append(&wal, DATA, vec![entry(1, index, 1000)]);
        if index > 10 {
            wal.purge(DATA, id(1, index - 10));
            wal.release(DATA, &[index - 10]);
        }
    }
    append(&wal, DATA, vec![entry(1, 301, 10)]);
    until("few files stay", || wal.stats().files <= 3);
    assert!(wal.stats().bytes <= 64 << 10);
    assert!(disk.contents("0000000001.wal").is_none(), "the file that held the vote is gone");
    drop(wal);
    let wal = open(&disk.crash(Crash::Power));
    assert_eq!(wal.state(ShardId(7)).vote, Some(vote));
    assert_eq!(wal.state(DATA).purged, Some(id(1, 290)));
    assert_eq!(wal.read(DATA, 291..400, usize::MAX).unwrap().len(), 11);
}

#[test]
fn a_pinned_entry_stays_readable_after_purge_and_restart_until_it_is_released() {
    let disk = SimDisk::new(6);
    let wal = open(&disk);
    for index in 1..=60 {
        append(&wal, DATA, vec![entry(1, index, 1500)]);
    }
    wal.purge(DATA, id(1, 60));
    wal.release(DATA, &(1..=60).filter(|i| *i != 7).collect::<Vec<_>>());
    append(&wal, DATA, vec![entry(1, 61, 1500)]);
    until("only the pinned one's file and the open one stay", || wal.stats().files <= 2);
    assert_eq!(wal.read_body(DATA, 7).unwrap().len(), 1500);
    assert!(wal.read_body(DATA, 8).is_err());
    drop(wal);
    let wal = open(&disk);
    assert!(same(&wal.read(DATA, 7..8, 0).unwrap()[0], &entry(1, 7, 1500)));
    wal.retain_only(DATA, 60, &[7]);
    append(&wal, DATA, vec![entry(1, 62, 10)]);
    assert_eq!(wal.read_body(DATA, 7).unwrap().len(), 1500);
    wal.retain_only(DATA, 60, &[]);
    assert!(wal.read_body(DATA, 7).is_err());
    append(&wal, DATA, vec![entry(1, 63, 10)]);
    until("its file is free", || wal.stats().files == 1);
}

#[test]
fn the_tail_cache_gives_back_what_nobody_reads_and_keeps_what_somebody_is_reading() {
    let disk = SimDisk::new(7);
    let wal = Wal::open(Arc::new(disk.clone()), WalConfig { tail_cache_bytes: 1 << 20, ..config() }).unwrap();
    let begun = Instant::now();
    let look = |seconds: u64| wal.shared.lock().forget_unread(Duration::from_secs(3), begun + Duration::from_secs(seconds));
    let cached = || (1..=60).filter(|index| wal.shared.lock().shards[&DATA].is_cached(*index)).collect::<Vec<u64>>();
    let all = |from: u64, to: u64| (from..=to).collect::<Vec<u64>>();
    (1..=40).for_each(|index| append(&wal, DATA, vec![entry(1, index, 700)]));
    look(0);
    assert_eq!(cached(), all(1, 40), "nothing is old yet");
    (41..=50).for_each(|index| append(&wal, DATA, vec![entry(1, index, 700)]));
    assert!(wal.cached(DATA, 30).is_some());
    assert_eq!(wal.read(DATA, 20..22, usize::MAX).unwrap().len(), 2);
    look(2);
    assert_eq!(cached(), all(1, 50), "too early");
    look(3);
    assert_eq!(cached(), all(20, 50), "a reader is at 20, and goes on");
    look(6);
    assert_eq!(cached(), all(1, 0), "nobody reads any more, and 41 to 50 are old as well now");
    assert_eq!(wal.stats().cache_bytes, 0);
    // What is not on disk yet is only here.
    disk.hang_syncs(true);
    wal.append(DATA, (51..=60).map(|index| entry(1, index, 700)).collect(), |_| ());
    (9..30).step_by(3).for_each(look);
    assert_eq!(cached(), all(51, 60));
    disk.hang_syncs(false);
    append(&wal, DATA, vec![entry(1, 61, 10)]);
    assert_eq!(wal.read(DATA, 1..62, usize::MAX).unwrap().len(), 61);
}

#[test]
fn the_tail_cache_keeps_its_budget_and_reads_go_to_disk() {
    let wal = open(&SimDisk::new(7));
    for index in 1..=40 {
        append(&wal, DATA, vec![entry(1, index, 700)]);
    }
    assert!(wal.stats().cache_bytes <= 4 << 10);
    assert!(wal.cached(DATA, 1).is_none() && wal.cached(DATA, 40).is_some());
    let all = wal.read(DATA, 1..41, usize::MAX).unwrap();
    assert_eq!(all.len(), 40);
    assert!(all.iter().enumerate().all(|(i, e)| same(e, &entry(1, i as u64 + 1, 700))));
    assert_eq!(wal.read(DATA, 1..41, 2000).unwrap().len(), 2);
}

#[test]
fn a_purge_beyond_the_end_resets_the_log() {
    let disk = SimDisk::new(8);
    let wal = open(&disk);
    append(&wal, DATA, (1..=3).map(|i| entry(1, i, 10)).collect());
    wal.purge(DATA, id(4, 100));
    assert_eq!(wal.state(DATA).last, Some(id(4, 100)));
    append(&wal, DATA, vec![entry(4, 101, 10)]);
    assert_eq!(wal.flushed(DATA), Some(id(4, 101)));
    drop(wal);
    let wal = open(&disk);
    assert_eq!((wal.state(DATA).purged, wal.state(DATA).last), (Some(id(4, 100)), Some(id(4, 101))));
}

#[test]
fn without_space_entries_wait_and_a_purge_makes_room() {
    let disk = SimDisk::new(9);
    disk.set_capacity(70 << 10);
    let wal = open(&disk);
    let (tx, rx) = mpsc::channel();
    for index in 1..=100 {
        let tx = tx.clone();
        wal.append(DATA, vec![entry(1, index, 1000)], move |r| tx.send((index, r.is_ok())).unwrap());
    }
    until("it is full", || wal.stats().full);
    assert!(wal.is_full());
    assert!(disk.free_bytes().unwrap() >= 8 << 10, "the last bytes are for checkpoints, without which no log file gets free");
    let reached = rx.try_iter().map(|(i, ok)| if ok { i } else { 0 }).max().unwrap();
    // Three files: nine entries each when every one was a batch of its own, more when they went together.
    assert!((27..60).contains(&reached), "{reached}");
    wal.purge(DATA, id(1, reached - 1));
    wal.release(DATA, &(1..reached).collect::<Vec<_>>());
    let (more, _) = rx.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(more, reached + 1);
    disk.set_capacity(u64::MAX);
    until("all are written", || wal.flushed(DATA) == Some(id(1, 100)));
    assert!(!wal.stats().full);
    drop(wal);
    assert_eq!(open(&disk).state(DATA).last, Some(id(1, 100)));
}

#[test]
fn what_is_purged_when_space_is_low_makes_room_although_nothing_more_is_written() {
    let disk = SimDisk::new(9);
    disk.set_capacity(70 << 10);
    let wal = open(&disk);
    let mut last = 0;
    // The files may all be written before the keeper finds that it cannot make another: then the last entry waits for the purge.
    while !wal.is_full() {
        let (tx, rx) = mpsc::channel();
        wal.append(DATA, vec![entry(1, last + 1, 1000)], move |result| drop(tx.send(result)));
        let written = std::cell::Cell::new(false);
        until("it is written, or there is no space", || {
            written.set(rx.try_recv().is_ok_and(|result| result.is_ok()));
            written.get() || wal.is_full()
        });
        last += u64::from(written.get());
    }
    assert!(last > 10, "{last}");
    wal.release(DATA, &(1..=last).collect::<Vec<_>>());
    wal.purge(DATA, id(1, last));
    until("a file is free again", || !wal.is_full());
}

#[test]
fn a_failed_sync_ends_everything() {
    let disk = SimDisk::new(10);
    let (tx, rx) = mpsc::channel();
    let hook: FatalHook = Arc::new(move |e| tx.send(e.raw_os_error()).unwrap());
    let wal = Wal::open(Arc::new(disk.clone()), WalConfig { fatal: Some(hook), ..config() }).unwrap();
    append(&wal, DATA, vec![entry(1, 1, 10)]);
    until("the spare file is there: its syncs are not those that fail", || wal.stats().spare_files == 1);
    disk.fail_syncs(1);
    let (never_tx, never_rx) = mpsc::channel();
    wal.append(DATA, vec![entry(1, 2, 10)], move |r| never_tx.send(r.is_ok()).unwrap());
    assert_eq!(rx.recv().unwrap(), Some(libc::EIO));
    assert_ne!(never_rx.recv(), Ok(true));
    until("it is dead", || wal.stats().dead);
    assert!(wait(|done| wal.append(DATA, vec![entry(1, 3, 10)], done)).is_err());
    // The page cache still shows entry 2. What the next process reports must survive the power cut that follows (rule 4).
    let disk = disk.crash(Crash::Process);
    let last = open(&disk).state(DATA).last;
    assert_eq!(last, Some(id(1, 2)));
    assert_eq!(open(&disk.crash(Crash::Power)).state(DATA).last, last);
}

#[test]
fn many_threads_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let config = WalConfig { file_bytes: 256 << 10, spare_files: 2, ..config() };
    let open = || Wal::open(Arc::new(RealDisk::new(dir.path()).unwrap()), config.clone()).unwrap();
    let wal = open();
    std::thread::scope(|scope| {
        for shard in 0..4 {
            let wal = wal.clone();
            scope.spawn(move || {
                for index in 1..=200 {
                    append(&wal, ShardId(shard), vec![entry(1, index, 2000)]);
                    let at = index / 2 + 1;
                    assert!(same(&wal.read(ShardId(shard), at..at + 1, 0).unwrap()[0], &entry(1, at, 2000)));
                }
            });
        }
    });
    let stats = wal.stats();
    assert!(stats.records > stats.batches, "{stats:?}");
    drop(wal);
    let wal = open();
    for shard in (0..4).map(ShardId) {
        let all = wal.read(shard, 1..1000, usize::MAX).unwrap();
        assert!(all.len() == 200 && all.iter().enumerate().all(|(i, e)| same(e, &entry(1, i as u64 + 1, 2000))));
    }
}

/// `WAL_BENCH_DIR=/some/disk cargo test --release -p warren-node --lib store::wal::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let base = std::env::var("WAL_BENCH_DIR").unwrap_or_else(|_| std::env::temp_dir().display().to_string());
    let dir = tempfile::tempdir_in(base).unwrap();
    let config = WalConfig { fatal: None, ..WalConfig::default() };
    let wal = Wal::open(Arc::new(RealDisk::new(dir.path()).unwrap()), config).unwrap();
    for (len, count) in [(100, 20_000u64), (4 << 10, 20_000), (128 << 10, 4_000)] {
        let before = wal.stats();
        let began = Instant::now();
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let wal = wal.clone();
                scope.spawn(move || lane_of_appends(&wal, ShardId(lane), len, count / 4));
            }
        });
        let (took, after) = (began.elapsed().as_secs_f64(), wal.stats());
        let syncs = after.syncs - before.syncs;
        let megabytes = (len as u64 * count) as f64 / 1e6;
        println!(
            "{len} B: {:.0} MB/s, {:.0} entries/s, {:.0} syncs/s, {:.1} records per sync",
            megabytes / took,
            count as f64 / took,
            syncs as f64 / took,
            (after.records - before.records) as f64 / syncs as f64
        );
    }
}

/// Four entries in flight, as a shard's leader has them.
fn lane_of_appends(wal: &Wal, shard: ShardId, len: usize, count: u64) {
    let (tx, rx) = mpsc::channel::<bool>();
    let first = wal.state(shard).last.map_or(1, |id| id.index + 1);
    let body = Bytes::from(vec![7; len]);
    for i in 0..count {
        if i >= 4 {
            assert!(rx.recv().unwrap());
        }
        let tx = tx.clone();
        let entry = LogEntry { id: id(1, first + i), payload: Payload::Normal(body.clone().into()) };
        wal.append(shard, vec![entry], move |r| tx.send(r.is_ok()).unwrap());
        if i >= 64 {
            wal.purge(shard, id(1, first + i - 64));
            wal.release(shard, &[first + i - 64]);
        }
    }
    (0..count.min(4)).for_each(|_| assert!(rx.recv().unwrap()));
}

/// Else nobody would know: the writer writes nothing, so nothing of it takes long.
#[test]
fn a_log_that_waits_for_a_file_which_its_disk_does_not_get_ready_is_seen_to_hang() {
    let disk = SimDisk::new(3);
    let wal = open(&disk);
    disk.hang_files_in_preparation(true);
    let (tx, rx) = mpsc::channel();
    let sent = std::cell::Cell::new(0);
    until("it is out of files", || {
        sent.set(sent.get() + 1);
        let tx = tx.clone();
        wal.append(DATA, vec![entry(1, sent.get(), 4_000)], move |result| {
            let _ = tx.send(result.is_ok());
        });
        wal.writing_for().is_some_and(|took| took > Duration::from_millis(200))
    });
    disk.hang_files_in_preparation(false);
    assert!((0..sent.get()).all(|_| rx.recv_timeout(Duration::from_secs(20)).expect("an answer")));
    until("it goes on", || wal.writing_for().is_none());
}
