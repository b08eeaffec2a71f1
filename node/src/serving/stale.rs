//! The dead edge comes back (rule 19): what its clients held went to others when its session ended, and their verdicts on it may come
//! still. An acknowledgement stands, for somebody has dealt with the message. A reject, and a failed delivery where those are counted,
//! stand only for what the session holds at this moment. Called by `proposing` and `requests`.

use super::queue::QueueState;
use super::server::ShardServer;
use crate::model::entry::keep_rejects;
use crate::model::link::{Batch, Ranges};
use crate::model::{Seq, SessionId};

impl ShardServer {
    /// A batch with rejects is about to be proposed: it rejects nothing that its session does not hold. One that was applied before
    /// loses nothing by that, for the machine passes it over.
    pub(super) fn strike_stale(&mut self, batch: &mut Batch) {
        let (session, queues) = (batch.session, &mut self.queues);
        let kept =
            keep_rejects(&batch.ops, |queue, ranges| queues.get_mut(&queue).map_or_else(Ranges::new, |q| q.held_of(session, ranges)));
        if let Some(ops) = kept {
            tracing::debug!(shard = %self.config.shard, %session, seq = %batch.seq, "rejects of what the edge does not hold are left out");
            batch.ops = ops;
        }
    }

    /// Which of these failed deliveries count, and which do not. A session that has not said yet what it holds speaks of what a former
    /// leader gave it.
    pub(super) fn split_returned(&self, session: SessionId, state: &QueueState, ranges: &Ranges) -> (Ranges, Ranges) {
        let is_resolved = self.sessions.get(&session).is_some_and(|s| s.resolved);
        let (mut counted, mut stale) = (Ranges::new(), Ranges::new());
        for (first, last) in ranges.iter().filter(|(first, last)| first <= last) {
            let mut held = state.checked.of(*first, *last, session);
            if !is_resolved {
                held.extend(state.checked.gaps(*first, *last));
                held.sort_unstable();
            }
            let mut next = *first;
            for (a, b) in &held {
                if next < *a {
                    stale.push((next, Seq(a.0 - 1)));
                }
                next = Seq(b.0 + 1);
            }
            if next <= *last {
                stale.push((next, *last));
            }
            counted.append(&mut held);
        }
        (counted, stale)
    }
}

impl QueueState {
    /// What of these the session holds; it claims none of the others any more.
    fn held_of(&mut self, session: SessionId, ranges: &Ranges) -> Ranges {
        let held: Ranges = ranges.iter().flat_map(|(first, last)| self.checked.of(*first, *last, session)).collect();
        self.disclaim(session, ranges);
        held
    }
}
