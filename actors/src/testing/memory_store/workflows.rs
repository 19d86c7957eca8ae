//! The versions of workflows, in the plainest way.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

use super::{MemoryStore, StoreError};
use crate::{
    domain::time::Timestamp,
    ports::workflow_store::{Kept, MAX_NAMES, Publication, Published, VERSIONS_KEPT, WorkflowStore},
};

#[derive(Default)]
pub(super) struct Workflows {
    names: BTreeMap<String, Name>,
    revision: u64,
}

#[derive(Default)]
struct Name {
    last: u32,
    published: Option<u32>,
    versions: BTreeMap<u32, (Arc<str>, Timestamp)>,
}

impl Name {
    fn add(&mut self, text: &str, now: Timestamp) -> u32 {
        self.last += 1;
        self.versions.insert(self.last, (text.into(), now));
        self.last
    }

    fn forget(&mut self) {
        let (last, published) = (self.last, self.published);
        self.versions.retain(|version, _| version + VERSIONS_KEPT > last || Some(*version) == published);
    }

    fn is(&self, version: u32, text: &str) -> bool {
        self.versions.get(&version).is_some_and(|(kept, _)| **kept == *text)
    }
}

#[async_trait]
impl WorkflowStore for MemoryStore {
    async fn record(&self, name: &str, text: &str) -> Result<u32, StoreError> {
        let mut shelf = self.open()?;
        let name = shelf.workflows.names.entry(name.to_owned()).or_default();
        if let Some(known) = name.versions.keys().rev().copied().find(|version| name.is(*version, text)) {
            return Ok(known);
        }
        let version = name.add(text, self.clock.now());
        name.forget();
        Ok(version)
    }

    async fn publish(&self, name: &str, text: &str) -> Result<Publication, StoreError> {
        let mut shelf = self.open()?;
        let Workflows { names, revision } = &mut shelf.workflows;
        if names.len() as u64 >= MAX_NAMES && !names.contains_key(name) {
            return Ok(Publication::TooMany);
        }
        let name = names.entry(name.to_owned()).or_default();
        if let Some(published) = name.published.filter(|version| name.is(*version, text)) {
            return Ok(Publication::Same(published));
        }
        let version = name.add(text, self.clock.now());
        name.published = Some(version);
        *revision += 1;
        name.forget();
        Ok(Publication::New(version))
    }

    async fn withdraw(&self, name: &str) -> Result<bool, StoreError> {
        let mut shelf = self.open()?;
        let Workflows { names, revision } = &mut shelf.workflows;
        let published = names.get_mut(name).and_then(|name| name.published.take()).is_some();
        *revision += u64::from(published);
        Ok(published)
    }

    async fn published(&self) -> Result<Published, StoreError> {
        let shelf = self.open()?;
        let Workflows { names, revision } = &shelf.workflows;
        let workflows = names.iter().filter_map(|(name, of)| Some((name.clone(), of.published?))).collect();
        Ok(Published { revision: *revision, workflows })
    }

    async fn version(&self, name: &str, version: u32) -> Result<Option<Arc<str>>, StoreError> {
        let shelf = self.open()?;
        let name = shelf.workflows.names.get(name);
        Ok(name.and_then(|name| name.versions.get(&version)).map(|(text, _)| text.clone()))
    }

    async fn versions(&self, name: &str) -> Result<Vec<Kept>, StoreError> {
        let shelf = self.open()?;
        let versions = shelf.workflows.names.get(name).into_iter().flat_map(|name| name.versions.iter().rev());
        Ok(versions.map(|(version, (_, created_at))| Kept { version: *version, created_at: *created_at }).collect())
    }
}
