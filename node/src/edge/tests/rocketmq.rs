//! Topics of RocketMQ as publishes are routed to them.

use super::*;
use crate::model::rocketmq::{Arrangement, TopicSettings};

const GROUPS: usize = 10;
static BODY: [u8; 10_000] = [b'x'; 10_000];

#[tokio::test]
async fn a_message_for_ten_groups_is_in_the_log_once() {
    let mut scene = Scene::new(default_config());
    let defaults = RocketDefaults { invisible_ms: 1000, ordered_invisible_ms: 1000, half_invisible_ms: 1000, max_retries: 3 };
    let settings = TopicSettings { partitions: 8, ..TopicSettings::default() };
    let mut wanted = vec![Arrangement::AddTopic { topic: name("t"), settings }];
    wanted.extend((0..GROUPS).map(|n| Arrangement::AddGroup { topic: name("t"), group: format!("g{n}"), max_retries: None }));
    for arrangement in wanted {
        scene.edge.arrange(&arrangement, &defaults).await.expect("made");
    }
    let mut client = scene.client();
    client.submit(Step::Publish(publish("t", "tag", 1, &BODY)));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let batch = leader.batch().await;
    let enqueues = enqueues(&batch);
    assert_eq!(enqueues.iter().map(|enqueue| enqueue.queues().count()).collect::<Vec<_>>(), [GROUPS], "one operation names all queues");
    assert!(batch.ops.len() < BODY.len() + 500, "{} bytes", batch.ops.len());
    assert!(client.now().is_empty(), "no confirm without a verdict");
    leader.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)], "no other shard has a part in it");
}

#[tokio::test]
async fn a_group_that_is_there_keeps_its_retries() {
    let scene = Scene::new(default_config());
    let defaults = RocketDefaults { invisible_ms: 1000, ordered_invisible_ms: 1000, half_invisible_ms: 1000, max_retries: 3 };
    let add = |topic: &str, max_retries| Arrangement::AddGroup { topic: name(topic), group: "g".into(), max_retries };
    let topic = Arrangement::AddTopic { topic: name("t"), settings: TopicSettings { partitions: 2, ..TopicSettings::default() } };
    for (arrangement, refused) in [
        (topic, None),
        (add("t", Some(5)), None),
        (add("t", Some(5)), None),
        (add("t", None), None),
        (add("t", Some(6)), Some("inequivalent arg 'max-retries' for group 'g' on topic 't' in vhost '/': received 6 but current is 5")),
        (add("%DLQ%g", None), None),
        (add("%DLQ%g", Some(1)), Some("dead letters do not die again: a group on topic '%DLQ%g' takes no max-retries")),
    ] {
        let made = scene.edge.arrange(&arrangement, &defaults).await;
        assert_eq!(made.map_err(|refusal| refusal.to_string()).err().as_deref(), refused, "{arrangement:?}");
    }
}
