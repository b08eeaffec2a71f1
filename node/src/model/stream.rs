//! Streams: queues that keep what was read. What a stream is set to, where a reader begins, a chunk as it is served, what a publisher
//! hands over, filters of chunks. Protocols and `edge` use all of it, `machine` the settings.
//!
//! A chunk's data section and its 48 bytes of header are osiris's (see `osiris_log.erl`): what a client may be sent as it lies in the log.

use super::stored::FileBytes;
use super::{Offset, QueueId, ShardId};
use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Size of a segment where nothing else is asked for (osiris's default), bytes.
pub const SEGMENT_BYTES: u64 = 500_000_000;
/// Chunks of a segment at most (osiris's limit).
pub const SEGMENT_CHUNKS: u32 = 256_000;
/// Smallest and default size of a chunk's filter, bytes.
pub const FILTER_BYTES_MIN: u8 = 16;
/// Length of a chunk's header.
pub const CHUNK_HEAD: usize = 48;
/// A stream's epoch as clients see it. Readers never need it: the log under a stream is one, whoever leads.
const EPOCH: u64 = 1;

/// A stream's settings as its shard knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamSettings {
    /// Whole segments go from the front while the stream is larger, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length_bytes: Option<u64>,
    /// Segments go whose last chunk is older, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// A segment that has reached this size is closed, bytes.
    pub segment_bytes: u64,
    /// Size of a chunk's filter, bytes.
    pub filter_bytes: u8,
}

impl Default for StreamSettings {
    fn default() -> StreamSettings {
        StreamSettings { max_length_bytes: None, max_age_ms: None, segment_bytes: SEGMENT_BYTES, filter_bytes: FILTER_BYTES_MIN }
    }
}

/// `x-max-age`: a number and one of `Y M D h m s`, in ms. `None`: it is not one.
pub fn parse_max_age(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds: u64 = match unit {
        "Y" => 365 * 24 * 3600,
        "M" => 30 * 24 * 3600,
        "D" => 24 * 3600,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(seconds)?.checked_mul(1000)
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The oldest chunk.
    First,
    /// The newest chunk.
    Last,
    /// What comes from now on.
    Next,
    /// The chunk that holds this offset; the first one when it is gone, what comes next when it is not there yet.
    Offset(Offset),
    /// The first chunk that is not older, ms since the epoch.
    Timestamp(u64),
}

/// A stream as the catalog knows it: what a publisher or a reader needs to name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamTarget {
    /// Its identity.
    pub stream: QueueId,
    /// Where it lives.
    pub shard: ShardId,
    /// Publishers that name themselves are remembered: what they publish again under a known id is confirmed and not stored.
    pub publisher: Option<Arc<str>>,
    /// The catalog index that it was found at.
    pub catalog_index: u64,
    /// Size of a chunk's filter, bytes.
    pub filter_bytes: u8,
    /// The node that led its shard then, for a publisher that is to hear of another.
    pub leader: Option<super::NodeId>,
}

/// Where a stream is and how it is set, for whoever asks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Without a publisher.
    pub target: StreamTarget,
    /// The node that leads its shard, as this node knows it.
    pub leader: Option<super::NodeId>,
    /// The nodes with a replica, ascending.
    pub replicas: Vec<super::NodeId>,
    /// Arguments and policies together.
    pub settings: StreamSettings,
}

/// How far a stream is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// Offset of the first record that is there, or of the next one when none is.
    pub first: Offset,
    /// Offset that the next record gets.
    pub next: Offset,
    /// First offset of the newest chunk, if there is a chunk.
    pub last_chunk: Option<Offset>,
    /// When the oldest chunk came, ms since the epoch.
    pub first_time_ms: u64,
    /// Bytes as they are served.
    pub bytes: u64,
    /// The last publishing id of the publisher that was asked for.
    pub publishing_id: Option<u64>,
    /// What the reader that was asked for has stored.
    pub stored: Option<Offset>,
}

/// All that a stream remembers of its clients, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamMemory {
    /// Readers, and the offset that each stored.
    pub readers: Vec<(String, Offset)>,
    /// Publishers with the first offset of their last chunk and the last publishing id.
    pub publishers: Vec<(String, Offset, u64)>,
}

/// A chunk on its way to a reader. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamChunk {
    /// Offset of its first record.
    pub first: Offset,
    /// Entries of its data section: messages, and sub-entry batches of several.
    pub entries: u16,
    /// Records: what takes an offset each.
    pub records: u32,
    /// When it was written, ms since the epoch.
    pub time_ms: u64,
    /// CRC32 (IEEE) of `data`.
    pub crc: u32,
    /// What it may hold; empty: nobody named a filter value.
    pub filter: Bytes,
    /// The data section.
    pub data: Bytes,
    /// The same in a file that it can be sent from.
    pub file: Option<FileBytes>,
}

impl StreamChunk {
    /// The header that belongs before `data` (osiris: big endian, magic 5, version 0, user chunk, no trailer, no filter).
    pub fn header(&self) -> [u8; CHUNK_HEAD] {
        let mut head = [0; CHUNK_HEAD];
        head[0] = 0x50;
        head[2..4].copy_from_slice(&self.entries.to_be_bytes());
        head[4..8].copy_from_slice(&self.records.to_be_bytes());
        head[8..16].copy_from_slice(&self.time_ms.to_be_bytes());
        head[16..24].copy_from_slice(&EPOCH.to_be_bytes());
        head[24..32].copy_from_slice(&self.first.0.to_be_bytes());
        head[32..36].copy_from_slice(&self.crc.to_be_bytes());
        head[36..40].copy_from_slice(&(self.data.len() as u32).to_be_bytes());
        head
    }

    /// Offset behind its last record.
    pub fn next(&self) -> Offset {
        Offset(self.first.0 + u64::from(self.records))
    }

    /// Its entries, each as it lies, with the number of its records.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let mut rest = &self.data[..];
        std::iter::from_fn(move || {
            let (len, records) = entry_size(rest)?;
            let (entry, after) = rest.split_at_checked(len)?;
            rest = after;
            Some((entry, records))
        })
    }
}

/// Length of the first entry of a data section and the number of its records; `None`: it is cut short or holds no record.
///
/// entry := 0 (1 bit) length (31 bits) bytes | 1 (1 bit) compression (3 bits) 0 (4 bits) records u16 uncompressed u32 length u32 bytes
pub fn entry_size(data: &[u8]) -> Option<(usize, u32)> {
    let number = |at: usize| Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let (len, records) = match data.first()? & 0x80 {
        0 => (4 + number(0)? as usize, 1),
        _ => (11 + number(7)? as usize, u32::from(u16::from_be_bytes([*data.get(1)?, *data.get(2)?]))),
    };
    (records > 0 && len <= data.len()).then_some((len, records))
}

/// What a publisher hands over in one piece: (publishing id u64, filter value?, entry)*, big endian, as in a Publish frame of the stream
/// protocol; a filter value is its length u16 (0xffff: none) and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The bytes.
    pub bytes: Bytes,
    /// Each message names a filter value, or none.
    pub is_filtered: bool,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedEntry<'a> {
    /// Its publishing id.
    pub id: u64,
    /// Its filter value.
    pub filter: Option<&'a [u8]>,
    /// Offsets that it takes.
    pub records: u32,
    /// As it goes into a data section.
    pub entry: &'a [u8],
}

impl Published {
    /// The first one and how many bytes it takes here; `None`: there is none, or it is cut short.
    pub fn first(&self) -> Option<(PublishedEntry<'_>, usize)> {
        let (id, mut at) = (u64::from_be_bytes(*self.bytes.first_chunk()?), 8);
        let mut filter = None;
        if self.is_filtered {
            let len = u16::from_be_bytes(self.bytes.get(8..10)?.try_into().ok()?);
            at = 10;
            if len != u16::MAX {
                filter = Some(self.bytes.get(10..10 + usize::from(len))?);
                at += usize::from(len);
            }
        }
        let rest = self.bytes.get(at..)?;
        let (len, records) = entry_size(rest)?;
        Some((PublishedEntry { id, filter, records, entry: &rest[..len] }, at + len))
    }

    /// Takes the first `bytes` off, as `first` counted them.
    pub fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
    }

    /// How many there are; `None`: the last one is cut short, or one holds no record.
    pub fn count(&self) -> Option<usize> {
        let (mut rest, mut count) = (self.clone(), 0);
        while !rest.bytes.is_empty() {
            let len = rest.first()?.1;
            rest.advance(len);
            count += 1;
        }
        Some(count)
    }
}

/// Messages for a stream. Each is confirmed with its publishing id (`Event::Confirmed`, `Event::Nacked`).
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// What events name: a number of the client's publisher.
    pub channel: u16,
    /// Where to, and as whom.
    pub to: Arc<StreamTarget>,
    /// What.
    pub published: Published,
}

/// The filter of a chunk that is being filled: says which filter values it may hold. Bit 0: messages without one.
#[derive(Clone, Debug)]
pub struct Filter {
    bits: Vec<u8>,
    any: bool,
}

impl Filter {
    /// One of `bytes` bytes without values.
    pub fn new(bytes: u8) -> Filter {
        Filter { bits: vec![0; usize::from(bytes.max(FILTER_BYTES_MIN))], any: false }
    }

    /// A message with this value, or without one; an empty one is none, as in osiris.
    pub fn insert(&mut self, value: Option<&[u8]>) {
        let value = value.filter(|value| !value.is_empty());
        self.any |= value.is_some();
        let bits = positions(value, self.bits.len());
        bits.iter().for_each(|bit| self.bits[bit / 8] |= 1 << (bit % 8));
    }

    /// Its bytes; none when no message named a value.
    pub fn bytes(&self) -> &[u8] {
        if self.any { &self.bits } else { &[] }
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.bits.fill(0);
        self.any = false;
    }
}

/// Whether a chunk with this filter may hold a message that a reader wants: one with one of `values`, or, with `unfiltered` or an empty one
/// among them, one without.
pub fn may_hold(filter: &[u8], values: &[impl AsRef<[u8]>], unfiltered: bool) -> bool {
    let unfiltered = unfiltered || values.iter().any(|value| value.as_ref().is_empty());
    if filter.is_empty() {
        return unfiltered;
    }
    let holds = |value: Option<&[u8]>| positions(value, filter.len()).iter().all(|bit| filter[bit / 8] & (1 << (bit % 8)) != 0);
    (unfiltered && holds(None)) || values.iter().map(AsRef::as_ref).any(|value| !value.is_empty() && holds(Some(value)))
}

/// The two bits of a value in a filter of `bytes` bytes.
fn positions(value: Option<&[u8]>, bytes: usize) -> [usize; 2] {
    let Some(value) = value else { return [0, 0] };
    // FNV-1a, its bits mixed once more: the halves serve as two hashes.
    let mut hash = value.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = 8 * bytes as u64 - 1;
    [1 + ((hash >> 32) % bits) as usize, 1 + ((hash & 0xffff_ffff) % bits) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_a_number_and_a_unit() {
        let day = 24 * 3600 * 1000;
        let cases = [("7D", 7 * day), ("12h", day / 2), ("1Y", 365 * day), ("2M", 60 * day), ("30s", 30_000), ("5m", 300_000)];
        cases.iter().for_each(|(text, ms)| assert_eq!(parse_max_age(text), Some(*ms), "{text}"));
        ["", "D", "7", "7d", "-1D", "+1D", "1 D", "99999999999999999999Y", "18446744073709551615s", "7é"].iter().for_each(|text| {
            assert_eq!(parse_max_age(text), None, "{text}");
        });
    }

    #[test]
    fn a_header_is_osiris_s() {
        let data = Bytes::from_static(b"\0\0\0\x02hi\0\0\0\x01!");
        let chunk =
            StreamChunk { first: Offset(7), entries: 2, records: 2, time_ms: 9, crc: 0x01020304, filter: Bytes::new(), data, file: None };
        let mut expected = vec![0x50, 0, 0, 2, 0, 0, 0, 2];
        for number in [9u64, 1, 7] {
            expected.extend(number.to_be_bytes());
        }
        expected.extend([1, 2, 3, 4, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(chunk.header()[..], expected);
        assert_eq!(chunk.next(), Offset(9));
        assert_eq!(chunk.entries().collect::<Vec<_>>(), [(&b"\0\0\0\x02hi"[..], 1), (&b"\0\0\0\x01!"[..], 1)]);
    }

    #[test]
    fn published_entries_are_read_with_and_without_filter_values_and_cut_ones_are_told() {
        let mut plain = Vec::new();
        plain.extend(5u64.to_be_bytes());
        plain.extend(b"\0\0\0\x02hi");
        plain.extend(6u64.to_be_bytes());
        plain.extend(b"\x90\0\x03\0\0\0\x09\0\0\0\x04zip!");
        let mut all = Published { bytes: plain.clone().into(), is_filtered: false };
        assert_eq!(all.count(), Some(2));
        let (first, len) = all.first().unwrap();
        assert_eq!((first.id, first.records, first.entry, len), (5, 1, &b"\0\0\0\x02hi"[..], 14));
        all.advance(len);
        let (second, len) = all.first().unwrap();
        assert_eq!((second.id, second.records, len), (6, 3, 23));
        let filtered = Bytes::from_static(b"\0\0\0\0\0\0\0\x01\0\x02ab\0\0\0\0\0\0\0\0\0\0\0\x02\xff\xff\0\0\0\0");
        let mut filtered = Published { bytes: filtered, is_filtered: true };
        assert_eq!(filtered.count(), Some(2));
        assert_eq!(filtered.first().unwrap().0.filter, Some(&b"ab"[..]));
        filtered.advance(16);
        assert_eq!((filtered.first().unwrap().0.id, filtered.first().unwrap().0.filter), (2, None));
        for len in 1..plain.len() {
            let cut = Published { bytes: plain[..len].to_vec().into(), is_filtered: false };
            assert_eq!(cut.count(), (len == 14).then_some(1), "{len}");
        }
        let none = Published { bytes: Bytes::from_static(b"\0\0\0\0\0\0\0\x01\x80\0\0\0\0\0\0\0\0\0\0"), is_filtered: false };
        assert_eq!(none.count(), None, "a batch without records");
    }

    #[test]
    fn a_filter_knows_its_values_and_what_has_none() {
        let mut filter = Filter::new(16);
        filter.insert(None);
        assert!(filter.bytes().is_empty(), "nobody named a value");
        assert!(may_hold(filter.bytes(), &[b"a"], true) && !may_hold(filter.bytes(), &[b"a"], false));
        filter.insert(Some(b""));
        assert!(filter.bytes().is_empty(), "nor is an empty one a value");
        assert!(may_hold(filter.bytes(), &[""], false));
        filter.insert(Some(b"europe"));
        let only = |values: &[&str], unfiltered| may_hold(filter.bytes(), values, unfiltered);
        assert!(only(&["europe"], false) && only(&["asia", "europe"], false) && only(&["asia"], true) && only(&[""], false));
        let strangers = (0..1000).filter(|n| only(&[&format!("value {n}")], false)).count();
        assert!(strangers < 10, "{strangers} of 1000 look like a value");
        filter.clear();
        filter.insert(Some(b"europe"));
        assert!(!may_hold(filter.bytes(), &[b"asia"], true), "all have a value");
    }
}
