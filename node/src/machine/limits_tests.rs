//! Limits, times to live and priorities against a naive model: a list of messages per queue.

use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Ops};
use crate::model::properties::{EXPIRATION, PRIORITY};
use crate::model::settings::{Overflow, QueueSettings};
use crate::model::{LeaderId, LogId, QueueId, Seq, SessionId, ShardId};
use bytes::BufMut;
use proptest::prelude::*;
use std::collections::BTreeMap;

const Q: QueueId = QueueId(1);

#[derive(Clone, Debug)]
enum Operation {
    Enqueue { body: u8, expiration: Option<u32>, priority: u8 },
    Tend { later: u64, room: u32, checked: Vec<(u64, u64)> },
    Settle { first: u64, len: u64 },
    Reserve { up_to: u64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let checked = prop::collection::vec((1u64..40, 0u64..4), 0..3).prop_map(|parts| {
        let mut at = 0;
        let mut place = |(gap, len): (u64, u64)| {
            let first = at + 1 + gap / 4;
            at = first + len;
            (first, at)
        };
        parts.into_iter().map(&mut place).collect()
    });
    prop_oneof![
        8 => (0u8..9, prop::option::weighted(0.3, 0u32..60), 0u8..6)
            .prop_map(|(body, expiration, priority)| Operation::Enqueue { body, expiration, priority }),
        2 => (0u64..30, 0u32..3, checked).prop_map(|(later, room, checked)| Operation::Tend { later, room, checked }),
        2 => (1u64..60, 0u64..5).prop_map(|(first, len)| Operation::Settle { first, len }),
        1 => (0u64..20).prop_map(|up_to| Operation::Reserve { up_to }),
    ]
}

fn settings() -> impl Strategy<Value = QueueSettings> {
    let overflow = prop_oneof![3 => Just(Overflow::DropHead), 1 => Just(Overflow::RejectPublish)];
    let some = |range| prop::option::of(range);
    (some(0u64..8), some(0u64..24), overflow, some(0u64..60), prop::option::of(0u8..4)).prop_map(
        |(max_length, max_length_bytes, overflow, message_ttl_ms, max_priority)| QueueSettings {
            max_length,
            max_length_bytes,
            overflow,
            message_ttl_ms,
            max_priority,
            ..QueueSettings::default()
        },
    )
}

fn properties(expiration: Option<u32>, priority: u8) -> Vec<u8> {
    let mut list = Vec::new();
    list.put_u16(PRIORITY | if expiration.is_some() { EXPIRATION } else { 0 });
    list.put_u8(priority);
    if let Some(ms) = expiration {
        let text = ms.to_string();
        list.put_u8(text.len() as u8);
        list.put_slice(text.as_bytes());
    }
    list
}

#[derive(Clone, Debug, PartialEq)]
struct Message {
    seq: u64,
    level: u8,
    deadline: u64,
    body: u64,
}

/// How many may wait beyond the limit, and what is with consumers.
type Basis = (u64, Vec<(u64, u64)>);

#[derive(Default)]
struct Naive {
    settings: QueueSettings,
    tail: u64,
    reserved: u64,
    messages: Vec<Message>,
    basis: Option<Basis>,
}

impl Naive {
    fn ready(&self) -> Vec<Message> {
        let checked = self.basis.iter().flat_map(|b| b.1.clone()).collect::<Vec<_>>();
        let free = |m: &&Message| !checked.iter().any(|c| c.0 <= m.seq && m.seq <= c.1);
        self.messages.iter().filter(free).cloned().collect()
    }

    fn default_basis(&mut self) {
        let drops = self.settings.overflow == Overflow::DropHead;
        let reserved = if drops { self.reserved.min(self.tail) } else { 0 };
        self.basis.get_or_insert_with(|| (0, if reserved > 0 { vec![(1, reserved)] } else { vec![] }));
    }

    fn room(&self) -> u64 {
        self.basis.as_ref().map_or(0, |b| b.0)
    }

    fn trim(&mut self) {
        while self.settings.overflow == Overflow::DropHead {
            let ready = self.ready();
            let (count, bytes) = (ready.len() as u64, ready.iter().map(|m| m.body).sum::<u64>());
            let long = self.settings.max_length.is_some_and(|max| count > max + self.room());
            let heavy = self.settings.max_length_bytes.is_some_and(|max| bytes > max) && count > self.room();
            let head = ready.iter().max_by_key(|m| (m.level, std::cmp::Reverse(m.seq)));
            match head {
                Some(head) if long || heavy => self.messages.retain(|m| m != head),
                _ => return,
            }
        }
    }

    fn expire(&mut self, now: u64) {
        loop {
            let ready = self.ready();
            let head = |level| ready.iter().filter(|m| m.level == level).min_by_key(|m| m.seq).cloned();
            let Some(dead) = (0..=255).filter_map(head).find(|m| m.deadline > 0 && m.deadline <= now) else { return };
            self.messages.retain(|m| *m != dead);
        }
    }

    /// False when it is refused.
    fn enqueue(&mut self, time: u64, body: u64, expiration: Option<u32>, priority: u8) -> bool {
        let limited = self.settings.max_length.is_some() || self.settings.max_length_bytes.is_some();
        if limited {
            self.default_basis();
        }
        if limited && self.settings.overflow != Overflow::DropHead {
            let ready = self.ready();
            let (count, bytes) = (ready.len() as u64, ready.iter().map(|m| m.body).sum::<u64>());
            let long = self.settings.max_length.is_some_and(|max| count >= max + self.room());
            let heavy = self.settings.max_length_bytes.is_some_and(|max| bytes + body > max) && count >= self.room();
            if long || heavy {
                return false;
            }
        }
        let ttl = self.settings.message_ttl_ms.into_iter().chain(expiration.map(u64::from)).min();
        let deadline = ttl.map_or(0, |ttl| if ttl == 0 { 1 } else { (time + ttl).max(2) });
        self.tail += 1;
        let level = self.settings.max_priority.map_or(0, |max| priority.min(max));
        self.messages.push(Message { seq: self.tail, level, deadline, body });
        if limited && self.settings.overflow == Overflow::DropHead {
            self.trim();
        }
        true
    }

    fn operation(&mut self, time: u64, operation: &Operation, ops: &mut Ops) {
        match operation {
            Operation::Enqueue { body, expiration, priority } => {
                ops.enqueue(&[Q], b"x", b"k", &properties(*expiration, *priority), &vec![7; usize::from(*body)]);
                self.enqueue(time, u64::from(*body), *expiration, *priority);
            }
            Operation::Tend { later, room, checked } => {
                let ranges: Vec<_> = checked.iter().map(|r| (Seq(r.0), Seq(r.1))).collect();
                ops.tend(Q, time + later, *room, &ranges);
                let known = |r: &(u64, u64)| (r.0 <= self.tail).then_some((r.0, r.1.min(self.tail)));
                self.basis = Some((u64::from(*room), checked.iter().filter_map(known).collect()));
                self.expire(time + later);
                self.trim();
            }
            Operation::Settle { first, len } => {
                ops.settle(Q, crate::model::entry::SettleReason::Ack, &[(Seq(*first), Seq(first + len))]);
                self.messages.retain(|m| m.seq < *first || m.seq > first + len);
            }
            Operation::Reserve { up_to } => {
                ops.reserve(Q, Seq(*up_to), &[SessionId(9)]);
                self.reserved = self.reserved.max(*up_to);
            }
        }
    }
}

fn seqs(queue: &Queue, level: usize) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    queue.locate(level, Seq(0), usize::MAX, &mut runs);
    runs.iter().flat_map(|r| (0..u64::from(r.count)).map(move |n| (r.first.0 + n, r.deadline_ms))).collect()
}

fn check(machine: &DataMachine, naive: &Naive) {
    let queue = machine.queue(Q).unwrap();
    assert_eq!((queue.tail().0, queue.live_count()), (naive.tail, naive.messages.len() as u64));
    for level in 0..queue.levels() {
        let of = naive.messages.iter().filter(|m| usize::from(m.level) == level);
        assert_eq!(seqs(queue, level), of.map(|m| (m.seq, m.deadline)).collect::<Vec<_>>());
    }
    assert_eq!(queue.live_body_bytes(), naive.messages.iter().map(|m| m.body).sum::<u64>());
    assert_eq!(queue.first_live().0, naive.messages.iter().map(|m| m.seq).min().unwrap_or(naive.tail + 1));
}

fn id(index: u64) -> LogId {
    LogId { leader: LeaderId { term: 1, voter: 7 }, index }
}

fn declared(settings: &QueueSettings) -> DataMachine {
    let mut machine = DataMachine::new(ShardId(3));
    let mut first = EntryBuilder::new(5);
    first.advance(0, 1, &[Q], &[]);
    first.settings(1, Q, settings);
    machine.apply(id(1), &first.finish()).unwrap();
    machine
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn queues_with_limits_times_and_priorities_equal_the_naive_model(
        settings in settings(),
        later in prop::collection::vec((2usize..20, settings()), 0..3),
        entries in prop::collection::vec((prop::collection::vec(operation(), 1..12), 0u64..20, 0u8..4), 1..20),
    ) {
        let mut naive = Naive { settings: settings.clone(), ..Naive::default() };
        let (mut machine, mut twin) = (declared(&settings), declared(&settings));
        let mut disk = BTreeMap::new();
        let mut time = 5;
        for (index, (operations, pause, what_then)) in (2..).zip(entries) {
            time += pause;
            naive.basis = None;
            let (mut entry, mut ops) = (EntryBuilder::new(time), Ops::default());
            // A policy is set: what came before it is counted like what comes after it.
            if let Some((_, settings)) = later.iter().find(|(at, _)| *at as u64 == index) {
                naive.settings = QueueSettings { max_priority: naive.settings.max_priority, ..settings.clone() };
                entry.settings(1, Q, &naive.settings);
            }
            operations.iter().for_each(|operation| naive.operation(time, operation, &mut ops));
            entry.leader_ops(&ops.take());
            let entry = entry.finish();
            machine.apply(id(index), &entry).unwrap();
            twin.apply(id(index), &EntryBytes::from(entry.flatten())).unwrap();
            check(&machine, &naive);
            prop_assert_eq!(machine.state_hash(), twin.state_hash());
            prop_assert_eq!(machine.queue(Q).unwrap().is_timed() || naive.messages.iter().all(|m| m.deadline == 0), true);
            match what_then {
                0 => {
                    let delta = machine.checkpoint();
                    if delta.full {
                        disk.clear();
                    }
                    delta.deletes.iter().for_each(|key| drop(disk.remove(key)));
                    disk.extend(delta.puts);
                    machine = DataMachine::restore(ShardId(3), &disk).unwrap();
                }
                1 => machine = DataMachine::from_snapshot(ShardId(3), &machine.snapshot()).unwrap(),
                _ => {}
            }
            check(&machine, &naive);
            prop_assert_eq!(machine.state_hash(), twin.state_hash());
        }
    }
}

#[test]
fn settings_come_with_the_advance_they_belong_to() {
    let limit = |n| QueueSettings { max_length: Some(n), ..QueueSettings::default() };
    let mut machine = declared(&limit(1));
    assert_eq!(machine.queue(Q).unwrap().settings(), Some(&limit(1)));
    let mut stale = EntryBuilder::new(5);
    stale.settings(0, Q, &limit(2));
    assert_eq!(machine.apply(id(2), &stale.finish()).unwrap().effects, []);
    assert_eq!(machine.queue(Q).unwrap().settings(), Some(&limit(1)));
    let mut plain = EntryBuilder::new(5);
    plain.advance(1, 4, &[], &[]);
    plain.settings(4, Q, &QueueSettings::default());
    let effects = machine.apply(id(3), &plain.finish()).unwrap().effects;
    assert_eq!(effects, [Effect::Advanced { to: 4 }, Effect::Configured { queue: Q }]);
    assert_eq!(machine.queue(Q).unwrap().settings(), None);
}
