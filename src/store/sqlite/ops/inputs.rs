//! Files that clients gave: their rows.

use std::time::Duration;

use comfyd_actors::{
    domain::{
        id::TaskId,
        input::{About, Input, InputId},
    },
    ports::store::StoreError,
};

use crate::store::sqlite::{
    fault::Fault,
    rows::{self, corrupt, key},
    statement::query,
    tx::Tx,
    writer::Operation,
};

const RESERVE: &str = "INSERT INTO inputs (object_key, expires_at) VALUES (?, ?)";

const REFRESH: &str = concat!(
    "UPDATE inputs SET expires_at = max(expires_at, ?) WHERE sha256 IN (SELECT value FROM json_each(?)) RETURNING ",
    input_columns!()
);

const RENAME: &str = "UPDATE inputs SET name = ? WHERE sha256 = ?";

/// What is kept already makes the new object superfluous, unless that is the very same one.
const SUPERFLUOUS: &str = "UPDATE inputs SET expires_at = ? WHERE object_key = ? AND sha256 IS NULL";

const KEEP: &str = "UPDATE inputs SET sha256 = ?, name = ?, content_type = ?, extension = ?, bytes = ?, expires_at = ?
     WHERE object_key = ? AND sha256 IS NULL AND expires_at > ?";

/// Past their time and needed by no unfinished task. The newest of a file's tasks first: of those one is most likely not over.
pub(super) const DUE: &str = "SELECT i.object_key FROM inputs i INDEXED BY inputs_expiry
     WHERE i.expires_at <= ? AND (i.sha256 IS NULL OR NOT EXISTS (
         SELECT 1 FROM task_inputs n CROSS JOIN tasks t
         WHERE n.sha256 = i.sha256 AND t.id = n.task_id AND t.finished_at IS NULL ORDER BY n.task_id DESC))
     ORDER BY i.expires_at, i.object_key LIMIT 0 + ?";

const GIVE_UP: &str = "UPDATE inputs SET sha256 = NULL WHERE object_key IN (SELECT value FROM json_each(?))";

const FORGET: &str = "DELETE FROM inputs WHERE sha256 IS NULL AND object_key IN (SELECT value FROM json_each(?))";

const NEED: &str = "INSERT OR IGNORE INTO task_inputs (sha256, task_id) SELECT value, ? FROM json_each(?)";

const NOTE_FETCHED: &str = "INSERT INTO task_fetches (task_id, url, sha256) VALUES (?, ?, ?)
     ON CONFLICT (task_id, url) DO UPDATE SET sha256 = excluded.sha256";

/// Notes which files a task needs.
pub(super) fn need<'a>(tx: &mut Tx<'_>, task: TaskId, files: impl Iterator<Item = &'a InputId>) -> Result<(), Fault> {
    let files = list(files.map(InputId::as_str))?;
    tx.write(query(NEED).bind(key(task)).bind(files));
    Ok(())
}

/// Texts as one argument: a JSON array.
fn list<'a>(texts: impl Iterator<Item = &'a str>) -> Result<String, StoreError> {
    serde_json::to_string(&texts.collect::<Vec<_>>()).map_err(corrupt)
}

/// `InputStore::reserve`.
pub(in crate::store::sqlite) struct Reserve {
    pub(in crate::store::sqlite) key: String,
    pub(in crate::store::sqlite) patience: Duration,
}

impl Operation for Reserve {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let until = tx.now.after(self.patience).0;
        tx.write(query(RESERVE).bind(self.key).bind(until));
        Ok(())
    }
}

/// `InputStore::keep`.
pub(in crate::store::sqlite) struct Keep {
    pub(in crate::store::sqlite) key: String,
    pub(in crate::store::sqlite) id: InputId,
    pub(in crate::store::sqlite) about: About,
    pub(in crate::store::sqlite) keep: Duration,
}

impl Operation for Keep {
    type Answer = Input;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Input, Fault> {
        let Self { key, id, about, keep } = self;
        if let Some(mut kept) = refresh(tx, std::slice::from_ref(&id), keep).await?.pop() {
            tx.write(query(RENAME).bind(about.name.clone()).bind(id.as_str().to_owned()));
            let now = tx.now.0;
            tx.write(query(SUPERFLUOUS).bind(now).bind(key));
            kept.about.name = about.name;
            return Ok(kept);
        }
        let expires_at = tx.now.after(keep);
        let bytes = i64::try_from(about.bytes).map_err(corrupt)?;
        let save = query(KEEP)
            .bind(id.as_str().to_owned())
            .bind(about.name.clone())
            .bind(about.content_type.clone())
            .bind(about.extension.clone())
            .bind(bytes)
            .bind(expires_at.0)
            .bind(key.clone())
            .bind(tx.now.0);
        match tx.execute(save).await? {
            0 => Err(StoreError::NotFound.into()),
            _ => Ok(Input { id, key, about, expires_at }),
        }
    }
}

/// `InputStore::refresh`.
pub(in crate::store::sqlite) struct Refresh {
    pub(in crate::store::sqlite) ids: Vec<InputId>,
    pub(in crate::store::sqlite) keep: Duration,
}

impl Operation for Refresh {
    type Answer = Vec<Input>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Vec<Input>, Fault> {
        let mut kept = refresh(tx, &self.ids, self.keep).await?;
        kept.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(kept)
    }
}

async fn refresh(tx: &mut Tx<'_>, ids: &[InputId], keep: Duration) -> Result<Vec<Input>, Fault> {
    let (until, ids) = (tx.now.after(keep).0, list(ids.iter().map(InputId::as_str))?);
    let found = tx.fetch(query(REFRESH).bind(until).bind(ids)).await?;
    Ok(found.iter().map(rows::input).collect::<Result<_, _>>()?)
}

/// `InputStore::note_fetched`.
pub(in crate::store::sqlite) struct NoteFetched {
    pub(in crate::store::sqlite) task: TaskId,
    pub(in crate::store::sqlite) url: String,
    pub(in crate::store::sqlite) id: InputId,
}

impl Operation for NoteFetched {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let Self { task, url, id } = self;
        need(tx, task, std::iter::once(&id))?;
        tx.write(query(NOTE_FETCHED).bind(key(task)).bind(url).bind(id.as_str().to_owned()));
        Ok(())
    }
}

/// `InputStore::give_up`.
pub(in crate::store::sqlite) struct GiveUp {
    pub(in crate::store::sqlite) limit: u32,
}

impl Operation for GiveUp {
    type Answer = Vec<String>;

    async fn run(self, tx: &mut Tx<'_>) -> Result<Vec<String>, Fault> {
        let due = tx.fetch(query(DUE).bind(tx.now.0).bind(self.limit)).await?;
        let keys = due.iter().map(|row| rows::get(row, "object_key")).collect::<Result<Vec<String>, _>>()?;
        if !keys.is_empty() {
            tx.write(query(GIVE_UP).bind(list(keys.iter().map(String::as_str))?));
        }
        Ok(keys)
    }
}

/// `InputStore::forget`.
pub(in crate::store::sqlite) struct Forget(pub(in crate::store::sqlite) Vec<String>);

impl Operation for Forget {
    type Answer = ();

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        tx.write(query(FORGET).bind(list(self.0.iter().map(String::as_str))?));
        Ok(())
    }
}
