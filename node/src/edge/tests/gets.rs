//! basic.get on many channels of one connection.

use super::*;
use crate::model::catalog::Value;

const MOST: u16 = limits::GETS as u16;

/// A client that asks on `channels` channels, and the leader that is asked.
async fn asking(channels: u16) -> (Scene, Client, Leader, QueueId) {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    (1..=channels).for_each(|channel| client.get(channel));
    let (leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    (scene, client, leader, queue)
}

impl Client {
    fn get(&mut self, channel: u16) {
        self.submit(Step::Request { channel, request: Request::Get { queue: name("q"), no_ack: false } });
    }

    /// The channels of answers that come to so many bytes.
    fn answers(&mut self, bytes: usize) -> Vec<u16> {
        let mut events = Vec::new();
        self.connection.take_events(&mut events, bytes);
        let answer = |event| match event {
            Event::Reply { channel, result: Ok(Reply::Got(_)) } => channel,
            other => panic!("not an answer: {other:?}"),
        };
        events.into_iter().map(answer).collect()
    }
}

impl Leader {
    /// The next questions.
    async fn gets(&mut self, count: u16) -> Vec<u64> {
        let mut requests = Vec::new();
        while requests.len() < count.into() {
            match self.next().await {
                ToLeader::Get { request, .. } => requests.push(request),
                ToLeader::Return { .. } => {}
                other => panic!("not a question: {other:?}"),
            }
        }
        requests
    }

    async fn gives(&mut self, request: u64, queue: QueueId, seq: u64) {
        let delivery = Delivery { queue, seq: Seq(seq), redelivered: false, failures: 0, failed_ms: 0, message: stored() };
        self.say(ToEdge::Got { request, result: Ok(Some((delivery, 0))) }).await;
    }
}

/// Else one client holds as many of the largest messages in its node's memory as it has channels.
#[tokio::test]
async fn only_so_many_gets_are_under_way_or_unread_and_the_others_follow_as_answers_are_taken() {
    let (_scene, mut client, mut leader, queue) = asking(MOST + 5).await;
    let asked = leader.gets(MOST).await;
    leader.quiet().await;
    for (request, seq) in asked.into_iter().zip(1..) {
        leader.gives(request, queue, seq).await;
    }
    leader.quiet().await;
    assert_eq!(client.answers(1), [1]);
    let mut more = leader.gets(1).await;
    leader.quiet().await;
    assert_eq!(client.answers(usize::MAX), (2..=MOST).collect::<Vec<_>>());
    more.extend(leader.gets(4).await);
    // The first of them asks again behind the others.
    client.get(1);
    more.extend(leader.gets(1).await);
    for (request, seq) in more.into_iter().zip(100..) {
        leader.gives(request, queue, seq).await;
    }
    let mut answered = Vec::new();
    while answered.len() < 6 {
        timeout(PATIENCE, client.connection.changed()).await.expect("an answer in time");
        answered.extend(client.answers(usize::MAX));
    }
    assert_eq!(answered, [MOST + 1, MOST + 2, MOST + 3, MOST + 4, MOST + 5, 1]);
    leader.quiet().await;
}

#[tokio::test]
async fn a_channel_that_closes_makes_room_and_is_not_asked_for() {
    let (_scene, mut client, mut leader, queue) = asking(MOST + 3).await;
    let asked = leader.gets(MOST).await;
    let close = |client: &mut Client, channel| client.submit(Step::ChannelClosed { channel, held: Vec::new() });
    close(&mut client, MOST + 1);
    leader.quiet().await;
    // One that is under way, and one that is answered and not read.
    close(&mut client, 1);
    let mut more = leader.gets(1).await;
    leader.gives(asked[1], queue, 1).await;
    timeout(PATIENCE, client.connection.changed()).await.expect("an answer in time");
    close(&mut client, 2);
    more.extend(leader.gets(1).await);
    for (request, seq) in more.into_iter().zip(100..) {
        leader.gives(request, queue, seq).await;
    }
    let mut answered = Vec::new();
    while answered.len() < 2 {
        timeout(PATIENCE, client.connection.changed()).await.expect("an answer in time");
        answered.extend(client.answers(usize::MAX));
    }
    assert_eq!(answered, [MOST + 2, MOST + 3]);
}

/// RabbitMQ refuses it for quorum queues alone.
#[tokio::test]
async fn a_get_does_not_take_from_a_single_active_consumer_of_a_quorum_queue() {
    let mut scene = Scene::new(default_config());
    let queue = |queue: &str, kind: &str, single: bool| {
        let kind = ("x-queue-type".to_owned(), Value::Text(kind.into()));
        let arguments = [kind, ("x-single-active-consumer".to_owned(), Value::Bool(single))].into();
        let spec = QueueSpec { name: name(queue), durable: true, auto_delete: false, exclusive_owner: None, arguments };
        scene.declare(spec, ShardId(1))
    };
    let allowed = [queue("classic", "classic", true), queue("many", "quorum", false)];
    queue("q", "quorum", true);
    let mut client = scene.client();
    client.get(1);
    let text = "cannot obtain access to locked queue 'q' in vhost '/'. basic.get operations are not supported by quorum queues with single \
                active consumer";
    assert_eq!(client.reply().await, Err(Refusal::Locked(text.into())));
    let ask = |queue: &str| Request::Get { queue: name(queue), no_ack: false };
    client.ask(ask("classic"));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    for id in allowed {
        let ToLeader::Get { request, queue, .. } = leader.next().await else { panic!("no question") };
        assert_eq!(queue, id);
        leader.say(ToEdge::Got { request, result: Ok(None) }).await;
        assert_eq!(client.reply().await, Ok(Reply::Got(None)));
        client.ask(ask("many"));
    }
}

#[tokio::test]
async fn gets_that_are_refused_at_once_make_room_too() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    (1..=3 * MOST).for_each(|channel| client.get(channel));
    for expected in 1..=3 * MOST {
        let Event::Reply { channel, result: Err(Refusal::NotFound { .. }) } = client.next().await else { panic!("no refusal") };
        assert_eq!(channel, expected);
    }
}
