//! When the members of a group last acknowledged this node as their leader: the ground of its lease (rule 20). Counted from the moment a
//! request left, and only for the request that was answered: openraft's own figure takes the answer to one request for that to the
//! requests without entries behind it.

use super::boot::BootTime;
use super::types::{Ovote, from_lid};
use crate::model::LeaderId;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// A group's acknowledgements, noted by `network`, read by `shard`.
#[derive(Debug)]
pub struct Contact {
    /// Answers of others that make a majority with this node.
    needed: usize,
    acked: Mutex<Acked>,
}

#[derive(Debug, Default)]
struct Acked {
    /// Whose requests were answered.
    leader: LeaderId,
    /// When the last answered request to each member was sent.
    sent: BTreeMap<u64, BootTime>,
    quorum: Option<BootTime>,
}

impl Contact {
    /// Of a group with so many voters, this node included.
    pub fn new(voters: usize) -> Contact {
        Contact { needed: voters / 2, acked: Mutex::default() }
    }

    /// `voter` accepted a request that was sent then under `vote`.
    pub fn acknowledged(&self, vote: &Ovote, voter: u64, sent: BootTime) {
        let (leader, acked) = (from_lid(vote.leader_id), &mut *self.acked.lock());
        if leader < acked.leader {
            return;
        }
        if leader > acked.leader {
            *acked = Acked { leader, ..Acked::default() };
        }
        let last = acked.sent.entry(voter).or_insert(sent);
        *last = sent.max(*last);
        let mut times: Vec<BootTime> = acked.sent.values().copied().collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        acked.quorum = self.needed.checked_sub(1).and_then(|at| times.get(at).copied());
    }

    /// Since when at the earliest a majority may have forgotten `leader`, who is this node; `None`: none has answered, or none is needed.
    pub fn quorum(&self, leader: LeaderId) -> Option<BootTime> {
        let acked = self.acked.lock();
        acked.quorum.filter(|_| acked.leader == leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::types::Lid;
    use std::time::Duration;

    fn vote(term: u64) -> Ovote {
        Ovote { leader_id: Lid { term, node_id: 1 }, committed: true }
    }

    #[test]
    fn a_majority_counts_from_its_slowest_member_and_for_one_leadership() {
        let (contact, leader) = (Contact::new(5), |term| LeaderId { term, voter: 1 });
        let begun = BootTime::now();
        let at = |ms| begun + Duration::from_millis(ms);
        contact.acknowledged(&vote(3), 2, at(10));
        assert_eq!(contact.quorum(leader(3)), None, "two of five");
        contact.acknowledged(&vote(3), 3, at(5));
        assert_eq!(contact.quorum(leader(3)), Some(at(5)));
        contact.acknowledged(&vote(3), 2, at(1));
        contact.acknowledged(&vote(3), 4, at(20));
        assert_eq!(contact.quorum(leader(3)), Some(at(10)), "an answer that came late takes nothing back");
        contact.acknowledged(&vote(5), 2, at(30));
        contact.acknowledged(&vote(3), 3, at(40));
        assert_eq!((contact.quorum(leader(3)), contact.quorum(leader(5))), (None, None), "a new leadership begins with nothing");
    }

    #[test]
    fn of_two_or_three_members_one_other_is_enough() {
        for voters in [2, 3] {
            let (contact, now) = (Contact::new(voters), BootTime::now());
            contact.acknowledged(&vote(1), 2, now);
            assert_eq!(contact.quorum(LeaderId { term: 1, voter: 1 }), Some(now));
        }
    }
}
