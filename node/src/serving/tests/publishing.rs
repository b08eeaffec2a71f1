//! Batches and proposals: order, repeats, refusals, what cannot be read.

use super::*;

#[tokio::test]
async fn a_batch_out_of_order_is_sent_back_once() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    let batches: Vec<Batch> = (0..4).map(|n| edge.messages(Q, n..n + 1)).collect();
    for batch in [&batches[1], &batches[2], &batches[0], &batches[1], &batches[2], &batches[3]] {
        edge.up(ToLeader::Batch(batch.clone())).await;
    }
    assert_eq!(edge.down().await, ToEdge::Rewind { from: BatchSeq(1) });
    for seq in 1..=4 {
        assert_eq!(edge.down().await, ToEdge::Verdict { seq: BatchSeq(seq), refused: vec![] });
    }
    assert_eq!(edge.stat(Q).await.ready, 4);
}

#[tokio::test]
async fn a_repeated_batch_gets_the_same_verdict_and_no_second_effect() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    let batch = edge.batch(|ops| {
        ops.enqueue(&[Q], b"", b"", &[0, 0], b"known");
        ops.enqueue(&[QueueId(99)], b"", b"", &[0, 0], b"unknown");
    });
    for _ in 0..2 {
        edge.up(ToLeader::Batch(batch.clone())).await;
        let refused = vec![(1, RefusedEnqueue::UnknownQueue)];
        assert_eq!(edge.down().await, ToEdge::Verdict { seq: BatchSeq(1), refused });
    }
    assert_eq!(edge.stat(Q).await.ready, 1);
}

/// Batches of each edge in each entry of fault test 1.
const IN_ENTRY: usize = 2;
/// So large that just those of two edges fill an entry.
const FILLED: usize = limits::ENTRY_BYTES / (2 * IN_ENTRY + 1) + 1024;

/// A batch with one large message.
fn filled(edge: &mut Edge, name: &str, n: usize) -> Batch {
    edge.batch(|ops| {
        let body = format!("{name}{n}{}", " ".repeat(FILLED));
        ops.enqueue(&[Q], b"", b"key", &[0, 0], body.as_bytes());
    })
}

impl Shard {
    async fn holds(&self, entries: usize) {
        while self.gate.held.lock().as_ref().unwrap().len() < entries {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The verdicts of all of `unanswered`, in order, and how often the leader wanted batches once more.
async fn answered(edge: &mut Edge, mut unanswered: VecDeque<Batch>) -> usize {
    let mut rewinds = 0;
    while let Some(first) = unanswered.front().map(|batch| batch.seq) {
        match edge.down().await {
            ToEdge::Verdict { seq, refused } => {
                assert_eq!((seq, refused), (first, vec![]), "verdicts come in order");
                unanswered.pop_front();
            }
            ToEdge::Rewind { from } => {
                rewinds += 1;
                assert_eq!(from, first, "everything before the refused one has its verdict");
                for batch in &unanswered {
                    edge.up(ToLeader::Batch(batch.clone())).await;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    rewinds
}

/// Fault test 1 of the rules: of several proposals in flight, each with several batches of two edges, exactly one is refused, the later
/// ones are not.
async fn one_of_several_is_refused(position: usize) {
    const ENTRIES: usize = limits::ENTRIES_IN_FLIGHT;
    let shard = Shard::patient();
    let mut edges = [shard.edge(1).await, shard.edge(2).await];
    *shard.gate.held.lock() = Some(VecDeque::new());
    for n in 0..ENTRIES {
        let batch = edges[0].messages(Q, n..n + 1);
        edges[0].up(ToLeader::Batch(batch)).await;
        shard.holds(n + 1).await;
    }
    // No slot is free: what comes now waits, and shares entries.
    let mut unanswered = [VecDeque::new(), VecDeque::new()];
    for ((edge, name), unanswered) in edges.iter_mut().zip(["a", "b"]).zip(&mut unanswered) {
        for n in 0..ENTRIES * IN_ENTRY {
            let batch = filled(edge, name, n);
            unanswered.push_back(batch.clone());
            edge.up(ToLeader::Batch(batch)).await;
        }
        edge.stat(Q).await;
    }
    let first: Vec<_> = shard.gate.held.lock().as_mut().unwrap().drain(..).collect();
    for (token, leader, entry) in first {
        shard.gate.inner.propose(token, leader, entry);
    }
    for seq in 1..=ENTRIES as u64 {
        assert_eq!(edges[0].down().await, ToEdge::Verdict { seq: BatchSeq(seq), refused: vec![] });
    }
    shard.holds(ENTRIES).await;
    let held = shard.gate.held.lock().take().unwrap();
    for (at, (token, leader, entry)) in held.into_iter().enumerate() {
        let len = entry.len();
        assert!((2 * IN_ENTRY * FILLED..=limits::ENTRY_BYTES).contains(&len), "{len} bytes are not the batches that it should have");
        match at == position {
            true => shard.server.outcome(token, ProposalOutcome::Failed("refused".into())),
            false => shard.gate.inner.propose(token, leader, entry),
        }
    }
    for (edge, unanswered) in edges.iter_mut().zip(unanswered) {
        assert_eq!(answered(edge, unanswered).await, 1, "times sent back");
    }
    edges[0].consume(1, Q, None).await;
    let all = ENTRIES + 2 * ENTRIES * IN_ENTRY;
    let got: Vec<String> = edges[0].take(all).await.into_iter().map(|g| g.3.trim_end().to_string()).collect();
    for (name, count) in [("m", ENTRIES), ("a", ENTRIES * IN_ENTRY), ("b", ENTRIES * IN_ENTRY)] {
        let of: Vec<&String> = got.iter().filter(|body| body.starts_with(name)).collect();
        assert_eq!(of, (0..count).map(|n| format!("{name}{n}")).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    }
    edges[0].nothing().await;
}

#[tokio::test]
async fn a_refused_proposal_rewinds_at_every_position_and_nothing_is_lost_doubled_or_reordered() {
    for position in 0..limits::ENTRIES_IN_FLIGHT {
        one_of_several_is_refused(position).await;
    }
}

/// The first copy took effect and has its verdict, so the edge has nothing to send again that the leader could wait for.
#[tokio::test]
async fn a_second_copy_that_fails_does_not_send_the_edge_back_behind_its_verdicts() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    *shard.gate.held.lock() = Some(VecDeque::new());
    let (first, mut second) = (edge.messages(Q, 0..1), edge.messages(Q, 1..2));
    for copies in 1..=2 {
        edge.up(ToLeader::Batch(first.clone())).await;
        while shard.gate.held.lock().as_ref().unwrap().len() < copies {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let mut held = shard.gate.held.lock().take().unwrap();
    let (token, leader, entry) = held.pop_front().unwrap();
    shard.gate.inner.propose(token, leader, entry);
    shard.server.outcome(held.pop_front().unwrap().0, ProposalOutcome::Failed("refused".into()));
    assert_eq!(edge.down().await, ToEdge::Verdict { seq: first.seq, refused: vec![] });
    assert_eq!(edge.down().await, ToEdge::Rewind { from: first.seq });
    second.floor = first.seq;
    edge.up(ToLeader::Batch(second.clone())).await;
    assert_eq!(edge.down().await, ToEdge::Verdict { seq: second.seq, refused: vec![] });
}

#[tokio::test]
async fn everything_the_leader_proposes_itself_survives_failures() {
    let shard = Shard::new();
    shard.gate.fail.store(3, Ordering::Relaxed);
    let mut edge = shard.edge(1).await;
    shard.gate.fail.store(2, Ordering::Relaxed);
    shard.declare(&[Q]);
    edge.consume(1, Q, None).await;
    shard.gate.fail.store(0, Ordering::Relaxed);
    edge.publish(Q, 0..1).await;
    assert_eq!(edge.seqs(1).await, [1]);
}

#[tokio::test]
async fn a_queue_exists_once_the_shard_follows_the_catalog() {
    let shard = Shard::new();
    let mut edge = shard.edge(1).await;
    let mut batch = edge.messages(Q, 0..1);
    batch.catalog_index = 1;
    let seq = batch.seq;
    edge.up(ToLeader::Batch(batch)).await;
    edge.nothing().await;
    shard.declare(&[Q]);
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused: vec![] });
    edge.consume(1, Q, None).await;
    assert_eq!(edge.seqs(1).await, [1]);
    edge.up(ToLeader::Consume(consumer(2, QueueId(77), None))).await;
    let ToEdge::Consuming { result: Err(Refusal::NotFound { .. }), .. } = edge.down().await else { panic!() };
}

#[tokio::test]
async fn a_batch_behind_a_failed_advance_is_not_refused() {
    let shard = Shard::with_queues(&[Q]);
    let mut a = shard.edge(1).await;
    a.publish(Q, 0..1).await;
    *shard.gate.held.lock() = Some(VecDeque::new());
    shard.declare(&[Q2]);
    tokio::time::sleep(QUIET).await;
    assert_eq!(shard.gate.held.lock().as_ref().unwrap().len(), 1, "the advance");
    let index = shard.catalog.0.lock().0;
    let mut batch = a.messages(Q2, 0..1);
    batch.catalog_index = index;
    let seq = batch.seq;
    a.up(ToLeader::Batch(batch.clone())).await;
    tokio::time::sleep(QUIET).await;
    let mut held = shard.gate.held.lock().take().unwrap();
    assert_eq!(held.len(), 2);
    let (failed, ..) = held.pop_front().unwrap();
    shard.gate.server.outcome(failed, ProposalOutcome::Failed("lease".into()));
    let (token, leader, entry) = held.pop_front().unwrap();
    shard.gate.inner.propose(token, leader, entry);
    assert_eq!(a.down().await, ToEdge::Rewind { from: seq });
    a.up(ToLeader::Batch(batch)).await;
    assert_eq!(a.down().await, ToEdge::Verdict { seq, refused: vec![] });
    assert_eq!(a.stat(Q2).await.ready, 1);
    assert_eq!(token >> crate::model::ports::EPOCH_SHIFT, failed >> crate::model::ports::EPOCH_SHIFT);
    *shard.gate.held.lock() = Some(VecDeque::new());
    let batch = a.messages(Q, 1..2);
    a.up(ToLeader::Batch(batch)).await;
    tokio::time::sleep(QUIET).await;
    let (anew, ..) = shard.gate.held.lock().as_mut().unwrap().pop_front().unwrap();
    assert!(anew >= crate::model::ports::next_epoch(failed), "proposed by a server that knows of the failure");
}

/// An entry that the machine cannot read would stop the shard on all nodes, for good.
#[tokio::test]
async fn a_batch_that_cannot_be_read_ends_its_path_and_is_not_proposed() {
    let shard = Shard::with_queues(&[Q]);
    let mut good = shard.edge(1).await;
    let whole = good.messages(Q, 0..2).ops;
    good.next = 1;
    let mut reserve = Ops::default();
    reserve.reserve(Q, Seq(9), &[]);
    let mut settle = Ops::default();
    settle.settle(Q, SettleReason::Ack, &[(Seq(1), Seq(1))]);
    let settle = settle.take();
    let bad =
        [whole.slice(..whole.len() - 1), whole.slice(1..), reserve.take(), settle.slice(..9), b"\x01\x00\x00\x00\x00".as_slice().into()];
    for (n, ops) in bad.into_iter().enumerate() {
        let mut edge = shard.edge(2 + n as u16).await;
        let batch = Batch { session: edge.session, seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 0, ops };
        edge.up(ToLeader::Batch(batch)).await;
        assert!(timeout(SOON, edge.end.down_rx.recv()).await.expect("in time").is_none(), "the path ends");
    }
    good.publish(Q, 0..2).await;
    assert_eq!(good.stat(Q).await.ready, 2);
}

#[tokio::test]
async fn a_queue_that_comes_and_goes_while_its_advance_is_on_the_way_is_dropped_without_a_change_log_too() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..1).await;
    shard.catalog.1.store(true, Ordering::Relaxed);
    *shard.gate.held.lock() = Some(VecDeque::new());
    shard.declare(&[Q2]);
    tokio::time::sleep(QUIET).await;
    assert_eq!(shard.gate.held.lock().as_ref().unwrap().len(), 1, "the advance that makes it");
    shard.drop_queue(Q2);
    tokio::time::sleep(QUIET).await;
    let held = shard.gate.held.lock().take().unwrap();
    held.into_iter().for_each(|(token, leader, entry)| shard.gate.inner.propose(token, leader, entry));
    let index = shard.catalog.0.lock().0;
    let followed = async {
        while shard.machine.lock().catalog_index() < index {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, followed).await.expect("the shard follows the catalog");
    let queues: Vec<_> = shard.machine.lock().queues().map(|(id, _)| id).collect();
    assert_eq!(queues, [Q]);
}

#[tokio::test]
async fn entries_are_written_in_the_version_that_the_catalog_has_come_to() {
    let machine = Arc::new(Mutex::new(DataMachine::supporting(2, ShardId(1))));
    let shard = Shard::over(machine, Arc::default(), Arc::default(), 1, SETUP);
    shard.declare(&[Q]);
    let mut edge = shard.edge(1).await;
    let batch = edge.messages(Q, 0..3);
    edge.up(ToLeader::Batch(batch)).await;
    assert!(matches!(edge.down().await, ToEdge::Verdict { .. }));
    assert_eq!(shard.machine.lock().version(), 1);
    shard.catalog.3.store(2, Ordering::Relaxed);
    shard.declare(&[]);
    let batch = edge.messages(Q, 3..6);
    edge.up(ToLeader::Batch(batch)).await;
    assert!(matches!(edge.down().await, ToEdge::Verdict { .. }));
    assert_eq!(shard.machine.lock().version(), 2);
    // A new leader knows it, too.
    let shard = shard.fail_over();
    let mut edge = shard.edge(1).await;
    let batch = edge.messages(Q, 6..7);
    edge.up(ToLeader::Batch(batch)).await;
    assert!(matches!(edge.down().await, ToEdge::Verdict { .. }));
    assert_eq!(shard.machine.lock().queue(Q).unwrap().live_count(), 7);
}
