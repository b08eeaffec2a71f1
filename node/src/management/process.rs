//! Figures of this process under Prometheus's usual names, read from /proc at each scrape. Part of [`Metrics`].

use super::{Kind, Metrics, Sample};
use std::fs;

/// Kernel ticks per second in /proc (USER_HZ, 100 on every Linux).
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn register(metrics: &Metrics) {
    metrics.observe("process_resident_memory_bytes", "Resident memory (VmRSS)", Kind::Gauge, || status_kib("VmRSS:"));
    metrics.observe("process_peak_resident_memory_bytes", "Most resident memory so far (VmHWM)", Kind::Gauge, || status_kib("VmHWM:"));
    metrics.observe("process_open_fds", "Open file descriptors", Kind::Gauge, open_fds);
    metrics.observe("process_cpu_seconds", "User and system CPU time", Kind::Counter, cpu_seconds);
    metrics.observe("warren_build_info", "Version of this node", Kind::Gauge, || {
        vec![Sample { labels: vec![("version", env!("CARGO_PKG_VERSION").into())], value: 1.0 }]
    });
}

fn status_kib(field: &str) -> Vec<Sample> {
    let read = || {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let kib: f64 = status.lines().find_map(|line| line.strip_prefix(field))?.trim().split(' ').next()?.parse().ok()?;
        Some(Sample::plain(kib * 1024.0))
    };
    read().into_iter().collect()
}

fn open_fds() -> Vec<Sample> {
    fs::read_dir("/proc/self/fd").map(|fds| Sample::plain(fds.count() as f64)).into_iter().collect()
}

fn cpu_seconds() -> Vec<Sample> {
    let read = || {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // Fields 14 and 15 (proc(5)); the name in field 2 may hold spaces, so count from behind its bracket.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
        Some(Sample::plain(ticks / TICKS_PER_SECOND))
    };
    read().into_iter().collect()
}
