//! A clock that stands still until a test moves it.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use crate::{
    domain::time::{Timestamp, millis},
    ports::clock::Clock,
};

/// Shows the time it was set to.
#[derive(Debug)]
pub struct TestClock(AtomicI64);

impl TestClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self(AtomicI64::new(now.0))
    }

    /// Jumps to `now`, forwards or backwards.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    /// Moves forward by `step`.
    pub fn advance(&self, step: Duration) {
        self.0.fetch_add(millis(step), Ordering::SeqCst);
    }
}

impl Default for TestClock {
    /// Some day in 2023.
    fn default() -> Self {
        Self::at(Timestamp(1_700_000_000_000))
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}
