//! Direct exchange: the routing key equals the binding key. One hash lookup, no allocation.

use super::Targets;
use hashbrown::HashMap;

/// Targets by binding key.
#[derive(Clone, Debug)]
pub struct Direct<T>(HashMap<Box<[u8]>, Targets<T>>);

impl<T> Default for Direct<T> {
    fn default() -> Direct<T> {
        Direct(HashMap::new())
    }
}

impl<T: Ord> Direct<T> {
    /// Bind.
    pub fn insert(&mut self, key: &[u8], target: T) {
        self.0.entry(key.into()).or_default().insert(target);
    }

    /// Unbind.
    pub fn remove(&mut self, key: &[u8], target: &T) {
        if let Some(targets) = self.0.get_mut(key) {
            targets.remove(target);
            if targets.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// Visits the targets of `key`.
    pub fn route(&self, key: &[u8], visit: &mut dyn FnMut(&T)) {
        if let Some(targets) = self.0.get(key) {
            targets.visit(visit);
        }
    }
}
