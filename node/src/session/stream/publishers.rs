//! A connection's publishers: their numbers, what they publish, and what becomes of it.

use super::{Session, codes};
use crate::model::limits;
use crate::model::step::Step;
use crate::model::stream::{Append, Published, StreamTarget};
use crate::model::stream_step::{Ask, Failure};
use crate::wire::stream::{Code, Entry, Key, Malformed, Messages};
use bytes::Bytes;
use std::sync::Arc;

use super::out::Out;

/// Largest size of a sub-entry batch when it is decompressed, bytes (RabbitMQ's default).
const BATCH_BYTES: u32 = 64 << 20;
/// The highest kind of compression that has a meaning: zstd.
const COMPRESSION_MAX: u8 = 4;

/// A publisher.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    pub stream: Arc<str>,
    pub reference: Option<Arc<str>>,
    pub target: Arc<StreamTarget>,
    pub published: u64,
    pub confirmed: u64,
    pub errored: u64,
}

/// One that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Declaring {
    pub publisher: u8,
    pub stream: Arc<str>,
    pub reference: Option<Arc<str>>,
}

impl Session {
    pub(super) fn declare_publisher(&mut self, correlation: u32, declaring: Declaring, out: &mut Out) {
        let Declaring { publisher, stream, reference } = &declaring;
        let is_named = |other: &Publisher| other.reference.is_some() && other.reference == *reference && other.stream == *stream;
        let is_taken = self.publishers.contains_key(publisher) || self.publishers.values().any(is_named);
        let is_long = reference.as_ref().is_some_and(|name| name.len() > limits::STREAM_REFERENCE_BYTES);
        if is_taken || is_long {
            return out.bytes.respond(Key::DeclarePublisher, correlation, Code::PreconditionFailed);
        }
        let ask = Ask::Write { stream: stream.clone(), reference: reference.clone() };
        self.ask(correlation, super::Asked::Publisher(declaring), ask, out);
    }

    pub(super) fn publisher_declared(&mut self, declaring: Declaring, target: Arc<StreamTarget>) {
        let Declaring { publisher, stream, reference } = declaring;
        self.publishers.insert(publisher, Publisher { stream, reference, target, published: 0, confirmed: 0, errored: 0 });
    }

    pub(super) fn delete_publisher(&mut self, correlation: u32, publisher: u8, out: &mut Out) {
        let code = match self.publishers.remove(&publisher) {
            Some(_) => {
                // What is confirmed from now on concerns nobody.
                out.step(Step::ChannelClosed { channel: publisher.into(), held: Vec::new() });
                Code::Ok
            }
            None => Code::PublisherDoesNotExist,
        };
        out.bytes.respond(Key::DeletePublisher, correlation, code);
    }

    pub(super) fn publish(&mut self, number: u8, messages: Messages<'_>, frame: &Bytes, out: &mut Out) -> Result<(), Malformed> {
        let Some(publisher) = self.publishers.get_mut(&number) else {
            let ids = messages.map(|message| Ok(message?.publishing_id)).collect::<Result<Vec<_>, _>>()?;
            self.counts.errored += ids.len() as u64;
            out.bytes.publish_error(number, &ids, Code::PublisherDoesNotExist);
            return Ok(());
        };
        let all = frame.slice_ref(messages.as_bytes());
        let Checked { count, bytes, refused } = check(messages)?;
        publisher.published += count;
        publisher.errored += refused.len() as u64;
        self.counts.published += count;
        self.counts.published_bytes += bytes as u64;
        self.counts.errored += refused.len() as u64;
        if bytes > 0 {
            let published = Published { bytes: all.slice(..bytes), is_filtered: messages.version() >= 2 };
            out.step(Step::Append(Append { channel: number.into(), to: publisher.target.clone(), published }));
        }
        if !refused.is_empty() {
            out.bytes.publish_error(number, &refused, Code::PreconditionFailed);
        }
        Ok(())
    }

    /// Inclusive ranges of publishing ids are stored.
    pub(super) fn confirmed(&mut self, channel: u16, ranges: &[(u64, u64)], out: &mut Out) {
        if let Some(number) = self.known(channel) {
            self.expand(ranges);
            let count = self.ids.len() as u64;
            self.counts.confirmed += count;
            self.publishers.get_mut(&number).into_iter().for_each(|publisher| publisher.confirmed += count);
            out.bytes.confirm(number, &self.ids);
        }
    }

    /// They are not.
    pub(super) fn nacked(&mut self, channel: u16, ranges: &[(u64, u64)], out: &mut Out) {
        if let Some(number) = self.known(channel) {
            self.expand(ranges);
            let count = self.ids.len() as u64;
            self.counts.errored += count;
            self.publishers.get_mut(&number).into_iter().for_each(|publisher| publisher.errored += count);
            out.bytes.publish_error(number, &self.ids, codes::of(Failure::Unavailable));
        }
    }

    fn known(&self, channel: u16) -> Option<u8> {
        u8::try_from(channel).ok().filter(|number| self.publishers.contains_key(number))
    }

    fn expand(&mut self, ranges: &[(u64, u64)]) {
        self.ids.clear();
        self.ids.extend(ranges.iter().flat_map(|(first, last)| *first..=*last));
    }
}

/// The messages of a frame that can be taken, and the ids of the others.
struct Checked {
    count: u64,
    bytes: usize,
    refused: Vec<u64>,
}

/// Walks a frame's messages. Behind a batch that cannot be taken all are refused, so that a publisher's ids have no gap, as RabbitMQ does it.
fn check(mut messages: Messages<'_>) -> Result<Checked, Malformed> {
    let (whole, mut checked) = (messages.as_bytes().len(), Checked { count: 0, bytes: 0, refused: Vec::new() });
    while let Some(message) = messages.next() {
        let message = message?;
        if checked.refused.is_empty() && is_sound(message.entry) {
            checked.bytes = whole - messages.as_bytes().len();
            checked.count += 1;
        } else {
            checked.refused.push(message.publishing_id);
        }
    }
    Ok(checked)
}

fn is_sound(entry: Entry) -> bool {
    match entry {
        Entry::Simple => true,
        Entry::Batch { compression, records, uncompressed_bytes, stored_bytes } => {
            uncompressed_bytes <= BATCH_BYTES
                && records > 0
                && u32::from(records) * 4 <= uncompressed_bytes
                && compression <= COMPRESSION_MAX
                && (stored_bytes > 0 || compression == 0)
        }
    }
}
