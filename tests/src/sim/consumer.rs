//! Consumers: an orderly one only acknowledges; a wild one also gives messages back, closes its channel, hangs up, and fetches with
//! basic.get. Each stretch between those is a consumer of its own in the judges' eyes.

use super::client::{CHANNEL, Client, Failed, News, name};
use super::publisher::over;
use super::world::{Kind, Phase, World};
use crate::chance::Chance;
use crate::oracle::{self, Message, Oracle};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use warren::model::ConsumerId;
use warren::model::catalog::Table;
use warren::model::entry::StoredMessage;
use warren::model::step::{Held, Outcome, Reply, Request, Step};

/// One stretch of consuming.
struct Consumer {
    world: Arc<World>,
    client: Client,
    queue: &'static str,
    judge: Arc<Oracle>,
    id: u32,
    consumer: Option<ConsumerId>,
    held: Vec<(Held, Message)>,
}

/// How a stretch ended.
#[derive(PartialEq, Eq)]
enum End {
    /// The node is dead, or the queue is gone.
    Gone,
    /// By its own will: the channel was closed.
    Closed,
    /// The connection is to be dropped.
    HangUp,
}

/// Until the run ends.
pub async fn run(world: Arc<World>, queue: &'static str, kind: Kind, mut chance: Chance) {
    while world.phase() < Phase::End {
        let client = tokio::select! {
            client = Client::connect(chance.pick(&world.hosts)) => client,
            () = over(&world, Phase::End) => return,
        };
        let mut client = Some(client);
        while let Some(now) = client.take().filter(Client::is_alive).filter(|_| world.phase() < Phase::End) {
            let (judge, id) = (world.judges[queue].clone(), world.id());
            if !now.host.enter(now.life, &judge, id) {
                break;
            }
            let mut consumer = Consumer { world: world.clone(), client: now, queue, judge, id, consumer: None, held: Vec::new() };
            let get = kind == Kind::Wild && world.phase() == Phase::Load && chance.one_in(5);
            let end = if get { consumer.get(&mut chance).await } else { consumer.consume(kind, &mut chance).await };
            match end {
                End::Closed => client = Some(consumer.client),
                End::HangUp => consumer.judge.closed(consumer.id),
                End::Gone => sleep(Duration::from_millis(chance.between(5, 60))).await,
            }
        }
    }
}

impl Consumer {
    async fn consume(&mut self, kind: Kind, chance: &mut Chance) -> End {
        let prefetch = *chance.pick(&[Some(1), Some(5), Some(50), None]);
        let request = Request::Consume {
            queue: name(self.queue),
            tag: "sim".into(),
            no_ack: false,
            exclusive: false,
            prefetch,
            arguments: Table::new(),
        };
        match self.client.ask(request).await {
            Ok(Reply::Consuming { consumer }) => self.consumer = Some(consumer),
            Ok(other) => self.world.error(format!("consume is answered by {other:?}")),
            Err(Failed::Dead) => return End::Gone,
            Err(Failed::Silent) => self.world.error(format!("consume of {} is not answered", self.queue)),
            // No quorum, or no such queue.
            Err(Failed::Refused(refusal)) if kind == Kind::Churned || self.world.phase() == Phase::Load => {
                tracing::debug!(%refusal, "consume refused");
                return End::HangUp;
            }
            Err(Failed::Refused(refusal)) => {
                tracing::info!(%refusal, queue = self.queue, "consume refused when nothing is wrong any more");
                return End::HangUp;
            }
        }
        while self.client.is_alive() {
            if self.world.phase() == Phase::End {
                return End::HangUp;
            }
            let gone = self.take(Duration::from_millis(20)).await;
            if gone {
                self.check_gone(kind);
                return End::HangUp;
            }
            match self.act(kind, chance) {
                None => {}
                Some(end) => return end,
            }
        }
        End::Gone
    }

    fn check_gone(&self, kind: Kind) {
        if kind != Kind::Churned {
            self.world.error(format!("the consumer of {} was cancelled, though its queue is there", self.queue));
        }
    }

    /// Takes what comes; true: the broker ended the consumer.
    async fn take(&mut self, most: Duration) -> bool {
        let mut gone = false;
        for news in self.client.news(most).await {
            match news {
                News::Delivered { consumer, shard, messages } => {
                    let bytes = messages.iter().map(|m| m.message.len() as u64).sum();
                    self.client.tell(Step::Written { consumer, bytes });
                    for m in messages {
                        let held = Held { shard, queue: m.queue, seq: m.seq, consumer: Some(consumer) };
                        self.got(held, m.message, m.redelivered);
                    }
                }
                News::ConsumerGone => gone = true,
                News::Odd(event) => self.world.error(format!("the consumer of {} is told {event:?}", self.queue)),
                odd @ (News::Confirmed(_) | News::Nacked(_) | News::Returned(_)) => {
                    self.world.error(format!("the consumer of {} is told {odd:?}", self.queue));
                }
            }
        }
        gone
    }

    fn got(&mut self, held: Held, stored: Bytes, redelivered: bool) {
        let message = StoredMessage::parse(stored).and_then(|stored| oracle::read_body(&stored.body));
        match message {
            Some(message) => {
                self.judge.got(self.id, message, redelivered);
                self.held.push((held, message));
            }
            None => self.world.error(format!("a message of {} is not what was published", self.queue)),
        }
    }

    /// Does something with what it holds.
    fn act(&mut self, kind: Kind, chance: &mut Chance) -> Option<End> {
        if kind != Kind::Wild || self.world.phase() != Phase::Load {
            let all = self.held.len();
            self.settle(all, Outcome::Ack);
            return None;
        }
        match chance.below(24) {
            0..=11 => {
                let all = self.held.len();
                self.settle(all, Outcome::Ack);
            }
            12..=17 => {
                let some = chance.below(self.held.len() + 1);
                self.settle(some, Outcome::Ack);
            }
            18 | 19 => {
                let some = chance.below(self.held.len().min(3) + 1);
                self.settle(some, Outcome::Requeue);
            }
            20 => return Some(self.close_channel()),
            21 if chance.one_in(3) => return Some(End::HangUp),
            _ => {}
        }
        None
    }

    /// Settles the oldest `count`.
    fn settle(&mut self, count: usize, outcome: Outcome) {
        let (held, messages): (Vec<Held>, Vec<Message>) = self.held.drain(..count).unzip();
        if held.is_empty() {
            return;
        }
        let (judge, id) = (&self.judge, self.id);
        self.client.tell_with(Step::Settle { held, outcome, asked: true }, || {
            for message in messages {
                match outcome {
                    Outcome::Ack | Outcome::Reject => judge.settled_by(id, message),
                    Outcome::Requeue => judge.requeued_by(id, message),
                };
            }
        });
    }

    fn close_channel(&mut self) -> End {
        self.judge.closed(self.id);
        let held = self.held.drain(..).map(|(held, _)| held).collect();
        self.client.tell(Step::ChannelClosed { channel: CHANNEL, held });
        End::Closed
    }

    /// A few basic.get.
    async fn get(&mut self, chance: &mut Chance) -> End {
        for _ in 0..chance.between(1, 8) {
            match self.client.ask(Request::Get { queue: name(self.queue), no_ack: false }).await {
                Ok(Reply::Got(Some(got))) => {
                    let held = Held { shard: got.shard, queue: got.delivery.queue, seq: got.delivery.seq, consumer: None };
                    self.got(held, got.delivery.message, got.delivery.redelivered);
                }
                Ok(Reply::Got(None)) => {}
                Ok(other) => self.world.error(format!("get is answered by {other:?}")),
                Err(Failed::Dead) => return End::Gone,
                Err(Failed::Silent) => self.world.error(format!("get of {} is not answered", self.queue)),
                Err(Failed::Refused(_)) => return End::HangUp,
            }
        }
        let some = chance.below(self.held.len() + 1);
        self.settle(some, if chance.one_in(4) { Outcome::Requeue } else { Outcome::Ack });
        if chance.one_in(2) { self.close_channel() } else { End::HangUp }
    }
}
