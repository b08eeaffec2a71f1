//! What time it is for the cluster (rule 24): the median of the members' clocks, as long as a majority of them is within a second of it. The
//! catalog's leader finds it out and says it with the routing leases (`lease`); between two of its words the time goes on by a clock that
//! nobody can set. A node whose own clock is off learns so here: it lets nothing end by time, and its operator hears of it.

use crate::model::NodeId;
use crate::model::limits::CLOCK_SLACK_MS;
use crate::model::ports::{Clock, Reading};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// A member's clock that was not heard of for so long does not count.
const HEARD: Duration = Duration::from_secs(2);
/// What a question and its answer took is uncertain by half of this at most, else it says too little about the other's clock.
const ROUND_TRIP: Duration = Duration::from_millis(400);

/// A clock that has gone so much faster or slower than the steady one between two looks was set: far less than what matters, far more
/// than a clock is slewed.
const STEP_MS: u64 = CLOCK_SLACK_MS / 4;

/// A source of milliseconds.
pub type Source = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The clocks of the machine: one that says the time and may be set, and one that nobody can set. Tests give their own.
#[derive(Clone)]
pub struct Sources {
    /// Milliseconds since the epoch.
    pub system: Source,
    /// Milliseconds from anywhere; goes on in a suspended machine.
    pub steady: Source,
}

impl Default for Sources {
    fn default() -> Sources {
        let system = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64);
        let steady = || {
            let now = clock_gettime(ClockId::Boottime);
            now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
        };
        Sources { system: Arc::new(system), steady: Arc::new(steady) }
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// What the catalog's leader says about the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has not heard a majority.
    Unheard,
    /// A majority is close to the median, which is so far ahead of the leader's clock, ms.
    Agreed(i64),
    /// No majority is; the lowest clock is so far ahead of the leader's, ms.
    Disputed(i64),
}

/// What the machine's clocks said at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// Milliseconds since the epoch.
    pub(super) system_ms: u64,
    /// Milliseconds of the steady clock.
    steady_ms: u64,
}

impl Moment {
    /// The clock that says the time was set in between.
    fn was_set_since(self, before: Moment) -> bool {
        let steady = difference(self.steady_ms, before.steady_ms);
        (difference(self.system_ms, before.system_ms) - steady).unsigned_abs() > STEP_MS
    }
}

/// The cluster's time on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sources: Sources,
    cluster: Mutex<Cluster>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cluster {
    /// A time, and the steady clock then.
    known: Option<(u64, u64)>,
    /// A majority agreed on it; else it is the lowest of the clocks that differ, the guess that ends least too early for what is there.
    agreed: bool,
    disputed: bool,
    /// What the log said last.
    said_off: bool,
}

impl ClusterClock {
    /// Nothing is known yet.
    pub fn new(sources: Sources) -> ClusterClock {
        ClusterClock(Arc::new(Inner { sources, cluster: Mutex::default() }))
    }

    /// What this machine's clocks say.
    pub(super) fn moment(&self) -> Moment {
        let mut steady_ms = self.steady_ms();
        loop {
            let (system_ms, before) = (self.system_ms(), steady_ms);
            steady_ms = self.steady_ms();
            // Else this thread had to wait in between.
            if steady_ms.abs_diff(before) < STEP_MS / 10 {
                return Moment { system_ms, steady_ms };
            }
        }
    }

    fn system_ms(&self) -> u64 {
        (self.0.sources.system)()
    }

    fn steady_ms(&self) -> u64 {
        (self.0.sources.steady)()
    }

    /// How far this machine's clock, now, is ahead of one that said `clock_ms` between a question and its answer; `None` when the answer took
    /// too long.
    pub(super) fn ahead_of(now: Moment, clock_ms: u64, round_trip: Duration) -> Option<i64> {
        let then = clock_ms + round_trip.as_millis() as u64 / 2;
        (round_trip <= ROUND_TRIP).then(|| difference(now.system_ms, then))
    }

    /// The catalog's leader said this, whose clock this machine's is `ahead` of, as it was when its clocks said `now`.
    pub(super) fn told(&self, verdict: Verdict, ahead: i64, now: Moment) {
        let cluster = &mut *self.0.cluster.lock();
        let time = |of_leader: i64| Some((now.system_ms.saturating_add_signed(of_leader - ahead), now.steady_ms));
        match verdict {
            Verdict::Unheard => return,
            Verdict::Agreed(median) => {
                (cluster.agreed, cluster.disputed) = (true, false);
                cluster.known = time(median);
            }
            Verdict::Disputed(lowest) => {
                cluster.disputed = true;
                if !cluster.agreed {
                    cluster.known = time(lowest);
                }
            }
        }
        let (off, offset_ms) = (self.off(cluster), self.offset(cluster));
        if off != std::mem::replace(&mut cluster.said_off, off) {
            match off {
                true => tracing::warn!(offset_ms, "this node's clock is not the cluster's: nothing ends by time where this node leads"),
                false => tracing::info!(offset_ms, "this node's clock is the cluster's again"),
            }
        }
    }

    fn offset(&self, cluster: &Cluster) -> Option<i64> {
        let (time, at) = cluster.known.filter(|_| cluster.agreed)?;
        Some(difference(self.system_ms(), time + self.steady_ms().saturating_sub(at)))
    }

    fn off(&self, cluster: &Cluster) -> bool {
        self.offset(cluster).map_or(cluster.disputed, |offset| offset.unsigned_abs() > CLOCK_SLACK_MS)
    }

    /// How far this machine's clock is ahead of the cluster's time, ms; `None` while that is not known.
    pub fn offset_ms(&self) -> Option<i64> {
        self.offset(&self.0.cluster.lock())
    }

    /// This machine's clock is wrong, or it may be: no majority of the members agrees on a time.
    pub fn is_off(&self) -> bool {
        self.off(&self.0.cluster.lock())
    }
}

impl Clock for ClusterClock {
    /// This machine's clock while it is close to the cluster's time, so that what is uncertain about that does not show.
    fn read(&self) -> Reading {
        let (own, steady_ms) = (self.system_ms(), self.steady_ms());
        let Cluster { known, agreed, .. } = *self.0.cluster.lock();
        let Some(time) = known.map(|(time, at)| time + steady_ms.saturating_sub(at)) else {
            return Reading { steady_ms, ..Reading::default() };
        };
        let is_sure = agreed && own.abs_diff(time) <= CLOCK_SLACK_MS;
        Reading { clock_ms: Some(if is_sure { own } else { time }), steady_ms, is_agreed: agreed, is_sure }
    }
}

fn difference(a: u64, b: u64) -> i64 {
    a.saturating_sub(b) as i64 - b.saturating_sub(a) as i64
}

/// The clocks that a leader of the catalog has heard of: how far each is ahead of its own, ms. When its own is set all that was heard
/// says nothing any more, nor what is still on its way: what a node says belongs to the epoch in which it was told the leader's clock.
#[derive(Debug)]
pub(super) struct Clocks {
    heard: BTreeMap<NodeId, (i64, Instant)>,
    epoch: u64,
    last: Option<Moment>,
}

impl Default for Clocks {
    fn default() -> Clocks {
        Clocks { heard: BTreeMap::new(), epoch: rand::random(), last: None }
    }
}

impl Clocks {
    /// The leader's own clocks say this now. Returns the epoch.
    pub(super) fn look(&mut self, now: Moment) -> u64 {
        if self.last.is_some_and(|last| now.was_set_since(last)) {
            *self = Clocks::default();
            tracing::warn!("the clock of the catalog's leader, this node, was set: what the others said of theirs is asked for anew");
        }
        self.last = Some(now);
        self.epoch
    }

    pub(super) fn hear(&mut self, node: NodeId, epoch: u64, ahead: i64, now: Instant) {
        if epoch == self.epoch {
            self.heard.insert(node, (ahead, now));
        }
    }

    /// `members` of the cluster, heard or not.
    pub(super) fn verdict(&mut self, members: usize, now: Instant) -> Verdict {
        self.heard.retain(|_, (_, at)| now < *at + HEARD);
        let mut ahead: Vec<i64> = self.heard.values().map(|(ahead, _)| *ahead).collect();
        if ahead.len() * 2 <= members {
            return Verdict::Unheard;
        }
        ahead.sort_unstable();
        let (low, high) = (ahead[(ahead.len() - 1) / 2], ahead[ahead.len() / 2]);
        let median = low + (high - low) / 2;
        let close = ahead.iter().filter(|a| (*a - median).unsigned_abs() <= CLOCK_SLACK_MS).count();
        if close * 2 > members { Verdict::Agreed(median) } else { Verdict::Disputed(ahead[0]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const HOUR: i64 = 3_600_000;

    fn verdict(ahead: &[i64], members: usize) -> Verdict {
        let (mut clocks, now) = (Clocks::default(), Instant::now());
        let epoch = clocks.epoch;
        ahead.iter().zip(1..).for_each(|(ahead, node)| clocks.hear(NodeId(node), epoch, *ahead, now));
        clocks.verdict(members, now)
    }

    #[test]
    fn a_majority_that_is_close_together_has_the_time() {
        assert_eq!(verdict(&[0], 1), Verdict::Agreed(0), "alone");
        assert_eq!(verdict(&[0], 3), Verdict::Unheard);
        assert_eq!(verdict(&[0, 40], 3), Verdict::Agreed(20));
        assert_eq!(verdict(&[0, HOUR, 30], 3), Verdict::Agreed(30), "one is ahead");
        assert_eq!(verdict(&[0, -HOUR, -HOUR - 70], 3), Verdict::Agreed(-HOUR), "the leader itself is ahead");
        assert_eq!(verdict(&[0, HOUR], 3), Verdict::Disputed(0), "nobody can say which");
        assert_eq!(verdict(&[0, -HOUR], 2), Verdict::Disputed(-HOUR));
        assert_eq!(verdict(&[0, HOUR, 2 * HOUR], 3), Verdict::Disputed(0));
        assert_eq!(verdict(&[0, HOUR, 10, -HOUR, -900], 5), Verdict::Agreed(0));
    }

    #[test]
    fn a_clock_that_is_not_heard_of_any_more_does_not_count() {
        let (mut clocks, now) = (Clocks::default(), Instant::now());
        let epoch = clocks.epoch;
        clocks.hear(NodeId(1), epoch, 0, now + HEARD);
        clocks.hear(NodeId(2), epoch, 0, now);
        assert_eq!(clocks.verdict(3, now + HEARD), Verdict::Unheard);
    }

    #[test]
    fn a_clock_is_set_when_it_leaves_the_steady_one_and_not_when_both_go_on() {
        let at = |system_ms, steady_ms| Moment { system_ms, steady_ms };
        assert!(!at(9000, 5000).was_set_since(at(5000, 1000)), "suspended for a while");
        assert!(!at(9000 + STEP_MS, 5000).was_set_since(at(5000, 1000)));
        assert!(at(9001 + STEP_MS, 5000).was_set_since(at(5000, 1000)));
        assert!(at(4000, 1200).was_set_since(at(5000, 1000)), "back");
    }

    /// A machine whose clocks the test moves.
    fn machine(ms: u64) -> (ClusterClock, Arc<AtomicU64>, Arc<AtomicU64>) {
        let (system, steady) = (Arc::new(AtomicU64::new(ms)), Arc::new(AtomicU64::new(7)));
        let source = |of: &Arc<AtomicU64>| -> Source {
            let of = of.clone();
            Arc::new(move || of.load(Ordering::Relaxed))
        };
        (ClusterClock::new(Sources { system: source(&system), steady: source(&steady) }), system, steady)
    }

    #[test]
    fn a_clock_that_is_off_is_not_believed_until_it_is_right_again() {
        let day = 24 * HOUR as u64;
        let (clock, system, steady) = machine(day + HOUR as u64);
        assert_eq!((clock.read().clock_ms, clock.is_off()), (None, false), "nobody was heard");
        clock.told(Verdict::Unheard, HOUR, clock.moment());
        assert_eq!(clock.read().clock_ms, None);
        clock.told(Verdict::Agreed(30), HOUR, clock.moment());
        assert_eq!(clock.read(), Reading { clock_ms: Some(day + 30), steady_ms: 7, is_agreed: true, is_sure: false });
        assert!(clock.is_off() && clock.offset_ms() == Some(HOUR - 30));
        // The time goes on while nobody says it, whatever the clock does.
        steady.store(7 + 5000, Ordering::Relaxed);
        system.store(day - HOUR as u64, Ordering::Relaxed);
        assert_eq!(clock.read(), Reading { clock_ms: Some(day + 5030), steady_ms: 5007, is_agreed: true, is_sure: false });
        system.store(day + 5000, Ordering::Relaxed);
        assert_eq!(clock.read(), Reading { clock_ms: Some(day + 5000), steady_ms: 5007, is_agreed: true, is_sure: true });
        assert!(!clock.is_off());
    }

    #[test]
    fn without_agreement_a_node_that_knew_the_time_knows_it_and_a_new_one_does_not() {
        let (clock, system, _) = machine(9000);
        clock.told(Verdict::Disputed(0), 0, clock.moment());
        assert!(clock.is_off() && clock.offset_ms().is_none());
        let guess = Reading { clock_ms: Some(9000), steady_ms: 7, ..Reading::default() };
        assert_eq!(clock.read(), guess, "its own clock is the lowest");
        clock.told(Verdict::Agreed(0), 0, clock.moment());
        clock.told(Verdict::Disputed(-5000), 0, clock.moment());
        assert!(!clock.is_off() && clock.read().is_sure);
        system.store(20_000, Ordering::Relaxed);
        assert!(clock.is_off() && !clock.read().is_sure);
    }

    #[test]
    fn the_way_of_a_question_and_its_answer_counts_half_and_a_long_one_says_nothing() {
        let (clock, _, _) = machine(5000);
        let now = clock.moment();
        assert_eq!(ClusterClock::ahead_of(now, 4000, Duration::from_millis(100)), Some(950));
        assert_eq!(ClusterClock::ahead_of(now, 6000, Duration::ZERO), Some(-1000));
        assert_eq!(ClusterClock::ahead_of(now, 4000, ROUND_TRIP + Duration::from_millis(1)), None);
    }
}
