//! A set of targets that counts how often each was bound. Called by the exchange kinds.

use std::collections::BTreeMap;

/// Targets in order, each once.
#[derive(Clone, Debug)]
pub struct Targets<T>(BTreeMap<T, u32>);

impl<T> Default for Targets<T> {
    fn default() -> Targets<T> {
        Targets(BTreeMap::new())
    }
}

impl<T: Ord> Targets<T> {
    /// Bound once more.
    pub fn insert(&mut self, target: T) {
        *self.0.entry(target).or_insert(0) += 1;
    }

    /// Bound once less.
    pub fn remove(&mut self, target: &T) {
        if let Some(count) = self.0.get_mut(target) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(target);
            }
        }
    }

    /// None left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each once, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }

    /// Each once.
    pub fn visit(&self, visit: &mut dyn FnMut(&T)) {
        self.0.keys().for_each(visit);
    }
}
