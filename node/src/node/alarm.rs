//! The disk alarm: while any node has less free space than the configured floor, publishes stop on all; consuming and settling go on.

use super::running::Running;
use crate::config::Reserve;
use crate::model::NodeId;
use crate::store::disk::Disk;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;

/// For ever.
pub(super) async fn watch_disk(running: Arc<Running>, disk: Arc<dyn Disk>) {
    let (me, reserve) = (running.config.node, Reserve::of(&running.config.data_dir));
    let mut alarms_rx = running.consensus.disk_alarms();
    loop {
        let low = is_low(&running, &*disk);
        running.consensus.set_disk_alarm(low);
        if !low && let Err(error) = reserve.renew() {
            tracing::debug!(%error, "no space is set aside for a start on a full disk");
        }
        let mut nodes = alarms_rx.borrow_and_update().clone();
        // What this node sees itself counts at once.
        if low {
            nodes.insert(me);
        } else {
            nodes.remove(&me);
        }
        let text = text(&nodes, running.config.disk_floor_bytes);
        if *running.alarm.lock() != text {
            match &text {
                Some(alarm) => tracing::warn!(alarm, "publishes stop until space is free"),
                None => tracing::info!("space is free again, publishes go on"),
            }
            (*running.alarm.lock()).clone_from(&text);
            running.edge.set_blocked(text);
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            changed = alarms_rx.changed() => if changed.is_err() { return },
        }
    }
}

fn is_low(running: &Running, disk: &dyn Disk) -> bool {
    match disk.free_bytes() {
        Ok(free) => free < running.config.disk_floor_bytes || running.wal.is_full(),
        Err(error) => {
            tracing::warn!(%error, "free space of the data directory is unknown");
            false
        }
    }
}

fn text(nodes: &BTreeSet<NodeId>, floor: u64) -> Option<String> {
    let names: Vec<String> = nodes.iter().map(|node| node.0.to_string()).collect();
    let on = if names.len() == 1 { "the disk of node" } else { "the disks of nodes" };
    (!names.is_empty()).then(|| format!("low on disk: less than {} MiB are free on {on} {}", floor / MIB, names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_the_nodes() {
        let nodes = |nodes: &[u16]| nodes.iter().map(|n| NodeId(*n)).collect();
        assert_eq!(text(&nodes(&[]), MIB), None);
        assert_eq!(text(&nodes(&[2]), MIB).expect("an alarm"), "low on disk: less than 1 MiB are free on the disk of node 2");
        assert!(text(&nodes(&[3, 1]), MIB).expect("an alarm").ends_with("the disks of nodes 1, 3"));
    }
}
