//! What needs no write goes past the writer, on a pool of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use comfyd_actors::{
    domain::{
        event::Event,
        id::TaskId,
        input::{Input, InputId},
        lane::Lane,
        time::Timestamp,
    },
    ports::store::{Counts, Depth, Pause, StoreError, TaskRecord},
};
use sqlx::{PgPool, Postgres, postgres::PgArguments, postgres::PgRow, query::Query};

mod hooks;
mod pages;
mod workflows;

use super::{
    fault::{answered, is_doubtful, store_error},
    ops::PAUSES,
    pooler,
    rows::get,
};
use crate::store::columns::{self, Columns};

const GET: &str = concat!(
    "SELECT ",
    task_columns!(),
    ", p.inputs, p.metadata, p.options, (SELECT l.needs FROM lanes l WHERE l.id = t.lane) AS needs, ",
    artifacts_column!(),
    ", (SELECT n.nodes FROM task_nodes n WHERE n.task_id = t.id AND n.dispatch = t.dispatch) AS nodes
     FROM tasks t JOIN task_payloads p ON p.task_id = t.id WHERE t.id = $1"
);

/// A walk over the lanes there are, and a few seeks for each.
const LANES: &str = "SELECT l.id, l.needs FROM lanes l
     WHERE l.id <> 0 AND EXISTS (SELECT 1 FROM tasks t WHERE t.lane = l.id AND t.lane <> 0
                   AND t.state IN ('scheduled', 'pending', 'dispatching', 'executing', 'uploading'))
     ORDER BY l.id";

const WAITING: &str = "SELECT l.id, l.needs, count(*) AS tasks FROM lanes l JOIN tasks t ON t.lane = l.id
     WHERE l.id <> 0 AND t.lane <> 0 AND t.state = 'pending' GROUP BY l.id ORDER BY l.id";

const INPUT: &str = concat!("SELECT ", input_columns!(), " FROM inputs WHERE sha256 = $1");

const FETCHED: &str = concat!(
    "SELECT f.url, ",
    input_columns!(),
    " FROM task_fetches f JOIN inputs i USING (sha256) WHERE f.task_id = $1"
);

const COUNTS: &str = "SELECT
    (SELECT count(*) FROM tasks WHERE state = 'scheduled') AS scheduled,
    (SELECT count(*) FROM tasks WHERE state = 'pending') AS pending,
    (SELECT count(*) FROM tasks WHERE lease_until IS NOT NULL) AS held";

/// Bounded.
const CROWD: &str = "SELECT count(*) AS tasks FROM (
    SELECT 1 FROM tasks WHERE lane = ANY ($1::bigint[]) AND lane <> 0 AND state IN ('pending', 'scheduled') LIMIT $2) counted";

const DEPTHS: &str = "SELECT priority, count(*) AS waiting, min(queued_at) AS oldest
    FROM tasks WHERE state = 'pending' GROUP BY priority ORDER BY priority";

/// An event and, if the run it tells of still counts, the output it is about.
macro_rules! events {
    ($of:literal) => {
        concat!(
            "SELECT e.seq, e.task_id, t.workflow, e.at, e.dispatch, e.attempt, e.stage, e.error, e.output, o.artifact
             FROM task_events e JOIN tasks t ON t.id = e.task_id
             LEFT JOIN task_outputs o ON o.task_id = e.task_id AND o.idx = e.output AND e.dispatch = t.dispatch AND o.stored
             WHERE e.seq > $1 ",
            $of,
            " ORDER BY e.seq LIMIT $2"
        )
    };
}

const EVENTS: &str = events!("");
const EVENTS_OF: &str = events!("AND e.task_id = $3");

/// Not what the sequence says: that may be of a transaction that is still open.
const NEWEST_EVENT: &str = "SELECT greatest(coalesce((SELECT max(seq) FROM task_events), 0),
    coalesce((SELECT value FROM meta WHERE name = 'pruned'), 0)) AS newest";

/// Bounded in each lane. NULL when the task does not wait.
const AHEAD: &str = "SELECT sum((SELECT count(*) FROM (
         SELECT 1 FROM tasks b
         WHERE b.state = 'pending' AND b.lane = l.id AND (b.sort_key, b.id) < (t.sort_key, t.id)
         ORDER BY b.sort_key, b.id LIMIT $2) ahead))::bigint AS ahead
     FROM tasks t CROSS JOIN lanes l WHERE t.id = $1 AND t.state = 'pending'";

const NEXT_SCHEDULED: &str = "SELECT min(run_at) AS next FROM tasks WHERE state = 'scheduled'";

/// The store's reading side.
pub(super) struct Readers {
    pub(super) pool: PgPool,
    /// How long the database may take for an answer.
    pub(super) patience: Duration,
    pub(super) is_pooled: bool,
}

impl Readers {
    pub(super) async fn rows(&self, query: Query<'_, Postgres, PgArguments>) -> Result<Vec<PgRow>, StoreError> {
        let mut conn = self.pool.acquire().await.map_err(|error| store_error(&error))?;
        let answer = answered(self.patience, pooler::rows(&mut conn, self.is_pooled, query)).await;
        if answer.as_ref().is_err_and(is_doubtful) {
            // It may be silent, and then nobody gets it back.
            drop(conn.detach());
        }
        answer.map_err(|error| store_error(&error))
    }

    async fn row(&self, query: Query<'_, Postgres, PgArguments>) -> Result<PgRow, StoreError> {
        self.rows(query).await?.pop().ok_or(StoreError::NotFound)
    }

    pub(super) async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
        columns::record(&self.row(sqlx::query(GET).bind(id.0)).await?)
    }

    pub(super) async fn input(&self, id: &InputId) -> Result<Input, StoreError> {
        columns::input(&self.row(sqlx::query(INPUT).bind(id.as_str())).await?)
    }

    pub(super) async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        let rows = self.rows(sqlx::query(FETCHED).bind(task.0)).await?;
        rows.iter().map(|row| Ok((get(row, "url")?, columns::input(row)?))).collect()
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
        let lanes: Vec<i64> = lanes.iter().copied().collect();
        columns::crowd(&self.row(sqlx::query(CROWD).bind(lanes).bind(i64::from(limit))).await?)
    }

    pub(super) async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
        self.rows(sqlx::query(DEPTHS)).await?.iter().map(columns::depth).collect()
    }

    pub(super) async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.rows(sqlx::query(PAUSES)).await?.iter().map(columns::pause).collect()
    }

    pub(super) async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        let query = sqlx::query(if of.is_some() { EVENTS_OF } else { EVENTS }).bind(after).bind(i64::from(limit));
        let query = match of {
            Some(id) => query.bind(id.0),
            None => query,
        };
        self.rows(query).await?.iter().map(columns::event).collect()
    }

    pub(super) async fn newest_event(&self) -> Result<i64, StoreError> {
        get(&self.row(sqlx::query(NEWEST_EVENT)).await?, "newest")
    }

    pub(super) async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError> {
        let row = self.row(sqlx::query(AHEAD).bind(id.0).bind(i64::from(limit))).await?;
        Ok(row.number("ahead")?.map(|ahead| u32::try_from(ahead).unwrap_or(u32::MAX).min(limit)))
    }

    pub(super) async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.row(sqlx::query(NEXT_SCHEDULED)).await?.number("next")?.map(Timestamp))
    }
}
