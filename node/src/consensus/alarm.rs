//! A timer that is set for each request and hardly ever rings.

use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Before it is set.
const FAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Rings at a moment that mostly moves away before it comes. A timer of its own for each of those moments would cost the thread a wake-up
/// each: tokio's clock is told of every one that is earlier than the next. This one is set anew only when that is earlier, or has rung.
pub(super) struct Alarm {
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm { sleep: Box::pin(sleep_until(Instant::now() + FAR)) }
    }

    /// Until `at`. May be dropped and asked again for another moment.
    pub(super) async fn reached(&mut self, at: Instant) {
        while Instant::now() < at {
            if self.sleep.is_elapsed() || at < self.sleep.deadline() {
                self.sleep.as_mut().reset(at);
            }
            self.sleep.as_mut().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::pin::pin;

    const SOON: Duration = Duration::from_millis(20);
    const HOUR: Duration = Duration::from_secs(3600);

    async fn is_reached(alarm: &mut Alarm, at: Instant) -> bool {
        poll!(pin!(alarm.reached(at))).is_ready()
    }

    #[tokio::test]
    async fn rings_at_the_moment_asked_for_last_whichever_way_it_moved() {
        let (start, mut alarm) = (Instant::now(), Alarm::new());
        assert!(!is_reached(&mut alarm, start + 2 * HOUR).await);
        assert!(!is_reached(&mut alarm, start + HOUR).await);
        alarm.reached(start + SOON).await;
        assert!(Instant::now() >= start + SOON);
        assert!(is_reached(&mut alarm, start).await, "what has passed");
        let (early, late) = (Instant::now() + SOON, Instant::now() + 2 * SOON);
        assert!(!is_reached(&mut alarm, early).await);
        alarm.reached(late).await;
        assert!(Instant::now() >= late, "not when it was set to ring first");
    }

    #[tokio::test]
    async fn is_set_once_for_moments_that_move_away() {
        let (start, mut alarm) = (Instant::now(), Alarm::new());
        for passed in 1..10 {
            assert!(!is_reached(&mut alarm, start + HOUR * passed).await);
            assert_eq!(alarm.sleep.deadline(), start + HOUR);
        }
    }
}
