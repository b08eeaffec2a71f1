//! What a test talks to: its own cluster, or brokers named by `WARREN_TEST_URIS` (to check the tests themselves against RabbitMQ).

use crate::client::{ClientError, Connection, Dial, QueueOptions};
use crate::cluster::Cluster;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// A broker with some nodes.
#[derive(Clone, Debug)]
pub enum Broker {
    /// Own processes.
    Own(Arc<Cluster>),
    /// Given addresses; nothing can be killed.
    Given(Vec<String>),
}

impl Broker {
    /// Given addresses, or the cluster that the tests of this process share while one of them runs. Do not harm it: when its last
    /// test ends, none of its nodes may have panicked.
    pub fn shared() -> Broker {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        if let Some(given) = Broker::given() {
            return given;
        }
        let mut shared = SHARED.lock().unwrap_or_else(|poison| poison.into_inner());
        let cluster = shared.upgrade().unwrap_or_else(|| Arc::new(Cluster::start_calm()));
        *shared = Arc::downgrade(&cluster);
        Broker::Own(cluster)
    }

    fn given() -> Option<Broker> {
        let uris = std::env::var("WARREN_TEST_URIS").ok()?;
        Some(Broker::Given(uris.split(',').map(str::to_owned).collect()))
    }

    /// An own cluster that may be harmed; `None` when the tests run against given addresses (the test is then left out, and says so).
    pub fn to_harm(test: &str) -> Option<Cluster> {
        if Broker::given().is_some() {
            println!("{test}: left out, processes behind WARREN_TEST_URIS cannot be harmed");
            return None;
        }
        Some(Cluster::start())
    }

    /// Addresses.
    pub fn uris(&self) -> Vec<String> {
        match self {
            Broker::Own(cluster) => cluster.uris(),
            Broker::Given(uris) => uris.clone(),
        }
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.uris().len()
    }

    /// How to connect to a node.
    pub fn dial(&self, at: usize) -> Dial {
        Dial::parse(&self.uris()[at])
    }

    /// A connection with channel 1.
    pub fn connect(&self, at: usize) -> Connection {
        self.try_connect(at).unwrap_or_else(|error| panic!("node {at} at {}: {error}", self.uris()[at]))
    }

    /// A connection with channel 1, or why not.
    pub fn try_connect(&self, at: usize) -> Result<Connection, ClientError> {
        Connection::open_with_channel(&self.dial(at))
    }

    /// Declare a fresh durable, replicated queue through a node.
    pub fn declare_durable(&self, at: usize, queue: &str) {
        let mut options = QueueOptions::durable();
        options.arguments.push(("x-queue-type".into(), crate::client::Field::Text("quorum".into())));
        self.connect(at).declare(1, queue, &options).unwrap_or_else(|error| panic!("declare {queue}: {error}"));
    }

    /// The own cluster, if it is one.
    pub fn cluster(&self) -> Option<&Cluster> {
        match self {
            Broker::Own(cluster) => Some(cluster),
            Broker::Given(_) => None,
        }
    }

    /// Declare fresh durable queues until one is led by another node than `at`, as the metrics say; its name. What a client of `at` does
    /// with it crosses nodes and disks. The others are deleted.
    pub fn declare_led_elsewhere(&self, at: usize, what: &str) -> String {
        let mut here = Vec::new();
        let found = (0..20).find_map(|_| {
            let queue = crate::unique(what);
            self.declare_durable(at, &queue);
            let leads = self.cluster().is_some() && self.leader(&queue) == at;
            if leads {
                here.push(queue);
                return None;
            }
            Some(queue)
        });
        for queue in here {
            self.connect(at).delete(1, &queue).unwrap_or_else(|error| panic!("delete {queue}: {error}"));
        }
        found.unwrap_or_else(|| panic!("no queue gets a leader other than node {at}"))
    }

    /// The node that leads the queue; own cluster only.
    fn leader(&self, queue: &str) -> usize {
        let Some(cluster) = self.cluster() else { panic!("nobody can tell who leads {queue}") };
        let mut leader = None;
        crate::eventually(Duration::from_secs(10), || {
            leader = cluster.queue_leader(queue);
            leader.is_some()
        });
        leader.unwrap_or_else(|| panic!("no node tells the leader of {queue}"))
    }

    /// A node that does not lead this queue, as the metrics say; counted on from `from`. A client there crosses nodes for certain.
    pub fn node_away_from_leader(&self, queue: &str, from: usize) -> usize {
        if self.cluster().is_none() {
            return from % self.nodes();
        }
        let leader = self.leader(queue);
        (0..self.nodes()).map(|at| (from + at) % self.nodes()).find(|at| *at != leader).unwrap_or(from)
    }
}
