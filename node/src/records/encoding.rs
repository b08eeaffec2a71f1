//! Values of AMQP 1.0's type system (part 1, section 1.6), written in their shortest forms.

use bytes::{BufMut, BytesMut};

/// A list.
pub(super) const LIST: u8 = 0xc0;
/// A map.
pub(super) const MAP: u8 = 0xc1;
/// Code, size and count of a list or map of less than 256 bytes.
const SMALL_HEAD: usize = 3;
/// Of a larger one.
const LARGE_HEAD: usize = 9;

pub(super) const BINARY: u8 = 0xa0;
pub(super) const TEXT: u8 = 0xa1;
pub(super) const SYMBOL: u8 = 0xa3;

pub(super) fn null(out: &mut BytesMut) {
    out.put_u8(0x40);
}

pub(super) fn bool(out: &mut BytesMut, value: bool) {
    out.put_u8(if value { 0x41 } else { 0x42 });
}

pub(super) fn uint(out: &mut BytesMut, value: u32) {
    match u8::try_from(value) {
        Ok(0) => out.put_u8(0x43),
        Ok(small) => out.put_slice(&[0x52, small]),
        Err(_) => {
            out.put_u8(0x70);
            out.put_u32(value);
        }
    }
}

pub(super) fn int(out: &mut BytesMut, value: i32) {
    match i8::try_from(value) {
        Ok(small) => out.put_slice(&[0x54, small as u8]),
        Err(_) => {
            out.put_u8(0x71);
            out.put_i32(value);
        }
    }
}

pub(super) fn long(out: &mut BytesMut, value: i64) {
    match i8::try_from(value) {
        Ok(small) => out.put_slice(&[0x55, small as u8]),
        Err(_) => {
            out.put_u8(0x81);
            out.put_i64(value);
        }
    }
}

pub(super) fn timestamp(out: &mut BytesMut, ms: i64) {
    out.put_u8(0x83);
    out.put_i64(ms);
}

/// A value of a fixed width.
pub(super) fn fixed(out: &mut BytesMut, code: u8, bytes: &[u8]) {
    out.put_u8(code);
    out.put_slice(bytes);
}

/// A value behind its size: [`BINARY`], [`TEXT`] or [`SYMBOL`].
pub(super) fn sized(out: &mut BytesMut, code: u8, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.put_slice(&[code, len]),
        Err(_) => {
            out.put_u8(code | 0x10);
            out.put_u32(bytes.len() as u32);
        }
    }
    out.put_slice(bytes);
}

/// A section's descriptor.
pub(super) fn section(out: &mut BytesMut, code: u8) {
    out.put_slice(&[0, 0x53, code]);
}

/// Begins a [`LIST`] or a [`MAP`]; returns where.
pub(super) fn begin(out: &mut BytesMut, code: u8) -> usize {
    let at = out.len();
    out.put_slice(&[code, 0, 0]);
    at
}

/// Ends what began at `at` with so many items (of a map: keys and values).
pub(super) fn end(out: &mut BytesMut, at: usize, count: u32) {
    let len = out.len() - at - SMALL_HEAD;
    if let (Ok(size), Ok(count)) = (u8::try_from(len + 1), u8::try_from(count)) {
        out[at + 1..at + SMALL_HEAD].copy_from_slice(&[size, count]);
        return;
    }
    out.put_bytes(0, LARGE_HEAD - SMALL_HEAD);
    out.copy_within(at + SMALL_HEAD..at + SMALL_HEAD + len, at + LARGE_HEAD);
    out[at] |= 0x10;
    out[at + 1..at + 5].copy_from_slice(&(len as u32 + 4).to_be_bytes());
    out[at + 5..at + LARGE_HEAD].copy_from_slice(&count.to_be_bytes());
}
