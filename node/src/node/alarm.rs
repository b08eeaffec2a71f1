//! Alarms: while any node has less free disk than the configured floor or uses more memory than its limit, publishes stop on all;
//! consuming and settling go on. And a node says when its clock is off.

use super::running::Running;
use crate::config::Reserve;
use crate::model::NodeId;
use crate::model::shortage::{Shortage, Shortages};
use crate::store::disk::Disk;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;

/// For ever.
pub(super) async fn watch(running: Arc<Running>, disk: Arc<dyn Disk>) {
    let (me, reserve) = (running.config.node, Reserve::of(&running.config.data_dir));
    let mut alarms_rx = running.consensus.alarms();
    loop {
        let memory = resident_bytes().is_some_and(|used| used > running.config.memory_limit_bytes);
        let shortage = Shortage { disk: is_low(&running, &*disk), memory, clock: running.clock.is_off() };
        running.consensus.set_alarm(shortage);
        running.is_low.store(!shortage.is_none(), Ordering::Relaxed);
        if !shortage.disk
            && let Err(error) = reserve.renew()
        {
            tracing::debug!(%error, "no space is set aside for a start on a full disk");
        }
        let mut nodes = alarms_rx.borrow_and_update().clone();
        // What this node sees itself counts at once.
        if shortage.is_none() {
            nodes.remove(&me);
        } else {
            nodes.insert(me, shortage);
        }
        *running.clock_alarm.lock() = clock_text(&nodes);
        let text = text(&nodes, running.config.disk_floor_bytes);
        if *running.alarm.lock() != text {
            match &text {
                Some(alarm) => tracing::warn!(alarm, "publishes stop"),
                None => tracing::info!("no node is short of disk or memory any more, publishes go on"),
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

/// Memory of this process (statm of proc(5), its second field, in pages).
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
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

/// Why publishers wait, for them: begins as RabbitMQ's reasons do.
fn text(nodes: &Shortages, floor: u64) -> Option<String> {
    let (disk, memory) = (names(nodes, |s| s.disk), names(nodes, |s| s.memory));
    let mut reasons = Vec::new();
    if !disk.is_empty() {
        let on = on(&disk, "the disk of node", "the disks of nodes");
        reasons.push(format!("low on disk: less than {} MiB are free on {on}", floor / MIB));
    }
    if !memory.is_empty() {
        reasons.push(format!("low on memory: {} above the limit", on(&memory, "node", "nodes")));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// For operators: publishes go on.
fn clock_text(nodes: &Shortages) -> Option<String> {
    let off = names(nodes, |s| s.clock);
    let on = on(&off, "the clock of node", "the clocks of nodes");
    (!off.is_empty()).then(|| format!("clocks differ: {on} may be wrong, messages do not expire where it leads"))
}

fn names(nodes: &Shortages, short: fn(&Shortage) -> bool) -> Vec<String> {
    nodes.iter().filter(|(_, s)| short(s)).map(|(node, _): (&NodeId, _)| node.0.to_string()).collect()
}

fn on(names: &[String], one: &str, more: &str) -> String {
    format!("{} {}", if names.len() == 1 { one } else { more }, names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_the_nodes() {
        let short = |disk: &[u16], memory: &[u16]| {
            let mut nodes = Shortages::new();
            disk.iter().for_each(|n| nodes.entry(NodeId(*n)).or_default().disk = true);
            memory.iter().for_each(|n| nodes.entry(NodeId(*n)).or_default().memory = true);
            text(&nodes, MIB)
        };
        assert_eq!(short(&[], &[]), None);
        assert_eq!(short(&[2], &[]).expect("an alarm"), "low on disk: less than 1 MiB are free on the disk of node 2");
        assert!(short(&[3, 1], &[]).expect("an alarm").ends_with("the disks of nodes 1, 3"));
        assert_eq!(short(&[], &[2]).expect("an alarm"), "low on memory: node 2 above the limit");
        assert!(short(&[1], &[1, 2]).expect("an alarm").ends_with("node 1; low on memory: nodes 1, 2 above the limit"));
    }

    #[test]
    fn a_clock_that_is_off_is_said_and_stops_no_publishes() {
        let off = Shortage { clock: true, ..Shortage::default() };
        let nodes = Shortages::from([(NodeId(2), Shortage::from_bits(off.bits()))]);
        assert_eq!((text(&nodes, MIB), clock_text(&Shortages::new())), (None, None));
        assert!(clock_text(&nodes).expect("an alarm").contains("the clock of node 2 may be wrong"));
        assert!(!off.is_none());
    }

    #[test]
    fn this_process_uses_some_memory() {
        assert!(resident_bytes().is_some_and(|used| (MIB..1 << 40).contains(&used)));
    }
}
