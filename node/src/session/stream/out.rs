//! What a stream session wants done: acts for the listener, bytes for the client.

use crate::model::step::Step;
use crate::model::stream::{OffsetSpec, StreamTarget};
use crate::model::stream_step::{Ask, Member, Wanted};
use crate::wire::stream::Output;
use std::collections::VecDeque;
use std::sync::Arc;

/// Something for the listener to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// A step of the connection, as every protocol has them.
    Step(Step),
    /// A question; its answer goes to `Session::on_answer`. There is never a second one before that.
    Ask(Ask),
    /// A reader is this far. No answer; without the right to read, or without such a stream, nothing happens.
    Store {
        /// Of which stream.
        stream: Arc<str>,
        /// Its name.
        reference: Arc<str>,
        /// How far.
        offset: u64,
    },
    /// Read a stream for a subscription: chunks go to `Session::on_chunk` while it wants some.
    Read(Read),
    /// No longer.
    Stop {
        /// The subscription.
        subscription: u8,
    },
    /// The subscription is one of a group on its stream of which one is active (`Session::on_turn`).
    Join(Member),
    /// It is not any more.
    Leave(Member),
    /// It has stopped reading, as it was told: the next may begin.
    Yielded(Member),
}

/// Where a subscription reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// Its number.
    pub subscription: u8,
    /// The stream.
    pub target: Arc<StreamTarget>,
    /// Where it begins.
    pub from: OffsetSpec,
    /// Chunks that it wants; `None`: all.
    pub wanted: Option<Arc<Wanted>>,
}

/// What a session wants done, in order. The listener drains both.
#[derive(Debug, Default)]
pub struct Out {
    /// For the listener.
    pub acts: VecDeque<Act>,
    /// For the client.
    pub bytes: Output,
}

impl Out {
    pub(super) fn step(&mut self, step: Step) {
        self.acts.push_back(Act::Step(step));
    }

    pub(super) fn act(&mut self, act: Act) {
        self.acts.push_back(act);
    }
}
