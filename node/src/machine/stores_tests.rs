//! Queues behind exchanges: when delayed messages leave, what a history holds, what goes to new bindings.

use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Ops, SettleReason, StoredMessage};
use crate::model::properties::{EXPIRATION, HEADERS};
use crate::model::settings::QueueSettings;
use crate::model::store::Store;
use crate::model::{LeaderId, LogId, QueueId, ShardId, limits};
use proptest::prelude::*;
use std::collections::BTreeMap;

pub(super) const Q: QueueId = QueueId(1);
pub(super) const START: u64 = 1000;

/// A machine with one such queue and its log; after each entry the state is what its snapshot and its checkpoint say.
pub(super) struct Scene {
    pub machine: DataMachine,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
    log: Vec<EntryBytes>,
}

impl Scene {
    fn new(store: Store) -> Scene {
        Scene::with(&QueueSettings::of_store(store))
    }

    pub fn with(settings: &QueueSettings) -> Scene {
        let mut scene = Scene { machine: DataMachine::new(ShardId(3)), disk: BTreeMap::new(), log: vec![EntryBytes::default()] };
        scene.entry(START, |entry| {
            entry.advance(0, 1, &[Q], &[]);
            entry.settings(1, Q, settings);
        });
        scene
    }

    /// The catalog sets the queue anew.
    pub fn configure(&mut self, settings: &QueueSettings) {
        let from = self.machine.catalog_index();
        self.entry(START, |entry| {
            entry.advance(from, from + 1, &[], &[]);
            entry.settings(from + 1, Q, settings);
        });
    }

    fn entry(&mut self, time_ms: u64, build: impl FnOnce(&mut EntryBuilder)) -> Applied {
        let mut entry = EntryBuilder::new(time_ms);
        build(&mut entry);
        let entry = entry.finish();
        let id = LogId { leader: LeaderId { term: 1, voter: 7 }, index: self.log.len() as u64 };
        let applied = self.machine.apply(id, &entry).unwrap();
        self.log.push(entry);
        super::reread::reread(&mut self.machine, &mut self.disk);
        if self.log.iter().map(EntryBytes::len).sum::<usize>() < 50_000 {
            super::living_tests::leave_behind(&mut self.machine, &mut self.log);
        }
        applied
    }

    pub fn ops(&mut self, time_ms: u64, build: impl FnOnce(&mut Ops)) -> Applied {
        let mut ops = Ops::default();
        build(&mut ops);
        self.entry(time_ms, |entry| entry.leader_ops(&ops.take()))
    }

    fn publish(&mut self, time_ms: u64, messages: &[(i32, &str)]) -> Applied {
        self.ops(time_ms, |ops| {
            for (delay, body) in messages {
                ops.enqueue(&[Q], b"x", b"k", &delayed(*delay), body.as_bytes());
            }
        })
    }

    pub fn tend(&mut self, now_ms: u64) -> Applied {
        self.ops(now_ms, |ops| ops.tend(Q, now_ms, 0, &[]))
    }

    /// Bodies of the letters, with why they are some and for which binding.
    pub fn letters(&self) -> Vec<(String, SettleReason, u64)> {
        let body = |dead: &Dead| {
            let mut found = Vec::new();
            read_run(&self.log[dead.at.index as usize], dead.queue, &dead.at, &mut found);
            found.into_iter().map(|(_, m)| String::from_utf8(StoredMessage::parse(m).unwrap().body.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        let (mut all, mut from) = (Vec::new(), 0);
        while let Some((number, Waiting { dead, .. })) = self.machine.waiting_letters(Q, from) {
            all.extend(body(&dead).into_iter().map(|body| (body, dead.reason, dead.time_ms)));
            from = number + u64::from(dead.at.count);
        }
        all
    }

    fn due(&self) -> Vec<String> {
        self.letters().into_iter().map(|(body, reason, _)| (reason == SettleReason::Due).then_some(body).expect("only these")).collect()
    }

    pub fn live(&self) -> u64 {
        self.machine.queue(Q).unwrap().live_count()
    }

    fn next(&self) -> Option<u64> {
        self.machine.queue(Q).unwrap().next_due_ms()
    }
}

/// Properties with `x-delay`, and an expiration that the store must not mind.
fn delayed(ms: i32) -> Vec<u8> {
    let entry = [&b"\x07x-delayI"[..], &ms.to_be_bytes()].concat();
    [&(HEADERS | EXPIRATION).to_be_bytes()[..], &(entry.len() as u32).to_be_bytes(), &entry, b"\x011"].concat()
}

#[test]
fn delayed_messages_leave_when_their_time_has_come_and_in_the_order_of_their_times() {
    let mut scene = Scene::new(Store::Delayed);
    let applied = scene.publish(START, &[(300, "c"), (100, "a"), (200, "b")]);
    assert!(applied.effects.contains(&Effect::Enqueued { queue: Q }));
    scene.publish(START + 1, &[(99, "a too")]);
    assert_eq!((scene.live(), scene.next()), (4, Some(START + 101)));
    scene.tend(START + 100);
    assert_eq!((scene.due(), scene.live()), (vec![], 4), "never early");
    let applied = scene.tend(START + 101);
    assert!(applied.effects.contains(&Effect::Died));
    assert_eq!((scene.due(), scene.live(), scene.next()), (vec!["a".into(), "a too".into()], 2, Some(START + 201)));
    scene.tend(START + 1000);
    assert_eq!(scene.due(), ["a", "a too", "b", "c"]);
    assert_eq!((scene.live(), scene.next()), (0, None));
    assert_eq!(scene.machine.live_entries(), [2, 3], "letters keep their entries");
}

#[test]
fn an_entry_lets_a_bounded_number_go_and_no_more_than_the_letters_have_room_for() {
    let mut scene = Scene::new(Store::Delayed);
    let most = limits::LEAVING_PER_ENTRY as usize;
    let many: Vec<(i32, &str)> = (0..most as i32 + 100).map(|n| (1 + n % 7, "m")).collect();
    scene.publish(START, &many);
    scene.tend(START + 50);
    assert_eq!(scene.letters().len(), most);
    scene.tend(START + 50);
    assert_eq!(scene.letters().len(), many.len());
    let room = limits::OUTBOX_LETTERS as usize - many.len();
    scene.publish(START, &vec![(1, "n"); room + 50]);
    (0..20).for_each(|_| drop(scene.tend(START + 100)));
    assert_eq!((scene.letters().len() as u64, scene.live()), (limits::OUTBOX_LETTERS, 50));
    assert!(!scene.machine.buries(Q));
}

#[test]
fn messages_without_a_delay_are_due_at_once() {
    let mut scene = Scene::new(Store::Delayed);
    scene.ops(START, |ops| {
        ops.enqueue(&[Q], b"x", b"k", &[0, 0], b"plain");
    });
    scene.tend(START);
    assert_eq!(scene.due(), ["plain"]);
}

#[test]
fn a_history_holds_the_last_messages_and_lets_go_of_the_entries_of_others() {
    let mut scene = Scene::new(Store::History { length: 2 });
    scene.publish(START, &[(0, "a")]);
    scene.publish(START, &[(0, "b")]);
    let applied = scene.publish(START, &[(0, "c")]);
    assert_eq!(applied.freed, [2]);
    scene.tend(START + 10_000);
    assert_eq!((scene.live(), scene.letters()), (2, vec![]), "nothing expires, nothing is a letter");
    scene.publish(START, &[(0, "d"), (0, "e"), (0, "f")]);
    assert_eq!((scene.live(), scene.machine.live_entries()), (2, vec![6]));
}

#[test]
fn a_new_binding_gets_what_the_history_holds_once_and_the_history_keeps_it() {
    let mut scene = Scene::new(Store::History { length: 2 });
    scene.publish(START, &[(0, "a"), (0, "b"), (0, "c")]);
    let applied = scene.entry(START, |entry| entry.advance_with(1, 9, &[], &[], &[(Q, 8)]));
    assert!(applied.effects.contains(&Effect::Died));
    scene.entry(START, |entry| entry.advance_with(1, 9, &[], &[], &[(Q, 8)]));
    let replays =
        |scene: &Scene| scene.letters().into_iter().map(|(b, r, n)| (b, (r == SettleReason::Replay).then_some(n))).collect::<Vec<_>>();
    assert_eq!(replays(&scene), [("b".into(), Some(8)), ("c".into(), Some(8))], "the second advance did not fit");
    assert_eq!(scene.live(), 2);
    scene.publish(START, &[(0, "d"), (0, "e")]);
    assert_eq!(scene.machine.live_entries(), [2, 5], "what the history forgets stays for its letters");
    assert_eq!(replays(&scene).len(), 2);
    scene.entry(START, |entry| entry.advance_with(9, 11, &[], &[], &[(Q, 10), (QueueId(77), 11)]));
    assert_eq!(replays(&scene)[2..], [("d".into(), Some(10)), ("e".into(), Some(10))]);
}

#[test]
fn what_is_kept_goes_with_the_exchange_and_what_was_leaving_already_is_still_to_be_routed() {
    for (store, replays) in [(Store::Delayed, vec![]), (Store::History { length: 5 }, vec![(Q, 2)])] {
        let mut scene = Scene::new(store);
        scene.publish(START, &[(1, "a"), (2, "b"), (900, "c")]);
        scene.entry(START, |entry| entry.advance_with(1, 2, &[], &[], &replays));
        scene.tend(START + 10);
        let leaving = scene.letters();
        assert!(leaving.len() >= 2 && scene.live() > 0);
        scene.entry(START, |entry| entry.advance(2, 3, &[], &[Q]));
        assert!(scene.machine.queue(Q).is_none());
        assert_eq!(scene.letters(), leaving);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_delays_leave_as_a_sorted_list_would(steps in prop::collection::vec((0u64..40, prop::collection::vec(1i32..60, 0..5)), 1..25)) {
        let mut scene = Scene::new(Store::Delayed);
        let (mut waiting, mut gone, mut now, mut n) = (Vec::new(), Vec::new(), START, 0);
        for (pause, delays) in steps {
            now += pause;
            let bodies: Vec<(i32, String)> = delays.iter().map(|delay| { n += 1; (*delay, n.to_string()) }).collect();
            waiting.extend(bodies.iter().map(|(delay, body)| (now + *delay as u64 + 1, body.parse::<u64>().unwrap())));
            let messages: Vec<(i32, &str)> = bodies.iter().map(|(delay, body)| (*delay, body.as_str())).collect();
            scene.publish(now, &messages);
            scene.tend(now);
            waiting.sort_unstable();
            let ready = waiting.partition_point(|(due, _)| *due <= now);
            gone.extend(waiting.drain(..ready).map(|(_, n)| n.to_string()));
            prop_assert_eq!(scene.due(), gone.clone());
            prop_assert_eq!((scene.live(), scene.next()), (waiting.len() as u64, waiting.first().map(|w| w.0)));
        }
    }
}
