//! The META record at the start of each file: all groups' votes, purge points, last entries and memberships, and the identity
//! (rules 1, 2). And what each record means for that state, for writer and recovery alike.

use super::entry::{Identity, Payload, Vote};
use super::format::{Kind, Record, RecordHead};
use super::group::{Group, Groups, Pending};
use super::sidecar::Item;
use crate::model::entry::EntryBytes;
use crate::model::{LogId, ShardId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Payload of a META record: MessagePack with named fields, so that a field can be added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub identity: Option<Identity>,
    pub groups: Groups,
}

pub(super) fn record(groups: &Groups, identity: Option<Identity>) -> Record {
    let meta = Meta { identity, groups: groups.clone() };
    let bytes = rmp_serde::to_vec_named(&meta).expect("plain data always encodes");
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
pub(super) fn apply(groups: &mut Groups, identity: &mut Option<Identity>, head: &RecordHead, body: &EntryBytes) -> bool {
    let id = head.id;
    let group = |groups: &mut Groups, f: &dyn Fn(&mut Group)| f(groups.entry(head.shard).or_default());
    match head.kind {
        Kind::Blank | Kind::Normal => group(groups, &|g| g.entry(id, &Payload::Blank)),
        Kind::Membership => group(groups, &|g| g.entry(id, &Payload::Membership(body.flatten()))),
        Kind::Vote => group(groups, &|g| g.vote = Some(Vote { leader: id.leader, committed: head.flag })),
        Kind::Truncate => group(groups, &|g| g.truncate(head.flag.then_some(id))),
        Kind::Purge => group(groups, &|g| {
            g.purge(id);
        }),
        Kind::Committed => group(groups, &|g| g.committed = Some(id)),
        Kind::Identity => match rmp_serde::from_slice(&body.flatten()) {
            Ok(read) => *identity = Some(read),
            Err(_) => return false,
        },
        Kind::Meta => match rmp_serde::from_slice::<Meta>(&body.flatten()) {
            Ok(meta) => {
                *groups = meta.groups;
                *identity = meta.identity;
            }
            Err(_) => return false,
        },
        Kind::Prepare => match rmp_serde::from_slice::<Pending>(&body.flatten()) {
            Ok(pending) => group(groups, &|g| g.pending = Some(pending.clone())),
            Err(_) => return false,
        },
        Kind::Install => group(groups, &|g| g.install(id, head.flag)),
        Kind::Close | Kind::Staged => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generation, LeaderId, NodeId};

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
        };
        let identity = Some(Identity { cluster: u128::MAX - 5, node: NodeId(2), generation: Generation(3), shards: 3 });
        let groups = Groups::from([(ShardId(0), Group::default()), (ShardId(4), group)]);
        let record = record(&groups, identity);
        let (mut groups_back, mut identity_back) = (Groups::new(), None);
        assert!(apply(&mut groups_back, &mut identity_back, &record.head, &record.body));
        assert_eq!((groups_back, identity_back), (groups, identity));
        assert!(!apply(&mut Groups::new(), &mut None, &record.head, &Bytes::from_static(b"\xc1").into()));
    }
}
