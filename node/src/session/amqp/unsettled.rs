//! Delivery tags of one channel: what the client holds, in tag order.

use crate::model::step::Held;
use std::collections::VecDeque;

/// Messages delivered and not settled. Tags rise; those of no-ack deliveries leave gaps.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    last_tag: u64,
    /// `None`: settled out of order, waits for those before it.
    entries: VecDeque<(u64, Option<Held>)>,
    live: usize,
}

impl Unsettled {
    /// The next delivery tag.
    pub(super) fn tag(&mut self) -> u64 {
        self.last_tag += 1;
        self.last_tag
    }

    /// The client holds this message under the tag given out last.
    pub(super) fn hold(&mut self, tag: u64, held: Held) {
        self.entries.push_back((tag, Some(held)));
        self.live += 1;
    }

    /// Takes what a settlement names into `into`: one tag, all up to it, or all (`multiple` with 0). False: the tag is unknown.
    pub(super) fn take(&mut self, tag: u64, multiple: bool, into: &mut Vec<Held>) -> bool {
        self.take_into(tag, multiple, into, |_, held| held)
    }

    /// The same with their tags.
    pub(super) fn take_tagged(&mut self, tag: u64, multiple: bool, into: &mut Vec<(u64, Held)>) -> bool {
        self.take_into(tag, multiple, into, |tag, held| (tag, held))
    }

    fn take_into<T>(&mut self, tag: u64, multiple: bool, into: &mut Vec<T>, make: impl Fn(u64, Held) -> T) -> bool {
        if multiple && tag == 0 {
            into.extend(self.entries.drain(..).filter_map(|(tag, held)| Some(make(tag, held?))));
            self.live = 0;
            return true;
        }
        let Some(at) = self.find(tag) else { return false };
        if multiple {
            let before = into.len();
            into.extend(self.entries.drain(..=at).filter_map(|(tag, held)| Some(make(tag, held?))));
            self.live -= into.len() - before;
        } else {
            into.extend(self.entries[at].1.take().map(|held| make(tag, held)));
            self.live -= 1;
        }
        self.tidy();
        true
    }

    /// The client holds these again under the tags they had (tx.rollback). O(n log n).
    pub(super) fn restore(&mut self, back: impl Iterator<Item = (u64, Held)>) {
        self.entries.retain(|(_, held)| held.is_some());
        self.entries.extend(back.map(|(tag, held)| (tag, Some(held))));
        self.live = self.entries.len();
        self.entries.make_contiguous().sort_unstable_by_key(|(tag, _)| *tag);
    }

    /// Takes everything.
    pub(super) fn take_all(&mut self, into: &mut Vec<Held>) {
        into.extend(self.entries.drain(..).filter_map(|(_, held)| held));
        self.live = 0;
    }

    fn find(&self, tag: u64) -> Option<usize> {
        let first = self.entries.front()?.0;
        let guess = usize::try_from(tag.checked_sub(first)?).ok()?;
        let at = match self.entries.get(guess) {
            Some((found, _)) if *found == tag => guess,
            _ => self.entries.binary_search_by_key(&tag, |(t, _)| *t).ok()?,
        };
        self.entries[at].1.map(|_| at)
    }

    fn tidy(&mut self) {
        while let Some((_, None)) = self.entries.front() {
            self.entries.pop_front();
        }
        if self.entries.len() > 64 && self.live < self.entries.len() / 2 {
            self.entries.retain(|(_, held)| held.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{QueueId, Seq, ShardId};
    use proptest::prelude::*;

    fn held(seq: u64) -> Held {
        Held { shard: ShardId(1), queue: QueueId(1), seq: Seq(seq), consumer: None }
    }

    proptest! {
        #[test]
        fn settling_agrees_with_a_plain_list(ops in proptest::collection::vec((0u64..200, any::<bool>(), 0u8..4), 1..300)) {
            let (mut unsettled, mut plain) = (Unsettled::default(), Vec::<u64>::new());
            for (tag, multiple, kind) in ops {
                if kind > 0 {
                    let tag = unsettled.tag();
                    if kind > 1 {
                        unsettled.hold(tag, held(tag));
                        plain.push(tag);
                    }
                    continue;
                }
                let mut taken = Vec::new();
                let known = unsettled.take(tag, multiple, &mut taken);
                let taken: Vec<u64> = taken.iter().map(|h| h.seq.0).collect();
                let expected: Vec<u64> = match multiple {
                    true if tag == 0 => plain.clone(),
                    _ if !plain.contains(&tag) => vec![],
                    true => plain.iter().copied().filter(|t| *t <= tag).collect(),
                    false => vec![tag],
                };
                prop_assert_eq!(known, plain.contains(&tag) || multiple && tag == 0);
                prop_assert_eq!(&taken, &expected);
                plain.retain(|t| !expected.contains(t));
                prop_assert_eq!(unsettled.live, plain.len());
            }
        }
    }
}
