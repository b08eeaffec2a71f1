//! The META record at the start of each file: all groups' votes, purge points, last entries and memberships, and the identity
//! (rules 1, 2). And what each record means for that state, for writer and recovery alike.

use super::damage::Hole;
use super::entry::{Damage, Identity, Payload, Vote};
use super::format::{Kind, Record, RecordHead};
use super::group::{Group, Groups, Pending};
use super::sidecar::Item;
use crate::model::entry::EntryBytes;
use crate::model::{Generation, LeaderId, LogId, NodeId, ShardId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Payload of a META record: MessagePack with named fields, so that a field can be added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub identity: Option<Identity>,
    pub groups: Groups,
    /// Damaged places in files that are still kept, all dealt with.
    #[serde(default)]
    pub holes: Vec<Hole>,
    /// The newest lives of other nodes' disks that were met.
    #[serde(default)]
    pub lives: BTreeMap<NodeId, Generation>,
}

impl Meta {
    /// Highest term of any group's vote, given or lost.
    pub fn term(&self) -> u64 {
        let lost = |group: &Group| group.damaged.and_then(|damage| damage.votes).unwrap_or(0);
        self.groups.values().map(|group| group.vote.map_or(0, |vote| vote.leader.term).max(lost(group))).max().unwrap_or(0)
    }
}

pub(super) fn record(meta: &Meta) -> Record {
    let bytes = rmp_serde::to_vec_named(meta).expect("plain data always encodes");
    Record::new(Kind::Meta, ShardId::CATALOG, LogId::default(), Bytes::from(bytes).into())
}

pub(super) fn prepare_record(shard: ShardId, pending: &Pending) -> Record {
    let bytes = rmp_serde::to_vec_named(pending).expect("plain data always encodes");
    Record::new(Kind::Prepare, shard, pending.upto, Bytes::from(bytes).into())
}

pub(super) fn identity_record(identity: Identity) -> Record {
    let bytes = rmp_serde::to_vec_named(&identity).expect("plain data always encodes");
    Record::new(Kind::Identity, ShardId::CATALOG, LogId::default(), Bytes::from(bytes).into())
}

pub(super) fn hole_record(hole: Hole) -> Record {
    let bytes = rmp_serde::to_vec_named(&hole).expect("plain data always encodes");
    Record::new(Kind::Hole, ShardId::CATALOG, LogId::default(), Bytes::from(bytes).into())
}

pub(super) fn damaged_record(shard: ShardId, damage: Damage) -> Record {
    let leader = LeaderId { term: damage.votes.unwrap_or(0), voter: 0 };
    Record::new(Kind::Damaged, shard, LogId { leader, index: 0 }, EntryBytes::default()).flagged(damage.votes.is_some())
}

pub(super) fn life_record(node: NodeId, generation: Generation) -> Record {
    let leader = LeaderId { term: generation.0.into(), voter: node.0.into() };
    Record::new(Kind::Life, ShardId::CATALOG, LogId { leader, index: 0 }, EntryBytes::default())
}

/// The inverse.
fn life(id: LogId) -> Option<(NodeId, Generation)> {
    Some((NodeId(id.leader.voter.try_into().ok()?), Generation(id.leader.term.try_into().ok()?)))
}

pub(super) fn mended_record(shard: ShardId) -> Record {
    Record::new(Kind::Mended, shard, LogId::default(), EntryBytes::default())
}

/// What a META means for the rows of the index, for a sidecar: entries that it does not know of are gone.
pub(super) fn items(groups: &Groups) -> Vec<Item> {
    let mut items = Vec::with_capacity(2 * groups.len());
    for (shard, group) in groups {
        let item = |kind, flag, id| Item { head: RecordHead { kind, flag, shard: *shard, len: 0, id }, position: 0 };
        items.extend(group.installed.map(|id| item(Kind::Install, true, id)));
        items.extend(group.purged.map(|id| item(Kind::Purge, false, id)));
        items.push(item(Kind::Truncate, group.last.is_some(), group.last.unwrap_or_default()));
    }
    items
}

/// Apply a record to the state it is about. False: its payload makes no sense.
pub(super) fn apply(meta: &mut Meta, head: &RecordHead, body: &EntryBytes) -> bool {
    let id = head.id;
    let group = |meta: &mut Meta, f: &dyn Fn(&mut Group)| f(meta.groups.entry(head.shard).or_default());
    match head.kind {
        Kind::Blank | Kind::Normal => group(meta, &|g| g.entry(id, &Payload::Blank)),
        Kind::Membership => group(meta, &|g| g.entry(id, &Payload::Membership(body.flatten()))),
        Kind::Vote => group(meta, &|g| g.vote = Some(Vote { leader: id.leader, committed: head.flag })),
        Kind::Truncate => group(meta, &|g| g.truncate(head.flag.then_some(id))),
        Kind::Purge => group(meta, &|g| {
            g.purge(id);
        }),
        Kind::Committed => group(meta, &|g| g.committed = Some(id)),
        Kind::Install => group(meta, &|g| g.install(id, head.flag)),
        Kind::Damaged => group(meta, &|g| g.damaged = Some(Damage { votes: head.flag.then_some(id.leader.term) })),
        Kind::Mended => group(meta, &|g| g.damaged = None),
        Kind::Life => return life(id).map(|(node, generation)| meta.lives.insert(node, generation)).is_some(),
        Kind::Identity | Kind::Meta | Kind::Prepare | Kind::Hole => return apply_payload(meta, head, &body.flatten()).is_some(),
        Kind::Close | Kind::Staged | Kind::Relocated => {}
    }
    true
}

fn apply_payload(meta: &mut Meta, head: &RecordHead, body: &[u8]) -> Option<()> {
    match head.kind {
        Kind::Identity => meta.identity = Some(rmp_serde::from_slice(body).ok()?),
        Kind::Meta => *meta = rmp_serde::from_slice(body).ok()?,
        Kind::Prepare => meta.groups.entry(head.shard).or_default().pending = Some(rmp_serde::from_slice(body).ok()?),
        Kind::Hole => meta.holes.push(rmp_serde::from_slice(body).ok()?),
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_record_brings_all_back() {
        let id = LogId { leader: LeaderId { term: 5, voter: 65538 }, index: 70 };
        let group = Group {
            vote: Some(Vote { leader: id.leader, committed: true }),
            purged: Some(id),
            last: Some(id),
            committed: None,
            memberships: vec![(id, Bytes::from_static(b"m"))],
            pending: Some(Pending { upto: id, membership: Some((id, Bytes::from_static(b"n"))) }),
            installed: Some(id),
            damaged: Some(Damage { votes: Some(9) }),
        };
        let identity = Some(Identity { cluster: u128::MAX - 5, node: NodeId(2), generation: Generation(3), shards: 3 });
        let groups = Groups::from([(ShardId(0), Group::default()), (ShardId(4), group)]);
        let meta = Meta {
            identity,
            groups,
            holes: vec![Hole { file: 3, salt: u64::MAX, position: 512 }],
            lives: [(NodeId(1), Generation(2))].into(),
        };
        assert_eq!(meta.term(), 9, "a lost vote counts");
        let (record, mut back) = (record(&meta), Meta::default());
        assert!(apply(&mut back, &record.head, &record.body));
        assert_eq!(back, meta);
        assert!(!apply(&mut Meta::default(), &record.head, &Bytes::from_static(b"\xc1").into()));
    }

    #[test]
    fn damage_is_remembered_until_it_is_mended() {
        let mut meta = Meta::default();
        let mut note = |record: Record| {
            assert!(apply(&mut meta, &record.head, &record.body));
            meta.clone()
        };
        let hole = Hole { file: 3, salt: 7, position: 1024 };
        assert_eq!(note(hole_record(hole)).holes, [hole]);
        for damage in [Damage { votes: Some(4) }, Damage { votes: None }] {
            assert_eq!(note(damaged_record(ShardId(2), damage)).groups[&ShardId(2)].damaged, Some(damage));
        }
        assert_eq!(note(mended_record(ShardId(2))).groups[&ShardId(2)].damaged, None);
    }
}
