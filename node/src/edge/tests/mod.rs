//! The edge against leaders driven by hand: a real catalog, in-process paths whose leader's end the test holds.

mod access;
mod consume;
mod contact;
mod gets;
mod publish;
mod replies;
mod requests;
mod rocketmq;
mod stale;
mod streams;
mod taking;
mod transactions;

use super::*;
use crate::machine::catalog::hash_password;
use crate::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Name, QueueSpec, Table, Target};
use crate::model::entry::{EnqueueOp, EntryBytes, Op, OpsReader, StoredMessage};
use crate::model::link::{Batch, Consumer, Deliveries, Delivery, RefusedEnqueue, ToEdge, ToLeader};
use crate::model::ports::{EdgeEnd, LeaderEnd, Lease, path};
use crate::model::step::{Held, Outcome, Publish, Reply, Request, Step};
use crate::model::{BatchSeq, ConsumerId, LeaderId, LogId, Seq, SessionId, VoterId};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::io;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

const ME: NodeId = NodeId(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// The rest of the node: applies commands at once, hands leader's ends to the test.
struct World {
    catalog: Arc<RwLock<Catalog>>,
    lease: AtomicBool,
    refuse_paths: AtomicBool,
    refuse_commands: AtomicBool,
    leaders: Mutex<HashMap<ShardId, watch::Sender<Option<LeaderId>>>>,
    paths_tx: mpsc::Sender<(ShardId, NodeId, LeaderEnd)>,
    /// Of the leaders to which paths are opened from now on.
    leader_lease: Mutex<Option<Lease>>,
}

fn leader(term: u64, node: u16) -> LeaderId {
    LeaderId { term, voter: VoterId { node: NodeId(node), generation: crate::model::Generation(1) }.pack() }
}

impl World {
    fn apply(&self, command: &CatalogCommand) -> (u64, CatalogReply) {
        let mut catalog = self.catalog.write();
        let index = catalog.index() + 1;
        (index, catalog.apply(LogId { leader: LeaderId::default(), index }, command))
    }

    fn set_leader(&self, shard: ShardId, leader: Option<LeaderId>) {
        self.leaders.lock().entry(shard).or_insert_with(|| watch::channel(None).0).send_replace(leader);
    }
}

impl CatalogPort for World {
    fn submit(&self, command: CatalogCommand) -> BoxFuture<'static, Result<(u64, CatalogReply), Refusal>> {
        if self.refuse_commands.load(Ordering::SeqCst) {
            return Box::pin(async { Err(Refusal::Unavailable("no majority".into())) });
        }
        let reply = self.apply(&command);
        Box::pin(async move { Ok(reply) })
    }

    fn routing_lease(&self) -> bool {
        self.lease.load(Ordering::SeqCst)
    }
}

impl LeaderFinder for World {
    fn leadership(&self, shard: ShardId) -> watch::Receiver<Option<LeaderId>> {
        self.leaders.lock().entry(shard).or_insert_with(|| watch::channel(Some(leader(1, 2))).0).subscribe()
    }
}

struct TestPaths(Arc<World>);

impl Paths for TestPaths {
    fn connect(&self, shard: ShardId, node: NodeId) -> BoxFuture<'static, io::Result<EdgeEnd>> {
        let world = self.0.clone();
        Box::pin(async move {
            if world.refuse_paths.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (edge, end) = path(ME);
            world.paths_tx.send((shard, node, end)).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
            let lease = world.leader_lease.lock().clone();
            Ok(EdgeEnd { lease, ..edge })
        })
    }
}

/// An edge with its surroundings.
struct Scene {
    world: Arc<World>,
    edge: Arc<Edge>,
    paths_rx: mpsc::Receiver<(ShardId, NodeId, LeaderEnd)>,
}

fn name(text: &str) -> Name {
    Name { vhost: "/".into(), name: text.into() }
}

fn default_config() -> EdgeConfig {
    // A slow machine is no silent leader.
    EdgeConfig { silence: Duration::from_secs(3600), ..EdgeConfig::new(ME, Incarnation(77)) }
}

impl Scene {
    fn new(config: EdgeConfig) -> Scene {
        let (paths_tx, paths_rx) = mpsc::channel(64);
        let world = Arc::new(World {
            catalog: Arc::default(),
            lease: AtomicBool::new(true),
            refuse_paths: AtomicBool::new(false),
            refuse_commands: AtomicBool::new(false),
            leaders: Mutex::default(),
            paths_tx,
            leader_lease: Mutex::default(),
        });
        world.apply(&CatalogCommand::Bootstrap {
            vhost: "/".into(),
            user: "guest".into(),
            password_hash: hash_password(b"guest", [1, 2, 3, 4]),
            shards: 3,
        });
        world.apply(&CatalogCommand::NodeUp { node: ME, incarnation: Incarnation(77) });
        let paths = Arc::new(TestPaths(world.clone()));
        let edge = Edge::new(config, world.catalog.clone(), world.clone(), world.clone(), paths);
        Scene { world, edge, paths_rx }
    }

    /// With a queue in this shard, and a client.
    fn with_queue(queue: &str, shard: u16) -> (Scene, Client) {
        let scene = Scene::new(default_config());
        scene.queue(queue, shard);
        let client = scene.client();
        (scene, client)
    }

    fn queue(&self, queue: &str, shard: u16) -> QueueId {
        let spec = QueueSpec { name: name(queue), durable: true, auto_delete: false, exclusive_owner: None, arguments: Table::new() };
        self.declare(spec, ShardId(shard))
    }

    fn declare(&self, spec: QueueSpec, shard: ShardId) -> QueueId {
        let command = CatalogCommand::DeclareQueue { spec, node: ME, incarnation: Incarnation(77), shard };
        match self.world.apply(&command).1 {
            CatalogReply::Queue { record, .. } => record.id,
            other => panic!("{other:?}"),
        }
    }

    fn fanout(&self, exchange: &str, queues: &[&str]) {
        let spec = ExchangeSpec {
            name: name(exchange),
            kind: ExchangeKind::Fanout,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: Table::new(),
        };
        self.world.apply(&CatalogCommand::DeclareExchange(spec));
        for queue in queues {
            self.world.apply(&CatalogCommand::Bind(binding(exchange, queue)));
        }
    }

    fn client(&self) -> Client {
        let mut connection = self.edge.connect(ConnectionInfo { peer: "127.0.0.1:4000".parse().expect("an address") });
        connection.submit(Step::Authenticate { user: "guest".into(), password: b"guest".to_vec() }).expect("taken");
        connection.submit(Step::Open { vhost: "/".into() }).expect("taken");
        let mut client = Client { connection, events: Vec::new() };
        assert_eq!(client.now(), [Event::Authenticated, Event::Opened]);
        client
    }

    /// The leader's end of the next path, before its welcome.
    async fn path(&mut self) -> Leader {
        let (shard, node, end) = timeout(PATIENCE, self.paths_rx.recv()).await.expect("a path in time").expect("a path");
        let mut leader = Leader { shard, node, end, id: LeaderId::default(), session: SessionId(0) };
        assert_eq!(leader.next().await, ToLeader::Hello { node: ME, incarnation: Incarnation(77) });
        leader
    }

    /// The same after its welcome; the attach comes back too.
    async fn leader(&mut self, id: LeaderId, session: u64, last: u64) -> (Leader, ToLeader) {
        let mut leader = self.path().await;
        let attach = leader.welcome(id, session, last).await;
        (leader, attach)
    }
}

fn binding(exchange: &str, queue: &str) -> BindingSpec {
    BindingSpec {
        vhost: "/".into(),
        source: exchange.into(),
        target: Target::Queue,
        destination: queue.into(),
        key: "".into(),
        arguments: Table::new(),
    }
}

struct Client {
    connection: Connection,
    events: Vec<Event>,
}

fn publish(exchange: &str, key: &str, ticket: u64, body: &'static [u8]) -> Publish {
    Publish {
        channel: 1,
        ticket: (ticket > 0).then_some(ticket),
        mandatory: false,
        exchange: Bytes::copy_from_slice(exchange.as_bytes()),
        routing_key: Bytes::copy_from_slice(key.as_bytes()),
        properties: Bytes::from_static(&[0, 0]),
        body: Bytes::from_static(body),
    }
}

impl Client {
    fn publish(&mut self, exchange: &str, key: &str, ticket: u64) {
        self.connection.submit(Step::Publish(publish(exchange, key, ticket, b"body"))).expect("taken");
    }

    fn submit(&mut self, step: Step) {
        self.connection.submit(step).expect("taken");
    }

    fn ask(&mut self, request: Request) {
        self.submit(Step::Request { channel: 1, request });
    }

    /// What is there now.
    fn now(&mut self) -> Vec<Event> {
        let mut out = std::mem::take(&mut self.events);
        self.connection.take_events(&mut out, usize::MAX);
        out
    }

    /// The next event.
    async fn next(&mut self) -> Event {
        if self.events.is_empty() {
            timeout(PATIENCE, self.connection.changed()).await.expect("an event in time");
            self.connection.take_events(&mut self.events, usize::MAX);
        }
        self.events.remove(0)
    }

    async fn reply(&mut self) -> Result<Reply, Refusal> {
        match self.next().await {
            Event::Reply { channel: 1, result } => result,
            other => panic!("not a reply: {other:?}"),
        }
    }

    async fn confirmed(&mut self) -> Vec<(u64, u64)> {
        match self.next().await {
            Event::Confirmed { channel: 1, tickets } => tickets,
            other => panic!("not a confirm: {other:?}"),
        }
    }

    async fn delivered(&mut self) -> Vec<Held> {
        match self.next().await {
            Event::Deliver { channel: 1, consumer, shard, messages } => {
                messages.iter().map(|m| Held { shard, queue: m.queue, seq: m.seq, consumer: Some(consumer) }).collect()
            }
            other => panic!("not a delivery: {other:?}"),
        }
    }

    fn settle(&mut self, held: &[Held], outcome: Outcome) {
        self.submit(Step::Settle { held: held.to_vec(), outcome, asked: true });
    }

    /// Consume from `queue`; the leader accepts.
    async fn consume(&mut self, leader: &mut Leader, queue: &str, prefetch: Option<u32>) -> ConsumerId {
        self.ask(Request::Consume {
            queue: name(queue),
            tag: "tag".into(),
            no_ack: false,
            exclusive: false,
            prefetch,
            arguments: Table::new(),
        });
        let ToLeader::Consume(spec) = leader.next().await else { panic!("no consume") };
        leader.say(ToEdge::Consuming { consumer: spec.id, result: Ok(1) }).await;
        assert_eq!(self.reply().await, Ok(Reply::Consuming { consumer: spec.id }));
        spec.id
    }
}

/// The consumer that was asked for before there was a path.
fn asked_with(attach: ToLeader) -> Consumer {
    let ToLeader::Attach { mut asked, .. } = attach else { panic!("no attach: {attach:?}") };
    assert_eq!(asked.len(), 1);
    asked.remove(0)
}

/// A leader by hand.
struct Leader {
    shard: ShardId,
    node: NodeId,
    end: LeaderEnd,
    id: LeaderId,
    session: SessionId,
}

impl Leader {
    async fn next(&mut self) -> ToLeader {
        timeout(PATIENCE, self.end.up_rx.recv()).await.expect("a message in time").expect("an open path")
    }

    async fn quiet(&mut self) {
        let more = timeout(Duration::from_millis(40), self.end.up_rx.recv()).await;
        assert!(more.is_err(), "nothing should come: {more:?}");
    }

    async fn say(&mut self, message: ToEdge) {
        self.end.down_tx.send(message).await.expect("the edge listens");
    }

    async fn welcome(&mut self, id: LeaderId, session: u64, last: u64) -> ToLeader {
        (self.id, self.session) = (id, SessionId(session));
        self.say(ToEdge::Welcome { leader: id, session: self.session, last: BatchSeq(last) }).await;
        self.next().await
    }

    async fn batch(&mut self) -> Batch {
        match self.next().await {
            ToLeader::Batch(batch) => batch,
            other => panic!("not a batch: {other:?}"),
        }
    }

    async fn verdict(&mut self, seq: u64, refused: &[u32]) {
        let refused = refused.iter().map(|o| (*o, RefusedEnqueue::UnknownQueue)).collect();
        self.say(ToEdge::Verdict { seq: BatchSeq(seq), refused }).await;
    }

    async fn deliver(&mut self, consumer: ConsumerId, queue: QueueId, seqs: &[u64]) {
        let delivery = |seq: &u64| Delivery { queue, seq: Seq(*seq), redelivered: false, failures: 0, failed_ms: 0, message: stored() };
        let deliveries = Deliveries { leader: self.id, consumer, messages: seqs.iter().map(delivery).collect() };
        self.end.deliveries_tx.send(deliveries).await.expect("the edge listens");
    }
}

fn stored() -> Bytes {
    let mut ops = crate::model::entry::Ops::default();
    ops.enqueue(&[QueueId(1)], b"", b"q", &[0, 0], b"body");
    let op = OpsReader::at(&EntryBytes::from(ops.take()), 0).next();
    match op {
        Some(Ok(Op::Enqueue(enqueue))) => enqueue.message,
        other => panic!("{other:?}"),
    }
}

fn ops(batch: &Batch) -> Vec<Op> {
    OpsReader::at(&EntryBytes::from(batch.ops.clone()), 0).map(|op| op.expect("well formed")).collect()
}

fn enqueues(batch: &Batch) -> Vec<EnqueueOp> {
    let enqueue = |op| match op {
        Op::Enqueue(enqueue) => Some(enqueue),
        _ => None,
    };
    ops(batch).into_iter().filter_map(enqueue).collect()
}

fn keys(batch: &Batch) -> Vec<String> {
    let key = |e: EnqueueOp| StoredMessage::parse(e.message).map(|m| String::from_utf8_lossy(&m.key).into_owned());
    enqueues(batch).into_iter().filter_map(key).collect()
}
