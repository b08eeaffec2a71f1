//! One request, from its headers to its answer: who signed it, what it asks for, what the catalog has of that, what an agent makes of it.

use super::desk::{now, now_ms};
use super::errand::Settling;
use super::hub::Hub;
use crate::edge::{Edge, May};
use crate::model::catalog::{Name, Refusal};
use crate::model::limits;
use crate::model::rocketmq::{self, Arrangement, TopicSettings};
use crate::session::rocketmq::agent::{Command, HalfPublish, Outcome, Poll, Scope};
use crate::session::rocketmq::answers::{self, Handed};
use crate::session::rocketmq::faults::Fault;
use crate::session::rocketmq::message::{Outgoing, outgoing};
use crate::session::rocketmq::request::{self, Deed, Incoming, Mode, Tags, Verdict};
use crate::wire::rocketmq::signature::Signed;
use crate::wire::rocketmq::target::Target;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A publish or an acknowledgement that takes longer is answered with "unavailable": before the SDK's own patience ends (60 s).
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks for half messages of a topic, whoever waits for them on this node.
const HALF_POLL: Duration = Duration::from_millis(500);

/// A request whose signer has proved who it is, and may come from where it comes.
pub(super) struct Admitted {
    method: String,
    target: Target,
    user: Arc<str>,
    peer: SocketAddr,
}

/// An answer.
pub(super) struct Answer {
    pub status: u16,
    pub document: String,
}

/// A client that has proved who it is, and what it is about.
struct Client<'h> {
    hub: &'h Hub,
    user: Arc<str>,
    topic: Name,
    peer: SocketAddr,
    stop_rx: watch::Receiver<bool>,
}

/// What comes of a request.
type Done = Result<Answer, Fault>;

fn answer(status: u16, document: String) -> Done {
    Ok(Answer { status, document })
}

impl Hub {
    /// Who asks. The signature does not cover the document: that need not be here yet.
    pub(super) async fn admit(&self, signed: Signed, authorization: Option<&str>, peer: SocketAddr) -> Result<Admitted, Fault> {
        let target = request::target(&signed.target)?;
        let (id, signature) = request::signer(authorization, &signed, now_ms())?;
        let key = self.known(|edge| edge.access_key(id)).await?.ok_or_else(Fault::no_key)?;
        if !signed.is_by(&key.secret, signature) {
            return Err(Fault::signature());
        }
        // Here, not where an agent logs in: what is asked of other nodes, or found in the catalog, needs no agent of this user.
        self.edge.may_come(&key.user, peer.ip()).map_err(|why| {
            tracing::warn!(%peer, why, "request refused");
            Fault::denied()
        })?;
        Ok(Admitted { method: signed.method, target, user: key.user.into(), peer })
    }

    async fn known<T>(&self, look: impl Fn(&Edge) -> Option<T>) -> Result<Option<T>, Fault> {
        self.find(look).await.map_err(|refusal| Fault::of(&refusal))
    }

    /// `stop_rx`: the broker stops.
    pub(super) async fn answer(&self, admitted: Admitted, document: &[u8], stop_rx: watch::Receiver<bool>) -> Done {
        let Admitted { method, target, user, peer } = admitted;
        let vhost: Arc<str> = target.instance.clone().unwrap_or_else(|| self.settings.default_vhost.clone()).into();
        self.known(|edge| edge.has_vhost(&vhost).then_some(())).await?.ok_or_else(Fault::no_topic)?;
        let name = |name: &str| Name { vhost: vhost.clone(), name: name.into() };
        let mut topic = name(&target.topic);
        let decoded = crate::wire::rocketmq::target::decode(&target.topic);
        if self.edge.topic(&topic).is_none() && decoded != target.topic {
            topic = name(&decoded);
        }
        let client = Client { hub: self, user, topic, peer, stop_rx };
        let settings = client.topic().await?;
        match request::deed(&method, &target, document)? {
            Deed::Publish(incoming) => {
                incoming.check(self.settings.max_message_bytes)?;
                client.publish(incoming).await
            }
            Deed::Consume { group: _, most, wait_ms, mode: Mode::Half, .. } => client.check(&settings, most, wait_ms).await,
            Deed::Consume { group, most, wait_ms, tags, mode } => client.consume(&settings, (&group, &tags), most, wait_ms, mode).await,
            Deed::Settle { group, handles, verdict } => client.settle(&settings, &group, &handles, verdict).await,
        }
    }
}

fn refused<T>(refusal: &Refusal) -> Result<T, Fault> {
    Err(Fault::of(refusal))
}

fn unexpected() -> Fault {
    Fault { status: 500, code: "InternalError", message: "Internal error.".to_owned() }
}

impl Client<'_> {
    /// Waits no longer than the client's own patience, and not much longer than this process: a connection that ends without an answer
    /// makes the SDK publish again.
    async fn in_time<T>(&self, outcome: impl Future<Output = T>) -> Result<T, Fault> {
        let mut stop_rx = self.stop_rx.clone();
        let stopping = async {
            super::stopped(&mut stop_rx).await;
            tokio::time::sleep(limits::CLOSING).await;
        };
        let why = tokio::select! {
            outcome = outcome => return Ok(outcome),
            () = tokio::time::sleep(PATIENCE) => "no majority of the nodes answered in time; it may have taken effect, or may yet",
            () = stopping => "this node is stopping; it may have taken effect, or may yet",
        };
        Err(Fault::unavailable(why))
    }

    fn may(&self, what: May<'_>) -> Result<(), Fault> {
        self.hub.edge.permits(&self.user, &self.topic.vhost, what).map_err(|refusal| Fault::of(&refusal))
    }

    /// The topic; a new one where the server makes them by itself.
    async fn topic(&self) -> Result<TopicSettings, Fault> {
        let edge = &self.hub.edge;
        if let Some(settings) = self.hub.known(|edge| edge.topic(&self.topic)).await? {
            return Ok(settings);
        }
        if !self.hub.settings.auto_create_topics || !rocketmq::is_name(&self.topic.name) {
            return Err(Fault::no_topic());
        }
        self.may(May::Create(&self.topic.name))?;
        let settings = TopicSettings { partitions: rocketmq::PARTITIONS_DEFAULT, ..TopicSettings::default() };
        let arrangement = Arrangement::AddTopic { topic: self.topic.clone(), settings };
        let added = edge.arrange(&arrangement, &self.hub.settings.defaults).await;
        added.map_err(|refusal| Fault::of(&refusal))?;
        edge.topic(&self.topic).ok_or_else(Fault::no_topic)
    }

    async fn publish(&self, incoming: Incoming) -> Done {
        let id = format!("{:032X}", rand::random::<u128>());
        let queue = self.hub.own_half_queue(&self.topic);
        let Outgoing { publish, md5, immunity_ms } = outgoing(&self.topic.name, &queue.name, incoming, &id, now_ms())?;
        if immunity_ms.is_none() {
            let command = Command::Publish(Box::new(publish));
            return match self.in_time(self.hub.ask(&self.user, &self.topic.vhost, self.peer, command)).await? {
                Outcome::Published => answer(201, answers::published(&id, &md5, None)),
                Outcome::Refused(refusal) => refused(&refusal),
                Outcome::Polled(_) | Outcome::Settled(_) | Outcome::Halved(_) => Err(unexpected()),
            };
        }
        self.may(May::Publish(&self.topic.name))?;
        let edge = &self.hub.edge;
        let made = edge.replicated(&queue, &rocketmq::half_arguments(), edge.partition_shard(&self.topic, 0)).await;
        made.map_err(|refusal| Fault::of(&refusal))?;
        let half = HalfPublish { publish, queue, topic: self.topic.name.clone(), id: id.clone() };
        let command = Command::Half(Box::new(half));
        match self.in_time(self.hub.ask_halves(&self.topic.vhost, command)).await? {
            Outcome::Halved(handle) => answer(201, answers::published(&id, &md5, Some(&handle))),
            Outcome::Refused(refusal) => refused(&refusal),
            Outcome::Published | Outcome::Polled(_) | Outcome::Settled(_) => Err(unexpected()),
        }
    }

    /// The queues of a group, which is made when it is new.
    async fn group(&self, group: &str, settings: &TopicSettings) -> Result<Vec<Name>, Fault> {
        let edge = &self.hub.edge;
        if let Some(queues) = edge.group(&self.topic, group) {
            return Ok(queues);
        }
        self.may(May::Subscribe(&self.topic.name, &rocketmq::group_queue(&self.topic.name, group, 0, settings.partitions)))?;
        let arrangement = Arrangement::AddGroup { topic: self.topic.clone(), group: group.to_owned(), max_retries: None };
        let added = edge.arrange(&arrangement, &self.hub.settings.defaults).await;
        added.map_err(|refusal| Fault::of(&refusal))?;
        edge.group(&self.topic, group).ok_or_else(|| Fault::unavailable("the group is being made; ask again"))
    }

    async fn consume(&self, settings: &TopicSettings, (group, tags): (&str, &str), most: u32, wait_ms: u64, mode: Mode) -> Done {
        let until_ms = now().steady_ms + wait_ms;
        let queues = self.in_time(self.group(group, settings)).await??;
        let defaults = &self.hub.settings.defaults;
        let alone = mode == Mode::Ordered;
        let invisible_ms = match alone {
            true => settings.ordered_invisible_ms.unwrap_or(defaults.ordered_invisible_ms),
            false => settings.invisible_ms.unwrap_or(defaults.invisible_ms),
        };
        let scope = Scope { topic: self.topic.name.clone(), group: group.into() };
        let poll = Poll { scope, queues, most, alone, tags: Tags::parse(tags), invisible_ms, until_ms };
        let asked = self.hub.ask(&self.user, &self.topic.vhost, self.peer, Command::Poll(Box::new(poll)));
        let mut stop_rx = self.stop_rx.clone();
        let outcome = tokio::select! {
            outcome = asked => outcome,
            () = super::stopped(&mut stop_rx) => Outcome::Polled(Vec::new()),
        };
        match outcome {
            Outcome::Polled(messages) => consumed(&messages),
            Outcome::Refused(refusal) => refused(&refusal),
            Outcome::Published | Outcome::Settled(_) | Outcome::Halved(_) => Err(unexpected()),
        }
    }

    /// Half messages that nobody decided.
    async fn check(&self, settings: &TopicSettings, most: u32, wait_ms: u64) -> Done {
        self.may(May::Publish(&self.topic.name))?;
        let invisible_ms = settings.half_invisible_ms.unwrap_or(self.hub.settings.defaults.half_invisible_ms);
        let mut stop_rx = self.stop_rx.clone();
        let look = || self.hub.check(&self.topic, (most, invisible_ms));
        let found = tokio::select! {
            found = self.hub.turns.watch(&self.topic, (Duration::from_millis(wait_ms), HALF_POLL), look) => found,
            () = super::stopped(&mut stop_rx) => Ok(Vec::new()),
        };
        consumed(&found.map_err(|refusal| Fault::of(&refusal))?)
    }

    async fn settle(&self, settings: &TopicSettings, group: &str, handles: &[String], verdict: Verdict) -> Done {
        match verdict {
            Verdict::Ack => self.may(May::Consume(&rocketmq::group_queue(&self.topic.name, group, 0, settings.partitions)))?,
            Verdict::Commit | Verdict::Rollback => self.may(May::Publish(&self.topic.name))?,
        }
        let good = self.in_time(self.hub.settle(&self.topic, group, handles, Settling::from(verdict))).await?;
        let good = good.map_err(|refusal| Fault::of(&refusal))?;
        let bad: Vec<&str> = handles.iter().zip(&good).filter(|(_, is_good)| !**is_good).map(|(handle, _)| handle.as_str()).collect();
        // Looked at last: a group that this node has not heard of yet may have been given them.
        if verdict == Verdict::Ack && bad.len() == handles.len() {
            self.hub.known(|edge| edge.group(&self.topic, group)).await?.ok_or_else(Fault::no_group)?;
        }
        if bad.is_empty() { answer(204, String::new()) } else { answer(404, answers::unsettled(bad)) }
    }
}

fn consumed(messages: &[Handed]) -> Done {
    if messages.is_empty() { Err(Fault::no_message()) } else { answer(200, answers::consumed(messages)) }
}
