//! The time that entries carry (rule 24): the cluster's, never going back, and never further than a second from what a clock that
//! cannot be set says. Clocks that were set by an hour move it by a second a minute. Called by `proposing`.

use crate::model::limits::CLOCK_SLACK_MS;
use crate::model::ports::Reading;

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

    /// The time of an entry, ms since the epoch. It stands still while nobody knows the time: a guess would stay in the log.
    pub fn next(&mut self, Reading { clock_ms, steady_ms, is_agreed, .. }: Reading) -> u64 {
        let Some(mut time) = clock_ms else { return self.last_ms };
        if let Some((from, at)) = self.anchor {
            let expected = from + steady_ms.saturating_sub(at);
            time = time.clamp(expected.saturating_sub(CLOCK_SLACK_MS), expected + CLOCK_SLACK_MS);
        }
        time = time.max(self.last_ms);
        // A guess is followed and not held on to.
        if is_agreed && self.anchor.is_none_or(|(_, at)| steady_ms >= at + ANCHOR_MS) {
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

    impl Stamp {
        fn at(&mut self, clock_ms: u64, steady_ms: u64) -> u64 {
            self.next(Reading { clock_ms: Some(clock_ms), steady_ms, is_agreed: true, is_sure: true })
        }
    }

    #[test]
    fn a_clock_that_is_set_moves_the_time_by_a_second_at_most() {
        for jump in [HOUR as i64, -(HOUR as i64)] {
            let mut stamp = Stamp::default();
            assert_eq!(stamp.at(10 * HOUR, 5), 10 * HOUR);
            let set = (10 * HOUR).saturating_add_signed(jump);
            for n in 1..50 {
                let time = stamp.at(set + n * 1000, 5 + n * 1000);
                assert!(time.abs_diff(10 * HOUR + n * 1000) <= CLOCK_SLACK_MS, "after {n} s: {time}");
            }
        }
    }

    #[test]
    fn the_time_never_goes_back() {
        let mut stamp = Stamp::default();
        stamp.begin(500);
        assert_eq!(stamp.at(100, 0), 500, "an entry of another leader was later");
        let mut last = 500;
        for (clock, steady) in [(900, 400), (700, 500), (1_000_000, 600), (2_000, 700), (0, 800)] {
            let time = stamp.at(clock, steady);
            assert!(time >= last);
            last = time;
        }
        stamp.begin(300);
        assert!(stamp.at(last - 1, 800) >= last);
    }

    #[test]
    fn a_drift_is_followed_and_so_is_the_time_of_a_suspended_machine() {
        let (mut stamp, day) = (Stamp::default(), 24 * HOUR);
        // 100 ppm: 8.64 s a day.
        for minute in 0..=24 * 60 {
            let steady = minute * 60_000;
            let clock = day + steady + steady / 10_000;
            assert_eq!(stamp.at(clock, steady), clock);
        }
        let steady = day + 8 * HOUR;
        let clock = day + steady + day / 10_000;
        assert_eq!(stamp.at(clock, steady), clock, "eight hours of sleep count on both clocks");
    }

    #[test]
    fn the_first_leadership_of_a_process_waits_for_the_time_and_then_believes_it() {
        let mut stamp = Stamp::default();
        stamp.begin(HOUR);
        assert_eq!(stamp.next(Reading { steady_ms: 5, ..Reading::default() }), HOUR, "nobody knows better");
        assert_eq!(stamp.next(Reading { clock_ms: Some(24 * HOUR), steady_ms: 6, ..Reading::default() }), 24 * HOUR, "a guess");
        assert_eq!(stamp.at(25 * HOUR, 7), 25 * HOUR, "the cluster was off for a day");
    }

    #[test]
    fn a_leader_whose_own_clock_is_off_holds_on_to_what_the_others_agree_on() {
        let mut stamp = Stamp::default();
        let mut told = |clock_ms, steady_ms| stamp.next(Reading { clock_ms: Some(clock_ms), steady_ms, is_agreed: true, is_sure: false });
        assert_eq!(told(10 * HOUR, 5), 10 * HOUR);
        assert_eq!(told(20 * HOUR, 1005), 10 * HOUR + 1000 + CLOCK_SLACK_MS, "the clocks of a majority were set");
    }
}
