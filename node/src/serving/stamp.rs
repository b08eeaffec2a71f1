//! The time that entries carry (rule 24): the leader's clock, never going back, and never further than a second from what a clock that
//! cannot be set says. A clock that was set by an hour moves it by a second a minute. Called by `proposing`.

/// How far the clock may be from the steady one.
const SLACK_MS: u64 = 1000;
/// So often what the steady clock says is taken anew from the last time given: a slow drift is followed, a jump is not.
const ANCHOR_MS: u64 = 60_000;

/// The time last given and what it is measured by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamp {
    last_ms: u64,
    /// A time, and the steady clock then; of this process.
    anchor: Option<(u64, u64)>,
}

impl Stamp {
    /// This node leads from now on; the log's last entry carries `last_ms`.
    pub fn begin(&mut self, last_ms: u64) {
        self.last_ms = self.last_ms.max(last_ms);
    }

    /// The time of an entry, ms since the epoch: `clock_ms` may jump, `steady_ms` counts from anywhere and goes on in a suspended machine.
    pub fn next(&mut self, clock_ms: u64, steady_ms: u64) -> u64 {
        let mut time = clock_ms;
        if let Some((from, at)) = self.anchor {
            let expected = from + steady_ms.saturating_sub(at);
            time = time.clamp(expected.saturating_sub(SLACK_MS), expected + SLACK_MS);
        }
        time = time.max(self.last_ms);
        if self.anchor.is_none_or(|(_, at)| steady_ms >= at + ANCHOR_MS) {
            self.anchor = Some((time, steady_ms));
        }
        self.last_ms = time;
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_clock_that_is_set_moves_the_time_by_a_second_at_most() {
        for jump in [HOUR as i64, -(HOUR as i64)] {
            let mut stamp = Stamp::default();
            assert_eq!(stamp.next(10 * HOUR, 5), 10 * HOUR);
            let set = (10 * HOUR).saturating_add_signed(jump);
            for n in 1..50 {
                let time = stamp.next(set + n * 1000, 5 + n * 1000);
                assert!(time.abs_diff(10 * HOUR + n * 1000) <= SLACK_MS, "after {n} s: {time}");
            }
        }
    }

    #[test]
    fn the_time_never_goes_back() {
        let mut stamp = Stamp::default();
        stamp.begin(500);
        assert_eq!(stamp.next(100, 0), 500, "an entry of another leader was later");
        let mut last = 500;
        for (clock, steady) in [(900, 400), (700, 500), (1_000_000, 600), (2_000, 700), (0, 800)] {
            let time = stamp.next(clock, steady);
            assert!(time >= last);
            last = time;
        }
        stamp.begin(300);
        assert!(stamp.next(last - 1, 800) >= last);
    }

    #[test]
    fn a_drift_is_followed_and_so_is_the_time_of_a_suspended_machine() {
        let (mut stamp, day) = (Stamp::default(), 24 * HOUR);
        // 100 ppm: 8.64 s a day.
        for minute in 0..=24 * 60 {
            let steady = minute * 60_000;
            let clock = day + steady + steady / 10_000;
            assert_eq!(stamp.next(clock, steady), clock);
        }
        let steady = day + 8 * HOUR;
        let clock = day + steady + day / 10_000;
        assert_eq!(stamp.next(clock, steady), clock, "eight hours of sleep count on both clocks");
    }

    #[test]
    fn the_first_leadership_of_a_process_believes_its_clock() {
        let mut stamp = Stamp::default();
        stamp.begin(HOUR);
        assert_eq!(stamp.next(25 * HOUR, 7), 25 * HOUR, "the cluster was off for a day");
    }
}
