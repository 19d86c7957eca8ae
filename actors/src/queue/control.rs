//! What clients change about tasks that are there, and about the queue itself.

use bytes::Bytes;
use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::broadcast::error::RecvError;
use tracing::{debug, info};

use super::{COUNT_EVERY, Held, QueueMsg, State, TICK, Whereabouts};
use crate::{
    bridge::{RequestError, Wish},
    comfy_session::SessionMsg,
    domain::{
        id::{BackendId, TaskId},
        lane::Lanes,
        task::{Change, Task, TaskState},
        tenant::NOBODY,
        time::Timestamp,
    },
    janitor::JanitorMsg,
    kit::tasks::Panicked,
    ports::{
        store::{Hold, Pausable, Pause, StoreError},
        wire::{Kind, Notice},
    },
};

/// The answer to a client's change of a task.
pub type Amended = Result<Task, RequestError>;

/// What takes nothing new, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// `None` until it was read: nothing is taken before.
    known: Option<Vec<Pause>>,
    /// Changes asked for so far: what was read while one was made may be older than it.
    changes: u64,
}

impl Pauses {
    /// Whether nothing new may be taken at all.
    pub(super) fn stop_all(&self) -> bool {
        self.known.as_ref().is_none_or(|known| known.iter().any(|pause| pause.what == Pausable::Queue))
    }

    /// Whether nothing new may be taken for this backend.
    pub(super) fn stop(&self, backend: &BackendId) -> bool {
        let is_it = |pause: &Pause| matches!(&pause.what, Pausable::Backend(paused) if paused == backend);
        self.known.as_ref().is_some_and(|known| known.iter().any(is_it))
    }

    /// The backends from which everything is to be moved by now.
    fn to_move(&self, now: Timestamp) -> impl Iterator<Item = &BackendId> {
        let due = move |pause: &&Pause| pause.move_at.is_some_and(|at| now >= at);
        self.known.iter().flatten().filter(due).filter_map(|pause| match &pause.what {
            Pausable::Backend(backend) => Some(backend),
            Pausable::Queue => None,
        })
    }
}

impl State {
    pub(super) fn amend(&mut self, me: &ActorRef<QueueMsg>, id: TaskId, wish: Wish, reply: RpcReplyPort<Amended>) {
        match self.system.store.clone() {
            // A task that waits again takes a place of its tenant's, as a new one does.
            Some(store) if wish == Wish::Again && self.system.settings.tenants.limit_waiting() => {
                let found = move |result| QueueMsg::Found { id, reply, result };
                self.tasks.run(me, async move { store.get(id).await }, found);
            }
            _ => self.change(me, id, NOBODY, wish, reply),
        }
    }

    /// Makes the change. The tenant is that of a task that takes a place.
    pub(super) fn change(
        &mut self,
        me: &ActorRef<QueueMsg>,
        id: TaskId,
        tenant: i64,
        wish: Wish,
        reply: RpcReplyPort<Amended>,
    ) {
        // Without a store there are no clients either.
        let Some(store) = self.system.store.clone() else { return };
        let ordering = self.system.settings.ordering;
        let change = match wish {
            Wish::Cancel => Change::Cancel,
            Wish::Prioritize(priority) => Change::Reprioritize { priority, ordering },
            Wish::Again => Change::Reopen { ordering },
            Wish::UploadsAgain => Change::ReopenUploads { worker: self.system.worker.clone() },
        };
        // And a place in the queue.
        let limit = self.system.settings.max_pending;
        if wish == Wish::Again {
            if let Err(retry_after) = self.waiting.admit(self.entering, limit, COUNT_EVERY) {
                let full = RequestError::Full { pending: self.waiting.count(), limit, retry_after };
                _ = reply.send(Err(full));
                return;
            }
            self.entering += 1;
            self.begin_entering(tenant);
        }
        let asked = self.system.clock.now();
        self.tasks.run(me, async move { store.amend(id, change).await }, move |result| QueueMsg::Amended {
            wish,
            tenant,
            asked,
            reply,
            result,
        });
    }

    pub(super) fn on_amended(
        &mut self,
        me: &ActorRef<QueueMsg>,
        wish: Wish,
        tenant: i64,
        asked: Timestamp,
        reply: RpcReplyPort<Amended>,
        result: Result<Result<Task, StoreError>, Panicked>,
    ) {
        if wish == Wish::Again {
            self.entering = self.entering.saturating_sub(1);
            self.end_entering(tenant);
        }
        let result = result.unwrap_or_else(|panicked| Err(StoreError::Unavailable(panicked.to_string())));
        if let Ok(task) = &result {
            match wish {
                Wish::Cancel if task.is_cancelling() => self.on_cancelled(task.id),
                Wish::Cancel => self.tell_cancelled(task.id),
                // It was left as an abandoned task: looking for such at once saves the wait for the next sweep.
                Wish::UploadsAgain if task.state == TaskState::Uploading => {
                    _ = self.system.slots.janitor.cast(JanitorMsg::Sweep);
                }
                // One that waited before is counted already. Word of what became pending comes from the store.
                Wish::Again if task.state == TaskState::Pending && task.queued_at >= asked => self.waiting.entered(),
                Wish::UploadsAgain | Wish::Again => {}
                // Among which it was counted before is not known.
                Wish::Prioritize(_) => self.count(me),
            }
        }
        _ = reply.send(result.map_err(RequestError::Store));
    }

    /// A task that somebody holds is to end.
    pub(super) fn on_cancelled(&mut self, id: TaskId) {
        if !self.held.contains_key(&id) {
            self.cancelled_early.insert(id);
        }
        self.tell_cancelled(id);
    }

    pub(super) fn set_paused(
        &mut self,
        me: &ActorRef<QueueMsg>,
        what: Pausable,
        hold: Hold,
        reply: RpcReplyPort<Result<Vec<Pause>, RequestError>>,
    ) {
        let Some(store) = self.system.store.clone() else { return };
        self.pauses.changes += 1;
        self.tasks.run(me, async move { store.set_paused(what, hold).await }, |result| QueueMsg::PauseStored {
            reply,
            result,
        });
    }

    pub(super) fn on_pause_stored(
        &mut self,
        me: &ActorRef<QueueMsg>,
        reply: RpcReplyPort<Result<Vec<Pause>, RequestError>>,
        result: Result<Result<Vec<Pause>, StoreError>, Panicked>,
    ) {
        self.pauses.changes += 1;
        let result = result.unwrap_or_else(|panicked| Err(StoreError::Unavailable(panicked.to_string())));
        if let Ok(pauses) = &result {
            self.adopt_pauses(me, pauses.clone());
            self.tell_of_pauses();
        }
        _ = reply.send(result.map_err(RequestError::Store));
    }

    /// Other processes read again what is paused. Those that do not hear of it look each second.
    fn tell_of_pauses(&mut self) {
        let (wire, name) = (self.system.wire.clone(), self.system.worker.as_str().to_owned());
        self.tasks.run_unreported(async move {
            let notice = Notice { kind: Kind::Pause, name, body: Bytes::new() };
            if let Err(error) = wire.post(notice, TICK).await {
                debug!(%error, "could not tell other processes what is paused");
            }
        });
    }

    pub(super) fn hear_of_pauses(&mut self, me: &ActorRef<QueueMsg>) {
        let (mut heard, me) = (self.system.wire.heard(), me.clone());
        let ours = self.system.worker.clone();
        self.tasks.run_unreported(async move {
            loop {
                let to_read = match heard.recv().await {
                    Ok(notice) => notice.kind == Kind::Pause && notice.name != ours.as_str(),
                    Err(RecvError::Lagged(_)) => true,
                    Err(RecvError::Closed) => return,
                };
                if to_read && me.cast(QueueMsg::ReadPauses).is_err() {
                    return;
                }
            }
        });
    }

    /// Another process may have paused or resumed something.
    pub(super) fn read_pauses(&mut self, me: &ActorRef<QueueMsg>) {
        let (hints, changes) = (self.system.hints.clone(), self.pauses.changes);
        self.tasks.run(me, async move { hints.pauses().await }, move |result| QueueMsg::PausesRead { changes, result });
    }

    pub(super) fn on_pauses_read(
        &mut self,
        me: &ActorRef<QueueMsg>,
        changes: u64,
        result: Result<Result<Vec<Pause>, StoreError>, Panicked>,
    ) {
        match result {
            Ok(Ok(pauses)) if changes == self.pauses.changes => self.adopt_pauses(me, pauses),
            Ok(Ok(_)) => {}
            // The next tick reads again.
            Ok(Err(error)) => debug!(%error, "could not read what is paused"),
            Err(panicked) => debug!(%panicked, "could not read what is paused"),
        }
    }

    fn adopt_pauses(&mut self, me: &ActorRef<QueueMsg>, pauses: Vec<Pause>) {
        if self.pauses.known.as_ref() == Some(&pauses) {
            return;
        }
        info!(paused = ?pauses.iter().map(|pause| &pause.what).collect::<Vec<_>>(), "what takes no new tasks");
        self.system.board.set_pauses(&pauses);
        self.pauses.known = Some(pauses);
        self.recall_paused();
        self.move_away();
        self.on_wake(me);
    }

    /// What still runs on a server whose drain has lasted long enough.
    pub(super) fn move_away(&self) {
        for backend in self.pauses.to_move(self.system.clock.now()) {
            self.tell_session(backend, SessionMsg::MoveAway);
        }
    }

    /// What only waits on a server has not begun: it comes back, to run elsewhere or later.
    fn recall_paused(&self) {
        for backend in self.sessions.keys().filter(|backend| self.pauses.stop_all() || self.pauses.stop(backend)) {
            let there = |held: &&Held| held.at == Whereabouts::Backend && held.backend == *backend;
            for _ in 0..self.held.values().filter(there).count() {
                self.tell_session(backend, SessionMsg::Recall { lanes: Lanes::All });
            }
        }
    }
}
