//! Which node holds which group, from the configuration alone: the same answer on every node. Moving replicas is a later issue.

use crate::model::limits::NODES;
use crate::model::{Generation, NodeId, ShardId, VoterId};

/// The life of a disk that took part in forming the cluster (rule 1).
pub const FIRST_GENERATION: Generation = Generation(1);
/// Replicas of a data shard.
const REPLICAS: usize = 3;

/// The members of a group, the preferred leader first. `nodes` ascending: shard i is on nodes i, i+1, i+2 mod n.
pub fn voters(shard: ShardId, nodes: &[NodeId]) -> Vec<VoterId> {
    let replicas = if shard == ShardId::CATALOG { NODES } else { REPLICAS };
    let place = |k: usize| nodes[(usize::from(shard.0) + k) % nodes.len()];
    (0..replicas.min(nodes.len())).map(|k| VoterId { node: place(k), generation: FIRST_GENERATION }).collect()
}

/// Data shards of a cluster when the operator names no number: one leader per node, at least 3.
pub fn default_shards(nodes: usize) -> u16 {
    nodes.clamp(3, 32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn preferred_leaders_spread_and_no_node_holds_a_shard_twice() {
        for n in [1usize, 2, 3, 5] {
            let nodes: Vec<NodeId> = (1..=n as u16).map(NodeId).collect();
            let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
            for shard in 1..=default_shards(n) {
                let voters = voters(ShardId(shard), &nodes);
                assert_eq!(voters.len(), n.min(3));
                let mut distinct = voters.clone();
                distinct.dedup_by_key(|v| v.node);
                assert_eq!(distinct.len(), voters.len());
                *leads.entry(voters[0].node).or_default() += 1;
            }
            let (least, most) = (leads.values().min().copied(), leads.values().max().copied());
            assert!(leads.len() == n && most.zip(least).is_some_and(|(m, l)| m - l <= 1), "{leads:?}");
        }
    }
}
