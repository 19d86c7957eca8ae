//! How long a backend has nothing to do while a task waits: the time that is lost between two runs. Pure.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::domain::id::BackendId;

/// Since when something waits, and since when which backend is idle.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    waiting_since: Option<Instant>,
    idle_since: HashMap<BackendId, Instant>,
}

impl Gaps {
    /// There may be something to take.
    pub(super) fn tasks_wait(&mut self, now: Instant) {
        self.waiting_since.get_or_insert(now);
    }

    /// Nothing was left to take.
    pub(super) fn none_waits(&mut self) {
        self.waiting_since = None;
    }

    /// A backend could take a task and has none, or it has one, or it may not.
    pub(super) fn saw(&mut self, backend: &BackendId, idle: bool, now: Instant) {
        if idle {
            self.idle_since.entry(backend.clone()).or_insert(now);
        } else {
            self.idle_since.remove(backend);
        }
    }

    /// It was given a task: how long it had been idle while one waited, if it had been idle at all.
    pub(super) fn given(&mut self, backend: &BackendId, now: Instant) -> Option<Duration> {
        let idle_since = self.idle_since.remove(backend)?;
        // A task that was taken in the commit that created it did not wait.
        let both = self.waiting_since.map_or(now, |waiting_since| waiting_since.max(idle_since));
        Some(now.duration_since(both))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_idle_and_awaited_is_a_gap() {
        let (mut gaps, start) = (Gaps::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let gpu = BackendId::new("http://gpu");
        gaps.tasks_wait(at(0));
        assert_eq!(gaps.given(&gpu, at(1)), None, "it was prepared ahead");
        gaps.saw(&gpu, true, at(2));
        gaps.saw(&gpu, true, at(3));
        assert_eq!(gaps.given(&gpu, at(5)), Some(Duration::from_secs(3)), "idle since 2, awaited since 0");
        gaps.none_waits();
        gaps.saw(&gpu, true, at(6));
        gaps.tasks_wait(at(9));
        gaps.tasks_wait(at(10));
        assert_eq!(gaps.given(&gpu, at(11)), Some(Duration::from_secs(2)), "idle since 6, awaited since 9");
        gaps.none_waits();
        gaps.saw(&gpu, true, at(12));
        assert_eq!(gaps.given(&gpu, at(20)), Some(Duration::ZERO), "nothing waited");
        gaps.saw(&gpu, true, at(21));
        gaps.saw(&gpu, false, at(22));
        assert_eq!(gaps.given(&gpu, at(23)), None, "it may not, or has something to do");
    }
}
