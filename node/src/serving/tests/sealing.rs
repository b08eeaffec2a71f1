//! Queues that end on a condition (rule 22), and what a new leader must not decide before it has heard everybody.

use super::*;

impl Edge {
    async fn delete_if(&mut self, queue: QueueId, if_unused: bool, if_empty: bool) -> Result<u64, Refusal> {
        self.up(ToLeader::Seal { request: 4, queue, if_unused, if_empty }).await;
        match self.down().await {
            ToEdge::Purged { request: 4, result } => result,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is answered for now.
    async fn waits(&mut self) {
        if let Ok(got) = timeout(QUIET, self.end.down_rx.recv()).await {
            panic!("{got:?}");
        }
    }

    /// A message; its verdict is for later.
    async fn send(&mut self, queue: QueueId) {
        let batch = self.messages(queue, 0..1);
        self.up(ToLeader::Batch(batch)).await;
    }

    async fn refused(&mut self, batch: Batch) -> Vec<(u32, RefusedEnqueue)> {
        self.up(ToLeader::Batch(batch)).await;
        match self.down().await {
            ToEdge::Verdict { refused, .. } => refused,
            other => panic!("{other:?}"),
        }
    }
}

impl Shard {
    async fn sealed(&mut self, queue: QueueId) {
        let event = timeout(SOON, self.events.recv()).await.expect("the queue is to be deleted");
        assert_eq!(event, Some(ServerEvent::Sealed { queue }));
    }
}

fn says(why: &str) -> Result<u64, Refusal> {
    Err(Refusal::Precondition(format!("queue 'q10' in vhost '/' {why}")))
}

#[tokio::test]
async fn a_queue_is_deleted_only_if_its_condition_holds() {
    let mut shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..2).await;
    edge.consume(1, Q, Some(1)).await;
    edge.take(1).await;
    assert_eq!(edge.delete_if(Q, true, true).await, says("in use"));
    assert_eq!(edge.delete_if(Q, false, true).await, says("not empty"));
    edge.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    edge.down().await;
    assert_eq!(edge.delete_if(Q, true, false).await, Ok(1));
    shard.sealed(Q).await;
    assert_eq!(edge.delete_if(Q, false, true).await, Ok(0), "it is as good as deleted");
}

#[tokio::test]
async fn a_message_that_comes_before_the_seal_keeps_its_queue_and_one_that_comes_after_is_not_confirmed() {
    let mut shard = Shard::with_queues(&[Q, Q2]);
    let mut edge = shard.edge(1).await;
    // The seal is proposed with the message on its way.
    *shard.gate.held.lock() = Some(VecDeque::new());
    let batch = edge.messages(Q, 0..1);
    edge.up(ToLeader::Batch(batch)).await;
    tokio::time::sleep(QUIET).await;
    edge.up(ToLeader::Seal { request: 4, queue: Q, if_unused: false, if_empty: true }).await;
    tokio::time::sleep(QUIET).await;
    let held = shard.gate.held.lock().take().unwrap();
    assert_eq!(held.len(), 2);
    held.into_iter().for_each(|(token, leader, entry)| shard.gate.inner.propose(token, leader, entry));
    let ToEdge::Verdict { refused, .. } = edge.down().await else { panic!("no verdict") };
    assert_eq!(refused, []);
    assert_eq!(edge.down().await, ToEdge::Purged { request: 4, result: says("not empty") });
    assert_eq!(edge.get(Q).await, Ok(Some((1, false, 0))), "it goes on");
    edge.settle(Q, 1, 1).await;
    assert_eq!(edge.delete_if(Q, true, true).await, Ok(0));
    shard.sealed(Q).await;
    let batch = edge.batch(|ops| {
        ops.enqueue(&[Q], b"", b"key", &[0, 0], b"late");
        ops.enqueue(&[Q, Q2], b"", b"key", &[0, 0], b"to both");
        ops.enqueue(&[Q, QueueId(99)], b"", b"key", &[0, 0], b"to route again");
    });
    assert_eq!(edge.refused(batch).await, [(0, RefusedEnqueue::Sealed), (2, RefusedEnqueue::UnknownQueue)]);
    assert_eq!(edge.stat(Q2).await.ready, 1);
    // Who comes to it waits for its end, also under the next leader, which has it deleted.
    edge.up(ToLeader::Consume(consumer(5, Q, None))).await;
    edge.waits().await;
    let mut shard = shard.fail_over();
    shard.sealed(Q).await;
    let mut edge = shard.edge_of(1, edge.incarnation).await;
    edge.up(ToLeader::Consume(consumer(5, Q, None))).await;
    edge.waits().await;
    shard.drop_queue(Q);
    let ToEdge::Consuming { result: Err(Refusal::NotFound { .. }), .. } = edge.down().await else { panic!("it is gone") };
}

#[tokio::test]
async fn a_seal_that_is_lost_on_its_way_is_written_again() {
    let mut shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    shard.gate.fail.store(2, Ordering::Relaxed);
    assert_eq!(edge.delete_if(Q, true, true).await, Ok(0));
    shard.sealed(Q).await;
}

#[tokio::test]
async fn a_new_leader_counts_consumers_when_all_edges_have_told_of_theirs() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    one.publish(Q, 0..1).await;
    one.take(1).await;
    one.settle(Q, 1, 1).await;
    let shard = shard.fail_over();
    let mut two = shard.edge_of(2, two.incarnation).await;
    two.up(ToLeader::Seal { request: 4, queue: Q, if_unused: true, if_empty: false }).await;
    two.up(ToLeader::Stat { request: 8, queues: vec![Q], used: true }).await;
    two.waits().await;
    let mut one = shard.arriving(1, one.incarnation).await;
    one.attach(vec![attached(1, Q, None, vec![])], vec![]).await;
    let mut answers = [two.down().await, two.down().await];
    answers.sort_by_key(|a| matches!(a, ToEdge::Stats { .. }));
    assert_eq!(answers[0], ToEdge::Purged { request: 4, result: says("in use") });
    let ToEdge::Stats { stats, .. } = &answers[1] else { panic!("{answers:?}") };
    assert_eq!(stats[0].consumers, 1);
}

#[tokio::test]
async fn an_exclusive_consumer_of_an_empty_queue_stays_alone_under_a_new_leader() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, two) = (shard.edge(1).await, shard.edge(2).await);
    one.up(ToLeader::Consume(Consumer { exclusive: true, ..consumer(1, Q, None) })).await;
    one.started(1).await;
    let shard = shard.fail_over();
    let mut two = shard.edge_of(2, two.incarnation).await;
    two.up(ToLeader::Consume(consumer(7, Q, None))).await;
    two.waits().await;
    let mut one = shard.arriving(1, one.incarnation).await;
    let consumer = Consumer { exclusive: true, ..consumer(1, Q, None) };
    one.attach(vec![Attached { consumer, unacked: vec![], unwritten_bytes: 0 }], vec![]).await;
    let ToEdge::Consuming { result: Err(Refusal::Access(_)), .. } = two.down().await else { panic!("two consumers") };
    one.publish(Q, 0..1).await;
    one.take(1).await;
}

/// What was cancelled while nobody led, or died with the leader, is not told to the next one.
#[tokio::test]
async fn an_auto_delete_queue_whose_consumer_went_with_the_leader_is_deleted_by_the_next() {
    let mut shard = Shard::with_queues(&[Q2]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q2, None).await;
    assert!(shard.events.try_recv().is_err());
    let mut shard = shard.fail_over();
    let mut edge = shard.arriving(1, edge.incarnation).await;
    edge.waits().await;
    assert!(shard.events.try_recv().is_err(), "it may still attach it");
    edge.attach(vec![], vec![]).await;
    shard.sealed(Q2).await;
}

#[tokio::test]
async fn an_auto_delete_queue_that_never_had_a_consumer_stays_under_a_new_leader() {
    let shard = Shard::with_queues(&[Q2]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q2, 0..1).await;
    assert_eq!(edge.get(Q2).await, Ok(Some((1, false, 0))));
    let mut shard = shard.fail_over();
    let mut edge = shard.edge_of(1, edge.incarnation).await;
    edge.waits().await;
    assert!(shard.events.try_recv().is_err());
}

impl Shard {
    /// Entries wait for `let_go` from now on.
    fn hold(&self) {
        *self.gate.held.lock() = Some(VecDeque::new());
    }

    fn let_go(&self) {
        let held = self.gate.held.lock().take().unwrap_or_default();
        held.into_iter().for_each(|(token, leader, entry)| self.gate.inner.propose(token, leader, entry));
    }

    /// The first entry that waits is written.
    fn let_one_go(&self) {
        let first = self.gate.held.lock().as_mut().and_then(VecDeque::pop_front);
        let (token, leader, entry) = first.expect("an entry waits");
        self.gate.inner.propose(token, leader, entry);
    }

    /// Until so many entries wait.
    async fn waiting(&self, entries: usize) {
        let all = async {
            while self.gate.held.lock().as_ref().map_or(0, VecDeque::len) != entries {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, all).await.expect("entries that wait");
    }

    /// Takes no edge for gone that is only slow.
    fn patient_with(queue: QueueId) -> Shard {
        let shard = Shard::patient();
        shard.declare(&[queue]);
        shard
    }
}

/// Its start is noted, and the leader dies before the answer is out.
#[tokio::test]
async fn an_auto_delete_queue_whose_first_consumer_waits_for_its_answer_stays_under_a_new_leader() {
    let shard = Shard::patient_with(Q2);
    let mut edge = shard.edge(1).await;
    edge.publish(Q2, 0..1).await;
    edge.consume(1, Q2, None).await;
    let mut shard = shard.fail_over();
    let mut edge = shard.arriving(1, edge.incarnation).await;
    edge.attach_asking(vec![], vec![consumer(1, Q2, None)], vec![]).await;
    edge.started(1).await;
    assert_eq!(edge.seqs(1).await, [1]);
    assert!(shard.events.try_recv().is_err());
    edge.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    shard.sealed(Q2).await;
}

#[tokio::test]
async fn a_consumer_that_waits_when_its_path_breaks_is_counted_until_its_edge_is_back() {
    let mut shard = Shard::patient_with(Q2);
    let mut edge = shard.edge(1).await;
    edge.publish(Q2, 0..1).await;
    shard.hold();
    edge.up(ToLeader::Consume(consumer(1, Q2, None))).await;
    edge.waits().await;
    let incarnation = edge.incarnation;
    drop(edge);
    tokio::time::sleep(QUIET).await;
    shard.let_go();
    tokio::time::sleep(QUIET).await;
    let mut edge = shard.arriving(1, incarnation).await;
    edge.attach_asking(vec![], vec![consumer(1, Q2, None)], vec![]).await;
    edge.started(1).await;
    assert_eq!(edge.seqs(1).await, [1]);
    assert!(shard.events.try_recv().is_err());
}

/// The queue ends now, and not under a later leader with what came meanwhile.
#[tokio::test]
async fn an_auto_delete_queue_whose_consumer_was_cancelled_before_it_started_ends_at_once() {
    let mut shard = Shard::patient_with(Q2);
    let mut edge = shard.edge(1).await;
    edge.publish(Q2, 0..1).await;
    shard.hold();
    edge.up(ToLeader::Consume(consumer(1, Q2, None))).await;
    edge.waits().await;
    edge.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    assert_eq!(edge.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: true });
    shard.let_go();
    shard.sealed(Q2).await;
}

#[tokio::test]
async fn a_waiting_consumer_that_is_withdrawn_leaves_nobody_behind_the_last_one() {
    let mut shard = Shard::patient_with(Q2);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q2, None).await;
    // The first one's place among the holders is written.
    one.publish(Q2, 0..1).await;
    one.take(1).await;
    shard.hold();
    two.up(ToLeader::Consume(Consumer { exclusive: true, ..consumer(2, Q2, None) })).await;
    two.waits().await;
    one.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    one.down().await;
    two.up(ToLeader::Cancel { consumer: ConsumerId(2) }).await;
    two.down().await;
    shard.let_go();
    shard.sealed(Q2).await;
}

#[tokio::test]
async fn an_auto_delete_queue_that_the_new_leaders_catalog_does_not_have_yet_ends_when_it_has() {
    let shard = Shard::patient_with(Q2);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q2, None).await;
    let known = shard.catalog.0.lock().clone();
    shard.server.stop();
    let mut shard = Shard::over(shard.machine, shard.bodies, Arc::default(), 2, shard.setup);
    let mut edge = shard.edge_of(1, edge.incarnation).await;
    edge.waits().await;
    assert!(shard.events.try_recv().is_err());
    *shard.catalog.0.lock() = known;
    shard.server.catalog_moved();
    shard.sealed(Q2).await;
}

#[tokio::test]
async fn a_deletion_whose_client_was_told_that_it_failed_does_not_happen_later() {
    let shard = Shard::patient();
    let (one, two) = (shard.edge(1).await, shard.edge(2).await);
    let mut shard = shard.fail_over();
    let mut two = shard.edge_of(2, two.incarnation).await;
    two.up(ToLeader::Seal { request: 4, queue: Q, if_unused: true, if_empty: false }).await;
    two.waits().await;
    two.up(ToLeader::Withdraw { request: 4, queue: Q }).await;
    two.waits().await;
    let _one = shard.edge_of(1, one.incarnation).await;
    two.waits().await;
    two.publish(Q, 0..1).await;
    assert!(shard.events.try_recv().is_err());
}

#[tokio::test]
async fn a_purge_whose_client_was_told_that_it_failed_takes_nothing_and_its_messages_are_delivered() {
    for in_flight in [false, true] {
        let shard = Shard::with_queues(&[Q]);
        let mut edge = shard.edge(1).await;
        edge.publish(Q, 0..3).await;
        shard.hold();
        edge.up(ToLeader::Purge { request: 9, queue: Q }).await;
        shard.waiting(1).await;
        let lose = || {
            let (token, ..) = shard.gate.held.lock().as_mut().and_then(VecDeque::pop_front).expect("it was proposed");
            shard.server.outcome(token, ProposalOutcome::Failed("test".into()));
        };
        // It is withdrawn while it is in flight, or after it failed and before it is proposed again.
        if !in_flight {
            lose();
        }
        edge.up(ToLeader::Withdraw { request: 9, queue: Q }).await;
        edge.stat(Q).await;
        if in_flight {
            lose();
        }
        shard.let_go();
        edge.consume(1, Q, None).await;
        assert_eq!(edge.seqs(3).await, [1, 2, 3], "in flight: {in_flight}");
    }
}

#[tokio::test]
async fn a_deletion_whose_edge_is_away_is_not_written() {
    let mut shard = Shard::patient();
    let (one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    shard.gate.fail.store(usize::MAX, Ordering::Relaxed);
    one.up(ToLeader::Seal { request: 4, queue: Q, if_unused: true, if_empty: false }).await;
    two.waits().await;
    drop(one);
    two.waits().await;
    shard.gate.fail.store(0, Ordering::Relaxed);
    two.publish(Q, 0..1).await;
    assert!(shard.events.try_recv().is_err());
}

/// Messages that come and are taken again and again keep no client waiting.
#[tokio::test]
async fn a_queue_to_which_messages_keep_coming_is_not_empty() {
    let shard = Shard::patient();
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    edge.publish(Q, 0..1).await;
    edge.take(1).await;
    shard.hold();
    edge.send(Q).await;
    shard.waiting(1).await;
    edge.up(ToLeader::Seal { request: 4, queue: Q, if_unused: false, if_empty: true }).await;
    for _ in 0..3 {
        shard.waiting(2).await;
        shard.let_one_go();
        let ToEdge::Verdict { .. } = edge.down().await else { panic!("no verdict") };
        edge.take(1).await;
        edge.send(Q).await;
        shard.waiting(2).await;
        shard.let_one_go();
    }
    assert_eq!(edge.down().await, ToEdge::Purged { request: 4, result: says("not empty") });
}

#[tokio::test]
async fn who_wants_to_be_alone_is_not_overtaken() {
    let shard = Shard::patient();
    let (one, two) = (shard.edge(1).await, shard.edge(2).await);
    let shard = shard.fail_over();
    let mut two = shard.edge_of(2, two.incarnation).await;
    two.up(ToLeader::Consume(Consumer { exclusive: true, ..consumer(5, Q, None) })).await;
    two.up(ToLeader::Consume(consumer(6, Q, None))).await;
    two.waits().await;
    let _one = shard.edge_of(1, one.incarnation).await;
    two.started(5).await;
    let ToEdge::Consuming { consumer: ConsumerId(6), result: Err(Refusal::Access(_)) } = two.down().await else { panic!("two consumers") };
}

#[tokio::test]
async fn an_exclusive_consumer_that_was_away_too_long_ends_beside_the_one_that_came_meanwhile() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    let alone = Consumer { exclusive: true, ..consumer(1, Q, None) };
    one.up(ToLeader::Consume(alone.clone())).await;
    one.started(1).await;
    one.publish(Q, 0..2).await;
    assert_eq!(one.seqs(2).await, [1, 2]);
    let incarnation = one.incarnation;
    drop(one);
    loop {
        two.up(ToLeader::Consume(consumer(2, Q, Some(1)))).await;
        let ToEdge::Consuming { result, .. } = two.down().await else { panic!("no answer") };
        if result.is_ok() {
            break;
        }
        tokio::time::sleep(QUIET).await;
    }
    assert_eq!(two.seqs(1).await, [1]);
    let mut one = shard.arriving(1, incarnation).await;
    one.attach(vec![Attached { consumer: alone, unacked: vec![(Seq(1), Seq(2))], unwritten_bytes: 0 }], vec![]).await;
    assert_eq!(one.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: false });
    two.settle(Q, 1, 1).await;
    two.credit(2, 1, 0).await;
    let got = two.take(1).await;
    assert_eq!((got[0].1, got[0].2), (2, true), "the other one's client saw it");
}
