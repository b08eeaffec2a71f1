//! Fanout exchange: every binding, whatever the key.

use super::Targets;

/// All targets.
#[derive(Clone, Debug)]
pub struct Fanout<T>(Targets<T>);

impl<T> Default for Fanout<T> {
    fn default() -> Fanout<T> {
        Fanout(Targets::default())
    }
}

impl<T: Ord> Fanout<T> {
    /// Bind.
    pub fn insert(&mut self, target: T) {
        self.0.insert(target);
    }

    /// Unbind.
    pub fn remove(&mut self, target: &T) {
        self.0.remove(target);
    }

    /// Visits all targets.
    pub fn route(&self, visit: &mut dyn FnMut(&T)) {
        self.0.visit(visit);
    }
}
