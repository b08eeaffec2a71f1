//! The disk alarm: below the configured floor of free space publishes stop, consuming and settling go on.

use super::running::Running;
use crate::store::disk::Disk;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;

/// For ever.
pub(super) async fn watch_disk(running: Arc<Running>, disk: Arc<dyn Disk>) {
    loop {
        let floor = running.config.disk_floor_bytes;
        let low = match disk.free_bytes() {
            Ok(free) if free < floor || running.wal.is_full() => Some(free),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "free space of the data directory is unknown");
                None
            }
        };
        let text = low.map(|_| format!("low on disk: less than {} MiB are free on the disk of node {}", floor / MIB, running.config.node));
        if *running.alarm.lock() != text {
            match &text {
                Some(alarm) => tracing::warn!(alarm, "publishes stop until space is free"),
                None => tracing::info!("space is free again, publishes go on"),
            }
            (*running.alarm.lock()).clone_from(&text);
            running.edge.set_blocked(text);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
