//! Publishers: each connection is a publisher of its own in the judges' eyes, with a window of unconfirmed messages. When its node dies
//! it goes on elsewhere.

use super::client::{CHANNEL, Client, News};
use super::story;
use super::world::{FANOUT, Phase, World};
use crate::chance::Chance;
use crate::oracle::{self, Message, Oracle};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use warren::model::step::{Publish, Step};

/// Every publish is confirmed or refused by then, when its node lives: patience of the node and a lot for a busy machine.
const VERDICT: Duration = Duration::from_secs(40);

/// Where a publisher publishes to.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Queue(&'static str),
    Fanout,
}

impl Target {
    pub fn queues(self) -> Vec<&'static str> {
        match self {
            Target::Queue(queue) => vec![queue],
            Target::Fanout => FANOUT.1.to_vec(),
        }
    }

    fn step(self, message: Message, size: usize) -> Step {
        let (exchange, key) = match self {
            Target::Queue(queue) => ("", queue),
            Target::Fanout => (FANOUT.0, ""),
        };
        Step::Publish(Publish {
            channel: CHANNEL,
            ticket: Some(message.1),
            mandatory: true,
            exchange: Bytes::from_static(exchange.as_bytes()),
            routing_key: Bytes::from_static(key.as_bytes()),
            properties: Bytes::from_static(&[0, 0]),
            body: oracle::body(message, size).into(),
        })
    }
}

/// One connection's worth of publishing.
pub struct Publisher {
    pub client: Client,
    id: u32,
    target: Target,
    judges: Vec<Arc<Oracle>>,
    next: u64,
    open: BTreeSet<u64>,
    returned: BTreeSet<u64>,
    last_verdict: Instant,
    /// Confirmed and not returned.
    pub confirmed: u64,
}

impl Publisher {
    pub fn new(world: &World, client: Client, target: Target) -> Publisher {
        let judges = target.queues().iter().map(|queue| world.judges[queue].clone()).collect();
        let (id, open, returned) = (world.id(), BTreeSet::new(), BTreeSet::new());
        Publisher { client, id, target, judges, next: 1, open, returned, last_verdict: Instant::now(), confirmed: 0 }
    }

    /// Publishes one; false: the node is dead.
    pub async fn publish(&mut self, size: usize) -> bool {
        let message = (self.id, self.next);
        self.next += 1;
        if self.open.is_empty() {
            self.last_verdict = Instant::now();
        }
        self.open.insert(message.1);
        self.judges.iter().for_each(|judge| judge.published(message));
        self.client.publish(self.target.step(message, size)).await
    }

    /// Unconfirmed.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Takes what has come or comes within `most`.
    pub async fn verdicts(&mut self, world: &World, most: Duration) {
        for news in self.client.news(most).await {
            match news {
                News::Confirmed(tickets) => tickets.into_iter().for_each(|(a, b)| (a..=b).for_each(|t| self.confirmed(t))),
                News::Nacked(tickets) => tickets.into_iter().for_each(|(a, b)| (a..=b).for_each(|t| self.nacked(t))),
                News::Returned(ticket) => self.returned(world, ticket),
                News::Odd(event) => world.error(format!("publisher {} of {:?} is told {event:?}", self.id, self.target)),
                odd @ (News::Delivered { .. } | News::ConsumerGone) => {
                    world.error(format!("publisher {} of {:?} is told {odd:?}", self.id, self.target));
                }
            }
        }
        if !self.open.is_empty() && self.client.is_alive() && self.last_verdict.elapsed() > VERDICT {
            let story = story::of_client(world, &self.client.host).await;
            world.error(format!("publisher {} of {:?} waits for {:?} and gets nothing: {story}", self.id, self.target, self.open));
            self.open.clear();
        }
    }

    fn confirmed(&mut self, ticket: u64) {
        self.last_verdict = Instant::now();
        self.open.remove(&ticket);
        if self.returned.remove(&ticket) {
            return;
        }
        self.confirmed += 1;
        self.judges.iter().for_each(|judge| judge.confirmed((self.id, ticket)));
    }

    fn nacked(&mut self, ticket: u64) {
        self.last_verdict = Instant::now();
        self.open.remove(&ticket);
        self.judges.iter().for_each(|judge| judge.nacked((self.id, ticket)));
    }

    fn returned(&mut self, world: &World, ticket: u64) {
        let may_be_gone = matches!(self.target, Target::Queue("churned"));
        if !may_be_gone {
            world.error(format!("publisher {}: message {ticket} was returned, though {:?} is there", self.id, self.target));
        }
        self.returned.insert(ticket);
    }
}

/// Until the load ends; then waits for the last verdicts.
pub async fn run(world: Arc<World>, target: Target, mut chance: Chance) {
    while world.phase() == Phase::Load {
        let client = tokio::select! {
            client = Client::connect(chance.pick(&world.hosts)) => client,
            () = over(&world, Phase::Drain) => return,
        };
        let window = chance.between(1, 30) as usize;
        let mut publisher = Publisher::new(&world, client, target);
        while world.phase() == Phase::Load && publisher.client.is_alive() {
            let size = if chance.one_in(40) { 60_000 } else { chance.between(16, 800) as usize };
            if publisher.open() < window && !publisher.publish(size).await {
                break;
            }
            let most = if publisher.open() < window { 0 } else { 50 };
            publisher.verdicts(&world, Duration::from_millis(most)).await;
            // Always: a message that no queue takes is answered at once.
            tokio::time::sleep(Duration::from_millis(chance.between(1, 8))).await;
        }
        while publisher.open() > 0 && publisher.client.is_alive() {
            publisher.verdicts(&world, Duration::from_millis(100)).await;
        }
    }
}

/// Resolves when the run has come to `phase`.
pub async fn over(world: &World, phase: Phase) {
    let mut phase_rx = world.phase_tx.subscribe();
    let _ = phase_rx.wait_for(|now| *now >= phase).await;
}
