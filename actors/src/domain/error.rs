//! Why a task did not do what was asked, and whether trying again is worth it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failure::{Class, Next, classify};

/// The kind of failure: a stable word in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// ComfyUI refused the graph (400): unknown node, missing model, bad value. The same graph is refused again.
    InvalidPrompt,
    /// ComfyUI accepted only some outputs of the graph; the run was taken back.
    PartiallyAccepted,
    /// A node raised an error while running.
    NodeFailed,
    /// The GPU or the host ran out of memory.
    OutOfMemory,
    /// The ComfyUI server could not be used: it answered with errors, or died.
    BackendError,
    /// The device of the ComfyUI server failed.
    BackendFault,
    /// The run was interrupted on the server by somebody else.
    Interrupted,
    /// The task's own time limit passed.
    Timeout,
    /// The run showed no sign of progress and was interrupted.
    Stuck,
    /// Servers died repeatedly while running this task.
    Poison,
    /// The run said success but an output file could not be read from the server.
    OutputMissing,
    /// An output could not be stored.
    UploadFailed,
    /// An output cannot be made into what `output_options` ask for.
    ConversionFailed,
    /// The run succeeded and made nothing that could be stored.
    NoOutputs,
    /// A file the graph refers to is not stored any more.
    InputMissing,
    /// The server did not take a file the graph refers to: it is too large, for one.
    InputRefused,
    /// What a URL leads to is not there, not allowed or not what is wanted.
    InputNotFetched,
    /// The host of a URL did not answer, or not well.
    HostUnavailable,
}

impl ErrorCode {
    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidPrompt => "invalid_prompt",
            Self::PartiallyAccepted => "partially_accepted",
            Self::NodeFailed => "node_failed",
            Self::OutOfMemory => "out_of_memory",
            Self::BackendError => "backend_error",
            Self::BackendFault => "backend_fault",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::Stuck => "stuck",
            Self::Poison => "poison",
            Self::OutputMissing => "output_missing",
            Self::UploadFailed => "upload_failed",
            Self::ConversionFailed => "conversion_failed",
            Self::InputMissing => "input_missing",
            Self::InputRefused => "input_refused",
            Self::InputNotFetched => "input_not_fetched",
            Self::HostUnavailable => "host_unavailable",
            Self::NoOutputs => "no_outputs",
        }
    }

    /// How it is treated, unless more is known of it.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::InvalidPrompt
            | Self::PartiallyAccepted
            | Self::InputMissing
            | Self::InputRefused
            | Self::InputNotFetched => Class::Validation,
            Self::NoOutputs | Self::ConversionFailed => Class::Permanent,
            Self::NodeFailed
            | Self::BackendError
            | Self::Interrupted
            | Self::Stuck
            | Self::OutputMissing
            | Self::HostUnavailable => Class::Transient,
            Self::OutOfMemory => Class::OutOfMemory,
            Self::BackendFault => Class::BackendFault,
            Self::Poison => Class::Poison,
            Self::Timeout => Class::Timeout,
            Self::UploadFailed => Class::Storage,
        }
    }
}

/// The error of a task, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// How it is treated.
    pub class: Class,
    /// What follows. Found by [`Task::apply`](super::task::Task::apply), which knows what the task may still do.
    #[serde(default)]
    pub next: Next,
    /// What happened, what it means for the task, what to do.
    pub message: String,
    /// The node at fault, by its id in the graph.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// That node's class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_type: Option<String>,
    /// ComfyUI's own list of faults per node, for refused graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_errors: Option<Value>,
    /// Another attempt is of no use before so many milliseconds have passed: whoever was asked said so. Only on the way to what follows, and
    /// not kept.
    #[serde(skip)]
    pub pause_ms: u32,
}

impl TaskError {
    /// An error that is about no particular node.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            class: code.class(),
            next: Next::Nothing,
            message: message.into(),
            node_id: None,
            class_type: None,
            node_errors: None,
            pause_ms: 0,
        }
    }

    /// The same, but known to end alike each time.
    #[must_use]
    pub fn permanent(self) -> Self {
        Self { class: Class::Permanent, ..self }
    }

    /// An exception a node raised.
    #[must_use]
    pub fn from_exception(
        exception_type: &str,
        message: &str,
        node_id: Option<String>,
        class_type: Option<String>,
    ) -> Self {
        let (code, class) = classify(exception_type, message);
        let short_type = exception_type.rsplit('.').next().unwrap_or(exception_type);
        let message = format!("{short_type}: {}", message.trim());
        Self { class, node_id, class_type, ..Self::new(code, message) }
    }

    /// Whether another attempt can end differently.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.class.is_retryable()
    }
}
