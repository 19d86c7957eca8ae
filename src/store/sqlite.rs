//! The task store of a single machine: one `SQLite` file.
//!
//! - Writes are operations on a bounded queue; one [writer](SqliteStore::writer) groups them into commits (`writer`). Whoever supervises
//!   the store runs it, and makes it again from the same store when it died.
//! - Reads go past it on a few read-only connections (`reads`), so a page of the list never delays a claim.
//! - The file remembers whether its last user said goodbye ([`SqliteStore::was_clean`]).
//!
//! When the process dies, everything answered so far is in the file; the next one opens it and goes on. Two processes may share the file,
//! but take turns writing; the node's lock (`store::node_lock`) is what tells them apart.

use std::sync::Arc;

use comfyd_actors::{
    metrics::Metrics,
    ports::{
        clock::Clock,
        store::{Changed, StoreError},
        wire::Notice,
    },
};
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::broadcast;

use self::{
    fault::store_error,
    flush::Flusher,
    place::Files,
    reads::Readers,
    writer::{Job, Operation, Writer, job},
};
use super::{CHANGES_KEPT, NOTICES_KEPT, queue::Queue};

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
mod writer;

pub use self::{
    at_rest::{AtRest, Schema, look},
    open::{OpenError, SqliteConfig},
    place::remote_file_system,
};

/// The store.
pub struct SqliteStore {
    clock: Arc<dyn Clock>,
    options: SqliteConnectOptions,
    files: Files,
    readers: Readers,
    queue: Queue<dyn Job>,
    changes: broadcast::Sender<Changed>,
    heard: broadcast::Sender<Arc<Notice>>,
    was_clean: bool,
}

impl SqliteStore {
    /// Opens the database, making it when there is none, and marks it as in use. Writes wait until [`Self::writer`] runs.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the file or its place.
    pub async fn open(config: SqliteConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, OpenError> {
        let opened = open::open(&config).await?;
        Ok(Arc::new(Self {
            clock,
            options: opened.options,
            files: opened.files,
            readers: Readers(opened.readers),
            queue: Queue::new(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            heard: broadcast::Sender::new(NOTICES_KEPT),
            was_clean: opened.was_clean,
        }))
    }

    /// Times its commits from the next writer on, for good.
    pub fn observe(&self, metrics: Metrics) {
        self.queue.observe(metrics);
    }

    /// The writer, to be run by whoever supervises it for as long as the store is used. It never ends by itself. Of two at a time one
    /// waits for the other. After a panic run another one: what was being written is rolled back and answered `Unavailable`, what
    /// was waiting goes on.
    pub fn writer(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static + use<> {
        let store = Arc::clone(self);
        async move {
            let mut queue = store.queue.lend().await;
            let (flusher, flushing) = Flusher::new(store.files.clone(), store.changes.clone());
            let writer = Writer::new(store.options.clone(), store.files.clone(), Arc::clone(&store.clock), flusher)
                .observed(store.queue.metrics().cloned());
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
        self.queue.put(job(operation)).await
    }
}

serve_ports!(SqliteStore, readers);

#[cfg(test)]
mod tests;
