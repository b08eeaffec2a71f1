//! The management port, of few and short connections: `/ready` (200 only while clients are served, else 503 with the reason) and
//! `/metrics`. Open to all who reach it, as Prometheus expects; it shows counts, no names and no messages. Started by `node`.

use super::{Metrics, Readiness};
use crate::model::limits;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// After a failed accept (no descriptors, mostly) nothing is accepted for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Shown {
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
}

/// Serve until `shutdown` is done.
///
/// # Errors
/// The listener fails for good.
pub async fn serve<F>(listener: TcpListener, readiness: Arc<Readiness>, metrics: Arc<Metrics>, shutdown: F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let pages = Router::new().route("/ready", get(ready)).route("/metrics", get(show_metrics)).with_state(Shown { readiness, metrics });
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < limits::MANAGEMENT_CONNECTIONS => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            () = &mut shutdown => return Ok(()),
        };
        match accepted {
            Ok((socket, from)) => drop(connections.spawn(answer(socket, from, pages.clone()))),
            Err(error) => {
                tracing::warn!(%error, "management port: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One question, one answer, and both within a time.
async fn answer(socket: TcpStream, from: SocketAddr, pages: Router) {
    let mut http = Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(limits::MANAGEMENT_HEADER).keep_alive(false);
    let served = http.serve_connection(TokioIo::new(socket), TowerToHyperService::new(pages));
    match tokio::time::timeout(limits::MANAGEMENT_CONNECTION, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%from, error, "management connection"),
        Err(_) => tracing::debug!(%from, "management connection took too long"),
    }
}

async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.readiness.waiting_for() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn show_metrics(State(shown): State<Shown>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPENMETRICS)], shown.metrics.render())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn ask(address: SocketAddr) -> String {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket.write_all(b"GET /ready HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
        answer
    }

    #[tokio::test]
    async fn connections_that_ask_nothing_are_few_and_end_and_others_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let readiness = Arc::new(Readiness::default());
        readiness.serving();
        let serving = tokio::spawn(serve(listener, readiness, Metrics::new(), std::future::pending()));
        assert!(ask(address).await.starts_with("HTTP/1.1 200"));
        let mut idle = Vec::new();
        for at in 0..limits::MANAGEMENT_CONNECTIONS + 10 {
            let mut socket = TcpStream::connect(address).await.expect("a connection");
            if at % 2 == 0 {
                socket.write_all(b"GET /ready HT").await.expect("sent");
            }
            idle.push(socket);
        }
        // It comes when the first of those have been sent away.
        assert!(ask(address).await.starts_with("HTTP/1.1 200"));
        for mut socket in idle {
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "a connection without a question goes on");
        }
        serving.abort();
    }
}
