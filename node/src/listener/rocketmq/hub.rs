//! All agents of this node, and what requests ask of them: here, or on the node that a receipt handle names.

use super::desk::Desk;
use super::errand::{Elsewhere, Errand, Report, Settling, encode};
use super::turns::Turns;
use crate::edge::{Connection, ConnectionInfo, Edge, RocketDefaults};
use crate::model::catalog::{Name, Refusal};
use crate::model::rocketmq::half_queue;
use crate::model::{Incarnation, NodeId};
use crate::session::rocketmq::agent::{Agent, Check, Command, Identity, Outcome, Scope};
use crate::session::rocketmq::answers::Handed;
use crate::session::rocketmq::handle::{Handle, Slot};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A node that does not answer for so long spoils only the handles that it gave: less than a request waits.
const SETTLING: Duration = Duration::from_secs(15);

/// What the port is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// The instance of requests that name none.
    pub default_vhost: String,
    /// What error documents call this server.
    pub host_id: String,
    /// Largest message, bytes.
    pub max_message_bytes: u64,
    /// Where topics say nothing.
    pub defaults: RocketDefaults,
    /// Topics are made when somebody publishes or consumes.
    pub auto_create_topics: bool,
}

/// For whom an agent works.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A user in a vhost, from this machine or not.
    Client { user: Arc<str>, vhost: Arc<str>, is_near: bool },
    /// Half messages of a vhost.
    Halves { vhost: Arc<str> },
}

#[derive(Default)]
struct Agents {
    by_key: HashMap<Key, u32>,
    desks: HashMap<u32, Arc<Desk>>,
    last: u32,
}

impl Agents {
    /// The agent for that, if there is one that takes commands.
    fn known(&self, key: &Key) -> Option<Arc<Desk>> {
        self.by_key.get(key).and_then(|number| self.desks.get(number)).filter(|desk| !desk.is_closed()).cloned()
    }
}

/// The agents of a node.
pub struct Hub {
    pub(super) edge: Arc<Edge>,
    pub(super) settings: Settings,
    /// Of those that wait for half messages.
    pub(super) turns: Turns,
    elsewhere: Arc<dyn Elsewhere>,
    agents: Mutex<Agents>,
    this: Weak<Hub>,
}

/// Handles, and where they are settled: positions among the handles of the request.
type Places = BTreeMap<(NodeId, u32), Vec<(usize, Slot)>>;

impl Hub {
    /// Without agents.
    pub fn new(edge: Arc<Edge>, settings: Settings, elsewhere: Arc<dyn Elsewhere>) -> Arc<Hub> {
        Arc::new_cyclic(|this| Hub { edge, settings, turns: Turns::default(), elsewhere, agents: Mutex::default(), this: this.clone() })
    }

    /// Has an agent of that user do something; a new one, when there is none.
    pub(super) async fn ask(&self, user: &Arc<str>, vhost: &Arc<str>, peer: SocketAddr, command: Command) -> Outcome {
        let key = Key::Client { user: user.clone(), vhost: vhost.clone(), is_near: is_near(peer.ip()) };
        self.ask_key(key, |edge| edge.connect(ConnectionInfo { peer }), command).await
    }

    /// The same of the agent for half messages, which serves all users: what they may do is looked at before.
    pub(super) async fn ask_halves(&self, vhost: &Arc<str>, command: Command) -> Outcome {
        self.ask_key(Key::Halves { vhost: vhost.clone() }, |edge| edge.connect_own(vhost), command).await
    }

    async fn ask_key(&self, key: Key, connect: impl Fn(&Arc<Edge>) -> Connection, command: Command) -> Outcome {
        // One that ends just now did nothing; another takes its place.
        for _ in 0..2 {
            let desk = self.desk(&key, &connect);
            if let Some(outcome) = desk.ask(command.clone()).await {
                return outcome;
            }
        }
        Outcome::Refused(Refusal::Unavailable("this node is stopping".to_owned()))
    }

    fn desk(&self, key: &Key, connect: impl Fn(&Arc<Edge>) -> Connection) -> Arc<Desk> {
        let mut agents = self.agents.lock();
        if let Some(desk) = agents.known(key) {
            return desk;
        }
        agents.last = agents.last.wrapping_add(1);
        let number = agents.last;
        let Settings { node, incarnation, .. } = self.settings;
        let (user, vhost) = match key {
            Key::Client { user, vhost, .. } => (Some(user.clone()), vhost.clone()),
            Key::Halves { vhost } => (None, vhost.clone()),
        };
        let identity = Identity { node, incarnation, number, user, vhost: vhost.clone() };
        let agent = Agent::new(identity, Box::new(rand::random));
        let (this, ending) = (self.this.clone(), key.clone());
        let desk = Desk::start(connect(&self.edge), vhost, agent, move || {
            if let Some(hub) = this.upgrade() {
                hub.ended(&ending, number);
            }
        });
        agents.by_key.insert(key.clone(), number);
        agents.desks.insert(number, desk.clone());
        desk
    }

    fn ended(&self, key: &Key, number: u32) {
        let mut agents = self.agents.lock();
        agents.desks.remove(&number);
        if agents.by_key.get(key) == Some(&number) {
            agents.by_key.remove(key);
        }
    }

    /// The agent with that number, if it works in that vhost.
    fn numbered(&self, number: u32, vhost: &str) -> Option<Arc<Desk>> {
        let agents = self.agents.lock();
        agents.desks.get(&number).filter(|desk| desk.vhost() == vhost).cloned()
    }

    /// Settles deliveries where they are held. Which of the handles were good; a refusal when none was, and some may be.
    pub(super) async fn settle(&self, topic: &Name, group: &str, handles: &[String], verdict: Settling) -> Result<Vec<bool>, Refusal> {
        let until = Instant::now() + SETTLING;
        let (places, mut refusal) = self.places(handles).await;
        let mut good = vec![false; handles.len()];
        let asked = places.into_iter().map(|((node, agent), slots)| async move {
            let only = slots.iter().map(|(_, slot)| *slot).collect();
            let errand = Errand::Settle { agent, slots: only, topic: topic.clone(), group: group.to_owned(), verdict };
            let late = || Report::Refused(silent(node));
            (slots, timeout_at(until, self.send(node, errand)).await.unwrap_or_else(|_| late()))
        });
        for (slots, report) in futures::future::join_all(asked).await {
            match report {
                Report::Settled(settled) => slots.iter().zip(settled).for_each(|((at, _), is_good)| good[*at] = is_good),
                Report::Refused(why) => refusal = refusal.or(Some(why)),
                Report::Checked(_) => {}
            }
        }
        match refusal {
            Some(refusal) if !good.contains(&true) => Err(refusal),
            Some(_) | None => Ok(good),
        }
    }

    /// Where handles are settled. Those of processes that are gone are good nowhere; a refusal when nobody knows whether some are.
    async fn places(&self, handles: &[String]) -> (Places, Option<Refusal>) {
        let handles: Vec<(usize, Handle)> = handles.iter().enumerate().filter_map(|(at, text)| Some((at, Handle::parse(text)?))).collect();
        let mut up: HashMap<NodeId, Incarnation> = self.edge.processes().into_iter().collect();
        let mut refusal = None;
        let is_elsewhere = |handle: &Handle| handle.node != self.settings.node;
        if handles.iter().any(|(_, handle)| is_elsewhere(handle) && up.get(&handle.node) != Some(&handle.incarnation)) {
            refusal = self.edge.leased().await.err();
            up = self.edge.processes().into_iter().collect();
        }
        let mut places = Places::new();
        for (at, handle) in handles {
            let is_present = match is_elsewhere(&handle) {
                true => up.get(&handle.node) == Some(&handle.incarnation),
                false => handle.incarnation == self.settings.incarnation,
            };
            if is_present {
                places.entry((handle.node, handle.agent)).or_default().push((at, handle.slot));
            }
        }
        (places, refusal)
    }

    /// Looks in the catalog; what is not there is looked for again once this node's copy of it counts.
    pub(super) async fn find<T>(&self, look: impl Fn(&Edge) -> Option<T>) -> Result<Option<T>, Refusal> {
        if let Some(found) = look(&self.edge) {
            return Ok(Some(found));
        }
        self.edge.leased().await?;
        Ok(look(&self.edge))
    }

    async fn send(&self, node: NodeId, errand: Errand) -> Report {
        if node == self.settings.node {
            return self.run(errand).await;
        }
        let answered = self.elsewhere.ask(node, encode(&errand)).await;
        let report = answered.and_then(|bytes| rmp_serde::from_slice(&bytes).map_err(|error| error.to_string()));
        report.unwrap_or_else(|why| {
            tracing::debug!(%node, why, "an errand was not answered");
            Report::Refused(silent(node))
        })
    }

    /// Another node asks.
    pub async fn errand(&self, errand: &[u8]) -> Result<Vec<u8>, Refusal> {
        let errand = rmp_serde::from_slice(errand).map_err(|error| Refusal::Precondition(format!("not understood: {error}")))?;
        Ok(encode(&self.run(errand).await))
    }

    async fn run(&self, errand: Errand) -> Report {
        match errand {
            Errand::Settle { agent, slots, topic, group, verdict } => {
                let count = slots.len();
                let Some(desk) = self.numbered(agent, &topic.vhost) else { return Report::Settled(vec![false; count]) };
                let command = match verdict {
                    Settling::Ack => Command::Ack { slots, scope: Scope { topic: topic.name.clone(), group: group.into() } },
                    Settling::Commit | Settling::Rollback => {
                        Command::Decide { slots, topic: topic.name.clone(), commit: verdict == Settling::Commit }
                    }
                };
                match desk.ask(command).await {
                    Some(Outcome::Settled(good)) => Report::Settled(good),
                    Some(Outcome::Refused(refusal)) => Report::Refused(refusal),
                    Some(_) | None => Report::Settled(vec![false; count]),
                }
            }
            // What the client may do was looked at by the node that it came to.
            Errand::Check { topic, most, invisible_ms } => match self.check_here(&topic, most, invisible_ms).await {
                Ok(handed) => Report::Checked(handed),
                Err(refusal) => Report::Refused(refusal),
            },
        }
    }

    /// Half messages that this node holds, or should.
    async fn check_here(&self, topic: &Name, most: u32, invisible_ms: u64) -> Result<Vec<Handed>, Refusal> {
        let up = self.edge.processes();
        let is_ours = |node: NodeId| node == self.settings.node || up.iter().all(|(known, _)| *known != node);
        let queues: Vec<Name> = self.edge.half_queues(topic).into_iter().filter(|(node, _)| is_ours(*node)).map(|(_, name)| name).collect();
        // It may hold some of a node that was gone and is back.
        if queues.is_empty() && self.agents.lock().known(&Key::Halves { vhost: topic.vhost.clone() }).is_none() {
            return Ok(Vec::new());
        }
        let check = Command::Check(Box::new(Check { topic: topic.name.clone(), queues, most, invisible_ms }));
        match self.ask_halves(&topic.vhost, check).await {
            Outcome::Polled(handed) => Ok(handed),
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Published | Outcome::Settled(_) | Outcome::Halved(_) => Ok(Vec::new()),
        }
    }

    /// Half messages of a topic that are to be checked now, from any node.
    pub(super) async fn check(&self, topic: &Name, (most, invisible_ms): (u32, u64)) -> Result<Vec<Handed>, Refusal> {
        let found = self.check_here(topic, most, invisible_ms).await?;
        if !found.is_empty() || self.edge.half_queues(topic).is_empty() {
            return Ok(found);
        }
        let up = self.edge.processes();
        for (node, _) in up.into_iter().filter(|(node, _)| *node != self.settings.node) {
            let errand = Errand::Check { topic: topic.clone(), most, invisible_ms };
            if let Report::Checked(handed) = self.send(node, errand).await
                && !handed.is_empty()
            {
                return Ok(handed);
            }
        }
        Ok(Vec::new())
    }

    /// The queue for half messages that come to this node.
    pub(super) fn own_half_queue(&self, topic: &Name) -> Name {
        Name { vhost: topic.vhost.clone(), name: half_queue(&topic.name, self.settings.node).into() }
    }
}

fn silent(node: NodeId) -> Refusal {
    Refusal::Unavailable(format!("node {node}, which delivered this, does not answer"))
}

fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}
