//! Content headers (spec 4.2.6.1): class, body size, and the properties, which stay the bytes that the publisher sent. Their form is
//! checked once, here; single properties are read on demand.

use super::primitive::Malformed;
use super::table;
use crate::model::catalog::Table;
use bytes::{Buf, Bytes};

/// The class of all content.
pub const CLASS_BASIC: u16 = 60;

/// A parsed content header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentHeader {
    /// Class of the method before it.
    pub class: u16,
    /// Zero; nobody knows what for.
    pub weight: u16,
    /// Bytes of all body frames together.
    pub body_size: u64,
    /// Flags and property list, as sent; the list has the form that the flags promise.
    pub properties: Bytes,
}

impl ContentHeader {
    /// Reads the payload of a header frame.
    pub fn decode(mut payload: Bytes) -> Result<ContentHeader, Malformed> {
        if payload.len() < 14 {
            return Err(Malformed("content header"));
        }
        let (class, weight, body_size) = (payload.get_u16(), payload.get_u16(), payload.get_u64());
        Properties(&payload).check()?;
        Ok(ContentHeader { class, weight, body_size, properties: payload })
    }
}

/// The basic properties, in the order of their flags from the highest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Property {
    ContentType,
    ContentEncoding,
    Headers,
    DeliveryMode,
    Priority,
    CorrelationId,
    ReplyTo,
    Expiration,
    MessageId,
    Timestamp,
    Type,
    UserId,
    AppId,
    ClusterId,
}

const ORDER: [Property; 14] = [
    Property::ContentType,
    Property::ContentEncoding,
    Property::Headers,
    Property::DeliveryMode,
    Property::Priority,
    Property::CorrelationId,
    Property::ReplyTo,
    Property::Expiration,
    Property::MessageId,
    Property::Timestamp,
    Property::Type,
    Property::UserId,
    Property::AppId,
    Property::ClusterId,
];

/// A view of flags and property list.
#[derive(Clone, Copy, Debug)]
pub struct Properties<'a>(pub &'a [u8]);

impl<'a> Properties<'a> {
    /// The value of a property without its length: text bytes, the octet, eight octets of a timestamp, the entries of a table.
    pub fn get(self, wanted: Property) -> Option<&'a [u8]> {
        let (flags, mut rest) = self.split().ok()?;
        for (bit, property) in ORDER.into_iter().enumerate() {
            if flags & 0x8000 >> bit != 0 {
                let value = cut(&mut rest, property).ok()?;
                if property == wanted {
                    return Some(value);
                }
            } else if property == wanted {
                return None;
            }
        }
        None
    }

    /// The headers table; `None` when there is none or its keys are not UTF-8.
    pub fn headers(self) -> Option<Table> {
        table::read_entries(self.get(Property::Headers)?).ok()
    }

    /// The same properties with another value of a short string that is there.
    pub fn with_short(self, property: Property, value: &[u8]) -> Vec<u8> {
        let Some(old) = self.get(property) else { return self.0.to_vec() };
        let start = old.as_ptr() as usize - self.0.as_ptr() as usize;
        let (before, after) = (&self.0[..start - 1], &self.0[start + old.len()..]);
        [before, &[value.len() as u8], value, after].concat()
    }

    /// The text of `expiration`, milliseconds as digits.
    pub fn expiration(self) -> Option<&'a [u8]> {
        self.get(Property::Expiration)
    }

    /// `priority`, 0 when absent.
    pub fn priority(self) -> u8 {
        self.get(Property::Priority).and_then(|p| p.first().copied()).unwrap_or(0)
    }

    /// `delivery-mode` is 2.
    pub fn persistent(self) -> bool {
        self.get(Property::DeliveryMode) == Some(&[2])
    }

    /// Checks that the list is exactly what the flags promise.
    pub fn check(self) -> Result<(), Malformed> {
        let (flags, mut rest) = self.split()?;
        if flags & 0b11 != 0 {
            return Err(Malformed("property flags"));
        }
        for (bit, property) in ORDER.into_iter().enumerate() {
            if flags & 0x8000 >> bit != 0 {
                if property == Property::Headers {
                    table::skip(&mut rest)?;
                } else {
                    cut(&mut rest, property)?;
                }
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Malformed("property list")) }
    }

    fn split(self) -> Result<(u16, &'a [u8]), Malformed> {
        let (flags, rest) = self.0.split_first_chunk::<2>().ok_or(Malformed("property flags"))?;
        Ok((u16::from_be_bytes(*flags), rest))
    }
}

fn cut<'a>(bytes: &mut &'a [u8], property: Property) -> Result<&'a [u8], Malformed> {
    let bad = Malformed("property list");
    let len = match property {
        Property::DeliveryMode | Property::Priority => 1,
        Property::Timestamp => 8,
        Property::Headers => bytes.try_get_u32().map_err(|_| bad)? as usize,
        Property::ContentType
        | Property::ContentEncoding
        | Property::CorrelationId
        | Property::ReplyTo
        | Property::Expiration
        | Property::MessageId
        | Property::Type
        | Property::UserId
        | Property::AppId
        | Property::ClusterId => bytes.try_get_u8().map_err(|_| bad)? as usize,
    };
    let (head, tail) = bytes.split_at_checked(len).ok_or(bad)?;
    *bytes = tail;
    Ok(head)
}
