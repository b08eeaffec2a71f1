//! Letters between two shards whose leaders come and go: whatever is sent twice, late or to a full queue, each dead message comes to its
//! target once. And what one entry may make of a queue.

use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Ops, SectionReply, SettleReason, StoredMessage};
use crate::model::letters::Source;
use crate::model::link::Batch;
use crate::model::settings::{DeadLetter, Overflow, QueueSettings};
use crate::model::{BatchSeq, Incarnation, LeaderId, LogId, NodeId, QueueId, Seq, SessionId, ShardId, limits};
use proptest::prelude::*;
use std::collections::BTreeMap;

const S: ShardId = ShardId(3);
const T: ShardId = ShardId(4);
const Q: QueueId = QueueId(1);
/// In the target shard: a queue that is often full, and one that is not.
const FULL: QueueId = QueueId(50);
const FREE: QueueId = QueueId(51);

/// A shard with its log; it may be restored from its checkpoint at any time.
struct Shard {
    machine: DataMachine,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    log: Vec<EntryBytes>,
    batches: u64,
}

impl Shard {
    fn new(shard: ShardId, queues: &[(QueueId, QueueSettings)]) -> Shard {
        let mut new = Shard { machine: DataMachine::new(shard), disk: BTreeMap::new(), log: vec![EntryBytes::default()], batches: 0 };
        let mut first = EntryBuilder::new(100);
        first.advance(0, 1, &queues.iter().map(|q| q.0).collect::<Vec<_>>(), &[]);
        queues.iter().for_each(|(queue, settings)| first.settings(1, *queue, settings));
        first.hello(NodeId(1), Incarnation(1));
        new.apply(first);
        new
    }

    fn apply(&mut self, entry: EntryBuilder) -> Applied {
        let entry = entry.finish();
        let id = LogId { leader: LeaderId { term: 1, voter: 7 }, index: self.log.len() as u64 };
        self.log.push(entry);
        let applied = self.machine.apply(id, &self.log[self.log.len() - 1]).unwrap();
        super::living_tests::leave_behind(&mut self.machine, &mut self.log);
        applied
    }

    fn ops(&mut self, build: impl FnOnce(&mut Ops)) {
        let mut ops = Ops::default();
        build(&mut ops);
        let mut entry = EntryBuilder::new(100);
        entry.leader_ops(&ops.take());
        self.apply(entry);
    }

    /// A batch of its edge. True when nothing of it was refused.
    fn batch(&mut self, build: impl FnOnce(&mut Ops)) -> bool {
        let mut ops = Ops::default();
        build(&mut ops);
        self.batches += 1;
        let (session, seq) = (SessionId(1), BatchSeq(self.batches));
        let mut entry = EntryBuilder::new(100);
        entry.batch(&Batch { session, seq, floor: BatchSeq(self.batches - 1), catalog_index: 1, ops: ops.take() });
        match &self.apply(entry).replies[0] {
            SectionReply::Batch { refused, .. } => refused.is_empty(),
            other => panic!("{other:?}"),
        }
    }

    fn restore(&mut self, whole: bool) {
        let hash = self.machine.state_hash();
        if whole {
            self.machine = DataMachine::from_snapshot(self.machine.shard(), &self.machine.snapshot()).unwrap();
        }
        let delta = self.machine.checkpoint();
        if delta.full {
            self.disk.clear();
        }
        delta.deletes.iter().for_each(|key| drop(self.disk.remove(key)));
        self.disk.extend(delta.puts);
        self.machine = DataMachine::restore(self.machine.shard(), &self.disk).unwrap();
        assert_eq!(self.machine.state_hash(), hash);
    }

    /// Bodies in a queue, by number.
    fn bodies(&self, queue: QueueId) -> Vec<(u64, String)> {
        let (mut runs, mut found) = (Vec::new(), Vec::new());
        self.machine.queue(queue).unwrap().locate(0, Seq(0), usize::MAX, &mut runs);
        runs.iter().for_each(|run| read_run(&self.log[run.index as usize], queue, run, &mut found));
        let text = |m: bytes::Bytes| String::from_utf8(StoredMessage::parse(m).unwrap().body.to_vec()).unwrap();
        found.into_iter().map(|(seq, message)| (seq.0, text(message))).collect()
    }

    fn body(&self, dead: &Dead) -> String {
        let mut found = Vec::new();
        read_run(&self.log[dead.at.index as usize], dead.queue, &dead.at, &mut found);
        String::from_utf8(StoredMessage::parse(found.swap_remove(0).1).unwrap().body.to_vec()).unwrap()
    }
}

/// A copy as it was sent once: it may come again at any time.
#[derive(Clone)]
struct Sent {
    number: u64,
    first: u64,
    queues: Vec<QueueId>,
    body: String,
}

struct World {
    source: Shard,
    target: Shard,
    published: u64,
    /// Bodies that died, in order.
    died: Vec<String>,
    sent: Vec<Sent>,
    /// What came to each target, by number there.
    came: BTreeMap<QueueId, BTreeMap<u64, String>>,
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8),
    Reject {
        first: u64,
        len: u64,
    },
    Route {
        both: bool,
        ahead: bool,
        count: u32,
    },
    /// Sends a letter that has a way.
    Send {
        which: usize,
        answered: bool,
    },
    /// Sends a run of letters that have a way, and the answer for those that were taken comes at once.
    SendRun(usize),
    /// Something that was sent before comes again.
    Again(usize),
    MakeRoom(u64),
    Restore {
        source: bool,
        whole: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u8..6).prop_map(Step::Publish),
        3 => (1u64..40, 0u64..6).prop_map(|(first, len)| Step::Reject { first, len }),
        4 => (any::<bool>(), prop::bool::weighted(0.1), 1u32..5).prop_map(|(both, ahead, count)| Step::Route { both, ahead, count }),
        3 => (0usize..4).prop_map(Step::SendRun),
        6 => (0usize..8, prop::bool::weighted(0.7)).prop_map(|(which, answered)| Step::Send { which, answered }),
        2 => (0usize..30).prop_map(Step::Again),
        2 => (1u64..4).prop_map(Step::MakeRoom),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(source, whole)| Step::Restore { source, whole }),
    ]
}

impl World {
    fn new() -> World {
        let dead_letter = Some(DeadLetter { exchange: "dlx".into(), routing_key: None });
        let tight = QueueSettings { max_length: Some(2), overflow: Overflow::RejectPublish, ..QueueSettings::default() };
        World {
            source: Shard::new(S, &[(Q, QueueSettings { dead_letter, ..QueueSettings::default() })]),
            target: Shard::new(T, &[(FULL, tight), (FREE, QueueSettings::default())]),
            published: 0,
            died: Vec::new(),
            sent: Vec::new(),
            came: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish(n) => {
                let bodies: Vec<String> = (0..*n).map(|_| (self.published += 1, self.published.to_string()).1).collect();
                self.source.ops(|ops| {
                    bodies.iter().for_each(|body| {
                        ops.enqueue(&[Q], b"x", b"k", &[0, 0], body.as_bytes());
                    });
                });
            }
            Step::Reject { first, len } => {
                let gone = self.source.bodies(Q).into_iter().filter(|(seq, _)| (*first..=first + len).contains(seq));
                self.died.extend(gone.map(|(_, body)| body));
                self.source.ops(|ops| ops.settle(Q, SettleReason::Reject, &[(Seq(*first), Seq(first + len))]));
            }
            Step::Route { both, ahead, count } => self.route(*both, *ahead, *count),
            Step::SendRun(which) => self.send_run(*which),
            Step::Send { which, answered } => self.send(*which, *answered),
            Step::Again(which) => {
                if let Some(sent) = self.sent.get(*which).cloned() {
                    self.deliver(&sent);
                }
            }
            Step::MakeRoom(n) => {
                let acked: Vec<(Seq, Seq)> =
                    self.target.bodies(FULL).iter().take(*n as usize).map(|(seq, _)| (Seq(*seq), Seq(*seq))).collect();
                self.target.ops(|ops| ops.settle(FULL, SettleReason::Ack, &acked));
            }
            Step::Restore { source, whole } => if *source { &mut self.source } else { &mut self.target }.restore(*whole),
        }
        for queue in [FULL, FREE] {
            self.came.entry(queue).or_default().extend(self.target.bodies(queue));
        }
    }

    fn route(&mut self, both: bool, ahead: bool, count: u32) {
        let Some((number, run)) = self.source.machine.waiting_letters(Q, 0) else { return };
        let queues = if both { vec![FREE, FULL] } else { vec![FULL] };
        let index = if ahead { 9 } else { 1 };
        self.source.ops(|ops| ops.routed((Q, number, count.min(run.dead.at.count)), index, &[(T, queues)]));
        assert_eq!(self.source.machine.routed_letter(number).is_some(), !ahead);
    }

    /// Sends one; if its answer comes and says that it was taken, the source lets go of it.
    fn send(&mut self, which: usize, answered: bool) {
        let Some(sent) = self.routed().get(which).map(|number| self.sending(*number)) else { return };
        if self.deliver(&sent) && answered {
            self.source.ops(|ops| ops.done((sent.number, sent.number), T));
        }
    }

    /// All letters that have a way, by number.
    fn routed(&self) -> Vec<u64> {
        self.source.machine.routed_letters().flat_map(|(first, run)| (first..).take(run.dead.at.count as usize)).collect()
    }

    fn sending(&mut self, number: u64) -> Sent {
        let routed = self.source.machine.routed_letter(number).unwrap();
        let outlet = &routed.outlets[0];
        let sent = Sent { number, first: outlet.first, queues: outlet.queues.clone(), body: self.source.body(&routed.dead) };
        self.sent.push(sent.clone());
        sent
    }

    fn send_run(&mut self, which: usize) {
        let Some((first, count)) = self.source.machine.routed_letters().nth(which).map(|(n, run)| (n, run.dead.at.count)) else { return };
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for number in (first..).take(count as usize) {
            let sent = self.sending(number);
            match taken.last_mut() {
                _ if !self.deliver(&sent) => {}
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => taken.push((number, number)),
            }
        }
        self.source.ops(|ops| taken.iter().for_each(|letters| ops.done(*letters, T)));
    }

    fn deliver(&mut self, sent: &Sent) -> bool {
        let source = Source { shard: S, epoch: 0, number: sent.first };
        self.target.batch(|ops| {
            ops.enqueue_from(Some(source), &sent.queues, (b"dlx", b"k", &[0, 0], sent.body.as_bytes()));
        })
    }

    /// Everything goes on without faults until nothing is on its way.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.step(&Step::Route { both: false, ahead: false, count: 2 });
            self.step(&Step::Send { which: 0, answered: true });
            self.step(&Step::MakeRoom(2));
            let machine = &self.source.machine;
            if machine.routed_letters().next().is_none() && machine.waiting_letters(Q, 0).is_none() {
                return;
            }
        }
        panic!("letters stay on their way");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_letter_comes_to_its_target_once(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.finish();
        let mut came: Vec<String> = world.came[&FULL].values().cloned().collect();
        let mut died = world.died.clone();
        came.sort();
        died.sort();
        prop_assert_eq!(came, died);
        let mut free: Vec<String> = world.came[&FREE].values().cloned().collect();
        let count = free.len();
        free.sort();
        free.dedup();
        prop_assert_eq!(free.len(), count, "the other target gets none twice");
        // A restart knows as much: nothing that was sent is taken again.
        world.target.restore(true);
        for sent in world.sent.clone() {
            prop_assert!(world.deliver(&sent));
        }
        prop_assert_eq!(world.target.bodies(FREE).len(), count);
        let settled = world.source.machine.queue(Q).unwrap().tail();
        world.source.ops(|ops| ops.settle(Q, SettleReason::Ack, &[(Seq(1), settled)]));
        prop_assert_eq!(world.source.machine.live_entries(), Vec::<u64>::new(), "letters let go of their entries");
    }
}

#[test]
fn an_entry_lets_so_many_messages_expire_and_a_full_outbox_none() {
    let dead_letter = Some(DeadLetter { exchange: "dlx".into(), routing_key: None });
    let mut shard = Shard::new(S, &[(Q, QueueSettings { dead_letter, message_ttl_ms: Some(1), ..QueueSettings::default() })]);
    let more = 1000;
    for _ in 0..(limits::OUTBOX_LETTERS + more).div_ceil(4096) {
        shard.ops(|ops| {
            (0..4096).for_each(|_| {
                ops.enqueue(&[Q], b"", b"k", &[0, 0], b"m");
            });
        });
    }
    let live = |shard: &Shard| shard.machine.queue(Q).unwrap().live_count();
    let all = live(&shard);
    let tend = |shard: &mut Shard| shard.ops(|ops| ops.tend(Q, 1000, 0, &[]));
    tend(&mut shard);
    assert_eq!(live(&shard), all - limits::LEAVING_PER_ENTRY);
    (0..40).for_each(|_| tend(&mut shard));
    assert_eq!(live(&shard), all - limits::OUTBOX_LETTERS, "what expired stays in its queue");
    assert!(!shard.machine.buries(Q));
    let (number, _) = shard.machine.waiting_letters(Q, 0).unwrap();
    shard.ops(|ops| ops.routed((Q, number, 1), 1, &[]));
    assert!(shard.machine.buries(Q));
    tend(&mut shard);
    assert_eq!(live(&shard), all - limits::OUTBOX_LETTERS - 1);
    let hash = shard.machine.state_hash();
    shard.restore(false);
    assert_eq!(shard.machine.state_hash(), hash);
    assert!(!shard.machine.buries(Q), "what is restored counts");
}
