//! A connection that publishes with confirms. Without a rate one thread writes as much as the window allows and reads confirms while
//! it waits; with a rate a second thread reads, so that a confirm's latency is not measured by the pace of the writer. The connection is one
//! of AMQP or of the stream protocol (`Line`).

use super::args::{Kind, Load};
use super::client::encode::{self, Route};
use super::client::socket::Socket;
use super::client::stream::{self, StreamConnection, key};
use super::client::{ClientError, Connection, Dial, Incoming, incoming};
use super::load::Shared;
use super::message::Stamp;
use super::seen::Seen;
use hdrhistogram::Histogram;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes written at once at most.
const BATCH_BYTES: usize = 256 * 1024;
/// From the priority to the body: itself, the end of the content header's frame, the head of the body's.
const PRIORITY_BEFORE_BODY: usize = 1 + 1 + 7;

/// What a producer saw.
#[derive(Debug)]
pub(super) struct Published {
    pub producer: u32,
    pub sent: u64,
    pub confirmed: Seen,
    pub nacked: u64,
    /// Confirms for what was not outstanding, returns.
    pub bogus: u64,
    pub latency_us: Histogram<u64>,
    /// Longest time between two confirms while some were due, ns.
    pub longest_gap: u64,
    pub failure: Option<String>,
}

/// Publish until `shared.stop`, then wait for the confirms that are due.
pub(super) fn run(load: &Load, dial: &Dial, at: usize, shared: &Arc<Shared>) -> Result<Published, ClientError> {
    if load.kind == Kind::Stream {
        return publish(load, at, shared, stream_producer(load, dial, at)?, 0);
    }
    let mut connection = Connection::open_with_channel(dial)?;
    connection.confirm_select(1)?;
    let frame_max = connection.frame_max;
    publish(load, at, shared, connection, frame_max)
}

fn publish<L: Line>(load: &Load, at: usize, shared: &Arc<Shared>, line: L, frame_max: u32) -> Result<Published, ClientError> {
    let writer = Writer::new(load, at, frame_max, shared);
    let confirms = Confirms::new(at as u32, writer.slots.clone(), shared.clone());
    shared.ready();
    if load.rate == 0 { flat_out(line, writer, confirms) } else { paced(line, writer, confirms, load.rate) }
}

/// Publisher 1 of a stream, on the node of its leader.
pub(super) fn stream_producer(load: &Load, dial: &Dial, at: usize) -> Result<StreamConnection, ClientError> {
    let queue = load.queue_of(at);
    let leader = StreamConnection::open(dial)?.leader(&queue)?;
    let address = leader.ok_or_else(|| ClientError::Protocol(format!("{queue} has no leader")))?;
    let mut connection = StreamConnection::open(&Dial { address, ..dial.clone() })?;
    connection.declare_publisher(&queue)?;
    Ok(connection)
}

/// What a confirm says: up to which message or which one, and whether it is stored.
pub(super) struct Confirm {
    tag: u64,
    multiple: bool,
    ack: bool,
}

impl Confirm {
    /// It is.
    pub(super) fn is_stored(&self) -> bool {
        self.ack
    }
}

/// A connection that publishes.
pub(super) trait Line: Send + 'static {
    /// Writes what was encoded.
    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError>;
    /// A second handle, to write.
    fn writer(&self) -> Result<Socket, ClientError>;
    /// Waits for a confirm at most `wait`, then takes all that have come. Anything else but what may come at any time is an error.
    fn confirms(&mut self, wait: Duration, each: &mut dyn FnMut(Confirm)) -> Result<(), ClientError>;
}

impl Line for Connection {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.send(bytes)
    }

    fn writer(&self) -> Result<Socket, ClientError> {
        self.try_clone_socket()
    }

    fn confirms(&mut self, wait: Duration, each: &mut dyn FnMut(Confirm)) -> Result<(), ClientError> {
        self.set_read_timeout(Some(wait))?;
        let mut next = match self.next_frame() {
            Ok(frame) => Some(frame),
            Err(ClientError::Timeout) => None,
            Err(error) => return Err(error),
        };
        while let Some(frame) = next {
            if frame.kind == encode::FRAME_METHOD {
                confirm(frame.channel, self.payload(&frame.payload))?.map(&mut *each);
            }
            next = self.buffered_frame()?;
        }
        Ok(())
    }
}

/// A method: a confirm, or what may come besides.
fn confirm(channel: u16, payload: &[u8]) -> Result<Option<Confirm>, ClientError> {
    if let ([0, 60, 0, method @ (80 | 120), rest @ ..], true) = (payload, payload.len() == 13) {
        let tag = rest[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        return Ok(Some(Confirm { tag, multiple: rest[8] & 1 == 1, ack: *method == 80 }));
    }
    match incoming::parse_method(channel, payload) {
        Some(incoming::Parsed::Whole(Incoming::Blocked(_) | Incoming::Unblocked)) => Ok(None),
        Some(incoming::Parsed::Whole(Incoming::ConnectionClose { code, text })) => Err(ClientError::ConnectionClosed { code, text }),
        Some(incoming::Parsed::Whole(Incoming::ChannelClose { channel, code, text })) => {
            Err(ClientError::ChannelClosed { channel, code, text })
        }
        other => Err(ClientError::Protocol(format!("a producer got {other:?}"))),
    }
}

impl Line for StreamConnection {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.send(bytes)
    }

    fn writer(&self) -> Result<Socket, ClientError> {
        self.try_clone_socket()
    }

    fn confirms(&mut self, wait: Duration, each: &mut dyn FnMut(Confirm)) -> Result<(), ClientError> {
        self.set_read_timeout(Some(wait))?;
        let mut next = match self.next_command() {
            Ok(command) => Some(command),
            Err(ClientError::Timeout) => None,
            Err(error) => return Err(error),
        };
        while let Some(command) = next {
            // publisher u8 | count u32 | (id u64, in an error and a code u16)*
            let size = match command.key {
                key::CONFIRM => 8,
                key::PUBLISH_ERROR => 10,
                other => return Err(ClientError::Protocol(format!("a producer got command {other:#06x}"))),
            };
            for id in self.content(&command).get(5..).unwrap_or_default().chunks_exact(size) {
                let tag = id[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                each(Confirm { tag, multiple: false, ack: command.key == key::CONFIRM });
            }
            next = self.buffered();
        }
        Ok(())
    }
}

/// Encodes messages from one prepared pattern.
struct Writer {
    stamp: Stamp,
    /// One message as frames, and where its body is; only for bodies of one frame.
    pattern: Vec<u8>,
    body: Vec<u8>,
    body_at: Option<usize>,
    /// What says which priority a message has.
    load: Load,
    /// Messages go into Publish commands of streams.
    is_stream: bool,
    exchange: String,
    key: String,
    frame_max: u32,
    out: Vec<u8>,
    batch: usize,
    slots: Arc<Slots>,
    shared: Arc<Shared>,
    window: u64,
    drain: Duration,
}

/// When each outstanding message was sent (ns + 1; 0 = not outstanding), by its number modulo the size.
struct Slots(Vec<AtomicU64>);

impl Slots {
    fn of(&self, number: u64) -> &AtomicU64 {
        &self.0[(number & (self.0.len() as u64 - 1)) as usize]
    }
}

/// How far the confirms are.
#[derive(Clone, Copy)]
struct Progress {
    /// Confirmed or nacked.
    settled: u64,
    /// Lowest number that may be outstanding.
    lowest: u64,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress { settled: 0, lowest: 1 }
    }
}

impl Writer {
    /// Messages that may be sent now: the window, and a slot of its own for each number from the lowest outstanding one.
    fn room(&self, progress: Progress) -> u64 {
        let sent = self.stamp.number;
        let window = self.window.saturating_sub(sent - progress.settled);
        window.min((self.slots.0.len() as u64).saturating_sub(sent + 1 - progress.lowest))
    }

    fn new(load: &Load, at: usize, frame_max: u32, shared: &Arc<Shared>) -> Writer {
        let (exchange, key) = load.route_of(at);
        let body = vec![b'x'; load.size];
        let (mut pattern, is_stream) = (Vec::new(), load.kind == Kind::Stream);
        let body_at = if is_stream {
            Some(stream::message(&mut pattern, &body))
        } else {
            let route = Route { channel: 1, exchange: &exchange, key: &key, mandatory: false };
            publish_one(&mut pattern, route, load, 0, &body, frame_max);
            (load.size + 8 <= frame_max as usize).then(|| pattern.len() - 1 - load.size)
        };
        let slots = Slots((0..load.window.next_power_of_two() * 2).map(|_| AtomicU64::new(0)).collect());
        Writer {
            stamp: Stamp { run: shared.run, producer: at as u32, number: 0, sent_at: 0 },
            body_at,
            load: load.clone(),
            is_stream,
            batch: (BATCH_BYTES / pattern.len()).clamp(1, load.batch),
            pattern,
            body,
            exchange,
            key,
            frame_max,
            out: Vec::new(),
            slots: Arc::new(slots),
            shared: shared.clone(),
            window: load.window as u64,
            drain: Duration::from_secs_f64(load.drain_seconds),
        }
    }

    /// Encode the next `count` messages into `out`.
    fn encode(&mut self, count: u64) {
        self.out.clear();
        if self.is_stream {
            let size = (9 + count * self.pattern.len() as u64) as u32;
            self.out.extend_from_slice(&size.to_be_bytes());
            self.out.extend_from_slice(&[0, key::PUBLISH as u8, 0, 1, 1]);
            self.out.extend_from_slice(&(count as u32).to_be_bytes());
        }
        self.stamp.sent_at = self.shared.clock.now();
        for _ in 0..count {
            self.stamp.number += 1;
            self.slots.of(self.stamp.number).store(self.stamp.sent_at + 1, Release);
            match self.body_at {
                Some(at) => {
                    if self.is_stream {
                        self.pattern[..8].copy_from_slice(&self.stamp.number.to_be_bytes());
                    }
                    if self.load.kind == Kind::Priority {
                        self.pattern[at - PRIORITY_BEFORE_BODY] = self.load.priority_of(self.stamp.number);
                    }
                    self.stamp.write(&mut self.pattern[at..at + self.body.len()]);
                    self.out.extend_from_slice(&self.pattern);
                }
                None => {
                    self.stamp.write(&mut self.body);
                    let route = Route { channel: 1, exchange: &self.exchange, key: &self.key, mandatory: false };
                    publish_one(&mut self.out, route, &self.load, self.stamp.number, &self.body, self.frame_max);
                }
            }
        }
        self.shared.published.fetch_add(count, Relaxed);
    }
}

fn publish_one(out: &mut Vec<u8>, route: Route<'_>, load: &Load, number: u64, body: &[u8], frame_max: u32) {
    match load.kind {
        Kind::Priority => encode::publish_at(out, route, load.priority_of(number), body, frame_max),
        Kind::Plain | Kind::Ttl | Kind::DeadLetter | Kind::Fanout | Kind::Stream => encode::publish(out, route, body, frame_max),
    }
}

/// Reads confirms.
struct Confirms {
    result: Published,
    slots: Arc<Slots>,
    shared: Arc<Shared>,
    /// Lowest number that may be outstanding.
    lowest: u64,
    highest: u64,
    /// Confirmed or nacked.
    settled: u64,
    last: u64,
}

impl Confirms {
    fn new(producer: u32, slots: Arc<Slots>, shared: Arc<Shared>) -> Confirms {
        let result = Published {
            producer,
            sent: 0,
            confirmed: Seen::default(),
            nacked: 0,
            bogus: 0,
            latency_us: super::report::histogram(),
            longest_gap: 0,
            failure: None,
        };
        Confirms { result, slots, last: shared.clock.now(), shared, lowest: 1, highest: 0, settled: 0 }
    }

    fn progress(&self) -> Progress {
        Progress { settled: self.settled, lowest: self.lowest }
    }

    fn settle(&mut self, Confirm { tag, multiple, ack }: Confirm) {
        let now = self.shared.clock.now();
        if self.shared.measuring.load(Relaxed) {
            self.result.longest_gap = self.result.longest_gap.max(now - self.last);
        }
        self.last = now;
        let before = self.settled;
        if tag < self.lowest || tag - self.lowest >= self.slots.0.len() as u64 {
            self.result.bogus += u64::from(tag >= self.lowest || !multiple);
            return;
        }
        let first = if multiple { self.lowest } else { tag };
        for number in first..=tag {
            self.settle_one(number, now, multiple, ack);
        }
        self.highest = self.highest.max(tag);
        while self.lowest <= self.highest && self.slots.of(self.lowest).load(Relaxed) == 0 {
            self.lowest += 1;
        }
        let counter = if ack { &self.shared.confirmed } else { &self.shared.nacked };
        counter.fetch_add(self.settled - before, Relaxed);
    }

    fn settle_one(&mut self, number: u64, now: u64, multiple: bool, ack: bool) {
        let slot = self.slots.of(number);
        let sent_at = slot.load(Acquire);
        if sent_at == 0 {
            self.result.bogus += u64::from(!multiple); // a multiple may cover what was confirmed one by one
            return;
        }
        slot.store(0, Relaxed);
        self.settled += 1;
        if ack {
            self.result.confirmed.insert(number);
        } else {
            self.result.nacked += 1;
        }
        if self.shared.measuring.load(Relaxed) {
            self.result.latency_us.saturating_record((now.saturating_sub(sent_at - 1)) / 1000);
        }
    }

    fn finish(mut self, sent: u64, failure: Option<ClientError>) -> Published {
        self.result.sent = sent;
        self.result.failure = failure.map(|error| format!("producer {}: {error}", self.result.producer));
        self.result
    }
}

fn flat_out<L: Line>(mut line: L, mut writer: Writer, mut confirms: Confirms) -> Result<Published, ClientError> {
    let failure = loop {
        if writer.shared.stop.load(Relaxed) {
            break drain(&mut line, &writer, &mut confirms).err();
        }
        let room = writer.room(confirms.progress()).min(writer.batch as u64);
        // Refill once half the window or a batch is free: full writes, and never an empty pipe.
        if room >= (writer.window / 2).clamp(1, writer.batch as u64 / 2 + 1) {
            writer.encode(room);
            if let Err(error) = line.write(&writer.out) {
                break Some(error);
            }
        } else if let Err(error) = read_confirms(&mut line, &mut confirms, Duration::from_millis(200)) {
            break Some(error);
        }
    };
    Ok(confirms.finish(writer.stamp.number, failure))
}

fn read_confirms<L: Line>(line: &mut L, confirms: &mut Confirms, wait: Duration) -> Result<(), ClientError> {
    line.confirms(wait, &mut |confirm| confirms.settle(confirm))
}

fn drain<L: Line>(line: &mut L, writer: &Writer, confirms: &mut Confirms) -> Result<(), ClientError> {
    let until = Instant::now() + writer.drain;
    while confirms.settled < writer.stamp.number && Instant::now() < until {
        read_confirms(line, confirms, Duration::from_millis(100))?;
    }
    Ok(())
}

/// How far the reader of a paced producer is.
#[derive(Default)]
struct Gate {
    progress: Mutex<Progress>,
    moved: Condvar,
    over: AtomicBool,
}

fn paced<L: Line>(line: L, mut writer: Writer, confirms: Confirms, rate: u64) -> Result<Published, ClientError> {
    let mut socket = line.writer()?;
    let gate = Arc::new(Gate::default());
    let reader = thread::spawn({
        let gate = gate.clone();
        move || read_until_over(line, confirms, &gate)
    });
    let began = Instant::now();
    while !writer.shared.stop.load(Relaxed) && !gate.over.load(Relaxed) {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        let sent = writer.stamp.number;
        if due <= sent {
            let next = Duration::from_secs_f64((sent + 1) as f64 / rate as f64);
            thread::sleep(next.saturating_sub(began.elapsed()).min(Duration::from_millis(50)));
            continue;
        }
        let room = writer.room(*gate.lock());
        if room == 0 {
            gate.wait();
            continue;
        }
        writer.encode((due - sent).min(room).min(writer.batch as u64));
        if socket.write_all(&writer.out).is_err() {
            break;
        }
    }
    gate.await_settled(writer.stamp.number, writer.drain);
    gate.over.store(true, Relaxed);
    let (confirms, failure) = reader.join().map_err(|_| ClientError::Protocol("the reader of a producer panicked".into()))?;
    Ok(confirms.finish(writer.stamp.number, failure))
}

impl Gate {
    fn wait(&self) {
        drop(self.moved.wait_timeout(self.lock(), Duration::from_millis(50)));
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn await_settled(&self, sent: u64, most: Duration) {
        let until = Instant::now() + most;
        while Instant::now() < until && !self.over.load(Relaxed) {
            if self.lock().settled >= sent {
                return;
            }
            self.wait();
        }
    }
}

fn read_until_over<L: Line>(mut line: L, mut confirms: Confirms, gate: &Gate) -> (Confirms, Option<ClientError>) {
    let mut failure = None;
    while !gate.over.load(Relaxed) {
        if let Err(error) = read_confirms(&mut line, &mut confirms, Duration::from_millis(100)) {
            failure = Some(error);
            gate.over.store(true, Relaxed);
        }
        *gate.lock() = confirms.progress();
        gate.moved.notify_one();
    }
    (confirms, failure)
}
