//! Exchanges that pick one of their targets whatever the binding keys are: x-random, x-local-random, x-modulus-hash.

use super::{Targets, hash};

/// All targets.
#[derive(Clone, Debug)]
pub struct Pick<T>(Targets<T>);

impl<T> Default for Pick<T> {
    fn default() -> Pick<T> {
        Pick(Targets::default())
    }
}

impl<T: Ord> Pick<T> {
    /// Bind.
    pub fn insert(&mut self, target: T) {
        self.0.insert(target);
    }

    /// Unbind.
    pub fn remove(&mut self, target: &T) {
        self.0.remove(target);
    }

    /// Visits the one that the key's hash falls on.
    pub fn by_key(&self, key: &[u8], visit: &mut dyn FnMut(&T)) {
        self.any(hash::of_bytes(key), &|_| true, visit);
    }

    /// Visits one of those that are `near`, `number` says which.
    pub fn any(&self, number: u64, near: &dyn Fn(&T) -> bool, visit: &mut dyn FnMut(&T)) {
        let count = self.0.iter().filter(|t| near(t)).count() as u64;
        let picked = number.checked_rem(count).and_then(|at| self.0.iter().filter(|t| near(t)).nth(at as usize));
        picked.into_iter().for_each(visit);
    }
}
