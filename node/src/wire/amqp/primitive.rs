//! The elementary types of method arguments (spec 4.2.5): integers, bits, short and long strings, and how they are read from
//! and written to a frame. Used by the method codec and the field tables.

use super::table;
use crate::model::catalog::Table;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::fmt;
use std::ops::Deref;

/// Bytes that are not what the frame promised. Becomes 502 SYNTAX_ERROR (or 501 for a table in a content header).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// A short string: up to 255 bytes, UTF-8 by convention, not checked here. Writing a longer one cuts it at a character.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Short(pub Bytes);

/// A long string: arbitrary bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Long(pub Bytes);

impl Deref for Short {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl Deref for Long {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl From<&str> for Short {
    fn from(text: &str) -> Short {
        Short(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<&str> for Long {
    fn from(text: &str) -> Long {
        Long(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Debug for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Long {
    /// The length only: long strings hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Reads arguments in order; consecutive bits share octets (spec 4.2.5.2).
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
    octet: u8,
    bit: u8,
}

impl Reader {
    /// Over a method's arguments.
    pub fn new(bytes: Bytes) -> Reader {
        Reader { bytes, octet: 0, bit: 8 }
    }

    /// The next argument.
    pub fn read<T: Field>(&mut self) -> Result<T, Malformed> {
        T::read(self)
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<Bytes, Malformed> {
        self.bit = 8;
        if self.bytes.len() < len {
            return Err(Malformed(what));
        }
        Ok(self.bytes.split_to(len))
    }
}

/// Writes arguments in order.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut BytesMut,
    bit: u8,
}

impl<'a> Writer<'a> {
    /// At the end of `bytes`.
    pub fn new(bytes: &'a mut BytesMut) -> Writer<'a> {
        Writer { bytes, bit: 8 }
    }

    /// The next argument.
    pub fn write<T: Field>(&mut self, value: &T) {
        value.write(self);
    }

    fn plain(&mut self) -> &mut BytesMut {
        self.bit = 8;
        self.bytes
    }
}

/// A type of argument.
pub trait Field: Sized {
    /// Reads one.
    fn read(reader: &mut Reader) -> Result<Self, Malformed>;
    /// Writes one.
    fn write(&self, writer: &mut Writer<'_>);
}

macro_rules! integer {
    ($type:ty, $get:ident, $put:ident) => {
        impl Field for $type {
            fn read(reader: &mut Reader) -> Result<Self, Malformed> {
                reader.bit = 8;
                reader.bytes.$get().map_err(|_| Malformed("integer"))
            }
            fn write(&self, writer: &mut Writer<'_>) {
                writer.plain().$put(*self);
            }
        }
    };
}
integer!(u8, try_get_u8, put_u8);
integer!(u16, try_get_u16, put_u16);
integer!(u32, try_get_u32, put_u32);
integer!(u64, try_get_u64, put_u64);

impl Field for bool {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        if reader.bit == 8 {
            reader.octet = reader.bytes.try_get_u8().map_err(|_| Malformed("bit"))?;
            reader.bit = 0;
        }
        let set = reader.octet >> reader.bit & 1 == 1;
        reader.bit += 1;
        Ok(set)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        if writer.bit == 8 {
            writer.bytes.put_u8(0);
            writer.bit = 0;
        }
        if let Some(last) = writer.bytes.last_mut() {
            *last |= u8::from(*self) << writer.bit;
        }
        writer.bit += 1;
    }
}

impl Field for Short {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let len = u8::read(reader)? as usize;
        reader.take(len, "short string").map(Short)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        put_short(writer.plain(), &self.0);
    }
}

impl Field for Long {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let len = u32::read(reader)? as usize;
        reader.take(len, "long string").map(Long)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let bytes = writer.plain();
        bytes.put_u32(self.0.len() as u32);
        bytes.put_slice(&self.0);
    }
}

impl Field for Table {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let len = u32::read(reader)? as usize;
        let bytes = reader.take(len, "table")?;
        table::read_entries(&bytes)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        table::write(writer.plain(), self);
    }
}

/// Appends a short string; cuts what is beyond 255 bytes, at a character when it is UTF-8.
pub fn put_short(out: &mut BytesMut, text: &[u8]) {
    let text = &text[..short_len(text)];
    out.put_u8(text.len() as u8);
    out.put_slice(text);
}

fn short_len(text: &[u8]) -> usize {
    if text.len() <= 255 {
        return text.len();
    }
    (252..=255).rev().find(|&at| text[at] & 0xC0 != 0x80).unwrap_or(255)
}
