//! Messages on their way to the client: deliver, get-ok, return. Encodes straight from the stored bytes.

use super::channel::Channel;
use super::errors::{Fault, ReplyCode};
use super::{Out, Shared};
use crate::model::deaths::Headers;
use crate::model::entry::StoredView;
use crate::model::link::Delivery;
use crate::model::properties::{BLIND_COPIES, CLIENT_DEATHS, DEATHS, has_hidden};
use crate::model::step::{Got, Held, Outcome, Publish, Step};
use crate::model::{ConsumerId, ShardId};
use crate::wire::amqp::output::Content;
use crate::wire::amqp::{Method, Short};

impl Channel {
    /// Messages for a consumer; those for one that is gone go back.
    pub(super) fn deliver(&mut self, consumer: ConsumerId, shard: ShardId, messages: &[Delivery], shared: &Shared, out: &mut Out) {
        let Some(to) = self.consumers.get(&consumer) else { return give_back(consumer, shard, messages, out) };
        let mut settled = Vec::with_capacity(if to.no_ack { messages.len() } else { 0 });
        for delivery in messages {
            let held = Held { shard, queue: delivery.queue, seq: delivery.seq, consumer: Some(consumer) };
            let Some(stored) = StoredView::parse(&delivery.message) else {
                tracing::error!(queue = %delivery.queue, seq = %delivery.seq, "a stored message is malformed, it is not delivered");
                continue;
            };
            let tag = self.unsettled.tag();
            out.bytes.deliver(self.number, &to.tag, tag, delivery.redelivered, stored.exchange, stored.key);
            let shown = shown(stored.properties, delivery.failures);
            let properties = shown.as_deref().unwrap_or(stored.properties);
            let content = Content { properties, body: &delivery.message, body_at: stored.body_at };
            out.bytes.content(self.number, &content, shared.frame_max);
            if to.no_ack {
                settled.push(held);
            } else {
                self.unsettled.hold(tag, held);
            }
        }
        if !settled.is_empty() {
            out.step(Step::Settle { held: settled, outcome: Outcome::Ack, asked: false });
        }
        out.step(written(consumer, messages));
    }

    /// The answer to basic.get.
    pub(super) fn got(&mut self, got: Got, no_ack: bool, shared: &Shared, out: &mut Out) -> Result<(), Fault> {
        let held = Held { shard: got.shard, queue: got.delivery.queue, seq: got.delivery.seq, consumer: None };
        let Some(stored) = StoredView::parse(&got.delivery.message) else {
            return Err(Fault::new(ReplyCode::InternalError, "the stored message is malformed"));
        };
        let delivery_tag = self.unsettled.tag();
        let get_ok = Method::BasicGetOk {
            delivery_tag,
            redelivered: got.delivery.redelivered,
            exchange: short(stored.exchange),
            routing_key: short(stored.key),
            message_count: u32::try_from(got.remaining).unwrap_or(u32::MAX),
        };
        out.bytes.method(self.number, &get_ok);
        let shown = shown(stored.properties, got.delivery.failures);
        let properties = shown.as_deref().unwrap_or(stored.properties);
        let content = Content { properties, body: &got.delivery.message, body_at: stored.body_at };
        out.bytes.content(self.number, &content, shared.frame_max);
        // Without acknowledgement the edge has settled it already.
        if !no_ack {
            self.unsettled.hold(delivery_tag, held);
        }
        Ok(())
    }

    /// basic.return of a mandatory message that no queue took.
    pub(super) fn returned(&mut self, publish: Publish, shared: &Shared, out: &mut Out) {
        let (reply_code, reply_text) = ReplyCode::NoRoute.parts();
        let method = Method::BasicReturn {
            reply_code,
            reply_text: reply_text.into(),
            exchange: Short(publish.exchange),
            routing_key: Short(publish.routing_key),
        };
        out.bytes.method(self.number, &method);
        let shown = shown(&publish.properties, 0);
        let properties = shown.as_deref().unwrap_or(&publish.properties);
        out.bytes.content(self.number, &Content { properties, body: &publish.body, body_at: 0 }, shared.frame_max);
    }
}

/// The properties as a client sees them, when they are not as they are stored: with `x-delivery-count` of a message whose delivery failed
/// before, without blind copies, and what another client said of deaths as it came.
fn shown(properties: &[u8], failures: u32) -> Option<Vec<u8>> {
    let hides = has_hidden(properties);
    (hides || failures > 0).then(|| {
        let mut headers = Headers::of(properties);
        if failures > 0 {
            headers.set_delivery_count(failures);
        }
        headers.remove(BLIND_COPIES);
        headers.rename(CLIENT_DEATHS, DEATHS);
        headers.write(true)
    })
}

/// Messages that reached the session for a consumer or channel that has ended: back to their places, and their credit with them.
pub(super) fn give_back(consumer: ConsumerId, shard: ShardId, messages: &[Delivery], out: &mut Out) {
    let held = messages.iter().map(|d| Held { shard, queue: d.queue, seq: d.seq, consumer: Some(consumer) }).collect();
    out.step(Step::Settle { held, outcome: Outcome::Requeue, asked: false });
    out.step(written(consumer, messages));
}

fn written(consumer: ConsumerId, messages: &[Delivery]) -> Step {
    Step::Written { consumer, bytes: messages.iter().map(|d| d.message.len() as u64).sum() }
}

fn short(bytes: &[u8]) -> Short {
    Short(bytes::Bytes::copy_from_slice(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(table: &[u8]) -> Vec<u8> {
        [&[0x20, 0][..], &(table.len() as u32).to_be_bytes(), table].concat()
    }

    #[test]
    fn a_client_sees_no_blind_copies_and_how_often_a_message_failed() {
        let (blind, kept) = (b"\x03\0CCA\0\0\0\x06S\0\0\0\x01b", b"\x01kV");
        assert_eq!(shown(&list(&[&blind[..], kept].concat()), 0), Some(list(kept)));
        assert_eq!(shown(&list(kept), 0), None);
        assert_eq!(shown(&list(b"\x07\0-deathV"), 0), Some(list(b"\x07x-deathV")), "what a client says of deaths is shown as it came");
        let counted = [&kept[..], b"\x10x-delivery-countl\0\0\0\0\0\0\0\x02"].concat();
        assert_eq!(shown(&list(&[&kept[..], blind].concat()), 2), Some(list(&counted)));
    }
}
