//! Methods that the edge must answer: each becomes a `Request` and leaves a `Pending`, from which the reply becomes the method that the
//! client waits for.

use super::channel::{Asked, Channel, Consumer};
use super::errors::{Fault, ReplyCode};
use super::replies::ReplyConsumer;
use super::{Out, Shared};
use crate::model::ConsumerId;
use crate::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Name, Table, Target};
use crate::model::step::{DeclareQueue, Reply, Request};
use crate::wire::amqp::{Method, Short};
use bytes::Bytes;
use std::sync::Arc;

/// How to answer the client when the edge has answered us.
#[derive(Debug)]
pub(super) enum Pending {
    /// channel.open-ok.
    Open,
    /// With this method, or not at all.
    Say {
        /// What.
        ok: Method,
        /// Nothing.
        nowait: bool,
        /// The method it answers.
        method: (u16, u16),
    },
    /// queue.declare-ok.
    Declare {
        /// No answer.
        nowait: bool,
    },
    /// queue.delete-ok.
    Delete {
        /// No answer.
        nowait: bool,
    },
    /// queue.purge-ok.
    Purge {
        /// No answer.
        nowait: bool,
    },
    /// basic.consume-ok.
    Consume {
        /// Its tag.
        tag: Bytes,
        /// Deliveries need no settling.
        no_ack: bool,
        /// What else it asked for.
        asked: Box<Asked>,
        /// No answer.
        nowait: bool,
    },
    /// basic.cancel-ok.
    Cancel {
        /// Its tag.
        tag: Bytes,
        /// No answer.
        nowait: bool,
    },
    /// basic.get-ok or get-empty.
    Get {
        /// The message needs no settling.
        no_ack: bool,
    },
    /// channel.close-ok.
    Close,
    /// channel.close, or connection.close, unless something before it closes first.
    Refuse(Box<Fault>),
}

impl Pending {
    /// The method that waits.
    pub(super) fn method(&self) -> (u16, u16) {
        match self {
            Pending::Say { method, .. } => *method,
            Pending::Open => (20, 10),
            Pending::Declare { .. } => (50, 10),
            Pending::Delete { .. } => (50, 40),
            Pending::Purge { .. } => (50, 30),
            Pending::Consume { .. } => (60, 20),
            Pending::Cancel { .. } => (60, 30),
            Pending::Get { .. } => (60, 70),
            Pending::Close => (20, 40),
            Pending::Refuse(fault) => fault.method,
        }
    }
}

impl Channel {
    /// A method that is a question to the edge.
    pub(super) fn run_request(&mut self, method: Method, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        let id = method.id();
        let say = |ok: Method, nowait: bool| Pending::Say { ok, nowait, method: id };
        let (request, pending) = match method {
            Method::ExchangeDeclare { exchange, kind, passive, durable, auto_delete, internal, nowait, arguments, .. } => {
                let name = shared.name(&exchange)?;
                let kind = if passive { ExchangeKind::Direct } else { exchange_kind(&kind)? };
                let spec = ExchangeSpec { name, kind, durable, auto_delete, internal, arguments };
                (Request::DeclareExchange { spec, passive }, say(Method::ExchangeDeclareOk {}, nowait))
            }
            Method::ExchangeDelete { exchange, if_unused, nowait, .. } => {
                let name = shared.name(&exchange)?;
                (Request::DeleteExchange { name, if_unused }, say(Method::ExchangeDeleteOk {}, nowait))
            }
            Method::ExchangeBind { destination, source, routing_key, nowait, arguments, .. } => {
                let spec = exchange_binding(shared, &source, &destination, &routing_key, arguments)?;
                (Request::Bind(spec), say(Method::ExchangeBindOk {}, nowait))
            }
            Method::ExchangeUnbind { destination, source, routing_key, nowait, arguments, .. } => {
                let spec = exchange_binding(shared, &source, &destination, &routing_key, arguments)?;
                (Request::Unbind(spec), say(Method::ExchangeUnbindOk {}, nowait))
            }
            Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, nowait, arguments, .. } => {
                if self.declares_reply_queue(&queue, nowait, out)? {
                    return Ok(());
                }
                let declare = DeclareQueue { name: shared.name(&queue)?, passive, durable, exclusive, auto_delete, arguments };
                (Request::DeclareQueue(declare), Pending::Declare { nowait })
            }
            Method::QueueBind { queue, exchange, routing_key, nowait, arguments, .. } => {
                let spec = self.queue_binding(shared, &exchange, &queue, &routing_key, arguments)?;
                (Request::Bind(spec), say(Method::QueueBindOk {}, nowait))
            }
            Method::QueueUnbind { queue, exchange, routing_key, arguments, .. } => {
                let spec = self.queue_binding(shared, &exchange, &queue, &routing_key, arguments)?;
                (Request::Unbind(spec), say(Method::QueueUnbindOk {}, false))
            }
            Method::QueuePurge { queue, nowait, .. } => {
                (Request::PurgeQueue { name: self.queue_name(&queue, shared)? }, Pending::Purge { nowait })
            }
            Method::QueueDelete { queue, if_unused, if_empty, nowait, .. } => {
                (Request::DeleteQueue { name: self.queue_name(&queue, shared)?, if_unused, if_empty }, Pending::Delete { nowait })
            }
            Method::BasicConsume { queue, consumer_tag, no_ack, exclusive, nowait, arguments, .. } => {
                self.consume(&queue, consumer_tag, (no_ack, exclusive, nowait), arguments, shared)?
            }
            Method::BasicCancel { consumer_tag, nowait } => match self.consumers_by_tag.get(&consumer_tag.0) {
                Some(&consumer) => (Request::Cancel { consumer }, Pending::Cancel { tag: consumer_tag.0, nowait }),
                None => return self.say_unless(nowait, &Method::BasicCancelOk { consumer_tag }, out),
            },
            Method::BasicGet { queue, no_ack, .. } => {
                (Request::Get { queue: self.queue_name(&queue, shared)?, no_ack }, Pending::Get { no_ack })
            }
            _ => return Err(Fault::new(ReplyCode::CommandInvalid, "unimplemented method")),
        };
        self.ask(request, pending, out);
        Ok(())
    }

    fn consume(
        &mut self,
        queue: &Short,
        tag: Short,
        (no_ack, exclusive, nowait): (bool, bool, bool),
        arguments: Table,
        shared: &mut Shared,
    ) -> Result<(Request, Pending), Fault> {
        let queue = self.queue_name(queue, shared)?;
        if self.consumers_by_tag.contains_key(&tag.0) {
            let text = format!("attempt to reuse consumer tag '{}'", String::from_utf8_lossy(&tag));
            return Err(Fault::new(ReplyCode::NotAllowed, text));
        }
        self.check_reply_consumer(&queue.name, no_ack)?;
        let tag = if tag.is_empty() { Bytes::from(shared.tags.make()) } else { Bytes::copy_from_slice(&tag) };
        let text: Arc<str> = String::from_utf8_lossy(&tag).into();
        let prefetch = if no_ack { None } else { self.prefetch };
        let asked = Box::new(Asked { queue: queue.name.clone(), prefetch, arguments: arguments.clone() });
        let request = Request::Consume { queue, tag: text, no_ack, exclusive, prefetch, arguments };
        Ok((request, Pending::Consume { tag, no_ack, asked, nowait }))
    }

    /// The edge answered: tell the client.
    pub(super) fn answer(&mut self, pending: Pending, reply: Reply, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        match (pending, reply) {
            (Pending::Open, Reply::Done) => self.say(&Method::ChannelOpenOk { reserved_1: Default::default() }, out),
            (Pending::Say { ok, nowait, .. }, Reply::Done) => self.say_unless(nowait, &ok, out),
            (Pending::Declare { nowait }, Reply::Queue { name, messages, consumers }) => {
                self.last_queue = name;
                let queue = Short::from(&*self.last_queue);
                self.say_unless(nowait, &Method::QueueDeclareOk { queue, message_count: count(messages), consumer_count: consumers }, out)
            }
            (Pending::Delete { nowait }, Reply::Count(n)) => {
                self.say_unless(nowait, &Method::QueueDeleteOk { message_count: count(n) }, out)
            }
            (Pending::Purge { nowait }, Reply::Count(n)) => self.say_unless(nowait, &Method::QueuePurgeOk { message_count: count(n) }, out),
            (Pending::Consume { tag, no_ack, asked, nowait }, Reply::Consuming { consumer }) => {
                self.consuming(consumer, Consumer { tag, no_ack, asked }, nowait, out)
            }
            (Pending::Consume { tag, no_ack, asked, nowait }, Reply::ReplyTo { consumer, address }) => {
                self.reply_consumer = Some(ReplyConsumer { consumer, address });
                self.consuming(consumer, Consumer { tag, no_ack, asked }, nowait, out)
            }
            (Pending::Cancel { tag, nowait }, Reply::Done) => {
                if let Some(consumer) = self.consumers_by_tag.remove(&tag) {
                    self.consumers.remove(&consumer);
                    self.forget_reply_consumer(consumer);
                }
                self.say_unless(nowait, &Method::BasicCancelOk { consumer_tag: Short(tag) }, out)
            }
            (Pending::Get { .. }, Reply::Got(None)) => self.say(&Method::BasicGetEmpty { cluster_id: Short::default() }, out),
            (Pending::Get { no_ack }, Reply::Got(Some(got))) => self.got(got, no_ack, shared, out),
            (Pending::Close, _) => {
                self.finish(shared, out);
                Ok(())
            }
            (Pending::Refuse(fault), _) => Err(*fault),
            (pending, reply) => {
                tracing::error!(?pending, ?reply, "a reply of the wrong kind");
                Err(Fault::new(ReplyCode::InternalError, "reply of the wrong kind"))
            }
        }
    }

    fn consuming(&mut self, id: ConsumerId, consumer: Consumer, nowait: bool, out: &mut Out) -> Result<(), Fault> {
        let tag = consumer.tag.clone();
        self.consumers_by_tag.insert(tag.clone(), id);
        self.consumers.insert(id, consumer);
        self.say_unless(nowait, &Method::BasicConsumeOk { consumer_tag: Short(tag) }, out)
    }

    /// "" stands for the queue declared last on this channel, but not in queue.declare.
    fn queue_name(&self, queue: &Short, shared: &Shared) -> Result<Name, Fault> {
        if !queue.is_empty() {
            return shared.name(queue);
        }
        if self.last_queue.is_empty() {
            return Err(Fault::new(ReplyCode::NotFound, "no previously declared queue"));
        }
        Ok(Name { vhost: shared.vhost.clone(), name: self.last_queue.clone() })
    }

    fn queue_binding(&self, shared: &Shared, exchange: &Short, queue: &Short, key: &Short, arguments: Table) -> Result<BindingSpec, Fault> {
        let destination = self.queue_name(queue, shared)?.name;
        let key = if queue.is_empty() && key.is_empty() { destination.clone() } else { text(key)? };
        Ok(BindingSpec { vhost: shared.vhost.clone(), source: plain(exchange)?, target: Target::Queue, destination, key, arguments })
    }
}

fn exchange_binding(shared: &Shared, source: &Short, destination: &Short, key: &Short, arguments: Table) -> Result<BindingSpec, Fault> {
    Ok(BindingSpec {
        vhost: shared.vhost.clone(),
        source: plain(source)?,
        target: Target::Exchange,
        destination: plain(destination)?,
        key: text(key)?,
        arguments,
    })
}

/// The kind that exchange.declare names: an unknown one is 406, as in RabbitMQ since 3.13, whoever asks.
fn exchange_kind(kind: &[u8]) -> Result<ExchangeKind, Fault> {
    let unknown = || Fault::precondition(format!("unknown exchange type '{}'", String::from_utf8_lossy(kind)));
    ExchangeKind::of_text(kind).ok_or_else(unknown)
}

impl Shared {
    /// A name in the connection's vhost.
    pub(super) fn name(&self, name: &Short) -> Result<Name, Fault> {
        Ok(Name { vhost: self.vhost.clone(), name: plain(name)? })
    }
}

/// A name: without line ends, which RabbitMQ takes out.
fn plain(short: &Short) -> Result<Arc<str>, Fault> {
    let name = text(short)?;
    Ok(if name.contains(['\r', '\n']) { name.replace(['\r', '\n'], "").into() } else { name })
}

fn text(short: &Short) -> Result<Arc<str>, Fault> {
    match str::from_utf8(short) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(Fault::new(ReplyCode::SyntaxError, "a name is not UTF-8")),
    }
}

fn count(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
