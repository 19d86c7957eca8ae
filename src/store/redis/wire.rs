//! Notices: a key for each, that goes by itself, and per kind the names of those that are there.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use comfyd_actors::{
    domain::time::millis,
    ports::{
        store::StoreError,
        wire::{Kind, Notice, Wire},
    },
};
use tokio::sync::broadcast;

use super::{RedisStore, rows::corrupt};

/// A key's own life is longer than its notice's by this: whether that is over is decided by the index, which goes by the same clock as all else.
const SPARE: i64 = 1_000;

#[async_trait]
impl Wire for RedisStore {
    async fn post(&self, notice: Notice, keep: Duration) -> Result<(), StoreError> {
        let (now, keys, kind) = (self.look_at_the_clock().await?.0, &self.link.keys, notice.kind.as_str());
        let (index, key) = (keys.notices(kind), keys.notice(kind, &notice.name));
        let until = now.after(keep);
        let life = millis(keep).saturating_add(SPARE);
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("SET").arg(key).arg(&notice.body[..]).arg("PX").arg(life).ignore();
        pipe.zrembyscore(&index, "-inf", now.0).ignore().zadd(&index, &notice.name, until.0).ignore();
        let (channel, message) = self.posted(&notice);
        pipe.publish(channel, message).ignore();
        self.link.ask::<()>(&pipe).await?;
        // Nobody listens: nobody needs it.
        let _ = self.heard.send(Arc::new(notice));
        Ok(())
    }

    async fn withdraw(&self, kind: Kind, name: &str) -> Result<(), StoreError> {
        let keys = &self.link.keys;
        let mut pipe = redis::pipe();
        pipe.atomic().del(keys.notice(kind.as_str(), name)).ignore();
        pipe.zrem(keys.notices(kind.as_str()), name).ignore();
        self.link.ask(&pipe).await
    }

    async fn notices(&self, kind: Kind) -> Result<Vec<Notice>, StoreError> {
        let now = self.look_at_the_clock().await?.0;
        let mut pipe = redis::pipe();
        pipe.zrangebyscore(self.link.keys.notices(kind.as_str()), format!("({}", now.0), "+inf");
        let (names,): (Vec<Vec<u8>>,) = self.link.ask(&pipe).await?;
        let mut notices = Vec::new();
        for name in names {
            let name = String::from_utf8(name).map_err(corrupt)?;
            notices.extend(self.body_of(kind, &name).await?.map(|body| Notice { kind, name, body }));
        }
        notices.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(notices)
    }

    async fn notice(&self, kind: Kind, name: &str) -> Result<Option<Notice>, StoreError> {
        let now = self.look_at_the_clock().await?.0;
        let mut pipe = redis::pipe();
        pipe.zscore(self.link.keys.notices(kind.as_str()), name);
        let (until,): (Option<i64>,) = self.link.ask(&pipe).await?;
        if until.is_none_or(|until| until <= now.0) {
            return Ok(None);
        }
        Ok(self.body_of(kind, name).await?.map(|body| Notice { kind, name: name.to_owned(), body }))
    }

    fn heard(&self) -> broadcast::Receiver<Arc<Notice>> {
        self.heard.subscribe()
    }

    fn hears_others(&self) -> bool {
        true
    }
}

impl RedisStore {
    /// What a notice says, if it is there.
    pub(super) async fn body_of(&self, kind: Kind, name: &str) -> Result<Option<Bytes>, StoreError> {
        let (body,): (Option<Vec<u8>>,) =
            self.link.ask(redis::pipe().get(self.link.keys.notice(kind.as_str(), name))).await?;
        Ok(body.map(Bytes::from))
    }
}
