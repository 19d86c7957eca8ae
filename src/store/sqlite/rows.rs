//! Rows to tasks and back. What cannot be understood is `Corrupt`, never a panic: the file may have been edited or damaged.

use std::{fmt::Display, sync::Arc, time::Duration};

use comfyd_actors::{
    domain::{
        event::{Event, Fact, Stage},
        id::{BackendId, ClientId, PromptId, TaskId, WorkerId},
        input::{About, Input, InputId},
        lane::{ANYBODY, Lane, Needs},
        options::TaskOptions,
        order::Priority,
        task::{Fence, Lease, Prompt, Task, TaskState},
        time::{Timestamp, millis},
    },
    ports::store::{Assignment, StoreError, TaskRecord},
};
use sqlx::{Decode, Row, Sqlite, Type, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    outbox,
    statement::{Statement, query},
};

/// The columns [`task`] reads, of the table called `t`.
macro_rules! task_columns {
    () => {
        "t.id, t.tenant, t.lane, t.workflow, t.priority, t.sort_key, t.queued_at, t.state, t.generation, t.uploads_only, t.fence, \
         t.dispatch, t.attempt, \
         t.max_attempts, t.poison, t.ooms, t.timeout_ms, t.worker, t.lease_until, t.prompt_id, t.backend, t.client, t.accepted, t.run_at, \
         t.cancel_requested_at, t.created_at, t.started_at, t.executing_at, t.uploading_at, t.finished_at, t.error, \
         t.hook_endpoint, t.hook_events"
    };
}

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

/// The columns [`input`] reads.
macro_rules! input_columns {
    () => {
        "object_key, sha256, name, content_type, extension, bytes, expires_at"
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

/// Reads `column` as an id.
pub(super) fn id(row: &SqliteRow, column: &str) -> Result<TaskId, StoreError> {
    Uuid::from_slice(get(row, column)?).map(TaskId).map_err(corrupt)
}

/// Reads a column.
pub(super) fn get<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, column: &str) -> Result<T, StoreError> {
    row.try_get(column).map_err(corrupt)
}

fn time(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    Ok(get::<Option<i64>>(row, column)?.map(Timestamp))
}

/// Reads [`task_columns`].
pub(super) fn task(row: &SqliteRow) -> Result<Task, StoreError> {
    let state: &str = get(row, "state")?;
    let error: Option<&str> = get(row, "error")?;
    let timeout: Option<i64> = get(row, "timeout_ms")?;
    Ok(Task {
        id: id(row, "id")?,
        tenant: get(row, "tenant")?,
        lane: get(row, "lane")?,
        workflow: get(row, "workflow")?,
        priority: priority(row)?,
        sort_key: get(row, "sort_key")?,
        queued_at: Timestamp(get(row, "queued_at")?),
        state: TaskState::parse(state).ok_or_else(|| corrupt(format!("unknown state `{state}`")))?,
        generation: get(row, "generation")?,
        uploads_only: get(row, "uploads_only")?,
        fence: Fence(get(row, "fence")?),
        dispatch: get(row, "dispatch")?,
        attempt: get(row, "attempt")?,
        max_attempts: get(row, "max_attempts")?,
        poison: get(row, "poison")?,
        ooms: get(row, "ooms")?,
        timeout: timeout.map(u64::try_from).transpose().map_err(corrupt)?.map(Duration::from_millis),
        lease: lease(row)?,
        prompt: prompt(row)?,
        run_at: time(row, "run_at")?,
        cancel_requested_at: time(row, "cancel_requested_at")?,
        created_at: Timestamp(get(row, "created_at")?),
        started_at: time(row, "started_at")?,
        executing_at: time(row, "executing_at")?,
        uploading_at: time(row, "uploading_at")?,
        finished_at: time(row, "finished_at")?,
        error: error.map(serde_json::from_str).transpose().map_err(corrupt)?,
        hook: outbox::hook(row)?,
    })
}

/// Reads the priority.
pub(super) fn priority(row: &SqliteRow) -> Result<Priority, StoreError> {
    Priority::new(get(row, "priority")?).ok_or_else(|| corrupt("a priority is out of range"))
}

fn lease(row: &SqliteRow) -> Result<Option<Lease>, StoreError> {
    let worker: Option<&str> = get(row, "worker")?;
    let Some(worker) = worker else { return Ok(None) };
    Ok(Some(Lease { worker: WorkerId::new(worker), until: Timestamp(get(row, "lease_until")?) }))
}

fn prompt(row: &SqliteRow) -> Result<Option<Prompt>, StoreError> {
    let id: Option<&str> = get(row, "prompt_id")?;
    let Some(id) = id else { return Ok(None) };
    Ok(Some(Prompt {
        id: PromptId::new(id),
        backend: BackendId::new(get::<&str>(row, "backend")?),
        client: get::<Option<&str>>(row, "client")?.map(ClientId::new),
        accepted: get(row, "accepted")?,
    }))
}

/// Reads [`assignment_columns`].
pub(super) fn assignment(row: &SqliteRow) -> Result<Assignment, StoreError> {
    let artifacts = serde_json::from_str(get(row, "artifacts")?).map_err(corrupt)?;
    Ok(Assignment { task: task(row)?, graph: text(row, "graph")?, options: options(row)?, artifacts })
}

/// Reads a task with what the API shows of it.
pub(super) fn record(row: &SqliteRow) -> Result<TaskRecord, StoreError> {
    let artifacts = serde_json::from_str(get(row, "artifacts")?).map_err(corrupt)?;
    let nodes: Option<&str> = get(row, "nodes")?;
    Ok(TaskRecord {
        task: task(row)?,
        inputs: text(row, "inputs")?,
        metadata: text(row, "metadata")?,
        options: options(row)?,
        needs: needs(get(row, "needs")?)?,
        artifacts,
        nodes: nodes.map(serde_json::from_str).transpose().map_err(corrupt)?.unwrap_or_default(),
    })
}

/// Reads a row of `lanes`.
pub(super) fn lane(row: &SqliteRow) -> Result<Lane, StoreError> {
    Ok(Lane { id: get(row, "id")?, needs: needs(get(row, "needs")?)? })
}

fn needs(text: Option<&str>) -> Result<Arc<Needs>, StoreError> {
    text.map_or_else(|| Ok(Arc::default()), |text| serde_json::from_str(text).map(Arc::new).map_err(corrupt))
}

/// Reads [`input_columns`].
pub(super) fn input(row: &SqliteRow) -> Result<Input, StoreError> {
    let about = About {
        name: get(row, "name")?,
        content_type: get(row, "content_type")?,
        extension: get(row, "extension")?,
        bytes: u64::try_from(get::<i64>(row, "bytes")?).map_err(corrupt)?,
    };
    let id = InputId::parse(get(row, "sha256")?).ok_or_else(|| corrupt("a hash is not one"))?;
    Ok(Input { id, key: get(row, "object_key")?, about, expires_at: Timestamp(get(row, "expires_at")?) })
}

/// Reads an event and the output it is about.
pub(super) fn event(row: &SqliteRow) -> Result<Event, StoreError> {
    let artifact: Option<&str> = get(row, "artifact")?;
    let stage: Option<&str> = get(row, "stage")?;
    let fact = match stage {
        Some(stage) => Fact::Stage {
            stage: Stage::parse(stage).ok_or_else(|| corrupt(format!("unknown stage `{stage}`")))?,
            attempt: get(row, "attempt")?,
            error: get::<Option<&str>>(row, "error")?.map(serde_json::from_str).transpose().map_err(corrupt)?,
        },
        None => Fact::Output { dispatch: get(row, "dispatch")?, index: get(row, "output")? },
    };
    Ok(Event {
        seq: get(row, "seq")?,
        task: id(row, "task_id")?,
        workflow: get(row, "workflow")?,
        at: Timestamp(get(row, "at")?),
        fact,
        artifact: artifact.map(serde_json::from_str).transpose().map_err(corrupt)?,
    })
}

fn options(row: &SqliteRow) -> Result<Arc<TaskOptions>, StoreError> {
    serde_json::from_str(get(row, "options")?).map(Arc::new).map_err(corrupt)
}

fn text(row: &SqliteRow, column: &str) -> Result<Arc<str>, StoreError> {
    get::<&str>(row, column).map(Arc::from)
}

/// What was read makes no sense.
pub(super) fn corrupt(what: impl Display) -> StoreError {
    StoreError::Corrupt(what.to_string())
}
