//! The elementary types ("Types"): big-endian integers, strings with a length of two bytes, byte strings and arrays with one of four, and
//! offset specifications. All reads borrow from the frame.

use super::code::RESPONSE;
use bytes::{BufMut, BytesMut};

/// Bytes that are not what the command promised; says which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The oldest record there is.
    First,
    /// The first record of the newest chunk.
    Last,
    /// What comes from now on.
    Next,
    /// This record, or the first there is behind it.
    Offset(u64),
    /// The first chunk that is not older; milliseconds since the epoch.
    Timestamp(i64),
}

/// Reads the parts of a frame in order.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over a frame's content.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    /// What was not read yet.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Malformed(what))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Malformed(what))?;
        self.bytes = rest;
        Ok(*taken)
    }

    /// uint8.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// uint16.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// uint32.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// uint64.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// The bytes of a string; null (a length of -1) is `None`.
    pub fn optional(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, Malformed> {
        match self.u16(what)? {
            u16::MAX => Ok(None),
            len => self.take(usize::from(len), what).map(Some),
        }
    }

    /// A string; null is an empty one.
    pub fn text(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        let bytes = self.optional(what)?.unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| Malformed(what))
    }

    /// A byte string; null is an empty one.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        match self.u32(what)? {
            u32::MAX => Ok(&[]),
            len => self.take(len as usize, what),
        }
    }

    /// An array of strings.
    pub fn texts(&mut self, what: &'static str) -> Result<Vec<&'a str>, Malformed> {
        let count = self.u32(what)?;
        // No memory for what the frame cannot hold.
        let mut texts = Vec::with_capacity((count as usize).min(self.bytes.len() / 2));
        for _ in 0..count {
            texts.push(self.text(what)?);
        }
        Ok(texts)
    }

    /// An array of pairs of strings.
    pub fn pairs(&mut self, what: &'static str) -> Result<Vec<(&'a str, &'a str)>, Malformed> {
        let count = self.u32(what)?;
        let mut pairs = Vec::with_capacity((count as usize).min(self.bytes.len() / 4));
        for _ in 0..count {
            pairs.push((self.text(what)?, self.text(what)?));
        }
        Ok(pairs)
    }

    /// Pairs that may be missing at the end of a frame, as older clients leave them out.
    pub fn pairs_if_any(&mut self, what: &'static str) -> Result<Vec<(&'a str, &'a str)>, Malformed> {
        if self.is_empty() { Ok(Vec::new()) } else { self.pairs(what) }
    }

    /// An offset specification; `None` for the type 0 that an answer to ConsumerUpdate may bear.
    pub fn offset(&mut self) -> Result<Option<OffsetSpec>, Malformed> {
        let what = "offset specification";
        match self.u16(what)? {
            0 => Ok(None),
            1 => Ok(Some(OffsetSpec::First)),
            2 => Ok(Some(OffsetSpec::Last)),
            3 => Ok(Some(OffsetSpec::Next)),
            4 => self.u64(what).map(|offset| Some(OffsetSpec::Offset(offset))),
            5 => self.u64(what).map(|ms| Some(OffsetSpec::Timestamp(ms as i64))),
            _ => Err(Malformed(what)),
        }
    }
}

/// Writes the parts of frames.
pub(super) trait Put {
    /// The head of a request or of a command without an answer.
    fn put_key(&mut self, key: super::Key, version: u16);
    /// The head of a response.
    fn put_response(&mut self, key: super::Key, correlation: u32);
    /// A string; more than 32,767 bytes are cut at a character.
    fn put_text(&mut self, text: &str);
    /// A byte string.
    fn put_blob(&mut self, bytes: &[u8]);
    /// An array of strings.
    fn put_texts(&mut self, texts: &[&str]);
    /// An array of pairs.
    fn put_pairs(&mut self, pairs: &[(&str, &str)]);
    /// An offset specification, or that there is none.
    fn put_offset(&mut self, offset: Option<OffsetSpec>);
}

impl Put for BytesMut {
    fn put_key(&mut self, key: super::Key, version: u16) {
        self.put_u16(key as u16);
        self.put_u16(version);
    }

    fn put_response(&mut self, key: super::Key, correlation: u32) {
        self.put_u16(key as u16 | RESPONSE);
        self.put_u16(1);
        self.put_u32(correlation);
    }

    fn put_text(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(i16::MAX as usize)];
        self.put_u16(text.len() as u16);
        self.put_slice(text.as_bytes());
    }

    fn put_blob(&mut self, bytes: &[u8]) {
        self.put_u32(bytes.len() as u32);
        self.put_slice(bytes);
    }

    fn put_texts(&mut self, texts: &[&str]) {
        self.put_u32(texts.len() as u32);
        texts.iter().for_each(|text| self.put_text(text));
    }

    fn put_pairs(&mut self, pairs: &[(&str, &str)]) {
        self.put_u32(pairs.len() as u32);
        for (key, value) in pairs {
            self.put_text(key);
            self.put_text(value);
        }
    }

    fn put_offset(&mut self, offset: Option<OffsetSpec>) {
        match offset {
            None => self.put_u16(0),
            Some(OffsetSpec::First) => self.put_u16(1),
            Some(OffsetSpec::Last) => self.put_u16(2),
            Some(OffsetSpec::Next) => self.put_u16(3),
            Some(OffsetSpec::Offset(offset)) => {
                self.put_u16(4);
                self.put_u64(offset);
            }
            Some(OffsetSpec::Timestamp(ms)) => {
                self.put_u16(5);
                self.put_i64(ms);
            }
        }
    }
}
