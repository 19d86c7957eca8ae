//! The outbox as people see it, and when there is something to do for it.

use comfyd_actors::{
    domain::{
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId},
    },
    ports::{
        hook_store::{DeliveryQuery, HookLevels},
        store::StoreError,
    },
};
use sqlx::{QueryBuilder, Sqlite};

use super::Readers;
use crate::store::sqlite::{
    fault::store_error,
    outbox,
    rows::{corrupt, get, key},
};

const NEXT: &str =
    "SELECT min(due_at) FROM webhook_endpoints INDEXED BY webhook_endpoints_due WHERE due_at IS NOT NULL";

const ENDPOINTS: &str =
    concat!("SELECT ", endpoint_columns!(), " FROM webhook_endpoints e WHERE e.id > ? ORDER BY e.id LIMIT 0 + ?");

/// Walks over what is pending, and over all endpoints.
const LEVELS: &str = "SELECT (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending') AS pending,
     (SELECT min(at) FROM webhook_deliveries WHERE state = 'pending') AS oldest,
     (SELECT count(*) FROM webhook_endpoints WHERE disabled_at IS NOT NULL) AS disabled,
     (SELECT count(*) FROM webhook_endpoints WHERE failures > 0) AS failing";

impl Readers {
    pub(in crate::store::sqlite) async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        let next = sqlx::query_scalar::<_, Option<i64>>(NEXT).fetch_one(&self.0).await;
        Ok(next.map_err(|error| store_error(&error))?.map(Timestamp))
    }

    pub(in crate::store::sqlite) async fn deliveries(
        &self,
        query: &DeliveryQuery,
    ) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
        let mut sql = page(query);
        let found = sql.build().fetch_all(&self.0).await.map_err(|error| store_error(&error))?;
        found.iter().map(|row| Ok((outbox::delivery(row)?, outbox::endpoint(row)?))).collect()
    }

    pub(in crate::store::sqlite) async fn endpoints(
        &self,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<Endpoint>, StoreError> {
        let query = sqlx::query(ENDPOINTS).bind(after.map_or(i64::MIN, |id| id.0)).bind(limit);
        let found = query.fetch_all(&self.0).await.map_err(|error| store_error(&error))?;
        found.iter().map(outbox::endpoint).collect()
    }

    pub(in crate::store::sqlite) async fn hook_levels(&self) -> Result<HookLevels, StoreError> {
        let row = sqlx::query(LEVELS).fetch_one(&self.0).await.map_err(|error| store_error(&error))?;
        let count = |column| u64::try_from(get::<i64>(&row, column)?).map_err(corrupt);
        Ok(HookLevels {
            pending: count("pending")?,
            oldest: get::<Option<i64>>(&row, "oldest")?.map(Timestamp),
            disabled: count("disabled")?,
            failing: count("failing")?,
        })
    }
}

/// Read from the end of the index of whatever narrows it down the most.
pub(in crate::store::sqlite) fn page(query: &DeliveryQuery) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new(concat!(
        "SELECT ",
        delivery_columns!(),
        ", ",
        endpoint_columns!(),
        " FROM webhook_deliveries d "
    ));
    sql.push(match (query.task, query.endpoint, query.state) {
        (Some(_), ..) => "INDEXED BY webhook_deliveries_task",
        (None, Some(_), _) => "INDEXED BY webhook_deliveries_endpoint",
        (None, None, Some(_)) => "INDEXED BY webhook_deliveries_state",
        (None, None, None) => "",
    });
    sql.push(" CROSS JOIN webhook_endpoints e ON e.id = d.endpoint WHERE true");
    if let Some(task) = query.task {
        sql.push(" AND d.task_id = ").push_bind(key(task));
    }
    if let Some(endpoint) = query.endpoint {
        sql.push(" AND d.endpoint = ").push_bind(endpoint.0);
    }
    if let Some(state) = query.state {
        sql.push(" AND d.state = '").push(state.as_str()).push("'");
    }
    if let Some(before) = query.before {
        sql.push(" AND d.id < ").push_bind(before);
    }
    sql.push(" ORDER BY d.id DESC LIMIT 0 + ").push_bind(query.limit);
    sql
}
