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
use sqlx::{
    Sqlite,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{
    SqliteStore,
    fault::store_error,
    ops::{Content, Publish, Record, Withdraw},
    rows::{corrupt, get},
};

/// One statement, so that the number and what it counts are of the same moment.
const PUBLISHED: &str = "SELECT (SELECT coalesce(max(revision), 0) FROM workflows) AS revision, w.name, w.published
     FROM (SELECT 1) LEFT JOIN workflows w ON w.published IS NOT NULL ORDER BY w.name";

const VERSION: &str = "SELECT text FROM workflow_versions WHERE name = ? AND version = ?";

const VERSIONS: &str = "SELECT version, created_at FROM workflow_versions WHERE name = ? ORDER BY version DESC";

impl SqliteStore {
    pub(super) async fn rows(&self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<Vec<SqliteRow>, StoreError> {
        query.fetch_all(&self.readers.0).await.map_err(|error| store_error(&error))
    }
}

#[async_trait]
impl WorkflowStore for SqliteStore {
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
        for row in self.rows(sqlx::query(PUBLISHED)).await? {
            published.revision = u64::try_from(get::<i64>(&row, "revision")?).map_err(corrupt)?;
            let name: Option<String> = get(&row, "name")?;
            if let Some(name) = name {
                published.workflows.push((name, get(&row, "published")?));
            }
        }
        Ok(published)
    }

    async fn version(&self, name: &str, version: u32) -> Result<Option<Arc<str>>, StoreError> {
        let rows = self.rows(sqlx::query(VERSION).bind(name.to_owned()).bind(version)).await?;
        rows.first().map(|row| get::<&str>(row, "text").map(Arc::from)).transpose()
    }

    async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
        let rows = self.rows(sqlx::query(VERSIONS).bind(name.to_owned())).await?;
        let kept = |row: &SqliteRow| {
            Ok(Kept { version: get(row, "version")?, created_at: Timestamp(get(row, "created_at")?) })
        };
        rows.iter().map(kept).collect()
    }
}
