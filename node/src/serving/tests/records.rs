//! What an edge is told so that nothing it knows is lost with a leader: that returns are on record, that the leader still leads.

use super::*;

/// The next word that is not about a request of the test's own.
async fn word(edge: &mut Edge) -> Option<ToEdge> {
    timeout(QUIET, edge.end.down_rx.recv()).await.ok().map(|word| word.expect("an open path"))
}

async fn recorded(edge: &mut Edge, ranges: &[(u64, u64)]) {
    let ranges = ranges.iter().map(|r| (Seq(r.0), Seq(r.1))).collect();
    let word = timeout(SOON, edge.end.down_rx.recv()).await.expect("a word in time");
    assert_eq!(word, Some(ToEdge::Recorded { queue: Q, ranges }));
}

#[tokio::test]
async fn a_return_is_on_record_when_later_leaders_know_of_it_and_not_before() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..3).await;
    edge.consume(1, Q, Some(3)).await;
    edge.seqs(3).await;
    edge.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    assert_eq!(edge.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: true });
    *shard.gate.held.lock() = Some(VecDeque::new());
    edge.give_back(Q, 1, 2, true).await;
    assert_eq!(word(&mut edge).await, None, "nobody else knows");
    while shard.gate.held.lock().as_ref().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let held = shard.gate.held.lock().take().unwrap();
    held.into_iter().for_each(|(token, leader, entry)| shard.gate.inner.propose(token, leader, entry));
    recorded(&mut edge, &[(1, 2)]).await;
    edge.give_back(Q, 3, 3, true).await;
    recorded(&mut edge, &[(3, 3)]).await;
    let shard = shard.fail_over();
    let mut edge = shard.edge(1).await;
    assert_eq!(edge.get(Q).await, Ok(Some((1, true, 2))), "the edge itself needed to say nothing");
}

#[tokio::test]
async fn a_return_that_is_counted_is_on_record_too_and_one_of_a_queue_that_is_gone_needs_no_record() {
    let limited = QueueSettings { delivery_limit: Some(5), ..QueueSettings::default() };
    let shard = Shard::with(limited);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..1).await;
    edge.consume(1, Q, Some(1)).await;
    edge.seqs(1).await;
    edge.give_back(Q, 1, 1, true).await;
    recorded(&mut edge, &[(1, 1)]).await;
    shard.drop_queue(Q);
    assert_eq!(edge.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: false });
    edge.give_back(Q, 1, 1, true).await;
    recorded(&mut edge, &[(1, 1)]).await;
}

#[tokio::test]
async fn a_leader_answers_that_it_leads_only_under_its_lease() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.up(ToLeader::Ping { number: 1 }).await;
    assert_eq!(edge.down().await, ToEdge::Pong { number: 1 });
    shard.gate.lease.store(false, Ordering::Relaxed);
    edge.up(ToLeader::Ping { number: 2 }).await;
    edge.stat(Q).await;
    shard.gate.lease.store(true, Ordering::Relaxed);
    edge.up(ToLeader::Ping { number: 3 }).await;
    assert_eq!(edge.down().await, ToEdge::Pong { number: 3 });
}
