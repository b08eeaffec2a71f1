//! Requests: checked against the local catalog (names, rights, owners; RabbitMQ's words), then a catalog command or a question to the
//! queue's leader. Those that wait run in a task of their own: at most one per channel, so channels bound them.

use super::Edge;
use super::access::{Kind, Right, Who};
use super::arguments;
use super::connection::drop_exclusive;
use super::lane::{Answer, Ask, Fetch, Home, Lane, Wishes, named, no_quorum};
use super::mailbox::{ChannelRef, ConsumerPlace, Mailbox};
use super::names::{check_not_address, check_not_default, check_not_reserved, generate, not_found};
use super::publish::{LEASE_POLL, NO_LEASE};
use super::replies;
use super::streams::{self, check_known};
use crate::machine::catalog::{Catalog, check_owner, check_queue, exchange_text, queue_text, queue_type};
use crate::model::catalog::{
    BindingSpec, CatalogCommand, CatalogReply, ExchangeSpec, Name, QueueRecord, QueueSpec, Refusal, Table, Target, Value,
};
use crate::model::link::{Consumer, QueueStat};
use crate::model::step::{DeclareQueue, REPLY_TO, Reply, Request};
use crate::model::{ConsumerId, ShardId};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// An unconditional deletion does not wait longer for the number of messages that it deletes.
const COUNT_TIMEOUT: Duration = Duration::from_secs(1);

/// A request with what it needs of its connection.
pub(super) struct Asking {
    pub edge: Arc<Edge>,
    pub mailbox: Arc<Mailbox>,
    pub at: ChannelRef,
    /// `None`: the broker itself.
    pub user: Option<Arc<str>>,
    pub vhost: Arc<str>,
    /// Marks behind what the connection published, per shard: a question about a queue comes after them.
    pub marks: SmallVec<[(ShardId, u64); 4]>,
}

/// What basic.consume asks for.
struct Consume {
    queue: Name,
    tag: Arc<str>,
    no_ack: bool,
    exclusive: bool,
    prefetch: Option<u32>,
    arguments: Table,
}

impl Asking {
    /// Runs the request; its answer goes to the mailbox. Without a routing lease this node's catalog may be old: the request waits for
    /// it (rule 28).
    pub fn start(self, request: Request) {
        if self.edge.port.routing_lease() || matches!(request, Request::Barrier) {
            return self.start_now(request);
        }
        self.edge.runtime.clone().spawn(async move {
            let until = Instant::now() + self.edge.config.no_quorum_timeout;
            while !self.edge.port.routing_lease() {
                if Instant::now() >= until || self.mailbox.is_closed() {
                    return self.answer(Err(Refusal::Unavailable(NO_LEASE.to_string())));
                }
                tokio::time::sleep(LEASE_POLL).await;
            }
            self.start_now(request);
        });
    }

    fn start_now(self, request: Request) {
        match request {
            Request::Barrier => self.answer(Ok(Reply::Done)),
            Request::Consume { queue, tag, no_ack, exclusive, prefetch, arguments } => {
                let started = self.consume(Consume { queue, tag, no_ack, exclusive, prefetch, arguments });
                self.answer_refused(started);
            }
            Request::Get { queue, no_ack } => {
                let started = self.get(&queue, no_ack);
                self.answer_refused(started);
            }
            Request::Take(take) => drop(self.edge.runtime.clone().spawn(self.take(take))),
            other => {
                self.edge.runtime.clone().spawn(async move {
                    let result = self.run(other).await;
                    self.answer(result);
                });
            }
        }
    }

    fn answer(&self, result: Result<Reply, Refusal>) {
        self.mailbox.reply(self.at, result);
    }

    /// The lane answers what was started.
    fn answer_refused(&self, started: Result<(), Refusal>) {
        if let Err(refusal) = started {
            self.answer(Err(refusal));
        }
    }

    async fn run(&self, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::DeclareExchange { spec, passive } => self.declare_exchange(spec, passive).await,
            Request::DeleteExchange { name, if_unused } => self.delete_exchange(name, if_unused).await,
            Request::DeclareQueue(declare) => self.declare_queue(declare).await,
            Request::DeleteQueue { name, if_unused, if_empty } => self.delete_queue(&name, if_unused, if_empty).await,
            Request::PurgeQueue { name } => self.purge(&name).await,
            Request::Bind(binding) => {
                self.check_binding(&binding)?;
                self.command(CatalogCommand::Bind(binding)).await
            }
            Request::Unbind(binding) => {
                self.check_binding(&binding)?;
                self.command(CatalogCommand::Unbind(binding)).await
            }
            Request::OpenChannel
            | Request::Consume { .. }
            | Request::Get { .. }
            | Request::Take(_)
            | Request::Cancel { .. }
            | Request::Barrier => Ok(Reply::Done),
        }
    }

    async fn command(&self, command: CatalogCommand) -> Result<Reply, Refusal> {
        self.edge.submit(command).await.map(|_| Reply::Done)
    }

    fn who(&self) -> Who<'_> {
        Who { user: self.user.as_deref(), vhost: &self.vhost }
    }

    fn check(&self, catalog: &Catalog, right: Right, thing: (Kind, &str)) -> Result<(), Refusal> {
        self.edge.patterns.check(catalog, self.who(), right, thing)
    }

    /// Any right to a thing lets a client know whether it is there; the refusal names the last one that RabbitMQ tries.
    fn check_any(&self, catalog: &Catalog, thing: (Kind, &str)) -> Result<(), Refusal> {
        let allowed = [Right::Read, Right::Write].into_iter().any(|right| self.check(catalog, right, thing).is_ok());
        if allowed { Ok(()) } else { self.check(catalog, Right::Configure, thing) }
    }

    /// The queue, when this connection has the right and no other connection owns it.
    pub(super) fn queue(&self, name: &Name, right: Option<Right>) -> Result<Arc<QueueRecord>, Refusal> {
        let catalog = self.edge.catalog.read();
        if let Some(right) = right {
            self.check(&catalog, right, (Kind::Queue, &name.name))?;
        }
        let record = catalog.queue(name).ok_or_else(|| not_found(Kind::Queue, name))?;
        check_owner(&record.spec, Some(self.mailbox.owner))?;
        Ok(record.clone())
    }

    pub(super) fn lane(&self, shard: ShardId) -> Result<Arc<Lane>, Refusal> {
        self.edge.reachable(shard)
    }

    fn mark(&self, shard: ShardId) -> u64 {
        self.marks.iter().find(|m| m.0 == shard).map_or(0, |m| m.1)
    }

    /// What a client that declares a queue is told of it; `None`: its shard does not have it.
    async fn stat(&self, record: &QueueRecord) -> Result<Option<QueueStat>, Refusal> {
        let ask = Ask { queues: vec![record.id], used: true };
        let stats = self.edge.stat(record.shard, ask, self.mark(record.shard), self.edge.config.no_quorum_timeout).await?;
        Ok(stats.into_iter().next())
    }

    async fn declare_exchange(&self, spec: ExchangeSpec, passive: bool) -> Result<Reply, Refusal> {
        check_not_default(&spec.name.name)?;
        {
            let catalog = self.edge.catalog.read();
            let exists = catalog.exchange(&spec.name).is_some();
            if passive {
                self.check_any(&catalog, (Kind::Exchange, &spec.name.name))?;
                return if exists { Ok(Reply::Done) } else { Err(not_found(Kind::Exchange, &spec.name)) };
            }
            self.check(&catalog, Right::Configure, (Kind::Exchange, &spec.name.name))?;
            if !exists {
                check_not_reserved(Kind::Exchange, &spec.name.name)?;
                self.check_alternate(&catalog, &spec)?;
            }
        }
        self.command(CatalogCommand::DeclareExchange(spec)).await
    }

    /// Who sends what an exchange cannot route elsewhere reads from it and writes there.
    fn check_alternate(&self, catalog: &Catalog, spec: &ExchangeSpec) -> Result<(), Refusal> {
        let Some(alternate) = arguments::alternate_exchange(spec)? else { return Ok(()) };
        self.check(catalog, Right::Read, (Kind::Exchange, &spec.name.name))?;
        self.check(catalog, Right::Write, (Kind::Exchange, &String::from_utf8_lossy(alternate)))
    }

    async fn delete_exchange(&self, name: Name, if_unused: bool) -> Result<Reply, Refusal> {
        check_not_default(&name.name)?;
        if name.name.starts_with("amq.") {
            return Err(Refusal::Access(format!("deletion of system {} not allowed", exchange_text(&name))));
        }
        self.check(&self.edge.catalog.read(), Right::Configure, (Kind::Exchange, &name.name))?;
        self.command(CatalogCommand::DeleteExchange { name, if_unused }).await
    }

    async fn declare_queue(&self, declare: DeclareQueue) -> Result<Reply, Refusal> {
        if declare.name.name.starts_with(REPLY_TO) {
            return self.look_for_reply_consumer(declare.name).await;
        }
        if declare.passive {
            self.check_any(&self.edge.catalog.read(), (Kind::Queue, &declare.name.name))?;
            let existing = self.queue(&declare.name, None)?;
            return self.declare_existing(&existing).await;
        }
        let spec = self.queue_spec(declare)?;
        let existing = self.edge.catalog.read().queue(&spec.name).cloned();
        // What is there is compared; whether the arguments make sense is asked of new queues alone.
        match (existing, arguments::check_queue(&spec)) {
            (Some(existing), Err(_)) => {
                check_queue(&existing.spec, &spec)?;
                return self.declare_existing(&existing).await;
            }
            (Some(_), Ok(())) => {}
            (None, checked) => self.check_dead_letters(&spec).and(checked)?,
        }
        self.declare(spec).await
    }

    /// A queue that is not to be made.
    async fn declare_existing(&self, record: &QueueRecord) -> Result<Reply, Refusal> {
        let stat = self.stat(record).await?;
        let is_gone = stat.is_none() && self.edge.catalog.read().queue_by_id(record.id).is_none();
        if is_gone { Err(not_found(Kind::Queue, &record.spec.name)) } else { Ok(declared(record, stat)) }
    }

    /// The queue that is asked for, when this connection may make or have it.
    fn queue_spec(&self, declare: DeclareQueue) -> Result<QueueSpec, Refusal> {
        let DeclareQueue { name, durable, exclusive, auto_delete, mut arguments, .. } = declare;
        let catalog = self.edge.catalog.read();
        let has_default_type = durable && !exclusive && !auto_delete;
        if let Some(kind) = catalog.vhost_facts(&name.vhost).and_then(|facts| facts.default_queue_type.as_ref())
            && has_default_type
        {
            arguments.entry("x-queue-type".to_owned()).or_insert_with(|| Value::Text(kind.as_bytes().to_vec()));
        }
        let kind = queue_type(&arguments);
        let is_unnamed = name.name.is_empty();
        if is_unnamed && matches!(kind, "quorum" | "stream") {
            return Err(Refusal::Precondition(format!("Cannot declare a server-named queue for type rabbit_{kind}_queue")));
        }
        let name = if is_unnamed { Name { name: generate(), ..name } } else { name };
        self.check(&catalog, Right::Configure, (Kind::Queue, &name.name))?;
        if !is_unnamed && catalog.queue(&name).is_none() {
            check_not_reserved(Kind::Queue, &name.name)?;
        }
        let exclusive_owner = exclusive.then_some(self.mailbox.owner);
        // As in RabbitMQ nothing of one connection alone is durable, whatever was asked.
        Ok(QueueSpec { name, durable: durable && !exclusive, auto_delete, exclusive_owner, arguments })
    }

    /// Who makes a queue with a dead letter exchange must be allowed to read the one and write to the other.
    fn check_dead_letters(&self, spec: &QueueSpec) -> Result<(), Refusal> {
        let Some(exchange) = arguments::dead_letter_exchange(spec)? else { return Ok(()) };
        let catalog = self.edge.catalog.read();
        self.check(&catalog, Right::Read, (Kind::Queue, &spec.name.name))?;
        self.check(&catalog, Right::Write, (Kind::Exchange, &String::from_utf8_lossy(exchange)))
    }

    /// A direct reply-to address is a queue that exists while its consumer does.
    async fn look_for_reply_consumer(&self, name: Name) -> Result<Reply, Refusal> {
        let known = |node| self.edge.catalog.read().incarnation(node).is_some();
        let Some((queue, node)) = replies::parse(name.name.as_bytes()).filter(|(_, node)| known(*node)) else {
            return Err(not_found(Kind::Queue, &name));
        };
        let shard = ShardId::local(node);
        let stats =
            self.edge.stat(shard, Ask { queues: vec![queue], used: false }, self.mark(shard), self.edge.config.no_quorum_timeout).await;
        match stats.unwrap_or_default().first() {
            Some(stat) if stat.consumers > 0 => Ok(Reply::Queue { name: name.name, messages: 0, consumers: 1 }),
            Some(_) | None => Err(not_found(Kind::Queue, &name)),
        }
    }

    async fn declare(&self, spec: QueueSpec) -> Result<Reply, Refusal> {
        if spec.exclusive_owner.is_some() {
            self.mailbox.has_exclusive.store(true, Ordering::SeqCst);
        }
        let mut before = None;
        loop {
            let record = match self.submit_queue(&spec).await? {
                (record, true) => return Ok(declared(&record, None)),
                (record, false) => record,
            };
            match self.stat(&record).await? {
                // The shard has just deleted it, then the next declare makes another one; or it has not heard of it yet.
                None if before != Some(record.id) => before = Some(record.id),
                stat => return Ok(declared(&record, stat)),
            }
        }
    }

    /// The queue, and whether it was made.
    async fn submit_queue(&self, spec: &QueueSpec) -> Result<(QueueRecord, bool), Refusal> {
        let (node, incarnation) = (self.edge.config.node, self.edge.config.incarnation);
        let command = CatalogCommand::DeclareQueue { spec: spec.clone(), node, incarnation, shard: self.edge.place(spec) };
        let submitted = self.edge.submit(command).await;
        if spec.exclusive_owner.is_some() && self.mailbox.is_closed() {
            // The client left meanwhile: its farewell may have come before this declare.
            self.edge.runtime.spawn(drop_exclusive(self.edge.this.clone(), self.mailbox.clone()));
        }
        match submitted? {
            CatalogReply::Queue { record, created } => Ok((record, created)),
            CatalogReply::Done | CatalogReply::Refused(_) => {
                Err(Refusal::Unavailable("the catalog's answer to a queue declare names no queue".to_string()))
            }
        }
    }

    async fn delete_queue(&self, name: &Name, if_unused: bool, if_empty: bool) -> Result<Reply, Refusal> {
        let record = match self.queue(name, Some(Right::Configure)) {
            Err(Refusal::NotFound { .. }) => return Ok(Reply::Count(0)),
            found => found?,
        };
        self.edge.delete_queue(&record, if_unused, if_empty, self.mark(record.shard)).await.map(Reply::Count)
    }

    async fn purge(&self, name: &Name) -> Result<Reply, Refusal> {
        let record = self.queue(name, Some(Right::Read))?;
        self.edge.purge(&record, self.mark(record.shard)).await.map(Reply::Count)
    }

    fn check_binding(&self, binding: &BindingSpec) -> Result<(), Refusal> {
        let catalog = self.edge.catalog.read();
        let destination = Name { vhost: binding.vhost.clone(), name: binding.destination.clone() };
        let kind = match binding.target {
            Target::Queue => Kind::Queue,
            Target::Exchange => Kind::Exchange,
        };
        if binding.target == Target::Queue {
            check_not_address(&binding.destination)?;
        }
        self.check(&catalog, Right::Write, (kind, &binding.destination))?;
        if binding.target == Target::Exchange {
            check_not_default(&binding.destination)?;
        }
        check_not_default(&binding.source)?;
        self.check(&catalog, Right::Read, (Kind::Exchange, &binding.source))?;
        self.edge.patterns.check_topic(&catalog, self.who(), Right::Read, &binding.source, &binding.key)?;
        match binding.target {
            Target::Exchange => Ok(()),
            Target::Queue => match catalog.queue(&destination) {
                Some(record) => check_owner(&record.spec, Some(self.mailbox.owner)),
                None => Ok(()),
            },
        }
    }

    fn consume(&self, consume: Consume) -> Result<(), Refusal> {
        let (queue, shard) = match &*consume.queue.name {
            REPLY_TO => (replies::new_queue(), ShardId::local(self.edge.config.node)),
            _ => {
                let record = self.queue(&consume.queue, Some(Right::Read))?;
                check_known(&record, &consume.arguments)?;
                arguments::check_consumer(&consume.queue, &consume.arguments)?;
                if self.edge.catalog.read().is_stream(record.id) {
                    let Consume { no_ack, prefetch, arguments, .. } = consume;
                    let wish = (streams::Consume { no_ack, prefetch, arguments }, self.mark(record.shard));
                    return self.edge.consume_stream(&record, wish, &self.mailbox, self.at);
                }
                (record.id, record.shard)
            }
        };
        let lane = self.lane(shard)?;
        let id = ConsumerId(self.edge.next_id());
        let prefetch = consume.prefetch.filter(|p| *p > 0 && !consume.no_ack);
        let place = ConsumerPlace { shard, channel: self.at, no_ack: consume.no_ack, prefetch };
        let spec = Consumer {
            id,
            queue,
            no_ack: consume.no_ack,
            exclusive: consume.exclusive,
            prefetch: place.prefetch_under(self.mailbox.common_prefetch(self.at.channel)),
            window_bytes: self.edge.config.consumer_bytes,
            tag: consume.tag.to_string(),
            priority: integer(&consume.arguments, "x-priority").unwrap_or(0),
            order: 0,
        };
        let own = integer(&consume.arguments, "x-consumer-timeout").and_then(|ms| u64::try_from(ms).ok());
        let wishes = Wishes {
            timeout: own.map_or_else(|| self.edge.hold_timeout(queue), Duration::from_millis),
            is_own_timeout: own.is_some(),
            cancel_on_failover: consume.arguments.get("x-cancel-on-ha-failover") == Some(&Value::Bool(true)),
        };
        lane.consume(spec, consume.queue, &self.mailbox, place, wishes);
        Ok(())
    }

    fn get(&self, queue: &Name, no_ack: bool) -> Result<(), Refusal> {
        let record = self.queue(queue, Some(Right::Read))?;
        self.edge.not_of_streams("basic.get", &record)?;
        arguments::check_get(&record.spec)?;
        let (id, after) = (self.edge.next_id(), self.mark(record.shard));
        let fetch = Fetch { queue: record.id, name: queue.clone(), no_ack, timeout: self.edge.hold_timeout(record.id) };
        self.lane(record.shard)?.get(id, fetch, &self.mailbox, self.at, after);
        Ok(())
    }
}

impl Edge {
    fn reachable(&self, shard: ShardId) -> Result<Arc<Lane>, Refusal> {
        let lane = self.lane(shard);
        if lane.is_gone() { Err(Refusal::Unavailable(no_quorum(shard))) } else { Ok(lane) }
    }

    /// Removes the ready messages of a queue, whoever owns it; how many.
    pub async fn purge_queue(&self, name: &Name) -> Result<u64, Refusal> {
        let record = self.catalog.read().queue(name).cloned().ok_or_else(|| not_found(Kind::Queue, name))?;
        self.purge(&record, 0).await
    }

    /// What streams refuse, in RabbitMQ's words.
    fn not_of_streams(&self, method: &str, record: &QueueRecord) -> Result<(), Refusal> {
        match self.catalog.read().is_stream(record.id) {
            false => Ok(()),
            true => Err(Refusal::NotImplemented(format!("{method} not supported by stream queues {}", queue_text(&record.spec.name)))),
        }
    }

    async fn purge(&self, record: &QueueRecord, after: u64) -> Result<u64, Refusal> {
        self.not_of_streams("queue.purge", record)?;
        let answer = self.reachable(record.shard)?.purge(self.next_id(), record.id, after);
        self.counted(record, answer).await
    }

    /// Deletes a queue; how many ready messages went, as far as its leader answers. `after`: a mark behind which the question comes. On
    /// a condition the shard decides (rule 22): once it has sealed the queue, that is deleted, with or without this edge.
    pub async fn delete_queue(&self, record: &QueueRecord, if_unused: bool, if_empty: bool, after: u64) -> Result<u64, Refusal> {
        // A stream is deleted whatever is asked, as by RabbitMQ.
        let asks = !self.catalog.read().is_stream(record.id);
        let count = if (if_unused || if_empty) && asks {
            let sealed = self.reachable(record.shard)?.seal(self.next_id(), record.id, (if_unused, if_empty), after);
            match self.counted(record, sealed).await {
                // Sealed and dropped already, or so new that nobody can have used it.
                Err(Refusal::NotFound { .. }) => 0,
                count => count?,
            }
        } else {
            let ask = Ask { queues: vec![record.id], used: false };
            let stats = self.stat(record.shard, ask, after, COUNT_TIMEOUT).await.unwrap_or_default();
            stats.first().map_or(0, |stat| stat.ready)
        };
        self.submit(CatalogCommand::DeleteQueue { id: record.id }).await?;
        Ok(count)
    }

    /// The leader's answer, with the queue's name.
    async fn counted(&self, record: &QueueRecord, answer: oneshot::Receiver<Result<Answer, Refusal>>) -> Result<u64, Refusal> {
        match answer.await {
            Ok(Ok(Answer::Purged(count))) => Ok(count),
            Ok(Err(refusal)) => Err(named(refusal, &record.spec.name)),
            Ok(Ok(Answer::Stats(_) | Answer::Stream(_))) | Err(_) => Err(Refusal::Unavailable(no_quorum(record.shard))),
        }
    }

    /// The data shard for a new queue: the least loaded, of those one that this node leads, if any. Of one that is to be led where its
    /// client is: the least loaded that this node leads, if any.
    pub(super) fn place(&self, spec: &QueueSpec) -> ShardId {
        let (is_local, loads) = {
            let catalog = self.catalog.read();
            let loads: Vec<_> = catalog.shards().map(|shard| (catalog.queues_of(shard).count(), shard)).collect();
            (catalog.is_client_local(spec), loads)
        };
        let mine = |shard| self.leaders.leadership(shard).borrow().is_some_and(|l| l.node() == self.config.node);
        let rank = |(queues, shard): &(usize, ShardId)| {
            let mine = mine(*shard);
            (is_local && !mine, *queues, !mine, *shard)
        };
        loads.into_iter().min_by_key(rank).map_or(ShardId(1), |best| best.1)
    }
}

fn declared(record: &QueueRecord, stat: Option<QueueStat>) -> Reply {
    let stat = stat.unwrap_or_default();
    Reply::Queue { name: record.spec.name.name.clone(), messages: stat.ready, consumers: stat.consumers }
}

fn integer(arguments: &Table, name: &str) -> Option<i64> {
    match arguments.get(name) {
        Some(Value::Int(n)) => Some(*n),
        Some(_) | None => None,
    }
}
