//! What kind of thing went wrong, and what is done about it. Two pure functions decide: [`classify`] reads what a server says, [`Class::next`]
//! names what follows.

use serde::{Deserialize, Serialize};

use super::error::ErrorCode;

/// How a failure is treated: a stable word in the API. What it is exactly, the [code](ErrorCode) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The graph or its files were refused before anything ran. The same is refused again.
    Validation,
    /// It ran and cannot end otherwise: a fault in the graph or in a node, an output nobody can store.
    Permanent,
    /// A passing fault of a server, of the storage or of the way there.
    Transient,
    /// The device or the host ran out of memory.
    OutOfMemory,
    /// The server is broken, not the task: its device answers with errors and does not heal without a restart.
    BackendFault,
    /// Servers broke one after the other while they ran it: it is taken for the cause.
    Poison,
    /// It took longer than it may.
    Timeout,
    /// It ran, and the storage did not take its files. Nothing has to run again for them.
    Storage,
}

/// What follows a failure: a stable word in the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// Nothing, until somebody asks for it again.
    #[default]
    Nothing,
    /// Another attempt after a pause.
    Retry,
    /// Another attempt on a server whose memory was freed for it, with nothing else beside it.
    RetryAlone,
    /// The same, on a server with more memory or, when there is none, on another.
    RetryElsewhere,
    /// It goes to another server at once, at no cost to its attempts.
    Elsewhere,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 8] = [
        Self::Validation,
        Self::Permanent,
        Self::Transient,
        Self::OutOfMemory,
        Self::BackendFault,
        Self::Poison,
        Self::Timeout,
        Self::Storage,
    ];

    /// The word, in the API and in databases.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Permanent => "permanent",
            Self::Transient => "transient",
            Self::OutOfMemory => "out_of_memory",
            Self::BackendFault => "backend_fault",
            Self::Poison => "poison",
            Self::Timeout => "timeout",
            Self::Storage => "storage",
        }
    }

    /// The class a word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == word)
    }

    /// What is done about it while attempts are left; `ooms` times before this generation of the task ran out of memory.
    #[must_use]
    pub fn next(self, ooms: i32) -> Next {
        match self {
            Self::Validation | Self::Permanent | Self::Poison | Self::Timeout | Self::Storage => Next::Nothing,
            Self::Transient => Next::Retry,
            Self::OutOfMemory => match ooms {
                ..=0 => Next::RetryAlone,
                1 => Next::RetryElsewhere,
                2.. => Next::Nothing,
            },
            Self::BackendFault => Next::Elsewhere,
        }
    }

    /// Whether another attempt can end differently.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self.next(0) != Next::Nothing
    }

    /// What it means and what to do, once nothing follows by itself.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Validation => "The same request is refused each time: correct it and create a new task",
            Self::Permanent => "It would end the same again: change the graph or its inputs and create a new task",
            Self::Transient => "Every attempt failed: when the cause is gone, retry the task",
            Self::OutOfMemory => {
                "It does not fit, not even alone on a freed server: make it smaller (size, batch, length), or add a server with more \
                 memory and retry the task"
            }
            Self::BackendFault => "No server could run it: look into their logs, then retry the task",
            Self::Poison => {
                "Servers broke while they ran it, so it is kept away from them: run its graph by hand and watch the server's log and \
                 memory before you retry it"
            }
            Self::Storage => {
                "Mend the storage, then retry the task with `{\"only\": \"uploads\"}`: nothing has to run again"
            }
            Self::Timeout => "Create it with a longer `timeout`, or make it smaller",
        }
    }
}

impl Next {
    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Retry => "retry",
            Self::RetryAlone => "retry_alone",
            Self::RetryElsewhere => "retry_elsewhere",
            Self::Elsewhere => "elsewhere",
        }
    }

    /// The same for people; nothing of nothing.
    #[must_use]
    pub fn promise(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Retry => "It is tried again after a pause",
            Self::RetryAlone => "It is tried again alone, on a server whose memory is freed first",
            Self::RetryElsewhere => {
                "It is tried again alone on a server with more memory, or on another one when there is none, whose memory is freed first"
            }
            Self::Elsewhere => "It goes to another server as soon as one is free; none of its attempts is spent",
        }
    }
}

/// The one place where what a node raised becomes a code and a class: by its Python type and its text.
///
/// The text is in the client's hands, in part: a node can be made to raise a `ValueError` that says whatever one likes. So an exception
/// that speaks of the input is never taken for a broken server.
#[must_use]
pub fn classify(exception_type: &str, message: &str) -> (ErrorCode, Class) {
    let short_type = exception_type.rsplit('.').next().unwrap_or(exception_type);
    let speaks_of_input = LIES_IN_THE_GRAPH.contains(&short_type);
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| message.contains(phrase));
    if short_type.ends_with("OutOfMemoryError") || short_type.ends_with("MemoryError") {
        (ErrorCode::OutOfMemory, Class::OutOfMemory)
    } else if speaks_of_input {
        (ErrorCode::NodeFailed, Class::Permanent)
    } else if says(OUT_OF_MEMORY) {
        (ErrorCode::OutOfMemory, Class::OutOfMemory)
    } else if DEVICE_TYPES.contains(&short_type) || says(DEVICE_FAULTS) {
        (ErrorCode::BackendFault, Class::BackendFault)
    } else {
        (ErrorCode::NodeFailed, Class::Transient)
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

/// What drivers and libraries say when there is no memory left, whatever the exception is called.
const OUT_OF_MEMORY: &[&str] = &[
    "out of memory",
    "Allocation on device",
    "not enough memory",
    "Cannot allocate memory",
    "ERROR_OUT_OF_MEMORY",
    "ErrorMemoryAllocation",
    "ErrorOutOfMemory",
    // cuBLAS could not get the memory for its handle.
    "CUBLAS_STATUS_ALLOC_FAILED",
];

/// Exceptions that only a device raises.
const DEVICE_TYPES: &[&str] = &["AcceleratorError"];

/// What a device says that will not work again in the process that heard it.
const DEVICE_FAULTS: &[&str] = &[
    "CUDA error",
    "CUDA driver error",
    "HIP error",
    "illegal memory access",
    "device-side assert",
    "misaligned address",
    "unspecified launch failure",
    "CUBLAS_STATUS_",
    "CUDNN_STATUS_",
    "cuDNN error",
    "no CUDA-capable device",
    "busy or unavailable",
    "device is lost",
    "UR_RESULT_ERROR_DEVICE_LOST",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_raised_is_classified() {
        use Class::{BackendFault, OutOfMemory, Permanent, Transient};
        for (kind, text, code, class) in [
            ("ValueError", "boom", ErrorCode::NodeFailed, Permanent),
            ("PIL.UnidentifiedImageError", "cannot identify", ErrorCode::NodeFailed, Permanent),
            ("RuntimeError", "boom", ErrorCode::NodeFailed, Transient),
            ("", "", ErrorCode::NodeFailed, Transient),
            ("torch.OutOfMemoryError", "Allocation on device", ErrorCode::OutOfMemory, OutOfMemory),
            ("MemoryError", "", ErrorCode::OutOfMemory, OutOfMemory),
            ("numpy.core._exceptions._ArrayMemoryError", "Unable to allocate", ErrorCode::OutOfMemory, OutOfMemory),
            ("RuntimeError", "CUDA out of memory. Tried", ErrorCode::OutOfMemory, OutOfMemory),
            ("RuntimeError", "CUDA error: out of memory", ErrorCode::OutOfMemory, OutOfMemory),
            ("torch.AcceleratorError", "CUDA error: out of memory", ErrorCode::OutOfMemory, OutOfMemory),
            (
                "RuntimeError",
                "[enforce fail] DefaultCPUAllocator: not enough memory: you tried",
                ErrorCode::OutOfMemory,
                OutOfMemory,
            ),
            (
                "RuntimeError",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                ErrorCode::OutOfMemory,
                OutOfMemory,
            ),
            (
                "RuntimeError",
                "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be",
                ErrorCode::BackendFault,
                BackendFault,
            ),
            ("torch.AcceleratorError", "device-side assert triggered", ErrorCode::BackendFault, BackendFault),
            ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", ErrorCode::BackendFault, BackendFault),
            (
                "RuntimeError",
                "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
                ErrorCode::BackendFault,
                BackendFault,
            ),
            ("RuntimeError", "HIP error: unspecified launch failure", ErrorCode::BackendFault, BackendFault),
            // A client's words do not break a server.
            ("ValueError", "no such thing as CUDA error: illegal memory access", ErrorCode::NodeFailed, Permanent),
            ("KeyError", "out of memory", ErrorCode::NodeFailed, Permanent),
        ] {
            assert_eq!(classify(kind, text), (code, class), "{kind}: {text}");
        }
    }

    #[test]
    fn a_task_that_does_not_fit_is_tried_alone_then_elsewhere_then_no_more() {
        let steps = [0, 1, 2, 3].map(|ooms| Class::OutOfMemory.next(ooms));
        assert_eq!(steps, [Next::RetryAlone, Next::RetryElsewhere, Next::Nothing, Next::Nothing]);
        for class in Class::ALL.into_iter().filter(|class| *class != Class::OutOfMemory) {
            assert_eq!(class.next(0), class.next(9), "{class:?}");
        }
    }

    #[test]
    fn every_word_is_read_back() {
        for class in Class::ALL {
            assert_eq!(Class::parse(class.as_str()), Some(class));
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        for next in [Next::Nothing, Next::Retry, Next::RetryAlone, Next::RetryElsewhere, Next::Elsewhere] {
            assert_eq!(serde_json::to_value(next).unwrap(), next.as_str());
        }
    }
}
