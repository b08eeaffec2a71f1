//! From connection.start to connection.open: what the server says of itself, how a client logs in, and the agreement on sizes.

use super::Options;
use super::errors::{Fault, ReplyCode};
use crate::model::catalog::{Table, Value};
use crate::model::limits;
use crate::model::step::Step;
use crate::session::sasl;
use crate::wire::amqp::{Method, table};
use std::sync::Arc;

/// What clients believe to talk to: kombu and Celery choose their behaviour by product and version.
const PRODUCT: &str = "RabbitMQ";
const PRODUCT_VERSION: &str = "4.1.0";
/// Smallest frame size a client may ask for (spec 4.2.3 frame-min-size).
const FRAME_MIN: u32 = 4096;

/// What a client understands, from its properties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Wants connection.close when its login fails.
    pub(super) authentication_failure_close: bool,
    /// Understands connection.blocked.
    pub(super) blocked: bool,
    /// Understands basic.cancel from the server.
    pub(super) consumer_cancel_notify: bool,
}

impl Capabilities {
    /// From connection.start-ok.
    pub(super) fn of(client_properties: &Table) -> Capabilities {
        let Some(Value::Table(capabilities)) = client_properties.get("capabilities") else { return Capabilities::default() };
        let has = |name: &str| capabilities.get(name) == Some(&Value::Bool(true));
        Capabilities {
            authentication_failure_close: has("authentication_failure_close"),
            blocked: has("connection.blocked"),
            consumer_cancel_notify: has("consumer_cancel_notify"),
        }
    }
}

/// connection.start.
pub(super) fn start(options: &Options) -> Method {
    let text = |text: &str| Value::Text(text.as_bytes().to_vec());
    let capabilities = [
        ("publisher_confirms", true),
        ("exchange_exchange_bindings", true),
        ("basic.nack", true),
        ("consumer_cancel_notify", true),
        ("connection.blocked", true),
        ("consumer_priorities", true),
        ("authentication_failure_close", true),
        ("per_consumer_qos", true),
        ("direct_reply_to", true),
    ];
    let capabilities = capabilities.into_iter().map(|(name, set)| (name.to_owned(), Value::Bool(set))).collect();
    let server_properties = Table::from([
        ("capabilities".to_owned(), Value::Table(capabilities)),
        ("cluster_name".to_owned(), text(&options.cluster_name)),
        ("copyright".to_owned(), text("The Warren authors")),
        ("information".to_owned(), text("Warren, a clustered message broker. Licensed under the Apache License 2.0.")),
        ("platform".to_owned(), text("Rust")),
        ("product".to_owned(), text(PRODUCT)),
        ("version".to_owned(), text(PRODUCT_VERSION)),
        ("warren_version".to_owned(), text(env!("CARGO_PKG_VERSION"))),
    ]);
    let mechanisms = if options.certificate_name.is_some() { "PLAIN AMQPLAIN EXTERNAL" } else { "PLAIN AMQPLAIN" };
    Method::ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties,
        mechanisms: mechanisms.into(),
        locales: "en_US".into(),
    }
}

/// connection.tune: what we offer.
pub(super) fn tune() -> Method {
    Method::ConnectionTune { channel_max: limits::CHANNEL_MAX, frame_max: limits::FRAME_MAX, heartbeat: limits::HEARTBEAT_SECONDS }
}

/// How a client logs in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mechanism<'a> {
    Plain,
    AmqPlain,
    /// As the user of its certificate.
    External(&'a Arc<str>),
}

impl Mechanism<'_> {
    pub(super) fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::AmqPlain => "AMQPLAIN",
            Mechanism::External(_) => "EXTERNAL",
        }
    }
}

/// The mechanism that connection.start-ok names, if it was offered.
pub(super) fn mechanism<'a>(name: &[u8], options: &'a Options) -> Result<Mechanism<'a>, Fault> {
    match (name, &options.certificate_name) {
        (b"PLAIN", _) => Ok(Mechanism::Plain),
        (b"AMQPLAIN", _) => Ok(Mechanism::AmqPlain),
        (b"EXTERNAL", Some(user)) => Ok(Mechanism::External(user)),
        (other, _) => {
            let text = format!("unknown authentication mechanism '{}'", String::from_utf8_lossy(other));
            Err(Fault::new(ReplyCode::CommandInvalid, text).at((10, 11)))
        }
    }
}

/// The login of connection.start-ok. EXTERNAL's response would be another name to act under; RabbitMQ ignores it, and so do we.
///
/// # Errors
/// 502 for a response that no login can be read from: RabbitMQ's words without the response, which may hold a password.
pub(super) fn login(mechanism: Mechanism<'_>, response: &[u8]) -> Result<Step, Fault> {
    let invalid = |text: &str| Fault::new(ReplyCode::SyntaxError, text);
    match mechanism {
        Mechanism::Plain => plain(response).ok_or_else(|| invalid("response invalid")),
        Mechanism::AmqPlain => amqplain(response).map_err(invalid),
        Mechanism::External(user) => Ok(Step::AuthenticateByCertificate { user: user.clone() }),
    }
}

fn plain(response: &[u8]) -> Option<Step> {
    let (user, password) = sasl::plain(response)?;
    Some(Step::Authenticate { user: user.to_owned(), password: password.to_vec() })
}

/// A table of LOGIN and PASSWORD without its length.
fn amqplain(response: &[u8]) -> Result<Step, &'static str> {
    let table = table::read_entries(response).map_err(|_| "AMQPLAIN auth info is no table")?;
    let (Some(user), Some(password)) = (table.get("LOGIN"), table.get("PASSWORD")) else {
        return Err("AMQPLAIN auth info is missing LOGIN or PASSWORD field");
    };
    let unsupported = "AMQPLAIN auth info uses unsupported type for LOGIN or PASSWORD field";
    match (user, password) {
        (Value::Text(user) | Value::Bytes(user), Value::Text(password) | Value::Bytes(password)) => {
            let user = String::from_utf8(user.clone()).map_err(|_| unsupported)?;
            Ok(Step::Authenticate { user, password: password.clone() })
        }
        _ => Err(unsupported),
    }
}

/// Checks what the client chose in connection.tune-ok.
pub(super) fn check_tune(channel_max: u16, frame_max: u32) -> Result<(), Fault> {
    negotiate("frame_max", frame_max, "", FRAME_MIN, limits::FRAME_MAX)?;
    negotiate("channel_max", channel_max.into(), " (no limit)", 1, limits::CHANNEL_MAX.into())
}

fn negotiate(what: &str, value: u32, zero: &str, min: u32, max: u32) -> Result<(), Fault> {
    let refuse = |detail: &str, which: &str, most: &str, bound: u32| {
        let text = format!("negotiated {what} = {value}{detail} is {which} than the {most} allowed value ({bound})");
        Err(Fault::new(ReplyCode::NotAllowed, text).at((10, 30)))
    };
    match value {
        0 => refuse(zero, "higher", "maximum", max),
        v if v < min => refuse("", "lower", "minimum", min),
        v if v > max => refuse("", "higher", "maximum", max),
        _ => Ok(()),
    }
}
