//! What clients say: requests, commands without an answer, and their answers to Tune, Close and ConsumerUpdate. Decoding borrows from the
//! frame; encoding is for tests and load generators.

use super::code::{Key, RESPONSE};
use super::message::Messages;
use super::primitive::{Malformed, OffsetSpec, Put, Reader};
use bytes::{BufMut, BytesMut};

/// A pair of strings.
pub type Pair<'a> = (&'a str, &'a str);

/// Versions of a command that somebody understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The command's number; it may be one that we do not know.
    pub key: u16,
    /// First.
    pub min: u16,
    /// Last.
    pub max: u16,
}

/// A question with the number that its answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// `publisher` is from now on a publisher of `stream`; with a reference its messages are deduplicated.
    DeclarePublisher { publisher: u8, reference: &'a str, stream: &'a str },
    /// The highest publishing id of `reference` in `stream`.
    QueryPublisherSequence { reference: &'a str, stream: &'a str },
    /// `publisher` ends.
    DeletePublisher { publisher: u8 },
    /// Chunks of `stream`, `credit` of them for now.
    Subscribe { subscription: u8, stream: &'a str, offset: OffsetSpec, credit: u16, properties: Vec<Pair<'a>> },
    /// The offset stored under `reference`.
    QueryOffset { reference: &'a str, stream: &'a str },
    /// `subscription` ends.
    Unsubscribe { subscription: u8 },
    /// A new stream.
    Create { stream: &'a str, arguments: Vec<Pair<'a>> },
    /// A stream goes.
    Delete { stream: &'a str },
    /// Where these streams live.
    Metadata { streams: Vec<&'a str> },
    /// Who the client is.
    PeerProperties { properties: Vec<Pair<'a>> },
    /// Which mechanisms there are.
    SaslHandshake,
    /// A login.
    SaslAuthenticate { mechanism: &'a str, response: &'a [u8] },
    /// Into a vhost.
    Open { vhost: &'a str },
    /// Goodbye.
    Close { code: u16, reason: &'a str },
    /// Partitions for a routing key.
    Route { routing_key: &'a str, super_stream: &'a str },
    /// All partitions.
    Partitions { super_stream: &'a str },
    /// What the client understands.
    ExchangeCommandVersions { commands: Vec<Versions> },
    /// Figures of a stream.
    StreamStats { stream: &'a str },
    /// A new super stream; the n-th binding key leads to the n-th partition.
    CreateSuperStream { name: &'a str, partitions: Vec<&'a str>, binding_keys: Vec<&'a str>, arguments: Vec<Pair<'a>> },
    /// A super stream goes.
    DeleteSuperStream { name: &'a str },
    /// Which offset that would be.
    ResolveOffsetSpec { stream: &'a str, offset: OffsetSpec, properties: Vec<Pair<'a>> },
}

/// A frame from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromClient<'a> {
    /// It is answered with the same number.
    Request {
        /// That number.
        correlation: u32,
        /// What.
        request: Request<'a>,
    },
    /// Messages of a publisher.
    Publish { publisher: u8, messages: Messages<'a> },
    /// More chunks may come; less than nothing takes credit back.
    Credit { subscription: u8, credit: i16 },
    /// Remember an offset.
    StoreOffset { reference: &'a str, stream: &'a str, offset: u64 },
    /// Sizes and heartbeats as the client wants them.
    Tune { frame_max: u32, heartbeat: u32 },
    /// A sign of life.
    Heartbeat,
    /// Answer to our Close.
    Closed { correlation: u32, code: u16 },
    /// Answer to ConsumerUpdate: where an active consumer begins, unless it leaves that to its subscription.
    ConsumerUpdated { correlation: u32, code: u16, offset: Option<OffsetSpec> },
}

impl Request<'_> {
    /// Its command.
    pub fn key(&self) -> Key {
        match self {
            Request::DeclarePublisher { .. } => Key::DeclarePublisher,
            Request::QueryPublisherSequence { .. } => Key::QueryPublisherSequence,
            Request::DeletePublisher { .. } => Key::DeletePublisher,
            Request::Subscribe { .. } => Key::Subscribe,
            Request::QueryOffset { .. } => Key::QueryOffset,
            Request::Unsubscribe { .. } => Key::Unsubscribe,
            Request::Create { .. } => Key::Create,
            Request::Delete { .. } => Key::Delete,
            Request::Metadata { .. } => Key::Metadata,
            Request::PeerProperties { .. } => Key::PeerProperties,
            Request::SaslHandshake => Key::SaslHandshake,
            Request::SaslAuthenticate { .. } => Key::SaslAuthenticate,
            Request::Open { .. } => Key::Open,
            Request::Close { .. } => Key::Close,
            Request::Route { .. } => Key::Route,
            Request::Partitions { .. } => Key::Partitions,
            Request::ExchangeCommandVersions { .. } => Key::ExchangeCommandVersions,
            Request::StreamStats { .. } => Key::StreamStats,
            Request::CreateSuperStream { .. } => Key::CreateSuperStream,
            Request::DeleteSuperStream { .. } => Key::DeleteSuperStream,
            Request::ResolveOffsetSpec { .. } => Key::ResolveOffsetSpec,
        }
    }
}

const UNKNOWN: Malformed = Malformed("command: unknown key or version");

impl<'a> FromClient<'a> {
    /// Reads the content of a frame. What is left over at its end is ignored, as newer clients may say more.
    pub fn decode(frame: &'a [u8]) -> Result<FromClient<'a>, Malformed> {
        let mut reader = Reader::new(frame);
        let (number, version) = (reader.u16("key")?, reader.u16("version")?);
        let key = Key::of(number).ok_or(UNKNOWN)?;
        if version != 1 && !(version == 2 && key == Key::Publish) {
            return Err(UNKNOWN);
        }
        if number & RESPONSE != 0 { answer(key, &mut reader) } else { said(key, version, &mut reader) }
    }

    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        let at = out.len();
        out.put_u32(0);
        self.encode_content(out);
        let len = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&len.to_be_bytes());
    }

    fn encode_content(&self, out: &mut BytesMut) {
        match self {
            FromClient::Request { correlation, request } => {
                out.put_key(request.key(), 1);
                out.put_u32(*correlation);
                encode_request(request, out);
            }
            FromClient::Publish { publisher, messages } => {
                out.put_key(Key::Publish, messages.version());
                out.put_u8(*publisher);
                out.put_u32(messages.count() as u32);
                out.put_slice(messages.as_bytes());
            }
            FromClient::Credit { subscription, credit } => {
                out.put_key(Key::Credit, 1);
                out.put_u8(*subscription);
                out.put_i16(*credit);
            }
            FromClient::StoreOffset { reference, stream, offset } => {
                out.put_key(Key::StoreOffset, 1);
                out.put_text(reference);
                out.put_text(stream);
                out.put_u64(*offset);
            }
            FromClient::Tune { frame_max, heartbeat } => {
                out.put_u16(Key::Tune as u16 | RESPONSE);
                out.put_u16(1);
                out.put_u32(*frame_max);
                out.put_u32(*heartbeat);
            }
            FromClient::Heartbeat => out.put_key(Key::Heartbeat, 1),
            FromClient::Closed { correlation, code } => {
                out.put_response(Key::Close, *correlation);
                out.put_u16(*code);
            }
            FromClient::ConsumerUpdated { correlation, code, offset } => {
                out.put_response(Key::ConsumerUpdate, *correlation);
                out.put_u16(*code);
                out.put_offset(*offset);
            }
        }
    }
}

fn answer<'a>(key: Key, reader: &mut Reader<'a>) -> Result<FromClient<'a>, Malformed> {
    match key {
        Key::Tune => tune(reader),
        Key::Close => Ok(FromClient::Closed { correlation: reader.u32("Close")?, code: reader.u16("Close")? }),
        Key::ConsumerUpdate => {
            let (correlation, code) = (reader.u32("ConsumerUpdate")?, reader.u16("ConsumerUpdate")?);
            let offset = if reader.is_empty() { None } else { reader.offset()? };
            Ok(FromClient::ConsumerUpdated { correlation, code, offset })
        }
        _ => Err(UNKNOWN),
    }
}

fn tune<'a>(reader: &mut Reader<'a>) -> Result<FromClient<'a>, Malformed> {
    Ok(FromClient::Tune { frame_max: reader.u32("Tune")?, heartbeat: reader.u32("Tune")? })
}

fn said<'a>(key: Key, version: u16, reader: &mut Reader<'a>) -> Result<FromClient<'a>, Malformed> {
    match key {
        Key::Publish => {
            let publisher = reader.u8("Publish")?;
            let _count = reader.u32("Publish")?;
            Ok(FromClient::Publish { publisher, messages: Messages::new(version, reader.rest()) })
        }
        Key::Credit => Ok(FromClient::Credit { subscription: reader.u8("Credit")?, credit: reader.u16("Credit")? as i16 }),
        Key::StoreOffset => Ok(FromClient::StoreOffset {
            reference: reader.text("StoreOffset")?,
            stream: reader.text("StoreOffset")?,
            offset: reader.u64("StoreOffset")?,
        }),
        Key::Tune => tune(reader),
        Key::Heartbeat => Ok(FromClient::Heartbeat),
        _ => Ok(FromClient::Request { correlation: reader.u32("correlation id")?, request: request(key, reader)? }),
    }
}

fn request<'a>(key: Key, reader: &mut Reader<'a>) -> Result<Request<'a>, Malformed> {
    Ok(match key {
        Key::DeclarePublisher => Request::DeclarePublisher {
            publisher: reader.u8("publisher id")?,
            reference: reader.text("publisher reference")?,
            stream: reader.text("stream")?,
        },
        Key::QueryPublisherSequence => {
            Request::QueryPublisherSequence { reference: reader.text("publisher reference")?, stream: reader.text("stream")? }
        }
        Key::DeletePublisher => Request::DeletePublisher { publisher: reader.u8("publisher id")? },
        Key::Subscribe => Request::Subscribe {
            subscription: reader.u8("subscription id")?,
            stream: reader.text("stream")?,
            offset: reader.offset()?.ok_or(Malformed("offset specification"))?,
            credit: reader.u16("credit")?,
            properties: reader.pairs_if_any("properties")?,
        },
        Key::QueryOffset => Request::QueryOffset { reference: reader.text("reference")?, stream: reader.text("stream")? },
        Key::Unsubscribe => Request::Unsubscribe { subscription: reader.u8("subscription id")? },
        Key::Create => Request::Create { stream: reader.text("stream")?, arguments: reader.pairs("arguments")? },
        Key::Delete => Request::Delete { stream: reader.text("stream")? },
        Key::Metadata => Request::Metadata { streams: reader.texts("streams")? },
        Key::PeerProperties => Request::PeerProperties { properties: reader.pairs("properties")? },
        Key::SaslHandshake => Request::SaslHandshake,
        Key::SaslAuthenticate => {
            Request::SaslAuthenticate { mechanism: reader.text("mechanism")?, response: reader.bytes("SASL response")? }
        }
        Key::Open => Request::Open { vhost: reader.text("vhost")? },
        Key::Close => Request::Close { code: reader.u16("closing code")?, reason: reader.text("closing reason")? },
        Key::Route => Request::Route { routing_key: reader.text("routing key")?, super_stream: reader.text("super stream")? },
        Key::Partitions => Request::Partitions { super_stream: reader.text("super stream")? },
        Key::ExchangeCommandVersions => Request::ExchangeCommandVersions { commands: versions(reader)? },
        Key::StreamStats => Request::StreamStats { stream: reader.text("stream")? },
        Key::CreateSuperStream => Request::CreateSuperStream {
            name: reader.text("super stream")?,
            partitions: reader.texts("partitions")?,
            binding_keys: reader.texts("binding keys")?,
            arguments: reader.pairs_if_any("arguments")?,
        },
        Key::DeleteSuperStream => Request::DeleteSuperStream { name: reader.text("super stream")? },
        Key::ResolveOffsetSpec => Request::ResolveOffsetSpec {
            stream: reader.text("stream")?,
            offset: reader.offset()?.ok_or(Malformed("offset specification"))?,
            properties: reader.pairs_if_any("properties")?,
        },
        Key::Publish
        | Key::Credit
        | Key::StoreOffset
        | Key::Tune
        | Key::Heartbeat
        | Key::PublishConfirm
        | Key::PublishError
        | Key::Deliver
        | Key::MetadataUpdate
        | Key::ConsumerUpdate => return Err(UNKNOWN),
    })
}

/// Versions of commands, as both sides list them.
pub(super) fn versions(reader: &mut Reader<'_>) -> Result<Vec<Versions>, Malformed> {
    let what = "command versions";
    let count = reader.u32(what)?;
    let mut commands = Vec::new();
    for _ in 0..count {
        commands.push(Versions { key: reader.u16(what)?, min: reader.u16(what)?, max: reader.u16(what)? });
    }
    Ok(commands)
}

/// The same, written.
pub(super) fn put_versions(out: &mut BytesMut, commands: &[Versions]) {
    out.put_u32(commands.len() as u32);
    for command in commands {
        out.put_u16(command.key);
        out.put_u16(command.min);
        out.put_u16(command.max);
    }
}

fn encode_request(request: &Request<'_>, out: &mut BytesMut) {
    match request {
        Request::DeclarePublisher { publisher, reference, stream } => {
            out.put_u8(*publisher);
            out.put_text(reference);
            out.put_text(stream);
        }
        Request::QueryPublisherSequence { reference, stream } | Request::QueryOffset { reference, stream } => {
            out.put_text(reference);
            out.put_text(stream);
        }
        Request::DeletePublisher { publisher } => out.put_u8(*publisher),
        Request::Subscribe { subscription, stream, offset, credit, properties } => {
            out.put_u8(*subscription);
            out.put_text(stream);
            out.put_offset(Some(*offset));
            out.put_u16(*credit);
            out.put_pairs(properties);
        }
        Request::Unsubscribe { subscription } => out.put_u8(*subscription),
        Request::Create { stream, arguments } => {
            out.put_text(stream);
            out.put_pairs(arguments);
        }
        Request::Metadata { streams } => out.put_texts(streams),
        Request::PeerProperties { properties } => out.put_pairs(properties),
        Request::SaslHandshake => {}
        Request::SaslAuthenticate { mechanism, response } => {
            out.put_text(mechanism);
            out.put_blob(response);
        }
        Request::Close { code, reason } => {
            out.put_u16(*code);
            out.put_text(reason);
        }
        Request::Route { routing_key, super_stream } => {
            out.put_text(routing_key);
            out.put_text(super_stream);
        }
        Request::ExchangeCommandVersions { commands } => put_versions(out, commands),
        Request::Delete { stream: name }
        | Request::StreamStats { stream: name }
        | Request::Partitions { super_stream: name }
        | Request::DeleteSuperStream { name }
        | Request::Open { vhost: name } => out.put_text(name),
        Request::CreateSuperStream { name, partitions, binding_keys, arguments } => {
            out.put_text(name);
            out.put_texts(partitions);
            out.put_texts(binding_keys);
            out.put_pairs(arguments);
        }
        Request::ResolveOffsetSpec { stream, offset, properties } => {
            out.put_text(stream);
            out.put_offset(Some(*offset));
            out.put_pairs(properties);
        }
    }
}
