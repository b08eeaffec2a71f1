//! A hash that is the same on every node, build and run: replicas compare their states with it. Not for hash tables, not against
//! attackers. Called by the machines' `state_hash`.

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Folds words and bytes into 64 bits, order-sensitive.
#[derive(Clone, Copy, Debug)]
pub struct StateHasher(u64);

impl StateHasher {
    /// A fresh one.
    pub fn new() -> StateHasher {
        StateHasher(MULTIPLIER)
    }

    /// Fold in a number.
    pub fn word(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(MULTIPLIER);
        self.0 = (mixed ^ (mixed >> 32)).wrapping_mul(MULTIPLIER).rotate_left(23);
    }

    /// Fold in bytes, with their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    /// The result.
    pub fn finish(self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

impl Default for StateHasher {
    fn default() -> StateHasher {
        StateHasher::new()
    }
}
