//! Until when this process may act on what it holds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The moment after which a holder that could not renew its leases must stop acting, because others may adopt its tasks. Measured
/// on the monotonic clock, shared by all who act, written by the one who renews.
#[derive(Debug, Clone)]
pub struct Deadline {
    start: Instant,
    millis: Arc<AtomicU64>,
}

impl Deadline {
    /// Valid for `first` from now.
    #[must_use]
    pub fn new(first: Duration) -> Self {
        let deadline = Self { start: Instant::now(), millis: Arc::default() };
        deadline.extend(Instant::now(), first);
        deadline
    }

    /// The leases were asked for at `asked` and hold for `lease` from then on at least.
    pub fn extend(&self, asked: Instant, lease: Duration) {
        let until = (asked - self.start + lease).as_millis();
        self.millis.fetch_max(u64::try_from(until).unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    /// Whether acting is still safe.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.start.elapsed() < Duration::from_millis(self.millis.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn closes_and_opens_again() {
        let deadline = Deadline::new(Duration::from_secs(20));
        tokio::time::advance(Duration::from_secs(19)).await;
        assert!(deadline.is_open());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!deadline.is_open());
        deadline.extend(Instant::now(), Duration::from_secs(20));
        assert!(deadline.is_open());
    }
}
