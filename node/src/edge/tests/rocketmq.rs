//! Topics of RocketMQ as publishes are routed to them.

use super::*;
use crate::model::catalog::{Renaming, Value};
use crate::model::rocketmq::{Arrangement, TopicSettings};

const GROUPS: usize = 10;
const DEFAULTS: RocketDefaults = RocketDefaults { invisible_ms: 1000, ordered_invisible_ms: 1000, half_invisible_ms: 1000, max_retries: 3 };
static BODY: [u8; 10_000] = [b'x'; 10_000];

#[tokio::test]
async fn a_message_for_ten_groups_is_in_the_log_once() {
    let mut scene = Scene::new(default_config());
    let settings = TopicSettings { partitions: 8, ..TopicSettings::default() };
    let mut wanted = vec![Arrangement::AddTopic { topic: name("t"), settings }];
    wanted.extend((0..GROUPS).map(|n| Arrangement::AddGroup { topic: name("t"), group: format!("g{n}"), max_retries: None }));
    for arrangement in wanted {
        scene.edge.arrange(&arrangement, &DEFAULTS).await.expect("made");
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

fn ids(scene: &Scene, prefix: &str) -> Vec<QueueId> {
    let mut queues = scene.world.catalog.read().queues_named("/", prefix);
    queues.sort_by(|a, b| a.spec.name.name.cmp(&b.spec.name.name));
    queues.iter().map(|queue| queue.id).collect()
}

#[tokio::test]
async fn what_a_topic_keeps_goes_whole_to_one_of_the_groups_that_come_at_once() {
    let scene = Scene::new(default_config());
    let topic = Arrangement::AddTopic { topic: name("t"), settings: TopicSettings { partitions: 8, ..TopicSettings::default() } };
    let add = |group: &str| Arrangement::AddGroup { topic: name("t"), group: group.into(), max_retries: None };
    let delete = |group: &str| Arrangement::DeleteGroup { topic: name("t"), group: group.into() };
    scene.edge.arrange(&topic, &DEFAULTS).await.expect("made");
    let kept = ids(&scene, "t@@");
    assert_eq!(kept.len(), 8);
    let (first, second) = (add("a"), add("b"));
    let (one, other) = tokio::join!(scene.edge.arrange(&first, &DEFAULTS), scene.edge.arrange(&second, &DEFAULTS));
    one.and(other).expect("made");
    let (a, b) = (ids(&scene, "t@a@"), ids(&scene, "t@b@"));
    assert!([&a, &b].iter().filter(|queues| ***queues == kept).count() == 1 && a.iter().all(|id| !b.contains(id)), "{a:?} {b:?}");
    assert!(ids(&scene, "t@@").is_empty());
    scene.edge.arrange(&topic, &DEFAULTS).await.expect("it is there");
    assert!(ids(&scene, "t@@").is_empty(), "it has groups");
    scene.edge.arrange(&delete("a"), &DEFAULTS).await.expect("deleted");
    assert!(ids(&scene, "t@@").is_empty(), "it still has one");
    scene.edge.arrange(&delete("b"), &DEFAULTS).await.expect("deleted");
    assert_eq!(ids(&scene, "t@@").len(), 8);
    scene.edge.arrange(&Arrangement::DeleteTopic { topic: name("t") }, &DEFAULTS).await.expect("deleted");
    assert!(ids(&scene, "t@").is_empty());
}

/// Through two nodes at the same time, of which one is behind: it names queues that are another group's by then.
#[tokio::test]
async fn a_group_that_comes_while_another_one_takes_what_was_kept_has_queues_of_its_own() {
    for partitions in [1, 8] {
        for taken in 0..2 {
            let scene = Scene::new(default_config());
            let settings = TopicSettings { partitions, ..TopicSettings::default() };
            scene.edge.arrange(&Arrangement::AddTopic { topic: name("t"), settings }, &DEFAULTS).await.expect("made");
            let kept = ids(&scene, "t@");
            let renaming = |(n, id): (usize, &QueueId)| Renaming { id: *id, name: format!("t@first@{n}").into(), arguments: Table::new() };
            let of_first: Vec<_> = kept.iter().enumerate().skip(taken).map(renaming).collect();
            scene.world.apply(&CatalogCommand::RenameQueues(of_first));
            let second = Arrangement::AddGroup { topic: name("t"), group: "second".into(), max_retries: None };
            scene.edge.arrange(&second, &DEFAULTS).await.expect("made");
            let queues = scene.edge.group(&name("t"), "second").expect("whole");
            assert_eq!(queues.len(), partitions as usize);
            assert!(ids(&scene, "t@").len() == 2 * partitions as usize - taken && scene.edge.group(&name("t"), "").is_none());
        }
    }
}

#[tokio::test]
async fn what_is_kept_is_made_whole_before_a_group_gets_it() {
    let scene = Scene::new(default_config());
    let topic = Arrangement::AddTopic { topic: name("t"), settings: TopicSettings { partitions: 2, ..TopicSettings::default() } };
    scene.edge.arrange(&topic, &DEFAULTS).await.expect("made");
    let kept = ids(&scene, "t@@");
    scene.world.apply(&CatalogCommand::DeleteQueue { id: kept[1] });
    let group = Arrangement::AddGroup { topic: name("t"), group: "a".into(), max_retries: Some(5) };
    scene.edge.arrange(&group, &DEFAULTS).await.expect("made");
    let queues = scene.edge.group(&name("t"), "a").expect("whole");
    let catalog = scene.world.catalog.read();
    let limits = queues.iter().map(|queue| catalog.queue(queue).expect("there").spec.arguments.get("x-delivery-limit").cloned());
    assert_eq!(limits.collect::<Vec<_>>(), [Some(Value::Int(5)), Some(Value::Int(5))]);
    assert_eq!(catalog.queue(&queues[0]).expect("there").id, kept[0]);
}

#[tokio::test]
async fn a_group_that_is_there_keeps_its_retries() {
    let scene = Scene::new(default_config());
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
        let made = scene.edge.arrange(&arrangement, &DEFAULTS).await;
        assert_eq!(made.map_err(|refusal| refusal.to_string()).err().as_deref(), refused, "{arrangement:?}");
    }
}
