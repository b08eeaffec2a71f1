//! Where the next messages of one priority come from: a cursor, what was given back, and a small window of located runs of each. A
//! queue that tells no priorities apart has one level. Used by `queue` and `delivery`; no messages are kept beyond the run in hand.

use super::ranges::{RangeMap, RangeSet};
use crate::machine::{Located, Queue};
use crate::model::entry::EntryBytes;
use crate::model::{Seq, SessionId};
use bytes::Bytes;
use std::collections::VecDeque;

/// Messages located at once.
const WINDOW_MESSAGES: usize = 2048;

/// A run of live messages and, once read from disk, its entry.
#[derive(Debug)]
pub(super) struct Run {
    pub at: Located,
    pub entry: Option<EntryBytes>,
    pub reading: bool,
}

/// Located runs, and the messages of the first one.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub runs: VecDeque<Run>,
    pub front: VecDeque<(Seq, Bytes)>,
    /// Of the messages in `front`: when they expire.
    pub deadline_ms: u64,
}

impl Source {
    pub fn clear(&mut self) {
        self.runs.clear();
        self.front.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.front.is_empty()
    }

    fn fill(&mut self, located: &mut Vec<Located>) {
        self.runs.extend(located.drain(..).map(|at| Run { at, entry: None, reading: false }));
    }
}

/// One priority of a queue.
#[derive(Debug)]
pub(super) struct Level {
    /// Everything below was delivered or is in `returned`.
    pub cursor: Seq,
    pub fresh: Source,
    pub again: Source,
    pub returned: RangeSet,
    /// Nothing was found at the cursor, and nothing came since.
    pub exhausted: bool,
}

impl Level {
    /// From the first live message on.
    pub fn new(level: usize, queue: &Queue) -> Level {
        let first = queue.first_ready(level, Seq(0), &[]).map_or(Seq(queue.tail().0 + 1), |run| run.first);
        Level { cursor: first, fresh: Source::default(), again: Source::default(), returned: RangeSet::default(), exhausted: false }
    }

    pub fn source(&mut self, again: bool) -> &mut Source {
        if again { &mut self.again } else { &mut self.fresh }
    }

    /// The machine changed what is live: what was located counts no more.
    pub fn forget_window(&mut self) {
        self.fresh.clear();
        self.again.clear();
        self.exhausted = false;
    }

    /// These wait again.
    pub fn put_back(&mut self, first: Seq, last: Seq) {
        if first < self.cursor {
            self.returned.insert(first, last.min(Seq(self.cursor.0 - 1)), ());
            self.again.clear();
        }
    }

    /// Nothing is to come but what lies beyond `tail`.
    pub fn skip_to(&mut self, tail: Seq) {
        self.cursor = Seq(tail.0 + 1);
        self.returned = RangeSet::default();
        self.forget_window();
    }

    /// Locates what comes next from given-back messages; false when none is left.
    pub fn locate_again(&mut self, level: usize, queue: &Queue, located: &mut Vec<Located>) -> bool {
        while let Some((first, last)) = self.returned.first() {
            located.clear();
            let count = (last.0 - first.0 + 1).min(WINDOW_MESSAGES as u64);
            queue.locate(level, first, count as usize, located);
            located.retain_mut(|run| {
                let room = (last.0 + 1).saturating_sub(run.first.0);
                run.count = run.count.min(u32::try_from(room).unwrap_or(u32::MAX));
                run.count > 0
            });
            let live = located.first().map_or(last.0 + 1, |run| run.first.0);
            self.returned.remove(first, Seq(live - 1), |_, _, _| {});
            if !located.is_empty() {
                self.again.fill(located);
                return true;
            }
        }
        false
    }

    /// Locates what comes next from the cursor on; false when there is nothing.
    pub fn locate_fresh(&mut self, level: usize, queue: &Queue, checked: &RangeMap<SessionId>, located: &mut Vec<Located>) -> bool {
        if self.exhausted {
            return false;
        }
        if checked.highest() >= self.cursor
            && let Some((free, _)) = checked.gaps(self.cursor, Seq(u64::MAX)).first()
        {
            self.cursor = *free;
        }
        located.clear();
        queue.locate(level, self.cursor, WINDOW_MESSAGES, located);
        self.cursor = located.first().map_or(Seq(queue.tail().0 + 1), |run| run.first).max(self.cursor);
        self.fresh.fill(located);
        self.exhausted = self.fresh.runs.is_empty();
        !self.exhausted
    }

    /// Nobody has looked at the cursor since something may have come.
    pub fn is_unknown(&self) -> bool {
        !self.exhausted && self.fresh.is_empty()
    }

    /// Takes the next message, which the caller has seen in the front of its source.
    pub fn pop(&mut self, again: bool) -> Option<(Seq, Bytes)> {
        let (seq, message) = self.source(again).front.pop_front()?;
        if again {
            self.returned.remove(seq, seq, |_, _, _| {});
        } else {
            self.cursor = Seq(seq.0 + 1);
        }
        Some((seq, message))
    }
}
