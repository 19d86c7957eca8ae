//! What a client wants done differently for one task. Stored with its payload as JSON; a field that is missing there has its default, so
//! rows of older versions stay readable.

use serde::{Deserialize, Serialize};

/// The options of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskOptions {
    /// A graph that the server takes only in part is run in part, instead of failing the task.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_partial: bool,
    /// The version of the named workflow it was made from. Not asked for but found: the newest, unless the client named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_version: Option<u32>,
}
