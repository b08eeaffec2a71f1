//! What is left of an entry whose messages are mostly gone: the operations that are still wanted, each at its old position, and between
//! them short ones that say how many were passed over. Made when live messages leave an old file of the log, read back as an entry with
//! holes: good for reading messages, never for applying.
//!
//! trimmed := length of the entry u32 | n u32 | (position u32, len u32)* | the bytes of these pieces

use super::ops::{OP_APPEND, OP_ENQUEUE, OP_GONE, OP_PART, enqueued_to};
use super::parts::skip_head;
use super::{EntryBytes, FRAME_HEAD};
use crate::model::QueueId;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Longest entry that is read back, bytes: half of the largest file of a log.
const LONGEST: usize = 512 << 20;

/// Messages of a queue in an entry, found as deliveries find them; or a chunk of a stream, which is one at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Position of an enqueue into the queue, from where `skip` counts; of a chunk's append.
    pub position: u32,
    /// Whose.
    pub queue: QueueId,
    /// Enqueues into the queue to pass over before the first.
    pub skip: u32,
    /// How many.
    pub count: u32,
}

/// Bytes of an entry, and where they stand in it.
type Piece = (u32, Bytes);

/// All of an entry, in the form of a trimmed one.
pub fn whole(entry: &EntryBytes) -> EntryBytes {
    let mut at = 0;
    let piece = |part: &Bytes| {
        at += part.len() as u32;
        (at - part.len() as u32, part.clone())
    };
    stored(entry.len(), &entry.parts().iter().map(piece).collect::<Vec<_>>())
}

/// What is left of an entry when only these messages are wanted. All of it, when it is not the entry that they are said to be in.
pub fn trim(entry: &EntryBytes, mut wanted: Vec<Wanted>) -> EntryBytes {
    wanted.sort_unstable();
    match walk_all(entry, &wanted) {
        Some(found) => stored(entry.len(), &pieces(entry, &found)),
        None => whole(entry),
    }
}

/// The entry with holes. `None`: not what `trim` makes.
pub fn expand(trimmed: &EntryBytes) -> Option<EntryBytes> {
    let trimmed = trimmed.flatten();
    let (mut head, mut bytes) = (&trimmed[..], &trimmed[..]);
    let (len, n) = (head.try_get_u32_le().ok()? as usize, head.try_get_u32_le().ok()? as usize);
    let (head, rest) = (head.get(..n.checked_mul(8)?)?, bytes.len().checked_sub(8 + 8 * n)?);
    bytes.advance(bytes.len() - rest);
    if len > LONGEST {
        return None;
    }
    let mut entry = vec![0; len];
    for mut piece in head.chunks_exact(8) {
        let (position, len) = (piece.get_u32_le() as usize, piece.get_u32_le() as usize);
        let (now, later) = bytes.split_at_checked(len)?;
        entry.get_mut(position..position.checked_add(len)?)?.copy_from_slice(now);
        bytes = later;
    }
    bytes.is_empty().then(|| Bytes::from(entry).into())
}

fn stored(len: usize, pieces: &[Piece]) -> EntryBytes {
    let mut head = BytesMut::with_capacity(8 + 8 * pieces.len());
    head.put_u32_le(len as u32);
    head.put_u32_le(pieces.len() as u32);
    for (position, bytes) in pieces {
        head.put_u32_le(*position);
        head.put_u32_le(bytes.len() as u32);
    }
    let mut rope = EntryBytes::from(head.freeze());
    pieces.iter().for_each(|(_, bytes)| rope.push(bytes.clone()));
    rope
}

/// An operation that somebody who looks for wanted messages comes by.
struct Seen {
    position: usize,
    /// With its head.
    bytes: Bytes,
    is_wanted: bool,
    /// Somebody begins here.
    begins: bool,
    /// May be joined with others like it.
    counts: bool,
    /// Passed over, by queue; of queues of which something is wanted.
    passed: SmallVec<[(QueueId, u32); 2]>,
}

/// Counts the messages of a queue from a position on.
struct Cursor<'a> {
    at: u32,
    /// Not reached yet.
    wanted: &'a [Wanted],
}

impl Cursor<'_> {
    /// So many messages come. Whether one of them is wanted.
    fn pass(&mut self, count: u32) -> bool {
        let end = self.at.saturating_add(count);
        let is_wanted = self.wanted.first().is_some_and(|run| run.skip < end);
        while self.wanted.first().is_some_and(|run| run.skip.saturating_add(run.count) <= end) {
            self.wanted = &self.wanted[1..];
        }
        self.at = end;
        is_wanted
    }
}

/// All operations between the beginnings and the ends of wanted runs, by position.
fn walk_all(entry: &EntryBytes, mut wanted: &[Wanted]) -> Option<Vec<Seen>> {
    let mut found = Vec::new();
    while let Some(first) = wanted.first() {
        let position = first.position as usize;
        let bytes = entry.tail(position)?;
        walk((bytes, position), &mut wanted, &mut found)?;
    }
    Some(found)
}

/// Walks operations until all runs that begin on the way are found; takes those from `wanted`. `None`: they are not there.
fn walk((mut bytes, mut position): (Bytes, usize), wanted: &mut &[Wanted], found: &mut Vec<Seen>) -> Option<()> {
    let mut cursors: HashMap<QueueId, SmallVec<[Cursor<'_>; 1]>> = HashMap::new();
    let mut open = 0;
    loop {
        let begins = wanted.first().is_some_and(|run| run.position as usize == position);
        while let Some(run) = wanted.first().filter(|run| run.position as usize == position) {
            let same = wanted.iter().take_while(|other| (other.position, other.queue) == (run.position, run.queue)).count();
            let (now, later) = wanted.split_at(same);
            *wanted = later;
            cursors.entry(run.queue).or_default().push(Cursor { at: 0, wanted: now });
            open += 1;
        }
        if open == 0 {
            return Some(());
        }
        let (kind, len) = ((&bytes[..]).try_get_u8().ok()?, bytes.get(1..FRAME_HEAD)?.get_u32_le() as usize);
        if bytes.len() < FRAME_HEAD + len {
            return None;
        }
        let op = bytes.split_to(FRAME_HEAD + len);
        let mut seen = Seen { position, bytes: op, is_wanted: false, begins, counts: false, passed: SmallVec::new() };
        if matches!(kind, OP_ENQUEUE | OP_APPEND | OP_GONE) {
            seen.counts = true;
            let body = seen.bytes.slice(FRAME_HEAD..);
            each_passed(kind, &body, |queue, count| {
                let Some(cursors) = cursors.get_mut(&queue) else { return };
                match seen.passed.iter_mut().find(|(of, _)| *of == queue) {
                    Some(passed) => passed.1 += count,
                    None => seen.passed.push((queue, count)),
                }
                for cursor in cursors.iter_mut() {
                    seen.is_wanted |= cursor.pass(count);
                }
                let before = cursors.len();
                cursors.retain(|cursor| !cursor.wanted.is_empty());
                open -= before - cursors.len();
            })?;
        }
        // What is gone stays so.
        seen.is_wanted &= kind != OP_GONE;
        position += seen.bytes.len();
        let inside = (kind == OP_PART).then(|| seen.bytes.clone());
        found.push(seen);
        if let Some(part) = inside {
            walk_part(&part, position, wanted, found)?;
        }
    }
}

/// Runs that begin within a part, which ends at `end`.
fn walk_part(part: &Bytes, end: usize, wanted: &mut &[Wanted], found: &mut Vec<Seen>) -> Option<()> {
    let ops = skip_head(&part[FRAME_HEAD..])?;
    let mut at = end - ops.len();
    while let Some(first) = wanted.first().map(|run| run.position as usize).filter(|first| *first < end) {
        at = at.max(first);
        walk((part.slice(part.len() - (end - at)..), at), wanted, found)?;
    }
    Some(())
}

/// The queues that an operation says messages of, and how many of each.
fn each_passed(kind: u8, body: &[u8], mut each: impl FnMut(QueueId, u32)) -> Option<()> {
    match kind {
        OP_GONE => gone(body)?.into_iter().for_each(|(queue, count)| each(queue, count)),
        OP_APPEND => each(QueueId((&mut &*body).try_get_u64_le().ok()?), 1),
        _ => enqueued_to(body)?.for_each(|queue| each(queue, 1)),
    }
    Some(())
}

/// gone := n u32 | (queue u64, messages u32)* | anything
pub(super) fn gone(mut body: &[u8]) -> Option<Vec<(QueueId, u32)>> {
    let n = body.try_get_u32_le().ok()? as usize;
    let rows = body.get(..n.checked_mul(12)?)?;
    Some(rows.chunks_exact(12).map(|mut row| (QueueId(row.get_u64_le()), row.get_u32_le())).collect())
}

/// Operations that are not wanted, side by side.
struct Gap {
    position: usize,
    len: usize,
    passed: BTreeMap<QueueId, u32>,
}

/// Pieces in their order; neighbours that are kept become one.
struct Pieces<'a> {
    entry: &'a EntryBytes,
    done: Vec<Piece>,
    /// Position and length.
    kept: Option<(usize, usize)>,
    gap: Option<Gap>,
}

impl Pieces<'_> {
    fn keep(&mut self, position: usize, len: usize) {
        match &mut self.kept {
            Some((first, all)) if *first + *all == position => *all += len,
            _ => {
                self.end_kept();
                self.kept = Some((position, len));
            }
        }
    }

    fn end_kept(&mut self) {
        let Some((position, len)) = self.kept.take() else { return };
        self.done.extend(self.entry.tail(position).map(|tail| (position as u32, tail.slice(..len.min(tail.len())))));
    }

    fn skip(&mut self, seen: &Seen) {
        let gap = self.gap.get_or_insert_with(|| Gap { position: seen.position, len: 0, passed: BTreeMap::new() });
        gap.len += seen.bytes.len();
        seen.passed.iter().for_each(|(queue, count)| *gap.passed.entry(*queue).or_default() += count);
    }

    /// One operation stands for those of a gap, unless it would be longer than they are.
    fn end_gap(&mut self) {
        let Some(Gap { position, len, passed }) = self.gap.take() else { return };
        let head = FRAME_HEAD + 4 + 12 * passed.len();
        if head > len {
            return self.keep(position, len);
        }
        self.end_kept();
        let mut op = BytesMut::with_capacity(head);
        op.put_u8(OP_GONE);
        op.put_u32_le((len - FRAME_HEAD) as u32);
        op.put_u32_le(passed.len() as u32);
        for (queue, count) in passed {
            op.put_u64_le(queue.0);
            op.put_u32_le(count);
        }
        self.done.push((position as u32, op.freeze()));
    }
}

fn pieces(entry: &EntryBytes, found: &[Seen]) -> Vec<Piece> {
    let mut pieces = Pieces { entry, done: Vec::new(), kept: None, gap: None };
    for seen in found {
        let follows = pieces.gap.as_ref().is_some_and(|gap| gap.position + gap.len == seen.position);
        if !follows || seen.is_wanted || seen.begins || !seen.counts {
            pieces.end_gap();
        }
        if seen.is_wanted {
            pieces.keep(seen.position, seen.bytes.len());
            continue;
        }
        pieces.skip(seen);
        if !seen.counts {
            // There may be something wanted within.
            pieces.end_gap();
        }
    }
    pieces.end_gap();
    pieces.end_kept();
    pieces.done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_entry_comes_back_and_what_is_none_does_not() {
        let mut entry = EntryBytes::from(Bytes::from_static(b"abc"));
        entry.push(Bytes::from_static(b"defg"));
        assert_eq!(expand(&whole(&entry)).unwrap().flatten(), entry.flatten());
        assert_eq!(expand(&whole(&EntryBytes::default())).unwrap().len(), 0);
        let good = whole(&entry).flatten();
        assert_eq!(good[..16], [7, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
        for len in 0..good.len() {
            assert_eq!(expand(&good.slice(..len).into()), None, "{len}");
        }
        for position in 4..24 {
            let mut bad = good.to_vec();
            bad[position] = 0xff;
            assert_eq!(expand(&Bytes::from(bad).into()), None, "{position}");
        }
        let not_its = Wanted { position: 1, queue: QueueId(1), skip: 0, count: 1 };
        assert_eq!(trim(&entry, vec![not_its]), whole(&entry));
    }
}
