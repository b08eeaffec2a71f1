//! Takes: what clients that fetch are given, and what goes back.

use super::*;
use crate::model::step::{Commit, Take};

fn take(queues: &[&str], alone: bool, patience_ms: u64) -> Request {
    Request::Take(Take { queues: queues.iter().map(|queue| name(queue)).collect(), most: 16, alone, patience_ms })
}

fn message(queue: QueueId, seq: u64) -> Delivery {
    Delivery { queue, seq: Seq(seq), redelivered: false, failures: 0, failed_ms: 0, message: stored() }
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

#[tokio::test]
async fn a_silent_shard_does_not_keep_the_others_messages_back() {
    let config = EdgeConfig { no_quorum_timeout: Duration::from_secs(3600), ..default_config() };
    let mut scene = Scene::new(config);
    let (here, _silent) = (scene.queue("here", 1), scene.queue("silent", 2));
    let mut client = scene.client();
    client.ask(take(&["here", "silent"], false, 0));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let ToLeader::Stat { request, .. } = leader.next().await else { panic!("no counts are asked for") };
    leader.say(ToEdge::Stats { request, stats: vec![QueueStat { queue: here, ready: 1, ..QueueStat::default() }] }).await;
    let (request, queue, _) = asked(&mut leader).await;
    leader.say(ToEdge::Took { request, result: Ok(vec![message(queue, 1)]) }).await;
    assert!(matches!(client.reply().await, Ok(Reply::Took(took)) if took.len() == 1));
}

#[tokio::test]
async fn what_several_queues_give_is_bounded_together() {
    let mut scene = Scene::new(default_config());
    let queues = [scene.queue("one", 1), scene.queue("two", 1)];
    let mut client = scene.client();
    client.ask(take(&["one", "two"], false, 0));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let ToLeader::Stat { request, .. } = leader.next().await else { panic!("no counts are asked for") };
    let stats = queues.iter().map(|queue| QueueStat { queue: *queue, ready: 1, ..QueueStat::default() }).collect();
    leader.say(ToEdge::Stats { request, stats }).await;
    let (request, queue, _) = asked(&mut leader).await;
    let message = Delivery { message: vec![0; limits::TAKE_BYTES].into(), ..message(queue, 1) };
    leader.say(ToEdge::Took { request, result: Ok(vec![message]) }).await;
    let Ok(Reply::Took(took)) = client.reply().await else { panic!("nothing taken") };
    assert_eq!(took.len(), 1, "it is enough: the other queue is not asked");
}

/// Of shard 1: a client that took message 1 of queue `q` in session 9.
async fn took_one() -> (Scene, Client, Leader, Held) {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(take(&["q"], false, 0));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let (request, ..) = asked(&mut leader).await;
    leader.say(ToEdge::Took { request, result: Ok(vec![message(queue, 1)]) }).await;
    assert!(matches!(client.reply().await, Ok(Reply::Took(took)) if took.len() == 1));
    let held = Held { shard: ShardId(1), queue, seq: Seq(1), consumer: None };
    (scene, client, leader, held)
}

fn commit_strictly(publishes: Vec<Publish>, held: Held) -> Step {
    Step::Commit(Box::new(Commit { channel: 1, publishes, settlements: vec![(vec![held], Outcome::Ack)], is_strict: true }))
}

#[tokio::test]
async fn a_strict_transaction_says_in_which_session_it_was_given_what_it_settles() {
    let (_scene, mut client, mut leader, held) = took_one().await;
    client.submit(commit_strictly(vec![publish("", "q", 0, b"whole")], held));
    let batch = leader.batch().await;
    let all = ops(&batch);
    let [Op::Part(part)] = all.as_slice() else { panic!("no part: {all:?}") };
    assert_eq!((part.session, part.decider, part.others.len()), (Some(SessionId(9)), ShardId(1), 0));
    assert_eq!(part.ops.clone().count(), 2, "a message, an acknowledgement");
    leader.verdict(1, &[]).await;
    assert_eq!(client.reply().await, Ok(Reply::Done), "without another word");
    leader.quiet().await;
}

#[tokio::test]
async fn a_strict_transaction_that_comes_too_late_is_refused_and_what_was_taken_is_given_up() {
    let (_scene, mut client, mut leader, held) = took_one().await;
    client.submit(commit_strictly(Vec::new(), held));
    let batch = leader.batch().await;
    leader.say(ToEdge::Verdict { seq: batch.seq, refused: vec![(0, RefusedEnqueue::Lost)] }).await;
    let abort = leader.batch().await;
    leader.verdict(abort.seq.0, &[]).await;
    assert!(matches!(client.reply().await, Err(Refusal::Locked(_))));
    let ToLeader::Return { ranges, .. } = leader.next().await else { panic!("it is still held") };
    assert_eq!(ranges, [(Seq(1), Seq(1))]);
}

#[tokio::test]
async fn who_was_declared_gone_holds_nothing_of_what_it_took() {
    let (mut scene, mut client, leader, held) = took_one().await;
    drop(leader);
    let (mut leader, attach) = scene.leader(super::leader(1, 2), 12, 0).await;
    assert_eq!(attach, ToLeader::Attach { leader: leader.id, consumers: vec![], asked: vec![], loose: vec![] });
    assert_eq!(client.next().await, Event::Lost { shard: ShardId(1) });
    client.submit(commit_strictly(vec![publish("", "q", 0, b"twice")], held));
    if let ToLeader::Batch(batch) = leader.next().await {
        assert!(enqueues(&batch).is_empty() && !ops(&batch).iter().any(|op| matches!(op, Op::Part(_))), "{:?}", ops(&batch));
        leader.verdict(batch.seq.0, &[]).await;
    }
    assert!(matches!(client.reply().await, Err(Refusal::Locked(_))));
}
