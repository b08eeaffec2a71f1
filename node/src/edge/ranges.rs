//! A set of sequence numbers as disjoint inclusive ranges. Built for the ways sequence numbers come: added at the end, removed from the
//! front, one by one and often; `serving::ranges` keeps a value with each range and takes whole ranges. Used for what a consumer holds
//! and for what waits to be settled.

use crate::model::Seq;
use crate::model::link::Ranges;
use std::collections::VecDeque;

/// Disjoint, ascending, never adjacent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: VecDeque<(u64, u64)>,
    count: u64,
}

impl RangeSet {
    /// Sequence numbers in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Add one; false when it was there.
    pub fn insert(&mut self, seq: Seq) -> bool {
        let n = seq.0;
        let at = match self.ranges.back_mut() {
            None => 0,
            Some(last) if last.1.checked_add(1) == Some(n) => {
                last.1 = n;
                self.count += 1;
                return true;
            }
            Some(last) if last.1 < n => self.ranges.len(),
            Some(_) => self.ranges.partition_point(|r| r.1 < n),
        };
        if self.ranges.get(at).is_some_and(|r| r.0 <= n) {
            return false;
        }
        self.count += 1;
        let joins_left = at > 0 && self.ranges[at - 1].1 + 1 == n;
        let joins_right = self.ranges.get(at).is_some_and(|r| n + 1 == r.0);
        match (joins_left, joins_right) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = n,
            (false, true) => self.ranges[at].0 = n,
            (false, false) => self.ranges.insert(at, (n, n)),
        }
        true
    }

    /// Remove one; false when it was not there.
    pub fn remove(&mut self, seq: Seq) -> bool {
        let n = seq.0;
        let at = match self.ranges.front() {
            Some(first) if n <= first.1 => 0,
            _ => self.ranges.partition_point(|r| r.1 < n),
        };
        let Some(range) = self.ranges.get_mut(at).filter(|r| r.0 <= n) else { return false };
        self.count -= 1;
        match (range.0 == n, range.1 == n) {
            (true, true) => {
                self.ranges.remove(at);
            }
            (true, false) => range.0 = n + 1,
            (false, true) => range.1 = n - 1,
            (false, false) => {
                let tail = (n + 1, range.1);
                range.1 = n - 1;
                self.ranges.insert(at + 1, tail);
            }
        }
        true
    }

    /// Add all of `ranges`.
    pub fn extend(&mut self, ranges: &[(Seq, Seq)]) {
        for (first, last) in ranges {
            if self.ranges.back().is_none_or(|r| r.1.saturating_add(1) < first.0) {
                self.ranges.push_back((first.0, last.0));
                self.count += last.0 - first.0 + 1;
            } else {
                (first.0..=last.0).for_each(|n| {
                    self.insert(Seq(n));
                });
            }
        }
    }

    /// Those that are in `other`, too, and those that are not.
    pub fn split_by(&self, other: &RangeSet) -> (RangeSet, RangeSet) {
        let (mut both, mut rest) = (RangeSet::default(), RangeSet::default());
        let mut others = other.ranges.iter().peekable();
        for &(mut first, last) in &self.ranges {
            while first <= last {
                while others.peek().is_some_and(|r| r.1 < first) {
                    others.next();
                }
                let next = others.peek().map_or(u64::MAX, |r| r.0);
                if first < next {
                    let end = last.min(next - 1);
                    rest.push(first, end);
                    first = end + 1;
                } else if let Some(r) = others.peek() {
                    let end = last.min(r.1);
                    both.push(first, end);
                    first = end + 1;
                }
            }
        }
        (both, rest)
    }

    /// A range behind all others.
    fn push(&mut self, first: u64, last: u64) {
        self.ranges.push_back((first, last));
        self.count += last - first + 1;
    }

    /// The ranges as they travel.
    pub fn to_ranges(&self) -> Ranges {
        self.ranges.iter().map(|r| (Seq(r.0), Seq(r.1))).collect()
    }

    /// The ranges as they travel; the set is empty afterwards.
    pub fn take(&mut self) -> Ranges {
        self.count = 0;
        self.ranges.drain(..).map(|r| (Seq(r.0), Seq(r.1))).collect()
    }
}

impl FromIterator<Seq> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Seq>>(seqs: I) -> Self {
        let mut set = Self::default();
        seqs.into_iter().for_each(|seq| {
            set.insert(seq);
        });
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn model(ranges: &RangeSet) -> Vec<u64> {
        ranges.to_ranges().iter().flat_map(|r| r.0.0..=r.1.0).collect()
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in prop::collection::vec((any::<bool>(), 1u64..60), 0..200)) {
            let (mut set, mut naive) = (RangeSet::default(), BTreeSet::new());
            for (add, n) in ops {
                if add {
                    prop_assert_eq!(set.insert(Seq(n)), naive.insert(n));
                } else {
                    prop_assert_eq!(set.remove(Seq(n)), naive.remove(&n));
                }
                prop_assert_eq!(set.count(), naive.len() as u64);
            }
            prop_assert_eq!(model(&set), naive.iter().copied().collect::<Vec<_>>());
            let ranges = set.to_ranges();
            prop_assert!(ranges.windows(2).all(|w| w[0].1.0 + 1 < w[1].0.0), "adjacent ranges are joined: {:?}", ranges);
            let mut copy = RangeSet::default();
            copy.extend(&ranges);
            copy.extend(&ranges);
            prop_assert_eq!(copy.count(), set.count());
        }
    }
}
