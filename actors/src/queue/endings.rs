//! Endings: what sessions and uploads report is recorded, whatever the store does meanwhile.

use ractor::ActorRef;
use tracing::{error, info};

use super::{QueueMsg, State, Whereabouts, note_ending, settle_until};
use crate::{
    comfy_session::SessionMsg,
    domain::{
        id::{PromptId, TaskId},
        task::{Change, Fence, Refusal, Task, TaskState},
    },
    kit::tasks::Panicked,
    ports::store::StoreError,
};

impl State {
    pub(super) fn settle(
        &mut self,
        me: &ActorRef<QueueMsg>,
        id: TaskId,
        fence: Fence,
        change: Change,
        prompt: Option<PromptId>,
    ) {
        if let Some(held) = self.held.get_mut(&id) {
            held.at = Whereabouts::Settling;
        }
        let change = self.with_delay(id, change);
        let (source, clock) = (self.system.source.clone(), self.system.settings.lease);
        let work = async move { settle_until(clock, || source.apply(id, fence, change.clone())).await };
        self.tasks.run(me, work, move |result| QueueMsg::Settled { id, fence, prompt, result });
        self.fill(me);
    }

    /// The delay before another attempt grows with the attempts: it is drawn here, where jitter is allowed.
    pub(super) fn with_delay(&self, id: TaskId, change: Change) -> Change {
        let drawn = || {
            let failures = self.held.get(&id).and_then(|held| u32::try_from(held.attempt).ok()).unwrap_or(1);
            self.system.settings.retry.delay(failures, rand::random())
        };
        match change {
            Change::Retry { error, .. } => Change::Retry { error, delay: drawn() },
            Change::Cramped { error, lane, .. } => Change::Cramped { error, delay: drawn(), lane },
            Change::Unstored { error, artifacts, .. } => Change::Unstored { error, delay: drawn(), artifacts },
            other => other,
        }
    }

    pub(super) fn on_settled(
        &mut self,
        me: &ActorRef<QueueMsg>,
        id: TaskId,
        fence: Fence,
        prompt: Option<PromptId>,
        result: Result<Result<Task, StoreError>, Panicked>,
    ) {
        match &result {
            Ok(Ok(task)) => {
                self.system.board.learn(task);
                note_ending(task);
                match task.state {
                    TaskState::Scheduled => self.system.metrics.attempt_failed(task.error.as_ref()),
                    state if state.is_final() => self.system.metrics.ended(task),
                    _ => {}
                }
            }
            Ok(Err(StoreError::Refused(Refusal::Stale))) => {
                info!(task.id = %id, "the task's end is somebody else's to record");
            }
            Ok(Err(error)) => error!(task.id = %id, %error, "could not record the task's end; it will be found again"),
            Err(Panicked) => error!(task.id = %id, "recording the task's end panicked; it will be found again"),
        }
        if self.recovering {
            self.ended_meanwhile.insert(id);
        }
        let Some(held) = self.held.get(&id).filter(|held| held.fence == fence) else { return };
        let recorded = matches!(result, Ok(Ok(_) | Err(StoreError::Refused(_) | StoreError::NotFound)));
        if let (Ok(Ok(_)), Some(prompt)) = (&result, prompt) {
            self.tell_session(&held.backend, SessionMsg::Forget { prompt });
        }
        self.held.remove(&id);
        if !recorded {
            self.recover(me);
        }
        self.hand_over_when_done(me);
        self.fill(me);
    }
}
