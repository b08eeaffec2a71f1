//! A client's socket with what comes in and when something was heard or said: reads into a buffer that grows while it is busy, writes a
//! rope as far as the socket takes it, gives memory back when idle. What the bytes mean is the protocol's.

use super::socket::Socket;
use crate::model::limits;
use crate::wire::rope::{Front, Rope};
use bytes::BytesMut;
use std::io::{self, ErrorKind, IoSlice};
use tokio::time::Instant;

/// Parts of one vectored write.
const SLICES: usize = 64;
/// First size of a read buffer; it doubles while reads fill it.
const READ_BYTES: usize = 4 << 10;

/// A client's end of the wire.
#[derive(Debug)]
pub(super) struct Line {
    pub socket: Socket,
    /// Read and not used yet.
    pub input: BytesMut,
    read_bytes: usize,
    /// When something came last.
    pub heard: Instant,
    /// When something went last.
    pub spoke: Instant,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl Line {
    pub fn new(socket: Socket) -> Line {
        let now = Instant::now();
        Line { socket, input: BytesMut::new(), read_bytes: READ_BYTES, heard: now, spoke: now, received_bytes: 0, sent_bytes: 0 }
    }

    /// Appends what there is to the input; 0 is the end.
    pub fn read(&mut self) -> io::Result<usize> {
        let spare = self.input.capacity() - self.input.len();
        if spare < self.read_bytes / 2 {
            self.input.reserve(self.read_bytes);
        }
        let room = self.input.capacity() - self.input.len();
        let count = self.socket.try_read_buf(&mut self.input)?;
        self.heard = Instant::now();
        self.received_bytes += count as u64;
        if count == room {
            self.read_bytes = (2 * self.read_bytes).min(limits::READ_BUFFER_BYTES);
        }
        Ok(count)
    }

    /// Writes as much as the socket takes now.
    pub fn write(&mut self, rope: &mut Rope) -> io::Result<()> {
        while !rope.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let written = match rope.front(&mut slices) {
                Front::Memory { slices: filled, more } => self.socket.try_write_vectored(&slices[..filled], more),
                Front::File(bytes) => self.socket.try_send_file(bytes),
            };
            match written {
                Ok(count) => {
                    self.spoke = Instant::now();
                    self.sent_bytes += count as u64;
                    rope.advance(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.socket.flush()
    }

    /// The socket has all there is.
    pub fn is_written(&self, rope: &Rope) -> bool {
        rope.is_empty() && !self.socket.has_pending()
    }

    /// Gives memory back that an idle connection does not need.
    pub fn slim(&mut self) {
        self.socket.slim();
        if self.input.is_empty() {
            self.input = BytesMut::new();
            self.read_bytes = READ_BYTES;
        }
    }
}
