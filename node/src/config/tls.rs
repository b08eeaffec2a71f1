//! The options about TLS, checked: which files, what is asked of clients, who they are by their certificates. The files themselves are
//! read by `tls`.

use super::{ConfigError, Settings};
use crate::tls::{Files, LoginFrom, SanType, Verify};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// RabbitMQ's default for AMQP over TLS.
const AMQPS_PORT: u16 = 5671;

/// Whether clients are asked for certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyOption {
    /// No.
    #[default]
    None,
    /// Yes, and they are verified.
    Peer,
}

/// Which of a certificate's names is the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoginFromOption {
    /// The whole subject
    #[default]
    #[value(alias = "distinguished_name")]
    #[serde(alias = "distinguished_name")]
    DistinguishedName,
    /// The common name in it
    #[value(alias = "common_name")]
    #[serde(alias = "common_name")]
    CommonName,
    /// The first alternative name of a kind
    #[value(alias = "subject_alternative_name")]
    #[serde(alias = "subject_alternative_name")]
    SubjectAlternativeName,
}

/// Kinds of alternative names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SanTypeOption {
    /// Host name
    #[default]
    Dns,
    /// IP address
    Ip,
    /// E-mail address
    Email,
    /// URI
    Uri,
}

/// AMQP over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amqps {
    /// Where it listens.
    pub port: u16,
    /// Certificate, key, authorities of clients.
    pub files: Files,
    /// What is asked of clients.
    pub verify: Verify,
    /// Who they are by their certificates.
    pub login_from: LoginFrom,
}

fn wrong(option: &'static str, why: &str) -> ConfigError {
    ConfigError::Value { option, why: why.to_owned() }
}

/// `None`: TLS is not configured.
pub(super) fn amqps(settings: &Settings) -> Result<Option<Amqps>, ConfigError> {
    let asks = settings.tls_verify.unwrap_or_default() == VerifyOption::Peer;
    let required = settings.tls_fail_if_no_peer_cert.unwrap_or(false);
    let (certificate, key) = match (&settings.tls_cert, &settings.tls_key) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        (Some(_), None) => return Err(wrong("tls-key", "the key of --tls-cert is missing")),
        (None, Some(_)) => return Err(wrong("tls-cert", "the certificate of --tls-key is missing")),
        (None, None) if asks || required || settings.tls_ca.is_some() => {
            return Err(wrong("tls-cert", "clients can be verified over TLS only: give --tls-cert and --tls-key"));
        }
        (None, None) => return Ok(None),
    };
    if required && !asks {
        return Err(wrong("tls-fail-if-no-peer-cert", "clients are asked for certificates with --tls-verify peer only"));
    }
    if asks && settings.tls_ca.is_none() {
        return Err(wrong("tls-ca", "--tls-verify peer needs the authorities to verify clients with"));
    }
    let login_from = match settings.tls_login_from.unwrap_or_default() {
        LoginFromOption::DistinguishedName => LoginFrom::DistinguishedName,
        LoginFromOption::CommonName => LoginFrom::CommonName,
        LoginFromOption::SubjectAlternativeName => {
            LoginFrom::SubjectAlternativeName(match settings.tls_login_san_type.unwrap_or_default() {
                SanTypeOption::Dns => SanType::Dns,
                SanTypeOption::Ip => SanType::Ip,
                SanTypeOption::Email => SanType::Email,
                SanTypeOption::Uri => SanType::Uri,
            })
        }
    };
    Ok(Some(Amqps {
        port: settings.amqps_port.unwrap_or(AMQPS_PORT),
        files: Files { certificate, key, ca: settings.tls_ca.clone() },
        verify: if asks { Verify::Peer { required } } else { Verify::None },
        login_from,
    }))
}

/// The three options of mutual TLS between nodes, all or none.
///
/// # Errors
/// Some are missing.
pub fn peer_files(certificate: Option<PathBuf>, key: Option<PathBuf>, ca: Option<PathBuf>) -> Result<Option<Files>, ConfigError> {
    match (certificate, key, ca) {
        (None, None, None) => Ok(None),
        (Some(certificate), Some(key), Some(ca)) => Ok(Some(Files { certificate, key, ca: Some(ca) })),
        _ => Err(wrong("peer-tls-cert", "TLS between nodes needs --peer-tls-cert, --peer-tls-key and --peer-tls-ca together")),
    }
}
