//! Tasks of this room that live as long as it does, and groups. One that ends before is a fault of the node: it is logged, and the node
//! ends, or says that it is not ready (`node.rs`).

use futures::FutureExt;
use parking_lot::Mutex;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// Looks for a fault that count are so far apart,
const LOOK: Duration = Duration::from_millis(900);
/// and the thread that all groups run on has stood still when so many come without a sign of it: it gives one every two seconds.
const LOOKS: u32 = 15;

/// What this node cannot do any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What, and why.
    pub what: String,
    /// It need not come again when the process is started again; an entry that cannot be applied would.
    pub may_pass: bool,
}

impl Loss {
    /// A bug, a lost thread, a hanging part.
    pub(super) fn passing(what: String) -> Loss {
        Loss { what, may_pass: true }
    }

    /// An error that the next start meets again.
    pub(super) fn lasting(what: String) -> Loss {
        Loss { what, may_pass: false }
    }
}

/// Knows whether this room is to end, and what ended before.
#[derive(Debug, Default)]
pub struct Watch {
    stopping: AtomicBool,
    fault: OnceLock<Loss>,
    /// Counts the rounds of the watchdog; 0: it has not begun.
    rounds: AtomicU64,
    still: Mutex<Still>,
}

/// Looks at the watchdog's rounds, from another thread.
#[derive(Debug, Default)]
struct Still {
    rounds: u64,
    looks: u32,
    at: Option<Instant>,
}

impl Watch {
    /// Run `task` on the current runtime.
    pub(super) fn spawn(self: &Arc<Self>, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        let ended = format!("{name} has ended");
        self.spawn_until(name, async move {
            task.await;
            Some(Loss::passing(ended))
        });
    }

    /// The same for a task that knows why it ends; `None`: that is no fault.
    pub(super) fn spawn_until(self: &Arc<Self>, name: String, task: impl Future<Output = Option<Loss>> + Send + 'static) -> AbortHandle {
        let watch = self.clone();
        let task = tokio::spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            if let Some(fault) = ended.unwrap_or_else(|_| Some(Loss::passing(format!("{name} has panicked")))) {
                watch.lost(fault);
            }
        });
        task.abort_handle()
    }

    /// Something that this node needs is gone. Nothing while this room ends.
    pub(super) fn lost(&self, fault: Loss) {
        if !self.stopping.load(Ordering::Acquire) {
            tracing::error!(fault = fault.what, "a part that this node needs is gone");
            let _ = self.fault.set(fault); // the first one counts
        }
    }

    /// From now on tasks end.
    pub(super) fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The watchdog made a round.
    pub(super) fn looked(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// What ended that should not. Asked again and again, it also sees when the thread of all groups stands still.
    pub(super) fn fault(&self) -> Option<Loss> {
        if self.stands_still(Instant::now()) {
            self.lost(Loss::passing("the thread that all groups run on stands still".into()));
        }
        self.fault.get().cloned()
    }

    /// Looks are counted, as no time passes for a process that is stopped.
    fn stands_still(&self, now: Instant) -> bool {
        let (rounds, mut still) = (self.rounds.load(Ordering::Relaxed), self.still.lock());
        if rounds == 0 || rounds != still.rounds {
            *still = Still { rounds, looks: 0, at: Some(now) };
        } else if still.at.is_none_or(|at| now >= at + LOOK) {
            still.looks += 1;
            still.at = Some(now);
        }
        still.looks == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fault_of(watch: &Arc<Watch>, task: impl Future<Output = ()> + Send + 'static) -> Option<String> {
        watch.spawn("the keeper", task);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        watch.fault().map(|fault| fault.what)
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_a_fault_unless_it_is_told_to_end() {
        assert_eq!(fault_of(&Arc::default(), async {}).await.as_deref(), Some("the keeper has ended"));
        assert_eq!(fault_of(&Arc::default(), async { panic!("on purpose") }).await.as_deref(), Some("the keeper has panicked"));
        assert_eq!(fault_of(&Arc::default(), std::future::pending()).await, None);
        let watch = Arc::new(Watch::default());
        watch.stopping();
        assert_eq!(fault_of(&watch, async {}).await, None);
    }

    #[test]
    fn a_thread_that_gives_no_sign_for_many_looks_stands_still() {
        let (watch, mut now) = (Watch::default(), Instant::now());
        let mut look = |watch: &Watch, pause: Duration| {
            now += pause;
            watch.stands_still(now)
        };
        assert!((0..2 * LOOKS).all(|_| !look(&watch, LOOK)), "the watchdog has not begun");
        watch.looked();
        assert!((0..5 * LOOKS).all(|_| !look(&watch, LOOK / 10)), "many looks in a short time");
        watch.looked();
        assert!((0..LOOKS).all(|_| !look(&watch, LOOK * 20)), "a process that was stopped between two looks");
        assert!(look(&watch, LOOK));
        watch.looked();
        assert!(!look(&watch, LOOK));
    }
}
