//! The way of an operation to the one writer of a store, and of its answer back. The queue is bounded, and outlives the writer with everything
//! that waits in it.

use std::{sync::OnceLock, time::Duration};

use comfyd_actors::{metrics::Metrics, ports::store::StoreError};
use tokio::{
    sync::{Mutex, MutexGuard, mpsc, oneshot},
    time::Instant,
};

/// Operations that may wait for the writer: a second of its work. More wait in their callers.
const LENGTH: usize = 1024;

/// How long a caller waits for a place in a full queue: longer than a write waits for another process, so that it fails only when nothing
/// moves any more.
const PATIENCE: Duration = Duration::from_secs(15);

/// What waits for the writer: operations with somebody waiting for each, their kinds forgotten.
pub(super) struct Queue<J: ?Sized> {
    jobs: mpsc::Sender<Box<J>>,
    /// The other end, lent to the writer that runs now.
    waiting: Mutex<mpsc::Receiver<Box<J>>>,
    /// Where writes are timed, when somebody wants it.
    metrics: OnceLock<Metrics>,
}

impl<J: ?Sized> Queue<J> {
    /// An empty one.
    pub(super) fn new() -> Self {
        let (jobs, waiting) = mpsc::channel(LENGTH);
        Self { jobs, waiting: Mutex::new(waiting), metrics: OnceLock::new() }
    }

    /// Times writes from now on, and commits from the next writer on, for good.
    pub(super) fn observe(&self, metrics: Metrics) {
        let _ = self.metrics.set(metrics);
    }

    /// Where they are timed.
    pub(super) fn metrics(&self) -> Option<&Metrics> {
        self.metrics.get()
    }

    /// Places that are free.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.jobs.capacity()
    }

    /// The end a writer reads from. Of two at a time one waits for the other.
    pub(super) async fn lend(&self) -> MutexGuard<'_, mpsc::Receiver<Box<J>>> {
        self.waiting.lock().await
    }

    /// Queues an operation and waits for its answer.
    ///
    /// # Errors
    /// What the operation answers; `Unavailable` when nothing moves, or the writer dies over it.
    pub(super) async fn put<A>(&self, (job, answer): (Box<J>, Awaited<A>)) -> Result<A, StoreError> {
        let begun = Instant::now();
        self.jobs
            .send_timeout(job, PATIENCE)
            .await
            .map_err(|_| StoreError::Unavailable("too many writes are waiting".into()))?;
        let lost = |_| Err(StoreError::Unavailable("the writer failed during this write".into()));
        let answer = answer.await.unwrap_or_else(lost);
        if let Some(metrics) = self.metrics() {
            metrics.written(begun.elapsed());
        }
        answer
    }
}

/// Where an operation's answer comes from.
pub(super) type Awaited<A> = oneshot::Receiver<Result<A, StoreError>>;

/// An operation's answer until the batch it is in is committed, and who waits for it.
pub(super) struct Reply<A> {
    answer: Option<Result<A, StoreError>>,
    to: oneshot::Sender<Result<A, StoreError>>,
}

impl<A> Reply<A> {
    /// Not known yet. It comes through the receiver, or never when the writer dies over it.
    pub(super) fn later() -> (Self, Awaited<A>) {
        let (to, awaited) = oneshot::channel();
        (Self { answer: None, to }, awaited)
    }

    /// This is it, if the batch is committed.
    pub(super) fn keep(&mut self, answer: Result<A, StoreError>) {
        self.answer = Some(answer);
    }

    /// Gives it to who waits, or the reason why the whole batch failed.
    pub(super) fn give(self, outcome: Result<(), StoreError>) {
        let answer = match (outcome, self.answer) {
            (Ok(()), Some(answer)) => answer,
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(StoreError::Unavailable("the operation was not run".into())),
        };
        // Who asked may be gone by now. What is committed stays committed.
        let _ = self.to.send(answer);
    }
}
