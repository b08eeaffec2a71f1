//! Which panics end one client's conversation, or one attempt to use a damaged store, and not the process. All others are a fault of
//! a part that the node needs, and nobody can say what state it left behind: `telemetry` ends the process.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

struct Inside;

impl Inside {
    fn enter() -> Inside {
        DEPTH.set(DEPTH.get() + 1);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// A panic here and now ends no more than what this thread works on.
pub fn is_contained() -> bool {
    DEPTH.get() > 0
}

/// Does `work`, whose panics somebody catches who knows what to do.
pub fn contained<R>(work: impl FnOnce() -> R) -> R {
    let _inside = Inside::enter();
    work()
}

/// A task whose panics end itself only.
pub async fn contained_task<F: Future>(task: F) -> F::Output {
    let mut task = pin!(task);
    poll_fn(|cx| contained(|| task.as_mut().poll(cx))).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[tokio::test]
    async fn what_is_contained_ends_with_the_work_also_by_a_panic() {
        assert!(!is_contained());
        assert!(contained(|| contained(is_contained) && is_contained()));
        assert!(catch_unwind(AssertUnwindSafe(|| contained(|| panic!("on purpose")))).is_err());
        assert!(!is_contained());
        let asks = async {
            tokio::task::yield_now().await;
            is_contained()
        };
        assert!(contained_task(asks).await && !is_contained());
    }
}
