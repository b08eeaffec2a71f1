use super::*;
use crate::model::LeaderId;
use std::sync::mpsc::channel;

fn id(index: u64) -> LogId {
    LogId { leader: LeaderId { term: 1, voter: 2 }, index }
}

fn pair(key: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (key.into(), value.into())
}

fn change(index: u64, full: bool, puts: &[(&str, &str)], deletes: &[&str]) -> Change {
    let puts = puts.iter().map(|(k, v)| pair(k, v)).collect();
    Change { applied: id(index), full, puts, deletes: deletes.iter().map(|k| k.as_bytes().to_vec()).collect() }
}

fn write(store: &StateStore, shard: u16, change: Change) -> Result<LogId, StateError> {
    let (tx, rx) = channel();
    store.checkpoint(ShardId(shard), change, move |r| tx.send(r).unwrap());
    rx.recv().unwrap()
}

fn open(path: &Path) -> StateStore {
    let (store, report) = StateStore::open(path).unwrap();
    assert_eq!(report, OpenReport::default());
    store
}

#[test]
fn a_reopened_store_holds_what_was_checkpointed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = open(&path);
    assert_eq!(store.load(ShardId(1)).unwrap(), Stored::default());
    assert_eq!(write(&store, 1, change(5, true, &[("a", "1"), ("b", "2")], &[])), Ok(id(5)));
    assert_eq!(write(&store, 1, change(9, false, &[("b", "3"), ("c", "4")], &["a", "never"])), Ok(id(9)));
    assert_eq!(write(&store, 2, change(3, true, &[("x", "y")], &[])), Ok(id(3)));
    let wanted = Stored { applied: Some(id(9)), pairs: vec![pair("b", "3"), pair("c", "4")] };
    assert_eq!(store.load(ShardId(1)).unwrap(), wanted);
    drop(store);
    let store = open(&path);
    assert_eq!(store.load(ShardId(1)).unwrap(), wanted);
    assert_eq!(store.load(ShardId(2)).unwrap().pairs, [pair("x", "y")]);
}

#[test]
fn a_full_change_replaces_everything_and_a_partial_one_needs_a_base() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("state"));
    assert_eq!(write(&store, 1, change(1, false, &[("a", "1")], &[])), Err(StateError::NeedsFull(ShardId(1))));
    assert_eq!(write(&store, 1, change(2, true, &[("a", "1"), ("b", "2")], &[])), Ok(id(2)));
    assert_eq!(write(&store, 1, change(3, true, &[("b", "9")], &[])), Ok(id(3)));
    assert_eq!(store.load(ShardId(1)).unwrap(), Stored { applied: Some(id(3)), pairs: vec![pair("b", "9")] });
}

#[test]
fn a_state_older_than_the_stored_one_is_refused_full_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("state"));
    assert_eq!(write(&store, 1, change(9, true, &[("a", "9")], &[])), Ok(id(9)));
    for full in [false, true] {
        let older = StateError::Older { shard: ShardId(1), stored: 9, given: 8 };
        assert_eq!(write(&store, 1, change(8, full, &[("a", "8")], &[])), Err(older));
    }
    assert_eq!(store.load(ShardId(1)).unwrap(), Stored { applied: Some(id(9)), pairs: vec![pair("a", "9")] });
    assert_eq!(write(&store, 1, change(9, true, &[("a", "again")], &[])), Ok(id(9)), "the same state once more is not older");
    assert_eq!(write(&store, 2, change(3, true, &[], &[])), Ok(id(3)), "other shards have their own");
}

#[test]
fn a_deleted_store_starts_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = open(&path);
    write(&store, 1, change(2, true, &[("a", "1")], &[])).unwrap();
    drop(store);
    std::fs::remove_dir_all(&path).unwrap();
    assert_eq!(open(&path).load(ShardId(1)).unwrap(), Stored::default());
}

/// Damage anywhere either shows (empty, reported) or does no harm; what opens is never wrong.
#[test]
fn a_corrupted_store_is_whole_or_empty_and_reported() {
    let mut reported = 0;
    for step in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let store = open(&path);
        let many: Vec<_> = (0..500).map(|n| (format!("key {n:04}").into_bytes(), vec![n as u8; 300])).collect();
        write(&store, 1, Change { applied: id(7), full: true, puts: many.clone(), deletes: Vec::new() }).unwrap();
        let before = store.load(ShardId(1)).unwrap();
        drop(store);
        let db = path.join("db");
        let mut bytes = std::fs::read(&db).unwrap();
        let at = 1000 + step * 17_001;
        let end = (at + 64).min(bytes.len());
        bytes.get_mut(at..end).into_iter().flatten().for_each(|b| *b ^= 0x5a);
        std::fs::write(&db, &bytes).unwrap();
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("snap") && step % 2 == 0 {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        let (store, report) = StateStore::open(&path).unwrap();
        let after = store.load(ShardId(1)).unwrap();
        if after != before {
            reported += 1;
            assert_eq!(after, Stored::default(), "step {step}: neither whole nor empty");
            let lost = RolledBack { shard: ShardId(1), from: id(7), to: None };
            assert!(report.set_aside.as_ref().is_some_and(|a| a.to.exists()) || report.rolled_back == [lost], "step {step}: {report:?}");
        }
        assert_eq!(write(&store, 1, change(8, true, &[("a", "1")], &[])), Ok(id(8)), "a fresh store works");
    }
    assert!(reported > 0, "no damage was noticed");
}

#[test]
fn a_tree_whose_pairs_do_not_fit_its_digest_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = open(&path);
    write(&store, 1, change(2, true, &[("a", "1"), ("b", "2")], &[])).unwrap();
    drop(store);
    let db = sled::open(&path).unwrap();
    db.open_tree([b't', 0, 1]).unwrap().remove("b").unwrap();
    db.flush().unwrap();
    drop(db);
    let (store, report) = StateStore::open(&path).unwrap();
    assert!(report.set_aside.unwrap().why.contains("digest"));
    assert_eq!(store.load(ShardId(1)).unwrap(), Stored::default());
}

#[test]
fn a_store_that_is_in_use_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = open(&path);
    write(&store, 1, change(2, true, &[("a", "1")], &[])).unwrap();
    assert!(matches!(StateStore::open(&path), Err(StateError::Disk(_))));
    assert_eq!(store.load(ShardId(1)).unwrap().pairs, [pair("a", "1")]);
}

/// T5: without driving the epochs every checkpoint leaves about 1 MB on disk and 5 MB in memory.
#[test]
fn checkpoints_of_the_same_size_do_not_grow_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = open(&path);
    let size = || std::fs::metadata(path.join("db")).unwrap().len();
    let round = |n: u64| {
        let puts = (0..2000u64).map(|k| (k.to_be_bytes().to_vec(), vec![n as u8; 200])).collect();
        write(&store, 1, Change { applied: id(n), full: n == 1, puts, deletes: Vec::new() }).unwrap();
    };
    (1..=15).for_each(round);
    let settled = size();
    (16..=60).for_each(round);
    assert!(size() < settled.max(8 << 20) * 2, "{settled} -> {}", size());
}

#[test]
fn a_checkpoint_that_does_not_end_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = StateStore::open(&dir.path().join("state")).unwrap();
    let (done_tx, done_rx) = sync_channel::<()>(0);
    let applied = LogId { leader: LeaderId { term: 1, voter: 1 }, index: 1 };
    assert_eq!(store.writing_for(), None);
    store.checkpoint(ShardId(1), Change { applied, full: true, ..Change::default() }, move |_| {
        let _ = done_rx.recv();
    });
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until("it is under way", &|| store.writing_for() > Some(Duration::from_millis(5)));
    done_tx.send(()).unwrap();
    until("it has ended", &|| store.writing_for().is_none());
}
