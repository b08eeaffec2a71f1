//! A queue's replicated state in a data shard: how far it was filled, which messages are live and where they lie, what is reserved
//! for delivery and to whom. Called by `shard` (changes) and by `serving` (reads). Consumers and credit are not here.

use super::codec::{Reader, Writer};
use super::dedup::Dedup;
use super::extents::{Extents, Taken};
use super::hash::StateHasher;
use super::notes::Note;
use super::seals::Notes;
use super::shard::RestoreError;
use super::stores::Schedule;
use crate::model::deduplication::Marks;
use crate::model::entry::{EntryBytes, Op, OpsReader, StoredView};
use crate::model::letters::Address;
use crate::model::link::Ranges;
use crate::model::settings::QueueSettings;
use crate::model::store::Store;
use crate::model::{ConsumerId, QueueId, Seq, SessionId};
use bytes::Bytes;
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A run of live messages and where their bodies lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Seq of the first.
    pub first: Seq,
    /// How many.
    pub count: u32,
    /// Log index of the entry.
    pub index: u64,
    /// Position in the entry of an enqueue into this queue, from where `skip` counts.
    pub position: u32,
    /// Enqueues into this queue to pass over, from `position` on, before the first.
    pub skip: u32,
    /// When they expire, ms since the epoch; [`super::AT_ONCE`]: unless a consumer takes them now; 0: never.
    pub deadline_ms: u64,
}

/// A queue.
#[derive(Clone, Debug)]
pub struct Queue {
    tail: u64,
    reserved: u64,
    holders: Vec<SessionId>,
    pub(super) live: Taken,
    /// By priority; one in a queue that tells none apart.
    levels: SmallVec<[Extents; 1]>,
    /// `None`: a plain queue.
    settings: Option<Box<QueueSettings>>,
    /// What the settings say of letters; not state.
    address: Option<Arc<Address>>,
    /// The single active consumer.
    active: Option<(SessionId, ConsumerId)>,
    pub(super) notes: Notes,
    /// Failed deliveries of live messages, where they are counted.
    failures: BTreeMap<u64, Failed>,
    /// Some message of it expires, or did; not state.
    timed: bool,
    /// Of a queue of delayed messages.
    schedule: Option<Box<Schedule>>,
    /// Of a queue that takes no message twice.
    dedup: Option<Box<Dedup>>,
    /// Section in which the last extent may still grow; not state.
    open: u64,
    /// Entries whose effects name this queue already; not state.
    pub(super) timed_in: u64,
    pub(super) enqueued_in: u64,
    pub(super) settled_in: u64,
    pub(super) reserved_in: u64,
    /// A checkpoint holds its row.
    pub(super) stored: bool,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            tail: 0,
            reserved: 0,
            holders: Vec::new(),
            live: Taken::default(),
            levels: smallvec![Extents::default()],
            settings: None,
            address: None,
            active: None,
            notes: Notes::default(),
            failures: BTreeMap::new(),
            timed: false,
            schedule: None,
            dedup: None,
            timed_in: 0,
            open: 0,
            enqueued_in: 0,
            settled_in: 0,
            reserved_in: 0,
            stored: false,
        }
    }
}

/// Failed deliveries of a message, and when the first of them failed, ms since the epoch.
#[derive(Clone, Copy, Debug)]
struct Failed {
    count: u32,
    first_ms: u64,
}

/// A queue without its messages.
#[derive(Clone, Debug)]
pub(super) struct Row {
    tail: u64,
    reserved: u64,
    holders: Vec<SessionId>,
    settings: Option<Box<QueueSettings>>,
    active: Option<(SessionId, ConsumerId)>,
    notes: Notes,
    failures: BTreeMap<u64, Failed>,
}

impl Row {
    /// row := tail u64 | reserved u64 | holders u16 | session u64* | len u32 | settings (MessagePack map; none for a plain queue)
    ///      | active session u64 | active consumer u64 (0: none) | notes u8 | n u32 | (seq u64, failed deliveries u32, first u64)*
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(42 + 8 * self.holders.len());
        out.u64(self.tail);
        out.u64(self.reserved);
        out.u16(self.holders.len() as u16);
        self.holders.iter().for_each(|s| out.u64(s.0));
        out.bytes(&settings_bytes(self.settings.as_deref()));
        let (session, consumer) = self.active.unwrap_or_default();
        out.u64(session.0);
        out.u64(consumer.0);
        out.u8(self.notes.0);
        out.u32(self.failures.len() as u32);
        for (seq, failed) in &self.failures {
            out.u64(*seq);
            out.u32(failed.count);
            out.u64(failed.first_ms);
        }
        out.finish()
    }
}

impl Queue {
    /// What it was declared with beyond a plain queue.
    pub fn settings(&self) -> Option<&QueueSettings> {
        self.settings.as_deref()
    }

    /// What messages that leave it as letters are routed and written by; `None`: none do.
    pub(super) fn address(&self) -> Option<&Arc<Address>> {
        self.address.as_ref()
    }

    /// The consumer that alone gets messages, if one was chosen.
    pub fn active(&self) -> Option<(SessionId, ConsumerId)> {
        self.active
    }

    /// Messages in it may expire.
    pub fn is_timed(&self) -> bool {
        self.timed
    }

    /// When the first delayed message is due, ms since the epoch.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.schedule.as_ref().and_then(|schedule| schedule.next_ms())
    }

    /// Whether messages leave it by themselves for where an exchange routes them, each at its time.
    pub fn is_scheduled(&self) -> bool {
        self.settings.as_ref().is_some_and(|s| s.store.and_then(Store::leaving).is_some())
    }

    /// What a message says of itself; `None`: nothing, or the queue does not care.
    pub(super) fn marks(&self, message: &[u8]) -> Option<Marks> {
        self.dedup.as_ref()?;
        StoredView::parse(message).and_then(|message| Marks::of(message.properties))
    }

    /// Whether a message with these marks came before.
    pub(super) fn came_before(&self, marks: &Marks, now_ms: u64) -> bool {
        self.dedup.as_ref().is_some_and(|dedup| dedup.has(marks, now_ms))
    }

    /// The message that came last has these marks.
    pub(super) fn remember(&mut self, marks: &Marks, now_ms: u64) {
        if let Some(dedup) = &mut self.dedup {
            dedup.put(marks, self.tail, now_ms);
        }
    }

    /// What it remembers, if anything.
    pub(super) fn dedup(&self) -> Option<&Dedup> {
        self.dedup.as_deref()
    }

    /// What it remembers, made when it is not there: checkpoints may bring it before the settings.
    pub(super) fn dedup_mut(&mut self) -> &mut Dedup {
        self.dedup.get_or_insert_default()
    }

    /// The first delayed message, if it is due; the caller settles it.
    pub(super) fn take_due(&mut self, now_ms: u64) -> Option<Seq> {
        self.schedule.as_mut()?.take(now_ms)
    }

    fn set_schedule(&mut self) {
        let mut runs = Vec::new();
        self.locate_in(Seq(0), Seq(self.tail), &mut runs);
        let mut schedule = Box::<Schedule>::default();
        for run in runs {
            (run.first.0..run.first.0 + u64::from(run.count)).for_each(|seq| schedule.add(run.deadline_ms, seq));
        }
        self.schedule = Some(schedule);
    }

    pub(super) fn activate(&mut self, session: SessionId, consumer: ConsumerId) {
        self.active = Some((session, consumer));
    }

    /// The catalog's settings. True when they are others than before.
    pub(super) fn configure(&mut self, settings: QueueSettings) -> bool {
        let settings = (!settings.is_plain()).then(|| Box::new(settings));
        if self.settings == settings {
            return false;
        }
        let wanted = 1 + settings.as_ref().and_then(|s| s.max_priority).map_or(0, usize::from);
        if wanted > self.levels.len() {
            self.levels.resize_with(wanted, Extents::default);
        }
        let address = settings.as_ref().and_then(|s| s.address());
        if address.as_ref() != self.address.as_deref() {
            self.address = address.map(Arc::new);
        }
        self.settings = settings;
        if let Some(deduplication) = self.settings.as_ref().and_then(|s| s.deduplication) {
            self.dedup_mut().configure(deduplication);
        }
        if self.is_scheduled() && self.schedule.is_none() {
            self.set_schedule();
        }
        true
    }

    /// Priorities that are told apart.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// The level of a message of this priority.
    pub(super) fn level(&self, priority: u8) -> usize {
        usize::from(priority).min(self.levels.len() - 1)
    }

    /// The last seq given out; the first is 1, 0 = none yet.
    pub fn tail(&self) -> Seq {
        Seq(self.tail)
    }

    /// Messages that are not settled.
    pub fn live_count(&self) -> u64 {
        self.live.count
    }

    /// Stored bytes of live messages. A batch that is settled in part counts by its mean message.
    pub fn live_bytes(&self) -> u64 {
        self.live.bytes
    }

    /// Messages up to here may have been delivered (rule 18).
    pub fn reserved(&self) -> Seq {
        Seq(self.reserved)
    }

    /// Only these sessions may hold unsettled messages up to `reserved`.
    pub fn holders(&self) -> &[SessionId] {
        &self.holders
    }

    /// Bytes in the bodies of live messages.
    pub fn live_body_bytes(&self) -> u64 {
        self.live.body_bytes
    }

    /// Live messages in `ranges`, and the bytes of their bodies.
    pub fn count_in(&self, ranges: &[(Seq, Seq)]) -> Taken {
        let mut all = Taken::default();
        for (first, last) in ranges {
            for part in self.levels.iter().map(|extents| extents.count_in(first.0, last.0)) {
                all.count += part.count;
                all.body_bytes += part.body_bytes;
            }
        }
        all
    }

    /// Appends the next live messages of a level with seq >= `from`, in order, as runs, at most `max` messages in all.
    pub fn locate(&self, level: usize, from: Seq, max: usize, out: &mut Vec<Located>) {
        self.levels[level].locate(from, max, out);
    }

    /// Appends the live runs in `first..=last`, by priority.
    pub(super) fn locate_in(&self, first: Seq, last: Seq, out: &mut Vec<Located>) {
        for extents in self.levels.iter().rev() {
            let mut from = first;
            while let Some(mut run) = extents.locate_run(from).filter(|run| run.first <= last) {
                run.count = run.count.min(u32::try_from(last.0 - run.first.0 + 1).unwrap_or(u32::MAX));
                from = Seq(run.first.0 + u64::from(run.count));
                out.push(run);
            }
        }
    }

    /// The live messages in `first..=last`, ascending.
    pub fn live_ranges(&self, first: Seq, last: Seq) -> Ranges {
        let mut runs = Vec::new();
        self.locate_in(first, last, &mut runs);
        runs.sort_unstable_by_key(|run| run.first);
        let mut live = Ranges::new();
        for run in runs {
            let end = Seq(run.first.0 + u64::from(run.count) - 1);
            match live.last_mut() {
                Some(before) if before.1.0 + 1 >= run.first.0 => before.1 = before.1.max(end),
                _ => live.push((run.first, end)),
            }
        }
        live
    }

    /// A message that came next was not taken: what follows it in the entry begins a new extent.
    pub(super) fn passed_over(&mut self) {
        self.open = 0;
    }

    /// Failed deliveries of a message.
    pub fn failures(&self, seq: Seq) -> u32 {
        self.failed(seq).0
    }

    /// The same, and when the first of them failed, ms since the epoch; 0: none has.
    pub fn failed(&self, seq: Seq) -> (u32, u64) {
        self.failures.get(&seq.0).map_or((0, 0), |failed| (failed.count, failed.first_ms))
    }

    /// The delivery of messages failed that had failed `before` times when they were given out: each counts once (rule 23). Those that
    /// failed too often, ascending.
    pub(super) fn fail(&mut self, (first, last): (Seq, Seq), before: u32, now_ms: u64) -> Vec<Seq> {
        let Some(limit) = self.settings.as_ref().and_then(|s| s.delivery_limit) else { return Vec::new() };
        let (mut runs, mut over) = (Vec::new(), Vec::new());
        self.locate_in(first, last, &mut runs);
        for seq in runs.iter().flat_map(|r| r.first.0..r.first.0 + u64::from(r.count)) {
            if self.failures(Seq(seq)) != before {
                continue;
            }
            let failed = self.failures.entry(seq).or_insert(Failed { count: 0, first_ms: now_ms });
            failed.count += 1;
            if u64::from(failed.count) > limit {
                over.push(Seq(seq));
            }
        }
        over.sort_unstable();
        over
    }

    /// The live message with the lowest seq; one beyond the tail when there is none.
    pub fn first_live(&self) -> Seq {
        Seq(self.levels.iter().filter_map(Extents::first_live).min().unwrap_or(self.tail + 1))
    }

    /// The first run of a level from `from` on that is not in `checked` (ascending).
    pub fn first_ready(&self, level: usize, from: Seq, checked: &[(Seq, Seq)]) -> Option<Located> {
        let mut from = from;
        loop {
            let mut run = self.levels[level].locate_run(from)?;
            let at = checked.partition_point(|range| range.1 < run.first);
            match checked.get(at) {
                Some((first, last)) if *first <= run.first => from = Seq(last.0.saturating_add(1)),
                Some((first, _)) => {
                    run.count = run.count.min(u32::try_from(first.0 - run.first.0).unwrap_or(u32::MAX));
                    return Some(run);
                }
                None => return Some(run),
            }
        }
    }

    /// Whether the message is there and not settled.
    pub fn is_live(&self, seq: Seq) -> bool {
        self.levels.iter().any(|extents| extents.is_live(seq))
    }

    /// One more message; true when it began a new extent, which is a reference to the entry.
    pub(super) fn enqueue(&mut self, section: u64, (index, position): (u64, u32), bytes: u32, level: usize, note: Note) -> bool {
        let extents = &mut self.levels[level];
        let grown = self.open == section && extents.extend(Seq(self.tail), bytes, note);
        self.tail += 1;
        self.live.count += 1;
        self.live.bytes += u64::from(bytes);
        self.live.body_bytes += u64::from(note.body_bytes);
        self.timed |= note.deadline_ms > 0;
        if let Some(schedule) = &mut self.schedule {
            schedule.add(note.deadline_ms, self.tail);
        }
        if !grown {
            self.open = section;
            extents.push(Seq(self.tail), index, position, bytes, note);
        }
        !grown
    }

    /// Messages leave; unknown ones are ignored. Log indices of extents that end go to `released`. True when any left.
    pub(super) fn settle(&mut self, first: Seq, last: Seq, released: &mut Vec<u64>) -> bool {
        let mut any = false;
        for extents in &mut self.levels {
            let taken = extents.settle(first.0, last.0, released);
            self.live.count -= taken.count;
            self.live.bytes -= taken.bytes;
            self.live.body_bytes -= taken.body_bytes;
            any |= taken.count > 0;
        }
        if let Some(dedup) = self.dedup.as_mut().filter(|_| any) {
            dedup.settled(first.0, last.0);
        }
        while any && let Some((seq, _)) = self.failures.range(first.0..=last.0).next() {
            let seq = *seq;
            self.failures.remove(&seq);
        }
        self.timed &= self.live.count > 0;
        any
    }

    pub(super) fn reserve(&mut self, up_to: Seq, sessions: Vec<SessionId>) {
        self.reserved = self.reserved.max(up_to.0);
        self.holders = sessions;
    }

    pub(super) fn extents(&self) -> impl Iterator<Item = &Extents> {
        self.levels.iter()
    }

    pub(super) fn extents_mut(&mut self) -> impl Iterator<Item = &mut Extents> {
        self.levels.iter_mut()
    }

    /// The extents of a level, as a checkpoint names it.
    pub(super) fn level_mut(&mut self, level: u8) -> &mut Extents {
        let level = usize::from(level);
        if level >= self.levels.len() {
            self.levels.resize_with(level + 1, Extents::default);
        }
        &mut self.levels[level]
    }

    /// What a checkpoint keeps of it beside the extents.
    pub(super) fn row(&self) -> Row {
        Row {
            tail: self.tail,
            reserved: self.reserved,
            holders: self.holders.clone(),
            settings: self.settings.clone(),
            active: self.active,
            notes: self.notes,
            failures: self.failures.clone(),
        }
    }

    pub(super) fn decode_row(&mut self, value: &[u8]) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        self.tail = input.u64()?;
        self.reserved = input.u64()?;
        let holders = input.u16()?;
        self.holders = (0..holders).map(|_| input.u64().map(SessionId)).collect::<Result<_, _>>()?;
        match input.bytes()? {
            [] => {}
            bytes => {
                self.configure(rmp_serde::from_slice(bytes).map_err(|_| RestoreError::Malformed("settings of a queue"))?);
            }
        }
        let active = (SessionId(input.u64()?), ConsumerId(input.u64()?));
        self.active = (active != Default::default()).then_some(active);
        self.notes = Notes(input.u8()?);
        for _ in 0..input.u32()? {
            self.failures.insert(input.u64()?, Failed { count: input.u32()?, first_ms: input.u64()? });
        }
        input.end()
    }

    /// After all rows and chunks are in: counts afresh what is not stored.
    pub(super) fn complete(&mut self) -> Result<(), RestoreError> {
        self.live = Taken::default();
        for extents in &self.levels {
            if !extents.is_sound() || extents.last() > self.tail {
                return Err(RestoreError::Malformed("extents out of order"));
            }
            let part = extents.count();
            self.live.count += part.count;
            self.live.bytes += part.bytes;
            self.live.body_bytes += part.body_bytes;
            self.timed |= extents.is_timed();
        }
        if self.is_scheduled() {
            self.set_schedule();
        }
        Ok(())
    }

    pub(super) fn hash(&self, hasher: &mut StateHasher) {
        hasher.word(self.tail);
        hasher.word(self.reserved);
        hasher.word(self.holders.len() as u64);
        self.holders.iter().for_each(|s| hasher.word(s.0));
        hasher.word(self.live.count);
        hasher.word(self.live.bytes);
        hasher.word(self.live.body_bytes);
        hasher.bytes(&settings_bytes(self.settings()));
        let (session, consumer) = self.active.unwrap_or_default();
        [session.0, consumer.0, u64::from(self.notes.0)].into_iter().for_each(|word| hasher.word(word));
        self.failures.iter().flat_map(|(seq, failed)| [*seq, u64::from(failed.count), failed.first_ms]).for_each(|word| hasher.word(word));
        self.levels.iter().for_each(|extents| extents.hash(hasher));
        self.dedup.iter().for_each(|dedup| dedup.hash(hasher));
    }
}

fn settings_bytes(settings: Option<&QueueSettings>) -> Vec<u8> {
    let bytes = |s| rmp_serde::to_vec_named(s).expect("plain data, writing to memory cannot fail");
    settings.map_or(Vec::new(), bytes)
}

/// Reads the messages of a run out of its entry: slices, no copies. Gives fewer when the entry is not the one the run names, and leaves
/// out what is gone from what is left of an entry (`trimmed`): it was settled since the run was located.
pub fn read_run(entry: &EntryBytes, queue: QueueId, run: &Located, out: &mut Vec<(Seq, Bytes)>) {
    let (mut skip, mut next, end) = (run.skip, run.first.0, run.first.0 + u64::from(run.count));
    for op in OpsReader::at(entry, run.position as usize) {
        match op {
            Err(_) => return,
            Ok(Op::Enqueue(op)) => {
                for _ in op.queues().filter(|q| *q == queue) {
                    if skip > 0 {
                        skip -= 1;
                        continue;
                    }
                    if next == end {
                        return;
                    }
                    out.push((Seq(next), op.message.clone()));
                    next += 1;
                }
            }
            Ok(Op::Gone(passed)) => {
                let mut gone: u32 = passed.iter().filter(|(q, _)| *q == queue).map(|(_, count)| *count).sum();
                let before = skip.min(gone);
                (skip, gone) = (skip - before, gone - before);
                next += u64::from(gone);
            }
            Ok(_) => {}
        }
        if next >= end {
            return;
        }
    }
}
