//! Messages that clients saw and gave back. They are told to the leader, and again to every later one until a leader has said that it is
//! on record that they were seen: `redelivered = false` must not become a lie with the leader that knew better. Those that come to this
//! node again are held again, and forgotten here. Never more than clients held. Pure.

use crate::edge::ranges::RangeSet;
use crate::model::link::{Delivery, Ranges, ToLeader};
use crate::model::{QueueId, Seq};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug, Default)]
pub(super) struct Returns {
    /// The present leader was not told, in order.
    untold: VecDeque<(QueueId, Returned)>,
    /// It was told, and none has it on record.
    told: BTreeMap<QueueId, Returned>,
}

#[derive(Debug, Default)]
struct Returned {
    set: RangeSet,
    /// How often those had failed before that came with failures.
    failures: BTreeMap<Seq, u32>,
}

impl Returned {
    fn add(&mut self, other: Returned) {
        self.set.extend(&other.set.to_ranges());
        self.failures.extend(other.failures);
    }

    fn remove(&mut self, seq: Seq) {
        if self.set.remove(seq) {
            self.failures.remove(&seq);
        }
    }
}

impl Returns {
    pub fn is_empty(&self) -> bool {
        self.untold.is_empty() && self.told.is_empty()
    }

    pub fn clear(&mut self) {
        *self = Returns::default();
    }

    /// A client gave these back.
    pub fn add(&mut self, queue: QueueId, set: RangeSet, failures: BTreeMap<Seq, u32>) {
        let returned = Returned { set, failures };
        match self.untold.back_mut().filter(|last| last.0 == queue) {
            Some(last) => last.1.add(returned),
            None => self.untold.push_back((queue, returned)),
        }
    }

    /// What the present leader was not told.
    pub fn tell(&mut self, out: &mut Vec<ToLeader>) {
        for (queue, returned) in self.untold.drain(..) {
            let ranges = returned.set.to_ranges();
            if ranges.is_empty() {
                continue;
            }
            let failures = returned.failures.iter().map(|(seq, count)| (*seq, *count)).collect();
            out.push(ToLeader::Return { queue, ranges, seen: true, failures });
            self.told.entry(queue).or_default().add(returned);
        }
    }

    /// The leader has on record that these were seen.
    pub fn recorded(&mut self, queue: QueueId, ranges: &Ranges) {
        let Some(told) = self.told.get_mut(&queue) else { return };
        for (first, last) in ranges {
            (first.0..=last.0).for_each(|n| told.remove(Seq(n)));
        }
        if told.set.is_empty() {
            self.told.remove(&queue);
        }
    }

    /// Messages came: they are held again, whatever was given back before.
    pub fn came(&mut self, messages: &[Delivery]) {
        for message in messages {
            if let Some(told) = self.told.get_mut(&message.queue) {
                told.remove(message.seq);
                if told.set.is_empty() {
                    self.told.remove(&message.queue);
                }
            }
            self.untold.iter_mut().filter(|r| r.0 == message.queue).for_each(|r| r.1.remove(message.seq));
        }
    }

    /// Another leader may follow, who knows nothing of them.
    pub fn path_lost(&mut self) {
        let mut again: VecDeque<_> = std::mem::take(&mut self.told).into_iter().collect();
        again.append(&mut self.untold);
        self.untold = again;
    }
}
