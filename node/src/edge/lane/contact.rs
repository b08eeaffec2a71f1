//! Whether what a leader gave may still be handed to a client (rules 19 and 20). In process the leader's own lease says so. From another
//! node it may while its last word given under its lease, a welcome or the answer to a question, is no older than
//! [`EdgeConfig::silence`]. Deliveries are no such word: a link that is slow enough brings those of a leader that was deposed long ago. They
//! are a reason to ask: early enough, while they flow, that the answer is here before the silence is over. After a longer one they wait
//! for it. Asked by connections for every turn in which they take deliveries, so nothing is said while nothing waits.
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
    /// The last word under a lease of one elsewhere.
    heard_ms: Option<u64>,
    /// The last question, and when it was asked, until it is answered.
    asked: Option<(u64, u64)>,
    /// The leader is to be asked.
    wanted: bool,
    /// Somebody was told to wait for the answer.
    waited_for: bool,
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

    /// Deliveries came: half the time before they would have to wait the leader is asked.
    pub fn came(&self, now_ms: u64) {
        let mut known = self.known.lock();
        known.wanted |= !known.is_heard(now_ms, self.silence_ms / 2);
    }

    /// The answer to a question; whether somebody waits for it. One that took so long that it says nothing of now counts as none.
    pub fn answered(&self, number: u64, now_ms: u64) -> bool {
        let mut known = self.known.lock();
        let Some((_, at)) = known.asked.take_if(|asked| asked.0 == number) else { return false };
        if now_ms.saturating_sub(at) > self.silence_ms {
            return false;
        }
        (known.heard_ms, known.wanted) = (Some(now_ms), false);
        std::mem::take(&mut known.waited_for)
    }

    /// What the leader gave may go to clients now. Else it is wanted from now on that the leader is asked.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        let mut known = self.known.lock();
        let fresh = match &known.lease {
            Some(lease) => lease.is_valid(),
            None => known.is_heard(now_ms, self.silence_ms),
        };
        known.wanted |= !fresh;
        known.waited_for |= !fresh;
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
    fn a_remote_leader_counts_for_a_while_after_each_word_under_its_lease() {
        let contact = Contact::new(Duration::from_millis(500));
        contact.opened(None);
        assert!(!contact.is_fresh(1000), "not welcomed yet");
        contact.welcomed(1000);
        assert_eq!((contact.is_fresh(1500), contact.is_fresh(1501)), (true, false));
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

    /// A link that drips: what arrives was sent long ago, by a leader that others have followed since.
    #[test]
    fn deliveries_are_no_proof_that_their_leader_still_leads_however_they_flow() {
        let contact = Contact::new(Duration::from_millis(500));
        contact.opened(None);
        contact.welcomed(1000);
        for now in (1000..3000).step_by(100) {
            contact.came(now);
            assert_eq!(contact.is_fresh(now), now <= 1500, "at {now}");
            contact.ask(now);
        }
    }

    #[test]
    fn while_deliveries_flow_the_leader_is_asked_early_enough_that_none_waits() {
        let contact = Contact::new(Duration::from_millis(500));
        contact.opened(None);
        contact.welcomed(1000);
        let mut questions = 0;
        for now in (1000..11_000).step_by(10) {
            contact.came(now);
            assert!(contact.is_fresh(now), "at {now}");
            if let Some(number) = contact.ask(now) {
                questions += 1;
                assert!(!contact.answered(number, now + 9), "nobody waits for it");
            }
        }
        assert!((20..=40).contains(&questions), "{questions} questions in ten seconds");
        assert_eq!(contact.ask(11_400), None, "nothing is said while nothing comes");
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
