//! What clients change about tasks and about the queue.

use std::collections::BTreeMap;

use comfyd_actors::{
    domain::{
        id::{BackendId, TaskId},
        progress::NodeTiming,
        task::{Change, Task},
    },
    ports::store::{Hold, Pausable, Pause, StoreError},
};

use super::Operation;
use crate::store::redis::{
    rows::{NodesRow, PauseRow, from_json, json},
    tx::{Fault, Tx, words},
};

/// `TaskStore::amend`.
pub(in crate::store::redis) struct Amend {
    pub(in crate::store::redis) id: TaskId,
    pub(in crate::store::redis) change: Change,
}

impl Operation for Amend {
    type Answer = Task;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Task, Fault> {
        let task = tx.load(self.id).await?;
        if task.fulfils(&self.change) { Ok(task) } else { tx.change(self.id, None, self.change.clone()).await }
    }
}

/// `TaskStore::set_paused`.
pub(in crate::store::redis) struct SetPaused {
    pub(in crate::store::redis) what: Pausable,
    pub(in crate::store::redis) hold: Hold,
}

impl Operation for SetPaused {
    type Answer = Vec<Pause>;

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Pause>, Fault> {
        let key = tx.keys().pauses();
        let name = match &self.what {
            Pausable::Queue => String::new(),
            Pausable::Backend(backend) => backend.to_string(),
        };
        let (mut paused,): (BTreeMap<String, String>,) = tx.ask(redis::pipe().hgetall(&key)).await?;
        let before = paused.get(&name).cloned();
        tx.check(key.clone(), name.clone(), before.as_deref());
        let row: Option<PauseRow> = before.as_deref().map(from_json).transpose()?;
        let row = row.unwrap_or(PauseRow { since: tx.now, move_at: None });
        let after = match self.hold {
            Hold::Resume => None,
            Hold::Pause => Some(row),
            Hold::Drain { move_at } => Some(PauseRow { move_at, ..row }),
        };
        match after {
            Some(row) => {
                let row = json(&row)?;
                tx.write(words("HSET").arg(key).arg(&name).arg(&row));
                paused.insert(name, row);
            }
            None => {
                tx.write(words("HDEL").arg(key).arg(&name));
                paused.remove(&name);
            }
        }
        Ok(pauses(&paused)?)
    }
}

/// What is paused, from its rows. The queue's own name is empty, so it comes first.
pub(in crate::store::redis) fn pauses(rows: &BTreeMap<String, String>) -> Result<Vec<Pause>, StoreError> {
    let pause = |(name, row): (&String, &String)| {
        let PauseRow { since, move_at } = from_json(row)?;
        let what = if name.is_empty() { Pausable::Queue } else { Pausable::Backend(BackendId::new(name.as_str())) };
        Ok(Pause { what, since, move_at })
    };
    rows.iter().map(pause).collect()
}

/// `WorkSource::note_run`.
pub(in crate::store::redis) struct NoteRun {
    pub(in crate::store::redis) id: TaskId,
    pub(in crate::store::redis) dispatch: i64,
    pub(in crate::store::redis) nodes: Vec<NodeTiming>,
}

impl Operation for NoteRun {
    type Answer = ();

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        if tx.find(self.id).await?.is_some_and(|task| task.dispatch == self.dispatch) {
            tx.touch(self.id);
            let row = json(&NodesRow { dispatch: self.dispatch, nodes: self.nodes.clone() })?;
            tx.write(words("HSET").arg(tx.keys().task(self.id)).arg("nodes").arg(row));
        }
        Ok(())
    }
}
