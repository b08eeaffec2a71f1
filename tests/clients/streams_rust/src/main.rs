//! rabbitmq-stream-client: what it shows on a cluster of several nodes. Arguments: the stream addresses (host:port) of the nodes.
//! It prints `ok STEP` for what it has shown and `kill HOST:PORT` for the node that shall be killed; it reads `killed` when that is done.

use futures::StreamExt;
use rabbitmq_stream_client::types::{
    Delivery, HashRoutingMurmurStrategy, Message, OffsetSpecification, RoutingStrategy, SuperStreamConsumer,
};
use rabbitmq_stream_client::{Client, ClientOptions, Consumer, Environment, FilterConfiguration};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
/// Time enough for something that must not come.
const MOMENT: Duration = Duration::from_millis(300);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Clone)]
struct Node {
    host: String,
    port: u16,
}

impl Node {
    fn read(address: &str) -> Node {
        let (host, port) = address.rsplit_once(':').expect("host:port");
        Node { host: host.to_owned(), port: port.parse().expect("a port") }
    }

    async fn environment(&self) -> Result<Environment> {
        Ok(Environment::builder().host(&self.host).port(self.port).build().await?)
    }

    /// The address of the node that leads a stream, as this node says.
    async fn leader(&self, stream: &str) -> Result<String> {
        let client = Client::connect(ClientOptions::builder().host(&self.host).port(self.port).build()).await?;
        let mut found = client.metadata(vec![stream.to_owned()]).await?;
        client.close().await?;
        let leader = found.remove(stream).ok_or("no metadata")?.leader;
        Ok(format!("{}:{}", leader.host, leader.port))
    }
}

fn numbers(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{prefix}{n}")).collect()
}

fn message(body: &str) -> Message {
    Message::builder().body(body).build()
}

fn said(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.message().data().unwrap_or_default()).into_owned()
}

fn property(message: &Message, name: &str) -> Option<String> {
    message.application_properties()?.get(name)?.clone().try_into().ok()
}

async fn read(consumer: &mut Consumer, count: usize) -> Result<Vec<Delivery>> {
    let mut got = Vec::new();
    while got.len() < count {
        let next = timeout(PATIENCE, consumer.next()).await;
        let next = next.map_err(|_| format!("waited in vain: {} of {count} messages", got.len()))?;
        got.push(next.ok_or("the consumer has ended")??);
    }
    Ok(got)
}

fn ok(step: &str) {
    println!("ok {step}");
}

async fn confirm(nodes: &[Node]) -> Result<()> {
    let (one, two) = (nodes[0].environment().await?, nodes[1].environment().await?);
    let stream = "rust-confirm";
    one.stream_creator().max_age(Duration::from_secs(7 * 86_400)).create(stream).await?;
    let mut producer = one.producer().name("p").build(stream).await?;
    let bodies = numbers("m", 0..300);
    let made = |n: usize| {
        let properties = Message::builder().body(bodies[n].as_str()).publishing_id(n as u64 + 1).properties().message_id(bodies[n].clone());
        properties.message_builder().application_properties().insert("of", bodies[n].as_str()).message_builder().build()
    };
    let confirmed = producer.batch_send_with_confirm((0..300).map(made).collect()).await?;
    assert!(confirmed.len() == 300 && confirmed.iter().all(|status| status.confirmed()));
    // Said again they are confirmed and not stored twice.
    assert!(producer.send_with_confirm(made(299)).await?.confirmed());
    producer.close().await?;
    let mut all = two.consumer().offset(OffsetSpecification::First).build(stream).await?;
    let got = read(&mut all, 300).await?;
    assert_eq!(got.iter().map(said).collect::<Vec<_>>(), bodies);
    assert!(got.iter().zip(0..).all(|(delivery, offset)| delivery.offset() == offset));
    assert_eq!(property(got[299].message(), "of").as_deref(), Some("m299"));
    assert!(timeout(MOMENT, all.next()).await.is_err(), "a publishing id is stored once");
    let tail = two.consumer().offset(OffsetSpecification::Offset(290));
    let tail = read(&mut tail.build(stream).await?, 10).await?;
    assert_eq!(tail.iter().map(said).collect::<Vec<_>>(), bodies[290..]);
    all.handle().close().await?;
    ok("confirm");
    Ok(())
}

async fn filter(nodes: &[Node]) -> Result<()> {
    let environment = nodes[0].environment().await?;
    let stream = "rust-filter";
    environment.stream_creator().create(stream).await?;
    let region = |message: &Message| property(message, "region").unwrap_or_default();
    let producer = environment.producer().filter_value_extractor(region).build(stream).await?;
    for (wave, place) in [("a", "eu"), ("b", "us")] {
        let made = |body: &String| {
            Message::builder().body(body.as_str()).application_properties().insert("region", place).message_builder().build()
        };
        let sent = producer.batch_send_with_confirm(numbers(wave, 0..20).iter().map(made).collect()).await?;
        assert!(sent.iter().all(|status| status.confirmed()));
    }
    let wanted = FilterConfiguration::new(vec!["us".to_owned()], false);
    let mut us = environment.consumer().offset(OffsetSpecification::First).filter_input(Some(wanted)).build(stream).await?;
    // Chunks with nothing of this value stay away; the client would take whatever came.
    let got = read(&mut us, 20).await?;
    assert_eq!(got.iter().map(said).collect::<Vec<_>>(), numbers("b", 0..20));
    us.handle().close().await?;
    producer.close().await?;
    ok("filter");
    Ok(())
}

/// What comes to some consumers, and to which of them.
fn gather(consumers: Vec<SuperStreamConsumer>) -> mpsc::UnboundedReceiver<(usize, String, String)> {
    let (tx, rx) = mpsc::unbounded_channel();
    for (at, mut consumer) in consumers.into_iter().enumerate() {
        let tx = tx.clone();
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let _ = tx.send((at, delivery.stream().clone(), said(&delivery)));
            }
        });
    }
    rx
}

async fn super_streams(nodes: &[Node]) -> Result<()> {
    let (one, two) = (nodes[0].environment().await?, nodes[2].environment().await?);
    let name = "rust-super";
    one.stream_creator().create_super_stream(name, 3, None).await?;
    let routing_extractor = &|message: &Message| property(message, "key").unwrap_or_default();
    let hash = RoutingStrategy::HashRoutingStrategy(HashRoutingMurmurStrategy { routing_extractor });
    let mut producer = one.super_stream_producer(hash).build(name).await?;
    let (confirmed_tx, mut confirmed_rx) = mpsc::unbounded_channel();
    let bodies = numbers("s", 0..60);
    for body in &bodies {
        let made = Message::builder().body(body.as_str()).application_properties().insert("key", body.as_str()).message_builder().build();
        let tx = confirmed_tx.clone();
        let said = move |status: std::result::Result<rabbitmq_stream_client::ConfirmationStatus, _>| {
            let _ = tx.send(status.is_ok_and(|status| status.confirmed()));
            async {}
        };
        producer.send(made, said).await?;
    }
    for _ in &bodies {
        let status = timeout(PATIENCE, confirmed_rx.recv()).await.map_err(|_| "not confirmed")?;
        assert_eq!(status, Some(true));
    }
    // Two of a group: each partition has one reader, and both have some.
    let mut members = Vec::new();
    for environment in [&one, &two] {
        let member = environment.super_stream_consumer().name("group").enable_single_active_consumer(true);
        // Without a word of its own this client begins at the end.
        let member = member.consumer_update(|_, _| async { OffsetSpecification::First });
        members.push(member.offset(OffsetSpecification::First).build(name).await?);
        if members.len() == 1 {
            sleep(MOMENT).await;
        }
    }
    let mut got = gather(members);
    let (mut seen, mut partitions) = (BTreeSet::new(), BTreeMap::<String, usize>::new());
    while seen.len() < bodies.len() {
        let next = timeout(PATIENCE, got.recv())
            .await
            .map_err(|_| format!("waited in vain: {} of {}, {partitions:?}", seen.len(), bodies.len()))?;
        let (_, partition, body) = next.ok_or("the members have ended")?;
        *partitions.entry(partition).or_default() += 1;
        seen.insert(body);
    }
    assert_eq!(seen, bodies.into_iter().collect());
    assert!(partitions.len() == 3, "{partitions:?}");
    producer.close().await?;
    ok("super");
    Ok(())
}

async fn single(nodes: &[Node]) -> Result<()> {
    let (one, two) = (nodes[0].environment().await?, nodes[1].environment().await?);
    let stream = "rust-single";
    one.stream_creator().create(stream).await?;
    let producer = one.producer().build(stream).await?;
    let first = numbers("x", 0..10);
    producer.batch_send_with_confirm(first.iter().map(|body| message(body)).collect()).await?;
    let member = |environment: &Environment| environment.consumer().name("only").enable_single_active_consumer(true);
    let from_first = || OffsetSpecification::First;
    let mut active = member(&one).offset(from_first()).consumer_update(move |_, _| async move { from_first() }).build(stream).await?;
    assert_eq!(read(&mut active, 10).await?.iter().map(said).collect::<Vec<_>>(), first);
    active.store_offset(9).await?;
    assert_eq!(active.query_offset().await?, 9);
    // The other waits, and goes on behind what was stored when its turn comes.
    let resume = |_, context: rabbitmq_stream_client::MessageContext| async move {
        let stored = context.client().query_offset(context.name(), &context.stream()).await;
        stored.map_or(OffsetSpecification::First, |offset| OffsetSpecification::Offset(offset + 1))
    };
    let mut other = member(&two).offset(from_first()).consumer_update(resume).build(stream).await?;
    assert!(timeout(MOMENT, other.next()).await.is_err(), "two members of a group read at once");
    active.handle().close().await?;
    let second = numbers("y", 0..10);
    producer.batch_send_with_confirm(second.iter().map(|body| message(body)).collect()).await?;
    assert_eq!(read(&mut other, 10).await?.iter().map(said).collect::<Vec<_>>(), second);
    other.handle().close().await?;
    producer.close().await?;
    ok("single");
    Ok(())
}

/// Publishes one message, through whichever node takes it, until it is confirmed.
async fn publish_somewhere(nodes: &[Node], stream: &str, id: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    for node in nodes.iter().cycle() {
        let attempt = async {
            let mut producer = node.environment().await.ok()?.producer().name("again").build(stream).await.ok()?;
            let made = Message::builder().body(format!("r{id}")).publishing_id(id).build();
            let confirmed = producer.send_with_confirm(made).await.ok()?.confirmed();
            let _ = producer.close().await;
            confirmed.then_some(())
        };
        if let Ok(Some(())) = timeout(Duration::from_secs(5), attempt).await {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("message {id} is never confirmed").into());
        }
        sleep(Duration::from_millis(50)).await;
    }
    unreachable!("there are nodes")
}

async fn reconnect(nodes: &[Node]) -> Result<()> {
    let stream = "rust-reconnect";
    nodes[0].environment().await?.stream_creator().create(stream).await?;
    for id in 1..=10 {
        publish_somewhere(nodes, stream, id).await?;
    }
    let victim = nodes[0].leader(stream).await?;
    println!("kill {victim}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    assert_eq!(line.trim(), "killed");
    for id in 11..=20 {
        publish_somewhere(nodes, stream, id).await?;
    }
    let living = nodes.iter().find(|node| format!("{}:{}", node.host, node.port) != victim).ok_or("one node")?;
    let mut all = None;
    let end = Instant::now() + PATIENCE;
    while all.is_none() && Instant::now() < end {
        let environment = living.environment().await?;
        all = environment.consumer().offset(OffsetSpecification::First).build(stream).await.ok();
        sleep(Duration::from_millis(50)).await;
    }
    let got = read(&mut all.ok_or("nobody lets a reader in")?, 20).await?;
    assert_eq!(got.iter().map(said).collect::<Vec<_>>(), (1..=20).map(|id| format!("r{id}")).collect::<Vec<_>>());
    ok("reconnect");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let nodes: Vec<Node> = std::env::args().skip(1).map(|address| Node::read(&address)).collect();
    confirm(&nodes).await?;
    filter(&nodes).await?;
    super_streams(&nodes).await?;
    single(&nodes).await?;
    reconnect(&nodes).await
}
