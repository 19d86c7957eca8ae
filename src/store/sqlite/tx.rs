//! One transaction of the writer, and the steps operations are made of: load, apply, save.
//!
//! Statements that only write wait until the operation reads something or ends, and then travel in one trip (see `statement`). The
//! transaction begins with the first trip and commits with the last one, so an operation that loads a task and saves it takes two.

use std::collections::HashMap;

use comfyd_actors::{
    domain::{
        artifact::{Artifact, StoredObject},
        event::{Fact, Stage, facts},
        id::TaskId,
        task::{ArtifactEdit, Change, Fence, Refusal, Task, TaskState},
        time::Timestamp,
    },
    ports::store::{Assignment, Changed, StoreError},
};
use sqlx::{AssertSqlSafe, Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    fault::Fault,
    rows::{self, corrupt, key, keys},
    statement::{Statement, join, query},
};

/// The transaction, with one savepoint for the operation that runs now.
pub(super) struct Tx<'c> {
    conn: &'c mut SqliteConnection,
    /// The store's time while the operation runs.
    pub(super) now: Timestamp,
    /// To be told after the commit.
    changed: Vec<Changed>,
    /// How much of `changed` belongs to operations that are over.
    kept: usize,
    /// Tasks as they are now, as far as they are known: read together for the whole batch, kept up by its changes.
    loaded: HashMap<TaskId, Task>,
    /// Not sent yet, in order.
    waiting: Vec<Statement>,
    /// To be set on the connection first.
    setting: Option<&'static str>,
    begun: bool,
    /// The running operation has its savepoint.
    saved: bool,
}

// IMMEDIATE, because a transaction that starts by reading and then finds another process writing fails at once instead of waiting its
// turn.
const BEGIN: &str = "BEGIN IMMEDIATE";
const SAVE_POINT: &str = "SAVEPOINT operation";
const KEEP: &str = "RELEASE operation";
const UNDO: &str = "ROLLBACK TO operation; RELEASE operation";
const COMMIT: &str = "COMMIT";
const CHANGES: &str = "SELECT changes()";

const LOAD: &str = concat!("SELECT ", task_columns!(), " FROM tasks t WHERE t.id = ?");

const LOAD_MANY: &str =
    concat!("SELECT ", task_columns!(), " FROM tasks t WHERE t.id IN (SELECT unhex(value) FROM json_each(?))");

/// In a query of several statements the arguments of all of them follow one another.
const REPLACE_ARTIFACTS: &str = "DELETE FROM task_outputs WHERE task_id = ?;
     INSERT INTO task_outputs (task_id, idx, node_id, kind, filename, subfolder, folder_type, text, object_key, content_type, bytes,
                               sha256, facts)
     SELECT ?, value ->> 'index', value ->> 'node_id', value ->> 'kind', value ->> '$.source.filename', value ->> '$.source.subfolder',
            value ->> '$.source.type', value ->> '$.source.text', value ->> '$.object.key', value ->> '$.object.content_type', value ->> '$.object.bytes',
            value ->> '$.object.sha256', value -> '$.object.facts'
     FROM json_each(?)";

const FORGET_ARTIFACTS: &str = "DELETE FROM task_outputs WHERE task_id = ?";

const STORE_ARTIFACT: &str = "UPDATE task_outputs SET object_key = ?, content_type = ?, bytes = ?, sha256 = ?, facts = ? WHERE task_id = ? AND idx = ?";

const STAGE_BEGAN: &str =
    "INSERT INTO task_events (task_id, at, dispatch, attempt, stage, error) VALUES (?, ?, ?, ?, ?, ?)";

/// Those told before are not told again.
const OUTPUTS_STORED: &str = "INSERT INTO task_events (task_id, at, dispatch, attempt, output)
     SELECT ?, ?, ?, ?, value FROM json_each(?) WHERE true ORDER BY key ON CONFLICT DO NOTHING";

/// The life of the transaction: what the writer calls.
impl<'c> Tx<'c> {
    /// On a connection without an open transaction, beginning with a `setting` of that connection. Nothing is sent yet.
    pub(super) fn new(conn: &'c mut SqliteConnection, setting: Option<&'static str>) -> Self {
        Self {
            conn,
            now: Timestamp::default(),
            changed: Vec::new(),
            kept: 0,
            loaded: HashMap::new(),
            waiting: Vec::new(),
            setting,
            begun: false,
            saved: false,
        }
    }

    /// Begins, and reads the tasks the batch is going to ask for.
    pub(super) async fn prefetch(&mut self, ids: impl ExactSizeIterator<Item = TaskId>) -> Result<(), Fault> {
        if ids.len() == 0 {
            return Ok(());
        }
        let mut statements = self.beginning();
        statements.push(query(LOAD_MANY).bind(keys(ids)));
        let found = self.trip(statements).await?;
        for row in &found {
            // One that cannot be read is the fault of the operation that asks for it, and is told to that one.
            if let Ok(task) = rows::task(row) {
                self.loaded.insert(task.id, task);
            }
        }
        Ok(())
    }

    /// Keeps what the operation did and starts the next one; after the `last` one the transaction is committed.
    ///
    /// # Errors
    /// `Refused` when its statements broke a rule of the tables: then it must be [undone](Self::undo_operation).
    pub(super) async fn keep_operation(&mut self, last: bool) -> Result<(), Fault> {
        if !self.saved && self.waiting.is_empty() {
            self.kept = self.changed.len();
            return if last { self.commit().await } else { Ok(()) };
        }
        let mut ending = self.opening();
        ending.append(&mut self.waiting);
        ending.push(query(KEEP));
        if last {
            ending.push(query(COMMIT));
        }
        self.trip(ending).await?;
        self.saved = false;
        self.kept = self.changed.len();
        Ok(())
    }

    /// Takes back what the operation did, and starts the next one.
    pub(super) async fn undo_operation(&mut self, last: bool) -> Result<(), Fault> {
        self.waiting.clear();
        self.changed.truncate(self.kept);
        // It may have changed tasks in here; they are read again when asked for.
        self.loaded.clear();
        if std::mem::take(&mut self.saved) {
            self.trip(vec![query(UNDO)]).await?;
        }
        if last { self.commit().await } else { Ok(()) }
    }

    /// After the commit: what listeners are to be told, and the setting when nothing was sent at all.
    pub(super) fn end(self) -> (Vec<Changed>, Option<&'static str>) {
        (self.changed, self.setting)
    }

    async fn commit(&mut self) -> Result<(), Fault> {
        if self.begun {
            self.trip(vec![query(COMMIT)]).await?;
        }
        Ok(())
    }

    /// What must come before the next statement. `SQLite` takes settings between transactions only.
    fn beginning(&mut self) -> Vec<Statement> {
        if std::mem::replace(&mut self.begun, true) {
            return Vec::new();
        }
        self.setting.take().into_iter().chain([BEGIN]).map(query).collect()
    }

    /// What must come before the next statement of this operation.
    fn opening(&mut self) -> Vec<Statement> {
        let mut opening = self.beginning();
        if !std::mem::replace(&mut self.saved, true) {
            opening.push(query(SAVE_POINT));
        }
        opening
    }

    async fn trip(&mut self, statements: Vec<Statement>) -> Result<Vec<SqliteRow>, Fault> {
        let (sql, arguments) = join(statements).map_err(corrupt)?;
        Ok(sqlx::query_with(AssertSqlSafe(sql), arguments).fetch_all(&mut *self.conn).await?)
    }
}

/// Statements.
impl Tx<'_> {
    /// Has a statement run before anything is read and before the operation ends.
    pub(super) fn write(&mut self, statement: Statement) {
        self.waiting.push(statement);
    }

    /// Runs a statement now; how many rows it touched.
    pub(super) async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        self.write(statement);
        let count = self.fetch(query(CHANGES)).await?;
        Ok(count.first().map_or(Ok(0), |row| row.try_get(0))?)
    }

    /// Runs a query, after what waits.
    pub(super) async fn fetch(&mut self, statement: Statement) -> Result<Vec<SqliteRow>, Fault> {
        let mut statements = self.opening();
        statements.append(&mut self.waiting);
        statements.push(statement);
        self.trip(statements).await
    }

    /// Runs a query that answers with whole assignments.
    pub(super) async fn assignments(&mut self, statement: Statement) -> Result<Vec<Assignment>, Fault> {
        let rows = self.fetch(statement).await?;
        Ok(rows.iter().map(rows::assignment).collect::<Result<_, _>>()?)
    }
}

/// Tasks.
impl Tx<'_> {
    /// One task, if it is there.
    pub(super) async fn find(&mut self, id: TaskId) -> Result<Option<Task>, Fault> {
        if let Some(task) = self.loaded.get(&id) {
            return Ok(Some(task.clone()));
        }
        let found = self.fetch(query(LOAD).bind(key(id))).await?;
        Ok(found.first().map(rows::task).transpose()?)
    }

    /// One task.
    pub(super) async fn load(&mut self, id: TaskId) -> Result<Task, Fault> {
        Ok(self.find(id).await?.ok_or(StoreError::NotFound)?)
    }

    /// Several tasks, as far as they are there.
    pub(super) async fn load_many(
        &mut self,
        ids: impl Iterator<Item = TaskId>,
    ) -> Result<HashMap<TaskId, Task>, Fault> {
        let found = self.fetch(query(LOAD_MANY).bind(keys(ids))).await?;
        let tasks = found.iter().map(|row| rows::task(row).map(|task| (task.id, task)));
        Ok(tasks.collect::<Result<_, _>>()?)
    }

    /// Applies a change to a loaded task and saves what comes out.
    pub(super) async fn change(&mut self, task: &mut Task, fence: Option<Fence>, change: Change) -> Result<(), Fault> {
        let (was, before) = (task.state, Stage::of(task));
        let edit = task.apply(fence, change, self.now)?;
        let facts = facts(Some(before), task, &edit);
        self.write(rows::save(task)?);
        match edit {
            ArtifactEdit::Keep => {}
            ArtifactEdit::Replace(artifacts) => self.replace_artifacts(task.id, &artifacts)?,
            ArtifactEdit::Stored(index, object) => self.store_artifact(task.id, index, object).await?,
        }
        self.write_down(task, facts)?;
        self.tell(task, Some(was));
        Ok(())
    }

    /// Makes events of what happened to a task just now: one statement for its outputs, however many, and one for its stage.
    pub(super) fn write_down(&mut self, task: &Task, facts: Vec<Fact>) -> Result<(), Fault> {
        let mut outputs = Vec::new();
        let mut stages = Vec::new();
        for fact in facts {
            match fact {
                Fact::Output { index, .. } => outputs.push(index),
                Fact::Stage { stage, error, .. } => {
                    let error = error.map(|error| serde_json::to_string(&error)).transpose().map_err(corrupt)?;
                    stages.push(self.event(STAGE_BEGAN, task).bind(stage.as_str()).bind(error));
                }
            }
        }
        if !outputs.is_empty() {
            let outputs = serde_json::to_string(&outputs).map_err(corrupt)?;
            let stored = self.event(OUTPUTS_STORED, task).bind(outputs);
            self.write(stored);
        }
        self.waiting.append(&mut stages);
        Ok(())
    }

    fn event(&self, sql: &'static str, task: &Task) -> Statement {
        query(sql).bind(key(task.id)).bind(self.now.0).bind(task.dispatch).bind(task.attempt)
    }

    /// Has listeners told of it after the commit, and the batch's other operations see it; it stood at `was` before.
    pub(super) fn tell(&mut self, task: &Task, was: Option<TaskState>) {
        self.loaded.insert(task.id, task.clone());
        self.changed.push(Changed::of(task, was));
    }

    /// These are deleted.
    pub(super) fn gone(&mut self, ids: &[TaskId]) {
        for id in ids {
            self.loaded.remove(id);
        }
    }

    fn replace_artifacts(&mut self, id: TaskId, artifacts: &[Artifact]) -> Result<(), Fault> {
        let statement = if artifacts.is_empty() {
            query(FORGET_ARTIFACTS).bind(key(id))
        } else {
            let list = serde_json::to_string(artifacts).map_err(corrupt)?;
            query(REPLACE_ARTIFACTS).bind(key(id)).bind(key(id)).bind(list)
        };
        self.write(statement);
        Ok(())
    }

    async fn store_artifact(&mut self, id: TaskId, index: u32, object: StoredObject) -> Result<(), Fault> {
        let bytes = i64::try_from(object.bytes).map_err(corrupt)?;
        let facts = serde_json::to_string(&object.facts).map_err(corrupt)?;
        let store = query(STORE_ARTIFACT).bind(object.key).bind(object.content_type).bind(bytes).bind(object.sha256);
        let planned = self.execute(store.bind(facts).bind(key(id)).bind(index)).await? > 0;
        if planned { Ok(()) } else { Err(Refusal::WrongState.into()) }
    }
}
