//! Dead letters: what dies when, that it keeps its entry, that it goes to each target once.

use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Ops, SettleReason, StoredMessage};
use crate::model::letters::{Outlet, Source, Targets};
use crate::model::settings::{DeadLetter, Origin, Overflow, QueueSettings};
use crate::model::{LeaderId, LogId, QueueId, Seq, ShardId};

const Q: QueueId = QueueId(1);
const TARGET: QueueId = QueueId(2);
const OTHER: ShardId = ShardId(7);

fn id(index: u64) -> LogId {
    LogId { leader: LeaderId { term: 1, voter: 7 }, index }
}

fn buried() -> QueueSettings {
    let dead_letter = Some(DeadLetter { exchange: "dlx".into(), routing_key: None });
    QueueSettings { dead_letter, ..QueueSettings::default() }
}

/// A machine and its log; after each entry the state is what its snapshot and its checkpoint say.
struct Scene {
    machine: DataMachine,
    disk: std::collections::BTreeMap<Vec<u8>, Vec<u8>>,
    log: Vec<EntryBytes>,
}

impl Scene {
    fn new(settings: &QueueSettings) -> Scene {
        let mut scene = Scene { machine: DataMachine::new(ShardId(3)), disk: Default::default(), log: vec![EntryBytes::default()] };
        let mut first = EntryBuilder::new(100);
        first.advance(0, 1, &[Q, TARGET], &[]);
        first.settings(1, Q, settings);
        scene.apply(first);
        scene
    }

    fn apply(&mut self, entry: EntryBuilder) -> Applied {
        let entry = entry.finish();
        let applied = self.machine.apply(id(self.log.len() as u64), &entry).unwrap();
        self.log.push(entry);
        super::reread::reread(&mut self.machine, &mut self.disk);
        super::living_tests::leave_behind(&mut self.machine, &mut self.log);
        applied
    }

    fn ops(&mut self, build: impl FnOnce(&mut Ops)) -> Applied {
        let mut ops = Ops::default();
        build(&mut ops);
        let mut entry = EntryBuilder::new(100);
        entry.leader_ops(&ops.take());
        self.apply(entry)
    }

    fn publish(&mut self, bodies: &[&str]) -> Applied {
        self.ops(|ops| {
            bodies.iter().for_each(|body| {
                ops.enqueue(&[Q], b"x", b"k", &[0, 0], body.as_bytes());
            })
        })
    }

    /// Number, body, reason of all letters, with a way or not.
    fn dead(&self) -> Vec<(u64, String, SettleReason)> {
        let routed = self.machine.routed_letters().flat_map(|(first, run)| (first..).take(run.dead.at.count as usize));
        let mut all: Vec<(u64, Dead)> = routed.map(|number| (number, self.machine.routed_letter(number).unwrap().dead)).collect();
        for queue in self.machine.letter_sources() {
            let mut from = 0;
            while let Some((number, Waiting { dead, .. })) = self.machine.waiting_letters(queue, from) {
                all.push((number, Dead { at: Located { count: 1, ..dead.at }, ..dead }));
                from = number + 1;
            }
        }
        all.sort_unstable_by_key(|(number, _)| *number);
        let body = |dead: &Dead| {
            let mut found = Vec::new();
            read_run(&self.log[dead.at.index as usize], dead.queue, &dead.at, &mut found);
            let message = StoredMessage::parse(found.pop().unwrap().1).unwrap();
            String::from_utf8(message.body.to_vec()).unwrap()
        };
        all.iter().map(|(number, dead)| (*number, body(dead), dead.reason)).collect()
    }

    fn route(&mut self, number: u64, targets: &Targets) -> Applied {
        self.ops(|ops| ops.routed((Q, number, 1), 1, targets))
    }

    fn outlets(&self, number: u64) -> Vec<Outlet> {
        self.machine.routed_letter(number).map(|routed| routed.outlets).unwrap_or_default()
    }

    fn live(&self, queue: QueueId) -> u64 {
        self.machine.queue(queue).unwrap().live_count()
    }
}

fn seqs(first: u64, last: u64) -> [(Seq, Seq); 1] {
    [(Seq(first), Seq(last))]
}

#[test]
fn what_is_rejected_dies_in_order_and_what_is_acked_does_not() {
    let mut scene = Scene::new(&buried());
    scene.publish(&["a", "b", "c", "d"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Ack, &seqs(1, 1)));
    let applied = scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(2, 3)));
    assert!(applied.effects.contains(&Effect::Died));
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(2, 3)));
    let (b, c) = ((1, "b".to_owned(), SettleReason::Reject), (2, "c".to_owned(), SettleReason::Reject));
    assert_eq!(scene.dead(), [b, c]);
    assert_eq!(scene.live(Q), 1);
    scene.ops(|ops| ops.settle(Q, SettleReason::Purge, &seqs(4, 4)));
    assert_eq!(scene.machine.live_entries(), [2], "dead letters keep their entry");
}

#[test]
fn a_queue_without_a_dead_letter_exchange_buries_nothing() {
    let mut scene = Scene::new(&QueueSettings { max_length: Some(1), ..QueueSettings::default() });
    scene.publish(&["a", "b"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(2, 2)));
    assert_eq!((scene.dead(), scene.machine.live_entries()), (vec![], vec![]));
}

fn source(shard: ShardId, number: u64) -> Source {
    Source { shard, epoch: 0, number }
}

fn copy(ops: &mut Ops, source: Source, queues: &[QueueId]) {
    ops.enqueue_from(Some(source), queues, (b"dlx", b"k", &[0, 0], b"a"));
}

#[test]
fn letters_that_wait_outlive_their_queue_and_go_by_what_it_was_set_to_when_they_left_it() {
    let to = |exchange: &str, routing_key: Option<&str>| QueueSettings {
        dead_letter: Some(DeadLetter { exchange: exchange.into(), routing_key: routing_key.map(Into::into) }),
        origin: Some(Origin { vhost: "v".into(), name: "q".into() }),
        ..QueueSettings::default()
    };
    let mut scene = Scene::new(&to("one", None));
    scene.publish(&["a", "b", "c", "d", "e"]);
    let reject = |scene: &mut Scene, seq| scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(seq, seq)));
    let configure = |scene: &mut Scene, settings: &QueueSettings| {
        let mut entry = EntryBuilder::new(100);
        entry.settings(1, Q, settings);
        scene.apply(entry)
    };
    reject(&mut scene, 1);
    reject(&mut scene, 2);
    configure(&mut scene, &to("two", Some("k")));
    reject(&mut scene, 3);
    configure(&mut scene, &QueueSettings::default());
    reject(&mut scene, 4);
    let mut entry = EntryBuilder::new(100);
    entry.advance(1, 2, &[], &[Q]);
    assert_eq!(scene.apply(entry).freed, [9], "the letters keep the entry of their messages");
    assert!(scene.machine.queue(Q).is_none());
    let dead: Vec<(u64, String)> = scene.dead().into_iter().map(|(number, body, _)| (number, body)).collect();
    assert_eq!(dead, [(1, "a".to_owned()), (2, "b".to_owned()), (3, "c".to_owned())], "what left afterwards was no letter");
    let goes_by = |scene: &Scene, number| {
        let (first, Waiting { address, .. }) = scene.machine.waiting_letters(Q, number).unwrap();
        assert_eq!((first, &address.vhost[..], &address.queue[..]), (number, "v", "q"));
        (address.exchange.clone(), address.routing_key.clone())
    };
    let (one, two) = (("one".to_owned(), None), ("two".to_owned(), Some("k".to_owned())));
    assert_eq!([1, 2, 3].map(|number| goes_by(&scene, number)), [one.clone(), one, two.clone()]);
    // A letter of a queue that is gone gets its way like any other, and is written by the same when it is sent again.
    scene.ops(|ops| ops.routed((Q, 1, 2), 2, &[(ShardId(3), vec![TARGET])]));
    scene.ops(|ops| [1, 2].into_iter().for_each(|number| copy(ops, source(ShardId(3), number), &[TARGET])));
    assert_eq!(scene.live(TARGET), 2);
    scene.ops(|ops| ops.routed((Q, 3, 1), 2, &[(OTHER, vec![QueueId(50)])]));
    let address = scene.machine.routed_letter(3).unwrap().address;
    assert_eq!((address.exchange.clone(), address.routing_key.clone()), two);
    assert_eq!(scene.ops(|ops| ops.done((3, 3), OTHER)).freed.last(), Some(&2));
    assert_eq!(scene.dead(), []);
}

#[test]
fn a_letter_for_the_same_shard_moves_in_one_entry_and_once() {
    let mut scene = Scene::new(&buried());
    scene.publish(&["a"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(1, 1)));
    let route = |ops: &mut Ops| {
        ops.routed((Q, 1, 1), 1, &[(ShardId(3), vec![TARGET])]);
        copy(ops, source(ShardId(3), 1), &[TARGET]);
    };
    let applied = scene.ops(route);
    assert_eq!(applied.freed, [2]);
    assert_eq!((scene.live(TARGET), scene.dead()), (1, vec![]));
    scene.ops(route);
    assert_eq!(scene.live(TARGET), 1, "routed twice, taken once");
    scene.ops(|ops| {
        ops.enqueue(&[TARGET], b"", b"k", &[0, 0], b"other");
    });
    assert_eq!(scene.live(TARGET), 2);
}

#[test]
fn a_letter_that_a_queue_of_the_shard_refuses_stays_until_there_is_room() {
    let mut scene = Scene::new(&QueueSettings { max_length: Some(1), overflow: Overflow::RejectPublish, ..buried() });
    scene.publish(&["a"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(1, 1)));
    scene.publish(&["b"]);
    // Back into its own queue, which is full, and into one that is not.
    scene.ops(|ops| {
        ops.routed((Q, 1, 1), 1, &[(ShardId(3), vec![Q, TARGET])]);
        copy(ops, source(ShardId(3), 1), &[Q, TARGET]);
    });
    assert_eq!((scene.live(Q), scene.live(TARGET)), (1, 1));
    assert_eq!(scene.outlets(1), [Outlet { shard: ShardId(3), first: 1, queues: vec![Q] }]);
    scene.ops(|ops| {
        ops.settle(Q, SettleReason::Ack, &seqs(2, 2));
        copy(ops, source(ShardId(3), 1), &[Q, TARGET]);
    });
    assert_eq!((scene.live(Q), scene.live(TARGET), scene.dead()), (1, 1, vec![]));
}

#[test]
fn a_letter_for_other_shards_stays_until_all_have_it() {
    let mut scene = Scene::new(&buried());
    scene.publish(&["a", "b"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(1, 2)));
    let targets = vec![(OTHER, vec![QueueId(50)]), (ShardId(9), vec![QueueId(51), QueueId(52)])];
    scene.route(1, &targets);
    let outlet = |shard, first, queues: &[u64]| Outlet { shard, first, queues: queues.iter().map(|q| QueueId(*q)).collect() };
    assert_eq!(scene.outlets(1), [outlet(OTHER, 1, &[50]), outlet(ShardId(9), 1, &[51, 52])]);
    scene.route(2, &vec![(ShardId(9), vec![QueueId(51)])]);
    assert_eq!(scene.outlets(2), [outlet(ShardId(9), 3, &[51])], "numbers have no gaps");
    scene.ops(|ops| ops.done((1, 1), OTHER));
    scene.ops(|ops| ops.done((1, 1), OTHER));
    assert_eq!(scene.outlets(1), [outlet(ShardId(9), 1, &[51, 52])]);
    assert_eq!(scene.ops(|ops| ops.done((1, 1), ShardId(9))).freed, [8]);
    assert_eq!(scene.ops(|ops| ops.done((2, 2), ShardId(9))).freed, [9, 2]);
    assert_eq!(scene.dead(), []);
}

#[test]
fn letters_side_by_side_get_one_way_and_end_apart() {
    let mut scene = Scene::new(&buried());
    scene.publish(&["a", "b", "c", "d"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(1, 4)));
    let queues = vec![QueueId(50), QueueId(51)];
    let targets = [(OTHER, queues.clone())];
    scene.ops(|ops| ops.routed((Q, 1, 5), 1, &targets));
    scene.ops(|ops| ops.routed((Q, 1, 0), 1, &targets));
    assert_eq!(scene.machine.routed_letters().count(), 0, "there are not so many");
    scene.ops(|ops| ops.routed((Q, 1, 4), 1, &targets));
    assert_eq!(scene.machine.routed_letters().count(), 1);
    let outlet = |first| [Outlet { shard: OTHER, first, queues: queues.clone() }];
    assert_eq!([1, 2, 3, 4].map(|number| scene.outlets(number)), [1, 3, 5, 7].map(|first| outlet(first).to_vec()));
    scene.ops(|ops| ops.done((2, 3), ShardId(9)));
    assert_eq!(scene.machine.routed_letters().count(), 1, "it is none of theirs");
    scene.ops(|ops| ops.done((2, 3), OTHER));
    assert_eq!([1, 2, 3, 4].map(|number| scene.outlets(number).len()), [1, 0, 0, 1]);
    assert_eq!((scene.outlets(1), scene.outlets(4)), (outlet(1).to_vec(), outlet(7).to_vec()));
    let texts: Vec<String> = scene.dead().into_iter().map(|(_, body, _)| body).collect();
    assert_eq!(texts, ["a", "d"]);
    assert_eq!(scene.ops(|ops| ops.done((1, 9), OTHER)).freed.last(), Some(&2));
    assert_eq!((scene.dead(), scene.machine.live_entries()), (vec![], vec![]));
}

#[test]
fn letters_side_by_side_for_the_same_shard_move_in_one_entry_but_for_those_that_are_refused() {
    let mut scene = Scene::new(&QueueSettings { max_length: Some(4), overflow: Overflow::RejectPublish, ..buried() });
    scene.publish(&["a", "b", "c", "d"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(1, 4)));
    scene.publish(&["x", "y"]);
    let own = ShardId(3);
    scene.ops(|ops| {
        ops.routed((Q, 1, 4), 1, &[(own, vec![Q])]);
        (1..=4).for_each(|number| copy(ops, source(own, number), &[Q]));
    });
    assert_eq!(scene.live(Q), 4, "two find room");
    assert_eq!([1, 2, 3, 4].map(|number| scene.outlets(number).len()), [0, 0, 1, 1]);
    scene.ops(|ops| {
        ops.settle(Q, SettleReason::Ack, &seqs(5, 6));
        // The last one first, and one that is there already.
        [4, 1, 3].into_iter().for_each(|number| copy(ops, source(own, number), &[Q]));
    });
    assert_eq!((scene.live(Q), scene.dead()), (4, vec![]));
    scene.ops(|ops| ops.settle(Q, SettleReason::Ack, &seqs(7, 10)));
    assert_eq!(scene.machine.live_entries(), Vec::<u64>::new());
}

#[test]
fn only_the_first_letter_of_a_queue_gets_its_way_and_only_by_a_catalog_the_shard_has_reached() {
    let mut scene = Scene::new(&buried());
    scene.publish(&["a", "b"]);
    scene.ops(|ops| ops.settle(Q, SettleReason::Reject, &seqs(1, 2)));
    let targets = vec![(OTHER, vec![QueueId(50)])];
    scene.route(2, &targets);
    scene.ops(|ops| ops.routed((Q, 1, 1), 2, &targets));
    assert_eq!(scene.machine.routed_letters().count(), 0);
    scene.route(1, &targets);
    scene.route(1, &vec![(ShardId(9), vec![QueueId(51)])]);
    assert_eq!(scene.outlets(1), [Outlet { shard: OTHER, first: 1, queues: vec![QueueId(50)] }]);
    let applied = scene.route(2, &vec![]);
    assert_eq!((scene.dead().len(), applied.freed), (1, vec![8]), "one that nothing takes is over; its entry has the other one");
}

#[test]
fn a_target_takes_each_copy_once_in_whatever_order_they_come() {
    let mut scene = Scene::new(&QueueSettings::default());
    let mut letter = |shard, number| {
        scene.ops(|ops| copy(ops, source(shard, number), &[TARGET]));
        scene.live(TARGET)
    };
    let taken = [letter(OTHER, 3), letter(OTHER, 3), letter(OTHER, 2), letter(OTHER, 4), letter(ShardId(8), 3), letter(OTHER, 2)];
    assert_eq!(taken, [1, 1, 2, 3, 4, 4]);
}

#[test]
fn a_copy_that_a_full_queue_refuses_is_taken_when_it_comes_again_and_the_others_are_not() {
    let mut scene = Scene::new(&QueueSettings { max_length: Some(1), overflow: Overflow::RejectPublish, ..QueueSettings::default() });
    scene.publish(&["a"]);
    let mut entry = EntryBuilder::new(100);
    entry.hello(crate::model::NodeId(1), crate::model::Incarnation(1));
    scene.apply(entry);
    let session = crate::model::SessionId(3);
    let letter = |scene: &mut Scene, seq, ack: bool| {
        let mut ops = Ops::default();
        if ack {
            ops.settle(Q, SettleReason::Ack, &seqs(1, 1));
        }
        copy(&mut ops, source(OTHER, 1), &[Q, TARGET, QueueId(77)]);
        let batch = crate::model::link::Batch {
            session,
            seq: crate::model::BatchSeq(seq),
            floor: crate::model::BatchSeq(0),
            catalog_index: 1,
            ops: ops.take(),
        };
        let mut entry = EntryBuilder::new(100);
        entry.batch(&batch);
        let replies = scene.apply(entry).replies;
        let refused = match &replies[0] {
            crate::model::entry::SectionReply::Batch { refused, .. } => refused.clone(),
            other => panic!("{other:?}"),
        };
        (refused, scene.live(Q), scene.live(TARGET))
    };
    let full = vec![(0, crate::model::link::RefusedEnqueue::Full)];
    assert_eq!(letter(&mut scene, 1, false), (full.clone(), 1, 1));
    assert_eq!(letter(&mut scene, 2, false), (full, 1, 1));
    assert_eq!(letter(&mut scene, 3, true), (vec![], 1, 1));
    assert_eq!(letter(&mut scene, 4, false), (vec![], 1, 1), "the queue that is not there is gone");
}

#[test]
fn a_full_queue_buries_its_oldest_or_what_it_refuses() {
    let mut scene = Scene::new(&QueueSettings { max_length: Some(1), ..buried() });
    scene.publish(&["a", "b", "c"]);
    assert_eq!(scene.dead(), [(1, "a".into(), SettleReason::MaxLength), (2, "b".into(), SettleReason::MaxLength)]);
    let mut scene = Scene::new(&QueueSettings { max_length: Some(1), overflow: Overflow::RejectPublishDlx, ..buried() });
    scene.publish(&["a", "b"]);
    scene.publish(&["c"]);
    assert_eq!(scene.dead(), [(1, "b".into(), SettleReason::MaxLength), (2, "c".into(), SettleReason::MaxLength)]);
    assert_eq!(scene.machine.live_entries(), [2, 3]);
    let mut scene = Scene::new(&QueueSettings { max_length: Some(1), overflow: Overflow::RejectPublish, ..buried() });
    scene.publish(&["a", "b"]);
    assert_eq!(scene.dead(), []);
}

#[test]
fn a_refused_message_does_not_shift_the_bodies_of_those_behind_it() {
    let mut scene = Scene::new(&QueueSettings { max_length: Some(2), overflow: Overflow::RejectPublish, ..QueueSettings::default() });
    scene.ops(|ops| {
        for body in [b"a", b"b", b"c"] {
            ops.enqueue(&[Q], b"", b"k", &[0, 0], body);
        }
        ops.settle(Q, SettleReason::Ack, &seqs(1, 1));
        ops.enqueue(&[Q], b"", b"k", &[0, 0], b"d");
    });
    assert_eq!(bodies(&scene, Q, 2), [(2, b'b'), (3, b'd')]);
}

/// What each live message of an entry reads as.
fn bodies(scene: &Scene, queue: QueueId, entry: usize) -> Vec<(u64, u8)> {
    let (mut runs, mut found) = (Vec::new(), Vec::new());
    scene.machine.queue(queue).unwrap().locate(0, Seq(0), 9, &mut runs);
    runs.iter().filter(|run| run.index == entry as u64).for_each(|run| read_run(&scene.log[entry], queue, run, &mut found));
    found.iter().map(|(seq, m)| (seq.0, StoredMessage::parse(m.clone()).unwrap().body[0])).collect()
}

#[test]
fn a_letter_that_was_taken_before_does_not_shift_the_bodies_of_those_behind_it() {
    let mut scene = Scene::new(&QueueSettings::default());
    let letter = |ops: &mut Ops, number| ops.enqueue_from(Some(source(OTHER, number)), &[TARGET], (b"dlx", b"k", &[0, 0], b"l"));
    scene.ops(|ops| {
        letter(ops, 5);
    });
    scene.ops(|ops| {
        ops.enqueue(&[TARGET], b"", b"k", &[0, 0], b"a");
        letter(ops, 5);
        ops.enqueue(&[TARGET], b"", b"k", &[0, 0], b"b");
    });
    assert_eq!(bodies(&scene, TARGET, 3), [(2, b'a'), (3, b'b')]);
}

#[test]
fn when_a_message_failed_first_stays_known() {
    let mut scene = Scene::new(&QueueSettings { delivery_limit: Some(9), ..QueueSettings::default() });
    scene.publish(&["a"]);
    for (before, time_ms) in [(0, 500), (1, 900), (2, 1700)] {
        let (mut ops, mut entry) = (Ops::default(), EntryBuilder::new(time_ms));
        ops.returned(Q, &[(Seq(1), Seq(1), before)]);
        entry.leader_ops(&ops.take());
        scene.apply(entry);
        assert_eq!(scene.machine.queue(Q).unwrap().failed(Seq(1)), (before + 1, 500));
    }
}

#[test]
fn a_message_that_fails_too_often_dies_and_expired_ones_do() {
    let mut scene = Scene::new(&QueueSettings { delivery_limit: Some(1), message_ttl_ms: Some(50), ..buried() });
    scene.publish(&["a", "b"]);
    scene.ops(|ops| ops.returned(Q, &[(Seq(1), Seq(1), 0)]));
    scene.ops(|ops| ops.returned(Q, &[(Seq(1), Seq(1), 0)]));
    assert_eq!((scene.machine.queue(Q).unwrap().failures(Seq(1)), scene.dead()), (1, vec![]));
    assert_eq!([Seq(1), Seq(2)].map(|seq| scene.machine.queue(Q).unwrap().failed(seq)), [(1, 100), (0, 0)]);
    scene.ops(|ops| ops.returned(Q, &[(Seq(1), Seq(1), 1), (Seq(2), Seq(2), 0)]));
    assert_eq!(scene.dead(), [(1, "a".into(), SettleReason::DeliveryLimit)]);
    scene.ops(|ops| ops.tend(Q, 149, 0, &[]));
    assert_eq!(scene.live(Q), 1);
    scene.ops(|ops| ops.tend(Q, 150, 0, &[]));
    assert_eq!(scene.dead()[1..], [(2, "b".into(), SettleReason::Expired)]);
}
