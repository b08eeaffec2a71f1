//! Two processes' worth of peers over loopback: proofs, streams, paths, what a stranger gets.

use super::*;
use crate::model::link::{Deliveries, Delivery, ToEdge, ToLeader};
use crate::model::ports::LeaderEnd;
use crate::model::{ConsumerId, Generation, Incarnation, LeaderId, QueueId, Seq, ShardId};
use crate::peer::paths::{self, Joiner};
use crate::tls::Files;
use crate::tls::authority::{Authority, Subject};
use bytes::Bytes;
use futures::stream::BoxStream;
use std::time::Instant;
use tonic::Response;
use warren_proto::admin::admin_client::AdminClient;
use warren_proto::admin::admin_server::{Admin, AdminServer};
use warren_proto::admin::{
    ArrangeRequest, AuthenticateReply, AuthenticateRequest, ChangeReply, ChangeRequest, CloseReply, CloseRequest, CountReply, CountRequest,
    ErrandReply, ErrandRequest, ListReply, ListRequest, PingReply, PingRequest, QueueReply, QueueRequest, SaltReply, SaltRequest,
    StateHashesReply, StateHashesRequest, StatusReply, StatusRequest,
};

/// Answers a question with its own head, echoes streams, joins paths.
struct Echo {
    card: Card,
    paths: Joiner,
}

impl Handler for Echo {
    fn card(&self) -> Card {
        self.card
    }

    fn ask(&self, from: Card, frame: Frame) -> BoxFuture<'static, Result<Frame, PeerError>> {
        Box::pin(async move {
            match frame.head.as_ref() {
                b"refuse" => Err(PeerError::Refused("no".into())),
                _ => Ok(Frame { head: frame.head, body: vec![Bytes::from(from.node.0.to_string())] }),
            }
        })
    }

    fn stream(&self, from: Card, kind: StreamKind, mut rx: BoxStream<'static, Result<Frame, PeerError>>, tx: mpsc::Sender<Frame>) {
        if matches!(kind, StreamKind::Edge | StreamKind::Deliver) {
            return self.paths.joined(from.node, kind, rx, tx);
        }
        tokio::spawn(async move {
            while let Some(Ok(frame)) = rx.next().await {
                if tx.send(frame).await.is_err() {
                    break;
                }
            }
        });
    }
}

struct Lists;

#[tonic::async_trait]
impl Admin for Lists {
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        Ok(Response::new(ListReply { columns: vec!["name".into()], rows: Vec::new() }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply::default()))
    }

    async fn state_hashes(&self, _: Request<StateHashesRequest>) -> Result<Response<StateHashesReply>, Status> {
        Ok(Response::new(StateHashesReply::default()))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        Ok(Response::new(PingReply::default()))
    }

    async fn change(&self, _: Request<ChangeRequest>) -> Result<Response<ChangeReply>, Status> {
        Ok(Response::new(ChangeReply::default()))
    }

    async fn arrange(&self, _: Request<ArrangeRequest>) -> Result<Response<ChangeReply>, Status> {
        Ok(Response::new(ChangeReply::default()))
    }

    async fn errand(&self, _: Request<ErrandRequest>) -> Result<Response<ErrandReply>, Status> {
        Ok(Response::new(ErrandReply::default()))
    }

    async fn authenticate(&self, _: Request<AuthenticateRequest>) -> Result<Response<AuthenticateReply>, Status> {
        Ok(Response::new(AuthenticateReply::default()))
    }

    async fn salt(&self, _: Request<SaltRequest>) -> Result<Response<SaltReply>, Status> {
        Ok(Response::new(SaltReply::default()))
    }

    async fn purge_queue(&self, _: Request<QueueRequest>) -> Result<Response<QueueReply>, Status> {
        Ok(Response::new(QueueReply::default()))
    }

    async fn delete_queue(&self, _: Request<QueueRequest>) -> Result<Response<QueueReply>, Status> {
        Ok(Response::new(QueueReply::default()))
    }

    async fn close_connections(&self, _: Request<CloseRequest>) -> Result<Response<CloseReply>, Status> {
        Ok(Response::new(CloseReply::default()))
    }

    async fn count(&self, _: Request<CountRequest>) -> Result<Response<CountReply>, Status> {
        Ok(Response::new(CountReply::default()))
    }
}

fn node(id: u16) -> Card {
    Card { node: NodeId(id), generation: Generation(1), incarnation: Incarnation(u64::from(id)), cluster: Some(7) }
}

/// A process: its own runtime, so that dropping it resets its connections.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
    network: Arc<dyn Transport>,
    ends_rx: mpsc::Receiver<(ShardId, LeaderEnd)>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A port that stays the test's own while nobody listens on it: on a loopback address that belongs to this process, where no other
/// process listens and no outgoing connection takes its port from, and never handed out twice.
pub(crate) fn own_port() -> std::net::TcpListener {
    use std::sync::atomic::AtomicU16;
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    // 127.64.0.0/10: a process id has 22 bits.
    let address = std::net::Ipv4Addr::new(127, 64 | a & 0x3f, b, c);
    std::net::TcpListener::bind((address, NEXT.fetch_add(1, Ordering::Relaxed))).expect("nobody else's port")
}

fn bind() -> (std::net::TcpListener, String) {
    let listener = own_port();
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

fn process(card: Card, listener: std::net::TcpListener, peers: Vec<(NodeId, String)>, secret: &str) -> Process {
    process_with(card, listener, peers, (secret, None))
}

fn process_with(
    card: Card,
    listener: std::net::TcpListener,
    peers: Vec<(NodeId, String)>,
    (secret, tls): (&str, Option<Mutual>),
) -> Process {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (ends_tx, ends_rx) = mpsc::channel(4);
    let accept: paths::Acceptor = Arc::new(move |shard, end| drop(ends_tx.try_send((shard, end))));
    let handler = Arc::new(Echo { card, paths: Joiner::new(accept) });
    let config = PeerConfig {
        node: card.node,
        listener,
        peers,
        secret: Secret::new(secret.as_bytes()),
        tls,
        edge_runtime: runtime.handle().clone(),
        routes: tonic::service::Routes::new(AdminServer::new(Lists)),
    };
    let network = {
        let _inside = runtime.enter();
        TonicNetwork::start(config, handler).expect("starts")
    };
    Process { runtime: Some(runtime), network, ends_rx }
}

fn pair() -> (Process, Process, String) {
    let ((l1, a1), (l2, a2)) = (bind(), bind());
    let peers = vec![(NodeId(1), a1), (NodeId(2), a2.clone())];
    (process(node(1), l1, peers.clone(), "s"), process(node(2), l2, peers, "s"), a2)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn connected(process: &Process, to: NodeId) {
    until("connected", || process.network.link(to).up == 2).await;
}

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_and_streams_pass_between_two_nodes() {
    let (one, _two, _) = pair();
    connected(&one, NodeId(2)).await;
    let answer = one.network.ask(NodeId(2), head_only(Bytes::from_static(b"hi")), PATIENCE).await.expect("an answer");
    assert_eq!((answer.head.as_ref(), answer.body[0].as_ref()), (&b"hi"[..], &b"1"[..]));
    let refused = one.network.ask(NodeId(2), head_only(Bytes::from_static(b"refuse")), PATIENCE).await;
    assert_eq!(refused, Err(PeerError::Refused("no".into())));
    for kind in [StreamKind::Append, StreamKind::Heartbeat] {
        let mut stream = one.network.open(NodeId(2), kind).await.expect("opens");
        let big = Frame { head: Bytes::from_static(b"h"), body: vec![Bytes::from(vec![3; 20 << 20]), Bytes::new()] };
        stream.tx.send(big.clone()).await.expect("open");
        assert_eq!(stream.rx.next().await, Some(Ok(big)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_carries_batches_verdicts_and_deliveries_and_ends_with_either_end() {
    let (one, mut two, _) = pair();
    connected(&one, NodeId(2)).await;
    let mut edge = loop {
        match paths::connect(one.network.as_ref(), NodeId(1), ShardId(3), NodeId(2)).await {
            Ok(edge) => break edge,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let (shard, mut leader) = two.ends_rx.recv().await.expect("a path");
    assert_eq!((shard, leader.node), (ShardId(3), NodeId(1)));
    let hello = ToLeader::Hello { node: NodeId(1), incarnation: Incarnation(4) };
    edge.up_tx.send(hello.clone()).await.expect("open");
    assert_eq!(leader.up_rx.recv().await, Some(hello));
    leader.down_tx.send(ToEdge::NotLeader).await.expect("open");
    assert_eq!(edge.down_rx.recv().await, Some(ToEdge::NotLeader));
    let message =
        Delivery { queue: QueueId(1), seq: Seq(1), redelivered: false, failures: 0, failed_ms: 0, message: Bytes::from_static(b"m") };
    let deliveries = Deliveries { leader: LeaderId::default(), consumer: ConsumerId(1), messages: vec![message] };
    leader.deliveries_tx.send(deliveries.clone()).await.expect("open");
    assert_eq!(edge.deliveries_rx.recv().await, Some(deliveries));
    drop(leader);
    assert_eq!(edge.down_rx.recv().await, None);
    assert_eq!(edge.deliveries_rx.recv().await, None);
    let edge = paths::connect(one.network.as_ref(), NodeId(1), ShardId(4), NodeId(2)).await.expect("again");
    let (_, mut leader) = two.ends_rx.recv().await.expect("a path");
    drop(edge);
    assert_eq!(leader.up_rx.recv().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_process_is_known_at_once_and_found_again() {
    let (one, two, address) = pair();
    connected(&one, NodeId(2)).await;
    let died = Instant::now();
    drop(two);
    until("gone", || one.network.link(NodeId(2)).process_gone()).await;
    assert!(died.elapsed() < KEEP_ALIVE + KEEP_ALIVE_TIMEOUT, "by the reset, not by silence: {:?}", died.elapsed());
    let listener = std::net::TcpListener::bind(&address).expect("the port is free again");
    let _two = process(node(2), listener, Vec::new(), "s");
    connected(&one, NodeId(2)).await;
    assert!(!one.network.link(NodeId(2)).refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_secret_never_connects() {
    let ((l1, a1), (l2, a2)) = (bind(), bind());
    let peers = vec![(NodeId(1), a1), (NodeId(2), a2)];
    let one = process(node(1), l1, peers.clone(), "right");
    let two = process(node(2), l2, peers, "wrong");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((one.network.link(NodeId(2)).up, two.network.link(NodeId(1)).up), (0, 0));
    assert!(!one.network.link(NodeId(2)).process_gone(), "a refusing node is not a dead one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_nothing_and_an_operator_only_its_own_services() {
    let (_one, _two, address) = pair();
    // A stranger that speaks the preface and HTTP/2 but proves nothing.
    let (gone_tx, _gone_rx) = oneshot::channel();
    let socket = socket::dial(&address, Class::Beat, None).await.expect("tcp");
    let one = OneConnection(Mutex::new(Some(Dialed::new(socket, gone_tx))));
    let channel = Endpoint::from_static("http://node").connect_with_connector(one).await.expect("http/2");
    let status = PeerClient::new(channel.clone()).ask(Frame::default()).await.expect_err("no answer");
    assert_eq!((status.code(), status.message()), (tonic::Code::Unauthenticated, ""));
    let status = AdminClient::new(channel.clone()).list(ListRequest::default()).await.expect_err("no answer");
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    let garbage = PeerClient::new(channel).hello(head_only(Bytes::from_static(b"\x01garbage"))).await.expect_err("no answer");
    assert_eq!((garbage.code(), garbage.message()), (tonic::Code::Unauthenticated, ""));
    // Without the preface the connection is closed without a byte.
    let mut socket = tokio::net::TcpStream::connect(&address).await.expect("tcp");
    tokio::io::AsyncWriteExt::write_all(&mut socket, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answer).await;
    assert!(answer.is_empty());
    // An operator with the secret lists, but is no node.
    assert!(dial_operator(&address, &Secret::new(b"wrong"), None).await.is_err());
    let channel = dial_operator(&address, &Secret::new(b"s"), None).await.expect("proved");
    assert_eq!(AdminClient::new(channel.clone()).list(ListRequest::default()).await.expect("a list").into_inner().columns, ["name"]);
    let status = PeerClient::new(channel).ask(Frame::default()).await.expect_err("no node");
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}

async fn stranger(address: &str) -> PeerClient<Channel> {
    let (gone_tx, _gone_rx) = oneshot::channel();
    let socket = socket::dial(address, Class::Beat, None).await.expect("tcp");
    let one = OneConnection(Mutex::new(Some(Dialed::new(socket, gone_tx))));
    PeerClient::new(Endpoint::from_static("http://node").connect_with_connector(one).await.expect("http/2"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_sends_much_is_cut_off() {
    let (_one, _two, address) = pair();
    let mut client = stranger(&address).await;
    let big = head_only(Bytes::from(vec![0; socket::STRANGER_BYTES]));
    let status = client.hello(big).await.expect_err("no answer");
    assert_ne!(status.code(), tonic::Code::Unauthenticated, "it was read and judged");
    assert!(client.hello(head_only(Bytes::from_static(b"x"))).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_prove_nothing_are_closed_and_make_room_again() {
    let (_one, two, address) = pair();
    connected(&two, NodeId(1)).await;
    let mut sockets = Vec::new();
    for _ in 0..super::server::STRANGERS * 2 {
        // When there are too many, the oldest of them are closed at once.
        sockets.extend(socket::dial(&address, Class::Edge, None).await);
    }
    dial_operator(&address, &Secret::new(b"s"), None).await.expect("they keep nobody out who knows the secret");
    for mut socket in sockets {
        // HTTP/2's settings, perhaps, then the end; without an end this waits for ever.
        let mut answer = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answer).await;
    }
    dial_operator(&address, &Secret::new(b"s"), None).await.expect("room for those who know the secret");
}

/// Mutual TLS with certificates of this authority for the addresses of `own_port`.
fn mutual(dir: &tempfile::TempDir, name: &str, authority: &Authority, host: &str) -> Mutual {
    let files = authority.issue(&Subject::at(name, host)).write(dir.path(), name);
    Mutual::load(Files { certificate: files.certificate, key: files.key, ca: Some(authority.write(dir.path(), name)) }).expect("good files")
}

fn host(address: &str) -> &str {
    address.split(':').next().expect("a host")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_of_one_authority_talk_and_so_does_an_operator() {
    let (dir, ours) = (tempfile::tempdir().expect("a directory"), Authority::new("ours"));
    let ((l1, a1), (l2, a2)) = (bind(), bind());
    let tls = |name| Some(mutual(&dir, name, &ours, host(&a1)));
    let peers = vec![(NodeId(1), a1.clone()), (NodeId(2), a2.clone())];
    let one = process_with(node(1), l1, peers.clone(), ("s", tls("one")));
    let _two = process_with(node(2), l2, peers, ("s", tls("two")));
    connected(&one, NodeId(2)).await;
    let mut stream = one.network.open(NodeId(2), StreamKind::Append).await.expect("opens");
    let big = Frame { head: Bytes::from_static(b"h"), body: vec![Bytes::from(vec![3; 20 << 20]), Bytes::new()] };
    stream.tx.send(big.clone()).await.expect("open");
    assert_eq!(stream.rx.next().await, Some(Ok(big)));
    let operator = tls("operator");
    let channel = dial_operator(&a2, &Secret::new(b"s"), operator.as_ref()).await.expect("proved");
    assert_eq!(AdminClient::new(channel).list(ListRequest::default()).await.expect("a list").into_inner().columns, ["name"]);
    // The certificate alone is not enough.
    let wrong = dial_operator(&a2, &Secret::new(b"wrong"), operator.as_ref()).await.expect_err("no secret");
    assert!(matches!(&wrong, DialError::Status(status) if status.code() == tonic::Code::Unauthenticated), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_the_secret_but_no_certificate_of_the_authority_is_refused() {
    let (dir, ours, theirs) = (tempfile::tempdir().expect("a directory"), Authority::new("ours"), Authority::new("theirs"));
    let (listener, address) = bind();
    let own = mutual(&dir, "one", &ours, host(&address));
    let _one = process_with(node(1), listener, Vec::new(), ("s", Some(own.clone())));
    let secret = Secret::new(b"s");
    let dial = async |tls: &Mutual| dial_operator(&address, &secret, Some(tls)).await;
    // It does not believe us.
    let stranger = mutual(&dir, "stranger", &theirs, host(&address));
    let error = dial(&stranger).await.expect_err("another authority").to_string();
    assert!(error.contains("TLS") && error.contains("UnknownIssuer"), "{error}");
    // It believes us, and we do not believe it.
    let files = theirs.issue(&Subject::at("liar", host(&address))).write(dir.path(), "liar");
    let files = Files { certificate: files.certificate, key: files.key, ca: Some(ours.write(dir.path(), "liar")) };
    let error = dial(&Mutual::load(files).expect("good files")).await.expect_err("another authority").to_string();
    assert!(error.contains("UnknownCA"), "{error}");
    // A certificate of the authority for another host is no good for a node.
    let (listener, elsewhere) = bind();
    let _two = process_with(node(2), listener, Vec::new(), ("s", Some(mutual(&dir, "two", &ours, "10.1.2.3"))));
    let error = dial_operator(&elsewhere, &secret, Some(&own)).await.expect_err("another host").to_string();
    assert!(error.contains("TLS") && error.contains("not valid for name"), "{error}");
    // One that is out of date is no good for anybody.
    let old = ours.issue(&Subject { is_expired: true, ..Subject::at("old", host(&address)) }).write(dir.path(), "old");
    let files = Files { certificate: old.certificate, key: old.key, ca: Some(ours.write(dir.path(), "old")) };
    let error = dial(&Mutual::load(files).expect("good files")).await.expect_err("expired").to_string();
    assert!(error.to_lowercase().contains("expired"), "{error}");
    dial(&own).await.expect("our own still get in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_disagree_about_tls_refuse_each_other_in_words() {
    let (dir, ours) = (tempfile::tempdir().expect("a directory"), Authority::new("ours"));
    let ((l1, secure), (l2, plain)) = (bind(), bind());
    let tls = mutual(&dir, "one", &ours, host(&secure));
    let peers = vec![(NodeId(1), secure.clone()), (NodeId(2), plain.clone())];
    let one = process_with(node(1), l1, peers.clone(), ("s", Some(tls.clone())));
    let two = process_with(node(2), l2, peers, ("s", None));
    let secret = Secret::new(b"s");
    let error = dial_operator(&secure, &secret, None).await.expect_err("TLS is demanded").to_string();
    assert!(error.contains("demands TLS") && error.contains("--peer-tls-cert"), "{error}");
    let error = dial_operator(&plain, &secret, Some(&tls)).await.expect_err("no TLS there").to_string();
    assert!(error.contains("has no TLS") && error.contains("--peer-tls-cert"), "{error}");
    assert_eq!((one.network.link(NodeId(2)).up, two.network.link(NodeId(1)).up), (0, 0));
    assert!(!one.network.link(NodeId(2)).process_gone());
}
