//! A cluster with TLS everywhere: on a port for clients, who may show certificates, and between nodes. And TLS for the tests' own clients,
//! which speak none: a relay on loopback.

use crate::certificates::{Authority, Issued, Subject, Written};
use crate::cluster::{Cluster, ClusterOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const HOST: &str = "127.0.0.1";

/// The cluster and its authorities.
pub struct Secured {
    /// The processes.
    pub cluster: Cluster,
    /// Issues what clients and the port for them show.
    pub clients: Authority,
    /// Issues what nodes and operators show, until another one does.
    pub nodes: Authority,
    dir: TempDir,
}

impl Secured {
    /// Three nodes that serve.
    pub fn start() -> Secured {
        let dir = tempfile::Builder::new().prefix("warren-test-tls-").tempdir().expect("a temporary directory");
        let (clients, nodes) = (Authority::new("clients"), Authority::new("nodes"));
        clients.write(dir.path(), "clients");
        clients.issue(&Subject::at("server-0", HOST)).write(dir.path(), "server");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let arguments = [
            ("--tls-cert", "server.pem"),
            ("--tls-key", "server.key"),
            ("--tls-ca", "clients-ca.pem"),
            ("--peer-tls-cert", "node-{node}.pem"),
            ("--peer-tls-key", "node-{node}.key"),
            ("--peer-tls-ca", "nodes-ca.pem"),
        ];
        let mut arguments: Vec<String> = arguments.iter().map(|(flag, name)| format!("{flag}={}", path(name))).collect();
        arguments.push("--tls-verify=peer".into());
        let operator = [("CERT", "operator.pem"), ("KEY", "operator.key"), ("CA", "nodes-ca.pem")];
        let ctl_environment = operator.map(|(what, name)| (format!("WARREN_PEER_TLS_{what}"), path(name))).into();
        let options = ClusterOptions { arguments, ctl_environment, ..ClusterOptions::default() };
        nodes.write(dir.path(), "nodes");
        issue_peers(&nodes, options.nodes, dir.path());
        Secured { cluster: Cluster::start_with(&options), clients, nodes, dir }
    }

    /// New certificates for all nodes and for `warren ctl`.
    pub fn issue_peers(&self, authority: &Authority) {
        issue_peers(authority, self.cluster.len(), self.dir.path());
    }

    /// Whom nodes believe from now on.
    pub fn trust_peers(&self, authorities: &[&Authority]) {
        let pems = authorities.iter().map(|authority| fs::read_to_string(authority.write(self.dir.path(), "one")).expect("just written"));
        fs::write(self.dir.path().join("nodes-ca.pem"), pems.collect::<String>()).expect("the directory can be written");
    }

    /// What the port for clients shows from now on.
    pub fn show_clients(&self, issued: &Issued) {
        issued.write(self.dir.path(), "server");
    }

    /// A certificate for a client, as files.
    pub fn client_files(&self, authority: &Authority, common_name: &str) -> Written {
        authority.issue(&Subject::client(common_name)).write(self.dir.path(), &format!("client-{common_name}"))
    }

    /// The authority of the port for clients.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("clients-ca.pem")
    }

    /// Another certificate for that port.
    pub fn server(&self, common_name: &str) -> Issued {
        self.clients.issue(&Subject::at(common_name, HOST))
    }

    /// The port for clients.
    pub fn amqps(&self, at: usize) -> String {
        format!("{HOST}:{}", self.cluster.ports(at).amqps)
    }

    /// A relay to a node for clients without certificates.
    pub fn relay(&self, at: usize) -> Relay {
        Relay::start(self.amqps(at), client_config(&self.ca(), None))
    }

    /// The subject of what a node shows a new client.
    pub fn shown(&self, at: usize) -> Option<String> {
        let runtime = Runtime::new().expect("a runtime");
        let stream = runtime.block_on(connect(&self.amqps(at), Arc::new(client_config(&self.ca(), None)))).ok()?;
        let chain = stream.get_ref().1.peer_certificates()?;
        Some(warren::tls::certificate::describe(chain.first()?)?.subject)
    }
}

fn issue_peers(authority: &Authority, nodes: usize, dir: &Path) {
    for node in 1..=nodes {
        authority.issue(&Subject::at(&format!("node-{node}"), HOST)).write(dir, &format!("node-{node}"));
    }
    authority.issue(&Subject::client("operator")).write(dir, "operator");
}

fn client_config(ca: &Path, own: Option<&Written>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("PEM")).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
    let Some(own) = own else { return builder.with_no_client_auth() };
    let chain = vec![CertificateDer::from_pem_file(&own.certificate).expect("PEM")];
    builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&own.key).expect("PEM")).expect("they fit")
}

async fn connect(to: &str, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let handshake = TlsConnector::from(config).connect(ServerName::try_from(HOST).expect("an address"), socket);
    tokio::time::timeout(Duration::from_secs(10), handshake).await?
}

/// Speaks TLS for clients that connect to it in the clear.
pub struct Relay {
    address: SocketAddr,
    _runtime: Runtime,
}

impl Relay {
    fn start(to: String, config: ClientConfig) -> Relay {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind((HOST, 0))).expect("a port");
        let address = listener.local_addr().expect("bound");
        let config = Arc::new(config);
        runtime.spawn(async move {
            while let Ok((mut plain, _)) = listener.accept().await {
                let (to, config) = (to.clone(), config.clone());
                tokio::spawn(async move {
                    // A client sees a refused handshake as the end of its connection.
                    if let Ok(mut secure) = connect(&to, config).await {
                        let _ = plain.set_nodelay(true);
                        let _ = tokio::io::copy_bidirectional(&mut plain, &mut secure).await;
                    }
                });
            }
        });
        Relay { address, _runtime: runtime }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}
