//! Letters of this shard on their way (rule 25): read, routed by the node, put into queues of this shard with the entry that routes them,
//! handed on to other shards, and done when those have answered. Each queue's go in order; one that is refused stops those behind it, and
//! is tried again later. What is known of letters is in the machine; here is only how far this leader got. How they go through entries
//! is in `posting`.

use super::handle::LetterRead;
use super::lateness::Awaited;
use super::posting::Routing;
use super::server::ShardServer;
use crate::machine::{Dead, Routed, Waiting, read_run};
use crate::model::entry::EntryBytes;
use crate::model::letters::{Letter, LetterFate, LetterMessage, Outlet, RoutedRun, Source};
use crate::model::{QueueId, ShardId, limits};
use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Letters of one queue that are read and routed at a time.
const SLICE: u32 = 512;
/// ... and their bytes, unless one has more.
const RUN_BYTES: u64 = (limits::ENTRY_BYTES / 2) as u64;
/// Entries that are read for letters at a time, and kept.
const ENTRIES: usize = 8;
/// A letter that cannot be read is tried again after this time.
const UNREADABLE: Duration = Duration::from_secs(1);

/// A queue whose letters go out.
#[derive(Debug, Default)]
struct Outgoing {
    /// Letters without a way from this number on were not looked at.
    next: u64,
    /// Letters with a way that are to be sent: by an earlier leader's decision, or again.
    again: BTreeSet<u64>,
    /// The pause after the last refusal; zero: none since a letter was taken.
    pause: Duration,
    /// Nothing goes before.
    resume_at: Option<Instant>,
    /// The one that tries, after a refusal; the others wait for its answer.
    probe: Option<u64>,
    /// A target that has enough under way.
    waits_for: Option<ShardId>,
}

/// A letter without all answers.
#[derive(Debug)]
struct UnderWay {
    queue: QueueId,
    bytes: usize,
    /// Shards that are still to answer; the own one: it is in an entry, or will be.
    shards: SmallVec<[ShardId; 2]>,
}

/// How far this leader got.
#[derive(Debug, Default)]
pub(super) struct Letters {
    queues: BTreeMap<QueueId, Outgoing>,
    under_way: HashMap<u64, UnderWay>,
    /// Letters and bytes under way, by target.
    windows: BTreeMap<ShardId, (usize, usize)>,
    /// Entries read for letters.
    entries: VecDeque<(u64, EntryBytes)>,
    reading: BTreeSet<u64>,
    /// For the next entries.
    pub routing: VecDeque<Routing>,
    /// There may be something to do.
    pub news: bool,
    /// When a pause ends.
    pub wake_at: Option<Instant>,
    /// Queues that keep messages which should leave them, because their outbox is full.
    pub kept: BTreeSet<QueueId>,
    /// Of which the arrival is timed.
    pub awaited: Awaited,
}

impl Letters {
    /// Whether a target has enough; one letter of any size always fits.
    fn is_full(&self, shard: ShardId, bytes: usize) -> bool {
        let (letters, before) = self.windows.get(&shard).copied().unwrap_or_default();
        letters >= limits::LETTERS_UNDER_WAY || (letters > 0 && before + bytes > limits::LETTER_BYTES)
    }

    /// Whether a target that had enough has still more than three quarters of it.
    fn is_crowded(&self, shard: ShardId) -> bool {
        let (letters, bytes) = self.windows.get(&shard).copied().unwrap_or_default();
        letters * 4 > limits::LETTERS_UNDER_WAY * 3 || (letters > 0 && bytes * 4 > limits::LETTER_BYTES * 3)
    }

    /// It goes to these shards.
    fn begin(&mut self, number: u64, queue: QueueId, bytes: usize, shards: impl Iterator<Item = ShardId>) {
        let under_way = self.under_way.entry(number).or_insert(UnderWay { queue, bytes, shards: SmallVec::new() });
        for shard in shards {
            if !under_way.shards.contains(&shard) {
                under_way.shards.push(shard);
                let window = self.windows.entry(shard).or_default();
                *window = (window.0 + 1, window.1 + under_way.bytes);
            }
        }
    }

    /// A shard has answered, or is not asked any more. The letter's queue when that was the last one.
    pub(super) fn end(&mut self, number: u64, shard: ShardId) -> Option<QueueId> {
        let under_way = self.under_way.get_mut(&number)?;
        let at = under_way.shards.iter().position(|of| *of == shard)?;
        under_way.shards.remove(at);
        self.news = true;
        let (queue, bytes, over) = (under_way.queue, under_way.bytes, under_way.shards.is_empty());
        if let Some(window) = self.windows.get_mut(&shard) {
            *window = (window.0 - 1, window.1 - bytes);
        }
        over.then(|| (self.under_way.remove(&number), queue).1)
    }

    fn has_under_way(&self, number: u64, shard: ShardId) -> bool {
        self.under_way.get(&number).is_some_and(|u| u.shards.contains(&shard))
    }

    fn pause(&mut self, queue: QueueId, until: Instant) {
        self.queues.entry(queue).or_default().resume_at = Some(until);
        self.wake_at = Some(self.wake_at.map_or(until, |at| at.min(until)));
    }

    /// A target did not take it: it goes again after a pause, which grows while nothing is taken.
    pub(super) fn refused(&mut self, queue: QueueId, number: u64) {
        let out = self.queues.entry(queue).or_default();
        out.again.insert(number);
        if out.resume_at.is_none() {
            out.probe = None;
            out.pause = (out.pause * 2).clamp(limits::LETTER_PAUSE_MIN, limits::LETTER_PAUSE_MAX);
            let until = Instant::now() + out.pause;
            self.pause(queue, until);
        }
    }

    /// All targets of a letter have it.
    fn taken(&mut self, queue: QueueId, number: u64) {
        if let Some(out) = self.queues.get_mut(&queue).filter(|out| out.probe == Some(number)) {
            (out.probe, out.pause) = (None, Duration::ZERO);
            self.news = true;
        }
    }

    /// Letters without a way are taken up again from this number on, and what was to follow it.
    pub(super) fn restart(&mut self, queue: QueueId, number: u64, shard: ShardId) {
        let is_behind = |r: &Routing| r.fresh && r.queue == queue;
        let (dropped, kept): (VecDeque<Routing>, _) = std::mem::take(&mut self.routing).into_iter().partition(is_behind);
        self.routing = kept;
        let first = dropped.iter().map(|r| r.number).chain([number]).min().unwrap_or(number);
        for number in dropped.iter().flat_map(Routing::numbers) {
            self.end(number, shard);
        }
        let out = self.queues.entry(queue).or_default();
        out.next = out.next.min(first);
        self.news = true;
    }

    /// Letters of a queue without a way from this number on were not looked at.
    pub(super) fn next_of(&self, queue: QueueId) -> u64 {
        self.queues.get(&queue).map_or(0, |out| out.next)
    }

    /// A letter with a way is to be sent.
    pub(super) fn resend(&mut self, queue: QueueId, number: u64) {
        self.queues.entry(queue).or_default().again.insert(number);
        self.news = true;
    }
}

impl ShardServer {
    /// This node leads from now on: what earlier leaders routed is sent again, whoever has it knows.
    pub(super) fn begin_letters(&mut self) {
        let machine = self.machine.lock();
        for (first, routed) in machine.routed_letters() {
            (first..).take(routed.dead.at.count as usize).for_each(|number| self.letters.resend(routed.dead.queue, number));
        }
        drop(machine);
        self.letters.news = true;
        self.begin_lateness();
    }

    /// Takes up as many letters as may be under way.
    pub(super) fn work_on_letters(&mut self) {
        let now = Instant::now();
        if self.letters.wake_at.is_some_and(|at| at <= now) {
            self.letters.wake_at = None;
            self.letters.news = true;
        }
        if self.lead.is_none() || !std::mem::take(&mut self.letters.news) {
            return;
        }
        let mut sources: BTreeSet<QueueId> = self.machine.lock().letter_sources().collect();
        sources.extend(self.letters.queues.keys());
        sources.into_iter().for_each(|queue| self.work_on(queue, now));
    }

    fn work_on(&mut self, id: QueueId, now: Instant) {
        let out = self.letters.queues.entry(id).or_default();
        if let Some(at) = out.resume_at.filter(|at| *at > now) {
            return self.letters.pause(id, at);
        }
        let waits_for = out.waits_for.take();
        out.resume_at = None;
        if out.probe.is_some() {
            return;
        }
        if let Some(shard) = waits_for.filter(|shard| self.letters.is_crowded(*shard)) {
            self.letters.queues.entry(id).or_default().waits_for = Some(shard);
            return;
        }
        while let Some((number, tries)) = self.letters.queues.get(&id).and_then(|out| Some((*out.again.first()?, !out.pause.is_zero()))) {
            if !self.send_again(id, number) {
                return;
            }
            if tries {
                return self.try_with(id, number);
            }
        }
        while self.take_up(id) {}
        let is_over = |out: &mut Outgoing| out.again.is_empty() && out.resume_at.is_none() && out.waits_for.is_none();
        if self.machine.lock().waiting_letters(id, 0).is_none() && self.letters.queues.get_mut(&id).is_some_and(is_over) {
            self.letters.queues.remove(&id);
        }
    }

    /// The queue's other letters wait for what becomes of this one, if it is still on its way.
    fn try_with(&mut self, id: QueueId, number: u64) {
        let asked = self.letters.under_way.contains_key(&number);
        if let Some(out) = self.letters.queues.get_mut(&id) {
            match asked {
                true => out.probe = Some(number),
                false => out.pause = Duration::ZERO,
            }
            self.letters.news |= !asked;
        }
    }

    /// Sends a letter that was routed before. False: not now.
    fn send_again(&mut self, id: QueueId, number: u64) -> bool {
        let routed: Option<Routed> = self.machine.lock().routed_letter(number);
        if let Some(routed) = routed {
            let Some(message) = self.messages(&routed.dead).and_then(|mut found| found.pop()) else { return false };
            let letter = letter_of(&routed.dead, message);
            let message = self.config.letters.write(&letter, &routed.address);
            if !self.has_room(id, routed.outlets.iter().map(|outlet| outlet.shard), message.body.len()) {
                return false;
            }
            self.post_again(number, routed, message);
        }
        self.letters.queues.entry(id).or_default().again.remove(&number);
        true
    }

    fn post_again(&mut self, number: u64, routed: Routed, message: LetterMessage) {
        let own = self.config.shard;
        let Routed { dead, catalog_index, outlets, .. } = routed;
        let outlets: Vec<Outlet> = outlets.into_iter().filter(|outlet| !self.letters.has_under_way(number, outlet.shard)).collect();
        self.letters.begin(number, dead.queue, message.body.len(), outlets.iter().map(|outlet| outlet.shard));
        let targets = outlets.iter().filter(|outlet| outlet.shard == own).map(|outlet| (own, outlet.queues.clone())).collect();
        let run = RoutedRun { catalog_index, messages: vec![message], targets };
        self.forward(number, &outlets, catalog_index, &run.messages);
        if !run.targets.is_empty() {
            self.letters.routing.push_back(Routing::new(number, dead.queue, false, run));
        }
    }

    /// Routes the next letters of a queue. False: there are none, or not now.
    fn take_up(&mut self, id: QueueId) -> bool {
        let next = self.letters.queues.get(&id).map_or(0, |out| out.next);
        let Some((first, Waiting { mut dead, address })) = self.machine.lock().waiting_letters(id, next) else { return false };
        dead.at.count = self.slice(&dead);
        let Some(messages) = self.messages(&dead) else { return false };
        let letters: Vec<Letter> = messages.into_iter().map(|message| letter_of(&dead, message)).collect();
        let Some(runs) = self.config.letters.route(&letters, &address) else {
            self.letters.pause(id, Instant::now() + limits::LETTER_PAUSE_MIN);
            return false;
        };
        let mut number = first;
        runs.into_iter().all(|run| {
            let count = run.messages.len() as u64;
            let all = self.take_up_run(id, number, run);
            number += count;
            all
        })
    }

    /// How many of these go into one run: it must fit into an entry beside others, and into this shard's window.
    fn slice(&self, dead: &Dead) -> u32 {
        let (under_way, _) = self.letters.windows.get(&self.config.shard).copied().unwrap_or_default();
        let bytes = (dead.bytes / u64::from(dead.at.count)).max(1);
        let fits = (RUN_BYTES / bytes).min(limits::LETTERS_UNDER_WAY.saturating_sub(under_way) as u64);
        dead.at.count.min(SLICE).min(fits.max(1) as u32)
    }

    /// As many of a run as may be under way. False: not all.
    fn take_up_run(&mut self, id: QueueId, number: u64, mut run: RoutedRun) -> bool {
        let (own, wanted) = (self.config.shard, run.messages.len());
        let shards: SmallVec<[ShardId; 4]> = run.targets.iter().map(|target| target.0).filter(|shard| *shard != own).chain([own]).collect();
        let mut taken = 0;
        for message in &run.messages {
            if !self.has_room(id, shards.iter().copied(), message.body.len()) {
                break;
            }
            self.letters.begin(number + taken, id, message.body.len(), [own].into_iter());
            taken += 1;
        }
        run.messages.truncate(taken as usize);
        if taken > 0 {
            self.log.asked_index = self.log.asked_index.max(run.catalog_index);
            self.letters.queues.entry(id).or_default().next = number + taken;
            self.letters.routing.push_back(Routing::new(number, id, true, run));
        }
        taken as usize == wanted
    }

    fn has_room(&mut self, id: QueueId, mut shards: impl Iterator<Item = ShardId>, bytes: usize) -> bool {
        let full = shards.find(|shard| self.letters.is_full(*shard, bytes));
        if let Some(out) = self.letters.queues.get_mut(&id) {
            out.waits_for = full;
        }
        full.is_none()
    }

    /// The messages of letters, once their entry is at hand. One that cannot be found is logged, and stops its queue's: nothing is dropped.
    fn messages(&mut self, dead: &Dead) -> Option<Vec<Bytes>> {
        let (index, queue) = (dead.at.index, dead.queue);
        let had = self.letters.entries.iter().find(|(of, _)| *of == index).map(|(_, entry)| entry.clone());
        let Some(entry) = had.or_else(|| self.bodies.cached(index)) else {
            if self.letters.reading.len() < ENTRIES && self.letters.reading.insert(index) {
                let (handle, read) = (self.handle.clone(), self.bodies.read(index));
                tokio::spawn(async move {
                    let result = read.await;
                    handle.letter_read(LetterRead { queue, index, result });
                });
            }
            return None;
        };
        let mut found = Vec::with_capacity(dead.at.count as usize);
        read_run(&entry, queue, &dead.at, &mut found);
        if found.len() == dead.at.count as usize {
            return Some(found.into_iter().map(|(_, message)| message).collect());
        }
        tracing::error!(%queue, index, first = %dead.at.first, "entry does not hold the letters it should");
        self.letters.pause(queue, Instant::now() + UNREADABLE);
        None
    }

    pub(super) fn letter_was_read(&mut self, read: LetterRead) {
        let LetterRead { queue, index, result } = read;
        self.letters.reading.remove(&index);
        self.letters.news = true;
        match result {
            Ok(entry) => {
                if self.letters.entries.len() >= ENTRIES {
                    self.letters.entries.pop_front();
                }
                self.letters.entries.push_back((index, entry));
            }
            Err(error) => {
                tracing::warn!(%queue, index, %error, "cannot read letters");
                self.letters.pause(queue, Instant::now() + UNREADABLE);
            }
        }
    }

    /// Sends letters side by side to other shards; `outlets` are theirs.
    pub(super) fn forward(&mut self, first: u64, outlets: &[Outlet], catalog_index: u64, letters: &[LetterMessage]) {
        let epoch = self.epoch();
        for outlet in outlets.iter().filter(|outlet| outlet.shard != self.config.shard) {
            let (handle, target) = (self.handle.clone(), outlet.shard);
            let answered = Arc::new(move |(a, b), fate| handle.letters_answered((first + a, first + b), target, fate));
            let source = Source { shard: self.config.shard, epoch, number: outlet.first };
            self.config.letters.forward(source, (target, &outlet.queues), catalog_index, letters, answered);
        }
    }

    /// The same, of letters that were routed just now.
    pub(super) fn forward_first(&mut self, first: u64, routed: &Routed, letters: &[LetterMessage]) {
        let others = || routed.outlets.iter().map(|outlet| outlet.shard).filter(|shard| *shard != self.config.shard);
        for (number, letter) in (first..).zip(letters) {
            self.letters.begin(number, routed.dead.queue, letter.body.len(), others());
        }
        self.forward(first, &routed.outlets, routed.catalog_index, letters);
    }

    /// Which life of this shard's numbers; 0 where they never begin anew.
    pub(super) fn epoch(&self) -> u64 {
        self.config.shard.owner().and(self.lead).map_or(0, |lead| lead.term)
    }

    /// Another shard has said what became of letters.
    pub(super) fn letters_answered(&mut self, (first, last): (u64, u64), shard: ShardId, fate: LetterFate) {
        if fate == LetterFate::Taken {
            self.log.done((first, last), shard);
        }
        for number in first..=last {
            let queue = self.letters.under_way.get(&number).map(|under_way| under_way.queue);
            let over = self.letters.end(number, shard);
            match fate {
                LetterFate::Taken => over.into_iter().for_each(|queue| self.letter_arrived(queue, number)),
                LetterFate::Refused => queue.into_iter().for_each(|queue| self.letters.refused(queue, number)),
            }
        }
    }

    /// The own shard's queues have a letter, as far as they are to get it.
    pub(super) fn letter_is_here(&mut self, number: u64) {
        if let Some(queue) = self.letters.end(number, self.config.shard) {
            self.letter_arrived(queue, number);
        }
    }

    fn letter_arrived(&mut self, queue: QueueId, number: u64) {
        self.letters.taken(queue, number);
        self.arrived(number);
    }

    /// Letters ended: queues whose outbox was full may go on.
    pub(super) fn outboxes_shrank(&mut self) {
        if self.letters.kept.is_empty() {
            return;
        }
        let machine = self.machine.lock();
        let (free, full) = std::mem::take(&mut self.letters.kept).into_iter().partition(|queue| machine.buries(*queue));
        drop(machine);
        self.letters.kept = full;
        let free: BTreeSet<QueueId> = free;
        free.into_iter().for_each(|queue| self.mark(queue));
    }
}

fn letter_of(dead: &Dead, message: Bytes) -> Letter {
    Letter { reason: dead.reason, time_ms: dead.time_ms, message }
}
