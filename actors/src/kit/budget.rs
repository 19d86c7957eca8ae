//! How often something may be restarted before its supervisor gives up.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::domain::retry::Backoff;

/// The bounds of a [`RestartBudget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Restarts allowed within `window`.
    pub max_restarts: usize,
    /// The window.
    pub window: Duration,
    /// Delay before each restart, growing with failures in a row.
    pub backoff: Backoff,
    /// Having run this long, earlier failures are forgotten.
    pub calm: Duration,
}

impl Default for Limits {
    /// Tolerates a burst (10 in a minute) and never spins: the delay grows to 10 s.
    fn default() -> Self {
        Self {
            max_restarts: 10,
            window: Duration::from_secs(60),
            backoff: Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(10) },
            calm: Duration::from_secs(60),
        }
    }
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Restart it after this delay.
    Restart { after: Duration },
    /// The budget is spent.
    GiveUp,
}

/// Counts the failures of one child.
#[derive(Debug, Clone)]
pub struct RestartBudget {
    limits: Limits,
    recent: VecDeque<Instant>,
    in_a_row: u32,
    last: Option<Instant>,
}

impl RestartBudget {
    /// An unspent budget.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, recent: VecDeque::new(), in_a_row: 0, last: None }
    }

    /// Notes a failure at `now`; `draw` in 0..1 is the jitter.
    pub fn on_failure(&mut self, now: Instant, draw: f64) -> Decision {
        while self.recent.front().is_some_and(|at| now - *at > self.limits.window) {
            self.recent.pop_front();
        }
        if self.last.is_some_and(|at| now - at > self.limits.calm) {
            self.in_a_row = 0;
        }
        self.recent.push_back(now);
        self.last = Some(now);
        self.in_a_row += 1;
        if self.recent.len() > self.limits.max_restarts {
            return Decision::GiveUp;
        }
        Decision::Restart { after: self.limits.backoff.delay_at_least_half(self.in_a_row, draw) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gives_up_only_on_a_burst() {
        let limits = Limits { max_restarts: 3, ..Limits::default() };
        let mut budget = RestartBudget::new(limits);
        let start = Instant::now();
        for n in 0..30 {
            let now = start + Duration::from_secs(30 * n);
            assert!(matches!(budget.on_failure(now, 1.0), Decision::Restart { .. }), "failure {n}");
        }
        let burst = start + Duration::from_secs(3600);
        for _ in 0..3 {
            assert!(matches!(budget.on_failure(burst, 1.0), Decision::Restart { .. }));
        }
        assert_eq!(budget.on_failure(burst, 1.0), Decision::GiveUp);
    }

    #[tokio::test(start_paused = true)]
    async fn the_delay_grows_and_a_calm_period_resets_it() {
        let mut budget = RestartBudget::new(Limits::default());
        let start = Instant::now();
        let millis = |decision| match decision {
            Decision::Restart { after } => after.as_millis(),
            Decision::GiveUp => panic!("gave up"),
        };
        assert_eq!([0, 1, 2].map(|_| millis(budget.on_failure(start, 1.0))), [100, 200, 400]);
        assert_eq!(millis(budget.on_failure(start + Duration::from_secs(61), 1.0)), 100);
    }
}
