//! Frames out of a socket, without a copy: one buffer, one read for as many frames as have come.

use super::error::ClientError;
use std::io::{self, Read};
use std::ops::Range;

const READ_BYTES: usize = 256 * 1024;
const HEAD: usize = 7;

/// A frame in the buffer; its payload is `buffer.bytes(&frame.payload)` until the next call of `next`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type octet.
    pub kind: u8,
    /// Channel.
    pub channel: u16,
    /// Where the payload is.
    pub payload: Range<usize>,
}

/// Bytes read and not yet taken.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for FrameBuffer {
    fn default() -> FrameBuffer {
        FrameBuffer { bytes: vec![0; READ_BYTES], start: 0, end: 0 }
    }
}

impl FrameBuffer {
    /// Payload of a frame.
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// The next whole frame that has already been read.
    pub fn buffered(&mut self) -> Result<Option<Frame>, ClientError> {
        let have = &self.bytes[self.start..self.end];
        if have.len() < HEAD {
            return Ok(None);
        }
        if have.starts_with(b"AMQP") {
            return Err(ClientError::Protocol(format!("the broker refused the protocol and offers {:?}", &have[4..have.len().min(8)])));
        }
        let size = u32::from_be_bytes([have[3], have[4], have[5], have[6]]) as usize;
        if have.len() < HEAD + size + 1 {
            self.make_room(HEAD + size + 1);
            return Ok(None);
        }
        if have[HEAD + size] != super::encode::FRAME_END {
            return Err(ClientError::Protocol(format!("a frame of type {} and {size} bytes has no end octet", have[0])));
        }
        let at = self.start + HEAD;
        let frame = Frame { kind: have[0], channel: u16::from_be_bytes([have[1], have[2]]), payload: at..at + size };
        self.start = at + size + 1;
        Ok(Some(frame))
    }

    /// The next frame, reading when there is none.
    pub fn next(&mut self, socket: &mut impl Read) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.read_some(socket)?;
        }
    }

    /// One read.
    pub fn read_some(&mut self, socket: &mut impl Read) -> Result<(), ClientError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < READ_BYTES / 4 {
            self.make_room(self.end - self.start + READ_BYTES / 4);
        }
        match socket.read(&mut self.bytes[self.end..]).map_err(ClientError::from_io)? {
            0 => Err(ClientError::Socket(io::ErrorKind::UnexpectedEof.into())),
            n => {
                self.end += n;
                Ok(())
            }
        }
    }

    /// Room for `need` bytes from `start` on, by moving what is there to the front or by growing.
    fn make_room(&mut self, need: usize) {
        if self.start + need > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if need > self.bytes.len() {
            self.bytes.resize(need, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use super::*;

    /// Gives the bytes in pieces of the given size.
    struct Trickle<'a>(&'a [u8], usize);
    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(out.len());
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_arrive() {
        let sizes = [0, 1, 7, 300, 131_064, 2, 900_000, 131_064, 5];
        let mut bytes = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            encode::frame(&mut bytes, 3, at as u16, &vec![at as u8; *size]);
        }
        for piece in [1, 13, 4096, 1 << 20] {
            let (mut buffer, mut source) = (FrameBuffer::default(), Trickle(&bytes, piece));
            for (at, size) in sizes.iter().enumerate() {
                let frame = buffer.next(&mut source).unwrap();
                assert_eq!((frame.channel, frame.payload.len()), (at as u16, *size), "pieces of {piece}");
                assert!(buffer.bytes(&frame.payload).iter().all(|b| *b == at as u8));
            }
            assert!(matches!(buffer.next(&mut source), Err(ClientError::Socket(_))));
        }
    }

    #[test]
    fn a_frame_without_end_octet_is_an_error() {
        let mut bytes = Vec::new();
        encode::frame(&mut bytes, 1, 1, b"abcdefg");
        *bytes.last_mut().unwrap() = 0;
        assert!(matches!(FrameBuffer::default().next(&mut Trickle(&bytes, 99)), Err(ClientError::Protocol(_))));
    }
}
