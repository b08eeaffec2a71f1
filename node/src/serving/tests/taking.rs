//! Takes: several messages at once, waiting for some, alone.

use super::*;

impl Edge {
    async fn ask_to_take(&self, request: u64, queue: QueueId, most: u32, (alone, patient): (bool, bool)) {
        self.up(ToLeader::Take { request, queue, most, alone, patient }).await;
    }

    /// The answer to that take: seqs, and whether they were delivered before.
    async fn took(&mut self, request: u64) -> Vec<(u64, bool)> {
        match self.down().await {
            ToEdge::Took { request: answered, result } => {
                assert_eq!(answered, request);
                result.unwrap().iter().map(|d| (d.seq.0, d.redelivered)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    async fn take_now(&mut self, queue: QueueId, most: u32, alone: bool) -> Vec<u64> {
        self.ask_to_take(9, queue, most, (alone, false)).await;
        self.took(9).await.into_iter().map(|(seq, _)| seq).collect()
    }

    async fn no_answer(&mut self) {
        if let Ok(got) = timeout(QUIET, self.end.down_rx.recv()).await {
            panic!("{got:?}");
        }
    }
}

#[tokio::test]
async fn a_take_gets_what_is_there_up_to_so_many() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    assert_eq!(edge.take_now(Q, 16, false).await, [0u64; 0]);
    edge.publish(Q, 0..5).await;
    assert_eq!(edge.take_now(Q, 3, false).await, [1, 2, 3]);
    assert_eq!(edge.take_now(Q, 3, false).await, [4, 5]);
    assert_eq!(edge.take_now(Q, 3, false).await, [0u64; 0]);
    assert_eq!(edge.stat(Q).await.unacked, 5);
    edge.give_back(Q, 2, 3, true).await;
    edge.ask_to_take(9, Q, 16, (false, false)).await;
    assert_eq!(edge.took(9).await, [(2, true), (3, true)]);
}

#[tokio::test]
async fn a_patient_take_waits_for_messages_and_one_message_answers_one() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.ask_to_take(1, Q, 16, (false, true)).await;
    one.no_answer().await;
    two.ask_to_take(2, Q, 16, (false, true)).await;
    two.no_answer().await;
    let (batch, seq) = {
        let batch = two.messages(Q, 0..1);
        (batch.clone(), batch.seq)
    };
    two.up(ToLeader::Batch(batch)).await;
    assert_eq!(two.down().await, ToEdge::Verdict { seq, refused: vec![] });
    assert_eq!(one.took(1).await, [(1, false)], "the first who asked");
    two.no_answer().await;
    one.publish(Q, 1..2).await;
    assert_eq!(two.took(2).await, [(2, false)]);
}

#[tokio::test]
async fn a_withdrawn_take_gets_nothing() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.ask_to_take(1, Q, 16, (false, true)).await;
    edge.up(ToLeader::Withdraw { request: 1, queue: Q }).await;
    edge.publish(Q, 0..1).await;
    edge.no_answer().await;
    assert_eq!(edge.take_now(Q, 1, false).await, [1]);
}

#[tokio::test]
async fn who_wants_to_be_alone_waits_until_nobody_holds_a_message() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.publish(Q, 0..5).await;
    assert_eq!(one.take_now(Q, 2, true).await, [1, 2]);
    assert_eq!(two.take_now(Q, 2, true).await, [0u64; 0], "at once");
    two.ask_to_take(3, Q, 2, (true, true)).await;
    one.settle(Q, 1, 1).await;
    two.no_answer().await;
    one.settle(Q, 2, 2).await;
    assert_eq!(two.took(3).await, [(3, false), (4, false)]);
    two.give_back(Q, 3, 4, true).await;
    one.ask_to_take(4, Q, 16, (true, true)).await;
    assert_eq!(one.took(4).await, [(3, true), (4, true), (5, false)], "what came back comes first");
}

#[tokio::test]
async fn what_is_held_stays_held_under_a_new_leader() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, two) = (shard.edge(1).await, shard.edge(2).await);
    one.publish(Q, 0..3).await;
    assert_eq!(one.take_now(Q, 1, true).await, [1]);
    let shard = shard.fail_over();
    let mut two = shard.arriving(2, two.incarnation).await;
    two.attach(vec![], vec![]).await;
    two.ask_to_take(5, Q, 2, (true, true)).await;
    two.no_answer().await;
    let mut one = shard.arriving(1, one.incarnation).await;
    one.attach(vec![], vec![(Q, vec![(Seq(1), Seq(1))])]).await;
    two.no_answer().await;
    one.settle(Q, 1, 1).await;
    assert_eq!(two.took(5).await, [(2, false), (3, false)]);
}

#[tokio::test]
async fn a_take_of_an_edge_that_came_back_is_answered_once() {
    let shard = Shard::with_queues(&[Q]);
    let edge = shard.edge(1).await;
    edge.ask_to_take(1, Q, 1, (false, true)).await;
    let mut again = shard.edge_of(1, edge.incarnation).await;
    again.ask_to_take(1, Q, 1, (false, true)).await;
    again.no_answer().await;
    let batch = again.messages(Q, 0..2);
    again.up(ToLeader::Batch(batch)).await;
    let answers = [again.down().await, again.down().await];
    assert!(answers.iter().any(|a| matches!(a, ToEdge::Took { request: 1, result: Ok(messages) } if messages.len() == 1)), "{answers:?}");
    assert_eq!(again.take_now(Q, 5, false).await, [2]);
}

#[tokio::test]
async fn a_take_from_a_queue_that_goes_is_refused() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.ask_to_take(1, QueueId(77), 1, (false, true)).await;
    assert!(matches!(edge.down().await, ToEdge::Took { request: 1, result: Err(Refusal::NotFound { .. }) }));
}

#[tokio::test]
async fn what_a_strict_part_settles_is_out_no_more_and_what_is_refused_stays_out() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..3).await;
    assert_eq!(edge.take_now(Q, 1, true).await, [1]);
    let session = edge.session;
    for (claimed, refused) in [(SessionId(999), vec![(0, RefusedEnqueue::Lost)]), (session, vec![])] {
        let batch = edge.batch(|ops| {
            let tx = TxId { node: NodeId(1), incarnation: Incarnation(1), number: 5 };
            let start = ops.begin_part(tx, ShardId(1), &[]);
            ops.settle(Q, SettleReason::Ack, &[(Seq(1), Seq(1))]);
            ops.claim(&start, claimed);
            ops.end_part(start);
        });
        let seq = batch.seq;
        edge.up(ToLeader::Batch(batch)).await;
        assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused: refused.clone() });
        let next = if refused.is_empty() { vec![2] } else { vec![] };
        assert_eq!(edge.take_now(Q, 1, true).await, next, "alone");
    }
}
