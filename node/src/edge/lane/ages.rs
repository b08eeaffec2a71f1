//! Since when a client holds messages, as far as a look now and then can tell: nothing is kept per message, and a delivery costs
//! nothing. Used by `consumers` for those that hold a message for too long.

use crate::edge::ranges::RangeSet;
use crate::model::Seq;
use std::time::Instant;

/// What was first seen at each look and is held still, the oldest look first.
#[derive(Debug, Default)]
pub(super) struct Ages(Vec<(Instant, RangeSet)>);

impl Ages {
    /// Looks at what is held now. Since when some of it is held at least.
    pub fn look(&mut self, held: &RangeSet, now: Instant) -> Option<Instant> {
        let mut fresh = held.clone();
        for (_, known) in &mut self.0 {
            *known = known.split_by(held).0;
            fresh = fresh.split_by(known).1;
        }
        self.0.retain(|look| !look.1.is_empty());
        if !fresh.is_empty() {
            self.0.push((now, fresh));
        }
        self.0.first().map(|look| look.0)
    }

    /// A message came once more: it was not held all the time.
    pub fn again(&mut self, seq: Seq) {
        for look in &mut self.0 {
            look.1.remove(seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn set(seqs: &[u64]) -> RangeSet {
        seqs.iter().map(|n| Seq(*n)).collect()
    }

    #[test]
    fn the_oldest_delivery_counts_whatever_its_place_in_the_queue() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut ages = Ages::default();
        assert_eq!(ages.look(&set(&[]), at(0)), None);
        assert_eq!(ages.look(&set(&[5, 6, 7]), at(1)), Some(at(1)));
        assert_eq!(ages.look(&set(&[2, 6, 9]), at(2)), Some(at(1)), "6 is held since the first look, 2 came later");
        assert_eq!(ages.look(&set(&[2, 9]), at(3)), Some(at(2)));
        ages.again(Seq(2));
        assert_eq!(ages.look(&set(&[2]), at(4)), Some(at(4)), "given back and delivered again meanwhile");
        assert_eq!(ages.look(&set(&[]), at(5)), None);
    }
}
