//! What a stream holds, as AMQP 0-9-1 clients write and read it: records in AMQP 1.0's format, and sub-entry batches of them. Pure; called by
//! the edge when it publishes and when it delivers.
//!
//! A client of streams writes any bytes it likes and gets them back as they are; only AMQP 0-9-1 readers need them to be understood. So
//! nothing here refuses a record: what is not AMQP 1.0 is a body.

mod batch;
mod encoding;
mod reading;
mod sections;
mod value;
mod writing;

pub use batch::{BadBatch, Batch, Compression, Entries, Entry, INFLATED_BYTES, inflate};
pub use reading::{Reading, append_stored};
pub use sections::{Body, Message};
pub use value::{Items, Malformed, Value};
pub use writing::{Published, append_record, filter_value};

/// The message annotation that keeps the property list of a message from AMQP 0-9-1, when the sections of AMQP 1.0 cannot carry all of it.
const KEPT: &str = "x-opt-warren-properties";
/// The offset of a message in its stream, as a header of its delivery.
const OFFSET: &str = "x-stream-offset";
/// The exchange a message was published to, as a message annotation.
const EXCHANGE: &str = "x-exchange";
/// Its routing key, likewise.
const ROUTING_KEY: &str = "x-routing-key";
/// Its further routing keys (`CC`), likewise.
const COPIES: &str = "x-cc";
/// Its `type` property, likewise.
const TYPE: &str = "x-basic-type";
/// Content of a body that is not binary data is the encoded sections, and this is its type.
const ENCODED: &[u8] = b"amqp-1.0";
/// The time a broker got it, likewise.
const RECEIVED: &str = "x-opt-rabbitmq-received-time";
/// The same as a header.
const RECEIVED_HEADER: &str = "timestamp_in_ms";
/// How an address names a queue.
const QUEUE_ADDRESS: &[u8] = b"/queues/";
/// How a UUID is written as text.
const UUID: &[u8] = b"urn:uuid:";
/// Message and correlation ids that a short string cannot hold come as headers.
const MESSAGE_ID_HEADER: &str = "x-message-id";
const CORRELATION_ID_HEADER: &str = "x-correlation-id";

/// Message annotations that are no headers to a reader by AMQP 0-9-1.
fn is_internal(name: &[u8]) -> bool {
    let known = [KEPT, OFFSET, EXCHANGE, ROUTING_KEY, "x-death", "x-opt-deaths"];
    name.starts_with(b"x-basic-") || known.iter().any(|known| known.as_bytes() == name)
}

#[cfg(test)]
mod tests;
