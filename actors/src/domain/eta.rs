//! When a task will be done, learned from how long others took.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::task::{Task, TaskState};

/// Runs remembered per workflow: enough for a steady middle, few enough to follow a change of model or machine within the hour.
const RUNS: usize = 31;
/// Workflows remembered apart. Beyond it new ones count only among all.
const WORKFLOWS: usize = 500;
/// A share of a run below which its speed says nothing yet.
const TELLING: u8 = 10;

/// How long recent runs took.
#[derive(Debug, Default)]
pub struct Durations {
    workflows: HashMap<String, Recent>,
    all: Recent,
}

#[derive(Debug, Default)]
struct Recent(VecDeque<Duration>);

impl Recent {
    fn push(&mut self, took: Duration) {
        if self.0.len() == RUNS {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The one in the middle: a run that loaded a model first, or came from the cache, does not sway it.
    fn median(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

impl Durations {
    /// A task ended. Only what completed tells how long a run takes.
    pub fn learn(&mut self, task: &Task) {
        let (Some(began), Some(ended)) = (task.executing_at, task.finished_at) else { return };
        if task.state != TaskState::Completed {
            return;
        }
        let took = ended.since(began);
        self.all.push(took);
        let Some(workflow) = &task.workflow else { return };
        if self.workflows.contains_key(workflow) || self.workflows.len() < WORKFLOWS {
            self.workflows.entry(workflow.clone()).or_default().push(took);
        }
    }

    /// How long a run takes from its start to its last stored output: of this workflow, when it ran before, else of any.
    #[must_use]
    pub fn of(&self, workflow: Option<&str>) -> Option<Duration> {
        let known = workflow.and_then(|name| self.workflows.get(name)).and_then(Recent::median);
        known.or_else(|| self.all.median())
    }

    /// Until a waiting task is done: the `ahead` before it go through `servers` side by side, each of which is in the middle of a run; then its own.
    /// None without a server or without experience.
    #[must_use]
    pub fn until_done(&self, workflow: Option<&str>, ahead: u32, servers: u32) -> Option<Duration> {
        let usual = self.all.median()?;
        let before = usual.checked_mul(ahead)?.checked_div(servers)?;
        before.checked_add(usual / 2)?.checked_add(self.of(workflow)?)
    }

    /// Until a running task is done. A run that takes longer than usual, or the first of its kind, is judged by its own speed, once `percent`
    /// of it says something.
    #[must_use]
    pub fn remaining(&self, workflow: Option<&str>, elapsed: Duration, percent: u8) -> Option<Duration> {
        let learned = workflow.and_then(|name| self.workflows.get(name)).and_then(Recent::median);
        match learned.and_then(|usual| usual.checked_sub(elapsed)) {
            Some(left) => Some(left),
            None if (TELLING..100).contains(&percent) => {
                elapsed.checked_mul(u32::from(100 - percent))?.checked_div(u32::from(percent))
            }
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{task::tests::new_task, time::Timestamp};

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn ran(workflow: Option<&str>, took: u64) -> Task {
        let mut task = new_task();
        task.workflow = workflow.map(str::to_owned);
        task.state = TaskState::Completed;
        task.executing_at = Some(Timestamp(1_000));
        task.finished_at = Some(Timestamp(1_000).after(seconds(took)));
        task
    }

    fn learned(runs: &[(Option<&str>, u64)]) -> Durations {
        let mut durations = Durations::default();
        runs.iter().for_each(|(workflow, took)| durations.learn(&ran(*workflow, *took)));
        durations
    }

    #[test]
    fn one_odd_run_does_not_sway_it() {
        let durations = learned(&[(Some("a"), 10), (Some("a"), 600), (Some("a"), 12), (None, 1), (None, 1)]);
        assert_eq!(durations.of(Some("a")), Some(seconds(12)));
        assert_eq!(durations.of(Some("never seen")), Some(seconds(10)), "as long as anything takes");
        assert_eq!(learned(&[]).of(Some("a")), None);
    }

    #[test]
    fn old_runs_are_forgotten_and_failures_teach_nothing() {
        let mut durations = learned(&[(Some("a"), 100); RUNS]);
        for _ in 0..RUNS {
            durations.learn(&ran(Some("a"), 5));
        }
        durations.learn(&Task { state: TaskState::Failed, ..ran(Some("a"), 999) });
        assert_eq!(durations.of(Some("a")), Some(seconds(5)));
    }

    #[test]
    fn a_waiting_task_waits_for_those_before_it() {
        let durations = learned(&[(Some("fast"), 2), (Some("slow"), 20), (Some("slow"), 20)]);
        assert_eq!(durations.until_done(Some("fast"), 0, 1), Some(seconds(10 + 2)));
        assert_eq!(durations.until_done(Some("fast"), 6, 2), Some(seconds(60 + 10 + 2)));
        assert_eq!(durations.until_done(Some("fast"), 6, 0), None, "nobody is there to run it");
        assert_eq!(learned(&[]).until_done(None, 0, 1), None);
        assert_eq!(durations.until_done(None, u32::MAX, 1).map(|long| long > seconds(1_000_000)), Some(true));
    }

    #[test]
    fn a_running_task_is_judged_by_others_then_by_itself() {
        let durations = learned(&[(Some("a"), 20)]);
        assert_eq!(durations.remaining(Some("a"), seconds(5), 0), Some(seconds(15)));
        assert_eq!(durations.remaining(Some("a"), seconds(30), 50), Some(seconds(30)), "slower than usual");
        assert_eq!(durations.remaining(Some("b"), seconds(10), 25), Some(seconds(30)), "the first of its kind");
        assert_eq!(durations.remaining(Some("b"), seconds(10), 5), None);
        assert_eq!(durations.remaining(Some("b"), seconds(10), 100), None);
    }
}
