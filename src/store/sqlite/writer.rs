//! The one writer: turns whatever queued up while it committed into the next commit.
//!
//! It owns the only connection that writes and is spoken to through the store's queue. It waits for nobody: a lone operation
//! that somebody waits for is committed at once, sixteen that arrive during that commit share the next one and its single fsync. Each runs in a savepoint, so
//! one that is refused leaves no trace and does not harm its neighbours; an I/O error fails the whole batch, and the next one is tried
//! afresh. Nobody gets an answer, and no listener a word, before the commit.
//!
//! When it dies (a panic, or its actor is killed), the operations of its batch are answered `Unavailable` and rolled back, those still
//! queued stay queued, and the next writer made from the same store goes on with them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use comfyd_actors::{
    domain::id::TaskId,
    metrics::Metrics,
    ports::{
        clock::Clock,
        store::{Changed, StoreError},
    },
};
use sqlx::{ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::{Instant, error::Elapsed, timeout, timeout_at},
};
use tracing::{debug, warn};

use super::{fault::Fault, tx::Tx};

/// Operations in one commit at most: bounds how long the first of them waits for its answer, and what one I/O error takes down.
const MAX_BATCH: usize = 256;

/// How long what nobody waits for waits for a commit it can share: longer than a short task needs from one of its changes to the next,
/// shorter than anybody notices (decision 025).
const COMPANY: Duration = Duration::from_millis(5);

/// After this long without work the writer tidies up.
const QUIET: Duration = Duration::from_secs(5);

/// Pages given back to the file system per quiet moment: a millisecond or two of work.
const TIDY: &str = "PRAGMA incremental_vacuum(200)";

/// Folds the log into the database and empties it. Must not wait for a reader that is in the way: an operation could be waiting for us.
const CHECKPOINT: &str =
    "PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA optimize; PRAGMA busy_timeout = 10000";

/// Something to be done in a transaction.
pub(super) trait Operation: Send + 'static {
    /// What the caller gets.
    type Answer: Send + 'static;

    /// Whether its effect must survive a power cut before anybody is told.
    fn is_promise(&self) -> bool {
        false
    }

    /// Whether nobody waits for its answer, so that it can wait for the next commit.
    fn can_wait(&self) -> bool {
        false
    }

    /// The task it begins by loading, if it does: those of a batch are read together.
    fn task(&self) -> Option<TaskId> {
        None
    }

    /// Does it, on the writer's connection, inside a savepoint.
    fn run(self, tx: &mut Tx<'_>) -> impl Future<Output = Result<Self::Answer, Fault>> + Send;
}

/// An operation with somebody waiting for it, its kind forgotten.
#[async_trait]
pub(super) trait Job: Send {
    fn is_promise(&self) -> bool;

    fn can_wait(&self) -> bool;

    fn task(&self) -> Option<TaskId>;

    /// Runs it and keeps the answer; one that was refused leaves no trace. The `last` one of its batch commits.
    ///
    /// # Errors
    /// The connection or the file failed.
    async fn run(&mut self, tx: &mut Tx<'_>, last: bool) -> Result<(), StoreError>;

    /// Gives the kept answer to who waits, or the reason why the whole batch failed.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Envelope<O: Operation> {
    operation: Option<O>,
    is_promise: bool,
    answer: Option<Result<O::Answer, StoreError>>,
    reply: oneshot::Sender<Result<O::Answer, StoreError>>,
}

/// Where an operation's answer comes from.
pub(super) type Awaited<A> = oneshot::Receiver<Result<A, StoreError>>;

/// Makes a job of an operation; the answer comes through the receiver, or never when the writer dies over it.
pub(super) fn job<O: Operation>(operation: O) -> (Box<dyn Job>, Awaited<O::Answer>) {
    let (reply, answer) = oneshot::channel();
    let is_promise = operation.is_promise();
    (Box::new(Envelope { operation: Some(operation), is_promise, answer: None, reply }), answer)
}

#[async_trait]
impl<O: Operation> Job for Envelope<O> {
    fn is_promise(&self) -> bool {
        self.is_promise
    }

    fn can_wait(&self) -> bool {
        self.operation.as_ref().is_some_and(Operation::can_wait)
    }

    fn task(&self) -> Option<TaskId> {
        self.operation.as_ref().and_then(Operation::task)
    }

    async fn run(&mut self, tx: &mut Tx<'_>, last: bool) -> Result<(), StoreError> {
        let Some(operation) = self.operation.take() else { return Ok(()) };
        let outcome = match operation.run(tx).await {
            Ok(answer) => tx.keep_operation(last).await.map(|()| answer),
            Err(fault) => Err(fault),
        };
        self.answer = Some(match outcome {
            Ok(answer) => Ok(answer),
            Err(Fault::Refused(error)) => {
                tx.undo_operation(last).await.map_err(Fault::into_inner)?;
                Err(error)
            }
            Err(Fault::Broken(error)) => return Err(error),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let answer = match (outcome, self.answer) {
            (Ok(()), Some(answer)) => answer,
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(StoreError::Unavailable("the operation was not run".into())),
        };
        // Who asked may be gone by now. What is committed stays committed.
        let _ = self.reply.send(answer);
    }
}

/// What is committed next: whatever is there. Only what nobody waits for waits for something that somebody does.
async fn gather(first: Box<dyn Job>, queue: &mut mpsc::Receiver<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
    let deadline = Instant::now() + COMPANY;
    let mut patient = first.can_wait();
    let mut batch = vec![first];
    while batch.len() < MAX_BATCH {
        let next = match queue.try_recv() {
            Ok(job) => Some(job),
            Err(_) if patient => timeout_at(deadline, queue.recv()).await.ok().flatten(),
            Err(_) => None,
        };
        let Some(job) = next else { break };
        patient &= job.can_wait();
        batch.push(job);
    }
    batch
}

/// The writer's state. Nothing in it outlives a panic.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    clock: Arc<dyn Clock>,
    changes: broadcast::Sender<Changed>,
    metrics: Option<Metrics>,
    link: Option<Link>,
    untidy: bool,
}

/// The open connection and how far its commits go.
struct Link {
    conn: SqliteConnection,
    /// `None`: not known.
    synchronous: Option<&'static str>,
}

/// Commits wait for the disk: nothing committed is lost, whatever happens to the machine.
const FULL: &str = "PRAGMA synchronous = FULL";
/// Commits do not wait: a power cut (not a crash of the process) may lose the last ones, in order, and never damages the file.
const NORMAL: &str = "PRAGMA synchronous = NORMAL";

impl Writer {
    pub(super) fn new(
        options: SqliteConnectOptions,
        clock: Arc<dyn Clock>,
        changes: broadcast::Sender<Changed>,
    ) -> Self {
        Self { options, clock, changes, metrics: None, link: None, untidy: false }
    }

    /// Has its commits timed.
    pub(super) fn observed(self, metrics: Option<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// Works until the queue is closed for good.
    pub(super) async fn run(mut self, queue: &mut mpsc::Receiver<Box<dyn Job>>) {
        loop {
            let first = match self.next(queue).await {
                Ok(Some(first)) => first,
                Ok(None) => return,
                Err(Elapsed { .. }) => {
                    self.tidy().await;
                    continue;
                }
            };
            let batch = gather(first, queue).await;
            self.settle(batch).await;
        }
    }

    async fn next(&self, queue: &mut mpsc::Receiver<Box<dyn Job>>) -> Result<Option<Box<dyn Job>>, Elapsed> {
        if self.untidy { timeout(QUIET, queue.recv()).await } else { Ok(queue.recv().await) }
    }

    /// Commits a batch and answers everybody in it.
    async fn settle(&mut self, mut batch: Vec<Box<dyn Job>>) {
        self.untidy = true;
        let begun = Instant::now();
        let outcome = match self.commit(&mut batch).await {
            Ok(changed) => {
                if let Some(metrics) = &self.metrics {
                    metrics.committed(batch.len(), begun.elapsed());
                }
                for change in changed {
                    let _ = self.changes.send(change);
                }
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

    async fn commit(&mut self, batch: &mut [Box<dyn Job>]) -> Result<Vec<Changed>, StoreError> {
        let clock = Arc::clone(&self.clock);
        let link = self.link().await.map_err(|error| Fault::from(error).into_inner())?;
        let wanted = if batch.iter().any(|job| job.is_promise()) { FULL } else { NORMAL };
        // Known again when the batch is through.
        let setting = (link.synchronous.take() != Some(wanted)).then_some(wanted);
        let mut tx = Tx::new(&mut link.conn, setting);
        let asked: Vec<_> = batch.iter().filter_map(|job| job.task()).collect();
        tx.prefetch(asked.into_iter()).await.map_err(Fault::into_inner)?;
        let last = batch.len().saturating_sub(1);
        for (place, job) in batch.iter_mut().enumerate() {
            tx.now = clock.now();
            job.run(&mut tx, place == last).await?;
        }
        let (changed, unsent) = tx.end();
        link.synchronous = unsent.is_none().then_some(wanted);
        Ok(changed)
    }

    async fn link(&mut self) -> Result<&mut Link, sqlx::Error> {
        let link = match self.link.take() {
            Some(link) => link,
            // The options open it with FULL.
            None => Link { conn: self.options.connect().await?, synchronous: Some(FULL) },
        };
        Ok(self.link.insert(link))
    }

    /// Ends a failed transaction. A connection on which even that fails is given up; the next batch opens another.
    async fn roll_back(&mut self) {
        if let Some(mut link) = self.link.take()
            && sqlx::query("ROLLBACK").execute(&mut link.conn).await.is_ok()
        {
            self.link = Some(link);
        }
    }

    /// Uses a quiet moment; tried once after each busy one. What fails here fails again, loudly, when something is to be written.
    async fn tidy(&mut self) {
        self.untidy = false;
        let Some(link) = &mut self.link else { return };
        for work in [TIDY, CHECKPOINT] {
            if let Err(error) = sqlx::raw_sql(work).execute(&mut link.conn).await {
                debug!(%error, "failed to tidy up the task store");
                self.link = None;
                return;
            }
        }
    }
}
