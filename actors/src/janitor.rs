//! JanitorActor: what must happen at a time rather than on an event.
//!
//! - **Owns** timers, nothing else.
//! - **Talks** to the store; hands abandoned tasks it adopted to the queue.
//! - **When it dies** later ticks catch up; a task it adopted and did not hand over is adopted again when that lease expires.
//! - **Must never** decide about a task: adopting and promoting are the store's transitions.

mod leftovers;

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{sync::broadcast, time::Instant};
use tracing::{debug, info};

use crate::{
    domain::{task::TaskState, time::Timestamp},
    kit::tasks::{Panicked, Tasks},
    ports::{
        object_store::ObjectError,
        store::{Assignment, StoreError, Sweep},
    },
    queue::QueueMsg,
    system::System,
};

/// Most leases adopted in one sweep: a crowd is shared with other consumers.
const SWEEP_LIMIT: u32 = 50;
/// A consumer that stops ends its leases at once, and whoever goes on with them should not take longer than this to notice.
const SWEEP_AT_LEAST_EVERY: Duration = Duration::from_millis(750);
/// Sweeps within the life of a lease.
const SWEEPS_PER_LEASE: u32 = 6;
/// Most tasks promoted or deleted in one transaction, so that others get their turn.
const BATCH: u32 = 500;
/// A backstop: another process may have scheduled something.
const PROMOTE_AT_LEAST_EVERY: Duration = Duration::from_secs(10);
/// How often finished tasks past their time are deleted.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Most files of clients deleted in one go.
const OBJECTS: u32 = 50;

/// Why objects that nobody needs were not deleted.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The store did not say which, or did not hear of it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The storage did not do it.
    #[error(transparent)]
    Storage(#[from] ObjectError),
}

/// What the janitor hears.
#[derive(Debug)]
pub enum JanitorMsg {
    /// Adopt what was abandoned.
    Sweep,
    /// Adopted tasks arrived.
    Swept(Result<Result<Vec<Assignment>, StoreError>, Panicked>),
    /// A task was scheduled, or a scheduled one's time has come.
    Promote,
    /// Promotion ended; carries when the next one is due.
    Promoted(Result<Result<Option<Timestamp>, StoreError>, Panicked>),
    /// Delete what is past its retention.
    Prune,
    /// Delete files of clients that nobody needs any more.
    PruneInputs,
    /// That ended; carries how many were deleted.
    InputsPruned(Result<Result<u32, PruneError>, Panicked>),
    /// Delete what runs that were given up left in storage.
    SweepLeftovers,
    /// That ended; carries how many objects were deleted.
    LeftoversSwept(Result<Result<u32, PruneError>, Panicked>),
    /// Deletion ended; carries how many were deleted.
    Pruned(Result<Result<u32, StoreError>, Panicked>),
}

/// The janitor.
pub struct JanitorActor;

/// Its state.
pub struct State {
    system: System,
    tasks: Tasks,
    promoting: bool,
    sweeping_leftovers: bool,
    /// Something was scheduled while a promotion was under way, perhaps too late for it.
    promote_again: bool,
    /// When the timer for the next promotion fires.
    promote_at: Option<Instant>,
}

impl Actor for JanitorActor {
    type Msg = JanitorMsg;
    type State = State;
    type Arguments = System;

    async fn pre_start(&self, me: ActorRef<JanitorMsg>, system: System) -> Result<State, ActorProcessingErr> {
        if system.role.runs_tasks() {
            let every = SWEEP_AT_LEAST_EVERY.min(system.settings.lease / SWEEPS_PER_LEASE);
            me.send_interval(every, || JanitorMsg::Sweep);
        }
        if system.desk.is_some() {
            me.send_interval(PRUNE_EVERY, || JanitorMsg::Prune);
            me.send_interval(PRUNE_EVERY, || JanitorMsg::PruneInputs);
            me.send_interval(PRUNE_EVERY.min(system.settings.leftovers), || JanitorMsg::SweepLeftovers);
        }
        me.send_interval(PROMOTE_AT_LEAST_EVERY, || JanitorMsg::Promote);
        let mut state = State {
            system,
            tasks: Tasks::default(),
            promoting: false,
            sweeping_leftovers: false,
            promote_again: false,
            promote_at: None,
        };
        state.listen(&me);
        me.cast(JanitorMsg::Promote)?;
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<JanitorMsg>,
        message: JanitorMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            JanitorMsg::Sweep => state.sweep(&me),
            JanitorMsg::Swept(result) => state.on_swept(result),
            JanitorMsg::Promote => state.promote(&me),
            JanitorMsg::Promoted(result) => state.on_promoted(&me, result),
            JanitorMsg::Prune => state.prune(&me),
            JanitorMsg::Pruned(result) => state.on_pruned(&me, result),
            JanitorMsg::PruneInputs => state.prune_inputs(&me),
            JanitorMsg::InputsPruned(result) => state.on_inputs_pruned(&me, result),
            JanitorMsg::SweepLeftovers => state.sweep_leftovers(&me),
            JanitorMsg::LeftoversSwept(result) => state.on_leftovers_swept(result),
        }
        Ok(())
    }
}

impl State {
    /// A task that becomes scheduled may be due before the timer fires.
    fn listen(&mut self, me: &ActorRef<JanitorMsg>) {
        let (mut changes, me) = (self.system.hints.changes(), me.clone());
        self.tasks.run_unreported(async move {
            loop {
                match changes.recv().await {
                    Ok(changed) if changed.state != TaskState::Scheduled => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        if me.cast(JanitorMsg::Promote).is_err() {
                            return;
                        }
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    fn sweep(&mut self, me: &ActorRef<JanitorMsg>) {
        // What this process hands over is not for itself.
        if self.system.board.is_draining() {
            return;
        }
        let system = self.system.clone();
        let sweep = Sweep {
            worker: system.worker.clone(),
            lease: system.settings.lease,
            backends: system.backends.keys().cloned().collect(),
            stranded_after: system.settings.session.backend_lost_after,
            limit: SWEEP_LIMIT,
        };
        let work = async move { system.source.adopt_expired(&sweep).await };
        self.tasks.run(me, work, JanitorMsg::Swept);
    }

    fn on_swept(&mut self, result: Result<Result<Vec<Assignment>, StoreError>, Panicked>) {
        match flatten(result) {
            Ok(assignments) if assignments.is_empty() => {}
            Ok(assignments) => {
                info!(tasks = assignments.len(), "adopted tasks whose lease expired");
                self.system.slots.queue.cast(QueueMsg::Adopted { assignments });
            }
            // The next tick catches up.
            Err(error) => debug!(error, "could not sweep expired leases"),
        }
    }

    fn promote(&mut self, me: &ActorRef<JanitorMsg>) {
        // Who has no store leaves it to those who have.
        let Some(store) = self.system.store.clone() else { return };
        if std::mem::replace(&mut self.promoting, true) {
            self.promote_again = true;
            return;
        }
        let clock = self.system.clock.clone();
        let work = async move {
            // Most of the time there is nothing to write, and a read costs others nothing.
            loop {
                let next = store.next_scheduled().await?;
                if next.is_none_or(|at| at > clock.now()) || store.promote(BATCH).await? == 0 {
                    return Ok(next);
                }
            }
        };
        self.tasks.run(me, work, JanitorMsg::Promoted);
    }

    fn on_promoted(
        &mut self,
        me: &ActorRef<JanitorMsg>,
        result: Result<Result<Option<Timestamp>, StoreError>, Panicked>,
    ) {
        self.promoting = false;
        match flatten(result) {
            Ok(Some(at)) => self.arm(me, at),
            Ok(None) => {}
            Err(error) => debug!(error, "could not promote scheduled tasks"),
        }
        if std::mem::take(&mut self.promote_again) {
            self.promote(me);
        }
    }

    /// One timer for the earliest due time; a later one is armed when that fired.
    fn arm(&mut self, me: &ActorRef<JanitorMsg>, at: Timestamp) {
        // A millisecond more, because the store counts whole ones.
        let delay = at.since(self.system.clock.now()) + Duration::from_millis(1);
        let due = Instant::now() + delay;
        let armed = self.promote_at.is_some_and(|armed| armed > Instant::now() && armed <= due);
        if !armed && delay < PROMOTE_AT_LEAST_EVERY {
            self.promote_at = Some(due);
            me.send_after(delay, || JanitorMsg::Promote);
        }
    }

    fn prune(&mut self, me: &ActorRef<JanitorMsg>) {
        let Some(store) = self.system.store.clone() else { return };
        let retention = self.system.settings.retention;
        self.tasks.run(me, async move { store.prune(retention, BATCH).await }, JanitorMsg::Pruned);
    }

    fn on_pruned(&mut self, me: &ActorRef<JanitorMsg>, result: Result<Result<u32, StoreError>, Panicked>) {
        match flatten(result) {
            Ok(BATCH) => self.prune(me),
            Ok(_) => {}
            Err(error) => debug!(error, "could not delete old tasks"),
        }
    }

    /// Given up in the store first, then deleted, then forgotten: whatever ends this in between, it is done again.
    fn prune_inputs(&mut self, me: &ActorRef<JanitorMsg>) {
        let Some(desk) = &self.system.desk else { return };
        let (inputs, objects) = (desk.inputs.clone(), desk.targets.inputs().clone());
        let work = async move {
            let keys = inputs.give_up(OBJECTS).await?;
            for key in &keys {
                objects.delete(key).await?;
            }
            inputs.forget(&keys).await?;
            Ok(u32::try_from(keys.len()).unwrap_or(u32::MAX))
        };
        self.tasks.run(me, work, JanitorMsg::InputsPruned);
    }

    fn on_inputs_pruned(&mut self, me: &ActorRef<JanitorMsg>, result: Result<Result<u32, PruneError>, Panicked>) {
        match flatten(result) {
            Ok(OBJECTS) => self.prune_inputs(me),
            Ok(0) => {}
            Ok(files) => debug!(files, "deleted files of clients that were past their time"),
            Err(error) => debug!(error, "could not delete files of clients that are past their time"),
        }
    }

    fn sweep_leftovers(&mut self, me: &ActorRef<JanitorMsg>) {
        if !std::mem::replace(&mut self.sweeping_leftovers, true) {
            let system = self.system.clone();
            self.tasks.run(me, async move { leftovers::sweep(&system).await }, JanitorMsg::LeftoversSwept);
        }
    }

    fn on_leftovers_swept(&mut self, result: Result<Result<u32, PruneError>, Panicked>) {
        self.sweeping_leftovers = false;
        match flatten(result) {
            Ok(objects) => self.system.metrics.leftovers_deleted(objects),
            // The next tick goes on where this one stood.
            Err(error) => debug!(error, "could not delete all that runs that were given up left in storage"),
        }
    }
}

fn flatten<T, E: std::fmt::Display>(result: Result<Result<T, E>, Panicked>) -> Result<T, String> {
    result.map_err(|panicked| panicked.to_string())?.map_err(|error| error.to_string())
}
