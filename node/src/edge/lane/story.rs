//! What a lane is doing, in words: for the reader of a test in which somebody got no answer.

use super::Lane;
use std::time::{Duration, Instant};

/// A lane whose lock is held for longer is stuck.
const LOCKED: Duration = Duration::from_secs(1);

impl Lane {
    /// Its state in one line.
    pub fn story(&self) -> String {
        let shard = self.shard;
        let Some(state) = self.state.try_lock_for(LOCKED) else { return format!("shard {shard}: its lock is held") };
        let now = Instant::now();
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_millis());
        format!(
            "shard {shard}: leader {:?}, before {:?}, ms since the last tick {:?}, without a welcome {:?}; stuck: {}; {}",
            state.leader,
            state.former,
            age(state.ticked),
            age(state.unreachable),
            state.stuck,
            state.batches.story(now),
        )
    }
}
