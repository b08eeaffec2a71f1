//! Captures while entries go on: what they show, and how long they hold the lock.

use super::capture::{Image, Progress};
use super::shard_tests::leader_entry;
use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Ops, SettleReason};
use crate::model::link::Batch;
use crate::model::{BatchSeq, Incarnation, LeaderId, LogId, NodeId, QueueId, Seq, SessionId, ShardId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SHARD: ShardId = ShardId(3);
/// What `entry` says of a queue.
type Change = (u64, u64, u64);

fn id(index: u64) -> LogId {
    LogId { leader: LeaderId { term: 1, voter: 7 }, index }
}

/// A machine with these queues and the session of entry 1.
fn with_queues(queues: u64) -> DataMachine {
    let mut machine = DataMachine::new(SHARD);
    let mut builder = EntryBuilder::new(1);
    let ids: Vec<_> = (1..=queues).map(QueueId).collect();
    builder.advance(0, 1, &ids, &[]);
    builder.hello(NodeId(1), Incarnation(1));
    machine.apply(id(1), &builder.finish()).unwrap();
    machine
}

/// Sections of one message each, so that each is an extent of its own.
fn scattered(queues: impl Iterator<Item = u64>, first: u64) -> EntryBytes {
    let mut builder = EntryBuilder::new(2);
    for (seq, queue) in (first..).zip(queues) {
        let mut ops = Ops::default();
        ops.enqueue(&[QueueId(queue)], b"", b"q", &[0, 0], b"m");
        builder.batch(&Batch { session: SessionId(1), seq: BatchSeq(seq), floor: BatchSeq(seq - 1), catalog_index: 1, ops: ops.take() });
    }
    builder.finish()
}

/// Drops a queue, makes one, takes from one and gives to one.
fn changes(n: u64, (dropped, settled, filled): Change) -> EntryBytes {
    let mut builder = EntryBuilder::new(3);
    builder.advance(n, n + 1, &[QueueId(1_000_000 + n)], &[QueueId(dropped)]);
    let mut ops = Ops::default();
    ops.settle(QueueId(settled), SettleReason::Ack, &[(Seq(1), Seq(1))]);
    ops.enqueue(&[QueueId(filled), QueueId(1_000_000 + n)], b"", b"q", &[0, 0], b"m");
    builder.leader_ops(&ops.take());
    builder.finish()
}

fn store(delta: Delta, disk: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    if delta.full {
        disk.clear();
    }
    delta.deletes.iter().for_each(|key| drop(disk.remove(key)));
    disk.extend(delta.puts);
}

/// Takes a capture slice by slice, with an entry applied between any two.
fn in_slices(machine: &mut DataMachine, capture: CaptureId, mut entry: impl FnMut(u64) -> EntryBytes) -> Image {
    for slice in 0.. {
        match machine.capture(capture) {
            Progress::Done(image) => {
                assert!(slice >= 3, "all was copied in {slice} slices: nothing came in between");
                return *image;
            }
            Progress::More => {
                let index = machine.applied().index + 1;
                machine.apply(id(index), &entry(machine.catalog_index())).unwrap();
            }
            Progress::Unknown => panic!("a capture is lost"),
        }
    }
    unreachable!()
}

#[test]
fn a_capture_shows_the_state_of_its_beginning_whatever_is_applied_meanwhile() {
    let mut machine = with_queues(5000);
    machine.apply(id(2), &scattered(1..=5000, 1)).unwrap();
    let mut disk = BTreeMap::new();
    let mut victims = (1..=5000u64).rev().step_by(3);
    let mut entry = |n| {
        let dropped = victims.next().unwrap();
        changes(n, (dropped, dropped - 1, dropped - 2))
    };
    for _ in 0..2 {
        let (hash, live) = (machine.state_hash(), machine.live_entries());
        let snapshot = machine.begin_snapshot();
        let image = in_slices(&mut machine, snapshot, &mut entry);
        assert_eq!(image.live_entries(), live);
        let there = DataMachine::from_snapshot(SHARD, &image.into_snapshot()).unwrap();
        assert_eq!(there.state_hash(), hash);
    }
    for round in 0..2 {
        machine.forget_checkpoint();
        let hash = machine.state_hash();
        let checkpoint = machine.begin_checkpoint();
        store(in_slices(&mut machine, checkpoint, &mut entry).into_delta(), &mut disk);
        assert_eq!(DataMachine::restore(SHARD, &disk).unwrap().state_hash(), hash, "round {round}");
        store(machine.checkpoint(), &mut disk);
        assert_eq!(DataMachine::restore(SHARD, &disk).unwrap().state_hash(), machine.state_hash(), "what changed meanwhile comes next");
    }
}

#[test]
fn a_checkpoint_and_a_snapshot_at_once_do_not_see_each_other() {
    let mut machine = with_queues(3000);
    machine.apply(id(2), &scattered(1..=3000, 1)).unwrap();
    let before = machine.state_hash();
    let (snapshot, checkpoint) = (machine.begin_snapshot(), machine.begin_checkpoint());
    assert!(matches!(machine.capture(snapshot), Progress::More));
    machine.apply(id(3), &leader_entry(|ops| ops.settle(QueueId(2999), SettleReason::Ack, &[(Seq(1), Seq(1))]))).unwrap();
    let mut disk = BTreeMap::new();
    store(machine.capture_rest(checkpoint).unwrap().into_delta(), &mut disk);
    assert_eq!(DataMachine::restore(SHARD, &disk).unwrap().state_hash(), before);
    let snapshot = machine.capture_rest(snapshot).unwrap().into_snapshot();
    assert_eq!(DataMachine::from_snapshot(SHARD, &snapshot).unwrap().state_hash(), before);
    assert!(matches!(machine.capture(checkpoint), Progress::Unknown));
}

/// cargo test --release -p warren-node --lib -- --ignored --nocapture how_long_a_full_checkpoint_holds_the_lock
#[test]
#[ignore = "a measurement"]
fn how_long_a_full_checkpoint_holds_the_lock() {
    for queues in [1, 100, 100_000] {
        let mut machine = with_queues(queues);
        for n in 0..5000 {
            let entry = scattered((0..200).map(|m| (n * 200 + m) % queues + 1), n * 200 + 1);
            machine.apply(id(n + 2), &entry).unwrap();
        }
        let mut longest = Duration::ZERO;
        let mut timed = |work: &mut dyn FnMut()| {
            let began = Instant::now();
            work();
            longest = longest.max(began.elapsed());
        };
        let mut capture = None;
        timed(&mut || capture = Some(machine.begin_checkpoint()));
        let mut image = None;
        while image.is_none() {
            timed(&mut || {
                if let Progress::Done(done) = machine.capture(capture.unwrap()) {
                    image = Some(done);
                }
            });
        }
        let began = Instant::now();
        let delta = image.unwrap().into_delta();
        let bytes: usize = delta.puts.iter().map(|(k, v)| k.len() + v.len()).sum();
        println!(
            "1,000,000 messages in {queues} queues, an extent each: locked {longest:?} at a time, encoded in {:?}, {bytes} bytes",
            began.elapsed()
        );
    }
}
