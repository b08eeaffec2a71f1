//! Transactions over several shards: what an undecided one settles is with nobody else, and shards tell each other what edges cannot.

use super::*;
use crate::model::entry::Word;
use crate::model::ports::{Courier, WordHeard};

const OTHER: ShardId = ShardId(4);

type Said = (ShardId, TxId, Word, WordHeard);

/// Keeps what is said, once it is open.
#[derive(Default)]
pub(super) struct TestCourier {
    closed: AtomicBool,
    said: Mutex<Vec<Said>>,
}

impl Courier for TestCourier {
    fn tell(&self, shard: ShardId, tx: TxId, word: Word, heard: WordHeard) -> bool {
        let open = !self.closed.load(Ordering::Relaxed);
        if open {
            self.said.lock().push((shard, tx, word, heard));
        }
        open
    }
}

impl TestCourier {
    async fn said(&self, n: usize) -> Vec<(ShardId, TxId, Word)> {
        eventually(|| self.said.lock().len() >= n).await;
        self.said.lock().iter().map(|s| (s.0, s.1, s.2)).collect()
    }
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never");
}

fn tx(edge: &Edge, number: u64) -> TxId {
    TxId { node: NodeId(1), incarnation: Incarnation(edge.incarnation), number }
}

impl Edge {
    async fn prepare(&mut self, tx: TxId, decider: ShardId, others: &[ShardId], acked: (u64, u64)) {
        let batch = self.batch(|ops| {
            let start = ops.begin_part(tx, decider, others);
            ops.enqueue(&[Q], b"", b"key", &[0, 0], b"of the transaction");
            ops.settle(Q, SettleReason::Ack, &[(Seq(acked.0), Seq(acked.1))]);
            ops.end_part(start);
        });
        self.told(batch).await;
    }

    async fn say_word(&mut self, tx: TxId, word: Word) {
        let batch = self.batch(|ops| assert_eq!(ops.word(tx, word), 0));
        self.told(batch).await;
    }

    async fn told(&mut self, batch: Batch) {
        let seq = batch.seq;
        self.up(ToLeader::Batch(batch)).await;
        assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }
}

/// Messages 1 to 3; the edge of node 1 holds 1 and 2 and settles them in a transaction, then it is gone. The edge of node 2 consumes.
async fn orphaned(shard: &Shard) -> (Edge, TxId) {
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, Some(2)).await;
    two.publish(Q, 0..3).await;
    one.take(2).await;
    let tx = tx(&one, 5);
    one.prepare(tx, OTHER, &[], (1, 2)).await;
    two.consume(1, Q, None).await;
    assert_eq!(two.seqs(1).await, [3]);
    drop(one);
    (two, tx)
}

#[tokio::test]
async fn what_an_undecided_transaction_settles_goes_to_nobody_and_the_decider_is_asked() {
    let shard = Shard::with_queues(&[Q]);
    shard.courier.closed.store(true, Ordering::Relaxed);
    let (mut two, tx) = orphaned(&shard).await;
    eventually(|| shard.machine.lock().prepared(tx).unwrap().is_orphan).await;
    two.nothing().await;
    shard.courier.closed.store(false, Ordering::Relaxed);
    assert_eq!(shard.courier.said(1).await, [(OTHER, tx, Word::Ask { shard: ShardId(1) })], "at the next tick");
    two.nothing().await;
    two.say_word(tx, Word::Commit).await;
    assert_eq!(two.take(1).await, [(1, 4, false, "of the transaction".to_string())]);
    assert_eq!(two.stat(Q).await.ready, 0);
    assert_eq!(shard.courier.said(1).await.len(), 1);
}

#[tokio::test]
async fn what_a_transaction_settled_waits_again_when_it_is_given_up() {
    let shard = Shard::with_queues(&[Q]);
    let (mut two, tx) = orphaned(&shard).await;
    two.nothing().await;
    two.say_word(tx, Word::Abort).await;
    let again: Vec<_> = two.take(2).await.into_iter().map(|m| (m.1, m.2)).collect();
    assert_eq!(again, [(1, true), (2, true)], "somebody has seen them");
}

#[tokio::test]
async fn a_new_leader_knows_what_undecided_transactions_hold() {
    let shard = Shard::with_queues(&[Q]);
    let (two, tx) = orphaned(&shard).await;
    eventually(|| shard.machine.lock().prepared(tx).unwrap().is_orphan).await;
    let shard = shard.fail_over();
    let mut two = shard.arriving(2, two.incarnation).await;
    two.attach(vec![attached(1, Q, None, vec![(Seq(3), Seq(3))])], vec![]).await;
    assert_eq!(shard.courier.said(1).await, [(OTHER, tx, Word::Ask { shard: ShardId(1) })], "each leader asks");
    two.nothing().await;
    two.say_word(tx, Word::Commit).await;
    let got = two.take(1).await;
    assert_eq!((got[0].1, got[0].3.as_str()), (4, "of the transaction"));
}

#[tokio::test]
async fn a_decider_tells_what_an_edge_that_is_gone_cannot_tell() {
    let shard = Shard::with_queues(&[Q]);
    let mut one = shard.edge(1).await;
    let two = shard.edge(2).await;
    let (decided, given_up) = (tx(&one, 1), tx(&one, 2));
    one.prepare(decided, ShardId(1), &[OTHER], (9, 9)).await;
    one.prepare(given_up, ShardId(1), &[OTHER], (9, 9)).await;
    one.say_word(decided, Word::Decide).await;
    assert_eq!(shard.courier.said(0).await, [], "the edge does it");
    drop(one);
    assert_eq!(shard.courier.said(2).await, [(OTHER, decided, Word::Commit), (OTHER, given_up, Word::Abort)]);
    let shard = shard.fail_over();
    drop(two);
    assert_eq!(shard.courier.said(2).await.len(), 2, "nobody is known to have heard");
    shard.courier.said.lock().iter().for_each(|said| (said.3)());
    eventually(|| shard.machine.lock().decided(decided).is_none()).await;
    eventually(|| shard.machine.lock().decided(given_up).is_some_and(|d| d.waiting.is_empty())).await;
    let _newer = shard.edge_of(1, 999).await;
    assert_eq!(shard.machine.lock().transactions().count(), 0);
}

#[tokio::test]
async fn what_is_left_of_a_range_that_a_transaction_settled_waits_again_when_it_is_given_up() {
    let shard = Shard::with_queues(&[Q]);
    let (mut two, tx) = orphaned(&shard).await;
    // The first of the two leaves otherwise meanwhile.
    two.settle(Q, 1, 1).await;
    two.say_word(tx, Word::Abort).await;
    let again: Vec<_> = two.take(1).await.into_iter().map(|m| (m.1, m.2)).collect();
    assert_eq!(again, [(2, true)]);
    assert_eq!(two.stat(Q).await.unacked, 2);
}
