//! The two roles of certificates: the front that clients meet, and nodes among themselves. TLS 1.2 and 1.3 for clients, 1.3 alone
//! between nodes; ciphers are those that the library holds for good, all of them with forward secrecy.

use super::certificate::{LoginFrom, LoginName, describe};
use super::files::{Files, Material, TlsError};
use super::identity::{Identity, Renewal, Renewed};
use crate::model::report::Encryption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, ClientConfig, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Names the exporter (RFC 8446, section 7.5) that ties a proof of the cluster's secret to one TLS connection.
const BINDING_LABEL: &[u8] = b"EXPORTER-warren-peer-proof";

/// What is asked of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// No certificate.
    #[default]
    None,
    /// A certificate, which is verified when it comes.
    Peer {
        /// Without one the handshake fails.
        required: bool,
    },
}

/// What clients meet on the TLS port.
#[derive(Clone)]
pub struct Front {
    identity: Arc<Identity<Arc<ServerConfig>>>,
    login_from: LoginFrom,
}

impl Front {
    /// Reads the files.
    ///
    /// # Errors
    /// They are no good.
    pub fn load(files: Files, verify: Verify, login_from: LoginFrom) -> Result<Front, TlsError> {
        let make = move |material, files: &Files| front(material, files, verify);
        Ok(Front { identity: Arc::new(Identity::load(files, Box::new(make))?), login_from })
    }

    /// The server's side of a handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from((*self.identity.current()).clone())
    }

    /// Who a client is by its certificate, which was verified: nobody else's gets through the handshake.
    pub fn login_name(&self, session: &ServerConnection) -> Option<LoginName> {
        let certificate = session.peer_certificates()?.first()?;
        Some(self.login_from.name(certificate))
    }
}

impl Renewed for Front {
    fn renew(&self) -> Result<Renewal, TlsError> {
        self.identity.renew()
    }
}

struct Both {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// What a node, or an operator's tool, shows other nodes and asks of them: both sides show a certificate of the same authority.
#[derive(Clone)]
pub struct Mutual(Arc<Identity<Both>>);

impl Mutual {
    /// Reads the files; `files.ca` must be given.
    ///
    /// # Errors
    /// They are no good.
    pub fn load(files: Files) -> Result<Mutual, TlsError> {
        Ok(Mutual(Arc::new(Identity::load(files, Box::new(both))?)))
    }

    /// The accepting side's handshake.
    ///
    /// # Errors
    /// Not TLS, or the other side has no certificate of our authority.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, socket: S) -> io::Result<server::TlsStream<S>> {
        TlsAcceptor::from(self.0.current().server.clone()).accept(socket).await
    }

    /// The dialling side's handshake with `host`, a name or an IP address, which the other side's certificate must be for.
    ///
    /// # Errors
    /// The other side has no certificate of our authority for that host.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, host: &str, socket: S) -> io::Result<client::TlsStream<S>> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(self.0.current().client.clone()).connect(name, socket).await
    }

    /// Bytes that both ends of one TLS connection know and nobody else.
    pub fn binding(stream: &tokio_rustls::TlsStream<impl Sized>) -> [u8; 32] {
        let exported = match stream {
            tokio_rustls::TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, None),
            tokio_rustls::TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, None),
        };
        exported.expect("the handshake is complete and the length is not zero")
    }
}

impl Renewed for Mutual {
    fn renew(&self) -> Result<Renewal, TlsError> {
        self.0.renew()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn no_roots(files: &Files) -> TlsError {
    let path = files.ca.clone().unwrap_or_default();
    TlsError::File { path, why: "no authority to verify the other side with".into() }
}

fn verifier(
    roots: Arc<RootCertStore>,
    required: bool,
    files: &Files,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| TlsError::File { path: files.ca.clone().unwrap_or_default(), why: error.to_string() })
}

fn front(material: Material, files: &Files, verify: Verify) -> Result<Arc<ServerConfig>, TlsError> {
    let Material { chain, key, roots } = material;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| files.mismatch(error))?;
    let builder = match verify {
        Verify::None => builder.with_no_client_auth(),
        Verify::Peer { required } => builder.with_client_cert_verifier(verifier(roots.ok_or_else(|| no_roots(files))?, required, files)?),
    };
    builder.with_single_cert(chain, key).map(Arc::new).map_err(|error| files.mismatch(error))
}

fn both(material: Material, files: &Files) -> Result<Both, TlsError> {
    let Material { chain, key, roots } = material;
    let roots = roots.ok_or_else(|| no_roots(files))?;
    let wrong = |error| files.mismatch(error);
    let versions = &[&rustls::version::TLS13];
    let server = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(wrong)?;
    let server = server.with_client_cert_verifier(verifier(roots.clone(), true, files)?);
    let server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(wrong)?;
    let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(wrong)?;
    let client = client.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(wrong)?;
    Ok(Both { server: Arc::new(server), client: Arc::new(client) })
}

/// What listings say of a connection, in the words of RabbitMQ's columns.
pub fn encryption(session: &ServerConnection) -> Encryption {
    let protocol = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "tlsv1.3",
        Some(ProtocolVersion::TLSv1_2) => "tlsv1.2",
        _ => "",
    };
    let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
    let (key_exchange, cipher) = match suite {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => ("any", "aes_128_gcm"),
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => ("any", "aes_256_gcm"),
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => ("any", "chacha20_poly1305"),
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => ("ecdhe_ecdsa", "aes_128_gcm"),
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384) => ("ecdhe_ecdsa", "aes_256_gcm"),
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256) => ("ecdhe_ecdsa", "chacha20_poly1305"),
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) => ("ecdhe_rsa", "aes_128_gcm"),
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) => ("ecdhe_rsa", "aes_256_gcm"),
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256) => ("ecdhe_rsa", "chacha20_poly1305"),
        _ => ("", ""),
    };
    let certificate = session.peer_certificates().and_then(|chain| describe(chain.first()?));
    // All of these suites are AEADs.
    Encryption { protocol, key_exchange, cipher, hash: "aead", certificate }
}
