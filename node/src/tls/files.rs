//! PEM files: a certificate with its chain, its key, and the authorities that others are verified against.

use super::certificate::expires_s;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate file is a few KiB; whatever is larger is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, then those between it and its authority, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: PathBuf,
    /// Authorities that the other side is verified against, PEM.
    pub ca: Option<PathBuf>,
}

/// Why files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read, or there is nothing of use in it.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// They do not fit each other.
    #[error("certificate {certificate} with key {key}: {source}")]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the TLS library says.
        source: Box<rustls::Error>,
    },
}

/// The bytes of the files, or why they could not be read.
pub(super) struct Contents {
    certificate: io::Result<Vec<u8>>,
    key: io::Result<Vec<u8>>,
    ca: Option<io::Result<Vec<u8>>>,
}

/// What is in the files.
pub(super) struct Material {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Option<Arc<RootCertStore>>,
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path.metadata()?.len() > FILE_BYTES_MAX {
        return Err(io::Error::other("too large for a certificate or a key"));
    }
    std::fs::read(path)
}

impl Files {
    /// Blocks the thread for a moment.
    pub(super) fn read(&self) -> Contents {
        Contents { certificate: read(&self.certificate), key: read(&self.key), ca: self.ca.as_deref().map(read) }
    }

    pub(super) fn parse(&self, contents: Contents) -> Result<Material, TlsError> {
        let wrong = |path: &Path, why: String| TlsError::File { path: path.to_owned(), why };
        let certificate = contents.certificate.map_err(|error| wrong(&self.certificate, error.to_string()))?;
        let chain = certificates(&certificate).map_err(|why| wrong(&self.certificate, why))?;
        let key = contents.key.map_err(|error| wrong(&self.key, error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&key);
        let key = key.map_err(|error| wrong(&self.key, format!("no private key that is not encrypted: {error}")))?;
        let roots = match (&self.ca, contents.ca) {
            (Some(path), Some(contents)) => {
                let contents = contents.map_err(|error| wrong(path, error.to_string()))?;
                Some(Arc::new(authorities(&contents).map_err(|why| wrong(path, why))?))
            }
            _ => None,
        };
        Ok(Material { chain, key, roots })
    }

    /// When the certificates of a file expire, seconds since 1970, in the file's order; or what is wrong with it. Blocks the thread for a
    /// moment.
    pub fn expirations(path: &Path) -> Result<Vec<i64>, String> {
        let expires_s = |der: &CertificateDer<'_>| expires_s(der).ok_or_else(|| "a certificate in it cannot be read".to_owned());
        certificates(&read(path).map_err(|error| error.to_string())?)?.iter().map(expires_s).collect()
    }

    pub(super) fn mismatch(&self, source: rustls::Error) -> TlsError {
        TlsError::Mismatch { certificate: self.certificate.clone(), key: self.key.clone(), source: Box::new(source) }
    }
}

impl Contents {
    /// Different whenever the files are, or whether they can be read.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for file in [Some(&self.certificate), Some(&self.key), self.ca.as_ref()].into_iter().flatten() {
            let bytes = file.as_ref().map_or_else(|error| error.to_string().into_bytes(), Clone::clone);
            digest.update([u8::from(file.is_ok())]);
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(&bytes);
        }
        digest.finalize().into()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in it".into()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}
