//! The one writer of a process: turns whatever queued up while it committed into the next transaction.
//!
//! As in the `SQLite` store a lone operation is committed at once, and sixteen that arrive during that commit share the next one, its wait
//! for the disk, and its turn at the log of events, for which the processes of a database take turns.
//!
//! What can go wrong, and what comes of it:
//! - an operation is refused before it wrote anything: that one is answered so, the others go on;
//! - a statement breaks a rule of the tables: the batch is undone, and its operations run again one by one;
//! - somebody was in the way (a deadlock), or the connection broke before the COMMIT was sent: nothing is done, it runs again;
//! - the connection broke during the COMMIT: what became of it is found out. Each batch leaves its number in a row of its writer, and that row
//!   cannot be held by anybody else before the server is done with the lost transaction, one way or the other;
//! - the connection goes silent: after a while it counts as broken;
//! - nothing of that helps: everybody in the batch is answered `Unavailable`.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        id::TaskId,
        moment::{ClockWatch, Moment},
        time::Timestamp,
    },
    metrics::Metrics,
    ports::{
        clock::Clock,
        store::{Changed, Claim, StoreError},
    },
};
use sqlx::{ConnectOptions, Connection, PgConnection, Row, postgres::PgConnectOptions};
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, sleep},
};
use tracing::warn;
use uuid::Uuid;

use super::{
    PgConfig,
    fault::{Fault, answered, is_doubtful, store_error},
    herald::Herald,
    ops::set_back,
    pooler,
    rows::get,
    tx::Tx,
};
use crate::{
    crash_point,
    store::queue::{Awaited, Reply},
};

/// Operations in one commit at most: bounds how long the first of them waits for its answer, and what one failure takes down.
const MAX_BATCH: usize = 256;

/// How often a batch is run before it is given up or taken apart: who was in the way once is gone the next time.
const TRIES: u32 = 3;

/// How long a new connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it is tried to find out what became of a COMMIT: the server needs so long to notice that a client is gone in the middle of
/// a transaction (`idle_in_transaction_session_timeout` below), and a while to come back.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between two tries to reach a server that is away.
const PAUSE: Duration = Duration::from_millis(200);

/// What the end of a connection may take that is of no use any more.
const PARTING: Duration = Duration::from_secs(2);

/// Every transaction says itself what it needs, so that it works on whatever connection a pooler gives it. Plans: all statements of the writer
/// go from a few ids into indexes, however little the server knows of the tables, and are planned once.
///
/// What is committed is safe from a power cut when the COMMIT is answered, whatever this database usually does.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;
    SELECT set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), true),
        set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
        set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true),
        set_config('idle_in_transaction_session_timeout', '10s', true), set_config('lock_timeout', '10s', true),
        set_config('statement_timeout', '15s', true),
        (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now";

const COMMIT: &str = "COMMIT";
/// For what nobody was promised.
const COMMIT_SOON: &str = "SET LOCAL synchronous_commit = off; COMMIT";

const FIND_OUT: &str = "SELECT batch FROM writers WHERE id = $1 FOR UPDATE";

/// Operations that are committed together.
type Batch = Vec<Box<dyn Job>>;

/// Where those are that come while a transaction begins.
type Late<'q> = Option<&'q mut mpsc::Receiver<Box<dyn Job>>>;

/// Something to be done in a transaction, perhaps more than once.
pub(super) trait Operation: Send + Sync + 'static {
    /// What the caller gets.
    type Answer: Send + 'static;

    /// Whether its effect must be safe from a power cut before anybody is told.
    fn is_promise(&self) -> bool {
        false
    }

    /// The tasks it names.
    fn reach(&self) -> Vec<TaskId> {
        Vec::new()
    }

    /// What it takes from the head of the queue.
    fn claim(&self) -> Option<&Claim> {
        None
    }

    /// Does it. What it refuses it refuses before it writes anything, if it can.
    fn run(&self, tx: &mut Tx<'_>) -> impl Future<Output = Result<Self::Answer, Fault>> + Send;
}

/// An operation with somebody waiting for it, its kind forgotten.
#[async_trait]
pub(super) trait Job: Send {
    fn is_promise(&self) -> bool;

    fn reach(&self) -> Vec<TaskId>;

    fn claim(&self) -> Option<&Claim>;

    /// Runs it and keeps the answer; one that was refused leaves no trace.
    async fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault>;

    /// Gives the kept answer to who waits, or the reason why the whole batch failed.
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Envelope<O: Operation> {
    operation: O,
    reply: Reply<O::Answer>,
}

/// Makes a job of an operation, and says where its answer comes from.
pub(super) fn job<O: Operation>(operation: O) -> (Box<dyn Job>, Awaited<O::Answer>) {
    let (reply, answer) = Reply::later();
    (Box::new(Envelope { operation, reply }), answer)
}

#[async_trait]
impl<O: Operation> Job for Envelope<O> {
    fn is_promise(&self) -> bool {
        self.operation.is_promise()
    }

    fn reach(&self) -> Vec<TaskId> {
        self.operation.reach()
    }

    fn claim(&self) -> Option<&Claim> {
        self.operation.claim()
    }

    async fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        self.reply.keep(match self.operation.run(tx).await {
            Ok(answer) => {
                tx.keep_operation();
                Ok(answer)
            }
            Err(Fault::Refused(refused)) => Err(tx.undo_operation(refused)?),
            Err(fault) => return Err(fault),
        });
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        self.reply.give(outcome);
    }
}

/// Whose clock counts.
#[derive(Clone)]
pub(super) enum Time {
    /// The database's: all processes agree on it.
    Database,
    /// One that a test moves.
    Given(Arc<dyn Clock>),
}

impl Time {
    /// The time that is not the database's.
    pub(super) fn given(&self) -> Option<i64> {
        match self {
            Self::Database => None,
            Self::Given(clock) => Some(clock.now().0),
        }
    }
}

/// The writer's state. Nothing in it outlives a panic.
pub(super) struct Writer {
    pub(super) config: PgConfig,
    pub(super) time: Time,
    /// For what is measured inside the process.
    pub(super) clock: Arc<dyn Clock>,
    pub(super) watch: ClockWatch,
    pub(super) changes: broadcast::Sender<Changed>,
    pub(super) herald: Herald,
    pub(super) metrics: Option<Metrics>,
    /// Its name in `writers`.
    pub(super) id: Uuid,
    /// Counts the batches of this process, over the writer's death.
    pub(super) batches: Arc<AtomicI64>,
    /// The number of the last one.
    pub(super) batch: i64,
    /// The open connection.
    pub(super) conn: Option<PgConnection>,
}

impl Writer {
    /// Works until the queue is closed for good.
    pub(super) async fn run(mut self, queue: &mut mpsc::Receiver<Box<dyn Job>>) {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
            self.settle(std::mem::take(&mut batch), queue).await;
        }
    }

    /// Commits a batch, together or one by one, and answers everybody in it.
    async fn settle(&mut self, batch: Batch, queue: &mut mpsc::Receiver<Box<dyn Job>>) {
        let mut waiting = VecDeque::from([batch]);
        let mut late = Some(queue);
        while let Some(mut batch) = waiting.pop_front() {
            let begun = Instant::now();
            match self.commit(&mut batch, late.take()).await {
                Ok(changed) => {
                    crash_point::reach_with("committed", &changed);
                    if let Some(metrics) = &self.metrics {
                        metrics.committed(batch.len(), begun.elapsed());
                    }
                    self.herald.tell(&changed);
                    for change in changed {
                        _ = self.changes.send(change);
                    }
                    batch.into_iter().for_each(|job| job.answer(Ok(())));
                }
                Err(Fault::Spoiled(_) | Fault::Again(_)) if batch.len() > 1 && self.conn.is_some() => {
                    batch.into_iter().rev().for_each(|job| waiting.push_front(vec![job]));
                }
                Err(fault) => {
                    let error = fault.into_inner();
                    warn!(operations = batch.len(), %error, "failed to write to the task store");
                    batch.into_iter().for_each(|job| job.answer(Err(error.clone())));
                }
            }
        }
    }

    async fn commit(&mut self, batch: &mut Batch, mut late: Late<'_>) -> Result<Vec<Changed>, Fault> {
        let mut tries = 1;
        loop {
            match self.attempt(batch, late.take()).await {
                Err(Fault::Again(_)) if tries < TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }

    /// Runs a batch once. A connection that is still there afterwards has no open transaction.
    async fn attempt(&mut self, batch: &mut Batch, late: Late<'_>) -> Result<Vec<Changed>, Fault> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => connect(&self.config.options).await.map_err(Fault::Broken)?,
        };
        self.batch = self.batches.fetch_add(1, Ordering::Relaxed) + 1;
        let (written, watch) = match self.transact(&mut conn, batch, late).await {
            Ok(done) => done,
            Err(fault) => {
                if answered(PARTING, sqlx::raw_sql("ROLLBACK").execute(&mut conn)).await.is_ok() {
                    self.conn = Some(conn);
                }
                return Err(fault);
            }
        };
        if let Some(changed) = &written {
            crash_point::reach_with("commit", changed);
        }
        let is_promise = batch.iter().any(|job| job.is_promise());
        let commit = sqlx::raw_sql(if is_promise { COMMIT } else { COMMIT_SOON });
        match answered(self.config.patience, commit.execute(&mut conn)).await {
            Ok(_) => self.conn = Some(conn),
            // Nothing can have come of nothing.
            Err(_) if written.is_none() => {}
            Err(error) if is_doubtful(&error) => {
                drop(conn);
                self.find_out(&error).await?;
            }
            Err(error) => return Err(error.into()),
        }
        // Not before: who is set back together with what failed must be set back again.
        self.watch = watch;
        Ok(written.unwrap_or_default())
    }

    /// Everything but the end: what is to be told after it, if anything was written, and what the clocks said.
    async fn transact(
        &self,
        conn: &mut PgConnection,
        batch: &mut Batch,
        mut late: Late<'_>,
    ) -> Result<(Option<Vec<Changed>>, ClockWatch), Fault> {
        let begun = answered(self.config.patience, sqlx::raw_sql(BEGIN).fetch_all(&mut *conn)).await?;
        // Those whom the last commit woke come one after the other: the first of them shall not go alone.
        while let Some(queue) = &mut late
            && batch.len() < MAX_BATCH
            && let Ok(job) = queue.try_recv()
        {
            batch.push(job);
        }
        let now = match &self.time {
            Time::Given(clock) => clock.now(),
            Time::Database => {
                let now =
                    begun.last().ok_or_else(|| Fault::Broken(StoreError::Unavailable("no time was told".into())))?;
                Timestamp(now.try_get("now")?)
            }
        };
        let mut watch = self.watch;
        let (moment, step) = watch.look(now, self.clock.steady());
        let mut tx = Tx::new(conn, &self.config, moment);
        if let Some(step) = step {
            self.brought(&mut tx, moment, step).await?;
        }
        // Processes take turns at claims for tenants with caps, so that none of them takes what another has not committed yet.
        if batch.iter().filter_map(|job| job.claim()).any(|claim| !claim.caps.are_none()) {
            tx.take_turns().await?;
        }
        tx.prefetch(batch.iter().flat_map(|job| job.reach()).collect::<BTreeSet<_>>()).await?;
        let claims: Vec<&Claim> = batch.iter().filter_map(|job| job.claim()).collect();
        tx.find_heads(&claims).await?;
        for job in batch.iter_mut() {
            job.run(&mut tx).await?;
        }
        Ok((tx.finish(self.id, self.batch).await?, watch))
    }

    /// The clock was set by so much.
    async fn brought(&self, tx: &mut Tx<'_>, moment: Moment, step: i64) -> Result<(), Fault> {
        warn!(
            milliseconds = step,
            now = moment.now.0,
            "the database's clock was set; no task changes hands until that has settled"
        );
        set_back(tx, step, self.id).await
    }

    /// Finds out what became of the batch whose COMMIT was not answered.
    async fn find_out(&mut self, lost: &sqlx::Error) -> Result<(), Fault> {
        warn!(error = %lost, "the connection to the database broke during a COMMIT: finding out what became of it");
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.last_batch(give_up).await {
                Ok(Some(last)) if last >= self.batch => return Ok(()),
                Ok(Some(_)) => return Err(Fault::Again(store_error(lost))),
                Ok(None) => return Err(Fault::Broken(in_doubt("this process is not known there any more"))),
                Err(error) if Instant::now() >= give_up => return Err(Fault::Broken(in_doubt(&error.to_string()))),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// The last batch of this writer that was committed. Waits until the server is done with the one before this question.
    async fn last_batch(&mut self, give_up: Instant) -> Result<Option<i64>, StoreError> {
        let mut conn = connect(&self.config.options).await?;
        let last = pooler::rows(&mut conn, self.config.is_pooled, sqlx::query(FIND_OUT).bind(self.id));
        let last = answered(give_up.saturating_duration_since(Instant::now()), last).await;
        let last = last.map_err(|error| store_error(&error))?;
        self.conn = Some(conn);
        last.first().map(|row| get(row, "batch")).transpose()
    }
}

fn in_doubt(why: &str) -> StoreError {
    StoreError::Unavailable(format!(
        "the connection broke during a COMMIT, and whether it was done cannot be found out: {why}"
    ))
}

/// Opens a connection.
pub(super) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    answered(CONNECT_TIMEOUT, options.connect()).await.map_err(|error| store_error(&error))
}

/// Ends a connection that nobody needs any more.
pub(super) async fn hang_up(conn: PgConnection) {
    // Gone is gone, whichever way.
    _ = answered(PARTING, conn.close()).await;
}
