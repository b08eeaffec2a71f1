//! Who waits for what in a batch: runs of messages of one channel with consecutive tickets, so that a thousand publishes of one client
//! are one record. Made by the publish path, resolved when the batch has its verdict.

use super::committing::Committing;
use crate::edge::mailbox::{ChannelRef, Mailbox};
use crate::model::entry::StoredMessage;
use crate::model::letters::LetterFate;
use crate::model::ports::LetterAnswered;
use crate::model::step::Publish;
use parking_lot::Mutex;
use std::sync::Arc;

/// Consecutive messages of one channel in one batch.
#[derive(Clone, Debug)]
pub(in crate::edge) struct Run {
    pub mailbox: Arc<Mailbox>,
    pub at: ChannelRef,
    /// Ticket of the first message; 0 = without tickets.
    pub ticket: u64,
    pub mandatory: bool,
    /// Routed a second time: no third.
    pub rerouted: bool,
    /// Ordinal of the first message among the batch's enqueues; set by the batch.
    pub first: u32,
    pub count: u32,
    /// Set when a client's message went to several shards; then the run has one message.
    pub shared: Option<Arc<Shared>>,
    /// Set when these are letters.
    pub letters: Option<Letters>,
    /// The transaction it is part of.
    pub commit: Option<Arc<Committing>>,
    /// Of the stream protocol: tickets are publishing ids, counted from 0, and what nobody took is nacked.
    pub strict: bool,
}

/// What became of a message in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::edge) enum Fate {
    /// In a queue.
    Taken,
    /// No queue took it.
    Unroutable,
    /// Not confirmed in time.
    Nacked,
}

/// Nobody's messages: letters of a shard of this node, which is told what becomes of them.
#[derive(Clone)]
pub(in crate::edge) struct Letters {
    /// The first of the run, counted in what the shard sent.
    first: u64,
    then: LetterAnswered,
}

impl std::fmt::Debug for Letters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Letters").field(&self.first).finish()
    }
}

impl Letters {
    pub fn new(then: LetterAnswered) -> Letters {
        Letters { first: 0, then }
    }

    /// Those from the `n`th on.
    fn after(&self, n: u32) -> Letters {
        Letters { first: self.first + u64::from(n), then: self.then.clone() }
    }

    fn is_before(&self, n: u32, next: &Letters) -> bool {
        self.first + u64::from(n) == next.first && Arc::ptr_eq(&self.then, &next.then)
    }
}

/// A message that went to several shards: its ticket is answered when all have answered.
#[derive(Debug)]
pub(in crate::edge) struct Shared(Mutex<Parts>);

#[derive(Debug)]
struct Parts {
    unanswered: u32,
    /// Of those that have answered.
    fate: Fate,
    /// A refused part was routed again by a catalog of this index.
    rerouted_at: u64,
}

impl Shared {
    pub fn new(parts: u32) -> Arc<Shared> {
        Arc::new(Shared(Mutex::new(Parts { unanswered: parts, fate: Fate::Unroutable, rerouted_at: 0 })))
    }

    /// One part became `1 + more` parts.
    pub fn add_parts(&self, more: u32) {
        self.0.lock().unanswered += more;
    }

    /// A part that was routed by the catalog of index `from` is routed again by that of index `to`. Queues made since then are this
    /// part's to reach; those made up to the index that comes back were another's.
    pub fn reroute(&self, from: u64, to: u64) -> u64 {
        let mut parts = self.0.lock();
        let reached = parts.rerouted_at.max(from);
        parts.rerouted_at = parts.rerouted_at.max(to);
        reached
    }

    /// One part's fate; the whole's when it was the last part. Nacked beats taken beats unroutable.
    fn part(&self, fate: Fate) -> Option<Fate> {
        let mut parts = self.0.lock();
        parts.unanswered -= 1;
        parts.fate = match (parts.fate, fate) {
            (Fate::Nacked, _) | (_, Fate::Nacked) => Fate::Nacked,
            (Fate::Taken, _) | (_, Fate::Taken) => Fate::Taken,
            (Fate::Unroutable, Fate::Unroutable) => Fate::Unroutable,
        };
        (parts.unanswered == 0).then_some(parts.fate)
    }
}

/// Messages that a run or a part of it had an end of, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::edge) struct Ended {
    pub confirmed: u64,
    pub nacked: u64,
    pub returned: u64,
}

impl Run {
    /// Without messages, for `with_id`.
    pub fn of_stream(mailbox: Arc<Mailbox>, at: ChannelRef) -> Run {
        let (shared, letters, commit) = (None, None, None);
        Run { mailbox, at, ticket: 0, mandatory: false, rerouted: false, first: 0, count: 1, shared, letters, commit, strict: true }
    }

    /// The same for the message of a stream with this publishing id, which is the `first`th entry of its chunk.
    pub fn with_id(&self, id: u64, first: u32) -> Run {
        Run { ticket: id.saturating_add(1), first, ..self.clone() }
    }

    /// One more message of a stream, with this publishing id, when it continues this run.
    pub fn extend_by(&mut self, next: &Run, id: u64) -> bool {
        let continues = self.strict
            && self.ticket.checked_add(self.count.into()) == id.checked_add(1)
            && self.at == next.at
            && Arc::ptr_eq(&self.mailbox, &next.mailbox);
        self.count += u32::from(continues);
        continues
    }

    /// Its tickets as events name them.
    fn tickets(&self) -> (u64, u64) {
        let first = self.ticket - u64::from(self.strict);
        (first, first + (u64::from(self.count) - 1))
    }

    pub fn is_ticketed(&self) -> bool {
        self.ticket != 0
    }

    /// Append `next` (one message) when it continues this run.
    pub fn extend(&mut self, next: &Run) -> bool {
        let ticket = if self.ticket == 0 { 0 } else { self.ticket + u64::from(self.count) };
        let continues = self.shared.is_none()
            && next.shared.is_none()
            && self.at == next.at
            && self.ticket.min(1) == next.ticket.min(1)
            && ticket == next.ticket
            && self.mandatory == next.mandatory
            && self.rerouted == next.rerouted
            && self.strict == next.strict
            && self.first + self.count == next.first
            && match (&self.letters, &next.letters) {
                (None, None) => true,
                (Some(letters), Some(next)) => letters.is_before(self.count, next),
                (Some(_), None) | (None, Some(_)) => false,
            }
            && self.commit.as_ref().map(Arc::as_ptr) == next.commit.as_ref().map(Arc::as_ptr)
            && Arc::ptr_eq(&self.mailbox, &next.mailbox);
        if continues {
            self.count += next.count;
        }
        continues
    }

    /// The run of only the message with that ordinal.
    pub fn one(&self, ordinal: u32) -> Run {
        let ticket = if self.ticket == 0 { 0 } else { self.ticket + u64::from(ordinal - self.first) };
        let letters = self.letters.as_ref().map(|letters| letters.after(ordinal - self.first));
        Run { first: ordinal, count: 1, ticket, letters, ..self.clone() }
    }

    /// The run of the messages with ordinals `from..to`; both within it.
    pub fn slice(&self, from: u32, to: u32) -> Run {
        Run { count: to - from, ..self.one(from) }
    }

    /// The whole run ends. `message`: its one message, when it may have to be returned.
    pub fn end(&self, fate: Fate, message: Option<&StoredMessage>) -> Ended {
        let fate = match &self.shared {
            None => Some(fate),
            Some(shared) => shared.part(fate),
        };
        if let (Some(Letters { first, then }), Some(fate)) = (&self.letters, fate) {
            let fate = match fate {
                Fate::Nacked => LetterFate::Refused,
                Fate::Taken | Fate::Unroutable => LetterFate::Taken,
            };
            then((*first, first + u64::from(self.count) - 1), fate);
        }
        match fate {
            None => Ended::default(),
            Some(Fate::Taken) => self.confirm(),
            Some(Fate::Nacked) => self.nack(),
            Some(Fate::Unroutable) if self.strict => self.nack(),
            Some(Fate::Unroutable) => {
                let returned = u64::from(self.give_back(message));
                Ended { returned, ..self.confirm() }
            }
        }
    }

    fn confirm(&self) -> Ended {
        if self.is_ticketed() {
            let (first, last) = self.tickets();
            self.mailbox.confirm(self.at, first, last);
            return Ended { confirmed: self.count.into(), ..Ended::default() };
        }
        Ended::default()
    }

    fn nack(&self) -> Ended {
        if self.is_ticketed() {
            let (first, last) = self.tickets();
            self.mailbox.nack(self.at, first, last);
            return Ended { nacked: self.count.into(), ..Ended::default() };
        }
        Ended::default()
    }

    fn give_back(&self, message: Option<&StoredMessage>) -> bool {
        let Some(m) = message.filter(|_| self.mandatory) else { return false };
        self.mailbox.returned(
            self.at,
            Publish {
                channel: self.at.channel,
                ticket: self.is_ticketed().then_some(self.ticket),
                mandatory: true,
                exchange: m.exchange.clone(),
                routing_key: m.key.clone(),
                properties: m.properties.clone(),
                body: m.body.clone(),
            },
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalog::Owner;
    use crate::model::{ConnectionId, Incarnation, NodeId};

    #[test]
    fn letters_that_were_sent_together_are_answered_together_and_a_refused_one_by_itself() {
        let owner = Owner { node: NodeId(1), incarnation: Incarnation(1), connection: ConnectionId(1) };
        let mailbox = Arc::new(Mailbox::new(owner, std::net::SocketAddr::from(([127, 0, 0, 1], 1))));
        type Told = Vec<((u64, u64), LetterFate)>;
        let told: Arc<Mutex<Told>> = Arc::default();
        let sent = || {
            let told = told.clone();
            let at = ChannelRef { channel: 0, epoch: 0 };
            let letters = Some(Letters::new(Arc::new(move |letters, fate| told.lock().push((letters, fate)))));
            let (mailbox, shared, commit) = (mailbox.clone(), None, None);
            Run { mailbox, at, ticket: 0, mandatory: false, rerouted: false, first: 0, count: 1, shared, letters, commit, strict: false }
        };
        let first = sent();
        let mut run = first.one(0);
        assert!((1..5).all(|n| run.extend(&first.one(n))));
        assert!(!run.extend(&sent().one(5)), "these were sent by themselves");
        run.slice(0, 2).end(Fate::Taken, None);
        run.one(2).end(Fate::Nacked, None);
        run.slice(3, 5).end(Fate::Unroutable, None);
        let fates = [((0, 1), LetterFate::Taken), ((2, 2), LetterFate::Refused), ((3, 4), LetterFate::Taken)];
        assert_eq!(*told.lock(), fates);
    }
}
