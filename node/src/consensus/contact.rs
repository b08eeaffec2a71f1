//! When the members of a group last acknowledged this node as their leader: the ground of its lease (rule 20). Counted from the moment a
//! request left, and only for the request that was answered: openraft's own figure takes the answer to one request for that to the
//! requests without entries behind it. While the members change there are two sets of voters, and a majority of each must have answered.

use super::boot::BootTime;
use super::types::{Ovote, from_lid};
use crate::model::LeaderId;
use crate::model::limits::NODES;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// The sets of voters of a group: one, or two while they change.
pub type Configs = Vec<BTreeSet<u64>>;

/// A group's acknowledgements, noted by `network`, read by `shard`. `log` tells of new voters before anybody is sent them.
#[derive(Debug)]
pub struct Contact {
    me: u64,
    acked: Mutex<Acked>,
}

#[derive(Debug, Default)]
struct Acked {
    configs: Configs,
    /// Whose requests were answered.
    leader: LeaderId,
    /// When the last answered request to each member was sent.
    sent: BTreeMap<u64, BootTime>,
    quorum: Option<BootTime>,
}

impl Acked {
    fn count(&mut self, me: u64) {
        let needed = |config: &BTreeSet<u64>| (config.len() / 2 + 1) - usize::from(config.contains(&me));
        let moment = |config: &BTreeSet<u64>| {
            let answered = self.sent.iter().filter(|(voter, _)| config.contains(voter));
            let mut times: SmallVec<[BootTime; NODES]> = answered.map(|(_, sent)| *sent).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times.get(needed(config) - 1).copied()
        };
        // A set in which this node is a majority by itself needs no answer.
        let moments = self.configs.iter().filter(|config| needed(config) > 0).map(moment);
        self.quorum = moments.reduce(|a, b| Some(a?.min(b?))).flatten();
    }
}

impl Contact {
    /// Of `me` and a group with these voters.
    pub fn new(me: u64, configs: Configs) -> Contact {
        Contact { me, acked: Mutex::new(Acked { configs, ..Acked::default() }) }
    }

    /// The voters are these from now on.
    pub fn changed(&self, configs: Configs) {
        let acked = &mut *self.acked.lock();
        acked.configs = configs;
        acked.count(self.me);
    }

    /// The sets of voters.
    pub fn configs(&self) -> Configs {
        self.acked.lock().configs.clone()
    }

    /// No answer of anybody else is needed.
    pub fn is_alone(&self) -> bool {
        let acked = self.acked.lock();
        !acked.configs.is_empty() && acked.configs.iter().all(|config| config.len() == 1 && config.contains(&self.me))
    }

    /// `voter` accepted a request that was sent then under `vote`.
    pub fn acknowledged(&self, vote: &Ovote, voter: u64, sent: BootTime) {
        let (leader, acked) = (from_lid(vote.leader_id), &mut *self.acked.lock());
        if leader < acked.leader {
            return;
        }
        if leader > acked.leader {
            *acked = Acked { leader, configs: std::mem::take(&mut acked.configs), ..Acked::default() };
        }
        let last = acked.sent.entry(voter).or_insert(sent);
        *last = sent.max(*last);
        acked.count(self.me);
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

    fn set<const N: usize>(voters: [u64; N]) -> BTreeSet<u64> {
        BTreeSet::from(voters)
    }

    #[test]
    fn a_majority_counts_from_its_slowest_member_and_for_one_leadership() {
        let (contact, leader) = (Contact::new(1, vec![set([1, 2, 3, 4, 5])]), |term| LeaderId { term, voter: 1 });
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
        for voters in [vec![set([1, 2])], vec![set([1, 2, 3])]] {
            let (contact, now) = (Contact::new(1, voters), BootTime::now());
            contact.acknowledged(&vote(1), 2, now);
            assert_eq!(contact.quorum(LeaderId { term: 1, voter: 1 }), Some(now));
        }
    }

    #[test]
    fn while_the_voters_change_a_majority_of_both_sets_must_have_answered() {
        let (contact, leader, begun) = (Contact::new(1, vec![set([1, 2, 3])]), LeaderId { term: 1, voter: 1 }, BootTime::now());
        let later = begun + Duration::from_millis(9);
        contact.acknowledged(&vote(1), 4, begun);
        assert_eq!(contact.quorum(leader), None, "a learner does not count");
        contact.acknowledged(&vote(1), 2, later);
        assert_eq!(contact.quorum(leader), Some(later));
        contact.changed(vec![set([1, 2, 3]), set([1, 4, 5])]);
        assert_eq!(contact.quorum(leader), Some(begun), "the slower majority counts");
        contact.changed(vec![set([1, 2, 3]), set([1, 5, 6])]);
        assert_eq!(contact.quorum(leader), None);
        contact.changed(vec![set([4, 2, 3])]);
        assert_eq!(contact.quorum(leader), Some(begun), "without itself it needs two");
        assert!(!contact.is_alone() && Contact::new(1, vec![set([1])]).is_alone());
    }
}
