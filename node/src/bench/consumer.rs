//! A connection that consumes and checks what it gets: one thread. By AMQP with acks for many at once, of streams with a credit for each chunk.

use super::args::{Kind, Load, PRIORITIES};
use super::client::encode::{self, FRAME_BODY, FRAME_HEADER, FRAME_METHOD};
use super::client::frames::Frame;
use super::client::stream::{self, StreamConnection, key};
use super::client::{ClientError, Connection, Dial, Field};
use super::load::Shared;
use super::message::Stamp;
use super::seen::Seen;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

/// An unfinished group of acks is sent when nothing came for so long.
const IDLE: Duration = Duration::from_millis(200);
/// Messages acknowledged at once at most.
const ACK_EVERY: u64 = 100;
/// Chunks of a stream that may come ahead.
pub(super) const CREDIT: u16 = 10;

/// What a consumer saw.
#[derive(Debug)]
pub(super) struct Consumed {
    /// By producer: numbers, and the last one of each priority.
    pub seen: BTreeMap<u32, (Seen, [u64; PRIORITIES])>,
    /// Came again.
    pub repeated: u64,
    /// Came for the first time after a later one.
    pub reordered: u64,
    /// With the redelivered flag.
    pub redelivered: u64,
    /// Not as it was written, or not of this run.
    pub corrupt: u64,
    pub latency_us: Histogram<u64>,
    pub failure: Option<String>,
}

/// Consume until `shared.done`.
pub(super) fn run(load: &Load, dial: &Dial, at: usize, shared: &Arc<Shared>) -> Result<Consumed, ClientError> {
    if load.kind == Kind::Stream {
        return read_stream(load, dial, at, shared);
    }
    let mut connection = Connection::open_with_channel(dial)?;
    connection.qos(1, load.prefetch)?;
    let from_first = [("x-stream-offset".to_owned(), Field::Text("first".into()))];
    let arguments: &[(String, Field)] = if load.is_stream() { &from_first } else { &[] };
    connection.consume(1, &load.queue_of(at), "", arguments)?;
    connection.set_read_timeout(Some(IDLE))?;
    shared.ready();
    let mut consumer = Consumer::new(load, shared.clone());
    if let Err(error) = consumer.consume(&mut connection) {
        consumer.result.failure = Some(format!("consumer {at}: {error}"));
    }
    Ok(consumer.result)
}

fn read_stream(load: &Load, dial: &Dial, at: usize, shared: &Arc<Shared>) -> Result<Consumed, ClientError> {
    let mut connection = StreamConnection::open(dial)?;
    connection.subscribe(&load.queue_of(at), CREDIT)?;
    connection.set_read_timeout(Some(IDLE))?;
    shared.ready();
    let mut result = Consumed::new();
    let failure = loop {
        match connection.next_command() {
            Ok(command) if command.key == key::DELIVER => {
                for body in stream::bodies(connection.content(&command)) {
                    result.take(body.unwrap_or_default(), load, shared);
                }
                if let Err(error) = connection.credit() {
                    break Some(error);
                }
            }
            Ok(command) => break Some(ClientError::Protocol(format!("a reader got command {:#06x}", command.key))),
            Err(ClientError::Timeout) if shared.done.load(Relaxed) => break None,
            Err(ClientError::Timeout) => {}
            Err(error) => break Some(error),
        }
    };
    result.failure = failure.map(|error| format!("consumer {at}: {error}"));
    Ok(result)
}

impl Consumed {
    fn new() -> Consumed {
        Consumed {
            seen: BTreeMap::new(),
            repeated: 0,
            reordered: 0,
            redelivered: 0,
            corrupt: 0,
            latency_us: super::report::histogram(),
            failure: None,
        }
    }

    /// A body, if it is one of this run.
    fn take(&mut self, body: &[u8], load: &Load, shared: &Shared) {
        shared.consumed.fetch_add(1, Relaxed);
        let Some(stamp) = Stamp::read(body).filter(|stamp| stamp.run == shared.run && body.len() == load.size) else {
            self.corrupt += 1;
            return;
        };
        let (seen, last) = self.seen.entry(stamp.producer).or_default();
        let last = &mut last[usize::from(load.priority_of(stamp.number))];
        match (seen.insert(stamp.number), stamp.number > *last) {
            (false, _) => self.repeated += 1,
            (true, false) => self.reordered += 1,
            (true, true) => *last = stamp.number,
        }
        if shared.measuring.load(Relaxed) {
            self.latency_us.saturating_record(shared.clock.now().saturating_sub(stamp.sent_at) / 1000);
        }
    }
}

struct Consumer {
    result: Consumed,
    shared: Arc<Shared>,
    load: Load,
    every: u64,
    tag: u64,
    unacked: u64,
    /// Of a body in several frames: what came, and how long it will be.
    body: Vec<u8>,
    body_size: usize,
    out: Vec<u8>,
}

impl Consumer {
    fn new(load: &Load, shared: Arc<Shared>) -> Consumer {
        let result = Consumed::new();
        let every = (u64::from(load.prefetch) / 2).clamp(1, ACK_EVERY);
        Consumer { result, shared, load: load.clone(), every, tag: 0, unacked: 0, body: Vec::new(), body_size: 0, out: Vec::new() }
    }

    fn consume(&mut self, connection: &mut Connection) -> Result<(), ClientError> {
        loop {
            match connection.next_frame() {
                Ok(frame) => self.frame(connection, &frame)?,
                Err(ClientError::Timeout) => {
                    self.ack(connection)?;
                    if self.shared.done.load(Relaxed) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn frame(&mut self, connection: &mut Connection, frame: &Frame) -> Result<(), ClientError> {
        let payload = connection.payload(&frame.payload);
        match frame.kind {
            FRAME_METHOD => self.method(payload),
            FRAME_HEADER if payload.len() >= 12 => {
                self.body_size = payload[4..12].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                self.body.clear();
                Ok(())
            }
            FRAME_BODY if payload.len() == self.body_size => {
                self.message(payload);
                self.acknowledge(connection)
            }
            FRAME_BODY => {
                self.body.extend_from_slice(payload);
                if self.body.len() < self.body_size {
                    return Ok(());
                }
                let body = std::mem::take(&mut self.body);
                self.message(&body);
                self.body = body;
                self.acknowledge(connection)
            }
            _ => Ok(()),
        }
    }

    fn method(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        let broken = || ClientError::Protocol(format!("a consumer got a method it cannot read: {:?}", &payload[..payload.len().min(40)]));
        match payload {
            [0, 60, 0, 60, tag_length, rest @ ..] => {
                let rest = rest.get(usize::from(*tag_length)..).filter(|rest| rest.len() > 9).ok_or_else(broken)?;
                self.tag = rest[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                self.result.redelivered += u64::from(rest[8] & 1);
                Ok(())
            }
            [0, 10, 0, 60 | 61, ..] => Ok(()),
            [0, 10, 0, 50, a, b, text @ ..] => {
                Err(ClientError::ConnectionClosed { code: u16::from_be_bytes([*a, *b]), text: String::from_utf8_lossy(text).into_owned() })
            }
            [0, 20, 0, 40, a, b, text @ ..] => {
                let text = String::from_utf8_lossy(text).into_owned();
                Err(ClientError::ChannelClosed { channel: 1, code: u16::from_be_bytes([*a, *b]), text })
            }
            _ => Err(broken()),
        }
    }

    fn message(&mut self, body: &[u8]) {
        self.unacked += 1;
        self.result.take(body, &self.load, &self.shared);
    }

    fn acknowledge(&mut self, connection: &mut Connection) -> Result<(), ClientError> {
        if self.unacked >= self.every { self.ack(connection) } else { Ok(()) }
    }

    fn ack(&mut self, connection: &mut Connection) -> Result<(), ClientError> {
        if self.unacked == 0 {
            return Ok(());
        }
        self.unacked = 0;
        self.out.clear();
        encode::ack(&mut self.out, 1, self.tag, true);
        connection.send(&self.out)
    }
}
