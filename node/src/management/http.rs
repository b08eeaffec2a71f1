//! The management port: `/ready` (200 only while clients are served, else 503 with the reason) and `/metrics`. Open to all who
//! reach it, as Prometheus expects; it shows counts, no names and no messages. Started by `node`.

use super::{Metrics, Readiness};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::future::Future;
use std::io;
use std::sync::Arc;
use tokio::net::TcpListener;

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
    axum::serve(listener, pages).with_graceful_shutdown(shutdown).await
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
