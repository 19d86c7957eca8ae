//! What needs no write goes past the writer, on read-only connections of its own: a reader sees the newest commit and blocks nobody.

use std::collections::{BTreeMap, BTreeSet};

use comfyd_actors::{
    domain::{
        event::Event,
        id::TaskId,
        input::{Input, InputId},
        lane::Lane,
        task::{Task, TaskState},
        time::Timestamp,
    },
    ports::store::{Counts, Depth, Pause, Query, StoreError, TaskRecord},
};
use sqlx::{
    QueryBuilder, Sqlite, SqlitePool,
    sqlite::{SqliteArguments, SqliteRow},
};

mod failed;
mod hooks;
mod workflows;

#[cfg(test)]
pub(super) use {failed::page as failed_page, hooks::page as deliveries_page};

use super::{
    fault::store_error,
    ops::PAUSES,
    rows::{get, id, key},
};
use crate::store::columns::{self, Columns, corrupt};

pub(super) const GET: &str = concat!(
    "SELECT ",
    task_columns!(),
    ", p.inputs, p.metadata, p.options, (SELECT l.needs FROM lanes l WHERE l.id = t.lane) AS needs, ",
    artifacts_column!(),
    ", (SELECT n.nodes FROM task_nodes n WHERE n.task_id = t.id AND n.dispatch = t.dispatch) AS nodes
     FROM tasks t JOIN task_payloads p ON p.task_id = t.id WHERE t.id = ?"
);

/// A walk over the lanes there are, and a few seeks for each.
const LANES: &str = "SELECT l.id, l.needs FROM lanes l
     WHERE EXISTS (SELECT 1 FROM tasks t INDEXED BY tasks_lane WHERE t.lane = l.id AND t.lane <> 0
                   AND t.state IN ('scheduled', 'pending', 'dispatching', 'executing', 'uploading'))
     ORDER BY l.id";

const WAITING: &str = "SELECT l.id, l.needs, count(*) AS tasks
     FROM lanes l CROSS JOIN tasks t INDEXED BY tasks_lane
     WHERE t.lane = l.id AND t.lane <> 0 AND t.state = 'pending' GROUP BY l.id ORDER BY l.id";

const INPUT: &str = concat!("SELECT ", input_columns!(), " FROM inputs WHERE sha256 = ?");

const FETCHED: &str = concat!(
    "SELECT f.url, ",
    input_columns!(),
    " FROM task_fetches f JOIN inputs i USING (sha256) WHERE f.task_id = ?"
);

const COUNTS: &str = "SELECT
    (SELECT count(*) FROM tasks WHERE state = 'scheduled') AS scheduled,
    (SELECT count(*) FROM tasks WHERE state = 'pending') AS pending,
    (SELECT count(*) FROM tasks WHERE lease_until IS NOT NULL) AS held";

/// Bounded.
pub(super) const CROWD: &str = "SELECT count(*) AS tasks FROM (
     SELECT 1 FROM json_each(?) l CROSS JOIN tasks t INDEXED BY tasks_lane
     WHERE t.lane = l.value AND t.lane <> 0 AND t.state IN ('pending', 'scheduled') LIMIT 0 + ?)";

pub(super) const DEPTHS: &str = "SELECT priority, count(*) AS waiting, min(queued_at) AS oldest
    FROM tasks INDEXED BY tasks_claim WHERE state = 'pending' GROUP BY priority ORDER BY priority";
/// An event and, if the run it tells of still counts, the output it is about.
macro_rules! events {
    ($of:literal) => {
        concat!(
            "SELECT e.seq, e.task_id, t.workflow, e.at, e.dispatch, e.attempt, e.stage, e.error, e.output, CASE WHEN o.idx IS NOT NULL THEN ",
            artifact_json!(),
            " END AS artifact
             FROM task_events e CROSS JOIN tasks t ON t.id = e.task_id
             LEFT JOIN task_outputs o ON o.task_id = e.task_id AND o.idx = e.output AND e.dispatch = t.dispatch AND o.object_key IS NOT NULL
             WHERE e.seq > ? ",
            $of,
            " ORDER BY e.seq LIMIT 0 + ?"
        )
    };
}

pub(super) const EVENTS: &str = events!("");
pub(super) const EVENTS_OF: &str = events!("AND e.task_id = ?");

/// Kept by `SQLite` itself, also when the newest rows are gone.
const NEWEST_EVENT: &str = "SELECT max(seq) AS newest FROM sqlite_sequence WHERE name = 'task_events'";

/// Bounded in each lane. NULL when the task does not wait.
pub(super) const AHEAD: &str = "SELECT sum((SELECT count(*) FROM (
         SELECT 1 FROM tasks b INDEXED BY tasks_claim
         WHERE b.state = 'pending' AND b.lane = present.lane AND (b.sort_key, b.id) < (t.sort_key, t.id) LIMIT 0 + ?))) AS ahead
     FROM tasks t CROSS JOIN (SELECT 0 AS lane UNION ALL SELECT id FROM lanes) present WHERE t.id = ? AND t.state = 'pending'";

pub(super) const NEXT_SCHEDULED: &str =
    "SELECT min(run_at) AS next FROM tasks INDEXED BY tasks_scheduled WHERE state = 'scheduled'";

const SWEPT: &str = "SELECT finished_at, id FROM swept WHERE state = ?";

/// The store's read-only side.
pub(super) struct Readers(pub(super) SqlitePool);

impl Readers {
    pub(super) async fn rows(
        &self,
        query: sqlx::query::Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        query.fetch_all(&self.0).await.map_err(|error| store_error(&error))
    }

    async fn row(&self, query: sqlx::query::Query<'_, Sqlite, SqliteArguments>) -> Result<SqliteRow, StoreError> {
        self.rows(query).await?.pop().ok_or(StoreError::NotFound)
    }

    pub(super) async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
        columns::record(&self.row(sqlx::query(GET).bind(key(id))).await?)
    }

    pub(super) async fn input(&self, id: &InputId) -> Result<Input, StoreError> {
        columns::input(&self.row(sqlx::query(INPUT).bind(id.as_str())).await?)
    }

    pub(super) async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        let rows = self.rows(sqlx::query(FETCHED).bind(key(task))).await?;
        rows.iter().map(|row| Ok((get(row, "url")?, columns::input(row)?))).collect()
    }

    pub(super) async fn list(&self, query: &Query) -> Result<Vec<Task>, StoreError> {
        let mut sql = page(query);
        let found = sql.build().fetch_all(&self.0).await.map_err(|error| store_error(&error))?;
        found.iter().map(columns::task).collect()
    }

    pub(super) async fn counts(&self) -> Result<Counts, StoreError> {
        columns::counts(&self.row(sqlx::query(COUNTS)).await?)
    }

    pub(super) async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        self.rows(sqlx::query(LANES)).await?.iter().map(columns::lane).collect()
    }

    pub(super) async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError> {
        let rows = self.rows(sqlx::query(WAITING)).await?;
        rows.iter().map(|row| Ok((columns::lane(row)?, columns::count(row, "tasks")?))).collect()
    }

    pub(super) async fn crowd(&self, lanes: &BTreeSet<i64>, limit: u32) -> Result<u32, StoreError> {
        let lanes = serde_json::to_string(lanes).map_err(corrupt)?;
        columns::crowd(&self.row(sqlx::query(CROWD).bind(lanes).bind(limit)).await?)
    }

    pub(super) async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
        self.rows(sqlx::query(DEPTHS)).await?.iter().map(columns::depth).collect()
    }

    pub(super) async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.rows(sqlx::query(PAUSES)).await?.iter().map(columns::pause).collect()
    }

    pub(super) async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let query = match of {
            Some(id) => sqlx::query(EVENTS_OF).bind(after).bind(key(id)),
            None => sqlx::query(EVENTS).bind(after),
        };
        self.rows(query.bind(limit)).await?.iter().map(columns::event).collect()
    }

    pub(super) async fn newest_event(&self) -> Result<i64, StoreError> {
        Ok(self.row(sqlx::query(NEWEST_EVENT)).await?.number("newest")?.unwrap_or(0))
    }

    pub(super) async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError> {
        let row = self.row(sqlx::query(AHEAD).bind(limit).bind(key(id))).await?;
        Ok(row.number("ahead")?.map(|ahead| u32::try_from(ahead).unwrap_or(u32::MAX).min(limit)))
    }

    pub(super) async fn unswept(
        &self,
        state: TaskState,
        until: Timestamp,
        limit: u32,
    ) -> Result<Vec<Task>, StoreError> {
        let swept = self.rows(sqlx::query(SWEPT).bind(state.as_str())).await?;
        let after = match swept.first() {
            Some(row) => Some((Timestamp(get(row, "finished_at")?), id(row, "id")?)),
            None => None,
        };
        let mut sql = unswept(state, after, until, limit);
        self.rows(sql.build()).await?.iter().map(columns::task).collect()
    }

    pub(super) async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.row(sqlx::query(NEXT_SCHEDULED)).await?.number("next")?.map(Timestamp))
    }
}

/// Tasks of one state in the order of their ends.
pub(super) fn unswept(
    state: TaskState,
    after: Option<(Timestamp, TaskId)>,
    until: Timestamp,
    limit: u32,
) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new(concat!("SELECT ", task_columns!(), " FROM tasks t INDEXED BY tasks_finished"));
    sql.push(" WHERE t.state = '").push(state.as_str()).push("' AND t.finished_at < ").push_bind(until.0);
    if let Some((at, id)) = after {
        sql.push(" AND (t.finished_at, t.id) > (").push_bind(at.0).push(", ").push_bind(key(id)).push(")");
    }
    sql.push(" ORDER BY t.finished_at, t.id LIMIT 0 + ").push_bind(limit);
    sql
}

/// The SQL of a page. One state at a time, each read from its index and no further than the page is long; `state IN (...)` would sort
/// every task of these states first. States are spelled out and limits are sums for the reason given in `ops`.
pub(super) fn page(query: &Query) -> QueryBuilder<Sqlite> {
    let mut states = query.states.clone();
    if query.backend.is_some() {
        // Only tasks that are held are on a server.
        states = TaskState::ALL.into_iter().filter(|state| states.is_empty() || states.contains(state)).collect();
    }
    states.sort_unstable();
    states.dedup();
    let mut sql = QueryBuilder::new("SELECT * FROM (");
    match states.as_slice() {
        [] => part(&mut sql, query, None),
        states => {
            for (place, state) in states.iter().enumerate() {
                if place > 0 {
                    sql.push(" UNION ALL ");
                }
                part(&mut sql, query, Some(*state));
            }
        }
    }
    sql.push(") ORDER BY created_at DESC, id DESC LIMIT 0 + ").push_bind(query.limit);
    sql
}

fn part(sql: &mut QueryBuilder<Sqlite>, query: &Query, state: Option<TaskState>) {
    sql.push(concat!("SELECT * FROM (SELECT ", task_columns!(), " FROM tasks t "));
    match (state, &query.workflow) {
        (Some(state), _) if query.backend.is_some() => {
            // As few as there are backends, so they are walked over.
            sql.push("INDEXED BY tasks_leases WHERE t.lease_until IS NOT NULL AND t.state = '")
                .push(state.as_str())
                .push("'")
        }
        (None, None) => sql.push("INDEXED BY tasks_list WHERE true"),
        (None, Some(_)) => sql.push("INDEXED BY tasks_list_workflow WHERE true"),
        (Some(state), None) => sql.push("INDEXED BY tasks_list_state WHERE t.state = '").push(state.as_str()).push("'"),
        // Which of the two is shorter only statistics can tell.
        (Some(state), Some(_)) => sql.push("WHERE t.state = '").push(state.as_str()).push("'"),
    };
    if let Some(workflow) = &query.workflow {
        sql.push(" AND t.workflow = ").push_bind(workflow.clone());
    }
    if let Some(backend) = &query.backend {
        sql.push(" AND t.backend = ").push_bind(backend.as_str().to_owned());
    }
    if let Some(from) = query.created_from {
        sql.push(" AND t.created_at >= ").push_bind(from.0);
    }
    if let Some(until) = query.created_until {
        sql.push(" AND t.created_at < ").push_bind(until.0);
    }
    if let Some((created_at, id)) = query.before {
        sql.push(" AND (t.created_at, t.id) < (").push_bind(created_at.0);
        sql.push(", ").push_bind(key(id)).push(")");
    }
    sql.push(" ORDER BY t.created_at DESC, t.id DESC LIMIT 0 + ").push_bind(query.limit).push(")");
}
