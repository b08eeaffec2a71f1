//! A lean client of the RabbitMQ stream protocol over blocking sockets, for `warren bench`: streams are made and deleted, publishers and
//! subscriptions declared, and everything else that comes is handed to the caller as it lies. Shares no code with `wire`.
//! Left out: heartbeats, groups, filters, sub-entry batches.

use super::connection::Dial;
use super::error::ClientError;
use super::socket::Socket;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

const READ_BYTES: usize = 256 * 1024;
/// size u32 | key u16 | version u16
const HEAD: usize = 8;
/// A response's key has this bit.
const RESPONSE: u16 = 0x8000;
/// The response code of success.
pub const OK: u16 = 1;
/// ... of a stream that is not there.
pub const NO_SUCH_STREAM: u16 = 2;
const STREAM_NOT_AVAILABLE: u16 = 6;
/// A new stream has its replica on a node a little after it was created on another.
const REPLICA_PATIENCE: Duration = Duration::from_secs(10);
const REPLICA_RETRY: Duration = Duration::from_millis(100);

/// Keys of commands.
pub mod key {
    /// A connection's publisher.
    pub const DECLARE_PUBLISHER: u16 = 0x01;
    /// Messages.
    pub const PUBLISH: u16 = 0x02;
    /// They are stored.
    pub const CONFIRM: u16 = 0x03;
    /// They are not.
    pub const PUBLISH_ERROR: u16 = 0x04;
    pub(super) const QUERY_PUBLISHER_SEQUENCE: u16 = 0x05;
    /// A reader.
    pub const SUBSCRIBE: u16 = 0x07;
    /// A chunk.
    pub const DELIVER: u16 = 0x08;
    /// Chunks may come.
    pub const CREDIT: u16 = 0x09;
    /// A stream is made.
    pub const CREATE: u16 = 0x0d;
    /// A stream goes.
    pub const DELETE: u16 = 0x0e;
    /// Where streams are.
    pub const METADATA: u16 = 0x0f;
    /// A stream moved or is gone.
    pub const METADATA_UPDATE: u16 = 0x10;
    pub(super) const PEER_PROPERTIES: u16 = 0x11;
    pub(super) const SASL_HANDSHAKE: u16 = 0x12;
    pub(super) const SASL_AUTHENTICATE: u16 = 0x13;
    pub(super) const TUNE: u16 = 0x14;
    pub(super) const OPEN: u16 = 0x15;
    /// The end.
    pub const CLOSE: u16 = 0x16;
}

/// A command in the buffer; its content is `connection.content(&command)` until the next call of `next_command`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What it is.
    pub key: u16,
    /// Where what follows its version is.
    pub content: Range<usize>,
}

/// An open connection.
#[derive(Debug)]
pub struct StreamConnection {
    socket: Socket,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    correlation: u32,
    read_timeout: Option<Duration>,
}

/// A text: its length u16 and bytes.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A command of version 1; `fill` writes what follows.
pub fn command(key: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&key.to_be_bytes());
    out.extend_from_slice(&1u16.to_be_bytes());
    fill(&mut out);
    let size = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&size.to_be_bytes());
    out
}

/// Reads numbers and texts.
struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], ClientError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(|| ClientError::Protocol("an answer is cut short".into()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, len: usize) -> Result<usize, ClientError> {
        Ok(self.take(len)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    fn text(&mut self) -> Result<String, ClientError> {
        let len = self.number(2)?;
        Ok(String::from_utf8_lossy(self.take(len)?).into_owned())
    }
}

impl StreamConnection {
    /// Connects, logs in, enters the vhost.
    ///
    /// # Errors
    /// The socket's, or what the broker refused.
    pub fn open(dial: &Dial) -> Result<StreamConnection, ClientError> {
        let socket = Socket::connect(dial)?;
        let (bytes, read_timeout) = (vec![0; READ_BYTES], Some(dial.timeout));
        let mut connection = StreamConnection { socket, bytes, start: 0, end: 0, correlation: 0, read_timeout };
        connection.must(key::PEER_PROPERTIES, |out| out.extend_from_slice(&[0; 4]))?;
        connection.must(key::SASL_HANDSHAKE, |_| ())?;
        connection.must(key::SASL_AUTHENTICATE, |out| {
            text(out, "PLAIN");
            let login = format!("\0{}\0{}", dial.user, dial.password);
            out.extend_from_slice(&(login.len() as u32).to_be_bytes());
            out.extend_from_slice(login.as_bytes());
        })?;
        let tune = loop {
            let command = connection.next_command()?;
            if command.key == key::TUNE {
                break connection.content(&command).get(..4).map(<[u8]>::to_vec);
            }
        };
        let frame_max = tune.ok_or_else(|| ClientError::Protocol("Tune is too short".into()))?;
        // No heartbeats.
        connection.send(&command(key::TUNE, |out| out.extend_from_slice(&[&frame_max[..], &[0; 4]].concat())))?;
        connection.must(key::OPEN, |out| text(out, &dial.vhost))?;
        Ok(connection)
    }

    /// What follows a command's version.
    pub fn content(&self, command: &Command) -> &[u8] {
        &self.bytes[command.content.clone()]
    }

    /// Writes bytes that are whole commands.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&mut self, commands: &[u8]) -> Result<(), ClientError> {
        self.socket.write_all(commands).map_err(ClientError::from_io)
    }

    /// Another handle on the socket, for a second thread that writes.
    ///
    /// # Errors
    /// The socket's.
    pub fn try_clone_socket(&self) -> Result<Socket, ClientError> {
        Ok(self.socket.try_clone()?)
    }

    /// How long `next_command` waits. Only makes a system call when it changes.
    ///
    /// # Errors
    /// The socket's.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        if self.read_timeout != timeout {
            self.socket.set_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        Ok(())
    }

    /// The next command that has been read already.
    pub fn buffered(&mut self) -> Option<Command> {
        let have = &self.bytes[self.start..self.end];
        let size = u32::from_be_bytes(*have.first_chunk()?) as usize;
        if have.len() < (4 + size).max(HEAD) {
            self.make_room(4 + size);
            return None;
        }
        let key = u16::from_be_bytes([have[4], have[5]]);
        let command = Command { key, content: self.start + HEAD..self.start + (4 + size).max(HEAD) };
        self.start += 4 + size;
        Some(command)
    }

    /// The next command, reading when there is none.
    ///
    /// # Errors
    /// `Timeout`, the socket's, and the broker's Close.
    pub fn next_command(&mut self) -> Result<Command, ClientError> {
        loop {
            if let Some(command) = self.buffered() {
                if command.key == key::CLOSE {
                    let mut close = Answer(self.content(&command).get(4..).unwrap_or_default());
                    return Err(ClientError::ConnectionClosed { code: close.number(2)? as u16, text: close.text()? });
                }
                return Ok(command);
            }
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            }
            self.make_room(self.end - self.start + READ_BYTES / 4);
            match self.socket.read(&mut self.bytes[self.end..]).map_err(ClientError::from_io)? {
                0 => return Err(ClientError::Socket(io::ErrorKind::UnexpectedEof.into())),
                n => self.end += n,
            }
        }
    }

    /// Room for `need` bytes from `start` on.
    fn make_room(&mut self, need: usize) {
        if self.start + need > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if need > self.bytes.len() {
            self.bytes.resize(need, 0);
        }
    }

    /// A request; what comes before its response is lost.
    fn ask(&mut self, key: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<u8>, ClientError> {
        self.correlation += 1;
        let correlation = self.correlation.to_be_bytes();
        self.send(&command(key, |out| {
            out.extend_from_slice(&correlation);
            fill(out);
        }))?;
        loop {
            let command = self.next_command()?;
            if command.key == key | RESPONSE
                && let Some(answer) = self.content(&command).strip_prefix(&correlation[..])
            {
                return Ok(answer.to_vec());
            }
        }
    }

    /// A request's response code.
    ///
    /// # Errors
    /// As `next_command`.
    fn code(&mut self, key: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Result<u16, ClientError> {
        Answer(&self.ask(key, fill)?).number(2).map(|code| code as u16)
    }

    fn must(&mut self, key: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), ClientError> {
        match self.code(key, fill)? {
            OK => Ok(()),
            code => Err(refused(key, code)),
        }
    }

    /// Makes a stream without arguments.
    ///
    /// # Errors
    /// As `next_command`, and a refusal.
    pub fn create(&mut self, stream: &str) -> Result<(), ClientError> {
        self.must(key::CREATE, |out| {
            text(out, stream);
            out.extend_from_slice(&[0; 4]);
        })
    }

    /// Deletes a stream, if there is one.
    ///
    /// # Errors
    /// As `next_command`, and a refusal.
    pub fn delete(&mut self, stream: &str) -> Result<(), ClientError> {
        match self.code(key::DELETE, |out| text(out, stream))? {
            OK | NO_SUCH_STREAM => Ok(()),
            code => Err(ClientError::Protocol(format!("the broker does not delete {stream}: code {code}"))),
        }
    }

    /// Where a stream's leader is; `None`: there is none now.
    ///
    /// # Errors
    /// As `next_command`.
    pub fn leader(&mut self, stream: &str) -> Result<Option<String>, ClientError> {
        let answer = self.ask(key::METADATA, |out| {
            out.extend_from_slice(&1u32.to_be_bytes());
            text(out, stream);
        })?;
        let mut at = Answer(&answer);
        let mut brokers = Vec::new();
        for _ in 0..at.number(4)? {
            let reference = at.number(2)?;
            let host = at.text()?;
            brokers.push((reference, format!("{host}:{}", at.number(4)?)));
        }
        let (_count, _name, code, leader) = (at.number(4)?, at.text()?, at.number(2)?, at.number(2)?);
        let found = brokers.into_iter().find(|(reference, _)| *reference == leader);
        Ok(found.filter(|_| code == usize::from(OK)).map(|(_, address)| address))
    }

    /// Publisher 1, without a name.
    ///
    /// # Errors
    /// As `next_command`, and a refusal.
    pub fn declare_publisher(&mut self, stream: &str) -> Result<(), ClientError> {
        self.declare_publisher_named(stream, "")
    }

    /// Publisher 1 with a name, whose publishing ids the broker remembers.
    ///
    /// # Errors
    /// As `next_command`, and a refusal.
    pub fn declare_publisher_named(&mut self, stream: &str, name: &str) -> Result<(), ClientError> {
        self.must(key::DECLARE_PUBLISHER, |out| {
            out.push(1);
            text(out, name);
            text(out, stream);
        })
    }

    /// The last publishing id that is known of a name, 0 when there is none.
    ///
    /// # Errors
    /// As `next_command`, and a refusal.
    pub fn publisher_sequence(&mut self, stream: &str, name: &str) -> Result<u64, ClientError> {
        let answer = self.ask(key::QUERY_PUBLISHER_SEQUENCE, |out| {
            text(out, name);
            text(out, stream);
        })?;
        let mut at = Answer(&answer);
        match at.number(2)? as u16 {
            OK => Ok(at.number(8)? as u64),
            code => Err(refused(key::QUERY_PUBLISHER_SEQUENCE, code)),
        }
    }

    /// Subscription 1, from the first chunk on, with credit for so many chunks. Waits for the node's replica.
    ///
    /// # Errors
    /// As `next_command`, and a refusal.
    pub fn subscribe(&mut self, stream: &str, credit: u16) -> Result<(), ClientError> {
        let until = Instant::now() + REPLICA_PATIENCE;
        loop {
            let code = self.code(key::SUBSCRIBE, |out| {
                out.push(1);
                text(out, stream);
                out.extend_from_slice(&1u16.to_be_bytes());
                out.extend_from_slice(&credit.to_be_bytes());
                out.extend_from_slice(&[0; 4]);
            })?;
            match code {
                OK => return Ok(()),
                STREAM_NOT_AVAILABLE if Instant::now() < until => std::thread::sleep(REPLICA_RETRY),
                code => return Err(refused(key::SUBSCRIBE, code)),
            }
        }
    }

    /// One more chunk may come.
    ///
    /// # Errors
    /// As `send`.
    pub fn credit(&mut self) -> Result<(), ClientError> {
        self.send(&command(key::CREDIT, |out| out.extend_from_slice(&[1, 0, 1])))
    }
}

fn refused(key: u16, code: u16) -> ClientError {
    ClientError::Protocol(format!("the broker refused command {key:#04x} with code {code}"))
}

/// The bodies of a Deliver: entries that are messages of one data section. `None` in place of one that cannot be read.
pub fn bodies(deliver: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    // subscription u8 | header of 48 bytes, whose 45th is the length of a filter that is never sent | entries
    let (mut rest, mut left) = match deliver {
        [_, chunk @ ..] if chunk.len() >= 48 => (&chunk[48..], u16::from_be_bytes([chunk[2], chunk[3]])),
        _ => (&[][..], 1),
    };
    std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let record = rest.first_chunk().and_then(|len| rest.get(4..4 + u32::from_be_bytes(*len) as usize));
        rest = rest.get(4 + record.map_or(0, <[u8]>::len)..).unwrap_or_default();
        Some(record.and_then(body))
    })
}

/// The body of a record: one data section of AMQP 1.0 (0x53 0x75) as binary (0xa0, 0xb0).
fn body(record: &[u8]) -> Option<&[u8]> {
    match record {
        [0, 0x53, 0x75, 0xa0, len, body @ ..] if body.len() == usize::from(*len) => Some(body),
        [0, 0x53, 0x75, 0xb0, a, b, c, d, body @ ..] if body.len() == u32::from_be_bytes([*a, *b, *c, *d]) as usize => Some(body),
        _ => None,
    }
}

/// A message of a Publish: its number, its length and such a record. Returns where the body begins.
pub fn message(out: &mut Vec<u8>, body: &[u8]) -> usize {
    let mut record = vec![0, 0x53, 0x75];
    match u8::try_from(body.len()) {
        Ok(len) => record.extend_from_slice(&[0xa0, len]),
        Err(_) => {
            record.push(0xb0);
            record.extend_from_slice(&(body.len() as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&((record.len() + body.len()) as u32).to_be_bytes());
    out.extend_from_slice(&record);
    out.extend_from_slice(body);
    out.len() - body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_come_out_of_a_chunk_as_they_went_into_messages() {
        let sent = [b"hi".to_vec(), vec![7; 255], vec![8; 256], vec![]];
        let mut deliver = vec![1, 0x50, 0, 0, sent.len() as u8];
        deliver.resize(49, 0);
        for body in &sent {
            let mut published = Vec::new();
            let at = message(&mut published, body);
            assert_eq!(&published[at..], body);
            deliver.extend_from_slice(&published[8..]);
        }
        assert_eq!(bodies(&deliver).collect::<Vec<_>>(), sent.iter().map(|body| Some(&body[..])).collect::<Vec<_>>());
        let last = deliver.len() - 1;
        deliver.truncate(last);
        assert_eq!(bodies(&deliver).filter(Option::is_none).count(), 1, "the last one is cut");
        assert_eq!(bodies(&[1, 2]).collect::<Vec<_>>(), [None]);
    }
}
