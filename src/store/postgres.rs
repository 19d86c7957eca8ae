//! The task store of many machines: a `PostgreSQL` database.
//!
//! - Writes are operations on a bounded queue; one writer per process groups them into transactions (`writer`), and the processes of a
//!   database get along by the locks of its rows (`tx`).
//! - Reads go past it on a pool (`reads`).
//! - Changes are told to the other processes, as a hint (`herald`), and so are notices (`wire`).
//!
//! Futures that must run are [`services`](PgStore::services). The clock is the database's.

use std::{
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use comfyd_actors::{
    domain::moment::ClockWatch,
    kit::service::{Factory, factory},
    metrics::Metrics,
    ports::{
        clock::Clock,
        store::{Changed, StoreError},
        wire::Notice,
    },
};
use tokio::{sync::broadcast, time::timeout};
use uuid::Uuid;

use self::{
    herald::{Herald, Waiting},
    reads::Readers,
    writer::{Job, Operation, Time, Writer, job},
};

// First, for its macros: the lists of columns.
#[macro_use]
mod rows;

mod fault;
mod heads;
mod herald;
mod look;
mod open;
mod ops;
mod pooler;
mod reads;
mod tx;
mod unwritten;
mod wire;
mod writer;

pub use self::{
    look::{ServerReport, look},
    open::{OpenError, PgConfig},
};
use super::{CHANGES_KEPT, HERALD, LISTENER, NOTICES_KEPT, WRITER, queue::Queue};

/// What is sent for a claim and for the end of a task, for who measures what all the rest costs.
#[doc(hidden)]
pub mod statements {
    use super::{heads, tx, unwritten, writer};

    pub const BEGIN: &str = writer::BEGIN;
    pub const HEADS: &str = heads::HEADS;
    pub const LOAD: &str = tx::LOAD;
    pub const CHANGE: &str = unwritten::CHANGE;
    pub const FINISH: &str = tx::FINISH;
    pub const EVENTS_LOCK: i64 = tx::EVENTS_LOCK;
}

/// How long it may take until nobody reads any more.
const LEAVING: Duration = Duration::from_secs(5);

/// The store.
pub struct PgStore {
    config: PgConfig,
    time: Time,
    clock: Arc<dyn Clock>,
    /// This process, as the database knows it.
    id: Uuid,
    readers: Readers,
    queue: Queue<dyn Job>,
    /// Transactions that were begun so far.
    batches: Arc<AtomicI64>,
    herald: Herald,
    waiting: Waiting,
    changes: broadcast::Sender<Changed>,
    heard: broadcast::Sender<Arc<Notice>>,
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
        let (herald, waiting) = Herald::new(opened.id);
        Ok(Arc::new(Self {
            time,
            clock,
            id: opened.id,
            readers: Readers { pool: opened.readers, patience: config.patience, is_pooled: config.is_pooled },
            queue: Queue::new(),
            batches: Arc::default(),
            herald,
            waiting,
            changes: broadcast::Sender::new(CHANGES_KEPT),
            heard: broadcast::Sender::new(NOTICES_KEPT),
            config,
        }))
    }

    /// Times its commits from the next writer on, for good.
    pub fn observe(&self, metrics: Metrics) {
        self.queue.observe(metrics);
    }

    /// The futures it needs to have run, by name, each again when it ended or panicked. What was being written by a writer that died is
    /// rolled back and answered `Unavailable`, what was waiting goes on.
    #[must_use]
    pub fn services(self: &Arc<Self>) -> Vec<(&'static str, Factory)> {
        let [writing, telling, listening] = [(); 3].map(|()| Arc::clone(self));
        vec![
            (WRITER, factory(move || writing.clone().write_on())),
            (HERALD, factory(move || telling.clone().tell_on())),
            (LISTENER, factory(move || herald::listen(listening.clone()))),
        ]
    }

    async fn write_on(self: Arc<Self>) {
        let mut queue = self.queue.lend().await;
        let mut watch = ClockWatch::default();
        if let Time::Given(clock) = &self.time {
            watch.look(clock.now(), clock.steady());
        }
        let writer = Writer {
            config: self.config.clone(),
            time: self.time.clone(),
            clock: Arc::clone(&self.clock),
            watch,
            changes: self.changes.clone(),
            herald: self.herald.clone(),
            metrics: self.queue.metrics().cloned(),
            id: self.id,
            batches: Arc::clone(&self.batches),
            batch: 0,
            conn: None,
        };
        writer.run(&mut queue).await;
    }

    async fn tell_on(self: Arc<Self>) {
        self.herald.speak(&self.waiting, &self.config).await;
    }

    /// Says goodbye: the very last call, when nothing is held any more and the services have stopped.
    ///
    /// # Errors
    /// `Unavailable`: the database knows this process a while longer.
    pub async fn leave(&self) -> Result<(), StoreError> {
        // A connection that went silent is not waited for.
        _ = timeout(LEAVING, self.readers.pool.close()).await;
        open::forget(&self.config, self.id).await
    }

    /// Queues an operation and waits for its commit.
    async fn write<O: Operation>(&self, operation: O) -> Result<O::Answer, StoreError> {
        self.queue.put(job(operation)).await
    }
}

serve_ports!(PgStore, readers);
