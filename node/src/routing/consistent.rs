//! Consistent-hash exchange: one target per message, by a hash of the routing key, of a header or of a property; the binding key is
//! the target's weight. Each target draws a number from the hash and its own id and the best number wins (weighted rendezvous), so a
//! target that comes or goes moves no message between the others. A target's first binding counts, as in RabbitMQ.

use super::{HashProperty, Subject, hash};
use crate::model::catalog::{Table, Value};
use std::collections::BTreeMap;

const HASH_HEADER: &str = "hash-header";
const HASH_PROPERTY: &str = "hash-property";

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Basis {
    Key,
    Header(String),
    Property(HashProperty),
}

/// Targets by weight.
#[derive(Clone, Debug)]
pub struct ConsistentHash<T> {
    basis: Basis,
    /// By target: weight by binding id.
    targets: BTreeMap<T, BTreeMap<u64, u32>>,
}

/// Whether an exchange can be declared with these arguments; the text says why not.
pub fn check_hash_arguments(arguments: &Table) -> Result<(), String> {
    match (arguments.get(HASH_HEADER), arguments.get(HASH_PROPERTY)) {
        (Some(_), Some(_)) => Err("hash-header and hash-property are mutually exclusive".to_owned()),
        (None, Some(Value::Text(name))) if HashProperty::of_name(name).is_none() => {
            Err(format!("Unsupported property: {}", String::from_utf8_lossy(name)))
        }
        (None | Some(Value::Text(_)), None | Some(Value::Text(_))) => Ok(()),
        (Some(_), None) => Err(format!("invalid arg '{HASH_HEADER}': expected a long string")),
        (None, Some(_)) => Err(format!("invalid arg '{HASH_PROPERTY}': expected a long string")),
    }
}

/// The weight that a binding key says; the text says why it does not.
pub fn weight(key: &[u8]) -> Result<u32, String> {
    let number = str::from_utf8(key).ok().and_then(|text| text.parse::<i64>().ok());
    match number {
        None => Err(format!("The binding key must be an integer: <<\"{}\">>", String::from_utf8_lossy(key))),
        Some(n) if n < 1 => Err("The binding key must be greater than 0".to_owned()),
        Some(n) => Ok(u32::try_from(n).unwrap_or(u32::MAX)),
    }
}

fn basis(arguments: &Table) -> Basis {
    match (arguments.get(HASH_HEADER), arguments.get(HASH_PROPERTY)) {
        (Some(Value::Text(name)), _) => Basis::Header(String::from_utf8_lossy(name).into_owned()),
        (_, Some(Value::Text(name))) => HashProperty::of_name(name).map_or(Basis::Key, Basis::Property),
        (_, _) => Basis::Key,
    }
}

impl<T: Ord> ConsistentHash<T> {
    /// For an exchange with these arguments; what `check_hash_arguments` refuses counts as absent.
    pub fn new(arguments: &Table) -> ConsistentHash<T> {
        ConsistentHash { basis: basis(arguments), targets: BTreeMap::new() }
    }

    /// Bind; a key that is no weight counts as 1.
    pub fn insert(&mut self, id: u64, key: &[u8], target: T) {
        self.targets.entry(target).or_default().insert(id, weight(key).unwrap_or(1));
    }

    /// Unbind.
    pub fn remove(&mut self, id: u64, target: &T) {
        if let Some(weights) = self.targets.get_mut(target) {
            weights.remove(&id);
            if weights.is_empty() {
                self.targets.remove(target);
            }
        }
    }

    /// Visits one target.
    pub fn route(&self, key: &[u8], subject: &dyn Subject, visit: &mut dyn FnMut(&T)) {
        let hash = match &self.basis {
            Basis::Key => hash::of_bytes(key),
            Basis::Header(name) => subject.headers().get(name).map_or(0, hash::of_value),
            Basis::Property(property) => subject.property(*property).map_or(0, hash::of_bytes),
        };
        let draws = self.targets.iter().filter_map(|(target, weights)| {
            let (id, weight) = weights.first_key_value()?;
            Some((draw(hash, *id, *weight), target))
        });
        if let Some((_, target)) = draws.min_by(|a, b| a.0.total_cmp(&b.0)) {
            visit(target);
        }
    }
}

/// Exponentially distributed with the weight as rate: the smallest of several is each one's in proportion to its weight.
fn draw(hash: u64, id: u64, weight: u32) -> f64 {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    let uniform = ((hash::join(hash, id) >> 11) as f64 + 0.5) * UNIT;
    -uniform.ln() / f64::from(weight)
}
