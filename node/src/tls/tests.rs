//! Files that change, and what certificates say.

use super::authority::{Authority, Subject};
use super::identity::Renewal;
use super::*;
use std::fs;
use std::path::Path;

fn files(dir: &Path, authority: &Authority, subject: &Subject) -> Files {
    let written = authority.issue(subject).write(dir, "own");
    Files { certificate: written.certificate, key: written.key, ca: Some(authority.write(dir, "own")) }
}

fn der(pem: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate").to_vec()
}

#[test]
fn the_user_comes_from_the_name_that_was_asked_for() {
    let authority = Authority::new("ca");
    let subject =
        Subject { hosts: vec!["10.0.0.9".into(), "a.example".into()], email: Some("me@example".into()), ..Subject::client("joe") };
    let certificate = der(&authority.issue(&subject).certificate);
    let name = |from: LoginFrom| match from.name(&certificate) {
        LoginName::User(name) => name.to_string(),
        LoginName::Missing => "none".into(),
    };
    assert_eq!(name(LoginFrom::DistinguishedName), "CN=joe,O=Warren\\, tests");
    assert_eq!(name(LoginFrom::CommonName), "joe");
    let kinds = [SanType::Dns, SanType::Ip, SanType::Email, SanType::Uri];
    assert_eq!(kinds.map(|kind| name(LoginFrom::SubjectAlternativeName(kind))), ["a.example", "10.0.0.9", "me@example", "none"]);
    let described = certificate::describe(&certificate).expect("a certificate");
    assert_eq!((described.issuer.as_str(), described.validity.as_str()), ("CN=ca", "2020-01-01T00:00:00Z - 2099-12-31T00:00:00Z"));
    assert_eq!(LoginFrom::CommonName.name(b"garbage"), LoginName::Missing);
}

#[test]
fn new_files_are_taken_and_bad_ones_leave_the_old_in_use() {
    let (dir, authority) = (tempfile::tempdir().expect("a directory"), Authority::new("ca"));
    let files = files(dir.path(), &authority, &Subject::at("one", "a.example"));
    let mutual = Mutual::load(files.clone()).expect("good files");
    assert_eq!(mutual.renew().expect("no change"), Renewal::Same);
    // A certificate without its key, as in the middle of a rotation.
    let next = authority.issue(&Subject::at("two", "a.example"));
    fs::write(&files.certificate, &next.certificate).expect("written");
    assert!(matches!(mutual.renew(), Err(TlsError::Mismatch { .. })));
    assert_eq!(mutual.renew().expect("not complained about twice"), Renewal::Same);
    fs::write(&files.key, &next.key).expect("written");
    assert_eq!(mutual.renew().expect("they fit now"), Renewal::Done);
    for garbage in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&files.certificate, garbage).expect("written");
        let error = mutual.renew().expect_err("garbage").to_string();
        assert!(error.contains("own.pem"), "{error}");
    }
    fs::remove_file(&files.key).expect("removed");
    fs::write(&files.certificate, &next.certificate).expect("written");
    let error = mutual.renew().expect_err("no key").to_string();
    assert!(error.contains("own.key"), "{error}");
    fs::write(&files.key, &next.key).expect("written");
    assert_eq!(mutual.renew().expect("all is well"), Renewal::Done);
}

#[test]
fn what_cannot_be_used_is_refused_at_the_start_with_the_file() {
    let (dir, authority) = (tempfile::tempdir().expect("a directory"), Authority::new("ca"));
    let good = files(dir.path(), &authority, &Subject::at("one", "a.example"));
    let refused = |files: Files, verify| Front::load(files, verify, LoginFrom::default()).err().map(|error| error.to_string());
    assert_eq!(refused(good.clone(), Verify::Peer { required: true }), None);
    let missing = refused(Files { key: "/nowhere/x.key".into(), ..good.clone() }, Verify::None).expect("refused");
    assert!(missing.contains("/nowhere/x.key"), "{missing}");
    let swapped = refused(Files { key: good.certificate.clone(), ..good.clone() }, Verify::None).expect("refused");
    assert!(swapped.contains("private key"), "{swapped}");
    let without = refused(Files { ca: None, ..good.clone() }, Verify::Peer { required: false }).expect("refused");
    assert!(without.contains("authority"), "{without}");
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").expect("written");
    let none = refused(Files { ca: Some(empty), ..good }, Verify::Peer { required: false }).expect("refused");
    assert!(none.contains("empty.pem") && none.contains("no certificate"), "{none}");
}
