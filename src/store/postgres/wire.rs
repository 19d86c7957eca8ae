//! Notices of processes that share the database: a row that the next crash of the server may take, and a word to those who listen.

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
use sqlx::postgres::PgRow;
use tokio::sync::broadcast;

use super::{
    PgStore,
    herald::CHANNEL,
    rows::{get, text},
};

/// The moment, by the store's clock: `$1` when a test moves it.
macro_rules! now {
    () => {
        "coalesce($1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
    };
}

/// Those whose time is over go with the next one that comes. Needs no wait for the disk: the table has no log.
const POST: &str = concat!(
    "WITH moment AS (SELECT ",
    now!(),
    " AS now), over AS (
         DELETE FROM notices WHERE (kind, name) IN (
             SELECT n.kind, n.name FROM notices n, moment WHERE n.expires_at <= moment.now AND (n.kind, n.name) <> ($2, $3)
             ORDER BY n.expires_at LIMIT 100 FOR UPDATE OF n SKIP LOCKED)),
     posted AS (INSERT INTO notices (kind, name, body, expires_at) SELECT $2, $3, $4, moment.now + $5 FROM moment
         ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, expires_at = excluded.expires_at)
     SELECT pg_notify($6, $7)"
);

const TAKE_BACK: &str = "DELETE FROM notices WHERE kind = $1 AND name = $2";

const NOTICES: &str =
    concat!("SELECT name, body FROM notices WHERE kind = $2 AND expires_at > ", now!(), " ORDER BY name");

const NOTICE: &str = concat!("SELECT name, body FROM notices WHERE kind = $2 AND name = $3 AND expires_at > ", now!());

#[async_trait]
impl Wire for PgStore {
    async fn post(&self, notice: Notice, keep: Duration) -> Result<(), StoreError> {
        let word = self.herald.word_of(&notice)?;
        let post = sqlx::query(POST)
            .bind(self.time.given())
            .bind(notice.kind.as_str())
            .bind(text(&notice.name))
            .bind(&notice.body[..])
            .bind(millis(keep))
            .bind(CHANNEL)
            .bind(word);
        self.readers.rows(post).await?;
        // Nobody listens: nobody needs it.
        let _ = self.heard.send(Arc::new(notice));
        Ok(())
    }

    async fn withdraw(&self, kind: Kind, name: &str) -> Result<(), StoreError> {
        self.readers.rows(sqlx::query(TAKE_BACK).bind(kind.as_str()).bind(text(name))).await.map(drop)
    }

    async fn notices(&self, kind: Kind) -> Result<Vec<Notice>, StoreError> {
        let rows = self.readers.rows(sqlx::query(NOTICES).bind(self.time.given()).bind(kind.as_str())).await?;
        rows.iter().map(|row| notice(kind, row)).collect()
    }

    async fn notice(&self, kind: Kind, name: &str) -> Result<Option<Notice>, StoreError> {
        let query = sqlx::query(NOTICE).bind(self.time.given()).bind(kind.as_str()).bind(text(name));
        self.readers.rows(query).await?.first().map(|row| notice(kind, row)).transpose()
    }

    fn heard(&self) -> broadcast::Receiver<Arc<Notice>> {
        self.heard.subscribe()
    }

    fn hears_others(&self) -> bool {
        true
    }
}

fn notice(kind: Kind, row: &PgRow) -> Result<Notice, StoreError> {
    Ok(Notice { kind, name: get(row, "name")?, body: Bytes::copy_from_slice(get(row, "body")?) })
}
