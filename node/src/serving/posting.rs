//! Letters through entries: those for queues of this shard are put there by the entry that routes them, those for other shards only get
//! their numbers there and travel once it is applied. Called by `proposing`.

use super::server::ShardServer;
use super::tending::Targets;
use crate::model::entry::Ops;
use crate::model::letters::{RoutedLetter, Source};
use crate::model::{QueueId, limits};
use std::sync::Arc;

/// A letter that goes into the next entry, or is in one without an outcome.
#[derive(Debug)]
pub(super) struct Routing {
    pub number: u64,
    /// The queue it left.
    pub queue: QueueId,
    /// It gets its way with the entry; else it has one, and goes to queues of this shard once more.
    pub fresh: bool,
    pub letter: Arc<RoutedLetter>,
}

impl Routing {
    /// Bytes it takes in an entry of its shard.
    fn len(&self, here: bool) -> usize {
        let message = &self.letter.message;
        64 + if here { message.properties.len() + message.body.len() } else { 0 }
    }
}

impl ShardServer {
    fn here<'a>(&self, letter: &'a RoutedLetter) -> Option<&'a [QueueId]> {
        letter.targets.iter().find(|target| target.0 == self.config.shard).map(|target| target.1.as_slice())
    }

    /// Queues of this shard with limits that the letters to come go to. Says how many letters go into the entry.
    pub(super) fn letter_targets(&self, targets: &mut Targets) -> usize {
        let mut len = 0;
        for (at, routing) in self.letters.routing.iter().enumerate() {
            let here = self.here(&routing.letter).unwrap_or_default();
            len += routing.len(!here.is_empty());
            if routing.letter.catalog_index > self.log.catalog_index() || (at > 0 && len > limits::ENTRY_BYTES) {
                return at;
            }
            let limited = || here.iter().filter(|q| self.limited.contains(*q));
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
        let (shard, epoch) = (self.config.shard, self.epoch());
        for Routing { number, queue, fresh, letter } in &letters {
            if *fresh {
                ops.routed((*queue, *number), letter.catalog_index, &letter.address, &letter.targets);
            }
            if let Some(queues) = self.here(letter) {
                let message = &letter.message;
                let source = Some(Source { shard, epoch, number: *number });
                ops.enqueue_from(source, queues, (&message.exchange, &message.key, &message.properties, &message.body));
            }
        }
        letters
    }

    /// The letters of an entry have their outcome.
    pub(super) fn letters_posted(&mut self, letters: Vec<Routing>, applied: bool) {
        let own = self.config.shard;
        for Routing { number, queue, fresh, letter } in letters {
            let machine = self.machine.lock();
            let outlets = machine.routed_letter(number).map(|routed| routed.outlets.clone());
            let waits = || machine.waiting_letters(queue, number).is_some_and(|(first, _)| first == number);
            // Nothing is known of it, or it did not count.
            let again = fresh && outlets.is_none() && (!applied || waits());
            drop(machine);
            if again {
                self.letters.end(number, own);
                self.letters.restart(queue, number, own);
                continue;
            }
            let outlets = outlets.unwrap_or_default();
            if fresh && applied {
                self.forward_first(queue, number, &outlets, &letter);
            }
            if !applied {
                self.letters.end(number, own);
                self.letters.resend(queue, number);
            } else if outlets.iter().any(|outlet| outlet.shard == own) {
                self.letters.end(number, own);
                self.letters.refused(queue, number);
            } else {
                self.letter_is_here(number);
            }
        }
    }
}
