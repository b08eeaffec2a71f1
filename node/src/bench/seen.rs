//! Sets of message numbers as bits: what a producer got confirmed, what the consumers saw. Exact, an eighth of a byte per message.

/// Numbers from 1 on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    words: Vec<u64>,
    count: u64,
}

impl Seen {
    /// Add; false if it was there.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1u64 << (number % 64));
        if word >= self.words.len() {
            self.words.resize((word + 1).next_power_of_two().max(64), 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(fresh);
        fresh
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many of these the other has not.
    pub(super) fn missing_in(&self, other: &Seen) -> u64 {
        let word = |at: usize| other.words.get(at).copied().unwrap_or(0);
        self.words.iter().enumerate().map(|(at, mine)| u64::from((mine & !word(at)).count_ones())).sum()
    }

    /// Take in all of the other; how many were in both.
    pub(super) fn merge(&mut self, other: &Seen) -> u64 {
        if other.words.len() > self.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        let mut both = 0;
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            both += u64::from((*mine & theirs).count_ones());
            *mine |= theirs;
        }
        self.count += other.count - both;
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_came_twice_is_counted() {
        let (mut sent, mut one, mut two) = (Seen::default(), Seen::default(), Seen::default());
        (1..=1000).for_each(|n| assert!(sent.insert(n)));
        (1..=600).for_each(|n| assert!(one.insert(n)));
        (591..=990).for_each(|n| assert!(two.insert(n)));
        assert!(!one.insert(600));
        assert_eq!(one.merge(&two), 10);
        assert_eq!((one.count(), sent.missing_in(&one)), (990, 10));
        assert_eq!(one.missing_in(&sent), 0);
    }
}
