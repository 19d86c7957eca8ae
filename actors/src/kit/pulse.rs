//! Whether the process still gets round to its work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// Without a beat for so long the runtime is stuck, not busy: its timers are served before most other work.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// Beats as long as the runtime does. Clones share it.
#[derive(Debug, Clone)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds from the start to the last beat.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    /// Beats now, and needs somebody to run [`Self::beat`].
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    /// Beats, for ever.
    pub async fn beat(self) {
        loop {
            let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.last.fetch_max(now, Ordering::AcqRel);
            tokio::time::sleep(BEAT).await;
        }
    }

    /// Whether it beat lately.
    #[must_use]
    pub fn is_felt(&self) -> bool {
        self.start.elapsed() < Duration::from_millis(self.last.load(Ordering::Acquire)) + DEAD_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_felt_while_it_beats() {
        let pulse = Pulse::default();
        assert!(tokio::time::timeout(Duration::from_secs(60), pulse.clone().beat()).await.is_err(), "for ever");
        assert!(pulse.is_felt());
        tokio::time::sleep(DEAD_AFTER - 2 * BEAT).await;
        assert!(pulse.is_felt(), "it may only be late");
        tokio::time::sleep(3 * BEAT).await;
        assert!(!pulse.is_felt());
    }
}
