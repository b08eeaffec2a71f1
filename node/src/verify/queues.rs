//! AMQP 0-9-1: durable queues, each with a publisher that waits for confirms and consumers that acknowledge, on different nodes. Order is
//! promised to a consumer that is alone on its queue; half of the queues have one consumer, the others two.

use super::ledger::Message;
use super::load::{Load, PATIENCE};
use crate::bench::client::{ClientError, Connection, Dial, Incoming, QueueOptions};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const QUEUES: usize = 4;
/// A publisher goes to the next node after so many messages.
const LIFE_MESSAGES: u64 = 1_000;
/// Messages that may wait for their confirms.
const WINDOW: usize = 200;
/// A publisher's pace: one message in this time.
const PACE: Duration = Duration::from_millis(8);
const PREFETCH: u16 = 50;
/// Deliveries that are acknowledged together.
const ACK_EVERY: usize = 10;
/// A consumer looks up from its socket so often.
const LOOK_UP: Duration = Duration::from_millis(50);

fn queue(n: usize) -> String {
    format!("verify-{n}")
}

/// Consumers of a queue.
fn consumers(n: usize) -> usize {
    1 + n % 2
}

fn dial(address: &str) -> Dial {
    Dial { timeout: PATIENCE, ..Dial::guest(address) }
}

/// Make the queues.
///
/// # Errors
/// The broker's.
pub(super) fn declare(load: &Load) -> Result<(), ClientError> {
    let mut connection = Connection::open_with_channel(&dial(load.address(0)))?;
    (0..QUEUES).try_for_each(|n| connection.declare(1, &queue(n), &QueueOptions::durable()).map(drop))?;
    connection.close()
}

/// Start the publishers, which end by themselves when nothing more is to be published, and the consumers.
pub(super) fn start(load: &Arc<Load>) -> (Vec<JoinHandle<()>>, Vec<JoinHandle<()>>) {
    let publisher = |n: usize| load.client(n, Load::is_publishing, move |load, life, address| publish(load, life, address, &queue(n)));
    let consumer = |(n, c): (usize, usize)| {
        load.client(
            n + c + 1,
            |load: &Load| !load.is_over(),
            move |load, life, address| {
                let alone = (consumers(n) == 1).then_some(life);
                consume(load, alone, address, &queue(n))
            },
        )
    };
    let all = (0..QUEUES).flat_map(|n| (0..consumers(n)).map(move |c| (n, c)));
    ((0..QUEUES).map(publisher).collect(), all.map(consumer).collect())
}

/// One life of a publisher.
fn publish(load: &Load, life: u32, address: &str, queue: &str) -> Result<(), ClientError> {
    let mut connection = Connection::open_with_channel(&dial(address))?;
    connection.confirm_select(1)?;
    let (mut number, mut next) = (0, Instant::now());
    let mut open: BTreeMap<u64, Instant> = BTreeMap::new();
    loop {
        let is_wanted = load.is_publishing() && number < LIFE_MESSAGES;
        if !is_wanted && open.is_empty() {
            return connection.close();
        }
        let now = Instant::now();
        if is_wanted && open.len() < WINDOW && now >= next {
            number += 1;
            next = now + PACE;
            let body = load.ledger.publish(Message { publisher: life, number });
            connection.publish(1, queue, body.as_bytes())?;
            open.insert(number, now);
        }
        let Some(event) = connection.event_within(PACE)? else {
            match open.first_key_value() {
                Some((_, since)) if since.elapsed() > PATIENCE => return Err(ClientError::Timeout),
                Some(_) | None => continue,
            }
        };
        match event {
            Incoming::Confirm { tag, multiple, nack, .. } => {
                let first = if multiple { 0 } else { tag };
                let decided: Vec<u64> = open.range(first..=tag).map(|(number, _)| *number).collect();
                for number in decided {
                    open.remove(&number);
                    let message = Message { publisher: life, number };
                    if nack { load.ledger.refused(message) } else { load.ledger.confirmed(message) }
                }
            }
            event => ended(event)?,
        }
    }
}

/// One life of a consumer.
fn consume(load: &Load, alone: Option<u32>, address: &str, queue: &str) -> Result<(), ClientError> {
    let mut connection = Connection::open_with_channel(&dial(address))?;
    connection.qos(1, PREFETCH)?;
    connection.consume(1, queue, "verify", &[])?;
    let mut held: Vec<(u64, Option<Message>)> = Vec::new();
    loop {
        let event = connection.event_within(LOOK_UP)?;
        let is_silent = event.is_none();
        match event {
            Some(Incoming::Deliver(_, delivery)) => {
                held.push((delivery.tag, load.ledger.delivered(alone, &delivery.body, delivery.redelivered)));
            }
            Some(event) => ended(event)?,
            None => {}
        }
        if let Some((tag, _)) = held.last().filter(|_| is_silent || held.len() >= ACK_EVERY) {
            connection.ack(1, *tag, true)?;
            held.drain(..).filter_map(|(_, message)| message).for_each(|message| load.ledger.acknowledged(message));
        }
        if is_silent && load.is_over() {
            return connection.close();
        }
    }
}

/// An error when this is the end of a channel, a connection or a consumer.
fn ended(event: Incoming) -> Result<(), ClientError> {
    match event {
        Incoming::ChannelClose { channel, code, text } => Err(ClientError::ChannelClosed { channel, code, text }),
        Incoming::ConnectionClose { code, text } => Err(ClientError::ConnectionClosed { code, text }),
        Incoming::Cancelled(_, tag) => Err(ClientError::Protocol(format!("{tag} was cancelled"))),
        Incoming::Deliver(..)
        | Incoming::Got(..)
        | Incoming::Empty(_)
        | Incoming::Returned { .. }
        | Incoming::Confirm { .. }
        | Incoming::Blocked(_)
        | Incoming::Unblocked
        | Incoming::Method(..)
        | Incoming::Heartbeat => Ok(()),
    }
}
