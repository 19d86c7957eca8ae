//! What clients change about tasks and about the queue.

use comfyd_actors::{
    domain::{
        id::TaskId,
        progress::NodeTiming,
        task::{Change, Task},
    },
    ports::store::{Hold, Pausable, Pause},
};

use crate::store::{
    columns::pause,
    postgres::{
        fault::Fault,
        rows::{json, text},
        tx::Tx,
        writer::Operation,
    },
};

pub(in crate::store::postgres) const PAUSES: &str = "SELECT backend, since, move_at FROM pauses ORDER BY backend";
const PAUSE: &str = "INSERT INTO pauses (backend, since) VALUES ($1, $2) ON CONFLICT (backend) DO NOTHING";
const DRAIN: &str = "INSERT INTO pauses (backend, since, move_at) VALUES ($1, $2, $3)
    ON CONFLICT (backend) DO UPDATE SET move_at = excluded.move_at";
const RESUME: &str = "DELETE FROM pauses WHERE backend = $1";

/// `TaskStore::amend`.
pub(in crate::store::postgres) struct Amend {
    pub(in crate::store::postgres) id: TaskId,
    pub(in crate::store::postgres) change: Change,
}

impl Operation for Amend {
    type Answer = Task;

    fn is_promise(&self) -> bool {
        self.change.is_promise()
    }

    fn reach(&self) -> Vec<TaskId> {
        vec![self.id]
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Task, Fault> {
        let mut task = tx.load(self.id).await?;
        if !task.fulfils(&self.change) {
            tx.change(&mut task, None, self.change.clone()).await?;
        }
        Ok(task)
    }
}

/// `TaskStore::set_paused`.
pub(in crate::store::postgres) struct SetPaused {
    pub(in crate::store::postgres) what: Pausable,
    pub(in crate::store::postgres) hold: Hold,
}

impl Operation for SetPaused {
    type Answer = Vec<Pause>;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<Vec<Pause>, Fault> {
        let name = match &self.what {
            Pausable::Queue => String::new(),
            Pausable::Backend(backend) => text(backend.as_str()),
        };
        let now = tx.now.0;
        tx.write(match self.hold {
            Hold::Resume => sqlx::query(RESUME).bind(name),
            Hold::Pause => sqlx::query(PAUSE).bind(name).bind(now),
            Hold::Drain { move_at } => sqlx::query(DRAIN).bind(name).bind(now).bind(move_at.map(|at| at.0)),
        })
        .await?;
        let paused = tx.read(sqlx::query(PAUSES)).await?;
        Ok(paused.iter().map(pause).collect::<Result<_, _>>()?)
    }
}

/// `WorkSource::note_run`.
pub(in crate::store::postgres) struct NoteRun {
    pub(in crate::store::postgres) id: TaskId,
    pub(in crate::store::postgres) dispatch: i64,
    pub(in crate::store::postgres) nodes: Vec<NodeTiming>,
}

impl Operation for NoteRun {
    type Answer = ();

    fn reach(&self) -> Vec<TaskId> {
        vec![self.id]
    }

    async fn run(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let nodes = json(&self.nodes)?;
        if tx.peek(self.id).await?.is_some_and(|task| task.dispatch == self.dispatch) {
            tx.note_run(self.id, self.dispatch, nodes);
        }
        Ok(())
    }
}
