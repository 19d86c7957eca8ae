//! The versions of workflows, as far as they are read.

use std::{collections::BTreeMap, sync::Arc};

use comfyd_actors::ports::{
    store::StoreError,
    workflow_store::{Kept, Published},
};

use super::{
    link::Link,
    rows::{WorkflowRow, from_json},
};

impl Link {
    pub(super) async fn published(&self) -> Result<Published, StoreError> {
        let keys = &self.keys;
        let (rows, revision): (BTreeMap<String, String>, Option<u64>) =
            self.ask(redis::pipe().atomic().hgetall(keys.workflows()).hget(keys.meta(), "publications")).await?;
        let mut workflows = Vec::new();
        for (name, text) in rows {
            if let Some(version) = from_json::<WorkflowRow>(&text)?.published {
                workflows.push((name, version));
            }
        }
        Ok(Published { revision: revision.unwrap_or(0), workflows })
    }

    pub(super) async fn version(&self, name: &str, version: u32) -> Result<Option<Arc<str>>, StoreError> {
        let (text,): (Option<String>,) = self.ask(redis::pipe().hget(self.keys.versions(name), version)).await?;
        Ok(text.map(Arc::from))
    }

    pub(super) async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
        let (text,): (Option<String>,) = self.ask(redis::pipe().hget(self.keys.workflows(), name)).await?;
        let row: WorkflowRow = text.as_deref().map(from_json).transpose()?.unwrap_or_default();
        let kept = |(version, (_, created_at))| Kept { version, created_at };
        Ok(row.versions.into_iter().rev().map(kept).collect())
    }
}
