//! openraft's types as this product uses them, and the translation from and to `model`. Only this room sees them; nothing here is
//! ever serialised by openraft: disk and wire formats are our own.

use crate::model::catalog::CatalogReply;
use crate::model::entry::{EntryBytes, SectionReply};
use crate::model::{LeaderId, LogId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::responder::Responder;
use openraft::{EmptyNode, EntryPayload, OptionalSend};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A log entry's application payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command(pub EntryBytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What a machine answers to an entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Reply {
    /// Blank and membership entries.
    #[default]
    Nothing,
    /// A data shard's.
    Sections(Vec<SectionReply>),
    /// The catalog's.
    Catalog(CatalogReply),
}

/// What openraft calls a snapshot: nothing for the published checkpoint (a transfer takes the state itself), a state that came from
/// another node.
pub enum SnapshotData {
    /// The durable checkpoint.
    Published,
    /// All entries that this state needs are staged.
    Arrived(Box<super::machine::Arrived>),
}

/// openraft's description of a snapshot.
pub type Ometa = openraft::storage::SnapshotMeta<Lid, u64, EmptyNode>;

/// openraft's type configuration.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct Types {}

/// openraft's leader id.
pub type Lid = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
/// openraft's log id.
pub type Oid = openraft::LogId<Lid>;
/// openraft's vote.
pub type Ovote = openraft::Vote<Lid>;
/// openraft's entry.
pub type Oentry = openraft::Entry<Lid, EntryPayload<Command, u64, EmptyNode>>;
/// openraft's membership.
pub type Omembership = openraft::Membership<u64, EmptyNode>;
/// openraft's membership with its log id.
pub type Ostored = openraft::StoredMembership<Lid, u64, EmptyNode>;

impl openraft::RaftTypeConfig for Types {
    type D = Command;
    type R = Reply;
    type NodeId = u64;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = Lid;
    type Vote = Ovote;
    type Payload = EntryPayload<Command, u64, EmptyNode>;
    type Entry = Oentry;
    type AsyncRuntime = super::clock::CoarseRuntime;
    type Responder<T>
        = Answer<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

/// Runs a closure with the result of a write. Runs inside openraft's tasks: must not block.
pub struct Answer<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Answer<T> {
    /// Call `f` once the entry was applied or refused.
    pub fn new(f: impl FnOnce(T) + Send + 'static) -> Answer<T> {
        Answer(Box::new(f))
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for Answer<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}

/// model to openraft.
pub fn to_lid(leader: LeaderId) -> Lid {
    Lid { term: leader.term, node_id: leader.voter }
}

/// openraft to model.
pub fn from_lid(leader: Lid) -> LeaderId {
    LeaderId { term: leader.term, voter: leader.node_id }
}

/// model to openraft.
pub fn to_oid(id: LogId) -> Oid {
    Oid { leader_id: to_lid(id.leader), index: id.index }
}

/// openraft to model.
pub fn from_oid(id: Oid) -> LogId {
    LogId { leader: from_lid(id.leader_id), index: id.index }
}

/// The members of a group as bytes: `configs u8 | (n u16 | voter u64 *n)* | nodes u16 | voter u64 *nodes`.
pub fn write_membership(membership: &Omembership) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(membership.get_joint_config().len() as u8);
    for config in membership.get_joint_config() {
        bytes.put_u16_le(config.len() as u16);
        config.iter().for_each(|id| bytes.put_u64_le(*id));
    }
    let nodes: Vec<u64> = membership.nodes().map(|(id, _)| *id).collect();
    bytes.put_u16_le(nodes.len() as u16);
    nodes.iter().for_each(|id| bytes.put_u64_le(*id));
    bytes.freeze()
}

/// The inverse of `write_membership`; `None` when malformed.
pub fn read_membership(mut bytes: &[u8]) -> Option<Omembership> {
    let configs = bytes.try_get_u8().ok()?;
    let set = |bytes: &mut &[u8]| -> Option<BTreeSet<u64>> {
        let n = bytes.try_get_u16_le().ok()?;
        (0..n).map(|_| bytes.try_get_u64_le().ok()).collect()
    };
    let configs = (0..configs).map(|_| set(&mut bytes)).collect::<Option<Vec<_>>>()?;
    let nodes: BTreeMap<u64, EmptyNode> = set(&mut bytes)?.into_iter().map(|id| (id, EmptyNode {})).collect();
    Omembership::new(configs, nodes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_survives_its_encoding() {
        let nodes: BTreeMap<u64, EmptyNode> = [1, 65537, 3].into_iter().map(|id| (id, EmptyNode {})).collect();
        let joint = vec![BTreeSet::from([1, 65537]), BTreeSet::from([1, 3])];
        let membership = Omembership::new(joint, nodes).expect("valid");
        let bytes = write_membership(&membership);
        assert_eq!(read_membership(&bytes), Some(membership));
        assert_eq!(read_membership(&bytes[..bytes.len() - 1]), None);
    }
}
