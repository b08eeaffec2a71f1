//! Bringing a node up: stores, machines, servers, consensus, edge, the catalog's first entries; and taking it down again.

use super::admin::Admin;
use super::feed::{Applied, Connector, Port};
use super::ground::Ground;
use super::leaders::Leaders;
use super::running::Running;
use super::streams::Held;
use super::{StartError, alarm, doing, joining, presence, unused};
use crate::config::{DataDir, Rocketmq, ServerConfig};
use crate::consensus::{ClusterClock, Consensus, ConsensusConfig, Members, Replicas, Seat, Shard, Timing, Wire};
use crate::edge::{CatalogPort, Edge, EdgeConfig, Office, RocketDefaults};
use crate::listener::rocketmq::{Hub, Settings};
use crate::machine::catalog::{Catalog, hash_password};
use crate::machine::shard::DataMachine;
use crate::management::Readiness;
use crate::model::catalog::CatalogCommand;
use crate::model::ports::Leadership;
use crate::model::roster::Roster;
use crate::model::{Incarnation, NodeId, ShardId, version};
use crate::serving::local::{LocalBodies, LocalProposer, local_leadership};
use crate::serving::{self, Lateness, Mailbox, ServerEvent, ServerHandle};
use crate::store::disk::Disk;
use crate::store::state::StateStore;
use crate::store::wal::Wal;
use crate::tls::Mutual;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::{io, thread};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// One attempt at the catalog's first entry, and between two lines of the log about waiting to be up.
const FIRST_COMMAND: Duration = Duration::from_secs(10);
/// Clients are served when every shard has a leader and this node may route, or after this: a shard without a majority must not keep
/// the others' clients out.
const LEADERS_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at the routing lease.
const LEASE_POLL: Duration = Duration::from_millis(20);
/// Questions of shard servers that wait for the catalog.
const EVENTS: usize = 1024;

/// A node that serves, with everything that must be ended.
pub(super) struct Started {
    pub running: Arc<Running>,
    servers: Vec<ServerHandle>,
    tasks: JoinSet<()>,
}

/// Stores and machines, before consensus runs.
struct Opened {
    disk: Arc<dyn Disk>,
    wal: Wal,
    store: Arc<StateStore>,
    replicas: Replicas,
    applied: Arc<Applied>,
    mailboxes: HashMap<ShardId, Mailbox>,
    shards: u16,
    clock: ClusterClock,
    members: Members,
    joins: bool,
}

/// Everything up to the moment when clients can be served.
pub(super) async fn start(
    config: ServerConfig,
    peer: TcpListener,
    tls: Option<Mutual>,
    readiness: Arc<Readiness>,
) -> Result<(Started, Arc<Hub>), StartError> {
    let config = joining::admitted(config, tls.as_ref()).await?;
    let admin = Admin::new(&config, tls.clone());
    let ground = Ground::real(&config, (peer, tls), &admin, &readiness)?;
    let incarnation = next_start(&config)?;
    let opened = open_aside(config.clone(), incarnation, ground).await?;
    let started = go_on(config, incarnation, opened, &readiness).await?;
    admin.neighbours.follow(started.running.consensus.members());
    started.running.edge.set_neighbours(admin.neighbours.clone());
    let edge = started.running.edge.clone();
    let hub = Hub::new(edge.clone(), rocketmq_settings(&started.running.config, edge.process()), admin.neighbours.clone());
    let _ = admin.hub.set(hub.clone());
    let _ = admin.running.set(started.running.clone());
    Ok((started, hub))
}

/// The same on any ground.
pub(super) async fn compose(config: ServerConfig, ground: Ground, readiness: &Readiness) -> Result<Started, StartError> {
    let incarnation = next_start(&config)?;
    let opened = open(&config, incarnation, ground)?;
    go_on(config, incarnation, opened, readiness).await
}

fn next_start(config: &ServerConfig) -> Result<Incarnation, StartError> {
    DataDir::next_start(&config.data_dir).map(Incarnation).map_err(doing("numbering this start"))
}

/// Opens on a thread of its own: a long log takes a while to read, and who waits for it can be told to stop meanwhile.
async fn open_aside(config: ServerConfig, incarnation: Incarnation, ground: Ground) -> Result<(Opened, Wire), StartError> {
    let (opened_tx, opened_rx) = oneshot::channel();
    let work = move || drop(opened_tx.send(open(&config, incarnation, ground)));
    thread::Builder::new().name("open".into()).spawn(work).map_err(doing("a thread that opens the stores"))?;
    opened_rx.await.unwrap_or_else(|_| Err(doing("the stores")(io::Error::other("the thread that opens them ended"))))
}

async fn go_on(
    config: ServerConfig,
    incarnation: Incarnation,
    (mut opened, wire): (Opened, Wire),
    readiness: &Readiness,
) -> Result<Started, StartError> {
    let consensus = Arc::new(start_consensus(&config, incarnation, &opened, wire)?);
    let mut tasks = JoinSet::new();
    // Whoever dies while it joins must know whom to ask afterwards.
    tasks.spawn(keep_roster(opened.members.clone(), config.data_dir.clone()));
    consensus.formed().await?;
    readiness.not_serving("waiting for leaders");

    let (events_tx, events_rx) = mpsc::channel(EVENTS);
    let office = Office::new(opened.replicas.catalog());
    let lateness = Arc::<Lateness>::default();
    start_servers((&config, incarnation), &mut opened, &consensus, (&events_tx, &office, &lateness), &mut tasks);
    consensus.run();

    let catalog = opened.replicas.catalog();
    let moved_rx = opened.applied.moved_tx.subscribe();
    let leaders = Leaders::follow(opened.shards, &consensus, catalog.clone(), moved_rx);
    let (lease, applied) = (consensus.routing_lease(), opened.applied.clone());
    let may_route = Box::new(move || lease() && applied.is_up());
    let port = Port { client: consensus.catalog(), may_route, patience: config.no_quorum_timeout };
    let port: Arc<dyn CatalogPort> = Arc::new(port);
    tasks.spawn(presence::keep(consensus.clone(), catalog.clone()));
    tasks.spawn(keep_version(consensus.clone(), catalog.clone()));
    tasks.spawn(unused::delete(port.clone(), events_rx));
    let connector = Connector { node: config.node, servers: opened.applied.servers.clone(), consensus: consensus.clone() };
    let edge_config = EdgeConfig {
        no_quorum_timeout: config.no_quorum_timeout,
        consumer_timeout: config.consumer_timeout,
        loopback_users: config.loopback_users.clone(),
        tells_leaders: config.stream_leader_updates,
        ..EdgeConfig::new(config.node, incarnation)
    };
    let edge = Edge::new(edge_config, catalog.clone(), port, leaders, Arc::new(connector));
    office.open(&edge);
    let held = Held { replicas: opened.replicas.clone(), consensus: consensus.clone() };
    edge.set_streams(Arc::new(held), opened.applied.bells.clone());
    if config.stream_leader_updates {
        (1..=opened.shards).for_each(|shard| drop(tasks.spawn(edge.clone().tell_leaders(ShardId(shard)))));
    }

    let (shards, wal) = (opened.shards, opened.wal.clone());
    let replicas = opened.replicas.clone();
    let running = Arc::new(Running {
        config,
        shards,
        catalog,
        replicas,
        consensus,
        edge,
        wal,
        lateness,
        alarm: Mutex::default(),
        is_low: AtomicBool::new(false),
        clock: opened.clock.clone(),
        clock_alarm: Mutex::default(),
    });
    first_command(&running).await;
    until_up(&opened.applied).await;
    all_led(&running).await;
    tasks.spawn(expel(running.edge.clone(), opened.applied.moved_tx.subscribe()));
    tasks.spawn(alarm::watch(running.clone(), opened.disk));
    Ok(Started { running, servers: opened.applied.servers.values().cloned().collect(), tasks })
}

fn rocketmq_settings(config: &ServerConfig, (node, incarnation): (NodeId, Incarnation)) -> Settings {
    Settings {
        node,
        incarnation,
        default_vhost: config.first.vhost.clone(),
        host_id: format!("http://{}:{}", config.advertised.host, config.rocketmq.port),
        max_message_bytes: config.max_message_bytes,
        defaults: rocket_defaults(config),
        auto_create_topics: config.rocketmq.auto_create_topics,
    }
}

/// What topics are like that say nothing themselves.
pub(super) fn rocket_defaults(config: &ServerConfig) -> RocketDefaults {
    let Rocketmq { invisible_ms, ordered_invisible_ms, half_invisible_ms, max_retries, .. } = config.rocketmq;
    RocketDefaults { invisible_ms, ordered_invisible_ms, half_invisible_ms, max_retries }
}

fn open(config: &ServerConfig, incarnation: Incarnation, ground: Ground) -> Result<(Opened, Wire), StartError> {
    let Ground { disk, wal, wire, clocks } = ground;
    let wal = Wal::open(disk.clone(), wal)?;
    let (store, report) = StateStore::open(&config.data_dir.join("state"))?;
    if let Some(aside) = &report.set_aside {
        tracing::error!(moved_to = %aside.to.display(), why = aside.why, "the state store was damaged; it is rebuilt from the log");
    }
    for lost in &report.rolled_back {
        tracing::error!(shard = %lost.shard, from = lost.from.index, to = ?lost.to, "the newest checkpoint of a shard is lost; the log must reach back");
    }
    let shards = wal.identity().map_or(config.shards, |identity| identity.shards);
    if shards != config.shards {
        tracing::warn!(configured = config.shards, shards, "the number of shards was fixed when the cluster was formed");
    }
    let all = (1..=shards).map(ShardId).chain([ShardId::local(config.node)]);
    let (servers, mailboxes) =
        all.map(|shard| (shard, serving::mailbox())).map(|(s, (handle, mailbox))| ((s, handle), (s, mailbox))).unzip();
    let applied = Arc::new(Applied::new(servers, config.node, incarnation));
    let store = Arc::new(store);
    let replicas = Replicas::new(Some(store.clone()), applied.clone());
    let members = Members::new(roster(config, shards));
    replicas.tell(&members);
    applied.follow(replicas.catalog());
    Ok((
        Opened { disk, wal, store, replicas, applied, mailboxes, shards, clock: ClusterClock::new(clocks), members, joins: config.joins },
        wire,
    ))
}

/// As it was kept last, or as it was when the cluster was formed.
fn roster(config: &ServerConfig, shards: u16) -> Roster {
    kept_roster(config).unwrap_or_else(|| Roster::founded(config.founders(), shards))
}

/// The list of members that lies beside the log.
pub(super) fn kept_roster(config: &ServerConfig) -> Option<Roster> {
    DataDir::roster(&config.data_dir).and_then(|bytes| rmp_serde::from_slice(&bytes).ok())
}

/// Keeps the list of members beside the log: a node whose checkpoints are lost must know whom to ask, and what is its.
async fn keep_roster(members: Members, data_dir: PathBuf) {
    let mut roster_rx = members.watch();
    loop {
        let roster = roster_rx.borrow_and_update().clone();
        if roster.index > 0 {
            let (bytes, dir) = (rmp_serde::to_vec_named(&*roster).unwrap_or_default(), data_dir.clone());
            let written = tokio::task::spawn_blocking(move || DataDir::write_roster(&dir, &bytes)).await;
            if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
                tracing::warn!(%error, "the list of members cannot be kept beside the log");
            }
        }
        if roster_rx.changed().await.is_err() {
            return;
        }
    }
}

fn start_consensus(config: &ServerConfig, incarnation: Incarnation, opened: &Opened, wire: Wire) -> Result<Consensus, StartError> {
    let applied = opened.applied.clone();
    let consensus = ConsensusConfig {
        node: config.node,
        incarnation,
        members: opened.members.clone(),
        joins: opened.joins,
        shards: opened.shards,
        timing: Timing::default(),
        clock: opened.clock.clone(),
        journal: Arc::new(opened.wal.clone()),
        machines: opened.replicas.machines(Arc::new(opened.wal.clone())),
        supports: version::SUPPORTED,
        store: Some(opened.store.clone()),
        acceptor: Arc::new(move |shard, end| {
            if let Some(server) = applied.servers.get(&shard) {
                server.connected(end);
            }
        }),
        wire,
    };
    Consensus::start(consensus).map_err(doing("consensus"))
}

/// One server per group of this node and one for its own in-memory queues.
fn start_servers(
    (config, incarnation): (&ServerConfig, Incarnation),
    opened: &mut Opened,
    consensus: &Arc<Consensus>,
    (events_tx, office, lateness): (&mpsc::Sender<ServerEvent>, &Arc<Office>, &Arc<Lateness>),
    tasks: &mut JoinSet<()>,
) {
    for (shard, mailbox) in opened.mailboxes.drain() {
        let handle = &opened.applied.servers[&shard];
        let mut settings = serving::ServerConfig::new(shard, config.node, opened.replicas.catalog());
        settings.letters = office.clone();
        settings.courier = office.clone();
        settings.lateness = lateness.clone();
        if shard.owner().is_some() {
            let machine = Arc::new(Mutex::new(DataMachine::new(shard)));
            let bodies = Arc::new(LocalBodies::default());
            let proposer = Arc::new(LocalProposer::new(machine.clone(), bodies.clone(), handle.clone()));
            serving::spawn(settings, mailbox, machine, proposer, bodies, events_tx.clone());
            handle.leadership(local_leadership(config.node, incarnation));
        } else {
            let machine = opened.replicas.data_or_empty(shard);
            settings.clock = Arc::new(opened.clock.clone());
            let (handle, events_tx) = (handle.clone(), events_tx.clone());
            let outcomes = handle.clone();
            let seat = Seat::new(Arc::new(move |token, outcome| outcomes.outcome(token, outcome)));
            if let Some(raft) = consensus.shard(shard).filter(|_| !consensus.is_late(shard)) {
                seat.take(&raft);
            }
            serving::spawn(settings, mailbox, machine, seat.clone(), seat.clone(), events_tx);
            tasks.spawn(serve_group(consensus.clone(), shard, seat, handle));
        }
    }
    tasks.spawn(tell_catalog(opened.applied.moved_tx.subscribe(), opened.applied.servers.values().cloned().collect()));
}

/// For ever: a group of the shard is served from when it is whole until it leaves this node.
async fn serve_group(consensus: Arc<Consensus>, shard: ShardId, seat: Arc<Seat>, server: ServerHandle) {
    loop {
        let raft = consensus.whole(shard).await;
        if consensus.is_late(shard) {
            seat.take(&raft);
            raft.run();
        }
        tokio::select! {
            () = tell_leadership(&raft, &server) => return,
            () = consensus.left(&raft) => {}
        }
        seat.leave();
        server.leadership(Leadership::default());
    }
}

async fn tell_leadership(raft: &Shard, server: &ServerHandle) {
    let mut leadership_rx = raft.leadership();
    loop {
        let now = *leadership_rx.borrow_and_update();
        server.leadership(now);
        if leadership_rx.changed().await.is_err() {
            return;
        }
    }
}

async fn tell_catalog(mut moved_rx: watch::Receiver<u64>, servers: Vec<ServerHandle>) {
    while moved_rx.changed().await.is_ok() {
        moved_rx.borrow_and_update();
        servers.iter().for_each(ServerHandle::catalog_moved);
    }
}

/// Clients whose user or vhost is deleted must go.
async fn expel(edge: Arc<Edge>, mut moved_rx: watch::Receiver<u64>) {
    loop {
        moved_rx.borrow_and_update();
        edge.expel();
        if moved_rx.changed().await.is_err() {
            return;
        }
    }
}

async fn keep_version(consensus: Arc<Consensus>, catalog: Arc<RwLock<Catalog>>) {
    consensus.keep_version(|| catalog.read().version()).await;
}

/// The catalog's first entry. Repeated until a majority answers.
async fn first_command(running: &Running) {
    let config = &running.config;
    let bootstrap = CatalogCommand::Bootstrap {
        vhost: config.first.vhost.clone(),
        user: config.first.user.clone(),
        password_hash: hash_password(config.first.password.expose().as_bytes(), rand::random()),
        shards: running.shards,
    };
    while let Err(error) = running.consensus.catalog().submit(&bootstrap, Instant::now() + FIRST_COMMAND).await {
        tracing::warn!(%error, "waiting for a majority of the nodes");
    }
}

/// Until the catalog lists this process.
async fn until_up(applied: &Applied) {
    let mut moved_rx = applied.moved_tx.subscribe();
    while tokio::time::timeout(FIRST_COMMAND, moved_rx.wait_for(|_| applied.is_up())).await.is_err() {
        tracing::warn!("waiting for the leader of the catalog to hear this node, or to know that the processes before are gone");
    }
}

/// Until this node knows a leader of each shard and may route.
async fn all_led(running: &Running) {
    let led = (1..=running.shards).map(|n| {
        let mut leadership_rx = running.consensus.leadership(ShardId(n));
        async move { drop(leadership_rx.wait_for(|now| now.leader.is_some()).await) }
    });
    let may_route = running.consensus.routing_lease();
    let all = async {
        futures::future::join_all(led).await;
        while !may_route() {
            tokio::time::sleep(LEASE_POLL).await;
        }
    };
    if tokio::time::timeout(LEADERS_WAIT, all).await.is_err() {
        tracing::warn!("serving clients although some shards have no leader yet");
    }
}

impl Started {
    /// In order: no more serving, then consensus with a last checkpoint; done `until` then.
    pub async fn stop(mut self, until: Instant) {
        self.servers.iter().for_each(ServerHandle::stop);
        if tokio::time::timeout_at(until, self.tasks.shutdown()).await.is_err() {
            tracing::warn!("a task of this node does not end");
        }
        self.running.consensus.stop(until.saturating_duration_since(Instant::now())).await;
    }
}
