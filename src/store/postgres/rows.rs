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
use serde::Serialize;
use sqlx::{Decode, Postgres, Row, Type, postgres::PgRow};
use uuid::Uuid;

use crate::store::columns::{Columns, corrupt};

/// The artifacts of `t` in one column, as JSON of `Vec<Artifact>`: part of the same statement, so of the same moment, as the row.
macro_rules! artifacts_column {
    () => {
        "(SELECT '[' || string_agg(o.artifact, ',' ORDER BY o.idx) || ']' FROM task_outputs o WHERE o.task_id = t.id) AS artifacts"
    };
}

/// What it takes to run a task: the task `t`, its payload `p`, its artifacts.
macro_rules! assignment_columns {
    () => {
        concat!(task_columns!(), ", p.graph, p.options, ", artifacts_column!())
    };
}

impl Columns for PgRow {
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
        get::<Uuid>(self, column).map(TaskId)
    }
}

/// Reads a column.
pub(super) fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, column: &str) -> Result<T, StoreError> {
    row.try_get(column).map_err(corrupt)
}

/// Ids as one argument.
pub(super) fn keys(ids: impl IntoIterator<Item = TaskId>) -> Vec<Uuid> {
    ids.into_iter().map(|id| id.0).collect()
}

/// Rows as one argument: a JSON array.
pub(super) fn json(rows: &(impl Serialize + ?Sized)) -> Result<String, StoreError> {
    serde_json::to_string(rows).map(without_nul).map_err(corrupt)
}

/// A text as the database takes it: the one character it cannot keep becomes the one that says so.
pub(super) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The same inside JSON, where it is written `\u0000`.
fn without_nul(json: String) -> String {
    const NUL: &str = "\\u0000";
    if !json.contains(NUL) {
        return json;
    }
    let mut clean = String::with_capacity(json.len());
    let mut rest = json.as_str();
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        clean.push_str(before);
        // An escaped backslash is passed as a whole: what follows it is no escape.
        let (kept, length) =
            if escape.starts_with(NUL) { ("\\ufffd", NUL.len()) } else { (escape.get(..2).unwrap_or(escape), 2) };
        clean.push_str(kept);
        rest = escape.get(length..).unwrap_or_default();
    }
    clean.push_str(rest);
    clean
}

/// A row of `tasks`, by the names of its columns. Those that never change are written once and not looked at afterwards.
#[derive(Debug, Serialize)]
pub(super) struct TaskRow {
    id: TaskId,
    tenant: i64,
    lane: i64,
    workflow: Option<String>,
    priority: i64,
    sort_key: i64,
    queued_at: i64,
    state: &'static str,
    generation: i32,
    uploads_only: bool,
    fence: i64,
    dispatch: i64,
    attempt: i32,
    max_attempts: i32,
    poison: i32,
    ooms: i32,
    timeout_ms: Option<i64>,
    worker: Option<String>,
    lease_until: Option<i64>,
    prompt_id: Option<String>,
    backend: Option<String>,
    client: Option<String>,
    accepted: bool,
    run_at: Option<i64>,
    cancel_requested_at: Option<i64>,
    created_at: i64,
    started_at: Option<i64>,
    executing_at: Option<i64>,
    uploading_at: Option<i64>,
    finished_at: Option<i64>,
    error: Option<String>,
    class: Option<&'static str>,
    hook_endpoint: Option<i64>,
    hook_events: i64,
}

impl TaskRow {
    pub(super) fn of(task: &Task) -> Result<Self, StoreError> {
        let (lease, prompt, error) = (task.lease.as_ref(), task.prompt.as_ref(), task.error.as_ref());
        Ok(Self {
            id: task.id,
            tenant: task.tenant,
            lane: task.lane,
            workflow: task.workflow.clone(),
            priority: task.priority.level(),
            sort_key: task.sort_key,
            queued_at: task.queued_at.0,
            state: task.state.as_str(),
            generation: task.generation,
            uploads_only: task.uploads_only,
            fence: task.fence.0,
            dispatch: task.dispatch,
            attempt: task.attempt,
            max_attempts: task.max_attempts,
            poison: task.poison,
            ooms: task.ooms,
            timeout_ms: task.timeout.map(millis),
            worker: lease.map(|lease| lease.worker.as_str().to_owned()),
            lease_until: lease.map(|lease| lease.until.0),
            prompt_id: prompt.map(|prompt| prompt.id.as_str().to_owned()),
            backend: prompt.map(|prompt| prompt.backend.as_str().to_owned()),
            client: prompt.and_then(|prompt| prompt.client.as_ref()).map(|client| client.as_str().to_owned()),
            accepted: prompt.is_some_and(|prompt| prompt.accepted),
            run_at: task.run_at.map(|at| at.0),
            cancel_requested_at: task.cancel_requested_at.map(|at| at.0),
            created_at: task.created_at.0,
            started_at: task.started_at.map(|at| at.0),
            executing_at: task.executing_at.map(|at| at.0),
            uploading_at: task.uploading_at.map(|at| at.0),
            finished_at: task.finished_at.map(|at| at.0),
            error: error.map(json).transpose()?,
            class: error.map(|error| error.class.as_str()),
            hook_endpoint: task.hook.map(|hook| hook.endpoint.0),
            hook_events: task.hook.map_or(0, |hook| hook.events.bits()),
        })
    }
}

/// A row of `lanes`.
#[derive(Debug, Serialize)]
pub(super) struct LaneRow {
    pub(super) id: i64,
    needs: String,
}

impl LaneRow {
    /// What a lane stands for, for those who only know its id. Lane 0 has its row already.
    pub(super) fn of(lane: &Lane) -> Result<Option<Self>, StoreError> {
        if lane.id == ANYBODY {
            return Ok(None);
        }
        let needs = json(&*lane.needs)?;
        Ok(Some(Self { id: lane.id, needs }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_character_that_cannot_be_kept_is_replaced_and_nothing_else() {
        let odd = ["a\0b", "\\u0000", "\\\0", "é\u{1}\"\\", ""];
        let kept: Vec<String> = serde_json::from_str(&json(&odd).unwrap()).unwrap();
        assert_eq!(kept, ["a\u{fffd}b", "\\u0000", "\\\u{fffd}", "é\u{1}\"\\", ""]);
        // JSON in JSON keeps the escape, which is only letters to the database.
        let nested = json(&[serde_json::to_string("\0").unwrap()]).unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&nested).unwrap(), ["\"\\u0000\""]);
        assert_eq!(text("a\0"), "a\u{fffd}");
    }
}
