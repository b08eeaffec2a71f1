//! The dead edge comes back (rule 19): what its clients held is with others, and it has its say about it still.

use super::*;
use crate::model::settings::DeadLetter;

fn one(seq: u64) -> Ranges {
    vec![(Seq(seq), Seq(seq))]
}

impl Edge {
    /// Rejects this message in a batch, whatever comes of it.
    async fn say_rejected(&mut self, seq: u64) {
        let batch = self.batch(|ops| ops.settle(Q, SettleReason::Reject, &one(seq)));
        let seq = batch.seq;
        self.up(ToLeader::Batch(batch)).await;
        assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }

    /// A return that counts where failed deliveries are counted, and the leader's word that it has heard of it.
    async fn say_failed(&mut self, seq: u64) {
        self.up(ToLeader::Return { queue: Q, ranges: one(seq), seen: true, failures: vec![] }).await;
        loop {
            let word = timeout(SOON, self.end.down_rx.recv()).await.expect("a word in time").expect("an open path");
            if word == (ToEdge::Recorded { queue: Q, ranges: one(seq) }) {
                return;
            }
        }
    }
}

fn live(shard: &Shard) -> Vec<u64> {
    let machine = shard.machine.lock();
    let ranges = machine.queue(Q).unwrap().live_ranges(Seq(0), Seq(u64::MAX));
    ranges.iter().flat_map(|(first, last)| first.0..=last.0).collect()
}

/// The edge of node 1 got messages 1 to `n` and counts as gone; all are with the edge of node 2 since. Its former session comes first.
async fn taken_over(shard: &Shard, n: u64) -> ((SessionId, u64), Edge) {
    let (mut gone, mut two) = (shard.edge(1).await, shard.edge(2).await);
    gone.consume(1, Q, None).await;
    two.publish(Q, 0..n as usize).await;
    gone.take(n as usize).await;
    let (session, incarnation) = (gone.session, gone.incarnation);
    drop(gone);
    two.consume(1, Q, None).await;
    assert_eq!(two.seqs(n as usize).await, (1..=n).collect::<Vec<_>>());
    ((session, incarnation), two)
}

/// The same, and it is back with the claim that it holds them.
async fn returned(shard: &Shard, n: u64) -> (Edge, Edge) {
    let ((session, incarnation), two) = taken_over(shard, n).await;
    let mut back = shard.arriving(1, incarnation).await;
    assert_ne!(back.session, session);
    back.attach(vec![attached(1, Q, None, vec![(Seq(1), Seq(n))])], vec![]).await;
    (back, two)
}

#[tokio::test]
async fn an_edge_that_was_declared_gone_rejects_nothing_that_another_one_holds() {
    let shard = Shard::with(QueueSettings {
        dead_letter: Some(DeadLetter { exchange: "dlx".into(), routing_key: None }),
        ..QueueSettings::default()
    });
    shard.office.closed.store(true, Ordering::Relaxed);
    let (mut back, mut two) = returned(&shard, 3).await;
    back.say_rejected(1).await;
    assert_eq!(live(&shard), [1, 2, 3]);
    back.settle(Q, 2, 2).await;
    assert_eq!(live(&shard), [1, 3], "an acknowledgement stands: somebody has dealt with it");
    two.say_rejected(1).await;
    assert_eq!(live(&shard), [3], "whoever holds it may");
    let letters = shard.machine.lock().waiting_letters(Q, 0).map(|(_, waiting)| waiting.dead.at.count);
    assert_eq!(letters, Some(1), "once");
}

#[tokio::test]
async fn a_message_that_waits_again_is_nobodys_to_reject() {
    let shard = Shard::with_queues(&[Q]);
    let (mut back, two) = returned(&shard, 1).await;
    two.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    back.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    assert_eq!(back.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: true });
    two.give_back(Q, 1, 1, true).await;
    while back.stat(Q).await.ready == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    back.say_rejected(1).await;
    assert_eq!(live(&shard), [1]);
}

#[tokio::test]
async fn a_part_of_a_transaction_rejects_nothing_that_another_edge_holds() {
    let shard = Shard::with_queues(&[Q]);
    let (mut back, two) = returned(&shard, 1).await;
    let tx = TxId { node: NodeId(1), incarnation: Incarnation(back.incarnation), number: 5 };
    let part = back.batch(|ops| {
        let start = ops.begin_part(tx, ShardId(1), &[]);
        ops.enqueue(&[Q], b"", b"key", &[0, 0], b"of the transaction");
        ops.settle(Q, SettleReason::Reject, &one(1));
        ops.end_part(start);
    });
    let decision = back.batch(|ops| assert_eq!(ops.word(tx, crate::model::entry::Word::Decide), 0));
    for batch in [part, decision] {
        let seq = batch.seq;
        back.up(ToLeader::Batch(batch)).await;
        assert_eq!(back.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }
    assert_eq!(live(&shard), [1, 2], "the rest of it took effect");
    drop(two);
}

#[tokio::test]
async fn a_failed_delivery_counts_only_where_the_message_is() {
    let shard = Shard::with(QueueSettings { delivery_limit: Some(0), ..QueueSettings::default() });
    let (mut back, mut two) = returned(&shard, 2).await;
    back.say_failed(1).await;
    assert_eq!(live(&shard), [1, 2]);
    two.say_failed(2).await;
    assert_eq!(live(&shard), [1], "once more than it may");
}

/// The two failures held apart: with the leader nothing is lost, for the session is known still.
#[tokio::test]
async fn rejects_and_failed_deliveries_of_an_edge_that_is_known_outlive_the_leader() {
    let shard = Shard::with(QueueSettings { delivery_limit: Some(0), ..QueueSettings::default() });
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    edge.publish(Q, 0..3).await;
    edge.take(3).await;
    let shard = shard.fail_over();
    let mut again = shard.arriving(1, edge.incarnation).await;
    assert_eq!(again.session, edge.session);
    again.give_back(Q, 2, 2, true).await;
    again.attach(vec![attached(1, Q, None, one(3))], vec![(Q, one(1))]).await;
    again.say_rejected(1).await;
    assert_eq!(live(&shard), [3]);
}

#[tokio::test]
async fn what_a_returned_edge_claims_of_a_new_leader_is_its_own_only_if_nobody_else_has_it() {
    let shard = Shard::with_queues(&[Q]);
    let ((_, incarnation), two) = taken_over(&shard, 3).await;
    let shard = shard.fail_over();
    let mut back = shard.arriving(1, incarnation).await;
    back.attach(vec![attached(1, Q, Some(3), vec![(Seq(1), Seq(3))])], vec![]).await;
    let mut two = shard.arriving(2, two.incarnation).await;
    two.attach(vec![attached(1, Q, Some(2), vec![(Seq(1), Seq(2))])], vec![]).await;
    two.say_rejected(1).await;
    assert_eq!(live(&shard), [2, 3], "it came to say so later, but it was given it");
    back.say_rejected(2).await;
    back.say_rejected(3).await;
    assert_eq!(live(&shard), [2], "the third was with nobody");
}
