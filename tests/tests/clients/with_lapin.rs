//! lapin, with its automatic recovery: it comes back to the node that died, channels, confirms, prefetch and consumer with it.

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::timeout;
use warren_tests::clients::Scene;

const PATIENCE: Duration = Duration::from_secs(30);
const MESSAGES: usize = 20;
const PREFETCH: u16 = 4;
const AFTER: usize = 10;

async fn publish(channel: &Channel, key: &str, body: &str) -> lapin::Result<Confirmation> {
    let (options, persistent) =
        (BasicPublishOptions { mandatory: true, ..Default::default() }, BasicProperties::default().with_delivery_mode(2));
    channel.basic_publish("".into(), key.into(), options, body.as_bytes(), persistent).await?.await
}

async fn next(consumer: &mut Consumer) -> Option<lapin::Result<Delivery>> {
    timeout(PATIENCE, consumer.next()).await.expect("nothing is delivered")
}

async fn delivery(consumer: &mut Consumer) -> Delivery {
    next(consumer).await.expect("the consumer is there").expect("the connection is there")
}

fn seen(message: &Delivery) -> (String, bool) {
    (String::from_utf8_lossy(&message.data).into_owned(), message.redelivered)
}

async fn waiting(channel: &Channel, queue: &str) -> u32 {
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().message_count()
}

/// All of it.
pub async fn act(scene: &Scene) {
    let ([first, _], queue) = (scene.nodes(), scene.queue());
    let address = format!("amqp://guest:guest@{first}/%2f");
    // The node takes a moment to come back: lapin may ask it more often than it does by itself.
    let properties =
        ConnectionProperties::default().configure_backoff(|backoff| backoff.with_max_delay(Duration::from_millis(500)).with_max_times(100));
    let connection = Connection::connect(&address, properties.enable_auto_recover()).await.unwrap();
    let (out, into) = (connection.create_channel().await.unwrap(), connection.create_channel().await.unwrap());
    out.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for n in 0..MESSAGES {
        assert_eq!(publish(&out, queue, &format!("m{n:02}")).await.unwrap(), Confirmation::Ack(None));
    }
    let returned = publish(&out, &format!("nobody-{queue}"), "lost").await.unwrap();
    assert!(returned.is_ack(), "{returned:?}");
    assert_eq!(returned.take_message().map(|message| message.reply_code), Some(312));

    into.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
    let consuming = into.basic_consume(queue.into(), "lapin".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = consuming.await.unwrap();
    give_one_back(&out, queue, &mut consumer).await;

    publish(&out, queue, "held").await.unwrap();
    assert_eq!(seen(&delivery(&mut consumer).await), ("held".to_owned(), false));
    scene.kill_first();
    let (sent, seen) = tokio::join!(publish_after(&out, queue), take_after(&into, &mut consumer));
    assert_eq!(sent, AFTER);
    // What the dead node held comes when the leader is sure that it is gone: the others need not wait for it.
    assert!(seen.contains(&("held".to_owned(), true)) && !seen.contains(&("held".to_owned(), false)), "{seen:?}");
    connection.close(200, "bye".into()).await.unwrap();
}

/// Prefetch, and a message that goes back to its place.
async fn give_one_back(out: &Channel, queue: &str, consumer: &mut Consumer) {
    let mut held = Vec::new();
    for _ in 0..PREFETCH {
        held.push(delivery(consumer).await);
    }
    assert_eq!(waiting(out, queue).await as usize, MESSAGES - usize::from(PREFETCH), "no more than the prefetch are out");
    let mut all: Vec<_> = held.iter().map(seen).collect();
    held.remove(0).nack(BasicNackOptions { requeue: true, ..Default::default() }).await.unwrap();
    loop {
        if all.len() <= MESSAGES {
            held.push(delivery(consumer).await);
            all.extend(held.last().map(seen));
        }
        if held.is_empty() {
            break;
        }
        held.remove(0).ack(BasicAckOptions::default()).await.unwrap();
    }
    let mut wanted: Vec<_> = (0..MESSAGES).map(|n| (format!("m{n:02}"), false)).collect();
    wanted.insert(usize::from(PREFETCH), ("m00".to_owned(), true));
    assert_eq!(all, wanted);
}

/// Publish through the loss of the connection until each is confirmed; how many were.
async fn publish_after(channel: &Channel, queue: &str) -> usize {
    let mut sent = 0;
    while sent < AFTER {
        match publish(channel, queue, &format!("after-{sent}")).await {
            Ok(Confirmation::Ack(None)) => sent += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => channel.wait_for_recovery(error).await.expect("the connection recovers"),
        }
    }
    sent
}

/// Take and acknowledge until all that was held or confirmed has come.
async fn take_after(channel: &Channel, consumer: &mut Consumer) -> Vec<(String, bool)> {
    let mut missing: BTreeSet<String> = (0..AFTER).map(|n| format!("after-{n}")).chain(["held".to_owned()]).collect();
    let mut all = Vec::new();
    while !missing.is_empty() {
        match next(consumer).await.expect("the consumer is there") {
            Ok(message) => {
                missing.remove(&seen(&message).0);
                all.push(seen(&message));
                message.ack(BasicAckOptions::default()).await.unwrap();
            }
            Err(error) => channel.wait_for_recovery(error).await.expect("the connection recovers"),
        }
    }
    all
}
