//! One channel: assembles content, keeps the order of commands behind an outstanding request, and runs each command. What becomes of
//! questions to the edge is in `requests`, what comes back to consumers in `deliveries`.

use super::confirms::Confirms;
use super::errors::{Fault, ReplyCode};
use super::replies::ReplyConsumer;
use super::requests::Pending;
use super::transaction::Transaction;
use super::unsettled::Unsettled;
use super::{Out, Shared};
use crate::model::ConsumerId;
use crate::model::catalog::Table;
use crate::model::step::{Held, Outcome, Publish, Request, Step};
use crate::wire::amqp::{ContentHeader, Frame, FrameKind, Method, content};
use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

pub(super) const BASIC_PUBLISH: (u16, u16) = (60, 40);

/// A whole instruction of the client.
#[derive(Debug)]
pub(super) enum Command {
    /// Without content.
    Method(Method),
    /// basic.publish with its content; the ticket is given out when it runs.
    Publish(Box<Publish>),
    /// A message that is refused by its method or its header alone.
    Refuse(Box<Fault>),
}

/// Content on its way in (spec 4.2.6).
#[derive(Debug, Default)]
enum Assembly {
    #[default]
    Idle,
    Header(Publish),
    Body {
        publish: Publish,
        missing: usize,
        /// Pieces so far, when there is more than one.
        pieces: BytesMut,
    },
    /// Of a message whose refusal waits for its turn: passed over. `None`: its header is to come.
    Refused {
        missing: Option<u64>,
    },
}

impl Assembly {
    /// What it counts of `Shared::assembling`.
    fn bytes(&self) -> usize {
        match self {
            Assembly::Idle | Assembly::Refused { .. } => 0,
            Assembly::Header(publish) => weight(publish),
            Assembly::Body { publish, pieces, .. } => weight(publish) + pieces.len(),
        }
    }
}

/// Bytes that a message holds while its body is not complete, those of the body aside.
fn weight(publish: &Publish) -> usize {
    publish.exchange.len() + publish.routing_key.len() + publish.properties.len() + size_of::<Publish>()
}

/// A consumer of this channel.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) tag: Bytes,
    pub(super) no_ack: bool,
    pub(super) asked: Box<Asked>,
}

/// What basic.consume asked for, for listings.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) queue: Arc<str>,
    pub(super) prefetch: Option<u32>,
    pub(super) arguments: Table,
}

/// An open channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) number: u16,
    epoch: u32,
    assembly: Assembly,
    /// What the answer to the outstanding request will be answered with.
    pub(super) waiting: Option<Pending>,
    backlog: VecDeque<Command>,
    backlog_bytes: usize,
    /// Publishes since the last request: closing must wait for their fate.
    pub(super) published: bool,
    pub(super) unsettled: Unsettled,
    pub(super) consumers: HashMap<ConsumerId, Consumer>,
    pub(super) consumers_by_tag: HashMap<Bytes, ConsumerId>,
    pub(super) prefetch: Option<u32>,
    /// The client has set a limit that its consumers share.
    has_common_prefetch: bool,
    pub(super) confirms: Option<Confirms>,
    pub(super) tx: Option<Transaction>,
    pub(super) reply_consumer: Option<ReplyConsumer>,
    /// Name of the queue declared last; "" = none.
    pub(super) last_queue: Arc<str>,
    /// The client closed it and has its answer.
    pub(super) closed: bool,
}

impl Channel {
    pub(super) fn new(number: u16, epoch: u32) -> Channel {
        Channel {
            number,
            epoch,
            assembly: Assembly::Idle,
            waiting: None,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            published: false,
            unsettled: Unsettled::default(),
            consumers: HashMap::new(),
            consumers_by_tag: HashMap::new(),
            prefetch: None,
            confirms: None,
            tx: None,
            reply_consumer: None,
            last_queue: "".into(),
            has_common_prefetch: false,
            closed: false,
        }
    }

    /// Nothing waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_none() && self.backlog.is_empty()
    }

    /// A frame of this channel.
    pub(super) fn on_frame(&mut self, frame: Frame, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        if let Some(Pending::Close) = self.waiting {
            return Ok(());
        }
        if frame.kind == FrameKind::Heartbeat {
            return Err(Fault::out_of_place(&frame));
        }
        match (frame.kind, std::mem::take(&mut self.assembly)) {
            (FrameKind::Method, Assembly::Idle) => self.on_method(frame.payload, shared, out),
            (FrameKind::Header, Assembly::Header(publish)) => self.on_header(frame.payload, publish, shared, out),
            (FrameKind::Body, Assembly::Body { publish, missing, pieces }) => {
                self.on_body(frame.payload, publish, missing, pieces, shared, out)
            }
            (FrameKind::Header, Assembly::Refused { missing: None }) => {
                self.pass_over(read_header(frame.payload)?.body_size);
                Ok(())
            }
            (FrameKind::Body, Assembly::Refused { missing: Some(missing) }) => {
                let still = missing.checked_sub(frame.payload.len() as u64).ok_or_else(too_large)?;
                self.pass_over(still);
                Ok(())
            }
            (_, Assembly::Idle) => Err(Fault::unexpected("expected method frame, got non method frame instead")),
            (_, assembly) => Err(out_of_order(&assembly, shared)),
        }
    }

    /// So many bytes of a refused message are still to come.
    fn pass_over(&mut self, missing: u64) {
        self.assembly = if missing > 0 { Assembly::Refused { missing: Some(missing) } } else { Assembly::Idle };
    }

    fn on_method(&mut self, payload: Bytes, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        let size = payload.len();
        let method = Method::decode(payload)?.ok_or_else(|| Fault::new(ReplyCode::CommandInvalid, "unimplemented method"))?;
        match method {
            Method::BasicPublish { immediate: true, .. } => {
                self.assembly = Assembly::Refused { missing: None };
                self.accept_refusal(Fault::not_implemented("immediate=true"), shared, out)
            }
            Method::BasicPublish { exchange, routing_key, mandatory, .. } => {
                shared.begun(self.number);
                let publish = Publish {
                    channel: self.number,
                    ticket: None,
                    mandatory,
                    exchange: exchange.0,
                    routing_key: routing_key.0,
                    properties: Bytes::new(),
                    body: Bytes::new(),
                };
                shared.assembling += weight(&publish);
                self.assembly = Assembly::Header(publish);
                Ok(())
            }
            other => self.accept(other, size, shared, out),
        }
    }

    fn on_header(&mut self, payload: Bytes, mut publish: Publish, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        shared.assembling -= weight(&publish);
        let header = read_header(payload)?;
        if header.body_size > shared.max_message_bytes {
            let text = format!("message size {} is larger than configured max size {}", header.body_size, shared.max_message_bytes);
            self.pass_over(header.body_size);
            return self.accept_refusal(Fault::precondition(text), shared, out);
        }
        publish.properties = header.properties;
        let missing = header.body_size as usize;
        if missing == 0 {
            return self.accept_publish(publish, shared, out);
        }
        shared.assembling += weight(&publish);
        self.assembly = Assembly::Body { publish, missing, pieces: BytesMut::new() };
        shared.check_assembling().map_err(|fault| fault.at(BASIC_PUBLISH))
    }

    /// A piece of a body. A body in one frame stays a slice of what was read; more pieces are joined, the buffer growing with what came.
    fn on_body(
        &mut self,
        piece: Bytes,
        mut publish: Publish,
        missing: usize,
        mut pieces: BytesMut,
        shared: &mut Shared,
        out: &mut Out,
    ) -> Result<(), Fault> {
        let Some(still) = missing.checked_sub(piece.len()) else {
            shared.assembling -= weight(&publish) + pieces.len();
            return Err(too_large());
        };
        if still > 0 {
            pieces.extend_from_slice(&piece);
            self.assembly = Assembly::Body { publish, missing: still, pieces };
            shared.assembling += piece.len();
            return shared.check_assembling().map_err(|fault| fault.at(BASIC_PUBLISH));
        }
        shared.assembling -= weight(&publish) + pieces.len();
        publish.body = if pieces.is_empty() {
            piece
        } else {
            pieces.extend_from_slice(&piece);
            pieces.freeze()
        };
        self.accept_publish(publish, shared, out)
    }

    /// The hot path: no box, no queue, unless something waits.
    fn accept_publish(&mut self, publish: Publish, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        if self.is_idle() {
            return self.publish(publish, shared, out);
        }
        let size = publish.body.len() + publish.properties.len();
        self.wait(Command::Publish(Box::new(publish)), size, shared);
        Ok(())
    }

    fn accept_refusal(&mut self, fault: Fault, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        let refusal = Command::Refuse(Box::new(fault.at(BASIC_PUBLISH)));
        if self.is_idle() {
            return self.run(refusal, shared, out);
        }
        self.wait(refusal, 0, shared);
        Ok(())
    }

    fn accept(&mut self, method: Method, size: usize, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        if self.is_idle() {
            return self.run(Command::Method(method), shared, out);
        }
        self.wait(Command::Method(method), size, shared);
        Ok(())
    }

    fn wait(&mut self, command: Command, size: usize, shared: &mut Shared) {
        let size = size + size_of::<Publish>();
        self.backlog_bytes += size;
        shared.backlog += size;
        self.backlog.push_back(command);
    }

    /// Runs what waited, up to the next request.
    pub(super) fn run_backlog(&mut self, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        while self.waiting.is_none() && !self.closed {
            let Some(command) = self.backlog.pop_front() else { break };
            self.run(command, shared, out)?;
        }
        if self.backlog.is_empty() {
            shared.backlog -= std::mem::take(&mut self.backlog_bytes);
        }
        Ok(())
    }

    fn run(&mut self, command: Command, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        match command {
            Command::Publish(publish) => self.publish(*publish, shared, out),
            // Those before it may be refused as well: they count first.
            Command::Refuse(fault) if self.published => {
                self.ask(Request::Barrier, Pending::Refuse(fault), out);
                Ok(())
            }
            Command::Refuse(fault) => Err(*fault),
            Command::Method(method) => {
                let id = method.id();
                self.run_method(method, shared, out).map_err(|fault| fault.at(id))
            }
        }
    }

    fn publish(&mut self, mut publish: Publish, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        self.address_reply(&mut publish);
        if self.tx.is_some() {
            return self.keep_publish(publish, shared, out).map_err(|fault| fault.at(BASIC_PUBLISH));
        }
        publish.ticket = self.confirms.as_mut().map(Confirms::ticket);
        self.published = true;
        out.step(Step::Publish(publish));
        Ok(())
    }

    fn run_method(&mut self, method: Method, shared: &mut Shared, out: &mut Out) -> Result<(), Fault> {
        match method {
            Method::BasicAck { delivery_tag, multiple } => self.settle(delivery_tag, multiple, Outcome::Ack, out),
            Method::BasicNack { delivery_tag, multiple, requeue } => self.settle(delivery_tag, multiple, refused(requeue), out),
            Method::BasicReject { delivery_tag, requeue } => self.settle(delivery_tag, false, refused(requeue), out),
            Method::BasicRecover { requeue } => {
                self.recover(requeue, out)?;
                self.say(&Method::BasicRecoverOk {}, out)
            }
            Method::BasicRecoverAsync { requeue } => self.recover(requeue, out),
            Method::BasicQos { prefetch_size, prefetch_count, global } => self.qos(prefetch_size, prefetch_count, global, out),
            Method::ConfirmSelect { .. } if self.tx.is_some() => Err(Fault::precondition("cannot switch from tx to confirm mode")),
            Method::ConfirmSelect { nowait } => {
                self.confirms.get_or_insert_with(|| Confirms::new(self.epoch));
                self.say_unless(nowait, &Method::ConfirmSelectOk {}, out)
            }
            Method::AccessRequest { .. } => self.say(&Method::AccessRequestOk { ticket: 1 }, out),
            Method::ChannelFlow { active: true } => self.say(&Method::ChannelFlowOk { active: true }, out),
            Method::ChannelFlow { active: false } => Err(Fault::not_implemented("active=false")),
            Method::ChannelOpen { .. } => Err(Fault::new(ReplyCode::ChannelError, "second 'channel.open' seen")),
            Method::ChannelClose { .. } if self.published => {
                self.ask(Request::Barrier, Pending::Close, out);
                Ok(())
            }
            Method::ChannelClose { .. } => {
                self.finish(shared, out);
                Ok(())
            }
            Method::ChannelFlowOk { .. } | Method::BasicCancelOk { .. } => Ok(()),
            Method::TxSelect {} | Method::TxCommit {} | Method::TxRollback {} => self.run_tx(&method, shared, out),
            other => self.run_request(other, shared, out),
        }
    }

    /// The client closed the channel and all before it is done.
    pub(super) fn finish(&mut self, shared: &mut Shared, out: &mut Out) {
        self.flush_confirms(out);
        self.abandon(shared, out);
        out.bytes.method(self.number, &Method::ChannelCloseOk {});
        self.closed = true;
    }

    /// Gives everything back to the edge.
    pub(super) fn abandon(&mut self, shared: &mut Shared, out: &mut Out) {
        self.drop_tx(shared);
        let mut held = Vec::new();
        self.unsettled.take_all(&mut held);
        self.consumers.clear();
        self.consumers_by_tag.clear();
        out.step(Step::ChannelClosed { channel: self.number, held });
    }

    /// Forgets what was not run yet.
    pub(super) fn drop_backlog(&mut self, shared: &mut Shared) {
        self.backlog.clear();
        shared.backlog -= std::mem::take(&mut self.backlog_bytes);
        shared.assembling -= std::mem::take(&mut self.assembly).bytes();
    }

    /// A message that is not complete lets go of the read buffer that its parts are slices of: thousands of unfinished messages
    /// must not hold thousands of buffers.
    pub(super) fn detach(&mut self) {
        let (Assembly::Header(publish) | Assembly::Body { publish, .. }) = &mut self.assembly else { return };
        for slice in [&mut publish.exchange, &mut publish.routing_key, &mut publish.properties] {
            *slice = Bytes::copy_from_slice(slice);
        }
    }

    /// Writes the confirms noted since the last flush.
    pub(super) fn flush_confirms(&mut self, out: &mut Out) {
        if let Some(confirms) = &mut self.confirms {
            confirms.flush(self.number, out);
        }
    }

    pub(super) fn ask(&mut self, request: Request, pending: Pending, out: &mut Out) {
        self.published = false;
        self.waiting = Some(pending);
        out.step(Step::Request { channel: self.number, request });
    }

    pub(super) fn say(&self, method: &Method, out: &mut Out) -> Result<(), Fault> {
        out.bytes.method(self.number, method);
        Ok(())
    }

    pub(super) fn say_unless(&self, nowait: bool, method: &Method, out: &mut Out) -> Result<(), Fault> {
        if nowait { Ok(()) } else { self.say(method, out) }
    }

    fn settle(&mut self, tag: u64, multiple: bool, outcome: Outcome, out: &mut Out) -> Result<(), Fault> {
        let known = match &self.tx {
            Some(_) => self.keep_settlement(tag, multiple, outcome),
            None => self.unsettled.take(tag, multiple, out.settle(self.number, outcome, tag)),
        };
        out.drop_empty_settlement();
        if known { Ok(()) } else { Err(Fault::precondition(format!("unknown delivery tag {tag}"))) }
    }

    fn recover(&mut self, requeue: bool, out: &mut Out) -> Result<(), Fault> {
        if !requeue {
            return Err(Fault::not_implemented("requeue=false"));
        }
        let mut held: Vec<Held> = Vec::new();
        self.unsettled.take_all(&mut held);
        out.step(Step::Settle { held, outcome: Outcome::Requeue, asked: true });
        Ok(())
    }

    fn qos(&mut self, size: u32, count: u16, global: bool, out: &mut Out) -> Result<(), Fault> {
        if size != 0 {
            return Err(Fault::not_implemented(format!("prefetch_size!=0 ({size})")));
        }
        let limit = (count > 0).then_some(u32::from(count));
        if !global {
            self.prefetch = limit;
        }
        // As in RabbitMQ, a limit of each consumer's own ends the one that they share.
        let common = limit.filter(|_| global);
        if global || self.has_common_prefetch {
            out.step(Step::ChannelPrefetch { channel: self.number, limit: common });
        }
        self.has_common_prefetch = common.is_some();
        self.say(&Method::BasicQosOk {}, out)
    }
}

fn read_header(payload: Bytes) -> Result<ContentHeader, Fault> {
    let header = ContentHeader::decode(payload).map_err(|m| Fault::from(m).at(BASIC_PUBLISH))?;
    if header.weight != 0 {
        return Err(Fault::unexpected("expected content header for class 60, got non content header frame instead").at(BASIC_PUBLISH));
    }
    if header.class == content::CLASS_BASIC {
        return Ok(header);
    }
    let text = format!("expected content header for class 60, got one for class {} instead", header.class);
    Err(Fault::unexpected(text).at(BASIC_PUBLISH))
}

fn too_large() -> Fault {
    Fault::new(ReplyCode::FrameError, "content body larger than the size in the content header").at(BASIC_PUBLISH)
}

/// A frame came that is not the next one of the message. That is forgotten.
fn out_of_order(assembly: &Assembly, shared: &mut Shared) -> Fault {
    shared.assembling -= assembly.bytes();
    let text = match assembly {
        Assembly::Body { .. } | Assembly::Refused { missing: Some(_) } => "expected content body, got non content body frame instead",
        Assembly::Idle | Assembly::Header(_) | Assembly::Refused { missing: None } => {
            "expected content header for class 60, got non content header frame instead"
        }
    };
    Fault::unexpected(text).at(BASIC_PUBLISH)
}

fn refused(requeue: bool) -> Outcome {
    if requeue { Outcome::Requeue } else { Outcome::Reject }
}
