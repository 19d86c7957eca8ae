//! One transaction of the writer, and the steps operations are made of: load, apply, save.

use comfyd_actors::{
    domain::{
        artifact::{Artifact, StoredObject},
        id::TaskId,
        task::{ArtifactEdit, Change, Fence, Refusal, Task, TaskState},
        time::Timestamp,
    },
    ports::store::{Assignment, Changed, StoreError},
};
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{
    fault::Fault,
    rows::{self, SAVE, Statement, bind_save, corrupt, key},
};

/// The transaction, with one savepoint for the operation that runs now.
pub(super) struct Tx<'c> {
    conn: &'c mut SqliteConnection,
    /// The store's time while the operation runs.
    pub(super) now: Timestamp,
    /// To be told after the commit.
    pub(super) changed: Vec<Changed>,
}

// Every call is a trip to the connection's thread and back, so what always comes together goes in one.
const BEGIN: &str = "BEGIN IMMEDIATE; SAVEPOINT operation";
const NEXT: &str = "RELEASE operation; SAVEPOINT operation";
const UNDO: &str = "ROLLBACK TO operation";

const LOAD: &str = concat!("SELECT ", task_columns!(), " FROM tasks t WHERE t.id = ?");

/// In a query of several statements the arguments of all of them follow one another.
const REPLACE_ARTIFACTS: &str = "DELETE FROM task_outputs WHERE task_id = ?;
     INSERT INTO task_outputs (task_id, idx, node_id, kind, filename, subfolder, folder_type, text, object_key, content_type, bytes,
                               sha256, facts)
     SELECT ?, value ->> 'index', value ->> 'node_id', value ->> 'kind', value ->> '$.source.filename', value ->> '$.source.subfolder',
            value ->> '$.source.type', value ->> '$.source.text', value ->> '$.object.key', value ->> '$.object.content_type', value ->> '$.object.bytes',
            value ->> '$.object.sha256', value -> '$.object.facts'
     FROM json_each(?)";

const STORE_ARTIFACT: &str = "UPDATE task_outputs SET object_key = ?, content_type = ?, bytes = ?, sha256 = ?, facts = ? WHERE task_id = ? AND idx = ?";

impl<'c> Tx<'c> {
    /// Begins it, ready for the first operation. IMMEDIATE, because a transaction that starts by reading and then finds another process
    /// writing fails at once instead of waiting its turn.
    pub(super) async fn begin(conn: &'c mut SqliteConnection) -> Result<Self, sqlx::Error> {
        sqlx::query(BEGIN).execute(&mut *conn).await?;
        Ok(Self { conn, now: Timestamp::default(), changed: Vec::new() })
    }

    /// Keeps what the operation did and starts the next one.
    pub(super) async fn next_operation(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query(NEXT).execute(&mut *self.conn).await.map(drop)
    }

    /// Takes back what the operation did.
    pub(super) async fn undo_operation(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query(UNDO).execute(&mut *self.conn).await.map(drop)
    }

    /// Makes it all durable.
    pub(super) async fn commit(self) -> Result<Vec<Changed>, sqlx::Error> {
        sqlx::query("COMMIT").execute(&mut *self.conn).await?;
        Ok(self.changed)
    }

    /// Runs a statement; how many rows it touched.
    pub(super) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, Fault> {
        Ok(statement.execute(&mut *self.conn).await?.rows_affected())
    }

    /// Runs a query.
    pub(super) async fn fetch(&mut self, query: Statement<'_>) -> Result<Vec<SqliteRow>, Fault> {
        Ok(query.fetch_all(&mut *self.conn).await?)
    }

    /// Runs a query that answers with whole assignments.
    pub(super) async fn assignments(&mut self, query: Statement<'_>) -> Result<Vec<Assignment>, Fault> {
        let rows = self.fetch(query).await?;
        Ok(rows.iter().map(rows::assignment).collect::<Result<_, _>>()?)
    }

    /// One task, if it is there.
    pub(super) async fn find(&mut self, id: TaskId) -> Result<Option<Task>, Fault> {
        let row = sqlx::query(LOAD).bind(key(id)).fetch_optional(&mut *self.conn).await?;
        Ok(row.as_ref().map(rows::task).transpose()?)
    }

    /// One task.
    pub(super) async fn load(&mut self, id: TaskId) -> Result<Task, Fault> {
        Ok(self.find(id).await?.ok_or(StoreError::NotFound)?)
    }

    /// Applies a change to a loaded task and saves what comes out.
    pub(super) async fn change(&mut self, task: &mut Task, fence: Option<Fence>, change: Change) -> Result<(), Fault> {
        let was = task.state;
        let edit = task.apply(fence, change, self.now)?;
        let save = bind_save(sqlx::query(SAVE), task)?;
        self.execute(save).await?;
        match edit {
            ArtifactEdit::Keep => {}
            ArtifactEdit::Replace(artifacts) => self.replace_artifacts(task.id, &artifacts).await?,
            ArtifactEdit::Stored(index, object) => self.store_artifact(task.id, index, object).await?,
        }
        self.tell(task, Some(was));
        Ok(())
    }

    /// Has listeners told of it after the commit; it stood at `was` before.
    pub(super) fn tell(&mut self, task: &Task, was: Option<TaskState>) {
        self.changed.push(Changed::of(task, was));
    }

    async fn replace_artifacts(&mut self, id: TaskId, artifacts: &[Artifact]) -> Result<(), Fault> {
        let list = serde_json::to_string(artifacts).map_err(corrupt)?;
        self.execute(sqlx::query(REPLACE_ARTIFACTS).bind(key(id)).bind(key(id)).bind(list)).await.map(drop)
    }

    async fn store_artifact(&mut self, id: TaskId, index: u32, object: StoredObject) -> Result<(), Fault> {
        let bytes = i64::try_from(object.bytes).map_err(corrupt)?;
        let facts = serde_json::to_string(&object.facts).map_err(corrupt)?;
        let store =
            sqlx::query(STORE_ARTIFACT).bind(object.key).bind(object.content_type).bind(bytes).bind(object.sha256);
        let planned = self.execute(store.bind(facts).bind(key(id)).bind(index)).await? > 0;
        if planned { Ok(()) } else { Err(Refusal::WrongState.into()) }
    }
}
