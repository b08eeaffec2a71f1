//! The volatile side of one queue while this node leads: cursor, what is checked out, given back or seen before, consumers in turn,
//! and a small window of located runs. No messages are kept beyond the run being delivered. Driven by `delivery` and `requests`.

use super::edges::PathId;
use super::ranges::{RangeMap, RangeSet};
use crate::machine::shard::DataMachine;
use crate::machine::{Located, Queue};
use crate::model::entry::EntryBytes;
use crate::model::link::{Consumer as Spec, Delivery, ToLeader};
use crate::model::{QueueId, Seq, SessionId, limits};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::VecDeque;

/// Holder that never attaches: some message up to the reserved mark was seen by a client that does not hold it any more, so a later
/// leader must call the unattached ones redelivered.
pub(super) const SEEN_MARK: SessionId = SessionId(0);
/// Messages located at once.
const WINDOW_MESSAGES: usize = 2048;

/// A consumer and its credit.
#[derive(Debug)]
pub(super) struct Consumer {
    pub spec: Spec,
    pub session: SessionId,
    pub path: PathId,
    /// Messages it may still get; `None` = no limit. May be negative after an attach.
    credit: Option<i64>,
    /// Bytes it may still get; the last message may overdraw it.
    bytes: i64,
    /// Gathered in this turn.
    pub out: Vec<Delivery>,
    pub out_bytes: usize,
}

impl Consumer {
    /// One that holds `unacked` messages and has `unwritten` bytes on the way.
    pub fn new(spec: Spec, session: SessionId, path: PathId, unacked: u64, unwritten: u64) -> Consumer {
        let credit = spec.prefetch.map(|limit| i64::from(limit) - unacked as i64);
        let bytes = spec.window_bytes.max(1) as i64 - unwritten as i64;
        Consumer { spec, session, path, credit, bytes, out: Vec::new(), out_bytes: 0 }
    }

    pub fn wants(&self) -> bool {
        self.bytes > 0 && self.credit.is_none_or(|left| left > 0)
    }

    pub fn add_credit(&mut self, messages: u32, bytes: u64) {
        if let (Some(credit), Some(limit)) = (&mut self.credit, self.spec.prefetch) {
            *credit = (*credit + i64::from(messages)).min(i64::from(limit));
        }
        self.bytes = self.bytes.saturating_add_unsigned(bytes).min(self.spec.window_bytes.max(1) as i64);
    }

    /// Another prefetch. A limit moves the credit with it, so that what is on the way in both directions stays counted; a first limit
    /// counts what the edge holds, not what is on the way to it.
    pub fn set_prefetch(&mut self, limit: Option<u32>, held: u64) {
        self.credit = match (self.credit, self.spec.prefetch, limit) {
            (_, _, None) => None,
            (Some(credit), Some(before), Some(limit)) => Some(credit + i64::from(limit) - i64::from(before)),
            (_, _, Some(limit)) => Some(i64::from(limit) - held as i64),
        };
        self.spec.prefetch = limit;
    }

    pub fn push(&mut self, delivery: Delivery) {
        let len = delivery.message.len();
        self.credit = self.credit.map(|left| left - 1);
        self.bytes -= len as i64;
        self.out_bytes += len;
        self.out.push(delivery);
    }
}

/// A run of live messages and, once read from disk, its entry.
#[derive(Debug)]
pub(super) struct Run {
    pub at: Located,
    pub entry: Option<EntryBytes>,
    pub reading: bool,
}

/// Where the next messages come from: located runs, and the messages of the first one.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub runs: VecDeque<Run>,
    pub front: VecDeque<(Seq, Bytes)>,
}

impl Source {
    pub fn clear(&mut self) {
        self.runs.clear();
        self.front.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.front.is_empty()
    }

    fn fill(&mut self, located: &mut Vec<Located>) {
        self.runs.extend(located.drain(..).map(|at| Run { at, entry: None, reading: false }));
    }
}

/// A basic.get that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Get {
    pub path: PathId,
    pub session: SessionId,
    pub request: u64,
}

/// Where the queue's Reserve stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReserveState {
    /// Nothing to do.
    Idle,
    /// Goes into the next entry.
    Wanted,
    /// Proposed.
    InFlight,
}

/// A queue under this leader.
#[derive(Debug)]
pub(super) struct QueueState {
    pub id: QueueId,
    /// Everything below was delivered or is in `returned`.
    pub cursor: Seq,
    pub fresh: Source,
    pub again: Source,
    pub returned: RangeSet,
    /// May have been seen by a client before.
    pub seen: RangeSet,
    pub checked: RangeMap<SessionId>,
    pub consumers: Vec<Consumer>,
    turn: usize,
    /// A session that is not in `holders` holds messages that a former leader gave it.
    unlisted_held: bool,
    pub gets: VecDeque<Get>,
    /// As applied.
    pub reserved: Seq,
    pub holders: SmallVec<[SessionId; 4]>,
    pub reserve: ReserveState,
    /// Not delivered until every holder attached or is gone (rule 18).
    pub held: bool,
    /// Requests that wait for the end of `held`.
    pub parked: Vec<(PathId, ToLeader)>,
    /// The last consumer went while some edges had not attached yet.
    pub last_gone: bool,
    /// In the server's list of queues to pump.
    pub dirty: bool,
    /// In the server's list of queues with a window.
    pub loaded: bool,
    /// Pumped since the last tick.
    pub used: bool,
}

impl QueueState {
    /// As a new leader finds it: all holders may still hold messages up to the reserved mark.
    pub fn new(id: QueueId, queue: &Queue) -> QueueState {
        let mut first = Vec::new();
        queue.locate(Seq(0), 1, &mut first);
        let first = first.first().map_or(Seq(queue.tail().0 + 1), |run| run.first);
        QueueState {
            id,
            cursor: first,
            fresh: Source::default(),
            again: Source::default(),
            returned: RangeSet::default(),
            seen: RangeSet::default(),
            checked: RangeMap::default(),
            consumers: Vec::new(),
            turn: 0,
            unlisted_held: false,
            gets: VecDeque::new(),
            reserved: queue.reserved(),
            holders: SmallVec::from_slice(queue.holders()),
            reserve: ReserveState::Idle,
            held: first <= queue.reserved(),
            parked: Vec::new(),
            last_gone: false,
            dirty: false,
            loaded: false,
            used: false,
        }
    }

    /// The hold ends; `lost` = some holder is gone, so the unattached may have been seen.
    pub fn release(&mut self, lost: bool) {
        self.held = false;
        if lost {
            self.seen.insert(self.cursor.min(self.reserved), self.reserved, ());
        }
    }

    pub fn may_hold(&self, session: SessionId) -> bool {
        self.holders.contains(&session)
    }

    /// The next consumer in turn that can take a message; `open` says whether its path has room.
    pub fn choose(&mut self, mut open: impl FnMut(&Consumer) -> bool) -> Choice {
        let n = self.consumers.len();
        let mut unlisted = false;
        for step in 0..n {
            let at = (self.turn + step) % n;
            let consumer = &self.consumers[at];
            if !consumer.wants() || !open(consumer) {
                continue;
            }
            if !self.holders.contains(&consumer.session) {
                unlisted = true;
                continue;
            }
            self.turn = (at + 1) % n;
            return Choice::Consumer(at);
        }
        if unlisted { Choice::Unlisted } else { Choice::Nobody }
    }

    /// Whether the reserved mark or the list of holders must be renewed.
    pub fn needs_reserve(&self) -> bool {
        let active = !self.consumers.is_empty() || !self.gets.is_empty();
        let short = self.reserved.0 + 1 < self.cursor.0 + limits::RESERVE_AHEAD / 2;
        let mark = !self.seen.is_empty() && self.reserved.0 > 0 && !self.may_hold(SEEN_MARK);
        self.reserve == ReserveState::Idle && !self.held && ((active && short) || mark || self.has_unlisted())
    }

    fn has_unlisted(&self) -> bool {
        self.unlisted_held || self.consumers.iter().map(|c| c.session).chain(self.gets.iter().map(|g| g.session)).any(|s| !self.may_hold(s))
    }

    /// What to propose: the mark, and everybody who may hold messages up to it.
    pub fn reservation(&mut self, queue: &Queue) -> (Seq, Vec<SessionId>) {
        self.forget_seen(queue);
        self.unlisted_held = false;
        let listed = self.consumers.iter().map(|c| c.session).chain(self.gets.iter().map(|g| g.session));
        let mut sessions: Vec<SessionId> = listed.chain(self.checked.ranges().map(|(_, _, session)| session)).collect();
        if !self.seen.is_empty() {
            sessions.push(SEEN_MARK);
        }
        sessions.sort_unstable();
        sessions.dedup();
        // From now on the old list or the new one may count: whoever is not in both gets nothing until the outcome is known.
        self.holders.retain(|s| sessions.contains(s));
        (self.reserved.max(Seq(self.cursor.0 - 1 + limits::RESERVE_AHEAD)), sessions)
    }

    fn forget_seen(&mut self, queue: &Queue) {
        if self.seen.is_empty() {
            return;
        }
        let mut first = Vec::new();
        queue.locate(Seq(0), 1, &mut first);
        let floor = first.first().map_or(queue.tail().0 + 1, |run| run.first.0);
        self.seen.remove(Seq(0), Seq(floor - 1), |_, _, _| {});
    }

    /// Checks out what a session says it holds; what another one holds stays with that one.
    pub fn check_out_held(&mut self, session: SessionId, first: Seq, last: Seq) {
        self.checked.insert_free(first, last, session);
        self.unlisted_held |= !self.may_hold(session);
        if !self.returned.is_empty() {
            self.returned.remove(first, last, |_, _, _| {});
        }
        self.again.clear();
    }

    /// A session gives messages back. Those it does not hold are left alone, but a client saw them.
    pub fn give_back(&mut self, session: SessionId, first: Seq, last: Seq, seen: bool) {
        let pieces = self.checked.remove_of(first, last, session);
        for (a, b) in &pieces {
            self.put_back(*a, *b, seen);
        }
        if seen {
            let last = Seq(last.0.min(self.cursor.0.max(self.reserved.0)));
            let unheld = self.checked.gaps(first, last);
            unheld.into_iter().for_each(|(a, b)| self.seen.insert(a, b, ()));
        }
    }

    /// A session is gone: all it held goes back as seen. True when it held anything.
    pub fn give_back_all(&mut self, session: SessionId, seen: bool) -> bool {
        let pieces = self.checked.remove_all_of(session);
        pieces.iter().for_each(|(a, b)| self.put_back(*a, *b, seen));
        !pieces.is_empty()
    }

    /// These are not checked out any more and wait again.
    pub fn put_back(&mut self, first: Seq, last: Seq, seen: bool) {
        if seen {
            self.seen.insert(first, last, ());
        }
        if first < self.cursor {
            self.returned.insert(first, last.min(Seq(self.cursor.0 - 1)), ());
            self.again.clear();
        }
    }

    /// The machine settled these.
    pub fn settled(&mut self, first: Seq, last: Seq) {
        let mut held = 0;
        self.checked.remove(first, last, |a, b, _| held += b.0 - a.0 + 1);
        if !self.seen.is_empty() {
            self.seen.remove(first, last, |_, _, _| {});
        }
        if held < (last.0 - first.0).saturating_add(1) {
            self.returned.remove(first, last, |_, _, _| {});
            self.again.clear();
        }
        // The window may hold messages at or after the cursor that were attached, and passed over only while checked out.
        if last >= self.cursor {
            self.fresh.clear();
        }
    }

    /// Everything that waits, as ranges to settle, and how many messages that is; they are not delivered any more.
    pub fn purge(&mut self, queue: &Queue) -> (Vec<(Seq, Seq)>, u64) {
        let mut first = Vec::new();
        queue.locate(Seq(0), 1, &mut first);
        let ranges = first.first().map_or(Vec::new(), |run| self.checked.gaps(run.first, queue.tail()));
        self.cursor = Seq(queue.tail().0 + 1);
        self.returned = RangeSet::default();
        self.fresh.clear();
        self.again.clear();
        (ranges, queue.live_count().saturating_sub(self.checked.count()))
    }

    /// Locates what comes next from given-back messages; false when none is left.
    pub fn locate_again(&mut self, machine: &DataMachine, located: &mut Vec<Located>) -> bool {
        let Some(queue) = machine.queue(self.id) else {
            self.returned = RangeSet::default();
            return false;
        };
        while let Some((first, last)) = self.returned.first() {
            located.clear();
            let count = (last.0 - first.0 + 1).min(WINDOW_MESSAGES as u64);
            queue.locate(first, count as usize, located);
            located.retain_mut(|run| {
                let room = (last.0 + 1).saturating_sub(run.first.0);
                run.count = run.count.min(u32::try_from(room).unwrap_or(u32::MAX));
                run.count > 0
            });
            let live = located.first().map_or(last.0 + 1, |run| run.first.0);
            self.returned.remove(first, Seq(live - 1), |_, _, _| {});
            if !located.is_empty() {
                self.again.fill(located);
                return true;
            }
        }
        false
    }

    /// Locates what comes next from the cursor on; false when there is nothing.
    pub fn locate_fresh(&mut self, machine: &DataMachine, located: &mut Vec<Located>) -> bool {
        let Some(queue) = machine.queue(self.id) else { return false };
        if self.checked.highest() >= self.cursor
            && let Some((free, _)) = self.checked.gaps(self.cursor, Seq(u64::MAX)).first()
        {
            self.cursor = *free;
        }
        located.clear();
        queue.locate(self.cursor, WINDOW_MESSAGES, located);
        self.cursor = located.first().map_or(Seq(queue.tail().0 + 1), |run| run.first).max(self.cursor);
        self.fresh.fill(located);
        !self.fresh.runs.is_empty()
    }

    /// Takes the next message, which the caller has seen in the front of its source.
    pub fn pop(&mut self, again: bool) -> Option<(Seq, Bytes)> {
        if again {
            let (seq, message) = self.again.front.pop_front()?;
            self.returned.remove(seq, seq, |_, _, _| {});
            return Some((seq, message));
        }
        let (seq, message) = self.fresh.front.pop_front()?;
        self.cursor = Seq(seq.0 + 1);
        Some((seq, message))
    }

    /// Checks a message out and makes it a delivery.
    pub fn check_out(&mut self, session: SessionId, seq: Seq, message: Bytes) -> Delivery {
        self.checked.insert(seq, seq, session);
        let redelivered = !self.seen.is_empty() && self.seen.contains(seq);
        Delivery { queue: self.id, seq, redelivered, message }
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The consumer at this place.
    Consumer(usize),
    /// Somebody could, but is not in the list of holders yet.
    Unlisted,
    /// Nobody has credit and room.
    Nobody,
}
