//! Who is a member, as this node knows it: from the configuration until the catalog says otherwise, then the roster with the largest index
//! that it has heard of, whoever told it. Made by the composition root, told by the catalog as it is applied and by other nodes.

use crate::model::roster::Roster;
use crate::model::{NodeId, ShardId};
use std::sync::Arc;
use tokio::sync::watch;

/// The roster in force. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    roster_tx: watch::Sender<Arc<Roster>>,
}

impl Members {
    /// Beginning with the one of the configuration, or a newer one that was kept.
    pub fn new(roster: Roster) -> Members {
        Members { roster_tx: watch::channel(Arc::new(roster)).0 }
    }

    /// Of nodes that form a cluster; for tests.
    pub fn founded(nodes: impl IntoIterator<Item = NodeId>, shards: u16) -> Members {
        Members::new(Roster::founded(nodes.into_iter().map(|node| (node, format!("node {node}"))), shards))
    }

    /// As it is now.
    pub fn roster(&self) -> Arc<Roster> {
        self.roster_tx.borrow().clone()
    }

    /// Fires with each change.
    pub fn watch(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster_tx.subscribe()
    }

    /// Somebody tells a roster: a newer one takes the place of this one.
    pub fn told(&self, roster: &Arc<Roster>) {
        self.roster_tx.send_if_modified(|known| {
            let is_newer = roster.index > known.index;
            if is_newer {
                *known = roster.clone();
            }
            is_newer
        });
    }

    /// The members, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.roster_tx.borrow().nodes().collect()
    }

    /// Whether it is a member.
    pub fn contains(&self, node: NodeId) -> bool {
        self.roster_tx.borrow().members.contains_key(&node)
    }

    /// The nodes where a group is, the preferred leader first.
    pub fn now(&self, shard: ShardId) -> Vec<NodeId> {
        self.roster_tx.borrow().now(shard).to_vec()
    }

    /// The nodes where a group is or is to be.
    pub fn around(&self, shard: ShardId) -> Vec<NodeId> {
        self.roster_tx.borrow().around(shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roster_with_the_larger_index_counts_whoever_tells_it() {
        let members = Members::founded([NodeId(1), NodeId(2)], 1);
        let told = |index, node| {
            let mut roster = Roster::clone(&members.roster());
            roster.index = index;
            roster.members.remove(&NodeId(node));
            members.told(&Arc::new(roster));
        };
        told(0, 1);
        assert_eq!(members.nodes(), [NodeId(1), NodeId(2)]);
        told(7, 1);
        told(6, 2);
        assert_eq!(members.nodes(), [NodeId(2)]);
    }
}
