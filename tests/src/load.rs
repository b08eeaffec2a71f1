//! Load for the fault tests: a publisher and a consumer, each a thread with one connection that is never renewed, both reporting to an
//! oracle. What the broker says besides confirms and deliveries is kept: a close is what most tests look for.

use crate::client::encode::{self, Route};
use crate::client::{ClientError, Connection, Dial, Incoming};
use crate::oracle::{self, Oracle};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// How a publisher behaves.
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    /// Bytes of a body.
    pub size: usize,
    /// Messages per second.
    pub rate: u64,
    /// Messages without a verdict at most.
    pub window: usize,
    /// How long it waits for the verdicts that are due at the end.
    pub drain: Duration,
}

impl Default for PublisherOptions {
    fn default() -> PublisherOptions {
        PublisherOptions { size: 100, rate: 500, window: 1000, drain: Duration::from_secs(20) }
    }
}

/// What a publisher saw.
#[derive(Clone, Debug, Default)]
pub struct PublisherReport {
    /// Closes and broken sockets.
    pub closes: Vec<String>,
    /// connection.blocked came so often.
    pub blocked: u32,
    /// Longest time without a confirm while some were due, with when it ended (from the publisher's start).
    pub longest_gap: Duration,
    /// Messages sent.
    pub sent: u64,
}

/// A running client.
#[derive(Debug)]
pub struct Running<R> {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    thread: JoinHandle<R>,
}

/// What can be asked of a client while it runs.
#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    longest_gap_us: AtomicU64,
}

impl<R> Running<R> {
    /// Let it finish, and hear what it saw.
    pub fn stop(self) -> R {
        self.stop.store(true, Relaxed);
        match self.thread.join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Confirms (a publisher's) or deliveries (a consumer's) so far.
    pub fn count(&self) -> u64 {
        self.counts.done.load(Relaxed)
    }

    /// The longest time without a confirm while some were due, since this was last asked.
    pub fn take_longest_gap(&self) -> Duration {
        Duration::from_micros(self.counts.longest_gap_us.swap(0, Relaxed))
    }
}

fn start<R: Send + 'static>(run: impl FnOnce(Arc<AtomicBool>, Arc<Counts>) -> R + Send + 'static) -> Running<R> {
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
    let thread = thread::spawn({
        let (stop, counts) = (stop.clone(), counts.clone());
        move || run(stop, counts)
    });
    Running { stop, counts, thread }
}

/// Publish to a queue as publisher `id` until stopped. Panics when it cannot even connect.
pub fn publish(oracle: &Arc<Oracle>, dial: &Dial, id: u32, queue: &str, options: &PublisherOptions) -> Running<PublisherReport> {
    let mut connection = Connection::open_with_channel(dial).unwrap_or_else(|error| panic!("publisher {id}: {error}"));
    connection.confirm_select(1).unwrap_or_else(|error| panic!("publisher {id}: {error}"));
    let (oracle, queue, options) = (oracle.clone(), queue.to_owned(), options.clone());
    start(move |stop, counts| {
        let report = PublisherReport::default();
        let mut publisher =
            Publisher { oracle, id, queue, options, due: BTreeSet::new(), report, is_blocked: false, last: Instant::now(), counts };
        if let Err(error) = publisher.run(&mut connection, &stop) {
            publisher.report.closes.push(format!("publisher {id}: {error}"));
        }
        publisher.report
    })
}

struct Publisher {
    oracle: Arc<Oracle>,
    id: u32,
    queue: String,
    options: PublisherOptions,
    due: BTreeSet<u64>,
    report: PublisherReport,
    is_blocked: bool,
    last: Instant,
    counts: Arc<Counts>,
}

impl Publisher {
    fn run(&mut self, connection: &mut Connection, stop: &AtomicBool) -> Result<(), ClientError> {
        let began = Instant::now();
        while !stop.load(Relaxed) {
            let due = (began.elapsed().as_secs_f64() * self.options.rate as f64) as u64;
            let room = self.options.window.saturating_sub(self.due.len()) as u64;
            if !self.is_blocked {
                self.send(connection, due.saturating_sub(self.report.sent).min(room).min(200))?;
            }
            self.listen(connection)?;
        }
        let until = Instant::now() + self.options.drain;
        while !self.due.is_empty() && Instant::now() < until {
            self.listen(connection)?;
        }
        Ok(())
    }

    fn send(&mut self, connection: &mut Connection, count: u64) -> Result<(), ClientError> {
        if count == 0 {
            return Ok(());
        }
        if self.due.is_empty() {
            self.last = Instant::now();
        }
        let mut out = Vec::new();
        for _ in 0..count {
            self.report.sent += 1;
            let message = (self.id, self.report.sent);
            self.oracle.published(message);
            self.due.insert(message.1);
            let route = Route { channel: 1, exchange: "", key: &self.queue, mandatory: true };
            encode::publish(&mut out, route, &oracle::body(message, self.options.size), connection.frame_max);
        }
        connection.send(&out)
    }

    /// Take what has come, waiting a little.
    fn listen(&mut self, connection: &mut Connection) -> Result<(), ClientError> {
        if !self.due.is_empty() {
            let gap = self.last.elapsed();
            self.report.longest_gap = self.report.longest_gap.max(gap);
            self.counts.longest_gap_us.fetch_max(gap.as_micros() as u64, Relaxed);
        }
        let until = Instant::now() + POLL;
        while let Some(event) = connection.event_within(until.saturating_duration_since(Instant::now()))? {
            match event {
                Incoming::Confirm { tag, multiple, nack, .. } => self.verdict(tag, multiple, nack),
                Incoming::Blocked(_) => {
                    self.is_blocked = true;
                    self.report.blocked += 1;
                }
                Incoming::Unblocked => self.is_blocked = false,
                Incoming::Heartbeat => (),
                Incoming::ConnectionClose { code, text } => return Err(ClientError::ConnectionClosed { code, text }),
                Incoming::ChannelClose { channel, code, text } => return Err(ClientError::ChannelClosed { channel, code, text }),
                other => return Err(ClientError::Protocol(format!("unexpected {other:?}"))),
            }
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    fn verdict(&mut self, tag: u64, multiple: bool, nack: bool) {
        let numbers: Vec<u64> = if multiple { self.due.range(..=tag).copied().collect() } else { vec![tag] };
        for number in numbers {
            self.due.remove(&number);
            let message = (self.id, number);
            if nack {
                self.oracle.nacked(message)
            } else {
                self.oracle.confirmed(message)
            }
            self.counts.done.fetch_add(1, Relaxed);
        }
        self.last = Instant::now();
    }
}

/// How a consumer behaves.
#[derive(Clone, Debug)]
pub struct ConsumerOptions {
    /// Messages it holds at most.
    pub prefetch: u16,
    /// Messages it acknowledges together.
    pub ack_every: usize,
}

impl Default for ConsumerOptions {
    fn default() -> ConsumerOptions {
        ConsumerOptions { prefetch: 100, ack_every: 10 }
    }
}

/// What a consumer saw.
#[derive(Clone, Debug, Default)]
pub struct ConsumerReport {
    /// Closes, cancels by the broker and broken sockets.
    pub closes: Vec<String>,
    /// Messages.
    pub got: u64,
}

/// Consume from a queue as consumer `id` until stopped. Panics when it cannot even begin.
pub fn consume(oracle: &Arc<Oracle>, dial: &Dial, id: u32, queue: &str, options: &ConsumerOptions) -> Running<ConsumerReport> {
    let begin = || {
        let mut connection = Connection::open_with_channel(dial)?;
        connection.qos(1, options.prefetch)?;
        connection.consume(1, queue, &format!("consumer-{id}"), &[])?;
        Ok(connection)
    };
    let mut connection: Connection = begin().unwrap_or_else(|error: ClientError| panic!("consumer {id}: {error}"));
    let (oracle, options) = (oracle.clone(), options.clone());
    start(move |stop, counts| {
        let mut consumer = Consumer { oracle, id, options, held: Vec::new(), tag: 0, report: ConsumerReport::default(), counts };
        match consumer.run(&mut connection, &stop).and_then(|()| connection.close()) {
            Ok(()) => consumer.oracle.closed(id),
            Err(error) => {
                consumer.report.closes.push(format!("consumer {id}: {error}"));
                consumer.oracle.ended(id);
            }
        }
        consumer.report
    })
}

struct Consumer {
    oracle: Arc<Oracle>,
    id: u32,
    options: ConsumerOptions,
    held: Vec<oracle::Message>,
    tag: u64,
    report: ConsumerReport,
    counts: Arc<Counts>,
}

impl Consumer {
    fn run(&mut self, connection: &mut Connection, stop: &AtomicBool) -> Result<(), ClientError> {
        while !stop.load(Relaxed) {
            match connection.event_within(Duration::from_millis(50))? {
                Some(Incoming::Deliver(_, message)) => {
                    self.tag = message.tag;
                    self.held.extend(self.oracle.delivered(self.id, &message));
                    self.report.got += 1;
                    self.counts.done.fetch_add(1, Relaxed);
                    if self.held.len() >= self.options.ack_every {
                        self.settle(connection)?;
                    }
                }
                None => self.settle(connection)?,
                Some(Incoming::Heartbeat | Incoming::Blocked(_) | Incoming::Unblocked) => (),
                Some(Incoming::ConnectionClose { code, text }) => return Err(ClientError::ConnectionClosed { code, text }),
                Some(Incoming::ChannelClose { channel, code, text }) => return Err(ClientError::ChannelClosed { channel, code, text }),
                Some(other) => return Err(ClientError::Protocol(format!("unexpected {other:?}"))),
            }
        }
        self.settle(connection)
    }

    fn settle(&mut self, connection: &mut Connection) -> Result<(), ClientError> {
        if self.held.is_empty() {
            return Ok(());
        }
        connection.ack(1, self.tag, true)?;
        self.held.drain(..).for_each(|message| self.oracle.settled(message));
        Ok(())
    }
}

/// Wait until every confirmed message was delivered, as long as deliveries go on; false when they stopped coming for `patience`.
pub fn drained(oracle: &Oracle, patience: Duration) -> bool {
    let (mut least, mut since) = (usize::MAX, Instant::now());
    loop {
        let due = oracle.due();
        if due == 0 {
            return true;
        }
        if due < least {
            (least, since) = (due, Instant::now());
        }
        if since.elapsed() > patience {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A publisher and a consumer for each of some queues, all connected to one node.
pub struct Clients {
    /// What they say of each message.
    pub oracle: Arc<Oracle>,
    /// One for each queue.
    pub publishers: Vec<Running<PublisherReport>>,
    /// One for each queue.
    pub consumers: Vec<Running<ConsumerReport>>,
}

impl Clients {
    /// With ids from `first` on; `rate` messages per second and queue.
    pub fn start(dial: &Dial, first: u32, rate: u64, queues: &[String]) -> Clients {
        let oracle = Arc::new(Oracle::default());
        let options = PublisherOptions { rate, ..PublisherOptions::default() };
        let ids = || (first..).zip(queues);
        let consumers = ids().map(|(id, queue)| consume(&oracle, dial, id, queue, &ConsumerOptions::default())).collect();
        let publishers = ids().map(|(id, queue)| publish(&oracle, dial, id, queue, &options)).collect();
        Clients { oracle, publishers, consumers }
    }

    /// Stop publishing, drain, and check that nobody noticed anything. The longest gap between confirms.
    pub fn finish(self) -> Duration {
        let publishers: Vec<PublisherReport> = self.publishers.into_iter().map(Running::stop).collect();
        let drained = drained(&self.oracle, Duration::from_secs(60));
        let consumers: Vec<ConsumerReport> = self.consumers.into_iter().map(Running::stop).collect();
        let findings = self.oracle.findings();
        let gap = publishers.iter().map(|report| report.longest_gap).max().unwrap_or_default();
        println!("{findings}; longest gap between confirms {} ms", gap.as_millis());
        let closes: Vec<&String> = publishers.iter().flat_map(|r| &r.closes).chain(consumers.iter().flat_map(|r| &r.closes)).collect();
        assert!(closes.is_empty(), "connections to a node that stays ended: {closes:?}");
        findings.assert_unnoticed();
        assert!(drained, "not everything was delivered");
        gap
    }
}
