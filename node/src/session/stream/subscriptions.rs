//! A connection's subscriptions: where they read, their credit in chunks, and groups of which one member is active.

use super::out::{Act, Out, Read};
use super::{Asked, Session};
use crate::model::stream::{OffsetSpec, StreamChunk, StreamTarget, may_hold};
use crate::model::stream_step::{Ask, Member, Wanted};
use crate::model::{Offset, limits};
use crate::wire::stream::client::Pair;
use crate::wire::stream::{self, Code, Key};
use std::sync::Arc;

/// A subscription.
#[derive(Clone, Debug)]
pub(super) struct Subscription {
    pub stream: Arc<str>,
    pub target: Arc<StreamTarget>,
    from: OffsetSpec,
    wanted: Option<Arc<Wanted>>,
    /// Chunks that may come; less than nothing when the client took some back.
    pub credit: i32,
    /// Chunks come: it is not of a group, or it is the active one and has said where to begin.
    reads: bool,
    pub group: Option<Group>,
    pub properties: Vec<(String, String)>,
    /// Messages in the chunks that were sent, and the offset behind the last of them.
    pub delivered: u64,
    pub next: Option<Offset>,
}

/// That a subscription is one of several, of which one is active.
#[derive(Clone, Debug)]
pub(super) struct Group {
    name: Arc<str>,
    super_stream: Option<Arc<str>>,
    pub active: bool,
}

/// One that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Subscribing {
    pub subscription: u8,
    pub stream: Arc<str>,
    pub from: OffsetSpec,
    pub credit: u16,
    pub wanted: Option<Arc<Wanted>>,
    pub group: Option<Group>,
    pub properties: Vec<(String, String)>,
}

/// A ConsumerUpdate that waits for its answer.
#[derive(Clone, Debug)]
pub(super) struct Update {
    correlation: u32,
    member: Member,
    active: bool,
}

/// What the properties of Subscribe and ResolveOffsetSpec say of filters.
pub(super) fn wanted(properties: &[Pair<'_>]) -> Option<Arc<Wanted>> {
    let values: Vec<Box<[u8]>> =
        properties.iter().filter(|(key, _)| key.starts_with("filter.")).map(|(_, value)| value.as_bytes().into()).collect();
    let unfiltered = properties.contains(&("match-unfiltered", "true"));
    (!values.is_empty()).then(|| Arc::new(Wanted { values, unfiltered }))
}

/// An offset specification of the wire; a time before the epoch is the epoch.
pub(super) fn from(offset: stream::OffsetSpec) -> OffsetSpec {
    match offset {
        stream::OffsetSpec::First => OffsetSpec::First,
        stream::OffsetSpec::Last => OffsetSpec::Last,
        stream::OffsetSpec::Next => OffsetSpec::Next,
        stream::OffsetSpec::Offset(offset) => OffsetSpec::Offset(Offset(offset)),
        stream::OffsetSpec::Timestamp(ms) => OffsetSpec::Timestamp(u64::try_from(ms).unwrap_or(0)),
    }
}

fn property<'a>(properties: &[Pair<'a>], name: &str) -> Option<&'a str> {
    properties.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
}

impl Subscribing {
    /// Reads Subscribe. `Err`: a name that is missing or too long.
    pub fn read(
        subscription: u8,
        stream: &str,
        (offset, credit): (stream::OffsetSpec, u16),
        properties: &[Pair<'_>],
    ) -> Result<Subscribing, Code> {
        let name = property(properties, "name");
        if name.is_some_and(|name| name.len() > limits::STREAM_REFERENCE_BYTES) {
            return Err(Code::PreconditionFailed);
        }
        let group = match (property(properties, "single-active-consumer"), name) {
            (Some("true"), Some(name)) => {
                Some(Group { name: name.into(), super_stream: property(properties, "super-stream").map(Into::into), active: false })
            }
            (Some("true"), None) => return Err(Code::PreconditionFailed),
            (_, _) => None,
        };
        let (stream, from, wanted) = (stream.into(), from(offset), wanted(properties));
        Ok(Subscribing { subscription, stream, from, credit, wanted, group, properties: super::owned(properties) })
    }
}

impl Subscription {
    fn member(&self, subscription: u8) -> Option<Member> {
        let group = self.group.as_ref()?;
        let (target, super_stream) = (self.target.clone(), group.super_stream.clone());
        Some(Member { subscription, target, group: group.name.clone(), super_stream })
    }

    fn read(&self, subscription: u8, from: OffsetSpec) -> Act {
        Act::Read(Read { subscription, target: self.target.clone(), from, wanted: self.wanted.clone() })
    }
}

impl Session {
    pub(super) fn subscribe(&mut self, correlation: u32, subscribing: Result<Subscribing, Code>, out: &mut Out) {
        let subscribing = match subscribing {
            Ok(subscribing) if self.subscriptions.contains_key(&subscribing.subscription) => Err(Code::SubscriptionIdAlreadyExists),
            other => other,
        };
        match subscribing {
            Ok(subscribing) => {
                let ask = Ask::Read { stream: subscribing.stream.clone() };
                self.ask(correlation, Asked::Subscription(subscribing), ask, out);
            }
            Err(code) => out.bytes.respond(Key::Subscribe, correlation, code),
        }
    }

    pub(super) fn subscribed(&mut self, subscribing: Subscribing, target: Arc<StreamTarget>, out: &mut Out) {
        let Subscribing { subscription, stream, from, credit, wanted, group, properties } = subscribing;
        let (credit, reads, delivered, next) = (credit.into(), group.is_none(), 0, None);
        let made = Subscription { stream, target, from, wanted, credit, reads, group, properties, delivered, next };
        match made.member(subscription) {
            None => out.act(made.read(subscription, from)),
            Some(member) => out.act(Act::Join(member)),
        }
        self.subscriptions.insert(subscription, made);
    }

    pub(super) fn unsubscribe(&mut self, correlation: u32, subscription: u8, out: &mut Out) {
        let code = match self.end_subscription(subscription, out) {
            true => Code::Ok,
            false => Code::SubscriptionIdDoesNotExist,
        };
        out.bytes.respond(Key::Unsubscribe, correlation, code);
    }

    pub(super) fn end_subscription(&mut self, subscription: u8, out: &mut Out) -> bool {
        let Some(ended) = self.subscriptions.remove(&subscription) else { return false };
        out.act(Act::Stop { subscription });
        if let Some(member) = ended.member(subscription) {
            self.updates.retain(|update| update.member.subscription != subscription);
            out.act(Act::Leave(member));
        }
        true
    }

    pub(super) fn credit(&mut self, number: u8, credit: i16, out: &mut Out) {
        match self.subscriptions.get_mut(&number) {
            Some(subscription) => {
                subscription.credit = subscription.credit.saturating_add(credit.into());
                if !subscription.reads {
                    // Left over from when it was active; counted all the same, as by RabbitMQ.
                    out.bytes.credit_error(number, Code::PreconditionFailed);
                }
            }
            None => out.bytes.credit_error(number, Code::SubscriptionIdDoesNotExist),
        }
    }

    /// Whether a chunk may come for a subscription now.
    pub fn wants_chunk(&self, subscription: u8) -> bool {
        self.subscriptions.get(&subscription).is_some_and(|s| s.reads && s.credit > 0)
    }

    /// A chunk for a subscription. What holds nothing that it wants costs no credit. Version 2 tells the newest committed chunk: this one,
    /// as far as the client must know.
    pub fn on_chunk(&mut self, number: u8, chunk: &StreamChunk, out: &mut Out) {
        let version_2 = self.delivers_version_2;
        let Some(subscription) = self.subscriptions.get_mut(&number).filter(|s| s.reads) else { return };
        if subscription.wanted.as_ref().is_some_and(|wanted| !may_hold(&chunk.filter, &wanted.values, wanted.unfiltered)) {
            return;
        }
        subscription.credit -= 1;
        subscription.delivered += u64::from(chunk.records);
        subscription.next = Some(chunk.next());
        self.counts.chunks += 1;
        self.counts.delivered += u64::from(chunk.records);
        self.counts.delivered_bytes += chunk.data.len() as u64;
        out.bytes.deliver(number, version_2.then_some(chunk.first.0), chunk);
    }

    // ---- groups ----

    /// A member of a group becomes active, or not any more. The client hears of it and answers.
    pub fn on_turn(&mut self, number: u8, active: bool, out: &mut Out) {
        let Some(subscription) = self.subscriptions.get_mut(&number) else { return };
        let Some(group) = &mut subscription.group else { return };
        group.active = active;
        if !active && std::mem::take(&mut subscription.reads) {
            out.act(Act::Stop { subscription: number });
        }
        let Some(member) = subscription.member(number) else { return };
        let correlation = self.next_correlation();
        self.updates.push(Update { correlation, member, active });
        out.bytes.consumer_update(correlation, number, active);
    }

    /// The client's answer.
    pub(super) fn consumer_updated(&mut self, correlation: u32, offset: Option<stream::OffsetSpec>, out: &mut Out) {
        let Some(at) = self.updates.iter().position(|update| update.correlation == correlation) else { return };
        let Update { member, active, .. } = self.updates.remove(at);
        if !active {
            return out.act(Act::Yielded(member));
        }
        let number = member.subscription;
        // Another update may be under way already.
        let is_later = self.updates.iter().any(|update| update.member.subscription == number);
        let Some(subscription) = self.subscriptions.get_mut(&number) else { return };
        if subscription.group.as_ref().is_some_and(|group| group.active) && !subscription.reads && !is_later {
            subscription.reads = true;
            let from = offset.map_or(subscription.from, from);
            out.act(subscription.read(number, from));
        }
    }

    /// The client owes answers to ConsumerUpdate.
    pub fn awaits_client(&self) -> bool {
        !self.updates.is_empty()
    }
}
