//! Who looks: what many requests of this node wait for, and what is only found by looking, one of them looks for at a time.

use crate::model::catalog::{Name, Refusal};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Turns, by topic; only those that somebody waits for.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Name, Weak<Semaphore>>>);

impl Turns {
    fn of(&self, topic: &Name) -> Arc<Semaphore> {
        let mut turns = self.0.lock();
        if let Some(turn) = turns.get(topic).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        turns.insert(topic.clone(), Arc::downgrade(&turn));
        turn
    }

    /// Looks at once, then, while nobody else does for this topic, every `pause`: until there is something or `patience` is over.
    pub async fn watch<T, F>(
        &self,
        topic: &Name,
        (patience, pause): (Duration, Duration),
        mut look: impl FnMut() -> F,
    ) -> Result<Vec<T>, Refusal>
    where
        F: Future<Output = Result<Vec<T>, Refusal>>,
    {
        let until = Instant::now() + patience;
        let found = look().await?;
        if !found.is_empty() || patience.is_zero() {
            return Ok(found);
        }
        let turn = self.of(topic);
        let mut next = if turn.available_permits() > 0 { Instant::now() + pause } else { Instant::now() };
        let Ok(Ok(_permit)) = timeout_at(until, turn.acquire()).await else { return Ok(Vec::new()) };
        loop {
            sleep_until(next.min(until)).await;
            let found = look().await?;
            if !found.is_empty() || Instant::now() >= until {
                return Ok(found);
            }
            next = Instant::now() + pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PAUSE: Duration = Duration::from_millis(5);

    fn scene() -> (Turns, Name) {
        (Turns::default(), Name { vhost: "/".into(), name: "t".into() })
    }

    #[tokio::test]
    async fn of_many_that_wait_one_looks() {
        let ((turns, topic), looks) = (scene(), AtomicUsize::new(0));
        let look = || {
            looks.fetch_add(1, Ordering::Relaxed);
            async { Ok::<Vec<u8>, Refusal>(Vec::new()) }
        };
        let began = Instant::now();
        let waiting = (0..100).map(|_| turns.watch(&topic, (100 * PAUSE, PAUSE), look));
        for found in futures::future::join_all(waiting.map(Box::pin)).await {
            assert_eq!(found, Ok(Vec::new()));
        }
        let rounds = began.elapsed().as_millis() as usize / PAUSE.as_millis() as usize;
        let looks = looks.load(Ordering::Relaxed);
        assert!((101..=200 + rounds).contains(&looks), "{looks} in {rounds} rounds: one each at first, one or none at its end");
    }

    #[tokio::test]
    async fn all_that_wait_get_what_comes() {
        let ((turns, topic), items) = (scene(), Mutex::new(Vec::new()));
        let look = || std::future::ready(Ok::<Vec<u8>, Refusal>(items.lock().pop().into_iter().collect()));
        let waiting: Vec<_> = (0..10).map(|_| Box::pin(turns.watch(&topic, (Duration::from_secs(60), PAUSE), look))).collect();
        let coming = async {
            tokio::time::sleep(4 * PAUSE).await;
            items.lock().extend(0..10);
        };
        let (found, ()) = tokio::join!(futures::future::join_all(waiting), coming);
        let mut found: Vec<u8> = found.into_iter().flat_map(|found| found.expect("looked")).collect();
        found.sort_unstable();
        assert_eq!(found, (0..10).collect::<Vec<u8>>());
        assert_eq!(turns.of(&topic).available_permits(), 1);
    }
}
