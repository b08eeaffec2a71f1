//! Frames ("Frame Structure"): a length of four bytes and what it counts, cut out of the read buffer as a slice, never copied.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes in front of a frame's content.
pub const FRAME_HEAD: usize = 4;

/// A frame beyond the agreed size; what comes behind it cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {size} bytes; {max} bytes are allowed")]
pub struct TooLarge {
    /// Announced content, bytes.
    pub size: u32,
    /// Largest content, bytes.
    pub max: u32,
}

/// Takes the content of the next whole frame from the front of `buffer`; `None` when more bytes are needed (room for them is reserved once
/// the size is known and accepted). `max`: largest content, bytes.
pub fn next(buffer: &mut BytesMut, max: u32) -> Result<Option<Bytes>, TooLarge> {
    let Some(mut head) = buffer.get(..FRAME_HEAD) else { return Ok(None) };
    let size = head.get_u32();
    if size > max {
        return Err(TooLarge { size, max });
    }
    let whole = FRAME_HEAD + size as usize;
    if buffer.len() < whole {
        buffer.reserve(whole - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(whole).freeze();
    frame.advance(FRAME_HEAD);
    Ok(Some(frame))
}
