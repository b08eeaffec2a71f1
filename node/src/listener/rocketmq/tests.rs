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
use std::sync::atomic::{AtomicBool, Ordering};
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
    lease: AtomicBool,
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
        self.lease.load(Ordering::SeqCst)
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
    /// Node 2 settles what it is told to; no other answers.
    fn ask(&self, node: NodeId, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            match node.0 {
                2 => Ok(errand::encode(&errand::Report::Settled(vec![true]))),
                _ => Err("nobody is there".to_owned()),
            }
        })
    }
}

fn topic() -> Name {
    Name { vhost: "/".into(), name: "t".into() }
}

struct Scene {
    world: Arc<World>,
    edge: Arc<Edge>,
    port: Arc<Port>,
    _stop_tx: watch::Sender<bool>,
}

impl Scene {
    /// With topic `t`, the user `guest`, who is kept to this machine, and the user `ann`, who is not; keys are called as their users are.
    fn new() -> Scene {
        Scene::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Scene {
        let world = Arc::new(World { catalog: Arc::default(), nobody: watch::channel(None).0, lease: AtomicBool::new(true) });
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
        let config = EdgeConfig { no_quorum_timeout: Duration::from_millis(500), ..EdgeConfig::new(ME, Incarnation(7)) };
        let edge = Edge::new(config, world.catalog.clone(), world.clone(), world.clone(), world.clone());
        let mut settings = Settings {
            node: ME,
            incarnation: Incarnation(7),
            default_vhost: "/".into(),
            host_id: "test".into(),
            defaults: RocketDefaults { invisible_ms: 1000, ordered_invisible_ms: 1000, half_invisible_ms: 1000, max_retries: 3 },
            auto_create_topics: false,
            max_message_bytes: limits::MESSAGE_BYTES as u64,
        };
        change(&mut settings);
        let (stop_tx, stop_rx) = watch::channel(false);
        let port = Port {
            hub: Hub::new(edge.clone(), settings, world.clone()),
            front: None,
            handshakes: Semaphore::new(1),
            documents: Semaphore::new(DOCUMENTS_KIB),
            document_wait: Duration::from_millis(50),
            answers: Outbox::new(4096),
            unread: Duration::from_millis(50),
            stop_rx,
        };
        Scene { world, edge, port: Arc::new(port), _stop_tx: stop_tx }
    }

    /// A client that comes from there.
    fn line(&self, from: &str) -> Line {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(self.port.clone().connection(theirs, from.parse().expect("an address")));
        Line(ours)
    }

    /// Publishes it.
    async fn published(&self, document: &str) -> (u16, String) {
        let mut line = self.line(NEAR);
        line.send((post(document.len()) + document).as_bytes()).await;
        line.answer().await
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
    head_with(method, target, key, "", length)
}

fn head_with(method: &str, target: &str, key: &str, md5: &str, length: &str) -> String {
    let date = httpdate::fmt_http_date(SystemTime::now());
    let extra = vec![("x-mq-version".to_owned(), "2015-06-06".to_owned())];
    let signed =
        Signed { method: method.into(), date: date.clone(), content_md5: md5.into(), extra, target: target.into(), ..Signed::default() };
    let length = if md5.is_empty() { length.to_owned() } else { format!("{length}\r\nContent-MD5: {md5}") };
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

/// Less than a request's own patience: whoever waits for that fails.
const SOON: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_publish_during_an_alarm_is_refused_at_once_and_never_happens() {
    let scene = Scene::new();
    scene.edge.set_blocked(Some("low on disk space".into()));
    for _ in 0..3 {
        let (status, text) = tokio::time::timeout(SOON, scene.published(&document("b"))).await.expect("an answer");
        assert!(status == 503 && text.contains("<Code>ServiceUnavailable</Code>"), "{text}");
    }
    scene.edge.set_blocked(None);
    assert_eq!(scene.published(&document("b")).await.0, 201);
    assert_eq!(scene.edge.counters().published.get(), 1, "what was refused is not published when the alarm is over");
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_published() {
    let scene = Scene::new();
    assert_eq!(scene.published(&document("first")).await.0, 201, "the agent is at its desk");
    scene.world.lease.store(false, Ordering::SeqCst);
    let user: Arc<str> = "guest".into();
    let publish = crate::model::step::Publish {
        channel: 0,
        ticket: None,
        mandatory: false,
        exchange: Bytes::from_static(b"t"),
        routing_key: Bytes::new(),
        properties: Bytes::from_static(&[0, 0]),
        body: Bytes::from_static(b"b"),
    };
    let (peer, command) = (NEAR.parse().expect("an address"), crate::session::rocketmq::agent::Command::Publish(Box::new(publish)));
    let vhost = "/".into();
    let asked = scene.port.hub.ask(&user, &vhost, peer, command);
    assert!(tokio::time::timeout(Duration::from_millis(100), asked).await.is_err(), "it waits for the lease");
    settle().await;
    scene.world.lease.store(true, Ordering::SeqCst);
    assert_eq!(scene.published(&document("last")).await.0, 201);
    assert_eq!(scene.edge.counters().published.get(), 2);
}

#[tokio::test]
async fn what_an_old_catalog_does_not_have_is_looked_for_again() {
    let scene = Scene::new();
    let missing = [
        ("GET", "guest", "/topics/none/messages?consumer=g&numOfMessages=1", "TopicNotExist"),
        ("GET", "guest", "/topics/t/messages?consumer=g&numOfMessages=1&ns=none", "TopicNotExist"),
        ("GET", "nobody", POP, "InvalidAccessKeyId"),
    ];
    for (method, key, target, code) in missing {
        scene.world.lease.store(false, Ordering::SeqCst);
        let (status, text) = scene.asked(NEAR, key, method, target).await;
        assert!(status == 503 && text.contains("<Code>ServiceUnavailable</Code>"), "{target}: {text}");
        scene.world.lease.store(true, Ordering::SeqCst);
        let (_, text) = scene.asked(NEAR, key, method, target).await;
        assert!(text.contains(&format!("<Code>{code}</Code>")), "{target}: {text}");
    }
    scene.world.lease.store(false, Ordering::SeqCst);
    let asked = scene.asked(NEAR, "guest", "GET", "/topics/late/messages?consumer=g&numOfMessages=1&trans=pop");
    let made = async {
        settle().await;
        let late = Name { vhost: "/".into(), name: "late".into() };
        scene.world.apply(&CatalogCommand::DeclareExchange(TopicSettings::default().exchange(late)));
        scene.world.lease.store(true, Ordering::SeqCst);
    };
    let ((_, text), ()) = tokio::join!(asked, made);
    assert!(text.contains("<Code>MessageNotExist</Code>"), "{text}");
}

#[tokio::test]
async fn a_handle_of_a_process_that_an_old_catalog_does_not_have_may_be_good() {
    let scene = Scene::new();
    let slot = crate::session::rocketmq::handle::Slot { number: 1, secret: 2 };
    let handle = crate::session::rocketmq::handle::Handle { node: NodeId(2), incarnation: Incarnation(9), agent: 1, slot };
    let document = format!("<ReceiptHandles><ReceiptHandle>{}</ReceiptHandle></ReceiptHandles>", handle.text("id"));
    let acked = async || {
        let mut line = scene.line(NEAR);
        let head = head("DELETE", "/topics/t/messages?consumer=g", "guest", &format!("Content-Length: {}", document.len()));
        line.send((head + &document).as_bytes()).await;
        line.answer().await
    };
    scene.world.lease.store(false, Ordering::SeqCst);
    assert_eq!(acked().await.0, 503);
    scene.world.lease.store(true, Ordering::SeqCst);
    let (status, text) = acked().await;
    assert!(status == 404 && text.contains("SubscriptionNotExist"), "{text}");
}

#[tokio::test]
async fn a_node_that_does_not_answer_spoils_its_own_handles_alone() {
    let scene = Scene::new();
    let of = |node: u16| {
        scene.world.apply(&CatalogCommand::NodeUp { node: NodeId(node), incarnation: Incarnation(9) });
        let slot = crate::session::rocketmq::handle::Slot { number: 1, secret: 2 };
        crate::session::rocketmq::handle::Handle { node: NodeId(node), incarnation: Incarnation(9), agent: 1, slot }.text("id")
    };
    let (good, silent) = (of(2), of(3));
    for (handles, status, bad) in [(vec![&silent, &good], 404, Some(&silent)), (vec![&silent], 503, None)] {
        let handles: String = handles.iter().map(|handle| format!("<ReceiptHandle>{handle}</ReceiptHandle>")).collect();
        let document = format!("<ReceiptHandles>{handles}</ReceiptHandles>");
        let mut line = scene.line(NEAR);
        let head = head("DELETE", "/topics/t/messages?consumer=g", "guest", &format!("Content-Length: {}", document.len()));
        line.send((head + &document).as_bytes()).await;
        let (found, text) = line.answer().await;
        assert_eq!(found, status, "{text}");
        assert_eq!(text.contains(&silent), bad.is_some(), "{text}");
        assert!(!text.contains(&good), "{text}");
    }
}

#[tokio::test]
async fn a_node_may_be_told_of_smaller_messages() {
    let scene = Scene::with(|settings| settings.max_message_bytes = 8);
    assert_eq!(scene.published(&document("12345678")).await.0, 201);
    let more = "<Message><MessageBody>12345678</MessageBody><MessageTag>t</MessageTag></Message>";
    let (status, text) = scene.published(more).await;
    assert!(status == 400 && text.contains("<Code>InvalidArgument</Code>"), "{text}");
}

#[tokio::test]
async fn a_document_of_many_attributes_is_no_xml() {
    let attributes: String = (0..200_000).map(|n| format!(" a{n}='x'")).collect();
    let (status, text) = Scene::new().published(&format!("<Message{attributes}/>")).await;
    assert!(status == 400 && text.contains("<Code>MalformedXML</Code>"), "{text}");
}

#[tokio::test]
async fn a_document_that_is_not_what_its_digest_says_is_refused() {
    let scene = Scene::new();
    for (body, status) in [("one", 201), ("two", 400)] {
        let signed_md5 = STANDARD.encode(<md5::Md5 as md5::Digest>::digest(document("one").as_bytes()));
        let document = document(body);
        let mut line = scene.line(NEAR);
        let head = head_with("POST", MESSAGES, "guest", &signed_md5, &format!("Content-Length: {}", document.len()));
        line.send((head + &document).as_bytes()).await;
        let (found, text) = line.answer().await;
        assert_eq!(found, status, "{text}");
        assert_eq!(text.contains("<Code>InvalidDigest</Code>"), status == 400, "{text}");
    }
}

#[tokio::test]
async fn nothing_is_handed_out_while_too_many_answers_wait_to_be_read() {
    let scene = Scene::new();
    let unread = scene.port.answers.add("x".repeat(4096));
    let (status, text) = scene.asked(NEAR, "guest", "GET", POP).await;
    assert!(status == 503 && text.contains("<Code>ServiceUnavailable</Code>"), "{text}");
    assert_eq!(scene.published(&document("b")).await.0, 201);
    drop(unread);
    assert_eq!(scene.asked(NEAR, "guest", "GET", POP).await.0, 404);
}

#[tokio::test]
async fn who_does_not_read_its_answer_is_cut_off() {
    let scene = Scene::new();
    let (mut ours, theirs) = tokio::io::duplex(16);
    let served = tokio::spawn(scene.port.clone().connection(theirs, NEAR.parse().expect("an address")));
    ours.write_all(head("GET", POP, "guest", "Content-Length: 0").as_bytes()).await.expect("it is read");
    tokio::time::timeout(SOON, served).await.expect("it ends").expect("without a panic");
    settle().await;
    assert!(!scene.port.answers.is_full());
}
