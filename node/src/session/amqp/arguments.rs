//! Arguments of declarations and consumers: which of RabbitMQ's are refused because their effect is not there yet, which values are
//! checked, what is merely stored. An argument whose effect arrives leaves its list here.

use super::errors::Fault;
use crate::model::catalog::{ExchangeKind, Table, Value};
use crate::model::settings::QueueSettings;
use crate::model::step::DeclareQueue;
use crate::model::store;

const QUEUE_REFUSED: [&str; 4] = ["x-consumer-disconnected-timeout", "x-delayed-retry-max", "x-delayed-retry-min", "x-delayed-retry-type"];
const ALTERNATE: &str = "alternate-exchange";

/// Checks queue.declare.
pub fn check_queue(declare: &DeclareQueue) -> Result<(), Fault> {
    let DeclareQueue { name, arguments, .. } = declare;
    let subject = format!("queue '{}' in vhost '{}'", name.name, name.vhost);
    refuse(&QUEUE_REFUSED, arguments, &subject)?;
    check_queue_type(&subject, declare)?;
    QueueSettings::check(&subject, arguments).map_err(|invalid| Fault::precondition(invalid.to_string()))
}

fn check_queue_type(subject: &str, declare: &DeclareQueue) -> Result<(), Fault> {
    let DeclareQueue { durable, exclusive, auto_delete, arguments, .. } = declare;
    let invalid = |what: &str| Fault::precondition(format!("invalid property '{what}' for {subject}"));
    match arguments.get("x-queue-type") {
        None => Ok(()),
        Some(Value::Text(kind)) => match kind.as_slice() {
            b"classic" | b"" | b"undefined" => Ok(()),
            b"quorum" | b"stream" if *auto_delete => Err(invalid("auto-delete")),
            b"quorum" | b"stream" if *exclusive => Err(invalid("exclusive-owner")),
            b"quorum" | b"stream" if !durable => Err(invalid("non-durable")),
            b"quorum" | b"stream" => Ok(()),
            other => Err(Fault::precondition(format!(
                "invalid arg 'x-queue-type' for {subject}: \"unsupported queue type '{}'\"",
                String::from_utf8_lossy(other)
            ))),
        },
        Some(other) => {
            Err(Fault::precondition(format!("invalid arg 'x-queue-type' for {subject}: {{unacceptable_type,{}}}", other.type_text())))
        }
    }
}

/// Checks exchange.declare's arguments.
pub fn check_exchange(exchange: &str, vhost: &str, kind: ExchangeKind, arguments: &Table) -> Result<(), Fault> {
    store::of_exchange(kind, arguments).map_err(|invalid| match invalid {
        store::Invalid::UnknownKind(kind) => unknown_kind(&kind),
        store::Invalid::Argument(why) => Fault::precondition(why),
    })?;
    match arguments.get(ALTERNATE) {
        None | Some(Value::Text(_)) => Ok(()),
        Some(other) => {
            let subject = format!("exchange '{exchange}' in vhost '{vhost}'");
            Err(Fault::precondition(format!("invalid type '{}' for arg '{ALTERNATE}' in {subject}", other.type_text())))
        }
    }
}

/// Checks basic.consume's arguments.
pub fn check_consumer(queue: &str, vhost: &str, arguments: &Table) -> Result<(), Fault> {
    let subject = format!("queue '{queue}' in vhost '{vhost}'");
    let invalid = |name: &str, why: String| Err(Fault::precondition(format!("invalid arg '{name}' for {subject}: {why}")));
    for name in ["x-priority", "x-consumer-timeout"] {
        match arguments.get(name) {
            Some(Value::Int(n)) if *n < 0 && name == "x-consumer-timeout" => return invalid(name, format!("{{value_negative,{n}}}")),
            None | Some(Value::Int(_)) => {}
            Some(other) => return invalid(name, format!("\"expected integer, got {}\"", other.type_text())),
        }
    }
    match arguments.get("x-cancel-on-ha-failover") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(other) => invalid("x-cancel-on-ha-failover", format!("{{unacceptable_type,{}}}", other.type_text())),
    }
}

/// The kind that exchange.declare names: an unknown one is 406, as in RabbitMQ since 3.13.
pub fn exchange_kind(kind: &[u8]) -> Result<ExchangeKind, Fault> {
    ExchangeKind::of_text(kind).ok_or_else(|| unknown_kind(&String::from_utf8_lossy(kind)))
}

fn unknown_kind(kind: &str) -> Fault {
    Fault::precondition(format!("unknown exchange type '{kind}'"))
}

fn refuse(names: &[&str], arguments: &Table, subject: &str) -> Result<(), Fault> {
    match names.iter().find(|name| arguments.contains_key(**name)) {
        Some(name) => Err(Fault::precondition(format!("invalid arg '{name}' for {subject}: not supported by this version"))),
        None => Ok(()),
    }
}
