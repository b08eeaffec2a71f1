//! The port of RocketMQ's HTTP protocol: accepts, reads requests of bounded size, answers each. A task per connection; what is held for
//! clients outlives their connections (`desk`). A request that is being carried out is answered before its connection ends.

mod desk;
mod errand;
mod hub;
mod outbox;
mod patient;
mod service;
#[cfg(test)]
mod tests;
mod turns;

pub use errand::Elsewhere;
pub use hub::{Hub, Settings};

use crate::model::limits;
use crate::session::rocketmq::answers;
use crate::session::rocketmq::faults::Fault;
use crate::session::rocketmq::request::{BODY_BYTES, DOCUMENT_BYTES, check_digest};
use crate::tls::Front;
use crate::wire::rocketmq::signature::Signed;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use outbox::Outbox;
use patient::Patient;
use service::{Admitted, Answer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::JoinSet;

/// Documents of all requests together, KiB.
const DOCUMENTS_KIB: usize = 128 << 10;
/// A request waits so long for the memory that its document needs; then it is refused.
const DOCUMENT_WAIT: Duration = Duration::from_secs(10);
/// Answers of all requests together, bytes: beyond it nothing is handed out.
const ANSWERS_BYTES: usize = 128 << 20;
/// A client that reads nothing of its answer for so long is cut off.
const UNREAD: Duration = Duration::from_secs(60);
/// A connection on which nothing comes for so long is closed.
const QUIET: Duration = Duration::from_secs(600);
/// A request's document must be here within this time.
const DOCUMENT_TIME: Duration = Duration::from_secs(60);
/// Of a document that is refused unread, so much is read all the same: a client that sends all of it first would not find the answer.
const DISCARD_BYTES: u64 = 64 << 20;
/// And for so long.
const DISCARD_TIME: Duration = Duration::from_secs(10);
/// After a failed accept nothing is accepted for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-mq-request-id");
const VERSION: HeaderName = HeaderName::from_static("x-mq-version");
const XML: HeaderValue = HeaderValue::from_static("text/xml;charset=utf-8");
const MQ_VERSION: HeaderValue = HeaderValue::from_static("2015-06-06");

/// What all connections share.
struct Port {
    hub: Arc<Hub>,
    front: Option<Front>,
    handshakes: Semaphore,
    documents: Semaphore,
    document_wait: Duration,
    answers: Arc<Outbox>,
    unread: Duration,
    stop_rx: watch::Receiver<bool>,
}

/// Serves clients until `shutdown` holds true (or its sender is gone); then those that wait are answered, and it returns.
/// `front`: what clients meet over TLS.
pub async fn serve(listener: TcpListener, hub: Arc<Hub>, front: Option<Front>, shutdown: watch::Receiver<bool>) {
    let handshakes = Semaphore::new(limits::TLS_HANDSHAKES);
    let documents = Semaphore::new(DOCUMENTS_KIB);
    let port = Port {
        hub,
        front,
        handshakes,
        documents,
        document_wait: DOCUMENT_WAIT,
        answers: Outbox::new(ANSWERS_BYTES),
        unread: UNREAD,
        stop_rx: shutdown.clone(),
    };
    let port = Arc::new(port);
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let mut stop_rx = shutdown;
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        let port = port.clone();
                        tasks.spawn(async move {
                            port.welcome(socket, peer).await;
                            drop(place);
                        });
                    }
                    Err(_) => tracing::warn!(%peer, "connection refused: too many"),
                },
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = tasks.join_next() => {}
            () = stopped(&mut stop_rx) => break,
        }
    }
    drop(listener);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(2 * limits::CLOSING, all).await.is_err() {
        tracing::warn!(connections = tasks.len(), "connections cut at shutdown");
    }
}

impl Port {
    async fn welcome(self: Arc<Self>, socket: TcpStream, peer: SocketAddr) {
        // Answers are small and wait for nothing.
        let _ = socket.set_nodelay(true);
        let Some(front) = self.front.clone() else { return self.connection(socket, peer).await };
        let Ok(permit) = self.handshakes.acquire().await else { return };
        // In a box: what the handshake needs is gone when the conversation begins.
        let done = tokio::time::timeout(limits::TLS_HANDSHAKE, Box::pin(front.acceptor().accept(socket))).await;
        drop(permit);
        match done {
            Ok(Ok(socket)) => Box::pin(self.clone().connection(socket, peer)).await,
            Ok(Err(error)) => tracing::warn!(%peer, %error, "connection refused: the TLS handshake failed"),
            Err(_) => tracing::warn!(%peer, "connection refused: the TLS handshake took too long"),
        }
    }

    async fn connection(self: Arc<Self>, socket: impl AsyncRead + AsyncWrite + Send + Unpin, peer: SocketAddr) {
        let mut stop_rx = self.stop_rx.clone();
        let service = service_fn(|request| {
            let port = self.clone();
            async move { Ok::<_, Infallible>(port.respond(request, peer).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(QUIET);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(Patient::new(socket, self.unread)), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&mut stop_rx) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection ended");
        }
    }

    async fn respond(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let id = format!("{:024X}", rand::random::<u128>() >> 32);
        let done = self.carry_out(request, peer).await;
        let (status, document) = match done {
            Ok(Answer { status, document }) => (status, document),
            Err(fault) => (fault.status, answers::fault(&fault, &id, &self.hub.settings.host_id)),
        };
        let mut response = Response::new(Full::new(self.answers.add(document)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, HeaderValue::from_str(&id).unwrap_or(MQ_VERSION));
        headers.insert(VERSION, MQ_VERSION);
        if status != StatusCode::NO_CONTENT.as_u16() {
            headers.insert(CONTENT_TYPE, XML);
        }
        response
    }

    async fn carry_out(&self, request: Request<Incoming>, peer: SocketAddr) -> Result<Answer, Fault> {
        let (head, mut body) = request.into_parts();
        match self.receive(&head, &mut body, peer).await {
            Ok(Received { admitted, document, permit }) => {
                let done = self.hub.answer(admitted, &document, self.stop_rx.clone()).await;
                drop(permit);
                done
            }
            Err(fault) => {
                discard(body).await;
                Err(fault)
            }
        }
    }

    /// Nothing is kept, and nothing of what others need, for whoever has not proved who it is.
    async fn receive(&self, head: &Parts, body: &mut Incoming, peer: SocketAddr) -> Result<Received<'_>, Fault> {
        let text = |name: HeaderName| text(&head.headers, &name);
        let signed = Signed {
            method: head.method.as_str().to_owned(),
            content_md5: text(HeaderName::from_static("content-md5")).unwrap_or_default(),
            content_type: text(CONTENT_TYPE).unwrap_or_default(),
            date: text(DATE).unwrap_or_default(),
            extra: extra(&head.headers),
            target: head.uri.path_and_query().map(|target| target.as_str().to_owned()).unwrap_or_default(),
        };
        let content_md5 = signed.content_md5.clone();
        let too_large = || Fault::range("MessageBody", 1, BODY_BYTES as u64, " bytes.");
        let size = usize::try_from(body.size_hint().upper().unwrap_or(DOCUMENT_BYTES as u64)).unwrap_or(usize::MAX);
        if size > DOCUMENT_BYTES {
            return Err(too_large());
        }
        let admitted = self.hub.admit(signed, text(AUTHORIZATION).as_deref(), peer).await?;
        if head.method == Method::GET && self.answers.is_full() {
            return Err(Fault::unavailable("too many answers wait to be read by their clients; nothing was handed out"));
        }
        let kib = u32::try_from(size.div_ceil(1024)).unwrap_or(u32::MAX);
        let permit = tokio::time::timeout(self.document_wait, self.documents.acquire_many(kib)).await;
        let permit = permit.map_err(|_| Fault::unavailable("too many documents of other requests are under way; nothing was done"))?;
        let permit = permit.map_err(|_| Fault::unavailable("this node is stopping"))?;
        let read = tokio::time::timeout(DOCUMENT_TIME, Limited::new(body, DOCUMENT_BYTES).collect()).await;
        let document = read.map_err(|_| Fault::argument("The request did not come in time."))?.map_err(|_| too_large())?.to_bytes();
        check_digest(&content_md5, &document)?;
        // A long poll has no document worth counting.
        let permit = (!document.is_empty()).then_some(permit);
        Ok(Received { admitted, document, permit })
    }
}

/// A request that is all here.
struct Received<'p> {
    admitted: Admitted,
    document: Bytes,
    permit: Option<SemaphorePermit<'p>>,
}

/// Reads what is left of a document, within bounds.
async fn discard(mut body: Incoming) {
    if body.size_hint().lower() > DISCARD_BYTES {
        return;
    }
    let mut left = DISCARD_BYTES;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            let Some(rest) = left.checked_sub(bytes) else { return };
            left = rest;
        }
    };
    // Who is slower than that does without the answer.
    let _ = tokio::time::timeout(DISCARD_TIME, all).await;
}

/// Resolves when the broker stops.
async fn stopped(stop_rx: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone: that is the end as well.
    let _ = stop_rx.wait_for(|stop| *stop).await;
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok()).map(str::to_owned)
}

/// The headers that are signed because of their names.
fn extra(headers: &HeaderMap) -> Vec<(String, String)> {
    let signed = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-mq-"));
    signed.filter_map(|(name, value)| Some((name.to_string(), std::str::from_utf8(value.as_bytes()).ok()?.to_owned()))).collect()
}
