//! Whose turn it is in groups of stream consumers (RabbitMQ's rules): on a stream of its own the first who came, on partition i of a
//! super stream member i modulo their number, so that the members share the partitions. A turn moves only when its holder has stopped, or
//! is gone with its connection or its process.

use super::Catalog;
use super::apply::{DONE, Outcome};
use super::bindings::not_found;
use crate::model::catalog::{Owner, Refusal};
use crate::model::consumer_group::{GroupChange, GroupMember, GroupName, GroupState, Turn};
use crate::model::{NodeId, QueueId, limits};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Members in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    partition: Option<u32>,
    members: Vec<(GroupMember, Turn)>,
}

/// All groups. Empty ones are not kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<QueueId, BTreeMap<Arc<str>, Group>>,
    by_owner: BTreeMap<Owner, BTreeSet<GroupName>>,
}

impl Group {
    fn turn(&self, member: GroupMember) -> Option<Turn> {
        self.members.iter().find(|(known, _)| *known == member).map(|(_, turn)| *turn)
    }

    fn set(&mut self, at: usize, turn: Turn) {
        if let Some(member) = self.members.get_mut(at) {
            member.1 = turn;
        }
    }

    /// Gives the turn to whom it belongs, unless somebody has to stop first.
    fn rebalance(&mut self) {
        let position = |wanted| self.members.iter().position(|(_, turn)| *turn == wanted);
        if self.members.is_empty() || position(Turn::Yielding).is_some() {
            return;
        }
        let active = position(Turn::Active);
        let chosen = match self.partition {
            Some(partition) => partition as usize % self.members.len(),
            None => active.unwrap_or(0),
        };
        match active {
            Some(active) if active == chosen => {}
            Some(active) => self.set(active, Turn::Yielding),
            None => self.set(chosen, Turn::Active),
        }
    }

    fn apply(&mut self, member: GroupMember, change: &GroupChange) -> Result<(), Refusal> {
        let at = self.members.iter().position(|(known, _)| *known == member);
        match (change, at) {
            (GroupChange::Join { .. }, Some(_)) | (GroupChange::Leave | GroupChange::Yielded, None) => return Ok(()),
            (GroupChange::Join { .. }, None) if self.members.len() >= limits::GROUP_MEMBERS => {
                return Err(Refusal::Precondition(format!("a group has at most {} consumers", limits::GROUP_MEMBERS)));
            }
            (GroupChange::Join { partition }, None) => {
                self.partition = partition.or(self.partition);
                self.members.push((member, Turn::Waiting));
            }
            (GroupChange::Leave, Some(at)) => drop(self.members.remove(at)),
            (GroupChange::Yielded, Some(at)) => {
                if self.members[at].1 == Turn::Yielding {
                    self.members[at].1 = Turn::Waiting;
                }
            }
        }
        self.rebalance();
        Ok(())
    }
}

impl Groups {
    /// As they are written.
    pub fn image(&self) -> Vec<(GroupName, Group)> {
        let named = |stream: QueueId| move |(name, group): (&Arc<str>, &Group)| (GroupName { stream, name: name.clone() }, group.clone());
        self.groups.iter().flat_map(|(stream, groups)| groups.iter().map(named(*stream))).collect()
    }

    /// The way back.
    pub fn from_image(image: Vec<(GroupName, Group)>) -> Groups {
        let mut restored = Groups::default();
        for (name, group) in image {
            for (member, _) in &group.members {
                restored.by_owner.entry(member.owner).or_default().insert(name.clone());
            }
            restored.groups.entry(name.stream).or_default().insert(name.name, group);
        }
        restored
    }

    fn get(&self, name: &GroupName) -> Option<&Group> {
        self.groups.get(&name.stream)?.get(&name.name)
    }

    fn change(&mut self, name: &GroupName, member: GroupMember, change: &GroupChange) -> Result<(), Refusal> {
        let groups = self.groups.entry(name.stream).or_default();
        let group = groups.entry(name.name.clone()).or_default();
        let done = group.apply(member, change);
        let stays = group.members.iter().any(|(known, _)| known.owner == member.owner);
        if group.members.is_empty() {
            groups.remove(&name.name);
        }
        if groups.is_empty() {
            self.groups.remove(&name.stream);
        }
        if stays {
            self.by_owner.entry(member.owner).or_default().insert(name.clone());
        } else if let Some(names) = self.by_owner.get_mut(&member.owner) {
            names.remove(name);
            if names.is_empty() {
                self.by_owner.remove(&member.owner);
            }
        }
        done
    }

    /// A stream is gone.
    pub fn drop_stream(&mut self, stream: QueueId) {
        let Some(groups) = self.groups.remove(&stream) else { return };
        for (name, group) in groups {
            let name = GroupName { stream, name };
            for (member, _) in group.members {
                if let Some(names) = self.by_owner.get_mut(&member.owner) {
                    names.remove(&name);
                }
            }
        }
        self.by_owner.retain(|_, names| !names.is_empty());
    }

    /// A connection is gone.
    pub fn drop_owner(&mut self, owner: &Owner) {
        for name in self.by_owner.get(owner).cloned().unwrap_or_default() {
            let members = self.get(&name).map(|group| group.members.clone()).unwrap_or_default();
            for (member, _) in members.into_iter().filter(|(member, _)| member.owner == *owner) {
                // Only a join can be refused.
                let _ = self.change(&name, member, &GroupChange::Leave);
            }
        }
    }

    /// Owners on a node.
    pub fn owners_on(&self, node: NodeId) -> Vec<Owner> {
        self.by_owner.keys().filter(|owner| owner.node == node).copied().collect()
    }
}

impl Catalog {
    /// What a member of a group may do; `None`: it is none.
    pub fn turn(&self, name: &GroupName, member: GroupMember) -> Option<Turn> {
        self.groups.get(name)?.turn(member)
    }

    /// All groups, by stream and name.
    pub fn consumer_groups(&self) -> Vec<GroupState> {
        let state = |(name, group): (GroupName, Group)| GroupState { name, partition: group.partition, members: group.members };
        self.groups.image().into_iter().map(state).collect()
    }

    pub(super) fn change_group(&mut self, name: &GroupName, member: GroupMember, change: &GroupChange) -> Outcome {
        if let GroupChange::Join { .. } = change {
            if !self.queues.contains_key(&name.stream) {
                return Err(not_found("queue", &name.name, ""));
            }
            let Owner { node, incarnation, .. } = member.owner;
            if self.nodes.get(&node) != Some(&incarnation) {
                return Err(Refusal::Unavailable(format!("node {node} was cut off and counts as down")));
            }
        }
        self.groups.change(name, member, change)?;
        DONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ConnectionId, Incarnation};
    use proptest::prelude::*;

    fn member(connection: u64, subscription: u8) -> GroupMember {
        let owner = Owner { node: NodeId(1 + (connection % 3) as u16), incarnation: Incarnation(1), connection: ConnectionId(connection) };
        GroupMember { owner, subscription }
    }

    fn name(stream: u64) -> GroupName {
        GroupName { stream: QueueId(stream), name: "g".into() }
    }

    fn turns(groups: &Groups, stream: u64) -> Vec<(u64, Turn)> {
        let members = groups.get(&name(stream)).map(|group| group.members.clone()).unwrap_or_default();
        members.iter().map(|(member, turn)| (member.owner.connection.0, *turn)).collect()
    }

    fn join(groups: &mut Groups, stream: u64, connection: u64, partition: Option<u32>) {
        groups.change(&name(stream), member(connection, 0), &GroupChange::Join { partition }).expect("room");
    }

    #[test]
    fn on_a_stream_of_its_own_the_first_who_came_is_active_until_it_goes() {
        let mut groups = Groups::default();
        (1..=3).for_each(|connection| join(&mut groups, 7, connection, None));
        assert_eq!(turns(&groups, 7), [(1, Turn::Active), (2, Turn::Waiting), (3, Turn::Waiting)]);
        join(&mut groups, 7, 1, None);
        assert_eq!(turns(&groups, 7).len(), 3, "a member comes once");
        groups.drop_owner(&member(1, 0).owner);
        assert_eq!(turns(&groups, 7), [(2, Turn::Active), (3, Turn::Waiting)]);
        groups.change(&name(7), member(2, 0), &GroupChange::Leave).expect("leaves");
        assert_eq!(turns(&groups, 7), [(3, Turn::Active)]);
        groups.drop_stream(QueueId(7));
        assert!(groups.groups.is_empty() && groups.by_owner.is_empty());
    }

    #[test]
    fn partitions_are_spread_over_the_members_and_a_turn_moves_when_its_holder_has_stopped() {
        let mut groups = Groups::default();
        for partition in 0..3 {
            join(&mut groups, u64::from(partition), 1, Some(partition));
        }
        for partition in 0..3 {
            join(&mut groups, u64::from(partition), 2, Some(partition));
        }
        assert_eq!(turns(&groups, 0), [(1, Turn::Active), (2, Turn::Waiting)]);
        assert_eq!(turns(&groups, 1), [(1, Turn::Yielding), (2, Turn::Waiting)], "nobody reads while one has not stopped");
        assert_eq!(turns(&groups, 2), [(1, Turn::Active), (2, Turn::Waiting)]);
        groups.change(&name(1), member(1, 0), &GroupChange::Yielded).expect("stopped");
        assert_eq!(turns(&groups, 1), [(1, Turn::Waiting), (2, Turn::Active)]);
        groups.change(&name(2), member(1, 0), &GroupChange::Yielded).expect("nothing to stop");
        assert_eq!(turns(&groups, 2), [(1, Turn::Active), (2, Turn::Waiting)]);
    }

    #[test]
    fn who_goes_while_it_should_stop_gives_its_turn_away() {
        let mut groups = Groups::default();
        join(&mut groups, 1, 1, Some(1));
        join(&mut groups, 1, 2, Some(1));
        assert_eq!(turns(&groups, 1), [(1, Turn::Yielding), (2, Turn::Waiting)]);
        groups.drop_owner(&member(1, 0).owner);
        assert_eq!(turns(&groups, 1), [(2, Turn::Active)]);
    }

    proptest! {
        #[test]
        fn there_is_one_turn_at_a_time_and_it_is_never_lost(
            steps in proptest::collection::vec((0_u8..4, 1_u64..5, 0_u8..2), 1..60),
            partition in proptest::option::of(0_u32..4),
        ) {
            let mut groups = Groups::default();
            for (what, connection, subscription) in steps {
                let member = member(connection, subscription);
                match what {
                    0 => drop(groups.change(&name(1), member, &GroupChange::Join { partition })),
                    1 => drop(groups.change(&name(1), member, &GroupChange::Leave)),
                    2 => drop(groups.change(&name(1), member, &GroupChange::Yielded)),
                    _ => groups.drop_owner(&member.owner),
                }
                let turns = turns(&groups, 1);
                let busy = turns.iter().filter(|(_, turn)| *turn != Turn::Waiting).count();
                prop_assert_eq!(busy, usize::from(!turns.is_empty()), "{:?}", turns);
                let image = groups.image();
                let restored = Groups::from_image(image.clone());
                prop_assert_eq!(restored.image(), image);
                prop_assert_eq!(restored.by_owner, groups.by_owner.clone());
            }
        }
    }
}
