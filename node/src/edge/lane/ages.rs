//! Since when a client holds messages, as far as a look now and then can tell: nothing is kept per message, and a delivery costs
//! nothing. Each holder is looked at in its own time, however often others are. Used by `consumers` for those that hold a message for
//! too long.

use crate::edge::ranges::RangeSet;
use crate::model::Seq;
use std::time::{Duration, Instant};

/// What was first seen at each look and is held still, the oldest look first.
#[derive(Debug, Default)]
pub(super) struct Ages {
    looks: Vec<(Instant, RangeSet)>,
    next: Option<Instant>,
}

/// What a look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It is not time for one.
    NotYet,
    /// Nothing is held.
    Nothing,
    /// Some of what is held was held then.
    Held { since: Instant },
}

impl Ages {
    /// Looks at what is held now, unless the last look was less than its `pause` ago.
    pub fn look(&mut self, held: &RangeSet, now: Instant, pause: Duration) -> Look {
        if self.next(now) > now {
            return Look::NotYet;
        }
        self.next = Some(now + pause);
        let mut fresh = held.clone();
        for (_, known) in &mut self.looks {
            *known = known.split_by(held).0;
            fresh = fresh.split_by(known).1;
        }
        self.looks.retain(|look| !look.1.is_empty());
        if !fresh.is_empty() {
            self.looks.push((now, fresh));
        }
        self.looks.first().map_or(Look::Nothing, |look| Look::Held { since: look.0 })
    }

    /// When the next look is due.
    pub fn next(&self, now: Instant) -> Instant {
        self.next.unwrap_or(now)
    }

    /// A message came once more: it was not held all the time.
    pub fn again(&mut self, seq: Seq) {
        for look in &mut self.looks {
            look.1.remove(seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(seqs: &[u64]) -> RangeSet {
        seqs.iter().map(|n| Seq(*n)).collect()
    }

    #[test]
    fn the_oldest_delivery_counts_whatever_its_place_in_the_queue() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut ages = Ages::default();
        let held = |seconds| Look::Held { since: at(seconds) };
        let second = Duration::from_secs(1);
        assert_eq!(ages.look(&set(&[]), at(0), second), Look::Nothing);
        assert_eq!(ages.look(&set(&[5, 6, 7]), at(1), second), held(1));
        assert_eq!(ages.look(&set(&[2, 6, 9]), at(2), second), held(1), "6 is held since the first look, 2 came later");
        assert_eq!(ages.look(&set(&[2, 9]), at(3), second), held(2));
        ages.again(Seq(2));
        assert_eq!(ages.look(&set(&[2]), at(4), second), held(4), "given back and delivered again meanwhile");
        assert_eq!(ages.look(&set(&[]), at(5), second), Look::Nothing);
    }

    /// A neighbour with a short time is looked at all the while.
    #[test]
    fn who_may_hold_messages_for_long_is_looked_at_seldom_however_often_somebody_asks() {
        let began = Instant::now();
        let (mut ages, mut held) = (Ages::default(), RangeSet::default());
        let looks = (0..3000).filter(|n| {
            held.insert(Seq(*n));
            ages.look(&held, began + Duration::from_millis(20 * n), Duration::from_secs(6)) != Look::NotYet
        });
        assert_eq!(looks.count(), 10);
        assert_eq!(ages.looks.len(), 10);
    }
}
