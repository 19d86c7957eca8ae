//! Tasks, messages and the indexes over them. Rows are JSON; what cannot be understood is `Corrupt`, never a panic.
//!
//! Which indexes a row is in follows from the row alone ([`Row::indexes`], [`Row::counted`]), so a save writes the difference between
//! what was and what is, and an index can never disagree with its rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use comfyd_actors::{
    domain::{
        event::Fact,
        id::TaskId,
        input::{About, Input, InputId},
        lane::ANYBODY,
        progress::NodeTiming,
        task::{Task, TaskState},
        tenant::NOBODY,
        time::Timestamp,
        webhook::{Delivery, DeliveryState},
    },
    ports::store::StoreError,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::keys::{Keys, member};

/// A task and what is kept of it beside its payload. A field that is added later needs a default: rows of before have none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) task: Task,
    /// The files it needs until it is over.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) files: BTreeSet<InputId>,
    /// The idempotency key it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<String>,
}

impl Row {
    /// The sorted sets it is in.
    pub(super) fn indexes(&self, keys: &Keys) -> BTreeSet<(String, Vec<u8>)> {
        let task = &self.task;
        let mut indexes = BTreeSet::new();
        let mut add = |key: String, number: i64| indexes.insert((key, member(number, task.id)));
        add(keys.all(), task.created_at.0);
        add(keys.of_state(task.state), task.created_at.0);
        if let Some(workflow) = &task.workflow {
            add(keys.of_workflow(workflow), task.created_at.0);
        }
        if task.state == TaskState::Pending {
            add(keys.queue(task.lane), task.sort_key);
            add(keys.depth(task.priority), task.queued_at.0);
        }
        if let Some(at) = task.run_at {
            add(keys.scheduled(), at.0);
        }
        if let Some(lease) = &task.lease {
            add(keys.leases(), lease.until.0);
        }
        if let Some(at) = task.finished_at {
            add(keys.finished(task.state), at.0);
            if let Some(error) = task.error.as_ref().filter(|_| task.state == TaskState::Failed) {
                add(keys.failed(error.class), at.0);
            }
        }
        indexes
    }

    /// The hashes it is counted in, and under which field.
    pub(super) fn counted(&self, keys: &Keys) -> BTreeSet<(String, String)> {
        let task = &self.task;
        let mut counted = BTreeSet::new();
        if task.lane != ANYBODY {
            counted.insert((keys.lane_tasks(), task.lane.to_string()));
        }
        if let Some(hook) = task.hook {
            counted.insert((keys.endpoint_tasks(), hook.endpoint.0.to_string()));
        }
        if task.lane != ANYBODY && matches!(task.state, TaskState::Pending | TaskState::Scheduled) {
            counted.insert((keys.lane_waiting(), task.lane.to_string()));
        }
        if task.tenant != NOBODY && task.state.is_held() {
            counted.insert((keys.tenant_running(), task.tenant.to_string()));
        }
        if !task.state.is_final() {
            counted.extend(self.files.iter().map(|file| (keys.input_needs(), file.to_string())));
            if task.lane != ANYBODY {
                counted.insert((keys.lane_unfinished(), task.lane.to_string()));
            }
        }
        counted
    }
}

/// An event without its number.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EventRow {
    pub(super) task: TaskId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) workflow: Option<String>,
    pub(super) at: Timestamp,
    pub(super) fact: Fact,
}

/// An idempotency key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RequestRow {
    /// Hexadecimal.
    pub(super) body_sha256: String,
    pub(super) task: TaskId,
    pub(super) created_at: Timestamp,
}

/// A pause.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PauseRow {
    pub(super) since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) move_at: Option<Timestamp>,
}

/// What a run's nodes took.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodesRow {
    pub(super) dispatch: i64,
    pub(super) nodes: Vec<NodeTiming>,
}

/// An object and, once it is whole, what it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct InputRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kept: Option<(InputId, About)>,
    pub(super) expires_at: Timestamp,
}

impl InputRow {
    pub(super) fn input(&self, key: &str) -> Option<Input> {
        let (id, about) = self.kept.clone()?;
        Some(Input { id, key: key.to_owned(), about, expires_at: self.expires_at })
    }
}

/// A name of workflows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct WorkflowRow {
    /// The greatest number given to a version.
    pub(super) last: u32,
    pub(super) published: Option<u32>,
    /// Those that are kept: a hash of the content (hexadecimal) and when it was first seen.
    pub(super) versions: BTreeMap<u32, (String, Timestamp)>,
}

/// A message as it was read, with what it was read from.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) delivery: Delivery,
    /// As it is stored: without its number and its time, which are kept apart.
    pub(super) text: String,
}

impl Message {
    pub(super) fn read(id: i64, text: String, due_at: Option<i64>) -> Result<Self, StoreError> {
        let stored: Delivery = from_json(&text)?;
        Ok(Self { delivery: Delivery { id, due_at: due_at.map(Timestamp), ..stored }, text })
    }
}

/// A message as it is stored.
pub(super) fn message_json(delivery: &Delivery) -> Result<String, StoreError> {
    json(&Delivery { id: 0, due_at: None, ..delivery.clone() })
}

/// The sorted sets a message is in, and its scores there. Scores are times and numbers far below 2^53, which they hold exactly.
pub(super) fn message_indexes(keys: &Keys, delivery: &Delivery) -> BTreeMap<String, i64> {
    let Delivery { id, task, endpoint, state, at, due_at, sending, .. } = delivery;
    let logs =
        [keys.log(), keys.log_of_task(*task), keys.log_of_endpoint(*endpoint), keys.log_of_state(state.as_str())];
    let mut indexes: BTreeMap<String, i64> = logs.into_iter().map(|log| (log, *id)).collect();
    if *state == DeliveryState::Pending {
        indexes.insert(keys.waiting(*task), *id);
        indexes.insert(keys.untold(), at.0);
    }
    if let Some(due_at) = due_at {
        indexes.insert(keys.due_of(*endpoint), due_at.0);
        if *sending {
            indexes.insert(keys.sending(*endpoint), due_at.0);
        }
    }
    indexes
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(corrupt)
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(corrupt)
}

/// What was read makes no sense.
pub(super) fn corrupt(what: impl Display) -> StoreError {
    StoreError::Corrupt(what.to_string())
}
