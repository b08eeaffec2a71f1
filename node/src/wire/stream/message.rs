//! The messages of a Publish frame, walked without copying: a publishing id, in version 2 a filter value, and an entry whose bytes are
//! those that a chunk will hold ("Publish"; osiris_log.erl, "SimpleEntry" and "SubBatchEntry").

use super::primitive::{Malformed, Reader};

/// Bytes in front of a sub-entry batch: kind and compression, records, uncompressed size, size.
pub const BATCH_HEAD: usize = 11;
/// The bit of an entry's first byte that says that it is a sub-entry batch.
const BATCH: u8 = 0x80;

/// The messages of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Messages<'a> {
    version: u16,
    bytes: &'a [u8],
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its number, as the publisher counts.
    pub publishing_id: u64,
    /// Filter value (version 2).
    pub filter: Option<&'a [u8]>,
    /// What it is.
    pub entry: Entry,
    /// The entry with its head: what goes into a chunk.
    pub bytes: &'a [u8],
}

/// The kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// One message.
    Simple,
    /// Several, compressed or not.
    Batch {
        /// 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd; others are reserved.
        compression: u8,
        /// How many messages.
        records: u16,
        /// Their bytes when decompressed, each with its length in front.
        uncompressed_bytes: u32,
        /// Their bytes as they stand here.
        stored_bytes: u32,
    },
}

impl<'a> Messages<'a> {
    /// `bytes`: everything behind the count. The count itself is not needed, and not believed.
    pub fn new(version: u16, bytes: &'a [u8]) -> Messages<'a> {
        Messages { version, bytes }
    }

    /// The version of the frame.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The messages as they stand in the frame.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    /// After an error nothing comes.
    fn next(&mut self) -> Option<Result<Message<'a>, Malformed>> {
        if self.bytes.is_empty() {
            return None;
        }
        let mut reader = Reader::new(std::mem::take(&mut self.bytes));
        let message = message(&mut reader, self.version >= 2);
        if message.is_ok() {
            self.bytes = reader.rest();
        }
        Some(message)
    }
}

fn message<'a>(reader: &mut Reader<'a>, has_filter: bool) -> Result<Message<'a>, Malformed> {
    let publishing_id = reader.u64("publishing id")?;
    let filter = if has_filter { reader.optional("filter value")? } else { None };
    let all = *reader;
    let first = reader.u8("entry")?;
    let (entry, len) = if first & BATCH == 0 {
        let rest = reader.take(3, "entry")?;
        (Entry::Simple, 4 + u32::from_be_bytes([first, rest[0], rest[1], rest[2]]) as usize)
    } else {
        let records = reader.u16("sub-entry batch")?;
        let uncompressed_bytes = reader.u32("sub-entry batch")?;
        let stored_bytes = reader.u32("sub-entry batch")?;
        let entry = Entry::Batch { compression: first >> 4 & 7, records, uncompressed_bytes, stored_bytes };
        (entry, BATCH_HEAD + stored_bytes as usize)
    };
    *reader = all;
    let bytes = reader.take(len, "entry")?;
    Ok(Message { publishing_id, filter, entry, bytes })
}

impl Entry {
    /// Messages in it: offsets that it takes.
    pub fn records(self) -> u16 {
        match self {
            Entry::Simple => 1,
            Entry::Batch { records, .. } => records,
        }
    }
}
