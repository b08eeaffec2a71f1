//! Commands of an agent that are settled in parts, one for each shard: which handles were good, of those parts that are answered. A part
//! that nobody answers spoils its own handles only. Pure; time comes in from outside.

use super::agent::Outcome;
use crate::model::catalog::Refusal;
use std::collections::HashMap;

/// So long a command waits for all of its parts when some are committed, ms: less than another node that asked waits.
const PATIENCE_MS: u64 = 4_000;

#[derive(Debug)]
struct Joint {
    left: usize,
    good: Vec<bool>,
    refusal: Option<Refusal>,
    due_ms: u64,
}

/// Those under way.
#[derive(Debug, Default)]
pub(super) struct Joints(HashMap<u64, Joint>);

impl Joints {
    /// A command of so many parts, with so many handles.
    pub fn begin(&mut self, id: u64, parts: usize, handles: usize, now_ms: u64) {
        self.0.insert(id, Joint { left: parts, good: vec![false; handles], refusal: None, due_ms: now_ms + PATIENCE_MS });
    }

    /// The handles at these places are good: a part is committed.
    pub fn settled(&mut self, id: u64, places: &[usize]) {
        self.ended(id, None);
        if let Some(joint) = self.0.get_mut(&id) {
            places.iter().for_each(|place| joint.good[*place] = true);
        }
    }

    /// A part had no effect, or nobody knows.
    pub fn ended(&mut self, id: u64, refusal: Option<Refusal>) {
        if let Some(joint) = self.0.get_mut(&id) {
            joint.left = joint.left.saturating_sub(1);
            joint.refusal = joint.refusal.take().or(refusal);
        }
    }

    /// What came of the command, once all of its parts are answered.
    pub fn take(&mut self, id: u64) -> Option<Outcome> {
        self.0.get(&id).filter(|joint| joint.left == 0)?;
        let Joint { good, refusal, .. } = self.0.remove(&id)?;
        Some(match refusal {
            Some(refusal) if !good.contains(&true) => Outcome::Refused(refusal),
            Some(_) | None => Outcome::Settled(good),
        })
    }

    /// When the first that has something to say has waited long enough, by the steady clock.
    pub fn due_ms(&self) -> Option<u64> {
        self.0.values().filter(|joint| joint.good.contains(&true)).map(|joint| joint.due_ms).min()
    }

    /// Those that have waited long enough: what is settled of them is said, of the rest nobody knows.
    pub fn over(&mut self, now_ms: u64) -> Vec<(u64, Outcome)> {
        let over = self.0.extract_if(|_, joint| joint.due_ms <= now_ms && joint.good.contains(&true));
        over.map(|(id, joint)| (id, Outcome::Settled(joint.good))).collect()
    }
}
