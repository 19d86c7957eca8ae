//! The versions of named workflows.

use comfyd_actors::ports::workflow_store::{MAX_NAMES, Publication, VERSIONS_KEPT};
use sha2::{Digest, Sha256};

use super::Operation;
use crate::store::redis::{
    rows::{WorkflowRow, from_json, json},
    tx::{Fault, Tx, words},
};

/// A content under a name.
pub(in crate::store::redis) struct Content {
    name: String,
    text: String,
    sha256: String,
}

impl Content {
    pub(in crate::store::redis) fn new(name: &str, text: &str) -> Self {
        let sha256 = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { name: name.to_owned(), text: text.to_owned(), sha256 }
    }

    fn is(&self, row: &WorkflowRow, version: u32) -> bool {
        row.versions.get(&version).is_some_and(|(sha256, _)| *sha256 == self.sha256)
    }

    /// Gives it the next number of its name.
    fn number(&self, tx: &mut Tx<'_>, row: &mut WorkflowRow) -> u32 {
        row.last += 1;
        row.versions.insert(row.last, (self.sha256.clone(), tx.now));
        tx.write(words("HSET").arg(tx.keys().versions(&self.name)).arg(row.last).arg(&self.text));
        row.last
    }

    /// Saves the name, without the versions that are too many.
    fn save(&self, tx: &mut Tx<'_>, mut row: WorkflowRow) -> Result<(), Fault> {
        let (last, published) = (row.last, row.published);
        let old = |version: u32| version.saturating_add(VERSIONS_KEPT) <= last && Some(version) != published;
        for version in row.versions.keys().copied().filter(|version| old(*version)) {
            tx.write(words("HDEL").arg(tx.keys().versions(&self.name)).arg(version));
        }
        row.versions.retain(|version, _| !old(*version));
        save(tx, &self.name, &row)
    }
}

/// A name, which is only saved as long as it is as it was read.
async fn load(tx: &mut Tx<'_>, name: &str) -> Result<Option<WorkflowRow>, Fault> {
    let text = tx.field(tx.keys().workflows(), name).await?;
    tx.check(tx.keys().workflows(), name, text.as_deref());
    Ok(text.as_deref().map(from_json).transpose()?)
}

fn save(tx: &mut Tx<'_>, name: &str, row: &WorkflowRow) -> Result<(), Fault> {
    tx.write(words("HSET").arg(tx.keys().workflows()).arg(name).arg(json(row)?));
    Ok(())
}

/// Counts publications and withdrawals.
fn count(tx: &mut Tx<'_>) {
    tx.write(words("HINCRBY").arg(tx.keys().meta()).arg("publications").arg(1));
}

/// `WorkflowStore::record`.
pub(in crate::store::redis) struct Record(pub(in crate::store::redis) Content);

impl Operation for Record {
    type Answer = u32;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<u32, Fault> {
        let Self(content) = self;
        let mut row = load(tx, &content.name).await?.unwrap_or_default();
        if let Some(known) = row.versions.keys().rev().copied().find(|version| content.is(&row, *version)) {
            return Ok(known);
        }
        let version = content.number(tx, &mut row);
        content.save(tx, row)?;
        Ok(version)
    }
}

/// `WorkflowStore::publish`.
pub(in crate::store::redis) struct Publish(pub(in crate::store::redis) Content);

impl Operation for Publish {
    type Answer = Publication;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Publication, Fault> {
        let Self(content) = self;
        let found = load(tx, &content.name).await?;
        if found.is_none() {
            let (names,): (u64,) = tx.ask(redis::pipe().hlen(tx.keys().workflows())).await?;
            if names >= MAX_NAMES {
                return Ok(Publication::TooMany);
            }
        }
        let mut row = found.unwrap_or_default();
        if let Some(published) = row.published.filter(|version| content.is(&row, *version)) {
            return Ok(Publication::Same(published));
        }
        let version = content.number(tx, &mut row);
        row.published = Some(version);
        content.save(tx, row)?;
        count(tx);
        Ok(Publication::New(version))
    }
}

/// `WorkflowStore::withdraw`.
pub(in crate::store::redis) struct Withdraw(pub(in crate::store::redis) String);

impl Operation for Withdraw {
    type Answer = bool;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<bool, Fault> {
        let Some(row) = load(tx, &self.0).await?.filter(|row| row.published.is_some()) else { return Ok(false) };
        save(tx, &self.0, &WorkflowRow { published: None, ..row })?;
        count(tx);
        Ok(true)
    }
}
