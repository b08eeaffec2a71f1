//! Dead letters of this shard, in order: read, routed by the node, put into queues of this shard with the entry that routes them, handed
//! on to other shards, and done when those have answered (rule 25; what is missing of it is in the README). A letter whose way is not
//! known stops those behind it.
//! What is known of them is in the machine; here is only how far this leader got.

use super::handle::LetterRead;
use super::server::ShardServer;
use super::tending::Targets;
use crate::machine::{Dead, read_run};
use crate::model::entry::{EntryBytes, Ops};
use crate::model::ports::{Letter, RoutedLetter};
use crate::model::{QueueId, ShardId, limits};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// A letter that goes into the next entry, or is in one without an outcome.
pub(super) type Routing = (u64, Arc<RoutedLetter>);

/// How far this leader got.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// Letters from this number on were not looked at.
    next: u64,
    /// Its entry is being read.
    reading: Option<u64>,
    /// The entry of the next one.
    body: Option<(u64, EntryBytes)>,
    /// Routed, for the next entry.
    pub routing: VecDeque<Routing>,
    /// In entries without an outcome.
    in_flight: usize,
    /// There may be more.
    pub news: bool,
    /// Another try at the next tick.
    pub stalled: bool,
}

impl Letters {
    fn restart(&mut self, number: u64) {
        self.next = self.next.min(number);
        self.routing.clear();
        self.body = None;
        self.news = true;
    }
}

impl ShardServer {
    /// Takes up as many letters as may be under way.
    pub(super) fn work_on_letters(&mut self) {
        if self.lead.is_none() || !std::mem::take(&mut self.letters.news) {
            return;
        }
        while self.letters.routing.len() + self.letters.in_flight < limits::DEAD_LETTERS_UNDER_WAY {
            let next = self.machine.lock().dead_from(self.letters.next).next().map(|(number, dead)| (number, dead.clone()));
            let Some((number, dead)) = next else { return };
            let Some(message) = self.letter(number, &dead) else { return };
            if !self.take_up(number, &dead, message) {
                self.letters.stalled = true;
                return;
            }
            self.letters.next = number + 1;
        }
        self.letters.news = true;
    }

    /// The message, once its entry is at hand. One that cannot be found is logged, and stops those behind it: nothing is dropped.
    fn letter(&mut self, number: u64, dead: &Dead) -> Option<Bytes> {
        let index = dead.at.index;
        let had = self.letters.body.take().filter(|(of, _)| *of == number).map(|(_, entry)| entry);
        let Some(entry) = had.or_else(|| self.bodies.cached(index)) else {
            if self.letters.reading != Some(number) {
                self.letters.reading = Some(number);
                let (handle, read) = (self.handle.clone(), self.bodies.read(index));
                tokio::spawn(async move {
                    let result = read.await;
                    handle.letter_read(LetterRead { number, result });
                });
            }
            return None;
        };
        let mut found = Vec::with_capacity(1);
        read_run(&entry, dead.queue, &dead.at, &mut found);
        let message = found.pop().map(|(_, message)| message);
        if message.is_none() {
            tracing::error!(queue = %dead.queue, index, number, "entry does not hold the dead letter it should");
            self.letters.stalled = true;
        }
        message
    }

    pub(super) fn letter_was_read(&mut self, read: LetterRead) {
        if self.letters.reading != Some(read.number) {
            return;
        }
        self.letters.reading = None;
        match read.result {
            Ok(entry) => {
                self.letters.body = Some((read.number, entry));
                self.letters.news = true;
            }
            Err(error) => {
                tracing::warn!(number = read.number, %error, "cannot read a dead letter");
                self.letters.stalled = true;
            }
        }
    }

    /// Routes a letter, or sends one on that an earlier leader routed. False: not now.
    fn take_up(&mut self, number: u64, dead: &Dead, message: Bytes) -> bool {
        let letter = Letter { queue: dead.queue, reason: dead.reason, time_ms: dead.time_ms, message };
        let Some(routed) = self.config.letters.route(&letter) else { return false };
        let routed = Arc::new(routed);
        match &dead.targets {
            None => self.letters.routing.push_back((number, routed)),
            Some(targets) => self.send_letter(number, targets, &routed),
        }
        true
    }

    fn send_letter(&mut self, number: u64, targets: &[(ShardId, Vec<QueueId>)], routed: &RoutedLetter) {
        for (target, queues) in targets {
            let (handle, target) = (self.handle.clone(), *target);
            let done = Box::new(move || handle.letter_done(number, target));
            self.config.letters.forward((self.config.shard, number), target, queues, routed, done);
        }
    }

    /// Queues of this shard that the letters to come go to: they may drop messages. Says how many letters go into the entry.
    pub(super) fn letter_targets(&self, targets: &mut Targets) -> usize {
        let shard = self.config.shard;
        for (at, (_, routed)) in self.letters.routing.iter().enumerate() {
            let local: Vec<QueueId> = routed.targets.iter().filter(|t| t.0 == shard).flat_map(|t| t.1.clone()).collect();
            let limited = || local.iter().filter(|q| self.limited.contains(*q));
            let frozen = |q: &QueueId| self.queues.get(q).and_then(|s| s.care.as_ref()).is_some_and(|c| c.frozen > 0);
            if limited().any(frozen) {
                return at;
            }
            for queue in limited() {
                match targets.iter_mut().find(|t| t.0 == *queue) {
                    Some(target) => target.1 += 1,
                    None => targets.push((*queue, 1, false)),
                }
            }
        }
        self.letters.routing.len()
    }

    /// Writes the first letters and puts their copies for this shard into its queues.
    pub(super) fn write_letters(&mut self, count: usize, ops: &mut Ops) -> Vec<Routing> {
        let letters: Vec<Routing> = self.letters.routing.drain(..count).collect();
        for (number, routed) in &letters {
            let (local, others): (Vec<_>, Vec<_>) = routed.targets.iter().cloned().partition(|t| t.0 == self.config.shard);
            ops.routed(*number, !local.is_empty(), &others);
            if let Some((_, queues)) = local.first() {
                ops.enqueue(queues, &routed.exchange, &routed.key, &routed.properties, &routed.body);
            }
        }
        self.letters.in_flight += letters.len();
        letters
    }

    /// The letters of an entry have their outcome.
    pub(super) fn letters_routed(&mut self, letters: Vec<Routing>, applied: bool) {
        self.letters.in_flight = self.letters.in_flight.saturating_sub(letters.len());
        self.letters.news |= !letters.is_empty();
        for (number, routed) in letters {
            if !applied {
                return self.letters.restart(number);
            }
            let targets = self.machine.lock().dead(number).and_then(|dead| dead.targets.clone());
            self.send_letter(number, &targets.unwrap_or_default(), &routed);
        }
    }
}
