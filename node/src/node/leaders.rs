//! Who leads each shard, as `edge` asks: Raft groups from `consensus`, local shards from the catalog (their owner's present process).

use crate::consensus::Consensus;
use crate::edge::LeaderFinder;
use crate::machine::catalog::Catalog;
use crate::model::{LeaderId, NodeId, ShardId};
use crate::serving::local::local_leadership;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// One watch per shard of the cluster, and per node for its in-memory queues.
pub(super) struct Leaders {
    shards: Mutex<BTreeMap<ShardId, watch::Sender<Option<LeaderId>>>>,
}

impl Leaders {
    /// Starts following: call within the runtime that clients are served on.
    pub fn follow(
        shards: u16,
        consensus: &Arc<Consensus>,
        catalog: Arc<RwLock<Catalog>>,
        mut moved_rx: watch::Receiver<u64>,
    ) -> Arc<Leaders> {
        let leaders = Arc::new(Leaders { shards: Mutex::default() });
        for shard in (1..=shards).map(ShardId) {
            tokio::spawn(follow_group(leaders.clone(), shard, consensus.clone()));
        }
        let (owned, members) = (leaders.clone(), consensus.members().clone());
        tokio::spawn(async move {
            loop {
                moved_rx.borrow_and_update();
                owned.follow_owners(&catalog, &members.nodes());
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
        let mut shards = self.shards.lock();
        let tx = shards.entry(shard).or_default();
        tx.send_if_modified(|now| std::mem::replace(now, leader) != leader);
    }
}

async fn follow_group(leaders: Arc<Leaders>, shard: ShardId, consensus: Arc<Consensus>) {
    let mut regrouped_rx = consensus.regrouped();
    let mut leadership_rx = consensus.leadership(shard);
    loop {
        let leader = leadership_rx.borrow_and_update().leader;
        leaders.set(shard, leader);
        tokio::select! {
            changed = leadership_rx.changed() => if changed.is_err() { return },
            // The group may have come or gone.
            changed = regrouped_rx.changed() => {
                if changed.is_err() {
                    return;
                }
                leadership_rx = consensus.leadership(shard);
            }
        }
    }
}

impl LeaderFinder for Leaders {
    fn leadership(&self, shard: ShardId) -> watch::Receiver<Option<LeaderId>> {
        self.shards.lock().entry(shard).or_default().subscribe()
    }
}
