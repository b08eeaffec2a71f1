//! Leaders that change, edges that go away and come back.

use super::*;

#[tokio::test]
async fn surviving_edges_see_nothing_of_a_leader_change() {
    let shard = Shard::patient();
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(5)).await;
    edge.publish(Q, 0..10).await;
    assert_eq!(edge.seqs(5).await, [1, 2, 3, 4, 5]);
    let shard = shard.fail_over();
    let mut again = shard.arriving(1, edge.incarnation).await;
    assert_eq!((again.session, again.next), (edge.session, edge.next));
    again.attach(vec![attached(1, Q, Some(5), vec![(Seq(1), Seq(5))])], vec![]).await;
    again.nothing().await;
    again.settle(Q, 1, 2).await;
    again.credit(1, 2, 0).await;
    let got = again.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(6, false), (7, false)]);
}

#[tokio::test]
async fn messages_are_held_until_every_holder_attached() {
    let shard = Shard::patient();
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, Some(2)).await;
    two.consume(1, Q, Some(2)).await;
    tokio::time::sleep(QUIET).await;
    one.publish(Q, 0..6).await;
    let held_by_one = one.seqs(2).await;
    let held_by_two = two.seqs(2).await;
    let ranges = |seqs: Vec<u64>| seqs.into_iter().map(|s| (Seq(s), Seq(s))).collect::<Ranges>();
    let shard = shard.fail_over();
    let mut one = shard.arriving(1, one.incarnation).await;
    one.attach(vec![attached(1, Q, None, ranges(held_by_one))], vec![]).await;
    one.nothing().await;
    let mut two = shard.arriving(2, two.incarnation).await;
    one.nothing().await;
    two.attach(vec![], vec![(Q, ranges(held_by_two))]).await;
    let got = one.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(5, false), (6, false)]);
}

#[tokio::test]
async fn what_a_lost_edge_held_comes_as_redelivered() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    two.consume(1, Q, Some(2)).await;
    one.publish(Q, 0..3).await;
    assert_eq!(two.seqs(2).await, [1, 2]);
    let shard = shard.fail_over();
    let mut one = shard.arriving(1, one.incarnation).await;
    one.attach(vec![attached(1, Q, None, vec![])], vec![]).await;
    one.nothing().await;
    let got = one.take(3).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(1, true), (2, true), (3, true)]);
}

/// The mark is thousands of messages ahead: those that come later nobody can have seen, also while the lost edge is waited for.
#[tokio::test]
async fn what_comes_after_a_leader_and_an_edge_are_lost_comes_as_new() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    two.consume(1, Q, Some(1)).await;
    one.publish(Q, 0..2).await;
    assert_eq!(two.seqs(1).await, [1]);
    let shard = shard.fail_over();
    let mut one = shard.arriving(1, one.incarnation).await;
    one.attach(vec![attached(1, Q, None, vec![])], vec![]).await;
    one.publish(Q, 2..4).await;
    let got = one.take(4).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(1, true), (2, true), (3, false), (4, false)]);
    one.publish(Q, 4..5).await;
    assert_eq!(one.take(1).await.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(5, false)]);
}

#[tokio::test]
async fn an_edge_lost_under_this_leader_gives_back_after_a_while() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    two.consume(1, Q, Some(2)).await;
    one.publish(Q, 0..3).await;
    two.take(2).await;
    one.consume(1, Q, None).await;
    assert_eq!(one.seqs(1).await, [3]);
    drop(two);
    one.nothing().await;
    let got = one.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(1, true), (2, true)]);
}

#[tokio::test]
async fn a_newer_process_of_a_node_ends_the_older_session_at_once() {
    let shard = Shard::patient();
    let mut old = shard.edge(1).await;
    old.consume(1, Q, None).await;
    old.publish(Q, 0..2).await;
    old.take(2).await;
    let mut new = shard.edge_of(1, 999).await;
    new.consume(1, Q, None).await;
    let got = new.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(1, true), (2, true)]);
    assert_eq!(timeout(SOON, old.end.down_rx.recv()).await.unwrap(), None, "the old path is closed");
}

#[tokio::test]
async fn an_edge_that_returns_on_a_new_path_keeps_what_it_holds() {
    let shard = Shard::patient();
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(4)).await;
    edge.publish(Q, 0..6).await;
    edge.take(4).await;
    let incarnation = edge.incarnation;
    drop(edge);
    let mut again = shard.arriving(1, incarnation).await;
    again.attach(vec![attached(1, Q, Some(4), vec![(Seq(1), Seq(3))])], vec![]).await;
    let got = again.take(1).await;
    assert_eq!((got[0].1, got[0].2), (4, false), "4 was dropped unwritten with the old path");
    again.nothing().await;
}

#[tokio::test]
async fn a_requeued_message_stays_redelivered_over_a_leader_change() {
    let shard = Shard::patient();
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 0..2).await;
    edge.take(2).await;
    edge.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    edge.down().await;
    edge.give_back(Q, 1, 2, true).await;
    edge.publish(Q, 2..3).await;
    let shard = shard.fail_over();
    let mut edge = shard.edge_of(1, edge.incarnation).await;
    edge.consume(2, Q, None).await;
    let got = edge.take(3).await;
    assert!(got[0].2 && got[1].2, "{got:?}");
}

#[tokio::test]
async fn a_return_of_messages_held_in_part_marks_all_of_them_as_seen() {
    let shard = Shard::with_queues(&[Q]);
    let mut a = shard.edge(1).await;
    a.publish(Q, 0..4).await;
    a.consume(1, Q, Some(2)).await;
    a.take(2).await;
    let shard = shard.fail_over();
    let mut a = shard.arriving(1, 101).await;
    a.attach(vec![], vec![(Q, vec![(Seq(2), Seq(2))])]).await;
    a.give_back(Q, 1, 2, true).await;
    tokio::time::sleep(QUIET).await;
    a.consume(1, Q, None).await;
    let got: Vec<(u64, bool)> = a.take(4).await.into_iter().map(|m| (m.1, m.2)).collect();
    assert_eq!(got, [(1, true), (2, true), (3, false), (4, false)]);
}

#[tokio::test]
async fn a_deposed_leader_says_so_and_ends_its_paths() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    shard.server.leadership(Leadership { leader: Some(LeaderId { term: 2, voter: 2 }), is_me: false });
    assert_eq!(edge.down().await, ToEdge::NotLeader);
    assert_eq!(timeout(SOON, edge.end.down_rx.recv()).await.unwrap(), None);
    let (mut end, leader_end) = path(NodeId(3));
    shard.server.connected(leader_end);
    end.up_tx.send(ToLeader::Hello { node: NodeId(3), incarnation: Incarnation(1) }).await.unwrap();
    assert_eq!(timeout(SOON, end.down_rx.recv()).await.unwrap(), Some(ToEdge::NotLeader));
}

#[tokio::test]
async fn a_hello_before_the_leader_is_ready_waits_for_it() {
    let shard = Shard::with_queues(&[Q]);
    let leader = Some(LeaderId { term: 9, voter: 1 });
    shard.server.leadership(Leadership { leader, is_me: false });
    let (mut end, leader_end) = path(NodeId(3));
    shard.server.connected(leader_end);
    end.up_tx.send(ToLeader::Hello { node: NodeId(3), incarnation: Incarnation(1) }).await.unwrap();
    assert!(timeout(QUIET, end.down_rx.recv()).await.is_err());
    shard.server.leadership(Leadership { leader, is_me: true });
    let Ok(Some(ToEdge::Welcome { .. })) = timeout(SOON, end.down_rx.recv()).await else { panic!() };
}

#[tokio::test]
async fn a_hello_of_a_dead_process_is_not_repeated() {
    let shard = Shard::with_queues(&[Q]);
    *shard.gate.held.lock() = Some(VecDeque::new());
    let (end, leader_end) = path(NodeId(1));
    shard.server.connected(leader_end);
    end.up_tx.send(ToLeader::Hello { node: NodeId(1), incarnation: Incarnation(5) }).await.unwrap();
    tokio::time::sleep(QUIET).await;
    drop(end);
    let arriving = shard.edge_of(1, 6);
    let release = async {
        tokio::time::sleep(QUIET).await;
        let held = shard.gate.held.lock().take().unwrap();
        held.into_iter().for_each(|(token, ..)| shard.server.outcome(token, ProposalOutcome::Failed("lost".into())));
    };
    let (mut edge, ()) = tokio::join!(arriving, release);
    edge.publish(Q, 0..1).await;
    tokio::time::sleep(QUIET).await;
    let sessions: Vec<_> = shard.machine.lock().sessions().map(|s| s.2).collect();
    assert_eq!(sessions, [Incarnation(6)]);
    edge.publish(Q, 1..2).await;
}
