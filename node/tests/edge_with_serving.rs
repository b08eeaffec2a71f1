//! Edges and shard servers together, in one process: two nodes' clients publish, consume and acknowledge while leaders change and
//! proposals fail. Nothing confirmed is lost; surviving clients see nothing twice, nothing redelivered, and each publisher's order.

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use warren::edge::{CatalogPort, Connection, ConnectionInfo, Edge, EdgeConfig, LeaderFinder};
use warren::machine::DataMachine;
use warren::machine::catalog::{Catalog, hash_password};
use warren::model::catalog::*;
use warren::model::entry::{EntryBytes, Op, OpsReader, StoredMessage};
use warren::model::link::{Batch, RefusedEnqueue, ToEdge, ToLeader};
use warren::model::ports::*;
use warren::model::step::*;
use warren::model::*;
use warren::serving::local::{LocalBodies, LocalProposer};
use warren::serving::{ServerConfig, ServerHandle, mailbox, spawn};

const SHARDS: u16 = 2;

/// Applies at once, unless it is told to fail some.
struct Flaky {
    inner: LocalProposer,
    server: ServerHandle,
    failing: AtomicBool,
    calls: AtomicU64,
}

impl Proposer for Flaky {
    fn propose(&self, token: u64, leader: LeaderId, entry: EntryBytes) {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.failing.load(Ordering::Relaxed) && call % 7 == 3 {
            return self.server.outcome(token, ProposalOutcome::Failed("lease expired".into()));
        }
        self.inner.propose(token, leader, entry);
    }

    fn lease_valid(&self) -> bool {
        true
    }
}

struct Shard {
    machine: Arc<Mutex<DataMachine>>,
    bodies: Arc<LocalBodies>,
    server: Mutex<Option<ServerHandle>>,
    leader_tx: watch::Sender<Option<LeaderId>>,
    term: AtomicU64,
}

struct Cluster {
    catalog: Arc<RwLock<Catalog>>,
    shards: HashMap<ShardId, Shard>,
    failing: bool,
    /// Loses verdicts, when there is one.
    witness: Option<Arc<Witness>>,
}

impl Cluster {
    fn new(failing: bool, witness: Option<Arc<Witness>>) -> Arc<Cluster> {
        let shard = |id| Shard {
            machine: Arc::new(Mutex::new(DataMachine::new(id))),
            bodies: Arc::default(),
            server: Mutex::default(),
            leader_tx: watch::channel(None).0,
            term: AtomicU64::new(0),
        };
        let shards = (1..=SHARDS).map(|n| (ShardId(n), shard(ShardId(n)))).collect();
        let cluster = Arc::new(Cluster { catalog: Arc::default(), shards, failing, witness });
        cluster.apply(&CatalogCommand::Bootstrap {
            vhost: "/".into(),
            user: "guest".into(),
            password_hash: hash_password(b"guest", [1, 2, 3, 4]),
            shards: SHARDS,
        });
        (1..=SHARDS).for_each(|n| cluster.elect(ShardId(n)));
        cluster
    }

    fn apply(&self, command: &CatalogCommand) -> (u64, CatalogReply) {
        let (index, reply) = {
            let mut catalog = self.catalog.write();
            let index = catalog.index() + 1;
            (index, catalog.apply(LogId { leader: LeaderId::default(), index }, command))
        };
        self.shards.values().filter_map(|s| s.server.lock().clone()).for_each(|s| s.catalog_moved());
        (index, reply)
    }

    /// A new leader over the shard's machine; the old one forgets everything.
    fn elect(&self, id: ShardId) {
        let shard = &self.shards[&id];
        if let Some(old) = shard.server.lock().take() {
            old.stop();
        }
        let term = shard.term.fetch_add(1, Ordering::SeqCst) + 1;
        let node = NodeId(1 + (term % 2) as u16);
        let leader = LeaderId { term, voter: VoterId { node, generation: Generation(1) }.pack() };
        let (handle, inbox) = mailbox();
        let inner = LocalProposer::new(shard.machine.clone(), shard.bodies.clone(), handle.clone());
        let failing = AtomicBool::new(self.failing);
        let proposer = Flaky { inner, server: handle.clone(), failing, calls: AtomicU64::new(0) };
        let (events_tx, _) = mpsc::channel(16);
        let config = ServerConfig::new(id, node, self.catalog.clone());
        spawn(config, inbox, shard.machine.clone(), Arc::new(proposer), shard.bodies.clone(), events_tx);
        handle.leadership(Leadership { leader: Some(leader), is_me: true });
        *shard.server.lock() = Some(handle);
        shard.leader_tx.send_replace(Some(leader));
    }
}

struct Port(Arc<Cluster>);

impl CatalogPort for Port {
    fn submit(&self, command: CatalogCommand) -> BoxFuture<'static, Result<(u64, CatalogReply), Refusal>> {
        let reply = self.0.apply(&command);
        Box::pin(async move { Ok(reply) })
    }

    fn routing_lease(&self) -> bool {
        true
    }
}

impl LeaderFinder for Port {
    fn leadership(&self, shard: ShardId) -> watch::Receiver<Option<LeaderId>> {
        self.0.shards[&shard].leader_tx.subscribe()
    }
}

type Refused = Vec<(u32, RefusedEnqueue)>;

/// Stands on every path: breaks it instead of passing a verdict on for the first time, and knows which messages were taken.
#[derive(Default)]
struct Witness {
    bodies: Mutex<HashMap<(ShardId, SessionId, BatchSeq), Vec<String>>>,
    /// What each verdict refused.
    verdicts: Mutex<HashMap<(ShardId, SessionId, BatchSeq), Refused>>,
}

impl Witness {
    async fn stand_between(self: Arc<Self>, shard: ShardId, mut edge: LeaderEnd, mut leader: EdgeEnd) {
        let mut session = SessionId::default();
        loop {
            let passed = tokio::select! {
                up = edge.up_rx.recv() => match up {
                    Some(message) => {
                        if let ToLeader::Batch(batch) = &message {
                            self.saw_batch(shard, batch);
                        }
                        leader.up_tx.send(message).await.is_ok()
                    }
                    None => false,
                },
                down = leader.down_rx.recv() => match down {
                    Some(ToEdge::Verdict { seq, refused }) if self.is_new((shard, session, seq), &refused) => false,
                    Some(message) => {
                        if let ToEdge::Welcome { session: mine, .. } = &message {
                            session = *mine;
                        }
                        edge.down_tx.send(message).await.is_ok()
                    }
                    None => false,
                },
                deliveries = leader.deliveries_rx.recv() => match deliveries {
                    Some(deliveries) => edge.deliveries_tx.send(deliveries).await.is_ok(),
                    None => false,
                },
            };
            if !passed {
                return;
            }
        }
    }

    fn saw_batch(&self, shard: ShardId, batch: &Batch) {
        let enqueued = OpsReader::at(&EntryBytes::from(batch.ops.clone()), 0).filter_map(|op| match op {
            Ok(Op::Enqueue(enqueue)) => StoredMessage::parse(enqueue.message),
            _ => None,
        });
        let bodies: Vec<String> = enqueued.map(|m| String::from_utf8_lossy(&m.body).into_owned()).collect();
        let before = self.bodies.lock().insert((shard, batch.session, batch.seq), bodies.clone());
        assert!(before.is_none_or(|before| before == bodies), "a batch that was sent never changes");
    }

    fn is_new(&self, verdict: (ShardId, SessionId, BatchSeq), refused: &[(u32, RefusedEnqueue)]) -> bool {
        let before = self.verdicts.lock().insert(verdict, refused.to_vec());
        assert!(before.as_ref().is_none_or(|before| before == refused), "a repeated verdict says the same");
        before.is_none()
    }

    /// Bodies that some verdict took (`None`), and those that some verdict refused, with the reason.
    fn outcome(&self) -> Vec<(Option<RefusedEnqueue>, String)> {
        let (verdicts, bodies) = (self.verdicts.lock(), self.bodies.lock());
        let of = |(batch, refused): (&(ShardId, SessionId, BatchSeq), &Refused)| {
            let why = |ordinal: u32| refused.iter().find(|r| r.0 == ordinal).map(|r| r.1);
            (0..).zip(&bodies[batch]).map(|(ordinal, body)| (why(ordinal), body.clone())).collect::<Vec<_>>()
        };
        verdicts.iter().flat_map(of).collect()
    }
}

struct NodePaths(Arc<Cluster>, NodeId);

impl Paths for NodePaths {
    fn connect(&self, shard: ShardId, _: NodeId) -> BoxFuture<'static, io::Result<EdgeEnd>> {
        let (edge, leader) = path(self.1);
        let server = self.0.shards[&shard].server.lock().clone();
        let (witness, node) = (self.0.witness.clone(), self.1);
        Box::pin(async move {
            let server = server.ok_or(io::ErrorKind::ConnectionRefused)?;
            match witness {
                None => server.connected(leader),
                Some(witness) => {
                    let (near, far) = path(node);
                    server.connected(far);
                    tokio::spawn(witness.stand_between(shard, leader, near));
                }
            }
            Ok(edge)
        })
    }
}

fn edge(cluster: &Arc<Cluster>, node: u16) -> Arc<Edge> {
    // Nothing is nacked for want of time here.
    let no_quorum_timeout = Duration::from_secs(3600);
    let config = EdgeConfig { no_quorum_timeout, ..EdgeConfig::new(NodeId(node), Incarnation(1000 + u64::from(node))) };
    let paths = Arc::new(NodePaths(cluster.clone(), NodeId(node)));
    Edge::new(config, cluster.catalog.clone(), Arc::new(Port(cluster.clone())), Arc::new(Port(cluster.clone())), paths)
}

fn connect(edge: &Arc<Edge>) -> Connection {
    let mut connection = edge.connect(ConnectionInfo { peer: "127.0.0.1:9".parse().expect("an address") });
    connection.submit(Step::Authenticate { user: "guest".into(), password: b"guest".to_vec() }).expect("taken");
    connection.submit(Step::Open { vhost: "/".into() }).expect("taken");
    connection.take_events(&mut Vec::new(), usize::MAX);
    connection
}

fn name(text: &str) -> Name {
    Name { vhost: "/".into(), name: text.into() }
}

fn declare(queue: &str, passive: bool) -> Request {
    declare_with(queue, passive, Table::new())
}

fn declare_with(queue: &str, passive: bool, arguments: Table) -> Request {
    let name = name(queue);
    Request::DeclareQueue(DeclareQueue { name, passive, durable: true, exclusive: false, auto_delete: false, arguments })
}

/// The answer, and the events behind it.
async fn ask(connection: &mut Connection, request: Request) -> (Reply, Vec<Event>) {
    connection.submit(Step::Request { channel: 1, request }).expect("taken");
    timeout(Duration::from_secs(5), connection.changed()).await.expect("an answer in time");
    let mut events = Vec::new();
    connection.take_events(&mut events, usize::MAX);
    match events.remove(0) {
        Event::Reply { result, .. } => (result.expect("not refused"), events),
        other => panic!("not a reply: {other:?}"),
    }
}

async fn publish(mut connection: Connection, publisher: u8, queues: u64, count: u64) {
    let mut confirmed = vec![false; count as usize + 1];
    let (mut next, mut done, mut events) = (1u64, 0u64, Vec::new());
    while done < count {
        sleep(Duration::from_millis(2)).await;
        while next <= count && next <= done + 10 {
            let body = format!("{publisher}:{next}");
            let step = Step::Publish(Publish {
                channel: 1,
                ticket: Some(next),
                mandatory: true,
                exchange: Bytes::new(),
                routing_key: format!("q{}", next % queues).into(),
                properties: Bytes::from_static(&[0, 0]),
                body: body.into(),
            });
            connection.submit(step).expect("there is room");
            next += 1;
        }
        timeout(Duration::from_secs(20), connection.changed()).await.expect("confirms go on");
        connection.take_events(&mut events, usize::MAX);
        for event in events.drain(..) {
            match event {
                Event::Confirmed { tickets, .. } => {
                    for ticket in tickets.into_iter().flat_map(|(a, b)| a..=b) {
                        assert!(!std::mem::replace(&mut confirmed[ticket as usize], true), "{ticket} confirmed twice");
                        done += 1;
                    }
                }
                Event::Blocked(_) | Event::Unblocked => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn consume(mut connection: Connection, queue: String, got_tx: mpsc::Sender<(String, String, bool)>) {
    let consume = Request::Consume {
        queue: name(&queue),
        tag: "c".into(),
        no_ack: false,
        exclusive: false,
        prefetch: Some(50),
        arguments: Table::new(),
    };
    let (_, mut events) = ask(&mut connection, consume).await;
    loop {
        for event in events.drain(..) {
            let Event::Deliver { consumer, shard, messages, .. } = event else { continue };
            let bytes = messages.iter().map(|m| m.message.len() as u64).sum();
            connection.submit(Step::Written { consumer, bytes }).expect("taken");
            for m in messages {
                let stored = StoredMessage::parse(m.message).expect("well formed");
                let body = String::from_utf8_lossy(&stored.body).into_owned();
                let held = Held { shard, queue: m.queue, seq: m.seq, consumer: Some(consumer) };
                connection.submit(Step::Settle { held: vec![held], outcome: Outcome::Ack, asked: true }).expect("taken");
                if got_tx.send((queue.clone(), body, m.redelivered)).await.is_err() {
                    return;
                }
            }
        }
        connection.changed().await;
        connection.take_events(&mut events, usize::MAX);
    }
}

async fn run(failing: bool, elections: usize, pause: Duration) {
    const QUEUES: u64 = 4;
    const COUNT: u64 = 4000;
    let cluster = Cluster::new(failing, None);
    let edges = [edge(&cluster, 1), edge(&cluster, 2)];
    let mut admin = connect(&edges[0]);
    for n in 0..QUEUES {
        ask(&mut admin, declare(&format!("q{n}"), false)).await;
    }
    let (got_tx, mut got_rx) = mpsc::channel(100_000);
    for n in 0..QUEUES {
        tokio::spawn(consume(connect(&edges[(n % 2) as usize]), format!("q{n}"), got_tx.clone()));
    }
    let publishers: Vec<_> = (0..4u8).map(|p| tokio::spawn(publish(connect(&edges[usize::from(p) % 2]), p, QUEUES, COUNT))).collect();
    for n in 0..elections {
        sleep(pause).await;
        cluster.elect(ShardId(1 + (n % usize::from(SHARDS)) as u16));
    }
    for publisher in publishers {
        timeout(Duration::from_secs(60), publisher).await.expect("in time").expect("no panic");
    }
    let mut last: HashMap<(String, String), u64> = HashMap::new();
    for _ in 0..4 * COUNT {
        let (queue, body, redelivered) = timeout(Duration::from_secs(10), got_rx.recv()).await.expect("all come").expect("open");
        assert!(!redelivered, "{body}");
        let (publisher, n) = body.split_once(':').expect("ours");
        let n: u64 = n.parse().expect("a number");
        let before = last.insert((queue, publisher.into()), n).unwrap_or(0);
        assert!(before < n, "publisher {publisher}: {n} came after {before}");
    }
    sleep(Duration::from_millis(200)).await;
    assert!(got_rx.try_recv().is_err(), "nothing comes twice");
    let (Reply::Queue { messages, consumers, .. }, _) = ask(&mut admin, declare("q0", true)).await else { panic!("no counts") };
    assert_eq!((messages, consumers), (0, 1));
    let sent: u64 = edges.iter().map(|e| e.counters().published.get()).sum();
    let confirmed: u64 = edges.iter().map(|e| e.counters().confirmed.get()).sum();
    assert_eq!((sent, confirmed), (4 * COUNT, 4 * COUNT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_once_and_in_order() {
    run(false, 0, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_proposals_change_nothing() {
    run(true, 0, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_leaders_change_nothing() {
    run(true, 8, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_in_quick_succession_change_nothing() {
    run(true, 40, Duration::from_millis(25)).await;
}

/// What a publisher was told of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Confirmed,
    ReturnedAndConfirmed,
    Nacked,
}

/// Until `count` more tickets are answered.
async fn answers(client: &mut Connection, count: u64, fates: &mut HashMap<u64, Told>) {
    let (goal, mut events, mut returned) = (fates.len() as u64 + count, Vec::new(), HashSet::new());
    let mut answer = |tickets: Vec<(u64, u64)>, told: &dyn Fn(u64) -> Told| {
        for ticket in tickets.into_iter().flat_map(|(a, b)| a..=b) {
            assert!(fates.insert(ticket, told(ticket)).is_none(), "{ticket} answered twice");
        }
        fates.len() as u64
    };
    let mut answered = 0;
    while answered < goal {
        timeout(Duration::from_secs(20), client.changed()).await.expect("answers go on");
        client.take_events(&mut events, usize::MAX);
        for event in events.drain(..) {
            match event {
                Event::Returned(publish) => assert!(returned.insert(publish.ticket.expect("ours has one")), "returned twice"),
                Event::Confirmed { tickets, .. } => {
                    let told = |ticket: u64| if returned.contains(&ticket) { Told::ReturnedAndConfirmed } else { Told::Confirmed };
                    answered = answer(tickets, &told);
                }
                Event::Nacked { tickets, .. } => {
                    assert!(tickets.iter().all(|(first, last)| (*first..=*last).all(|ticket| !returned.contains(&ticket))));
                    answered = answer(tickets, &|_| Told::Nacked);
                }
                Event::Blocked(_) | Event::Unblocked => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Fault test 2 of the rules: queues that are deleted and declared again, and queues that are full and refuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_that_was_refused_is_confirmed_as_taken_though_every_verdict_is_lost_once() {
    const ROUNDS: u64 = 40;
    const KEYS: [&str; 6] = ["q", "full1", "full2", "q", "full1", "full2"];
    let witness = Arc::new(Witness::default());
    let cluster = Cluster::new(false, Some(witness.clone()));
    let edges = [edge(&cluster, 1), edge(&cluster, 2)];
    let (mut admin, mut client) = (connect(&edges[0]), connect(&edges[1]));
    let mut fates = HashMap::new();
    // One in each shard, so that each has messages of both kinds.
    for queue in ["full1", "full2"] {
        let overflow = Value::Text(b"reject-publish".to_vec());
        let arguments = [("x-max-length".to_string(), Value::Int(3)), ("x-overflow".to_string(), overflow)].into_iter().collect();
        ask(&mut admin, declare_with(queue, false, arguments)).await;
    }
    for round in 0..ROUNDS {
        ask(&mut admin, declare("q", false)).await;
        if round % 3 == 0 {
            for queue in ["full1", "full2"] {
                ask(&mut admin, Request::PurgeQueue { name: name(queue) }).await;
            }
        }
        for (ticket, key) in (round * KEYS.len() as u64 + 1..).zip(KEYS) {
            let (exchange, routing_key, properties) = (Bytes::new(), key.into(), Bytes::from_static(&[0, 0]));
            let body = ticket.to_string().into();
            let publish = Publish { channel: 1, ticket: Some(ticket), mandatory: true, exchange, routing_key, properties, body };
            client.submit(Step::Publish(publish)).expect("there is room");
        }
        ask(&mut admin, Request::DeleteQueue { name: name("q"), if_unused: false, if_empty: false }).await;
        if round % 2 == 0 {
            ask(&mut admin, declare("q", false)).await;
        }
        answers(&mut client, KEYS.len() as u64, &mut fates).await;
    }
    let outcome = witness.outcome();
    let bodies = |of: Option<RefusedEnqueue>| outcome.iter().filter(|o| o.0 == of).map(|o| o.1.clone()).collect::<HashSet<_>>();
    let (taken, gone, full) = (bodies(None), bodies(Some(RefusedEnqueue::UnknownQueue)), bodies(Some(RefusedEnqueue::Full)));
    for (ticket, told) in &fates {
        let body = ticket.to_string();
        let expected = match (taken.contains(&body), full.contains(&body)) {
            (true, false) => Told::Confirmed,
            (false, true) => Told::Nacked,
            (false, false) => Told::ReturnedAndConfirmed,
            (true, true) => panic!("{ticket} was taken and refused"),
        };
        assert_eq!(*told, expected, "{ticket} was answered as what it is not");
    }
    println!("{} taken, {} without a queue, {} found theirs full", taken.len(), gone.len(), full.len());
    assert!([&taken, &gone, &full].iter().all(|bodies| !bodies.is_empty()), "the test must reach what it is for");
    assert_eq!(fates.len(), KEYS.len() * ROUNDS as usize);
}
