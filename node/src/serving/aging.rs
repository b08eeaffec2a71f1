//! The age of streams that nobody appends to: the machine drops segments that are too old with every entry, by the entry's time. Where no
//! entry comes, the leader proposes one that says nothing but the time. Called by `server` and `proposing`.

use super::server::ShardServer;
use super::tending::{ALARM_MAX, UNSURE};
use std::time::Duration;
use tokio::time::Instant;

/// When the shard's streams are looked at again.
#[derive(Debug, Default)]
pub(super) struct Ages {
    /// Something came or went: look now.
    pub look: bool,
    /// Look then.
    pub at: Option<Instant>,
    /// An entry is to say what time it is.
    pub wanted: bool,
    /// One does.
    pub in_flight: bool,
}

impl ShardServer {
    /// Is a segment too old, and when will the next one be? Costs nothing while nothing moves.
    pub(super) fn look_at_ages(&mut self) {
        let rings = self.ages.at.is_some_and(|at| at <= Instant::now());
        if self.ages.in_flight || self.ages.wanted || !(rings || self.ages.look) {
            return;
        }
        (self.ages.look, self.ages.at) = (false, None);
        if self.lead.is_none() {
            return;
        }
        let Some(ends_ms) = self.machine.lock().streams_end_ms() else { return };
        let later = |wait: Duration| Some(Instant::now() + wait.min(ALARM_MAX));
        match self.end_ms() {
            None => self.ages.at = later(UNSURE),
            Some(now_ms) if now_ms > ends_ms => self.ages.wanted = true,
            Some(now_ms) => self.ages.at = later(Duration::from_millis(ends_ms + 1 - now_ms)),
        }
    }

    /// The entry that said what time it is has its outcome.
    pub(super) fn aged(&mut self) {
        self.ages.in_flight = false;
        self.ages.look = true;
    }
}
