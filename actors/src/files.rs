//! The files of inputs for who has the store and the storage at hand.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

use crate::{
    domain::{
        id::TaskId,
        input::{Input, InputId},
        workflow::Kind,
    },
    ports::{
        fetcher::{FetchError, Fetcher},
        input_files::InputFiles,
        input_store::InputStore,
        object_store::{ObjectError, ObjectStore, Reading},
        store::StoreError,
    },
};

/// What is known of them, where their bytes are, and what brings new ones.
pub struct NearFiles {
    /// What is known.
    pub inputs: Arc<dyn InputStore>,
    /// The bytes.
    pub objects: Arc<dyn ObjectStore>,
    /// What brings new ones.
    pub fetcher: Arc<dyn Fetcher>,
}

#[async_trait]
impl InputFiles for NearFiles {
    async fn find(&self, id: &InputId) -> Result<Input, StoreError> {
        self.inputs.find(id).await
    }

    async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        self.inputs.fetched(task).await
    }

    async fn fetch(&self, task: TaskId, url: &str, kind: Option<Kind>) -> Result<Input, FetchError> {
        let file = self.fetcher.fetch(url, kind).await?;
        let noted = self.inputs.note_fetched(task, url, &file.id).await;
        noted.map(|()| file).map_err(|error| FetchError::Storage(error.to_string()))
    }

    async fn open(&self, file: &Input) -> Result<Reading, ObjectError> {
        self.objects.open(&file.key, None).await
    }
}
