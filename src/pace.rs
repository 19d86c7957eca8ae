//! How slowly somebody may send: silence has a limit, and so has a trickle, or a byte now and then would hold a place for ever.

use std::time::Duration;

use tokio::time::{Instant, timeout};

/// What must come in each period. Below any link that people use, far above what somebody sends who only wants to stay.
pub const LEAST: usize = 16 << 10;

/// Watches a sender. Only time spent waiting for it counts.
#[derive(Debug)]
pub struct Pace {
    period: Duration,
    least: usize,
    left: Duration,
    came: usize,
}

/// Too little came in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it came too slowly")]
pub struct TooSlow;

impl Pace {
    /// Each `period` must bring something.
    #[must_use]
    pub fn new(period: Duration) -> Self {
        Self { period, least: LEAST, left: period, came: 0 }
    }

    /// Only silence is too slow: for what is meant to be watched as it comes.
    #[must_use]
    pub fn silence(period: Duration) -> Self {
        Self { least: 1, ..Self::new(period) }
    }

    /// Waits for the next piece, whose length `length` tells.
    ///
    /// # Errors
    /// [`TooSlow`].
    pub async fn keep<T>(
        &mut self,
        next: impl Future<Output = Option<T>>,
        length: impl FnOnce(&T) -> usize,
    ) -> Result<Option<T>, TooSlow> {
        let began = Instant::now();
        let piece = timeout(self.left, next).await.map_err(|_| TooSlow)?;
        self.note(began.elapsed(), piece.as_ref().map_or(0, length));
        Ok(piece)
    }

    fn note(&mut self, waited: Duration, bytes: usize) {
        self.came += bytes;
        self.left = self.left.saturating_sub(waited);
        if self.came >= self.least {
            (self.left, self.came) = (self.period, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    async fn piece(pace: &mut Pace, after: u64, bytes: usize) -> Result<Option<usize>, TooSlow> {
        let next = async {
            sleep(Duration::from_secs(after)).await;
            Some(bytes)
        };
        pace.keep(next, |bytes| *bytes).await
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_trickles_end_and_a_slow_link_does_not() {
        let mut slow = Pace::new(PERIOD);
        for _ in 0..100 {
            assert_eq!(piece(&mut slow, 29, LEAST).await, Ok(Some(LEAST)));
            // Our own time is not the sender's.
            sleep(PERIOD * 2).await;
        }
        assert_eq!(piece(&mut slow, 31, LEAST).await, Err(TooSlow));

        let mut trickle = Pace::new(PERIOD);
        for _ in 0..29 {
            assert_eq!(piece(&mut trickle, 1, 1).await, Ok(Some(1)));
        }
        assert_eq!(piece(&mut trickle, 2, 1).await, Err(TooSlow));
    }
}
