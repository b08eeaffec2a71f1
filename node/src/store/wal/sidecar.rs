//! `.idx`: what recovery needs of a closed file without reading it all. Derived and checked: anything odd means the file is scanned.

use super::file::sidecar_name;
use super::format::{Kind, Lap, RecordHead, u32_at, u64_at};
use crate::model::{LeaderId, LogId, ShardId};
use crate::store::disk::Disk;
use std::io::{self, IoSlice};

const MAGIC: &[u8; 8] = b"WARRENIX";
const VERSION: u32 = 1;
const HEAD: usize = 40;
const ITEM: usize = 40;

/// A closed file's content, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sidecar {
    pub lap: Lap,
    /// Number of the batch after its last one.
    pub next_batch: u64,
    pub items: Vec<Item>,
}

/// An entry, a truncation or a purge, and where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub head: RecordHead,
    pub position: u32,
}

impl Sidecar {
    pub fn save(&self, disk: &dyn Disk) -> io::Result<()> {
        let file = disk.create(&sidecar_name(self.lap.seq))?;
        file.write_all_vectored_at(&[IoSlice::new(&self.encode())], 0)
    }

    /// `None`: there is none that fits `lap`.
    pub fn load(disk: &dyn Disk, lap: Lap) -> Option<Sidecar> {
        let file = disk.open(&sidecar_name(lap.seq)).ok()?;
        let mut bytes = vec![0; file.len().ok()? as usize];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Self::decode(&bytes).filter(|s| s.lap == lap)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + ITEM * self.items.len() + 4);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.lap.seq.to_le_bytes());
        out.extend_from_slice(&self.lap.salt.to_le_bytes());
        out.extend_from_slice(&self.next_batch.to_le_bytes());
        out.extend_from_slice(&(self.items.len() as u64).to_le_bytes());
        for Item { head, position } in &self.items {
            out.extend_from_slice(&[head.kind as u8, u8::from(head.flag)]);
            out.extend_from_slice(&head.shard.0.to_le_bytes());
            out.extend_from_slice(&head.len.to_le_bytes());
            out.extend_from_slice(&position.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&head.id.leader.term.to_le_bytes());
            out.extend_from_slice(&head.id.leader.voter.to_le_bytes());
            out.extend_from_slice(&head.id.index.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Sidecar> {
        let content = bytes.get(..bytes.len().checked_sub(4)?)?;
        if content.len() < HEAD || crc32c::crc32c(content) != u32_at(bytes, content.len()) {
            return None;
        }
        let items = &content[HEAD..];
        if &content[..8] != MAGIC || u32_at(content, 8) != VERSION || items.len() as u64 != ITEM as u64 * u64_at(content, 32) {
            return None;
        }
        let lap = Lap { seq: u32_at(content, 12), salt: u64_at(content, 16) };
        let items: Option<Vec<Item>> = items.chunks_exact(ITEM).map(Item::decode).collect();
        Some(Sidecar { lap, next_batch: u64_at(content, 24), items: items? })
    }
}

impl Item {
    fn decode(bytes: &[u8]) -> Option<Item> {
        let id = LogId { leader: LeaderId { term: u64_at(bytes, 16), voter: u64_at(bytes, 24) }, index: u64_at(bytes, 32) };
        let shard = ShardId(u16::from_le_bytes([bytes[2], bytes[3]]));
        let head = RecordHead { kind: Kind::from_byte(bytes[0])?, flag: bytes[1] != 0, shard, len: u32_at(bytes, 4), id };
        Some(Item { head, position: u32_at(bytes, 8) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::SimDisk;

    #[test]
    fn it_is_read_back_and_a_flipped_bit_or_another_lap_makes_it_nothing() {
        let lap = Lap { seq: 4, salt: 99 };
        let id = LogId { leader: LeaderId { term: 1, voter: 2 }, index: 3 };
        let head = RecordHead { kind: Kind::Normal, flag: false, shard: ShardId(1), len: 77, id };
        let sidecar = Sidecar { lap, next_batch: 12, items: vec![Item { head, position: 1024 }; 3] };
        let disk = SimDisk::new(0);
        sidecar.save(&disk).unwrap();
        assert_eq!(Sidecar::load(&disk, lap), Some(sidecar));
        assert_eq!(Sidecar::load(&disk, Lap { seq: 4, salt: 98 }), None);
        disk.flip_bit(&sidecar_name(4), 500);
        assert_eq!(Sidecar::load(&disk, lap), None);
    }
}
