//! The files a flight's graph needs: they go to the server before its prompt does.
//!
//! Until they are there nothing was sent, so whatever happens meanwhile (a cancellation, a recall, a lost connection) ends the flight at
//! once and costs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use crate::{
    domain::{
        error::{ErrorCode, TaskError},
        input::{InputId, Place, Source},
        options::TaskOptions,
        time::Timestamp,
    },
    system::UploadSettings,
};

/// How far they are.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Files {
    /// The graph needs none.
    None,
    /// Not on their way.
    Wanted { failures: u32, failing_since: Option<Timestamp> },
    /// On their way.
    UnderWay { failures: u32, failing_since: Option<Timestamp> },
    /// On the server.
    There(Prepared),
}

/// A graph whose files are on the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The graph with the server's names in it, JSON text.
    pub graph: Arc<str>,
    /// The names of files that were handed over for it just now.
    pub names: BTreeMap<InputId, String>,
    /// Nodes that use files which were handed over earlier, and may be gone.
    pub reusing: BTreeSet<String>,
}

/// Why a file is not on the server, with a field that wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Unprepared {
    /// Where the graph wants it.
    pub place: Place,
    /// What is wrong.
    pub trouble: Trouble,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// It is not stored any more.
    Missing,
    /// The server does not take it.
    Refused(String),
    /// The server cannot be handed anything now.
    Server(String),
    /// Storage, or the store, cannot be read now.
    Storage(String),
    /// It cannot be fetched from where it was said to be. In whole words.
    NotThere(String),
    /// It cannot be fetched now, and not before the pause is over. In whole words.
    NotNow { why: String, pause: Duration },
}

/// What follows from a failure.
pub(super) enum Next {
    /// Try again after this.
    Again(Duration),
    /// The task has failed.
    Failed(TaskError),
}

impl Files {
    pub(super) fn of(options: &TaskOptions) -> Self {
        let none = options.files.is_empty() && options.urls.is_empty();
        if none { Self::None } else { Self::Wanted { failures: 0, failing_since: None } }
    }

    pub(super) fn begin(&mut self) {
        if let Self::Wanted { failures, failing_since } = *self {
            *self = Self::UnderWay { failures, failing_since };
        }
    }

    /// What was under way ended without a word.
    pub(super) fn interrupt(&mut self) {
        if let Self::UnderWay { failures, failing_since } = *self {
            *self = Self::Wanted { failures, failing_since };
        }
    }

    /// Whether a prompt was refused over a file that was handed over earlier: such a refusal says nothing about the task, as the server may
    /// have lost the file since.
    pub(super) fn may_be_gone(&self, node_errors: Option<&Value>) -> bool {
        let blamed = |node: &String| node_errors.is_some_and(|errors| errors.get(node).is_some());
        matches!(self, Self::There(prepared) if prepared.reusing.iter().any(blamed))
    }

    pub(super) fn fail(
        &mut self,
        unprepared: Unprepared,
        now: Timestamp,
        settings: &UploadSettings,
        draw: f64,
    ) -> Next {
        let Self::UnderWay { failures, failing_since } = *self else { return Next::Again(Duration::ZERO) };
        let (failures, since) = (failures + 1, failing_since.unwrap_or(now));
        *self = Self::Wanted { failures, failing_since: Some(since) };
        let Unprepared { place: Place { node, field, source }, trouble } = unprepared;
        let failed = |code, message: String| {
            Next::Failed(TaskError { node_id: Some(node.clone()), ..TaskError::new(code, message) })
        };
        match trouble {
            Trouble::Missing => failed(
                ErrorCode::InputMissing,
                match source {
                    Source::Stored(id) => format!(
                        "the file for {node}.{field} ({}) is not stored any more: give it again with POST /api/inputs and create the task again",
                        id.uri()
                    ),
                    Source::Url(_) => {
                        format!("the file fetched for {node}.{field} is not stored any more: retry the task")
                    }
                },
            ),
            Trouble::Refused(why) => failed(
                ErrorCode::InputRefused,
                format!("the ComfyUI server refused the file for {node}.{field}: {why}"),
            ),
            Trouble::NotThere(why) => failed(ErrorCode::InputNotFetched, why),
            // Trying again here would keep the server from others: the task makes room and comes back.
            Trouble::NotNow { why, pause } => {
                let error = TaskError { node_id: Some(node), ..TaskError::new(ErrorCode::HostUnavailable, why) };
                Next::Failed(TaskError { pause_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX), ..error })
            }
            Trouble::Server(why) if failures >= settings.attempts => failed(
                ErrorCode::BackendError,
                format!("the file for {node}.{field} could not be handed to the ComfyUI server: {why}"),
            ),
            Trouble::Storage(why) if now.since(since) >= settings.patience => failed(
                ErrorCode::InputMissing,
                format!(
                    "the file for {node}.{field} could not be read within {}: {why}. Mend the storage, then create the task again",
                    humantime::format_duration(settings.patience)
                ),
            ),
            Trouble::Server(_) | Trouble::Storage(_) => {
                Next::Again(settings.backoff.delay_at_least_half(failures, draw))
            }
        }
    }
}
