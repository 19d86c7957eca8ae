//! The versions of named workflows: the port's other half, beside the tasks.

use std::sync::Arc;

use async_trait::async_trait;
use comfyd_actors::{
    domain::time::Timestamp,
    ports::{
        store::StoreError,
        workflow_store::{Kept, Publication, Published, WorkflowStore},
    },
};
use sqlx::postgres::PgRow;

use super::{
    PgStore,
    ops::{Content, Publish, Record, Withdraw},
    rows::{get, text},
};
use crate::store::columns::corrupt;

/// One statement, so that the number and what it counts are of the same moment.
const PUBLISHED: &str = "SELECT (SELECT coalesce(max(revision), 0) FROM workflows) AS revision, w.name, w.published
     FROM (SELECT 1) one LEFT JOIN workflows w ON w.published IS NOT NULL ORDER BY w.name";

const VERSION: &str = "SELECT text FROM workflow_versions WHERE name = $1 AND version = $2";

const VERSIONS: &str = "SELECT version, created_at FROM workflow_versions WHERE name = $1 ORDER BY version DESC";

#[async_trait]
impl WorkflowStore for PgStore {
    async fn record(&self, name: &str, text: &str) -> Result<u32, StoreError> {
        self.write(Record(Content::new(name, text))).await
    }

    async fn publish(&self, name: &str, text: &str) -> Result<Publication, StoreError> {
        self.write(Publish(Content::new(name, text))).await
    }

    async fn withdraw(&self, name: &str) -> Result<bool, StoreError> {
        self.write(Withdraw(name.to_owned())).await
    }

    async fn published(&self) -> Result<Published, StoreError> {
        let mut published = Published::default();
        for row in self.readers.rows(sqlx::query(PUBLISHED)).await? {
            published.revision = u64::try_from(get::<i64>(&row, "revision")?).map_err(corrupt)?;
            let name: Option<String> = get(&row, "name")?;
            if let Some(name) = name {
                published.workflows.push((name, number(&row, "published")?));
            }
        }
        Ok(published)
    }

    async fn version(&self, name: &str, version: u32) -> Result<Option<Arc<str>>, StoreError> {
        let rows = self.readers.rows(sqlx::query(VERSION).bind(text(name)).bind(i64::from(version))).await?;
        rows.first().map(|row| get::<&str>(row, "text").map(Arc::from)).transpose()
    }

    async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
        let rows = self.readers.rows(sqlx::query(VERSIONS).bind(text(name))).await?;
        let kept =
            |row: &PgRow| Ok(Kept { version: number(row, "version")?, created_at: Timestamp(get(row, "created_at")?) });
        rows.iter().map(kept).collect()
    }
}

fn number(row: &PgRow, column: &str) -> Result<u32, StoreError> {
    u32::try_from(get::<i64>(row, column)?).map_err(corrupt)
}
