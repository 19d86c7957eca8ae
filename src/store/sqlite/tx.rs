//! One transaction of the writer, and the steps operations are made of: load, apply, save.
//!
//! What operations do to tasks is kept as values ([`Unwritten`]) until something is read or the transaction ends. Other statements that
//! only write wait until their operation reads something or ends; they get a savepoint, because they may break a rule of the tables.
//! What is sent travels in as few trips as can be (see `statement`): the transaction begins with the first one and commits with the last.

use std::collections::{BTreeSet, HashMap};

use comfyd_actors::{
    domain::{
        artifact::StoredObject,
        event::{Stage, facts},
        id::TaskId,
        moment::Moment,
        task::{ArtifactEdit, Change, Fence, Refusal, Task, TaskState},
        time::Timestamp,
    },
    ports::store::{Assignment, Changed, Durable, StoreError},
};
use sqlx::{AssertSqlSafe, Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    fault::Fault,
    flush::Promise,
    rows::{self, corrupt, key, keys},
    statement::{Statement, join, query},
    unwritten::Unwritten,
    writer::Reach,
};

/// The transaction, with one savepoint for the operation that runs now.
pub(super) struct Tx<'c> {
    conn: &'c mut SqliteConnection,
    /// The store's time.
    pub(super) now: Timestamp,
    /// The same, and whether it can be believed.
    pub(super) moment: Moment,
    /// To be told after the commit.
    changed: Vec<Changed>,
    /// To be told when the disk has it.
    promises: Vec<Promise>,
    /// How much of `changed` and `promises` belongs to operations that are over.
    kept: (usize, usize),
    /// Tasks as they are now, as far as they are known: read together for the whole batch, kept up by its changes.
    loaded: HashMap<TaskId, Task>,
    /// What the running operation replaced in `loaded`.
    replaced: Vec<(TaskId, Option<Task>)>,
    /// Rows of operations that are over.
    unwritten: Unwritten,
    /// Rows of the running operation.
    fresh: Unwritten,
    /// Other statements of the running operation, in order.
    waiting: Vec<Statement>,
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

const STORE_ARTIFACT: &str = "UPDATE task_outputs SET target = ?, object_key = ?, content_type = ?, bytes = ?, sha256 = ?, facts = ? WHERE task_id = ? AND idx = ?";

/// The life of the transaction: what the writer calls.
impl<'c> Tx<'c> {
    /// On a connection without an open transaction. Nothing is sent yet.
    pub(super) fn new(conn: &'c mut SqliteConnection, moment: Moment) -> Self {
        Self {
            conn,
            now: moment.now,
            moment,
            changed: Vec::new(),
            promises: Vec::new(),
            kept: (0, 0),
            loaded: HashMap::new(),
            replaced: Vec::new(),
            unwritten: Unwritten::default(),
            fresh: Unwritten::default(),
            waiting: Vec::new(),
            begun: false,
            saved: false,
        }
    }

    /// Begins, and reads the tasks the batch is going to ask for.
    pub(super) async fn prefetch(&mut self, batch: &[Reach]) -> Result<(), Fault> {
        let ids: BTreeSet<_> = batch
            .iter()
            .filter_map(|reach| match reach {
                Reach::Task(id) => Some(*id),
                Reach::Unheld | Reach::Any => None,
            })
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut statements = self.beginning();
        statements.push(query(LOAD_MANY).bind(keys(ids.into_iter())));
        let found = self.trip(statements).await?;
        for row in &found {
            // One that cannot be read is the fault of the operation that asks for it, and is told to that one.
            if let Ok(task) = rows::task(row) {
                self.loaded.insert(task.id, task);
            }
        }
        Ok(())
    }

    /// Keeps what the operation did, and starts the next one.
    ///
    /// # Errors
    /// `Refused` when its statements broke a rule of the tables: then it must be [undone](Self::undo_operation).
    pub(super) async fn keep_operation(&mut self) -> Result<(), Fault> {
        if self.saved || !self.waiting.is_empty() {
            self.operate(Some(query(KEEP))).await?;
            self.saved = false;
        }
        self.kept = (self.changed.len(), self.promises.len());
        self.replaced.clear();
        self.unwritten.append(&mut self.fresh);
        Ok(())
    }

    /// Takes back what the operation did, and starts the next one.
    pub(super) async fn undo_operation(&mut self) -> Result<(), Fault> {
        self.waiting.clear();
        self.fresh.clear();
        self.changed.truncate(self.kept.0);
        self.promises.truncate(self.kept.1);
        for (id, task) in self.replaced.drain(..).rev() {
            match task {
                Some(task) => self.loaded.insert(id, task),
                None => self.loaded.remove(&id),
            };
        }
        if std::mem::take(&mut self.saved) {
            self.trip(vec![query(UNDO)]).await?;
        }
        Ok(())
    }

    /// What listeners would be told if it committed now.
    pub(super) fn changed(&self) -> &[Changed] {
        &self.changed
    }

    /// Commits: what listeners are to be told, and who waits for the disk.
    pub(super) async fn commit(mut self) -> Result<(Vec<Changed>, Vec<Promise>), Fault> {
        let mut ending = self.write_all().await?;
        if self.begun {
            ending.push(query(COMMIT));
            self.trip(ending).await?;
        }
        Ok((self.changed, self.promises))
    }

    /// What must come before the next statement.
    fn beginning(&mut self) -> Vec<Statement> {
        if std::mem::replace(&mut self.begun, true) { Vec::new() } else { vec![query(BEGIN)] }
    }

    /// Writes the rows of the operations that are over, but for the last statements, which may travel with others.
    async fn write_all(&mut self) -> Result<Vec<Statement>, Fault> {
        let mut last = Vec::new();
        for group in self.unwritten.take()? {
            if !last.is_empty() {
                self.trip(std::mem::take(&mut last)).await.map_err(Fault::of_batch)?;
            }
            last = self.beginning();
            last.extend(group);
        }
        Ok(last)
    }

    /// Sends the statements of the running operation, and one more.
    async fn operate(&mut self, last: Option<Statement>) -> Result<Vec<SqliteRow>, Fault> {
        let mut statements = self.write_all().await?;
        let with_others = !statements.is_empty();
        statements.extend(self.beginning());
        if !std::mem::replace(&mut self.saved, true) {
            statements.push(query(SAVE_POINT));
        }
        statements.append(&mut self.waiting);
        statements.extend(last);
        let outcome = self.trip(statements).await;
        // Not knowing whose statement failed, nobody's can be trusted.
        if with_others { outcome.map_err(Fault::of_batch) } else { outcome }
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
        self.operate(Some(statement)).await
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
        let lane = change.new_lane().map(rows::insert_lane).transpose()?.flatten();
        let edit = task.apply(fence, change, self.now)?;
        self.waiting.extend(lane);
        self.write_down(task, Some(before), &edit);
        match edit {
            ArtifactEdit::Keep => {}
            ArtifactEdit::Replace(artifacts) => self.fresh.replace_artifacts(task.id, artifacts),
            ArtifactEdit::Stored(index, object) => self.store_artifact(task.id, index, object).await?,
        }
        self.fresh.save(task.clone());
        self.tell(task, Some(was));
        Ok(())
    }

    /// Makes events of what happened to a task just now: it stood at `before`.
    pub(super) fn write_down(&mut self, task: &Task, before: Option<Stage>, edit: &ArtifactEdit) {
        for fact in facts(before, task, edit) {
            self.fresh.tell(task, fact, self.now);
        }
    }

    /// Notes what the nodes of a task's run took, as JSON, if that is its newest.
    pub(super) fn note_run(&mut self, id: TaskId, dispatch: i64, nodes: String) {
        self.fresh.note_run(id, dispatch, nodes);
    }

    /// Tells when what the running operation did is safe from a power cut.
    pub(super) fn promise(&mut self) -> Durable {
        let (promise, durable) = Durable::later();
        self.promises.push(promise);
        durable
    }

    /// Has listeners told of it after the commit, and the batch's other operations see it; it stood at `was` before.
    pub(super) fn tell(&mut self, task: &Task, was: Option<TaskState>) {
        self.replaced.push((task.id, self.loaded.insert(task.id, task.clone())));
        self.changed.push(Changed::of(task, was));
    }

    /// These are deleted.
    pub(super) fn gone(&mut self, ids: &[TaskId]) {
        for id in ids {
            self.replaced.push((*id, self.loaded.remove(id)));
        }
    }

    async fn store_artifact(&mut self, id: TaskId, index: u32, object: StoredObject) -> Result<(), Fault> {
        let bytes = i64::try_from(object.bytes).map_err(corrupt)?;
        let facts = serde_json::to_string(&object.facts).map_err(corrupt)?;
        let store = query(STORE_ARTIFACT).bind(object.target).bind(object.key).bind(object.content_type).bind(bytes);
        let planned = self.execute(store.bind(object.sha256).bind(facts).bind(key(id)).bind(index)).await? > 0;
        if planned { Ok(()) } else { Err(Refusal::WrongState.into()) }
    }
}
