//! What a ComfyUI server tells us about one prompt: frames of its WebSocket, entries of its queue and history.

use bytes::Bytes;
use serde_json::Value;

use super::{
    artifact::{Artifact, Kind, Source, StoredObject, media_of},
    error::{ErrorCode, TaskError},
    id::PromptId,
    natural::natural,
    options::OutputOptions,
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
    Cached { prompt: PromptId, nodes: Vec<String> },
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
    /// Every file and text it names, in the order of node and index.
    pub outputs: Vec<NodeOutput>,
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

/// A file or a text that a node reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOutput {
    /// The node, by the id the user knows (a subgraph's inner nodes are mapped to the outer one).
    pub node_id: String,
    /// Where its bytes are.
    pub source: Source,
}

/// A picture that a node sent over the WebSocket, in no history and stored already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The node.
    pub node_id: String,
    /// What we call it.
    pub filename: String,
    /// What became of it.
    pub object: StoredObject,
}

impl Finished {
    /// The artifacts to store, `frames` among them. What the server names unsafely is an error, never skipped: a task is not completed
    /// with less than it made.
    ///
    /// # Errors
    /// `no_outputs` when there is nothing at all, or nothing of the nodes asked for; `output_missing` when a name could leave the
    /// server's folders.
    pub fn artifacts(&self, options: &OutputOptions, frames: &[Frame]) -> Result<Vec<Artifact>, TaskError> {
        let reported = self.outputs.iter().map(|output| (&output.node_id, output.source.clone(), None));
        let sent = frames.iter().map(|frame| {
            (&frame.node_id, Source::Frame { filename: frame.filename.clone() }, Some(frame.object.clone()))
        });
        let mut taken: Vec<_> = reported.chain(sent).filter(|(node_id, ..)| options.takes(node_id)).collect();
        // Stable: what one node reported stays in its order, its frames behind.
        taken.sort_by(|(a, ..), (b, ..)| natural(a, b));
        if taken.is_empty() {
            return Err(self.nothing(options));
        }
        (0_u32..)
            .zip(taken)
            .map(|(index, (node_id, source, object))| artifact(index, node_id, source, object))
            .collect()
    }

    fn nothing(&self, options: &OutputOptions) -> TaskError {
        let message = match &options.nodes {
            Some(nodes) if !self.outputs.is_empty() => format!(
                "the run succeeded, but only other nodes than {} made something; ask for other nodes, or for all",
                nodes.join(", ")
            ),
            _ => "the run succeeded but reported no file and no text: add a node that saves its result (SaveImage, SaveVideo ...)"
                .to_owned(),
        };
        TaskError::new(ErrorCode::NoOutputs, message)
    }
}

fn artifact(index: u32, node_id: &str, source: Source, object: Option<StoredObject>) -> Result<Artifact, TaskError> {
    if matches!(&source, Source::File(file) if !file.is_safe()) {
        let message = format!("node {node_id} reported an output file with an unsafe name; it was not fetched");
        let error = TaskError::new(ErrorCode::OutputMissing, message).permanent();
        return Err(TaskError { node_id: Some(node_id.to_owned()), ..error });
    }
    let kind = if matches!(source, Source::Text { .. }) { Kind::Text } else { media_of(source.filename()).0 };
    Ok(Artifact { index, node_id: node_id.to_owned(), kind, source, object })
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
