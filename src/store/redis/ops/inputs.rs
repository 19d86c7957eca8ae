//! Files that clients gave: their rows.

use std::time::Duration;

use comfyd_actors::{
    domain::{
        id::TaskId,
        input::{About, Input, InputId},
        time::Timestamp,
    },
    ports::store::StoreError,
};

use super::Operation;
use crate::store::redis::{
    keys::{ordered, until},
    rows::{InputRow, corrupt, from_json, json},
    tx::{Fault, Tx, words},
};

/// Members of the index of ages that are looked at in one trip.
const PAGE: usize = 256;

/// An object's row as it was read.
struct Found {
    key: String,
    row: InputRow,
    text: String,
}

impl Found {
    async fn by_key(tx: &Tx<'_>, key: &str) -> Result<Option<Self>, StoreError> {
        let text = tx.field(tx.keys().inputs(), key).await?;
        text.map(|text| Ok(Self { key: key.to_owned(), row: from_json(&text)?, text })).transpose()
    }

    async fn by_id(tx: &Tx<'_>, id: &InputId) -> Result<Option<Self>, StoreError> {
        match tx.field(tx.keys().input_objects(), id.as_str()).await? {
            Some(key) => Self::by_key(tx, &key).await,
            None => Ok(None),
        }
    }

    /// Saves what changed about it.
    fn save(&self, tx: &mut Tx<'_>, after: &InputRow) -> Result<(), StoreError> {
        let keys = tx.keys();
        tx.check(keys.inputs(), self.key.clone(), Some(&self.text));
        if self.row.expires_at != after.expires_at {
            tx.write(words("ZREM").arg(keys.input_ages()).arg(age(self.row.expires_at, &self.key).as_slice()));
        }
        write(tx, &self.key, after)
    }
}

fn write(tx: &mut Tx<'_>, key: &str, row: &InputRow) -> Result<(), StoreError> {
    let keys = tx.keys();
    tx.write(words("HSET").arg(keys.inputs()).arg(key).arg(json(row)?));
    tx.write(words("ZADD").arg(keys.input_ages()).arg(0).arg(age(row.expires_at, key).as_slice()));
    Ok(())
}

fn age(at: Timestamp, key: &str) -> Vec<u8> {
    [&ordered(at.0)[..], key.as_bytes()].concat()
}

/// `InputStore::reserve`.
pub(in crate::store::redis) struct Reserve {
    pub(in crate::store::redis) key: String,
    pub(in crate::store::redis) patience: Duration,
}

impl Operation for Reserve {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        tx.check(tx.keys().inputs(), self.key.clone(), None);
        Ok(write(tx, &self.key, &InputRow { kept: None, expires_at: tx.now.after(self.patience) })?)
    }
}

/// `InputStore::keep`.
pub(in crate::store::redis) struct Keep {
    pub(in crate::store::redis) key: String,
    pub(in crate::store::redis) id: InputId,
    pub(in crate::store::redis) about: About,
    pub(in crate::store::redis) keep: Duration,
}

impl Operation for Keep {
    type Answer = Input;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Input, Fault> {
        let until = tx.now.after(self.keep);
        if let Some(found) = Found::by_id(tx, &self.id).await? {
            let mut row = found.row.clone();
            row.expires_at = row.expires_at.max(until);
            if let Some((_, about)) = &mut row.kept {
                about.name.clone_from(&self.about.name);
            }
            found.save(tx, &row)?;
            self.give_up_the_second(tx).await?;
            return Ok(row.input(&found.key).ok_or_else(|| corrupt("a kept file is not whole"))?);
        }
        let found = Found::by_key(tx, &self.key).await?;
        let found = found.filter(|found| found.row.kept.is_none() && found.row.expires_at > tx.now);
        let found = found.ok_or(StoreError::NotFound)?;
        let row = InputRow { kept: Some((self.id.clone(), self.about.clone())), expires_at: until };
        found.save(tx, &row)?;
        tx.check(tx.keys().input_objects(), self.id.as_str(), None);
        tx.write(words("HSET").arg(tx.keys().input_objects()).arg(self.id.as_str()).arg(&self.key));
        Ok(row.input(&self.key).ok_or(StoreError::NotFound)?)
    }
}

impl Keep {
    /// What is kept already makes the new object superfluous, unless that is the very same one.
    async fn give_up_the_second(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        match Found::by_key(tx, &self.key).await? {
            Some(second) if second.row.kept.is_none() => second.save(tx, &InputRow { kept: None, expires_at: tx.now }),
            _ => Ok(()),
        }
    }
}

/// `InputStore::refresh`.
pub(in crate::store::redis) struct Refresh {
    pub(in crate::store::redis) ids: Vec<InputId>,
    pub(in crate::store::redis) keep: Duration,
}

impl Operation for Refresh {
    type Answer = Vec<Input>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Input>, Fault> {
        let mut ids: Vec<&InputId> = self.ids.iter().collect();
        ids.sort();
        ids.dedup();
        let mut kept = Vec::new();
        for id in ids {
            let Some(found) = Found::by_id(tx, id).await? else { continue };
            let mut row = found.row.clone();
            row.expires_at = row.expires_at.max(tx.now.after(self.keep));
            found.save(tx, &row)?;
            kept.extend(row.input(&found.key));
        }
        Ok(kept)
    }
}

/// `InputStore::note_fetched`.
pub(in crate::store::redis) struct NoteFetched {
    pub(in crate::store::redis) task: TaskId,
    pub(in crate::store::redis) url: String,
    pub(in crate::store::redis) id: InputId,
}

impl Operation for NoteFetched {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        if tx.find(self.task).await?.is_none() {
            return Ok(());
        }
        if let Some(row) = tx.touch(self.task) {
            row.files.insert(self.id.clone());
        }
        let key = tx.keys().fetched(self.task);
        tx.write(words("HSET").arg(key).arg(&self.url).arg(self.id.as_str()));
        Ok(())
    }
}

/// `InputStore::give_up`.
pub(in crate::store::redis) struct GiveUp {
    pub(in crate::store::redis) limit: u32,
}

impl Operation for GiveUp {
    type Answer = Vec<String>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<String>, Fault> {
        let (limit, keys) = (usize::try_from(self.limit).unwrap_or(usize::MAX), tx.keys());
        let (mut given_up, mut place) = (Vec::new(), 0);
        while given_up.len() < limit {
            let mut pipe = redis::pipe();
            pipe.zrangebylex_limit(keys.input_ages(), "-", until(tx.now), place, PAGE.cast_signed());
            let (page,): (Vec<Vec<u8>>,) = tx.ask(&pipe).await?;
            place += PAGE.cast_signed();
            for member in &page {
                let key = member.get(8..).and_then(|key| std::str::from_utf8(key).ok());
                let key = key.ok_or_else(|| corrupt("the key of a file is no text"))?;
                let Some(found) = Found::by_key(tx, key).await? else { continue };
                if given_up.len() < limit && self.is_free(tx, &found).await? {
                    given_up.push(key.to_owned());
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        Ok(given_up)
    }
}

impl GiveUp {
    /// Whether nobody needs it; then nobody finds it from now on.
    async fn is_free(&self, tx: &mut Tx<'_>, found: &Found) -> Result<bool, Fault> {
        let Some((id, _)) = &found.row.kept else { return Ok(true) };
        if tx.field(tx.keys().input_needs(), id.as_str()).await?.is_some() {
            return Ok(false);
        }
        tx.check(tx.keys().input_needs(), id.as_str(), None);
        tx.write(words("HDEL").arg(tx.keys().input_objects()).arg(id.as_str()));
        found.save(tx, &InputRow { kept: None, expires_at: found.row.expires_at })?;
        Ok(true)
    }
}

/// `InputStore::forget`.
pub(in crate::store::redis) struct Forget(pub(in crate::store::redis) Vec<String>);

impl Operation for Forget {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let keys = tx.keys();
        for key in &self.0 {
            let Some(found) = Found::by_key(tx, key).await?.filter(|found| found.row.kept.is_none()) else { continue };
            tx.check(keys.inputs(), key.clone(), Some(&found.text));
            tx.write(words("HDEL").arg(keys.inputs()).arg(key));
            tx.write(words("ZREM").arg(keys.input_ages()).arg(age(found.row.expires_at, key).as_slice()));
        }
        Ok(())
    }
}
