//! I/O beside an actor: a future that always sends exactly one message back, and dies with the actor.

use std::{future::Future, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use ractor::{ActorRef, Message};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// The work panicked. Its text is already in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked")]
pub struct Panicked;

/// Stops the work it was given for when dropped.
#[derive(Debug)]
pub struct Guard(CancellationToken);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The futures an actor has running. Lives in its state: when the actor goes, on a kill too, they are aborted.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<()>);

impl Tasks {
    /// Runs `work` beside the actor and sends it `report` of the outcome. `work` bounds its own time.
    pub fn run<M, W, R>(&mut self, me: &ActorRef<M>, work: W, report: R)
    where
        M: Message,
        W: Future + Send + 'static,
        W::Output: Send,
        R: FnOnce(Result<W::Output, Panicked>) -> M + Send + 'static,
    {
        self.reap();
        let me = me.clone();
        self.0.spawn(
            async move {
                let outcome = AssertUnwindSafe(work).catch_unwind().await.map_err(|_| Panicked);
                // The actor may be gone; then nobody waits for the report.
                let _ = me.cast(report(outcome));
            }
            .in_current_span(),
        );
    }

    /// As [`Self::run`], and stops the work when the guard is dropped; then no message comes.
    #[must_use]
    pub fn run_abortable<M, W, R>(&mut self, me: &ActorRef<M>, work: W, report: R) -> Guard
    where
        M: Message,
        W: Future + Send + 'static,
        W::Output: Send,
        R: FnOnce(Result<W::Output, Panicked>) -> M + Send + 'static,
    {
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let me = me.clone();
        self.run_unreported(async move {
            tokio::select! {
                () = cancelled.cancelled_owned() => {}
                outcome = AssertUnwindSafe(work).catch_unwind() => {
                    let _ = me.cast(report(outcome.map_err(|_| Panicked)));
                }
            }
        });
        Guard(token)
    }

    /// Sends `message` each time the peer behind `address` is there (again), beginning with now if it is.
    pub fn follow<M, P>(
        &mut self,
        me: &ActorRef<M>,
        mut address: watch::Receiver<Option<ActorRef<P>>>,
        message: fn() -> M,
    ) where
        M: Message,
        P: Message,
    {
        let me = me.clone();
        self.run_unreported(async move {
            loop {
                let there = address.borrow_and_update().is_some();
                if there && me.cast(message()).is_err() || address.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Runs `work` for its effect alone: losing it loses nothing.
    pub fn run_unreported<W>(&mut self, work: W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        self.reap();
        self.0.spawn(work.in_current_span());
    }

    /// How many are still running.
    pub fn running(&mut self) -> usize {
        self.reap();
        self.0.len()
    }

    fn reap(&mut self) {
        while self.0.try_join_next().is_some() {}
    }
}
