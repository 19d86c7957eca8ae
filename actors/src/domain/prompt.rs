//! What a ComfyUI server tells us about one prompt: frames of its WebSocket, entries of its queue and history.

use bytes::Bytes;
use serde_json::Value;

use super::{
    artifact::{Artifact, FileRef},
    error::{ErrorCode, TaskError},
    id::PromptId,
};

/// One frame of a ComfyUI WebSocket, decoded. A hint: it makes things faster and decides nothing (PROTOCOL.md 13.5).
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// The server's queue changed; sent to everybody at each put, start, end and delete.
    Status {
        /// Prompts running and pending.
        queue_remaining: u64,
        /// Our name as the server knows it, in the first frame of a connection only.
        sid: Option<String>,
    },
    /// The prompt left the server's queue and runs.
    Started { prompt: PromptId },
    /// These nodes need not run.
    Cached { prompt: PromptId, nodes: usize },
    /// A node runs. Without a prompt id on the first frame after a reconnect.
    Executing { prompt: Option<PromptId>, node: String },
    /// A node told its steps.
    Stepped { prompt: PromptId, node: String, value: f64, max: f64 },
    /// `executing` with a null node: the prompt is over and its history **is** written. The only such frame (PROTOCOL.md 6.4).
    Ended { prompt: PromptId },
    /// `execution_success`, `_error` or `_interrupted`: over, but the history may not be written yet.
    Ending { prompt: PromptId },
    /// A preview picture. Without node and prompt when the server did not take our feature flags.
    Preview { prompt: Option<PromptId>, node: Option<String>, content_type: &'static str, image: Bytes },
    /// A type we do not use, or that a custom node invented.
    Other,
}

/// What a look at the server's queue and history says about a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Sighting {
    /// In the server's queue, or running.
    Alive {
        /// The id the server goes by; not ours on builds that ignore a client's id.
        prompt: PromptId,
        /// It left the queue and runs.
        running: bool,
    },
    /// Over, with its history.
    Ended(Finished),
    /// Neither in the queue nor, looked at afterwards, in the history.
    Absent,
}

/// A prompt's end as the server's history (or `/api/jobs`) tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The id the server goes by.
    pub prompt: PromptId,
    /// How it ended.
    pub outcome: Outcome,
    /// Every file it names, in the order of node and index.
    pub files: Vec<NodeFile>,
}

/// How a prompt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All nodes that could run did.
    Success,
    /// A node raised an error.
    Failed(TaskError),
    /// Somebody interrupted it: we, or another user of the server.
    Interrupted,
}

/// A file a node reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFile {
    /// The node, by the id the user knows (a subgraph's inner nodes are mapped to the outer one).
    pub node_id: String,
    /// The file.
    pub file: FileRef,
}

impl Finished {
    /// The artifacts to store. What the server names unsafely is an error, never skipped: a task is not completed with less
    /// than it made.
    ///
    /// # Errors
    /// `no_outputs` when there is no file at all, `output_missing` when a name could leave the server's folders.
    pub fn artifacts(&self) -> Result<Vec<Artifact>, TaskError> {
        if self.files.is_empty() {
            return Err(TaskError::new(
                ErrorCode::NoOutputs,
                "the run succeeded but reported no file: add a node that saves its result (SaveImage, SaveVideo ...)",
            ));
        }
        let mut artifacts = Vec::with_capacity(self.files.len());
        for (index, NodeFile { node_id, file }) in (0_u32..).zip(&self.files) {
            if !file.is_safe() {
                let mut error = TaskError::new(
                    ErrorCode::OutputMissing,
                    format!("node {node_id} reported an output file with an unsafe name; it was not fetched"),
                );
                error.retryable = false;
                error.node_id = Some(node_id.clone());
                return Err(error);
            }
            artifacts.push(Artifact {
                index,
                node_id: node_id.clone(),
                kind: file.media().0,
                source: file.clone(),
                object: None,
            });
        }
        Ok(artifacts)
    }
}

/// The answer to a submitted prompt (200).
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// The id the server goes by. Compare it with the one sent: old builds ignore ours.
    pub prompt: PromptId,
    /// Faults of outputs that will not run. `None` when all will.
    pub node_errors: Option<Value>,
}

/// What this server can do, found out by asking on every connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// `/api/jobs` is there: one call tells all about a prompt, and cancel is atomic.
    pub jobs: bool,
}
