//! Tasks of this room that live as long as it does. One that ends before is a fault of the node like that of a group: it is logged, and
//! the node says that it is not ready.

use futures::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// Knows whether this room is to end, and what ended before.
#[derive(Debug, Default)]
pub struct Watch {
    stopping: AtomicBool,
    fault: OnceLock<String>,
}

impl Watch {
    /// Run `task` on the current runtime.
    pub(super) fn spawn(self: &Arc<Self>, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let (watch, name) = (self.clone(), name.into());
        tokio::spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            watch.ended(&name, ended.is_ok());
        });
    }

    /// The same for a task that may end when `left_rx` turns true, and is ended then.
    pub(super) fn spawn_until(
        self: &Arc<Self>,
        mut left_rx: watch::Receiver<bool>,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (watch, name) = (self.clone(), name.into());
        tokio::spawn(async move {
            let ended = tokio::select! {
                biased;
                _ = left_rx.wait_for(|left| *left) => return,
                ended = AssertUnwindSafe(task).catch_unwind() => ended,
            };
            if !*left_rx.borrow() {
                watch.ended(&name, ended.is_ok());
            }
        });
    }

    fn ended(&self, name: &str, in_order: bool) {
        if !self.stopping.load(Ordering::Acquire) {
            let fault = format!("{name} {}", if in_order { "has ended" } else { "has panicked" });
            tracing::error!(fault, "a task that this node needs is gone");
            let _ = self.fault.set(fault); // the first one counts
        }
    }

    /// From now on tasks end.
    pub(super) fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// What ended that should not.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fault_of(watch: &Arc<Watch>, task: impl Future<Output = ()> + Send + 'static) -> Option<&str> {
        watch.spawn("the keeper", task);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        watch.fault()
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_a_fault_unless_it_is_told_to_end() {
        assert_eq!(fault_of(&Arc::default(), async {}).await, Some("the keeper has ended"));
        assert_eq!(fault_of(&Arc::default(), async { panic!("on purpose") }).await, Some("the keeper has panicked"));
        assert_eq!(fault_of(&Arc::default(), std::future::pending()).await, None);
        let watch = Arc::new(Watch::default());
        watch.stopping();
        assert_eq!(fault_of(&watch, async {}).await, None);
    }
}
