//! This edge was declared gone and is back (rule 19): others have been given what its clients held.

use super::consume::{consuming, ranges, settles};
use super::*;
use crate::model::entry::SettleReason;

/// Until the lane says something else than credit.
async fn word(leader: &mut Leader) -> ToLeader {
    loop {
        match leader.next().await {
            ToLeader::Credit { .. } => {}
            word => return word,
        }
    }
}

/// A client that has acknowledged 1, rejected 2 and given back 3 of 4 messages, in a batch and a word that the leader has, and the same
/// of 5 to 7, of which the leader has heard nothing; 4 and 8 it holds still. What the next leader is told, up to the second batch.
async fn told_after(session: u64) -> (Vec<ToLeader>, Batch, Batch) {
    let consuming = consuming(Some(20)).await;
    let (mut scene, mut client, mut old, queue, consumer) =
        (consuming.scene, consuming.client, consuming.leader, consuming.queue, consuming.consumer);
    old.deliver(consumer, queue, &[1, 2, 3, 4, 5, 6, 7, 8]).await;
    let mut held = Vec::new();
    while held.len() < 8 {
        held.extend(client.delivered().await);
    }
    let deal = |client: &mut Client, held: &[Held]| {
        client.settle(&held[..1], Outcome::Ack);
        client.settle(&held[1..2], Outcome::Reject);
        client.settle(&held[2..3], Outcome::Requeue);
    };
    deal(&mut client, &held[..3]);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.push(word(&mut old).await);
    }
    assert!(seen.iter().any(|word| matches!(word, ToLeader::Batch(batch) if settles(batch).len() == 2)), "{seen:?}");
    drop(old);
    deal(&mut client, &held[4..7]);
    client.publish("", "q", 1);
    let (mut new, first) = scene.leader(leader(1, 2), session, 0).await;
    let mut told = vec![first];
    while !matches!(told.last(), Some(ToLeader::Attach { .. })) {
        told.push(word(&mut new).await);
    }
    let (one, two) = (new.batch().await, new.batch().await);
    new.verdict(one.seq.0, &[]).await;
    new.verdict(two.seq.0, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)], "what is left of them gets its verdicts");
    (told, one, two)
}

fn held_by_attach(attach: &ToLeader) -> Vec<(u64, u64)> {
    let ToLeader::Attach { consumers, loose, .. } = attach else { panic!("no attach: {attach:?}") };
    let mut all: Vec<(Seq, Seq)> = consumers.iter().flat_map(|c| c.unacked.clone()).collect();
    all.extend(loose.iter().flat_map(|(_, ranges)| ranges));
    all.sort_unstable();
    all.iter().map(|range| (range.0.0, range.1.0)).collect()
}

#[tokio::test]
async fn an_edge_that_is_known_says_all_again_to_the_next_leader() {
    let (told, one, two) = told_after(9).await;
    let (attach, returns) = told.split_last().expect("an attach");
    let back = returns.iter().flat_map(|word| match word {
        ToLeader::Return { ranges, seen: true, .. } => ranges.clone(),
        other => panic!("{other:?}"),
    });
    assert_eq!(back.collect::<Vec<_>>(), ranges(&[(3, 3), (7, 7)]));
    assert_eq!(held_by_attach(attach), [(1, 2), (4, 4), (5, 6), (8, 8)]);
    assert_eq!(settles(&one), [(SettleReason::Ack, vec![(1, 1)]), (SettleReason::Reject, vec![(2, 2)])]);
    assert_eq!(settles(&two), [(SettleReason::Ack, vec![(5, 5)]), (SettleReason::Reject, vec![(6, 6)])]);
}

#[tokio::test]
async fn an_edge_that_was_declared_gone_acknowledges_and_neither_rejects_nor_gives_back() {
    let (told, one, two) = told_after(20).await;
    let [attach] = &told[..] else { panic!("it gives back nothing: {told:?}") };
    assert_eq!(held_by_attach(attach), [(1, 1), (4, 4), (5, 5), (8, 8)], "and does not hold what it rejected");
    assert_eq!((settles(&one), settles(&two)), (vec![(SettleReason::Ack, vec![(1, 1)])], vec![(SettleReason::Ack, vec![(5, 5)])]));
    assert_eq!((one.seq, two.seq, one.session), (BatchSeq(1), BatchSeq(2), SessionId(20)));
    assert_eq!(keys(&two), ["q"], "whatever else is in a batch stays");
}
