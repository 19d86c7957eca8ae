//! How a holder's work on a task ends: what failed and what follows.

use std::time::Duration;

use super::{ArtifactEdit, Change, Refusal, Release, Task, TaskState};
use crate::domain::{
    artifact::Artifact,
    error::{ErrorCode, TaskError},
    failure::{Class, Next},
    lane::Lane,
    time::Timestamp,
};

/// After this many servers in a row died or broke while running a task, the task is taken for their killer.
pub const POISON_LIMIT: i32 = 3;

impl Change {
    /// What is made of a failure. Delays, beyond what was asked for, and lanes are filled in by whoever knows the attempt and the servers.
    #[must_use]
    pub fn after(error: TaskError) -> Self {
        match error.class.next(0) {
            Next::Nothing => Self::Fail { error },
            Next::Retry => Self::Retry { delay: Duration::from_millis(error.pause_ms.into()), error },
            Next::RetryAlone | Next::RetryElsewhere => Self::Cramped { error, delay: Duration::ZERO, lane: None },
            Next::Elsewhere => Self::Elsewhere { error, blamed: true },
        }
    }
}

impl Task {
    pub(super) fn fail(&mut self, error: TaskError, now: Timestamp) -> ArtifactEdit {
        if self.cancel_requested_at.is_some() {
            return self.end(TaskState::Cancelled, None, now);
        }
        self.end(TaskState::Failed, Some(TaskError { next: Next::Nothing, ..error }), now)
    }

    pub(super) fn retry(&mut self, error: TaskError, delay: Duration, now: Timestamp) -> ArtifactEdit {
        self.try_again(error, Next::Retry, delay, now)
    }

    pub(super) fn cramped(
        &mut self,
        error: TaskError,
        delay: Duration,
        lane: Option<Lane>,
        now: Timestamp,
    ) -> ArtifactEdit {
        let next = Class::OutOfMemory.next(self.ooms);
        let edit = self.try_again(error, next, delay, now);
        if !self.state.is_final() {
            self.ooms += 1;
            self.lane = lane.map_or(self.lane, |lane| lane.id);
        }
        edit
    }

    /// Another attempt, unless there is none left or `next` is nothing.
    fn try_again(&mut self, error: TaskError, next: Next, delay: Duration, now: Timestamp) -> ArtifactEdit {
        let is_last = next == Next::Nothing || self.attempt >= self.max_attempts || self.uploads_only;
        if is_last || self.cancel_requested_at.is_some() {
            return self.fail(error, now);
        }
        self.attempt += 1;
        self.error = Some(TaskError { next, pause_ms: 0, ..error });
        self.let_go();
        self.state = TaskState::Scheduled;
        self.run_at = Some(now.after(delay));
        ArtifactEdit::Replace(Vec::new())
    }

    pub(super) fn unstored(
        &mut self,
        error: TaskError,
        delay: Duration,
        artifacts: Vec<Artifact>,
        now: Timestamp,
    ) -> Result<ArtifactEdit, Refusal> {
        if self.prompt.is_none() {
            return Err(Refusal::WrongState);
        }
        // As with a manifest, its plan need not be recorded.
        self.executing_at.get_or_insert(now);
        self.uploading_at.get_or_insert(now);
        let edit = if error.is_retryable() { self.retry(error, delay, now) } else { self.fail(error, now) };
        Ok(if self.state.is_final() { ArtifactEdit::Replace(artifacts) } else { edit })
    }

    pub(super) fn release(&mut self, reason: Release, now: Timestamp) -> ArtifactEdit {
        if reason == Release::ServerDied {
            let server = self.prompt.as_ref().map_or_else(String::new, |prompt| format!(" {}", prompt.backend));
            let message = format!("the ComfyUI server{server} died or forgot this task while it was running it");
            return self.elsewhere(TaskError::new(ErrorCode::BackendError, message), true, now);
        }
        self.give_back(None, now)
    }

    pub(super) fn elsewhere(&mut self, error: TaskError, blamed: bool, now: Timestamp) -> ArtifactEdit {
        self.poison += i32::from(blamed);
        if self.poison < POISON_LIMIT {
            return self.give_back(Some(TaskError { next: Next::Elsewhere, ..error }), now);
        }
        let message = format!(
            "{POISON_LIMIT} times in a row the ComfyUI server died or its device failed while running this task; it is not tried \
             again. The last time: {}",
            error.message
        );
        self.fail(TaskError { code: ErrorCode::Poison, class: Class::Poison, message, ..error }, now)
    }

    /// Back to the queue, its attempts unspent.
    fn give_back(&mut self, error: Option<TaskError>, now: Timestamp) -> ArtifactEdit {
        if self.cancel_requested_at.is_some() {
            return self.end(TaskState::Cancelled, None, now);
        }
        if self.uploads_only {
            let message = "the server that has the task's files is not there any more, and only they were asked for";
            return self.fail(TaskError::new(ErrorCode::OutputMissing, message), now);
        }
        self.error = error.or_else(|| self.error.take());
        self.let_go();
        self.state = TaskState::Pending;
        ArtifactEdit::Replace(Vec::new())
    }

    pub(super) fn let_go(&mut self) {
        self.lease = None;
        self.prompt = None;
    }

    pub(super) fn end(&mut self, state: TaskState, error: Option<TaskError>, now: Timestamp) -> ArtifactEdit {
        self.state = state;
        self.lease = None;
        self.run_at = None;
        self.error = error;
        self.finished_at = Some(now);
        ArtifactEdit::Keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        lane::Needs,
        task::tests::{claim, new_task},
    };

    const NOW: Timestamp = Timestamp(2_000);

    fn held(max_attempts: i32) -> Task {
        let mut task = Task { max_attempts, ..new_task() };
        task.apply(None, claim(), NOW).unwrap();
        task
    }

    fn of(code: ErrorCode) -> TaskError {
        TaskError { node_id: Some("4".into()), ..TaskError::new(code, "boom") }
    }

    fn end(task: &mut Task, change: Change) {
        let fence = Some(task.fence);
        task.apply(fence, change, NOW).unwrap();
    }

    fn begin_again(task: &mut Task) {
        if task.state == TaskState::Scheduled {
            task.apply(None, Change::Promote, NOW).unwrap();
        }
        task.apply(None, claim(), NOW).unwrap();
    }

    #[test]
    fn every_code_has_one_ending() {
        for (code, next, state, attempt) in [
            (ErrorCode::InvalidPrompt, Next::Nothing, TaskState::Failed, 1),
            (ErrorCode::NoOutputs, Next::Nothing, TaskState::Failed, 1),
            (ErrorCode::Timeout, Next::Nothing, TaskState::Failed, 1),
            (ErrorCode::UploadFailed, Next::Nothing, TaskState::Failed, 1),
            (ErrorCode::NodeFailed, Next::Retry, TaskState::Scheduled, 2),
            (ErrorCode::BackendError, Next::Retry, TaskState::Scheduled, 2),
            (ErrorCode::OutOfMemory, Next::RetryAlone, TaskState::Scheduled, 2),
            (ErrorCode::BackendFault, Next::Elsewhere, TaskState::Pending, 1),
        ] {
            let mut task = held(3);
            end(&mut task, Change::after(of(code)));
            let error = task.error.unwrap();
            assert_eq!((error.next, task.state, task.attempt), (next, state, attempt), "{code:?}");
            assert_eq!((error.code, error.class, error.node_id.as_deref()), (code, code.class(), Some("4")));
        }
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept_until_then_and_no_longer() {
        let pause = Duration::from_secs(5);
        let change = Change::after(TaskError { pause_ms: 5_000, ..of(ErrorCode::HostUnavailable) });
        assert!(matches!(change, Change::Retry { delay, .. } if delay == pause));
        let mut task = held(3);
        end(&mut task, change);
        assert_eq!((task.run_at, task.error.unwrap().pause_ms), (Some(NOW.after(pause)), 0));
    }

    #[test]
    fn the_last_attempt_says_that_nothing_follows() {
        for code in [ErrorCode::NodeFailed, ErrorCode::OutOfMemory] {
            let mut task = held(1);
            end(&mut task, Change::after(of(code)));
            assert_eq!((task.state, task.error.unwrap().next), (TaskState::Failed, Next::Nothing));
        }
    }

    #[test]
    fn a_task_without_enough_memory_gets_three_chances_and_no_more() {
        let mut task = held(10);
        let wide = Lane::of(Needs { classes: ["Wide".to_owned()].into(), ..Needs::default() });
        for (ooms, next, lane) in [(1, Next::RetryAlone, None), (2, Next::RetryElsewhere, Some(wide.clone()))] {
            end(&mut task, Change::Cramped { error: of(ErrorCode::OutOfMemory), delay: Duration::ZERO, lane });
            assert_eq!((task.ooms, task.attempt, task.state), (ooms, 1 + ooms, TaskState::Scheduled));
            assert_eq!(task.error.as_ref().unwrap().next, next);
            begin_again(&mut task);
        }
        assert_eq!(task.lane, wide.id, "it waits for a server on which it may fit");
        end(&mut task, Change::after(of(ErrorCode::OutOfMemory)));
        assert_eq!((task.state, task.attempt), (TaskState::Failed, 3), "attempts are left, chances are not");
        let reopen = Change::Reopen { ordering: crate::domain::order::Ordering::Aged };
        task.apply(None, reopen, NOW).unwrap();
        assert_eq!(task.ooms, 0);
    }

    #[test]
    fn a_broken_server_costs_no_attempt_and_a_breaker_of_servers_is_stopped() {
        let mut task = held(1);
        let fault = |blamed| Change::Elsewhere { error: of(ErrorCode::BackendFault), blamed };
        for _ in 0..9 {
            end(&mut task, fault(false));
            assert_eq!((task.state, task.attempt, task.poison), (TaskState::Pending, 1, 0), "it was broken before");
            begin_again(&mut task);
        }
        for poison in 1..POISON_LIMIT {
            end(&mut task, fault(true));
            assert_eq!((task.state, task.attempt, task.poison), (TaskState::Pending, 1, poison));
            begin_again(&mut task);
        }
        end(&mut task, fault(true));
        let error = task.error.unwrap();
        assert_eq!((error.code, error.class, error.next), (ErrorCode::Poison, Class::Poison, Next::Nothing));
        assert!(error.message.ends_with("The last time: boom") && error.node_id.is_some(), "{error:?}");
    }

    #[test]
    fn a_server_that_died_is_named() {
        let mut task = held(3);
        end(&mut task, Change::Release(Release::ServerDied));
        let error = task.error.clone().unwrap();
        assert_eq!((error.class, error.next), (Class::Transient, Next::Elsewhere));
        assert!(error.message.contains("http://b"), "{error:?}");
        begin_again(&mut task);
        end(&mut task, Change::Release(Release::Recalled));
        assert_eq!(task.error, Some(error), "a recall is no failure");
    }
}
