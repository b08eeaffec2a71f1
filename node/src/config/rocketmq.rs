//! Options of RocketMQ's HTTP protocol, checked. Used by `config`.

use super::{ConfigError, Settings, quantity};
use crate::model::rocketmq::INVISIBLE_MAX_MS;

/// The port, and what topics are like that say nothing themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rocketmq {
    /// Port.
    pub port: u16,
    /// Port over TLS, with what clients of AMQP over TLS are shown.
    pub tls_port: Option<u16>,
    /// How long a delivered message is invisible, ms.
    pub invisible_ms: u64,
    /// The same for messages consumed in order.
    pub ordered_invisible_ms: u64,
    /// The same for half messages that are checked.
    pub half_invisible_ms: u64,
    /// Deliveries after the first before a message goes to the dead letters.
    pub max_retries: u32,
    /// Topics are made when they are first used.
    pub auto_create_topics: bool,
}

fn with_certificate(port: u16, settings: &Settings) -> Result<u16, ConfigError> {
    let why = || "clients need to be shown a certificate: give --tls-cert and --tls-key".to_owned();
    if settings.tls_cert.is_some() { Ok(port) } else { Err(ConfigError::Value { option: "rocketmq-tls-port", why: why() }) }
}

/// The service's own defaults where nothing is said.
pub(super) fn checked(settings: &Settings) -> Result<Rocketmq, ConfigError> {
    let time = |option, value: &Option<String>, default| {
        let time = quantity::duration(option, value.as_deref().unwrap_or(default))?;
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let why = || format!("{ms} ms; a message can be invisible for 1 ms to {INVISIBLE_MAX_MS} ms (12 hours)");
        if (1..=INVISIBLE_MAX_MS).contains(&ms) { Ok(ms) } else { Err(ConfigError::Value { option, why: why() }) }
    };
    Ok(Rocketmq {
        port: settings.rocketmq_port.unwrap_or(8080),
        tls_port: settings.rocketmq_tls_port.map(|port| with_certificate(port, settings)).transpose()?,
        invisible_ms: time("rocketmq-invisible", &settings.rocketmq_invisible, "300s")?,
        ordered_invisible_ms: time("rocketmq-ordered-invisible", &settings.rocketmq_ordered_invisible, "60s")?,
        half_invisible_ms: time("rocketmq-half-invisible", &settings.rocketmq_half_invisible, "10s")?,
        max_retries: settings.rocketmq_max_retries.unwrap_or(288),
        auto_create_topics: settings.rocketmq_auto_create_topics.unwrap_or(false),
    })
}
