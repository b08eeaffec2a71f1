//! The log entry's format: round trips, a golden string, and that no byte string makes a reader panic.

use super::{DataMachine, Located, read_run};
use crate::model::entry::{EntryBuilder, EntryBytes, Op, Ops, OpsReader, Section, SettleReason, StoredMessage, read_entry};
use crate::model::link::Batch;
use crate::model::{BatchSeq, Incarnation, LeaderId, LogId, NodeId, QueueId, Seq, SessionId, ShardId};
use bytes::Bytes;
use proptest::prelude::*;

fn operations(ops: OpsReader) -> Vec<Op> {
    ops.map(|op| op.unwrap()).collect()
}

fn sample() -> EntryBytes {
    let mut ops = Ops::default();
    assert_eq!(ops.enqueue(&[QueueId(1), QueueId(2)], b"ex", b"key", &[0x80, 0, 1, b'p'], b"body"), 0);
    ops.settle(QueueId(1), SettleReason::Reject, &[(Seq(1), Seq(4)), (Seq(9), Seq(9))]);
    assert_eq!(ops.enqueue(&[QueueId(2)], b"", b"", &[0, 0], b""), 1);
    let mut builder = EntryBuilder::new(77);
    builder.advance(3, 8, &[QueueId(1), QueueId(2)], &[QueueId(6)]);
    builder.hello(NodeId(4), Incarnation(44));
    builder.batch(&Batch { session: SessionId(5), seq: BatchSeq(6), floor: BatchSeq(2), catalog_index: 8, ops: ops.take() });
    ops.reserve(QueueId(2), Seq(100), &[SessionId(5), SessionId(6)]);
    builder.leader_ops(&ops.take());
    builder.gone(SessionId(3));
    builder.finish()
}

#[test]
fn what_is_built_is_read() {
    let entry = sample();
    let (time_ms, sections) = read_entry(&entry).unwrap();
    assert_eq!((time_ms, sections.len()), (77, 5));
    let (creates, drops) = (vec![QueueId(1), QueueId(2)], vec![QueueId(6)]);
    assert_eq!(sections[0], Section::Advance { from: 3, to: 8, creates, drops, replays: vec![] });
    assert_eq!(sections[1], Section::Hello { node: NodeId(4), incarnation: Incarnation(44) });
    assert_eq!(sections[4], Section::Gone { session: SessionId(3) });
    let Section::Batch { session, seq, floor, catalog_index, ops } = sections[2].clone() else { panic!("{:?}", sections[2]) };
    assert_eq!((session, seq, floor, catalog_index), (SessionId(5), BatchSeq(6), BatchSeq(2), 8));
    let read = operations(ops);
    let Op::Enqueue(first) = &read[0] else { panic!("{read:?}") };
    assert_eq!(first.queues().collect::<Vec<_>>(), [QueueId(1), QueueId(2)]);
    let message = StoredMessage::parse(first.message.clone()).unwrap();
    assert_eq!((&message.exchange[..], &message.key[..], &message.body[..]), (&b"ex"[..], &b"key"[..], &b"body"[..]));
    assert_eq!(&message.properties[..], [0x80, 0, 1, b'p']);
    let ranges = vec![(Seq(1), Seq(4)), (Seq(9), Seq(9))];
    assert_eq!(read[1], Op::Settle { queue: QueueId(1), reason: SettleReason::Reject, ranges });
    let Section::Leader { ops } = sections[3].clone() else { panic!("{:?}", sections[3]) };
    let sessions = vec![SessionId(5), SessionId(6)];
    assert_eq!(operations(ops), [Op::Reserve { queue: QueueId(2), up_to: Seq(100), sessions }]);
}

#[test]
fn a_rope_and_its_flattened_copy_read_the_same() {
    let (rope, flat) = (sample(), EntryBytes::from(sample().flatten()));
    assert!(rope.parts().len() > 1 && flat.parts().len() == 1);
    assert_eq!(read_entry(&rope).unwrap(), read_entry(&flat).unwrap());
}

#[test]
fn an_entry_has_these_bytes() {
    let mut ops = Ops::default();
    ops.enqueue(&[QueueId(0x0102)], b"x", b"k", &[0, 0], b"!");
    let mut builder = EntryBuilder::new(0x0a0b);
    builder.batch(&Batch { session: SessionId(7), seq: BatchSeq(8), floor: BatchSeq(9), catalog_index: 10, ops: ops.take() });
    let mut golden = vec![1, 0x0b, 0x0a, 0, 0, 0, 0, 0, 0];
    golden.extend([1, 59, 0, 0, 0]);
    for word in [7u64, 8, 9, 10] {
        golden.extend(word.to_le_bytes());
    }
    golden.extend([1, 22, 0, 0, 0, 0, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    golden.extend([1, b'x', 1, b'k', 2, 0, 0, 0, 0, 0, b'!']);
    assert_eq!(&builder.finish().flatten()[..], &golden[..]);
}

#[test]
fn a_run_is_read_from_the_middle_of_a_batch_and_stops_at_its_end() {
    let mut ops = Ops::default();
    for n in 0..6u8 {
        ops.enqueue(&[QueueId(u64::from(n) % 2)], b"", b"", &[0, 0], &[n]);
    }
    let mut builder = EntryBuilder::new(0);
    builder.leader_ops(&ops.take());
    builder.gone(SessionId(1));
    for entry in [builder.finish()].into_iter().flat_map(|e| [EntryBytes::from(e.flatten()), e]) {
        let mut out = Vec::new();
        let run = Located { first: Seq(12), count: 2, index: 1, position: 14, skip: 1, deadline_ms: 0 };
        read_run(&entry, QueueId(0), &run, &mut out);
        let bodies: Vec<_> = out.iter().map(|(seq, m)| (seq.0, StoredMessage::parse(m.clone()).unwrap().body[0])).collect();
        assert_eq!(bodies, [(12, 2), (13, 4)]);
    }
}

/// Reads everything that can be read.
fn exercise(entry: &EntryBytes) {
    if let Ok((_, sections)) = read_entry(entry) {
        for section in sections {
            if let Section::Batch { ops, .. } | Section::Leader { ops } = section {
                for op in ops.take_while(|op| op.is_ok()).flatten() {
                    if let Op::Enqueue(op) = op {
                        assert!(op.queues().count() <= entry.len());
                        let _ = StoredMessage::parse(op.message.clone());
                    }
                }
            }
        }
    }
    let mut machine = DataMachine::new(ShardId(1));
    let _ = machine.apply(LogId { leader: LeaderId::default(), index: 1 }, entry);
    let mut out = Vec::new();
    for position in 0..entry.len() as u32 + 2 {
        read_run(entry, QueueId(1), &Located { first: Seq(1), count: 3, index: 1, position, skip: 0, deadline_ms: 0 }, &mut out);
    }
}

proptest! {
    #[test]
    fn mutated_entries_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        split in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample().flatten().to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        exercise(&EntryBytes::from(Bytes::from(bytes.clone())));
        let mut rope = EntryBytes::default();
        let at = split.index(bytes.len());
        rope.push(Bytes::copy_from_slice(&bytes[..at]));
        rope.push(Bytes::copy_from_slice(&bytes[at..]));
        exercise(&rope);
        bytes.truncate(cut.index(bytes.len()));
        exercise(&EntryBytes::from(Bytes::from(bytes)));
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        exercise(&EntryBytes::from(Bytes::from(bytes)));
    }
}
