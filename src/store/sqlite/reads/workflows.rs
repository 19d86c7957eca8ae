//! The versions of named workflows.

use std::sync::Arc;

use comfyd_actors::ports::{
    store::StoreError,
    workflow_store::{Kept, Published},
};

use super::Readers;
use crate::store::{columns, sqlite::rows::get};

/// One statement, so that the number and what it counts are of the same moment.
const PUBLISHED: &str = "SELECT (SELECT coalesce(max(revision), 0) FROM workflows) AS revision, w.name, w.published
     FROM (SELECT 1) LEFT JOIN workflows w ON w.published IS NOT NULL ORDER BY w.name";

const VERSION: &str = "SELECT text FROM workflow_versions WHERE name = ? AND version = ?";

const VERSIONS: &str = "SELECT version, created_at FROM workflow_versions WHERE name = ? ORDER BY version DESC";

impl Readers {
    pub(in crate::store::sqlite) async fn published(&self) -> Result<Published, StoreError> {
        columns::published(&self.rows(sqlx::query(PUBLISHED)).await?)
    }

    pub(in crate::store::sqlite) async fn version(
        &self,
        name: &str,
        version: u32,
    ) -> Result<Option<Arc<str>>, StoreError> {
        let rows = self.rows(sqlx::query(VERSION).bind(name.to_owned()).bind(version)).await?;
        rows.first().map(|row| get::<&str>(row, "text").map(Arc::from)).transpose()
    }

    pub(in crate::store::sqlite) async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
        self.rows(sqlx::query(VERSIONS).bind(name.to_owned())).await?.iter().map(columns::kept).collect()
    }
}
