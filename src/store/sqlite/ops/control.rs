//! What clients change about tasks and about the queue.

use crate::store::{
    columns::pause,
    sqlite::{
        fault::Fault,
        rows::corrupt,
        statement::query,
        tx::Tx,
        writer::{Operation, Reach},
    },
};
use comfyd_actors::{
    domain::{
        id::TaskId,
        progress::NodeTiming,
        task::{Change, Task},
    },
    ports::store::{Hold, Pausable, Pause},
};

/// The queue's own name is empty, so it comes first.
pub(in crate::store::sqlite) const PAUSES: &str = "SELECT backend, since, move_at FROM pauses ORDER BY backend";
const PAUSE: &str = "INSERT INTO pauses (backend, since) VALUES (?, ?) ON CONFLICT (backend) DO NOTHING";
const DRAIN: &str = "INSERT INTO pauses (backend, since, move_at) VALUES (?, ?, ?)
    ON CONFLICT (backend) DO UPDATE SET move_at = excluded.move_at";
const RESUME: &str = "DELETE FROM pauses WHERE backend = ?";

/// `TaskStore::amend`.
pub(in crate::store::sqlite) struct Amend {
    pub(in crate::store::sqlite) id: TaskId,
    pub(in crate::store::sqlite) change: Change,
}

impl Operation for Amend {
    type Answer = Task;

    fn is_promise(&self) -> bool {
        self.change.is_promise()
    }

    fn reach(&self) -> Reach {
        Reach::Task(self.id)
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Task, Fault> {
        let mut task = tx.load(self.id).await?;
        if !task.fulfils(&self.change) {
            tx.change(&mut task, None, self.change).await?;
        }
        Ok(task)
    }
}

/// `TaskStore::set_paused`.
pub(in crate::store::sqlite) struct SetPaused {
    pub(in crate::store::sqlite) what: Pausable,
    pub(in crate::store::sqlite) hold: Hold,
}

impl Operation for SetPaused {
    type Answer = Vec<Pause>;

    fn is_promise(&self) -> bool {
        true
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<Vec<Pause>, Fault> {
        let name = match self.what {
            Pausable::Queue => String::new(),
            Pausable::Backend(backend) => backend.as_str().to_owned(),
        };
        tx.write(match self.hold {
            Hold::Resume => query(RESUME).bind(name),
            Hold::Pause => query(PAUSE).bind(name).bind(tx.now.0),
            Hold::Drain { move_at } => query(DRAIN).bind(name).bind(tx.now.0).bind(move_at.map(|at| at.0)),
        });
        let paused = tx.fetch(query(PAUSES)).await?;
        Ok(paused.iter().map(pause).collect::<Result<_, _>>()?)
    }
}

/// `WorkSource::note_run`.
pub(in crate::store::sqlite) struct NoteRun {
    pub(in crate::store::sqlite) id: TaskId,
    pub(in crate::store::sqlite) dispatch: i64,
    pub(in crate::store::sqlite) nodes: Vec<NodeTiming>,
}

impl Operation for NoteRun {
    type Answer = ();

    fn can_wait(&self) -> bool {
        true
    }

    fn reach(&self) -> Reach {
        Reach::Task(self.id)
    }

    async fn run(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let nodes = serde_json::to_string(&self.nodes).map_err(corrupt)?;
        tx.note_run(self.id, self.dispatch, nodes);
        Ok(())
    }
}
