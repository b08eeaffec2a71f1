//! Deliveries: their order, what bounds them, what is given back.

use super::*;

#[tokio::test]
async fn messages_are_delivered_in_order_once() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..5).await;
    edge.consume(1, Q, None).await;
    edge.publish(Q, 5..8).await;
    let got = edge.take(8).await;
    let expected: Vec<_> = (0..8).map(|n| (1, n as u64 + 1, false, format!("m{n}"))).collect();
    assert_eq!(got, expected);
    edge.nothing().await;
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked, stat.consumers), (0, 8, 1));
    edge.settle(Q, 1, 8).await;
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked, stat.bytes), (0, 0, 0));
    assert!(shard.bodies.is_empty(), "freed entries are forgotten");
}

#[tokio::test]
async fn prefetch_bounds_what_a_consumer_holds() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(3)).await;
    edge.publish(Q, 0..10).await;
    assert_eq!(edge.seqs(3).await, [1, 2, 3]);
    edge.nothing().await;
    edge.credit(1, 2, 0).await;
    assert_eq!(edge.seqs(2).await, [4, 5]);
    edge.nothing().await;
}

#[tokio::test]
async fn another_prefetch_counts_from_what_is_held_already() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(3)).await;
    edge.publish(Q, 0..20).await;
    assert_eq!(edge.seqs(3).await, [1, 2, 3]);
    let prefetch = |limit, held| ToLeader::Prefetch { consumer: ConsumerId(1), limit, held };
    edge.up(prefetch(Some(5), 3)).await;
    assert_eq!(edge.seqs(2).await, [4, 5]);
    edge.up(prefetch(Some(2), 5)).await;
    edge.credit(1, 3, 0).await;
    edge.nothing().await;
    edge.credit(1, 1, 0).await;
    assert_eq!(edge.seqs(1).await, [6], "it holds two, as many as it may");
    edge.up(prefetch(None, 2)).await;
    assert_eq!(edge.seqs(14).await, (7..=20).collect::<Vec<_>>());
    edge.publish(Q, 20..30).await;
    assert_eq!(edge.seqs(10).await, (21..=30).collect::<Vec<_>>());
    edge.up(prefetch(Some(27), 26)).await;
    edge.publish(Q, 30..40).await;
    assert_eq!(edge.seqs(1).await, [31], "a first limit counts what the edge holds");
    edge.nothing().await;
}

#[tokio::test]
async fn byte_credit_bounds_what_is_on_the_way() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    let mut spec = consumer(1, Q, None);
    spec.window_bytes = 25;
    edge.up(ToLeader::Consume(spec)).await;
    edge.down().await;
    edge.publish(Q, 0..9).await;
    assert_eq!(edge.seqs(2).await, [1, 2], "a message of 14 bytes may overdraw the window");
    edge.nothing().await;
    edge.credit(1, 0, 28).await;
    assert_eq!(edge.seqs(2).await, [3, 4]);
    edge.nothing().await;
}

#[tokio::test]
async fn consumers_of_several_edges_take_turns() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    two.consume(1, Q, None).await;
    tokio::time::sleep(QUIET).await;
    one.publish(Q, 0..10).await;
    let (a, b) = (one.seqs(5).await, two.seqs(5).await);
    let mut all = [a, b].concat();
    all.sort();
    assert_eq!(all, (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_returned_message_comes_again_at_its_place() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(4)).await;
    edge.publish(Q, 0..8).await;
    edge.take(4).await;
    edge.give_back(Q, 2, 2, true).await;
    edge.give_back(Q, 4, 4, false).await;
    edge.credit(1, 3, 0).await;
    let got = edge.take(3).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(2, true), (4, false), (5, false)]);
}

#[tokio::test]
async fn a_consumer_that_does_not_read_stops_nobody_else() {
    let shard = Shard::with_queues(&[Q, Q2]);
    let (mut slow, mut quick) = (shard.edge(1).await, shard.edge(2).await);
    slow.consume(1, Q, None).await;
    quick.consume(1, Q, None).await;
    slow.consume(2, Q2, None).await;
    let body = vec![0; 100_000];
    for _ in 0..60 {
        let batch = quick.batch(|ops| {
            ops.enqueue(&[Q], b"", b"", &[0, 0], &body);
        });
        quick.up(ToLeader::Batch(batch)).await;
    }
    let mut seen = 0;
    while seen < 60 - 12 {
        tokio::select! {
            down = quick.end.down_rx.recv() => assert!(matches!(down, Some(ToEdge::Verdict { .. }))),
            got = timeout(SOON, quick.end.deliveries_rx.recv()) => {
                let got = got.unwrap_or_else(|_| panic!("stopped after {seen}")).unwrap();
                seen += got.messages.len();
                let bytes = got.messages.iter().map(|m| m.message.len() as u64).sum();
                quick.credit(1, 0, bytes).await;
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_delivered_without_a_lease() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    shard.gate.lease.store(false, Ordering::Relaxed);
    edge.consume(1, Q, None).await;
    edge.publish(Q, 0..1).await;
    edge.nothing().await;
    shard.gate.lease.store(true, Ordering::Relaxed);
    assert_eq!(edge.seqs(1).await, [1]);
}

#[tokio::test]
async fn bodies_from_disk_come_in_order_too() {
    let shard = Shard::cold();
    shard.declare(&[Q]);
    let mut edge = shard.edge(1).await;
    for n in 0..40 {
        edge.publish(Q, n * 10..(n + 1) * 10).await;
    }
    edge.consume(1, Q, Some(350)).await;
    assert_eq!(edge.seqs(350).await, (1..=350).collect::<Vec<_>>());
    edge.give_back(Q, 5, 6, true).await;
    edge.credit(1, 3, 0).await;
    assert_eq!(edge.seqs(3).await, [5, 6, 351]);
}

/// The index of the entry that holds a message.
fn entry_of(shard: &Shard, queue: QueueId, seq: u64) -> u64 {
    let mut located = Vec::new();
    shard.machine.lock().queue(queue).unwrap().locate(0, Seq(seq), 1, &mut located);
    located[0].index
}

#[tokio::test]
async fn messages_that_no_replica_can_read_stop_their_queue_alone_and_only_until_they_can() {
    let shard = Shard::cold();
    shard.declare(&[Q, Q2]);
    let mut edge = shard.edge(1).await;
    for n in 0..4 {
        edge.publish(Q, n * 10..(n + 1) * 10).await;
        edge.publish(Q2, 0..1).await;
    }
    shard.bad.lock().push(entry_of(&shard, Q, 21));
    edge.consume(1, Q, None).await;
    assert_eq!(edge.seqs(20).await, (1..=20).collect::<Vec<_>>(), "what comes before them is delivered");
    edge.nothing().await;
    edge.consume(2, Q2, None).await;
    assert_eq!(edge.take(4).await.iter().map(|m| m.0).collect::<Vec<_>>(), [2; 4], "the other queue goes on");
    edge.settle(Q, 1, 20).await;
    shard.bad.lock().clear();
    assert_eq!(edge.seqs(20).await, (21..=40).collect::<Vec<_>>(), "in order, none passed over");
}

#[tokio::test]
async fn while_one_entry_is_slow_to_read_no_more_than_a_few_bytes_of_later_ones_wait_for_it() {
    let shard = Shard::cold();
    shard.declare(&[Q]);
    let mut edge = shard.edge(1).await;
    for n in 0..40 {
        let batch = edge.batch(|ops| {
            ops.enqueue(&[Q], b"", b"key", &[0, 0], &vec![n; 1 << 20]);
        });
        let seq = batch.seq;
        edge.up(ToLeader::Batch(batch)).await;
        assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }
    shard.slow.index.store(entry_of(&shard, Q, 1), Ordering::Relaxed);
    edge.consume(1, Q, None).await;
    edge.nothing().await;
    let reads = shard.slow.reads.load(Ordering::Relaxed);
    assert!((2..=12).contains(&reads), "{reads} entries of 1 MiB were read");
    shard.slow.go.notify_one();
    let mut seqs = Vec::new();
    while seqs.len() < 40 {
        let got = timeout(SOON, edge.end.deliveries_rx.recv()).await.expect("all of them").expect("path closed");
        seqs.extend(got.messages.iter().map(|m| m.seq.0));
        edge.credit(1, 0, got.messages.iter().map(|m| m.message.len() as u64).sum()).await;
    }
    assert_eq!(seqs, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_purge_frees_a_queue_whose_messages_cannot_be_read() {
    let shard = Shard::cold();
    shard.declare(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..10).await;
    shard.bad.lock().push(entry_of(&shard, Q, 1));
    edge.consume(1, Q, None).await;
    edge.nothing().await;
    edge.up(ToLeader::Purge { request: 9, queue: Q }).await;
    assert_eq!(edge.down().await, ToEdge::Purged { request: 9, result: Ok(10) });
    edge.publish(Q, 10..12).await;
    assert_eq!(edge.seqs(2).await, [11, 12]);
}

#[tokio::test]
async fn a_long_queue_is_delivered_through_renewed_reservations() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    for n in 0..10 {
        edge.publish(Q, n * 1000..(n + 1) * 1000).await;
    }
    edge.consume(1, Q, None).await;
    assert_eq!(edge.seqs(10_000).await, (1..=10_000).collect::<Vec<_>>());
    assert!(shard.machine.lock().queue(Q).unwrap().reserved() >= Seq(10_000));
}
