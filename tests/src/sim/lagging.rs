//! Names on nodes whose catalogs lag: what one node has answered holds on every node at once, whatever the others have applied (rule 28),
//! and a name that was deleted and declared again is the new queue everywhere (rule 27). A node that is cut off says nothing about keys
//! that may be bound meanwhile. Nothing else goes wrong here.

use super::PATIENCE;
use super::client::{CHANNEL, Client, Failed, News, bind, declare, declare_exchange, delete};
use super::world::World;
use crate::chance::Chance;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use warren::model::catalog::{ExchangeKind, Refusal};
use warren::model::step::{Publish, Reply, Request, Step};

const EXCHANGE: &str = "keys";
const QUEUE: &str = "again";
/// How late entries come to a node, milliseconds.
const LAGS_MS: [u64; 4] = [0, 5, 40, 150];
/// Times that the name is declared, deleted and declared again.
const ROUNDS: u64 = 8;
/// Between two looks at the catalogs.
const LOOK: Duration = Duration::from_millis(5);

/// A client that publishes with tickets.
struct Speaker {
    client: Client,
    ticket: u64,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    Unroutable,
    Refused,
}

impl Speaker {
    /// Publishes at once; what becomes of it.
    async fn publish(&mut self, exchange: &str, key: &str) -> Result<Fate, String> {
        self.ticket += 1;
        let step = Step::Publish(Publish {
            channel: CHANNEL,
            ticket: Some(self.ticket),
            mandatory: true,
            exchange: Bytes::copy_from_slice(exchange.as_bytes()),
            routing_key: Bytes::copy_from_slice(key.as_bytes()),
            properties: Bytes::from_static(&[0, 0]),
            body: Bytes::from_static(b"x"),
        });
        self.client.publish(step).await;
        let (mut returned, until) = (false, Instant::now() + PATIENCE);
        while Instant::now() < until {
            for news in self.client.news(Duration::from_millis(50)).await {
                match news {
                    News::Returned(ticket) => returned |= ticket == self.ticket,
                    News::Confirmed(tickets) if self.is_in(&tickets) => return Ok(if returned { Fate::Unroutable } else { Fate::Taken }),
                    News::Nacked(tickets) if self.is_in(&tickets) => return Ok(Fate::Refused),
                    News::Odd(event) => return Err(format!("told {event:?}")),
                    odd @ (News::Confirmed(_) | News::Nacked(_) | News::Delivered { .. } | News::ConsumerGone) => {
                        return Err(format!("told {odd:?}"));
                    }
                }
            }
        }
        Err(format!("a message to {exchange:?} with key {key} is neither confirmed nor refused"))
    }

    fn is_in(&self, tickets: &[(u64, u64)]) -> bool {
        tickets.iter().any(|(first, last)| (*first..=*last).contains(&self.ticket))
    }

    async fn must(&mut self, what: &str, exchange: &str, key: &str, fate: Fate) -> Result<(), String> {
        match self.publish(exchange, key).await? {
            now if now == fate => Ok(()),
            other => Err(format!("{what}, and a message through node {} is {other:?}", self.client.host.id)),
        }
    }

    /// The reply.
    async fn done(&mut self, request: Request) -> Result<Reply, String> {
        let asked = format!("{request:?}");
        self.client.ask(request).await.map_err(|failed| format!("node {} answers {asked} with {failed:?}", self.client.host.id))
    }
}

/// How often some node's catalog was seen behind another's. Node `lonely` is cut off in the end.
pub async fn run(world: &Arc<World>, lonely: usize, mut chance: Chance) -> u64 {
    let behind = Arc::new(AtomicU64::new(0));
    let mut speakers = Vec::new();
    for host in &world.hosts {
        speakers.push(Speaker { client: Client::connect(host).await, ticket: 0 });
    }
    let looking = tokio::spawn(look(world.clone(), behind.clone()));
    if let Err(wrong) = speakers[0].done(declare_exchange(EXCHANGE, ExchangeKind::Direct)).await {
        world.error(wrong);
    }
    for number in 0..ROUNDS {
        let lags: Vec<u64> = world.hosts.iter().map(|_| *chance.pick(&LAGS_MS)).collect();
        world.hosts.iter().zip(&lags).for_each(|(host, ms)| world.network.lag(host.id, Duration::from_millis(*ms)));
        let (first, step) = (chance.below(3), chance.between(1, 2) as usize);
        let at = [0, 1, 2].map(|n| (first + n * step) % 3);
        match round(&mut speakers, at, &format!("key-{number}")).await {
            Ok(()) => world.checked(),
            Err(wrong) => world.error(format!("round {number}, nodes lag {lags:?} ms: {wrong}")),
        }
    }
    world.hosts.iter().for_each(|host| world.network.lag(host.id, Duration::ZERO));
    looking.abort();
    if let Err(wrong) = cut_off(world, &mut speakers, lonely).await {
        world.error(format!("node {} is cut off: {wrong}", lonely + 1));
    }
    behind.load(Ordering::Relaxed)
}

/// One life of the name and the next one's beginning.
async fn round(on: &mut [Speaker], [a, b, c]: [usize; 3], key: &str) -> Result<(), String> {
    on[a].done(declare(QUEUE, false)).await?;
    on[b].must("declared", "", QUEUE, Fate::Taken).await?;
    on[a].done(bind(EXCHANGE, QUEUE, key)).await?;
    on[b].must("bound", EXCHANGE, key, Fate::Taken).await?;
    on[c].must("bound", EXCHANGE, key, Fate::Taken).await?;
    match on[c].done(delete(QUEUE)).await? {
        Reply::Count(3) => {}
        other => return Err(format!("three messages are confirmed, the delete says {other:?}")),
    }
    on[a].must("deleted", "", QUEUE, Fate::Unroutable).await?;
    on[b].must("deleted with its binding", EXCHANGE, key, Fate::Unroutable).await?;
    match on[b].client.ask(declare(QUEUE, true)).await {
        Err(Failed::Refused(Refusal::NotFound { .. })) => {}
        other => return Err(format!("deleted, and a passive declare says {other:?}")),
    }
    on[b].done(declare(QUEUE, false)).await?;
    for at in [c, a, b] {
        on[at].must("declared again", "", QUEUE, Fate::Taken).await?;
    }
    match on[a].done(delete(QUEUE)).await? {
        Reply::Count(3) => Ok(()),
        other => Err(format!("three messages are in the new queue, the delete says {other:?}")),
    }
}

/// Counts the looks at which a node's catalog is behind another's.
async fn look(world: Arc<World>, behind: Arc<AtomicU64>) {
    loop {
        let nodes = world.hosts.iter().filter_map(|host| host.node());
        let applied: Vec<u64> = nodes.map(|node| node.replicas().catalog().read().applied().index).collect();
        if applied.iter().any(|index| *index != applied[0]) {
            behind.fetch_add(1, Ordering::Relaxed);
        }
        sleep(LOOK).await;
    }
}

/// A node cannot hear that a key is bound now: it must not say that it is not.
async fn cut_off(world: &World, on: &mut [Speaker], lonely: usize) -> Result<(), String> {
    let (id, other) = (world.hosts[lonely].id, (lonely + 1) % 3);
    on[other].done(declare(QUEUE, false)).await?;
    on[lonely].must("not bound", EXCHANGE, "late", Fate::Unroutable).await?;
    for host in world.hosts.iter().filter(|host| host.id != id) {
        world.network.cut(id, host.id);
    }
    let until = Instant::now() + PATIENCE;
    // The two may have to elect leaders first.
    let bound = timeout_at(until, async { while on[other].done(bind(EXCHANGE, QUEUE, "late")).await.is_err() {} });
    bound.await.map_err(|_| "the majority does not answer".to_owned())?;
    on[lonely].must("bound by the others", EXCHANGE, "late", Fate::Refused).await?;
    world.network.heal();
    loop {
        match on[lonely].publish(EXCHANGE, "late").await? {
            Fate::Taken => return Ok(()),
            Fate::Refused if Instant::now() < until => {}
            fate => return Err(format!("healed, and a message to a key that is bound is {fate:?}")),
        }
    }
}
