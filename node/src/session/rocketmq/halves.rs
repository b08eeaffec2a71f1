//! Half messages that an agent holds: until they are committed or rolled back, and between that handed out to be checked. Pure.

use super::handle::Slot;
use super::message::{HalfFacts, IMMUNITY_MAX_MS, half_facts};
use super::moment::Moment;
use crate::model::ShardId;
use crate::model::entry::StoredMessage;
use crate::model::limits::TAKE_BYTES;
use crate::model::link::Delivery;
use crate::model::rocketmq::HALF_LIFE_MS;
use crate::model::step::Held;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What half messages take together in the memory of an agent, bytes.
pub(super) const BYTES_MAX: usize = 64 << 20;

/// A half message.
#[derive(Debug)]
pub(super) struct Half {
    pub held: Held,
    pub delivery: Delivery,
    pub message: StoredMessage,
    pub topic: Arc<str>,
    pub facts: HalfFacts,
    /// The handle that is good now, and until when, by the steady clock.
    pub slot: Slot,
    pub valid_ms: u64,
    /// When it is too old, by the same clock.
    end_ms: u64,
    pub times: u64,
    /// When it was handed out first, ms since the epoch.
    pub first_ms: u64,
}

/// All of them, by number.
#[derive(Debug, Default)]
pub(super) struct Halves {
    all: BTreeMap<u64, Half>,
    bytes: usize,
}

impl Halves {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= BYTES_MAX
    }

    /// One that came out of its queue. Its first handle is good until it is checked.
    pub fn add(&mut self, topic: &Arc<str>, held: Held, delivery: Delivery, slot: Slot, now: Moment) {
        let Some(message) = StoredMessage::parse(delivery.message.clone()) else { return };
        let facts = half_facts(&message);
        self.bytes += delivery.message.len();
        // Its times are those of another node, or of a clock that was set since: none is further away than it can be.
        let valid_ms = now.steady_at(facts.check_ms).min(now.steady_ms + IMMUNITY_MAX_MS);
        let end_ms = now.steady_at(facts.published_ms.saturating_add(HALF_LIFE_MS)).min(now.steady_ms + HALF_LIFE_MS);
        let half = Half { held, delivery, message, topic: topic.clone(), facts, slot, valid_ms, end_ms, times: 0, first_ms: 0 };
        self.all.insert(slot.number, half);
    }

    /// The handle of the one with this id.
    pub fn find(&self, id: &str) -> Option<Slot> {
        self.all.values().rev().find(|half| half.facts.id == id).map(|half| half.slot)
    }

    /// Those of a topic that are to be checked, each with a new handle: as many as one answer takes.
    pub fn due(&mut self, topic: &str, now: Moment, most: usize, invisible_ms: u64, mut slot: impl FnMut() -> Slot) -> Vec<&Half> {
        let is_due = |half: &Half| *half.topic == *topic && half.valid_ms <= now.steady_ms;
        let (mut numbers, mut bytes) = (Vec::new(), 0);
        for (number, half) in self.all.iter().filter(|(_, half)| is_due(half)).take(most) {
            bytes += half.delivery.message.len();
            if bytes > TAKE_BYTES && !numbers.is_empty() {
                break;
            }
            numbers.push(*number);
        }
        let mut again = Vec::with_capacity(numbers.len());
        for number in numbers {
            let Some(mut half) = self.all.remove(&number) else { continue };
            half.slot = slot();
            half.valid_ms = now.steady_ms + invisible_ms;
            half.times += 1;
            half.first_ms = if half.times == 1 { now.wall_ms } else { half.first_ms };
            again.push(half.slot.number);
            self.all.insert(half.slot.number, half);
        }
        again.iter().filter_map(|number| self.all.get(number)).collect()
    }

    /// A handle is used.
    pub fn take(&mut self, slot: Slot, topic: &str, now_ms: u64) -> Option<Half> {
        let is_good = |half: &&Half| half.slot == slot && half.valid_ms > now_ms && *half.topic == *topic;
        self.all.get(&slot.number).filter(is_good)?;
        self.remove(slot.number)
    }

    /// Those of this shard are not the agent's any more: they are in their queue again, or with whoever took them over.
    pub fn lose(&mut self, shard: ShardId) {
        let lost: Vec<u64> = self.all.iter().filter(|(_, half)| half.held.shard == shard).map(|(number, _)| *number).collect();
        lost.into_iter().for_each(|number| drop(self.remove(number)));
    }

    /// One that was taken, and is not decided after all.
    pub fn restore(&mut self, half: Half) {
        self.bytes += half.delivery.message.len();
        self.all.insert(half.slot.number, half);
    }

    fn remove(&mut self, number: u64) -> Option<Half> {
        let half = self.all.remove(&number)?;
        self.bytes = self.bytes.saturating_sub(half.delivery.message.len());
        Some(half)
    }

    /// Those that are too old.
    pub fn over(&mut self, now_ms: u64) -> Vec<Held> {
        let is_over = |half: &Half| half.end_ms <= now_ms;
        let numbers: Vec<u64> = self.all.iter().filter(|(_, half)| is_over(half)).map(|(number, _)| *number).collect();
        let mut over: Vec<Held> = numbers.into_iter().filter_map(|number| self.remove(number).map(|half| half.held)).collect();
        over.sort_unstable_by_key(|held| (held.shard, held.queue, held.seq));
        over
    }
}
