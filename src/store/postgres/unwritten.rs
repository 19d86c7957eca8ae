//! What a batch has changed and not written yet.
//!
//! Most operations change a task or two. Their results are kept here as values and written for the whole batch in one statement, however
//! many there are: a task that three operations of a batch changed is written once, as it is in the end.

use std::collections::BTreeSet;

use comfyd_actors::{
    domain::{artifact::Artifact, event::Fact, id::TaskId, lane::Lane, task::Task, time::Timestamp, webhook::Webhook},
    ports::store::{Idempotency, Payload, StoreError},
};
use serde::Serialize;
use sqlx::{Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::rows::{LaneRow, TaskRow, json, keys, text};

pub(super) type Statement = Query<'static, Postgres, PgArguments>;

/// What is written of tasks that were there already: their artifacts, what the nodes of their runs took, and themselves.
macro_rules! known {
    ($replaced:literal, $artifacts:literal, $runs:literal, $tasks:literal) => {
        concat!(
            "dropped AS (DELETE FROM task_outputs o WHERE o.task_id = ANY (",
            $replaced,
            "::uuid[]) AND NOT EXISTS (SELECT 1 FROM json_populate_recordset(NULL::task_outputs, ",
            $artifacts,
            "::json) n WHERE n.task_id = o.task_id AND n.idx = o.idx)),
    planned AS (INSERT INTO task_outputs SELECT * FROM json_populate_recordset(NULL::task_outputs, ",
            $artifacts,
            "::json) ON CONFLICT (task_id, idx) DO UPDATE SET stored = excluded.stored, artifact = excluded.artifact),
    run AS (INSERT INTO task_nodes SELECT * FROM json_populate_recordset(NULL::task_nodes, ",
            $runs,
            "::json) ON CONFLICT (task_id) DO UPDATE SET dispatch = excluded.dispatch, nodes = excluded.nodes)
    UPDATE tasks t SET lane = n.lane, priority = n.priority, sort_key = n.sort_key, queued_at = n.queued_at, state = n.state,
        generation = n.generation, uploads_only = n.uploads_only, fence = n.fence, dispatch = n.dispatch, attempt = n.attempt,
        poison = n.poison, ooms = n.ooms, worker = n.worker, lease_until = n.lease_until, prompt_id = n.prompt_id, backend = n.backend,
        client = n.client, accepted = n.accepted, run_at = n.run_at, cancel_requested_at = n.cancel_requested_at,
        started_at = n.started_at, executing_at = n.executing_at, uploading_at = n.uploading_at, finished_at = n.finished_at,
        error = n.error, class = n.class
    FROM json_populate_recordset(NULL::tasks, ",
            $tasks,
            "::json) n WHERE t.id = n.id"
        )
    };
}

/// One statement for all of it. What it inserts side by side does not see each other, so rules between tables are looked at when it ends,
/// and no row is touched twice.
const WRITE: &str = concat!(
    "WITH
    lane AS (INSERT INTO lanes SELECT * FROM json_populate_recordset(NULL::lanes, $5::json) ON CONFLICT DO NOTHING),
    receiver AS (INSERT INTO webhook_endpoints (id, url) SELECT id, url FROM json_populate_recordset(NULL::webhook_endpoints, $6::json)
        ON CONFLICT DO NOTHING),
    fresh AS (INSERT INTO tasks SELECT * FROM json_populate_recordset(NULL::tasks, $7::json)),
    payload AS (INSERT INTO task_payloads (task_id, graph, inputs, metadata, options)
        SELECT * FROM unnest($8::uuid[], $9::text[], $10::text[], $11::text[], $12::text[])),
    key AS (INSERT INTO idempotency SELECT * FROM json_populate_recordset(NULL::idempotency, $13::json)),
    need AS (INSERT INTO task_inputs SELECT * FROM json_populate_recordset(NULL::task_inputs, $14::json) ON CONFLICT DO NOTHING),
    ",
    known!("$1", "$2", "$3", "$4")
);

/// The same for a batch in which nothing comes into being, as with most: what is not asked for costs time all the same.
pub(super) const CHANGE: &str = concat!("WITH ", known!("$1", "$2", "$3", "$4"));

/// A row of `task_events` without its number.
#[derive(Debug, Clone, Serialize)]
pub(super) struct EventRow {
    task_id: TaskId,
    at: i64,
    dispatch: i64,
    attempt: i32,
    stage: Option<&'static str>,
    error: Option<String>,
    output: Option<u32>,
}

/// A row of `webhook_deliveries`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DeliveryRow {
    pub(super) task_id: TaskId,
    pub(super) endpoint: i64,
    at: i64,
    stage: &'static str,
    generation: i32,
    attempt: i32,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct ReceiverRow {
    id: i64,
    url: String,
}

#[derive(Debug, Serialize)]
struct KeyRow {
    tenant: i64,
    key: String,
    /// As the database writes bytes.
    body_sha256: String,
    task_id: TaskId,
    created_at: i64,
}

#[derive(Debug, Serialize)]
struct NeedRow {
    sha256: String,
    task_id: TaskId,
}

#[derive(Debug, Serialize)]
struct OutputRow {
    task_id: TaskId,
    idx: u32,
    stored: bool,
    artifact: String,
}

#[derive(Debug, Serialize)]
struct RunRow {
    task_id: TaskId,
    dispatch: i64,
    nodes: String,
}

/// Rows to be written, the newest of each.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    lanes: Vec<LaneRow>,
    receivers: Vec<ReceiverRow>,
    /// Those that are not there yet.
    fresh: Vec<Task>,
    payloads: Vec<(TaskId, Payload, String)>,
    keys: Vec<KeyRow>,
    needs: Vec<NeedRow>,
    changed: Vec<Task>,
    artifacts: Vec<(TaskId, Vec<Artifact>)>,
    runs: Vec<RunRow>,
    pub(super) deliveries: Vec<DeliveryRow>,
    pub(super) events: Vec<EventRow>,
}

impl Unwritten {
    /// A task comes into being.
    pub(super) fn add(&mut self, task: Task, payload: &Payload, key: Option<&Idempotency>) -> Result<(), StoreError> {
        let options = json(&*payload.options)?;
        if let Some(webhook) = &payload.options.webhook {
            self.introduce(webhook);
        }
        if let Some(Idempotency { key, body_sha256 }) = key {
            let body: String = body_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
            let body_sha256 = format!("\\x{body}");
            let (tenant, key) = (task.tenant, text(key));
            self.keys.push(KeyRow { tenant, key, body_sha256, task_id: task.id, created_at: task.created_at.0 });
        }
        let need =
            |id: &comfyd_actors::domain::input::InputId| NeedRow { sha256: id.as_str().to_owned(), task_id: task.id };
        self.needs.extend(payload.options.files.iter().map(need));
        self.payloads.push((task.id, payload.clone(), options));
        self.fresh.push(task);
        Ok(())
    }

    /// Takes note of where a new task's messages go.
    fn introduce(&mut self, webhook: &Webhook) {
        self.receivers.push(ReceiverRow { id: webhook.hook().endpoint.0, url: webhook.endpoint_url().to_owned() });
    }

    /// What a lane stands for, if that is not known yet.
    pub(super) fn know(&mut self, lane: &Lane) -> Result<(), StoreError> {
        self.lanes.extend(LaneRow::of(lane)?);
        Ok(())
    }

    /// The row of a task changed.
    pub(super) fn save(&mut self, task: Task) {
        match self.fresh.iter_mut().chain(&mut self.changed).find(|other| other.id == task.id) {
            Some(earlier) => *earlier = task,
            None => self.changed.push(task),
        }
    }

    /// The whole list of a task's artifacts changed.
    pub(super) fn replace_artifacts(&mut self, id: TaskId, artifacts: Vec<Artifact>) {
        self.artifacts.retain(|(other, _)| *other != id);
        self.artifacts.push((id, artifacts));
    }

    /// Something happened to a task that people may want to hear of.
    pub(super) fn tell(&mut self, task: &Task, fact: &Fact, at: Timestamp) -> Result<(), StoreError> {
        let (stage, error, output) = match fact {
            Fact::Output { index, .. } => (None, None, Some(*index)),
            Fact::Stage { stage, attempt, error } => {
                let error = error.as_ref().map(json).transpose()?;
                if let Some(hook) = task.hook.filter(|hook| hook.events.contains(*stage)) {
                    self.deliveries.push(DeliveryRow {
                        task_id: task.id,
                        endpoint: hook.endpoint.0,
                        at: at.0,
                        stage: stage.as_str(),
                        generation: task.generation,
                        attempt: *attempt,
                        error: error.clone(),
                    });
                }
                (Some(stage.as_str()), error, None)
            }
        };
        let (dispatch, attempt) = (task.dispatch, task.attempt);
        self.events.push(EventRow { task_id: task.id, at: at.0, dispatch, attempt, stage, error, output });
        Ok(())
    }

    /// What the nodes of a run took, as JSON.
    pub(super) fn note_run(&mut self, id: TaskId, dispatch: i64, nodes: String) {
        self.runs.retain(|run| run.task_id != id);
        self.runs.push(RunRow { task_id: id, dispatch, nodes });
    }

    /// These tasks are deleted: nothing is left to tell of them.
    pub(super) fn forget(&mut self, ids: &BTreeSet<TaskId>) {
        self.events.retain(|event| !ids.contains(&event.task_id));
    }

    /// Adds what came later.
    pub(super) fn append(&mut self, later: Self) {
        let Self { lanes, receivers, fresh, payloads, keys, needs, changed, artifacts, runs, deliveries, events } =
            later;
        self.lanes.extend(lanes);
        self.receivers.extend(receivers);
        self.fresh.extend(fresh);
        self.payloads.extend(payloads);
        self.keys.extend(keys);
        self.needs.extend(needs);
        changed.into_iter().for_each(|task| self.save(task));
        artifacts.into_iter().for_each(|(id, artifacts)| self.replace_artifacts(id, artifacts));
        runs.into_iter().for_each(|run| self.note_run(run.task_id, run.dispatch, run.nodes));
        self.deliveries.extend(deliveries);
        self.events.extend(events);
    }

    /// Whether there are rows to write, events not counted: those come last.
    pub(super) fn is_empty(&self) -> bool {
        let Self { lanes, receivers, fresh, payloads, keys, needs, changed, artifacts, runs, deliveries, events: _ } =
            self;
        [lanes.len(), receivers.len(), fresh.len(), payloads.len(), keys.len(), needs.len()]
            .iter()
            .all(|length| *length == 0)
            && [changed.len(), artifacts.len(), runs.len(), deliveries.len()].iter().all(|length| *length == 0)
    }

    /// The statement that writes all but messages and events, which stay.
    ///
    /// # Errors
    /// `Corrupt` when something cannot be made into JSON.
    pub(super) fn take(&mut self) -> Result<Statement, StoreError> {
        let later = Self {
            deliveries: std::mem::take(&mut self.deliveries),
            events: std::mem::take(&mut self.events),
            ..Self::default()
        };
        let Self { lanes, receivers, fresh, payloads, keys: requests, needs, changed, artifacts, runs, .. } =
            std::mem::replace(self, later);
        let rows = |tasks: &[Task]| json(&tasks.iter().map(TaskRow::of).collect::<Result<Vec<_>, _>>()?);
        let outputs = artifacts.iter().flat_map(|(id, list)| list.iter().map(|artifact| output_row(*id, artifact)));
        let outputs = json(&outputs.collect::<Result<Vec<_>, _>>()?)?;
        let replaced = keys(artifacts.iter().map(|(id, _)| *id));
        let is_new =
            [lanes.len(), receivers.len(), fresh.len(), requests.len(), needs.len()].iter().any(|length| *length > 0);
        let known = sqlx::query(if is_new { WRITE } else { CHANGE });
        let known = known.bind(replaced).bind(outputs).bind(json(&runs)?).bind(rows(&changed)?);
        if !is_new {
            return Ok(known);
        }
        let ids: Vec<Uuid> = keys(payloads.iter().map(|(id, ..)| *id));
        let column =
            |of: fn(&Payload) -> &str| payloads.iter().map(|(_, payload, _)| text(of(payload))).collect::<Vec<_>>();
        Ok(known
            .bind(json(&lanes)?)
            .bind(json(&receivers)?)
            .bind(rows(&fresh)?)
            .bind(ids)
            .bind(column(|payload| &payload.graph))
            .bind(column(|payload| &payload.inputs))
            .bind(column(|payload| &payload.metadata))
            .bind(payloads.iter().map(|(_, _, options)| options.clone()).collect::<Vec<_>>())
            .bind(json(&requests)?)
            .bind(json(&needs)?))
    }
}

fn output_row(task_id: TaskId, artifact: &Artifact) -> Result<OutputRow, StoreError> {
    Ok(OutputRow { task_id, idx: artifact.index, stored: artifact.object.is_some(), artifact: json(artifact)? })
}
