//! What is seen, as it is sent.

use std::sync::Arc;

use comfyd_actors::{
    domain::{
        event::{Event, Fact, Stage},
        id::TaskId,
        task::TaskState,
    },
    ports::store::StoreError,
    watch::{Preview, Sight, Watcher},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Wanted;
use crate::http::view::{ErrorView, OutputView, ProgressView, status};

/// Something to send.
pub enum Message {
    /// JSON, with a number when it is kept.
    Event {
        /// What it is.
        kind: &'static str,
        /// Where to go on from.
        id: Option<i64>,
        /// JSON.
        data: String,
    },
    /// A picture.
    Preview(PreviewEvent, Arc<Preview>),
    /// Nothing happened for a while.
    Quiet,
}

/// A preview without its picture.
#[derive(Debug, Serialize)]
pub struct PreviewEvent {
    task_id: String,
    node: Option<String>,
    content_type: &'static str,
}

#[derive(Serialize)]
struct StageEvent<'a> {
    task_id: String,
    workflow: Option<&'a str>,
    at: String,
    status: &'static str,
    stage: &'static str,
    attempt: i32,
    error: Option<ErrorView>,
}

#[derive(Serialize)]
struct OutputEvent<'a> {
    task_id: String,
    workflow: Option<&'a str>,
    at: String,
    output: OutputView,
}

#[derive(Serialize)]
struct ProgressEvent {
    task_id: String,
    progress: ProgressView,
}

/// Turns what a watcher sees into messages, and leaves out what the client does not want.
pub struct Reader {
    watcher: Watcher,
    base: String,
    wanted: Wanted,
    stop: CancellationToken,
}

/// Why there are no more messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The task is over.
    Over,
    /// The service stops, or cannot read its store: come again.
    Away,
}

impl Reader {
    /// `base` is what the URLs of outputs begin with.
    pub fn new(watcher: Watcher, base: String, wanted: Wanted, stop: CancellationToken) -> Self {
        Self { watcher, base, wanted, stop }
    }

    /// Cancelled when the service stops.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// The next message. May be dropped and called again.
    ///
    /// # Errors
    /// There are no more.
    pub async fn next(&mut self) -> Result<Message, End> {
        loop {
            let sight = tokio::select! {
                sight = self.watcher.next() => sight,
                () = self.stop.cancelled() => return Err(End::Away),
            };
            match sight {
                Ok(Some(sight)) => {
                    if let Some(message) = self.message(sight) {
                        return Ok(message);
                    }
                }
                Ok(None) => return Err(End::Over),
                Err(StoreError::NotFound) => return Err(End::Over),
                Err(error) => {
                    tracing::debug!(%error, "a stream of events ends: the store cannot be read");
                    return Err(End::Away);
                }
            }
        }
    }

    fn message(&self, sight: Sight) -> Option<Message> {
        let glimpse = |task: TaskId, progress| {
            let data = json(&ProgressEvent { task_id: task.to_string(), progress });
            Some(Message::Event { kind: "progress", id: None, data })
        };
        match sight {
            Sight::Fact(event) => self.fact(&event),
            Sight::Place(task, place) => glimpse(task, ProgressView::waiting(place)),
            Sight::Progress(task, progress) if self.wants_running(task) => {
                glimpse(task, ProgressView::running(progress))
            }
            Sight::Preview(task, preview) if self.wants_running(task) => {
                let task_id = task.to_string();
                let header = PreviewEvent { task_id, node: preview.node.clone(), content_type: preview.content_type };
                Some(Message::Preview(header, preview))
            }
            Sight::Progress(..) | Sight::Preview(..) => None,
            Sight::Quiet => Some(Message::Quiet),
        }
    }

    fn fact(&self, event: &Event) -> Option<Message> {
        let (task_id, at, workflow) = (event.task.to_string(), event.at.rfc3339(), event.workflow.as_deref());
        if self.wanted.workflow.is_some() && self.wanted.workflow.as_deref() != workflow {
            return None;
        }
        let (kind, data) = match &event.fact {
            Fact::Stage { stage, attempt, error } => {
                let state = state(*stage);
                if !self.wants(state) {
                    return None;
                }
                let (status, error) = (status(state), error.clone().map(ErrorView::of));
                let stage_event =
                    StageEvent { task_id, workflow, at, status, stage: stage.as_str(), attempt: *attempt, error };
                (if stage.is_final() { "end" } else { "stage" }, json(&stage_event))
            }
            Fact::Output { .. } => {
                if !self.wants(TaskState::Uploading) {
                    return None;
                }
                // None: the run that made it was given up, and the output with it.
                let artifact = event.artifact.clone()?;
                let output = OutputView::of(artifact, &format!("{}/api/tasks/{task_id}/outputs", self.base))?;
                ("output", json(&OutputEvent { task_id, workflow, at, output }))
            }
        };
        Some(Message::Event { kind, id: Some(event.seq), data })
    }

    fn wants(&self, state: TaskState) -> bool {
        self.wanted.states.is_empty() || self.wanted.states.iter().any(|wanted| status(*wanted) == status(state))
    }

    fn wants_running(&self, task: TaskId) -> bool {
        let workflow = self.wanted.workflow.as_deref();
        self.wants(TaskState::Executing) && (workflow.is_none() || workflow == self.watcher.workflow_of(task))
    }
}

/// A state that shows itself as this stage.
fn state(stage: Stage) -> TaskState {
    match stage {
        Stage::Scheduled => TaskState::Scheduled,
        Stage::Queued => TaskState::Pending,
        Stage::Preparing => TaskState::Dispatching,
        Stage::Executing | Stage::Cancelling => TaskState::Executing,
        Stage::Uploading => TaskState::Uploading,
        Stage::Completed => TaskState::Completed,
        Stage::Failed => TaskState::Failed,
        Stage::Cancelled => TaskState::Cancelled,
    }
}

/// Our own types have string keys only, so this cannot fail.
pub fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
