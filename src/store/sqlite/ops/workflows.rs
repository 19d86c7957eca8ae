//! The versions of named workflows.

use comfyd_actors::ports::workflow_store::{MAX_NAMES, Publication, VERSIONS_KEPT};
use sha2::{Digest, Sha256};

use crate::store::sqlite::{
    fault::Fault,
    rows::{corrupt, get},
    statement::query,
    tx::Tx,
    writer::Operation,
};

const KNOWN: &str = "SELECT max(version) AS version FROM workflow_versions WHERE name = ? AND sha256 = ?";

const PUBLISHED: &str =
    "SELECT v.version FROM workflows w JOIN workflow_versions v ON v.name = w.name AND v.version = w.published
     WHERE w.name = ? AND v.sha256 = ?";

/// Whether a name may be made: it is known, or there is room.
const ROOM: &str =
    "SELECT (SELECT count(*) FROM workflows) < ? OR EXISTS (SELECT 1 FROM workflows WHERE name = ?) AS room";

const NEXT: &str = "INSERT INTO workflows (name, last, revision) VALUES (?, 1, 0)
     ON CONFLICT (name) DO UPDATE SET last = last + 1 RETURNING last";

const INSERT: &str = "INSERT INTO workflow_versions (name, version, sha256, text, created_at) VALUES (?, ?, ?, ?, ?)";

const PUBLISH: &str =
    "UPDATE workflows SET published = ?, revision = 1 + (SELECT max(revision) FROM workflows) WHERE name = ?";

const WITHDRAW: &str = "UPDATE workflows SET published = NULL, revision = 1 + (SELECT max(revision) FROM workflows)
     WHERE name = ? AND published IS NOT NULL";

const FORGET: &str = "DELETE FROM workflow_versions WHERE name = ? AND version <= ?
     AND version IS NOT (SELECT published FROM workflows w WHERE w.name = workflow_versions.name)";

/// A content under a name.
pub(in crate::store::sqlite) struct Content {
    name: String,
    text: String,
    sha256: Vec<u8>,
}

impl Content {
    pub(in crate::store::sqlite) fn new(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), text: text.to_owned(), sha256: Sha256::digest(text).to_vec() }
    }

    /// Gives it the next number of its name.
    async fn number(&self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let rows = tx.fetch(query(NEXT).bind(&self.name)).await?;
        let row = rows.first().ok_or_else(|| corrupt("a workflow has no number"))?;
        let version: u32 = get(row, "last")?;
        let insert = query(INSERT).bind(&self.name).bind(version).bind(self.sha256.clone()).bind(&self.text);
        tx.write(insert.bind(tx.now.0));
        Ok(version)
    }

    /// Forgets the versions that are too many, once it is known which is published.
    fn forget(&self, tx: &mut Tx<'_>, newest: u32) {
        let last = newest.saturating_sub(VERSIONS_KEPT);
        tx.write(query(FORGET).bind(&self.name).bind(last));
    }
}

/// `WorkflowStore::record`.
pub(in crate::store::sqlite) struct Record(pub(in crate::store::sqlite) Content);

impl Operation for Record {
    type Answer = u32;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let Self(content) = self;
        let known = tx.fetch(query(KNOWN).bind(&content.name).bind(content.sha256.clone())).await?;
        if let Some(row) = known.first()
            && let Some(version) = get(row, "version")?
        {
            return Ok(version);
        }
        let version = content.number(tx).await?;
        content.forget(tx, version);
        Ok(version)
    }
}

/// `WorkflowStore::publish`.
pub(in crate::store::sqlite) struct Publish(pub(in crate::store::sqlite) Content);

impl Operation for Publish {
    type Answer = Publication;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Publication, Fault> {
        let Self(content) = self;
        let same = tx.fetch(query(PUBLISHED).bind(&content.name).bind(content.sha256.clone())).await?;
        if let Some(row) = same.first() {
            return Ok(Publication::Same(get(row, "version")?));
        }
        let limit = i64::try_from(MAX_NAMES).map_err(corrupt)?;
        let room = tx.fetch(query(ROOM).bind(limit).bind(&content.name)).await?;
        if !room.first().map(|row| get(row, "room")).transpose()?.unwrap_or(false) {
            return Ok(Publication::TooMany);
        }
        let version = content.number(tx).await?;
        tx.write(query(PUBLISH).bind(version).bind(&content.name));
        content.forget(tx, version);
        Ok(Publication::New(version))
    }
}

/// `WorkflowStore::withdraw`.
pub(in crate::store::sqlite) struct Withdraw(pub(in crate::store::sqlite) String);

impl Operation for Withdraw {
    type Answer = bool;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<bool, Fault> {
        Ok(tx.execute(query(WITHDRAW).bind(self.0)).await? > 0)
    }
}
