//! Programs of two versions in one cluster, the next one a fake: it is replaced node by node under traffic, and an old one comes back.

use super::snapshot_tests::World;
use super::stack_tests::*;
use super::*;
use crate::model::version::TooNew;
use crate::model::{LogId, NodeId, ShardId};
use crate::store::disk::SimDisk;
use crate::store::disk::sim::Crash;
use crate::store::state::StateStore;
use crate::store::wal::Wal;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _: ShardId, _: LogId, _: Vec<crate::machine::Effect>) {}
}

fn versions(nodes: &[Node]) -> Vec<(u8, u8)> {
    let data = |node: &Node| node.replicas.data(DATA).expect("restored").lock().version();
    nodes.iter().map(|node| (node.replicas.catalog().read().version(), data(node))).collect()
}

/// The nodes do what keeps the version, for so long or until `done`.
async fn keep(nodes: &[Node], most: Duration, done: impl Fn() -> bool) -> bool {
    let keepers = nodes.iter().map(|node| node.consensus.keep_version(|| node.replicas.catalog().read().version()));
    let kept = async {
        futures::future::join_all(keepers).await;
        std::future::pending::<()>().await
    };
    let looked = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = kept => false,
        () = looked => true,
        () = tokio::time::sleep(most) => false,
    }
}

async fn replace(world: &mut World, nodes: &mut Vec<Node>, id: u16, supports: u8) {
    nodes.retain(|node| node.id != NodeId(id));
    world.crash(id, Crash::Process);
    world.supports = supports;
    nodes.push(world.start(id).await.expect("boots"));
}

/// Whether a program that knows the first version only takes what is on the node's disks.
fn old_program_takes(world: &World, id: u16, shard: ShardId) -> Result<(), TooNew> {
    let at = usize::from(id) - 1;
    let store = StateStore::open(&world.dirs[at].path().join("state")).expect("nobody has it").0;
    let disk = world.disks.as_ref().expect("simulated")[at].clone();
    let wal = Wal::open(Arc::new(disk), world.log()).expect("whole");
    let replicas = Replicas::supporting(1, Some(Arc::new(store)), Arc::new(Nobody));
    replicas.machines(Arc::new(wal))(shard).map(drop)
}

#[test]
fn a_program_that_does_not_know_the_version_stops_at_the_command_that_raises_it() {
    use crate::machine::catalog::encode_command;
    use crate::model::catalog::CatalogCommand;
    for (supports, applies) in [(1, false), (2, true)] {
        let replicas = Replicas::supporting(supports, None, Arc::new(Nobody));
        let wal = Wal::open(Arc::new(SimDisk::new(1)), World::simulated().log()).expect("opens");
        let machine = replicas.machines(Arc::new(wal))(ShardId::CATALOG).expect("an empty one");
        let entry = encode_command(&CatalogCommand::Raise { version: 2 }).into();
        let applied = machine.apply(LogId { index: 1, ..LogId::default() }, &entry);
        assert_eq!(applied.is_ok(), applies, "{:?}", applied.err());
        assert_eq!(replicas.catalog().read().version(), supports);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_is_raised_when_the_last_node_knows_the_next_and_no_old_program_takes_part_after_that() {
    let mut world = World::simulated();
    world.supports = 1;
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 30).await;
    let mut sent = 30;
    for id in [1, 2] {
        replace(&mut world, &mut nodes, id, 2).await;
        publish(&mut nodes, session, sent, sent + 20).await;
        sent += 20;
        agree(&nodes, (sent - 1) * 5).await;
    }
    assert!(!keep(&nodes, Duration::from_secs(7), || versions(&nodes).iter().any(|(catalog, _)| *catalog > 1)).await);
    assert_eq!(versions(&nodes), [(1, 1); 3], "node 3 does not know the next one");
    // It says so, instead of not answering.
    let asked = nodes.iter().find(|node| node.id == NodeId(1)).expect("here");
    assert_eq!(raising::common(&asked.consensus.core).await, Ok(1));
    replace(&mut world, &mut nodes, 3, 2).await;
    let raised = || versions(&nodes).iter().all(|(catalog, _)| *catalog == 2);
    assert!(keep(&nodes, Duration::from_secs(60), raised).await, "{:?}", versions(&nodes));
    publish(&mut nodes, session, sent, sent + 20).await;
    sent += 20;
    agree(&nodes, (sent - 1) * 5).await;
    assert_eq!(versions(&nodes), [(2, 2); 3]);
    // The same log gives the same state.
    drop(nodes);
    (1..=3).for_each(|id| world.crash(id, Crash::Power));
    let mut nodes = world.start_all().await;
    agree(&nodes, (sent - 1) * 5).await;
    assert_eq!(versions(&nodes), [(2, 2); 3]);
    // What is on a disk by now an old program does not touch.
    let deadline = Instant::now() + Duration::from_secs(120);
    for shard in [ShardId::CATALOG, DATA] {
        loop {
            nodes.retain(|node| node.id != NodeId(3));
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.crash(3, Crash::Process);
            if old_program_takes(&world, 3, shard) == Err(TooNew { used: 2, supported: 1 }) {
                break;
            }
            assert!(Instant::now() < deadline, "no checkpoint of shard {shard} says that the version was raised");
            nodes.push(world.start(3).await.expect("boots"));
            publish(&mut nodes, session, sent, sent + 10).await;
            sent += 10;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    // Started all the same it takes no part, and the others go on.
    world.supports = 1;
    let refused = world.start_partly(3).await;
    assert!(refused.is_none(), "an old program takes part");
    publish(&mut nodes, session, sent, sent + 10).await;
    sent += 10;
    replace(&mut world, &mut nodes, 3, 2).await;
    agree(&nodes, (sent - 1) * 5).await;
}
