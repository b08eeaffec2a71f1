//! Randomness of a test: one seed, printed, and the variable that repeats it.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A seeded generator.
#[derive(Debug)]
pub struct Chance {
    seed: u64,
    rng: StdRng,
}

impl Chance {
    /// `WARREN_TEST_SEED` or a new seed; printed, so that a failed test shows it.
    pub fn new(test: &str) -> Chance {
        let seed = std::env::var("WARREN_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
        println!("{test}: seed {seed}; again with WARREN_TEST_SEED={seed} cargo test -p warren-tests {test}");
        Chance::of(seed)
    }

    /// With this seed.
    pub fn of(seed: u64) -> Chance {
        Chance { seed, rng: StdRng::seed_from_u64(seed) }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A number in 0..`end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    /// A number in `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        self.rng.random_range(from..=to)
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.rng.fill(bytes.as_mut_slice());
        bytes
    }
}
