//! What time it is, by two clocks: one goes on evenly and says when something is over, the other is what clients read and may be set at
//! any time. Made by the listener; used by `agent` and what it holds.

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the clock that nobody sets, ms since some time or other.
    pub steady_ms: u64,
    /// By the one that clients read, ms since the epoch.
    pub wall_ms: u64,
}

impl Moment {
    /// What clients are told of a moment of the steady clock.
    pub fn told_ms(self, steady_ms: u64) -> u64 {
        self.wall_ms.saturating_add(steady_ms).saturating_sub(self.steady_ms)
    }

    /// When the steady clock will be there, if nobody sets the other one.
    pub fn steady_at(self, wall_ms: u64) -> u64 {
        self.steady_ms.saturating_add(wall_ms).saturating_sub(self.wall_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_are_as_far_from_then() {
        let now = Moment { steady_ms: 5_000, wall_ms: 1_700_000_000_000 };
        assert_eq!((now.told_ms(6_000), now.told_ms(4_000)), (1_700_000_001_000, 1_699_999_999_000));
        assert_eq!((now.steady_at(1_700_000_001_000), now.steady_at(1_699_999_999_000)), (6_000, 4_000));
        assert_eq!((now.steady_at(0), now.told_ms(u64::MAX)), (0, u64::MAX - 5_000));
    }
}
