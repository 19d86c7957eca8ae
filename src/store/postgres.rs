//! The task store of many machines: a `PostgreSQL` database.
//!
//! - Writes are operations on a bounded queue; one writer per process groups them into transactions (`writer`), and the processes of a
//!   database get along by the locks of its rows (`tx`).
//! - Reads go past it on a pool (`reads`).
//! - Changes are told to the other processes, as a hint (`herald`), and so are notices (`wire`).
//!
//! Futures that must run are [`services`](PgStore::services). The clock is the database's.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, atomic::AtomicI64},
    time::Duration,
};

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        event::Event,
        id::{TaskId, WorkerId},
        input::{About, Input, InputId},
        lane::Lane,
        moment::ClockWatch,
        progress::NodeTiming,
        task::{Change, Fence, Task},
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId, Policy, Report},
    },
    kit::service::{Factory, factory},
    metrics::Metrics,
    ports::{
        clock::Clock,
        hook_store::{DeliveryQuery, HookLevels, HookStore},
        input_store::InputStore,
        store::{
            Assignment, Changed, Claim, Counts, Creation, Depth, FailedQuery, Hold, NewTask, Pausable, Pause, Query,
            Renewed, Retention, StoreError, Sweep, TaskRecord, TaskStore, WorkSource,
        },
        wire::Notice,
    },
};
use tokio::{
    sync::{Mutex, broadcast, mpsc},
    time::Instant,
};
use uuid::Uuid;

use self::{
    herald::{Herald, Waiting},
    ops::{
        AdoptExpired, Amend, Apply, Check, ClaimHeads, Create, Enable, Forget, GiveUp, Held, Keep, NoteFetched,
        NoteRun, Promote, Prune, Redeliver, Refresh, Renew, Reserve, SetPaused, Settle, Take, TakeOver,
    },
    reads::Readers,
    writer::{Job, Operation, Time, Writer, job},
};

// First, for its macros: the lists of columns.
#[macro_use]
mod rows;

mod fault;
mod herald;
mod look;
mod open;
mod ops;
mod reads;
mod tx;
mod unwritten;
mod wire;
mod workflows;
mod writer;

pub use self::{
    look::{ServerReport, look},
    open::{OpenError, PgConfig},
};
use super::{HERALD, LISTENER, WRITER};

/// Operations that may wait for the writer: a second of its work. More wait in their callers.
const QUEUE: usize = 1024;

/// Committed changes a slow listener may be behind before it is told that it lost some.
const CHANGES_KEPT: usize = 4096;

/// Notices a slow listener may be behind before it loses some.
const NOTICES_KEPT: usize = 256;

/// How long a caller waits for a place in a full queue.
const QUEUE_PATIENCE: Duration = Duration::from_secs(15);

/// The store.
pub struct PgStore {
    config: PgConfig,
    time: Time,
    clock: Arc<dyn Clock>,
    /// This process, as the database knows it.
    id: Uuid,
    readers: Readers,
    jobs: mpsc::Sender<Box<dyn Job>>,
    /// The other end, lent to the writer that runs now. It survives a writer's death with everything still in it.
    queue: Mutex<mpsc::Receiver<Box<dyn Job>>>,
    /// Transactions that were begun so far.
    batches: Arc<AtomicI64>,
    herald: Herald,
    waiting: Waiting,
    changes: broadcast::Sender<Changed>,
    heard: broadcast::Sender<Arc<Notice>>,
    /// Where commits are timed, when somebody wants it.
    metrics: OnceLock<Metrics>,
}

impl PgStore {
    /// Opens the database and brings its schema up to date. Writes wait until its services run. What `clock` says is used for what is
    /// measured inside the process.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with it, and what to do.
    pub async fn open(config: PgConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        Self::open_by(config, clock, Time::Database).await
    }

    /// The same, by the time of the caller's clock.
    ///
    /// # Errors
    /// As there.
    pub async fn open_at(config: PgConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        let time = Time::Given(Arc::clone(&clock));
        Self::open_by(config, clock, time).await
    }

    async fn open_by(config: PgConfig, clock: Arc<dyn Clock>, time: Time) -> Result<Arc<Self>, OpenError> {
        let opened = open::open(&config).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (herald, waiting) = Herald::new(opened.id);
        Ok(Arc::new(Self {
            config,
            time,
            clock,
            id: opened.id,
            readers: Readers(opened.readers),
            jobs,
            queue: Mutex::new(queue),
            batches: Arc::default(),
            herald,
            waiting,
            changes: broadcast::Sender::new(CHANGES_KEPT),
            heard: broadcast::Sender::new(NOTICES_KEPT),
            metrics: OnceLock::new(),
        }))
    }

    /// Times its commits from the next writer on, for good.
    pub fn observe(&self, metrics: Metrics) {
        let _ = self.metrics.set(metrics);
    }

    /// The futures it needs to have run, by name, each again when it ended or panicked. What was being written by a writer that died is
    /// rolled back and answered `Unavailable`, what was waiting goes on.
    #[must_use]
    pub fn services(self: &Arc<Self>) -> Vec<(&'static str, Factory)> {
        let [writing, telling, listening] = [(); 3].map(|()| Arc::clone(self));
        vec![
            (WRITER, factory(move || writing.clone().write_on())),
            (HERALD, factory(move || telling.clone().tell_on())),
            (LISTENER, factory(move || herald::listen(listening.clone(), listening.config.options.clone()))),
        ]
    }

    async fn write_on(self: Arc<Self>) {
        let mut queue = self.queue.lock().await;
        let mut watch = ClockWatch::default();
        if let Time::Given(clock) = &self.time {
            watch.look(clock.now(), clock.steady());
        }
        let writer = Writer {
            options: self.config.options.clone(),
            time: self.time.clone(),
            clock: Arc::clone(&self.clock),
            watch,
            changes: self.changes.clone(),
            herald: self.herald.clone(),
            metrics: self.metrics.get().cloned(),
            id: self.id,
            batches: Arc::clone(&self.batches),
            batch: 0,
            conn: None,
        };
        writer.run(&mut queue).await;
    }

    async fn tell_on(self: Arc<Self>) {
        self.herald.speak(&self.waiting, &self.config.options).await;
    }

    /// Says goodbye: the very last call, when nothing is held any more and the services have stopped.
    ///
    /// # Errors
    /// `Unavailable`: the database knows this process a while longer.
    pub async fn leave(&self) -> Result<(), StoreError> {
        self.readers.0.close().await;
        open::forget(&self.config, self.id).await
    }

    /// Queues an operation and waits for its commit.
    async fn write<O: Operation>(&self, operation: O) -> Result<O::Answer, StoreError> {
        let begun = Instant::now();
        let (job, answer) = job(operation);
        self.jobs
            .send_timeout(job, QUEUE_PATIENCE)
            .await
            .map_err(|_| StoreError::Unavailable("too many writes are waiting".into()))?;
        let lost = |_| Err(StoreError::Unavailable("the writer failed during this write".into()));
        let answer = answer.await.unwrap_or_else(lost);
        if let Some(metrics) = self.metrics.get() {
            metrics.written(begun.elapsed());
        }
        answer
    }
}

#[async_trait]
impl TaskStore for PgStore {
    async fn create(&self, new: NewTask, claim: Option<Claim>) -> Result<Creation, StoreError> {
        self.write(Create { new, claim }).await
    }

    async fn amend(&self, id: TaskId, change: Change) -> Result<Task, StoreError> {
        self.write(Amend { id, change }).await
    }

    async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
        self.readers.get(id).await
    }

    async fn list(&self, query: Query) -> Result<Vec<Task>, StoreError> {
        self.readers.list(&query).await
    }

    async fn failed(&self, query: FailedQuery) -> Result<Vec<Task>, StoreError> {
        self.readers.failed(&query).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.readers.counts().await
    }

    async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError> {
        self.readers.waiting().await
    }

    async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
        self.readers.depths().await
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        self.readers.pauses().await
    }

    async fn set_paused(&self, what: Pausable, hold: Hold) -> Result<Vec<Pause>, StoreError> {
        self.write(SetPaused { what, hold }).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.write(Check).await
    }

    async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.readers.events(of, after, limit).await
    }

    async fn newest_event(&self) -> Result<i64, StoreError> {
        self.readers.newest_event().await
    }

    async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError> {
        self.readers.ahead(id, limit).await
    }

    async fn promote(&self, limit: u32) -> Result<u32, StoreError> {
        self.write(Promote { limit }).await
    }

    async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
        self.readers.next_scheduled().await
    }

    async fn prune(&self, retention: Retention, limit: u32) -> Result<u32, StoreError> {
        self.write(Prune { retention, limit }).await
    }

    fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }
}

#[async_trait]
impl WorkSource for PgStore {
    async fn claim(&self, claim: Claim) -> Result<Vec<Assignment>, StoreError> {
        self.write(ClaimHeads(claim)).await
    }

    async fn apply(&self, id: TaskId, fence: Fence, change: Change) -> Result<Task, StoreError> {
        self.write(Apply { id, fence, change }).await
    }

    async fn note_run(&self, id: TaskId, dispatch: i64, nodes: Vec<NodeTiming>) -> Result<(), StoreError> {
        self.write(NoteRun { id, dispatch, nodes }).await
    }

    async fn renew(
        &self,
        worker: &WorkerId,
        lease: Duration,
        held: &[(TaskId, Fence)],
    ) -> Result<Vec<Renewed>, StoreError> {
        self.write(Renew { worker: worker.clone(), lease, held: held.to_vec() }).await
    }

    async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        self.readers.lanes().await
    }

    async fn held(&self, worker: &WorkerId) -> Result<Vec<Assignment>, StoreError> {
        self.write(Held(worker.clone())).await
    }

    async fn take_over(&self, worker: &WorkerId, lease: Duration) -> Result<Vec<Assignment>, StoreError> {
        self.write(TakeOver { worker: worker.clone(), lease }).await
    }

    async fn adopt_expired(&self, sweep: &Sweep) -> Result<Vec<Assignment>, StoreError> {
        self.write(AdoptExpired(sweep.clone())).await
    }
}

#[async_trait]
impl InputStore for PgStore {
    async fn reserve(&self, key: &str, patience: Duration) -> Result<(), StoreError> {
        self.write(Reserve { key: key.to_owned(), patience }).await
    }

    async fn keep(&self, key: &str, id: &InputId, about: &About, keep: Duration) -> Result<Input, StoreError> {
        self.write(Keep { key: key.to_owned(), id: id.clone(), about: about.clone(), keep }).await
    }

    async fn refresh(&self, ids: &[InputId], keep: Duration) -> Result<Vec<Input>, StoreError> {
        self.write(Refresh { ids: ids.to_vec(), keep }).await
    }

    async fn find(&self, id: &InputId) -> Result<Input, StoreError> {
        self.readers.input(id).await
    }

    async fn note_fetched(&self, task: TaskId, url: &str, id: &InputId) -> Result<(), StoreError> {
        self.write(NoteFetched { task, url: url.to_owned(), id: id.clone() }).await
    }

    async fn fetched(&self, task: TaskId) -> Result<BTreeMap<String, Input>, StoreError> {
        self.readers.fetched(task).await
    }

    async fn give_up(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        self.write(GiveUp { limit }).await
    }

    async fn forget(&self, keys: &[String]) -> Result<(), StoreError> {
        self.write(Forget(keys.to_vec())).await
    }
}

#[async_trait]
impl HookStore for PgStore {
    async fn next_due(&self) -> Result<Option<Timestamp>, StoreError> {
        self.readers.next_due().await
    }

    async fn take(&self, limit: u32, policy: &Policy) -> Result<Vec<Delivery>, StoreError> {
        self.write(Take { limit, policy: policy.clone() }).await
    }

    async fn settle(
        &self,
        id: i64,
        turn: i64,
        report: Report,
        policy: &Policy,
    ) -> Result<Option<Delivery>, StoreError> {
        self.write(Settle { id, turn, report, policy: policy.clone() }).await
    }

    async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
        self.readers.deliveries(&query).await
    }

    async fn redeliver(&self, id: i64) -> Result<(Delivery, Endpoint), StoreError> {
        self.write(Redeliver(id)).await
    }

    async fn endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
        self.readers.endpoints(after, limit).await
    }

    async fn enable(&self, id: EndpointId) -> Result<Endpoint, StoreError> {
        self.write(Enable(id)).await
    }

    async fn levels(&self) -> Result<HookLevels, StoreError> {
        self.readers.hook_levels().await
    }
}
