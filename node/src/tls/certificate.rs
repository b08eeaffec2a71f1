//! What a certificate says: its names and dates as RabbitMQ writes them (names by RFC 4514, unprintable bytes escaped), and the user
//! name that SASL EXTERNAL takes from it.

use crate::model::report::CertificateReport;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Which of a certificate's names is the user (RabbitMQ's `ssl_cert_login_from`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoginFrom {
    /// The whole subject.
    #[default]
    DistinguishedName,
    /// Its common name; several are joined by commas.
    CommonName,
    /// The first alternative name of a kind.
    SubjectAlternativeName(SanType),
}

/// Kinds of alternative names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SanType {
    /// Host name.
    #[default]
    Dns,
    /// IP address.
    Ip,
    /// E-mail address.
    Email,
    /// URI.
    Uri,
}

/// What comes of a verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginName {
    /// The user.
    User(Arc<str>),
    /// There is no such name in it.
    Missing,
}

impl LoginFrom {
    /// The user that a certificate (DER) stands for.
    pub(super) fn name(self, certificate: &[u8]) -> LoginName {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return LoginName::Missing };
        let name = match self {
            LoginFrom::DistinguishedName => Some(distinguished(certificate.subject())),
            LoginFrom::CommonName => {
                let names: Vec<String> = certificate.subject().iter_common_name().map(text).collect();
                Some(names.join(","))
            }
            LoginFrom::SubjectAlternativeName(kind) => alternative(&certificate, kind),
        };
        name.filter(|name| !name.is_empty()).map_or(LoginName::Missing, |name| LoginName::User(name.into()))
    }
}

/// Subject, issuer and dates of a certificate (DER); `None` when it is none.
pub fn describe(certificate: &[u8]) -> Option<CertificateReport> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    Some(CertificateReport {
        subject: distinguished(certificate.subject()),
        issuer: distinguished(certificate.issuer()),
        validity: format!("{} - {}", moment(&validity.not_before), moment(&validity.not_after)),
    })
}

/// When a certificate (DER) expires, seconds since 1970; `None` when it is none.
pub(super) fn expires_s(certificate: &[u8]) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

fn alternative(certificate: &X509Certificate<'_>, kind: SanType) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match (kind, name) {
        (SanType::Dns, GeneralName::DNSName(name)) | (SanType::Email, GeneralName::RFC822Name(name)) => Some((*name).to_owned()),
        (SanType::Uri, GeneralName::URI(name)) => Some((*name).to_owned()),
        (SanType::Ip, GeneralName::IPAddress(bytes)) => address(bytes),
        _ => None,
    })
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
}

/// Seconds since 1970 as `2026-11-22T04:11:06Z`.
pub fn moment_of(at_s: i64) -> Option<String> {
    Some(moment(&ASN1Time::from_timestamp(at_s).ok()?))
}

/// `2026-11-22T04:11:06Z`.
fn moment(time: &ASN1Time) -> String {
    let time = time.to_datetime();
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
}

/// RFC 4514: the parts from last to first, those of one part joined by `+`.
fn distinguished(name: &X509Name<'_>) -> String {
    let part = |part: &x509_parser::x509::RelativeDistinguishedName<'_>| part.iter().map(attribute).collect::<Vec<_>>().join("+");
    let mut parts: Vec<String> = name.iter_rdn().map(part).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let short = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "SERIALNUMBER",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "TITLE",
        "2.5.4.42" => "GIVENNAME",
        "2.5.4.43" => "INITIALS",
        "2.5.4.44" => "GENERATIONQUALIFIER",
        "2.5.4.65" => "PSEUDONYM",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "EMAILADDRESS",
        other => other,
    };
    format!("{short}={}", escaped(&text(attribute)))
}

/// The value as text; old encodings become UTF-8.
fn text(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    let bytes = value.data;
    match value.tag() {
        Tag::T61String => bytes.iter().map(|byte| char::from(*byte)).collect(),
        Tag::BmpString => {
            let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(&units)
        }
        Tag::UniversalString => {
            let point = |four: &[u8]| char::from_u32(u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
            bytes.chunks_exact(4).map(|four| point(four).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// RFC 4514, section 2.4; bytes outside printable ASCII become `\HH`, as RabbitMQ shows and compares them.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        let special = matches!(byte, b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\');
        let at_start = at == 0 && matches!(byte, b' ' | b'#');
        let at_end = at == last && byte == b' ';
        if !(32..126).contains(&byte) {
            let _ = write!(out, "\\{byte:02X}");
        } else {
            if special || at_start || at_end {
                out.push('\\');
            }
            out.push(char::from(byte));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn names_are_escaped_by_rfc_4514() {
        assert_eq!(escaped("plain name"), "plain name");
        assert_eq!(escaped(" #a, b+c\\ "), "\\ #a\\, b\\+c\\\\\\ ");
        assert_eq!(escaped("#x"), "\\#x");
        assert_eq!(escaped("Jos\u{e9}"), "Jos\\C3\\A9");
    }
}
