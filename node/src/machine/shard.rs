//! The replicated state of a data shard: a pure function of its log. Called by `consensus` (apply, checkpoints) and read by `serving`.
//! Local (in-memory) shards use the same machine without checkpoints. Not here: consumers, clocks, IO, bodies.

use super::capture::Capture;
use super::dead::{Routed, Waiting};
use super::exits::Exits;
use super::extents::Extents;
pub use super::faults::{Fault, RestoreError};
use super::hash::StateHasher;
use super::limits::{self, Bases};
use super::notes::Note;
use super::queue::Queue;
use super::sessions::{Refused, Sessions, Standing};
use super::stores;
use super::stream::Stream;
use super::transactions::{Leaving, Transactions};
use crate::model::entry::{EnqueueOp, EntryBytes, Malformed, Op, OpsReader, Section, SectionReply, SettleReason, read_entry, version_of};
use crate::model::link::RefusedEnqueue;
use crate::model::settings::{Overflow, QueueSettings};
use crate::model::{BatchSeq, Incarnation, LogId, NodeId, QueueId, Seq, SessionId, ShardId, TxId, version};
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// What applying an entry brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// One per section, in order.
    pub replies: Vec<SectionReply>,
    /// What `serving` must look at; a queue is named at most once per kind.
    pub effects: Vec<Effect>,
    /// Log indices whose entry has no live message any more; over the log's life each applied index appears exactly once, an entry
    /// that left nothing alive right when it is applied.
    pub freed: Vec<u64>,
}

/// A change that somebody may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Messages came.
    Enqueued {
        /// Where.
        queue: QueueId,
    },
    /// Messages left.
    Settled {
        /// Where.
        queue: QueueId,
    },
    /// `Queue::reserved` or its holders changed.
    Reserved {
        /// Where.
        queue: QueueId,
    },
    /// `Queue::settings` changed.
    Configured {
        /// Where.
        queue: QueueId,
    },
    /// Chunks came to a stream.
    Appended {
        /// Which.
        stream: QueueId,
    },
    /// There are new dead letters.
    Died,
    /// A message came whose time ends.
    Timed {
        /// Where.
        queue: QueueId,
    },
    /// A queue is there.
    Created {
        /// Which.
        queue: QueueId,
    },
    /// A queue is gone, with all in it.
    Dropped {
        /// Which.
        queue: QueueId,
    },
    /// An edge said hello.
    SessionOpened {
        /// Its session.
        session: SessionId,
        /// Its node.
        node: NodeId,
        /// Its process.
        incarnation: Incarnation,
    },
    /// A session was replaced or declared gone.
    SessionGone {
        /// Which.
        session: SessionId,
        /// Its node.
        node: NodeId,
    },
    /// A transaction over several shards has changed: its part came or ended, its edge is gone, its decision is wanted.
    Transaction {
        /// Which.
        tx: TxId,
    },
    /// The shard follows the catalog to here.
    Advanced {
        /// The catalog index.
        to: u64,
    },
}

/// A data shard's state.
#[derive(Clone, Debug)]
pub struct DataMachine {
    pub(super) shard: ShardId,
    pub(super) applied: LogId,
    /// The latest version of any entry.
    pub(super) version: u8,
    /// The latest that can be applied; not state.
    pub(super) supports: u8,
    pub(super) catalog_index: u64,
    pub(super) last_time_ms: u64,
    pub(super) queues: HashMap<QueueId, Queue>,
    pub(super) streams: BTreeMap<QueueId, Stream>,
    /// No segment of a stream is too old before; not state.
    pub(super) streams_end_ms: u64,
    pub(super) sessions: Sessions,
    /// Extents per entry.
    pub(super) entries: BTreeMap<u64, u32>,
    /// Queues changed since the last checkpoint.
    pub(super) dirty: BTreeSet<QueueId>,
    /// Keys of the checkpoint that ended.
    pub(super) gone: Vec<Vec<u8>>,
    /// The next checkpoint stands for itself.
    pub(super) full: bool,
    /// Under way; not state.
    pub(super) captures: Vec<Capture>,
    pub(super) last_capture: u64,
    section: u64,
    pub(super) references: u32,
    /// Dead letters, and what the entry being applied lets go of.
    pub(super) exits: Exits,
    pub(super) transactions: Transactions,
    /// What the entry being applied says of queues with limits.
    pub(super) bases: Bases,
}

/// What became of a message that was to be put into a queue.
enum Put {
    /// It is there, or was before.
    Done,
    NoQueue,
    /// The queue is about to be deleted.
    Sealed,
    Full,
}

impl DataMachine {
    /// An empty one, before any entry.
    pub fn new(shard: ShardId) -> DataMachine {
        DataMachine::supporting(version::SUPPORTED, shard)
    }

    /// The same of a program that applies versions up to this one.
    pub fn supporting(supports: u8, shard: ShardId) -> DataMachine {
        DataMachine {
            shard,
            applied: LogId::default(),
            version: version::FIRST,
            supports,
            catalog_index: 0,
            last_time_ms: 0,
            queues: HashMap::new(),
            streams: BTreeMap::new(),
            streams_end_ms: 0,
            sessions: Sessions::default(),
            entries: BTreeMap::new(),
            dirty: BTreeSet::new(),
            gone: Vec::new(),
            full: true,
            captures: Vec::new(),
            last_capture: 0,
            section: 0,
            references: 0,
            exits: Exits::default(),
            transactions: Transactions::default(),
            bases: Bases::default(),
        }
    }

    /// Applies the next entry.
    pub fn apply(&mut self, id: LogId, entry: &EntryBytes) -> Result<Applied, Fault> {
        self.check_order(id)?;
        if u32::try_from(entry.len()).is_err() {
            return Err(Fault::TooLarge { index: id.index });
        }
        let written_in = version_of(entry).unwrap_or_default();
        version::check(written_in, self.supports)?;
        let (time_ms, sections) = read_entry(entry)?;
        if sections.iter().filter(|s| matches!(s, Section::Hello { .. })).count() > 1 {
            return Err(Fault::TwoHellos { index: id.index });
        }
        let mut out = Applied { replies: Vec::with_capacity(sections.len()), ..Applied::default() };
        self.references = 0;
        self.version = self.version.max(written_in);
        self.bases.clear();
        self.last_time_ms = self.last_time_ms.max(time_ms);
        (self.exits.time_ms, self.exits.any_died, self.exits.leaving) = (self.last_time_ms, false, crate::model::limits::LEAVING_PER_ENTRY);
        self.age_streams();
        for section in sections {
            self.section += 1;
            let reply = self.section(id.index, section, &mut out.effects)?;
            out.replies.push(reply);
        }
        if self.exits.any_died {
            out.effects.push(Effect::Died);
        }
        self.applied = id;
        self.count_references(id.index, &mut out.freed);
        Ok(out)
    }

    /// The log moved on with an entry that is not the machine's (blank, membership).
    pub fn pass(&mut self, id: LogId) -> Result<(), Fault> {
        self.check_order(id)?;
        self.applied = id;
        Ok(())
    }

    /// Its shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The latest version that it has applied an entry of.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// Last applied; index 0 = none.
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// How far the shard follows the catalog (rule 27).
    pub fn catalog_index(&self) -> u64 {
        self.catalog_index
    }

    /// Latest time an entry carried, ms since the epoch.
    pub fn last_time_ms(&self) -> u64 {
        self.last_time_ms
    }

    /// A queue.
    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(&id)
    }

    /// All queues, by id. Sorts: not for every message.
    pub fn queues(&self) -> impl Iterator<Item = (QueueId, &Queue)> {
        let mut all: Vec<_> = self.queues.iter().map(|(id, queue)| (*id, queue)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all.into_iter()
    }

    /// All sessions, by id, with the last batch applied.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, NodeId, Incarnation, BatchSeq)> + '_ {
        self.sessions.iter().map(|(id, row)| (id, row.node, row.incarnation, row.last))
    }

    /// The last batch applied of a session, `None` when it is unknown.
    pub fn last_batch(&self, session: SessionId) -> Option<BatchSeq> {
        self.sessions.get(session).map(|row| row.last)
    }

    /// Queues with letters that have no way yet.
    pub fn letter_sources(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.exits.dead.sources()
    }

    /// The first letters of a queue without a way, from a number on.
    pub fn waiting_letters(&self, queue: QueueId, from: u64) -> Option<(u64, Waiting)> {
        self.exits.dead.waiting(queue, from)
    }

    /// Letters with a way that are not everywhere yet, in runs, by the number of the first.
    pub fn routed_letters(&self) -> impl Iterator<Item = (u64, &Routed)> {
        self.exits.dead.all_routed()
    }

    /// What of the letters with these numbers has a way and is not everywhere yet, in runs, by the number of the first.
    pub fn routed_among(&self, first: u64, last: u64) -> Vec<(u64, Routed)> {
        self.exits.dead.routed(first, last)
    }

    /// A letter with a way that is not everywhere yet.
    pub fn routed_letter(&self, number: u64) -> Option<Routed> {
        self.routed_among(number, number).pop().map(|(_, routed)| routed)
    }

    /// A queue may add dead letters of its own accord: its outbox is not full.
    pub fn buries(&self, queue: QueueId) -> bool {
        self.exits.dead.room(queue) > 0
    }

    /// Indices of entries with live messages, ascending.
    pub fn live_entries(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// Equal on all replicas that applied the same entries.
    pub fn state_hash(&self) -> u64 {
        let mut hasher = StateHasher::new();
        let id = self.applied;
        [u64::from(self.shard.0), id.leader.term, id.leader.voter, id.index, self.catalog_index, self.last_time_ms]
            .into_iter()
            .for_each(|word| hasher.word(word));
        if self.version > version::FIRST {
            hasher.word(u64::from(self.version));
        }
        self.sessions.hash(&mut hasher);
        self.exits.dead.hash(&mut hasher);
        self.transactions.hash(&mut hasher);
        for (id, queue) in self.queues() {
            hasher.word(id.0);
            queue.hash(&mut hasher);
        }
        for (id, stream) in self.streams() {
            hasher.word(id.0);
            stream.hash(&mut hasher);
        }
        hasher.finish()
    }

    fn check_order(&self, id: LogId) -> Result<(), Fault> {
        if id.index <= self.applied.index { Err(Fault::Order { index: id.index, applied: self.applied.index }) } else { Ok(()) }
    }

    fn section(&mut self, index: u64, section: Section, effects: &mut Vec<Effect>) -> Result<SectionReply, Fault> {
        Ok(match section {
            Section::Batch { session, seq, floor, catalog_index, ops } => {
                self.batch(index, (session, seq, floor), catalog_index, ops, effects)?
            }
            Section::Leader { ops } => {
                self.ops(index, None, ops, effects)?;
                SectionReply::Leader
            }
            Section::Hello { node, incarnation } => self.hello(SessionId(index), node, incarnation, effects),
            Section::Gone { session } => {
                let incarnation = self.sessions.get(session).map(|row| row.incarnation).unwrap_or_default();
                if let Some(node) = self.sessions.gone(session) {
                    self.orphaned(index, (node, incarnation), effects);
                    effects.push(Effect::SessionGone { session, node });
                }
                SectionReply::Gone
            }
            Section::Advance { from, to, creates, drops, replays } => {
                let accepted = from == self.catalog_index && to >= from;
                if accepted {
                    self.advance(to, &creates, &drops, effects);
                    for (id, binding) in replays {
                        self.queues.get(&id).into_iter().for_each(|queue| self.exits.replay(id, queue, binding));
                    }
                }
                SectionReply::Advanced { accepted }
            }
            Section::Settings { at, queue, settings } => {
                self.configure(at, queue, *settings, effects);
                SectionReply::Settings
            }
        })
    }

    fn batch(
        &mut self,
        index: u64,
        (session, seq, floor): (SessionId, BatchSeq, BatchSeq),
        catalog_index: u64,
        ops: OpsReader,
        effects: &mut Vec<Effect>,
    ) -> Result<SectionReply, Fault> {
        Ok(match self.sessions.standing(session, seq) {
            // Routed by a catalog whose advance got lost on the way: its queues are not known here yet (rule 27).
            Standing::Next if catalog_index > self.catalog_index => SectionReply::Gap { session, last: BatchSeq(seq.0 - 1) },
            Standing::Next => {
                let refused = self.ops(index, Some(session), ops, effects)?;
                self.sessions.accept(session, seq, floor, &refused);
                SectionReply::Batch { session, seq, refused }
            }
            Standing::Duplicate(refused) => SectionReply::Batch { session, seq, refused },
            Standing::Gap(last) => SectionReply::Gap { session, last },
            Standing::Unknown => SectionReply::UnknownSession { session },
        })
    }

    /// `session`: whose they are, the leader's are nobody's.
    fn ops(&mut self, index: u64, session: Option<SessionId>, ops: OpsReader, effects: &mut Vec<Effect>) -> Result<Refused, Fault> {
        let (mut refused, mut ordinal) = (Refused::new(), 0);
        for op in ops {
            match op? {
                Op::Enqueue(op) => {
                    if let Some(why) = self.enqueue(index, &op, effects) {
                        refused.push((ordinal, why));
                    }
                    ordinal += 1;
                }
                Op::Append(op) => {
                    refused.extend(self.append(index, &op, effects).map(|why| (ordinal, why)));
                    ordinal += 1;
                }
                Op::Store { stream, reader, offset } => self.store(stream, &reader, offset),
                Op::Part(part) => {
                    let why = self.part(index, session, part, effects)?;
                    refused.extend(why.map(|why| (ordinal, why)));
                    ordinal += 1;
                }
                Op::Word { tx, word } => {
                    let why = self.word(index, (tx, word), effects);
                    refused.extend(why.map(|why| (ordinal, why)));
                    ordinal += 1;
                }
                Op::Settle { queue, reason, ranges } => self.settle(index, (queue, reason, ranges), effects),
                Op::Routed { queue, number, count, catalog_index, targets } => {
                    // Queues that this shard has not heard of yet are not gone (rule 27).
                    if catalog_index <= self.catalog_index {
                        self.exits.route((queue, number, count), (catalog_index, targets));
                    }
                }
                Op::Done { first, last, shard } => self.exits.done((first, last), shard),
                Op::Gone(_) => return Err(Malformed { position: 0, why: "what is left of an entry is not applied" }.into()),
                Op::Return { queue, ranges } => self.failed(index, queue, ranges, effects),
                Op::Mark { queue, mark } => self.mark(queue, mark),
                Op::Activate { queue: id, session, consumer } => {
                    self.keep_captured(id);
                    if let Some(queue) = self.queues.get_mut(&id) {
                        queue.activate(session, consumer);
                        self.dirty.insert(id);
                    }
                }
                Op::Tend { queue: id, now_ms, room, checked } => {
                    self.keep_captured(id);
                    let Some(queue) = self.queues.get_mut(&id) else { continue };
                    let any = if queue.is_scheduled() {
                        stores::let_go(id, queue, now_ms, &mut self.exits)
                    } else {
                        let basis = self.bases.named(id, queue, room, checked);
                        limits::expire(id, queue, basis, now_ms, &mut self.exits) | limits::trim(id, queue, basis, &mut self.exits)
                    };
                    if any {
                        note_settled(index, (id, queue), effects, &mut self.dirty);
                    }
                }
                Op::Reserve { queue: id, up_to, sessions } => {
                    self.keep_captured(id);
                    let Some(queue) = self.queues.get_mut(&id) else { continue };
                    queue.reserve(up_to, sessions);
                    if std::mem::replace(&mut queue.reserved_in, index) != index {
                        effects.push(Effect::Reserved { queue: id });
                        self.dirty.insert(id);
                    }
                }
            }
        }
        Ok(refused)
    }

    /// What follows continues no extent.
    pub(super) fn new_section(&mut self) {
        self.section += 1;
    }

    pub(super) fn settle(&mut self, index: u64, (id, reason, ranges): Leaving, effects: &mut Vec<Effect>) {
        self.keep_captured(id);
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let mut any = false;
        for (first, last) in ranges {
            any |= self.exits.leave(id, queue, (first, last), reason);
        }
        if any {
            self.bases.changed(id);
            note_settled(index, (id, queue), effects, &mut self.dirty);
        }
    }

    /// Deliveries failed; what failed too often dies.
    fn failed(&mut self, index: u64, id: QueueId, ranges: Vec<(Seq, Seq, u32)>, effects: &mut Vec<Effect>) {
        self.keep_captured(id);
        let now_ms = self.last_time_ms;
        let Some(queue) = self.queues.get_mut(&id) else { return };
        self.dirty.insert(id);
        let over: Vec<Seq> = ranges.into_iter().flat_map(|(first, last, before)| queue.fail((first, last), before, now_ms)).collect();
        for seq in &over {
            self.exits.leave(id, queue, (*seq, *seq), SettleReason::DeliveryLimit);
        }
        if !over.is_empty() {
            self.bases.changed(id);
            note_settled(index, (id, queue), effects, &mut self.dirty);
        }
    }

    /// Why not, if some queue did not take it that should.
    pub(super) fn enqueue(&mut self, index: u64, op: &EnqueueOp, effects: &mut Vec<Effect>) -> Option<RefusedEnqueue> {
        // One into no queue only keeps its ordinal.
        let (mut full, mut sealed, mut unknown, mut any) = (false, false, false, op.is_void());
        let mut taken = SmallVec::<[QueueId; 4]>::new();
        for (n, id) in (0..).zip(op.queues()) {
            if !self.is_wanted(op, n, id) {
                // It takes no place in its queue: what comes behind it does not continue what was before.
                self.queues.get_mut(&id).into_iter().for_each(Queue::passed_over);
                any = true;
                continue;
            }
            match self.put(index, op, id, effects) {
                Put::Full => full = true,
                // A letter's queue that this shard does not have is gone.
                Put::NoQueue if op.source.is_none() => unknown = true,
                Put::Sealed if op.source.is_none() => sealed = true,
                Put::NoQueue | Put::Sealed | Put::Done => {
                    any = true;
                    match op.source {
                        Some(source) if source.shard == self.shard => taken.push(id),
                        Some(source) => self.exits.dead.inlets.took(source, n),
                        None => {}
                    }
                }
            }
        }
        if let Some(source) = op.source.filter(|_| !taken.is_empty()) {
            self.exits.taken_here(source.number, self.shard, &taken);
        }
        let not_taken =
            [(full, RefusedEnqueue::Full), (!any && unknown, RefusedEnqueue::UnknownQueue), (!any && sealed, RefusedEnqueue::Sealed)];
        not_taken.into_iter().find_map(|(holds, why)| holds.then_some(why))
    }

    /// Puts a message into a queue.
    fn put(&mut self, index: u64, op: &EnqueueOp, id: QueueId, effects: &mut Vec<Effect>) -> Put {
        self.keep_captured(id);
        let Some(queue) = self.queues.get_mut(&id) else { return Put::NoQueue };
        if queue.is_sealed() {
            queue.passed_over();
            return Put::Sealed;
        }
        let marks = queue.marks(&op.message);
        if marks.is_some_and(|marks| queue.came_before(&marks, self.last_time_ms)) {
            queue.passed_over();
            return Put::Done;
        }
        let (level, note) = match queue.settings() {
            None if op.traits.expiration_ms.is_none() => (0, Note { deadline_ms: 0, body_bytes: op.body_bytes() }),
            settings => {
                let note = limits::note_of(settings, op, self.last_time_ms);
                let basis = (&mut self.bases, self.transactions.coming(id));
                let is_full = limits::refuses(settings, queue, note, id, basis) || self.exits.is_stuck(id, queue);
                if is_full && op.staged.is_none() {
                    queue.passed_over();
                    if op.source.is_none() {
                        self.exits.refused(id, queue, (index, op.position as u32), note.body_bytes);
                    }
                    return Put::Full;
                }
                if queue.settings().is_some_and(QueueSettings::is_limited) {
                    // What was with consumers before this message came.
                    self.bases.of(id, queue);
                }
                (queue.level(op.traits.priority), note)
            }
        };
        let at = op.staged.map_or(index, |staged| staged.index);
        if queue.enqueue(self.section, (at, op.position as u32), op.bytes(), level, note) {
            match at == index {
                true => self.references += 1,
                false => self.exits.taken.push(at),
            }
        }
        marks.iter().for_each(|marks| queue.remember(marks, self.last_time_ms));
        if note.deadline_ms > 0 && std::mem::replace(&mut queue.timed_in, index) != index {
            effects.push(Effect::Timed { queue: id });
        }
        if std::mem::replace(&mut queue.enqueued_in, index) != index {
            effects.push(Effect::Enqueued { queue: id });
            self.dirty.insert(id);
        }
        if queue.settings().is_some_and(|s| s.is_limited() && s.overflow == Overflow::DropHead) {
            let basis = self.bases.of(id, queue);
            self.exits.leaving += 1; // one comes, one may go
            if limits::trim(id, queue, basis, &mut self.exits) {
                note_settled(index, (id, queue), effects, &mut self.dirty);
            }
        }
        if stores::forget_oldest(id, queue, &mut self.exits) {
            note_settled(index, (id, queue), effects, &mut self.dirty);
        }
        Put::Done
    }

    /// The catalog's settings of a queue, unless they are of another catalog index than the shard's.
    fn configure(&mut self, at: u64, id: QueueId, settings: QueueSettings, effects: &mut Vec<Effect>) {
        if at != self.catalog_index {
            return;
        }
        self.keep_captured(id);
        if let Some(settings) = settings.stream {
            return self.configure_stream(id, settings);
        }
        if let Some(queue) = self.queues.get_mut(&id)
            && queue.configure(settings)
        {
            self.dirty.insert(id);
            effects.push(Effect::Configured { queue: id });
        }
    }

    fn hello(&mut self, session: SessionId, node: NodeId, incarnation: Incarnation, effects: &mut Vec<Effect>) -> SectionReply {
        let former = self.sessions.iter().find(|(_, row)| row.node == node).map(|(_, row)| row.incarnation);
        if let Some(former) = former.filter(|former| *former != incarnation) {
            self.orphaned(session.0, (node, former), effects);
        }
        let replaced = self.sessions.hello(session, node, incarnation);
        self.transactions.forget_earlier(node, incarnation);
        if let Some(session) = replaced {
            effects.push(Effect::SessionGone { session, node });
        }
        effects.push(Effect::SessionOpened { session, node, incarnation });
        SectionReply::Hello { session, replaced }
    }

    fn advance(&mut self, to: u64, creates: &[QueueId], drops: &[QueueId], effects: &mut Vec<Effect>) {
        for id in creates {
            if !self.queues.contains_key(id) && !self.streams.contains_key(id) {
                self.queues.insert(*id, Queue::default());
                self.dirty.insert(*id);
                effects.push(Effect::Created { queue: *id });
            }
        }
        for id in drops {
            self.keep_captured(*id);
            if let Some(queue) = self.queues.remove(id) {
                self.dirty.remove(id);
                self.exits.released.extend(queue.extents().flat_map(Extents::indices));
                self.forget_queue(*id, &queue);
                effects.push(Effect::Dropped { queue: *id });
            } else if self.drop_stream(*id) {
                effects.push(Effect::Dropped { queue: *id });
            }
        }
        self.catalog_index = to;
        effects.push(Effect::Advanced { to });
    }

    /// Adds the entry's references, takes off the released ones, says which entries ended.
    fn count_references(&mut self, index: u64, freed: &mut Vec<u64>) {
        for taken in self.exits.taken.drain(..) {
            match self.entries.get_mut(&taken) {
                Some(count) => *count += 1,
                None => self.references += 1,
            }
        }
        if self.references > 0 {
            self.entries.insert(index, self.references);
        } else {
            freed.push(index);
        }
        for released in self.exits.released.drain(..) {
            if let Some(count) = self.entries.get_mut(&released) {
                *count -= 1;
                if *count == 0 {
                    self.entries.remove(&released);
                    freed.push(released);
                }
            }
        }
    }
}

fn note_settled(index: u64, (id, queue): (QueueId, &mut Queue), effects: &mut Vec<Effect>, dirty: &mut BTreeSet<QueueId>) {
    if std::mem::replace(&mut queue.settled_in, index) != index {
        effects.push(Effect::Settled { queue: id });
        dirty.insert(id);
    }
}
