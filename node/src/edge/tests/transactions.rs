//! tx.commit: one batch per shard, one answer.

use super::*;
use crate::model::entry::SettleReason;
use crate::model::step::Commit;

fn commit(publishes: Vec<Publish>, settlements: Vec<(Vec<Held>, Outcome)>) -> Step {
    Step::Commit(Box::new(Commit { channel: 1, publishes, settlements }))
}

#[tokio::test]
async fn messages_and_settlements_of_one_shard_are_one_batch() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 0);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    let consumer = client.consume(&mut leader, "q", Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2]).await;
    let held = client.delivered().await;
    let big = || Publish { body: vec![0; limits::BATCH_BYTES].into(), ..publish("", "q", 0, b"") };
    client.submit(commit(vec![big(), big(), publish("", "q", 0, b"last")], vec![(held, Outcome::Ack)]));
    let batch = loop {
        match leader.next().await {
            ToLeader::Batch(batch) => break batch,
            ToLeader::Credit { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(enqueues(&batch).len(), 3, "however large");
    let settle = Op::Settle { queue, reason: SettleReason::Ack, ranges: vec![(Seq(1), Seq(2))] };
    assert!(ops(&batch).contains(&settle), "{:?}", ops(&batch).last());
    assert!(client.now().is_empty(), "not before the verdict");
    leader.verdict(2, &[]).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
}

#[tokio::test]
async fn a_commit_over_two_shards_is_answered_when_both_have() {
    let mut scene = Scene::new(default_config());
    scene.queue("a", 1);
    scene.queue("b", 2);
    let mut client = scene.client();
    client.submit(commit(vec![publish("", "a", 0, b"1"), publish("", "b", 0, b"2"), publish("", "a", 0, b"3")], vec![]));
    let (mut first, _) = scene.leader(leader(1, 2), 5, 0).await;
    let (mut second, _) = scene.leader(leader(1, 2), 6, 0).await;
    let sizes = [enqueues(&first.batch().await).len(), enqueues(&second.batch().await).len()];
    assert_eq!(sizes.iter().sum::<usize>(), 3);
    assert!(!sizes.contains(&0), "{sizes:?}");
    first.verdict(1, &[]).await;
    first.quiet().await;
    assert!(client.now().is_empty());
    second.verdict(1, &[]).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
}

#[tokio::test]
async fn an_empty_commit_and_one_that_nobody_takes_are_answered_at_once() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    client.submit(commit(vec![], vec![]));
    assert_eq!(client.reply().await, Ok(Reply::Done));
    client.submit(commit(vec![Publish { mandatory: true, ..publish("", "none", 0, b"m") }], vec![]));
    let Event::Returned(back) = client.next().await else { panic!("not returned") };
    assert_eq!(&back.body[..], b"m");
    assert_eq!(client.reply().await, Ok(Reply::Done));
}

#[tokio::test]
async fn one_message_that_cannot_be_routed_stops_the_whole() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 0);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    let consumer = client.consume(&mut leader, "q", None).await;
    leader.deliver(consumer, queue, &[1]).await;
    let held = client.delivered().await;
    client.submit(commit(vec![publish("", "q", 0, b"1"), publish("none", "q", 0, b"2")], vec![(held, Outcome::Ack)]));
    let Err(Refusal::NotFound { .. }) = client.reply().await else { panic!("no refusal") };
    let ToLeader::Return { queue: back, seen: true, .. } = leader.next().await else { panic!("the message does not go back") };
    assert_eq!(back, queue);
    leader.quiet().await;
}

#[tokio::test]
async fn the_exchange_of_a_message_is_looked_at_when_it_is_taken_in() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    client.submit(Step::Check { channel: 1, exchange: "amq.fanout".into() });
    client.submit(Step::Check { channel: 1, exchange: "".into() });
    assert!(client.now().is_empty());
    client.submit(Step::Check { channel: 1, exchange: "amq.rabbitmq.trace".into() });
    let text = "cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'";
    assert_eq!(client.next().await, Event::ChannelError { channel: 1, refusal: Refusal::Access(text.into()), method: (60, 40) });
    client.submit(Step::ChannelClosed { channel: 1, held: vec![] });
    client.submit(Step::Check { channel: 1, exchange: "none".into() });
    let Event::ChannelError { refusal: Refusal::NotFound { .. }, .. } = client.next().await else { panic!("no refusal") };
}

#[tokio::test]
async fn a_commit_waits_for_its_shard_and_is_not_given_up_halfway() {
    let mut config = default_config();
    config.no_quorum_timeout = Duration::from_millis(50);
    let mut scene = Scene::new(config);
    scene.queue("q", 1);
    scene.world.set_leader(ShardId(1), None);
    let mut client = scene.client();
    client.submit(commit(vec![publish("", "q", 0, b"1"), publish("", "q", 0, b"2")], vec![]));
    match client.next().await {
        Event::Blocked(_) => {}
        other => panic!("{other:?}"),
    }
    scene.world.set_leader(ShardId(1), Some(leader(2, 2)));
    let (mut leader, _) = scene.leader(leader(2, 2), 9, 0).await;
    assert_eq!(enqueues(&leader.batch().await).len(), 2);
    leader.verdict(1, &[]).await;
    let mut events = Vec::new();
    while events.len() < 2 {
        events.push(client.next().await);
    }
    assert!(events.contains(&Event::Reply { channel: 1, result: Ok(Reply::Done) }), "{events:?}");
    assert!(events.contains(&Event::Unblocked), "{events:?}");
}

#[tokio::test]
async fn a_message_whose_queue_went_is_routed_again_before_the_commit_is_answered() {
    let mut scene = Scene::new(default_config());
    let old = scene.queue("a", 1);
    scene.queue("b", 2);
    scene.fanout("x", &["a"]);
    let mut client = scene.client();
    client.submit(commit(vec![publish("x", "", 0, b"1")], vec![]));
    let (mut first, _) = scene.leader(leader(1, 2), 5, 0).await;
    first.batch().await;
    scene.world.apply(&CatalogCommand::DeleteQueue { id: old });
    let again = scene.queue("a", 2);
    scene.world.apply(&CatalogCommand::Bind(binding("x", "a")));
    first.verdict(1, &[0]).await;
    let (mut second, _) = scene.leader(leader(1, 2), 6, 0).await;
    assert_eq!(enqueues(&second.batch().await)[0].queues().collect::<Vec<_>>(), [again]);
    assert!(client.now().is_empty(), "not before the second verdict");
    second.verdict(1, &[]).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
}
