//! What a session wants done: steps for the edge, bytes for the client. Joins settlements, so that a batch of acks is one step.

use crate::model::step::{Held, Outcome, Step};
use crate::wire::amqp::Output;
use std::collections::VecDeque;

/// What a session wants done, in order. The listener drains both.
#[derive(Debug, Default)]
pub struct Out {
    /// For the edge.
    pub steps: VecDeque<Step>,
    /// For the client.
    pub bytes: Output,
    /// Channel and tag of the last step, while it is a settlement that may grow.
    settling: Option<(u16, u64)>,
}

impl Out {
    pub(super) fn step(&mut self, step: Step) {
        self.settling = None;
        self.steps.push_back(step);
    }

    pub(super) fn drop_empty_settlement(&mut self) {
        if let Some(Step::Settle { held, .. }) = self.steps.back()
            && held.is_empty()
        {
            self.steps.pop_back();
            self.settling = None;
        }
    }

    /// Where the messages of a settlement go: into the last step when that settles the same channel's earlier tags in the same way.
    pub(super) fn settle(&mut self, channel: u16, outcome: Outcome, tag: u64) -> &mut Vec<Held> {
        let grows = match (&self.settling, self.steps.back()) {
            (Some((same, last)), Some(Step::Settle { outcome: before, .. })) => *same == channel && *before == outcome && *last < tag,
            _ => false,
        };
        if !grows {
            self.steps.push_back(Step::Settle { held: Vec::new(), outcome, asked: true });
        }
        self.settling = Some((channel, tag));
        match self.steps.back_mut() {
            Some(Step::Settle { held, .. }) => held,
            _ => unreachable!("a settlement was pushed or found there"),
        }
    }

    /// The batch ends: what comes next is a step of its own.
    pub(super) fn end_batch(&mut self) {
        self.settling = None;
    }
}
