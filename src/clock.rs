//! The machine's clock as the `Clock` port.

use std::time::{SystemTime, UNIX_EPOCH};

use comfyd_actors::{
    domain::time::{Timestamp, millis},
    ports::clock::Clock,
};

/// The machine's wall clock. May jump when the machine's time is set: use it for what is stored and shown, never to
/// measure a duration.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the Clock port's one real adapter")]
    fn now(&self) -> Timestamp {
        // A clock before 1970 is a broken machine; zero is as good an answer as any and never a panic.
        Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}
