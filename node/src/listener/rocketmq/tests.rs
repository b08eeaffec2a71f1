//! The port over pipes: clients from anywhere, a real edge with a catalog and no shards.

use super::*;
use crate::edge::{CatalogPort, Edge, EdgeConfig, LeaderFinder, RocketDefaults};
use crate::machine::catalog::{Catalog, hash_password};
use crate::model::admin::{AdminCommand, Permission};
use crate::model::catalog::{CatalogCommand, CatalogReply, Name, Refusal};
use crate::model::ports::{EdgeEnd, Paths};
use crate::model::rocketmq::{AccessKey, TopicSettings};
use crate::model::{Incarnation, LeaderId, LogId, NodeId, ShardId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use hmac::{Hmac, Mac};
use parking_lot::RwLock;
use sha1::Sha1;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const ME: NodeId = NodeId(1);
const NEAR: &str = "127.0.0.1:1";
const FAR: &str = "10.0.0.1:1";
const POP: &str = "/topics/t/messages?consumer=g&numOfMessages=1&trans=pop";
const MESSAGES: &str = "/topics/t/messages";

/// The rest of the node: applies commands at once; nobody leads anything.
struct World {
    catalog: Arc<RwLock<Catalog>>,
    nobody: watch::Sender<Option<LeaderId>>,
}

impl World {
    fn apply(&self, command: &CatalogCommand) -> (u64, CatalogReply) {
        let mut catalog = self.catalog.write();
        let index = catalog.index() + 1;
        (index, catalog.apply(LogId { leader: LeaderId::default(), index }, command))
    }
}

impl CatalogPort for World {
    fn submit(&self, command: CatalogCommand) -> BoxFuture<'static, Result<(u64, CatalogReply), Refusal>> {
        let reply = self.apply(&command);
        Box::pin(async move { Ok(reply) })
    }

    fn routing_lease(&self) -> bool {
        true
    }
}

impl LeaderFinder for World {
    fn leadership(&self, _: ShardId) -> watch::Receiver<Option<LeaderId>> {
        self.nobody.subscribe()
    }
}

impl Paths for World {
    fn connect(&self, _: ShardId, _: NodeId) -> BoxFuture<'static, std::io::Result<EdgeEnd>> {
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
    }
}

impl Elsewhere for World {
    fn ask(&self, _: NodeId, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async { Err("nobody is there".to_owned()) })
    }
}

fn topic() -> Name {
    Name { vhost: "/".into(), name: "t".into() }
}

struct Scene {
    edge: Arc<Edge>,
    port: Arc<Port>,
    _stop_tx: watch::Sender<bool>,
}

impl Scene {
    /// With topic `t`, the user `guest`, who is kept to this machine, and the user `ann`, who is not; keys are called as their users are.
    fn new() -> Scene {
        let world = Arc::new(World { catalog: Arc::default(), nobody: watch::channel(None).0 });
        let hash = |password: &str| hash_password(password.as_bytes(), [1, 2, 3, 4]);
        world.apply(&CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash: hash("guest"), shards: 3 });
        world.apply(&CatalogCommand::NodeUp { node: ME, incarnation: Incarnation(7) });
        let all = || ".*".to_owned();
        let permission = Permission { configure: all(), write: all(), read: all() };
        for command in [
            AdminCommand::AddUser { user: "ann".into(), password_hash: hash("pw") },
            AdminCommand::SetPermissions { user: "ann".into(), vhost: "/".into(), permission },
            AdminCommand::AddAccessKey { id: "ann".into(), key: AccessKey { secret: "ann".into(), user: "ann".into() } },
        ] {
            assert_eq!(world.apply(&CatalogCommand::Admin(command)).1, CatalogReply::Done);
        }
        world.apply(&CatalogCommand::DeclareExchange(TopicSettings::default().exchange(topic())));
        let config = EdgeConfig::new(ME, Incarnation(7));
        let edge = Edge::new(config, world.catalog.clone(), world.clone(), world.clone(), world.clone());
        let settings = Settings {
            node: ME,
            incarnation: Incarnation(7),
            default_vhost: "/".into(),
            host_id: "test".into(),
            defaults: RocketDefaults { invisible_ms: 1000, ordered_invisible_ms: 1000, half_invisible_ms: 1000, max_retries: 3 },
            auto_create_topics: false,
        };
        let (stop_tx, stop_rx) = watch::channel(false);
        let port = Port {
            hub: Hub::new(edge.clone(), settings, world),
            front: None,
            handshakes: Semaphore::new(1),
            documents: Semaphore::new(DOCUMENTS_KIB),
            document_wait: Duration::from_millis(50),
            stop_rx,
        };
        Scene { edge, port: Arc::new(port), _stop_tx: stop_tx }
    }

    /// A client that comes from there.
    fn line(&self, from: &str) -> Line {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(self.port.clone().connection(theirs, from.parse().expect("an address")));
        Line(ours)
    }

    async fn asked(&self, from: &str, key: &str, method: &str, target: &str) -> (u16, String) {
        let mut line = self.line(from);
        line.send(head(method, target, key, "Content-Length: 0").as_bytes()).await;
        line.answer().await
    }
}

struct Line(DuplexStream);

impl Line {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("all of it is read");
    }

    /// Status and document.
    async fn answer(&mut self) -> (u16, String) {
        let (mut text, mut length) = (String::new(), None);
        while length.is_none_or(|length| text.len() < length) {
            let mut piece = [0; 4096];
            let n = self.0.read(&mut piece).await.expect("an answer");
            assert_ne!(n, 0, "half an answer: {text}");
            text += std::str::from_utf8(&piece[..n]).expect("text");
            length = length.or_else(|| {
                let end = text.find("\r\n\r\n")? + 4;
                let announced = text.lines().find_map(|line| line.strip_prefix("content-length: "))?;
                Some(end + announced.parse::<usize>().expect("a number"))
            });
        }
        (text.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), text)
    }
}

/// A signed request without its document; `length`: the header that says how long that is.
fn head(method: &str, target: &str, key: &str, length: &str) -> String {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let extra = vec![("x-mq-version".to_owned(), "2015-06-06".to_owned())];
    let signed = Signed { method: method.into(), date: date.clone(), extra, target: target.into(), ..Signed::default() };
    let mut mac = Hmac::<Sha1>::new_from_slice(key.as_bytes()).expect("a key");
    mac.update(signed.text().as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nDate: {date}\r\nx-mq-version: 2015-06-06\r\nAuthorization: MQ {key}:{signature}\r\n{length}\r\n\r\n"
    )
}

fn post(bytes: usize) -> String {
    head("POST", MESSAGES, "guest", &format!("Content-Length: {bytes}"))
}

fn document(body: &str) -> String {
    format!("<Message><MessageBody>{body}</MessageBody></Message>")
}

/// Until all tasks have done what they can do now.
async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_is_kept_to_this_machine_does_nothing_from_elsewhere() {
    let scene = Scene::new();
    let consume = "/topics/t/messages?consumer=g&numOfMessages=1";
    for (method, target) in [("GET", consume), ("GET", POP), ("POST", MESSAGES), ("DELETE", "/topics/t/messages?consumer=g")] {
        let (status, text) = scene.asked(FAR, "guest", method, target).await;
        assert!(status == 403 && text.contains("<Code>AccessDenied</Code>"), "{method} {target}: {text}");
    }
    assert_eq!(scene.edge.group(&topic(), "g"), None, "nothing was made");
    for (from, key) in [(NEAR, "guest"), ("[::1]:1", "guest"), (FAR, "ann")] {
        let (status, text) = scene.asked(from, key, "GET", POP).await;
        assert!(status == 404 && text.contains("<Code>MessageNotExist</Code>"), "{key} from {from}: {text}");
    }
}

#[tokio::test]
async fn who_has_not_proved_who_it_is_holds_nobody_up() {
    let scene = Scene::new();
    let mut hostile: Vec<Line> = (0..16).map(|_| scene.line(NEAR)).collect();
    let unsigned = post(DOCUMENT_BYTES).replace("Authorization: MQ guest:", "Authorization: MQ guest:x");
    for line in &mut hostile {
        line.send(unsigned.as_bytes()).await;
    }
    settle().await;
    let mut line = scene.line(NEAR);
    let document = document("b");
    line.send((post(document.len()) + &document).as_bytes()).await;
    let (status, text) = line.answer().await;
    assert_eq!(status, 201, "{text}");
}

#[tokio::test]
async fn who_finds_no_memory_for_its_document_is_told_soon() {
    let scene = Scene::new();
    let mut slow: Vec<Line> = (0..6).map(|_| scene.line(NEAR)).collect();
    for line in slow.iter_mut().take(DOCUMENTS_KIB * 1024 / DOCUMENT_BYTES) {
        line.send(post(DOCUMENT_BYTES).as_bytes()).await;
    }
    settle().await;
    let mut line = scene.line(NEAR);
    line.send((post(DOCUMENT_BYTES) + &" ".repeat(DOCUMENT_BYTES)).as_bytes()).await;
    let (status, text) = line.answer().await;
    assert!(status == 503 && text.contains("<Code>ServiceUnavailable</Code>"), "{text}");
    drop(slow);
    settle().await;
    let document = document("b");
    line.send((post(document.len()) + &document).as_bytes()).await;
    assert_eq!(line.answer().await.0, 201, "what others held is free again, and the connection goes on");
}

#[tokio::test]
async fn what_is_too_large_is_read_before_it_is_refused() {
    let scene = Scene::new();
    let mut line = scene.line(NEAR);
    let piece = vec![b'x'; 1 << 20];
    let pieces = DOCUMENT_BYTES / piece.len() + 4;
    line.send(post(pieces * piece.len()).as_bytes()).await;
    for _ in 0..pieces {
        line.send(&piece).await;
    }
    let (status, text) = line.answer().await;
    assert!(status == 400 && text.contains("<Code>InvalidArgument</Code>"), "{text}");
    line.send(head("POST", MESSAGES, "guest", "Transfer-Encoding: chunked").as_bytes()).await;
    for _ in 0..pieces {
        line.send(b"100000\r\n").await;
        line.send(&piece).await;
        line.send(b"\r\n").await;
    }
    line.send(b"0\r\n\r\n").await;
    let (status, text) = line.answer().await;
    assert!(status == 400 && text.contains("<Code>InvalidArgument</Code>"), "{text}");
    // Its document is not too large, its body is.
    let document = document(&"b".repeat(BODY_BYTES + 1));
    line.send((post(document.len()) + &document).as_bytes()).await;
    assert_eq!(line.answer().await.0, 400);
}

#[tokio::test]
async fn a_body_may_be_all_entities() {
    let scene = Scene::new();
    let mut line = scene.line(NEAR);
    for quotes in [1 << 20, 2 << 20] {
        let document = document(&"&quot;".repeat(quotes));
        line.send((post(document.len()) + &document).as_bytes()).await;
        let (status, text) = line.answer().await;
        assert!(status == 201 && text.contains(&crate::session::rocketmq::message::md5_of(&b"\"".repeat(quotes))), "{text}");
    }
}
