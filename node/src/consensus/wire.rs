//! Raft messages as frames: a head of our own, entries' bytes as body parts that are never copied. Used by `network` (asks) and
//! `service` (answers). Little endian; every head starts with the kind.

use super::journal::{LogEntry, Payload};
use super::log::to_openraft;
use super::types::*;
use crate::model::ShardId;
use crate::model::entry::EntryBytes;
use crate::peer::{Frame, PeerError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest, VoteResponse};

/// What a question is about: the first byte of its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ask {
    /// A vote.
    Vote = 1,
    /// A pre-vote.
    PreVote = 2,
    /// Take over leadership.
    Transfer = 3,
    /// A catalog command for the leader.
    Catalog = 4,
    /// A routing lease.
    Lease = 5,
    /// Where a node stands in forming the cluster.
    Formation = 6,
    /// Take this cluster UUID.
    Adopt = 7,
    /// Who leads which shard.
    Led = 8,
    /// A replica that lost records asks the leader for a point at which it is whole again.
    Rebuild = 9,
    /// Whether a node is ready to be sent a group's log.
    Ready = 10,
    /// Which versions of the log a node applies.
    Version = 11,
}

impl Ask {
    /// The kind of a head.
    pub fn of(head: &mut Bytes) -> Result<Ask, PeerError> {
        let byte = head.try_get_u8().map_err(|_| SHORT)?;
        use Ask::*;
        let all = [Vote, PreVote, Transfer, Catalog, Lease, Formation, Adopt, Led, Rebuild, Ready, Version];
        all.into_iter().find(|kind| *kind as u8 == byte).ok_or(PeerError::Malformed("unknown question"))
    }
}

const SHORT: PeerError = PeerError::Malformed("short head");

/// `take!(head, u64)`: a little-endian number or `SHORT`.
macro_rules! take {
    ($from:expr, u8) => {
        $from.try_get_u8().map_err(|_| SHORT)?
    };
    ($from:expr, u16) => {
        $from.try_get_u16_le().map_err(|_| SHORT)?
    };
    ($from:expr, u32) => {
        $from.try_get_u32_le().map_err(|_| SHORT)?
    };
    ($from:expr, u64) => {
        $from.try_get_u64_le().map_err(|_| SHORT)?
    };
}

/// Append a vote.
pub fn put_vote(to: &mut BytesMut, vote: &Ovote) {
    to.put_u64_le(vote.leader_id.term);
    to.put_u64_le(vote.leader_id.node_id);
    to.put_u8(vote.committed.into());
}

/// The inverse of `put_vote`.
pub fn get_vote(from: &mut Bytes) -> Result<Ovote, PeerError> {
    let leader_id = get_lid(from)?;
    Ok(Ovote { leader_id, committed: take!(from, u8) != 0 })
}

fn get_lid(from: &mut Bytes) -> Result<Lid, PeerError> {
    Ok(Lid { term: take!(from, u64), node_id: take!(from, u64) })
}

/// Append a log id.
pub fn put_oid(to: &mut BytesMut, id: &Oid) {
    to.put_u64_le(id.leader_id.term);
    to.put_u64_le(id.leader_id.node_id);
    to.put_u64_le(id.index);
}

/// The inverse of `put_oid`.
pub fn get_oid(from: &mut Bytes) -> Result<Oid, PeerError> {
    Ok(Oid { leader_id: get_lid(from)?, index: take!(from, u64) })
}

/// Append a log id or that there is none.
pub fn put_oid_option(to: &mut BytesMut, id: Option<&Oid>) {
    to.put_u8(id.is_some().into());
    if let Some(id) = id {
        put_oid(to, id);
    }
}

/// The inverse of `put_oid_option`.
pub fn get_oid_option(from: &mut Bytes) -> Result<Option<Oid>, PeerError> {
    match take!(from, u8) {
        0 => Ok(None),
        _ => get_oid(from).map(Some),
    }
}

/// An append request. Head: `shard | vote | prev? | commit? | n u32 | (id | kind u8 | parts u16)*`; body: all parts of all entries.
pub fn write_append(shard: ShardId, request: AppendEntriesRequest<Types>) -> Frame {
    let mut head = BytesMut::with_capacity(80 + 32 * request.entries.len());
    let mut body = Vec::with_capacity(2 * request.entries.len());
    head.put_u16_le(shard.0);
    put_vote(&mut head, &request.vote);
    put_oid_option(&mut head, request.prev_log_id.as_ref());
    put_oid_option(&mut head, request.leader_commit.as_ref());
    head.put_u32_le(request.entries.len() as u32);
    for entry in request.entries {
        put_oid(&mut head, &entry.log_id);
        match entry.payload {
            EntryPayload::Blank => head.put_slice(&[0, 0, 0]),
            EntryPayload::Normal(Command(bytes)) => {
                head.put_u8(1);
                head.put_u16_le(bytes.parts().len() as u16);
                body.extend(bytes.parts().iter().cloned());
            }
            EntryPayload::Membership(members) => {
                head.put_slice(&[2, 1, 0]);
                body.push(write_membership(&members));
            }
        }
    }
    Frame { head: head.freeze(), body }
}

/// The inverse of `write_append`.
pub fn read_append(frame: Frame) -> Result<(ShardId, AppendEntriesRequest<Types>), PeerError> {
    let Frame { mut head, body } = frame;
    let mut parts = body.into_iter();
    let shard = ShardId(take!(head, u16));
    let vote = get_vote(&mut head)?;
    let prev_log_id = get_oid_option(&mut head)?;
    let leader_commit = get_oid_option(&mut head)?;
    let n = take!(head, u32) as usize;
    let mut entries = Vec::with_capacity(n.min(4096));
    for _ in 0..n {
        let id = from_oid(get_oid(&mut head)?);
        let (kind, count) = (take!(head, u8), take!(head, u16) as usize);
        let mut next = || parts.next().ok_or(PeerError::Malformed("entry without its parts"));
        let payload = match kind {
            0 => Payload::Blank,
            1 => {
                let mut rope = EntryBytes::default();
                for _ in 0..count {
                    rope.push(next()?);
                }
                Payload::Normal(rope)
            }
            2 => Payload::Membership(next()?),
            _ => return Err(PeerError::Malformed("entry kind")),
        };
        entries.push(to_openraft(LogEntry { id, payload }).map_err(|_| PeerError::Malformed("membership"))?);
    }
    Ok((shard, AppendEntriesRequest { vote, prev_log_id, entries, leader_commit }))
}

/// An answer to an append request.
pub fn write_appended(result: &StreamAppendResult<Types>) -> Bytes {
    let mut head = BytesMut::with_capacity(32);
    match result {
        Ok(None) => head.put_u8(0),
        Ok(Some(id)) => {
            head.put_u8(1);
            put_oid(&mut head, id);
        }
        Err(StreamAppendError::Conflict(id)) => {
            head.put_u8(2);
            put_oid(&mut head, id);
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            head.put_u8(3);
            put_vote(&mut head, vote);
        }
    }
    head.freeze()
}

/// The inverse of `write_appended`.
pub fn read_appended(head: &mut Bytes) -> Result<StreamAppendResult<Types>, PeerError> {
    match take!(head, u8) {
        0 => Ok(Ok(None)),
        1 => Ok(Ok(Some(get_oid(head)?))),
        2 => Ok(Err(StreamAppendError::Conflict(get_oid(head)?))),
        3 => Ok(Err(StreamAppendError::HigherVote(get_vote(head)?))),
        _ => Err(PeerError::Malformed("append answer")),
    }
}

/// A vote request as it travels: `forced` says that the leadership transfer was not ordered by the leader (rule 10).
#[derive(Clone, Debug, PartialEq)]
pub struct Campaign {
    /// Which group.
    pub shard: ShardId,
    /// openraft's request, `leadership_transfer` included.
    pub request: VoteRequest<Types>,
    /// Forced failover.
    pub forced: bool,
}

/// A vote (or pre-vote) question.
pub fn write_campaign(kind: Ask, campaign: &Campaign) -> Bytes {
    let mut head = BytesMut::with_capacity(64);
    head.put_u8(kind as u8);
    head.put_u16_le(campaign.shard.0);
    put_vote(&mut head, &campaign.request.vote);
    put_oid_option(&mut head, campaign.request.last_log_id.as_ref());
    head.put_u8(campaign.request.leadership_transfer.into());
    head.put_u8(campaign.forced.into());
    head.freeze()
}

/// What follows the kind of a vote question.
pub fn read_campaign(head: &mut Bytes) -> Result<Campaign, PeerError> {
    let shard = ShardId(take!(head, u16));
    let mut request = VoteRequest::new(get_vote(head)?, get_oid_option(head)?);
    request.leadership_transfer = take!(head, u8) != 0;
    Ok(Campaign { shard, request, forced: take!(head, u8) != 0 })
}

/// The answer to a vote question.
pub fn write_ballot(response: &VoteResponse<Types>) -> Bytes {
    let mut head = BytesMut::with_capacity(64);
    put_vote(&mut head, &response.vote);
    head.put_u8(response.vote_granted.into());
    put_oid_option(&mut head, response.last_log_id.as_ref());
    head.freeze()
}

/// The inverse of `write_ballot`.
pub fn read_ballot(head: &mut Bytes) -> Result<VoteResponse<Types>, PeerError> {
    let vote = get_vote(head)?;
    let granted = take!(head, u8) != 0;
    Ok(VoteResponse::new(vote, get_oid_option(head)?, granted))
}

/// A question to take over leadership.
pub fn write_transfer(shard: ShardId, request: &TransferLeaderRequest<Types>) -> Bytes {
    let mut head = BytesMut::with_capacity(64);
    head.put_u8(Ask::Transfer as u8);
    head.put_u16_le(shard.0);
    put_vote(&mut head, request.from_leader());
    head.put_u64_le(*request.to_node_id());
    put_oid_option(&mut head, request.last_log_id());
    head.freeze()
}

/// What follows the kind of a transfer.
pub fn read_transfer(head: &mut Bytes) -> Result<(ShardId, TransferLeaderRequest<Types>), PeerError> {
    let shard = ShardId(take!(head, u16));
    let (vote, to) = (get_vote(head)?, take!(head, u64));
    Ok((shard, TransferLeaderRequest::new(vote, to, get_oid_option(head)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::entry::RaftEntry;
    use openraft::{EmptyNode, EntryPayload};
    use std::collections::{BTreeMap, BTreeSet};

    fn oid(term: u64, index: u64) -> Oid {
        Oid { leader_id: Lid { term, node_id: 65537 }, index }
    }

    fn vote() -> Ovote {
        Ovote { leader_id: Lid { term: 4, node_id: 65538 }, committed: true }
    }

    #[test]
    fn an_append_request_keeps_entries_part_by_part() {
        let mut rope = EntryBytes::from(Bytes::from_static(b"head"));
        rope.push(Bytes::from_static(b"ops"));
        let nodes: BTreeMap<u64, EmptyNode> = BTreeMap::from([(65537, EmptyNode {})]);
        let members = Omembership::new(vec![BTreeSet::from([65537])], nodes).expect("valid");
        let entries = vec![
            Oentry::new(oid(4, 7), EntryPayload::Blank),
            Oentry::new(oid(4, 8), EntryPayload::Normal(Command(rope))),
            Oentry::new(oid(4, 9), EntryPayload::Membership(members)),
        ];
        let request = AppendEntriesRequest { vote: vote(), prev_log_id: Some(oid(3, 6)), entries: entries.clone(), leader_commit: None };
        let frame = write_append(ShardId(5), request);
        assert_eq!(frame.body.len(), 3);
        let (shard, back) = read_append(frame.clone()).expect("reads");
        assert_eq!((shard, back.vote, back.prev_log_id, back.leader_commit), (ShardId(5), vote(), Some(oid(3, 6)), None));
        assert_eq!(back.entries, entries);
        let mut short = frame;
        short.body.pop();
        assert!(read_append(short).is_err());
    }

    #[test]
    fn answers_survive_the_wire() {
        let answers: [StreamAppendResult<Types>; 4] =
            [Ok(None), Ok(Some(oid(1, 2))), Err(StreamAppendError::Conflict(oid(9, 1))), Err(StreamAppendError::HigherVote(vote()))];
        for answer in answers {
            assert_eq!(read_appended(&mut write_appended(&answer)), Ok(answer));
        }
        let ballot = VoteResponse::new(vote(), Some(oid(2, 3)), true);
        assert_eq!(read_ballot(&mut write_ballot(&ballot)), Ok(ballot));
    }

    #[test]
    fn a_campaign_keeps_both_of_its_flags() {
        for (transfer, forced) in [(false, false), (true, false), (true, true)] {
            let mut request = VoteRequest::new(vote(), Some(oid(2, 3)));
            request.leadership_transfer = transfer;
            let campaign = Campaign { shard: ShardId(2), request, forced };
            let mut head = write_campaign(Ask::Vote, &campaign);
            assert_eq!(Ask::of(&mut head), Ok(Ask::Vote));
            assert_eq!(read_campaign(&mut head), Ok(campaign));
        }
    }
}
