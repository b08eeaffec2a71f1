//! Notices that this process did not run for a while: it was stopped, or the machine was suspended. Others may have declared it gone
//! meanwhile and given its messages to somebody else, so what was on its way to clients must not be written (rules 19 and 20). Asked
//! by lanes before they take deliveries and by connections before they hand events to the socket.

use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Somebody asks at least this often.
pub(super) const BEAT: Duration = Duration::from_millis(200);
/// A gap so long is a stop: an edge counts as gone after a second without a path. Unit tests make their own.
const STOP_MS: u64 = if cfg!(test) { 3_600_000 } else { 500 };
/// The time is written down no more often than this, so that asking is reading.
const STEP_MS: u64 = 20;
const TIME_BITS: u32 = 44;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// Time of the last beat (ms since boot) and, in the upper bits, stops so far.
#[derive(Debug)]
pub(super) struct Pulse(AtomicU64);

impl Pulse {
    pub fn new() -> Pulse {
        Pulse(AtomicU64::new(now_ms()))
    }

    /// This process runs. Returns how many stops there were so far, one that just ended included.
    pub fn beat(&self) -> u64 {
        self.beat_at(now_ms())
    }

    fn beat_at(&self, now: u64) -> u64 {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let (stops, last) = (word >> TIME_BITS, word & TIME_MASK);
            let gap = now.saturating_sub(last);
            if gap < STEP_MS {
                return stops;
            }
            let next = ((stops + u64::from(gap >= STOP_MS)) << TIME_BITS) | now;
            match self.0.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return next >> TIME_BITS,
                Err(other) => word = other,
            }
        }
    }

    /// As if the process had been stopped until now.
    #[cfg(test)]
    pub fn stop(&self) {
        self.0.fetch_and(!TIME_MASK, Ordering::AcqRel);
        self.beat_at(now_ms().max(STOP_MS));
    }
}

/// Goes on while the machine is suspended.
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    (now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000) & TIME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_once() {
        let pulse = Pulse(AtomicU64::new(1000));
        assert_eq!(pulse.beat_at(1000 + STOP_MS - 1), 0);
        assert_eq!(pulse.beat_at(1000 + 2 * STOP_MS), 1);
        assert_eq!(pulse.beat_at(1000 + 2 * STOP_MS), 1);
        assert_eq!(pulse.beat_at(1000), 1, "clocks of two threads may be read in one order and used in the other");
        assert_eq!(pulse.beat_at(1000 + 4 * STOP_MS), 2);
    }
}
