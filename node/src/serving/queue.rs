//! The volatile side of one queue while this node leads: its levels, what is checked out or seen before, consumers in turn, and what
//! is due (expiry, limits). Driven by `delivery`, `requests` and `tending`.

use super::edges::PathId;
use super::level::Level;
use super::parking::Parked;
use super::ranges::{RangeMap, RangeSet};
use super::sealing::Wish;
use super::taking::Take;
use super::transactions::UNDECIDED;
use crate::machine::Queue;
use crate::model::link::{Consumer as Spec, Delivery, Ranges};
use crate::model::settings::QueueSettings;
use crate::model::{ConsumerId, QueueId, Seq, SessionId, limits};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::VecDeque;
use tokio::time::Instant;

/// Holder that never attaches: some message up to the reserved mark was seen by a client that does not hold it any more, so a later
/// leader must call the unattached ones redelivered.
pub(super) const SEEN_MARK: SessionId = SessionId(0);

/// What a message is taken for where a consumer's window must be told in messages.
const ROOM_BYTES: i64 = 512;

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

    /// Messages it can take at once: as many as its credit and, at [`ROOM_BYTES`] each, what is left of its window let through.
    pub fn room(&self) -> u32 {
        if !self.wants() {
            return 0;
        }
        let fit = u32::try_from(self.bytes.max(0) / ROOM_BYTES).unwrap_or(u32::MAX).max(1);
        self.credit.map_or(fit, |left| fit.min(u32::try_from(left).unwrap_or(u32::MAX)))
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

/// A basic.get that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Get {
    pub path: PathId,
    pub session: SessionId,
    pub request: u64,
}

/// Where an operation of the leader's own stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
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
    /// By priority.
    pub levels: SmallVec<[Level; 1]>,
    /// May have been seen by a client before.
    pub seen: RangeSet,
    pub checked: RangeMap<SessionId>,
    /// What sessions say that they hold to which no former leader gave it as far as is on record: theirs when `held` ends, unless
    /// it turns out to be another's.
    claims: RangeMap<SessionId>,
    pub consumers: Vec<Consumer>,
    turn: usize,
    /// A session that is not in `holders` holds messages that a former leader gave it.
    unlisted_held: bool,
    pub gets: VecDeque<Get>,
    pub takes: VecDeque<Take>,
    /// As applied.
    pub reserved: Seq,
    /// The last message that was there when this node began to lead: no leader before it delivered one behind it, however far the mark is.
    inherited: Seq,
    pub holders: SmallVec<[SessionId; 4]>,
    pub reserve: Step,
    /// Not delivered until every holder attached or is gone (rule 18).
    pub held: bool,
    /// Requests that wait for the end of `held`, or for what `ShardServer::must_wait` names.
    pub parked: Vec<Parked>,
    /// Where its seal stands, whether it is applied, and who wants it.
    pub seal: Step,
    pub sealed: bool,
    pub wishes: Vec<Wish>,
    /// Seals that the machine refused since somebody wanted one.
    pub refusals: u32,
    /// Returns of messages that clients saw, of which later leaders do not know yet: who is to be told when they do.
    pub unrecorded: Vec<(SessionId, Ranges)>,
    /// Those that the reservation in flight puts on record.
    pub recording: Vec<(SessionId, Ranges)>,
    /// The last consumer may be gone: that is to be looked at once everybody is heard of.
    pub last_gone: bool,
    /// In the server's list of queues to pump.
    pub dirty: bool,
    /// In the server's list of queues with a window.
    pub loaded: bool,
    /// Pumped since the last tick.
    pub used: bool,
    /// What it has beyond a plain queue, also while messages in it expire.
    pub care: Option<Box<Care>>,
}

/// What a queue needs of its leader beyond delivery.
#[derive(Debug)]
pub(super) struct Care {
    pub settings: QueueSettings,
    /// Where its `Tend` stands.
    pub tend: Step,
    /// Entries in flight that may take messages away: nothing is delivered meanwhile.
    pub frozen: u32,
    /// Those of them that count what was given back.
    pub counting: u32,
    /// Messages on their way into it in entries in flight.
    pub coming: u64,
    /// Where the choice of its single active consumer stands.
    pub activate: Step,
    /// As applied.
    pub active: Option<(SessionId, ConsumerId)>,
    /// A better one than the active one waits until that has settled what it holds; it gets nothing new.
    pub yields: bool,
    /// Delivered to the active one and not dealt with, as far as that is known; what `checked` says counts.
    given: RangeSet,
    /// When it is to be looked at again.
    pub alarm: Option<Instant>,
    /// Last consumer, get or declare.
    pub last_used: Instant,
    /// The node was told to delete it.
    pub unused_told: bool,
    /// When the first of the delayed messages was due that the `Tend` in flight lets go; 0: none.
    pub due_ms: u64,
}

impl Care {
    fn new(queue: &Queue) -> Care {
        Care {
            settings: queue.settings().cloned().unwrap_or_default(),
            tend: Step::Idle,
            frozen: 0,
            counting: 0,
            coming: 0,
            activate: Step::Idle,
            active: queue.active(),
            yields: false,
            given: RangeSet::default(),
            alarm: None,
            last_used: Instant::now(),
            unused_told: false,
            due_ms: 0,
        }
    }

    /// Who alone gets messages, where only one does; `None` within: nobody for now.
    fn only(&self) -> Option<Option<(SessionId, ConsumerId)>> {
        self.settings.single_active_consumer.then_some(self.active.filter(|_| !self.yields))
    }

    /// Another consumer is active.
    pub fn activated(&mut self, active: Option<(SessionId, ConsumerId)>) {
        self.activate = Step::Idle;
        if self.active != active {
            (self.active, self.yields, self.given) = (active, false, RangeSet::default());
        }
    }

    /// Time without use counts from the moment that it is limited, or limited otherwise.
    fn configure(&mut self, settings: QueueSettings) {
        if settings.expires_ms != self.settings.expires_ms {
            (self.last_used, self.unused_told) = (Instant::now(), false);
        }
        self.settings = settings;
    }

    /// Messages leave it by themselves when it is full.
    pub fn drops_head(&self) -> bool {
        self.settings.is_limited() && self.settings.overflow == crate::model::settings::Overflow::DropHead
    }
}

impl QueueState {
    /// As a new leader finds it: all holders may still hold messages up to the reserved mark.
    pub fn new(id: QueueId, queue: &Queue) -> QueueState {
        let care = queue.settings().is_some() || queue.is_timed();
        QueueState {
            id,
            levels: (0..queue.levels()).map(|level| Level::new(level, queue)).collect(),
            seen: RangeSet::default(),
            checked: RangeMap::default(),
            claims: RangeMap::default(),
            consumers: Vec::new(),
            turn: 0,
            unlisted_held: false,
            gets: VecDeque::new(),
            takes: VecDeque::new(),
            reserved: queue.reserved(),
            inherited: queue.tail(),
            holders: SmallVec::from_slice(queue.holders()),
            reserve: Step::Idle,
            held: queue.first_live() <= queue.reserved(),
            parked: Vec::new(),
            seal: Step::Idle,
            sealed: queue.is_sealed(),
            wishes: Vec::new(),
            refusals: 0,
            unrecorded: Vec::new(),
            recording: Vec::new(),
            last_gone: false,
            dirty: false,
            loaded: false,
            used: false,
            care: care.then(|| Box::new(Care::new(queue))),
        }
    }

    /// All that lives and is not checked out is to be delivered, from the first one on.
    pub fn restart(&mut self, queue: &Queue) {
        self.levels = (0..queue.levels()).map(|level| Level::new(level, queue)).collect();
    }

    /// The machine has other settings for it, or messages that expire.
    pub fn configure(&mut self, queue: &Queue) {
        match &mut self.care {
            Some(care) => care.configure(queue.settings().cloned().unwrap_or_default()),
            None => self.care = Some(Box::new(Care::new(queue))),
        }
        while self.levels.len() < queue.levels() {
            self.levels.push(Level::new(self.levels.len(), queue));
        }
    }

    /// Everything below was delivered or waits again.
    fn cursor(&self) -> Seq {
        self.levels.iter().map(|l| l.cursor).max().unwrap_or_default()
    }

    /// Messages came.
    pub fn news(&mut self) {
        self.levels.iter_mut().for_each(|l| l.exhausted = false);
    }

    /// The machine took messages away.
    pub fn forget_window(&mut self) {
        self.levels.iter_mut().for_each(Level::forget_window);
    }

    /// Nothing is to be delivered for now.
    pub fn is_still(&self) -> bool {
        self.held || self.care.as_ref().is_some_and(|c| c.frozen > 0)
    }

    /// What consumers hold.
    pub fn checked_ranges(&self) -> Ranges {
        let mut ranges = Ranges::new();
        for (first, last, _) in self.checked.ranges() {
            match ranges.last_mut() {
                Some(before) if before.1.0 + 1 == first.0 => before.1 = last,
                _ => ranges.push((first, last)),
            }
        }
        ranges
    }

    /// Messages that consumers take at once.
    pub fn room(&self) -> u32 {
        if self.held {
            return 0;
        }
        let only = self.care.as_ref().and_then(|c| c.only());
        let takes = |c: &&Consumer| only.is_none_or(|active| active == Some((c.session, c.spec.id)));
        self.consumers.iter().filter(takes).fold(0, |all, c| all.saturating_add(c.room()))
    }

    /// The hold ends; `lost` = some holder is gone, so the unattached may have been seen.
    pub fn release(&mut self, lost: bool) {
        self.held = false;
        if lost {
            let first = self.levels.iter().map(|l| l.cursor).min().unwrap_or_default();
            self.seen.insert(first, self.reserved.min(self.inherited), ());
        }
        for (first, last, session) in std::mem::take(&mut self.claims).ranges() {
            self.check_out_held(session, first, last);
        }
    }

    pub fn may_hold(&self, session: SessionId) -> bool {
        self.holders.contains(&session)
    }

    /// The next consumer in turn that can take a message, those of a higher priority first; `open` says whether its path has room.
    pub fn choose(&mut self, mut open: impl FnMut(&Consumer) -> bool) -> Choice {
        let only = self.care.as_ref().and_then(|c| c.only());
        let mut unlisted = false;
        let mut start = 0;
        for group in self.consumers.chunk_by(|a, b| a.spec.priority == b.spec.priority) {
            let n = group.len();
            for step in 0..n {
                let at = (self.turn + step) % n;
                let consumer = &group[at];
                let silent = only.is_some_and(|active| active != Some((consumer.session, consumer.spec.id)));
                if silent || !consumer.wants() || !open(consumer) {
                    continue;
                }
                if !self.holders.contains(&consumer.session) {
                    unlisted = true;
                    continue;
                }
                self.turn = at + 1;
                return Choice::Consumer(start + at);
            }
            start += n;
        }
        if unlisted { Choice::Unlisted } else { Choice::Nobody }
    }

    /// A message goes to the consumer at this place.
    pub fn deliver(&mut self, at: usize, delivery: Delivery) {
        let consumer = &mut self.consumers[at];
        if let Some(care) = self.care.as_mut().filter(|c| c.settings.single_active_consumer) {
            care.given.insert(delivery.seq, delivery.seq, ());
        }
        consumer.push(delivery);
    }

    /// A consumer came back with these messages.
    pub fn has_still(&mut self, consumer: (SessionId, ConsumerId), held: &Ranges) {
        if let Some(care) = self.care.as_mut().filter(|c| c.settings.single_active_consumer && c.active == Some(consumer)) {
            held.iter().filter(|(first, last)| first <= last).for_each(|(first, last)| care.given.insert(*first, *last, ()));
        }
    }

    /// The active consumer holds messages: others that its node holds are another one's, or came by basic.get.
    pub fn active_holds(&self) -> bool {
        let Some(care) = self.care.as_ref().filter(|c| !c.given.is_empty()) else { return false };
        let Some((session, _)) = care.active else { return false };
        let mut held = self.checked.ranges().filter(|(_, _, holder)| *holder == session);
        held.any(|(first, last, _)| care.given.gaps(first, last) != [(first, last)])
    }

    fn not_given(&mut self, first: Seq, last: Seq) {
        if let Some(care) = self.care.as_mut().filter(|c| !c.given.is_empty()) {
            care.given.remove(first, last, |_, _, _| {});
        }
    }

    /// One more consumer, behind those of its priority that came before it.
    pub fn add_consumer(&mut self, consumer: Consumer) {
        let rank = |c: &Consumer| (std::cmp::Reverse(c.spec.priority), c.spec.order);
        let at = self.consumers.partition_point(|c| rank(c) <= rank(&consumer));
        self.consumers.insert(at, consumer);
    }

    /// A later leader knows that messages up to the reserved mark may have been seen, or none of those is left.
    pub fn is_on_record(&self) -> bool {
        self.seen.is_empty() || self.may_hold(SEEN_MARK)
    }

    /// Whether the reserved mark or the list of holders must be renewed.
    pub fn needs_reserve(&self) -> bool {
        let active = !self.consumers.is_empty() || !self.gets.is_empty() || !self.takes.is_empty();
        let short = self.reserved.0 + 1 < self.cursor().0 + limits::RESERVE_AHEAD / 2;
        let mark = self.reserved.0 > 0 && !self.is_on_record();
        self.reserve == Step::Idle && !self.held && ((active && short) || mark || self.has_unlisted())
    }

    /// Sessions that messages may be handed to.
    fn users(&self) -> impl Iterator<Item = SessionId> {
        let asking = self.gets.iter().map(|g| g.session).chain(self.takes.iter().map(|t| t.session));
        self.consumers.iter().map(|c| c.session).chain(asking)
    }

    fn has_unlisted(&self) -> bool {
        self.unlisted_held || self.users().any(|s| !self.may_hold(s))
    }

    /// What to propose: the mark, and everybody who may hold messages up to it.
    pub fn reservation(&mut self, queue: &Queue) -> (Seq, Vec<SessionId>) {
        self.forget_seen(queue);
        self.recording.append(&mut self.unrecorded);
        self.unlisted_held = false;
        let listed = self.users();
        let holders = self.checked.ranges().map(|(_, _, session)| session).filter(|session| *session != UNDECIDED);
        let mut sessions: Vec<SessionId> = listed.chain(holders).collect();
        if !self.seen.is_empty() {
            sessions.push(SEEN_MARK);
        }
        sessions.sort_unstable();
        sessions.dedup();
        // From now on the old list or the new one may count: whoever is not in both gets nothing until the outcome is known.
        self.holders.retain(|s| sessions.contains(s));
        (self.reserved.max(Seq(self.cursor().0 - 1 + limits::RESERVE_AHEAD)), sessions)
    }

    fn forget_seen(&mut self, queue: &Queue) {
        if self.seen.is_empty() {
            return;
        }
        self.seen.remove(Seq(0), Seq(queue.first_live().0 - 1), |_, _, _| {});
    }

    /// Checks out what a session says it holds; what another one holds stays with that one.
    pub fn check_out_held(&mut self, session: SessionId, first: Seq, last: Seq) {
        if self.held && !self.may_hold(session) {
            return self.claims.insert_free(first, last, session);
        }
        self.checked.insert_free(first, last, session);
        self.unlisted_held |= !self.may_hold(session);
        self.forget_returned(first, last);
    }

    fn forget_returned(&mut self, first: Seq, last: Seq) {
        for level in &mut self.levels {
            if !level.returned.is_empty() {
                level.returned.remove(first, last, |_, _, _| {});
            }
            level.again.clear();
        }
    }

    /// A session gives messages back. Those it does not hold are left alone, but a client saw them.
    pub fn give_back(&mut self, session: SessionId, first: Seq, last: Seq, seen: bool) {
        self.claims.remove_of(first, last, session);
        let pieces = self.checked.remove_of(first, last, session);
        for (a, b) in &pieces {
            self.put_back(*a, *b, seen);
        }
        if seen {
            let last = Seq(last.0.min(self.cursor().0.max(self.reserved.0)));
            let unheld = self.checked.gaps(first, last);
            unheld.into_iter().for_each(|(a, b)| self.seen.insert(a, b, ()));
        }
    }

    /// A session is gone: all it held goes back as seen. True when it held anything.
    pub fn give_back_all(&mut self, session: SessionId, seen: bool) -> bool {
        let pieces = self.take_held(session);
        pieces.iter().for_each(|(a, b)| self.put_back(*a, *b, seen));
        !pieces.is_empty()
    }

    /// The session's client is done with these, whoever has them.
    pub fn disclaim(&mut self, session: SessionId, ranges: &Ranges) {
        ranges.iter().for_each(|(first, last)| drop(self.claims.remove_of(*first, *last, session)));
    }

    /// Takes everything off the tables that a session holds; returns what it was.
    pub fn take_held(&mut self, session: SessionId) -> Ranges {
        self.claims.remove_all_of(session);
        self.checked.remove_all_of(session)
    }

    /// These are not checked out any more and wait again.
    pub fn put_back(&mut self, first: Seq, last: Seq, seen: bool) {
        if seen {
            self.seen.insert(first, last, ());
        }
        self.not_given(first, last);
        self.levels.iter_mut().for_each(|level| level.put_back(first, last));
    }

    /// The machine settled these.
    pub fn settled(&mut self, first: Seq, last: Seq) {
        let mut held = 0;
        self.not_given(first, last);
        self.claims.remove(first, last, |_, _, _| {});
        self.checked.remove(first, last, |a, b, _| held += b.0 - a.0 + 1);
        if !self.seen.is_empty() {
            self.seen.remove(first, last, |_, _, _| {});
        }
        if held < (last.0 - first.0).saturating_add(1) {
            self.forget_returned(first, last);
        }
        // The window may hold messages at or after the cursor that were attached, and passed over only while checked out.
        for level in self.levels.iter_mut().filter(|l| last >= l.cursor) {
            level.fresh.clear();
        }
    }

    /// Everything that waits, as ranges to settle, and how many messages that is; they are not delivered any more.
    pub fn purge(&mut self, queue: &Queue) -> (Vec<(Seq, Seq)>, u64) {
        let ranges = if queue.live_count() > 0 { self.checked.gaps(queue.first_live(), queue.tail()) } else { Vec::new() };
        self.levels.iter_mut().for_each(|level| level.skip_to(queue.tail()));
        (ranges, queue.live_count().saturating_sub(self.checked.count()))
    }

    /// Checks a message out and makes it a delivery.
    pub fn check_out(&mut self, session: SessionId, seq: Seq, message: Bytes) -> Delivery {
        self.checked.insert(seq, seq, session);
        let redelivered = !self.seen.is_empty() && self.seen.contains(seq);
        Delivery { queue: self.id, seq, redelivered, failures: 0, failed_ms: 0, message }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// As in RabbitMQ: a policy that limits a queue in use must not find it unused for as long as this node leads.
    #[test]
    fn time_without_use_counts_from_the_moment_that_it_is_limited() {
        let mut care = Care::new(&Queue::default());
        let mut limit = |expires_ms| {
            let before = care.last_used;
            std::thread::sleep(Duration::from_millis(1));
            care.unused_told = true;
            care.configure(QueueSettings { expires_ms, max_length: Some(9), ..QueueSettings::default() });
            (care.last_used > before, care.unused_told)
        };
        assert_eq!(limit(Some(60_000)), (true, false));
        assert_eq!(limit(Some(60_000)), (false, true), "the same again changes nothing");
        assert_eq!(limit(Some(30_000)), (true, false));
    }
}
