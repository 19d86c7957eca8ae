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
    stretch: Arc<AtomicU64>,
}

impl Deadline {
    /// Valid for `first` from now.
    #[must_use]
    pub fn new(first: Duration) -> Self {
        let deadline = Self { start: Instant::now(), millis: Arc::default(), stretch: Arc::default() };
        deadline.extend(Instant::now(), first);
        deadline
    }

    /// The leases were asked for at `asked` and hold for `lease` from then on at least.
    pub fn extend(&self, asked: Instant, lease: Duration) {
        if !self.is_open() {
            // Before it opens: who sees it open sees that it was not open all the time.
            self.stretch.fetch_add(1, Ordering::AcqRel);
        }
        let until = (asked - self.start + lease).as_millis();
        self.millis.fetch_max(u64::try_from(until).unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    /// Whether acting is still safe.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.start.elapsed() < Duration::from_millis(self.millis.load(Ordering::Acquire))
    }

    /// Which stretch of time without a gap this is. A process that was frozen wakes up in another one: what it held before may be
    /// somebody else's, even when it has leases since then that are good.
    #[must_use]
    pub fn stretch(&self) -> u64 {
        self.stretch.load(Ordering::Acquire)
    }

    /// Whether acting is safe for who took what he holds in `stretch`.
    #[must_use]
    pub fn is_open_since(&self, stretch: u64) -> bool {
        self.is_open() && self.stretch() == stretch
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

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_before_a_gap_is_not_covered_after_it() {
        let lease = Duration::from_secs(20);
        let deadline = Deadline::new(lease);
        let taken = deadline.stretch();
        for _ in 0..3 {
            tokio::time::advance(lease / 2).await;
            deadline.extend(Instant::now(), lease);
            assert!(deadline.is_open_since(taken), "renewed in time");
        }
        tokio::time::advance(lease * 2).await;
        assert!(!deadline.is_open_since(taken));
        deadline.extend(Instant::now(), lease);
        assert!(deadline.is_open() && !deadline.is_open_since(taken));
        assert!(deadline.is_open_since(deadline.stretch()));
    }
}
