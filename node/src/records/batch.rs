//! What a chunk's data section is made of (osiris's format): simple entries, each a record, and sub-entry batches, which a client has packed
//! and perhaps compressed. Clients of streams unpack those themselves; for AMQP readers it is done here.

use super::value::Malformed;
use std::io::Read;

/// Most bytes of a batch unpacked. Also what clients of streams can send at most, many times over.
pub const INFLATED_BYTES: u32 = 64 << 20;

/// An entry of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A record.
    Record(&'a [u8]),
    /// Several.
    Batch(Batch<'a>),
}

/// A sub-entry batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// How `data` is packed; `None`: nobody knows.
    pub compression: Option<Compression>,
    /// Records in it: each has an offset, whether it can be unpacked or not.
    pub records: u16,
    /// Bytes unpacked, as the client says.
    pub inflated: u32,
    /// As it came.
    pub data: &'a [u8],
}

/// How a batch is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// The entries of a data section, or the records of an unpacked batch. Ends at what is not an entry.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// From a position on.
    pub fn at(bytes: &'a [u8], position: usize) -> Entries<'a> {
        Entries { bytes, rest: bytes.get(position..).unwrap_or_default() }
    }

    /// Of the next entry.
    pub fn position(&self) -> usize {
        self.bytes.len() - self.rest.len()
    }

    fn read(&mut self) -> Option<Entry<'a>> {
        let first = *self.rest.first()?;
        if first & 0x80 == 0 {
            let (len, rest) = self.rest.split_first_chunk::<4>()?;
            let (record, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            self.rest = rest;
            return Some(Entry::Record(record));
        }
        let ([_, r0, r1, i0, i1, i2, i3, l0, l1, l2, l3], rest) = self.rest.split_first_chunk::<11>()?;
        let (data, rest) = rest.split_at_checked(u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize)?;
        self.rest = rest;
        let compression = Compression::of(first >> 4 & 0b111);
        let inflated = u32::from_be_bytes([*i0, *i1, *i2, *i3]);
        Some(Entry::Batch(Batch { compression, records: u16::from_be_bytes([*r0, *r1]), inflated, data }))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.read().ok_or(Malformed("an entry of a chunk"));
        if read.is_err() {
            self.rest = &[];
        }
        Some(read)
    }
}

impl Compression {
    fn of(code: u8) -> Option<Compression> {
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd].get(usize::from(code)).copied()
    }
}

/// A batch that cannot be unpacked: its client's fault, and only its records are lost to AMQP readers.
#[derive(Debug, thiserror::Error)]
pub enum BadBatch {
    /// Nobody knows how.
    #[error("an unknown compression")]
    Unknown,
    /// It says that it is larger than any may be.
    #[error("{0} bytes unpacked, at most {INFLATED_BYTES} are allowed")]
    TooLarge(u32),
    /// It is not as large as it says.
    #[error("other bytes unpacked than it says ({said})")]
    Length {
        /// Bytes.
        said: u32,
    },
    /// It is not what it says.
    #[error("cannot be unpacked: {0}")]
    Garbled(String),
}

/// The records of a batch as entries. Costs memory and time with what it says to be, up to [`INFLATED_BYTES`].
pub fn inflate(batch: &Batch<'_>) -> Result<Vec<u8>, BadBatch> {
    let (said, data) = (batch.inflated, batch.data);
    let compression = batch.compression.ok_or(BadBatch::Unknown)?;
    if said > INFLATED_BYTES {
        return Err(BadBatch::TooLarge(said));
    }
    match compression {
        Compression::None if data.len() == said as usize => Ok(data.to_vec()),
        Compression::None => Err(BadBatch::Length { said }),
        Compression::Gzip => read_all(flate2::read::MultiGzDecoder::new(data), said),
        Compression::Snappy => read_all(snap::read::FrameDecoder::new(data), said),
        Compression::Lz4 => read_all(lz4_flex::frame::FrameDecoder::new(data), said),
        Compression::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(data).map_err(|error| BadBatch::Garbled(error.to_string()))?;
            read_all(decoder, said)
        }
    }
}

/// Reads exactly what was said: a byte more or less is a lie.
fn read_all(decoder: impl Read, said: u32) -> Result<Vec<u8>, BadBatch> {
    let mut out = Vec::new();
    decoder.take(u64::from(said) + 1).read_to_end(&mut out).map_err(|error| BadBatch::Garbled(error.to_string()))?;
    if out.len() == said as usize { Ok(out) } else { Err(BadBatch::Length { said }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const CODES: [u8; 5] = [0, 1, 2, 3, 4];

    fn pack(code: u8, plain: &[u8]) -> Vec<u8> {
        match code {
            0 => plain.to_vec(),
            1 => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            2 => {
                let mut encoder = snap::write::FrameEncoder::new(Vec::new());
                encoder.write_all(plain).unwrap();
                encoder.into_inner().unwrap()
            }
            3 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            _ => ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest),
        }
    }

    fn entry(code: u8, records: u16, said: u32, data: &[u8]) -> Vec<u8> {
        let head = [&[0x80 | code << 4][..], &records.to_be_bytes(), &said.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
        [&head, data].concat()
    }

    fn record(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }

    fn only_batch(bytes: &[u8]) -> Batch<'_> {
        match Entries::at(bytes, 0).next() {
            Some(Ok(Entry::Batch(batch))) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_data_section_is_walked_from_any_entry_on() {
        let data = [record(b"one"), entry(1, 7, 9, b"zzz"), record(b"")].concat();
        let mut entries = Entries::at(&data, 0);
        assert_eq!(entries.next(), Some(Ok(Entry::Record(b"one"))));
        let second = entries.position();
        let batch = Batch { compression: Some(Compression::Gzip), records: 7, inflated: 9, data: b"zzz" };
        assert_eq!(entries.next(), Some(Ok(Entry::Batch(batch))));
        assert_eq!(entries.next(), Some(Ok(Entry::Record(b""))));
        assert_eq!(entries.next(), None);
        assert_eq!(Entries::at(&data, second).next(), Some(Ok(Entry::Batch(batch))));
        assert!(matches!(Entries::at(&data, data.len() - 3).next(), Some(Err(_))));
    }

    #[test]
    fn every_compression_of_the_stream_clients_is_unpacked() {
        let plain = [record(&[7; 3000]), record(b"two")].concat();
        for code in CODES {
            let bytes = entry(code, 2, plain.len() as u32, &pack(code, &plain));
            assert_eq!(inflate(&only_batch(&bytes)).expect("as it says"), plain, "{code}");
        }
    }

    /// A bomb says little and unpacks to much, or says much.
    #[test]
    fn a_batch_that_lies_about_its_length_is_refused() {
        let plain = vec![0; 1 << 20];
        for code in CODES {
            let packed = pack(code, &plain);
            for said in [0, 100, plain.len() as u32 - 1, plain.len() as u32 + 1] {
                let bytes = entry(code, 1, said, &packed);
                assert!(matches!(inflate(&only_batch(&bytes)), Err(BadBatch::Length { .. })), "{code} {said}");
            }
            let bytes = entry(code, 1, INFLATED_BYTES + 1, &packed);
            assert!(matches!(inflate(&only_batch(&bytes)), Err(BadBatch::TooLarge(_))), "{code}");
        }
        assert!(matches!(inflate(&only_batch(&entry(5, 1, 3, b"abc"))), Err(BadBatch::Unknown)));
    }

    proptest! {
        #[test]
        fn garbled_batches_and_chunks_are_survived(
            code in 0u8..8,
            said in 0u32..5000,
            data in prop::collection::vec(any::<u8>(), 0..200),
            flip in any::<prop::sample::Index>(),
        ) {
            let _ = inflate(&only_batch(&entry(code, 3, said, &data)));
            let mut packed = pack(code.min(4), &data);
            packed.push(0);
            let at = flip.index(packed.len());
            packed[at] ^= 0x55;
            let _ = inflate(&only_batch(&entry(code.min(4), 3, data.len() as u32, &packed)));
            Entries::at(&data, 0).count();
        }
    }
}
