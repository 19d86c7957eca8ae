//! Why a task did not do what was asked, and whether trying again is worth it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// The ComfyUI server could not be used: it answered with errors.
    BackendError,
    /// The run was interrupted on the server by somebody else.
    Interrupted,
    /// The task's own time limit passed.
    Timeout,
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
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::Poison => "poison",
            Self::OutputMissing => "output_missing",
            Self::UploadFailed => "upload_failed",
            Self::ConversionFailed => "conversion_failed",
            Self::InputMissing => "input_missing",
            Self::InputRefused => "input_refused",
            Self::NoOutputs => "no_outputs",
        }
    }

    /// Whether another attempt can end differently.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::InvalidPrompt
            | Self::PartiallyAccepted
            | Self::NoOutputs
            | Self::ConversionFailed
            | Self::Timeout
            | Self::Poison
            | Self::InputMissing
            | Self::InputRefused => false,
            Self::NodeFailed
            | Self::OutOfMemory
            | Self::BackendError
            | Self::Interrupted
            | Self::OutputMissing
            | Self::UploadFailed => true,
        }
    }
}

/// The error of a task, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// What happened, what it means for the task, what to do.
    pub message: String,
    /// The node at fault, by its id in the graph.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    /// That node's class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_type: Option<String>,
    /// Whether another attempt is worth it. False for a node error that lies in the graph itself.
    pub retryable: bool,
    /// ComfyUI's own list of faults per node, for refused graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_errors: Option<Value>,
}

impl TaskError {
    /// An error that is about no particular node.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            node_id: None,
            class_type: None,
            retryable: code.is_retryable(),
            node_errors: None,
        }
    }

    /// An exception a node raised, classified by its Python type and text. A programming error in the node or a bad value
    /// raises the same again, so it is not retried; anything else may be a passing fault of the machine.
    #[must_use]
    pub fn from_exception(
        exception_type: &str,
        message: &str,
        node_id: Option<String>,
        class_type: Option<String>,
    ) -> Self {
        let code =
            if is_out_of_memory(exception_type, message) { ErrorCode::OutOfMemory } else { ErrorCode::NodeFailed };
        let short_type = exception_type.rsplit('.').next().unwrap_or(exception_type);
        Self {
            message: format!("{short_type}: {}", message.trim()),
            node_id,
            class_type,
            retryable: code == ErrorCode::OutOfMemory || !LIES_IN_THE_GRAPH.contains(&short_type),
            ..Self::new(code, "")
        }
    }
}

/// Python exceptions that say the input or the node is wrong, not the machine.
const LIES_IN_THE_GRAPH: &[&str] = &[
    "ValueError",
    "TypeError",
    "KeyError",
    "IndexError",
    "AttributeError",
    "AssertionError",
    "NotImplementedError",
    "ZeroDivisionError",
    "FileNotFoundError",
    "ModuleNotFoundError",
    "ImportError",
    "UnidentifiedImageError",
    "SafetensorError",
    "JSONDecodeError",
    "UnicodeDecodeError",
    "RecursionError",
];

fn is_out_of_memory(exception_type: &str, message: &str) -> bool {
    exception_type.ends_with("OutOfMemoryError")
        || exception_type.ends_with("MemoryError")
        || message.contains("out of memory")
        || message.contains("Allocation on device")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_classified() {
        for (kind, text, code, retryable) in [
            ("ValueError", "boom", ErrorCode::NodeFailed, false),
            ("RuntimeError", "boom", ErrorCode::NodeFailed, true),
            ("RuntimeError", "CUDA out of memory. Tried", ErrorCode::OutOfMemory, true),
            ("torch.OutOfMemoryError", "Allocation on device", ErrorCode::OutOfMemory, true),
            ("MemoryError", "", ErrorCode::OutOfMemory, true),
            ("PIL.UnidentifiedImageError", "cannot identify", ErrorCode::NodeFailed, false),
            ("", "", ErrorCode::NodeFailed, true),
        ] {
            let error = TaskError::from_exception(kind, text, None, None);
            assert_eq!((error.code, error.retryable), (code, retryable), "{kind}: {text}");
        }
    }
}
