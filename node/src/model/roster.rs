//! Who is a member of the cluster, and on which nodes the replicas of each group are and are to be. Part of the catalog once the members of
//! a cluster change (`machine::catalog`); before that it follows from the configuration. `consensus` acts by it.

use super::limits::NODES;
use super::{NodeId, ShardId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Replicas of a data shard.
pub const REPLICAS: usize = 3;

/// How far a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It gets the catalog.
    Joining,
    /// It may hold anything.
    Serving,
    /// Its replicas go to others.
    Leaving,
}

impl Stage {
    /// For operators.
    pub fn text(self) -> &'static str {
        match self {
            Stage::Joining => "joining",
            Stage::Serving => "serving",
            Stage::Leaving => "leaving",
        }
    }
}

/// A node that belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterMember {
    /// `host:port` of its peer port.
    pub address: String,
    /// How far it is.
    pub stage: Stage,
}

/// Where a group is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Its nodes, the preferred leader first.
    pub now: Vec<NodeId>,
    /// Its nodes to be, while it is moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Vec<NodeId>>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The catalog index of its last change; 0: as configured, no member ever changed.
    pub index: u64,
    /// The members.
    pub members: BTreeMap<NodeId, RosterMember>,
    /// The groups, the catalog among them.
    pub groups: BTreeMap<ShardId, Whereabouts>,
    /// Numbers that were members once and are given to nobody again.
    pub gone: BTreeSet<NodeId>,
}

/// A change of the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RosterChange {
    /// A new node comes.
    Join {
        /// Its number.
        node: NodeId,
        /// `host:port` of its peer port.
        address: String,
    },
    /// A node's replicas go to others.
    Drain {
        /// Which.
        node: NodeId,
    },
    /// A node that does not run is no member any more.
    Remove {
        /// Which.
        node: NodeId,
    },
    /// A group is to be on other nodes, or another of its nodes is to be preferred.
    Goal {
        /// Which.
        shard: ShardId,
        /// Its nodes to be, the preferred leader first.
        goal: Vec<NodeId>,
        /// The roster's index that this was planned by.
        basis: u64,
    },
    /// A group is where it was to be.
    Moved {
        /// Which.
        shard: ShardId,
        /// There.
        goal: Vec<NodeId>,
        /// The roster's index that said so: the same goal may have been another move's.
        basis: u64,
    },
}

impl Roster {
    /// The end of the refusal of a node that is a member: it was here before, with a disk that may be lost.
    pub const MEMBER_ALREADY: &'static str = "is a member of this cluster already";

    /// Of the nodes that form a cluster: shard i is on nodes i, i+1, i+2 mod n, the catalog on all.
    pub fn founded(founders: impl IntoIterator<Item = (NodeId, String)>, shards: u16) -> Roster {
        let member = |(node, address)| (node, RosterMember { address, stage: Stage::Serving });
        let members: BTreeMap<NodeId, RosterMember> = founders.into_iter().map(member).collect();
        let nodes: Vec<NodeId> = members.keys().copied().collect();
        let place = |shard: ShardId| {
            let replicas = if shard == ShardId::CATALOG { NODES } else { REPLICAS };
            let now = (0..replicas.min(nodes.len())).map(|k| nodes[(usize::from(shard.0) + k) % nodes.len()]).collect();
            (shard, Whereabouts { now, goal: None })
        };
        let groups = (0..=shards).map(ShardId).map(place).collect();
        Roster { index: 0, members, groups, gone: BTreeSet::new() }
    }

    /// The members, ascending.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.keys().copied()
    }

    /// The nodes of a group as they are now, the preferred leader first.
    pub fn now(&self, shard: ShardId) -> &[NodeId] {
        self.groups.get(&shard).map_or(&[], |place| &place.now)
    }

    /// The nodes of a group to be.
    pub fn goal(&self, shard: ShardId) -> &[NodeId] {
        self.groups.get(&shard).map_or(&[], |place| place.goal.as_ref().unwrap_or(&place.now))
    }

    /// All nodes that may hold something of a group: those where it is and those where it is to be.
    pub fn around(&self, shard: ShardId) -> Vec<NodeId> {
        let mut nodes = self.now(shard).to_vec();
        nodes.extend(self.goal(shard).iter().filter(|node| !self.now(shard).contains(node)));
        nodes
    }

    /// Whether a node holds a replica of a group, or is to hold one.
    pub fn holds(&self, shard: ShardId, node: NodeId) -> bool {
        self.now(shard).contains(&node) || self.goal(shard).contains(&node)
    }

    /// Data shards.
    pub fn shards(&self) -> u16 {
        self.groups.last_key_value().map_or(0, |(shard, _)| shard.0)
    }

    /// A group that is being moved.
    pub fn moving(&self) -> Option<ShardId> {
        self.groups.iter().find(|(_, place)| place.goal.is_some()).map(|(shard, _)| *shard)
    }

    /// The members at this stage, ascending.
    pub fn at(&self, stage: Stage) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().filter(move |(_, member)| member.stage == stage).map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferred_leaders_spread_and_no_node_holds_a_shard_twice() {
        for n in [1u16, 2, 3, 5] {
            let shards = n.clamp(3, 32);
            let roster = Roster::founded((1..=n).map(|node| (NodeId(node), String::new())), shards);
            let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
            for shard in 1..=shards {
                let nodes = roster.now(ShardId(shard));
                assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), usize::from(n).min(REPLICAS));
                *leads.entry(nodes[0]).or_default() += 1;
            }
            let (least, most) = (leads.values().min().copied(), leads.values().max().copied());
            assert!(leads.len() == usize::from(n) && most.zip(least).is_some_and(|(m, l)| m - l <= 1), "{leads:?}");
            assert_eq!(roster.now(ShardId::CATALOG).len(), usize::from(n));
        }
    }
}
