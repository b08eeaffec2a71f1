//! Nodes that go and come back as the catalog sees them, on machines of the simulator: what lives in the memory of one node ends with it,
//! what is not durable ends with the run of the whole cluster and not before.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::sleep;
use warren::config::{ServerConfig, Settings};
use warren::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Refusal, Table, Target};
use warren::model::step::{DeclareQueue, Publish, Reply, Request, Step};
use warren::node::{Ground, SimulatedNode};
use warren::peer::memory::MemoryNetwork;
use warren::store::disk::SimDisk;
use warren::store::disk::sim::Crash;
use warren::store::wal::WalConfig;
use warren_tests::sim::client::{CHANNEL, Client, Failed, News, declare, name};
use warren_tests::sim::host::Host;

/// What must come true does within this time, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three machines; node n is `hosts[n - 1]`.
struct Machines {
    network: MemoryNetwork,
    hosts: Vec<Arc<Host>>,
    errors: Arc<Mutex<Vec<String>>>,
    _dir: TempDir,
}

impl Machines {
    fn start() -> Machines {
        let filter = tracing_subscriber::EnvFilter::builder().with_default_directive(tracing::level_filters::LevelFilter::OFF.into());
        let _ = tracing_subscriber::fmt().with_env_filter(filter.from_env_lossy()).with_ansi(false).with_test_writer().try_init();
        let (network, errors, dir) = (MemoryNetwork::new(1), Arc::default(), tempfile::tempdir().unwrap());
        let hosts: Vec<_> = (1..=3).map(|id| Host::new(id, 1, dir.path(), &network, &errors, &Arc::default())).collect();
        hosts.iter().for_each(Host::start);
        Machines { network, hosts, errors, _dir: dir }
    }

    async fn client(&self, node: usize) -> Client {
        tokio::time::timeout(PATIENCE, Client::connect(&self.hosts[node - 1])).await.expect("it serves")
    }

    fn isolate(&self, node: usize) {
        let id = |node: usize| self.hosts[node - 1].id;
        for other in (1..=3).filter(|other| *other != node) {
            self.network.cut(id(node), id(other));
            self.network.cut(id(other), id(node));
        }
    }

    async fn start_again(&self, nodes: &[usize]) {
        for node in nodes {
            let host = self.hosts[node - 1].clone();
            tokio::task::spawn_blocking(move || host.start_again(false)).await.unwrap();
        }
    }

    /// Killed and started again, all at once.
    async fn restart(&self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.hosts[node - 1].kill(Crash::Power));
        self.start_again(nodes).await;
    }

    fn check(&self) {
        assert_eq!(*self.errors.lock().unwrap(), Vec::<String>::new());
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.hosts.iter().for_each(|host| host.kill(Crash::Process));
    }
}

fn in_memory(queue: &str, exclusive: bool) -> Request {
    let (durable, auto_delete, arguments) = (false, false, Table::new());
    Request::DeclareQueue(DeclareQueue { name: name(queue), passive: false, durable, exclusive, auto_delete, arguments })
}

fn exchange(exchange: &str, durable: bool, passive: bool) -> Request {
    let (kind, auto_delete, internal, arguments) = (ExchangeKind::Fanout, false, false, Table::new());
    Request::DeclareExchange { spec: ExchangeSpec { name: name(exchange), kind, durable, auto_delete, internal, arguments }, passive }
}

async fn done(client: &mut Client, request: Request) -> Reply {
    client.ask(request.clone()).await.unwrap_or_else(|failed| panic!("{request:?}: {failed:?}"))
}

async fn consume(client: &mut Client, queue: &str) {
    let (queue, tag, arguments) = (name(queue), "tag".into(), Table::new());
    let request = Request::Consume { queue, tag, no_ack: false, exclusive: false, prefetch: None, arguments };
    assert!(matches!(done(client, request).await, Reply::Consuming { .. }));
}

/// basic.cancel comes.
async fn cancelled(client: &mut Client) {
    let until = Instant::now() + PATIENCE;
    while !client.news(Duration::from_millis(100)).await.iter().any(|news| matches!(news, News::ConsumerGone)) {
        assert!(client.is_alive() && Instant::now() < until, "the consumer was not cancelled");
    }
}

/// Until the name is free; how often it was not.
async fn take_over(client: &mut Client, queue: &str) -> usize {
    let until = Instant::now() + PATIENCE;
    let mut locked = 0;
    loop {
        match client.ask(in_memory(queue, true)).await {
            Ok(Reply::Queue { .. }) => return locked,
            Err(Failed::Refused(Refusal::Locked(_))) => locked += 1,
            // The catalog's leader may be another one by now.
            Err(Failed::Refused(Refusal::Unavailable(_))) => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < until, "the name is never free");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a mandatory message with that key finds a queue.
async fn is_routed(client: &mut Client, queue: &str) -> bool {
    let publish = Publish {
        channel: CHANNEL,
        ticket: Some(1),
        mandatory: true,
        exchange: bytes::Bytes::new(),
        routing_key: queue.to_owned().into(),
        properties: bytes::Bytes::from_static(&[0, 0]),
        body: bytes::Bytes::from_static(b"body"),
    };
    assert!(client.publish(Step::Publish(publish)).await);
    let (until, mut returned) = (Instant::now() + PATIENCE, false);
    loop {
        for news in client.news(Duration::from_millis(100)).await {
            match news {
                News::Returned(_) => returned = true,
                News::Confirmed(_) => return !returned,
                other @ (News::Nacked(_) | News::Delivered { .. } | News::ConsumerGone | News::Odd(_)) => panic!("{other:?}"),
            }
        }
        assert!(Instant::now() < until, "no verdict");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_a_node_that_is_cut_off_or_dead_become_free_and_its_consumers_are_told() {
    let machines = Machines::start();
    let (mut at_home, mut guest, mut moved) = (machines.client(3).await, machines.client(2).await, machines.client(1).await);
    for (queue, exclusive) in [("mine", true), ("shared", false)] {
        done(&mut at_home, in_memory(queue, exclusive)).await;
    }
    consume(&mut at_home, "mine").await;
    consume(&mut guest, "shared").await;

    machines.isolate(3);
    let locked = take_over(&mut moved, "mine").await;
    assert!(locked > 0, "it was the queue of a node that might come back");
    cancelled(&mut guest).await;
    assert!(!is_routed(&mut moved, "shared").await, "it went with the memory of its node");

    machines.network.heal();
    cancelled(&mut at_home).await;
    let refused = at_home.ask(in_memory("mine", true)).await;
    assert!(matches!(refused, Err(Failed::Refused(Refusal::Locked(_)))), "somebody else has it now: {refused:?}");
    done(&mut at_home, in_memory("again", true)).await;
    assert!(is_routed(&mut moved, "again").await, "the same process is up again");

    machines.hosts[2].kill(Crash::Process);
    take_over(&mut moved, "again").await;
    machines.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_durable_survives_restarts_of_all_nodes_in_turn_and_ends_with_the_whole_cluster() {
    let machines = Machines::start();
    let mut client = machines.client(1).await;
    done(&mut client, declare("q", false)).await;
    for (source, durable) in [("kept", true), ("passing", false)] {
        done(&mut client, exchange(source, durable, false)).await;
        let (source, destination) = (source.into(), "q".into());
        let (vhost, target, key, arguments) = ("/".into(), Target::Queue, "".into(), Table::new());
        done(&mut client, Request::Bind(BindingSpec { vhost, source, target, destination, key, arguments })).await;
    }
    drop(client); // whoever holds an edge keeps its process from ending
    for node in 1..=3 {
        machines.restart(&[node]).await;
        done(&mut machines.client(node).await, exchange("passing", false, true)).await;
    }
    // Two of three at once: the third carries the run on.
    machines.restart(&[1, 2]).await;
    done(&mut machines.client(1).await, exchange("passing", false, true)).await;

    machines.restart(&[1, 2, 3]).await;
    let mut client = machines.client(2).await;
    let missing = client.ask(exchange("passing", false, true)).await;
    assert!(matches!(missing, Err(Failed::Refused(Refusal::NotFound { .. }))), "{missing:?}");
    done(&mut client, exchange("kept", true, true)).await;
    done(&mut client, declare("q", true)).await;

    // A node that does not come back holds up the end of the run, and then it ends all the same.
    done(&mut client, exchange("passing", false, false)).await;
    drop(client);
    (1..=3).for_each(|node| machines.hosts[node - 1].kill(Crash::Power));
    machines.start_again(&[1, 3]).await;
    let mut client = machines.client(1).await;
    let missing = client.ask(exchange("passing", false, true)).await;
    assert!(matches!(missing, Err(Failed::Refused(Refusal::NotFound { .. }))), "{missing:?}");
    done(&mut client, exchange("kept", true, true)).await;
    machines.check();
}

async fn alone(shards: u16, disk: &SimDisk, dir: &Path) -> SimulatedNode {
    let settings = Settings { node_id: Some(1), data_dir: Some(dir.to_owned()), shards: Some(shards), ..Settings::default() };
    let config = ServerConfig::load(settings, &|_| None).unwrap();
    let network = MemoryNetwork::new(1);
    let ground = Ground {
        disk: Arc::new(disk.clone()),
        wal: WalConfig { fatal: Some(Arc::new(|_| ())), ..WalConfig::default() },
        wire: Box::new(move |handler| Ok(network.join(warren::model::NodeId(1), handler))),
        clocks: warren::consensus::Sources::default(),
    };
    SimulatedNode::start(config, ground).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_shards_is_that_of_the_formation_whatever_the_options_say_later() {
    let (disk, dirs) = (SimDisk::new(1), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let node = alone(4, &disk, dirs[0].path()).await;
    assert_eq!(node.shards(), 4);
    node.kill();
    // Without its state store too: the log says it.
    let again = alone(2, &disk.crash(Crash::Power), dirs[1].path()).await;
    assert_eq!((again.shards(), again.replicas().catalog().read().shards().count()), (4, 4));
}
