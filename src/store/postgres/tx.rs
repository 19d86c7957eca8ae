//! One transaction of the writer, and the steps operations are made of: load, apply, save.
//!
//! Whoever writes in the same order never waits in a circle, so this is the order: first, where it matters, the turn at the caps of tenants;
//! then the rows of all tasks that the batch names, by id; then whatever operations find on their way, where they can without waiting for
//! anybody (`SKIP LOCKED`); then endpoints of messages, by id; at the very end the log of events, which one transaction at a time may write
//! until it commits, so that numbers become visible in their order. What waits in a circle all the same is found out by the database and run again (`writer`).

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use comfyd_actors::{
    domain::{
        artifact::{Artifact, StoredObject},
        event::{Stage, facts},
        id::TaskId,
        lane::Lane,
        moment::Moment,
        task::{ArtifactEdit, Change, Fence, Refusal, Task, TaskState},
        time::Timestamp,
    },
    ports::store::{Assignment, Changed, NewTask, StoreError},
};
use sqlx::{PgConnection, postgres::PgRow};
use uuid::Uuid;

use super::{
    PgConfig,
    fault::{Fault, answered},
    heads::Heads,
    ops::hooks,
    rows::{get, json, keys},
    unwritten::{Statement, Unwritten},
};
use crate::store::columns::{self, corrupt};

pub(super) const LOAD: &str =
    concat!("SELECT ", task_columns!(), " FROM tasks t WHERE t.id = ANY ($1::uuid[]) ORDER BY t.id FOR NO KEY UPDATE");

const PEEK: &str = concat!("SELECT ", task_columns!(), " FROM tasks t WHERE t.id = $1");

const ARTIFACT: &str = "SELECT artifact FROM task_outputs WHERE task_id = $1 AND idx = $2";

const STORE_ARTIFACT: &str = "UPDATE task_outputs SET stored = true, artifact = $3 WHERE task_id = $1 AND idx = $2";

/// The end of a batch. The lock is got before the first number is drawn, because the condition is looked at before anything else. An
/// output told before is not told again.
pub(super) const FINISH: &str = "WITH lock AS MATERIALIZED (SELECT pg_advisory_xact_lock($4)),
    mark AS (INSERT INTO writers (id, batch, at) VALUES ($1, $2, $3)
        ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, at = excluded.at)
    INSERT INTO task_events (task_id, at, dispatch, attempt, stage, error, output)
    SELECT e.task_id, e.at, e.dispatch, e.attempt, e.stage, e.error, e.output
    FROM json_populate_recordset(NULL::task_events, $5::json) WITH ORDINALITY AS e
        (seq, task_id, at, dispatch, attempt, stage, error, output, place)
    WHERE (SELECT count(*) FROM lock) = 1 AND (e.output IS NULL OR NOT EXISTS (
        SELECT 1 FROM task_events old WHERE old.task_id = e.task_id AND old.dispatch = e.dispatch AND old.output = e.output))
    ORDER BY e.place ON CONFLICT DO NOTHING";

/// The same for a batch without events.
const MARK: &str = "INSERT INTO writers (id, batch, at) VALUES ($1, $2, $3)
    ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, at = excluded.at";

/// Held from the first number to the commit. Any constant will do; all processes on a database must have the same.
pub(super) const EVENTS_LOCK: i64 = 0x636f_6d66_7964_6576;

/// The same for claims that keep to the caps of tenants: from before the first look to the commit, so that what runs is counted exactly.
const CAPS_LOCK: i64 = 0x636f_6d66_7964_6361;

/// The transaction.
pub(super) struct Tx<'c> {
    conn: &'c mut PgConnection,
    /// How long the database may take for an answer.
    patience: Duration,
    /// Statements leave nothing on the connection.
    is_pooled: bool,
    /// The store's time.
    pub(super) now: Timestamp,
    /// The same, and whether it can be believed.
    pub(super) moment: Moment,
    /// To be told after the commit.
    changed: Vec<Changed>,
    /// How many of them belong to operations that are over.
    kept: usize,
    /// Tasks as they are now, as far as they are held by this transaction.
    loaded: HashMap<TaskId, Task>,
    /// What the running operation replaced in `loaded`.
    replaced: Vec<(TaskId, Option<Task>)>,
    /// Waiting tasks that claims of this batch may take.
    pub(super) heads: Heads,
    /// Rows of operations that are over.
    unwritten: Unwritten,
    /// Rows of the running operation.
    fresh: Unwritten,
    /// Something is written.
    has_written: bool,
    /// The running operation has written something.
    is_spoiled: bool,
}

/// The life of the transaction: what the writer calls.
impl<'c> Tx<'c> {
    /// On a connection with an open transaction.
    pub(super) fn new(conn: &'c mut PgConnection, config: &PgConfig, moment: Moment) -> Self {
        Self {
            conn,
            patience: config.patience,
            is_pooled: config.is_pooled,
            now: moment.now,
            moment,
            changed: Vec::new(),
            kept: 0,
            loaded: HashMap::new(),
            replaced: Vec::new(),
            heads: Heads::default(),
            unwritten: Unwritten::default(),
            fresh: Unwritten::default(),
            has_written: false,
            is_spoiled: false,
        }
    }

    /// Waits until no other process claims within the caps of tenants. Before anything else is held, so that nobody waits in a circle.
    pub(super) async fn take_turns(&mut self) -> Result<(), Fault> {
        self.execute(sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(CAPS_LOCK)).await?;
        Ok(())
    }

    /// Takes hold of the tasks the batch is going to ask for.
    pub(super) async fn prefetch(&mut self, ids: BTreeSet<TaskId>) -> Result<(), Fault> {
        if !ids.is_empty() {
            self.load_many(ids).await?;
        }
        Ok(())
    }

    /// Keeps what the operation did, and starts the next one.
    pub(super) fn keep_operation(&mut self) {
        self.kept = self.changed.len();
        self.replaced.clear();
        self.is_spoiled = false;
        let fresh = std::mem::take(&mut self.fresh);
        self.unwritten.append(fresh);
    }

    /// Takes back what the operation did, and starts the next one.
    ///
    /// # Errors
    /// `Spoiled` with what it was refused for, when some of it was sent already.
    pub(super) fn undo_operation(&mut self, refused: StoreError) -> Result<StoreError, Fault> {
        if self.is_spoiled {
            return Err(Fault::Spoiled(refused));
        }
        self.fresh = Unwritten::default();
        self.changed.truncate(self.kept);
        if !self.replaced.is_empty() {
            self.heads.clear();
        }
        for (id, task) in self.replaced.drain(..).rev() {
            match task {
                Some(task) => self.loaded.insert(id, task),
                None => self.loaded.remove(&id),
            };
        }
        Ok(refused)
    }

    /// Writes what is left, and under which number: then it can be committed. What listeners are to be told; `None` when nothing was
    /// written.
    pub(super) async fn finish(mut self, writer: Uuid, batch: i64) -> Result<Option<Vec<Changed>>, Fault> {
        self.flush().await?;
        let events = std::mem::take(&mut self.unwritten.events);
        if events.is_empty() && !self.has_written {
            return Ok(None);
        }
        let finish = if events.is_empty() {
            sqlx::query(MARK).bind(writer).bind(batch).bind(self.now.0)
        } else {
            sqlx::query(FINISH).bind(writer).bind(batch).bind(self.now.0).bind(EVENTS_LOCK).bind(json(&events)?)
        };
        self.execute(finish).await?;
        Ok(Some(self.changed))
    }

    /// Writes the rows of the batch so far, but for events.
    async fn flush(&mut self) -> Result<(), Fault> {
        self.is_spoiled |= !self.fresh.is_empty();
        let fresh = std::mem::take(&mut self.fresh);
        self.unwritten.append(fresh);
        if self.unwritten.is_empty() {
            return Ok(());
        }
        self.has_written = true;
        let deliveries = std::mem::take(&mut self.unwritten.deliveries);
        if !self.unwritten.is_empty() {
            let rows = self.unwritten.take()?;
            self.execute(rows).await?;
        }
        if !deliveries.is_empty() {
            for statement in hooks::post(&deliveries, self.now)? {
                self.execute(statement).await?;
            }
        }
        Ok(())
    }
}

/// Statements.
impl Tx<'_> {
    /// Runs a query, after what waits to be written.
    pub(super) async fn read(&mut self, statement: Statement) -> Result<Vec<PgRow>, Fault> {
        self.flush().await?;
        self.read_past(statement).await
    }

    /// Runs a query for which it makes no difference whether what waits to be written is written.
    pub(super) async fn read_past(&mut self, statement: Statement) -> Result<Vec<PgRow>, Fault> {
        let statement = statement.persistent(!self.is_pooled);
        Ok(answered(self.patience, statement.fetch_all(&mut *self.conn)).await?)
    }

    /// Runs a statement; how many rows it touched.
    pub(super) async fn write(&mut self, statement: Statement) -> Result<u64, Fault> {
        self.flush().await?;
        let touched = self.execute(statement).await?;
        self.has_written = true;
        self.is_spoiled |= touched > 0;
        Ok(touched)
    }

    /// Sends a statement as it is; how many rows it touched.
    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        let statement = statement.persistent(!self.is_pooled);
        Ok(answered(self.patience, statement.execute(&mut *self.conn)).await?.rows_affected())
    }

    /// Runs a statement that answers with what it wrote.
    pub(super) async fn write_and_read(&mut self, statement: Statement) -> Result<Vec<PgRow>, Fault> {
        let rows = self.read(statement).await?;
        self.has_written = true;
        self.is_spoiled |= !rows.is_empty();
        Ok(rows)
    }

    /// Runs a query that answers with whole assignments.
    pub(super) async fn assignments(&mut self, statement: Statement) -> Result<Vec<Assignment>, Fault> {
        let rows = self.read(statement).await?;
        Ok(rows.iter().map(columns::assignment).collect::<Result<_, _>>()?)
    }

    /// Runs a query that answers with ids of tasks, which it took hold of.
    pub(super) async fn ids(&mut self, statement: Statement) -> Result<Vec<TaskId>, Fault> {
        let rows = self.read(statement).await?;
        Ok(rows.iter().map(|row| get(row, "id").map(TaskId)).collect::<Result<_, _>>()?)
    }
}

/// Tasks.
impl Tx<'_> {
    /// One task, held.
    pub(super) async fn load(&mut self, id: TaskId) -> Result<Task, Fault> {
        if !self.loaded.contains_key(&id) {
            self.load_many([id]).await?;
        }
        Ok(self.loaded.get(&id).cloned().ok_or(StoreError::NotFound)?)
    }

    /// One task, as it is, if it is there.
    pub(super) async fn peek(&mut self, id: TaskId) -> Result<Option<Task>, Fault> {
        if let Some(task) = self.loaded.get(&id) {
            return Ok(Some(task.clone()));
        }
        let found = self.read(sqlx::query(PEEK).bind(id.0)).await?;
        Ok(found.first().map(columns::task).transpose()?)
    }

    /// One task, if it is held already.
    pub(super) fn known(&self, id: TaskId) -> Option<Task> {
        self.loaded.get(&id).cloned()
    }

    /// Takes hold of tasks that this batch did not change yet, as far as they are there.
    async fn load_many(&mut self, ids: impl IntoIterator<Item = TaskId>) -> Result<(), Fault> {
        for row in &self.read_past(sqlx::query(LOAD).bind(keys(ids))).await? {
            // One that cannot be read is the fault of the operation that asks for it, and is told to that one.
            if let Ok(task) = columns::task(row) {
                self.loaded.insert(task.id, task);
            }
        }
        Ok(())
    }

    /// A new task, that claims of this batch may take.
    pub(super) fn add(&mut self, new: &NewTask) -> Result<Task, Fault> {
        let task = new.first_state();
        self.fresh.know(&new.lane)?;
        self.fresh.add(task.clone(), &new.payload, new.idempotency.as_ref())?;
        self.write_down(&task, None, &ArtifactEdit::Keep)?;
        self.tell(&task, None);
        self.heads.add(&task, new);
        Ok(task)
    }

    /// Applies a change to a held task and saves what comes out.
    pub(super) async fn change(&mut self, task: &mut Task, fence: Option<Fence>, change: Change) -> Result<(), Fault> {
        let (was, before) = (task.state, Stage::of(task));
        let lane: Option<Lane> = change.new_lane().cloned();
        let edit = task.apply(fence, change, self.now)?;
        if let Some(lane) = lane {
            self.fresh.know(&lane)?;
        }
        let told = edit.clone();
        match edit {
            ArtifactEdit::Keep => {}
            ArtifactEdit::Replace(artifacts) => self.fresh.replace_artifacts(task.id, artifacts),
            ArtifactEdit::Stored(index, object) => self.store_artifact(task.id, index, object).await?,
        }
        self.write_down(task, Some(before), &told)?;
        self.fresh.save(task.clone());
        self.tell(task, Some(was));
        Ok(())
    }

    /// Makes events of what happened to a task just now: it stood at `before`.
    fn write_down(&mut self, task: &Task, before: Option<Stage>, edit: &ArtifactEdit) -> Result<(), StoreError> {
        facts(before, task, edit).iter().try_for_each(|fact| self.fresh.tell(task, fact, self.now))
    }

    /// Notes what the nodes of a task's run took, as JSON.
    pub(super) fn note_run(&mut self, id: TaskId, dispatch: i64, nodes: String) {
        self.fresh.note_run(id, dispatch, nodes);
    }

    /// Saves a task that listeners need not hear much of: it stays where it stands.
    pub(super) fn save(&mut self, task: &Task) {
        self.fresh.save(task.clone());
        self.tell(task, Some(task.state));
    }

    /// Has listeners told of it after the commit, and the batch's other operations see it; it stood at `was` before.
    fn tell(&mut self, task: &Task, was: Option<TaskState>) {
        self.replaced.push((task.id, self.loaded.insert(task.id, task.clone())));
        if was.is_some() {
            self.heads.forget(task);
        }
        self.changed.push(Changed::of(task, was));
    }

    /// These are deleted.
    pub(super) fn gone(&mut self, ids: &BTreeSet<TaskId>) {
        for id in ids {
            self.replaced.push((*id, self.loaded.remove(id)));
        }
        self.unwritten.forget(ids);
    }

    async fn store_artifact(&mut self, id: TaskId, index: u32, object: StoredObject) -> Result<(), Fault> {
        let place = i64::from(index);
        let found = self.read(sqlx::query(ARTIFACT).bind(id.0).bind(place)).await?;
        let planned = found.first().ok_or(Refusal::WrongState)?;
        let mut artifact: Artifact = serde_json::from_str(get(planned, "artifact")?).map_err(corrupt)?;
        artifact.object = Some(object);
        self.write(sqlx::query(STORE_ARTIFACT).bind(id.0).bind(place).bind(json(&artifact)?)).await?;
        Ok(())
    }
}
