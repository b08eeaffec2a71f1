//! A disk whose syncs hang, under the production stack: who leads then, what waits for the disk, and what its late writes do.

use super::slow_disk::heir;
use super::stack_tests::*;
use super::*;
use crate::model::entry::{EntryBuilder, EntryBytes, Ops};
use crate::model::limits::{SLOW_WRITE, UNFLUSHED_BYTES};
use crate::model::link::Batch;
use crate::model::ports::{Leadership, ProposalOutcome, Proposer};
use crate::model::{BatchSeq, NodeId, SessionId};
use crate::peer::memory::MemoryNetwork;
use crate::store::disk::SimDisk;
use crate::store::wal::WalConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};

async fn cluster(disks: &[SimDisk]) -> Vec<Node> {
    let (network, n) = (MemoryNetwork::default(), disks.len() as u16);
    let boots = disks.iter().cloned().zip(1u16..).map(|(disk, id)| {
        let network = network.clone();
        async move {
            let wire: start::Wire = Box::new(move |handler| Ok(network.join(NodeId(id), handler)));
            let config = WalConfig { file_bytes: 4 << 20, ..WalConfig::default() };
            boot_with(id, n, Arc::new(disk), None, wire, config, Timing::default()).await.expect("boots")
        }
    });
    boot_all(boots).await
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_hangs_gives_its_groups_away_and_its_late_writes_do_no_harm() {
    let disks: Vec<SimDisk> = (1..=3).map(SimDisk::new).collect();
    let mut nodes = cluster(&disks).await;
    let session = open_session(&mut nodes).await;
    let leads = |node: &Node| {
        let group = node.consensus.shard(DATA).expect("member");
        group.leadership().borrow().as_me().filter(|_| group.lease_valid())
    };
    let preferred = nodes[0].consensus.shard(DATA).expect("member").voters()[0].node;
    let old = nodes.iter().position(|n| n.id == preferred).expect("a member");
    eventually("the preferred node leads", || leads(&nodes[old]).is_some()).await;
    publish(&mut nodes, session, 1, 20).await;

    disks[old].hang_syncs(true);
    let hung = Instant::now();
    publish(&mut nodes, session, 20, 25).await;
    let others: Vec<usize> = (0..3).filter(|at| *at != old).collect();
    eventually("another node leads", || others.iter().any(|at| leads(&nodes[*at]).is_some())).await;
    println!("another node led {:?} after the disk hung", hung.elapsed());
    publish(&mut nodes, session, 25, 60).await;
    assert!(nodes[old].wal.writing_for().is_some_and(|took| took >= SLOW_WRITE), "it still hangs");
    assert!(nodes[old].consensus.slow_disks().given_away() > 0);
    let of_old = nodes[old].consensus.leadership(DATA);
    let knows = || {
        let now = others.iter().find_map(|at| leads(&nodes[*at]));
        now.is_some() && *of_old.borrow() == Leadership { leader: now, is_me: false }
    };
    eventually("its clients are told who leads, though its own group waits for the disk", knows).await;
    for at in &others {
        eventually("the others know", || nodes[*at].consensus.core.slow_disks.is_slow(preferred)).await;
    }

    disks[old].hang_syncs(false);
    agree(&nodes, 59 * 5).await;
    let (new, _) = leader(&nodes).await;
    assert_ne!(new, old);
    let (core, group) = (&nodes[new].consensus.core, nodes[new].consensus.shard(DATA).expect("member"));
    eventually("it has caught up", || group.matching(group.voters()[0]) == nodes[new].wal.state(DATA).last.map(|l| l.index)).await;
    eventually("its word counts", || core.slow_disks.is_slow(preferred) && failover::misplaced(core, &group).is_none()).await;
    let when_well = || {
        core.slow_disks.told(preferred, false);
        failover::misplaced(core, &group) == Some(preferred)
    };
    eventually("only for its disk it gets no leadership back", when_well).await;
    publish(&mut nodes, session, 60, 70).await;
    agree(&nodes, 69 * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_inherits_from_a_leader_without_whose_disk_nothing_is_committed() {
    let disks: Vec<SimDisk> = (1..=3).map(SimDisk::new).collect();
    let nodes = cluster(&disks).await;
    let (at, _) = leader(&nodes).await;
    let (core, group) = (&nodes[at].consensus.core, nodes[at].consensus.shard(DATA).expect("member"));
    eventually("both others could lead", || heir(core, &group).is_some_and(|heir| heir != core.me)).await;
    for other in core.others() {
        let nobody = || {
            core.slow_disks.told(other, true);
            heir(core, &group).is_none()
        };
        eventually("one working disk of three is no majority", nobody).await;
        core.slow_disks.told(other, false);
    }
}

/// A batch with one message of a mebibyte.
fn large(session: SessionId, seq: u64) -> EntryBytes {
    let mut ops = Ops::default();
    ops.enqueue(&[QUEUE], b"", b"q", &[0, 0], &vec![seq as u8; 1 << 20]);
    let mut entry = EntryBuilder::new(seq);
    let (seq, floor) = (BatchSeq(seq), BatchSeq(seq - 1));
    entry.batch(&Batch { session, seq, floor, catalog_index: 1, ops: ops.take() });
    entry.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_takes_no_more_while_too_much_waits_for_its_disk() {
    let disks = [SimDisk::new(1)];
    let mut nodes = cluster(&disks).await;
    let session = open_session(&mut nodes).await;
    let (_, under) = leader(&nodes).await;
    let shard = nodes[0].consensus.shard(DATA).expect("member");
    let wal = nodes[0].wal.clone();
    disks[0].hang_syncs(true);
    let mut sent = 0;
    while wal.unflushed() <= UNFLUSHED_BYTES {
        let before = wal.unflushed();
        sent += 1;
        shard.propose(1000 + sent, under, large(session, sent));
        eventually("it is taken", || wal.unflushed() > before).await;
    }
    let before = wal.unflushed();
    sent += 1;
    shard.propose(1000 + sent, under, large(session, sent));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(wal.unflushed(), before, "one more was taken");
    assert!(before <= UNFLUSHED_BYTES + (2 << 20));
    disks[0].hang_syncs(false);
    for n in 1..=sent {
        let outcome = tokio::time::timeout(Duration::from_secs(60), nodes[0].outcomes.recv()).await.expect("in time");
        let (token, outcome) = outcome.expect("an outcome");
        assert!(token == 1000 + n && matches!(outcome, ProposalOutcome::Applied(..)), "{token}: {outcome:?}");
    }
    eventually("all is on the disk", || wal.unflushed() == 0 && wal.writing_for().is_none()).await;
}
