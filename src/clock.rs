//! The machine's clocks as the `Clock` port.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use comfyd_actors::{
    domain::time::{Timestamp, millis},
    ports::clock::Clock,
};

/// The machine's wall clock, and one that began with it and counts on by the system's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    began: Instant,
    at: Timestamp,
}

impl SystemClock {
    /// Begins to count.
    #[must_use]
    pub fn start() -> Self {
        Self { began: Instant::now(), at: wall() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        wall()
    }

    fn steady(&self) -> Timestamp {
        self.at.after(self.began.elapsed())
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the Clock port's one real adapter")]
fn wall() -> Timestamp {
    // A clock before 1970 is a broken machine; zero is as good an answer as any and never a panic.
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
}
