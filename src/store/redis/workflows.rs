//! The versions of workflows.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use comfyd_actors::ports::{
    store::StoreError,
    workflow_store::{Kept, Publication, Published, WorkflowStore},
};

use super::{
    RedisStore,
    ops::{Content, Publish, Record, Withdraw},
    rows::{WorkflowRow, from_json},
};

#[async_trait]
impl WorkflowStore for RedisStore {
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
        let keys = &self.link.keys;
        let (rows, revision): (BTreeMap<String, String>, Option<u64>) =
            self.link.ask(redis::pipe().atomic().hgetall(keys.workflows()).hget(keys.meta(), "publications")).await?;
        let mut workflows = Vec::new();
        for (name, text) in rows {
            if let Some(version) = from_json::<WorkflowRow>(&text)?.published {
                workflows.push((name, version));
            }
        }
        Ok(Published { revision: revision.unwrap_or(0), workflows })
    }

    async fn version(&self, name: &str, version: u32) -> Result<Option<Arc<str>>, StoreError> {
        let (text,): (Option<String>,) =
            self.link.ask(redis::pipe().hget(self.link.keys.versions(name), version)).await?;
        Ok(text.map(Arc::from))
    }

    async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
        let (text,): (Option<String>,) = self.link.ask(redis::pipe().hget(self.link.keys.workflows(), name)).await?;
        let row: WorkflowRow = text.as_deref().map(from_json).transpose()?.unwrap_or_default();
        let kept = |(version, (_, created_at))| Kept { version, created_at };
        Ok(row.versions.into_iter().rev().map(kept).collect())
    }
}
