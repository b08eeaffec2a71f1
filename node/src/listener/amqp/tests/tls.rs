//! The TLS port: conversations, certificates of clients, what is no TLS, what is too slow, new certificates.

use super::*;
use crate::tls::authority::{Authority, Issued, Subject};
use crate::tls::{Files, LoginFrom, Renewal, Renewed, Verify};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::io;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A TLS port with certificates of its own authority; clients are asked for those of the same.
struct Secured {
    server: Server,
    front: Front,
    authority: Authority,
    dir: TempDir,
}

fn write(dir: &TempDir, issued: &Issued) -> Files {
    let written = issued.write(dir.path(), "server");
    Files { certificate: written.certificate, key: written.key, ca: None }
}

impl Secured {
    async fn start(verify: Verify, handshake: Duration) -> Secured {
        let (authority, dir) = (Authority::new("ours"), tempfile::tempdir().expect("a directory"));
        let files = write(&dir, &authority.issue(&Subject::at("first", "localhost")));
        let files = Files { ca: Some(authority.write(dir.path(), "clients")), ..files };
        let front = Front::load(files, verify, LoginFrom::CommonName).expect("good files");
        let settings = Settings { handshake, ..Settings::new("test") }.with_tls(front.clone());
        Secured { server: Server::start_with(settings).await, front, authority, dir }
    }

    async fn dial(&self, config: ClientConfig) -> io::Result<Client<TlsStream<TcpStream>>> {
        let socket = TcpStream::connect(self.server.address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let socket = timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, socket)).await.expect("in time")?;
        Ok(Client { socket, input: BytesMut::new() })
    }

    /// Without a certificate.
    async fn raw(&self) -> Client<TlsStream<TcpStream>> {
        self.dial(self.config(&TLS13, None)).await.expect("welcome")
    }

    async fn client(&self) -> Client<TlsStream<TcpStream>> {
        let mut client = self.raw().await;
        client.login(0).await;
        client
    }

    fn config(&self, version: &'static SupportedProtocolVersion, own: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let ca = self.authority.write(self.dir.path(), "server");
        roots.add(CertificateDer::from_pem_file(ca).expect("PEM")).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("a version");
        let builder = builder.with_root_certificates(roots);
        let Some(own) = own else { return builder.with_no_client_auth() };
        let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
        builder.with_client_auth_cert(chain, key).expect("they fit")
    }

    /// Whether the server lets a client with this certificate in. (With TLS 1.3 the client hears of it after its own handshake.)
    async fn takes(&self, version: &'static SupportedProtocolVersion, own: Option<&Issued>) -> bool {
        let Ok(mut client) = self.dial(self.config(version, own)).await else { return false };
        let said = async {
            client.socket.write_all(&PROTOCOL_HEADER).await?;
            client.socket.flush().await
        };
        said.await.is_ok() && client.frame().await.is_some()
    }
}

#[tokio::test]
async fn messages_of_all_sizes_pass_over_tls_and_the_connection_says_how() {
    let secured = Secured::start(Verify::None, PATIENCE).await;
    for (version, protocol, key_exchange) in [(&TLS12, "tlsv1.2", "ecdhe_ecdsa"), (&TLS13, "tlsv1.3", "any")] {
        let mut client = secured.dial(secured.config(version, None)).await.expect("welcome");
        client.login(0).await;
        client.declare(protocol).await;
        client.say(1, Method::ConfirmSelect { nowait: false }).await;
        client.expect("confirm.select-ok").await;
        for body in [&b"small"[..], &[1; 5000], &[2; 3_000_000], b""] {
            client.publish(protocol, body).await;
            client.expect("basic.ack").await;
        }
        client.consume(protocol).await;
        for len in [5, 5000, 3_000_000, 0] {
            assert_eq!(client.delivery().await.1.len(), len);
        }
        secured.server.edge.ask_reports();
        eventually("a report", || secured.server.edge.reported.lock().is_some()).await;
        let report = secured.server.edge.reported.lock().take().expect("reported");
        let encryption = report.encryption.expect("encrypted");
        assert_eq!((encryption.protocol, encryption.key_exchange, encryption.hash), (protocol, key_exchange, "aead"));
        assert!(!encryption.cipher.is_empty() && encryption.certificate.is_none());
        client.say(0, Method::ConnectionClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 }).await;
        client.expect("connection.close-ok").await;
        let end = timeout(PATIENCE, client.socket.read_buf(&mut client.input)).await.expect("in time");
        assert_eq!(end.expect("close_notify before the end"), 0);
    }
}

#[tokio::test]
async fn a_client_that_ends_its_tls_is_gone_with_its_consumers() {
    let secured = Secured::start(Verify::None, PATIENCE).await;
    let mut client = secured.client().await;
    client.declare("q").await;
    client.consume("q").await;
    // close_notify, while TCP stays open.
    client.socket.get_mut().1.send_close_notify();
    client.socket.flush().await.expect("sent");
    let is_gone = || {
        secured.server.edge.inject("q", b"for whoever consumes");
        secured.server.edge.broker.lock().ready("q") > 0
    };
    eventually("nobody consumes", is_gone).await;
}

#[tokio::test]
async fn bytes_that_dribble_in_over_tls_are_understood() {
    let secured = Secured::start(Verify::None, PATIENCE).await;
    let mut client = secured.client().await;
    client.declare("q").await;
    for byte in &publish("q", b"drop by drop")[..] {
        client.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    client.consume("q").await;
    assert_eq!(client.delivery().await.1, b"drop by drop");
}

#[tokio::test]
async fn a_tls_client_that_does_not_read_is_not_buffered_for_and_gets_all_in_the_end() {
    let secured = Secured::start(Verify::None, PATIENCE).await;
    let mut slow = secured.client().await;
    slow.declare("q").await;
    slow.consume("q").await;
    let mut publisher = secured.client().await;
    for n in 0..40 {
        publisher.publish("q", &vec![n; 1 << 20]).await;
    }
    publisher.declare("other").await;
    eventually("most of it waits", || secured.server.edge.outboxes.lock()[0].events.lock().len() > 10).await;
    for n in 0..40 {
        assert_eq!(slow.delivery().await.1, vec![n; 1 << 20]);
    }
}

#[tokio::test]
async fn a_plain_client_on_the_tls_port_sees_an_orderly_close() {
    let secured = Secured::start(Verify::None, PATIENCE).await;
    let mut client = secured.server.raw().await;
    client.send(&PROTOCOL_HEADER).await;
    let end = timeout(PATIENCE, client.socket.read_buf(&mut client.input)).await.expect("in time");
    assert_eq!((end.expect("no reset"), client.input.len()), (0, 0));
    secured.client().await.declare("q").await;
}

#[tokio::test]
async fn a_tls_client_on_the_plain_port_sees_an_end_and_no_hanging() {
    let secured = Secured::start(Verify::None, PATIENCE).await;
    let plain = Secured { server: Server::start(PATIENCE).await, ..secured };
    let error = plain.dial(plain.config(&TLS13, None)).await.err().expect("no TLS there");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    plain.server.client(0).await.declare("q").await;
}

#[tokio::test]
async fn a_slow_tls_handshake_is_cut_and_hinders_nobody() {
    let secured = Secured::start(Verify::None, Duration::from_millis(700)).await;
    let mut silent = secured.server.raw().await;
    let mut slow = secured.server.raw().await;
    // The beginning of a ClientHello of 512 bytes.
    slow.send(&[22, 3, 1, 2, 0, 1, 0]).await;
    secured.client().await.declare("q").await;
    assert!(silent.hung_up().await && slow.hung_up().await);
    assert_eq!(secured.server.edge.outboxes.lock().len(), 1, "they never got to the edge");
    // A handshake under way does not hold up the end.
    let mut late = secured.server.raw().await;
    secured.server.stop.send(true).expect("serving");
    assert!(late.hung_up().await);
    timeout(PATIENCE, secured.server.task).await.expect("in time").expect("no panic");
}

#[tokio::test]
async fn certificates_of_clients_are_verified() {
    let theirs = Authority::new("theirs");
    for required in [true, false] {
        let secured = Secured::start(Verify::Peer { required }, PATIENCE).await;
        let good = secured.authority.issue(&Subject::client("guest"));
        let strange = theirs.issue(&Subject::client("guest"));
        let expired = secured.authority.issue(&Subject { is_expired: true, ..Subject::client("guest") });
        for version in [&TLS12, &TLS13] {
            assert!(secured.takes(version, Some(&good)).await, "required: {required}");
            assert!(!secured.takes(version, Some(&strange)).await, "of another authority");
            assert!(!secured.takes(version, Some(&expired)).await, "expired");
            assert_eq!(secured.takes(version, None).await, !required, "no certificate");
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Says its header; the mechanisms that are offered.
    async fn mechanisms(&mut self) -> String {
        self.send(&PROTOCOL_HEADER).await;
        let Method::ConnectionStart { mechanisms, .. } = self.expect("connection.start").await else { panic!("no start") };
        String::from_utf8_lossy(&mechanisms).into_owned()
    }

    async fn log_in_externally(&mut self) -> Option<Method> {
        let (client_properties, mechanism, locale) = (Table::new(), "EXTERNAL".into(), "en_US".into());
        let response = Long(Bytes::from_static(b"somebody else"));
        self.say(0, Method::ConnectionStartOk { client_properties, mechanism, response, locale }).await;
        self.method().await
    }
}

#[tokio::test]
async fn external_logs_in_as_the_user_of_a_verified_certificate_and_is_offered_to_no_other() {
    let secured = Secured::start(Verify::Peer { required: false }, PATIENCE).await;
    let known = secured.authority.issue(&Subject::client("guest"));
    let mut client = secured.dial(secured.config(&TLS13, Some(&known))).await.expect("welcome");
    assert_eq!(client.mechanisms().await, "PLAIN AMQPLAIN EXTERNAL");
    assert_eq!(client.log_in_externally().await.expect("a method").name(), "connection.tune");
    // A user that is not there (the fake edge knows guest alone).
    let unknown = secured.authority.issue(&Subject::client("joe"));
    let mut client = secured.dial(secured.config(&TLS12, Some(&unknown))).await.expect("welcome");
    assert_eq!(client.mechanisms().await, "PLAIN AMQPLAIN EXTERNAL");
    assert_eq!(client.log_in_externally().await, None);
    // Without a certificate, and without TLS.
    let mut client = secured.raw().await;
    assert_eq!(client.mechanisms().await, "PLAIN AMQPLAIN");
    assert_eq!(client.log_in_externally().await, None);
    let plain = Server::start(PATIENCE).await;
    assert_eq!(plain.raw().await.mechanisms().await, "PLAIN AMQPLAIN");
    // A certificate that nobody asked for is worth nothing.
    let careless = Secured::start(Verify::None, PATIENCE).await;
    let mut client = careless.dial(careless.config(&TLS13, Some(&known))).await.expect("welcome");
    assert_eq!(client.mechanisms().await, "PLAIN AMQPLAIN");
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_the_old_ones_live_on() {
    let secured = Secured::start(Verify::None, PATIENCE).await;
    let shown = |client: &Client<TlsStream<TcpStream>>| {
        let chain = client.socket.get_ref().1.peer_certificates().expect("it showed one");
        crate::tls::certificate::describe(&chain[0]).expect("a certificate").subject
    };
    let mut old = secured.client().await;
    old.declare("q").await;
    assert!(shown(&old).starts_with("CN=first,"));
    write(&secured.dir, &secured.authority.issue(&Subject::at("second", "localhost")));
    assert_eq!(secured.front.renew().expect("good files"), Renewal::Done);
    let new = secured.client().await;
    assert!(shown(&new).starts_with("CN=second,"));
    old.publish("q", b"still here").await;
    old.consume("q").await;
    assert_eq!(old.delivery().await.1, b"still here");
}
