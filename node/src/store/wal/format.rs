//! The bytes of a WAL file: header, batches, records. Used by the writer, recovery and reads; picture in docs/formats.md. Little
//! endian. Each lap of a file has its own random salt, so that nothing of an older lap, or inside a message, passes for a batch.

use crate::model::entry::EntryBytes;
use crate::model::{LeaderId, LogId, ShardId};
use std::io::IoSlice;

/// Alignment of batches: what a disk writes atomically, bytes.
pub(super) const SECTOR: u64 = 512;
/// Format version of files written here.
pub(super) const VERSION: u32 = 1;
/// Bytes of a batch before its records.
pub(super) const BATCH_HEAD: usize = 64;
/// Bytes of a record before its payload.
pub(super) const RECORD_HEAD: usize = 40;
const FILE_MAGIC: &[u8; 8] = b"WARRENWL";
const BATCH_MAGIC: u32 = 0x5441_4257; // "WBAT"

/// Which lap of which file: part of every check sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lap {
    /// The file's number and name; grows with every use of a file.
    pub seq: u32,
    /// Random per use.
    pub salt: u64,
}

impl Lap {
    fn seed(self) -> u32 {
        crc32c::crc32c_append(self.seq, &self.salt.to_le_bytes())
    }
}

/// First sector of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub lap: Lap,
    /// Number of its META batch, which follows at once.
    pub first_batch: u64,
}

/// What the first sector says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderRead {
    Valid(FileHeader),
    Newer(u32),
    Invalid,
}

impl FileHeader {
    pub fn encode(&self) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        bytes[..8].copy_from_slice(FILE_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.lap.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.lap.salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_batch.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> HeaderRead {
        if bytes.len() < 36 || &bytes[..8] != FILE_MAGIC || crc32c::crc32c(&bytes[..32]) != u32_at(bytes, 32) {
            return HeaderRead::Invalid;
        }
        if u32_at(bytes, 8) != VERSION {
            return HeaderRead::Newer(u32_at(bytes, 8));
        }
        let lap = Lap { seq: u32_at(bytes, 12), salt: u64_at(bytes, 16) };
        HeaderRead::Valid(FileHeader { lap, first_batch: u64_at(bytes, 24) })
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Blank = 1,
    Normal = 2,
    Membership = 3,
    Vote = 4,
    Truncate = 5,
    Purge = 6,
    Committed = 7,
    Identity = 8,
    Meta = 9,
    Close = 10,
    /// An entry's bytes that came by snapshot: not part of the log.
    Staged = 11,
    /// A snapshot is about to be installed; payload: membership.
    Prepare = 12,
    /// It is installed. Flag: the log goes on behind it.
    Install = 13,
    /// Records of this group were lost: it must be rebuilt. Flag: votes up to the id's term may be among them.
    Damaged = 14,
    /// It is rebuilt.
    Mended = 15,
    /// A damaged place that has been dealt with; payload: where.
    Hole = 16,
    /// What is left of a purged entry, which was elsewhere before.
    Relocated = 17,
    /// The newest life of another node's disk that was met; the id's term is its number, the id's voter the node.
    Life = 18,
}

impl Kind {
    const ALL: [Kind; 18] = [
        Kind::Blank,
        Kind::Normal,
        Kind::Membership,
        Kind::Vote,
        Kind::Truncate,
        Kind::Purge,
        Kind::Committed,
        Kind::Identity,
        Kind::Meta,
        Kind::Close,
        Kind::Staged,
        Kind::Prepare,
        Kind::Install,
        Kind::Damaged,
        Kind::Mended,
        Kind::Hole,
        Kind::Relocated,
        Kind::Life,
    ];

    pub fn from_byte(byte: u8) -> Option<Kind> {
        Self::ALL.into_iter().find(|k| *k as u8 == byte)
    }

    pub fn is_entry(self) -> bool {
        matches!(self, Kind::Blank | Kind::Normal | Kind::Membership)
    }

    /// Has a place in the index or changes what the index holds: kept in sidecars.
    pub fn is_indexed(self) -> bool {
        self.is_entry() || matches!(self, Kind::Truncate | Kind::Purge | Kind::Staged | Kind::Install | Kind::Relocated)
    }
}

/// A record's head without its check sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHead {
    pub kind: Kind,
    /// Truncate: there is an id to keep. Vote: committed. Staged: it is what is left of an entry.
    pub flag: bool,
    pub shard: ShardId,
    /// Payload bytes.
    pub len: u32,
    pub id: LogId,
}

impl RecordHead {
    /// All but the check sum of the record, which covers this.
    fn encode(&self, seed: u32, out: &mut [u8]) {
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8] = self.kind as u8;
        out[9] = u8::from(self.flag);
        out[10..12].copy_from_slice(&self.shard.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.id.leader.term.to_le_bytes());
        out[24..32].copy_from_slice(&self.id.leader.voter.to_le_bytes());
        out[32..40].copy_from_slice(&self.id.index.to_le_bytes());
        let crc = head_crc(seed, out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    /// The head at the start of `bytes` if it is as it was written, whatever became of its payload.
    fn decode_head(bytes: &[u8], lap: Lap) -> Option<RecordHead> {
        let head = bytes.get(..RECORD_HEAD)?;
        if head_crc(lap.seed(), head) != u32_at(head, 12) {
            return None;
        }
        let id = LogId { leader: LeaderId { term: u64_at(head, 16), voter: u64_at(head, 24) }, index: u64_at(head, 32) };
        let shard = ShardId(u16::from_le_bytes([head[10], head[11]]));
        Some(RecordHead { kind: Kind::from_byte(head[8])?, flag: head[9] != 0, shard, len: u32_at(head, 4), id })
    }

    /// The head at the start of `bytes` if it and its payload are as they were written. `None` also when `bytes` ends before.
    pub fn decode(bytes: &[u8], lap: Lap) -> Option<(RecordHead, &[u8], u32)> {
        let head = Self::decode_head(bytes, lap)?;
        let payload = bytes.get(RECORD_HEAD..)?.get(..head.len as usize)?;
        let crc = u32_at(bytes, 0);
        let good = crc32c::crc32c_append(crc32c::crc32c_append(lap.seed(), &bytes[4..RECORD_HEAD]), payload) == crc;
        good.then_some((head, payload, crc))
    }
}

/// Over a head without the two check sums in it.
fn head_crc(seed: u32, head: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &head[4..12]), &head[16..RECORD_HEAD])
}

/// A record of a damaged batch.
pub(super) struct Salvaged<'a> {
    pub head: RecordHead,
    pub position: u32,
    /// `None`: damaged.
    pub payload: Option<&'a [u8]>,
}

/// A batch's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub lap: Lap,
    /// Dense over all files.
    pub number: u64,
    pub records: u32,
    /// Over the check sums of the records, which cover themselves and their payloads.
    pub records_crc: u32,
    /// With this head, without padding.
    pub len: u32,
    /// Its own place.
    pub position: u64,
    /// Highest term of any group's vote up to and with this batch: bounds the votes that a damaged place may have held.
    pub term: u64,
}

impl BatchHeader {
    fn encode(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.lap.salt.to_le_bytes());
        out[16..20].copy_from_slice(&self.lap.seq.to_le_bytes());
        out[20..24].copy_from_slice(&self.len.to_le_bytes());
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..36].copy_from_slice(&self.records.to_le_bytes());
        out[36..40].copy_from_slice(&self.records_crc.to_le_bytes());
        out[40..48].copy_from_slice(&self.position.to_le_bytes());
        out[48..56].copy_from_slice(&self.term.to_le_bytes());
        out[56..BATCH_HEAD].fill(0);
        let crc = crc32c::crc32c(&out[8..BATCH_HEAD]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The head at the start of `bytes`, of whatever lap, if it is intact and was written for `position`.
    pub fn decode(bytes: &[u8], position: u64) -> Option<BatchHeader> {
        let head = bytes.get(..BATCH_HEAD)?;
        if u32_at(head, 0) != BATCH_MAGIC || u64_at(head, 40) != position || crc32c::crc32c(&head[8..]) != u32_at(head, 4) {
            return None;
        }
        let lap = Lap { seq: u32_at(head, 16), salt: u64_at(head, 8) };
        let (records, records_crc) = (u32_at(head, 32), u32_at(head, 36));
        let (number, len, term) = (u64_at(head, 24), u32_at(head, 20), u64_at(head, 48));
        Some(BatchHeader { lap, number, records, records_crc, len, position, term })
    }

    /// Where the next batch begins.
    pub fn end(&self) -> u64 {
        self.position + padded(u64::from(self.len))
    }

    /// All records of the batch in `bytes` (its head first) with their places in the file; `None` when one is not as written.
    pub fn records<'a>(&self, bytes: &'a [u8]) -> Option<Vec<(RecordHead, u32, &'a [u8])>> {
        let bytes = bytes.get(..self.len as usize)?;
        let mut records = Vec::with_capacity(self.records.min(4096) as usize);
        let (mut at, mut chain) = (BATCH_HEAD, self.lap.seed());
        for _ in 0..self.records {
            let (head, payload, crc) = RecordHead::decode(bytes.get(at..)?, self.lap)?;
            records.push((head, (self.position as usize + at) as u32, payload));
            chain = crc32c::crc32c_append(chain, &crc.to_le_bytes());
            at += RECORD_HEAD + payload.len();
        }
        (at == bytes.len() && chain == self.records_crc).then_some(records)
    }

    /// What is left of a damaged batch in `bytes` (its head, intact, first), up to the first head that is not. True: no record is unknown.
    pub fn salvage<'a>(&self, bytes: &'a [u8]) -> (Vec<Salvaged<'a>>, bool) {
        let bytes = &bytes[..bytes.len().min(self.len as usize)];
        let (mut found, mut at) = (Vec::new(), BATCH_HEAD);
        while let Some(head) = bytes.get(at..).and_then(|rest| RecordHead::decode_head(rest, self.lap)) {
            let payload = RecordHead::decode(&bytes[at..], self.lap).map(|(_, payload, _)| payload);
            found.push(Salvaged { head, position: (self.position as usize + at) as u32, payload });
            at += RECORD_HEAD + head.len as usize;
        }
        let complete = at == self.len as usize && found.len() == self.records as usize;
        (found, complete)
    }
}

/// A record to be written.
pub(super) struct Record {
    pub head: RecordHead,
    pub body: EntryBytes,
    /// Epoch of its group when the append was issued.
    pub epoch: u64,
    /// The file that a relocated entry leaves.
    pub from: u32,
    /// Where its head went in the file; set by `encode`.
    pub position: u32,
}

impl Record {
    pub fn new(kind: Kind, shard: ShardId, id: LogId, body: EntryBytes) -> Record {
        let head = RecordHead { kind, flag: false, shard, len: body.len() as u32, id };
        Record { head, body, epoch: 0, from: 0, position: 0 }
    }

    pub fn flagged(mut self, flag: bool) -> Record {
        self.head.flag = flag;
        self
    }

    pub fn size(&self) -> usize {
        RECORD_HEAD + self.body.len()
    }
}

/// Bytes of a batch on disk whose records take `bytes`.
pub(super) fn batch_size(bytes: usize) -> u64 {
    padded((BATCH_HEAD + bytes) as u64)
}

fn padded(len: u64) -> u64 {
    len.next_multiple_of(SECTOR)
}

/// Fill `heads` with the batch's head and all record heads, and say where each record goes.
pub(super) fn encode(lap: Lap, (number, term): (u64, u64), position: u64, records: &mut [Record], heads: &mut Vec<u8>) -> BatchHeader {
    heads.clear();
    heads.resize(BATCH_HEAD + RECORD_HEAD * records.len(), 0);
    let seed = lap.seed();
    let (mut len, mut chain) = (BATCH_HEAD, seed);
    for (i, record) in records.iter_mut().enumerate() {
        let out = &mut heads[BATCH_HEAD + RECORD_HEAD * i..][..RECORD_HEAD];
        record.head.encode(seed, out);
        let crc = record.body.parts().iter().fold(crc32c::crc32c_append(seed, &out[4..]), |crc, p| crc32c::crc32c_append(crc, p));
        out[..4].copy_from_slice(&crc.to_le_bytes());
        chain = crc32c::crc32c_append(chain, &crc.to_le_bytes());
        record.position = (position as usize + len) as u32;
        len += record.size();
    }
    let header = BatchHeader { lap, number, records: records.len() as u32, records_crc: chain, len: len as u32, position, term };
    header.encode(heads);
    header
}

/// The parts of an encoded batch in file order, padded to a sector.
pub(super) fn slices<'a>(header: &BatchHeader, records: &'a [Record], heads: &'a [u8], out: &mut Vec<IoSlice<'a>>) {
    const PADDING: [u8; SECTOR as usize] = [0; SECTOR as usize];
    let mut from = 0;
    for (i, record) in records.iter().enumerate() {
        let end = BATCH_HEAD + RECORD_HEAD * (i + 1);
        if record.body.is_empty() && i + 1 < records.len() {
            continue; // its head goes out together with the next one
        }
        out.push(IoSlice::new(&heads[from..end]));
        out.extend(record.body.parts().iter().map(|p| IoSlice::new(p)));
        from = end;
    }
    let padding = padded(u64::from(header.len)) - u64::from(header.len);
    out.push(IoSlice::new(&PADDING[..padding as usize]));
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn flat(header: &BatchHeader, records: &[Record], heads: &[u8]) -> Vec<u8> {
        let mut parts = Vec::new();
        slices(header, records, heads, &mut parts);
        parts.iter().flat_map(|p| p.to_vec()).collect()
    }

    fn id(index: u64) -> LogId {
        LogId { leader: LeaderId { term: 3, voter: 65537 }, index }
    }

    /// Lap 7, batch 5 at byte 1024: one entry. Checked against an independent implementation of the page in docs/formats.md.
    const GOLDEN: [&str; 6] = [
        "574241549a3f9c070807060504030201",
        "070000006c0000000500000000000000",
        "0100000030431b8e0004000000000000",
        "03000000000000000000000000000000",
        "8f59899404000000020002007761c55303000000",
        "0000000001000100000000000900000000000000626f6479",
    ];

    #[test]
    fn a_batch_has_these_bytes() {
        let lap = Lap { seq: 7, salt: 0x0102_0304_0506_0708 };
        let mut records = [Record::new(Kind::Normal, ShardId(2), id(9), Bytes::from_static(b"body").into())];
        let mut heads = Vec::new();
        let header = encode(lap, (5, 3), 1024, &mut records, &mut heads);
        let bytes = flat(&header, &records, &heads);
        assert_eq!(bytes.len(), 512);
        let hex: String = bytes[..108].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN.concat());
        let file = FileHeader { lap, first_batch: 4 };
        assert_eq!(FileHeader::decode(&file.encode()), HeaderRead::Valid(file));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_back_and_any_flipped_bit_is_seen(
            bodies in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4), 1..6),
            salt: u64, flip: prop::sample::Index,
        ) {
            let lap = Lap { seq: 3, salt };
            let mut records: Vec<Record> = bodies.iter().enumerate().map(|(i, parts)| {
                let mut rope = EntryBytes::default();
                parts.iter().for_each(|p| rope.push(Bytes::from(p.clone())));
                let kind = if rope.is_empty() { Kind::Blank } else { Kind::Normal };
                Record::new(kind, ShardId(i as u16), id(i as u64), rope).flagged(i % 2 == 1)
            }).collect();
            let mut heads = Vec::new();
            let header = encode(lap, (11, salt % 9), 512, &mut records, &mut heads);
            let mut bytes = flat(&header, &records, &heads);
            prop_assert_eq!(bytes.len() as u64 % SECTOR, 0);
            prop_assert_eq!(BatchHeader::decode(&bytes, 512), Some(header));
            prop_assert_eq!(BatchHeader::decode(&bytes, 1024), None);
            let read = header.records(&bytes).unwrap();
            for ((head, position, payload), record) in read.iter().zip(&records) {
                prop_assert_eq!(head, &record.head);
                prop_assert_eq!(position, &record.position);
                prop_assert_eq!(&payload[..], &record.body.flatten()[..]);
            }
            let bit = flip.index(header.len as usize * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let damaged = BatchHeader::decode(&bytes, 512);
            prop_assert!(damaged.is_none_or(|h| h.records(&bytes).is_none()));
            // What is said to be left is what was written, and where all heads are only payloads are lost.
            let (found, complete) = damaged.map_or((Vec::new(), false), |h| h.salvage(&bytes));
            for (left, record) in found.iter().zip(&records) {
                prop_assert_eq!((left.head, left.position), (record.head, record.position));
                prop_assert!(left.payload.is_none_or(|payload| payload[..] == record.body.flatten()[..]));
            }
            prop_assert!(!complete || found.len() == records.len());
            let hit = records.iter().find(|r| (r.position as usize + RECORD_HEAD - 512..r.position as usize + r.size() - 512).contains(&(bit / 8)));
            prop_assert!(hit.is_none() || complete, "a payload was hit and more than it is lost");
        }
    }
}
