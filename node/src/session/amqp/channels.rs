//! The channels of a connection: opening, closing, and what the edge says to them. A number that was closed is not used again before
//! the edge knows, so that nothing of the old channel reaches the new one.

use super::channel::Channel;
use super::errors::{Fault, ReplyCode};
use super::{Out, Session, Slot, deliveries, requests};
use crate::model::catalog::Refusal;
use crate::model::step::{Event, Held, Outcome, Reply, Request, Step};
use crate::wire::amqp::{Frame, FrameKind, Method, Short};

impl Session {
    pub(super) fn on_channel_frame(&mut self, frame: Frame, out: &mut Out) -> Result<(), Fault> {
        let number = frame.channel;
        match self.channels.get_mut(&number) {
            Some(Slot::Open(channel)) => {
                channel.on_frame(frame, &mut self.shared, out)?;
                if channel.closed {
                    self.channels.remove(&number);
                }
                Ok(())
            }
            Some(Slot::Closing { stale }) => {
                let stale = *stale;
                self.on_closing_channel_frame(frame, stale, out);
                Ok(())
            }
            Some(Slot::Haunted { frames }) => {
                self.shared.backlog += frame.payload.len() + size_of::<Frame>();
                frames.push(frame);
                Ok(())
            }
            None => self.on_first_frame(frame, out),
        }
    }

    /// Only the answer to our channel.close counts (spec 1.5.2.5).
    fn on_closing_channel_frame(&mut self, frame: Frame, stale: bool, out: &mut Out) {
        let number = frame.channel;
        match (frame.kind, frame.payload.get(..4)) {
            (FrameKind::Method, Some([0, 20, 0, 41])) if stale => {
                self.channels.insert(number, Slot::Haunted { frames: Vec::new() });
            }
            (FrameKind::Method, Some([0, 20, 0, 41])) => {
                self.channels.remove(&number);
            }
            (FrameKind::Method, Some([0, 20, 0, 40])) => out.bytes.method(number, &Method::ChannelCloseOk {}),
            _ => {}
        }
    }

    fn on_first_frame(&mut self, frame: Frame, out: &mut Out) -> Result<(), Fault> {
        let number = frame.channel;
        match frame.kind {
            FrameKind::Method => {}
            FrameKind::Heartbeat => return Err(Fault::out_of_place(&frame)),
            FrameKind::Header | FrameKind::Body => {
                return Err(Fault::unexpected("expected method frame, got non method frame instead"));
            }
        }
        match Method::decode(frame.payload)? {
            Some(Method::ChannelOpen { .. }) => {}
            Some(other) => return Err(Fault::new(ReplyCode::ChannelError, "expected 'channel.open'").at(other.id())),
            None => return Err(Fault::new(ReplyCode::ChannelError, "expected 'channel.open'")),
        }
        let open = self.channels.len();
        if number > self.channel_max || open >= usize::from(self.channel_max) {
            let text = format!("number of channels opened ({open}) has reached the negotiated channel_max ({})", self.channel_max);
            return Err(Fault::new(ReplyCode::NotAllowed, text).at((20, 10)));
        }
        let mut channel = Box::new(Channel::new(number, self.epochs));
        self.epochs = self.epochs.wrapping_add(1) & 0xFF_FFFF;
        channel.ask(Request::OpenChannel, requests::Pending::Open, out);
        self.channels.insert(number, Slot::Open(channel));
        Ok(())
    }

    /// Closes one channel; the rest goes on.
    pub(super) fn close_channel(&mut self, number: u16, fault: Fault, out: &mut Out) {
        let Some(Slot::Open(channel)) = self.channels.get_mut(&number) else { return };
        tracing::info!(channel = number, code = fault.code.parts().0, text = %fault.text, method = ?fault.method, "closing channel");
        channel.flush_confirms(out);
        channel.drop_backlog(&mut self.shared);
        channel.abandon(&mut self.shared, out);
        let crossed = matches!(channel.waiting, Some(requests::Pending::Close));
        let (class_id, method_id) = fault.method;
        let reply_text = Short::from(fault.reply_text().as_str());
        out.bytes.method(number, &Method::ChannelClose { reply_code: fault.code.parts().0, reply_text, class_id, method_id });
        if crossed {
            out.bytes.method(number, &Method::ChannelCloseOk {});
        }
        self.channels.insert(number, Slot::Closing { stale: true });
        self.leave_when_idle(out);
    }

    pub(super) fn on_channel_event(&mut self, event: Event, out: &mut Out) {
        match event {
            Event::Reply { channel, result } => self.on_reply(channel, result, out),
            Event::Confirmed { channel, tickets } => self.on_confirmed(channel, &tickets, true),
            Event::Nacked { channel, tickets } => self.on_confirmed(channel, &tickets, false),
            Event::Returned(publish) => {
                let Some(Slot::Open(channel)) = self.channels.get_mut(&publish.channel) else { return };
                let theirs = match (&channel.confirms, publish.ticket) {
                    (Some(confirms), Some(ticket)) => confirms.owns(ticket),
                    (None, Some(_)) => false,
                    (_, None) => true,
                };
                if theirs {
                    channel.returned(*publish, &self.shared, out);
                }
            }
            Event::ChannelError { channel, refusal, method } => self.fail(channel, Fault::from(refusal).at(method), out),
            Event::Deliver { channel, consumer, shard, messages } => match self.channels.get_mut(&channel) {
                Some(Slot::Open(channel)) => channel.deliver(consumer, shard, &messages, &self.shared, out),
                _ => deliveries::give_back(consumer, shard, &messages, out),
            },
            Event::ConsumerGone { channel, consumer } => {
                let Some(Slot::Open(channel)) = self.channels.get_mut(&channel) else { return };
                let Some(gone) = channel.consumers.remove(&consumer) else { return };
                channel.consumers_by_tag.remove(&gone.tag);
                channel.forget_reply_consumer(consumer);
                if self.capabilities.consumer_cancel_notify {
                    out.bytes.method(channel.number, &Method::BasicCancel { consumer_tag: Short(gone.tag), nowait: true });
                }
            }
            Event::Authenticated
            | Event::AuthenticationFailed(_)
            | Event::Opened
            | Event::OpenRefused(_)
            | Event::SecretUpdated(_)
            | Event::Blocked(_)
            | Event::Unblocked
            | Event::Report
            | Event::Lost { .. }
            | Event::Close(_)
            | Event::Left => {}
        }
    }

    fn on_confirmed(&mut self, number: u16, tickets: &[(u64, u64)], positive: bool) {
        let Some(Slot::Open(channel)) = self.channels.get_mut(&number) else { return };
        let Some(confirms) = &mut channel.confirms else { return };
        confirms.record(tickets, positive);
        if !self.unflushed.contains(&number) {
            self.unflushed.push(number);
        }
    }

    fn on_reply(&mut self, number: u16, result: Result<Reply, Refusal>, out: &mut Out) {
        match self.channels.get_mut(&number) {
            Some(Slot::Open(channel)) => {
                let Some(pending) = channel.waiting.take() else {
                    tracing::error!(channel = number, "a reply that nobody waits for");
                    return;
                };
                let id = pending.method();
                let answered = match result {
                    Ok(reply) => channel.answer(pending, reply, &mut self.shared, out).map_err(|fault| fault.at(id)),
                    Err(refusal) => Err(Fault::from(refusal).at(id)),
                };
                let result = answered.and_then(|()| channel.run_backlog(&mut self.shared, out));
                if channel.closed {
                    channel.drop_backlog(&mut self.shared);
                    self.channels.remove(&number);
                }
                if let Err(fault) = result {
                    self.fail(number, fault, out);
                }
                self.leave_when_idle(out);
            }
            Some(Slot::Closing { .. } | Slot::Haunted { .. }) => give_up(result, out),
            None => {}
        }
    }
}

/// An answer for a channel that is closed: a fetched message goes back; a consumer ends with the channel.
fn give_up(result: Result<Reply, Refusal>, out: &mut Out) {
    if let Ok(Reply::Got(Some(got))) = result {
        let held = vec![Held { shard: got.shard, queue: got.delivery.queue, seq: got.delivery.seq, consumer: None }];
        out.step(Step::Settle { held, outcome: Outcome::Requeue, asked: false });
    }
}
