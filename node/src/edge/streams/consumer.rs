//! An AMQP consumer of a stream. It reads this node's replica: nobody else knows of it, and a change of leader does not concern it. What it
//! was given comes back as credit when it is settled, in whatever way; nothing is settled in the stream.

use super::arguments::{self, Filters};
use super::cursor::Cursor;
use super::publishing::stream_target;
use super::{ReadError, Reader};
use crate::edge::Edge;
use crate::edge::mailbox::{ChannelRef, ConsumerPlace, Mailbox};
use crate::machine::catalog::queue_text;
use crate::model::catalog::{QueueRecord, Refusal, Table};
use crate::model::step::{Event, Reply};
use crate::model::stream::{OffsetSpec, StreamTarget};
use crate::model::{ConsumerId, Offset, ShardId};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// Messages handed over at a time.
const TAKEN: usize = 256;
/// A chunk that cannot be read is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// This node has not heard of a new stream: how often to look.
const UNKNOWN: Duration = Duration::from_millis(10);
/// How far a stream is, its leader is asked for so long; then this node's replica says.
const LEADER: Duration = Duration::from_secs(1);

/// What basic.consume asks for.
pub(in crate::edge) struct Consume {
    pub no_ack: bool,
    pub prefetch: Option<u32>,
    pub arguments: Table,
}

/// A consumer's credit, and whether it is still there.
#[derive(Debug)]
pub(in crate::edge) struct StreamConsumer {
    id: ConsumerId,
    credit: Mutex<Credit>,
    changed: Notify,
}

#[derive(Debug)]
struct Credit {
    /// Messages that it may hold.
    limit: u32,
    held: u32,
    /// Bytes that it may have on their way.
    window: u64,
    unwritten: u64,
    ended: bool,
}

impl StreamConsumer {
    /// The client has dealt with messages.
    pub fn settled(&self, count: u32) {
        let mut credit = self.credit.lock();
        credit.held = credit.held.saturating_sub(count);
        drop(credit);
        self.changed.notify_one();
    }

    /// Bytes of deliveries reached the socket.
    pub fn written(&self, bytes: u64) {
        let mut credit = self.credit.lock();
        credit.unwritten = credit.unwritten.saturating_sub(bytes);
        drop(credit);
        self.changed.notify_one();
    }

    /// Another prefetch.
    pub fn set_limit(&self, limit: u32) {
        self.credit.lock().limit = limit;
        self.changed.notify_one();
    }

    /// Messages it holds.
    pub fn held(&self) -> u64 {
        self.credit.lock().held.into()
    }

    /// Nothing comes any more.
    pub fn end(&self) {
        self.credit.lock().ended = true;
        self.changed.notify_one();
    }

    /// Messages and bytes that it may get now. `None`: it has ended.
    async fn credit(&self) -> Option<(usize, u64)> {
        loop {
            {
                let credit = self.credit.lock();
                let (messages, bytes) = (credit.limit.saturating_sub(credit.held), credit.window.saturating_sub(credit.unwritten));
                if credit.ended {
                    return None;
                }
                if messages > 0 && bytes > 0 {
                    return Some((messages as usize, bytes));
                }
            }
            self.changed.notified().await;
        }
    }

    async fn ended(&self) {
        while !self.credit.lock().ended {
            self.changed.notified().await;
        }
    }

    fn gave(&self, messages: usize, bytes: u64) {
        let mut credit = self.credit.lock();
        credit.held += messages as u32;
        credit.unwritten += bytes;
    }
}

impl Edge {
    /// Starts a consumer of a stream; answers on its channel. `after`: a mark behind what the connection published there.
    pub(in crate::edge) fn consume_stream(
        self: &Arc<Self>,
        record: &QueueRecord,
        (consume, after): (Consume, u64),
        mailbox: &Arc<Mailbox>,
        at: ChannelRef,
    ) -> Result<(), Refusal> {
        let subject = queue_text(&record.spec.name);
        let limit = consume.prefetch.filter(|limit| *limit > 0);
        let Some(limit) = limit.filter(|_| !consume.no_ack) else {
            return Err(match consume.no_ack {
                true => Refusal::NotImplemented(format!("automatic acknowledgement not supported by stream {subject}")),
                false => Refusal::Precondition(format!("consumer prefetch count is not set for stream {subject}")),
            });
        };
        if mailbox.common_prefetch(at.channel).is_some() {
            return Err(Refusal::NotImplemented(format!("{subject} does not support global qos")));
        }
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let offset = arguments::offset(&subject, &consume.arguments, now_ms)?;
        let target = stream_target(&self.catalog.read(), record);
        let target = target.ok_or_else(|| Refusal::Unavailable(format!("{subject} has changed its type")))?;
        let credit = Credit { limit, held: 0, window: self.config.consumer_bytes, unwritten: 0, ended: false };
        let consumer = Arc::new(StreamConsumer { id: ConsumerId(self.next_id()), credit: Mutex::new(credit), changed: Notify::new() });
        let place = ConsumerPlace { shard: ShardId::STREAMS, channel: at, no_ack: false, prefetch: Some(limit) };
        let task = Task {
            edge: self.clone(),
            mailbox: mailbox.clone(),
            place,
            consumer,
            name: record.spec.name.name.clone(),
            filters: arguments::filters(&consume.arguments),
        };
        self.runtime.spawn(task.start(Arc::new(target), offset, after, subject));
        Ok(())
    }
}

/// What runs as long as the consumer.
struct Task {
    edge: Arc<Edge>,
    mailbox: Arc<Mailbox>,
    place: ConsumerPlace,
    consumer: Arc<StreamConsumer>,
    name: Arc<str>,
    filters: Option<Filters>,
}

/// Why a consumer ends by itself.
enum End {
    /// The client wants no more.
    Asked,
    /// The stream is deleted.
    Gone,
}

impl Task {
    async fn start(self, target: Arc<StreamTarget>, offset: OffsetSpec, after: u64, subject: String) {
        let (from, start) = self.begin(&target, offset, after).await;
        let reader = match self.open(&target, from).await {
            Ok(reader) => reader,
            Err(error) => {
                let refusal = match error {
                    ReadError::NotHere => {
                        Refusal::Precondition(format!("stream {subject} does not have a running replica on the local node"))
                    }
                    ReadError::Gone => Refusal::NotFound {
                        kind: "queue".to_owned(),
                        name: self.name.to_string(),
                        vhost: self.mailbox.identity.get().map(|identity| identity.vhost.to_string()).unwrap_or_default(),
                    },
                    ReadError::Io(error) => Refusal::Unavailable(format!("{subject} cannot be read: {error}")),
                };
                self.mailbox.reply(self.place.channel, Err(refusal));
                return;
            }
        };
        // Known to the connection before it can end.
        self.mailbox.add_stream(self.consumer.clone());
        let id = self.consumer.id;
        let is_wanted = self.mailbox.add_consumer(id, self.place);
        if is_wanted && self.mailbox.reply(self.place.channel, Ok(Reply::Consuming { consumer: id })) {
            let cursor = Cursor::new(target.stream, self.name.clone(), start);
            match self.run(reader, cursor).await {
                End::Asked => {}
                End::Gone => {
                    self.mailbox.drop_consumer(id);
                    self.mailbox.push_at(self.place.channel, |channel| Event::ConsumerGone { channel, consumer: id });
                }
            }
        }
        self.mailbox.end_stream(id);
    }

    /// Where to read from, and the first offset that is wanted. `Next` and `Last` mean the stream as its leader has it, behind what this
    /// connection published: this node's replica may be a little behind.
    async fn begin(&self, target: &Arc<StreamTarget>, offset: OffsetSpec, after: u64) -> (OffsetSpec, Offset) {
        match offset {
            OffsetSpec::Offset(start) => return (offset, start),
            OffsetSpec::First | OffsetSpec::Timestamp(_) => return (offset, Offset(0)),
            OffsetSpec::Next | OffsetSpec::Last => {}
        }
        let state = tokio::time::timeout(LEADER, self.edge.stream_state((target.clone(), after), None, None));
        match state.await {
            Ok(Ok(state)) => {
                let start = if offset == OffsetSpec::Next { state.next } else { state.last_chunk.unwrap_or(state.next) };
                (OffsetSpec::Offset(start), start)
            }
            Ok(Err(_)) | Err(_) => (offset, Offset(0)),
        }
    }

    /// A stream that was just declared may not be here yet.
    async fn open(&self, target: &StreamTarget, from: OffsetSpec) -> Result<Reader, ReadError> {
        let until = Instant::now() + self.edge.config.no_quorum_timeout;
        loop {
            match self.edge.read_stream(target, from) {
                Err(ReadError::Gone) if self.edge.catalog.read().is_stream(target.stream) && Instant::now() < until => {
                    tokio::time::sleep(UNKNOWN).await;
                }
                opened => return opened,
            }
        }
    }

    async fn run(&self, mut reader: Reader, mut cursor: Cursor) -> End {
        loop {
            let Some((messages, bytes)) = self.consumer.credit().await else { return End::Asked };
            if cursor.is_done() {
                tokio::select! {
                    biased;
                    () = self.consumer.ended() => return End::Asked,
                    chunk = reader.next() => match chunk {
                        Ok(chunk) if self.filters.as_ref().is_none_or(|filters| filters.want(&chunk.filter)) => cursor.open(chunk),
                        Ok(_) => {}
                        Err(ReadError::Gone) => return End::Gone,
                        Err(error) => {
                            tracing::warn!(stream = &*self.name, %error, "a stream cannot be read, its consumer waits");
                            tokio::time::sleep(RETRY).await;
                        }
                    },
                }
                continue;
            }
            let taken = cursor.take(messages.min(TAKEN), bytes);
            if !taken.messages.is_empty() {
                self.consumer.gave(taken.messages.len(), taken.bytes);
                self.edge.counters.delivered.add(taken.messages.len() as u64);
                if !self.mailbox.deliver(self.consumer.id, self.place, taken.messages) {
                    return End::Asked;
                }
            }
            if let Some(packed) = taken.packed {
                cursor.unpacked(packed.records(), packed.unpack().await);
            }
            tokio::task::consume_budget().await;
        }
    }
}

impl Mailbox {
    /// A consumer of a stream begins.
    fn add_stream(&self, consumer: Arc<StreamConsumer>) {
        self.streams.lock().insert(consumer.id, consumer);
    }

    /// One that runs.
    pub fn stream(&self, id: ConsumerId) -> Option<Arc<StreamConsumer>> {
        self.streams.lock().get(&id).cloned()
    }

    /// It ends, if it runs.
    pub fn end_stream(&self, id: ConsumerId) {
        let ended = self.streams.lock().remove(&id);
        ended.iter().for_each(|consumer| consumer.end());
    }

    /// All end: the client is gone.
    pub fn end_streams(&self) {
        self.streams.lock().drain().for_each(|(_, consumer)| consumer.end());
    }
}
