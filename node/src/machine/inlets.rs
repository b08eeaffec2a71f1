//! Which numbered copies a shard has taken from each other shard (rule 25): each number once, in any order. Numbers have no gaps that
//! stay, so what is kept is a range per source, and one more for each copy that a full queue refused. Called by `shard`.

use super::codec::{Reader, Writer};
use super::shard::RestoreError;
use crate::model::ShardId;
use crate::model::letters::Source;
use std::collections::BTreeMap;

/// What was taken from one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Inlet {
    epoch: u64,
    /// Inclusive, ascending, not touching.
    taken: Vec<(u64, u64)>,
}

impl Inlet {
    fn has(&self, number: u64) -> bool {
        let at = self.taken.partition_point(|range| range.1 < number);
        self.taken.get(at).is_some_and(|range| range.0 <= number)
    }

    fn put(&mut self, number: u64) {
        let at = self.taken.partition_point(|range| range.1 < number);
        let before = at.checked_sub(1).filter(|at| self.taken[*at].1 + 1 == number);
        let behind = self.taken.get(at).map(|range| range.0);
        match (before, behind) {
            (_, Some(first)) if first <= number => {}
            (Some(before), Some(first)) if first == number + 1 => self.taken[before].1 = self.taken.remove(at).1,
            (Some(before), _) => self.taken[before].1 = number,
            (None, Some(first)) if first == number + 1 => self.taken[at].0 = number,
            (None, _) => self.taken.insert(at, (number, number)),
        }
    }
}

/// All sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inlets(BTreeMap<ShardId, Inlet>);

impl Inlets {
    /// Whether the copy for the `n`th queue of an enqueue is to be taken: it was not, and its source lives.
    pub fn wants(&self, source: Source, n: u64) -> bool {
        match self.0.get(&source.shard) {
            None => true,
            Some(inlet) if inlet.epoch == source.epoch => !inlet.has(source.number + n),
            Some(inlet) => inlet.epoch < source.epoch,
        }
    }

    /// It was taken.
    pub fn took(&mut self, source: Source, n: u64) {
        let inlet = self.0.entry(source.shard).or_default();
        if inlet.epoch != source.epoch {
            *inlet = Inlet { epoch: source.epoch, taken: Vec::new() };
        }
        inlet.put(source.number + n);
    }

    /// Nothing ever came.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// inlets := n u16 | (source shard u16, epoch u64, n u32, (first u64, last u64)*)*
    pub fn encode(&self, out: &mut Writer) {
        out.u16(self.0.len() as u16);
        for (shard, inlet) in &self.0 {
            out.u16(shard.0);
            out.u64(inlet.epoch);
            out.u32(inlet.taken.len() as u32);
            for (first, last) in &inlet.taken {
                out.u64(*first);
                out.u64(*last);
            }
        }
    }

    /// The way back.
    pub fn decode(input: &mut Reader<'_>) -> Result<Inlets, RestoreError> {
        let mut inlets = Inlets::default();
        for _ in 0..input.u16()? {
            let (shard, epoch, n) = (ShardId(input.u16()?), input.u64()?, input.u32()?);
            let taken = (0..n).map(|_| Ok((input.u64()?, input.u64()?))).collect::<Result<_, RestoreError>>()?;
            inlets.0.insert(shard, Inlet { epoch, taken });
        }
        Ok(inlets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_number_is_known_once_it_was_taken_and_ranges_do_not_touch(numbers in prop::collection::vec(1u64..40, 0..60)) {
            let (mut inlet, mut naive) = (Inlet::default(), BTreeSet::new());
            for number in numbers {
                inlet.put(number);
                naive.insert(number);
                for n in 0..42 {
                    prop_assert_eq!(inlet.has(n), naive.contains(&n), "{} in {:?}", n, inlet);
                }
                prop_assert!(inlet.taken.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", inlet);
            }
        }
    }

    #[test]
    fn another_process_of_a_shard_in_memory_counts_anew_and_an_older_one_no_more() {
        let from = |epoch| Source { shard: ShardId(9), epoch, number: 1 };
        let mut inlets = Inlets::default();
        inlets.took(from(5), 0);
        assert!(!inlets.wants(from(5), 0) && inlets.wants(from(5), 1));
        assert!(inlets.wants(from(6), 0) && !inlets.wants(from(4), 3));
        inlets.took(from(6), 0);
        assert!(!inlets.wants(from(6), 0) && inlets.wants(from(6), 1));
    }
}
