//! Transactions over several shards (rule 26): single steps, and three shards that hear of each other in any order.

use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Mark, Op, Ops, OpsReader, SectionReply, SettleReason, StoredMessage, Word};
use crate::model::link::{Batch, RefusedEnqueue};
use crate::model::settings::{Overflow, QueueSettings};
use crate::model::{BatchSeq, Incarnation, LeaderId, LogId, NodeId, QueueId, Seq, SessionId, ShardId, TxId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const Q: QueueId = QueueId(1);
const EDGE: NodeId = NodeId(4);
const HERE: ShardId = ShardId(3);
const ELSEWHERE: ShardId = ShardId(1);

fn tx(number: u64) -> TxId {
    TxId { node: EDGE, incarnation: Incarnation(7), number }
}

/// A shard and its log; after each entry the state is what its snapshot and its checkpoint say.
struct Shard {
    machine: DataMachine,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    log: Vec<EntryBytes>,
    session: SessionId,
    freed: BTreeSet<u64>,
}

impl Shard {
    fn new(shard: ShardId, settings: QueueSettings) -> Shard {
        let (disk, log) = (BTreeMap::new(), vec![EntryBytes::default()]);
        let mut scene = Shard { machine: DataMachine::new(shard), disk, log, session: SessionId(0), freed: BTreeSet::new() };
        let mut first = EntryBuilder::new(100);
        first.advance(0, 1, &[Q], &[]);
        first.settings(1, Q, &settings);
        scene.apply(first);
        scene.hello(7);
        scene
    }

    fn apply(&mut self, entry: EntryBuilder) -> Applied {
        let entry = entry.finish();
        let id = LogId { leader: LeaderId { term: 1, voter: 7 }, index: self.log.len() as u64 };
        let applied = self.machine.apply(id, &entry).unwrap();
        self.log.push(entry);
        for index in &applied.freed {
            assert!(self.freed.insert(*index), "entry {index} is freed twice");
        }
        super::reread::reread(&mut self.machine, &mut self.disk);
        super::living_tests::leave_behind(&mut self.machine, &mut self.log);
        applied
    }

    fn hello(&mut self, incarnation: u64) {
        self.session = SessionId(self.log.len() as u64);
        let mut entry = EntryBuilder::new(100);
        entry.hello(EDGE, Incarnation(incarnation));
        self.apply(entry);
    }

    fn gone(&mut self) {
        let mut entry = EntryBuilder::new(100);
        entry.gone(self.session);
        self.apply(entry);
    }

    /// The edge's next batch. `None`: its session is not known here.
    fn batch(&mut self, build: impl FnOnce(&mut Ops)) -> Option<Vec<(u32, RefusedEnqueue)>> {
        let last = self.machine.last_batch(self.session)?;
        let mut ops = Ops::default();
        build(&mut ops);
        let (session, seq, floor) = (self.session, BatchSeq(last.0 + 1), BatchSeq(0));
        let mut entry = EntryBuilder::new(100);
        entry.batch(&Batch { session, seq, floor, catalog_index: 0, ops: ops.take() });
        match self.apply(entry).replies.as_slice() {
            [SectionReply::Batch { refused, .. }] => Some(refused.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn told(&mut self, tx: TxId, word: Word) -> Vec<(u32, RefusedEnqueue)> {
        self.batch(|ops| assert_eq!(ops.word(tx, word), 0)).unwrap()
    }

    /// What other nodes say comes in their sessions; here it is the leader's.
    fn hear(&mut self, tx: TxId, word: Word) {
        let mut ops = Ops::default();
        ops.word(tx, word);
        let mut entry = EntryBuilder::new(100);
        entry.leader_ops(&ops.take());
        self.apply(entry);
    }

    fn prepare(&mut self, tx: TxId, decider: ShardId, bodies: &[&str], acked: Option<u64>) -> Vec<(u32, RefusedEnqueue)> {
        self.batch(|ops| part(ops, tx, decider, &[ELSEWHERE], bodies, acked)).unwrap()
    }

    fn live(&self) -> Vec<String> {
        let queue = self.machine.queue(Q).unwrap();
        let (mut runs, mut found) = (Vec::new(), Vec::new());
        queue.locate(0, Seq(0), 1000, &mut runs);
        runs.iter().for_each(|run| read_run(&self.log[run.index as usize], Q, run, &mut found));
        let text = |message| String::from_utf8(StoredMessage::parse(message).unwrap().body.to_vec()).unwrap();
        found.into_iter().map(|(_, message)| text(message)).collect()
    }
}

fn publish(ops: &mut Ops, body: &str) {
    ops.enqueue(&[Q], b"x", b"k", &[0, 0], body.as_bytes());
}

fn part(ops: &mut Ops, tx: TxId, decider: ShardId, others: &[ShardId], bodies: &[&str], acked: Option<u64>) {
    let start = ops.begin_part(tx, decider, others);
    bodies.iter().for_each(|body| publish(ops, body));
    acked.into_iter().for_each(|seq| ops.settle(Q, SettleReason::Ack, &[(Seq(seq), Seq(seq))]));
    ops.end_part(start);
}

#[test]
fn a_part_is_read_as_it_was_written_and_edges_write_nothing_else_into_it() {
    let mut ops = Ops::default();
    publish(&mut ops, "before");
    part(&mut ops, tx(5), HERE, &[ShardId(4), ShardId(6)], &["a", "b"], Some(9));
    assert_eq!(ops.word(tx(6), Word::Ask { shard: ShardId(2) }), 2, "the message before it, the part, the word");
    let bytes = ops.take();
    assert!(crate::model::entry::is_batch(&bytes) && !crate::model::entry::Settling::of(&bytes).any);
    let whole = (1..bytes.len()).filter(|n| crate::model::entry::is_batch(&bytes[..*n])).count();
    assert_eq!(whole, 2, "cut behind the message and behind the part");
    let read: Vec<Op> = OpsReader::at(&bytes.into(), 0).map(Result::unwrap).collect();
    let Op::Part(part) = &read[1] else { panic!("{read:?}") };
    assert_eq!((part.tx, part.decider, part.others.as_slice()), (tx(5), HERE, &[ShardId(4), ShardId(6)][..]));
    assert_eq!(part.ops.clone().map(Result::unwrap).count(), 3);
    assert_eq!(read[2], Op::Word { tx: tx(6), word: Word::Ask { shard: ShardId(2) } });
    let mut nested = Ops::default();
    let start = nested.begin_part(tx(1), HERE, &[]);
    nested.word(tx(1), Word::Decide);
    nested.end_part(start);
    assert!(!crate::model::entry::is_batch(&nested.take()));
    let mut leaders = Ops::default();
    leaders.word(tx(1), Word::Told { shard: HERE });
    assert!(!crate::model::entry::is_batch(&leaders.take()), "only the leader says that");
}

#[test]
fn a_part_shows_nothing_until_it_is_committed_and_then_all_of_it() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    shard.batch(|ops| ["old", "older"].iter().for_each(|body| publish(ops, body))).unwrap();
    let old = shard.log.len() as u64 - 1;
    assert_eq!(shard.prepare(tx(1), ELSEWHERE, &["a", "b"], Some(1)), []);
    let with_messages = shard.log.len() as u64 - 1;
    assert_eq!(shard.live(), ["old", "older"]);
    assert_eq!(shard.machine.live_entries(), [old, with_messages], "its messages stay");
    shard.batch(|ops| publish(ops, "between")).unwrap();
    let applied = {
        let mut ops = Ops::default();
        publish(&mut ops, "same section");
        ops.word(tx(1), Word::Commit);
        publish(&mut ops, "after");
        let mut entry = EntryBuilder::new(100);
        entry.leader_ops(&ops.take());
        shard.apply(entry)
    };
    for effect in [Effect::Enqueued { queue: Q }, Effect::Settled { queue: Q }, Effect::Transaction { tx: tx(1) }] {
        assert!(applied.effects.contains(&effect), "{:?}", applied.effects);
    }
    assert_eq!(shard.live(), ["older", "between", "same section", "a", "b", "after"]);
    shard.hear(tx(1), Word::Commit);
    assert_eq!(shard.live().len(), 6, "once");
    shard.batch(|ops| ops.settle(Q, SettleReason::Ack, &[(Seq(1), Seq(9))])).unwrap();
    assert!(shard.machine.live_entries().is_empty() && shard.freed.contains(&with_messages));
}

#[test]
fn a_part_that_is_given_up_leaves_nothing() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    shard.batch(|ops| publish(ops, "old")).unwrap();
    shard.prepare(tx(1), ELSEWHERE, &["a"], Some(1));
    assert_eq!(shard.told(tx(1), Word::Abort), []);
    assert_eq!(shard.live(), ["old"]);
    assert_eq!(shard.machine.live_entries().len(), 1);
    assert!(shard.machine.transactions().next().is_none());
}

#[test]
fn a_queue_that_would_refuse_one_of_its_messages_refuses_the_part() {
    let settings = QueueSettings { max_length: Some(2), overflow: Overflow::RejectPublish, ..QueueSettings::default() };
    let mut shard = Shard::new(HERE, settings);
    assert_eq!(shard.prepare(tx(1), ELSEWHERE, &["a", "b", "c"], None), [(0, RefusedEnqueue::Full)], "its own messages count");
    assert!(shard.machine.prepared(tx(1)).is_none() && shard.machine.live_entries().is_empty());
    assert_eq!(shard.prepare(tx(2), ELSEWHERE, &["a", "b"], None), []);
    assert_eq!(shard.prepare(tx(3), ELSEWHERE, &["c"], None), [(0, RefusedEnqueue::Full)], "what was promised counts");
    let refused = shard.batch(|ops| publish(ops, "quicker")).unwrap();
    assert_eq!(refused, [(0, RefusedEnqueue::Full)], "also against a message without a transaction");
    shard.hear(tx(2), Word::Commit);
    assert_eq!(shard.live(), ["a", "b"]);
    shard.batch(|ops| ops.settle(Q, SettleReason::Ack, &[(Seq(1), Seq(2))])).unwrap();
    assert_eq!(shard.prepare(tx(4), ELSEWHERE, &["c", "d"], None), [], "once it is there it counts no more");
    shard.hear(tx(4), Word::Abort);
    assert_eq!(shard.batch(|ops| ["e", "f"].iter().for_each(|body| publish(ops, body))), Some(vec![]), "nor when it is given up");
}

#[test]
fn a_part_for_a_queue_that_was_deleted_goes_with_it() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    shard.batch(|ops| publish(ops, "old")).unwrap();
    shard.prepare(tx(1), ELSEWHERE, &["a"], Some(1));
    let mut entry = EntryBuilder::new(100);
    entry.advance(1, 2, &[], &[Q]);
    shard.apply(entry);
    shard.hear(tx(1), Word::Commit);
    assert!(shard.machine.live_entries().is_empty());
}

#[test]
fn the_decider_commits_what_it_has_and_remembers_whom_to_tell() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    assert_eq!(shard.told(tx(1), Word::Decide), [(0, RefusedEnqueue::GivenUp)], "it has no part");
    shard.prepare(tx(1), HERE, &["a"], None);
    assert_eq!(shard.told(tx(1), Word::Decide), []);
    assert_eq!(shard.told(tx(1), Word::Decide), [], "said again");
    assert_eq!(shard.live(), ["a"]);
    let decided = shard.machine.decided(tx(1)).unwrap();
    assert_eq!((decided.is_commit, decided.is_urgent, decided.waiting.as_slice()), (true, false, &[ELSEWHERE][..]));
    shard.hear(tx(1), Word::Ask { shard: ELSEWHERE });
    assert!(shard.machine.decided(tx(1)).unwrap().is_commit && shard.machine.decided(tx(1)).unwrap().is_urgent);
    shard.hear(tx(1), Word::Told { shard: ELSEWHERE });
    assert!(shard.machine.decided(tx(1)).is_none());
}

#[test]
fn who_asks_before_the_decision_makes_it_impossible() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    shard.hear(tx(1), Word::Ask { shard: ELSEWHERE });
    assert_eq!(shard.prepare(tx(1), HERE, &["a"], None), [(0, RefusedEnqueue::GivenUp)]);
    shard.prepare(tx(2), HERE, &["b"], None);
    shard.hear(tx(2), Word::Ask { shard: ELSEWHERE });
    assert_eq!(shard.told(tx(2), Word::Decide), [(0, RefusedEnqueue::GivenUp)]);
    for n in [1, 2] {
        shard.hear(tx(n), Word::Told { shard: ELSEWHERE });
        assert!(!shard.machine.decided(tx(n)).unwrap().is_commit, "as long as its edge may come back");
    }
    assert_eq!(shard.live(), [""; 0]);
    shard.hello(8);
    assert!(shard.machine.transactions().next().is_none(), "another process took its place");
    shard.hear(tx(3), Word::Ask { shard: ELSEWHERE });
    shard.hear(tx(3), Word::Told { shard: ELSEWHERE });
    assert!(shard.machine.transactions().next().is_none());
}

#[test]
fn an_edge_that_is_gone_leaves_its_transactions_to_the_shards() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    shard.prepare(tx(1), HERE, &["a"], None);
    shard.prepare(tx(2), ELSEWHERE, &["b"], None);
    shard.prepare(tx(3), HERE, &["c"], None);
    shard.told(tx(3), Word::Decide);
    shard.gone();
    let given_up = shard.machine.decided(tx(1)).unwrap();
    assert_eq!((given_up.is_commit, given_up.is_urgent, given_up.waiting.as_slice()), (false, true, &[ELSEWHERE][..]));
    assert!(shard.machine.prepared(tx(2)).unwrap().is_orphan);
    assert!(shard.machine.decided(tx(3)).unwrap().is_urgent);
    assert_eq!(shard.live(), ["c"]);
}

/// What is on its way to a shard.
#[derive(Clone, Debug)]
enum Message {
    /// By the edge of this incarnation.
    Part(TxId),
    Edge(TxId, Word),
    /// By a leader; who is told that it arrived.
    Peer(TxId, Word, Option<ShardId>),
}

/// How far the edge is with a transaction.
#[derive(Clone, Debug, Default)]
struct Course {
    shards: Vec<ShardId>,
    waiting: usize,
    refused: bool,
    is_deciding: bool,
    is_committed: bool,
}

/// Three shards, an edge, and messages that come in any order.
struct World {
    shards: BTreeMap<ShardId, Shard>,
    on_the_way: Vec<(ShardId, Message)>,
    courses: BTreeMap<TxId, Course>,
    is_dead: bool,
}

impl World {
    fn new() -> World {
        let mut shards = BTreeMap::new();
        for n in 1..=3 {
            let mut shard = Shard::new(ShardId(n), QueueSettings::default());
            shard.batch(|ops| (1..=8).for_each(|n| publish(ops, &format!("old {n}")))).unwrap();
            shards.insert(ShardId(n), shard);
        }
        World { shards, on_the_way: Vec::new(), courses: BTreeMap::new(), is_dead: false }
    }

    fn begin(&mut self, number: u64, which: u8) {
        let all = [ShardId(1), ShardId(2), ShardId(3)];
        let shards: Vec<ShardId> = match which % 4 {
            0 => all.to_vec(),
            left_out => all.into_iter().filter(|shard| shard.0 != u16::from(left_out)).collect(),
        };
        let tx = tx(number);
        self.on_the_way.extend(shards.iter().map(|shard| (*shard, Message::Part(tx))));
        self.courses.insert(tx, Course { waiting: shards.len(), shards, ..Course::default() });
    }

    fn deliver(&mut self, at: usize, keep: bool) {
        let (shard, message) = self.on_the_way[at % self.on_the_way.len()].clone();
        let is_peers = matches!(message, Message::Peer(..));
        if !(keep && is_peers) {
            self.on_the_way.remove(at % self.on_the_way.len());
        }
        let there = self.shards.get_mut(&shard).unwrap();
        match message {
            Message::Peer(tx, word, from) => {
                there.hear(tx, word);
                if let Some(from) = from {
                    self.on_the_way.push((from, Message::Peer(tx, Word::Told { shard }, None)));
                }
            }
            _ if self.is_dead => {}
            Message::Part(tx) | Message::Edge(tx, _) => {
                if there.machine.last_batch(there.session).is_none() {
                    there.hello(7);
                }
                let shards = &self.courses[&tx].shards;
                let refused = there.batch(|ops| match message {
                    Message::Edge(_, word) => assert_eq!(ops.word(tx, word), 0),
                    _ => {
                        let others = if shards[0] == shard { &shards[1..] } else { &[] };
                        part(ops, tx, shards[0], others, &[&format!("tx {}", tx.number)], Some(tx.number));
                    }
                });
                self.verdict(tx, !refused.unwrap().is_empty());
            }
        }
    }

    /// The edge's side, as `edge::lane::committing` has it.
    fn verdict(&mut self, tx: TxId, refused: bool) {
        let course = self.courses.get_mut(&tx).unwrap();
        course.waiting = course.waiting.saturating_sub(1);
        course.refused |= refused && !course.is_committed;
        if course.waiting > 0 || course.is_committed {
            return;
        }
        let shards = course.shards.clone();
        let say = |word| move |shard: &ShardId| (*shard, Message::Edge(tx, word));
        if course.refused {
            (course.waiting, course.is_committed, course.refused) = (usize::MAX, false, true);
            self.on_the_way.extend(shards.iter().map(say(Word::Abort)));
        } else if course.is_deciding {
            course.is_committed = true;
            self.on_the_way.extend(shards[1..].iter().map(say(Word::Commit)));
        } else {
            (course.is_deciding, course.waiting) = (true, 1);
            self.on_the_way.push((shards[0], Message::Edge(tx, Word::Decide)));
        }
    }

    /// What leaders do (`serving::transactions`).
    fn lead(&mut self) -> bool {
        let mut said = Vec::new();
        for (here, shard) in &self.shards {
            for tx in shard.machine.transactions() {
                if let Some(prepared) = shard.machine.prepared(tx).filter(|p| p.is_orphan) {
                    said.push((prepared.decider, Message::Peer(tx, Word::Ask { shard: *here }, None)));
                }
                if let Some(decided) = shard.machine.decided(tx).filter(|d| d.is_urgent) {
                    let word = if decided.is_commit { Word::Commit } else { Word::Abort };
                    said.extend(decided.waiting.iter().map(|to| (*to, Message::Peer(tx, word, Some(*here)))));
                }
            }
        }
        let any = !said.is_empty();
        self.on_the_way.extend(said);
        any
    }

    fn step(&mut self, choice: (u8, u8), begun: &mut u64) {
        let (what, which) = choice;
        let shard = ShardId(1 + u16::from(which) % 3);
        match what % 16 {
            0..3 if *begun < 8 && !self.is_dead => {
                *begun += 1;
                self.begin(*begun, which);
            }
            3 => self.shards.get_mut(&shard).unwrap().gone(),
            4 if which < 40 => self.is_dead = true,
            5 => drop(self.lead()),
            what if !self.on_the_way.is_empty() => self.deliver(which.into(), what == 6),
            _ => {}
        }
    }

    /// The edge's process ends, another one comes, and everybody says what he has to say.
    fn heal(&mut self, survives: bool) {
        while survives && !self.on_the_way.is_empty() {
            self.deliver(0, false);
        }
        self.is_dead = true;
        self.shards.values_mut().for_each(|shard| shard.hello(8));
        for _ in 0..20 {
            // What was on its way may be a question that somebody then has to answer.
            if !self.lead() && self.on_the_way.is_empty() {
                return;
            }
            while !self.on_the_way.is_empty() {
                self.deliver(0, false);
            }
        }
        panic!("the shards never agree");
    }

    fn judge(&self) {
        for (tx, course) in &self.courses {
            let there = |shard: &&ShardId| {
                let live = self.shards[shard].live();
                let count = live.iter().filter(|body| **body == format!("tx {}", tx.number)).count();
                let has_old = live.contains(&format!("old {}", tx.number));
                assert!(count <= 1 && (count == 1) != has_old, "{tx:?} in part in {shard:?}");
                count == 1
            };
            let found = course.shards.iter().filter(there).count();
            assert!(found == 0 || found == course.shards.len(), "{tx:?} is in {found} of {:?}", course.shards);
            assert!(found > 0 || !course.is_committed, "{tx:?} was committed");
        }
        for shard in self.shards.values() {
            assert_eq!(shard.machine.transactions().collect::<Vec<_>>(), [], "nothing is left over");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 2000 }))]
    #[test]
    fn each_transaction_takes_effect_in_all_its_shards_or_in_none(choices: Vec<(u8, u8)>, more in prop::collection::vec(any::<(u8, u8)>(), 40..160), survives: bool) {
        let (mut world, mut begun) = (World::new(), 0);
        for choice in choices.into_iter().chain(more) {
            world.step(choice, &mut begun);
        }
        world.heal(survives);
        world.judge();
    }
}

/// Committed and given up transactions both come about in the runs above, also with orphans.
#[test]
fn the_runs_see_commits_and_failures() {
    let (mut committed, mut given_up) = (0, 0);
    for seed in 1..=400u64 {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) as u8, (state >> 45) as u8)
        };
        let (mut world, mut begun) = (World::new(), 0);
        (0..60).for_each(|_| world.step(next(), &mut begun));
        world.heal(seed % 2 == 0);
        world.judge();
        for (tx, course) in &world.courses {
            let found = world.shards[&course.shards[0]].live().contains(&format!("tx {}", tx.number));
            committed += usize::from(course.is_committed);
            given_up += usize::from(!found);
        }
        if committed > 20 && given_up > 20 {
            return;
        }
    }
    panic!("{committed} committed, {given_up} given up");
}

#[test]
fn a_queue_that_a_transaction_brings_messages_to_is_not_sealed_as_empty() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    let seal = |shard: &mut Shard, tail| {
        let mut ops = Ops::default();
        ops.mark(Q, Mark::Sealed { tail });
        let mut entry = EntryBuilder::new(100);
        entry.leader_ops(&ops.take());
        shard.apply(entry);
        shard.machine.queue(Q).unwrap().is_sealed()
    };
    shard.prepare(tx(1), ELSEWHERE, &["a"], None);
    assert!(!seal(&mut shard, Some(Seq(0))));
    shard.hear(tx(1), Word::Abort);
    assert!(!seal(&mut shard, Some(Seq(1))), "another tail");
    assert!(seal(&mut shard, Some(Seq(0))));
    assert_eq!(shard.batch(|ops| publish(ops, "late")), Some(vec![(0, RefusedEnqueue::Sealed)]));
    // A transaction's message goes with the queue, as it would a moment later, when the queue is gone; the rest takes effect.
    assert_eq!(shard.prepare(tx(7), HERE, &["later"], None), []);
    assert_eq!(shard.told(tx(7), Word::Decide), []);
    assert!(shard.machine.decided(tx(7)).unwrap().is_commit);
    assert!(shard.live().is_empty() && shard.machine.live_entries().is_empty());
}

/// A strict part with one message, which settles another.
fn strict(ops: &mut Ops, others: &[ShardId], session: SessionId, bodies: &[&str], acked: u64) {
    let start = ops.begin_part(tx(1), HERE, others);
    bodies.iter().for_each(|body| publish(ops, body));
    ops.settle(Q, SettleReason::Ack, &[(Seq(acked), Seq(acked))]);
    ops.claim(&start, session);
    ops.end_part(start);
}

#[test]
fn a_strict_part_that_is_all_of_its_transaction_takes_effect_as_it_comes() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    shard.batch(|ops| ["half", "other"].iter().for_each(|body| publish(ops, body))).unwrap();
    let session = shard.session;
    let refused = shard.batch(|ops| {
        publish(ops, "before");
        strict(ops, &[], session, &["a", "b"], 1);
        publish(ops, "after");
    });
    assert_eq!(refused, Some(vec![]));
    assert_eq!(shard.live(), ["other", "before", "a", "b", "after"]);
    assert_eq!(shard.machine.transactions().count(), 0, "nothing is waited for");
    let last = shard.log.len() as u64 - 1;
    shard.batch(|ops| ops.settle(Q, SettleReason::Ack, &[(Seq(1), Seq(9))])).unwrap();
    assert!(shard.machine.live_entries().is_empty() && shard.freed.contains(&last));
}

#[test]
fn a_strict_part_publishes_once_whoever_believes_to_hold_what_it_settles() {
    for others in [&[][..], &[ELSEWHERE]] {
        let mut shard = Shard::new(HERE, QueueSettings::default());
        shard.batch(|ops| ["half", "other"].iter().for_each(|body| publish(ops, body))).unwrap();
        let former = shard.session;
        shard.gone();
        shard.hello(7);
        let session = shard.session;
        let lost = Some(vec![(0, RefusedEnqueue::Lost)]);
        assert_eq!(shard.batch(|ops| strict(ops, others, former, &["twice"], 1)), lost, "given in a session that has ended");
        assert_eq!(shard.batch(|ops| strict(ops, others, former, &[], 1)), lost, "nor does it settle");
        assert_eq!(shard.live(), ["half", "other"]);
        shard.batch(|ops| ops.settle(Q, SettleReason::Ack, &[(Seq(1), Seq(1))])).unwrap();
        assert_eq!(shard.batch(|ops| strict(ops, others, session, &["twice"], 1)), lost, "it has left its queue");
        assert_eq!(shard.live(), ["other"]);
        assert_eq!(shard.machine.transactions().count(), 0);
        assert_eq!(shard.batch(|ops| strict(ops, others, session, &[], 1)), Some(vec![]), "what publishes nothing may come late");
    }
}

#[test]
fn a_strict_part_of_several_waits_for_the_decision_as_any() {
    let mut shard = Shard::new(HERE, QueueSettings::default());
    shard.batch(|ops| publish(ops, "half")).unwrap();
    let session = shard.session;
    assert_eq!(shard.batch(|ops| strict(ops, &[ELSEWHERE], session, &["whole"], 1)), Some(vec![]));
    assert_eq!(shard.live(), ["half"]);
    assert_eq!(shard.told(tx(1), Word::Decide), []);
    assert_eq!(shard.live(), ["whole"]);
}
