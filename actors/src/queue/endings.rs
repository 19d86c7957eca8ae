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
        let change = self.with_remedy(id, change);
        let (source, clock) = (self.system.source.clone(), self.system.settings.lease);
        let work = async move { settle_until(clock, || source.apply(id, fence, change.clone())).await };
        self.tasks.run(me, work, move |result| QueueMsg::Settled { id, fence, prompt, result });
        self.fill(me);
    }

    /// Fills in when and where there may be another attempt. Delays grow with the attempts and are drawn here, where jitter is allowed: from
    /// all of their range, so that many who failed together do not come back together.
    fn with_remedy(&mut self, id: TaskId, change: Change) -> Change {
        let (backoff, draw) = (self.system.settings.retry, rand::random());
        let failures = self.held.get(&id).and_then(|held| u32::try_from(held.attempt).ok()).unwrap_or(1);
        match change {
            Change::Retry { error, delay: asked } => {
                Change::Retry { error, delay: asked.saturating_add(backoff.delay(failures, draw)) }
            }
            Change::Cramped { error, .. } => {
                let lane = self.held.get(&id).and_then(|held| self.roomier_lane(held));
                if let Some(lane) = &lane {
                    self.enter_lane(lane);
                }
                Change::Cramped { error, delay: backoff.delay(failures, draw), lane }
            }
            // Not at once: its server is to forget the results of the run before, and does so when it comes to it.
            Change::Unstored { error, artifacts, .. } => {
                Change::Unstored { error, delay: backoff.delay_at_least_half(failures, draw), artifacts }
            }
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
        if recorded {
            self.system.posts.forget(id);
        } else {
            self.recover(me);
        }
        self.hand_over_when_done(me);
        self.fill(me);
    }
}
