//! The versions of named workflows.

use comfyd_actors::ports::workflow_store::{MAX_NAMES, Publication, VERSIONS_KEPT};
use sha2::{Digest, Sha256};

use crate::store::{
    columns::{Columns, corrupt},
    postgres::{
        fault::Fault,
        rows::{get, text},
        tx::Tx,
        writer::Operation,
    },
};

/// One at a time: numbers and revisions are counted. Readers are not kept waiting.
const LOCK: &str = "LOCK TABLE workflows IN SHARE ROW EXCLUSIVE MODE";

const KNOWN: &str = "SELECT max(version) AS version FROM workflow_versions WHERE name = $1 AND sha256 = $2";

const PUBLISHED: &str =
    "SELECT v.version FROM workflows w JOIN workflow_versions v ON v.name = w.name AND v.version = w.published
     WHERE w.name = $1 AND v.sha256 = $2";

/// Whether a name may be made: it is known, or there is room.
const ROOM: &str =
    "SELECT (SELECT count(*) FROM workflows) < $1 OR EXISTS (SELECT 1 FROM workflows WHERE name = $2) AS room";

const NEXT: &str = "INSERT INTO workflows (name, last, revision) VALUES ($1, 1, 0)
     ON CONFLICT (name) DO UPDATE SET last = workflows.last + 1 RETURNING last";

const INSERT: &str =
    "INSERT INTO workflow_versions (name, version, sha256, text, created_at) VALUES ($1, $2, $3, $4, $5)";

const PUBLISH: &str =
    "UPDATE workflows SET published = $1, revision = 1 + (SELECT max(revision) FROM workflows) WHERE name = $2";

const WITHDRAW: &str = "UPDATE workflows SET published = NULL, revision = 1 + (SELECT max(revision) FROM workflows)
     WHERE name = $1 AND published IS NOT NULL";

const FORGET: &str = "DELETE FROM workflow_versions v WHERE v.name = $1 AND v.version <= $2
     AND v.version IS DISTINCT FROM (SELECT published FROM workflows w WHERE w.name = v.name)";

/// A content under a name.
pub(in crate::store::postgres) struct Content {
    name: String,
    text: String,
    sha256: Vec<u8>,
}

impl Content {
    pub(in crate::store::postgres) fn new(name: &str, content: &str) -> Self {
        Self { name: text(name), text: text(content), sha256: Sha256::digest(content).to_vec() }
    }

    /// Gives it the next number of its name.
    async fn number(&self, tx: &mut Tx<'_>) -> Result<i64, Fault> {
        let rows = tx.write_and_read(sqlx::query(NEXT).bind(self.name.clone())).await?;
        let version: i64 = get(rows.first().ok_or_else(|| corrupt("a workflow has no number"))?, "last")?;
        let insert = sqlx::query(INSERT).bind(self.name.clone()).bind(version).bind(self.sha256.clone());
        let now = tx.now.0;
        tx.write(insert.bind(self.text.clone()).bind(now)).await?;
        Ok(version)
    }

    /// Forgets the versions that are too many, once it is known which is published.
    async fn forget(&self, tx: &mut Tx<'_>, newest: i64) -> Result<(), Fault> {
        let last = newest.saturating_sub(i64::from(VERSIONS_KEPT));
        tx.write(sqlx::query(FORGET).bind(self.name.clone()).bind(last)).await?;
        Ok(())
    }
}

fn number(version: i64) -> Result<u32, Fault> {
    Ok(u32::try_from(version).map_err(corrupt)?)
}

/// `WorkflowStore::record`.
pub(in crate::store::postgres) struct Record(pub(in crate::store::postgres) Content);

impl Operation for Record {
    type Answer = u32;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let Self(content) = self;
        tx.read(sqlx::query(LOCK)).await?;
        let known = tx.read(sqlx::query(KNOWN).bind(content.name.clone()).bind(content.sha256.clone())).await?;
        if let Some(version) = known.first().map(|row| row.number("version")).transpose()?.flatten() {
            return number(version);
        }
        let version = content.number(tx).await?;
        content.forget(tx, version).await?;
        number(version)
    }
}

/// `WorkflowStore::publish`.
pub(in crate::store::postgres) struct Publish(pub(in crate::store::postgres) Content);

impl Operation for Publish {
    type Answer = Publication;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Publication, Fault> {
        let Self(content) = self;
        tx.read(sqlx::query(LOCK)).await?;
        let same = tx.read(sqlx::query(PUBLISHED).bind(content.name.clone()).bind(content.sha256.clone())).await?;
        if let Some(row) = same.first() {
            return Ok(Publication::Same(number(get(row, "version")?)?));
        }
        let limit = i64::try_from(MAX_NAMES).map_err(corrupt)?;
        let room = tx.read(sqlx::query(ROOM).bind(limit).bind(content.name.clone())).await?;
        if !room.first().map(|row| get(row, "room")).transpose()?.unwrap_or(false) {
            return Ok(Publication::TooMany);
        }
        let version = content.number(tx).await?;
        tx.write(sqlx::query(PUBLISH).bind(version).bind(content.name.clone())).await?;
        content.forget(tx, version).await?;
        Ok(Publication::New(number(version)?))
    }
}

/// `WorkflowStore::withdraw`.
pub(in crate::store::postgres) struct Withdraw(pub(in crate::store::postgres) String);

impl Operation for Withdraw {
    type Answer = bool;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, Fault> {
        tx.read(sqlx::query(LOCK)).await?;
        Ok(tx.write(sqlx::query(WITHDRAW).bind(text(&self.0))).await? > 0)
    }
}
