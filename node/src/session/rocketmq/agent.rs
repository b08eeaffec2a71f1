//! An agent: one client of the edge for everything that users of HTTP want as one user in one vhost. Commands and events in, steps and
//! outcomes out. It holds what was delivered until it is acknowledged or its time is over, whatever became of the connection that asked.
//! Time and random numbers come in from outside. Driven by `listener::rocketmq`.

use super::answers::Handed;
use super::channels::Channels;
use super::halves::{Half, Halves};
use super::handle::{Handle, Slot};
use super::holding::Holding;
pub use super::holding::Scope;
use super::joints::Joints;
use super::message::{shown, unveiled, whole};
use super::moment::Moment;
use super::request::Tags;
use crate::model::catalog::{Name, Refusal};
use crate::model::entry::StoredMessage;
use crate::model::report::Report;
use crate::model::step::{Commit, Event, Held, Outcome as Fate, Publish, Reply, Request, Step, Take, TookOne};
use crate::model::{Incarnation, NodeId};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

/// How long messages may take from a queue of half messages that has them.
const OWN_HALF_MS: u64 = 5_000;
/// Who passed over all it got looks again for so long after its time; in order it may have to wait for what it passed over.
const PASSED_MS: u64 = 1_000;
/// Half messages that are fetched at once.
const HALVES_AT_ONCE: u32 = 16;
/// Between two looks for half messages that are too old.
const HALVES_CHECK_MS: u64 = 60_000;

/// Who an agent is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// This node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// Its number on this node.
    pub number: u32,
    /// For whom it works; `None`: for many, whose rights are checked elsewhere, on a connection of the broker's own.
    pub user: Option<Arc<str>>,
    /// Where.
    pub vhost: Arc<str>,
}

/// A consumer's wish.
#[derive(Clone, Debug)]
pub struct Poll {
    /// For which group of which topic.
    pub scope: Scope,
    /// The group's queues.
    pub queues: Vec<Name>,
    /// So many at most.
    pub most: u32,
    /// A partition's only while none of it is out.
    pub alone: bool,
    /// Which of them.
    pub tags: Tags,
    /// How long they are invisible, ms.
    pub invisible_ms: u64,
    /// Until when to wait, by the steady clock.
    pub until_ms: u64,
}

/// A half message to be kept.
#[derive(Clone, Debug)]
pub struct HalfPublish {
    /// Ready for the queue of half messages.
    pub publish: Publish,
    /// That queue.
    pub queue: Name,
    /// The topic.
    pub topic: Arc<str>,
    /// Its id.
    pub id: String,
}

/// Who wants to check half messages.
#[derive(Clone, Debug)]
pub struct Check {
    /// The topic.
    pub topic: Arc<str>,
    /// Queues of half messages that nobody else attends to.
    pub queues: Vec<Name>,
    /// So many at most.
    pub most: u32,
    /// How long before they are checked again, ms.
    pub invisible_ms: u64,
}

/// What the listener wants of an agent.
#[derive(Clone, Debug)]
pub enum Command {
    /// Publish a message.
    Publish(Box<Publish>),
    /// Fetch messages.
    Poll(Box<Poll>),
    /// Deliveries are done with.
    Ack {
        /// Which.
        slots: Vec<Slot>,
        /// For whom.
        scope: Scope,
    },
    /// Keep a half message.
    Half(Box<HalfPublish>),
    /// Fetch half messages.
    Check(Box<Check>),
    /// Half messages are published, or dropped.
    Decide {
        /// Which.
        slots: Vec<Slot>,
        /// Of which topic.
        topic: Arc<str>,
        /// Published.
        commit: bool,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A majority has it.
    Published,
    /// Messages, none when there were none.
    Polled(Vec<Handed>),
    /// Which of the handles were good.
    Settled(Vec<bool>),
    /// The handle of a half message.
    Halved(String),
    /// Not done, or nobody knows.
    Refused(Refusal),
}

/// What an agent says: to the edge, and to whoever gave it commands.
#[derive(Debug, Default)]
pub struct Output {
    /// For the edge, in order.
    pub steps: Vec<Step>,
    /// Commands that are done with.
    pub done: Vec<(u64, Outcome)>,
}

#[derive(Debug)]
enum State {
    /// Commands wait until it is in its vhost.
    Coming(Vec<(u64, Command)>),
    Inside,
    Ended(Refusal),
}

#[derive(Debug)]
enum Doing {
    Publishing,
    Polling(Box<Poll>),
    /// A part of what is settled by one command: those at these places, and what is published by it.
    Settling(Vec<usize>, Option<Box<Half>>),
    HalfPublishing(Box<HalfPublish>),
    HalfTaking(Box<HalfPublish>),
    Checking(Box<Check>),
}

#[derive(Debug)]
struct Call {
    id: u64,
    doing: Doing,
}

/// What one transaction is to settle of a command.
struct Part {
    publishes: Vec<Publish>,
    held: Vec<Held>,
    /// Places among the handles of the command.
    places: Vec<usize>,
    /// Whose decision it is.
    half: Option<Box<Half>>,
}

/// Makes secrets.
pub type Random = Box<dyn FnMut() -> u64 + Send>;

/// An agent.
pub struct Agent {
    identity: Identity,
    state: State,
    channels: Channels,
    calls: HashMap<u16, Call>,
    joints: Joints,
    holding: Holding,
    halves: Halves,
    halves_check_ms: u64,
    slots: u64,
    random: Random,
}

impl Agent {
    /// A new one, with its first step; the broker's own connection is open as it comes.
    pub fn new(identity: Identity, random: Random) -> (Agent, Option<Step>) {
        let step = identity.user.clone().map(|user| Step::AuthenticateByCertificate { user });
        let agent = Agent {
            identity,
            state: State::Coming(Vec::new()),
            channels: Channels::new(),
            calls: HashMap::new(),
            joints: Joints::default(),
            holding: Holding::default(),
            halves: Halves::default(),
            halves_check_ms: 0,
            slots: 0,
            random,
        };
        (agent, step)
    }

    /// It will do nothing any more.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Nothing is under way and nothing is held.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty() && self.holding.is_empty() && self.halves.is_empty()
    }

    /// When `tick` is due, by the steady clock.
    pub fn due_ms(&self) -> Option<u64> {
        let halves = (!self.halves.is_empty()).then_some(self.halves_check_ms);
        self.holding.due_ms().into_iter().chain(halves).chain(self.joints.due_ms()).min()
    }

    /// Somebody wants something; `id` comes back with the outcome.
    pub fn command(&mut self, id: u64, command: Command, now: Moment, out: &mut Output) {
        match &mut self.state {
            State::Coming(waiting) => waiting.push((id, command)),
            State::Ended(refusal) => out.done.push((id, Outcome::Refused(refusal.clone()))),
            State::Inside => self.begin(id, command, now, out),
        }
    }

    /// Whoever gave that command is gone: a fetch ends, anything else goes on.
    pub fn abandon(&mut self, id: u64, out: &mut Output) {
        if let State::Coming(waiting) = &mut self.state {
            waiting.retain(|(known, _)| *known != id);
        }
        let is_fetch = |call: &Call| call.id == id && matches!(call.doing, Doing::Polling(_));
        let channel = self.calls.iter().find(|(_, call)| is_fetch(call)).map(|(channel, _)| *channel);
        if let Some(channel) = channel {
            self.end_channel(channel, out);
        }
    }

    /// The command that a step publishes for.
    pub fn caller(&self, step: &Step) -> Option<u64> {
        self.calls.get(&channel_of(step)?).map(|call| call.id)
    }

    /// The edge never took this step: nothing of it happens any more.
    pub fn unsent(&mut self, step: &Step, refusal: Refusal, out: &mut Output) {
        let Some(channel) = channel_of(step) else { return };
        // It can be decided again, with the same handle.
        if let Some(Call { doing: Doing::Settling(_, half), .. }) = self.calls.get_mut(&channel)
            && let Some(half) = half.take()
        {
            self.halves.restore(*half);
        }
        self.answer(channel, Outcome::Refused(refusal), out);
    }

    /// Time has passed: deliveries come back, half messages are dropped.
    pub fn tick(&mut self, now: Moment, out: &mut Output) {
        out.done.extend(self.joints.over(now.steady_ms));
        let over = self.holding.over(now.steady_ms);
        if !over.is_empty() {
            out.steps.push(Step::Settle { held: over, outcome: Fate::Requeue, asked: true });
        }
        if self.halves_check_ms <= now.steady_ms {
            self.halves_check_ms = now.steady_ms + HALVES_CHECK_MS;
            let over = self.halves.over(now.steady_ms);
            if !over.is_empty() {
                out.steps.push(Step::Settle { held: over, outcome: Fate::Ack, asked: true });
            }
        }
    }

    /// The edge says something.
    pub fn event(&mut self, event: Event, now: Moment, out: &mut Output) {
        match event {
            Event::Authenticated => out.steps.push(Step::Open { vhost: self.identity.vhost.to_string() }),
            Event::AuthenticationFailed(refused) => self.end(Refusal::Access(refused.why), out),
            Event::OpenRefused(refusal) => self.end(refusal, out),
            Event::Opened => {
                if let State::Coming(waiting) = std::mem::replace(&mut self.state, State::Inside) {
                    waiting.into_iter().for_each(|(id, command)| self.begin(id, command, now, out));
                }
            }
            Event::Confirmed { channel, .. } => self.confirmed(channel, out),
            Event::Nacked { channel, .. } => {
                let refusal = Refusal::Unavailable("no majority has the message, or a queue of the topic is full".to_owned());
                self.answer(channel, Outcome::Refused(refusal), out);
            }
            Event::Reply { channel, result } => self.reply(channel, result, now, out),
            Event::ChannelError { channel, refusal, .. } => {
                if let Some(call) = self.calls.remove(&channel) {
                    self.done(call, Outcome::Refused(refusal), out);
                    self.channels.give_back(channel);
                }
                out.steps.push(Step::ChannelClosed { channel, held: Vec::new() });
            }
            Event::Lost { shard } => {
                self.holding.lose(shard);
                self.halves.lose(shard);
                for call in self.calls.values_mut() {
                    if let Doing::Settling(_, half) = &mut call.doing {
                        half.take_if(|half| half.held.shard == shard);
                    }
                }
            }
            Event::Report => {
                let report = Report { state: "running", mechanism: "MQ-HTTP", ..Report::default() };
                out.steps.push(Step::Report(Box::new(report)));
            }
            Event::Close(why) => self.end(Refusal::Unavailable(why), out),
            // It mandates no returns, consumes nothing and leaves by going.
            Event::Returned(_)
            | Event::Deliver { .. }
            | Event::ConsumerGone { .. }
            | Event::SecretUpdated(_)
            | Event::Blocked(_)
            | Event::Unblocked
            | Event::Left => {}
        }
    }

    fn end(&mut self, refusal: Refusal, out: &mut Output) {
        let state = std::mem::replace(&mut self.state, State::Ended(refusal.clone()));
        let waiting = if let State::Coming(waiting) = state { waiting } else { Vec::new() };
        out.done.extend(waiting.into_iter().map(|(id, _)| (id, Outcome::Refused(refusal.clone()))));
        for (_, call) in std::mem::take(&mut self.calls) {
            self.done(call, Outcome::Refused(refusal.clone()), out);
        }
    }

    fn begin(&mut self, id: u64, command: Command, now: Moment, out: &mut Output) {
        match command {
            Command::Publish(publish) => {
                let Some(channel) = self.open(id, Doing::Publishing, out) else { return };
                out.steps.push(Step::Publish(Publish { channel, ticket: Some(1), ..*publish }));
            }
            Command::Poll(_) if self.holding.is_full() => {
                let why = "too many messages that this user got through this node are not acknowledged".to_owned();
                out.done.push((id, Outcome::Refused(Refusal::Unavailable(why))));
            }
            Command::Poll(poll) => {
                let patience_ms = poll.until_ms.saturating_sub(now.steady_ms);
                let request = take(&poll, patience_ms);
                let Some(channel) = self.open(id, Doing::Polling(poll), out) else { return };
                out.steps.push(Step::Request { channel, request });
            }
            Command::Ack { slots, scope } => {
                let taken = slots.iter().map(|slot| self.holding.take(*slot, &scope, now.steady_ms)).enumerate();
                let mut taken: Vec<(Held, usize)> = taken.filter_map(|(place, held)| Some((held?, place))).collect();
                taken.sort_unstable_by_key(|(held, _)| (held.shard, held.queue, held.seq));
                // What lies in one shard is one batch; nothing binds the shards together.
                let parts = taken.chunk_by(|a, b| a.0.shard == b.0.shard).map(|part| {
                    let (held, places) = part.iter().copied().unzip();
                    Part { publishes: Vec::new(), held, places, half: None }
                });
                let parts = parts.collect();
                self.settle(id, slots.len(), parts, now, out);
            }
            Command::Half(half) if self.halves.is_full() => {
                let why = format!("too many half messages of topic {} wait for their decisions on this node", half.topic);
                out.done.push((id, Outcome::Refused(Refusal::Unavailable(why))));
            }
            Command::Half(half) => {
                let publish = half.publish.clone();
                let Some(channel) = self.open(id, Doing::HalfPublishing(half), out) else { return };
                out.steps.push(Step::Publish(Publish { channel, ticket: Some(1), ..publish }));
            }
            Command::Check(check) => {
                if check.queues.is_empty() || self.halves.is_full() {
                    return self.check(id, &check, now, out);
                }
                let request = fetch(check.queues.clone(), 4 * HALVES_AT_ONCE, 0);
                let Some(channel) = self.open(id, Doing::Checking(check), out) else { return };
                out.steps.push(Step::Request { channel, request });
            }
            Command::Decide { slots, topic, commit } => {
                let taken = slots.iter().map(|slot| self.halves.take(*slot, &topic, now.steady_ms)).enumerate();
                let parts = taken.filter_map(|(place, half)| {
                    let half = half?;
                    let publishes = if commit { vec![whole(&topic, &half.message, now.wall_ms)] } else { Vec::new() };
                    Some(Part { publishes, held: vec![half.held], places: vec![place], half: Some(Box::new(half)) })
                });
                let parts = parts.collect();
                self.settle(id, slots.len(), parts, now, out);
            }
        }
    }

    /// A channel for a call.
    fn open(&mut self, id: u64, doing: Doing, out: &mut Output) -> Option<u16> {
        let channel = self.channels.take();
        match channel {
            Some(channel) => drop(self.calls.insert(channel, Call { id, doing })),
            None => {
                let why = "too many requests of this user are under way on this node".to_owned();
                out.done.push((id, Outcome::Refused(Refusal::Unavailable(why))));
            }
        }
        channel
    }

    /// Each part is one transaction, which has no effect where others may have been given what it settles. `handles`: how many were named.
    fn settle(&mut self, id: u64, handles: usize, parts: Vec<Part>, now: Moment, out: &mut Output) {
        self.joints.begin(id, parts.len(), handles, now.steady_ms);
        for Part { publishes, held, places, half } in parts {
            let Some(channel) = self.channels.take() else {
                // Without a channel for the answer nobody would hear when it is done.
                match half {
                    Some(half) => self.halves.restore(*half),
                    None => out.steps.push(Step::Settle { held, outcome: Fate::Requeue, asked: true }),
                }
                let why = "too many requests of this user are under way on this node".to_owned();
                self.joints.ended(id, Some(Refusal::Unavailable(why)));
                continue;
            };
            self.calls.insert(channel, Call { id, doing: Doing::Settling(places, half) });
            let publishes = publishes.into_iter().map(|publish| Publish { channel, ..publish }).collect();
            let settlements = vec![(held, Fate::Ack)];
            out.steps.push(Step::Commit(Box::new(Commit { channel, publishes, settlements, is_strict: true })));
        }
        self.joint_done(id, out);
    }

    fn joint_done(&mut self, id: u64, out: &mut Output) {
        out.done.extend(self.joints.take(id).map(|outcome| (id, outcome)));
    }

    /// A call is over.
    fn answer(&mut self, channel: u16, outcome: Outcome, out: &mut Output) {
        if let Some(call) = self.calls.remove(&channel) {
            self.channels.give_back(channel);
            self.done(call, outcome, out);
        }
    }

    fn done(&mut self, call: Call, outcome: Outcome, out: &mut Output) {
        match (call.doing, outcome) {
            (Doing::Settling(places, _), outcome) => {
                match outcome {
                    // Others may have been given these: the handles are not good any more.
                    Outcome::Refused(Refusal::Locked(_)) => self.joints.ended(call.id, None),
                    Outcome::Refused(refusal) => self.joints.ended(call.id, Some(refusal)),
                    Outcome::Published | Outcome::Polled(_) | Outcome::Settled(_) | Outcome::Halved(_) => {
                        self.joints.settled(call.id, &places);
                    }
                }
                self.joint_done(call.id, out);
            }
            (_, outcome) => out.done.push((call.id, outcome)),
        }
    }

    /// A call is over whatever the edge still says about it.
    fn end_channel(&mut self, channel: u16, out: &mut Output) {
        self.calls.remove(&channel);
        self.channels.give_back(channel);
        out.steps.push(Step::ChannelClosed { channel, held: Vec::new() });
    }

    fn confirmed(&mut self, channel: u16, out: &mut Output) {
        let Some(call) = self.calls.get_mut(&channel) else { return };
        match std::mem::replace(&mut call.doing, Doing::Publishing) {
            Doing::HalfPublishing(half) => {
                // It is safe; now it is fetched, so that whoever decides it finds it here.
                let request = fetch(vec![half.queue.clone()], HALVES_AT_ONCE, OWN_HALF_MS);
                call.doing = Doing::HalfTaking(half);
                out.steps.push(Step::Request { channel, request });
            }
            doing => {
                call.doing = doing;
                self.answer(channel, Outcome::Published, out);
            }
        }
    }

    fn reply(&mut self, channel: u16, result: Result<Reply, Refusal>, now: Moment, out: &mut Output) {
        let messages = match result {
            Ok(Reply::Took(messages)) => messages,
            // Only commits are answered so; who waits for one asks whether it was.
            Ok(Reply::Done | Reply::Queue { .. } | Reply::Count(_) | Reply::Consuming { .. } | Reply::ReplyTo { .. } | Reply::Got(_)) => {
                return self.answer(channel, Outcome::Published, out);
            }
            Err(refusal) => return self.answer(channel, Outcome::Refused(refusal), out),
        };
        let Some(call) = self.calls.remove(&channel) else {
            // Nobody waits for it any more: it came together with what ended the call.
            let held =
                messages.iter().map(|one| Held { shard: one.shard, queue: one.delivery.queue, seq: one.delivery.seq, consumer: None });
            let held: Vec<Held> = held.collect();
            if !held.is_empty() {
                out.steps.push(Step::Settle { held, outcome: Fate::Requeue, asked: true });
            }
            return;
        };
        let id = call.id;
        match call.doing {
            Doing::Polling(poll) => self.polled(id, channel, poll, messages, now, out),
            Doing::HalfTaking(half) => {
                let fetched = !messages.is_empty();
                self.adopt(&half.topic, messages, now);
                self.calls.insert(channel, Call { id, doing: Doing::HalfTaking(half) });
                self.halves_found(out);
                // Others that were published before it came first.
                if let Some(Call { doing: Doing::HalfTaking(half), .. }) = self.calls.get(&channel) {
                    if !fetched {
                        let why = "the half message is kept and will be checked; it cannot be decided now".to_owned();
                        return self.answer(channel, Outcome::Refused(Refusal::Unavailable(why)), out);
                    }
                    let request = fetch(vec![half.queue.clone()], HALVES_AT_ONCE, OWN_HALF_MS);
                    out.steps.push(Step::Request { channel, request });
                }
            }
            Doing::Checking(check) => {
                self.channels.give_back(channel);
                self.adopt(&check.topic, messages, now);
                self.halves_found(out);
                self.check(id, &check, now, out);
            }
            Doing::Publishing | Doing::Settling(..) | Doing::HalfPublishing(_) => {}
        }
    }

    fn slot(&mut self) -> Slot {
        self.slots += 1;
        Slot { number: self.slots, secret: (self.random)() }
    }

    fn handle(&self, slot: Slot) -> Handle {
        let Identity { node, incarnation, number, .. } = self.identity;
        Handle { node, incarnation, agent: number, slot }
    }

    /// Messages for a consumer; those that its group does not want are passed over for good.
    fn polled(&mut self, id: u64, channel: u16, poll: Box<Poll>, messages: Vec<TookOne>, now: Moment, out: &mut Output) {
        let (mut handed, mut passed) = (Vec::new(), Vec::new());
        let due_ms = now.steady_ms + poll.invisible_ms;
        let next_ms = now.told_ms(due_ms);
        for TookOne { shard, delivery } in messages {
            let held = Held { shard, queue: delivery.queue, seq: delivery.seq, consumer: None };
            let message = StoredMessage::parse(delivery.message.clone()).unwrap_or_else(nothing);
            if !poll.tags.wants(&message.key) {
                passed.push(held);
                continue;
            }
            let times = (u64::from(delivery.failures) + 1).max(1 + u64::from(delivery.redelivered));
            let slot = self.slot();
            let shown = shown(&delivery, &message);
            let published_ms = shown.published_ms.unwrap_or(0).min(now.wall_ms);
            let first_ms = self.holding.first_ms(&held, times, delivery.failed_ms, (now.wall_ms, poll.invisible_ms)).max(published_ms);
            let handle = self.handle(slot).text(&shown.id);
            self.holding.add(slot, held, due_ms, poll.scope.clone());
            handed.push(Handed { shown, handle, first_ms, next_ms, times });
        }
        let latest_ms = poll.until_ms + PASSED_MS;
        let again = handed.is_empty() && !passed.is_empty() && now.steady_ms < latest_ms;
        if !passed.is_empty() {
            passed.sort_unstable_by_key(|held| (held.shard, held.queue, held.seq));
            out.steps.push(Step::Settle { held: passed, outcome: Fate::Ack, asked: true });
        }
        if again {
            let left_ms = (if poll.alone { latest_ms } else { poll.until_ms }).saturating_sub(now.steady_ms);
            out.steps.push(Step::Request { channel, request: take(&poll, left_ms) });
            self.calls.insert(channel, Call { id, doing: Doing::Polling(poll) });
        } else {
            self.channels.give_back(channel);
            out.done.push((id, Outcome::Polled(handed)));
        }
    }

    fn adopt(&mut self, topic: &Arc<str>, messages: Vec<TookOne>, now: Moment) {
        for TookOne { shard, delivery } in messages {
            let held = Held { shard, queue: delivery.queue, seq: delivery.seq, consumer: None };
            let slot = self.slot();
            self.halves.add(topic, held, delivery, slot, now);
        }
    }

    /// Calls that wait for half messages which are here now.
    fn halves_found(&mut self, out: &mut Output) {
        let found: Vec<(u16, Slot, String)> = self
            .calls
            .iter()
            .filter_map(|(channel, call)| {
                let Doing::HalfTaking(half) = &call.doing else { return None };
                Some((*channel, self.halves.find(&half.id)?, half.id.clone()))
            })
            .collect();
        for (channel, slot, message_id) in found {
            let handle = self.handle(slot).text(&message_id);
            if let Some(call) = self.calls.get(&channel) {
                out.done.push((call.id, Outcome::Halved(handle)));
            }
            // Its own fetch may be under way.
            self.end_channel(channel, out);
        }
    }

    fn check(&mut self, id: u64, check: &Check, now: Moment, out: &mut Output) {
        let Agent { halves, slots, random, identity, .. } = self;
        let slot = || {
            *slots += 1;
            Slot { number: *slots, secret: random() }
        };
        let due = halves.due(&check.topic, now, check.most as usize, check.invisible_ms, slot);
        let handed = due.into_iter().map(|half| {
            let shown = shown(&half.delivery, &unveiled(&half.message));
            let handle = Handle { node: identity.node, incarnation: identity.incarnation, agent: identity.number, slot: half.slot };
            let handle = handle.text(&shown.id);
            Handed { shown, handle, first_ms: half.first_ms, next_ms: now.told_ms(half.valid_ms), times: half.times }
        });
        out.done.push((id, Outcome::Polled(handed.collect())));
    }
}

/// Of steps that publish.
fn channel_of(step: &Step) -> Option<u16> {
    if let Step::Commit(commit) = step {
        return Some(commit.channel);
    }
    if let Step::Publish(publish) = step { Some(publish.channel) } else { None }
}

/// A message that is none.
fn nothing() -> StoredMessage {
    StoredMessage { exchange: Bytes::new(), key: Bytes::new(), properties: Bytes::from_static(&[0, 0]), body: Bytes::new() }
}

fn take(poll: &Poll, patience_ms: u64) -> Request {
    Request::Take(Take { queues: poll.queues.clone(), most: poll.most, alone: poll.alone, patience_ms })
}

fn fetch(queues: Vec<Name>, most: u32, patience_ms: u64) -> Request {
    Request::Take(Take { queues, most, alone: false, patience_ms })
}
