//! Files that clients gave: their rows.

use std::time::Duration;

use comfyd_actors::{
    domain::{
        id::TaskId,
        input::{About, Input, InputId},
    },
    ports::store::StoreError,
};

use crate::store::{
    columns::{corrupt, input},
    postgres::{
        fault::Fault,
        rows::{get, text},
        tx::Tx,
        writer::Operation,
    },
};

const RESERVE: &str = "INSERT INTO inputs (object_key, expires_at) VALUES ($1, $2)";

/// In the order of the rows, so that two of these never wait for each other in a circle.
const REFRESH: &str = concat!(
    "UPDATE inputs SET expires_at = greatest(expires_at, $1) WHERE object_key IN (
        SELECT object_key FROM inputs WHERE sha256 = ANY ($2::text[]) ORDER BY object_key FOR NO KEY UPDATE) AND sha256 IS NOT NULL
     RETURNING ",
    input_columns!()
);

const RENAME: &str = "UPDATE inputs SET name = $1 WHERE sha256 = $2";

/// What is kept already makes the new object superfluous, unless that is the very same one.
const SUPERFLUOUS: &str = "UPDATE inputs SET expires_at = $1 WHERE object_key = $2 AND sha256 IS NULL";

const KEEP: &str =
    "UPDATE inputs SET sha256 = $1, name = $2, content_type = $3, extension = $4, bytes = $5, expires_at = $6
     WHERE object_key = $7 AND sha256 IS NULL AND expires_at > $8";

/// Past their time and needed by no unfinished task. One that somebody is busy with is left to the next time.
const DUE: &str = "SELECT i.object_key FROM inputs i WHERE i.expires_at <= $1 AND (i.sha256 IS NULL OR NOT EXISTS (
         SELECT 1 FROM task_inputs n JOIN tasks t ON t.id = n.task_id WHERE n.sha256 = i.sha256 AND t.finished_at IS NULL))
     ORDER BY i.expires_at, i.object_key LIMIT $2 FOR UPDATE SKIP LOCKED";

const GIVE_UP: &str = "UPDATE inputs SET sha256 = NULL WHERE object_key = ANY ($1::text[])";

const FORGET: &str = "DELETE FROM inputs WHERE sha256 IS NULL AND object_key = ANY ($1::text[])";

const NEED: &str = "INSERT INTO task_inputs (sha256, task_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";

const NOTE_FETCHED: &str = "INSERT INTO task_fetches (task_id, url, sha256) VALUES ($1, $2, $3)
     ON CONFLICT (task_id, md5(url)) DO UPDATE SET url = excluded.url, sha256 = excluded.sha256";

/// `InputStore::reserve`.
pub(in crate::store::postgres) struct Reserve {
    pub(in crate::store::postgres) key: String,
    pub(in crate::store::postgres) patience: Duration,
}

impl Operation for Reserve {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let until = tx.now.after(self.patience).0;
        tx.write(sqlx::query(RESERVE).bind(self.key.clone()).bind(until)).await?;
        Ok(())
    }
}

/// `InputStore::keep`.
pub(in crate::store::postgres) struct Keep {
    pub(in crate::store::postgres) key: String,
    pub(in crate::store::postgres) id: InputId,
    pub(in crate::store::postgres) about: About,
    pub(in crate::store::postgres) keep: Duration,
}

impl Operation for Keep {
    type Answer = Input;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Input, Fault> {
        let Self { key, id, about, keep } = self;
        let (name, now) = (text(&about.name), tx.now);
        if let Some(mut kept) = refresh(tx, std::slice::from_ref(id), *keep).await?.pop() {
            tx.write(sqlx::query(RENAME).bind(name.clone()).bind(id.as_str().to_owned())).await?;
            tx.write(sqlx::query(SUPERFLUOUS).bind(now.0).bind(key.clone())).await?;
            kept.about.name = name;
            return Ok(kept);
        }
        let expires_at = now.after(*keep);
        let bytes = i64::try_from(about.bytes).map_err(corrupt)?;
        let save = sqlx::query(KEEP)
            .bind(id.as_str().to_owned())
            .bind(name.clone())
            .bind(text(&about.content_type))
            .bind(about.extension.as_deref().map(text))
            .bind(bytes)
            .bind(expires_at.0)
            .bind(key.clone())
            .bind(now.0);
        match tx.write(save).await? {
            0 => Err(StoreError::NotFound.into()),
            _ => Ok(Input { id: id.clone(), key: key.clone(), about: About { name, ..about.clone() }, expires_at }),
        }
    }
}

/// `InputStore::refresh`.
pub(in crate::store::postgres) struct Refresh {
    pub(in crate::store::postgres) ids: Vec<InputId>,
    pub(in crate::store::postgres) keep: Duration,
}

impl Operation for Refresh {
    type Answer = Vec<Input>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Input>, Fault> {
        let mut kept = refresh(tx, &self.ids, self.keep).await?;
        kept.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(kept)
    }
}

async fn refresh(tx: &mut Tx<'_>, ids: &[InputId], keep: Duration) -> Result<Vec<Input>, Fault> {
    let ids: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
    let until = tx.now.after(keep).0;
    let found = tx.write_and_read(sqlx::query(REFRESH).bind(until).bind(ids)).await?;
    Ok(found.iter().map(input).collect::<Result<_, _>>()?)
}

/// `InputStore::note_fetched`.
pub(in crate::store::postgres) struct NoteFetched {
    pub(in crate::store::postgres) task: TaskId,
    pub(in crate::store::postgres) url: String,
    pub(in crate::store::postgres) id: InputId,
}

impl Operation for NoteFetched {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let file = self.id.as_str().to_owned();
        tx.write(sqlx::query(NEED).bind(file.clone()).bind(self.task.0)).await?;
        tx.write(sqlx::query(NOTE_FETCHED).bind(self.task.0).bind(text(&self.url)).bind(file)).await?;
        Ok(())
    }
}

/// `InputStore::give_up`.
pub(in crate::store::postgres) struct GiveUp {
    pub(in crate::store::postgres) limit: u32,
}

impl Operation for GiveUp {
    type Answer = Vec<String>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<String>, Fault> {
        let now = tx.now.0;
        let due = tx.read(sqlx::query(DUE).bind(now).bind(i64::from(self.limit))).await?;
        let keys = due.iter().map(|row| get(row, "object_key")).collect::<Result<Vec<String>, _>>()?;
        if !keys.is_empty() {
            tx.write(sqlx::query(GIVE_UP).bind(keys.clone())).await?;
        }
        Ok(keys)
    }
}

/// `InputStore::forget`.
pub(in crate::store::postgres) struct Forget(pub(in crate::store::postgres) Vec<String>);

impl Operation for Forget {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        tx.write(sqlx::query(FORGET).bind(self.0.clone())).await?;
        Ok(())
    }
}
