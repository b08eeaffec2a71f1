//! Letters through entries: those for queues of this shard are put there by the entry that routes them, those for other shards only get
//! their numbers there and travel once it is applied. Called by `proposing`.

use super::server::ShardServer;
use super::tending::Targets;
use crate::model::entry::Ops;
use crate::model::letters::{RoutedRun, Source};
use crate::model::{QueueId, limits};
use std::ops::RangeInclusive;

/// Letters side by side that go into the next entry, or are in one without an outcome.
#[derive(Debug)]
pub(super) struct Routing {
    /// Of the first.
    pub number: u64,
    /// The queue they left.
    pub queue: QueueId,
    /// They get their way with the entry; else they have one, and go to queues of this shard once more.
    pub fresh: bool,
    pub run: RoutedRun,
    /// Of the messages.
    bytes: usize,
}

impl Routing {
    pub fn new(number: u64, queue: QueueId, fresh: bool, run: RoutedRun) -> Routing {
        let bytes = run.messages.iter().map(|m| 64 + m.properties.len() + m.body.len()).sum();
        Routing { number, queue, fresh, run, bytes }
    }

    fn last(&self) -> u64 {
        self.number + self.run.messages.len() as u64 - 1
    }

    /// Of all its letters.
    pub fn numbers(&self) -> RangeInclusive<u64> {
        self.number..=self.last()
    }

    /// Bytes it takes in an entry of its shard.
    fn len(&self, here: bool) -> usize {
        256 + if here { self.bytes } else { 0 }
    }
}

impl ShardServer {
    fn here<'a>(&self, run: &'a RoutedRun) -> Option<&'a [QueueId]> {
        run.targets.iter().find(|target| target.0 == self.config.shard).map(|target| target.1.as_slice())
    }

    /// Queues of this shard with limits that the letters to come go to. Says how many runs of letters go into the entry.
    pub(super) fn letter_targets(&self, targets: &mut Targets) -> usize {
        let mut len = 0;
        for (at, routing) in self.letters.routing.iter().enumerate() {
            let here = self.here(&routing.run).unwrap_or_default();
            len += routing.len(!here.is_empty());
            if routing.run.catalog_index > self.log.catalog_index() || (at > 0 && len > limits::ENTRY_BYTES) {
                return at;
            }
            let limited = || here.iter().filter(|q| self.limited.contains(*q));
            let frozen = |q: &QueueId| self.queues.get(q).and_then(|s| s.care.as_ref()).is_some_and(|c| c.frozen > 0);
            if limited().any(frozen) {
                return at;
            }
            for queue in limited() {
                match targets.iter_mut().find(|t| t.0 == *queue) {
                    Some(target) => target.1 += routing.run.messages.len() as u64,
                    None => targets.push((*queue, routing.run.messages.len() as u64, false)),
                }
            }
        }
        self.letters.routing.len()
    }

    /// Writes the first runs of letters and puts their copies for this shard into its queues.
    pub(super) fn write_letters(&mut self, runs: usize, ops: &mut Ops) -> Vec<Routing> {
        let letters: Vec<Routing> = self.letters.routing.drain(..runs).collect();
        let (shard, epoch) = (self.config.shard, self.epoch());
        for Routing { number, queue, fresh, run, .. } in &letters {
            if *fresh {
                ops.routed((*queue, *number, run.messages.len() as u32), run.catalog_index, &run.targets);
            }
            let Some(queues) = self.here(run) else { continue };
            for (number, message) in (*number..).zip(&run.messages) {
                let source = Some(Source { shard, epoch, number });
                ops.enqueue_from(source, queues, (&message.exchange, &message.key, &message.properties, &message.body));
            }
        }
        letters
    }

    /// The letters of an entry have their outcome.
    pub(super) fn letters_posted(&mut self, letters: Vec<Routing>, applied: bool) {
        letters.iter().for_each(|routing| self.run_posted(routing, applied));
    }

    fn run_posted(&mut self, routing: &Routing, applied: bool) {
        let (own, queue, first, last) = (self.config.shard, routing.queue, routing.number, routing.last());
        let (routed, waiting) = {
            let machine = self.machine.lock();
            let waiting = machine.waiting_letters(queue, first).map(|(number, _)| number).filter(|number| *number <= last);
            (machine.routed_among(first, last), waiting)
        };
        // It did not count, or not for these: they are taken up again.
        let again = waiting.filter(|_| routing.fresh);
        if let Some(number) = again {
            for number in number..=last {
                self.letters.end(number, own);
            }
            self.letters.restart(queue, number, own);
        }
        if routing.fresh && applied {
            for (from, run) in &routed {
                let at = (from - first) as usize;
                self.forward_first(*from, run, &routing.run.messages[at..at + run.dead.at.count as usize]);
            }
        }
        let due: Vec<_> = routed.iter().filter(|(_, run)| run.outlets.iter().any(|outlet| outlet.shard == own)).collect();
        let is_due = |number: u64| due.iter().any(|(from, run)| (*from..from + u64::from(run.dead.at.count)).contains(&number));
        for number in first..again.unwrap_or(last + 1) {
            if !applied {
                self.letters.end(number, own);
                self.letters.resend(queue, number);
            } else if is_due(number) {
                self.letters.end(number, own);
                self.letters.refused(queue, number);
            } else {
                self.letter_is_here(number);
            }
        }
    }
}
