//! Queues that take no message twice: what counts as the same, for how long, and that it outlives checkpoints.

use super::stores_tests::{Q, START, Scene};
use crate::model::deduplication::{Deduplication, Ids};
use crate::model::entry::SettleReason;
use crate::model::properties::HEADERS;
use crate::model::settings::{Overflow, QueueSettings};
use crate::model::store::Store;
use crate::model::{Seq, limits};
use proptest::prelude::*;
use std::collections::VecDeque;

fn properties(headers: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let body: Vec<u8> = headers.iter().flat_map(|(name, value)| [&[name.len() as u8], name.as_bytes(), value].concat()).collect();
    [&HEADERS.to_be_bytes()[..], &(body.len() as u32).to_be_bytes(), &body].concat()
}

fn int(n: i64) -> Vec<u8> {
    [&b"l"[..], &n.to_be_bytes()].concat()
}

fn value(n: i64) -> Vec<u8> {
    properties(&[("x-deduplication-header", int(n))])
}

fn published(publisher: &str, id: i64) -> Vec<u8> {
    let name = [&b"S"[..], &(publisher.len() as u32).to_be_bytes(), publisher.as_bytes()].concat();
    properties(&[("x-publisher-reference", name), ("x-publishing-id", int(id))])
}

fn settings(size: Option<u64>, ttl_ms: Option<u64>) -> QueueSettings {
    QueueSettings { deduplication: Some(Deduplication { size, ttl_ms, ..Deduplication::default() }), ..QueueSettings::default() }
}

fn window_of(publishers: u64, ranges: u64) -> QueueSettings {
    let deduplication = Deduplication { ids: Ids { publishers, ranges }, ..Deduplication::default() };
    QueueSettings { deduplication: Some(deduplication), ..QueueSettings::default() }
}

impl Scene {
    /// How many of these messages the queue took.
    fn took(&mut self, time_ms: u64, messages: &[Vec<u8>]) -> u64 {
        let before = self.machine.queue(Q).unwrap().tail().0;
        self.ops(time_ms, |ops| {
            for properties in messages {
                ops.enqueue(&[Q], b"x", b"k", properties, b"m");
            }
        });
        self.machine.queue(Q).unwrap().tail().0 - before
    }

    fn settle(&mut self, first: u64, last: u64) {
        self.ops(START, |ops| ops.settle(Q, SettleReason::Ack, &[(Seq(first), Seq(last))]));
    }
}

#[test]
fn without_a_window_a_value_is_known_as_long_as_its_message_is_in_the_queue() {
    let mut scene = Scene::with(&settings(None, None));
    assert_eq!(scene.took(START, &[value(1), value(1), value(2)]), 2);
    assert_eq!(scene.took(START + 1_000_000, &[value(1), value(2)]), 0);
    scene.settle(1, 1);
    assert_eq!(scene.took(START, &[value(1), value(1), value(2)]), 1);
    assert_eq!(scene.took(START, &[vec![0, 0], vec![0, 0]]), 2, "what says nothing is not looked for");
    scene.settle(1, 100);
    assert_eq!(scene.took(START, &[value(1), value(2)]), 2);
    assert_eq!(scene.live(), 2);
}

#[test]
fn a_window_remembers_the_last_values_wherever_their_messages_are() {
    let mut scene = Scene::with(&settings(Some(2), None));
    assert_eq!(scene.took(START, &[value(1), value(2)]), 2);
    scene.settle(1, 2);
    assert_eq!(scene.took(START, &[value(1), value(2)]), 0);
    assert_eq!(scene.took(START, &[value(3), value(1), value(3)]), 2, "the first was forgotten for the third");
}

#[test]
fn a_window_of_time_ends_by_the_entries_time_and_a_message_may_ask_for_another() {
    let mut scene = Scene::with(&settings(None, Some(100)));
    let long = properties(&[("x-deduplication-header", int(2)), ("x-cache-ttl", int(500))]);
    assert_eq!(scene.took(START, &[value(1), long.clone()]), 2);
    assert_eq!(scene.took(START + 99, &[value(1)]), 0);
    assert_eq!(scene.took(START + 100, &[value(1), long.clone()]), 1);
    assert_eq!(scene.took(START + 499, std::slice::from_ref(&long)), 0);
    assert_eq!(scene.took(START + 500, &[long]), 1);
}

#[test]
fn publishing_ids_are_known_by_publisher_in_any_order_for_good() {
    let mut scene = Scene::with(&settings(None, None));
    assert_eq!(scene.took(START, &[published("p", 1), published("p", 2), published("q", 1), published("p", 2)]), 3);
    scene.settle(1, 9);
    assert_eq!(scene.took(START, &[published("p", 1), published("q", 1)]), 0);
    assert_eq!(scene.took(START, &[published("p", 9), published("p", 5), published("p", 5), published("p", 9)]), 2);
}

#[test]
fn what_a_full_queue_refused_may_come_again() {
    let mut scene = Scene::with(&QueueSettings { max_length: Some(1), overflow: Overflow::RejectPublish, ..settings(Some(9), None) });
    assert_eq!(scene.took(START, &[published("p", 1), published("p", 2), value(7)]), 1);
    scene.settle(1, 1);
    assert_eq!(scene.took(START, &[published("p", 1), published("p", 2)]), 1);
    scene.settle(1, 2);
    assert_eq!(scene.took(START, &[published("p", 2), value(7)]), 1);
}

#[test]
fn a_message_that_comes_back_is_no_duplicate_of_itself() {
    let died = |n| properties(&[("x-deduplication-header", int(n)), ("x-death", b"A\0\0\0\0".to_vec())]);
    let mut scene = Scene::with(&settings(Some(9), None));
    assert_eq!(scene.took(START, &[value(1)]), 1);
    scene.settle(1, 1);
    assert_eq!(scene.took(START, &[died(1), value(1)]), 1);
}

#[test]
fn publishers_are_bounded_and_the_silent_ones_go_first() {
    let mut scene = Scene::with(&settings(None, None));
    let all: Vec<_> = (0..limits::PUBLISHERS).map(|n| published(&n.to_string(), 1)).collect();
    scene.took(START, &all);
    assert_eq!(scene.took(START, &[published("0", 2), published("new", 1), published("0", 1), published("1", 1)]), 3);
}

/// Smaller or larger, by a policy: what is beyond the window is taken once more, what is within it is not.
#[test]
fn the_window_of_publishing_ids_is_what_the_queue_and_its_policies_say() {
    let mut scene = Scene::with(&window_of(2, 2));
    let ids = |ids: &[i64]| ids.iter().map(|id| published("p", *id)).collect::<Vec<_>>();
    assert_eq!(scene.took(START, &ids(&[1, 3, 5])), 3);
    assert_eq!(scene.took(START, &ids(&[3, 5])), 0, "two ranges are remembered");
    assert_eq!(scene.took(START, &ids(&[1])), 1, "the lowest is forgotten");
    assert_eq!(scene.took(START, &[published("q", 1), published("r", 1), published("q", 1)]), 2);
    assert_eq!(scene.took(START, &ids(&[5])), 1, "a third publisher has taken its place");
    scene.configure(&window_of(4, 8));
    assert_eq!(scene.took(START, &ids(&[7, 9, 11, 13, 7, 9, 11, 13])), 4);
    assert_eq!(scene.took(START, &[published("r", 1), published("s", 1), published("t", 1), published("p", 13)]), 2);
    assert_eq!(scene.took(START, &ids(&[15])), 1);
    scene.configure(&window_of(1, 1));
    assert_eq!(scene.took(START, &ids(&[15])), 0, "the last one that published is the one that stays");
    assert_eq!(scene.took(START, &ids(&[13])), 1, "with its highest ids");
}

#[test]
fn what_a_store_has_seen_it_lets_through_once() {
    let unique = Deduplication { size: Some(9), ..Deduplication::default() };
    let mut scene = Scene::with(&QueueSettings::of_store(Store::Unique(unique)));
    assert_eq!(scene.took(START, &[value(1), value(2), value(1)]), 2);
    scene.tend(START);
    assert_eq!(scene.letters().iter().map(|l| l.1).collect::<Vec<_>>(), [SettleReason::First; 2]);
    assert_eq!((scene.took(START, &[value(1), value(3)]), scene.live()), (1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_window_is_a_list_of_the_last_values(
        size in 1u64..6,
        steps in prop::collection::vec((prop::collection::vec(0i64..8, 1..6), prop::option::of(1u64..30)), 1..20),
    ) {
        let mut scene = Scene::with(&settings(Some(size), None));
        let mut window: VecDeque<i64> = VecDeque::new();
        for (values, settled) in steps {
            let mut taken = 0;
            for value in &values {
                if !window.contains(value) {
                    taken += 1;
                    window.push_back(*value);
                    if window.len() as u64 > size {
                        window.pop_front();
                    }
                }
            }
            let messages: Vec<_> = values.into_iter().map(value).collect();
            prop_assert_eq!(scene.took(START, &messages), taken);
            settled.into_iter().for_each(|seq| scene.settle(1, seq));
        }
    }
}

/// Whoever took a gap for ids that came would confirm them without storing them.
#[test]
fn what_a_full_queue_refused_is_taken_when_it_comes_again_however_much_came_between() {
    let limited = QueueSettings { max_length: Some(1), overflow: Overflow::RejectPublish, ..settings(None, None) };
    let mut scene = Scene::with(&limited);
    let all = limits::PUBLISHER_RANGES as i64 + 100; // more than the window
    for n in 0..all {
        assert_eq!(scene.took(START, &[published("p", 2 * n)]), 1);
        assert_eq!(scene.took(START, &[published("p", 2 * n + 1)]), 0, "it is full");
        scene.settle(1, u64::MAX >> 1);
    }
    for n in 0..all {
        assert_eq!(scene.took(START, &[published("p", 2 * n + 1)]), 1, "{n} was refused");
        scene.settle(1, u64::MAX >> 1);
    }
}
