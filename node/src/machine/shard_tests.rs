//! The data machine against a naive model: a list of messages per queue, nothing clever.

use super::living_tests::leave_behind;
use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Ops, SectionReply, SettleReason};
use crate::model::link::{Batch, RefusedEnqueue};
use crate::model::{BatchSeq, Incarnation, LeaderId, LogId, NodeId, QueueId, Seq, SessionId, ShardId};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SHARD: ShardId = ShardId(3);
const QUEUES: u64 = 5;

fn id(index: u64) -> LogId {
    LogId { leader: LeaderId { term: 1 + index / 10, voter: 7 }, index }
}

#[derive(Clone, Debug)]
enum Operation {
    Enqueue { queues: Vec<u64>, body: u8 },
    Settle { queue: u64, first: u64, len: u64 },
    Reserve { queue: u64, up_to: u64 },
}

#[derive(Clone, Debug)]
enum Act {
    Hello { node: u16 },
    Batch { node: u16, step: i64, floor: u64, ops: Vec<Operation> },
    Leader(Vec<Operation>),
    Gone { node: u16 },
    Advance { fits: bool, creates: Vec<u64>, drops: Vec<u64> },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (prop::collection::vec(1..=QUEUES, 1..4), any::<u8>()).prop_map(|(mut queues, body)| {
            queues.sort_unstable();
            queues.dedup();
            Operation::Enqueue { queues, body }
        }),
        3 => (1..=QUEUES, 0u64..90, 0u64..9).prop_map(|(queue, first, len)| Operation::Settle { queue, first, len }),
        1 => (1..=QUEUES, 0u64..60).prop_map(|(queue, up_to)| Operation::Reserve { queue, up_to }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let ops = || prop::collection::vec(operation(), 0..12);
    prop_oneof![
        1 => (1u16..4).prop_map(|node| Act::Hello { node }),
        12 => (1u16..4, prop_oneof![9 => Just(1i64), 1 => -2i64..4], 0u64..4, ops())
            .prop_map(|(node, step, floor, ops)| Act::Batch { node, step, floor, ops }),
        3 => ops().prop_map(Act::Leader),
        1 => (1u16..4).prop_map(|node| Act::Gone { node }),
        3 => (any::<bool>(), prop::collection::vec(1..=QUEUES, 0..4), prop::collection::vec(1..=QUEUES, 0..2))
            .prop_map(|(fits, creates, drops)| Act::Advance { fits, creates, drops }),
    ]
}

#[derive(Default)]
struct NaiveSession {
    id: u64,
    last: u64,
    refused: BTreeMap<u64, Vec<(u32, RefusedEnqueue)>>,
}

/// A message: seq, stored bytes, entry.
type Message = (u64, Bytes, u64);

#[derive(Default)]
struct NaiveQueue {
    tail: u64,
    reserved: u64,
    messages: Vec<Message>,
}

#[derive(Default)]
struct Naive {
    index: u64,
    catalog: u64,
    queues: BTreeMap<u64, NaiveQueue>,
    sessions: BTreeMap<u16, NaiveSession>,
}

fn stored(body: u8) -> (Vec<u8>, Bytes) {
    let body = vec![body; 1 + body as usize % 7];
    let mut bytes = vec![1, b'x', 1, b'k', 2, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&body);
    (body, Bytes::from(bytes))
}

impl Naive {
    fn operations(&mut self, operations: &[Operation], ops: &mut Ops) -> Vec<(u32, RefusedEnqueue)> {
        let (mut refused, mut ordinal) = (Vec::new(), 0);
        for operation in operations {
            match operation {
                Operation::Enqueue { queues, body } => {
                    let ids: Vec<_> = queues.iter().map(|q| QueueId(*q)).collect();
                    let (body, message) = stored(*body);
                    ops.enqueue(&ids, b"x", b"k", &[0, 0], &body);
                    let mut any = false;
                    for id in queues {
                        if let Some(queue) = self.queues.get_mut(id) {
                            any = true;
                            queue.tail += 1;
                            queue.messages.push((queue.tail, message.clone(), self.index));
                        }
                    }
                    if !any {
                        refused.push((ordinal, RefusedEnqueue::UnknownQueue));
                    }
                    ordinal += 1;
                }
                Operation::Settle { queue, first, len } => {
                    ops.settle(QueueId(*queue), SettleReason::Ack, &[(Seq(*first), Seq(first + len))]);
                    if let Some(queue) = self.queues.get_mut(queue) {
                        queue.messages.retain(|m| m.0 < *first || m.0 > first + len);
                    }
                }
                Operation::Reserve { queue, up_to } => {
                    ops.reserve(QueueId(*queue), Seq(*up_to), &[SessionId(*up_to)]);
                    if let Some(queue) = self.queues.get_mut(queue) {
                        queue.reserved = queue.reserved.max(*up_to);
                    }
                }
            }
        }
        refused
    }

    fn batch(&mut self, builder: &mut EntryBuilder, (node, step, floor): (u16, i64, u64), operations: &[Operation]) -> SectionReply {
        let known = self.sessions.get(&node).map(|s| (s.id, s.last));
        let (session, last) = known.unwrap_or((9999, 0));
        let seq = (last as i64 + step).max(1) as u64;
        let next = known.is_some() && seq == last + 1;
        let mut ops = Ops::default();
        let refused = if next { self.operations(operations, &mut ops) } else { Naive::default().operations(operations, &mut ops) };
        let floor = last.saturating_sub(floor);
        let (sid, bseq) = (SessionId(session), BatchSeq(seq));
        builder.batch(&Batch { session: sid, seq: bseq, floor: BatchSeq(floor), catalog_index: self.catalog, ops: ops.take() });
        let Some(row) = self.sessions.get_mut(&node) else { return SectionReply::UnknownSession { session: sid } };
        if seq > last + 1 {
            return SectionReply::Gap { session: sid, last: BatchSeq(last) };
        }
        if next {
            row.last = seq;
            row.refused.retain(|s, _| *s > floor);
            row.refused.insert(seq, refused);
        }
        SectionReply::Batch { session: sid, seq: bseq, refused: row.refused.get(&seq).cloned().unwrap_or_default() }
    }

    fn act(&mut self, act: &Act, builder: &mut EntryBuilder) -> SectionReply {
        match act {
            Act::Hello { node } => {
                builder.hello(NodeId(*node), Incarnation(self.index));
                let row = NaiveSession { id: self.index, ..NaiveSession::default() };
                let replaced = self.sessions.insert(*node, row).map(|s| SessionId(s.id));
                SectionReply::Hello { session: SessionId(self.index), replaced }
            }
            Act::Batch { node, step, floor, ops } => self.batch(builder, (*node, *step, *floor), ops),
            Act::Leader(operations) => {
                let mut ops = Ops::default();
                self.operations(operations, &mut ops);
                builder.leader_ops(&ops.take());
                SectionReply::Leader
            }
            Act::Gone { node } => {
                let session = self.sessions.remove(node).map_or(9999, |s| s.id);
                builder.gone(SessionId(session));
                SectionReply::Gone
            }
            Act::Advance { fits, creates, drops } => {
                let from = if *fits { self.catalog } else { self.catalog + 1 };
                let ids = |list: &[u64]| list.iter().map(|q| QueueId(*q)).collect::<Vec<_>>();
                builder.advance(from, from + 1, &ids(creates), &ids(drops));
                if *fits {
                    self.catalog += 1;
                    creates.iter().for_each(|q| {
                        self.queues.entry(*q).or_default();
                    });
                    drops.iter().for_each(|q| {
                        self.queues.remove(q);
                    });
                }
                SectionReply::Advanced { accepted: *fits }
            }
        }
    }

    fn live_entries(&self) -> Vec<u64> {
        let all: BTreeSet<u64> = self.queues.values().flat_map(|q| q.messages.iter().map(|m| m.2)).collect();
        all.into_iter().collect()
    }
}

fn messages(queue: QueueId, state: &Queue, from: u64, max: usize, log: &[EntryBytes]) -> Vec<Message> {
    let mut runs = Vec::new();
    state.locate(0, Seq(from), max, &mut runs);
    let mut out = Vec::new();
    for run in runs {
        let mut read = Vec::new();
        read_run(&log[run.index as usize], queue, &run, &mut read);
        assert_eq!(read.len(), run.count as usize);
        out.extend(read.into_iter().map(|(seq, bytes)| (seq.0, bytes, run.index)));
    }
    out
}

fn check_queues(machine: &DataMachine, naive: &Naive, log: &[EntryBytes]) {
    assert_eq!(machine.queues().map(|(id, _)| id.0).collect::<Vec<_>>(), naive.queues.keys().copied().collect::<Vec<_>>());
    for (id, wanted) in &naive.queues {
        let queue = machine.queue(QueueId(*id)).unwrap();
        assert_eq!((queue.tail().0, queue.reserved().0), (wanted.tail, wanted.reserved));
        assert_eq!(queue.live_count(), wanted.messages.len() as u64);
        assert_eq!(messages(QueueId(*id), queue, 0, usize::MAX, log), wanted.messages);
        let some: Vec<_> = wanted.messages.iter().filter(|m| m.0 >= wanted.tail / 2).take(3).cloned().collect();
        assert_eq!(messages(QueueId(*id), queue, wanted.tail / 2, 3, log), some);
        for seq in 0..wanted.tail + 2 {
            assert_eq!(queue.is_live(Seq(seq)), wanted.messages.iter().any(|m| m.0 == seq));
        }
        if wanted.messages.is_empty() {
            assert_eq!(queue.live_bytes(), 0);
        }
    }
}

fn store(machine: &mut DataMachine, disk: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let delta = machine.checkpoint();
    if delta.full {
        disk.clear();
    }
    delta.deletes.iter().for_each(|key| {
        disk.remove(key);
    });
    disk.extend(delta.puts);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn any_log_gives_what_the_naive_model_gives(
        entries in prop::collection::vec((prop::collection::vec(act(), 1..5), any::<u64>(), 0u8..6), 1..40),
    ) {
        let mut naive = Naive::default();
        let (mut machine, mut twin) = (DataMachine::new(SHARD), DataMachine::new(SHARD));
        let mut disk = BTreeMap::new();
        let (mut log, mut left) = (vec![EntryBytes::default()], vec![EntryBytes::default()]);
        let mut freed = BTreeSet::new();
        let first = vec![
            Act::Advance { fits: true, creates: vec![1, 2, 3], drops: vec![] },
            Act::Hello { node: 1 },
        ];
        for (acts, time, what_then) in std::iter::once((first, 5, 0)).chain(entries) {
            naive.index += 1;
            let mut builder = EntryBuilder::new(time >> 8);
            let mut hellos = 0;
            let mut wanted = Vec::new();
            for act in &acts {
                hellos += u32::from(matches!(act, Act::Hello { .. }));
                if hellos < 2 || !matches!(act, Act::Hello { .. }) {
                    wanted.push(naive.act(act, &mut builder));
                }
            }
            let entry = builder.finish();
            let flat = EntryBytes::from(entry.flatten());
            let applied = machine.apply(id(naive.index), &entry).unwrap();
            prop_assert_eq!(&applied.replies, &wanted);
            prop_assert_eq!(&twin.apply(id(naive.index), &flat).unwrap(), &applied);
            log.push(if naive.index % 2 == 0 { flat } else { entry });
            left.push(log[log.len() - 1].clone());
            for index in applied.freed {
                prop_assert!(freed.insert(index), "freed twice: {}", index);
            }
            check_queues(&machine, &naive, &log);
            leave_behind(&mut machine, &mut left);
            check_queues(&machine, &naive, &left);
            prop_assert_eq!(machine.live_entries(), naive.live_entries());
            let not_live: Vec<u64> = (1..=naive.index).filter(|i| !freed.contains(i)).collect();
            prop_assert_eq!(machine.live_entries(), not_live);
            prop_assert_eq!(machine.state_hash(), twin.state_hash());
            match what_then {
                0 => store(&mut machine, &mut disk),
                1 => {
                    store(&mut machine, &mut disk);
                    let mut restored = DataMachine::restore(SHARD, &disk).unwrap();
                    prop_assert_eq!(restored.state_hash(), machine.state_hash());
                    prop_assert_eq!(restored.snapshot(), machine.snapshot());
                    machine = restored;
                }
                2 => {
                    let restored = DataMachine::from_snapshot(SHARD, &machine.snapshot()).unwrap();
                    prop_assert_eq!(restored.state_hash(), machine.state_hash());
                    machine = restored;
                }
                3 => machine.forget_checkpoint(),
                _ => {}
            }
        }
    }

    #[test]
    fn mutated_checkpoints_never_panic(at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>()) {
        let mut machine = filled(200, 7);
        let mut disk = BTreeMap::new();
        store(&mut machine, &mut disk);
        let victim = at.index(disk.len());
        let value = disk.values_mut().nth(victim).unwrap();
        let place = at.index(value.len());
        if cut { value.truncate(place) } else { value[place] ^= flip }
        let _ = DataMachine::restore(SHARD, &disk);
        let mut snapshot = machine.snapshot();
        let place = at.index(snapshot.len());
        if cut { snapshot.truncate(place) } else { snapshot[place] ^= flip }
        prop_assert!(DataMachine::from_snapshot(SHARD, &snapshot).is_err());
    }
}

/// Entry 1 makes queue 1 and a session; the next ones hold a batch each.
fn filled(messages: u64, per_batch: u64) -> DataMachine {
    let mut machine = DataMachine::new(SHARD);
    let mut builder = EntryBuilder::new(1);
    builder.advance(0, 1, &[QueueId(1)], &[]);
    builder.hello(NodeId(1), Incarnation(1));
    machine.apply(id(1), &builder.finish()).unwrap();
    let mut ops = Ops::default();
    for n in 0..messages / per_batch {
        (0..per_batch).for_each(|_| {
            ops.enqueue(&[QueueId(1)], b"", b"k", &[0, 0], &[7; 100]);
        });
        let mut builder = EntryBuilder::new(2);
        builder.batch(&Batch { session: SessionId(1), seq: BatchSeq(n + 1), floor: BatchSeq(n), catalog_index: 1, ops: ops.take() });
        machine.apply(id(n + 2), &builder.finish()).unwrap();
    }
    machine
}

pub(super) fn leader_entry(build: impl FnOnce(&mut Ops)) -> EntryBytes {
    let mut ops = Ops::default();
    build(&mut ops);
    let mut builder = EntryBuilder::new(0);
    builder.leader_ops(&ops.take());
    builder.finish()
}

#[test]
fn an_extent_settled_in_the_middle_goes_and_frees_its_entry() {
    let mut machine = filled(50, 10);
    let applied = machine.apply(id(7), &leader_entry(|o| o.settle(QueueId(1), SettleReason::Ack, &[(Seq(21), Seq(30))]))).unwrap();
    assert_eq!(applied.freed, [7, 4]);
    assert_eq!(applied.effects, [Effect::Settled { queue: QueueId(1) }]);
    assert_eq!(machine.live_entries(), [2, 3, 5, 6]);
    assert_eq!(machine.queue(QueueId(1)).unwrap().live_bytes(), 40 * 109);
}

#[test]
fn a_message_in_three_queues_keeps_its_entry_until_the_last_one_settles() {
    let mut machine = DataMachine::new(SHARD);
    let queues = [QueueId(1), QueueId(2), QueueId(3)];
    let mut builder = EntryBuilder::new(0);
    builder.advance(0, 1, &queues, &[]);
    machine.apply(id(1), &builder.finish()).unwrap();
    let enqueue = leader_entry(|o| {
        o.enqueue(&queues, b"", b"", &[0, 0], b"m");
    });
    assert_eq!(machine.apply(id(2), &enqueue).unwrap().freed, [0; 0]);
    for (n, queue) in queues.into_iter().enumerate() {
        let applied = machine.apply(id(3 + n as u64), &leader_entry(|o| o.settle(queue, SettleReason::Ack, &[(Seq(1), Seq(1))]))).unwrap();
        assert_eq!(applied.freed.contains(&2), n == 2);
    }
}

#[test]
fn effects_name_a_queue_once_per_entry() {
    let mut machine = filled(0, 1);
    let entry = leader_entry(|o| {
        for _ in 0..5 {
            o.enqueue(&[QueueId(1)], b"", b"", &[0, 0], b"m");
            o.settle(QueueId(1), SettleReason::Ack, &[(Seq(1), Seq(2))]);
        }
        o.reserve(QueueId(1), Seq(9), &[SessionId(1)]);
    });
    let queue = QueueId(1);
    let wanted = [Effect::Enqueued { queue }, Effect::Settled { queue }, Effect::Reserved { queue }];
    assert_eq!(machine.apply(id(2), &entry).unwrap().effects, wanted);
    assert_eq!(machine.queue(queue).unwrap().holders(), [SessionId(1)]);
}

#[test]
fn a_dropped_queue_is_not_revived_and_frees_what_it_held() {
    let mut machine = filled(30, 10);
    let mut builder = EntryBuilder::new(0);
    builder.advance(1, 2, &[], &[QueueId(1)]);
    let applied = machine.apply(id(5), &builder.finish()).unwrap();
    assert_eq!(applied.freed, [5, 2, 3, 4]);
    let mut ops = Ops::default();
    ops.enqueue(&[QueueId(1)], b"", b"", &[0, 0], b"m");
    let mut builder = EntryBuilder::new(0);
    builder.batch(&Batch { session: SessionId(1), seq: BatchSeq(4), floor: BatchSeq(0), catalog_index: 1, ops: ops.take() });
    let refused = vec![(0, RefusedEnqueue::UnknownQueue)];
    let reply = SectionReply::Batch { session: SessionId(1), seq: BatchSeq(4), refused };
    assert_eq!(machine.apply(id(6), &builder.finish()).unwrap().replies, [reply]);
    assert!(machine.queue(QueueId(1)).is_none());
}

#[test]
fn a_duplicate_answers_the_stored_verdict_until_the_floor_passes_it() {
    let mut machine = filled(0, 1);
    let mut index = 1;
    let mut send = |machine: &mut DataMachine, seq, floor, queue| {
        index += 1;
        let mut ops = Ops::default();
        ops.enqueue(&[QueueId(queue)], b"", b"", &[0, 0], b"m");
        let mut builder = EntryBuilder::new(0);
        builder.batch(&Batch { session: SessionId(1), seq: BatchSeq(seq), floor: BatchSeq(floor), catalog_index: 1, ops: ops.take() });
        machine.apply(id(index), &builder.finish()).unwrap().replies.remove(0)
    };
    let reply = |seq, refused| SectionReply::Batch { session: SessionId(1), seq: BatchSeq(seq), refused };
    let refused = vec![(0, RefusedEnqueue::UnknownQueue)];
    assert_eq!(send(&mut machine, 1, 0, 99), reply(1, refused.clone()));
    assert_eq!(send(&mut machine, 1, 0, 99), reply(1, refused.clone()));
    assert_eq!(send(&mut machine, 3, 0, 1), SectionReply::Gap { session: SessionId(1), last: BatchSeq(1) });
    assert_eq!(send(&mut machine, 2, 0, 1), reply(2, vec![]));
    assert_eq!(send(&mut machine, 1, 0, 99), reply(1, refused));
    assert_eq!(send(&mut machine, 3, 2, 1), reply(3, vec![]));
    assert_eq!(send(&mut machine, 1, 0, 99), reply(1, vec![]));
    assert_eq!(machine.queue(QueueId(1)).unwrap().tail(), Seq(2));
    assert_eq!(machine.last_batch(SessionId(1)), Some(BatchSeq(3)));
}

#[test]
fn faults_are_values() {
    let mut machine = filled(0, 1);
    let hello = |b: &mut EntryBuilder, n| b.hello(NodeId(n), Incarnation(1));
    let mut builder = EntryBuilder::new(0);
    hello(&mut builder, 1);
    hello(&mut builder, 2);
    assert_eq!(machine.apply(id(2), &builder.finish()), Err(Fault::TwoHellos { index: 2 }));
    assert_eq!(machine.apply(id(1), &EntryBuilder::new(0).finish()), Err(Fault::Order { index: 1, applied: 1 }));
    assert!(matches!(machine.apply(id(2), &EntryBytes::default()), Err(Fault::Malformed(_))));
    machine.pass(id(2)).unwrap();
    assert_eq!(machine.applied(), id(2));
}

#[test]
fn the_place_of_a_message_that_is_not_stored_has_an_ordinal_and_no_effect() {
    let mut machine = filled(1, 1);
    let mut ops = Ops::default();
    ops.void();
    assert_eq!(ops.enqueue(&[QueueId(99)], b"", b"q", &[0, 0], b"m"), 1);
    ops.void();
    assert_eq!(ops.enqueue(&[QueueId(1)], b"", b"q", &[0, 0], b"m"), 3);
    let mut builder = EntryBuilder::new(2);
    let (session, seq) = (SessionId(1), BatchSeq(2));
    builder.batch(&Batch { session, seq, floor: BatchSeq(1), catalog_index: 1, ops: ops.take() });
    let applied = machine.apply(id(3), &builder.finish()).unwrap();
    assert_eq!(applied.replies, [SectionReply::Batch { session, seq, refused: vec![(1, RefusedEnqueue::UnknownQueue)] }]);
    assert_eq!(machine.queue(QueueId(1)).unwrap().live_count(), 2);
}

#[test]
fn a_checkpoint_holds_only_what_changed() {
    let mut machine = filled(6400, 1);
    assert_eq!(machine.checkpoint().puts.iter().filter(|(k, _)| k[0] == b'x').count(), 100);
    let settle = leader_entry(|o| o.settle(QueueId(1), SettleReason::Ack, &[(Seq(1), Seq(65))]));
    machine.apply(id(6402), &settle).unwrap();
    let delta = machine.checkpoint();
    assert_eq!((delta.full, delta.puts.len(), delta.deletes.len()), (false, 3, 1), "meta, queue, one chunk; one chunk gone");
    assert_eq!(machine.checkpoint().puts.len(), 1);
}

#[test]
fn a_million_waiting_messages_cost_little_memory() {
    let mut machine = filled(1_000_000, 10);
    let bytes = machine.snapshot().len();
    assert!(bytes < 10 << 20, "{bytes}");
    assert_eq!(machine.queue(QueueId(1)).unwrap().live_count(), 1_000_000);
}

/// CPU time of this thread: the machine may be busy with other things.
fn cpu_ns() -> u128 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// cargo test --release -p warren-node --lib -- --ignored --nocapture apply_is_fast
#[test]
#[ignore = "a measurement"]
fn apply_is_fast() {
    for (per_batch, queues) in [(500u64, 1u64), (500, 20), (50, 50), (1, 1)] {
        let total = 500_000;
        let mut machine = filled(0, 1);
        let ids: Vec<_> = (1..=queues).map(|q| QueueId(q + 100)).collect();
        let mut builder = EntryBuilder::new(1);
        builder.advance(1, 2, &ids, &[]);
        machine.apply(id(2), &builder.finish()).unwrap();
        let mut ops = Ops::default();
        let entries: Vec<_> = (0..total / per_batch)
            .map(|n| {
                (0..per_batch).for_each(|m| {
                    ops.enqueue(&[ids[(m % queues) as usize]], b"ex", b"key", &[0, 0], &[7; 100]);
                });
                let mut builder = EntryBuilder::new(2);
                let (seq, floor) = (BatchSeq(n + 1), BatchSeq(n));
                builder.batch(&Batch { session: SessionId(1), seq, floor, catalog_index: 1, ops: ops.take() });
                builder.finish()
            })
            .collect();
        let start = cpu_ns();
        for (n, entry) in entries.iter().enumerate() {
            machine.apply(id(n as u64 + 3), entry).unwrap();
        }
        let enqueue = (cpu_ns() - start) / u128::from(total);
        let per_queue = total / queues;
        let settles: Vec<_> = (1..=per_queue)
            .map(|s| leader_entry(|o| ids.iter().for_each(|q| o.settle(*q, SettleReason::Ack, &[(Seq(s), Seq(s))]))))
            .collect();
        let start = cpu_ns();
        for (n, entry) in settles.iter().enumerate() {
            machine.apply(id(n as u64 + 1_000_000), entry).unwrap();
        }
        let settle = (cpu_ns() - start) / u128::from(total);
        println!("{per_batch} per batch, {queues} queues: enqueue {enqueue} ns, settle one by one {settle} ns");
    }
}

#[test]
fn an_inverted_range_settles_nothing() {
    let mut machine = DataMachine::new(SHARD);
    let mut entry = EntryBuilder::new(0);
    entry.advance(0, 1, &[QueueId(1)], &[]);
    entry.hello(NodeId(1), Incarnation(1));
    machine.apply(id(1), &entry.finish()).unwrap();
    for n in 2..6u64 {
        let mut ops = Ops::default();
        (0..3).for_each(|_| {
            ops.enqueue(&[QueueId(1)], b"", b"k", &[0, 0], b"m");
        });
        let batch = Batch { session: SessionId(1), seq: BatchSeq(n - 1), floor: BatchSeq(0), catalog_index: 1, ops: ops.take() };
        let mut entry = EntryBuilder::new(0);
        entry.batch(&batch);
        machine.apply(id(n), &entry.finish()).unwrap();
    }
    let mut ops = Ops::default();
    ops.settle(QueueId(1), SettleReason::Ack, &[(Seq(10), Seq(5))]);
    let mut entry = EntryBuilder::new(0);
    entry.leader_ops(&ops.take());
    machine.apply(id(6), &entry.finish()).unwrap();
    let queue = machine.queue(QueueId(1)).unwrap();
    let live = (1..=12).filter(|s| queue.is_live(Seq(*s))).count();
    assert_eq!((live, queue.live_count()), (12, 12));
}

#[test]
fn a_fanout_may_be_wider_than_an_u16() {
    let mut machine = DataMachine::new(SHARD);
    let queues: Vec<QueueId> = (1..=65_537u64).map(QueueId).collect();
    let mut entry = EntryBuilder::new(0);
    entry.advance(0, 1, &queues, &[]);
    entry.hello(NodeId(1), Incarnation(1));
    machine.apply(id(1), &entry.finish()).unwrap();
    let mut ops = Ops::default();
    ops.enqueue(&queues, b"", b"k", &[0, 0], b"m");
    let batch = Batch { session: SessionId(1), seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 1, ops: ops.take() };
    let mut entry = EntryBuilder::new(0);
    entry.batch(&batch);
    let entry = entry.finish();
    let applied = machine.apply(id(2), &entry).unwrap();
    let have = queues.iter().filter(|q| machine.queue(**q).unwrap().live_count() == 1).count();
    assert_eq!(
        (
            have,
            format!(
                "{:?}",
                applied.replies.iter().map(|r| matches!(r, SectionReply::Batch { refused, .. } if refused.is_empty())).collect::<Vec<_>>()
            )
        ),
        (65_537, "[true]".into())
    );
    let (mut located, mut read) = (Vec::new(), Vec::new());
    machine.queue(QueueId(65_537)).unwrap().locate(0, Seq(1), 1, &mut located);
    read_run(&entry, QueueId(65_537), &located[0], &mut read);
    assert_eq!(read.len(), 1);
}

/// Rule 27: the advance that was proposed before the batch got lost, and the batch did not.
#[test]
fn a_batch_routed_by_a_later_catalog_has_no_effect() {
    let mut machine = DataMachine::new(SHARD);
    let mut entry = EntryBuilder::new(0);
    entry.advance(0, 10, &[QueueId(1)], &[]);
    entry.hello(NodeId(1), Incarnation(1));
    machine.apply(id(1), &entry.finish()).unwrap();
    let mut ops = Ops::default();
    ops.enqueue(&[QueueId(11)], b"", b"k", &[0, 0], b"m");
    let batch = Batch { session: SessionId(1), seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 11, ops: ops.take() };
    let with_batch = |advance: Option<(u64, u64)>| {
        let mut entry = EntryBuilder::new(0);
        if let Some((from, to)) = advance {
            entry.advance(from, to, &[QueueId(11)], &[]);
        }
        entry.batch(&batch);
        entry.finish()
    };
    let gap = SectionReply::Gap { session: SessionId(1), last: BatchSeq(0) };
    assert_eq!(machine.apply(id(2), &with_batch(None)).unwrap().replies, std::slice::from_ref(&gap));
    assert_eq!(machine.apply(id(3), &with_batch(Some((11, 12)))).unwrap().replies, [SectionReply::Advanced { accepted: false }, gap]);
    let taken = SectionReply::Batch { session: SessionId(1), seq: BatchSeq(1), refused: vec![] };
    assert_eq!(
        machine.apply(id(4), &with_batch(Some((10, 11)))).unwrap().replies,
        [SectionReply::Advanced { accepted: true }, taken.clone()]
    );
    assert_eq!(machine.apply(id(5), &with_batch(None)).unwrap().replies, [taken], "a repeated one has its verdict, whatever the catalog");
}

/// Rule 13: an edge that lives and was declared gone resends what it has no verdict for.
#[test]
fn a_process_that_was_declared_gone_finds_its_verdicts_and_a_new_one_does_not() {
    let mut machine = DataMachine::new(SHARD);
    let mut entry = EntryBuilder::new(0);
    entry.advance(0, 1, &[QueueId(1)], &[]);
    entry.hello(NodeId(1), Incarnation(5));
    machine.apply(id(1), &entry.finish()).unwrap();
    let batch = |session: u64| {
        let mut ops = Ops::default();
        [QueueId(1), QueueId(9)].iter().for_each(|q| {
            ops.enqueue(&[*q], b"", b"k", &[0, 0], b"m");
        });
        let batch = Batch { session: SessionId(session), seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 1, ops: ops.take() };
        let mut entry = EntryBuilder::new(0);
        entry.batch(&batch);
        entry.finish()
    };
    let hello = |incarnation| {
        let mut entry = EntryBuilder::new(0);
        entry.hello(NodeId(1), Incarnation(incarnation));
        entry.finish()
    };
    let verdict = |session| {
        let refused = vec![(1, RefusedEnqueue::UnknownQueue)];
        [SectionReply::Batch { session: SessionId(session), seq: BatchSeq(1), refused }]
    };
    assert_eq!(machine.apply(id(2), &batch(1)).unwrap().replies, verdict(1));
    let mut gone = EntryBuilder::new(0);
    gone.gone(SessionId(1));
    machine.apply(id(3), &gone.finish()).unwrap();
    assert_eq!((machine.sessions().count(), machine.last_batch(SessionId(1))), (0, None));
    assert_eq!(machine.apply(id(4), &batch(1)).unwrap().replies, [SectionReply::UnknownSession { session: SessionId(1) }]);
    let mut machine = DataMachine::from_snapshot(SHARD, &machine.snapshot()).unwrap();
    let replies = machine.apply(id(5), &hello(5)).unwrap().replies;
    assert_eq!(replies, [SectionReply::Hello { session: SessionId(5), replaced: None }]);
    assert_eq!(machine.last_batch(SessionId(5)), Some(BatchSeq(1)));
    assert_eq!(machine.apply(id(6), &batch(5)).unwrap().replies, verdict(5));
    assert_eq!(machine.queue(QueueId(1)).unwrap().live_count(), 1, "not twice");
    machine.apply(id(7), &hello(6)).unwrap();
    assert_eq!(machine.last_batch(SessionId(7)), Some(BatchSeq(0)), "another process begins anew");
}

#[test]
fn entries_of_a_later_version_are_for_programs_that_know_it() {
    use crate::model::version::TooNew;
    let entry = |version: u8, index: u64| {
        let mut entry = EntryBuilder::of_version(version, index);
        entry.hello(NodeId(1), Incarnation(index));
        (LogId { leader: LeaderId { term: 1, voter: 1 }, index }, entry.finish())
    };
    let new = || DataMachine::supporting(2, SHARD);
    let (mut old, mut one, mut other) = (DataMachine::new(SHARD), new(), new());
    let (id, first) = entry(1, 1);
    for machine in [&mut old, &mut one, &mut other] {
        machine.apply(id, &first).unwrap();
    }
    assert_eq!(old.state_hash(), one.state_hash());
    let (id, second) = entry(2, 2);
    one.apply(id, &second).unwrap();
    let (before, too_new) = (old.state_hash(), TooNew { used: 2, supported: 1 });
    assert_eq!(old.apply(id, &second), Err(Fault::TooNew(too_new)));
    assert_eq!((old.state_hash(), old.version()), (before, 1), "it did nothing");
    assert_eq!(
        too_new.to_string(),
        "the cluster uses version 2 of its log, this program knows versions up to 1: start a newer one on this node"
    );
    // A leader whose catalog lags writes an entry of the version before.
    let (id, third) = entry(1, 3);
    one.apply(id, &third).unwrap();
    for (at, entry) in [(2, &second), (3, &third)] {
        other.apply(LogId { index: at, ..id }, entry).unwrap();
    }
    assert_eq!((one.state_hash(), one.version()), (other.state_hash(), 2));
    let (snapshot, pairs) = (one.snapshot(), one.checkpoint().puts);
    assert_eq!(new().with_snapshot(&snapshot).unwrap().state_hash(), one.state_hash());
    assert_eq!(new().restored(pairs.clone()).unwrap().state_hash(), one.state_hash());
    assert_eq!(DataMachine::from_snapshot(SHARD, &snapshot).err(), Some(RestoreError::TooNew(too_new)));
    assert_eq!(DataMachine::restore(SHARD, pairs).err(), Some(RestoreError::TooNew(too_new)));
}
