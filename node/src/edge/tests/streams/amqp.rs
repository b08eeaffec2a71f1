//! AMQP on streams: what a publish becomes and when it is confirmed, what a consumer gets and when.

use super::*;
use crate::model::entry::StoredView;
use crate::records::{Reading, append_stored};
use bytes::BytesMut;

fn text(text: &str) -> Value {
    Value::Text(text.as_bytes().to_vec())
}

fn consume(stream: &str, (no_ack, prefetch): (bool, Option<u32>), arguments: &[(&str, Value)]) -> Request {
    Request::Consume {
        queue: name(stream),
        tag: "tag".into(),
        no_ack,
        exclusive: false,
        prefetch,
        arguments: arguments.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
    }
}

fn body(message: &[u8]) -> String {
    String::from_utf8_lossy(&message[StoredView::parse(message).unwrap().body_at..]).into_owned()
}

impl Client {
    async fn started(&mut self, stream: &str, prefetch: u32, arguments: &[(&str, Value)]) -> ConsumerId {
        self.ask(consume(stream, (false, Some(prefetch)), arguments));
        match self.reply().await {
            Ok(Reply::Consuming { consumer }) => consumer,
            other => panic!("{other:?}"),
        }
    }

    /// So many messages, as one settlement would name them, and what they are.
    async fn taken(&mut self, count: usize) -> (Vec<crate::model::step::Held>, String) {
        let (mut held, mut shown) = (Vec::new(), Vec::new());
        while held.len() < count {
            match self.next().await {
                Event::Deliver { channel: 1, consumer, shard, messages } => {
                    for m in messages {
                        shown.push(format!("{} {}", m.seq, body(&m.message)));
                        held.push(crate::model::step::Held { shard, queue: m.queue, seq: m.seq, consumer: Some(consumer) });
                    }
                }
                other => panic!("not a delivery: {other:?}"),
            }
        }
        (held, shown.join(", "))
    }

    async fn hears_nothing(&mut self) {
        let more = timeout(Duration::from_millis(40), self.connection.changed()).await;
        assert!(self.events.is_empty() && more.is_err(), "nothing should come");
    }
}

#[tokio::test]
async fn a_publish_to_queues_and_streams_is_confirmed_when_all_of_them_have_it() {
    let mut scene = Scene::new(default_config());
    let stream = scene.stream("s");
    scene.queue("q", SHARD);
    let arguments = [("x-queue-type".to_owned(), text("stream"))].into();
    let spec = QueueSpec { name: name("t"), durable: true, auto_delete: false, exclusive_owner: None, arguments };
    let far = scene.declare(spec, ShardId(1));
    scene.fanout("x", &["s", "q", "t"]);
    let mut client = scene.client();
    client.publish("x", "key", 1);
    let (one, _) = scene.leader(leader(1, 2), 9, 0).await;
    let (two, _) = scene.leader(leader(1, 2), 9, 0).await;
    let (mut here, mut there) = if one.shard == ShardId(SHARD) { (one, two) } else { (two, one) };
    let batch = here.batch().await;
    assert_eq!(keys(&batch), ["key"]);
    let found = chunks(&batch);
    assert_eq!(found.iter().map(|c| (c.stream, c.records)).collect::<Vec<_>>(), [(stream, 1)]);
    let mut out = BytesMut::new();
    append_stored(&mut out, &mut Reading::default(), &found[0].data[4..], 7, b"s");
    let view = StoredView::parse(&out).unwrap();
    assert_eq!((view.exchange, view.key, body(&out).as_str()), (&b"x"[..], &b"key"[..], "body"));
    assert_eq!(chunks(&there.batch().await).iter().map(|c| c.stream).collect::<Vec<_>>(), [far]);
    here.verdict(1, &[]).await;
    client.hears_nothing().await;
    there.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    // The stream goes meanwhile: the others have it.
    client.publish("x", "key", 2);
    assert_eq!((chunks(&here.batch().await).len(), chunks(&there.batch().await).len()), (1, 1));
    here.verdict(2, &[1]).await;
    there.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await, [(2, 2)]);
}

#[tokio::test]
async fn a_consumer_gets_what_its_credit_allows_from_where_it_begins_until_the_stream_goes() {
    let scene = Scene::new(default_config());
    let stream = scene.stream("s");
    let held = Held::of(&scene, stream, StreamSettings::default());
    held.append(stream, None, &[(0, "a"), (0, "b"), (0, "c")]);
    held.append(stream, None, &[(0, "d")]);
    let (mut client, mut other) = (scene.client(), scene.client());
    client.started("s", 2, &[("x-stream-offset", text("first"))]).await;
    let (first, shown) = client.taken(2).await;
    assert_eq!(shown, "0 a, 1 b");
    assert!(first.iter().all(|h| h.shard == ShardId::STREAMS));
    client.hears_nothing().await;
    client.settle(&first[1..], Outcome::Requeue);
    let (third, shown) = client.taken(1).await;
    assert_eq!(shown, "2 c", "what was given back is credit");
    client.settle(&[first[0], third[0]], Outcome::Ack);
    assert_eq!(client.taken(1).await.1, "3 d");
    held.append(stream, None, &[(0, "e"), (0, "f")]);
    assert_eq!(client.taken(1).await.1, "4 e");
    client.hears_nothing().await;

    let consumer = other.started("s", 100, &[("x-stream-offset", Value::Int(2))]).await;
    assert_eq!(other.taken(4).await.1, "2 c, 3 d, 4 e, 5 f");
    other.ask(Request::Cancel { consumer });
    assert_eq!(other.reply().await, Ok(Reply::Done));
    held.append(stream, None, &[(0, "g")]);
    other.hears_nothing().await;
    other.started("s", 100, &[("x-stream-offset", text("first"))]).await;
    other.taken(7).await;
    held.entry(|entry| entry.advance(9, 10, &[], &[stream]));
    assert!(matches!(other.next().await, Event::ConsumerGone { channel: 1, .. }));
    drop(client);
}

#[tokio::test]
async fn bytes_that_are_not_written_hold_a_consumer_back() {
    let config = EdgeConfig { consumer_bytes: 1000, ..default_config() };
    let scene = Scene::new(config);
    let stream = scene.stream("s");
    let held = Held::of(&scene, stream, StreamSettings::default());
    let large = "x".repeat(600);
    held.append(stream, None, &[(0, &large), (0, &large), (0, "small")]);
    let mut client = scene.client();
    let consumer = client.started("s", 100, &[("x-stream-offset", text("first"))]).await;
    client.taken(2).await;
    client.hears_nothing().await;
    client.submit(Step::Written { consumer, bytes: 700 });
    assert_eq!(client.taken(1).await.1, "2 small");
}

#[tokio::test]
async fn next_is_behind_what_was_published_before_wherever_the_replica_is() {
    let mut scene = Scene::new(default_config());
    let stream = scene.stream("s");
    let held = Held::of(&scene, stream, StreamSettings::default());
    held.append(stream, None, &[(0, "a")]);
    let mut client = scene.client();
    client.publish("", "s", 1);
    client.ask(consume("s", (false, Some(5)), &[]));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.quiet().await;
    leader.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    let ToLeader::Stream { request, stream: of, .. } = leader.next().await else { panic!("no question") };
    assert_eq!(of, stream);
    let state = StreamState { next: Offset(2), last_chunk: Some(Offset(1)), ..StreamState::default() };
    leader.say(ToEdge::Stream { request, result: Ok(state) }).await;
    assert!(matches!(client.reply().await, Ok(Reply::Consuming { .. })));
    // The replica learns of it now.
    held.append(stream, None, &[(0, "published")]);
    held.append(stream, None, &[(0, "next")]);
    assert_eq!(client.taken(1).await.1, "2 next");
}

#[tokio::test]
async fn a_stream_is_read_where_it_has_a_replica() {
    let scene = Scene::new(default_config());
    scene.stream("s");
    let mut client = scene.client();
    client.ask(consume("s", (false, Some(1)), &[("x-stream-offset", text("first"))]));
    let refused = "stream queue 's' in vhost '/' does not have a running replica on the local node";
    assert_eq!(client.reply().await, Err(Refusal::Precondition(refused.into())));
}

#[tokio::test]
async fn what_streams_do_not_do_is_refused_in_rabbitmqs_words() {
    let scene = Scene::new(default_config());
    scene.stream("s");
    scene.queue("q", SHARD);
    let mut client = scene.client();
    let subject = "queue 's' in vhost '/'";
    let of_type = |name: &str, queue: &str, kind: &str| {
        Refusal::Precondition(format!("invalid arg '{name}' for queue '{queue}' in vhost '/' of queue type rabbit_{kind}_queue"))
    };
    let not_done = |text: &str| Refusal::NotImplemented(format!("{text} {subject}"));
    let cases = [
        (consume("s", (false, None), &[]), Refusal::Precondition(format!("consumer prefetch count is not set for stream {subject}"))),
        (consume("s", (true, None), &[]), not_done("automatic acknowledgement not supported by stream")),
        (consume("s", (false, Some(1)), &[("x-priority", Value::Int(1))]), of_type("x-priority", "s", "stream")),
        (consume("q", (false, Some(1)), &[("x-stream-offset", text("first"))]), of_type("x-stream-offset", "q", "classic")),
        (
            consume("s", (false, Some(1)), &[("x-stream-offset", text("soon"))]),
            Refusal::Precondition(format!(
                "invalid arg 'x-stream-offset' for {subject}: {{invalid_stream_offset_arg,{{longstr,<<\"soon\">>}}}}"
            )),
        ),
        (Request::Get { queue: name("s"), no_ack: false }, not_done("basic.get not supported by stream queues")),
        (Request::PurgeQueue { name: name("s") }, not_done("queue.purge not supported by stream queues")),
    ];
    for (request, refusal) in cases {
        client.ask(request);
        assert_eq!(client.reply().await, Err(refusal));
    }
    let declare = |stream: &str, arguments: &[(&str, Value)]| {
        Request::DeclareQueue(crate::model::step::DeclareQueue {
            name: name(stream),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            arguments: arguments.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        })
    };
    client.ask(declare("", &[("x-queue-type", text("stream"))]));
    let unnamed = "Cannot declare a server-named queue for type rabbit_stream_queue";
    assert_eq!(client.reply().await, Err(Refusal::Precondition(unnamed.into())));
    client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(5) });
    client.ask(consume("s", (false, Some(1)), &[]));
    assert_eq!(client.reply().await, Err(Refusal::NotImplemented(format!("{subject} does not support global qos"))));
}
