//! Asks each group of this node whether it still works, and goes on to ask when it does not: a group whose core hangs, or whose machine
//! does not apply, logs nothing itself. Answers come from the core's own loop; no task waits for them.

use super::clock;
use super::core::Core;
use super::holding::Installing;
use super::shard::{Shard, Standing};
use super::watch::Loss;
use crate::model::ShardId;
use crate::model::limits::SLOW_WRITE;
use futures::FutureExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::unconstrained;

/// So many rounds without any move are a fault: 10 s, by default. Counted and not measured, so that a process that was stopped for a while has none.
const ROUNDS: u32 = 5;
/// An installation that takes so long is reported, and again each time.
const LONG_INSTALLATION: Duration = Duration::from_secs(60);

/// Runs as long as the node does.
pub(super) async fn keep(core: Arc<Core>) {
    let mut groups: BTreeMap<ShardId, Asked> = BTreeMap::new();
    loop {
        clock::calm(core.timing.watch()).await;
        core.watch.looked();
        let disk_works =
            !core.slow_disks.is_own_slow() && core.journal.writing_for().is_none_or(|took| took < SLOW_WRITE) && core.journal.has_spare();
        let running: Vec<Shard> = core.all_groups().into_iter().filter(|group| group.is_running() && !group.has_left()).collect();
        // A group that comes back to a node is another one.
        groups.retain(|_, asked| running.iter().any(|group| group.is(&asked.group)));
        for group in &running {
            let asked = groups.entry(group.id()).or_insert_with(|| Asked::new(group));
            if let Some(fault) = asked.look(disk_works) {
                core.watch.lost(Loss::passing(fault));
            }
        }
    }
}

/// A group with the last question.
pub(super) struct Asked {
    group: Shard,
    questions: u64,
    /// The last question that the core took out of its mailbox.
    answered: Arc<AtomicU64>,
    /// The last question is in the core's mailbox, or was.
    is_sent: bool,
    seen: Standing,
    still: u32,
    /// How often a long installation was reported.
    reports: u32,
}

impl Asked {
    pub(super) fn new(group: &Shard) -> Asked {
        Asked { group: group.clone(), questions: 0, answered: Arc::default(), is_sent: true, seen: group.standing(), still: 0, reports: 0 }
    }

    /// What is wrong, said once, when it has been so for `ROUNDS`.
    pub(super) fn look(&mut self, disk_works: bool) -> Option<String> {
        let now = self.group.standing();
        let is_answered = self.is_answered();
        let wrong = wrong(is_answered, &now);
        let installing = self.group.inner().holding.work.installing();
        self.report(installing.as_ref());
        // What waits for the disk, or for space on it, or for a state of another node, has rules of its own.
        let is_excused = !disk_works || installing.is_some();
        self.still = if wrong.is_none() || is_excused || now != self.seen { 0 } else { self.still.saturating_add(1) };
        self.seen = now;
        if is_answered {
            self.questions += 1;
        }
        if is_answered || !self.is_sent {
            self.ask();
        }
        let wrong = wrong.filter(|_| self.still == ROUNDS)?;
        Some(format!("shard {} {wrong} in {ROUNDS} rounds: {:?}", self.group.id(), self.seen))
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire) == self.questions
    }

    fn ask(&mut self) {
        let (answered, question) = (self.answered.clone(), self.questions);
        let asking = self.group.inner().raft.external_request(move |_| answered.store(question, Ordering::Release));
        // Not taken at once, it is as good as not answered: the core's mailbox is full, or the core is gone. It is asked again: a core
        // that gets out of that is well.
        self.is_sent = unconstrained(asking).now_or_never().is_some();
        if !self.is_sent {
            tracing::debug!(shard = %self.group.id(), "the group's mailbox is full");
        }
    }

    fn report(&mut self, installing: Option<&Installing>) {
        let Some(installing) = installing else {
            self.reports = 0;
            return;
        };
        let took = installing.since.elapsed();
        if took >= LONG_INSTALLATION * (self.reports + 1) {
            self.reports += 1;
            let (step, index, attempts) = (installing.step, installing.upto.index, installing.attempts);
            tracing::warn!(shard = %self.group.id(), step, index, attempts, ?took, "the state of another node takes long to install");
        }
    }
}

fn wrong(is_answered: bool, now: &Standing) -> Option<&'static str> {
    if !is_answered {
        Some("has not answered")
    } else if now.committed > now.applied {
        Some("has not applied what is committed")
    } else if now.unsaid > 0 && now.flushed >= now.last {
        Some("has not heard that its log is on the disk")
    } else {
        None
    }
}
