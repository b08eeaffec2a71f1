//! Certificates for tests: authorities, and what they issue for nodes, servers and clients. The unit tests of `warren` use this file too.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use std::fs;
use std::path::{Path, PathBuf};

/// Somebody who issues certificates.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Its CN.
    pub common_name: String,
    /// Host names and addresses.
    pub hosts: Vec<String>,
    /// An e-mail address among the alternative names.
    pub email: Option<String>,
    /// Its time is over.
    pub is_expired: bool,
}

impl Subject {
    /// A client.
    pub fn client(common_name: &str) -> Subject {
        Subject { common_name: common_name.to_owned(), ..Subject::default() }
    }

    /// A server or a node at one address.
    pub fn at(common_name: &str, host: &str) -> Subject {
        Subject { hosts: vec![host.to_owned()], ..Subject::client(common_name) }
    }
}

/// A certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// The same as files.
#[derive(Clone, Debug)]
pub struct Written {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Issued {
    /// `NAME.pem` and `NAME.key` in `dir`, new or in place of others.
    pub fn write(&self, dir: &Path, name: &str) -> Written {
        let written = Written { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        fs::write(&written.certificate, &self.certificate).expect("the directory can be written");
        fs::write(&written.key, &self.key).expect("the directory can be written");
        written
    }
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("an own certificate").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate with a new key.
    pub fn issue(&self, subject: &Subject) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(subject.hosts.clone()).expect("hosts");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Warren, tests");
        params.distinguished_name.push(DnType::CommonName, subject.common_name.as_str());
        if let Some(email) = &subject.email {
            params.subject_alt_names.push(SanType::Rfc822Name(email.as_str().try_into().expect("ASCII")));
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = if subject.is_expired { date_time_ymd(2020, 2, 1) } else { date_time_ymd(2099, 12, 31) };
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    /// Its own certificate as `NAME-ca.pem` in `dir`.
    pub fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(format!("{name}-ca.pem"));
        fs::write(&path, &self.pem).expect("the directory can be written");
        path
    }
}
