//! The reference for the files clients give: a map from keys to rows, searched from end to end.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use super::{MemoryStore, Shelf, up_to};
use crate::{
    domain::{
        id::TaskId,
        input::{About, Input, InputId},
        time::Timestamp,
    },
    ports::{input_store::InputStore, store::StoreError},
};

/// Rows by the key of their object.
pub(super) type Rows = BTreeMap<String, Row>;

/// An object, and what it is once it is whole.
pub(super) struct Row {
    kept: Option<(InputId, About)>,
    expires_at: Timestamp,
}

impl Row {
    fn is(&self, id: &InputId) -> bool {
        self.kept.as_ref().is_some_and(|(kept, _)| kept == id)
    }

    fn input(&self, key: &str) -> Option<Input> {
        let (id, about) = self.kept.clone()?;
        Some(Input { id, key: key.to_owned(), about, expires_at: self.expires_at })
    }
}

impl Shelf {
    fn input(&self, id: &InputId) -> Option<Input> {
        self.inputs.iter().find(|(_, row)| row.is(id)).and_then(|(key, row)| row.input(key))
    }

    fn refresh(&mut self, id: &InputId, until: Timestamp) -> Option<Input> {
        let row = self.inputs.values_mut().find(|row| row.is(id))?;
        row.expires_at = row.expires_at.max(until);
        self.input(id)
    }
}

#[async_trait]
impl InputStore for MemoryStore {
    async fn reserve(&self, key: &str, patience: Duration) -> Result<(), StoreError> {
        let row = Row { kept: None, expires_at: self.now().after(patience) };
        self.open()?.inputs.insert(key.to_owned(), row);
        Ok(())
    }

    async fn keep(&self, key: &str, id: &InputId, about: &About, keep: Duration) -> Result<Input, StoreError> {
        let (mut shelf, now) = (self.open()?, self.now());
        if shelf.refresh(id, now.after(keep)).is_some() {
            for (other, row) in &mut shelf.inputs {
                match &mut row.kept {
                    Some((kept, known)) if kept == id => known.name.clone_from(&about.name),
                    None if other == key => row.expires_at = now,
                    _ => {}
                }
            }
        } else {
            let row = shelf
                .inputs
                .get_mut(key)
                .filter(|row| row.kept.is_none() && row.expires_at > now)
                .ok_or(StoreError::NotFound)?;
            *row = Row { kept: Some((id.clone(), about.clone())), expires_at: now.after(keep) };
        }
        shelf.input(id).ok_or(StoreError::NotFound)
    }

    async fn refresh(&self, ids: &[InputId], keep: Duration) -> Result<Vec<Input>, StoreError> {
        let (mut shelf, until) = (self.open()?, self.now().after(keep));
        let mut ids = ids.to_vec();
        ids.sort();
        ids.dedup();
        Ok(ids.iter().filter_map(|id| shelf.refresh(id, until)).collect())
    }

    async fn find(&self, id: &InputId) -> Result<Input, StoreError> {
        self.open()?.input(id).ok_or(StoreError::NotFound)
    }

    async fn note_fetched(&self, task: TaskId, url: &str, id: &InputId) -> Result<(), StoreError> {
        if let Some(row) = self.open()?.tasks.get_mut(&task) {
            row.fetched.insert(url.to_owned(), id.clone());
        }
        Ok(())
    }

    async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        let shelf = self.open()?;
        let fetched = shelf.tasks.get(&task).into_iter().flat_map(|row| &row.fetched);
        Ok(fetched.filter_map(|(url, id)| Some((url.clone(), shelf.input(id)?))).collect())
    }

    async fn give_up(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        let (mut shelf, now) = (self.open()?, self.now());
        let needed = shelf.needed();
        let free = |row: &Row| row.kept.as_ref().is_none_or(|(id, _)| !needed.contains(id));
        let due = shelf.inputs.iter().filter(|(_, row)| row.expires_at <= now && free(row));
        let mut due: Vec<_> = due.map(|(key, row)| (row.expires_at, key.clone())).collect();
        due.sort();
        due.truncate(up_to(limit));
        let keys: Vec<String> = due.into_iter().map(|(_, key)| key).collect();
        for key in &keys {
            if let Some(row) = shelf.inputs.get_mut(key) {
                row.kept = None;
            }
        }
        Ok(keys)
    }

    async fn forget(&self, keys: &[String]) -> Result<(), StoreError> {
        self.open()?.inputs.retain(|key, row| row.kept.is_some() || !keys.contains(key));
        Ok(())
    }
}
