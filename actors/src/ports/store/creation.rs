//! Tasks come in: what is asked for, and what became of it.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{Assignment, StoreError};
use crate::domain::{
    id::TaskId,
    lane::Lane,
    options::TaskOptions,
    order::Priority,
    task::{Fence, Task, TaskState},
    time::Timestamp,
    webhook::Webhook,
};

/// A task to be created. Its first state is pending, or scheduled when its time is yet to come.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// Its name, drawn by the caller.
    pub id: TaskId,
    /// Whose it is.
    pub tenant: i64,
    /// The lane it waits in.
    pub lane: Lane,
    /// The named workflow it is made from.
    pub workflow: Option<String>,
    /// As asked for.
    pub priority: Priority,
    /// Its place in the order.
    pub sort_key: i64,
    /// Attempts allowed, at least 1.
    pub max_attempts: i32,
    /// Longest time one attempt may execute.
    pub timeout: Option<Duration>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Not before this moment; `None` = at once.
    pub run_at: Option<Timestamp>,
    /// What is kept beside the row.
    pub payload: Payload,
    /// Makes a repeated request find the first task.
    pub idempotency: Option<Idempotency>,
}

impl NewTask {
    /// Since when it waits for its turn.
    #[must_use]
    pub fn queued_at(&self) -> Timestamp {
        self.run_at.map_or(self.created_at, |at| at.max(self.created_at))
    }

    /// The row it starts as: held by nobody, its first attempt ahead.
    #[must_use]
    pub fn first_state(&self) -> Task {
        let run_at = self.run_at.filter(|at| *at > self.created_at);
        Task {
            id: self.id,
            tenant: self.tenant,
            lane: self.lane.id,
            workflow: self.workflow.clone(),
            priority: self.priority,
            sort_key: self.sort_key,
            queued_at: self.queued_at(),
            state: if run_at.is_some() { TaskState::Scheduled } else { TaskState::Pending },
            generation: 1,
            uploads_only: false,
            fence: Fence(0),
            dispatch: 0,
            attempt: 1,
            max_attempts: self.max_attempts,
            poison: 0,
            ooms: 0,
            timeout: self.timeout,
            lease: None,
            prompt: None,
            run_at,
            cancel_requested_at: None,
            created_at: self.created_at,
            started_at: None,
            executing_at: None,
            uploading_at: None,
            finished_at: None,
            error: None,
            hook: self.payload.options.webhook.as_ref().map(Webhook::hook),
        }
    }
}

/// The large, never-changing part of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The graph in API format, JSON text, exactly as it will be submitted.
    pub graph: Arc<str>,
    /// The inputs as the client gave them, a JSON object as text.
    pub inputs: Arc<str>,
    /// The client's own data, JSON text.
    pub metadata: Arc<str>,
    /// What is done differently for this task.
    pub options: Arc<TaskOptions>,
}

/// An `Idempotency-Key` and what it was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's key, unique within its tenant.
    pub key: String,
    /// SHA-256 of the canonical body: the same key with another body is a mistake of the client's.
    pub body_sha256: [u8; 32],
}

/// What became of a creation.
#[derive(Debug, Clone)]
pub enum Created {
    /// It is stored.
    New(Task),
    /// The same request came before: this is the task it made.
    Replayed(Task),
    /// The key was used for another body. Nothing was written.
    KeyReused,
}

/// A creation that is committed.
#[derive(Debug)]
pub struct Creation {
    /// What became of it. Nobody outside may be told before it is `durable`.
    pub created: Created,
    /// What was claimed with it. As after every claim, work on it may begin at once.
    pub claimed: Vec<Assignment>,
    /// Whether a power cut can undo it.
    pub durable: Durable,
}

/// Tells when something committed has become safe from a power cut.
pub struct Durable(Option<oneshot::Receiver<Result<(), StoreError>>>);

impl Durable {
    /// It is.
    #[must_use]
    pub fn now() -> Self {
        Self(None)
    }

    /// It will be when that is sent.
    #[must_use]
    pub fn later() -> (oneshot::Sender<Result<(), StoreError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Some(receiver)))
    }

    /// Waits for it.
    ///
    /// # Errors
    /// `Unavailable`: nobody knows whether it is there after a power cut.
    pub async fn wait(self) -> Result<(), StoreError> {
        let Some(word) = self.0 else { return Ok(()) };
        word.await
            .unwrap_or_else(|_| Err(StoreError::Unavailable("the writer failed before the disk had this write".into())))
    }
}

/// Says nothing of when: that is no part of what stores agree on.
impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Durable")
    }
}
