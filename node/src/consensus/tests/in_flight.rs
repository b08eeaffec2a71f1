//! As many proposals in flight as serving keeps there, and one of them, at every position, is the first that is refused: by a lease that
//! expires, by a leader that hands over, by a new leader that discards it. Each is answered once; what was answered as applied is applied
//! everywhere, in order and without a gap; what was refused is applied nowhere.

use super::*;
use crate::model::limits::ENTRIES_IN_FLIGHT;

/// A first one is applied before, as token 0.
const TOKENS: Range<u64> = 1..1 + ENTRIES_IN_FLIGHT as u64;

/// Long enough a lease that proposals get into the log of a leader that was cut off just now, on a busy machine too.
const UNHURRIED: Timing = Timing { heartbeat_ms: 80, election_min_ms: 1000, election_max_ms: 1500, checkpoint_ms: 1500, watch_ms: 2000 };

/// A cluster, and what its one proposer was told of each proposal, in order.
struct Scene {
    cluster: Cluster,
    old: NodeId,
    under: LeaderId,
    told: Vec<(u64, bool)>,
}

impl Scene {
    async fn new(timing: Timing) -> Scene {
        let mut cluster = Cluster::started_with(3, 1, timing).await;
        assert!(applied(&cluster.propose(0).await));
        let (old, under) = cluster.leader(DATA).await;
        Scene { cluster, old, under, told: vec![(0, true)] }
    }

    fn shard(&self) -> Shard {
        self.cluster.nodes[&self.old].consensus.shard(DATA).expect("member")
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        let old = self.old;
        (1..=3).map(NodeId).filter(move |node| *node != old)
    }

    fn propose(&self, tokens: Range<u64>) {
        tokens.for_each(|token| self.shard().propose(token, self.under, entry(token)));
    }

    /// The last entry in the log of the node that led first.
    fn last_index(&self) -> u64 {
        self.cluster.journals[&self.old].state(DATA).last.map_or(0, |last| last.index)
    }

    /// The answers to these, each of which must come once and in its turn; whether they say that it was applied.
    async fn hear(&mut self, tokens: Range<u64>) -> Vec<bool> {
        let outcomes = self.cluster.nodes.get_mut(&self.old).and_then(|node| node.outcomes.get_mut(&DATA)).expect("wired");
        let mut heard = Vec::new();
        for token in tokens {
            let (answered, outcome) = tokio::time::timeout(PATIENCE, outcomes.recv()).await.expect("in time").expect("an outcome");
            assert_eq!(answered, token);
            // The only failure that leaves the fate open here.
            assert!(!matches!(&outcome, ProposalOutcome::Failed(why) if why.contains("stopped")), "{outcome:?}");
            heard.push(applied(&outcome));
            self.told.push((token, applied(&outcome)));
        }
        heard
    }

    /// The proposer goes on in a new epoch, at whoever leads now.
    async fn judge(mut self) {
        let (mut token, deadline) = (next_epoch(0), Instant::now() + PATIENCE);
        while !applied(&self.cluster.propose(token).await) {
            self.told.push((token, false));
            token = next_epoch(token);
            assert!(Instant::now() < deadline, "{:?}", self.told);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.told.push((token, true));
        let expected: Vec<EntryBytes> =
            self.told.iter().filter(|(_, applied)| *applied).map(|(token, _)| EntryBytes::from(entry(*token).flatten())).collect();
        self.cluster.until_all_applied(DATA, &expected).await;
        for outcomes in self.cluster.nodes.values_mut().filter_map(|node| node.outcomes.get_mut(&DATA)) {
            assert!(outcomes.try_recv().is_err(), "a proposal was answered twice: {:?}", self.told);
        }
    }
}

/// The first `whole` are applied, all others refused.
fn refused_from(whole: u64) -> Vec<bool> {
    TOKENS.map(|token| token < TOKENS.start + whole).collect()
}

/// Each position of the first that is refused, all at once.
async fn at_every_position<F: Future<Output = ()>>(case: impl Fn(u64) -> F) {
    futures::future::join_all((0..ENTRIES_IN_FLIGHT as u64).map(case)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_in_flight_when_a_lease_expires_are_answered_once_and_refused_ones_are_applied_nowhere() {
    at_every_position(async |before| {
        let mut scene = Scene::new(Timing::default()).await;
        let first_refused = TOKENS.start + before;
        // The others hear their leader all the while, and elect no other; their answers reach it late.
        scene.others().for_each(|node| scene.cluster.network.stall(node, scene.old));
        scene.propose(TOKENS.start..first_refused);
        let shard = scene.shard();
        until(|| !shard.lease_valid()).await;
        scene.propose(first_refused..TOKENS.end);
        until(|| shard.has_failed(first_refused)).await;
        scene.cluster.network.heal();
        let heard = scene.hear(TOKENS).await;
        assert!(heard.is_sorted_by(|a, b| a >= b), "one was applied behind a gap: {heard:?}");
        assert!(heard.iter().skip(before as usize).all(|applied| !applied), "{heard:?}");
        scene.judge().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_in_flight_when_a_leader_hands_over_are_answered_once_and_refused_ones_are_applied_nowhere() {
    at_every_position(async |before| {
        let mut scene = Scene::new(UNHURRIED).await;
        let (first_refused, to) = (TOKENS.start + before, scene.others().next().expect("three nodes"));
        scene.cluster.network.delay(Duration::from_millis(5));
        let base = scene.last_index();
        scene.propose(TOKENS.start..first_refused);
        until(|| scene.last_index() >= base + before).await;
        assert!(scene.shard().transfer_to(to).await);
        scene.propose(first_refused..TOKENS.end);
        assert_eq!(scene.hear(TOKENS).await, refused_from(before));
        scene.judge().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_in_flight_that_a_new_leader_discards_are_answered_once_and_applied_nowhere() {
    at_every_position(async |before| {
        let mut scene = Scene::new(UNHURRIED).await;
        let first_refused = TOKENS.start + before;
        scene.propose(TOKENS.start..first_refused);
        let committed = scene.hear(TOKENS.start..first_refused).await;
        let base = scene.last_index();
        for node in scene.others() {
            scene.cluster.network.cut(scene.old, node);
            scene.cluster.network.cut(node, scene.old);
        }
        scene.propose(first_refused..TOKENS.end);
        // Not refused: they are in the log of the one who leads no more.
        until(|| scene.last_index() >= base + TOKENS.end - first_refused).await;
        let deadline = Instant::now() + PATIENCE;
        while scene.cluster.leader(DATA).await.0 == scene.old {
            assert!(Instant::now() < deadline, "nobody else is elected");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        scene.cluster.network.heal();
        let discarded = scene.hear(first_refused..TOKENS.end).await;
        assert_eq!([committed, discarded].concat(), refused_from(before));
        scene.judge().await;
    })
    .await;
}
