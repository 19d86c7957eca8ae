//! A clock that stands still until a test moves it.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use crate::{
    domain::time::{Timestamp, millis},
    ports::clock::Clock,
};

/// Shows the time it was brought to.
#[derive(Debug)]
pub struct TestClock {
    steady: AtomicI64,
    /// By how much somebody set the time of day.
    set_by: AtomicI64,
}

impl TestClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { steady: AtomicI64::new(now.0), set_by: AtomicI64::new(0) }
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.steady.fetch_add(millis(time), Ordering::SeqCst);
    }

    /// Sets the time of day so many milliseconds forwards or backwards, while no time passes.
    pub fn set_by(&self, millis: i64) {
        self.set_by.fetch_add(millis, Ordering::SeqCst);
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
        Timestamp(self.steady().0 + self.set_by.load(Ordering::SeqCst))
    }

    fn steady(&self) -> Timestamp {
        Timestamp(self.steady.load(Ordering::SeqCst))
    }
}
