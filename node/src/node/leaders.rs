//! Who leads each shard, as `edge` asks: Raft groups from `consensus`, local shards from the catalog (their owner's present process).

use crate::consensus::Consensus;
use crate::edge::LeaderFinder;
use crate::machine::catalog::Catalog;
use crate::model::{LeaderId, NodeId, ShardId};
use crate::serving::local::local_leadership;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// One watch per shard of the cluster.
pub(super) struct Leaders {
    shards: BTreeMap<ShardId, watch::Sender<Option<LeaderId>>>,
}

impl Leaders {
    /// Starts following: call within the runtime that clients are served on.
    pub fn follow(
        shards: u16,
        nodes: &[NodeId],
        consensus: &Consensus,
        catalog: Arc<RwLock<Catalog>>,
        mut moved_rx: watch::Receiver<u64>,
    ) -> Arc<Leaders> {
        let all = (1..=shards).map(ShardId).chain(nodes.iter().map(|n| ShardId::local(*n)));
        let leaders = Arc::new(Leaders { shards: all.map(|shard| (shard, watch::channel(None).0)).collect() });
        for shard in (1..=shards).map(ShardId) {
            tokio::spawn(follow_group(leaders.clone(), shard, consensus.leadership(shard)));
        }
        let (owned, nodes) = (leaders.clone(), nodes.to_vec());
        tokio::spawn(async move {
            loop {
                moved_rx.borrow_and_update();
                owned.follow_owners(&catalog, &nodes);
                if moved_rx.changed().await.is_err() {
                    return;
                }
            }
        });
        leaders
    }

    fn follow_owners(&self, catalog: &RwLock<Catalog>, nodes: &[NodeId]) {
        let catalog = catalog.read();
        for node in nodes {
            let leader = catalog.incarnation(*node).and_then(|incarnation| local_leadership(*node, incarnation).leader);
            self.set(ShardId::local(*node), leader);
        }
    }

    fn set(&self, shard: ShardId, leader: Option<LeaderId>) {
        if let Some(tx) = self.shards.get(&shard) {
            tx.send_if_modified(|now| std::mem::replace(now, leader) != leader);
        }
    }
}

async fn follow_group(leaders: Arc<Leaders>, shard: ShardId, mut leadership_rx: watch::Receiver<crate::model::ports::Leadership>) {
    loop {
        let leader = leadership_rx.borrow_and_update().leader;
        leaders.set(shard, leader);
        if leadership_rx.changed().await.is_err() {
            return;
        }
    }
}

impl LeaderFinder for Leaders {
    fn leadership(&self, shard: ShardId) -> watch::Receiver<Option<LeaderId>> {
        match self.shards.get(&shard) {
            Some(tx) => tx.subscribe(),
            None => watch::channel(None).1,
        }
    }
}
