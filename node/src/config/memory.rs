//! How much memory this process may use, where nobody said it: a share of what the machine or the container has. For `config` only.

use std::fs;

/// RabbitMQ's high watermark.
const SHARE: f64 = 0.6;

/// 60 % of the smallest limit that is known; no limit where none is.
pub(super) fn default_limit_bytes() -> u64 {
    let limits = [meminfo(), number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory/memory.limit_in_bytes")];
    limits.into_iter().flatten().min().map_or(u64::MAX, |total| (total as f64 * SHARE) as u64)
}

/// A file with one number; `max` is none.
fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn meminfo() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().split(' ').next()?.parse().ok()?;
    kib.checked_mul(1024)
}
