//! Frames (spec 4.2.3): cut out of the read buffer as slices, never copied. The listener reads them here.

use bytes::{Buf, Bytes, BytesMut};

/// What a client says first, and what a server answers to anything else.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
/// Last octet of every frame.
pub const FRAME_END: u8 = 0xCE;
/// Type, channel, size.
pub const FRAME_HEAD: usize = 7;
/// Octets of a frame around its payload.
pub const FRAME_OVERHEAD: usize = FRAME_HEAD + 1;

/// Class and method.
const METHOD_HEAD: usize = 4;
/// Class, weight, size of the body.
const HEADER_HEAD: usize = 12;
/// Octets of a payload that error texts show.
const SNIPPET: usize = 16;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A method.
    Method = 1,
    /// A content header.
    Header = 2,
    /// A piece of content.
    Body = 3,
    /// Sign of life.
    Heartbeat = 8,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<FrameKind> {
        [Self::Method, Self::Header, Self::Body, Self::Heartbeat].into_iter().find(|k| *k as u8 == byte)
    }

    /// Whether a payload of so many octets is one of this kind.
    fn can_carry(self, octets: usize) -> bool {
        match self {
            FrameKind::Method => octets >= METHOD_HEAD,
            FrameKind::Header => octets >= HEADER_HEAD,
            FrameKind::Body => true,
            FrameKind::Heartbeat => octets == 0,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// Its channel; 0 is the connection.
    pub channel: u16,
    /// What is between head and end octet: a slice of the read buffer.
    pub payload: Bytes,
}

/// A payload as RabbitMQ's error texts show it: as an Erlang binary, the first 16 octets of one that is longer.
pub fn snippet(payload: &[u8]) -> String {
    let (which, shown) = match payload.get(..SNIPPET) {
        Some(first) if payload.len() > SNIPPET => ("first 16", first),
        _ => ("all", payload),
    };
    let is_text = !shown.is_empty() && shown.iter().all(|b| matches!(b, b' '..=b'~'));
    let inside = match is_text {
        true => format!("\"{}\"", String::from_utf8_lossy(shown).replace('\\', "\\\\").replace('"', "\\\"")),
        false => shown.iter().map(u8::to_string).collect::<Vec<_>>().join(","),
    };
    format!("{which} octets = <<{inside}>>")
}

/// Why the bytes are not frames; nothing after it can be read. All are 501 FRAME_ERROR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than agreed.
    #[error("type {kind}, all octets = <<>>: {{frame_too_large,{size},{max}}}")]
    TooLarge {
        /// Type octet.
        kind: u8,
        /// Payload size that was announced.
        size: u32,
        /// Largest payload.
        max: u32,
    },
    /// Does not end as a frame does.
    #[error("type {kind}, {octets}: {{invalid_frame_end_marker,{marker}}}")]
    End {
        /// Type octet.
        kind: u8,
        /// What it carried, see [`snippet`].
        octets: String,
        /// What stood in place of 0xCE.
        marker: u8,
    },
    /// A type that is none, or one that carries what it cannot.
    #[error("type {kind}, {octets}: unknown_frame")]
    Unknown {
        /// Type octet.
        kind: u8,
        /// What it carried, see [`snippet`].
        octets: String,
    },
}

/// Takes the next whole frame from the front of `buffer`; `None` when more bytes are needed (room for them is reserved once
/// the size is known and accepted). `frame_max` is the agreed size of whole frames; 8 octets more are tolerated, as clients get that wrong.
pub fn next(buffer: &mut BytesMut, frame_max: u32) -> Result<Option<Frame>, FrameError> {
    let Some(mut head) = buffer.get(..FRAME_HEAD) else { return Ok(None) };
    let (kind, channel, size) = (head.get_u8(), head.get_u16(), head.get_u32());
    if size > frame_max {
        return Err(FrameError::TooLarge { kind, size, max: frame_max - FRAME_OVERHEAD as u32 });
    }
    let whole = size as usize + FRAME_OVERHEAD;
    if buffer.len() < whole {
        buffer.reserve(whole - buffer.len());
        return Ok(None);
    }
    let (payload, marker) = (&buffer[FRAME_HEAD..whole - 1], buffer[whole - 1]);
    if marker != FRAME_END {
        return Err(FrameError::End { kind, octets: snippet(payload), marker });
    }
    let known = FrameKind::from_byte(kind).filter(|known| known.can_carry(payload.len()));
    let known = known.ok_or_else(|| FrameError::Unknown { kind, octets: snippet(payload) })?;
    let mut frame = buffer.split_to(whole).freeze();
    frame.advance(FRAME_HEAD);
    frame.truncate(size as usize);
    Ok(Some(Frame { kind: known, channel, payload: frame }))
}
