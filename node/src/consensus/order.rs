//! Orders and questions to a group's core. None waits for ever: a core that hangs is the watchdog's business, whoever asks goes on.

use std::future::Future;
use std::time::Duration;

/// A core takes an order at once, or it waits for the disk or for a state of another node.
const PATIENCE: Duration = Duration::from_secs(5);

/// The order did not get through in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the group does not answer")]
pub(super) struct Unheard;

/// What comes of it, if it comes in time.
pub(super) async fn in_time<T>(order: impl Future<Output = T>) -> Result<T, Unheard> {
    tokio::time::timeout(PATIENCE, order).await.map_err(|_| Unheard)
}
