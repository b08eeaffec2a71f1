//! The sections of an AMQP 1.0 message (part 3, section 3.2), found and not read: each is walked by who needs it.

use super::value::{Items, Malformed, Value, read};
use smallvec::SmallVec;

const HEADER: u64 = 0x70;
const DELIVERY_ANNOTATIONS: u64 = 0x71;
const MESSAGE_ANNOTATIONS: u64 = 0x72;
const PROPERTIES: u64 = 0x73;
const APPLICATION_PROPERTIES: u64 = 0x74;
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;
const FOOTER: u64 = 0x78;

/// The same by name: a sender may write either.
const NAMES: [(&[u8], u64); 9] = [
    (b"amqp:header:list", HEADER),
    (b"amqp:delivery-annotations:map", DELIVERY_ANNOTATIONS),
    (b"amqp:message-annotations:map", MESSAGE_ANNOTATIONS),
    (b"amqp:properties:list", PROPERTIES),
    (b"amqp:application-properties:map", APPLICATION_PROPERTIES),
    (b"amqp:data:binary", DATA),
    (b"amqp:amqp-sequence:list", SEQUENCE),
    (b"amqp:amqp-value:*", VALUE),
    (b"amqp:footer:map", FOOTER),
];

/// A message. Sections that are not there are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message<'a> {
    /// durable, priority, ttl, first-acquirer, delivery-count.
    pub header: Items<'a>,
    /// Pairs.
    pub annotations: Items<'a>,
    /// message-id, user-id, to, subject, reply-to, correlation-id, content-type, content-encoding, absolute-expiry-time, creation-time,
    /// group-id, group-sequence, reply-to-group-id.
    pub properties: Items<'a>,
    /// Pairs.
    pub application: Items<'a>,
    /// The body.
    pub body: Body<'a>,
}

/// The body of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Body<'a> {
    /// Bytes, in one piece as a rule.
    Data(SmallVec<[&'a [u8]; 1]>),
    /// Values, with the footer behind them, as they are encoded.
    Encoded(&'a [u8]),
}

impl Default for Body<'_> {
    fn default() -> Self {
        Body::Data(SmallVec::new())
    }
}

impl<'a> Message<'a> {
    /// Finds the sections. The order of those before the body does not matter; without any section it is no message.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let (mut message, mut rest) = (Message::default(), bytes);
        if bytes.is_empty() {
            return Err(Malformed("nothing"));
        }
        while !rest.is_empty() {
            let before = rest;
            match (read_descriptor(&mut rest)?, read(&mut rest)?) {
                (HEADER, Value::List(items)) => message.header = items,
                (MESSAGE_ANNOTATIONS, Value::Map(items)) => message.annotations = items,
                (PROPERTIES, Value::List(items)) => message.properties = items,
                (APPLICATION_PROPERTIES, Value::Map(items)) => message.application = items,
                (HEADER | MESSAGE_ANNOTATIONS | PROPERTIES | APPLICATION_PROPERTIES | DELIVERY_ANNOTATIONS | FOOTER, Value::Null) => {}
                (DELIVERY_ANNOTATIONS | FOOTER, Value::Map(_)) => {}
                (DATA, Value::Binary(data)) => {
                    if let Body::Data(pieces) = &mut message.body {
                        pieces.push(data);
                    }
                }
                (SEQUENCE, Value::List(_)) | (VALUE, _) => {
                    message.body = Body::Encoded(before);
                    return Ok(message);
                }
                _ => return Err(Malformed("an unknown section")),
            }
        }
        Ok(message)
    }

    /// Whether these are sections of values as they follow the properties: such a body needs no section around it.
    pub(super) fn is_encoded_body(bytes: &[u8]) -> bool {
        let mut rest = bytes;
        matches!(read_descriptor(&mut rest), Ok(SEQUENCE | VALUE)) && read(&mut rest).is_ok()
    }
}

fn read_descriptor(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let [0, rest @ ..] = *bytes else { return Err(Malformed("no section")) };
    *bytes = rest;
    match read(bytes)? {
        Value::Ulong(code) => Ok(code),
        Value::Symbol(name) => NAMES.iter().find(|known| known.0 == name).map(|known| known.1).ok_or(Malformed("an unknown section")),
        _ => Err(Malformed("a descriptor of another type")),
    }
}
