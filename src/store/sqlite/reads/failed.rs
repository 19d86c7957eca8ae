//! Pages of what failed, in the order in which it did.

use comfyd_actors::{
    domain::{failure::Class, task::Task},
    ports::store::{FailedQuery, StoreError},
};
use sqlx::{QueryBuilder, Sqlite};

use super::Readers;
use crate::store::sqlite::{
    fault::store_error,
    rows::{self, key},
};

impl Readers {
    pub(in crate::store::sqlite) async fn failed(&self, query: &FailedQuery) -> Result<Vec<Task>, StoreError> {
        let mut sql = page(query);
        let found = sql.build().fetch_all(&self.0).await.map_err(|error| store_error(&error))?;
        found.iter().map(rows::task).collect()
    }
}

/// One class at a time, each read from its index and no further than the page is long; all classes together have an index as well.
pub(in crate::store::sqlite) fn page(query: &FailedQuery) -> QueryBuilder<Sqlite> {
    let mut classes = query.classes.clone();
    classes.sort_unstable();
    classes.dedup();
    let mut sql = QueryBuilder::new("SELECT * FROM (");
    if classes.is_empty() {
        part(&mut sql, query, None);
    }
    for (place, class) in classes.into_iter().enumerate() {
        if place > 0 {
            sql.push(" UNION ALL ");
        }
        part(&mut sql, query, Some(class));
    }
    sql.push(") ORDER BY finished_at DESC, id DESC LIMIT 0 + ").push_bind(query.limit);
    sql
}

fn part(sql: &mut QueryBuilder<Sqlite>, query: &FailedQuery, class: Option<Class>) {
    sql.push(concat!("SELECT * FROM (SELECT ", task_columns!(), " FROM tasks t INDEXED BY "));
    match class {
        // The index says it in these words.
        Some(class) => sql
            .push("tasks_failed WHERE t.state = 'failed' AND t.error ->> '$.class' = '")
            .push(class.as_str())
            .push("'"),
        None => sql.push("tasks_finished WHERE t.state = 'failed' AND t.finished_at IS NOT NULL"),
    };
    if let Some(workflow) = &query.workflow {
        sql.push(" AND t.workflow = ").push_bind(workflow.clone());
    }
    if let Some(from) = query.failed_from {
        sql.push(" AND t.finished_at >= ").push_bind(from.0);
    }
    if let Some(until) = query.failed_until {
        sql.push(" AND t.finished_at < ").push_bind(until.0);
    }
    if let Some((failed_at, id)) = query.before {
        sql.push(" AND (t.finished_at, t.id) < (").push_bind(failed_at.0);
        sql.push(", ").push_bind(key(id)).push(")");
    }
    sql.push(" ORDER BY t.finished_at DESC, t.id DESC LIMIT 0 + ").push_bind(query.limit).push(")");
}
