//! A message as the log keeps it.

use bytes::{Buf, Bytes};

/// A message as stored: exchange, routing key, properties (flags and list as on the wire), body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Exchange it was published to.
    pub exchange: Bytes,
    /// Its routing key.
    pub key: Bytes,
    /// Property flags and list.
    pub properties: Bytes,
    /// Body.
    pub body: Bytes,
}

/// A stored message, borrowed: for encoding a delivery without touching reference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredView<'a> {
    /// Exchange it was published to.
    pub exchange: &'a [u8],
    /// Its routing key.
    pub key: &'a [u8],
    /// Property flags and list.
    pub properties: &'a [u8],
    /// Position of the body; it reaches to the end.
    pub body_at: usize,
}

impl<'a> StoredView<'a> {
    /// Looks at a stored message; `None` when it is malformed.
    pub fn parse(bytes: &'a [u8]) -> Option<StoredView<'a>> {
        let mut rest = bytes;
        let mut cut = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        let n = cut(1)?[0] as usize;
        let exchange = cut(n)?;
        let n = cut(1)?[0] as usize;
        let key = cut(n)?;
        let n = cut(4)?.get_u32_le() as usize;
        let properties = cut(n)?;
        Some(StoredView { exchange, key, properties, body_at: bytes.len() - rest.len() })
    }
}

impl StoredMessage {
    /// Slices a stored message; `None` when it is malformed.
    pub fn parse(mut bytes: Bytes) -> Option<StoredMessage> {
        let mut cut = |n: usize| (bytes.len() >= n).then(|| bytes.split_to(n));
        let n = cut(1)?[0] as usize;
        let exchange = cut(n)?;
        let n = cut(1)?[0] as usize;
        let key = cut(n)?;
        let n = cut(4)?.get_u32_le() as usize;
        let properties = cut(n)?;
        Some(StoredMessage { exchange, key, properties, body: bytes })
    }
}
