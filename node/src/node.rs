//! Temporary composition root of the branch `ops`: management only, so that the launcher and `warren ctl` can be tried. The real one
//! replaces this file.

use crate::cli::Shutdown;
use crate::config::{DataDir, Ports, ServerConfig};
use crate::management::{self, AdminSource, Metrics, QueueRow, Readiness, Status};
use crate::model::NodeId;
use crate::model::catalog::{BindingSpec, ExchangeSpec, Refusal};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refuses.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The RPC server fails.
    #[error("{0}")]
    Rpc(#[from] tonic::transport::Error),
}

struct Nothing(NodeId);

impl AdminSource for Nothing {
    fn queues(&self, _: String) -> BoxFuture<'_, Result<Vec<QueueRow>, Refusal>> {
        async { Ok(Vec::new()) }.boxed()
    }
    fn exchanges(&self, _: String) -> BoxFuture<'_, Result<Vec<ExchangeSpec>, Refusal>> {
        async { Ok(Vec::new()) }.boxed()
    }
    fn bindings(&self, _: String) -> BoxFuture<'_, Result<Vec<BindingSpec>, Refusal>> {
        async { Ok(Vec::new()) }.boxed()
    }
    fn status(&self) -> BoxFuture<'_, Result<Status, Refusal>> {
        let node = self.0;
        async move {
            Ok(Status { node, cluster_id: String::new(), members: vec![], shards: vec![], connections: 0, queues: 0, alarms: vec![] })
        }
        .boxed()
    }
}

/// Serve until SIGTERM or SIGINT.
pub async fn run(config: ServerConfig) -> Result<(), StartError> {
    let mut shutdown = Shutdown::listen()?;
    let (stop_tx, stop_rx) = tokio::sync::watch::channel(false);
    let stopped = move || {
        let mut stop_rx = stop_rx.clone();
        async move { drop(stop_rx.wait_for(|stop| *stop).await.map(|_| ())) }
    };
    let (metrics, readiness) = (Metrics::new(), Arc::new(Readiness::default()));
    let http = tokio::net::TcpListener::bind((config.host.as_str(), config.management_port)).await?;
    let peer = tokio::net::TcpListener::bind((config.host.as_str(), config.peer_port)).await?;
    let ports = Ports { amqp: config.amqp_port, stream: 0, management: http.local_addr()?.port(), peer: peer.local_addr()?.port() };
    let admin = management::admin::service(config.node, Arc::new(Nothing(config.node)), readiness.clone(), config.secret.bytes());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(peer);
    let rpc = tonic::transport::Server::builder().add_service(admin).serve_with_incoming_shutdown(incoming, stopped());
    let rpc = tokio::spawn(rpc);
    let http = tokio::spawn(management::http::serve(http, readiness.clone(), metrics, stopped()));
    DataDir::write_ports(&config.data_dir, ports)?;
    readiness.serving();
    tracing::info!("Server startup complete");
    let signal = shutdown.requested().await;
    tracing::info!(signal, "stopping");
    let _ = stop_tx.send(true);
    let _ = (rpc.await, http.await);
    Ok(())
}
