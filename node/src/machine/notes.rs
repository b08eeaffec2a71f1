//! What is known of single messages in a chunk of extents: when their time ends, and how large their bodies are where those of an extent
//! differ. Kept as steps: a value holds from its message on until the next step, so messages alike cost nothing. What is known of extents
//! that ended goes with them. Called by `extents`.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::shard::RestoreError;

/// What an enqueue notes of its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// When it expires, ms since the epoch; [`AT_ONCE`]: unless a consumer takes it now; 0: never.
    pub deadline_ms: u64,
    /// Bytes of its body.
    pub body_bytes: u32,
}

/// A deadline that ended when the message came.
pub const AT_ONCE: u64 = 1;

/// Notes of one chunk, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    /// Hold across extents; before the first one: never.
    deadlines: Vec<(u64, u64)>,
    /// Of extents with bodies of several sizes; each has a step at its first message.
    sizes: Vec<(u64, u32)>,
}

/// The first step behind `seq`.
fn behind<T>(steps: &[(u64, T)], seq: u64) -> usize {
    steps.partition_point(|step| step.0 <= seq)
}

/// The value at `seq`, where one holds.
fn at<T: Copy>(steps: &[(u64, T)], seq: u64) -> Option<(u64, T)> {
    behind(steps, seq).checked_sub(1).map(|at| steps[at])
}

impl Notes {
    /// There is nothing in them.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty() && self.sizes.is_empty()
    }

    /// The deadline of the next message, beyond all noted ones.
    pub fn add_deadline(&mut self, seq: u64, deadline_ms: u64) {
        self.deadlines.truncate(self.deadlines.partition_point(|step| step.0 < seq));
        if deadline_ms != self.deadlines.last().map_or(0, |step| step.1) {
            self.deadlines.push((seq, deadline_ms));
        }
    }

    /// The next message of the extent that begins at `first` has a body of another size than the `size` of those before it.
    pub fn add_size(&mut self, first: u64, size: u32, seq: u64, body_bytes: u32) {
        if self.sizes_from(first).is_empty() {
            self.sizes.push((first, size));
        }
        if self.sizes.last().is_none_or(|step| step.1 != body_bytes) {
            self.sizes.push((seq, body_bytes));
        }
    }

    /// Steps of the sizes of an extent; none: its bodies are alike.
    pub fn sizes(&self, first: u64, last: u64) -> &[(u64, u32)] {
        let from = self.sizes_from(first);
        &from[..behind(from, last)]
    }

    fn sizes_from(&self, first: u64) -> &[(u64, u32)] {
        &self.sizes[self.sizes.partition_point(|step| step.0 < first)..]
    }

    /// The extents with these messages ended.
    pub fn forget(&mut self, first: u64, last: u64) {
        let from = self.sizes.partition_point(|step| step.0 < first);
        self.sizes.drain(from..behind(&self.sizes, last));
        let (from, to) = (self.deadlines.partition_point(|step| step.0 < first), behind(&self.deadlines, last));
        if from == to {
            return;
        }
        let (before, carried) = (from.checked_sub(1).map_or(0, |at| self.deadlines[at].1), self.deadlines[to - 1].1);
        let ends_here = self.deadlines.get(to).is_some_and(|step| step.0 == last + 1);
        let kept = (!ends_here && carried != before).then_some((last + 1, carried));
        self.deadlines.splice(from..to, kept);
        if self.deadlines.get(from).is_some_and(|step| step.1 == before) {
            self.deadlines.remove(from);
        }
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.deadlines.len() + self.sizes.len()
    }

    /// A message's deadline, and the first later message with another.
    pub fn deadline(&self, seq: u64) -> (u64, u64) {
        let until = self.deadlines.get(behind(&self.deadlines, seq)).map_or(u64::MAX, |step| step.0);
        (at(&self.deadlines, seq).map_or(0, |step| step.1), until)
    }

    /// Some message has a deadline.
    pub fn is_timed(&self) -> bool {
        self.deadlines.iter().any(|step| step.1 > 0)
    }

    /// notes := n u32 | (seq u64, deadline u64)* | n u32 | (seq u64, bytes u32)*
    pub fn encode(&self, out: &mut Writer) {
        out.u32(self.deadlines.len() as u32);
        for (seq, deadline) in &self.deadlines {
            out.u64(*seq);
            out.u64(*deadline);
        }
        out.u32(self.sizes.len() as u32);
        for (seq, size) in &self.sizes {
            out.u64(*seq);
            out.u32(*size);
        }
    }

    /// The way back.
    pub fn decode(input: &mut Reader<'_>) -> Result<Notes, RestoreError> {
        let mut notes = Notes::default();
        for _ in 0..input.u32()? {
            notes.deadlines.push((input.u64()?, input.u64()?));
        }
        for _ in 0..input.u32()? {
            notes.sizes.push((input.u64()?, input.u32()?));
        }
        Ok(notes)
    }

    /// Folds into a state hash.
    pub fn hash(&self, hasher: &mut StateHasher) {
        self.deadlines.iter().flat_map(|step| [step.0, step.1]).for_each(|word| hasher.word(word));
        self.sizes.iter().flat_map(|step| [step.0, u64::from(step.1)]).for_each(|word| hasher.word(word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Extents of three messages end in any order; what is left is told as before, by no more steps than there are messages.
        #[test]
        fn what_ended_is_forgotten_and_the_rest_is_not(
            deadlines in prop::collection::vec(0u64..3, 3..40),
            ends in prop::collection::vec(0usize..13, 0..13),
        ) {
            let mut notes = Notes::default();
            for (seq, deadline) in (1..).zip(&deadlines) {
                notes.add_deadline(seq, *deadline);
            }
            let extents = deadlines.len() / 3;
            let mut gone = vec![false; deadlines.len() + 1];
            for end in ends.into_iter().filter(|end| *end < extents) {
                let (first, last) = (3 * end as u64 + 1, 3 * end as u64 + 3);
                notes.forget(first, last);
                (first..=last).for_each(|seq| gone[seq as usize] = true);
                for (seq, deadline) in (1..).zip(&deadlines).filter(|(seq, _)| !gone[*seq as usize]) {
                    prop_assert_eq!(notes.deadline(seq).0, *deadline, "{} in {:?}", seq, notes);
                }
            }
            let live = gone.iter().skip(1).filter(|gone| !**gone).count();
            prop_assert!(notes.steps() <= live + extents + 1, "{:?}", notes);
        }
    }
}
