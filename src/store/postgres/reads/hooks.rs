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
use sqlx::QueryBuilder;

use super::Readers;
use crate::store::columns::{self, Columns};

const NEXT: &str = "SELECT min(due_at) AS next FROM webhook_endpoints WHERE due_at IS NOT NULL";

const ENDPOINTS: &str =
    concat!("SELECT ", endpoint_columns!(), " FROM webhook_endpoints e WHERE e.id > $1 ORDER BY e.id LIMIT $2");

/// Walks over what is pending, and over all endpoints.
const LEVELS: &str = "SELECT (SELECT count(*) FROM webhook_deliveries WHERE state = 'pending') AS pending,
     (SELECT min(at) FROM webhook_deliveries WHERE state = 'pending') AS oldest,
     (SELECT count(*) FROM webhook_endpoints WHERE disabled_at IS NOT NULL) AS disabled,
     (SELECT count(*) FROM webhook_endpoints WHERE failures > 0) AS failing";

impl Readers {
    pub(in crate::store::postgres) async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.row(sqlx::query(NEXT)).await?.number("next")?.map(Timestamp))
    }

    pub(in crate::store::postgres) async fn deliveries(
        &self,
        query: &DeliveryQuery,
    ) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
        let mut sql = QueryBuilder::new(concat!(
            "SELECT ",
            pair_columns!(),
            " FROM webhook_deliveries d JOIN webhook_endpoints e ON e.id = d.endpoint WHERE true"
        ));
        if let Some(task) = query.task {
            sql.push(" AND d.task_id = ").push_bind(task.0);
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
        sql.push(" ORDER BY d.id DESC LIMIT ").push_bind(i64::from(query.limit));
        let found = self.rows(sql.build()).await?;
        found.iter().map(columns::pair).collect()
    }

    pub(in crate::store::postgres) async fn endpoints(
        &self,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<Endpoint>, StoreError> {
        let query = sqlx::query(ENDPOINTS).bind(after.map_or(i64::MIN, |id| id.0)).bind(i64::from(limit));
        self.rows(query).await?.iter().map(columns::endpoint).collect()
    }

    pub(in crate::store::postgres) async fn hook_levels(&self) -> Result<HookLevels, StoreError> {
        columns::hook_levels(&self.row(sqlx::query(LEVELS)).await?)
    }
}
