//! Moments on the clock that goes on while the machine is suspended, where `Instant` stands still: a lease must not outlive what its
//! grantors did meanwhile (rule 28).

use rustix::time::{ClockId, clock_gettime};
use std::ops::Add;
use std::time::Duration;

/// Time since the machine was started, suspensions included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// This moment.
    pub fn now() -> BootTime {
        let now = clock_gettime(ClockId::Boottime);
        BootTime(Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32))
    }

    /// How long ago it was; nothing when it is still to come.
    pub fn elapsed(self) -> Duration {
        BootTime::now().since(self)
    }

    /// From `earlier` to this moment.
    pub fn since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, time: Duration) -> BootTime {
        BootTime(self.0 + time)
    }
}
