//! A group's state on its way to another node: the state, then entry by entry what belongs to it and the receiver lacks. Pushed by a
//! leader whose log does not reach back to a follower (`network`), pulled by a node that lost its state (`fetch`). One frame at a time,
//! each answered: memory on both sides is bounded by a frame. Layout in docs/formats.md.

use super::holding::{Holding, Outgoing, Receiving};
use super::journal::{Journal, LogEntry, Payload};
use super::log::completion;
use super::machine::Arrived;
use super::types::*;
use super::wire::{get_oid, get_oid_option, get_vote, put_oid, put_oid_option, put_vote};
use crate::model::entry::{EntryBytes, trimmed};
use crate::model::limits::{SNAPSHOT_CHUNK_BYTES, SNAPSHOT_PATIENCE};
use crate::model::{LogId, ShardId};
use crate::peer::transport::head_only;
use crate::peer::{Duplex, Frame, PeerError, StreamKind, Transport};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const OFFER: u8 = 1;
const STATE: u8 = 2;
const MANIFEST: u8 = 3;
const ENTRIES: u8 = 4;
const END: u8 = 5;
const PULL: u8 = 6;
const FETCH: u8 = 7;
const YES: u8 = 10;
const WANTED: u8 = 11;
const NO: u8 = 12;

/// Entries named in one frame: the receiver reads those that it has before it answers.
const NAMED: usize = 256;
/// The last answer comes when the state is durable and in use.
const INSTALLING: Duration = Duration::from_secs(180);
/// How long a push waits for a connection.
const CONNECTING: Duration = Duration::from_secs(5);

/// One side of a transfer.
pub(super) struct Pipe {
    tx: mpsc::Sender<Frame>,
    rx: BoxStream<'static, Result<Frame, PeerError>>,
}

impl From<Duplex> for Pipe {
    fn from(duplex: Duplex) -> Pipe {
        Pipe { tx: duplex.tx, rx: duplex.rx }
    }
}

fn refused(text: impl Into<String>) -> PeerError {
    PeerError::Refused(text.into())
}

fn malformed<E>(what: &'static str) -> impl FnOnce(E) -> PeerError {
    move |_| PeerError::Malformed(what)
}

impl Pipe {
    pub(super) fn new(rx: BoxStream<'static, Result<Frame, PeerError>>, tx: mpsc::Sender<Frame>) -> Pipe {
        Pipe { tx, rx }
    }

    pub(super) async fn send(&mut self, frame: Frame) -> Result<(), PeerError> {
        let sent = tokio::time::timeout(SNAPSHOT_PATIENCE, self.tx.send(frame)).await;
        sent.map_err(|_| refused("the transfer stands still"))?.map_err(|_| refused("the transfer's stream is closed"))
    }

    pub(super) async fn receive(&mut self, patience: Duration) -> Result<(u8, Frame), PeerError> {
        let next = tokio::time::timeout(patience, self.rx.next()).await.map_err(|_| refused("the transfer stands still"))?;
        let mut frame = next.unwrap_or_else(|| Err(refused("the other side ended the transfer")))?;
        let kind = frame.head.try_get_u8().map_err(malformed("empty head"))?;
        if kind == NO {
            return Err(refused(String::from_utf8_lossy(&frame.head)));
        }
        Ok((kind, frame))
    }

    async fn exchange(&mut self, frame: Frame, answer: u8, patience: Duration) -> Result<Bytes, PeerError> {
        self.send(frame).await?;
        match self.receive(patience).await? {
            (kind, frame) if kind == answer => Ok(frame.head),
            _ => Err(PeerError::Malformed("answer in a transfer")),
        }
    }

    async fn yes(&mut self) -> Result<(), PeerError> {
        self.send(head_only(Bytes::from_static(&[YES]))).await
    }

    /// Say why it ends.
    pub(super) async fn refuse(&mut self, why: &PeerError) {
        let mut head = BytesMut::from(&[NO][..]);
        head.put_slice(why.to_string().as_bytes());
        let _ = self.send(head_only(head.freeze())).await;
    }

    /// The state is installed, or was not needed.
    pub(super) async fn installed(&mut self, vote: &Ovote) -> Result<(), PeerError> {
        let mut head = BytesMut::from(&[YES][..]);
        put_vote(&mut head, vote);
        self.send(head_only(head.freeze())).await
    }
}

/// Sends a group's state to a follower; answers with the follower's vote. Without a connection it waits a while.
pub(super) async fn push(
    transport: &dyn Transport,
    to: crate::model::NodeId,
    holding: &Arc<Holding>,
    vote: &Ovote,
) -> Result<Ovote, PeerError> {
    let mut changes_rx = transport.link_changes();
    let up = async { while transport.link(to).up == 0 && changes_rx.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(CONNECTING, up).await;
    let mut pipe = Pipe::from(transport.open(to, StreamKind::Snapshot).await?);
    let mut answer = send(&mut pipe, holding, vote).await?;
    get_vote(&mut answer)
}

/// The sender's side, from offer to the last answer.
pub(super) async fn send(pipe: &mut Pipe, holding: &Arc<Holding>, vote: &Ovote) -> Result<Bytes, PeerError> {
    let source = holding.clone();
    let outgoing = tokio::task::spawn_blocking(move || source.outgoing()).await.map_err(|e| refused(e.to_string()))?;
    let outgoing = outgoing.ok_or_else(|| refused(format!("shard {} has no state on this node", holding.shard)))?;
    let (departing, shard) = (&outgoing.departing, holding.shard);
    let (entries, bytes) = (departing.live.len(), departing.state.len());
    tracing::info!(%shard, index = departing.applied.index, entries, bytes, "sending the state to another node");
    pipe.exchange(offer(shard, vote, &outgoing), YES, SNAPSHOT_PATIENCE).await?;
    for piece in departing.state.chunks(SNAPSHOT_CHUNK_BYTES) {
        let frame = Frame { head: Bytes::from_static(&[STATE]), body: vec![Bytes::copy_from_slice(piece)] };
        pipe.exchange(frame, YES, SNAPSHOT_PATIENCE).await?;
    }
    for named in departing.live.chunks(NAMED) {
        let ids = log_ids(&*holding.journal, shard, named)?;
        let wanted = pipe.exchange(manifest(&ids), WANTED, SNAPSHOT_PATIENCE).await?;
        if wanted.len() != ids.len() {
            return Err(PeerError::Malformed("answer to a manifest"));
        }
        let missing: Vec<LogId> = ids.into_iter().zip(wanted).filter(|(_, wanted)| *wanted != 0).map(|(id, _)| id).collect();
        send_entries(pipe, holding, &missing).await?;
    }
    pipe.exchange(head_only(Bytes::from_static(&[END])), YES, INSTALLING).await
}

async fn send_entries(pipe: &mut Pipe, holding: &Arc<Holding>, mut missing: &[LogId]) -> Result<(), PeerError> {
    while !missing.is_empty() {
        let (journal, shard, ids) = (holding.journal.clone(), holding.shard, missing.to_vec());
        let read = tokio::task::spawn_blocking(move || read_some(&*journal, shard, &ids)).await;
        let bodies = read.map_err(|e| refused(e.to_string()))?.map_err(|e| refused(format!("an entry cannot be read: {e}")))?;
        missing = &missing[bodies.len()..];
        pipe.exchange(entries(bodies), YES, SNAPSHOT_PATIENCE).await?;
    }
    Ok(())
}

/// At least one, and as many as make a frame.
fn read_some(journal: &dyn Journal, shard: ShardId, ids: &[LogId]) -> std::io::Result<Vec<Stored>> {
    let (mut bodies, mut bytes) = (Vec::new(), 0);
    for id in ids {
        let body = stored(journal, shard, *id)?;
        bytes += body.bytes.len();
        if bytes > SNAPSHOT_CHUNK_BYTES && !bodies.is_empty() {
            break;
        }
        bodies.push(body);
    }
    Ok(bodies)
}

/// An entry as a disk has it.
pub(super) struct Stored {
    id: LogId,
    /// Only what is left of it (`model::entry::trimmed`).
    is_trimmed: bool,
    bytes: EntryBytes,
}

/// Exactly this entry. Reads the disk.
pub(super) fn stored(journal: &dyn Journal, shard: ShardId, id: LogId) -> std::io::Result<Stored> {
    let entry = journal.read(shard, id.index..id.index + 1, 0)?.pop().filter(|entry| entry.id == id);
    match entry.ok_or(std::io::ErrorKind::NotFound)?.payload {
        Payload::Normal(bytes) => Ok(Stored { id, is_trimmed: false, bytes }),
        Payload::Trimmed(bytes) => Ok(Stored { id, is_trimmed: true, bytes }),
        Payload::Blank | Payload::Membership(_) => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

fn log_ids(journal: &dyn Journal, shard: ShardId, indices: &[u64]) -> Result<Vec<LogId>, PeerError> {
    let id = |index: &u64| journal.log_id(shard, *index).ok_or_else(|| refused(format!("entry {index} of shard {shard} is not here")));
    indices.iter().map(id).collect()
}

fn offer(shard: ShardId, vote: &Ovote, outgoing: &Outgoing) -> Frame {
    let mut head = BytesMut::from(&[OFFER][..]);
    head.put_u16_le(shard.0);
    put_vote(&mut head, vote);
    put_oid(&mut head, &to_oid(outgoing.departing.applied));
    head.put_u64_le(outgoing.departing.state.len() as u64);
    put_oid_option(&mut head, outgoing.membership.log_id().as_ref());
    Frame { head: head.freeze(), body: vec![write_membership(outgoing.membership.membership())] }
}

fn manifest(ids: &[LogId]) -> Frame {
    let mut head = BytesMut::with_capacity(1 + 24 * ids.len());
    head.put_u8(MANIFEST);
    ids.iter().for_each(|id| put_oid(&mut head, &to_oid(*id)));
    head_only(head.freeze())
}

fn entries(entries: Vec<Stored>) -> Frame {
    let mut head = BytesMut::from(&[ENTRIES][..]);
    let mut body = Vec::with_capacity(entries.len());
    for Stored { id, is_trimmed, bytes } in entries {
        put_oid(&mut head, &to_oid(id));
        head.put_u8(is_trimmed.into());
        head.put_u16_le(bytes.parts().len() as u16);
        body.extend_from_slice(bytes.parts());
    }
    Frame { head: head.freeze(), body }
}

/// What an offer says.
pub(super) struct Offer {
    pub(super) shard: ShardId,
    pub(super) vote: Ovote,
    pub(super) membership: Ostored,
    applied: LogId,
    state_bytes: u64,
}

/// The first frame of a transfer on the side that did not open it.
pub(super) enum First {
    /// Somebody sends a state.
    Offered(Offer),
    /// Somebody wants the state of this shard.
    Wanted(ShardId),
    /// Somebody wants one entry.
    Entry(ShardId, LogId),
}

pub(super) async fn first(pipe: &mut Pipe) -> Result<First, PeerError> {
    match pipe.receive(SNAPSHOT_PATIENCE).await? {
        (OFFER, frame) => read_offer(frame).map(First::Offered),
        (PULL, mut frame) => Ok(First::Wanted(ShardId(frame.head.try_get_u16_le().map_err(malformed("pull"))?))),
        (FETCH, mut frame) => {
            let shard = ShardId(frame.head.try_get_u16_le().map_err(malformed("fetch"))?);
            Ok(First::Entry(shard, from_oid(get_oid(&mut frame.head)?)))
        }
        _ => Err(PeerError::Malformed("first frame of a transfer")),
    }
}

/// Ask the other side for its state of `shard`.
pub(super) async fn pull(pipe: &mut Pipe, shard: ShardId) -> Result<Offer, PeerError> {
    let mut head = BytesMut::from(&[PULL][..]);
    head.put_u16_le(shard.0);
    pipe.send(head_only(head.freeze())).await?;
    match first(pipe).await? {
        First::Offered(offer) if offer.shard == shard => Ok(offer),
        _ => Err(PeerError::Malformed("answer to a pull")),
    }
}

/// Ask the other side for one entry.
pub(super) async fn fetch(pipe: &mut Pipe, shard: ShardId, id: LogId) -> Result<EntryBytes, PeerError> {
    let mut head = BytesMut::from(&[FETCH][..]);
    head.put_u16_le(shard.0);
    put_oid(&mut head, &to_oid(id));
    pipe.send(head_only(head.freeze())).await?;
    let (ENTRIES, frame) = pipe.receive(SNAPSHOT_PATIENCE).await? else {
        return Err(PeerError::Malformed("an entry was expected"));
    };
    match read_entries(frame)?.pop() {
        Some(LogEntry { id: came, payload: Payload::Normal(entry) }) if came == id => Ok(entry),
        Some(LogEntry { id: came, payload: Payload::Trimmed(left) }) if came == id => {
            trimmed::expand(&left).ok_or(PeerError::Malformed("what is left of an entry"))
        }
        _ => Err(PeerError::Malformed("another entry than the one that was wanted")),
    }
}

/// Answer a `fetch`.
pub(super) async fn give(pipe: &mut Pipe, stored: Stored) -> Result<(), PeerError> {
    pipe.send(entries(vec![stored])).await
}

fn read_offer(frame: Frame) -> Result<Offer, PeerError> {
    let Frame { mut head, body } = frame;
    let shard = ShardId(head.try_get_u16_le().map_err(malformed("offer"))?);
    let (vote, applied) = (get_vote(&mut head)?, from_oid(get_oid(&mut head)?));
    let state_bytes = head.try_get_u64_le().map_err(malformed("offer"))?;
    let id = get_oid_option(&mut head)?;
    let members = body.first().and_then(|bytes| read_membership(bytes)).ok_or(PeerError::Malformed("membership"))?;
    Ok(Offer { shard, vote, membership: Ostored::new(id, members), applied, state_bytes })
}

/// The receiver's side up to the sender's END: a state whose entries are all in the log or staged, durably. The caller installs it and
/// says so with `Pipe::installed`.
pub(super) async fn receive(pipe: &mut Pipe, offer: &Offer, receiving: &Receiving<'_>) -> Result<Arrived, PeerError> {
    let holding = receiving.holding;
    if !holding.keeps_state() {
        return Err(refused("this node keeps no states"));
    }
    pipe.yes().await?;
    let mut state = Vec::new();
    while (state.len() as u64) < offer.state_bytes {
        match pipe.receive(SNAPSHOT_PATIENCE).await? {
            (STATE, frame) => frame.body.iter().for_each(|piece| state.extend_from_slice(piece)),
            _ => return Err(PeerError::Malformed("a piece of the state was expected")),
        }
        pipe.yes().await?;
    }
    let machine = holding.machine.clone();
    let decoded = tokio::task::spawn_blocking(move || machine.arrived(&state)).await.map_err(|e| refused(e.to_string()))?;
    let arrived = decoded.map_err(|why| refused(format!("the state cannot be read: {why}")))?;
    if arrived.applied != offer.applied {
        return Err(PeerError::Malformed("the state is not the one that was offered"));
    }
    let mut named = 0;
    loop {
        if receiving.is_outdated() {
            return Err(refused("a newer transfer took over"));
        }
        match pipe.receive(SNAPSHOT_PATIENCE).await? {
            (MANIFEST, frame) => {
                let ids = read_manifest(frame)?;
                let expected = arrived.live.get(named..named + ids.len());
                if ids.is_empty() || expected.is_none_or(|e| e.iter().ne(ids.iter().map(|id| &id.index))) {
                    return Err(PeerError::Malformed("the manifest does not fit the state"));
                }
                named += ids.len();
                take_missing(pipe, holding, ids).await?;
            }
            (END, _) if named == arrived.live.len() => return Ok(arrived),
            _ => return Err(PeerError::Malformed("unexpected frame in a transfer")),
        }
    }
}

/// Say which of `ids` this disk lacks, and stage them as they come.
async fn take_missing(pipe: &mut Pipe, holding: &Holding, ids: Vec<LogId>) -> Result<(), PeerError> {
    let (journal, shard) = (holding.journal.clone(), holding.shard);
    let check = move || ids.into_iter().map(|id| (id, !journal.holds(shard, id))).collect::<Vec<_>>();
    let checked = tokio::task::spawn_blocking(check).await.map_err(|e| refused(e.to_string()))?;
    let mut head = BytesMut::from(&[WANTED][..]);
    checked.iter().for_each(|(_, wanted)| head.put_u8(u8::from(*wanted)));
    pipe.send(head_only(head.freeze())).await?;
    let missing: Vec<LogId> = checked.into_iter().filter(|(_, wanted)| *wanted).map(|(id, _)| id).collect();
    let mut missing = missing.as_slice();
    while !missing.is_empty() {
        let (ENTRIES, frame) = pipe.receive(SNAPSHOT_PATIENCE).await? else {
            return Err(PeerError::Malformed("entries were expected"));
        };
        let entries = read_entries(frame)?;
        let came = missing.get(..entries.len()).filter(|wanted| !wanted.is_empty() && wanted.iter().eq(entries.iter().map(|e| &e.id)));
        let came = came.ok_or(PeerError::Malformed("other entries than those that were wanted"))?.len();
        let (done, staged) = completion();
        holding.journal.stage(shard, entries, done);
        staged.await.map_err(|e| refused(format!("entries cannot be stored: {e}")))?;
        pipe.yes().await?;
        missing = &missing[came..];
    }
    Ok(())
}

fn read_manifest(mut frame: Frame) -> Result<Vec<LogId>, PeerError> {
    let mut ids = Vec::with_capacity(frame.head.len() / 24);
    while frame.head.has_remaining() {
        ids.push(from_oid(get_oid(&mut frame.head)?));
    }
    Ok(ids)
}

fn read_entries(frame: Frame) -> Result<Vec<LogEntry>, PeerError> {
    let Frame { mut head, body } = frame;
    let (mut parts, mut entries) = (body.into_iter(), Vec::new());
    while head.has_remaining() {
        let id = from_oid(get_oid(&mut head)?);
        let is_trimmed = head.try_get_u8().map_err(malformed("entries"))? != 0;
        let mut rope = EntryBytes::default();
        for _ in 0..head.try_get_u16_le().map_err(malformed("entries"))? {
            rope.push(parts.next().ok_or(PeerError::Malformed("entry without its parts"))?);
        }
        entries.push(LogEntry { id, payload: if is_trimmed { Payload::Trimmed(rope) } else { Payload::Normal(rope) } });
    }
    Ok(entries)
}
