//! Whether what a leader gave may still be handed to a client (rules 19 and 20). In process the leader's own lease says so. From another
//! node it may while the leader was heard within [`EdgeConfig::silence`]; after a longer silence the edge asks, and a leader answers only
//! under a valid lease. What comes after a silence is no proof by itself: it may have been on its way since before. Asked by connections
//! for every turn in which they take deliveries, so nothing is said while nothing waits.
//!
//! [`EdgeConfig::silence`]: crate::edge::EdgeConfig::silence

use crate::model::ports::Lease;
use parking_lot::Mutex;
use std::time::Duration;

/// Times are ms since boot. Its lock is the innermost.
#[derive(Debug)]
pub(super) struct Contact {
    silence_ms: u64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Of a leader in this process.
    lease: Option<Lease>,
    heard_ms: Option<u64>,
    /// The last question, and when it was asked, until it is answered.
    asked: Option<(u64, u64)>,
    /// Somebody waits for the leader to be heard.
    wanted: bool,
    last: u64,
}

impl Contact {
    pub fn new(silence: Duration) -> Contact {
        Contact { silence_ms: silence.as_millis() as u64, known: Mutex::default() }
    }

    /// A path to a leader, with its lease where it is in this process.
    pub fn opened(&self, lease: Option<Lease>) {
        self.known.lock().lease = lease;
    }

    /// The path is gone. A leader on another node counts for as long as it would have in silence.
    pub fn lost(&self) {
        let mut known = self.known.lock();
        if known.lease.take().is_some() {
            known.heard_ms = None;
        }
        (known.asked, known.wanted) = (None, false);
    }

    /// A leader knows this edge.
    pub fn welcomed(&self, now_ms: u64) {
        self.known.lock().heard_ms = Some(now_ms);
    }

    /// Deliveries came.
    pub fn came(&self, now_ms: u64) {
        let mut known = self.known.lock();
        if known.is_heard(now_ms, self.silence_ms) {
            known.heard_ms = Some(now_ms);
        } else {
            known.wanted = true;
        }
    }

    /// The answer to a question. False: it took so long that it says nothing of now.
    pub fn answered(&self, number: u64, now_ms: u64) -> bool {
        let mut known = self.known.lock();
        let Some((_, at)) = known.asked.take_if(|asked| asked.0 == number) else { return false };
        let in_time = now_ms.saturating_sub(at) <= self.silence_ms;
        if in_time {
            (known.heard_ms, known.wanted) = (Some(now_ms), false);
        }
        in_time
    }

    /// What the leader gave may go to clients now. Else it is wanted from now on that the leader is asked.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        let mut known = self.known.lock();
        let fresh = match &known.lease {
            Some(lease) => lease.is_valid(),
            None => known.is_heard(now_ms, self.silence_ms),
        };
        known.wanted |= !fresh;
        fresh
    }

    /// The question to ask now, if one is due.
    pub fn ask(&self, now_ms: u64) -> Option<u64> {
        let mut known = self.known.lock();
        let waits = known.asked.is_some_and(|(_, at)| now_ms.saturating_sub(at) <= self.silence_ms);
        if !known.wanted || known.lease.is_some() || waits {
            return None;
        }
        known.last += 1;
        known.asked = Some((known.last, now_ms));
        Some(known.last)
    }
}

impl Known {
    fn is_heard(&self, now_ms: u64, silence_ms: u64) -> bool {
        self.heard_ms.is_some_and(|at| now_ms.saturating_sub(at) <= silence_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_remote_leader_counts_while_it_is_heard_and_after_a_silence_only_when_it_answers() {
        let contact = Contact::new(Duration::from_millis(500));
        contact.opened(None);
        assert!(!contact.is_fresh(1000), "not welcomed yet");
        contact.welcomed(1000);
        assert_eq!((contact.is_fresh(1500), contact.is_fresh(1501)), (true, false));
        contact.came(1500);
        assert!(contact.is_fresh(2000), "what comes in time goes on");
        contact.came(2600);
        assert!(!contact.is_fresh(2600), "what comes after a silence may be old");
        assert_eq!((contact.ask(2600), contact.ask(2700)), (Some(1), None));
        assert!(contact.answered(1, 2700));
        assert!(contact.is_fresh(3200));
        assert!(!contact.is_fresh(3300));
        assert_eq!(contact.ask(3300), Some(2));
        assert!(!contact.answered(2, 3900) && !contact.is_fresh(3900), "an answer may have been on its way for as long");
        assert_eq!(contact.ask(3900), Some(3));
        contact.lost();
        assert!(!contact.answered(3, 3950) && !contact.is_fresh(3950), "the answer belongs to a path that is gone");
    }

    #[test]
    fn a_leader_in_this_process_counts_by_its_lease() {
        let valid = Arc::new(AtomicBool::new(true));
        let lease = valid.clone();
        let contact = Contact::new(Duration::from_millis(500));
        contact.opened(Some(Lease::new(move || lease.load(Ordering::SeqCst))));
        contact.welcomed(1000);
        assert!(contact.is_fresh(9000));
        valid.store(false, Ordering::SeqCst);
        assert!(!contact.is_fresh(1000), "whatever was heard");
        assert_eq!(contact.ask(1000), None, "there is nobody to ask");
        contact.lost();
        assert!(!contact.is_fresh(1000), "it leads no more");
    }
}
