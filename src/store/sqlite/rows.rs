//! Tasks to rows, and the columns they are read from.

use comfyd_actors::{
    domain::{
        id::TaskId,
        lane::{ANYBODY, Lane},
        task::Task,
        time::millis,
    },
    ports::store::StoreError,
};
use sqlx::{Decode, Row, Sqlite, Type, sqlite::SqliteRow};
use uuid::Uuid;

use super::statement::{Statement, query};
use crate::store::columns::Columns;
pub(super) use crate::store::columns::{assignment, corrupt, input, task};

/// The artifact `o` as JSON of `Artifact`.
macro_rules! artifact_json {
    () => {
        "json_object(
             'index', o.idx, 'node_id', o.node_id, 'kind', o.kind,
             'source', json_object('filename', o.filename, 'subfolder', o.subfolder, 'type', o.folder_type, 'text', o.text),
             'object', json(CASE WHEN o.object_key IS NOT NULL THEN json_object(
                 'target', coalesce(o.target, 'local'), 'key', o.object_key, 'content_type', o.content_type, 'bytes', o.bytes, 'sha256', o.sha256,
                 'facts', json(coalesce(o.facts, '{}'))) END)
          )"
    };
}

/// The artifacts of `t` in one column, as JSON of `Vec<Artifact>`: part of the same statement, so of the same moment, as the row.
macro_rules! artifacts_column {
    () => {
        concat!(
            "(SELECT json_group_array(",
            artifact_json!(),
            " ORDER BY o.idx) FROM task_outputs o WHERE o.task_id = t.id) AS artifacts"
        )
    };
}

/// What [`assignment`] reads: the task `t`, its payload `p`, its artifacts.
macro_rules! assignment_columns {
    () => {
        concat!(task_columns!(), ", p.graph, p.options, ", artifacts_column!())
    };
}

/// The columns that change in a task's life, in the order in which [`save`] binds them.
const SAVE: &str = "UPDATE tasks SET lane = ?, priority = ?, sort_key = ?, queued_at = ?, state = ?, generation = ?, uploads_only = ?, fence = ?, dispatch = ?, attempt = ?, poison = ?, ooms = ?, worker = ?, lease_until = ?,
     prompt_id = ?, backend = ?, client = ?, accepted = ?, run_at = ?, cancel_requested_at = ?, started_at = ?, executing_at = ?,
     uploading_at = ?, finished_at = ?, error = ? WHERE id = ?";

const NEW_LANE: &str = "INSERT OR IGNORE INTO lanes (id, needs) VALUES (?, ?)";

/// Saves what changes in a task's life.
pub(super) fn save(task: &Task) -> Result<Statement, StoreError> {
    let error = task.error.as_ref().map(serde_json::to_string).transpose().map_err(corrupt)?;
    let lease = task.lease.as_ref();
    let prompt = task.prompt.as_ref();
    Ok(query(SAVE)
        .bind(task.lane)
        .bind(task.priority.level())
        .bind(task.sort_key)
        .bind(task.queued_at.0)
        .bind(task.state.as_str())
        .bind(task.generation)
        .bind(task.uploads_only)
        .bind(task.fence.0)
        .bind(task.dispatch)
        .bind(task.attempt)
        .bind(task.poison)
        .bind(task.ooms)
        .bind(lease.map(|lease| lease.worker.as_str().to_owned()))
        .bind(lease.map(|lease| lease.until.0))
        .bind(prompt.map(|prompt| prompt.id.as_str().to_owned()))
        .bind(prompt.map(|prompt| prompt.backend.as_str().to_owned()))
        .bind(prompt.and_then(|prompt| prompt.client.as_ref()).map(|client| client.as_str().to_owned()))
        .bind(prompt.is_some_and(|prompt| prompt.accepted))
        .bind(task.run_at.map(|at| at.0))
        .bind(task.cancel_requested_at.map(|at| at.0))
        .bind(task.started_at.map(|at| at.0))
        .bind(task.executing_at.map(|at| at.0))
        .bind(task.uploading_at.map(|at| at.0))
        .bind(task.finished_at.map(|at| at.0))
        .bind(error)
        .bind(key(task.id)))
}

/// Binds the row of a new task, without the columns that are empty at first.
pub(super) fn bind_new(insert: Statement, task: &Task) -> Statement {
    insert
        .bind(key(task.id))
        .bind(task.tenant)
        .bind(task.lane)
        .bind(task.workflow.clone())
        .bind(task.priority.level())
        .bind(task.sort_key)
        .bind(task.queued_at.0)
        .bind(task.state.as_str())
        .bind(task.generation)
        .bind(task.fence.0)
        .bind(task.dispatch)
        .bind(task.attempt)
        .bind(task.max_attempts)
        .bind(task.poison)
        .bind(task.timeout.map(millis))
        .bind(task.run_at.map(|at| at.0))
        .bind(task.created_at.0)
        .bind(task.hook.map(|hook| hook.endpoint.0))
        .bind(task.hook.map_or(0, |hook| hook.events.bits()))
}

/// What a lane stands for, for those who only know its id. Lane 0 needs nothing and has no row.
pub(super) fn insert_lane(lane: &Lane) -> Result<Option<Statement>, StoreError> {
    if lane.id == ANYBODY {
        return Ok(None);
    }
    let needs = serde_json::to_string(&*lane.needs).map_err(corrupt)?;
    Ok(Some(query(NEW_LANE).bind(lane.id).bind(needs)))
}

/// An id as it is stored.
pub(super) fn key(id: TaskId) -> Vec<u8> {
    id.0.as_bytes().to_vec()
}

/// Ids as one argument: a JSON array of hexadecimal text, to be read with `unhex(value) FROM json_each(?)`.
pub(super) fn keys(ids: impl Iterator<Item = TaskId>) -> String {
    let quoted: Vec<String> = ids.map(|id| format!("\"{}\"", id.0.simple())).collect();
    format!("[{}]", quoted.join(","))
}

/// Reads a column.
pub(super) fn get<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, column: &str) -> Result<T, StoreError> {
    row.try_get(column).map_err(corrupt)
}

/// Reads `column` as an id.
pub(super) fn id(row: &SqliteRow, column: &str) -> Result<TaskId, StoreError> {
    row.task_id(column)
}

impl Columns for SqliteRow {
    fn number(&self, column: &str) -> Result<Option<i64>, StoreError> {
        get(self, column)
    }

    fn words(&self, column: &str) -> Result<Option<&str>, StoreError> {
        get(self, column)
    }

    fn flag(&self, column: &str) -> Result<bool, StoreError> {
        get(self, column)
    }

    fn task_id(&self, column: &str) -> Result<TaskId, StoreError> {
        Uuid::from_slice(get(self, column)?).map(TaskId).map_err(corrupt)
    }
}
