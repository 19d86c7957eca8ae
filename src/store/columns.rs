//! Rows of databases to tasks and all that belongs to them. The dialects name their columns alike, so each is read by the same functions.
//!
//! What cannot be understood is `Corrupt`, never a panic: a database may have been edited or damaged.

use std::{fmt::Display, sync::Arc, time::Duration};

use comfyd_actors::{
    domain::{
        event::{Event, Fact, Stage},
        id::{BackendId, ClientId, PromptId, TaskId, WorkerId},
        input::{About, Input, InputId},
        lane::{Lane, Needs},
        options::TaskOptions,
        order::Priority,
        task::{Fence, Lease, Prompt, Task, TaskState},
        time::Timestamp,
        webhook::{Delivery, DeliveryState, Endpoint, EndpointId, Events, Hook},
    },
    ports::{
        hook_store::HookLevels,
        store::{Assignment, Counts, Depth, Pausable, Pause, StoreError, TaskRecord},
        workflow_store::{Kept, Published},
    },
};
use serde::de::DeserializeOwned;

/// The columns [`task`] reads, of the table called `t`.
macro_rules! task_columns {
    () => {
        "t.id, t.tenant, t.lane, t.workflow, t.priority, t.sort_key, t.queued_at, t.state, t.generation, t.uploads_only, t.fence, \
         t.dispatch, t.attempt, t.max_attempts, t.poison, t.ooms, t.timeout_ms, t.worker, t.lease_until, t.prompt_id, t.backend, \
         t.client, t.accepted, t.run_at, t.cancel_requested_at, t.created_at, t.started_at, t.executing_at, t.uploading_at, \
         t.finished_at, t.error, t.hook_endpoint, t.hook_events"
    };
}

/// The columns [`input`] reads.
macro_rules! input_columns {
    () => {
        "object_key, sha256, name, content_type, extension, bytes, expires_at"
    };
}

/// The columns [`pair`] reads, of the message called `d` and the receiver called `e`. Those of the receiver are named, because deliveries have
/// failures too.
macro_rules! pair_columns {
    () => {
        concat!(
            "d.id, d.task_id, d.endpoint, d.at, d.stage, d.generation, d.attempt, d.error, d.state, d.due_at, d.turn, d.sending, \
             d.failures, d.tries, ",
            endpoint_columns!()
        )
    };
}

/// The columns [`endpoint`] reads, of the receiver called `e`.
macro_rules! endpoint_columns {
    () => {
        "e.id AS endpoint_id, e.url AS endpoint_url, e.failures AS endpoint_failures, e.not_before, e.disabled_at"
    };
}

/// A row, whichever database it is of.
pub(super) trait Columns {
    /// Reads a whole number.
    fn number(&self, column: &str) -> Result<Option<i64>, StoreError>;

    /// Reads a text.
    fn words(&self, column: &str) -> Result<Option<&str>, StoreError>;

    /// Reads a yes or no.
    fn flag(&self, column: &str) -> Result<bool, StoreError>;

    /// Reads the name of a task.
    fn task_id(&self, column: &str) -> Result<TaskId, StoreError>;
}

/// What was read makes no sense.
pub(super) fn corrupt(what: impl Display) -> StoreError {
    StoreError::Corrupt(what.to_string())
}

fn int<T: TryFrom<i64, Error: Display>>(row: &impl Columns, column: &str) -> Result<T, StoreError> {
    let number = row.number(column)?.ok_or_else(|| corrupt(format!("`{column}` is empty")))?;
    T::try_from(number).map_err(corrupt)
}

fn word<'r>(row: &'r impl Columns, column: &str) -> Result<&'r str, StoreError> {
    row.words(column)?.ok_or_else(|| corrupt(format!("`{column}` is empty")))
}

fn time(row: &impl Columns, column: &str) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.number(column)?.map(Timestamp))
}

fn json<T: DeserializeOwned>(row: &impl Columns, column: &str) -> Result<Option<T>, StoreError> {
    row.words(column)?.map(serde_json::from_str).transpose().map_err(corrupt)
}

/// Reads the columns of a task.
pub(super) fn task(row: &impl Columns) -> Result<Task, StoreError> {
    let state = word(row, "state")?;
    let timeout = row.number("timeout_ms")?.map(u64::try_from).transpose().map_err(corrupt)?;
    Ok(Task {
        id: row.task_id("id")?,
        tenant: int(row, "tenant")?,
        lane: int(row, "lane")?,
        workflow: row.words("workflow")?.map(str::to_owned),
        priority: priority(row)?,
        sort_key: int(row, "sort_key")?,
        queued_at: Timestamp(int(row, "queued_at")?),
        state: TaskState::parse(state).ok_or_else(|| corrupt(format!("unknown state `{state}`")))?,
        generation: int(row, "generation")?,
        uploads_only: row.flag("uploads_only")?,
        fence: Fence(int(row, "fence")?),
        dispatch: int(row, "dispatch")?,
        attempt: int(row, "attempt")?,
        max_attempts: int(row, "max_attempts")?,
        poison: int(row, "poison")?,
        ooms: int(row, "ooms")?,
        timeout: timeout.map(Duration::from_millis),
        lease: lease(row)?,
        prompt: prompt(row)?,
        run_at: time(row, "run_at")?,
        cancel_requested_at: time(row, "cancel_requested_at")?,
        created_at: Timestamp(int(row, "created_at")?),
        started_at: time(row, "started_at")?,
        executing_at: time(row, "executing_at")?,
        uploading_at: time(row, "uploading_at")?,
        finished_at: time(row, "finished_at")?,
        error: json(row, "error")?,
        hook: hook(row)?,
    })
}

/// Reads the priority.
fn priority(row: &impl Columns) -> Result<Priority, StoreError> {
    Priority::new(int(row, "priority")?).ok_or_else(|| corrupt("a priority is out of range"))
}

fn lease(row: &impl Columns) -> Result<Option<Lease>, StoreError> {
    let Some(worker) = row.words("worker")? else { return Ok(None) };
    Ok(Some(Lease { worker: WorkerId::new(worker), until: Timestamp(int(row, "lease_until")?) }))
}

fn prompt(row: &impl Columns) -> Result<Option<Prompt>, StoreError> {
    let Some(id) = row.words("prompt_id")? else { return Ok(None) };
    Ok(Some(Prompt {
        id: PromptId::new(id),
        backend: BackendId::new(word(row, "backend")?),
        client: row.words("client")?.map(ClientId::new),
        accepted: row.flag("accepted")?,
    }))
}

/// Reads who is told of a task.
fn hook(row: &impl Columns) -> Result<Option<Hook>, StoreError> {
    let Some(endpoint) = row.number("hook_endpoint")?.map(EndpointId) else { return Ok(None) };
    Ok(Some(Hook { endpoint, events: Events::of_bits(int(row, "hook_events")?) }))
}

/// Reads a task with what it takes to run it.
pub(super) fn assignment(row: &impl Columns) -> Result<Assignment, StoreError> {
    let artifacts = json(row, "artifacts")?.unwrap_or_default();
    Ok(Assignment { task: task(row)?, graph: word(row, "graph")?.into(), options: options(row)?, artifacts })
}

/// Reads a task with what the API shows of it.
pub(super) fn record(row: &impl Columns) -> Result<TaskRecord, StoreError> {
    Ok(TaskRecord {
        task: task(row)?,
        inputs: word(row, "inputs")?.into(),
        metadata: word(row, "metadata")?.into(),
        options: options(row)?,
        needs: needs(row)?,
        artifacts: json(row, "artifacts")?.unwrap_or_default(),
        nodes: json(row, "nodes")?.unwrap_or_default(),
    })
}

fn options(row: &impl Columns) -> Result<Arc<TaskOptions>, StoreError> {
    serde_json::from_str(word(row, "options")?).map(Arc::new).map_err(corrupt)
}

fn needs(row: &impl Columns) -> Result<Arc<Needs>, StoreError> {
    Ok(json::<Needs>(row, "needs")?.map_or_else(Arc::default, Arc::new))
}

/// Reads a row of `lanes`.
pub(super) fn lane(row: &impl Columns) -> Result<Lane, StoreError> {
    Ok(Lane { id: int(row, "id")?, needs: needs(row)? })
}

/// Reads a file that a client gave.
pub(super) fn input(row: &impl Columns) -> Result<Input, StoreError> {
    let about = About {
        name: word(row, "name")?.to_owned(),
        content_type: word(row, "content_type")?.to_owned(),
        extension: row.words("extension")?.map(str::to_owned),
        bytes: int(row, "bytes")?,
    };
    let id = InputId::parse(word(row, "sha256")?).ok_or_else(|| corrupt("a hash is not one"))?;
    Ok(Input { id, key: word(row, "object_key")?.to_owned(), about, expires_at: Timestamp(int(row, "expires_at")?) })
}

/// Reads an event and the output it is about.
pub(super) fn event(row: &impl Columns) -> Result<Event, StoreError> {
    let fact = match row.words("stage")? {
        Some(stage) => {
            Fact::Stage { stage: parse_stage(stage)?, attempt: int(row, "attempt")?, error: json(row, "error")? }
        }
        None => Fact::Output { dispatch: int(row, "dispatch")?, index: int(row, "output")? },
    };
    Ok(Event {
        seq: int(row, "seq")?,
        task: row.task_id("task_id")?,
        workflow: row.words("workflow")?.map(str::to_owned),
        at: Timestamp(int(row, "at")?),
        fact,
        artifact: json(row, "artifact")?,
    })
}

fn parse_stage(stage: &str) -> Result<Stage, StoreError> {
    Stage::parse(stage).ok_or_else(|| corrupt(format!("unknown stage `{stage}`")))
}

fn delivery(row: &impl Columns) -> Result<Delivery, StoreError> {
    let state = word(row, "state")?;
    Ok(Delivery {
        id: int(row, "id")?,
        task: row.task_id("task_id")?,
        endpoint: EndpointId(int(row, "endpoint")?),
        at: Timestamp(int(row, "at")?),
        stage: parse_stage(word(row, "stage")?)?,
        generation: int(row, "generation")?,
        attempt: int(row, "attempt")?,
        error: json(row, "error")?,
        state: DeliveryState::parse(state).ok_or_else(|| corrupt(format!("unknown state `{state}`")))?,
        due_at: time(row, "due_at")?,
        turn: int(row, "turn")?,
        sending: row.flag("sending")?,
        failures: int(row, "failures")?,
        tries: serde_json::from_str(word(row, "tries")?).map_err(corrupt)?,
    })
}

/// Reads who receives messages.
pub(super) fn endpoint(row: &impl Columns) -> Result<Endpoint, StoreError> {
    Ok(Endpoint {
        id: EndpointId(int(row, "endpoint_id")?),
        url: word(row, "endpoint_url")?.to_owned(),
        failures: int(row, "endpoint_failures")?,
        not_before: time(row, "not_before")?,
        disabled_at: time(row, "disabled_at")?,
    })
}

/// Reads how many there are.
pub(super) fn count(row: &impl Columns, column: &str) -> Result<u64, StoreError> {
    int(row, column)
}

/// Reads how many tasks wait in some lanes, which was counted no further than a small number.
pub(super) fn crowd(row: &impl Columns) -> Result<u32, StoreError> {
    int(row, "tasks")
}

/// Reads how many tasks are not over.
pub(super) fn counts(row: &impl Columns) -> Result<Counts, StoreError> {
    Ok(Counts { scheduled: count(row, "scheduled")?, pending: count(row, "pending")?, held: count(row, "held")? })
}

/// Reads how many tasks of a priority wait.
pub(super) fn depth(row: &impl Columns) -> Result<Depth, StoreError> {
    Ok(Depth { priority: priority(row)?, waiting: count(row, "waiting")?, oldest: Timestamp(int(row, "oldest")?) })
}

/// Reads how much is still to be told.
pub(super) fn hook_levels(row: &impl Columns) -> Result<HookLevels, StoreError> {
    Ok(HookLevels {
        pending: count(row, "pending")?,
        oldest: time(row, "oldest")?,
        disabled: count(row, "disabled")?,
        failing: count(row, "failing")?,
    })
}

/// Reads a message to a webhook and who receives it.
pub(super) fn pair(row: &impl Columns) -> Result<(Delivery, Endpoint), StoreError> {
    Ok((delivery(row)?, endpoint(row)?))
}

/// Reads what is published: the revision stands in every row, and one without a name says that nothing is.
pub(super) fn published(rows: &[impl Columns]) -> Result<Published, StoreError> {
    let mut published = Published::default();
    for row in rows {
        published.revision = count(row, "revision")?;
        if let Some(name) = row.words("name")? {
            published.workflows.push((name.to_owned(), int(row, "published")?));
        }
    }
    Ok(published)
}

/// Reads a version of a workflow.
pub(super) fn kept(row: &impl Columns) -> Result<Kept, StoreError> {
    Ok(Kept { version: int(row, "version")?, created_at: Timestamp(int(row, "created_at")?) })
}

/// Reads what takes nothing new. The queue's own name is empty, so it comes first.
pub(super) fn pause(row: &impl Columns) -> Result<Pause, StoreError> {
    let what = match word(row, "backend")? {
        "" => Pausable::Queue,
        backend => Pausable::Backend(BackendId::new(backend)),
    };
    Ok(Pause { what, since: Timestamp(int(row, "since")?), move_at: time(row, "move_at")? })
}
