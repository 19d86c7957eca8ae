//! Notices over HTTP.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use comfyd_actors::ports::{
    store::StoreError,
    wire::{Kind, Notice, Wire},
};
use tokio::sync::broadcast;

use super::{
    ApiClient,
    protocol::{Named, Post, Posted},
};

#[async_trait]
impl Wire for ApiClient {
    async fn post(&self, notice: Notice, keep: Duration) -> Result<(), StoreError> {
        self.call("post", &Post { notice: Posted::of(&notice), keep }).await
    }

    async fn withdraw(&self, kind: Kind, name: &str) -> Result<(), StoreError> {
        self.call("withdraw", &Named { kind: kind.as_str().to_owned(), name: name.to_owned() }).await
    }

    async fn notices(&self, kind: Kind) -> Result<Vec<Notice>, StoreError> {
        let named = Named { kind: kind.as_str().to_owned(), name: String::new() };
        let posted: Vec<Posted> = self.call::<_, StoreError>("notices", &named).await?;
        Ok(posted.into_iter().filter_map(Posted::read).collect())
    }

    async fn notice(&self, kind: Kind, name: &str) -> Result<Option<Notice>, StoreError> {
        Ok(self.notices(kind).await?.into_iter().find(|notice| notice.name == name))
    }

    fn heard(&self) -> broadcast::Receiver<Arc<Notice>> {
        self.heard.subscribe()
    }

    fn hears_others(&self) -> bool {
        true
    }
}
