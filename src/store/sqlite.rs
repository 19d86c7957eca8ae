//! The task store of a single machine: one `SQLite` file.
//!
//! - Writes are operations on a bounded queue; one [writer](SqliteStore::writer) groups them into commits (`writer`). Whoever supervises
//!   the store runs it, and makes it again from the same store when it died.
//! - Reads go past it on a few read-only connections (`reads`), so a page of the list never delays a claim.
//! - The file remembers whether its last user said goodbye ([`SqliteStore::was_clean`]).
//!
//! When the process dies, everything answered so far is in the file; the next one opens it and goes on. Two processes may share the file,
//! but take turns writing; the node's lock (`store::node_lock`) is what tells them apart.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        event::Event,
        id::{TaskId, WorkerId},
        input::{About, Input, InputId},
        lane::Lane,
        progress::NodeTiming,
        task::{Change, Fence, Task},
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId, Policy, Report},
    },
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
use sqlx::sqlite::SqliteConnectOptions;
use tokio::{
    sync::{Mutex, broadcast, mpsc},
    time::Instant,
};

use self::{
    fault::store_error,
    flush::Flusher,
    ops::{
        AdoptExpired, Amend, Apply, Check, ClaimHeads, Create, Enable, Forget, GiveUp, Held, Keep, NoteFetched,
        NoteRun, Promote, Prune, Redeliver, Refresh, Renew, Reserve, SetPaused, Settle, Take, TakeOver,
    },
    place::Files,
    reads::Readers,
    writer::{Job, Operation, Writer, job},
};

// First, for its macros: the lists of columns.
#[macro_use]
mod rows;
#[macro_use]
mod outbox;

mod at_rest;
mod fault;
mod flush;
mod open;
mod ops;
mod place;
mod reads;
mod statement;
mod tx;
mod unwritten;
mod wire;
mod workflows;
mod writer;

pub use self::{
    at_rest::{AtRest, Schema, look},
    open::{OpenError, SqliteConfig},
    place::remote_file_system,
};

/// Operations that may wait for the writer: a second of its work. More wait in their callers.
const QUEUE: usize = 1024;

/// Committed changes a slow listener may be behind before it is told that it lost some.
const CHANGES_KEPT: usize = 4096;

/// Notices a slow listener may be behind before it loses some.
const NOTICES_KEPT: usize = 256;

/// How long a caller waits for a place in a full queue: longer than a write waits for another process, so that it fails only when nothing
/// moves any more.
const QUEUE_PATIENCE: Duration = Duration::from_secs(15);

/// The store.
pub struct SqliteStore {
    clock: Arc<dyn Clock>,
    options: SqliteConnectOptions,
    files: Files,
    readers: Readers,
    jobs: mpsc::Sender<Box<dyn Job>>,
    /// The other end, lent to the writer that runs now. It survives a writer's death with everything still in it.
    queue: Mutex<mpsc::Receiver<Box<dyn Job>>>,
    changes: broadcast::Sender<Changed>,
    heard: broadcast::Sender<Arc<Notice>>,
    was_clean: bool,
    /// Where commits are timed, when somebody wants it.
    metrics: OnceLock<Metrics>,
}

impl SqliteStore {
    /// Opens the database, making it when there is none, and marks it as in use. Writes wait until [`Self::writer`] runs.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the file or its place.
    pub async fn open(config: SqliteConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        let opened = open::open(&config).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        Ok(Arc::new(Self {
            clock,
            options: opened.options,
            files: opened.files,
            readers: Readers(opened.readers),
            jobs,
            queue: Mutex::new(queue),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            heard: broadcast::Sender::new(NOTICES_KEPT),
            was_clean: opened.was_clean,
            metrics: OnceLock::new(),
        }))
    }

    /// Times its commits from the next writer on, for good.
    pub fn observe(&self, metrics: Metrics) {
        let _ = self.metrics.set(metrics);
    }

    /// The writer, to be run by whoever supervises it for as long as the store is used. It never ends by itself. Of two at a time one
    /// waits for the other. After a panic run another one: what was being written is rolled back and answered `Unavailable`, what
    /// was waiting goes on.
    pub fn writer(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static + use<> {
        let store = Arc::clone(self);
        async move {
            let mut queue = store.queue.lock().await;
            let (flusher, flushing) = Flusher::new(store.files.clone(), store.changes.clone());
            let writer = Writer::new(store.options.clone(), store.files.clone(), Arc::clone(&store.clock), flusher)
                .observed(store.metrics.get().cloned());
            tokio::join!(writer.run(&mut queue), flushing);
        }
    }

    /// Whether the last process that used the file ended by [`Self::mark_clean`]. True for a new file.
    #[must_use]
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Says goodbye: the very last call, when nothing is held any more and the writer has stopped.
    ///
    /// # Errors
    /// `Unavailable`: the next process will be more careful than it had to be.
    pub async fn mark_clean(&self) -> Result<(), StoreError> {
        open::mark_clean(&self.options).await.map_err(|error| store_error(&error))
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
impl TaskStore for SqliteStore {
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
impl WorkSource for SqliteStore {
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
impl InputStore for SqliteStore {
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
impl HookStore for SqliteStore {
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

#[cfg(test)]
mod tests;
