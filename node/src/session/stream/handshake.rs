//! From PeerProperties to Open: what the server says of itself, how a client logs in, and the agreement on sizes.

use super::Options;
use crate::model::limits;
use crate::model::step::Step;
use crate::session::sasl;
use crate::wire::stream::client::Versions;
use crate::wire::stream::{Code, Key};
use std::sync::Arc;

/// What clients believe to talk to: from 3.11 on they exchange versions, from 3.13 on they filter.
const PRODUCT: &str = "RabbitMQ";
const PRODUCT_VERSION: &str = "4.1.0";

/// PeerProperties.
pub(super) fn properties(options: &Options) -> [(&'static str, &str); 7] {
    [
        ("product", PRODUCT),
        ("version", PRODUCT_VERSION),
        ("cluster_name", &options.cluster_name),
        ("platform", "Rust"),
        ("copyright", "The Warren authors"),
        ("information", "Warren, a clustered message broker. Licensed under the Apache License 2.0."),
        ("warren_version", env!("CARGO_PKG_VERSION")),
    ]
}

/// SaslHandshake.
pub(super) fn mechanisms(options: &Options) -> &'static [&'static str] {
    if options.certificate_name.is_some() { &["PLAIN", "EXTERNAL"] } else { &["PLAIN"] }
}

/// A login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Login {
    /// The mechanism's name.
    pub mechanism: &'static str,
    /// Who it says to be.
    pub user: Arc<str>,
    /// Its password; none with a certificate.
    pub password: Option<Vec<u8>>,
}

impl Login {
    /// Reads SaslAuthenticate. EXTERNAL's response would be another name to act under; it is ignored, as by RabbitMQ.
    pub fn read(mechanism: &str, response: &[u8], options: &Options) -> Result<Login, Code> {
        match (mechanism, &options.certificate_name) {
            ("PLAIN", _) => plain(response).ok_or(Code::SaslError),
            ("EXTERNAL", Some(user)) => Ok(Login { mechanism: "EXTERNAL", user: user.clone(), password: None }),
            (_, _) => Err(Code::SaslMechanismNotSupported),
        }
    }

    pub fn step(&self) -> Step {
        match &self.password {
            Some(password) => Step::Authenticate { user: self.user.to_string(), password: password.clone() },
            None => Step::AuthenticateByCertificate { user: self.user.clone() },
        }
    }
}

fn plain(response: &[u8]) -> Option<Login> {
    let (user, password) = sasl::plain(response)?;
    Some(Login { mechanism: "PLAIN", user: user.into(), password: Some(password.to_vec()) })
}

/// The frame size that both accept; 0 leaves it to the other side.
pub(super) fn frame_max(client: u32) -> u32 {
    match client {
        0 => limits::STREAM_FRAME_MAX,
        wanted => wanted.min(limits::STREAM_FRAME_MAX),
    }
}

/// ExchangeCommandVersions: what clients may send, as RabbitMQ lists it.
pub(super) fn versions() -> Vec<Versions> {
    const LISTED: [Key; 20] = [
        Key::DeclarePublisher,
        Key::Publish,
        Key::QueryPublisherSequence,
        Key::DeletePublisher,
        Key::Subscribe,
        Key::Credit,
        Key::StoreOffset,
        Key::QueryOffset,
        Key::Unsubscribe,
        Key::Create,
        Key::Delete,
        Key::Metadata,
        Key::Close,
        Key::Heartbeat,
        Key::Route,
        Key::Partitions,
        Key::StreamStats,
        Key::CreateSuperStream,
        Key::DeleteSuperStream,
        Key::ResolveOffsetSpec,
    ];
    LISTED.iter().map(|key| Versions { key: *key as u16, min: 1, max: if *key == Key::Publish { 2 } else { 1 } }).collect()
}
