//! Arguments of declarations and consumers: which of RabbitMQ's are refused because their effect is not there yet, which values are
//! checked, what is merely stored. An argument whose effect arrives leaves its list here.

use super::errors::{Fault, ReplyCode};
use crate::model::catalog::{ExchangeKind, Table, Value};

const QUEUE_REFUSED: [&str; 16] = [
    "x-consumer-timeout",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-delayed-retry-max",
    "x-delayed-retry-min",
    "x-delayed-retry-type",
    "x-delivery-limit",
    "x-expires",
    "x-max-age",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-message-ttl",
    "x-overflow",
    "x-single-active-consumer",
];
const EXCHANGE_REFUSED: [&str; 1] = ["x-delayed-type"];
const ALTERNATE: &str = "alternate-exchange";
const CONSUMER_REFUSED: [&str; 6] =
    ["x-cancel-on-ha-failover", "x-consumer-timeout", "x-priority", "x-stream-filter", "x-stream-match-unfiltered", "x-stream-offset"];

/// Checks queue.declare's arguments.
pub fn check_queue(queue: &str, vhost: &str, durable: bool, exclusive: bool, arguments: &Table) -> Result<(), Fault> {
    refuse(&QUEUE_REFUSED, arguments, &format!("queue '{queue}' in vhost '{vhost}'"))?;
    let invalid = |what: &str| Fault::precondition(format!("invalid property '{what}' for queue '{queue}' in vhost '{vhost}'"));
    match arguments.get("x-queue-type") {
        None => Ok(()),
        Some(Value::Text(kind)) => match kind.as_slice() {
            b"classic" => Ok(()),
            b"quorum" if exclusive => Err(invalid("exclusive-owner")),
            b"quorum" if !durable => Err(invalid("non-durable")),
            b"quorum" => Ok(()),
            b"stream" => Err(not_yet("x-queue-type' = 'stream", &format!("queue '{queue}' in vhost '{vhost}'"))),
            other => Err(Fault::precondition(format!(
                "invalid arg 'x-queue-type' for queue '{queue}' in vhost '{vhost}': unsupported queue type '{}'",
                String::from_utf8_lossy(other)
            ))),
        },
        Some(_) => {
            Err(Fault::precondition(format!("invalid arg 'x-queue-type' for queue '{queue}' in vhost '{vhost}': expected a long string")))
        }
    }
}

/// Checks exchange.declare's arguments.
pub fn check_exchange(exchange: &str, vhost: &str, arguments: &Table) -> Result<(), Fault> {
    let subject = format!("exchange '{exchange}' in vhost '{vhost}'");
    refuse(&EXCHANGE_REFUSED, arguments, &subject)?;
    match arguments.get(ALTERNATE) {
        None | Some(Value::Text(_)) => Ok(()),
        Some(other) => Err(Fault::precondition(format!("invalid type '{}' for arg '{ALTERNATE}' in {subject}", other.type_text()))),
    }
}

/// Checks basic.consume's arguments. A priority of 0 is what every consumer has, so it is no wish.
pub fn check_consumer(queue: &str, vhost: &str, arguments: &Table) -> Result<(), Fault> {
    let wishes = CONSUMER_REFUSED.into_iter().filter(|name| !matches!((*name, arguments.get(*name)), ("x-priority", Some(Value::Int(0)))));
    match wishes.into_iter().find(|name| arguments.contains_key(*name)) {
        Some(name) => Err(not_yet(name, &format!("consumer of queue '{queue}' in vhost '{vhost}'"))),
        None => Ok(()),
    }
}

/// The kind that exchange.declare names: an unknown one is 503, as in RabbitMQ.
pub fn exchange_kind(kind: &[u8]) -> Result<ExchangeKind, Fault> {
    let known = ExchangeKind::ALL.into_iter().find(|known| known.text().as_bytes() == kind);
    known.ok_or_else(|| Fault::new(ReplyCode::CommandInvalid, format!("unknown exchange type '{}'", String::from_utf8_lossy(kind))))
}

fn refuse(names: &[&str], arguments: &Table, subject: &str) -> Result<(), Fault> {
    match names.iter().find(|name| arguments.contains_key(**name)) {
        Some(name) => Err(not_yet(name, subject)),
        None => Ok(()),
    }
}

fn not_yet(name: &str, subject: &str) -> Fault {
    Fault::precondition(format!("invalid arg '{name}' for {subject}: not supported by this version"))
}
