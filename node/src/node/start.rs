//! Bringing a node up: stores, machines, servers, consensus, edge, the catalog's first entries; and taking it down again.

use super::admin::Admin;
use super::checkpoint::{Checkpointer, Member};
use super::feed::{Connector, Feed, Port};
use super::groups::{CatalogGroup, Checkpointed, DataGroup};
use super::leaders::Leaders;
use super::running::Running;
use super::{StartError, alarm, doing, restore};
use crate::config::ServerConfig;
use crate::consensus::{Consensus, ConsensusConfig, Machine, Machines, Shard, Timing};
use crate::edge::{Edge, EdgeConfig};
use crate::machine::catalog::hash_password;
use crate::machine::shard::DataMachine;
use crate::management::{self, Readiness};
use crate::model::catalog::CatalogCommand;
use crate::model::ports::{Bodies, Proposer};
use crate::model::{Incarnation, NodeId, ShardId};
use crate::peer::auth::Secret;
use crate::peer::client::{PeerConfig, TonicNetwork};
use crate::serving::local::{LocalBodies, LocalProposer, local_leadership};
use crate::serving::{self, Mailbox, ServerEvent, ServerHandle};
use crate::store::disk::{Disk, RealDisk};
use crate::store::state::StateStore;
use crate::store::wal::{Wal, WalConfig};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// One attempt at the catalog's first entries.
const FIRST_COMMANDS: Duration = Duration::from_secs(10);
/// Questions of shard servers that wait for the catalog.
const EVENTS: usize = 1024;

/// A node that serves, with everything that must be ended.
pub(super) struct Started {
    pub running: Arc<Running>,
    checkpointer: Arc<Checkpointer>,
    servers: Vec<ServerHandle>,
    tasks: JoinSet<()>,
}

/// Stores and machines, before consensus runs.
struct Opened {
    disk: Arc<dyn Disk>,
    wal: Wal,
    store: Arc<StateStore>,
    catalog: Arc<CatalogGroup>,
    data: HashMap<ShardId, Arc<DataGroup>>,
    mailboxes: HashMap<ShardId, (ServerHandle, Mailbox)>,
    shards: u16,
}

/// Everything up to the moment when clients can be served.
pub(super) async fn start(config: ServerConfig, peer: TcpListener, readiness: Arc<Readiness>) -> Result<Started, StartError> {
    let incarnation = Incarnation(rand::random());
    let mut opened = open(&config)?;
    let admin = Admin::default();
    let consensus = Arc::new(start_consensus(&config, incarnation, &opened, peer, &admin, &readiness)?);
    consensus.formed().await?;
    readiness.not_serving("waiting for leaders");

    let mut tasks = JoinSet::new();
    let (events_tx, events_rx) = mpsc::channel(EVENTS);
    let servers = start_servers(&config, incarnation, &mut opened, &consensus, &events_tx, &mut tasks);
    consensus.run();

    let catalog = opened.catalog.catalog.clone();
    let nodes: Vec<NodeId> = config.cluster.iter().map(|m| m.node).collect();
    let moved_rx = opened.catalog.moved_tx.subscribe();
    let leaders = Leaders::follow(opened.shards, &nodes, &consensus, catalog.clone(), moved_rx);
    let port = Port { client: consensus.catalog(), lease: Box::new(consensus.routing_lease()), patience: config.no_quorum_timeout };
    let connector = Connector { node: config.node, servers: servers.clone(), consensus: consensus.clone() };
    let edge_config = EdgeConfig {
        no_quorum_timeout: config.no_quorum_timeout,
        remote_guest: !config.loopback_users.iter().any(|user| user == "guest"),
        ..EdgeConfig::new(config.node, incarnation)
    };
    let edge = Edge::new(edge_config, catalog.clone(), Arc::new(port), leaders, Arc::new(connector));

    let checkpointer = start_checkpoints(&opened, &consensus, &mut tasks);
    let (shards, wal) = (opened.shards, opened.wal.clone());
    let running = Arc::new(Running { config, shards, catalog, consensus, edge, wal, alarm: Mutex::default() });
    tasks.spawn(delete_unused(running.clone(), events_rx));
    first_commands(&running, incarnation).await;
    tasks.spawn(alarm::watch_disk(running.clone(), opened.disk));
    let _ = admin.0.set(running.clone());
    Ok(Started { running, checkpointer, servers: servers.into_values().collect(), tasks })
}

fn open(config: &ServerConfig) -> Result<Opened, StartError> {
    let directory = config.data_dir.join("wal");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&directory).map_err(doing(format!("directory {}", directory.display())))?);
    let wal = Wal::open(disk.clone(), WalConfig::default())?;
    let (store, report) = StateStore::open(&config.data_dir.join("state"))?;
    if let Some(aside) = &report.set_aside {
        tracing::error!(moved_to = %aside.to.display(), why = aside.why, "the state store was damaged; it is rebuilt from the log");
    }
    for lost in &report.rolled_back {
        tracing::error!(shard = %lost.shard, from = lost.from.index, to = ?lost.to, "the newest checkpoint of a shard is lost; the log must reach back");
    }
    let catalog = Arc::new(restore::catalog(&store)?);
    let known = catalog.catalog.read().shards().count() as u16;
    let shards = if known > 0 { known } else { config.shards };
    let (mut data, mut mailboxes) = (HashMap::new(), HashMap::new());
    for shard in (1..=shards).map(ShardId) {
        let (handle, mailbox) = serving::mailbox();
        data.insert(shard, Arc::new(restore::data(&store, &wal, shard, handle.clone())?));
        mailboxes.insert(shard, (handle, mailbox));
    }
    mailboxes.insert(ShardId::local(config.node), serving::mailbox());
    Ok(Opened { disk, wal, store: Arc::new(store), catalog, data, mailboxes, shards })
}

fn start_consensus(
    config: &ServerConfig,
    incarnation: Incarnation,
    opened: &Opened,
    peer: TcpListener,
    admin: &Admin,
    readiness: &Arc<Readiness>,
) -> Result<Consensus, StartError> {
    let (data, catalog) = (opened.data.clone(), opened.catalog.clone());
    let machines: Machines = Box::new(move |shard| match data.get(&shard) {
        Some(group) => group.clone() as Arc<dyn Machine>,
        None => catalog.clone(),
    });
    let handles: HashMap<ShardId, ServerHandle> = opened.mailboxes.iter().map(|(shard, (handle, _))| (*shard, handle.clone())).collect();
    let service = management::admin::service(config.node, Arc::new(admin.clone()), readiness.clone());
    let network = PeerConfig {
        node: config.node,
        listener: peer.into_std().map_err(doing("peer port"))?,
        peers: config.cluster.iter().map(|m| (m.node, format!("{}:{}", m.host, m.port))).collect(),
        secret: Secret::new(config.secret.bytes()),
        edge_runtime: Handle::current(),
        routes: tonic::service::Routes::new(service),
    };
    let consensus = ConsensusConfig {
        node: config.node,
        incarnation,
        nodes: config.cluster.iter().map(|m| m.node).collect(),
        shards: opened.shards,
        timing: Timing::default(),
        journal: Arc::new(opened.wal.clone()),
        machines,
        acceptor: Arc::new(move |shard, end| {
            if let Some(server) = handles.get(&shard) {
                server.connected(end);
            }
        }),
        wire: Box::new(move |handler| TonicNetwork::start(network, handler)),
    };
    Consensus::start(consensus).map_err(doing("consensus"))
}

/// One server per group of this node and one for its own in-memory queues.
fn start_servers(
    config: &ServerConfig,
    incarnation: Incarnation,
    opened: &mut Opened,
    consensus: &Arc<Consensus>,
    events_tx: &mpsc::Sender<ServerEvent>,
    tasks: &mut JoinSet<()>,
) -> HashMap<ShardId, ServerHandle> {
    let feed = Arc::new(Feed(opened.catalog.catalog.clone()));
    let mut handles = HashMap::new();
    for (shard, (handle, mailbox)) in opened.mailboxes.drain() {
        let settings = serving::ServerConfig::new(shard, config.node, feed.clone());
        let serve = |machine, proposer: Arc<dyn Proposer>, bodies: Arc<dyn Bodies>, mailbox| {
            serving::spawn(settings.clone(), mailbox, machine, proposer, bodies, events_tx.clone());
        };
        if shard.owner().is_some() {
            let machine = Arc::new(Mutex::new(DataMachine::new(shard)));
            let bodies = Arc::new(LocalBodies::default());
            serve(machine.clone(), Arc::new(LocalProposer::new(machine, bodies.clone(), handle.clone())), bodies, mailbox);
            handle.leadership(local_leadership(config.node, incarnation));
        } else if let (Some(group), Some(raft)) = (opened.data.get(&shard), consensus.shard(shard)) {
            let outcomes = handle.clone();
            raft.on_outcome(Arc::new(move |token, outcome| outcomes.outcome(token, outcome)));
            serve(group.machine.clone(), Arc::new(raft.clone()), Arc::new(raft.clone()), mailbox);
            tasks.spawn(tell_leadership(raft, handle.clone()));
        } else {
            continue;
        }
        handles.insert(shard, handle);
    }
    tasks.spawn(tell_catalog(opened.catalog.moved_tx.subscribe(), handles.values().cloned().collect()));
    handles
}

async fn tell_leadership(raft: Shard, server: ServerHandle) {
    let mut leadership_rx = raft.leadership();
    loop {
        let now = *leadership_rx.borrow_and_update();
        server.leadership(now);
        if leadership_rx.changed().await.is_err() {
            return;
        }
    }
}

async fn tell_catalog(mut moved_rx: tokio::sync::watch::Receiver<u64>, servers: Vec<ServerHandle>) {
    while moved_rx.changed().await.is_ok() {
        moved_rx.borrow_and_update();
        servers.iter().for_each(ServerHandle::catalog_moved);
    }
}

fn start_checkpoints(opened: &Opened, consensus: &Consensus, tasks: &mut JoinSet<()>) -> Arc<Checkpointer> {
    let group = |shard: ShardId| -> Arc<dyn Checkpointed> {
        match opened.data.get(&shard) {
            Some(group) => group.clone(),
            None => opened.catalog.clone(),
        }
    };
    let members = consensus.shards().into_iter().map(|shard| Member { group: group(shard.id()), shard }).collect();
    let checkpointer = Arc::new(Checkpointer { members, store: opened.store.clone(), wal: opened.wal.clone() });
    let running = checkpointer.clone();
    tasks.spawn(async move { running.run().await });
    checkpointer
}

/// The catalog's first entry, and that this process is there. Repeated until a majority answers.
async fn first_commands(running: &Running, incarnation: Incarnation) {
    let config = &running.config;
    let bootstrap = CatalogCommand::Bootstrap {
        vhost: config.first.vhost.clone(),
        user: config.first.user.clone(),
        password_hash: hash_password(config.first.password.expose().as_bytes(), rand::random()),
        shards: running.shards,
    };
    for command in [bootstrap, CatalogCommand::NodeUp { node: config.node, incarnation }] {
        while let Err(error) = running.consensus.catalog().submit(&command, Instant::now() + FIRST_COMMANDS).await {
            tracing::warn!(%error, "waiting for a majority of the nodes");
        }
    }
}

/// Deletes auto-delete queues whose last consumer went.
async fn delete_unused(running: Arc<Running>, mut events_rx: mpsc::Receiver<ServerEvent>) {
    while let Some(ServerEvent::LastConsumerGone { queue }) = events_rx.recv().await {
        let client = running.consensus.catalog();
        let deadline = Instant::now() + running.config.no_quorum_timeout;
        tokio::spawn(async move {
            if let Err(error) = client.submit(&CatalogCommand::DeleteQueue { id: queue }, deadline).await {
                tracing::warn!(%queue, %error, "an auto-delete queue without consumers could not be deleted");
            }
        });
    }
}

impl Started {
    /// In order: no more serving, a last checkpoint, consensus.
    pub async fn stop(mut self) {
        self.servers.iter().for_each(ServerHandle::stop);
        self.tasks.shutdown().await;
        if tokio::time::timeout(Duration::from_secs(1), self.checkpointer.finish()).await.is_err() {
            tracing::warn!("the last checkpoint took too long; the log is replayed at the next start");
        }
        self.running.consensus.stop().await;
    }
}
