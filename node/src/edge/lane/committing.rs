//! A transaction on its way. What concerns one replicated shard is one batch, and that is all. Parts in several of them are prepared,
//! decided by the lowest and ended (rule 26); each step is taken when the verdicts of the one before are there. What concerns queues in
//! memory follows when the rest is decided. Then tx.commit is answered. Made by `edge::transaction`, driven by the lanes' verdicts; when
//! this process dies, the shards finish it (`machine::deciding`).

use super::Lane;
use super::batches::Settles;
use super::run::Run;
use crate::edge::mailbox::{ChannelRef, Mailbox};
use crate::edge::ranges::RangeSet;
use crate::model::catalog::Refusal;
use crate::model::entry::{Ops, PartStart, Word};
use crate::model::link::RefusedEnqueue;
use crate::model::step::{Held, Outcome, Reply};
use crate::model::{ConnectionId, QueueId, ShardId, TxId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Why a transaction was given up.
const GIVEN_UP: &str = "a shard lost contact with this node during the commit; nothing of the transaction took effect";

/// The same of a strict one.
const LOST: &str = "what the transaction acknowledges was given to somebody else, or is gone; nothing of it took effect";

/// What a transaction brings to one shard: its messages, encoded.
#[derive(Debug, Default)]
pub(in crate::edge) struct Share {
    pub ops: Ops,
    /// It is a part that waits for a decision, and begins here.
    pub part: Option<PartStart>,
    pub runs: Vec<Run>,
}

/// What follows the decision.
#[derive(Debug)]
pub(in crate::edge) struct Late {
    pub lane: Arc<Lane>,
    pub share: Share,
    pub settlements: Vec<(Vec<Held>, Outcome)>,
    pub catalog_index: u64,
}

#[derive(Debug)]
pub(in crate::edge) struct Committing {
    mailbox: Arc<Mailbox>,
    at: ChannelRef,
    tx: TxId,
    /// Shards whose parts are decided together, the one that decides first; none: there is nothing to decide.
    decided: Vec<ShardId>,
    /// Their lanes.
    parts: Vec<Weak<Lane>>,
    is_strict: bool,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    stage: Stage,
    /// Verdicts that are missing, and one for whoever starts a stage, until all of it is started.
    waiting: u32,
    refused: Option<RefusedEnqueue>,
    is_given_up: bool,
    late: Vec<Late>,
    /// What the client had settled, by shard with a part.
    held: Vec<(ShardId, BTreeMap<QueueId, RangeSet>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Parts,
    Deciding,
    Ending,
}

/// What a stage that is over leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Decide,
    Commit,
    Abort,
    Answer,
}

impl Progress {
    fn advance(&mut self, parts: usize) -> Next {
        let (stage, next) = match self.stage {
            Stage::Parts if parts == 0 => (Stage::Ending, Next::Commit),
            // One that is all of it, and strict, took effect as it came.
            Stage::Parts if parts == 1 && self.refused.is_none() => (Stage::Ending, Next::Commit),
            Stage::Parts if self.refused.is_none() => (Stage::Deciding, Next::Decide),
            Stage::Deciding if self.refused.is_none() => (Stage::Ending, Next::Commit),
            Stage::Parts | Stage::Deciding => (Stage::Ending, Next::Abort),
            Stage::Ending => (Stage::Ending, Next::Answer),
        };
        self.stage = stage;
        self.is_given_up |= next == Next::Abort;
        self.waiting = 1;
        next
    }
}

impl Committing {
    /// Answered on that channel. Whoever makes it says how many shares there are (`expect`), hands them to their lanes, and is `done`.
    /// `parts`: the lanes of shards whose parts are decided together, the one that decides first; of one alone when it is strict.
    pub fn new(mailbox: Arc<Mailbox>, at: ChannelRef, tx: TxId, parts: &[Arc<Lane>], is_strict: bool) -> Arc<Committing> {
        let progress = Progress { stage: Stage::Parts, waiting: 1, refused: None, is_given_up: false, late: Vec::new(), held: Vec::new() };
        let decided = parts.iter().map(|lane| lane.shard).collect();
        let parts = parts.iter().map(Arc::downgrade).collect();
        Arc::new(Committing { mailbox, at, tx, decided, parts, is_strict, progress: Mutex::new(progress) })
    }

    /// What follows the decision.
    pub fn follow_with(&self, late: Vec<Late>) {
        self.progress.lock().late = late;
    }

    /// Its id.
    pub fn tx(&self) -> TxId {
        self.tx
    }

    /// Shards whose parts are decided together, the one that decides first.
    pub fn decided(&self) -> &[ShardId] {
        &self.decided
    }

    /// It is refused when others may have what it settles.
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Whose it is.
    pub fn connection(&self) -> ConnectionId {
        self.mailbox.id()
    }

    /// So many more verdicts are to come.
    pub fn expect(&self, verdicts: usize) {
        self.progress.lock().waiting += verdicts as u32;
    }

    /// The part in that shard keeps these until the decision.
    pub fn holds(&self, shard: ShardId, settles: &[Settles]) {
        let mut held: BTreeMap<QueueId, RangeSet> = BTreeMap::new();
        settles.iter().for_each(|(queue, _, ranges)| held.entry(*queue).or_default().extend(ranges));
        if !held.is_empty() {
            self.progress.lock().held.push((shard, held));
        }
    }

    /// Something of it was refused.
    pub fn refused(&self, why: RefusedEnqueue) {
        self.progress.lock().refused.get_or_insert(why);
    }

    /// A verdict is there; the last one of a stage begins the next.
    pub fn done(self: &Arc<Self>) {
        let next = {
            let mut progress = self.progress.lock();
            progress.waiting -= 1;
            if progress.waiting > 0 {
                return;
            }
            progress.advance(self.parts.len())
        };
        match next {
            Next::Decide => self.say(Word::Decide, &self.parts[..1]),
            Next::Commit => {
                // The one that decided knows.
                self.say(Word::Commit, self.parts.get(1..).unwrap_or_default());
                self.follow();
            }
            Next::Abort => self.say(Word::Abort, &self.parts),
            Next::Answer => return self.answer(),
        }
        self.done();
    }

    fn say(self: &Arc<Self>, word: Word, to: &[Weak<Lane>]) {
        self.expect(to.len());
        for lane in to {
            match lane.upgrade() {
                Some(lane) => lane.word(self.tx, word, self.run(Some(self.clone())), Some(self)),
                None => self.done(),
            }
        }
    }

    fn follow(self: &Arc<Self>) {
        let late = std::mem::take(&mut self.progress.lock().late);
        self.expect(late.len());
        for Late { lane, share, settlements, catalog_index } in late {
            let mut settled = vec![0; settlements.len()];
            lane.transact(share, &settlements, &mut settled, catalog_index, self);
        }
    }

    fn answer(&self) {
        let (refused, is_given_up, held, late) = {
            let mut progress = self.progress.lock();
            (progress.refused, progress.is_given_up, std::mem::take(&mut progress.held), std::mem::take(&mut progress.late))
        };
        if is_given_up {
            self.give_back(held, &late);
        }
        if let Some(decider) = self.parts.first().filter(|_| self.parts.len() > 1).and_then(Weak::upgrade) {
            decider.word(self.tx, Word::Forget, self.run(None), None);
        }
        let result = match refused {
            None => Ok(Reply::Done),
            Some(RefusedEnqueue::Lost) => Err(Refusal::Locked(LOST.to_string())),
            Some(RefusedEnqueue::GivenUp) => Err(Refusal::Unavailable(GIVEN_UP.to_string())),
            Some(RefusedEnqueue::Full | RefusedEnqueue::Sealed | RefusedEnqueue::UnknownQueue) => {
                Err(Refusal::Precondition("partial tx completion".to_string()))
            }
        };
        self.mailbox.reply(self.at, result);
    }

    /// Nothing of it took effect: what the client had settled waits again.
    fn give_back(&self, held: Vec<(ShardId, BTreeMap<QueueId, RangeSet>)>, late: &[Late]) {
        for (shard, held) in held {
            if let Some(lane) = self.parts.iter().filter_map(Weak::upgrade).find(|lane| lane.shard == shard) {
                lane.requeue(held);
            }
        }
        for Late { lane, settlements, .. } in late {
            for (held, _) in settlements {
                let here: Vec<Held> = held.iter().filter(|h| h.shard == lane.shard).copied().collect();
                lane.settle(self.connection(), &here, Outcome::Requeue);
            }
        }
    }

    /// Who waits for a word or a message of it.
    pub fn run(&self, commit: Option<Arc<Committing>>) -> Run {
        Run {
            mailbox: self.mailbox.clone(),
            at: self.at,
            ticket: 0,
            mandatory: false,
            rerouted: false,
            first: 0,
            count: 1,
            shared: None,
            letters: None,
            commit,
            strict: false,
        }
    }
}
