//! Where all protocols meet: `Step`s go from a session to the edge, `Event`s come back. Values only. A session is pure: frames in,
//! steps out; events in, frames out. The listener joins the two.

use super::catalog::{BindingSpec, ExchangeSpec, Name, Refusal, Table};
use super::link::Delivery;
use super::report::Report;
use super::stream::Append;
use super::{ConsumerId, QueueId, Seq, ShardId};
use bytes::Bytes;
use std::sync::Arc;

/// The queue name that asks for a direct reply-to consumer, and what its addresses begin with.
pub const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Session to edge, in the client's order. Steps of one channel take effect in that order.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Who is it? Answer: `Event::Authenticated` or `Event::AuthenticationFailed`.
    Authenticate {
        /// User name.
        user: String,
        /// Password in the clear as the client sent it.
        password: Vec<u8>,
    },
    /// The listener has verified a certificate, or a signature, that stands for this user; answers as above.
    AuthenticateByCertificate {
        /// User name.
        user: Arc<str>,
    },
    /// Enter a vhost after authentication. Answer: `Event::Opened` or `Event::OpenRefused`.
    Open {
        /// The vhost.
        vhost: String,
    },
    /// A message. No answer unless `ticket` is given or it cannot be routed.
    Publish(Publish),
    /// Messages for a stream. No answer unless they cannot be stored in time; confirms name publishing ids.
    Append(Append),
    /// A message of a transaction was taken in, here without its body: is there such an exchange, may this client publish that? No
    /// answer but a `ChannelError`.
    Check(Publish),
    /// tx.commit. Answered like a request: `Reply::Done` when all of it took effect.
    Commit(Box<Commit>),
    /// The client has dealt with these messages. No answer.
    Settle {
        /// Which, in ascending tag order.
        held: Vec<Held>,
        /// How.
        outcome: Outcome,
        /// The client asked for it: it takes effect after what the client sent before.
        asked: bool,
    },
    /// Anything that is answered on its channel by exactly one `Event::Reply`. The session sends the next request or publish of that
    /// channel only after the reply.
    Request {
        /// The channel.
        channel: u16,
        /// What.
        request: Request,
    },
    /// Deliveries were encoded for the socket: their bytes are credit again.
    Written {
        /// Whose.
        consumer: ConsumerId,
        /// Bytes as counted in `Delivery::message`.
        bytes: u64,
    },
    /// `basic.qos global=true`: together the consumers of the channel hold at most this many unsettled messages; `None` = no limit.
    ChannelPrefetch {
        /// The channel.
        channel: u16,
        /// The limit.
        limit: Option<u32>,
    },
    /// connection.update-secret. Answer: `Event::SecretUpdated`.
    UpdateSecret,
    /// Answer to `Event::Report`.
    Report(Box<Report>),
    /// The channel is closed: its consumers end, `held` and what was delivered and not yet passed to the session go back to their queues.
    ChannelClosed {
        /// The channel.
        channel: u16,
        /// What the client held, seen by it.
        held: Vec<Held>,
    },
    /// The client says goodbye; the last step but publishes that were given back. Its consumers end, what it holds goes back, its
    /// exclusive queues are deleted. Answer: `Event::Left`, when all nodes know that.
    Leave,
}

/// A message from a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// The channel, echoed in events.
    pub channel: u16,
    /// Publish sequence number of a channel in confirm mode.
    pub ticket: Option<u64>,
    /// Return it when no queue takes it.
    pub mandatory: bool,
    /// Exchange, "" for the default one.
    pub exchange: Bytes,
    /// Routing key.
    pub routing_key: Bytes,
    /// Property flags and property list as on the wire (spec 4.2.6.1, from the flags on), checked for form by the session.
    pub properties: Bytes,
    /// Body.
    pub body: Bytes,
}

/// Everything a channel did since tx.select or the last commit or rollback.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// The channel.
    pub channel: u16,
    /// In the client's order, without tickets.
    pub publishes: Vec<Publish>,
    /// What the client said of messages it holds.
    pub settlements: Vec<(Vec<Held>, Outcome)>,
    /// Nothing of it takes effect when somebody else may have been given something of what it settles, or when it publishes and something of
    /// that has left its queue: the answer is `Refusal::Locked`.
    pub is_strict: bool,
}

/// A message that the client holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Where its queue lives.
    pub shard: ShardId,
    /// Its queue.
    pub queue: QueueId,
    /// Its place.
    pub seq: Seq,
    /// Who got it; `None` for basic.get.
    pub consumer: Option<ConsumerId>,
}

/// What a client says of messages it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done with them.
    Ack,
    /// Back to their original places, redelivered.
    Requeue,
    /// Not wanted: dropped, or dead-lettered where the queue says so.
    Reject,
}

/// A question of a channel.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// channel.open: the user may have only so many channels.
    OpenChannel,
    /// exchange.declare; passive: only the name counts.
    DeclareExchange {
        /// What.
        spec: ExchangeSpec,
        /// Only look.
        passive: bool,
    },
    /// exchange.delete.
    DeleteExchange {
        /// Which.
        name: Name,
        /// Only when unused.
        if_unused: bool,
    },
    /// queue.declare. Reply: `Reply::Queue`.
    DeclareQueue(DeclareQueue),
    /// queue.delete. Reply: `Reply::Count`.
    DeleteQueue {
        /// Which.
        name: Name,
        /// Only without consumers.
        if_unused: bool,
        /// Only when empty.
        if_empty: bool,
    },
    /// queue.purge. Reply: `Reply::Count`.
    PurgeQueue {
        /// Which.
        name: Name,
    },
    /// queue.bind, exchange.bind.
    Bind(BindingSpec),
    /// queue.unbind, exchange.unbind.
    Unbind(BindingSpec),
    /// basic.consume. Reply: `Reply::Consuming`; deliveries come only after it.
    Consume {
        /// The queue.
        queue: Name,
        /// The tag, made by the session when the client gave none.
        tag: Arc<str>,
        /// No settling.
        no_ack: bool,
        /// Alone.
        exclusive: bool,
        /// Messages it may hold; `None` = no limit.
        prefetch: Option<u32>,
        /// Arguments as sent.
        arguments: Table,
    },
    /// basic.cancel. Reply: `Reply::Done`; no delivery of that consumer comes after it.
    Cancel {
        /// Whom.
        consumer: ConsumerId,
    },
    /// basic.get. Reply: `Reply::Got`.
    Get {
        /// The queue.
        queue: Name,
        /// No settling.
        no_ack: bool,
    },
    /// Some messages out of several queues, for a client that fetches. Reply: `Reply::Took`.
    Take(Take),
    /// A publish of this channel must be checked before the next method runs (confirm-less channel closing): replies when all
    /// earlier publishes of the connection were routed. Reply: `Reply::Done`.
    Barrier,
}

/// What is fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Take {
    /// From where: one after the other, beginning anywhere.
    pub queues: Vec<Name>,
    /// So many at most.
    pub most: u32,
    /// From a queue only while nobody holds messages of it.
    pub alone: bool,
    /// When there are none: how long to wait until there are some, ms.
    pub patience_ms: u64,
}

/// queue.declare as the client sent it; the edge fills in the owner of an exclusive queue and a server-made name.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclareQueue {
    /// Name; an empty `name.name` asks for a server-made one (`amq.gen-…`).
    pub name: Name,
    /// Only look.
    pub passive: bool,
    /// Survives.
    pub durable: bool,
    /// Only this connection.
    pub exclusive: bool,
    /// Goes with its last consumer.
    pub auto_delete: bool,
    /// Arguments.
    pub arguments: Table,
}

/// An answer to a `Request`.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Done.
    Done,
    /// queue.declare-ok.
    Queue {
        /// Its name.
        name: Arc<str>,
        /// Ready messages.
        messages: u64,
        /// Consumers.
        consumers: u32,
    },
    /// Messages deleted or purged.
    Count(u64),
    /// basic.consume-ok.
    Consuming {
        /// The id that deliveries and `Cancel` name.
        consumer: ConsumerId,
    },
    /// basic.consume-ok of a direct reply-to consumer.
    ReplyTo {
        /// The id that deliveries and `Cancel` name.
        consumer: ConsumerId,
        /// The address that replies are published to, through the default exchange.
        address: Arc<str>,
    },
    /// basic.get-ok / get-empty.
    Got(Option<Got>),
    /// Messages taken; none when there were none in time.
    Took(Vec<TookOne>),
}

/// A message that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct TookOne {
    /// Where its queue lives.
    pub shard: ShardId,
    /// The message.
    pub delivery: Delivery,
}

/// A message fetched with basic.get.
#[derive(Clone, Debug, PartialEq)]
pub struct Got {
    /// Where its queue lives.
    pub shard: ShardId,
    /// The message.
    pub delivery: Delivery,
    /// Ready messages that remain.
    pub remaining: u64,
}

/// Why a login is refused; for the log, not for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRefused {
    /// In words.
    pub why: String,
    /// Who it is was proved, but this user may log in from the node's own machine only.
    pub is_remote: bool,
}

impl From<String> for LoginRefused {
    fn from(why: String) -> LoginRefused {
        LoginRefused { why, is_remote: false }
    }
}

/// Edge to session.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The user is who it says.
    Authenticated,
    /// It is not, or it may not log in from there.
    AuthenticationFailed(LoginRefused),
    /// In the vhost.
    Opened,
    /// No such vhost or no access to it.
    OpenRefused(Refusal),
    /// Answer to `Step::UpdateSecret`: the client may stay in its vhost, or not.
    SecretUpdated(Result<(), Refusal>),
    /// Answer to a `Request`. An `Err` closes the channel.
    Reply {
        /// The channel.
        channel: u16,
        /// Or why not.
        result: Result<Reply, Refusal>,
    },
    /// Confirm these publish sequence numbers: inclusive ranges, ascending.
    Confirmed {
        /// The channel.
        channel: u16,
        /// Which.
        tickets: Vec<(u64, u64)>,
    },
    /// Refused or not confirmed in time.
    Nacked {
        /// The channel.
        channel: u16,
        /// Which.
        tickets: Vec<(u64, u64)>,
    },
    /// A mandatory message that no queue took; comes before its `Confirmed`.
    Returned(Box<Publish>),
    /// A publish that closes its channel (404 missing exchange, 403 no permission or internal exchange).
    ChannelError {
        /// The channel.
        channel: u16,
        /// Why.
        refusal: Refusal,
        /// The method it answers: class 60 method 40 for a publish.
        method: (u16, u16),
    },
    /// Messages for a consumer.
    Deliver {
        /// The channel.
        channel: u16,
        /// Whose.
        consumer: ConsumerId,
        /// Where the queue lives, for `Held`.
        shard: ShardId,
        /// The messages.
        messages: Vec<Delivery>,
    },
    /// What the client fetched (`Request::Take`) of this shard is not its own any more: its node counted as gone there.
    Lost {
        /// Where its queues live.
        shard: ShardId,
    },
    /// The broker ended the consumer (its queue was deleted).
    ConsumerGone {
        /// The channel.
        channel: u16,
        /// Whose.
        consumer: ConsumerId,
    },
    /// Publishes wait: alarm or no quorum (connection.blocked).
    Blocked(String),
    /// Publishes flow again.
    Unblocked,
    /// Somebody lists connections. Answer: `Step::Report`.
    Report,
    /// Close the connection (320): shutdown, vhost or user deleted, closed by an operator.
    Close(String),
    /// Answer to `Step::Leave`; the last event.
    Left,
}
