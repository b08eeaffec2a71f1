//! The listener over real sockets on loopback, with a raw client and a fake edge.

mod tls;

use super::fake::FakeEdge;
use super::*;
use crate::model::catalog::Table;
use crate::model::limits;
use crate::tls::Front;
use crate::wire::amqp::output::Content;
use crate::wire::amqp::{Frame, FrameKind, Long, Method, Output, PROTOCOL_HEADER, frame};
use bytes::{Bytes, BytesMut};
use proptest::prelude::{Strategy, any};
use proptest::strategy::ValueTree;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    edge: Arc<FakeEdge>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(handshake: Duration) -> Server {
        Server::start_with(Settings { handshake, ..Settings::new("test") }).await
    }

    async fn start_with(settings: Settings) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let edge = Arc::new(FakeEdge::default());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve(listener, edge.clone(), settings, stopped));
        Server { edge, address, stop, task }
    }

    async fn raw(&self) -> Client {
        let socket = TcpStream::connect(self.address).await.expect("connect");
        Client { socket, input: BytesMut::new() }
    }

    async fn client(&self, heartbeat: u16) -> Client {
        let mut client = self.raw().await;
        client.login(heartbeat).await;
        client
    }
}

struct Client<S = TcpStream> {
    socket: S,
    input: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn login(&mut self, heartbeat: u16) {
        self.send(&PROTOCOL_HEADER).await;
        self.expect("connection.start").await;
        let response = Long(Bytes::from_static(b"\0guest\0guest"));
        let (client_properties, mechanism, locale) = (Table::new(), "PLAIN".into(), "en_US".into());
        self.say(0, Method::ConnectionStartOk { client_properties, mechanism, response, locale }).await;
        self.expect("connection.tune").await;
        self.say(0, Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat }).await;
        self.say(0, Method::ConnectionOpen { virtual_host: "/".into(), reserved_1: "".into(), reserved_2: false }).await;
        self.expect("connection.open-ok").await;
        self.say(1, Method::ChannelOpen { reserved_1: "".into() }).await;
        self.expect("channel.open-ok").await;
    }

    async fn declare(&mut self, queue: &str) {
        let method = Method::QueueDeclare {
            ticket: 0,
            queue: queue.into(),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: Table::new(),
        };
        self.say(1, method).await;
        self.expect("queue.declare-ok").await;
    }

    async fn consume(&mut self, queue: &str) {
        self.consume_with(queue, false).await;
    }

    async fn consume_with(&mut self, queue: &str, no_ack: bool) {
        let method = Method::BasicConsume {
            ticket: 0,
            queue: queue.into(),
            consumer_tag: "t".into(),
            no_local: false,
            no_ack,
            exclusive: false,
            nowait: false,
            arguments: Table::new(),
        };
        self.say(1, method).await;
        self.expect("basic.consume-ok").await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("write");
        self.socket.flush().await.expect("flush");
    }

    async fn say(&mut self, channel: u16, method: Method) {
        let mut output = Output::default();
        output.method(channel, &method);
        self.send(&output.take()).await;
    }

    async fn publish(&mut self, queue: &str, body: &[u8]) {
        let bytes = publish(queue, body);
        self.send(&bytes).await;
    }

    /// The next frame; `None` when the server hung up.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = frame::next(&mut self.input, 1 << 20).expect("frames") {
                return Some(frame);
            }
            match timeout(PATIENCE, self.socket.read_buf(&mut self.input)).await.expect("in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn method(&mut self) -> Option<Method> {
        let frame = self.frame().await?;
        assert_eq!(frame.kind, FrameKind::Method, "{frame:?}");
        Some(Method::decode(frame.payload).expect("form").expect("known"))
    }

    async fn expect(&mut self, name: &str) -> Method {
        let method = self.method().await.expect("a method");
        assert_eq!(method.name(), name, "{method:?}");
        method
    }

    /// A delivery's tag and body.
    async fn delivery(&mut self) -> (u64, Vec<u8>) {
        let Method::BasicDeliver { delivery_tag, .. } = self.expect("basic.deliver").await else { panic!("no delivery") };
        let header = self.frame().await.expect("header");
        let size = crate::wire::amqp::ContentHeader::decode(header.payload).expect("header").body_size as usize;
        let mut body = Vec::new();
        while body.len() < size {
            body.extend_from_slice(&self.frame().await.expect("body").payload);
        }
        (delivery_tag, body)
    }

    async fn hung_up(&mut self) -> bool {
        loop {
            match timeout(PATIENCE, self.socket.read_buf(&mut self.input)).await {
                Ok(Ok(0) | Err(_)) => return true,
                Ok(Ok(_)) => {}
                Err(_) => return false,
            }
        }
    }
}

fn publish(queue: &str, body: &[u8]) -> Bytes {
    let mut output = Output::default();
    let (exchange, routing_key) = ("".into(), queue.into());
    output.method(1, &Method::BasicPublish { ticket: 0, exchange, routing_key, mandatory: false, immediate: false });
    output.content(1, &Content { properties: &[0, 0], body: &Bytes::copy_from_slice(body), body_at: 0 }, 131_072);
    output.take()
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_message_goes_in_is_confirmed_comes_out_and_is_acked() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    client.declare("q").await;
    client.say(1, Method::ConfirmSelect { nowait: false }).await;
    client.expect("confirm.select-ok").await;
    for body in [&b"small"[..], &[1; 5000], &[2; 300_000], b""] {
        client.publish("q", body).await;
        client.expect("basic.ack").await;
    }
    client.consume("q").await;
    for len in [5, 5000, 300_000, 0] {
        let (delivery_tag, body) = client.delivery().await;
        assert_eq!(body.len(), len);
        client.say(1, Method::BasicAck { delivery_tag, multiple: false }).await;
    }
    let message_heads = 4 * (1 + 1 + 1 + 4 + 2);
    assert_eq!(server.edge.written.load(Ordering::SeqCst), 305_005 + message_heads);
    client.say(0, Method::ConnectionClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 }).await;
    client.expect("connection.close-ok").await;
    assert!(client.hung_up().await);
}

#[tokio::test]
async fn a_connection_reports_its_socket_channels_and_consumers() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    client.declare("q").await;
    client.say(1, Method::ConfirmSelect { nowait: false }).await;
    client.expect("confirm.select-ok").await;
    client.publish("q", b"held").await;
    client.expect("basic.ack").await;
    client.consume("q").await;
    client.delivery().await;
    server.edge.ask_reports();
    eventually("a report", || server.edge.reported.lock().is_some()).await;
    let report = server.edge.reported.lock().take().expect("reported");
    assert_eq!((report.local, report.state, report.mechanism), (Some(server.address), "running", "PLAIN"));
    assert!(report.received_bytes > 100 && report.sent_bytes > 100);
    let channel = &report.channels[0];
    assert_eq!((channel.number, channel.confirm, channel.unacknowledged, channel.unconfirmed), (1, true, 1, 0));
    assert_eq!((report.channels.len(), &*channel.consumers[0].queue), (1, "q"));
}

#[tokio::test]
async fn bytes_that_dribble_in_are_understood() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    client.declare("q").await;
    client.socket.set_nodelay(true).expect("nodelay");
    for byte in &publish("q", b"drop by drop")[..] {
        client.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    client.consume("q").await;
    assert_eq!(client.delivery().await.1, b"drop by drop");
}

#[tokio::test]
async fn a_wrong_header_gets_ours_and_the_end() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.raw().await;
    client.send(b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(client.hung_up().await);
    assert_eq!(&client.input[..], PROTOCOL_HEADER);
}

#[tokio::test]
async fn a_slow_handshake_is_cut() {
    let server = Server::start(Duration::from_secs(3)).await;
    let mut silent = server.raw().await;
    let mut slow = server.raw().await;
    slow.send(&PROTOCOL_HEADER).await;
    slow.expect("connection.start").await;
    let mut quick = server.client(0).await;
    assert!(silent.hung_up().await && slow.hung_up().await);
    // Whoever came through the handshake before those were cut is not.
    tokio::time::sleep(Duration::from_secs(1)).await;
    quick.declare("q").await;
}

#[tokio::test]
async fn heartbeats_go_out_and_silence_is_the_end() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(1).await;
    let start = Instant::now();
    for _ in 0..2 {
        assert_eq!(client.frame().await.expect("heartbeat").kind, FrameKind::Heartbeat);
    }
    assert!(client.hung_up().await);
    let silence = start.elapsed();
    assert!(silence > Duration::from_millis(1900), "{silence:?}");
}

#[tokio::test]
async fn a_client_that_only_sends_heartbeats_lives() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(1).await;
    let mut output = Output::default();
    for _ in 0..7 {
        output.heartbeat();
        client.send(&output.take()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    client.input.clear();
    while timeout(Duration::from_millis(10), client.socket.read_buf(&mut client.input)).await.is_ok() {}
    client.input.clear();
    client.declare("q").await;
}

/// Who does not take its output is not read either, and shows that it lives by what waits to be read.
#[tokio::test]
async fn a_client_that_neither_reads_nor_sends_is_silent_and_one_that_sends_is_not() {
    let server = Server::start(PATIENCE).await;
    let mut dead = server.client(1).await;
    let mut deaf = server.client(1).await;
    for client in [&mut dead, &mut deaf] {
        client.declare("q").await;
        client.consume("q").await;
    }
    let mut publisher = server.client(0).await;
    for _ in 0..80 {
        publisher.publish("q", &vec![7; 1 << 20]).await;
    }
    let holders = |n: usize| Arc::strong_count(&server.edge.outboxes.lock()[n]);
    let before = (holders(0), holders(1));
    let beating = async {
        let mut output = Output::default();
        loop {
            output.heartbeat();
            deaf.send(&output.take()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    // Longer than silence may last.
    let ended = async {
        eventually("the end of the silent one", || holders(0) < before.0).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    };
    tokio::select! {
        () = ended => {}
        () = beating => {}
    }
    assert_eq!(holders(1), before.1, "the one with heartbeats lives");
}

#[tokio::test]
async fn a_held_publish_stops_the_reading_but_not_the_consuming() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    client.declare("q").await;
    client.consume("q").await;
    client.publish("q", b"first").await;
    let (delivery_tag, _) = client.delivery().await;
    server.edge.full.store(true, Ordering::SeqCst);
    client.publish("q", b"held").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = server.edge.written.load(Ordering::SeqCst);
    server.edge.inject("q", b"from elsewhere");
    assert_eq!(client.delivery().await.1, b"from elsewhere");
    eventually("credit passes the held publish", || server.edge.written.load(Ordering::SeqCst) > before).await;
    client.say(1, Method::BasicAck { delivery_tag, multiple: false }).await;
    client.say(0, Method::ConnectionClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 }).await;
    assert!(timeout(Duration::from_millis(100), client.frame()).await.is_err(), "read on while a publish was held");
    server.edge.full.store(false, Ordering::SeqCst);
    server.edge.room.notify_waiters();
    let (_, body) = client.delivery().await;
    assert_eq!(body, b"held");
    client.expect("connection.close-ok").await;
}

/// A publish and what the client says next, in one piece.
fn publish_and(queue: &str, channel: u16, next: &Method) -> Bytes {
    let mut output = Output::default();
    output.method(channel, next);
    [&publish(queue, b"held")[..], &output.take()[..]].concat().into()
}

impl Server {
    fn hold(&self) {
        self.edge.full.store(true, Ordering::SeqCst);
    }

    fn let_go(&self) {
        self.edge.full.store(false, Ordering::SeqCst);
        self.edge.room.notify_waiters();
    }

    async fn has_held(&self, publishes: u64) {
        eventually("publishes that are held", || self.edge.given_back.load(Ordering::SeqCst) >= publishes).await;
    }

    fn ready(&self, queue: &str) -> usize {
        self.edge.broker.lock().ready(queue)
    }
}

fn goodbye() -> Method {
    Method::ConnectionClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 }
}

#[tokio::test]
async fn goodbye_is_answered_when_a_held_publish_has_gone() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    client.declare("q").await;
    server.hold();
    client.send(&publish_and("q", 0, &goodbye())).await;
    // Longer than closing may take.
    assert!(timeout(limits::CLOSING * 3 / 2, client.frame()).await.is_err(), "an answer before the publish has gone");
    assert_eq!(server.ready("q"), 0);
    server.let_go();
    client.expect("connection.close-ok").await;
    assert_eq!(server.ready("q"), 1);
}

#[tokio::test]
async fn who_says_goodbye_waits_neither_for_ever_nor_for_the_end_of_the_node_and_is_not_told_that_its_publish_has_gone() {
    for (leaving, stops) in [(Duration::from_millis(200), false), (PATIENCE, true)] {
        let server = Server::start_with(Settings { leaving, ..Settings::new("test") }).await;
        let mut client = server.client(0).await;
        client.declare("q").await;
        server.hold();
        client.send(&publish_and("q", 0, &goodbye())).await;
        server.has_held(1).await;
        if stops {
            server.stop.send(true).expect("serving");
        }
        assert!(client.frame().await.is_none(), "the end without close-ok");
    }
}

#[tokio::test]
async fn an_ack_stays_behind_the_publish_before_it_and_a_settlement_that_nobody_sent_does_not() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    for queue in ["q", "free"] {
        client.declare(queue).await;
    }
    client.consume("q").await;
    client.publish("q", b"first").await;
    let (delivery_tag, _) = client.delivery().await;
    let mut other = server.client(0).await;
    other.consume_with("free", true).await;
    server.hold();
    client.send(&publish_and("q", 1, &Method::BasicAck { delivery_tag, multiple: false })).await;
    other.publish("free", b"held").await;
    server.has_held(2).await;
    server.edge.inject("free", b"from elsewhere");
    assert_eq!(other.delivery().await.1, b"from elsewhere");
    eventually("a delivery without acknowledgement is settled", || server.edge.broker.lock().held("free") == 0).await;
    assert_eq!(server.edge.broker.lock().held("q"), 1, "the ack waits");
    server.let_go();
    assert_eq!(client.delivery().await.1, b"held");
    eventually("the ack", || server.edge.broker.lock().held("q") == 1).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_buffered_for() {
    let server = Server::start(PATIENCE).await;
    let mut slow = server.client(0).await;
    slow.declare("q").await;
    let mut publisher = server.client(0).await;
    let body = vec![7; 1 << 20];
    for _ in 0..40 {
        publisher.publish("q", &body).await;
    }
    publisher.declare("other").await;
    // All come at once: what is not written at once stays with the edge, which can still give it to somebody else.
    slow.consume("q").await;
    let waiting = || server.edge.outboxes.lock()[0].events.lock().len();
    eventually("events that wait", || waiting() > 10).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(waiting() > 10, "only {} events wait", waiting());
    for _ in 0..40 {
        assert_eq!(slow.delivery().await.1.len(), body.len());
    }
}

#[tokio::test]
async fn an_oversize_frame_ends_the_connection_with_a_reason() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    client.send(b"\x01\x00\x01\x7f\xff\xff\xff").await;
    client.send(&[0; 50_000]).await;
    let Method::ConnectionClose { reply_code, .. } = client.expect("connection.close").await else { panic!("no close") };
    assert_eq!(reply_code, 501);
    client.send(&[0; 50_000]).await;
    assert!(client.hung_up().await);
}

#[tokio::test]
async fn shutdown_closes_everyone_politely_and_soon() {
    let server = Server::start(PATIENCE).await;
    let mut polite = server.client(0).await;
    let mut deaf = server.client(0).await;
    server.stop.send(true).expect("serving");
    let Method::ConnectionClose { reply_code, reply_text, .. } = polite.expect("connection.close").await else { panic!("no close") };
    assert_eq!(reply_code, 320);
    assert!(reply_text.starts_with(b"CONNECTION_FORCED - "));
    polite.say(0, Method::ConnectionCloseOk {}).await;
    timeout(PATIENCE, server.task).await.expect("in time").expect("no panic");
    assert!(deaf.hung_up().await);
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn ten_thousand_channels_are_refused_where_the_agreement_ends() {
    let server = Server::start(PATIENCE).await;
    let mut client = server.client(0).await;
    let mut output = Output::default();
    for channel in 2..10_000 {
        output.method(channel, &Method::ChannelOpen { reserved_1: "".into() });
    }
    client.send(&output.take()).await;
    let mut opened = 0;
    loop {
        match client.method().await.expect("a method") {
            Method::ChannelOpenOk { .. } => opened += 1,
            Method::ConnectionClose { reply_code, reply_text, .. } => {
                let text = "NOT_ALLOWED - number of channels opened (2047) has reached the negotiated channel_max (2047)";
                assert_eq!((reply_code, &reply_text[..]), (530, text.as_bytes()));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(opened <= 2046, "channel 1 was open before");
}

#[tokio::test]
async fn mutated_streams_harm_nobody_else() {
    let server = Server::start(PATIENCE).await;
    let mut witness = server.client(0).await;
    witness.declare("q").await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let noise = (any::<bool>(), proptest::collection::vec((0usize..400, any::<u8>()), 0..6));
    for _ in 0..150 {
        let (logged_in, changes) = noise.new_tree(&mut runner).expect("tree").current();
        let mut client = if logged_in { server.client(0).await } else { server.raw().await };
        let mut bytes = Vec::new();
        if !logged_in {
            bytes.extend_from_slice(&PROTOCOL_HEADER);
        }
        (0..5).for_each(|_| bytes.extend_from_slice(&publish("q", b"some body")));
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = client.socket.write_all(&bytes).await;
    }
    witness.publish("q", b"still here").await;
    witness.declare("q").await;
    eventually("the witness's message", || server.edge.broker.lock().ready("q") > 0).await;
    assert!(!server.task.is_finished());
}
