//! Promises wait here until the disk has them.
//!
//! With `synchronous = FULL`, `SQLite` waits for the disk inside the commit, and whoever comes next waits as well, promise or not. So the
//! writer commits with `NORMAL`: that is in the log, and safe from the death of the process, when the commit returns. The log is flushed
//! here while the writer goes on, once for all promises that are waiting, and then they are answered (decision 026).
//!
//! After a flush that failed nobody knows which pages of the log are on the disk: the system forgets them, and the next flush succeeds
//! without them. So nothing in the log is promised any more until its contents are in the database, see [`Flusher::is_trusted`].

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use comfyd_actors::ports::store::{Changed, StoreError};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::spawn_blocking,
};
use tracing::warn;

use super::{place::Files, writer::Job};
use crate::crash_point;

/// Batches that may wait for the disk; then the writer waits too.
const WAITING: usize = 64;

/// Somebody who wants to be told when the disk has what was committed.
pub(super) type Promise = oneshot::Sender<Result<(), StoreError>>;

/// A batch that is committed: what is said of it once the disk has it.
pub(super) struct Committed {
    /// Its operations that are promises, with their answers.
    pub(super) jobs: Vec<Box<dyn Job>>,
    /// What else waits for the disk.
    pub(super) promises: Vec<Promise>,
    /// What listeners are told.
    pub(super) changed: Vec<Changed>,
}

impl Committed {
    fn is_promise(&self) -> bool {
        !self.jobs.is_empty() || !self.promises.is_empty()
    }
}

/// The writer's end.
pub(super) struct Flusher {
    committed: mpsc::Sender<Committed>,
    shared: Arc<Shared>,
}

struct Shared {
    files: Files,
    changes: broadcast::Sender<Changed>,
    /// Batches not told yet.
    waiting: AtomicUsize,
    failed: AtomicBool,
}

impl Flusher {
    /// Flushes the log of a database, and tells `changes`. The future does it, and ends when the flusher is dropped and everything is
    /// told.
    pub(super) fn new(files: Files, changes: broadcast::Sender<Changed>) -> (Self, impl Future<Output = ()>) {
        let (committed, waiting) = mpsc::channel(WAITING);
        let shared = Shared { files, changes, waiting: AtomicUsize::new(0), failed: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        (Self { committed, shared: Arc::clone(&shared) }, flush(shared, waiting))
    }

    /// Says what is to be said of a batch: at once when it holds no promise and none is waiting, since listeners hear of changes in order.
    pub(super) async fn settle(&self, batch: Committed) {
        if !batch.is_promise() && self.shared.waiting.load(Ordering::Acquire) == 0 {
            return self.shared.tell(batch.changed);
        }
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        // It is there as long as the writer is: both are one future.
        _ = self.committed.send(batch).await;
    }

    /// False after a flush failed: nothing is promised until the log was folded into the database.
    pub(super) fn is_trusted(&self) -> bool {
        !self.shared.failed.load(Ordering::Acquire)
    }

    /// What was in the log is in the database, on the disk: it can be trusted again.
    pub(super) fn trust(&self) {
        self.shared.failed.store(false, Ordering::Release);
    }
}

impl Shared {
    fn tell(&self, changed: Vec<Changed>) {
        for change in changed {
            _ = self.changes.send(change);
        }
    }
}

async fn flush(shared: Arc<Shared>, mut committed: mpsc::Receiver<Committed>) {
    let mut group = Vec::new();
    while committed.recv_many(&mut group, WAITING).await > 0 {
        let outcome = if group.iter().any(Committed::is_promise) { reach_disk(&shared).await } else { Ok(()) };
        for Committed { jobs, promises, changed } in group.drain(..) {
            crash_point::reach_with("flushed", &changed);
            // What could not be promised is there all the same, and may be seen.
            shared.tell(changed);
            shared.waiting.fetch_sub(1, Ordering::AcqRel);
            jobs.into_iter().for_each(|job| job.answer(outcome.clone()));
            promises.into_iter().for_each(|promise| _ = promise.send(outcome.clone()));
        }
    }
}

async fn reach_disk(shared: &Arc<Shared>) -> Result<(), StoreError> {
    if shared.failed.load(Ordering::Acquire) {
        return Err(StoreError::Unavailable("the disk did not take an earlier write that this one follows".to_owned()));
    }
    let files = shared.files.clone();
    let flushed = spawn_blocking(move || files.flush()).await;
    flushed.map_err(io::Error::other).flatten().map_err(|error| {
        warn!(%error, "failed to flush the task store's log");
        shared.failed.store(true, Ordering::Release);
        StoreError::Unavailable(format!("the disk did not take the write: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was committed before anybody noticed lies in the log behind what may be lost.
    #[tokio::test]
    async fn after_a_flush_that_failed_none_is_believed_until_the_log_is_trusted_again() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("tasks.db");
        std::fs::write(&database, "").unwrap();
        let files = Files::of(&database).unwrap();
        let log = files.log.clone();
        let (flusher, flushing) = Flusher::new(files, broadcast::channel(1).0);
        let flushing = tokio::spawn(flushing);
        let promised = async || {
            let (promise, kept) = oneshot::channel();
            flusher.settle(Committed { jobs: Vec::new(), promises: vec![promise], changed: Vec::new() }).await;
            kept.await.unwrap()
        };
        assert!(promised().await.is_err(), "there is no log");
        std::fs::write(&log, "").unwrap();
        assert!(promised().await.is_err() && !flusher.is_trusted(), "this flush alone would succeed");
        flusher.trust();
        assert!(promised().await.is_ok());
        flushing.abort();
    }
}
