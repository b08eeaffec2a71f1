//! Damage found at a start (rule 5): what a bad place can have taken, and from whom. A payload that rotted names its group; where
//! records are unknown every group may have lost some, unless what was written later shows that it needs none of them. Part of `recovery`.

use super::entry::{Damage, WalError};
use super::format::{BatchHeader, FileHeader, HeaderRead, RecordHead, SECTOR};
use super::group::Groups;
use super::meta::{self, Meta};
use super::recovery::{FRONT, Recovery, io_error};
use super::scan::Scan;
use super::sidecar::Item;
use super::state::Op;
use crate::model::ShardId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A damaged place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hole {
    pub file: u32,
    pub salt: u64,
    pub position: u64,
}

/// A place whose records are unknown.
pub(super) struct Blind {
    hole: Hole,
    /// The groups as the next file's META has them; `None`: nothing later tells.
    after: Option<Groups>,
}

/// What recovery found out about damage.
#[derive(Default)]
pub(super) struct Findings {
    pub holes: Vec<Hole>,
    pub blind: Vec<Blind>,
    /// Highest term of a vote that any batch of the last file tells.
    pub term: u64,
}

impl Recovery<'_> {
    /// Where the data of file `seq` begins; `None`: it has none of its own number. A damaged front is seen by a batch behind it.
    pub(super) fn start_of(&mut self, seq: u32) -> Result<Option<FileHeader>, WalError> {
        let header = match self.opened[&seq].header {
            HeaderRead::Valid(header) if header.lap.seq == seq => Some(header),
            _ => None,
        };
        if header.is_some() && self.read_meta(seq)?.is_some() {
            return Ok(header);
        }
        let find = || {
            let mut scan = Scan::new(&*self.opened[&seq].file)?;
            let to = if header.is_some() { scan.len } else { FRONT };
            let at = scan.find(SECTOR, to, |b| match header {
                Some(h) => b.lap == h.lap && b.number > h.first_batch,
                None => b.lap.seq == seq,
            })?;
            at.map_or(Ok(None), |at| scan.header(at))
        };
        let found = find().map_err(io_error(format!("read log file {seq}")))?;
        // Behind a lost META its number is not known, only that it is lower.
        let derive = |b: BatchHeader| FileHeader { lap: b.lap, first_batch: b.number - u64::from(b.position > SECTOR) };
        Ok(found.map(|batch| header.unwrap_or_else(|| derive(batch))))
    }

    /// The META of `seq`, if it has data and its META is intact.
    pub(super) fn read_meta(&self, seq: u32) -> Result<Option<Meta>, WalError> {
        let HeaderRead::Valid(header) = self.opened[&seq].header else { return Ok(None) };
        if header.lap.seq != seq {
            return Ok(None);
        }
        let read = || {
            let mut scan = Scan::new(&*self.opened[&seq].file)?;
            let Some(batch) = scan.header(SECTOR)?.filter(|b| b.lap == header.lap && b.number == header.first_batch) else {
                return Ok(None);
            };
            let Some(records) = batch.records(scan.bytes(SECTOR, batch.len as usize)?) else { return Ok(None) };
            let Some((head, _, body)) = records.first().filter(|(head, _, _)| head.kind == super::format::Kind::Meta) else {
                return Ok(None);
            };
            let mut meta = Meta::default();
            Ok(meta::apply(&mut meta, head, &Bytes::copy_from_slice(body).into()).then_some(meta))
        };
        read().map_err(io_error(format!("read log file {seq}")))
    }

    /// The batch at `hole` is bad and not the end: take what is left of it. `next`: the number of the intact batch behind it.
    pub(super) fn salvage(&mut self, scan: &mut Scan<'_>, hole: Hole, next: Option<u64>, items: &mut Vec<Item>) -> Result<(), WalError> {
        let file = hole.file;
        let failed = || io_error(format!("read log file {file}"));
        tracing::error!(file, position = hole.position, "the log is damaged");
        self.findings.holes.push(hole);
        let header = scan.header(hole.position).map_err(failed())?;
        let header = header.filter(|b| (b.lap.seq, b.lap.salt, b.number) == (file, hole.salt, self.next_batch));
        let mut complete = false;
        if let Some(batch) = header {
            let bytes = scan.bytes(hole.position, batch.len as usize).map_err(failed())?.to_vec();
            let (found, all) = batch.salvage(&bytes);
            complete = all && next == Some(batch.number + 1);
            for left in found {
                match left.payload {
                    Some(body) => drop(self.record(file, &left.head, left.position, body, items)),
                    None => complete &= self.lose(&left.head),
                }
            }
        }
        if !complete {
            let mut after = None;
            for seq in self.opened.keys().copied().filter(|seq| *seq > file) {
                after = after.or(self.read_meta(seq)?);
            }
            self.findings.blind.push(Blind { hole, after: after.map(|meta| meta.groups) });
        }
        Ok(())
    }

    /// A record's payload is lost. False: so is what it said.
    fn lose(&mut self, head: &RecordHead) -> bool {
        use super::format::Kind;
        if head.kind.is_entry() {
            // There was such an entry; that it cannot be read shows in the end, if it is still needed then.
            let index = self.shards.entry(head.shard).or_default();
            index.drop_after(head.id.index.checked_sub(1));
            index.group.entry(head.id, &super::entry::Payload::Blank);
            self.meta.groups.entry(head.shard).or_default().entry(head.id, &super::entry::Payload::Blank);
        }
        head.kind.is_entry() || matches!(head.kind, Kind::Staged | Kind::Relocated)
    }

    /// The groups that have lost something, beside those that are known to have.
    pub(super) fn assess(&self) -> BTreeMap<ShardId, Damage> {
        let mut damages: BTreeMap<ShardId, Damage> = BTreeMap::new();
        for (shard, index) in &self.shards {
            if let Some(missing) = index.gap() {
                tracing::error!(%shard, index = missing, "an entry of the log is lost");
                damages.insert(*shard, Damage { votes: None });
            }
        }
        let configured = 0..=self.meta.identity.map_or(0, |identity| identity.shards);
        let known: BTreeSet<ShardId> = configured.map(ShardId).chain(self.shards.keys().copied()).collect();
        for blind in self.findings.blind.iter().filter(|blind| !self.meta.holes.contains(&blind.hole)) {
            for shard in known.iter().filter(|shard| self.needs(blind, **shard)) {
                let damage = damages.entry(*shard).or_insert(Damage { votes: None });
                damage.votes = damage.votes.max(blind.after.is_none().then_some(self.findings.term));
            }
        }
        for (shard, damage) in &mut damages {
            let known = self.meta.groups.get(shard).and_then(|group| group.damaged);
            damage.votes = damage.votes.max(known.and_then(|known| known.votes));
        }
        damages.retain(|shard, damage| self.meta.groups.get(shard).and_then(|group| group.damaged) != Some(*damage));
        damages
    }

    /// Whether records of `shard` in this place may still mean something: not when all that was there is purged since.
    fn needs(&self, blind: &Blind, shard: ShardId) -> bool {
        let Some(after) = &blind.after else { return true };
        let purged = self.shards.get(&shard).and_then(|index| index.group.purged).map(|id| id.index);
        after.get(&shard).is_some_and(|group| group.last.map(|id| id.index) > purged)
    }

    /// Notes for the log, so that the next start knows what is dealt with; and the same in memory.
    pub(super) fn note_damage(&mut self, damages: &BTreeMap<ShardId, Damage>) -> Vec<Op> {
        let note = |record| Op::Note { record, done: Box::new(|_| ()) };
        // First the groups: a place that is known counts as dealt with.
        let mut notes = Vec::new();
        for (shard, damage) in damages {
            self.shards.entry(*shard).or_default().group.damaged = Some(*damage);
            notes.push(note(meta::damaged_record(*shard, *damage)));
        }
        let new = self.findings.holes.iter().filter(|hole| !self.meta.holes.contains(hole));
        notes.extend(new.map(|hole| note(meta::hole_record(*hole))));
        notes
    }
}
