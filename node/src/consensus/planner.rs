//! Where the replicas of data shards are to be: one step at a time, pure. Asked by `mover` on the node that leads the catalog, while nothing
//! is being moved. A step never takes a replica from a group before another one is there, unless no node is left for it.

use crate::model::roster::{REPLICAS, Roster, Stage};
use crate::model::{NodeId, ShardId};
use std::collections::BTreeMap;

/// The next group to be moved, and its nodes then, the preferred leader first; `None`: all is where it should be. Replicas go only to nodes
/// that are up.
pub(super) fn plan(roster: &Roster, is_up: impl Fn(NodeId) -> bool) -> Option<(ShardId, Vec<NodeId>)> {
    if roster.index == 0 || roster.moving().is_some() {
        return None;
    }
    let scene = Scene { roster, fit: roster.at(Stage::Serving).filter(|node| is_up(*node)).collect() };
    scene.away().or_else(|| scene.more()).or_else(|| scene.even()).or_else(|| scene.lead())
}

struct Scene<'a> {
    roster: &'a Roster,
    /// Serving and up, ascending.
    fit: Vec<NodeId>,
}

impl Scene<'_> {
    fn data(&self) -> impl Iterator<Item = (ShardId, &[NodeId])> {
        self.roster.groups.iter().filter(|(shard, _)| **shard != ShardId::CATALOG).map(|(shard, place)| (*shard, place.now.as_slice()))
    }

    fn stage(&self, node: NodeId) -> Option<Stage> {
        self.roster.members.get(&node).map(|member| member.stage)
    }

    fn replicas(&self, node: NodeId) -> usize {
        self.data().filter(|(_, now)| now.contains(&node)).count()
    }

    fn leads(&self, node: NodeId) -> usize {
        self.data().filter(|(_, now)| now.first() == Some(&node)).count()
    }

    /// The emptiest node that could take a replica of a group.
    fn taker(&self, now: &[NodeId]) -> Option<NodeId> {
        self.fit.iter().copied().filter(|node| !now.contains(node)).min_by_key(|node| (self.replicas(*node), *node))
    }

    /// Away from a node that leaves.
    fn away(&self) -> Option<(ShardId, Vec<NodeId>)> {
        self.data().find_map(|(shard, now)| {
            let leaving = *now.iter().find(|node| self.stage(**node) == Some(Stage::Leaving))?;
            let rest = || now.iter().copied().filter(|node| *node != leaving);
            match self.taker(now) {
                Some(taker) => Some((shard, replaced(now, leaving, taker))),
                // Others that serve may only be down for a while: they get what they can when they are up.
                None if self.roster.at(Stage::Serving).all(|node| now.contains(&node)) => Some((shard, rest().collect())),
                None => None,
            }
            .filter(|(_, goal)| !goal.is_empty())
        })
    }

    /// Up to as many replicas as a shard should have.
    fn more(&self) -> Option<(ShardId, Vec<NodeId>)> {
        let few = self.data().filter(|(_, now)| now.len() < REPLICAS);
        few.filter_map(|(shard, now)| Some((shard, now.iter().copied().chain([self.taker(now)?]).collect()))).next()
    }

    /// From the fullest to the emptiest.
    fn even(&self) -> Option<(ShardId, Vec<NodeId>)> {
        let count: BTreeMap<NodeId, usize> = self.fit.iter().map(|node| (*node, self.replicas(*node))).collect();
        let full = *self.fit.iter().max_by_key(|node| (count[node], **node))?;
        let empty = *self.fit.iter().min_by_key(|node| (count[node], **node))?;
        if count[&full] < count[&empty] + 2 {
            return None;
        }
        // Rather one that the full node does not lead.
        let movable = self.data().filter(|(_, now)| now.contains(&full) && !now.contains(&empty));
        movable.min_by_key(|(shard, now)| (now.first() == Some(&full), *shard)).map(|(shard, now)| (shard, replaced(now, full, empty)))
    }

    /// Preferred leaders are spread.
    fn lead(&self) -> Option<(ShardId, Vec<NodeId>)> {
        let moves = self.data().flat_map(|(shard, now)| now.iter().skip(1).map(move |to| (shard, now, *to)));
        moves
            .filter_map(|(shard, now, to)| {
                let from = *now.first()?;
                let better = self.leads(from).checked_sub(self.leads(to))?;
                (self.fit.contains(&to) && better >= 2).then_some((better, shard, now, to))
            })
            .max_by_key(|(better, shard, _, to)| (*better, std::cmp::Reverse((*shard, *to))))
            .map(|(_, shard, now, to)| (shard, [to].into_iter().chain(now.iter().copied().filter(|node| *node != to)).collect()))
    }
}

/// The new one is put in the old one's place, but at the end when that is preferred to lead: it has to show itself first.
fn replaced(now: &[NodeId], old: NodeId, new: NodeId) -> Vec<NodeId> {
    if now.first() == Some(&old) && now.len() > 1 {
        return now[1..].iter().copied().chain([new]).collect();
    }
    now.iter().map(|node| if *node == old { new } else { *node }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::roster::RosterMember;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn roster(founders: u16, joined: u16, leaving: &[u16], shards: u16) -> Roster {
        let mut roster = Roster::founded((1..=founders).map(|n| (NodeId(n), String::new())), shards);
        roster.index = 1;
        for n in founders + 1..=founders + joined {
            roster.members.insert(NodeId(n), RosterMember { address: n.to_string(), stage: Stage::Serving });
        }
        for n in leaving {
            roster.members.get_mut(&NodeId(*n)).expect("a member").stage = Stage::Leaving;
        }
        roster
    }

    /// Follows the plan to its end; each step changes one replica or only the order.
    fn settled(mut roster: Roster, is_up: impl Fn(NodeId) -> bool) -> Roster {
        for _ in 0..500 {
            let Some((shard, goal)) = plan(&roster, &is_up) else { return roster };
            let before: BTreeSet<NodeId> = roster.now(shard).iter().copied().collect();
            let after: BTreeSet<NodeId> = goal.iter().copied().collect();
            assert_ne!(shard, ShardId::CATALOG);
            assert_eq!(after.len(), goal.len(), "a node twice: {goal:?}");
            assert!(before.difference(&after).count() <= 1 && after.difference(&before).count() <= 1, "{before:?} {after:?}");
            assert!(after.difference(&before).all(|node| is_up(*node)));
            roster.groups.get_mut(&shard).expect("known").now = goal;
            roster.index += 1;
        }
        panic!("no end: {roster:?}");
    }

    proptest! {
        #[test]
        fn every_plan_ends_where_replicas_are_spread(founders in 1u16..=5, more in 0u16..=4, shards in 1u16..20, leaves in prop::collection::vec(any::<bool>(), 5)) {
            let joined = more.min(5 - founders);
            let all = founders + joined;
            let mut leaving: Vec<u16> = (1..=all).filter(|n| leaves[usize::from(*n) - 1]).collect();
            leaving.truncate(usize::from(all) - 1);
            let end = settled(roster(founders, joined, &leaving, shards), |_| true);
            let serving: Vec<NodeId> = end.at(Stage::Serving).collect();
            let count = |node: &NodeId| (1..=shards).filter(|n| end.now(ShardId(*n)).contains(node)).count();
            let (least, most) = (serving.iter().map(count).min(), serving.iter().map(count).max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{:?}", end);
            for shard in (1..=shards).map(ShardId) {
                prop_assert_eq!(end.now(shard).len(), serving.len().min(REPLICAS));
                prop_assert!(end.now(shard).iter().all(|node| serving.contains(node)));
            }
        }

        #[test]
        fn nothing_goes_to_a_node_that_is_down(joined in 1u16..=2, shards in 1u16..9, down in 1u16..=5, leaving in 1u16..=3) {
            settled(roster(3, joined, &[leaving], shards), |node| node.0 != down);
        }
    }

    #[test]
    fn a_cluster_whose_members_never_changed_is_left_alone() {
        let mut lopsided = roster(3, 2, &[], 6);
        assert!(plan(&lopsided, |_| true).is_some());
        lopsided.index = 0;
        assert_eq!(plan(&lopsided, |_| true), None);
    }

    #[test]
    fn two_new_nodes_get_replicas_and_lead() {
        let end = settled(roster(3, 2, &[], 5), |_| true);
        let leads: BTreeSet<NodeId> = (1..=5).map(|n| end.now(ShardId(n))[0]).collect();
        assert_eq!(leads.len(), 5, "{end:?}");
    }
}
