//! Leases: what this process holds, read back after a restart and renewed in one go.

use ractor::ActorRef;
use std::collections::HashMap;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{QueueMsg, State, Whereabouts};
use crate::{
    comfy_session::{Origin, SessionMsg},
    domain::{id::TaskId, task::Fence},
    kit::tasks::Panicked,
    ports::store::{Assignment, Renewed, StoreError},
    uploads::UploadsMsg,
};

impl State {
    /// Reads back what this process holds and hands it out again: after a restart of this actor, of a session or of the uploads.
    pub(super) fn recover(&mut self, me: &ActorRef<QueueMsg>) {
        if std::mem::replace(&mut self.recovering, true) {
            return;
        }
        let (system, stretch) = (self.system.clone(), self.system.deadline.stretch());
        let work = async move {
            let (worker, lease) = (&system.worker, system.settings.lease);
            if system.predecessors.have_left() {
                system.source.take_over(worker, lease).await?;
                system.predecessors.are_done();
            }
            system.source.held(worker).await
        };
        self.tasks.run(me, work, move |result| QueueMsg::Recovered { stretch, result });
    }

    pub(super) fn on_recovered(
        &mut self,
        me: &ActorRef<QueueMsg>,
        stretch: u64,
        result: Result<Result<Vec<Assignment>, StoreError>, Panicked>,
    ) {
        self.recovering = false;
        let ended = std::mem::take(&mut self.ended_meanwhile);
        let mut assignments = match result {
            Ok(Ok(assignments)) => assignments,
            // The next tick tries again.
            Ok(Err(error)) => {
                self.doubtful = true;
                return warn!(%error, "could not read the held tasks back; trying again");
            }
            Err(Panicked) => {
                self.doubtful = true;
                return error!("reading the held tasks back panicked; trying again");
            }
        };
        if self.awaits_tasks() {
            // A claim under way may show up in what was read, before its own answer does: read again.
            return self.recover(me);
        }
        self.doubtful = false;
        if !self.recovered {
            // What ended while nobody kept the books.
            self.system.posts.keep_only(&assignments.iter().map(|held| held.task.id).collect());
        }
        assignments.retain(|assignment| !ended.contains(&assignment.task.id));
        if !self.recovered {
            self.recovered = true;
            self.system.deadline.extend(Instant::now(), self.system.settings.lease * 2 / 3);
            if !assignments.is_empty() {
                info!(tasks = assignments.len(), "took up the tasks held before the restart");
            }
        }
        self.assign_all(me, assignments, Origin::Resumed, stretch);
        self.hand_over_when_done(me);
        self.fill(me);
    }

    pub(super) fn renew(&mut self, me: &ActorRef<QueueMsg>) {
        let held: Vec<_> = self.held.iter().map(|(id, held)| (*id, held.fence)).collect();
        let (asked, system) = (Instant::now(), self.system.clone());
        let asked_for = held.clone();
        let work = async move {
            if held.is_empty() {
                return Ok(Vec::new());
            }
            system.source.renew(&system.worker, system.settings.lease, &held).await
        };
        self.tasks.run(me, work, move |result| QueueMsg::Renewed { asked, held: asked_for, result });
    }

    pub(super) fn on_renewed(
        &mut self,
        asked: Instant,
        held: &[(TaskId, Fence)],
        result: Result<Result<Vec<Renewed>, StoreError>, Panicked>,
    ) {
        let renewed = match result {
            Ok(Ok(renewed)) => renewed,
            Ok(Err(error)) => return warn!(%error, "could not renew the leases; work stops when they are too old"),
            Err(Panicked) => return error!("renewing the leases panicked"),
        };
        // Whoever is held by now was told of by this.
        self.cancelled_early.clear();
        let renewed: HashMap<_, _> = renewed.into_iter().map(|lease| (lease.id, lease.cancel_requested)).collect();
        for (id, fence) in held {
            match renewed.get(id) {
                Some(true) => self.tell_cancelled(*id),
                Some(false) => {}
                None => self.on_lost(*id, *fence),
            }
        }
        // After that, so that nobody acts once more on what is lost. Two thirds: whoever acts on a lease must have stopped before others
        // may adopt.
        self.system.deadline.extend(asked, self.system.settings.lease * 2 / 3);
    }

    pub(super) fn on_lost(&mut self, id: TaskId, fence: Fence) {
        // A lease that is being settled, or was settled while the renewal was under way, is not lost.
        if self.held.get(&id).is_none_or(|held| held.fence != fence || held.at == Whereabouts::Settling) {
            return;
        }
        let Some(held) = self.held.remove(&id) else { return };
        self.system.posts.forget(id);
        self.tell_session(&held.backend, SessionMsg::Drop { id, fence });
        self.system.slots.uploads.cast(UploadsMsg::Drop { id, fence });
    }
}
