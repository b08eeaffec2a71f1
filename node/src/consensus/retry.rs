//! Pauses between attempts at what must succeed some day: growing, and bounded. For checkpoints and installations on a full disk.

use std::time::Duration;

/// The pauses so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Retry {
    /// The first pause, and the longest.
    pub(super) fn new(first: Duration, most: Duration) -> Retry {
        Retry { first, most, next: first }
    }

    /// An attempt failed: the pause before the next one.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        pause
    }

    /// An attempt succeeded.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let seconds = Duration::from_secs;
        let mut retry = Retry::new(seconds(2), seconds(12));
        assert_eq!([(); 5].map(|()| retry.pause()), [2, 4, 8, 12, 12].map(seconds));
        retry.reset();
        assert_eq!(retry.pause(), seconds(2));
    }
}
