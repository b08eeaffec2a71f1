//! A client of a simulated node: a connection of its edge, steps in, news out, and the knowledge that the node is dead.

use super::host::{Host, Life, while_serving};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use warren::edge::{Connection, ConnectionInfo};
use warren::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Name, Refusal, Table, Target};
use warren::model::link::Delivery;
use warren::model::step::{DeclareQueue, Event, Reply, Request, Step};
use warren::model::{ConsumerId, ShardId};

/// A request is answered within this time, with a refusal if need be: the nodes' patience of 2 s and a lot for a busy machine.
const ANSWER: Duration = Duration::from_secs(60);
/// The channel of everything.
pub const CHANNEL: u16 = 1;

/// Why a request has no reply.
#[derive(Debug)]
pub enum Failed {
    /// The node died.
    Dead,
    /// The broker says why not.
    Refused(Refusal),
    /// It said nothing for long.
    Silent,
}

/// What clients wait for, of all that a broker says.
#[derive(Debug)]
pub enum News {
    /// First and last ticket of each run.
    Confirmed(Vec<(u64, u64)>),
    Nacked(Vec<(u64, u64)>),
    /// Ticket of a message that no queue took; its confirm follows.
    Returned(u64),
    Delivered {
        consumer: ConsumerId,
        shard: ShardId,
        messages: Vec<Delivery>,
    },
    /// The broker ended a consumer.
    ConsumerGone,
    /// What a client in good standing is never told.
    Odd(Event),
}

impl News {
    fn of(event: Event) -> Option<News> {
        match event {
            Event::Confirmed { tickets, .. } => Some(News::Confirmed(tickets)),
            Event::Nacked { tickets, .. } => Some(News::Nacked(tickets)),
            Event::Returned(publish) => Some(News::Returned(publish.ticket.unwrap_or_default())),
            Event::Deliver { consumer, shard, messages, .. } => Some(News::Delivered { consumer, shard, messages }),
            Event::ConsumerGone { .. } => Some(News::ConsumerGone),
            Event::Blocked(_) | Event::Unblocked => None,
            odd @ (Event::Authenticated
            | Event::AuthenticationFailed(_)
            | Event::Opened
            | Event::OpenRefused(_)
            | Event::SecretUpdated(_)
            | Event::Reply { .. }
            | Event::ChannelError { .. }
            | Event::Report
            | Event::Lost { .. }
            | Event::Close(_)
            | Event::Left) => Some(News::Odd(odd)),
        }
    }
}

/// A client.
pub struct Client {
    pub host: Arc<Host>,
    pub life: u64,
    pub connection: Connection,
    life_rx: watch::Receiver<Life>,
    waiting: VecDeque<Event>,
}

/// A name in the only vhost.
pub fn name(text: &str) -> Name {
    Name { vhost: "/".into(), name: text.into() }
}

/// queue.delete, whatever is in it.
pub fn delete(queue: &str) -> Request {
    Request::DeleteQueue { name: name(queue), if_unused: false, if_empty: false }
}

/// queue.bind.
pub fn bind(exchange: &str, queue: &str, key: &str) -> Request {
    let (vhost, source, destination, key) = ("/".into(), exchange.into(), queue.into(), key.into());
    Request::Bind(BindingSpec { vhost, source, target: Target::Queue, destination, key, arguments: Table::new() })
}

/// exchange.declare of a durable exchange.
pub fn declare_exchange(exchange: &str, kind: ExchangeKind) -> Request {
    let spec = ExchangeSpec { name: name(exchange), kind, durable: true, auto_delete: false, internal: false, arguments: Table::new() };
    Request::DeclareExchange { spec, passive: false }
}

/// queue.declare of a durable queue.
pub fn declare(queue: &str, passive: bool) -> Request {
    Request::DeclareQueue(DeclareQueue {
        name: name(queue),
        passive,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: Table::new(),
    })
}

impl Client {
    /// Waits until the node serves.
    pub async fn connect(host: &Arc<Host>) -> Client {
        let mut life_rx = host.life();
        loop {
            let life = life_rx.wait_for(|life| life.edge.is_some()).await.expect("machines outlive their clients").clone();
            let Some(edge) = life.edge else { continue };
            let mut connection = edge.connect(ConnectionInfo { peer: "127.0.0.1:9".parse().expect("an address") });
            for step in [Step::Authenticate { user: "guest".into(), password: b"guest".to_vec() }, Step::Open { vhost: "/".into() }] {
                assert!(connection.submit(step).is_ok(), "only publishes wait");
            }
            let mut events = Vec::new();
            connection.take_events(&mut events, usize::MAX);
            assert!(events.contains(&Event::Opened), "{events:?}");
            let waiting = events.into_iter().filter(|e| !matches!(e, Event::Authenticated | Event::Opened)).collect();
            return Client { host: host.clone(), life: life.number, connection, life_rx, waiting };
        }
    }

    /// Its node lives.
    pub fn is_alive(&self) -> bool {
        self.life_rx.borrow().serves(self.life)
    }

    /// Resolves when its node is dead.
    pub async fn dead(&self) {
        let (mut life_rx, mine) = (self.life_rx.clone(), self.life);
        let _ = life_rx.wait_for(|life| !life.serves(mine)).await;
    }

    /// Any step but a publish, of which the judge is told by `judge`: both while the node lives, or neither.
    pub fn tell_with(&mut self, step: Step, judge: impl FnOnce()) {
        while_serving(&self.life_rx, self.life, || {
            judge();
            assert!(self.connection.submit(step).is_ok(), "only publishes wait");
        });
    }

    /// Any step but a publish.
    pub fn tell(&mut self, step: Step) {
        assert!(self.connection.submit(step).is_ok(), "only publishes wait");
    }

    /// A publish, when the edge takes it; false: the node is dead.
    pub async fn publish(&mut self, step: Step) -> bool {
        let mut step = step;
        while let Err(back) = self.connection.submit(step) {
            step = back;
            let wait = async {
                tokio::select! {
                    () = self.connection.writable() => true,
                    () = self.dead() => false,
                }
            };
            // A publisher that waits for the routing lease is told by a nack of the next attempt.
            if !timeout(Duration::from_millis(200), wait).await.unwrap_or(true) {
                return false;
            }
        }
        true
    }

    /// What has come; empty when nothing came within `most` or the node is dead.
    pub async fn news(&mut self, most: Duration) -> Vec<News> {
        if self.waiting.is_empty() {
            let _ = timeout(most, async {
                tokio::select! {
                    () = self.connection.changed() => {}
                    () = self.dead() => {}
                }
            })
            .await;
            self.take();
        }
        self.waiting.drain(..).filter_map(News::of).collect()
    }

    fn take(&mut self) {
        if self.is_alive() {
            let mut events = Vec::new();
            self.connection.take_events(&mut events, usize::MAX);
            self.waiting.extend(events);
        }
    }

    /// The answer to a request; everything else waits for `news`.
    pub async fn ask(&mut self, request: Request) -> Result<Reply, Failed> {
        self.tell(Step::Request { channel: CHANNEL, request });
        let answered = timeout(ANSWER, async {
            loop {
                self.take();
                if let Some(at) = self.waiting.iter().position(|event| matches!(event, Event::Reply { .. })) {
                    return self.waiting.remove(at);
                }
                tokio::select! {
                    () = self.connection.changed() => {}
                    () = self.dead() => return None,
                }
            }
        });
        match answered.await {
            Ok(Some(Event::Reply { result: Ok(reply), .. })) => Ok(reply),
            Ok(Some(Event::Reply { result: Err(refusal), .. })) => Err(Failed::Refused(refusal)),
            Ok(_) => Err(Failed::Dead),
            Err(_) => Err(Failed::Silent),
        }
    }
}
