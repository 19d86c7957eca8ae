//! When to try again: exponential backoff with full jitter.

use std::time::Duration;

/// A growing delay with full jitter: a draw between zero and `min(cap, base * 2^n)`, so that many who failed together do not
/// come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Bound of the first delay.
    pub base: Duration,
    /// Bound of every later one.
    pub cap: Duration,
}

impl Backoff {
    /// The delay after failure number `failures` (from 1), with `draw` in 0..1.
    #[must_use]
    pub fn delay(self, failures: u32, draw: f64) -> Duration {
        self.bound(failures).mul_f64(draw.clamp(0.0, 1.0))
    }

    /// As [`Self::delay`] but never below half the bound: for reconnects, where a delay near zero would hammer.
    #[must_use]
    pub fn delay_at_least_half(self, failures: u32, draw: f64) -> Duration {
        self.bound(failures).mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0)
    }

    fn bound(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap() {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(10) };
        let bounds: Vec<_> = [1, 2, 3, 8, 200].map(|n| backoff.delay(n, 1.0).as_millis()).into();
        assert_eq!(bounds, [100, 200, 400, 10_000, 10_000]);
        assert_eq!(backoff.delay(5, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay_at_least_half(1, 0.0), Duration::from_millis(50));
    }
}
