//! Whether another task may wait: decided before anything is written.

use std::time::Duration;

/// Longest wait we suggest to a client that met a full queue.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How many tasks wait, as far as this process knows: counted exactly now and then, kept up in between.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waiting {
    waiting: u64,
    /// Tasks that left the queue since the last exact count, and the time it took: the drain rate.
    left: u64,
}

impl Waiting {
    /// An exact count arrived.
    pub fn counted(&mut self, waiting: u64) {
        self.waiting = waiting;
        self.left = 0;
    }

    /// A task began to wait.
    pub fn entered(&mut self) {
        self.waiting += 1;
    }

    /// Tasks left.
    pub fn left(&mut self, tasks: u64) {
        self.waiting = self.waiting.saturating_sub(tasks);
        self.left += tasks;
    }

    /// How many wait.
    #[must_use]
    pub fn count(self) -> u64 {
        self.waiting
    }

    /// `Err` with a suggested wait when there is no room for one more beside `entering` on their way. The suggestion is the
    /// time one task takes to leave at the rate of the last `window`.
    ///
    /// # Errors
    /// No room.
    pub fn admit(self, entering: u64, limit: u64, window: Duration) -> Result<(), Duration> {
        if self.waiting + entering < limit {
            return Ok(());
        }
        let one = window.checked_div(u32::try_from(self.left).unwrap_or(u32::MAX)).unwrap_or(MAX_RETRY_AFTER);
        Err(one.clamp(Duration::from_secs(1), MAX_RETRY_AFTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_those_on_their_way() {
        let mut waiting = Waiting::default();
        waiting.counted(8);
        waiting.entered();
        assert_eq!(waiting.admit(0, 10, Duration::ZERO), Ok(()));
        assert_eq!(waiting.admit(1, 10, Duration::ZERO), Err(Duration::from_secs(60)));
        waiting.left(3);
        assert_eq!(waiting.admit(1, 10, Duration::ZERO), Ok(()));
    }

    #[test]
    fn suggests_by_the_rate() {
        let mut waiting = Waiting::default();
        waiting.counted(10);
        waiting.left(0);
        assert_eq!(waiting.admit(0, 10, Duration::from_secs(30)), Err(MAX_RETRY_AFTER));
        waiting.left(3);
        assert_eq!(waiting.admit(9, 10, Duration::from_secs(30)), Err(Duration::from_secs(10)));
    }
}
