//! RocketMQ's HTTP protocol: a topic, publishers that send one message at a time, consumers that fetch and acknowledge, on all nodes.
//! A message that is given to a consumer for the first time says so (`ConsumedTimes` 1). The protocol promises no order here.

use super::ledger::Message;
use super::load::{Load, PATIENCE};
use crate::bench::rocketmq::{Client, GROUP, Place, handles};
use crate::management::client::{AdminClient, ClientError};
use crate::model::catalog::Name;
use crate::model::rocketmq::{Arrangement, TopicSettings};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

const TOPIC: &str = "verify";
const PARTITIONS: u32 = 4;
/// What a consumer does not acknowledge comes again after this time.
const INVISIBLE_MS: u64 = 5_000;
const PUBLISHERS: usize = 2;
const CONSUMERS: usize = 2;
/// A client goes to the next node after so many requests.
const LIFE_REQUESTS: u64 = 300;
const PACE: Duration = Duration::from_millis(15);

/// Make the topic and the consumers' group.
///
/// # Errors
/// The broker's.
pub(super) async fn arrange(client: &mut AdminClient) -> Result<(), ClientError> {
    let topic = Name { vhost: "/".into(), name: TOPIC.into() };
    let settings = TopicSettings { partitions: PARTITIONS, invisible_ms: Some(INVISIBLE_MS), ..TopicSettings::default() };
    client.arrange(&Arrangement::AddTopic { topic: topic.clone(), settings }).await?;
    client.arrange(&Arrangement::AddGroup { topic, group: GROUP.into(), max_retries: None }).await
}

/// Start the publishers, which end by themselves when nothing more is to be published, and the consumers.
pub(super) fn start(load: &Arc<Load>) -> (Vec<JoinHandle<()>>, Vec<JoinHandle<()>>) {
    let publishers = (0..PUBLISHERS).map(|n| load.client(n, Load::is_publishing, publish));
    let consumers = (0..CONSUMERS).map(|n| load.client(n + 1, |load: &Load| !load.is_over(), consume));
    (publishers.collect(), consumers.collect())
}

fn connect(address: &str) -> io::Result<Client> {
    Client::connect_within(&Place::parse(address), TOPIC, PATIENCE)
}

/// One life of a publisher.
fn publish(load: &Load, life: u32, address: &str) -> io::Result<()> {
    let mut client = connect(address)?;
    for number in 1..=LIFE_REQUESTS {
        if !load.is_publishing() {
            break;
        }
        let message = Message { publisher: life, number };
        let body = load.ledger.publish(message);
        match client.publish(&body) {
            Ok(()) => load.ledger.confirmed(message),
            // An answer, but not the one that was hoped for.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                load.ledger.refused(message);
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        thread::sleep(PACE);
    }
    Ok(())
}

/// One life of a consumer.
fn consume(load: &Load, _: u32, address: &str) -> io::Result<()> {
    let mut client = connect(address)?;
    for _ in 0..LIFE_REQUESTS {
        if load.is_over() {
            break;
        }
        let fetched = client.fetch(1)?;
        if fetched.is_empty() {
            continue;
        }
        let got: Vec<Message> =
            fetched.iter().filter_map(|message| load.ledger.delivered(None, message.body.as_bytes(), message.times > 1)).collect();
        client.acknowledge(&handles(&fetched))?;
        got.into_iter().for_each(|message| load.ledger.acknowledged(message));
    }
    Ok(())
}
