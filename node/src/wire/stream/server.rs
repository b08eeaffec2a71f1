//! What servers say, read: for tests and load generators. The broker writes it with `output`.

use super::client::{Versions, versions};
use super::code::{Key, RESPONSE};
use super::primitive::{Malformed, Reader};

/// Where a stream lives, by numbers of brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamMetadata<'a> {
    /// Its name.
    pub stream: &'a str,
    /// Whether it is there.
    pub code: u16,
    /// 65535: unknown.
    pub leader: u16,
    /// Other replicas.
    pub replicas: Vec<u16>,
}

/// A broker of a Metadata answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broker<'a> {
    /// Its number in this answer.
    pub reference: u16,
    /// Where clients find it.
    pub host: &'a str,
    /// And with which port.
    pub port: u32,
}

/// What an answer says beside its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Nothing.
    Bare,
    /// PeerProperties, Open.
    Pairs(Vec<(&'a str, &'a str)>),
    /// SaslHandshake, Route, Partitions.
    Texts(Vec<&'a str>),
    /// QueryPublisherSequence, QueryOffset.
    Number(u64),
    /// ResolveOffsetSpec: kind of the offset, 4, and the offset.
    Offset(u16, u64),
    /// ExchangeCommandVersions.
    Versions(Vec<Versions>),
    /// StreamStats.
    Stats(Vec<(&'a str, i64)>),
}

/// The head of a chunk as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHead {
    /// Entries: messages and batches.
    pub entries: u16,
    /// Messages: offsets that it takes.
    pub records: u32,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// Grows with each leader.
    pub epoch: u64,
    /// The offset of its first message.
    pub first: u64,
    /// CRC-32 (IEEE) of the data.
    pub crc: u32,
}

/// Magic and version in a chunk's first byte.
const CHUNK_MAGIC: u8 = 0x50;

/// A frame from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServer<'a> {
    /// Stored.
    PublishConfirm { publisher: u8, ids: Vec<u64> },
    /// Not stored, each with its code.
    PublishError { publisher: u8, errors: Vec<(u64, u16)> },
    /// A chunk; the committed offset with version 2.
    Deliver { subscription: u8, committed: Option<u64>, head: ChunkHead, data: &'a [u8] },
    /// Something is wrong with a Credit.
    CreditError { code: u16, subscription: u8 },
    /// A stream moved or went.
    MetadataUpdate { code: u16, stream: &'a str },
    /// Sizes and heartbeats as the server wants them.
    Tune { frame_max: u32, heartbeat: u32 },
    /// Goodbye.
    Close { correlation: u32, code: u16, reason: &'a str },
    /// A consumer of a group becomes active or not.
    ConsumerUpdate { correlation: u32, subscription: u8, active: bool },
    /// A sign of life.
    Heartbeat,
    /// Where streams live.
    Metadata { correlation: u32, brokers: Vec<Broker<'a>>, streams: Vec<StreamMetadata<'a>> },
    /// Any other answer.
    Response { key: Key, correlation: u32, code: u16, answer: Answer<'a> },
}

const UNKNOWN: Malformed = Malformed("command: unknown key or version");

impl<'a> FromServer<'a> {
    /// Reads the content of a frame.
    pub fn decode(frame: &'a [u8]) -> Result<FromServer<'a>, Malformed> {
        let mut reader = Reader::new(frame);
        let (number, version) = (reader.u16("key")?, reader.u16("version")?);
        let key = Key::of(number).ok_or(UNKNOWN)?;
        if number & RESPONSE != 0 { response(key, &mut reader) } else { said(key, version, &mut reader) }
    }
}

fn said<'a>(key: Key, version: u16, reader: &mut Reader<'a>) -> Result<FromServer<'a>, Malformed> {
    Ok(match key {
        Key::PublishConfirm => {
            let (publisher, count) = (reader.u8("PublishConfirm")?, reader.u32("PublishConfirm")?);
            let ids = (0..count).map(|_| reader.u64("PublishConfirm")).collect::<Result<_, _>>()?;
            FromServer::PublishConfirm { publisher, ids }
        }
        Key::PublishError => {
            let (publisher, count) = (reader.u8("PublishError")?, reader.u32("PublishError")?);
            let errors = (0..count).map(|_| Ok((reader.u64("PublishError")?, reader.u16("PublishError")?))).collect::<Result<_, _>>()?;
            FromServer::PublishError { publisher, errors }
        }
        Key::Deliver => {
            let subscription = reader.u8("Deliver")?;
            let committed = if version >= 2 { Some(reader.u64("Deliver")?) } else { None };
            let (head, data) = chunk(reader)?;
            FromServer::Deliver { subscription, committed, head, data }
        }
        Key::MetadataUpdate => FromServer::MetadataUpdate { code: reader.u16("MetadataUpdate")?, stream: reader.text("MetadataUpdate")? },
        Key::Tune => FromServer::Tune { frame_max: reader.u32("Tune")?, heartbeat: reader.u32("Tune")? },
        Key::Close => FromServer::Close { correlation: reader.u32("Close")?, code: reader.u16("Close")?, reason: reader.text("Close")? },
        Key::ConsumerUpdate => FromServer::ConsumerUpdate {
            correlation: reader.u32("ConsumerUpdate")?,
            subscription: reader.u8("ConsumerUpdate")?,
            active: reader.u8("ConsumerUpdate")? == 1,
        },
        Key::Heartbeat => FromServer::Heartbeat,
        _ => return Err(UNKNOWN),
    })
}

fn chunk<'a>(reader: &mut Reader<'a>) -> Result<(ChunkHead, &'a [u8]), Malformed> {
    let what = "chunk";
    if reader.u8(what)? != CHUNK_MAGIC || reader.u8(what)? != 0 {
        return Err(Malformed(what));
    }
    let head = ChunkHead {
        entries: reader.u16(what)?,
        records: reader.u32(what)?,
        timestamp_ms: reader.u64(what)? as i64,
        epoch: reader.u64(what)?,
        first: reader.u64(what)?,
        crc: reader.u32(what)?,
    };
    let len = reader.u32(what)?;
    let _trailer = reader.u32(what)?;
    let _bloom = reader.u32(what)?;
    Ok((head, reader.take(len as usize, what)?))
}

fn response<'a>(key: Key, reader: &mut Reader<'a>) -> Result<FromServer<'a>, Malformed> {
    let what = "response";
    match key {
        Key::Credit => return Ok(FromServer::CreditError { code: reader.u16(what)?, subscription: reader.u8(what)? }),
        Key::Metadata => return metadata(reader),
        _ => {}
    }
    let (correlation, code) = (reader.u32(what)?, reader.u16(what)?);
    let answer = match key {
        _ if reader.is_empty() => Answer::Bare,
        Key::PeerProperties | Key::Open => Answer::Pairs(reader.pairs(what)?),
        Key::SaslHandshake | Key::Route | Key::Partitions => Answer::Texts(reader.texts(what)?),
        Key::QueryPublisherSequence | Key::QueryOffset => Answer::Number(reader.u64(what)?),
        Key::ResolveOffsetSpec => Answer::Offset(reader.u16(what)?, reader.u64(what)?),
        Key::ExchangeCommandVersions => Answer::Versions(versions(reader)?),
        Key::StreamStats => {
            let count = reader.u32(what)?;
            Answer::Stats((0..count).map(|_| Ok((reader.text(what)?, reader.u64(what)? as i64))).collect::<Result<_, _>>()?)
        }
        _ => return Err(UNKNOWN),
    };
    Ok(FromServer::Response { key, correlation, code, answer })
}

fn metadata<'a>(reader: &mut Reader<'a>) -> Result<FromServer<'a>, Malformed> {
    let what = "Metadata";
    let correlation = reader.u32(what)?;
    let count = reader.u32(what)?;
    let broker = |reader: &mut Reader<'a>| Ok(Broker { reference: reader.u16(what)?, host: reader.text(what)?, port: reader.u32(what)? });
    let brokers = (0..count).map(|_| broker(reader)).collect::<Result<_, _>>()?;
    let count = reader.u32(what)?;
    let stream = |reader: &mut Reader<'a>| {
        let (stream, code, leader, count) = (reader.text(what)?, reader.u16(what)?, reader.u16(what)?, reader.u32(what)?);
        let replicas = (0..count).map(|_| reader.u16(what)).collect::<Result<_, _>>()?;
        Ok(StreamMetadata { stream, code, leader, replicas })
    };
    let streams = (0..count).map(|_| stream(reader)).collect::<Result<_, _>>()?;
    Ok(FromServer::Metadata { correlation, brokers, streams })
}
