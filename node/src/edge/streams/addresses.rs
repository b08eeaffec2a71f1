//! Where stream clients reach the nodes: what each node advertises, asked of it and remembered for a while.

use crate::edge::Edge;
use crate::model::NodeId;
use crate::model::stream_step::Advertised;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A node is asked again after this time: it may have died, or come back with another address. Whoever is sent to a dead node fails.
const FRESH: Duration = Duration::from_millis(200);
/// A node that has never answered is asked so often for one question: the machine may be busy, and a client that is told of no leader gives up.
const FIRST_ATTEMPTS: usize = 4;

/// What this node knows of addresses.
#[derive(Debug)]
pub struct Addresses {
    own: Advertised,
    /// Clients are told of this node only: it serves every stream.
    only_own: bool,
    /// So long an answer counts.
    fresh: Duration,
    /// The last answers; `None`: it let no clients in.
    known: Mutex<BTreeMap<NodeId, (Option<Advertised>, Instant)>>,
}

impl Addresses {
    /// `own`: this node's; `only_own`: it stands for all others.
    pub fn new(own: Advertised, only_own: bool) -> Addresses {
        Addresses { own, only_own, fresh: FRESH, known: Mutex::default() }
    }

    /// Every answer counts once.
    #[cfg(test)]
    pub fn never_remembered(own: Advertised) -> Addresses {
        Addresses { fresh: Duration::ZERO, ..Addresses::new(own, false) }
    }
}

impl Edge {
    /// From now on clients can be told where nodes are. Once.
    pub fn set_addresses(&self, addresses: Addresses) {
        let _ = self.addresses.set(addresses);
    }

    /// Of these nodes those that let clients in, as far as is known, with their addresses; this one alone, if it stands for all.
    pub(in crate::edge) async fn advertised(&self, nodes: &BTreeSet<NodeId>) -> BTreeMap<NodeId, Advertised> {
        let Some(addresses) = self.addresses.get() else { return BTreeMap::new() };
        let own = self.config.node;
        if addresses.only_own {
            return BTreeMap::from([(own, addresses.own.clone())]);
        }
        let others: Vec<NodeId> = {
            let catalog = self.catalog.read();
            nodes.iter().copied().filter(|node| *node != own && catalog.incarnation(*node).is_some()).collect()
        };
        self.refresh(addresses, &others).await;
        let known = addresses.known.lock();
        let mut found: BTreeMap<_, _> = others.iter().filter_map(|node| Some((*node, known.get(node)?.0.clone()?))).collect();
        if nodes.contains(&own) {
            found.insert(own, addresses.own.clone());
        }
        found
    }

    async fn refresh(&self, addresses: &Addresses, nodes: &[NodeId]) {
        let now = Instant::now();
        let stale: Vec<NodeId> = {
            let known = addresses.known.lock();
            let is_fresh = |node: &NodeId| known.get(node).is_some_and(|(_, at)| now.duration_since(*at) < addresses.fresh);
            nodes.iter().copied().filter(|node| !is_fresh(node)).collect()
        };
        let Some(neighbours) = self.neighbours.get() else { return };
        let mut asked = stale;
        for _ in 0..FIRST_ATTEMPTS {
            if asked.is_empty() {
                return;
            }
            let told = neighbours.addresses(asked.clone()).await;
            let mut known = addresses.known.lock();
            known.extend(told.into_iter().map(|(node, address)| (node, (address, now))));
            asked.retain(|node| !known.contains_key(node));
        }
    }
}
