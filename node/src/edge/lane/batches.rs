//! What a lane has for its shard and has no verdict for: closed batches in order, the open one, settles that wait for a ride. Pure:
//! numbers, windows and resends are decided here (rules 12 to 15 and 17), the lane's task only carries them out.

mod late;
mod stale;

use super::chunks::{ChunkRuns, Chunks};
use super::committing::Committing;
use super::run::Run;
use crate::edge::ranges::RangeSet;
use crate::model::entry::{EntryBytes, Op, Ops, OpsReader, SettleReason, StoredMessage, Word};
use crate::model::letters::{LetterMessage, Source};
use crate::model::limits;
use crate::model::link::{Batch, Ranges};
use crate::model::stream::{PublishedEntry, StreamTarget};
use crate::model::{BatchSeq, LeaderId, Offset, QueueId, Seq, SessionId, TxId};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Settles that have no publish to ride with wait this long for one: an entry of their own costs the shard an fsync.
const SETTLE_LINGER: Duration = Duration::from_millis(5);
/// So many settles do not wait.
const SETTLES_MAX: u64 = 2048;
/// Bytes sent ahead of verdicts; a single batch of any size may go when nothing is in flight.
const BYTES_IN_FLIGHT: usize = limits::BATCHES_IN_FLIGHT * limits::BATCH_BYTES;
/// What a run costs besides its bytes in the batch.
const RUN_BYTES: usize = std::mem::size_of::<Run>();

/// Messages that leave a queue.
pub(super) type Settles = (QueueId, SettleReason, Ranges);

/// A closed batch.
#[derive(Debug)]
pub(super) struct Closed {
    pub ops: Bytes,
    pub runs: Vec<Run>,
    /// Who waits for chunks of streams.
    pub chunks: Vec<ChunkRuns>,
    pub catalog_index: u64,
    /// Transactions that have a part here.
    pub commits: Vec<Arc<Committing>>,
    settles: Vec<Settles>,
    sent_under: Option<LeaderId>,
    /// Its tickets were nacked: it must never confirm, and should have no effect if it can still be helped.
    nacked: bool,
    /// It waits for its verdict for longer than a publisher does.
    late: bool,
    since: Instant,
    /// Itself and those behind it that came to nothing before they were sent.
    stands_for: u64,
}

/// What is a batch of its own.
#[derive(Default)]
struct Alone {
    ops: Bytes,
    runs: Vec<Run>,
    chunks: Vec<ChunkRuns>,
    settles: Vec<Settles>,
}

#[derive(Debug)]
pub(super) struct Batches {
    session: SessionId,
    /// Number of the first closed batch.
    first: u64,
    closed: VecDeque<Closed>,
    /// Batches that the closed ones stand for, see `merge_empty`.
    standing: u64,
    /// How many of the closed ones went out on the present path.
    sent: usize,
    sent_bytes: usize,
    closed_bytes: usize,
    late_bytes: usize,
    open: Ops,
    open_runs: Vec<Run>,
    open_chunks: Chunks,
    open_commits: Vec<Arc<Committing>>,
    /// Those that are in `open` already.
    open_settles: Vec<Settles>,
    open_index: u64,
    open_since: Instant,
    settles: BTreeMap<(QueueId, SettleReason), RangeSet>,
    settle_count: u64,
    settles_since: Instant,
    settle_linger: Duration,
    /// The old numbers mean nothing: the next session's `last` gives new ones.
    renumber: bool,
    /// Batches that got their verdict, ever; counts like `mark`.
    done: u64,
    rewound: Option<BatchSeq>,
    hold_until: Option<Instant>,
    /// The last verdict, or the first welcome after it.
    progress: Instant,
    /// Welcomed since the last verdict: a leader that greets again and again and answers nothing is no progress.
    greeted: bool,
}

impl Batches {
    /// `local`: nothing is written to a disk there, settles need not wait for company.
    pub fn new(now: Instant, local: bool) -> Batches {
        Batches {
            session: SessionId::default(),
            first: 1,
            closed: VecDeque::new(),
            standing: 0,
            sent: 0,
            sent_bytes: 0,
            closed_bytes: 0,
            late_bytes: 0,
            open: Ops::default(),
            open_runs: Vec::new(),
            open_chunks: Chunks::default(),
            open_commits: Vec::new(),
            open_settles: Vec::new(),
            open_index: 0,
            open_since: now,
            settles: BTreeMap::new(),
            settle_count: 0,
            settles_since: now,
            settle_linger: if local { Duration::ZERO } else { SETTLE_LINGER },
            renumber: true,
            done: 0,
            rewound: None,
            hold_until: None,
            progress: now,
            greeted: false,
        }
    }

    /// The session of the last welcome.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Bytes held, sent or not.
    pub fn bytes(&self) -> usize {
        let runs = self.open_runs.len() + self.open_chunks.waiting();
        self.closed_bytes + self.open_bytes() + runs * RUN_BYTES
    }

    /// No publish and no settle waits.
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty() && !self.has_open() && self.settles.is_empty()
    }

    fn has_open(&self) -> bool {
        !self.open.is_empty() || !self.open_chunks.is_empty()
    }

    fn open_bytes(&self) -> usize {
        self.open.len() + self.open_chunks.bytes()
    }

    /// Publishes wait (settles alone do not count).
    pub fn has_publishes(&self) -> bool {
        self.has_open_runs() || self.closed.iter().any(Closed::has_runs)
    }

    fn has_open_runs(&self) -> bool {
        !self.open_runs.is_empty() || !self.open_chunks.is_empty()
    }

    /// Transactions wait, if only with settles.
    pub fn has_commits(&self) -> bool {
        !self.open_commits.is_empty() || self.closed.iter().any(|b| !b.commits.is_empty())
    }

    /// A mark behind everything enqueued so far: reached when `is_past(mark)`.
    pub fn mark(&self) -> u64 {
        self.done + self.standing + u64::from(self.has_open())
    }

    /// Everything enqueued before `mark` was taken has its verdict.
    pub fn is_past(&self, mark: u64) -> bool {
        self.done >= mark
    }

    /// One message, copied into the open batch. True when the lane's task has something new to do.
    pub fn enqueue(&mut self, queues: &[QueueId], message: &Message<'_>, index: u64, run: Run, now: Instant) -> bool {
        let fresh = !self.has_open();
        self.append(queues, message, index, run, now);
        self.close_when_full() || fresh
    }

    fn close_when_full(&mut self) -> bool {
        let full = self.open_bytes() >= limits::BATCH_BYTES || self.open_chunks.is_full();
        if full {
            self.close();
        }
        full
    }

    /// A message of a stream, copied into the open chunk of the stream. `run`: of a client that speaks of publishing ids (`strict`), or of
    /// this message alone. True when the lane's task has something new to do.
    pub fn append_entry(&mut self, to: &StreamTarget, entry: &PublishedEntry<'_>, run: &Run, now: Instant) -> bool {
        let fresh = self.opened(now);
        self.open_index = self.open_index.max(to.catalog_index);
        let (runs, first) = self.open_chunks.push(to, entry);
        let last = runs.last_mut();
        if run.strict {
            if !last.is_some_and(|last| last.extend_by(run, entry.id)) {
                runs.push(run.with_id(entry.id, first));
            }
        } else {
            let run = Run { first, ..run.clone() };
            if !last.is_some_and(|last| last.extend(&run)) {
                runs.push(run);
            }
        }
        self.close_when_full() || fresh
    }

    /// A large message of a stream, encoded before the lane was locked: a chunk that is a batch of its own. Always something new to do.
    pub fn append_alone(&mut self, to: &StreamTarget, chunk: Bytes, id: u64, run: &Run, now: Instant) -> bool {
        let run = if run.strict { run.with_id(id, 0) } else { Run { first: 0, ..run.clone() } };
        let batch = Alone { ops: chunk, chunks: vec![ChunkRuns { ordinal: 0, runs: vec![run] }], ..Alone::default() };
        self.push_alone(batch, to.catalog_index, Vec::new(), now);
        true
    }

    /// A reader of a stream is this far.
    pub fn store(&mut self, to: &StreamTarget, reader: &str, offset: Offset, now: Instant) -> bool {
        let fresh = self.opened(now);
        self.open_index = self.open_index.max(to.catalog_index);
        self.open.store(to.stream, reader, offset);
        self.close_when_full() || fresh
    }

    /// Something comes into the open batch. True when it is the first.
    fn opened(&mut self, now: Instant) -> bool {
        let fresh = !self.has_open();
        if fresh {
            self.open_since = now;
        }
        fresh
    }

    /// What one transaction brings, in one batch: `ops` with the settles in them, encoded before the lane was locked. Only what is small
    /// is copied.
    pub fn transact(&mut self, mut ops: Ops, runs: Vec<Run>, settles: Vec<Settles>, index: u64, commit: &Arc<Committing>, now: Instant) {
        if ops.len() >= limits::BATCH_BYTES {
            let batch = Alone { ops: ops.take(), runs, settles, ..Alone::default() };
            return self.push_alone(batch, index, vec![commit.clone()], now);
        }
        self.opened(now);
        let first = self.open.append(&ops);
        self.open_runs.extend(runs.into_iter().map(|run| Run { first: first + run.first, ..run }));
        self.open_settles.extend(settles);
        self.open_commits.push(commit.clone());
        self.open_index = self.open_index.max(index);
        self.close_when_full();
    }

    /// A word about a transaction; `commit` waits for its verdict.
    pub fn word(&mut self, tx: TxId, word: Word, mut run: Run, commit: Option<&Arc<Committing>>, now: Instant) {
        self.opened(now);
        run.first = self.open.word(tx, word);
        self.open_runs.push(run);
        self.open_commits.extend(commit.cloned());
    }

    fn append(&mut self, queues: &[QueueId], message: &Message<'_>, index: u64, mut run: Run, now: Instant) {
        self.opened(now);
        let parts = (message.exchange, message.key, message.properties, message.body);
        run.first = self.open.enqueue_from(message.source, queues, parts);
        let joined = self.open_runs.last_mut().is_some_and(|last| last.extend(&run));
        if !joined {
            self.open_runs.push(run);
        }
        self.open_index = self.open_index.max(index);
    }

    /// A large message, encoded before the lane was locked: a batch of its own. Settles wait for the next one, so that nothing is added
    /// to it.
    pub fn enqueue_alone(&mut self, ops: Bytes, index: u64, run: Run, now: Instant) -> bool {
        let batch = Alone { ops, runs: vec![Run { first: 0, ..run }], ..Alone::default() };
        self.push_alone(batch, index, Vec::new(), now);
        true
    }

    fn push_alone(&mut self, batch: Alone, index: u64, commits: Vec<Arc<Committing>>, now: Instant) {
        if self.has_open() {
            self.close();
        }
        self.open_index = self.open_index.max(index);
        let catalog_index = self.open_index;
        let Alone { ops, runs, chunks, settles } = batch;
        let (sent_under, nacked, late, since, stands_for) = (None, false, false, now, 1);
        self.push(Closed { ops, runs, chunks, catalog_index, commits, settles, sent_under, nacked, late, since, stands_for });
    }

    /// A message leaves its queue. True when the lane's task has something new to do.
    pub fn settle(&mut self, queue: QueueId, reason: SettleReason, seq: Seq, now: Instant) -> bool {
        let fresh = self.settles.is_empty();
        if fresh {
            self.settles_since = now;
        }
        self.settle_count += u64::from(self.settles.entry((queue, reason)).or_default().insert(seq));
        fresh || self.settle_count == SETTLES_MAX
    }

    /// Everything that the client has settled and no verdict covers: still held in the eyes of a new leader (rule 17).
    pub fn settling(&self) -> BTreeMap<QueueId, RangeSet> {
        let mut all: BTreeMap<QueueId, RangeSet> = BTreeMap::new();
        for (queue, _, ranges) in self.closed.iter().flat_map(|b| &b.settles) {
            all.entry(*queue).or_default().extend(ranges);
        }
        for (queue, _, ranges) in &self.open_settles {
            all.entry(*queue).or_default().extend(ranges);
        }
        for ((queue, _), set) in &self.settles {
            all.entry(*queue).or_default().extend(&set.to_ranges());
        }
        all
    }

    fn close(&mut self) {
        let settles = std::mem::take(&mut self.settles).into_iter();
        let mut settles: Vec<Settles> = settles.map(|((queue, reason), mut set)| (queue, reason, set.take())).collect();
        settles.iter().for_each(|(queue, reason, ranges)| self.open.settle(*queue, *reason, ranges));
        settles.append(&mut self.open_settles);
        self.settle_count = 0;
        let since = if self.has_open_runs() { self.open_since } else { self.settles_since };
        let (ops, chunks) = self.open_chunks.close(&mut self.open);
        let batch = Closed {
            ops,
            runs: std::mem::take(&mut self.open_runs),
            chunks,
            catalog_index: self.open_index,
            commits: std::mem::take(&mut self.open_commits),
            settles,
            sent_under: None,
            nacked: false,
            late: false,
            since,
            stands_for: 1,
        };
        self.push(batch);
    }

    fn push(&mut self, batch: Closed) {
        self.closed_bytes += batch.bytes();
        self.standing += batch.stands_for;
        self.closed.push_back(batch);
    }

    /// A path is open and the shard knows this edge: everything without a verdict goes out again.
    pub fn welcome(&mut self, session: SessionId, last: BatchSeq, now: Instant) {
        // A shard that had declared this process gone knows its batches still: only the session is another.
        if self.renumber || self.first > last.0 + 1 {
            if self.session != SessionId::default() && !self.renumber && !self.closed.is_empty() {
                tracing::warn!(%session, batches = self.closed.len(), "the shard forgot this edge: unanswered batches get new numbers");
            }
            self.first = last.0 + 1;
        }
        if self.session != session {
            self.drop_rejects();
        }
        self.session = session;
        self.renumber = false;
        self.rewound = None;
        self.hold_until = None;
        if !std::mem::replace(&mut self.greeted, true) {
            self.progress = now;
        }
        self.unsend(0);
    }

    fn unsend(&mut self, keep: usize) {
        self.sent = keep.min(self.sent);
        self.sent_bytes = self.closed.iter().take(self.sent).map(|b| b.ops.len()).sum();
    }

    /// The leader wants everything from `from` again. The first time at once; when it repeats without progress, after a pause.
    pub fn rewind(&mut self, from: BatchSeq, now: Instant) {
        let keep = from.0.saturating_sub(self.first) as usize;
        if keep >= self.sent {
            return;
        }
        if self.rewound == Some(from) {
            self.hold_until.get_or_insert(now + Duration::from_millis(10));
            return;
        }
        self.rewound = Some(from);
        self.unsend(keep);
    }

    /// The next batch to send, if the window allows one now.
    pub fn next(&mut self, leader: LeaderId, now: Instant) -> Option<Batch> {
        if let Some(until) = self.hold_until {
            if now < until {
                return None;
            }
            self.hold_until = None;
            self.unsend(0);
        }
        if self.sent >= limits::BATCHES_IN_FLIGHT {
            return None;
        }
        if self.sent == self.closed.len() {
            if !self.may_close(now) {
                return None;
            }
            self.close();
        }
        let fits = self.sent == 0 || self.sent_bytes + self.closed[self.sent].ops.len() <= BYTES_IN_FLIGHT;
        if !fits {
            return None;
        }
        let batch = &mut self.closed[self.sent];
        if batch.sent_under != Some(leader) {
            let before = batch.bytes();
            if batch.nacked {
                batch.make_void();
            }
            let is_late = std::mem::take(&mut batch.late);
            self.closed_bytes = self.closed_bytes - before + batch.bytes();
            if is_late {
                self.count_late();
            }
        }
        let seq = BatchSeq(self.first + self.sent as u64);
        let batch = &mut self.closed[self.sent];
        batch.sent_under = Some(leader);
        self.sent += 1;
        self.sent_bytes += batch.ops.len();
        let floor = BatchSeq(self.first - 1);
        Some(Batch { session: self.session, seq, floor, catalog_index: batch.catalog_index, ops: batch.ops.clone() })
    }

    fn may_close(&self, now: Instant) -> bool {
        self.has_open() || !self.settles.is_empty() && (self.settle_count >= SETTLES_MAX || now >= self.settles_since + self.settle_linger)
    }

    /// When `next` may have something although nothing new came.
    pub fn due(&self) -> Option<Instant> {
        let settles = !self.has_open() && !self.settles.is_empty() && self.sent < limits::BATCHES_IN_FLIGHT;
        let settles = settles.then(|| self.settles_since + self.settle_linger);
        match (self.hold_until, settles) {
            (None, settles) => settles,
            (Some(hold), _) => Some(hold),
        }
    }

    /// A verdict. `None`: it repeats one or comes out of turn (the resend brings it again).
    pub fn verdict(&mut self, seq: BatchSeq, now: Instant) -> Option<Closed> {
        if seq.0 != self.first || self.renumber {
            return None;
        }
        let batch = self.closed.pop_front()?;
        self.closed_bytes -= batch.bytes();
        if batch.late {
            self.count_late();
        }
        if self.sent > 0 {
            self.sent -= 1;
            self.sent_bytes -= batch.ops.len();
        }
        self.first += 1;
        self.standing -= batch.stands_for;
        self.done += batch.stands_for;
        (self.progress, self.greeted) = (now, false);
        self.rewound = None;
        Some(batch)
    }

    /// Publishes have waited since then without any verdict.
    pub fn stuck_since(&self) -> Option<Instant> {
        let oldest = self.closed.iter().find(|b| b.has_runs()).map(|b| b.since);
        let open = self.has_open_runs().then_some(self.open_since);
        oldest.or(open).map(|since| since.max(self.progress))
    }

    /// The shard's state is gone for good (an in-memory owner): everything is taken out, numbers start anew with the next session.
    pub fn wipe(&mut self) -> Vec<Closed> {
        if self.has_open() {
            self.close();
        }
        self.settles.clear();
        self.settle_count = 0;
        self.done += std::mem::take(&mut self.standing);
        (self.closed_bytes, self.late_bytes) = (0, 0);
        self.renumber = true;
        self.unsend(0);
        self.closed.drain(..).collect()
    }

    /// How far it is, for the reader of a failed test.
    pub fn story(&self, now: Instant) -> String {
        let Batches { session, first, sent, done, rewound, greeted, .. } = self;
        let age = |at: Instant| now.saturating_duration_since(at).as_millis();
        let oldest = self.closed.front().map(|batch| (age(batch.since), batch.has_runs(), batch.nacked, batch.sent_under));
        format!(
            "session {session}, batches from {first}: {} closed, {sent} of them sent, the first (age ms, awaited, nacked, sent under) \
             {oldest:?}; {} open; {done} done, progress {} ms ago, greeted since: {greeted}; rewound to {rewound:?}, holds: {}; {} bytes",
            self.closed.len(),
            self.open_runs.len() + self.open_chunks.waiting(),
            age(self.progress),
            self.hold_until.is_some(),
            self.bytes(),
        )
    }

    /// Publishers of everything that waits.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        let closed = self.closed.iter().flat_map(|b| b.runs.iter().chain(b.chunks.iter().flat_map(|chunk| &chunk.runs)));
        closed.chain(&self.open_runs).chain(self.open_chunks.runs())
    }
}

impl Closed {
    fn bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.runs.len()).sum();
        self.ops.len() + (self.runs.len() + chunks) * RUN_BYTES
    }

    /// Somebody waits for a message of it.
    fn has_runs(&self) -> bool {
        !self.runs.is_empty() || self.chunks.iter().any(|chunk| !chunk.runs.is_empty())
    }

    fn all_runs_mut(&mut self) -> impl Iterator<Item = &mut Vec<Run>> {
        self.chunks.iter_mut().map(|chunk| &mut chunk.runs).chain([&mut self.runs])
    }

    /// Leaves only settles and what has no ticket, which keeps its ordinals: the verdict may be one of the batch as it was sent before
    /// (rule 13). And what comes from a publisher with a name: were it left out while later ids of that publisher arrive, whoever says it
    /// again would be told that it is known. Stored late it does no harm, for its id says that it is the same.
    fn make_void(&mut self) {
        let mut kept = Ops::default();
        let (mut runs, mut chunks) = (Vec::new(), Vec::new());
        let (old, mut old_chunks) = (std::mem::take(&mut self.runs), std::mem::take(&mut self.chunks).into_iter().peekable());
        let (mut ordinal, mut from) = (0, 0);
        let mut reader = OpsReader::at(&EntryBytes::from(self.ops.clone()), 0);
        while let Some(Ok(op)) = reader.next() {
            let raw = &self.ops[std::mem::replace(&mut from, reader.position())..from];
            match op {
                Op::Enqueue(_) | Op::Part(_) | Op::Word { .. } => {
                    if let Some(run) = find(&old, ordinal) {
                        (kept.ordinals()..ordinal).for_each(|_| kept.void());
                        let run = Run { first: kept.copy(raw), ..run.one(ordinal) };
                        if !runs.last_mut().is_some_and(|last: &mut Run| last.extend(&run)) {
                            runs.push(run);
                        }
                    }
                    ordinal += 1;
                }
                Op::Settle { queue, reason, ranges } => kept.settle(queue, reason, &ranges),
                Op::Reserve { .. } | Op::Tend { .. } | Op::Activate { .. } => {}
                Op::Routed { .. } | Op::Done { .. } | Op::Return { .. } | Op::Gone(_) | Op::Mark { .. } => {}
                Op::Append(chunk) => {
                    let runs = old_chunks.next_if(|chunk| chunk.ordinal == ordinal).map(|chunk| chunk.runs).unwrap_or_default();
                    if !runs.is_empty() || chunk.publisher.is_some() {
                        (kept.ordinals()..ordinal).for_each(|_| kept.void());
                        chunks.push(ChunkRuns { ordinal: kept.append_chunk(raw), runs });
                    }
                    ordinal += 1;
                }
                Op::Store { stream, reader, offset } => kept.store(stream, &String::from_utf8_lossy(&reader), offset),
            }
        }
        self.ops = kept.take();
        (self.runs, self.chunks) = (runs, chunks);
        self.nacked = false;
    }

    /// The messages of the given ordinals (ascending), with their run and their queues.
    pub fn messages(&self, ordinals: impl Iterator<Item = u32>) -> Vec<(Run, Vec<QueueId>, StoredMessage)> {
        let mut wanted = ordinals.peekable();
        let mut found = Vec::new();
        let ordinals = read_ops(&self.ops).filter_map(|op| match op {
            Op::Enqueue(enqueue) => Some(Some(enqueue)),
            Op::Part(_) | Op::Word { .. } | Op::Append(_) => Some(None),
            _ => None,
        });
        for (ordinal, enqueue) in (0..).zip(ordinals) {
            let (Some(_), Some(enqueue)) = (wanted.next_if_eq(&ordinal), enqueue) else { continue };
            let queues = enqueue.queues().collect();
            if let (Some(run), Some(message)) = (find(&self.runs, ordinal), StoredMessage::parse(enqueue.message)) {
                found.push((run.one(ordinal), queues, message));
            }
        }
        found
    }
}

fn find(runs: &[Run], ordinal: u32) -> Option<&Run> {
    let at = runs.partition_point(|r| r.first + r.count <= ordinal);
    runs.get(at).filter(|r| r.first <= ordinal)
}

fn read_ops(ops: &Bytes) -> impl Iterator<Item = Op> + use<> {
    OpsReader::at(&EntryBytes::from(ops.clone()), 0).map_while(Result::ok)
}

/// A message as it comes from a client.
#[derive(Clone, Copy, Debug)]
pub(in crate::edge) struct Message<'a> {
    pub exchange: &'a [u8],
    pub key: &'a [u8],
    pub properties: &'a [u8],
    pub body: &'a [u8],
    /// It is a letter.
    pub source: Option<Source>,
}

impl StoredMessage {
    /// As it was published.
    pub(in crate::edge) fn view(&self) -> Message<'_> {
        Message { exchange: &self.exchange, key: &self.key, properties: &self.properties, body: &self.body, source: None }
    }
}

impl<'a> Message<'a> {
    /// A letter, or its copy for the first of its queues.
    pub fn letter(letter: &'a LetterMessage, source: Source) -> Message<'a> {
        let LetterMessage { exchange, key, properties, body } = letter;
        Message { exchange, key, properties, body, source: Some(source) }
    }
}

impl Message<'_> {
    /// As the operations of a batch of its own, when it is so large that copying it must not keep others waiting.
    pub fn alone(&self, queues: &[QueueId]) -> Option<Bytes> {
        (self.body.len() >= limits::BATCH_BYTES).then(|| {
            let mut ops = Ops::default();
            ops.enqueue_from(self.source, queues, (self.exchange, self.key, self.properties, self.body));
            ops.take()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::mailbox::{ChannelRef, Mailbox};
    use crate::model::catalog::Owner;
    use crate::model::entry::Settling;
    use crate::model::stream::{PublishedEntry, StreamTarget};
    use crate::model::{ConnectionId, Incarnation, NodeId};
    use std::sync::Arc;

    pub(super) fn run(ticket: u64) -> Run {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let mailbox = Arc::new(Mailbox::new(Owner { node: NodeId(1), incarnation: Incarnation(1), connection: ConnectionId(1) }, address));
        Run { ticket, strict: false, ..Run::of_stream(mailbox, ChannelRef { channel: 1, epoch: 0 }) }
    }

    pub(super) const LEADER: LeaderId = LeaderId { term: 1, voter: 1 };

    /// Whoever copied a body under the lane's lock would hand out other bytes than those that were encoded before.
    #[test]
    fn a_large_message_is_sent_as_it_was_encoded_and_settles_are_not_added_to_it() {
        let (now, queue) = (Instant::now(), QueueId(1));
        let body = vec![7; 16 << 20];
        let message = Message { exchange: b"", key: b"q", properties: &[0, 0], body: &body, source: None };
        assert!(Message { body: &body[..1000], ..message }.alone(&[queue]).is_none());
        let ops = message.alone(&[queue]).unwrap();
        let encoded = ops.as_ptr();
        let mut batches = Batches::new(now, true);
        batches.welcome(SessionId(9), BatchSeq(0), now);
        batches.settle(queue, SettleReason::Ack, Seq(1), now);
        assert!(batches.enqueue_alone(ops, 1, run(1), now));
        let sent = batches.next(LEADER, now).unwrap();
        assert!(sent.ops.as_ptr() == encoded && !Settling::of(&sent.ops).any);
        batches.verdict(BatchSeq(1), now).unwrap();
        assert!(Settling::of(&batches.next(LEADER, now).unwrap().ops).any, "the settle comes with the next batch");
    }

    /// Else an id could be left out and a later one stored: whoever said the first again would be told that it is known.
    #[test]
    fn what_a_publisher_with_a_name_is_refused_for_want_of_a_quorum_is_stored_before_what_it_published_later() {
        let (now, entry) = (Instant::now(), [0, 0, 0, 1, 7]);
        let to = |publisher: Option<&str>| StreamTarget {
            stream: QueueId(5),
            shard: crate::model::ShardId(1),
            publisher: publisher.map(Into::into),
            catalog_index: 1,
            filter_bytes: 16,
            leader: None,
        };
        for (name, sent) in [(None, false), (Some("me"), false), (Some("me"), true)] {
            let mut batches = Batches::new(now, false);
            batches.welcome(SessionId(9), BatchSeq(0), now);
            let publish = |batches: &mut Batches, id| {
                batches.append_entry(&to(name), &PublishedEntry { id, filter: None, records: 1, entry: &entry }, &run(id), now);
            };
            publish(&mut batches, 4);
            if sent {
                batches.next(LEADER, now).unwrap();
            }
            assert_eq!(batches.nack_older(now).len(), 1);
            publish(&mut batches, 5);
            batches.welcome(SessionId(9), BatchSeq(0), now);
            let next = LeaderId { term: 2, ..LEADER };
            let mut ids = Vec::new();
            while let Some(batch) = batches.next(next, now) {
                ids.extend(read_ops(&batch.ops).filter_map(|op| match op {
                    Op::Append(chunk) => Some((chunk.last_id(), chunk.entries)),
                    _ => None,
                }));
            }
            let expected = if name.is_some() { vec![(Some(4), 1), (Some(5), 1)] } else { vec![(None, 1)] };
            assert_eq!(ids, expected, "publisher {name:?}, sent before: {sent}");
            let runs: Vec<u64> = batches.runs().map(|run| run.ticket).collect();
            assert_eq!(runs, [5], "one of them is waited for");
        }
    }

    #[test]
    fn what_is_left_of_a_nacked_batch_is_counted_as_it_is() {
        let (now, message) = (Instant::now(), Message { exchange: b"", key: b"q", properties: &[0, 0], body: b"b", source: None });
        let mut batches = Batches::new(now, false);
        let silent = run(0);
        (0..500).for_each(|_| {
            batches.enqueue(&[QueueId(1)], &message, 1, silent.clone(), now);
        });
        batches.enqueue(&[QueueId(1)], &message, 1, run(1), now);
        let before = batches.bytes();
        assert_eq!(batches.nack_older(now).len(), 1);
        assert!(batches.bytes() < before, "one message less, and one that waits less");
        batches.welcome(SessionId(9), BatchSeq(0), now);
        batches.next(LEADER, now).unwrap();
        let closed = batches.verdict(BatchSeq(1), now).unwrap();
        assert_eq!((closed.runs.len(), closed.runs[0].count, batches.bytes()), (1, 500, 0));
    }
}
