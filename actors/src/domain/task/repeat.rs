//! Telling a change that was made, and whose answer was lost, from one that was refused.

use super::{Change, Fence, Task, TaskState};

impl Task {
    /// Whether this change was made under this fence, as far as the task shows it. Only the holder of a fence makes changes under it, one
    /// after the other, and the fence stays when a task is given back: so what a holder repeats because it saw no answer is found done
    /// here, until somebody else takes the task.
    #[must_use]
    pub fn shows(&self, fence: Fence, change: &Change) -> bool {
        use TaskState::{Cancelled, Completed, Executing, Failed, Pending, Scheduled, Uploading};
        let stands_in = |states: &[TaskState]| states.contains(&self.state);
        self.fence == fence
            && match change {
                Change::Accept { .. } => stands_in(&[Executing, Uploading]),
                Change::Plan { .. } => self.state == Uploading,
                Change::Complete { .. } => stands_in(&[Completed, Cancelled]),
                Change::Fail { .. } => stands_in(&[Failed, Cancelled]),
                Change::Retry { .. } | Change::Cramped { .. } | Change::Elsewhere { .. } | Change::Unstored { .. } => {
                    stands_in(&[Scheduled, Pending, Failed, Cancelled])
                }
                Change::Release(_) => stands_in(&[Pending, Failed, Cancelled]),
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        error::{ErrorCode, TaskError},
        id::PromptId,
        task::{
            Refusal, Release,
            tests::{claim, new_task},
        },
        time::Timestamp,
    };

    #[test]
    fn what_was_done_is_found_done_and_nothing_else_is() {
        let error = || TaskError::new(ErrorCode::NodeFailed, "broken");
        let endings = [
            Change::Complete { artifacts: Vec::new() },
            Change::Fail { error: error() },
            Change::Retry { error: error(), delay: std::time::Duration::ZERO },
            Change::Release(Release::Recalled),
        ];
        for ending in endings {
            let mut task = new_task();
            task.apply(None, claim(), Timestamp(0)).unwrap();
            let fence = task.fence;
            assert!(!task.shows(fence, &ending), "{ending:?}");
            task.apply(Some(fence), ending.clone(), Timestamp(1)).unwrap();
            assert_eq!(task.apply(Some(fence), ending.clone(), Timestamp(2)), Err(Refusal::Stale), "{ending:?}");
            assert!(task.shows(fence, &ending), "{ending:?}");
            assert!(!task.shows(Fence(fence.0 + 1), &ending), "somebody else's");
            let other = Change::Plan { artifacts: Vec::new() };
            assert!(!task.shows(fence, &other), "{ending:?}");
        }
        let mut task = new_task();
        task.apply(None, claim(), Timestamp(0)).unwrap();
        let plan = Change::Plan { artifacts: Vec::new() };
        task.apply(Some(task.fence), plan.clone(), Timestamp(1)).unwrap();
        assert!(task.shows(task.fence, &plan));
        let accept = Change::Accept { prompt: PromptId::new("p") };
        assert!(task.shows(task.fence, &accept), "evidence that came late is there already");
    }
}
