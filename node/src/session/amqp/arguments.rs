//! Arguments of exchanges and consumers: which values are checked, what is merely stored. Those of queues are the edge's, which knows
//! whether the queue is there already.

use super::errors::Fault;
use crate::model::catalog::{ExchangeKind, Table, Value};
use crate::model::store;

const ALTERNATE: &str = "alternate-exchange";

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
