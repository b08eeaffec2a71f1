//! Direct reply-to on one channel: its one consumer of `amq.rabbitmq.reply-to`, and publishes that ask for an answer there, whose
//! property is replaced by the consumer's address.

use super::Out;
use super::channel::Channel;
use super::errors::Fault;
use crate::model::ConsumerId;
use crate::model::step::{Publish, REPLY_TO};
use crate::wire::amqp::{Method, Properties, Property, Short};
use std::sync::Arc;

/// The bit of `reply-to` in the first byte of the property flags (spec 4.2.6.1).
const REPLY_TO_FLAG: u8 = 0x02;

/// A direct reply-to consumer.
#[derive(Debug)]
pub(super) struct ReplyConsumer {
    pub(super) consumer: ConsumerId,
    pub(super) address: Arc<str>,
}

impl Channel {
    /// Whether basic.consume of that queue is one, and may be.
    pub(super) fn check_reply_consumer(&self, queue: &str, no_ack: bool) -> Result<(), Fault> {
        match (queue == REPLY_TO, &self.reply_consumer, no_ack) {
            (false, _, _) | (true, None, true) => Ok(()),
            (true, _, false) => Err(Fault::precondition("reply consumer cannot acknowledge")),
            (true, Some(_), true) => Err(Fault::precondition("reply consumer already set")),
        }
    }

    /// queue.declare of the name itself: it always exists. False: it is another queue.
    pub(super) fn declares_reply_queue(&self, queue: &Short, nowait: bool, out: &mut Out) -> Result<bool, Fault> {
        if queue[..] != *REPLY_TO.as_bytes() {
            return Ok(false);
        }
        self.say_unless(nowait, &Method::QueueDeclareOk { queue: REPLY_TO.into(), message_count: 0, consumer_count: 1 }, out)?;
        Ok(true)
    }

    /// A consumer ended.
    pub(super) fn forget_reply_consumer(&mut self, consumer: ConsumerId) {
        self.reply_consumer.take_if(|reply| reply.consumer == consumer);
    }

    /// Puts the address of this channel's consumer where the client asks for it. Where there is none the edge refuses the publish, when it
    /// is its turn.
    pub(super) fn address_reply(&self, publish: &mut Publish) {
        let asks = publish.properties.first().is_some_and(|flags| flags & REPLY_TO_FLAG != 0)
            && Properties(&publish.properties).get(Property::ReplyTo) == Some(REPLY_TO.as_bytes());
        if let Some(reply) = self.reply_consumer.as_ref().filter(|_| asks) {
            publish.properties = Properties(&publish.properties).with_short(Property::ReplyTo, reply.address.as_bytes()).into();
        }
    }
}
