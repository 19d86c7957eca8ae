//! Notices of processes that share the file. Those of this process are heard at once, those of others are found by looking.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use comfyd_actors::ports::{
    store::StoreError,
    wire::{Kind, Notice, Wire},
};
use sqlx::sqlite::SqliteRow;
use tokio::sync::broadcast;

use super::{
    SqliteStore,
    ops::{Post, TakeBack},
    rows::get,
};

const NOTICES: &str = "SELECT name, body FROM notices WHERE kind = ? AND expires_at > ? ORDER BY name";

const NOTICE: &str = "SELECT name, body FROM notices WHERE kind = ? AND name = ? AND expires_at > ?";

#[async_trait]
impl Wire for SqliteStore {
    async fn post(&self, notice: Notice, keep: Duration) -> Result<(), StoreError> {
        self.write(Post { notice: notice.clone(), keep }).await?;
        // Nobody listens: nobody needs it.
        let _ = self.heard.send(Arc::new(notice));
        Ok(())
    }

    async fn withdraw(&self, kind: Kind, name: &str) -> Result<(), StoreError> {
        self.write(TakeBack { kind, name: name.to_owned() }).await
    }

    async fn notices(&self, kind: Kind) -> Result<Vec<Notice>, StoreError> {
        let query = sqlx::query(NOTICES).bind(kind.as_str()).bind(self.clock.now().0);
        self.readers.rows(query).await?.iter().map(|row| notice(kind, row)).collect()
    }

    async fn notice(&self, kind: Kind, name: &str) -> Result<Option<Notice>, StoreError> {
        let query = sqlx::query(NOTICE).bind(kind.as_str()).bind(name.to_owned()).bind(self.clock.now().0);
        self.readers.rows(query).await?.first().map(|row| notice(kind, row)).transpose()
    }

    fn heard(&self) -> broadcast::Receiver<Arc<Notice>> {
        self.heard.subscribe()
    }

    fn hears_others(&self) -> bool {
        false
    }
}

fn notice(kind: Kind, row: &SqliteRow) -> Result<Notice, StoreError> {
    Ok(Notice { kind, name: get(row, "name")?, body: Bytes::copy_from_slice(get(row, "body")?) })
}
