//! What an agent holds for consumers: each delivery until it is acknowledged or its time is over. Pure; time comes in from outside.

use super::handle::Slot;
use crate::model::step::Held;
use crate::model::{QueueId, Seq, ShardId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Times of first deliveries that are remembered for messages that came back.
const FIRSTS_MAX: usize = 100_000;
/// Deliveries that are out at a time: some hundred bytes each, here and where their queues are led. Unit tests make them all.
const HELD_MAX: usize = if cfg!(test) { 1_000 } else { 1_000_000 };

/// For whom a message was delivered: a handle is good for that alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The topic.
    pub topic: Arc<str>,
    /// The group.
    pub group: Arc<str>,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    secret: u64,
    due_ms: u64,
    scope: Scope,
}

/// Deliveries that are out.
#[derive(Debug, Default)]
pub(super) struct Holding {
    entries: HashMap<u64, Entry>,
    due: BTreeSet<(u64, u64)>,
    firsts: BTreeMap<(QueueId, Seq), u64>,
}

impl Holding {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whoever fetches more is to acknowledge first.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= HELD_MAX
    }

    /// When the first is over. All times but those of `first_ms` are the steady clock's.
    pub fn due_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// When this message was delivered first, ms since the epoch. `times`: how often it was, now too. Who does not remember goes by when it came back first
    /// (`failed_ms`, known to the queue; 0: not), which was when its time was over; without that it is taken for granted that the client
    /// let it come again every time.
    pub fn first_ms(&mut self, held: &Held, times: u64, failed_ms: u64, (now_ms, invisible_ms): (u64, u64)) -> u64 {
        let key = (held.queue, held.seq);
        let before = |failed_ms: u64| failed_ms.saturating_sub(invisible_ms).min(now_ms);
        let guess = || now_ms.saturating_sub(times.saturating_sub(1).saturating_mul(invisible_ms));
        let first_ms = if times <= 1 {
            now_ms
        } else {
            self.firsts.get(&key).copied().unwrap_or_else(|| if failed_ms > 0 { before(failed_ms) } else { guess() })
        };
        self.firsts.insert(key, first_ms);
        if self.firsts.len() > FIRSTS_MAX {
            self.firsts.pop_first();
        }
        first_ms
    }

    pub fn add(&mut self, slot: Slot, held: Held, due_ms: u64, scope: Scope) {
        self.due.insert((due_ms, slot.number));
        self.entries.insert(slot.number, Entry { held, secret: slot.secret, due_ms, scope });
    }

    /// A handle is used: the message it stands for. `None`: it is not good (any more), or not for that.
    pub fn take(&mut self, slot: Slot, scope: &Scope, now_ms: u64) -> Option<Held> {
        let is_good = |e: &&Entry| e.secret == slot.secret && e.due_ms > now_ms && e.scope == *scope;
        let held = self.entries.get(&slot.number).filter(is_good)?.held;
        self.remove(slot.number);
        self.firsts.remove(&(held.queue, held.seq));
        Some(held)
    }

    /// What was delivered of this shard is not the agent's any more.
    pub fn lose(&mut self, shard: ShardId) {
        let lost: Vec<u64> = self.entries.iter().filter(|(_, entry)| entry.held.shard == shard).map(|(number, _)| *number).collect();
        lost.into_iter().for_each(|number| drop(self.remove(number)));
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.due.remove(&(entry.due_ms, number));
        Some(entry)
    }

    /// Those whose time is over, in the order of their queues.
    pub fn over(&mut self, now_ms: u64) -> Vec<Held> {
        let mut over = Vec::new();
        while let Some((_, number)) = self.due.first().copied().filter(|(due_ms, _)| *due_ms <= now_ms) {
            over.extend(self.remove(number).map(|entry| entry.held));
        }
        over.sort_unstable_by_key(|held| (held.shard, held.queue, held.seq));
        over
    }
}
