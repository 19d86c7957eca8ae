//! Notices in memory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

use super::MemoryStore;
use crate::{
    domain::time::Timestamp,
    ports::{
        store::StoreError,
        wire::{Kind, Notice, Wire},
    },
};

/// What they say, and when their time is over.
pub(super) type Notices = BTreeMap<(Kind, String), (Bytes, Timestamp)>;

#[async_trait]
impl Wire for MemoryStore {
    async fn post(&self, notice: Notice, keep: Duration) -> Result<(), StoreError> {
        let until = self.now().after(keep);
        let mut shelf = self.open()?;
        shelf.notices.insert((notice.kind, notice.name.clone()), (notice.body.clone(), until));
        drop(shelf);
        let _ = self.heard.send(Arc::new(notice));
        Ok(())
    }

    async fn withdraw(&self, kind: Kind, name: &str) -> Result<(), StoreError> {
        self.open()?.notices.remove(&(kind, name.to_owned()));
        Ok(())
    }

    async fn notices(&self, kind: Kind) -> Result<Vec<Notice>, StoreError> {
        let now = self.now();
        let mut shelf = self.open()?;
        shelf.notices.retain(|_, (_, until)| *until > now);
        let of_kind = shelf.notices.iter().filter(|((other, _), _)| *other == kind);
        Ok(of_kind.map(|((_, name), (body, _))| Notice { kind, name: name.clone(), body: body.clone() }).collect())
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
