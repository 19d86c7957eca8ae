//! The one writer: turns whatever queued up while it committed into the next commit.
//!
//! It owns the only connection that writes and is spoken to through the store's queue. It waits for nobody: a lone operation
//! that somebody waits for is committed at once, sixteen that arrive during that commit share the next one and its single fsync. One that
//! is refused leaves no trace and does not harm its neighbours; an I/O error fails the whole batch, and the next one is tried
//! afresh. Nobody gets an answer, and no listener a word, before the commit; who was promised something, not before the disk has it
//! (`flush`).
//!
//! When it dies (a panic, or its actor is killed), the operations of its batch are answered `Unavailable` and rolled back, those still
//! queued stay queued, and the next writer made from the same store goes on with them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use comfyd_actors::{
    domain::{id::TaskId, moment::ClockWatch},
    metrics::Metrics,
    ports::{
        clock::Clock,
        store::{Changed, StoreError},
    },
};
use sqlx::{ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::mpsc,
    time::{Instant, error::Elapsed, sleep, timeout, timeout_at},
};
use tracing::{debug, warn};

use super::{
    fault::Fault,
    flush::{Committed, Flusher, Promise},
    open::BUSY_TIMEOUT,
    ops::set_back,
    place::Files,
    tx::Tx,
};
use crate::{
    crash_point,
    store::queue::{Awaited, Reply},
};

/// Operations in one commit at most: bounds how long the first of them waits for its answer, and what one I/O error takes down.
const MAX_BATCH: usize = 256;

/// How long what nobody waits for waits for the next change of its task, to be written with that: longer than a short task needs from one
/// of its changes to the next, shorter than anybody notices (decision 025).
const COMPANY: Duration = Duration::from_millis(5);

/// How often the log is tried to be emptied while another process does. Nobody is told when that is over.
const EMPTY_AGAIN: Duration = Duration::from_millis(10);

/// After this long without work the writer tidies up.
const QUIET: Duration = Duration::from_secs(5);

/// Pages given back to the file system per quiet moment: a millisecond or two of work.
const TIDY: &str = "PRAGMA incremental_vacuum(200)";

/// Folds the log into the database and empties it. Must not wait for a reader that is in the way: an operation could be waiting for us.
const CHECKPOINT: &str =
    "PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA optimize; PRAGMA busy_timeout = 10000";

/// Which tasks an operation reads or changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// This one, which it begins by loading: those of a batch are loaded together.
    Task(TaskId),
    /// Tasks that nobody holds.
    Unheld,
    /// Any.
    Any,
}

/// Something to be done in a transaction.
pub(super) trait Operation: Send + 'static {
    /// What the caller gets.
    type Answer: Send + 'static;

    /// Whether its effect must be safe from a power cut before anybody is told.
    fn is_promise(&self) -> bool {
        false
    }

    /// Whether nobody waits for its answer, so that it can wait for the next change of its task, or any commit that might see what it
    /// does.
    fn can_wait(&self) -> bool {
        false
    }

    /// Which tasks it is about.
    fn reach(&self) -> Reach {
        Reach::Any
    }

    /// Does it, on the writer's connection, inside a savepoint.
    fn run(self, tx: &mut Tx<'_>) -> impl Future<Output = Result<Self::Answer, Fault>> + Send;
}

/// An operation with somebody waiting for it, its kind forgotten.
#[async_trait]
pub(super) trait Job: Send {
    fn is_promise(&self) -> bool;

    fn can_wait(&self) -> bool;

    fn reach(&self) -> Reach;

    /// Runs it and keeps the answer; one that was refused leaves no trace.
    ///
    /// # Errors
    /// The connection or the file failed.
    async fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError>;

    /// Gives the kept answer to who waits, or the reason why the whole batch failed.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Envelope<O: Operation> {
    operation: Option<O>,
    is_promise: bool,
    reply: Reply<O::Answer>,
}

/// Makes a job of an operation, and says where its answer comes from.
pub(super) fn job<O: Operation>(operation: O) -> (Box<dyn Job>, Awaited<O::Answer>) {
    let (reply, answer) = Reply::later();
    let is_promise = operation.is_promise();
    (Box::new(Envelope { operation: Some(operation), is_promise, reply }), answer)
}

#[async_trait]
impl<O: Operation> Job for Envelope<O> {
    fn is_promise(&self) -> bool {
        self.is_promise
    }

    fn can_wait(&self) -> bool {
        self.operation.as_ref().is_some_and(Operation::can_wait)
    }

    fn reach(&self) -> Reach {
        self.operation.as_ref().map_or(Reach::Any, Operation::reach)
    }

    async fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let Some(operation) = self.operation.take() else { return Ok(()) };
        let outcome = match operation.run(tx).await {
            Ok(answer) => tx.keep_operation().await.map(|()| answer),
            Err(fault) => Err(fault),
        };
        self.reply.keep(match outcome {
            Ok(answer) => Ok(answer),
            Err(Fault::Refused(error)) => {
                tx.undo_operation().await.map_err(Fault::into_inner)?;
                Err(error)
            }
            Err(Fault::Broken(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        self.reply.give(outcome);
    }
}

/// Operations that wait for the next change of their tasks, oldest first.
#[derive(Default)]
struct Patient(Vec<(Instant, Box<dyn Job>)>);

impl Patient {
    fn add(&mut self, job: Box<dyn Job>) {
        self.0.push((Instant::now() + COMPANY, job));
    }

    /// When their patience ends.
    fn deadline(&self) -> Option<Instant> {
        self.0.first().map(|(deadline, _)| *deadline)
    }

    /// Puts those before `batch` that belong there: the earlier changes of its tasks, or all when somebody might look for them, or their
    /// patience is over.
    fn join(&mut self, batch: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        let reaches: Vec<_> = batch.iter().map(|job| job.reach()).collect();
        let is_over = self.deadline().is_some_and(|deadline| deadline <= Instant::now());
        let all = is_over || batch.is_empty() || reaches.contains(&Reach::Any) || self.0.len() >= MAX_BATCH;
        let joining = self.0.extract_if(.., |(_, job)| all || reaches.contains(&job.reach()));
        let mut joined: Vec<_> = joining.map(|(_, job)| job).collect();
        joined.extend(batch);
        joined
    }
}

/// The writer's state. Nothing in it outlives a panic.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    files: Files,
    clock: Arc<dyn Clock>,
    watch: ClockWatch,
    flusher: Flusher,
    metrics: Option<Metrics>,
    /// The open connection.
    conn: Option<SqliteConnection>,
    patient: Patient,
    untidy: bool,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, files: Files, clock: Arc<dyn Clock>, flusher: Flusher) -> Self {
        let mut watch = ClockWatch::default();
        watch.look(clock.now(), clock.steady());
        Self {
            options,
            files,
            clock,
            watch,
            flusher,
            metrics: None,
            conn: None,
            patient: Patient::default(),
            untidy: false,
        }
    }

    /// Has its commits timed.
    pub(super) fn observed(self, metrics: Option<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// Works until the queue is closed for good.
    pub(super) async fn run(mut self, queue: &mut mpsc::Receiver<Box<dyn Job>>) {
        loop {
            match self.next(queue).await {
                Ok(batch) if batch.is_empty() => return,
                Ok(batch) => self.settle(batch).await,
                Err(Elapsed { .. }) => self.tidy().await,
            }
        }
    }

    /// What is committed next: whatever is there. Nothing when the queue is closed.
    async fn next(&mut self, queue: &mut mpsc::Receiver<Box<dyn Job>>) -> Result<Vec<Box<dyn Job>>, Elapsed> {
        let mut batch = Vec::new();
        loop {
            while batch.len() < MAX_BATCH
                && let Ok(job) = queue.try_recv()
            {
                if job.can_wait() { self.patient.add(job) } else { batch.push(job) }
            }
            if !batch.is_empty() || self.patient.0.len() >= MAX_BATCH {
                return Ok(self.patient.join(batch));
            }
            let next = match self.patient.deadline() {
                Some(deadline) => timeout_at(deadline, queue.recv()).await.ok().flatten(),
                None if self.untidy => timeout(QUIET, queue.recv()).await?,
                None => queue.recv().await,
            };
            match next {
                Some(job) if job.can_wait() => self.patient.add(job),
                Some(job) => batch.push(job),
                None => return Ok(self.patient.join(batch)),
            }
        }
    }

    /// Commits a batch and answers everybody in it.
    async fn settle(&mut self, mut batch: Vec<Box<dyn Job>>) {
        self.untidy = true;
        let begun = Instant::now();
        let outcome = match self.commit(&mut batch).await {
            Ok((changed, promises)) => {
                crash_point::reach_with("committed", &changed);
                if let Some(metrics) = &self.metrics {
                    metrics.committed(batch.len(), begun.elapsed());
                }
                let jobs = batch.extract_if(.., |job| job.is_promise()).collect();
                self.flusher.settle(Committed { jobs, promises, changed }).await;
                Ok(())
            }
            Err(error) => {
                warn!(operations = batch.len(), %error, "failed to write to the task store");
                self.roll_back().await;
                Err(error)
            }
        };
        for job in batch {
            job.answer(outcome.clone());
        }
    }

    async fn commit(&mut self, batch: &mut [Box<dyn Job>]) -> Result<(Vec<Changed>, Vec<Promise>), StoreError> {
        let mut watch = self.watch;
        let (moment, step) = watch.look(self.clock.now(), self.clock.steady());
        let mut tx = Tx::new(self.connection().await?, moment);
        if let Some(step) = step {
            warn!(
                milliseconds = step,
                "somebody set the machine's clock; no task changes hands until that has settled"
            );
            set_back(&mut tx, step).await?;
        }
        let reaches: Vec<_> = batch.iter().map(|job| job.reach()).collect();
        tx.prefetch(&reaches).await.map_err(Fault::into_inner)?;
        for job in batch.iter_mut() {
            job.run(&mut tx).await?;
        }
        crash_point::reach_with("commit", tx.changed());
        let committed = tx.commit().await.map_err(Fault::into_inner)?;
        // Not before: who is set back together with what failed must be set back again.
        self.watch = watch;
        Ok(committed)
    }

    /// The connection, opened if there is none. Its log is trusted.
    async fn connection(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        let conn = match self.conn.take().filter(|_| self.flusher.is_trusted()) {
            Some(conn) => conn,
            None => {
                let conn = connect(&self.options, &self.files).await?;
                self.flusher.trust();
                conn
            }
        };
        Ok(self.conn.insert(conn))
    }

    /// Ends a failed transaction. A connection on which even that fails is given up; the next batch opens another.
    async fn roll_back(&mut self) {
        if let Some(mut conn) = self.conn.take()
            && sqlx::query("ROLLBACK").execute(&mut conn).await.is_ok()
        {
            self.conn = Some(conn);
        }
    }

    /// Uses a quiet moment; tried once after each busy one. What fails here fails again, loudly, when something is to be written.
    async fn tidy(&mut self) {
        self.untidy = false;
        let Some(conn) = &mut self.conn else { return };
        for work in [TIDY, CHECKPOINT] {
            if let Err(error) = sqlx::raw_sql(work).execute(&mut *conn).await {
                debug!(%error, "failed to tidy up the task store");
                self.conn = None;
                return;
            }
        }
    }
}

/// A connection begins with an empty log: whatever it holds, on the disk or not, is in the database then, and that is on the disk.
async fn connect(options: &SqliteConnectOptions, files: &Files) -> Result<SqliteConnection, StoreError> {
    // Another file than ours is nobody's business, and none must not become an empty one.
    files.check().map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let give_up = Instant::now() + BUSY_TIMEOUT;
    let mut conn = options.connect().await.map_err(|error| Fault::from(error).into_inner())?;
    while !empty_log(&mut conn).await.map_err(|error| Fault::from(error).into_inner())? {
        if Instant::now() >= give_up {
            return Err(StoreError::Unavailable("another process keeps the log from being emptied".into()));
        }
        sleep(EMPTY_AGAIN).await;
    }
    Ok(conn)
}

/// False when another connection is doing the same: for that `SQLite` does not wait.
async fn empty_log(conn: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(conn).await?;
    Ok(!row.try_get::<bool, _>("busy")?)
}
