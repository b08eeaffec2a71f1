//! Sequence numbers as ranges with a value each: what is checked out (by whom), what was given back, what was seen before.
//! Used by `queue`. Neighbours with the same value are one range, so a consumer's window costs one entry.

use crate::model::Seq;
use std::collections::BTreeMap;

/// Disjoint inclusive ranges, each with a value.
#[derive(Clone, Debug)]
pub(super) struct RangeMap<T> {
    map: BTreeMap<u64, (u64, T)>,
    count: u64,
}

/// A set of sequence numbers.
pub(super) type RangeSet = RangeMap<()>;

impl<T> Default for RangeMap<T> {
    fn default() -> Self {
        RangeMap { map: BTreeMap::new(), count: 0 }
    }
}

impl<T: Copy + Eq> RangeMap<T> {
    /// Sequence numbers in it.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The lowest range.
    pub fn first(&self) -> Option<(Seq, Seq)> {
        self.map.first_key_value().map(|(first, (last, _))| (Seq(*first), Seq(*last)))
    }

    /// The highest number in it; 0 when empty.
    pub fn highest(&self) -> Seq {
        Seq(self.map.last_key_value().map_or(0, |(_, (last, _))| *last))
    }

    pub fn contains(&self, seq: Seq) -> bool {
        self.get(seq).is_some()
    }

    /// The value at `seq`.
    pub fn get(&self, seq: Seq) -> Option<T> {
        self.map.range(..=seq.0).next_back().filter(|(_, (last, _))| *last >= seq.0).map(|(_, (_, value))| *value)
    }

    /// All ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (Seq, Seq, T)> + '_ {
        self.map.iter().map(|(first, (last, value))| (Seq(*first), Seq(*last), *value))
    }

    /// Puts a range in, over whatever was there.
    pub fn insert(&mut self, first: Seq, last: Seq, value: T) {
        if first > last {
            return;
        }
        if let Some(mut top) = self.map.last_entry() {
            let (end, same) = (top.get().0, top.get().1 == value);
            if end < first.0 {
                self.count += last.0 - first.0 + 1;
                if same && end + 1 == first.0 {
                    top.get_mut().0 = last.0;
                } else {
                    self.map.insert(first.0, (last.0, value));
                }
                return;
            }
        }
        self.remove(first, last, |_, _, _| {});
        self.insert_merged(first.0, last.0, value);
    }

    /// Puts in what is not covered yet; what is keeps its value.
    pub fn insert_free(&mut self, first: Seq, last: Seq, value: T) {
        for (gap_first, gap_last) in self.gaps(first, last) {
            self.insert(gap_first, gap_last, value);
        }
    }

    /// Takes a range out; `each` sees the pieces that were there (in no useful order).
    pub fn remove(&mut self, first: Seq, last: Seq, mut each: impl FnMut(Seq, Seq, T)) {
        while let Some((start, end, value)) = self.overlapping(first.0, last.0) {
            self.map.remove(&start);
            if start < first.0 {
                self.map.insert(start, (first.0 - 1, value));
            }
            if end > last.0 {
                self.map.insert(last.0 + 1, (end, value));
            }
            let (cut_first, cut_last) = (start.max(first.0), end.min(last.0));
            self.count -= cut_last - cut_first + 1;
            each(Seq(cut_first), Seq(cut_last), value);
        }
    }

    /// Those parts of a range that have this value, ascending.
    pub fn of(&self, first: Seq, last: Seq, value: T) -> Vec<(Seq, Seq)> {
        let start = self.map.range(..=first.0).next_back().map_or(first.0, |(start, _)| *start);
        if first > last {
            return Vec::new();
        }
        self.map
            .range(start..=last.0)
            .filter(|(_, (end, held))| *held == value && *end >= first.0)
            .map(|(start, (end, _))| (Seq((*start).max(first.0)), Seq((*end).min(last.0))))
            .collect()
    }

    /// Takes out those parts of a range that have this value; returns them, ascending.
    pub fn remove_of(&mut self, first: Seq, last: Seq, value: T) -> Vec<(Seq, Seq)> {
        let pieces = self.of(first, last, value);
        pieces.iter().for_each(|(a, b)| self.remove(*a, *b, |_, _, _| {}));
        pieces
    }

    /// Takes out everything with this value; returns it, ascending.
    pub fn remove_all_of(&mut self, value: T) -> Vec<(Seq, Seq)> {
        self.remove_of(Seq(0), Seq(u64::MAX), value)
    }

    /// What is not covered between `first` and `last`, ascending.
    pub fn gaps(&self, first: Seq, last: Seq) -> Vec<(Seq, Seq)> {
        let mut gaps = Vec::new();
        let mut at = first.0;
        if let Some((_, (end, _))) = self.map.range(..=first.0).next_back()
            && *end >= first.0
        {
            at = end.saturating_add(1);
        }
        for (start, (end, _)) in self.map.range(first.0..).take_while(|(start, _)| **start <= last.0) {
            if *start > at {
                gaps.push((Seq(at), Seq(start - 1)));
            }
            at = at.max(end.saturating_add(1));
        }
        if at <= last.0 {
            gaps.push((Seq(at), last));
        }
        gaps
    }

    fn overlapping(&self, first: u64, last: u64) -> Option<(u64, u64, T)> {
        let (start, (end, value)) = self.map.range(..=last).next_back()?;
        (*end >= first && first <= last).then_some((*start, *end, *value))
    }

    /// The range is free; joins it with equal neighbours.
    fn insert_merged(&mut self, mut first: u64, mut last: u64, value: T) {
        self.count += last - first + 1;
        if let Some((start, (end, held))) = self.map.range(..first).next_back().map(|(s, v)| (*s, *v))
            && end + 1 == first
            && held == value
        {
            self.map.remove(&start);
            first = start;
        }
        if let Some((end, held)) = last.checked_add(1).and_then(|next| self.map.get(&next).copied())
            && held == value
        {
            self.map.remove(&(last + 1));
            last = end;
        }
        self.map.insert(first, (last, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Change {
        Insert(u64, u64, u8),
        InsertFree(u64, u64, u8),
        Remove(u64, u64),
        RemoveOf(u64, u64, u8),
    }

    fn change() -> impl Strategy<Value = Change> {
        let range = (0..40u64, 0..12u64).prop_map(|(a, n)| (a, a + n));
        prop_oneof![
            (range.clone(), 0..3u8).prop_map(|((a, b), v)| Change::Insert(a, b, v)),
            (range.clone(), 0..3u8).prop_map(|((a, b), v)| Change::InsertFree(a, b, v)),
            range.clone().prop_map(|(a, b)| Change::Remove(a, b)),
            (range, 0..3u8).prop_map(|((a, b), v)| Change::RemoveOf(a, b, v)),
        ]
    }

    proptest! {
        #[test]
        fn ranges_equal_a_plain_map(changes in prop::collection::vec(change(), 0..60)) {
            let mut ranges = RangeMap::default();
            let mut plain: BTreeMap<u64, u8> = BTreeMap::new();
            for change in changes {
                match change {
                    Change::Insert(a, b, v) => { ranges.insert(Seq(a), Seq(b), v); (a..=b).for_each(|s| { plain.insert(s, v); }); }
                    Change::InsertFree(a, b, v) => { ranges.insert_free(Seq(a), Seq(b), v); (a..=b).for_each(|s| { plain.entry(s).or_insert(v); }); }
                    Change::Remove(a, b) => { ranges.remove(Seq(a), Seq(b), |_, _, _| {}); (a..=b).for_each(|s| { plain.remove(&s); }); }
                    Change::RemoveOf(a, b, v) => { ranges.remove_of(Seq(a), Seq(b), v); plain.retain(|s, held| *s < a || *s > b || *held != v); }
                }
                let flat: Vec<(u64, u8)> = ranges.ranges().flat_map(|(a, b, v)| (a.0..=b.0).map(move |s| (s, v))).collect();
                prop_assert_eq!(flat, plain.iter().map(|(s, v)| (*s, *v)).collect::<Vec<_>>());
                prop_assert_eq!(ranges.count(), plain.len() as u64);
                let free: Vec<u64> = ranges.gaps(Seq(3), Seq(30)).iter().flat_map(|(a, b)| a.0..=b.0).collect();
                prop_assert_eq!(free, (3..=30).filter(|s| !plain.contains_key(s)).collect::<Vec<_>>());
            }
        }
    }
}
