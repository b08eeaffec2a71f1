//! The common prefetch of a channel (`basic.qos global=true`): deliveries over the limit wait here until settles make room. They count
//! as held by their consumers, and go back unseen when the channel closes. A leader never gives one consumer more than the limit, so only
//! several consumers of one channel together, and messages on their way when the limit is set, ever wait.

use crate::model::link::Delivery;
use crate::model::step::Event;
use crate::model::{ConsumerId, ShardId};
use std::collections::{HashMap, HashSet, VecDeque};

#[derive(Debug)]
pub(super) struct Pool {
    limit: Option<u32>,
    held: HashMap<ConsumerId, u64>,
    total: u64,
    parked: VecDeque<(ConsumerId, ShardId, Delivery)>,
    /// Consumers that ended while something of theirs was held.
    ended: HashSet<ConsumerId>,
}

impl Pool {
    /// `held`: what the channel's consumers hold already.
    pub fn new(held: &[(ConsumerId, u64)]) -> Pool {
        let total = held.iter().map(|h| h.1).sum();
        Pool { limit: None, total, held: held.iter().copied().collect(), parked: VecDeque::new(), ended: HashSet::new() }
    }

    pub fn set_limit(&mut self, limit: Option<u32>) {
        self.limit = limit.filter(|l| *l > 0);
    }

    pub fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Nothing to count for.
    pub fn is_idle(&self) -> bool {
        self.limit.is_none() && self.parked.is_empty()
    }

    fn room(&self) -> usize {
        match self.limit {
            Some(limit) => u64::from(limit).saturating_sub(self.total) as usize,
            None => usize::MAX,
        }
    }

    fn take_room(&mut self, consumer: ConsumerId, count: usize) {
        *self.held.entry(consumer).or_default() += count as u64;
        self.total += count as u64;
    }

    /// The messages that may pass now; the others are parked.
    pub fn admit(&mut self, consumer: ConsumerId, shard: ShardId, mut messages: Vec<Delivery>) -> Vec<Delivery> {
        let room = if self.parked.is_empty() { self.room().min(messages.len()) } else { 0 };
        let rest = messages.split_off(room);
        self.take_room(consumer, messages.len());
        self.parked.extend(rest.into_iter().map(|m| (consumer, shard, m)));
        messages
    }

    /// Parked messages that have room now, as events, oldest first.
    pub fn admit_parked(&mut self, channel: u16, events: &mut Vec<Event>) {
        while self.room() > 0 {
            let Some((consumer, shard, message)) = self.parked.pop_front() else { return };
            self.take_room(consumer, 1);
            match events.last_mut() {
                Some(Event::Deliver { consumer: last, messages, .. }) if *last == consumer => messages.push(message),
                _ => events.push(Event::Deliver { channel, consumer, shard, messages: vec![message] }),
            }
        }
    }

    /// `count` messages of `consumer` are settled. True: they were the last of one that had ended.
    pub fn release(&mut self, consumer: ConsumerId, count: u32) -> bool {
        let Some(held) = self.held.get_mut(&consumer) else { return false };
        let count = u64::from(count).min(*held);
        *held -= count;
        self.total -= count;
        if *held > 0 {
            return false;
        }
        self.held.remove(&consumer);
        self.ended.remove(&consumer)
    }

    /// A consumer ends. False: something of it is held, and counts until it is settled.
    pub fn end(&mut self, consumer: ConsumerId) -> bool {
        let is_done = self.held.get(&consumer).is_none_or(|held| *held == 0);
        if !is_done {
            self.ended.insert(consumer);
        }
        is_done
    }

    /// The consumers that ended while something of theirs was held, and still is.
    pub fn into_ended(self) -> impl Iterator<Item = ConsumerId> {
        self.ended.into_iter()
    }

    /// Take back everything that is parked.
    pub fn into_parked(self) -> impl Iterator<Item = (ShardId, Delivery)> {
        self.parked.into_iter().map(|p| (p.1, p.2))
    }

    /// Take back what is parked for a consumer.
    pub fn take(&mut self, consumer: ConsumerId) -> Vec<Delivery> {
        let (mine, others) = std::mem::take(&mut self.parked).into_iter().partition(|p| p.0 == consumer);
        self.parked = others;
        let mine: VecDeque<_> = mine;
        mine.into_iter().map(|p| p.2).collect()
    }
}
