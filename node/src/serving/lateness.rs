//! How late delayed messages leave, by the clock of the shard's leader: from their time until all their targets have them. Counted for the
//! first of those that leave together, which waited longest. What was due before this node led counts from when it did.
//! Called by `tending` and `letters`; shown by `node`.

use super::server::ShardServer;
use crate::model::QueueId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a delayed message may be late, ms.
const LATE_MS: u64 = 100;

/// Of all shards that this node led, since its start.
#[derive(Debug, Default)]
pub struct Lateness {
    seen: AtomicU64,
    late: AtomicU64,
    max_ms: AtomicU64,
}

impl Lateness {
    fn observe(&self, ms: u64) {
        self.seen.fetch_add(1, Relaxed);
        self.late.fetch_add(u64::from(ms > LATE_MS), Relaxed);
        self.max_ms.fetch_max(ms, Relaxed);
    }

    /// How many were looked at.
    pub fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// How many of those were more than 100 ms late.
    pub fn late(&self) -> u64 {
        self.late.load(Relaxed)
    }

    /// The latest of them, ms.
    pub fn max_ms(&self) -> u64 {
        self.max_ms.load(Relaxed)
    }
}

/// Of one leadership.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    /// When it began, ms since the epoch.
    since_ms: u64,
    /// Letters that were delayed messages, by number: when they were due. At most one for each entry that let messages go.
    due: BTreeMap<u64, u64>,
}

impl ShardServer {
    fn now_ms(&self) -> u64 {
        self.log.time_ms(self.config.clock.read())
    }

    /// This node leads from now on.
    pub(super) fn begin_lateness(&mut self) {
        self.letters.awaited = Awaited { since_ms: self.now_ms(), due: BTreeMap::new() };
    }

    /// Messages of a queue that delays them have left it; the first was due at `due_ms`.
    pub(super) fn left_late(&mut self, id: QueueId, due_ms: u64) {
        let next = self.letters.next_of(id);
        if let Some((number, _)) = self.machine.lock().waiting_letters(id, next) {
            self.letters.awaited.due.entry(number).or_insert(due_ms);
        }
    }

    /// All targets of a letter have it.
    pub(super) fn arrived(&mut self, number: u64) {
        if let Some(due_ms) = self.letters.awaited.due.remove(&number) {
            let from = due_ms.max(self.letters.awaited.since_ms);
            self.config.lateness.observe(self.now_ms().saturating_sub(from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_a_tenth_of_a_second_late_is_counted_and_the_latest_is_told() {
        let lateness = Lateness::default();
        [3, LATE_MS, LATE_MS + 1, 7].into_iter().for_each(|ms| lateness.observe(ms));
        assert_eq!((lateness.seen(), lateness.late(), lateness.max_ms()), (4, 1, 101));
    }
}
