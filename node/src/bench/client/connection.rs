//! A connection: handshake, requests that wait for their answer, and everything else that came meanwhile kept in order.
//! One thread owns it; `try_clone_socket` gives a second thread a way to write.

use super::encode::{self, FRAME_BODY, FRAME_HEADER, FRAME_HEARTBEAT, FRAME_METHOD};
use super::error::ClientError;
use super::frames::{Frame, FrameBuffer};
use super::incoming::{Delivery, Incoming, Parsed, parse_method};
use super::socket::Socket;
use super::table::{Cursor, Field, Table};
use std::collections::VecDeque;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Whom to connect to and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// host:port.
    pub address: String,
    /// User.
    pub user: String,
    /// Password.
    pub password: String,
    /// Vhost.
    pub vhost: String,
    /// Heartbeat to ask for, 0 = none.
    pub heartbeat_s: u16,
    /// How long a connect or a request may take.
    pub timeout: Duration,
    /// Speak TLS; the broker's certificate is verified by these authorities, PEM.
    pub ca: Option<PathBuf>,
}

impl Dial {
    /// guest at this address.
    pub fn guest(address: &str) -> Dial {
        Dial {
            address: address.to_owned(),
            user: "guest".into(),
            password: "guest".into(),
            vhost: "/".into(),
            heartbeat_s: 0,
            timeout: Duration::from_secs(20),
            ca: None,
        }
    }

    /// `host:port`, or `amqp://[user:password@]host[:port][/vhost]` (`%2f` is the vhost `/`); `amqps` only means another port.
    pub fn parse(uri: &str) -> Dial {
        let (rest, port) = match (uri.strip_prefix("amqp://"), uri.strip_prefix("amqps://")) {
            (Some(rest), _) => (rest, ":5672"),
            (None, Some(rest)) => (rest, ":5671"),
            (None, None) => return Dial::guest(uri),
        };
        let (who, place) = rest.rsplit_once('@').unwrap_or(("guest:guest", rest));
        let (address, vhost) = place.split_once('/').unwrap_or((place, ""));
        let (user, password) = who.split_once(':').unwrap_or((who, ""));
        let port = if address.contains(':') { "" } else { port };
        let vhost = if vhost.is_empty() { "/".to_owned() } else { vhost.replace("%2f", "/").replace("%2F", "/") };
        Dial { user: user.to_owned(), password: password.to_owned(), vhost, ..Dial::guest(&format!("{address}{port}")) }
    }
}

/// How to declare a queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueOptions {
    /// Only look.
    pub passive: bool,
    /// Survives a restart.
    pub durable: bool,
    /// Belongs to this connection.
    pub exclusive: bool,
    /// Goes with its last consumer.
    pub auto_delete: bool,
    /// Arguments.
    pub arguments: Table,
}

impl QueueOptions {
    /// A durable queue without arguments.
    pub fn durable() -> QueueOptions {
        QueueOptions { durable: true, ..QueueOptions::default() }
    }

    /// Passive: only look.
    pub fn look() -> QueueOptions {
        QueueOptions { passive: true, ..QueueOptions::default() }
    }

    fn bits(&self) -> u8 {
        u8::from(self.passive) | u8::from(self.durable) << 1 | u8::from(self.exclusive) << 2 | u8::from(self.auto_delete) << 3
    }
}

/// queue.declare-ok.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Name.
    pub name: String,
    /// Ready messages.
    pub messages: u32,
    /// Consumers.
    pub consumers: u32,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    buffer: FrameBuffer,
    backlog: VecDeque<Incoming>,
    partial: Option<(Incoming, u64)>,
    read_timeout: Option<Duration>,
    timeout: Duration,
    /// What the broker said of itself.
    pub server: Table,
    /// Largest frame, in bytes with its head and end.
    pub frame_max: u32,
    /// Highest channel number.
    pub channel_max: u16,
    /// Agreed heartbeat, seconds.
    pub heartbeat_s: u16,
}

impl Connection {
    /// Connect, authenticate, enter the vhost.
    pub fn open(dial: &Dial) -> Result<Connection, ClientError> {
        let mut connection = Connection::connect(dial)?;
        let mut out = encode::PROTOCOL_HEADER.to_vec();
        connection.send(&out)?;
        let start = connection.answer((10, 10))?;
        let mut at = Cursor(start.get(2..).unwrap_or_default());
        connection.server = at.table().ok_or_else(|| ClientError::Protocol("server-properties do not parse".into()))?;
        out.clear();
        encode::start_ok(&mut out, &dial.user, &dial.password);
        connection.send(&out)?;
        let tune = connection.answer((10, 30))?;
        connection.tuned(&tune, dial)?;
        out.clear();
        encode::tune_ok(&mut out, connection.channel_max, connection.frame_max, connection.heartbeat_s);
        encode::connection_open(&mut out, &dial.vhost);
        connection.send(&out)?;
        connection.answer((10, 41))?;
        Ok(connection)
    }

    /// Open, with channel 1.
    pub fn open_with_channel(dial: &Dial) -> Result<Connection, ClientError> {
        let mut connection = Connection::open(dial)?;
        connection.open_channel(1)?;
        Ok(connection)
    }

    fn connect(dial: &Dial) -> Result<Connection, ClientError> {
        Ok(Connection {
            socket: Socket::connect(dial)?,
            buffer: FrameBuffer::default(),
            backlog: VecDeque::new(),
            partial: None,
            read_timeout: Some(dial.timeout),
            timeout: dial.timeout,
            server: Table::new(),
            frame_max: 131_072,
            channel_max: 2047,
            heartbeat_s: 0,
        })
    }

    fn tuned(&mut self, tune: &[u8], dial: &Dial) -> Result<(), ClientError> {
        let mut at = Cursor(tune);
        let read = (|| Some((at.u16()?, at.uint(4)? as u32, at.u16()?)))();
        let (channel_max, frame_max, heartbeat) = read.ok_or_else(|| ClientError::Protocol("connection.tune is too short".into()))?;
        self.channel_max = if channel_max == 0 { u16::MAX } else { channel_max };
        self.frame_max = if frame_max == 0 { 1 << 20 } else { frame_max };
        self.heartbeat_s = if dial.heartbeat_s == 0 { 0 } else { dial.heartbeat_s.min(heartbeat.max(1)) };
        Ok(())
    }

    /// A text of the server's properties, "" if it is not there.
    pub fn server_text(&self, name: &str) -> &str {
        self.server
            .iter()
            .find_map(|(n, field)| if let (true, Field::Text(text)) = (n == name, field) { Some(text.as_str()) } else { None })
            .unwrap_or("")
    }

    /// Write bytes that are whole frames.
    pub fn send(&mut self, frames: &[u8]) -> Result<(), ClientError> {
        self.socket.write_all(frames).map_err(ClientError::from_io)
    }

    /// Another handle on the socket, for a second thread that writes, or to shut it down.
    pub fn try_clone_socket(&self) -> Result<Socket, ClientError> {
        Ok(self.socket.try_clone()?)
    }

    /// How long `next_*` wait; `None` for ever. Only makes a system call when it changes.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        if self.read_timeout != timeout {
            self.socket.set_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        Ok(())
    }

    /// The next frame as it came, without looking at it: the bench's hot loops. Do not mix with `next_event` inside a message.
    pub fn next_frame(&mut self) -> Result<Frame, ClientError> {
        self.buffer.next(&mut self.socket)
    }

    /// A frame that has already been read from the socket.
    pub fn buffered_frame(&mut self) -> Result<Option<Frame>, ClientError> {
        self.buffer.buffered()
    }

    /// Payload bytes of the last frame.
    pub fn payload(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.bytes(range)
    }

    /// The next thing the broker says; waits for the read timeout. A close by the broker is an event here, not an error.
    pub fn next_event(&mut self) -> Result<Incoming, ClientError> {
        match self.backlog.pop_front() {
            Some(event) => Ok(event),
            None => self.read_event(),
        }
    }

    /// The next thing within `wait`, `None` if nothing came.
    pub fn event_within(&mut self, wait: Duration) -> Result<Option<Incoming>, ClientError> {
        if let Some(event) = self.backlog.pop_front() {
            return Ok(Some(event));
        }
        self.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        match self.read_event() {
            Ok(event) => Ok(Some(event)),
            Err(ClientError::Timeout) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_event(&mut self) -> Result<Incoming, ClientError> {
        loop {
            let frame = self.buffer.next(&mut self.socket)?;
            if let Some(event) = self.assemble(&frame)? {
                return Ok(event);
            }
        }
    }

    fn assemble(&mut self, frame: &Frame) -> Result<Option<Incoming>, ClientError> {
        let payload = self.buffer.bytes(&frame.payload);
        let bad = |what: &str| ClientError::Protocol(format!("{what} on channel {}", frame.channel));
        match frame.kind {
            FRAME_METHOD if self.partial.is_some() && frame.channel != 0 => Err(bad("a method inside a content")),
            FRAME_METHOD => match parse_method(frame.channel, payload).ok_or_else(|| bad("malformed method"))? {
                Parsed::Whole(event) => Ok(Some(event)),
                Parsed::Content(event) => {
                    self.partial = Some((event, u64::MAX));
                    Ok(None)
                }
            },
            FRAME_HEADER => {
                let size = Cursor(payload.get(4..12).unwrap_or_default()).uint(8).ok_or_else(|| bad("short header"))?;
                let (event, left) = self.partial.as_mut().ok_or_else(|| bad("a header without its method"))?;
                *left = size;
                if let Some(message) = event.message_mut() {
                    message.properties = payload[12..].to_vec();
                    message.body.reserve(size.min(1 << 24) as usize);
                }
                Ok(self.whole())
            }
            FRAME_BODY => {
                let (event, left) = self.partial.as_mut().ok_or_else(|| bad("a body without its method"))?;
                *left = left.checked_sub(payload.len() as u64).ok_or_else(|| bad("a body longer than announced"))?;
                if let Some(message) = event.message_mut() {
                    message.body.extend_from_slice(payload);
                }
                Ok(self.whole())
            }
            FRAME_HEARTBEAT => Ok(Some(Incoming::Heartbeat)),
            _ => Err(bad("a frame of unknown type")),
        }
    }

    fn whole(&mut self) -> Option<Incoming> {
        match self.partial.take() {
            Some((event, 0)) => Some(event),
            rest => {
                self.partial = rest;
                None
            }
        }
    }

    /// Wait for this method and give its arguments; closes are errors, anything else is kept for `next_event`.
    pub fn answer(&mut self, id: (u16, u16)) -> Result<Vec<u8>, ClientError> {
        let until = Instant::now() + self.timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Timeout);
            }
            self.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.read_event()? {
                Incoming::Method(_, class, method, arguments) if (class, method) == id => return Ok(arguments),
                Incoming::ChannelClose { channel, code, text } => {
                    let mut out = Vec::new();
                    encode::bare(&mut out, channel, (20, 41));
                    self.send(&out)?;
                    return Err(ClientError::ChannelClosed { channel, code, text });
                }
                Incoming::ConnectionClose { code, text } => return Err(ClientError::ConnectionClosed { code, text }),
                other => self.backlog.push_back(other),
            }
        }
    }

    fn ask(&mut self, answer: (u16, u16), fill: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<u8>, ClientError> {
        let mut out = Vec::new();
        fill(&mut out);
        self.send(&out)?;
        self.answer(answer)
    }

    /// channel.open.
    pub fn open_channel(&mut self, channel: u16) -> Result<(), ClientError> {
        self.ask((20, 11), |out| encode::channel_open(out, channel)).map(drop)
    }

    /// channel.close.
    pub fn close_channel(&mut self, channel: u16) -> Result<(), ClientError> {
        self.ask((20, 41), |out| encode::close(out, channel)).map(drop)
    }

    /// connection.close and its answer.
    pub fn close(mut self) -> Result<(), ClientError> {
        self.ask((10, 51), |out| encode::close(out, 0)).map(drop)
    }

    /// confirm.select.
    pub fn confirm_select(&mut self, channel: u16) -> Result<(), ClientError> {
        self.ask((85, 11), |out| encode::confirm_select(out, channel)).map(drop)
    }

    /// basic.qos per consumer.
    pub fn qos(&mut self, channel: u16, prefetch: u16) -> Result<(), ClientError> {
        self.ask((60, 11), |out| encode::qos(out, channel, prefetch, false)).map(drop)
    }

    /// queue.declare.
    pub fn declare(&mut self, channel: u16, queue: &str, options: &QueueOptions) -> Result<QueueState, ClientError> {
        let ok = self.ask((50, 11), |out| encode::queue_declare(out, channel, queue, options.bits(), &options.arguments))?;
        let mut at = Cursor(&ok);
        let read = (|| Some(QueueState { name: at.short()?.to_owned(), messages: at.uint(4)? as u32, consumers: at.uint(4)? as u32 }))();
        read.ok_or_else(|| ClientError::Protocol("queue.declare-ok is too short".into()))
    }

    /// queue.delete; the number of messages that went with it.
    pub fn delete(&mut self, channel: u16, queue: &str) -> Result<u32, ClientError> {
        let ok = self.ask((50, 41), |out| encode::queue_delete(out, channel, queue))?;
        Cursor(&ok).uint(4).map(|n| n as u32).ok_or_else(|| ClientError::Protocol("queue.delete-ok is too short".into()))
    }

    /// queue.bind.
    pub fn bind(&mut self, channel: u16, queue: &str, exchange: &str, key: &str) -> Result<(), ClientError> {
        self.ask((50, 21), |out| encode::queue_bind(out, channel, queue, exchange, key)).map(drop)
    }

    /// exchange.declare of a durable exchange.
    pub fn declare_exchange(&mut self, channel: u16, exchange: &str, kind: &str) -> Result<(), ClientError> {
        self.ask((40, 11), |out| encode::exchange_declare(out, channel, exchange, kind, 2)).map(drop)
    }

    /// The same with arguments.
    pub fn declare_exchange_with(
        &mut self,
        channel: u16,
        exchange: &str,
        kind: &str,
        arguments: &[(String, Field)],
    ) -> Result<(), ClientError> {
        self.ask((40, 11), |out| encode::exchange_declare_with(out, channel, exchange, (kind, 2), arguments)).map(drop)
    }

    /// exchange.delete.
    pub fn delete_exchange(&mut self, channel: u16, exchange: &str) -> Result<(), ClientError> {
        self.ask((40, 21), |out| encode::exchange_delete(out, channel, exchange)).map(drop)
    }

    /// basic.consume with acknowledgements.
    pub fn consume(&mut self, channel: u16, queue: &str, tag: &str, arguments: &[(String, Field)]) -> Result<(), ClientError> {
        self.ask((60, 21), |out| encode::consume(out, channel, queue, tag, 0, arguments)).map(drop)
    }

    /// basic.publish through the default exchange, no waiting.
    pub fn publish(&mut self, channel: u16, queue: &str, body: &[u8]) -> Result<(), ClientError> {
        self.publish_to(encode::Route { channel, exchange: "", key: queue, mandatory: false }, body)
    }

    /// basic.publish, no waiting.
    pub fn publish_to(&mut self, route: encode::Route<'_>, body: &[u8]) -> Result<(), ClientError> {
        let mut out = Vec::with_capacity(body.len() + 128);
        encode::publish(&mut out, route, body, self.frame_max);
        self.send(&out)
    }

    /// basic.publish with headers, no waiting.
    pub fn publish_with(&mut self, route: encode::Route<'_>, headers: &[(String, Field)], body: &[u8]) -> Result<(), ClientError> {
        let mut out = Vec::with_capacity(body.len() + 256);
        encode::publish_with(&mut out, route, headers, body, self.frame_max);
        self.send(&out)
    }

    /// basic.ack.
    pub fn ack(&mut self, channel: u16, tag: u64, multiple: bool) -> Result<(), ClientError> {
        let mut out = Vec::with_capacity(32);
        encode::ack(&mut out, channel, tag, multiple);
        self.send(&out)
    }

    /// basic.get with acknowledgement: the message and how many remain.
    pub fn get(&mut self, channel: u16, queue: &str) -> Result<Option<(Delivery, u32)>, ClientError> {
        let mut out = Vec::new();
        encode::get(&mut out, channel, queue, false);
        self.send(&out)?;
        let until = Instant::now() + self.timeout;
        loop {
            self.set_read_timeout(Some(until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))))?;
            match self.read_event()? {
                Incoming::Got(_, message, left) => return Ok(Some((message, left))),
                Incoming::Empty(_) => return Ok(None),
                Incoming::ChannelClose { channel, code, text } => return Err(ClientError::ChannelClosed { channel, code, text }),
                Incoming::ConnectionClose { code, text } => return Err(ClientError::ConnectionClosed { code, text }),
                other => self.backlog.push_back(other),
            }
            if Instant::now() >= until {
                return Err(ClientError::Timeout);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_user_address_and_vhost() {
        let dial = Dial::parse("amqp://ann:s3:cret@broker.example/%2fteam");
        assert_eq!((dial.user.as_str(), dial.password.as_str()), ("ann", "s3:cret"));
        assert_eq!((dial.address.as_str(), dial.vhost.as_str()), ("broker.example:5672", "/team"));
        assert_eq!(Dial::parse("127.0.0.1:5673").address, "127.0.0.1:5673");
        assert_eq!(Dial::parse("amqp://h:1/").vhost, "/");
        assert_eq!(Dial::parse("amqps://h/v").address, "h:5671");
    }
}
