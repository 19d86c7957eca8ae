//! Pages of tasks: the newest, and the newest failures.

use comfyd_actors::{
    domain::{
        failure::Class,
        id::TaskId,
        task::{Task, TaskState},
        time::Timestamp,
    },
    ports::store::{FailedQuery, Query, StoreError},
};
use sqlx::{Postgres, QueryBuilder};

use super::Readers;
use crate::store::{
    columns,
    postgres::rows::{get, text},
};

impl Readers {
    pub(in crate::store::postgres) async fn list(&self, query: &Query) -> Result<Vec<Task>, StoreError> {
        self.page(list(query)).await
    }

    pub(in crate::store::postgres) async fn failed(&self, query: &FailedQuery) -> Result<Vec<Task>, StoreError> {
        self.page(failed(query)).await
    }

    pub(in crate::store::postgres) async fn unswept(
        &self,
        state: TaskState,
        until: Timestamp,
        limit: u32,
    ) -> Result<Vec<Task>, StoreError> {
        let swept = self.rows(sqlx::query(SWEPT).bind(format!("swept_{}", state.as_str()))).await?;
        let after = match swept.first() {
            Some(row) => Some((Timestamp(get(row, "value")?), TaskId(get(row, "by")?))),
            None => None,
        };
        self.page(unswept(state, after, until, limit)).await
    }

    async fn page(&self, mut sql: QueryBuilder<Postgres>) -> Result<Vec<Task>, StoreError> {
        let found = self.rows(sql.build()).await?;
        found.iter().map(columns::task).collect()
    }
}

const SWEPT: &str = "SELECT value, by FROM meta WHERE name = $1";

/// Tasks of one state in the order of their ends.
fn unswept(
    state: TaskState,
    after: Option<(Timestamp, TaskId)>,
    until: Timestamp,
    limit: u32,
) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new(concat!("SELECT ", task_columns!(), " FROM tasks t WHERE t.state = '"));
    sql.push(state.as_str()).push("' AND t.finished_at < ").push_bind(until.0);
    if let Some((at, id)) = after {
        sql.push(" AND (t.finished_at, t.id) > (").push_bind(at.0).push(", ").push_bind(id.0).push(")");
    }
    sql.push(" ORDER BY t.finished_at, t.id LIMIT ").push_bind(i64::from(limit));
    sql
}

/// What narrows a page down, whatever it is a page of.
struct Narrow<'a> {
    workflow: Option<&'a String>,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    before: Option<(Timestamp, TaskId)>,
    limit: u32,
}

/// One state at a time, each read from its index and no further than the page is long.
fn list(query: &Query) -> QueryBuilder<Postgres> {
    let mut states = query.states.clone();
    if query.backend.is_some() {
        // Only tasks that are held are on a server.
        states = TaskState::ALL.into_iter().filter(|state| states.is_empty() || states.contains(state)).collect();
    }
    states.sort_unstable();
    states.dedup();
    let narrow = Narrow {
        workflow: query.workflow.as_ref(),
        from: query.created_from,
        until: query.created_until,
        before: query.before,
        limit: query.limit,
    };
    let state = |state: &TaskState, sql: &mut QueryBuilder<Postgres>| {
        sql.push("t.state = '").push(state.as_str()).push("'");
        if let Some(backend) = &query.backend {
            sql.push(" AND t.lease_until IS NOT NULL AND t.backend = ").push_bind(text(backend.as_str()));
        }
    };
    union(&narrow, "created_at", &states, "true", state)
}

/// One class at a time, each read from its index and no further than the page is long.
fn failed(query: &FailedQuery) -> QueryBuilder<Postgres> {
    let mut classes = query.classes.clone();
    classes.sort_unstable();
    classes.dedup();
    let narrow = Narrow {
        workflow: query.workflow.as_ref(),
        from: query.failed_from,
        until: query.failed_until,
        before: query.before,
        limit: query.limit,
    };
    let class = |class: &Class, sql: &mut QueryBuilder<Postgres>| {
        sql.push("t.state = 'failed' AND t.class = '").push(class.as_str()).push("'");
    };
    union(&narrow, "finished_at", &classes, "t.state = 'failed' AND t.finished_at IS NOT NULL", class)
}

fn union<K>(
    narrow: &Narrow<'_>,
    time: &str,
    kinds: &[K],
    any: &str,
    only: impl Fn(&K, &mut QueryBuilder<Postgres>),
) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new("SELECT * FROM (");
    let kinds: Vec<Option<&K>> = if kinds.is_empty() { vec![None] } else { kinds.iter().map(Some).collect() };
    for (place, kind) in kinds.into_iter().enumerate() {
        sql.push(if place > 0 { " UNION ALL (" } else { "(" });
        sql.push(concat!("SELECT ", task_columns!(), " FROM tasks t WHERE "));
        match kind {
            Some(kind) => only(kind, &mut sql),
            None => _ = sql.push(any),
        }
        if let Some(workflow) = narrow.workflow {
            sql.push(" AND t.workflow = ").push_bind(text(workflow));
        }
        if let Some(from) = narrow.from {
            sql.push(format!(" AND t.{time} >= ")).push_bind(from.0);
        }
        if let Some(until) = narrow.until {
            sql.push(format!(" AND t.{time} < ")).push_bind(until.0);
        }
        if let Some((at, id)) = narrow.before {
            sql.push(format!(" AND (t.{time}, t.id) < (")).push_bind(at.0);
            sql.push(", ").push_bind(id.0).push(")");
        }
        sql.push(format!(" ORDER BY t.{time} DESC, t.id DESC LIMIT ")).push_bind(i64::from(narrow.limit)).push(")");
    }
    sql.push(format!(") page ORDER BY {time} DESC, id DESC LIMIT ")).push_bind(i64::from(narrow.limit));
    sql
}
