//! The listener over real sockets on loopback, with a raw client and a fake edge.

use super::*;
use crate::model::Offset;
use crate::model::consumer_group::Turn;
use crate::model::step::{Event, Step};
use crate::model::stored::{Lent, Place};
use crate::model::{QueueId, ShardId};
use crate::session::stream::Counts;
use crate::wire::stream::client::Request;
use crate::wire::stream::{Code, FromClient, FromServer, Key, Messages, frame};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);
/// Chunks of the fake stream.
const CHUNK_BYTES: usize = 100_000;

/// What the tests see and steer.
#[derive(Default)]
struct Shared {
    steps: Mutex<Vec<Step>>,
    events: Mutex<Vec<Event>>,
    changed: Notify,
    /// Appends that are given back while it is set.
    holds: Mutex<bool>,
    released: Notify,
    /// Chunks that the stream has, and how many were read.
    chunks: Mutex<u64>,
    /// Where they can be sent from.
    file: Mutex<Option<Arc<Lent>>>,
    came: Notify,
    read: Mutex<u64>,
    catalog: Mutex<Option<watch::Sender<()>>>,
    is_gone: Mutex<bool>,
    turn: Mutex<Option<Turn>>,
    yielded: Mutex<usize>,
}

#[derive(Clone, Default)]
struct FakeEdge(Arc<Shared>);

struct FakeReader {
    shared: Arc<Shared>,
    next: u64,
}

impl Edge for FakeEdge {
    type Connection = FakeEdge;
    fn connect(&self, _: SocketAddr) -> FakeEdge {
        self.clone()
    }
}

impl EdgeConnection for FakeEdge {
    fn submit(&mut self, step: Step) -> Result<(), Step> {
        match &step {
            Step::Append(_) if *self.0.holds.lock() => return Err(step),
            Step::Authenticate { .. } => self.0.events.lock().push(Event::Authenticated),
            Step::Open { .. } => self.0.events.lock().push(Event::Opened),
            _ => {}
        }
        self.0.steps.lock().push(step);
        self.0.changed.notify_one();
        Ok(())
    }

    fn take_events(&mut self, out: &mut Vec<Event>, _: usize) {
        out.append(&mut self.0.events.lock());
    }

    async fn changed(&self) {
        while self.0.events.lock().is_empty() {
            self.0.changed.notified().await;
        }
    }

    async fn writable(&self) {
        while *self.0.holds.lock() {
            self.0.released.notified().await;
        }
    }
}

impl StreamConnection for FakeEdge {
    type Reader = FakeReader;

    fn ask(&mut self, ask: Ask) -> BoxFuture<'static, Result<Answer, Failure>> {
        let answer = match ask {
            Ask::Write { .. } | Ask::Read { .. } => Ok(Answer::Target(target())),
            Ask::Create { .. } => return std::future::pending().boxed(),
            _ => Err(Failure::Missing),
        };
        std::future::ready(answer).boxed()
    }

    fn store(&mut self, _: &str, _: &str, _: u64) {}

    fn read(&mut self, _: &StreamTarget, _: OffsetSpec) -> Result<FakeReader, Failure> {
        Ok(FakeReader { shared: self.0.clone(), next: 0 })
    }

    fn join_group(&mut self, _: &Member) {}

    fn leave_group(&mut self, _: &Member) {}

    fn yield_turn(&mut self, _: &Member) {
        *self.0.yielded.lock() += 1;
    }

    fn turn(&self, _: &Member) -> Option<Turn> {
        *self.0.turn.lock()
    }

    fn has_stream(&self, _: &StreamTarget) -> bool {
        !*self.0.is_gone.lock()
    }

    fn catalog(&self) -> watch::Receiver<()> {
        let (catalog_tx, catalog_rx) = watch::channel(());
        *self.0.catalog.lock() = Some(catalog_tx);
        catalog_rx
    }
}

impl StreamReader for FakeReader {
    async fn next(&mut self) -> Result<StreamChunk, Failure> {
        while self.next >= *self.shared.chunks.lock() {
            self.shared.came.notified().await;
        }
        let first = Offset(self.next);
        self.next += 1;
        *self.shared.read.lock() += 1;
        let data = Bytes::from(vec![1; CHUNK_BYTES]);
        let file = self.shared.file.lock().as_ref().and_then(|file| Place::new(file, 7).part(0..CHUNK_BYTES));
        Ok(StreamChunk { first, entries: 1, records: 1, time_ms: 1, crc: 0, filter: Bytes::new(), data, file })
    }
}

fn target() -> Arc<StreamTarget> {
    Arc::new(StreamTarget { stream: QueueId(7), shard: ShardId(1), publisher: None, catalog_index: 1, filter_bytes: 16, leader: None })
}

struct Server {
    shared: Arc<Shared>,
    figures: Arc<Figures>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Server {
    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (edge, (stop, stopped)) = (FakeEdge::default(), watch::channel(false));
        let (shared, figures) = (edge.0.clone(), Arc::new(Figures::default()));
        let advertised = Advertised { host: "alpha".into(), port: 1, tls_port: 0 };
        tokio::spawn(serve(listener, Arc::new(edge), Settings::new("test"), (advertised, figures.clone()), stopped));
        Server { shared, figures, address, stop }
    }

    async fn client(&self) -> Client {
        self.client_with(0).await
    }

    async fn client_with(&self, heartbeat: u32) -> Client {
        let mut client = Client { socket: TcpStream::connect(self.address).await.expect("connect"), input: BytesMut::new() };
        client.ask(1, Request::PeerProperties { properties: vec![] }).await;
        client.ask(2, Request::SaslHandshake).await;
        client.ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0guest" }).await;
        client.say(&FromClient::Tune { frame_max: 0, heartbeat }).await;
        client.ask(4, Request::Open { vhost: "/" }).await;
        while !matches!(FromServer::decode(&client.hear().await), Ok(FromServer::Response { key: Key::Open, code: 1, .. })) {}
        client
    }

    /// A client with subscription 1 and so much credit.
    async fn reader(&self, credit: u16, properties: Vec<(&str, &str)>) -> Client {
        let mut client = self.client().await;
        let offset = crate::wire::stream::OffsetSpec::First;
        client.ask(5, Request::Subscribe { subscription: 1, stream: "s", offset, credit, properties }).await;
        client.hears_code(Key::Subscribe, Code::Ok).await;
        client
    }

    fn chunks(&self, count: u64) {
        *self.shared.chunks.lock() += count;
        self.shared.came.notify_waiters();
    }

    fn move_catalog(&self) {
        self.shared.catalog.lock().as_ref().expect("a client came").send_replace(());
    }
}

struct Client {
    socket: TcpStream,
    input: BytesMut,
}

impl Client {
    async fn say(&mut self, said: &FromClient<'_>) {
        let mut bytes = BytesMut::new();
        said.encode(&mut bytes);
        self.socket.write_all(&bytes).await.expect("the broker reads");
    }

    async fn ask(&mut self, correlation: u32, request: Request<'_>) {
        self.say(&FromClient::Request { correlation, request }).await;
    }

    async fn publish(&mut self, id: u64) {
        let bytes = [&id.to_be_bytes()[..], b"\0\0\0\x02hi"].concat();
        self.say(&FromClient::Publish { publisher: 1, messages: Messages::new(1, &bytes) }).await;
    }

    /// The next frame that is no heartbeat; `None` at the end.
    async fn try_hear(&mut self) -> Option<Bytes> {
        loop {
            match frame::next(&mut self.input, u32::MAX).expect("no limit") {
                Some(content) if FromServer::decode(&content) == Ok(FromServer::Heartbeat) => {}
                Some(content) => return Some(content),
                None => {
                    let count = timeout(PATIENCE, self.socket.read_buf(&mut self.input)).await.expect("in time").unwrap_or(0);
                    if count == 0 {
                        return None;
                    }
                }
            }
        }
    }

    async fn hear(&mut self) -> Bytes {
        self.try_hear().await.expect("not the end")
    }

    async fn hears_code(&mut self, key: Key, code: Code) {
        let heard = self.hear().await;
        let read = FromServer::decode(&heard).expect("well formed");
        assert!(matches!(read, FromServer::Response { key: k, code: c, .. } if k == key && c == code as u16), "{read:?}");
    }

    async fn hears_chunk(&mut self, expected: u64) {
        let heard = self.hear().await;
        match FromServer::decode(&heard).expect("well formed") {
            FromServer::Deliver { subscription: 1, head, data, .. } => assert_eq!((head.first, data.len()), (expected, CHUNK_BYTES)),
            other => panic!("{other:?}"),
        }
    }
}

async fn eventually(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("in time");
}

#[tokio::test]
async fn a_frame_too_large_before_the_vhost_is_the_end() {
    let server = Server::start().await;
    let mut client = Client { socket: TcpStream::connect(server.address).await.expect("connect"), input: BytesMut::new() };
    client.socket.write_all(&8193_u32.to_be_bytes()).await.expect("written");
    assert!(client.try_hear().await.is_none());
}

#[tokio::test]
async fn publishes_that_must_wait_stop_the_reading_and_go_on_in_order() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.ask(5, Request::DeclarePublisher { publisher: 1, reference: "", stream: "s" }).await;
    client.hears_code(Key::DeclarePublisher, Code::Ok).await;
    *server.shared.holds.lock() = true;
    for id in 1..=3 {
        client.publish(id).await;
    }
    client.ask(6, Request::Unsubscribe { subscription: 9 }).await;
    let silence = timeout(Duration::from_millis(100), client.try_hear()).await;
    assert!(silence.is_err(), "what is behind the publishes waits");
    *server.shared.holds.lock() = false;
    server.shared.released.notify_waiters();
    client.hears_code(Key::Unsubscribe, Code::SubscriptionIdDoesNotExist).await;
    let appended = |step: &Step| match step {
        Step::Append(append) => append.published.first().map(|(entry, _)| entry.id),
        _ => None,
    };
    assert_eq!(server.shared.steps.lock().iter().filter_map(appended).collect::<Vec<_>>(), [1, 2, 3]);
    server.shared.events.lock().push(Event::Confirmed { channel: 1, tickets: vec![(1, 3)] });
    server.shared.changed.notify_one();
    let heard = client.hear().await;
    assert_eq!(FromServer::decode(&heard), Ok(FromServer::PublishConfirm { publisher: 1, ids: vec![1, 2, 3] }));
}

#[tokio::test]
async fn chunks_come_with_credit_at_once_and_when_they_are_written() {
    let server = Server::start().await;
    server.chunks(3);
    let mut client = server.reader(2, vec![]).await;
    client.hears_chunk(0).await;
    client.hears_chunk(1).await;
    client.say(&FromClient::Credit { subscription: 1, credit: 3 }).await;
    client.hears_chunk(2).await;
    server.chunks(1);
    client.hears_chunk(3).await;
    assert_eq!(*server.shared.read.lock(), 4);
}

#[tokio::test]
async fn what_clients_do_is_counted_and_who_leaves_takes_its_publishers_and_subscriptions() {
    let server = Server::start().await;
    server.chunks(2);
    let mut client = server.reader(5, vec![]).await;
    client.hears_chunk(0).await;
    client.hears_chunk(1).await;
    client.ask(6, Request::DeclarePublisher { publisher: 1, reference: "", stream: "s" }).await;
    client.hears_code(Key::DeclarePublisher, Code::Ok).await;
    client.publish(1).await;
    client.publish(2).await;
    eventually(|| server.figures.counts().published == 2).await;
    server
        .shared
        .events
        .lock()
        .extend([Event::Confirmed { channel: 1, tickets: vec![(1, 1)] }, Event::Nacked { channel: 1, tickets: vec![(2, 2)] }]);
    server.shared.changed.notify_one();
    client.hear().await;
    client.hear().await;
    let mut counts = server.figures.counts();
    assert!(counts.published_bytes > 0);
    counts.published_bytes = 0;
    let expected = Counts {
        publishers: 1,
        subscriptions: 1,
        published: 2,
        published_bytes: 0,
        confirmed: 1,
        errored: 1,
        chunks: 2,
        delivered: 2,
        delivered_bytes: 2 * CHUNK_BYTES as u64,
    };
    assert_eq!(counts, expected);
    drop(client);
    eventually(|| server.figures.counts().subscriptions == 0).await;
    assert_eq!((server.figures.counts().publishers, server.figures.counts().published), (0, 2));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_ahead_for() {
    let server = Server::start().await;
    server.chunks(300);
    let mut client = server.reader(300, vec![]).await;
    let mut before = 0;
    eventually(|| *server.shared.read.lock() > 10).await;
    // Until the socket is full.
    while before != *server.shared.read.lock() {
        before = *server.shared.read.lock();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(before < 300, "all of it was read into memory");
    for n in 0..300 {
        client.hears_chunk(n).await;
    }
}

/// A file whose bytes are not those that the reader has in memory.
fn file() -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, &[&[0; 7][..], &[2; CHUNK_BYTES]].concat()).expect("written");
    file
}

async fn hears_file_chunk(client: &mut Client) {
    let heard = client.hear().await;
    let Ok(FromServer::Deliver { data, .. }) = FromServer::decode(&heard) else { panic!("a chunk") };
    assert!(data.len() == CHUNK_BYTES && data.iter().all(|byte| *byte == 2), "not the bytes of the file");
}

#[tokio::test]
async fn chunks_that_lie_in_files_are_sent_from_there() {
    let server = Server::start().await;
    *server.shared.file.lock() = Some(Arc::new(file()));
    server.chunks(100);
    let mut client = server.reader(100, vec![]).await;
    for _ in 0..100 {
        hears_file_chunk(&mut client).await;
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_no_file() {
    let server = Server::start().await;
    let lent: Arc<Lent> = Arc::new(file());
    *server.shared.file.lock() = Some(lent.clone());
    server.chunks(300);
    let mut client = server.client_with(1).await;
    let offset = crate::wire::stream::OffsetSpec::First;
    client.ask(5, Request::Subscribe { subscription: 1, stream: "s", offset, credit: 300, properties: vec![] }).await;
    eventually(|| Arc::strong_count(&lent) > 3).await;
    // The test's own two.
    eventually(|| Arc::strong_count(&lent) == 2).await;
    client.hears_code(Key::Subscribe, Code::Ok).await;
    for _ in 0..300 {
        hears_file_chunk(&mut client).await;
        client.say(&FromClient::Heartbeat).await;
    }
}

#[tokio::test]
async fn an_unsubscribed_reader_that_waits_is_gone() {
    let server = Server::start().await;
    let mut client = server.reader(5, vec![]).await;
    client.ask(6, Request::Unsubscribe { subscription: 1 }).await;
    client.hears_code(Key::Unsubscribe, Code::Ok).await;
    eventually(|| Arc::strong_count(&server.shared) == 3).await;
    let offset = crate::wire::stream::OffsetSpec::First;
    client.ask(7, Request::Subscribe { subscription: 1, stream: "s", offset, credit: 1, properties: vec![] }).await;
    client.hears_code(Key::Subscribe, Code::Ok).await;
    server.chunks(1);
    client.hears_chunk(0).await;
}

#[tokio::test]
async fn a_stream_that_is_gone_is_told() {
    let server = Server::start().await;
    let mut client = server.reader(1, vec![]).await;
    *server.shared.is_gone.lock() = true;
    server.move_catalog();
    let heard = client.hear().await;
    assert_eq!(FromServer::decode(&heard), Ok(FromServer::MetadataUpdate { code: 6, stream: "s" }));
}

#[tokio::test]
async fn turns_of_a_group_are_told_and_given_up() {
    let server = Server::start().await;
    server.chunks(10);
    let mut client = server.reader(1, vec![("single-active-consumer", "true"), ("name", "g")]).await;
    for (turn, active) in [(Turn::Active, true), (Turn::Yielding, false)] {
        *server.shared.turn.lock() = Some(turn);
        server.move_catalog();
        let heard = client.hear().await;
        let Ok(FromServer::ConsumerUpdate { correlation, subscription: 1, active: told }) = FromServer::decode(&heard) else {
            panic!("a ConsumerUpdate")
        };
        assert_eq!(told, active);
        assert_eq!(*server.shared.yielded.lock(), 0);
        client.say(&FromClient::ConsumerUpdated { correlation, code: 1, offset: None }).await;
        if active {
            client.hears_chunk(0).await;
        }
    }
    eventually(|| *server.shared.yielded.lock() == 1).await;
}

#[tokio::test]
async fn the_broker_beats_when_it_has_nothing_to_say_and_cuts_who_is_silent() {
    let server = Server::start().await;
    let mut client = server.client_with(1).await;
    let mut first = [0; 8];
    timeout(PATIENCE, client.socket.read_exact(&mut first)).await.expect("in time").expect("a heartbeat");
    assert_eq!(&first, b"\0\0\0\x04\0\x17\0\x01");
    assert!(client.try_hear().await.is_none(), "silent for two heartbeats");
}

#[tokio::test]
async fn a_question_without_an_answer_holds_up_no_heartbeat_and_no_shutdown() {
    let server = Server::start().await;
    let mut client = server.client_with(1).await;
    client.ask(5, Request::Create { stream: "s", arguments: vec![] }).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    server.stop.send(true).expect("it runs");
    let heard = client.hear().await;
    assert!(matches!(FromServer::decode(&heard), Ok(FromServer::Close { .. })), "{heard:?}");
}
