//! A bare client of the stream protocol for tests: blocking, one connection, nothing comes back by itself. What it is told without having
//! asked is kept until somebody wants it.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use warren::wire::stream::client::Request;
use warren::wire::stream::server::Answer;
use warren::wire::stream::{FromClient, FromServer, Messages, OffsetSpec, frame};

/// Largest frame that is taken, bytes.
const FRAME_MAX: u32 = 16 << 20;

/// What comes without having been asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// These are stored.
    Confirmed(Vec<u64>),
    /// These are not, or it is not known.
    Refused(Vec<u64>),
    /// Messages.
    Chunk(Chunk),
    /// A stream's publishers and subscriptions are gone.
    MetadataUpdate(String),
    /// A subscription of a group is active, or is not any more; it is answered.
    Turn(bool),
}

/// A chunk of single messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset of the first.
    pub first: u64,
    /// Check sum of the data.
    pub crc: u32,
    /// When it was written, ms since the epoch.
    pub time_ms: i64,
    /// The messages.
    pub bodies: Vec<Vec<u8>>,
}

/// A connection in a vhost.
#[derive(Debug)]
pub struct StreamClient {
    socket: TcpStream,
    input: BytesMut,
    correlation: u32,
    told: VecDeque<Told>,
}

fn wrong(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_string())
}

impl StreamClient {
    /// Logs in as guest. No answer within `patience` is an error, then and later.
    ///
    /// # Errors
    /// Of the socket, or the broker refuses.
    pub fn connect(address: &str, patience: Duration) -> io::Result<StreamClient> {
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        socket.set_nodelay(true)?;
        let mut client = StreamClient { socket, input: BytesMut::new(), correlation: 0, told: VecDeque::new() };
        client.ask(Request::PeerProperties { properties: vec![] })?;
        client.ask(Request::SaslHandshake)?;
        client.ask(Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0guest" })?;
        client.say(&FromClient::Tune { frame_max: 0, heartbeat: 0 })?;
        client.ask(Request::Open { vhost: "/" })?;
        Ok(client)
    }

    fn say(&mut self, said: &FromClient<'_>) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        said.encode(&mut bytes);
        self.socket.write_all(&bytes)
    }

    fn frame(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(content) = frame::next(&mut self.input, FRAME_MAX).map_err(wrong)? {
                return Ok(content);
            }
            let mut bytes = [0; 16 << 10];
            match self.socket.read(&mut bytes)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.input.extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// A question and its code; the number in the answer, if there is one.
    ///
    /// # Errors
    /// Of the socket; any code but Ok.
    pub fn ask(&mut self, request: Request<'_>) -> io::Result<Option<u64>> {
        self.correlation += 1;
        let (asked, wanted) = (format!("{request:?}"), self.correlation);
        self.say(&FromClient::Request { correlation: wanted, request })?;
        loop {
            let content = self.frame()?;
            match FromServer::decode(&content).map_err(wrong)? {
                FromServer::Response { correlation, code: 1, answer, .. } if correlation == wanted => {
                    return Ok(if let Answer::Number(number) = answer { Some(number) } else { None });
                }
                FromServer::Response { code, .. } => return Err(wrong(format!("{asked}: code {code}"))),
                other => self.keep(&other)?,
            }
        }
    }

    fn keep(&mut self, said: &FromServer<'_>) -> io::Result<()> {
        let told = match said {
            FromServer::PublishConfirm { ids, .. } => Told::Confirmed(ids.clone()),
            FromServer::PublishError { errors, .. } => Told::Refused(errors.iter().map(|(id, _)| *id).collect()),
            FromServer::MetadataUpdate { stream, .. } => Told::MetadataUpdate((*stream).to_owned()),
            FromServer::Deliver { head, data, .. } => {
                let (first, crc, time_ms) = (head.first, head.crc, head.timestamp_ms);
                Told::Chunk(Chunk { first, crc, time_ms, bodies: bodies(data)? })
            }
            FromServer::ConsumerUpdate { correlation, active, .. } => {
                self.say(&FromClient::ConsumerUpdated { correlation: *correlation, code: 1, offset: None })?;
                Told::Turn(*active)
            }
            FromServer::Close { reason, .. } => return Err(wrong(reason)),
            FromServer::Tune { .. } | FromServer::Heartbeat => return Ok(()),
            other => return Err(wrong(format!("not expected: {other:?}"))),
        };
        self.told.push_back(told);
        Ok(())
    }

    /// What it is told next.
    ///
    /// # Errors
    /// Of the socket; nothing came for as long as it is patient.
    pub fn next_told(&mut self) -> io::Result<Told> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(told);
            }
            let content = self.frame()?;
            self.keep(&FromServer::decode(&content).map_err(wrong)?)?;
        }
    }

    /// Messages of a publisher, each with its publishing id.
    ///
    /// # Errors
    /// Of the socket.
    pub fn publish(&mut self, publisher: u8, messages: &[(u64, Vec<u8>)]) -> io::Result<()> {
        let entry = |(id, body): &(u64, Vec<u8>)| (*id, [&(body.len() as u32).to_be_bytes()[..], body].concat());
        self.publish_entries(publisher, &messages.iter().map(entry).collect::<Vec<_>>())
    }

    /// The same of entries as they stand in a frame, sub-entry batches among them.
    ///
    /// # Errors
    /// Of the socket.
    pub fn publish_entries(&mut self, publisher: u8, entries: &[(u64, Vec<u8>)]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (id, entry) in entries {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(entry);
        }
        self.say(&FromClient::Publish { publisher, messages: Messages::new(1, &bytes) })
    }

    /// Has an offset remembered; nobody answers.
    ///
    /// # Errors
    /// Of the socket.
    pub fn store(&mut self, reference: &str, stream: &str, offset: u64) -> io::Result<()> {
        self.say(&FromClient::StoreOffset { reference, stream, offset })
    }

    /// Reads a stream from its first message on until `done` says so of a chunk; all chunks until then.
    ///
    /// # Errors
    /// Of the socket, or the broker refuses; it takes more than a minute.
    pub fn read(&mut self, stream: &str, mut done: impl FnMut(&Chunk) -> bool) -> io::Result<Vec<Chunk>> {
        let (subscription, offset, properties) = (200, OffsetSpec::First, vec![]);
        self.ask(Request::Subscribe { subscription, stream, offset, credit: 10, properties })?;
        let (mut chunks, until) = (Vec::new(), Instant::now() + Duration::from_secs(60));
        while Instant::now() < until {
            let Told::Chunk(chunk) = self.next_told()? else { continue };
            let is_last = done(&chunk);
            chunks.push(chunk);
            if is_last {
                self.ask(Request::Unsubscribe { subscription })?;
                return Ok(chunks);
            }
            self.say(&FromClient::Credit { subscription, credit: 1 })?;
        }
        Err(ErrorKind::TimedOut.into())
    }
}

/// The messages of a chunk's data; batches are not expected.
fn bodies(mut data: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut bodies = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk() {
        let (body, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or_else(|| wrong("a message is cut short"))?;
        bodies.push(body.to_vec());
        data = rest;
    }
    Ok(bodies)
}
