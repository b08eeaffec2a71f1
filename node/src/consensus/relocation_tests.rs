//! A flood of which little stays: the logs of three nodes become small again, and what stayed can be read on each of them, after a power
//! loss of all and on one that was away meanwhile. The production stack in one process.

use super::snapshot_tests::{World, last};
use super::stack_tests::*;
use crate::machine::read_run;
use crate::model::entry::{EntryBuilder, Ops, SectionReply, SettleReason, StoredMessage};
use crate::model::link::Batch;
use crate::model::{BatchSeq, Seq, SessionId};
use crate::store::disk::sim::Crash;
use std::time::{Duration, Instant};

const PER_BATCH: u64 = 100;
/// As `snapshot_tests` has it.
const FILE_BYTES: u64 = 64 << 10;
const BUDGET_BYTES: u64 = 4 * FILE_BYTES;

fn text(seq: u64) -> String {
    format!("message {seq:0100}")
}

/// Batches `from..to`, of which every tenth message stays; of the first 150 of all only one does.
async fn flood(nodes: &mut [Node], session: SessionId, from: u64, to: u64) {
    for batch in from..to {
        let first = (batch - 1) * PER_BATCH + 1;
        let mut ops = Ops::default();
        (first..first + PER_BATCH).for_each(|seq| {
            ops.enqueue(&[QUEUE], b"", b"q", &[0, 0], text(seq).as_bytes());
        });
        let gone: Vec<(Seq, Seq)> = (first..first + PER_BATCH).filter(|seq| !stays(*seq)).map(|seq| (Seq(seq), Seq(seq))).collect();
        ops.settle(QUEUE, SettleReason::Ack, &gone);
        let mut entry = EntryBuilder::new(batch);
        entry.batch(&Batch { session, seq: BatchSeq(batch), floor: BatchSeq(batch - 1), catalog_index: 1, ops: ops.take() });
        let reply = propose(nodes, entry.finish()).await.1;
        assert_eq!(reply, SectionReply::Batch { session, seq: BatchSeq(batch), refused: Vec::new() });
    }
}

fn stays(seq: u64) -> bool {
    if seq <= 150 * PER_BATCH { seq == 7 } else { seq.is_multiple_of(10) }
}

fn staying(batches: u64) -> u64 {
    (1..batches * PER_BATCH + 1).filter(|seq| stays(*seq)).count() as u64
}

/// Files with data take no more than twice what is alive, beyond the budget.
fn bound(node: &Node) -> (u64, u64) {
    let live = node.replicas.data(DATA).expect("restored").lock().live_bytes();
    (node.wal.stats().files as u64 * FILE_BYTES, 2 * live + BUDGET_BYTES)
}

async fn becomes_small(nodes: &[Node]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while nodes.iter().any(|node| bound(node).0 > bound(node).1) {
        assert!(Instant::now() < deadline, "{:?}", nodes.iter().map(|node| (bound(node), node.wal.stats())).collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All that stays is read from this node's own disk.
fn has_all(node: &Node, batches: u64) {
    let machine = node.replicas.data(DATA).expect("restored");
    let mut runs = Vec::new();
    machine.lock().queue(QUEUE).expect("there").locate(0, Seq(1), usize::MAX, &mut runs);
    let mut found = Vec::new();
    for run in &runs {
        let entry = node.wal.read_body(DATA, run.index).unwrap_or_else(|error| panic!("entry {}: {error}", run.index));
        read_run(&entry, QUEUE, run, &mut found);
    }
    let found: Vec<(u64, bytes::Bytes)> =
        found.into_iter().map(|(seq, bytes)| (seq.0, StoredMessage::parse(bytes).expect("one").body)).collect();
    let wanted: Vec<(u64, bytes::Bytes)> = (1..=batches * PER_BATCH).filter(|seq| stays(*seq)).map(|seq| (seq, text(seq).into())).collect();
    assert!(found == wanted, "{} of {} on node {}", found.len(), wanted.len(), node.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_messages_that_stay_hold_no_disk_space_and_are_not_lost_by_power_cuts_nor_on_a_node_that_was_away() {
    let mut world = World::simulated();
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    flood(&mut nodes, session, 1, 301).await;
    becomes_small(&nodes).await;
    agree(&nodes, staying(300)).await;
    for node in &nodes {
        has_all(node, 300);
        let written = node.wal.stats();
        assert!(written.relocated_bytes > 0 && written.relocated_bytes < written.written_bytes / 2, "{written:?}");
    }
    drop(nodes);
    (1..=3).for_each(|id| world.crash(id, Crash::Power));
    let mut nodes = world.start_all().await;
    agree(&nodes, staying(300)).await;
    nodes.iter().for_each(|node| has_all(node, 300));
    // One is away while the others go on and clean up.
    let away = nodes.remove((leader(&nodes).await.0 + 1) % 3);
    let (id, behind) = (away.id.0, last(&away));
    drop(away);
    world.crash(id, Crash::Process);
    flood(&mut nodes, session, 301, 501).await;
    becomes_small(&nodes).await;
    assert!(nodes.iter().all(|node| node.wal.state(DATA).purged.is_some_and(|purged| purged.index > behind)), "or it needs no snapshot");
    nodes.push(world.start(id).await.expect("boots"));
    agree(&nodes, staying(500)).await;
    has_all(&nodes[2], 500);
    becomes_small(&nodes).await;
    // It takes what it got through a power cut, and can lead with it.
    drop(nodes.pop());
    world.crash(id, Crash::Power);
    nodes.push(world.start(id).await.expect("boots"));
    drop(nodes.remove(leader(&nodes).await.0));
    flood(&mut nodes, session, 501, 510).await;
    agree(&nodes, staying(509)).await;
    nodes.iter().for_each(|node| has_all(node, 509));
}
