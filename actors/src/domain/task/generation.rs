//! What clients change about a task after its creation: its urgency, and whether it is done again.

use super::{ArtifactEdit, Change, Lease, Refusal, Task, TaskState};
use crate::domain::{
    id::WorkerId,
    order::{Ordering, Priority, sort_key},
    time::Timestamp,
};

impl Task {
    /// Whether a client's wish is fulfilled already, so that repeating it is no fault: a cancelled task is over, and one that was asked for
    /// again is under way or done.
    #[must_use]
    pub fn fulfils(&self, wish: &Change) -> bool {
        match wish {
            Change::Cancel => self.state.is_final(),
            wish if wish.reopens() => {
                self.state == TaskState::Completed || !self.state.is_final() && !self.is_cancelling()
            }
            _ => false,
        }
    }

    pub(super) fn reprioritize(&mut self, priority: Priority, ordering: Ordering) -> ArtifactEdit {
        self.priority = priority;
        self.sort_key = sort_key(self.queued_at, priority, ordering);
        ArtifactEdit::Keep
    }

    pub(super) fn reopen(&mut self, ordering: Ordering, now: Timestamp) -> Result<ArtifactEdit, Refusal> {
        self.begin_generation()?;
        self.let_go();
        self.state = TaskState::Pending;
        self.uploads_only = false;
        self.queued_at = now;
        self.sort_key = sort_key(now, self.priority, ordering);
        self.attempt = 1;
        self.poison = 0;
        self.ooms = 0;
        self.started_at = None;
        self.executing_at = None;
        self.uploading_at = None;
        Ok(ArtifactEdit::Replace(Vec::new()))
    }

    /// Whether its newest prompt left files on its server that are known of.
    #[must_use]
    pub fn has_planned(&self) -> bool {
        self.prompt.is_some() && self.uploading_at.is_some()
    }

    /// Its artifacts stay: what is stored is not stored again.
    pub(super) fn reopen_uploads(&mut self, worker: WorkerId, now: Timestamp) -> Result<ArtifactEdit, Refusal> {
        if self.state.is_final() && !self.has_planned() {
            return Err(if self.state == TaskState::Completed { Refusal::Over } else { Refusal::NoFiles });
        }
        self.begin_generation()?;
        self.state = TaskState::Uploading;
        self.uploads_only = true;
        // The holder of the generation before may not know yet that it is over.
        self.fence.0 += 1;
        self.lease = Some(Lease { worker, until: now });
        Ok(ArtifactEdit::Keep)
    }

    /// Leaves the end of a failed or cancelled generation behind.
    fn begin_generation(&mut self) -> Result<(), Refusal> {
        match self.state {
            TaskState::Failed | TaskState::Cancelled => {}
            TaskState::Completed => return Err(Refusal::Over),
            _ if self.is_cancelling() => return Err(Refusal::Cancelling),
            _ => return Err(Refusal::WrongState),
        }
        self.generation += 1;
        self.error = None;
        self.cancel_requested_at = None;
        self.finished_at = None;
        Ok(())
    }
}
