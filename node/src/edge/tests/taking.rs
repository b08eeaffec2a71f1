//! Takes: what clients that fetch are given, and what goes back.

use super::*;
use crate::model::step::Take;

fn take(queues: &[&str], alone: bool, patience_ms: u64) -> Request {
    Request::Take(Take { queues: queues.iter().map(|queue| name(queue)).collect(), most: 16, alone, patience_ms })
}

fn message(queue: QueueId, seq: u64) -> Delivery {
    Delivery { queue, seq: Seq(seq), redelivered: false, failures: 0, message: stored() }
}

/// The next take that a leader is asked for: its number, and whether it waits.
async fn asked(leader: &mut Leader) -> (u64, QueueId, bool) {
    match leader.next().await {
        ToLeader::Take { request, queue, most: 16, patient, .. } => (request, queue, patient),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_take_that_finds_nothing_waits_and_what_it_got_is_held() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(take(&["q"], true, 5000));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let (request, of, patient) = asked(&mut leader).await;
    assert_eq!((of, patient), (queue, false));
    leader.say(ToEdge::Took { request, result: Ok(Vec::new()) }).await;
    let (request, _, patient) = asked(&mut leader).await;
    assert!(patient);
    leader.say(ToEdge::Took { request, result: Ok(vec![message(queue, 1), message(queue, 2)]) }).await;
    let Ok(Reply::Took(took)) = client.reply().await else { panic!("nothing taken") };
    assert_eq!(took.iter().map(|one| (one.shard, one.delivery.seq.0)).collect::<Vec<_>>(), [(ShardId(1), 1), (ShardId(1), 2)]);
    scene.world.set_leader(ShardId(1), Some(super::leader(2, 3)));
    let (new, attach) = scene.leader(super::leader(2, 3), 9, 0).await;
    assert_eq!(attach, ToLeader::Attach { leader: new.id, consumers: vec![], asked: vec![], loose: vec![(queue, vec![(Seq(1), Seq(2))])] });
}

#[tokio::test]
async fn a_take_without_patience_is_answered_with_nothing() {
    let mut scene = Scene::new(default_config());
    scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(take(&["q"], false, 0));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let (request, ..) = asked(&mut leader).await;
    leader.say(ToEdge::Took { request, result: Ok(Vec::new()) }).await;
    assert_eq!(client.reply().await, Ok(Reply::Took(Vec::new())));
    client.ask(take(&["missing"], false, 0));
    assert!(matches!(client.reply().await, Err(Refusal::NotFound { .. })));
}

#[tokio::test]
async fn a_take_ends_when_its_time_is_over_or_its_client_goes_and_what_comes_late_goes_back() {
    for closed in [false, true] {
        let mut scene = Scene::new(default_config());
        let queue = scene.queue("q", 1);
        let mut client = scene.client();
        client.ask(take(&["q"], false, if closed { 60_000 } else { 100 }));
        let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
        let (request, ..) = asked(&mut leader).await;
        leader.say(ToEdge::Took { request, result: Ok(Vec::new()) }).await;
        let (request, ..) = asked(&mut leader).await;
        if closed {
            client.submit(Step::ChannelClosed { channel: 1, held: Vec::new() });
        } else {
            assert_eq!(client.reply().await, Ok(Reply::Took(Vec::new())));
        }
        assert_eq!(leader.next().await, ToLeader::Withdraw { request, queue });
        leader.say(ToEdge::Took { request, result: Ok(vec![message(queue, 1)]) }).await;
        let ToLeader::Return { seen: false, ranges, .. } = leader.next().await else { panic!("it does not go back") };
        assert_eq!(ranges, [(Seq(1), Seq(1))]);
    }
}

#[tokio::test]
async fn of_several_queues_those_with_messages_are_asked() {
    let mut scene = Scene::new(default_config());
    let (one, two) = (scene.queue("one", 1), scene.queue("two", 1));
    let mut client = scene.client();
    client.ask(take(&["one", "two"], false, 0));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let ToLeader::Stat { request, queues, .. } = leader.next().await else { panic!("no counts are asked for") };
    assert_eq!(queues, [one, two]);
    let stat = |queue, ready| QueueStat { queue, ready, ..QueueStat::default() };
    leader.say(ToEdge::Stats { request, stats: vec![stat(one, 0), stat(two, 3)] }).await;
    let (request, queue, _) = asked(&mut leader).await;
    assert_eq!(queue, two);
    leader.say(ToEdge::Took { request, result: Ok(vec![message(two, 7)]) }).await;
    let Ok(Reply::Took(took)) = client.reply().await else { panic!("nothing taken") };
    assert_eq!(took.len(), 1);
}
