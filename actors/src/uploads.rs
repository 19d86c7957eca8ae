//! UploadSupervisor: the outputs of finished prompts, from their ComfyUI server into storage, several at a time.
//!
//! - **Owns** the permits and a batch per task; starts an [`UploadActor`] per artifact and try.
//! - **Talks** to the queue (whether it takes more, endings) and to its children.
//! - **When it dies** its children die with it; the queue sends the successor every task that is uploading, with the artifacts that
//!   are stored already. Storing the same again is harmless, because keys are made from task and dispatch.
//! - **Must never** call a task completed with less than all of its outputs, or run it again because the storage is away.

mod batch;
mod outages;
pub mod transfer;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::time::Instant;
use tracing::{debug, info};

use self::{
    batch::{Batch, Verdict},
    outages::Outages,
    transfer::{Failure, TransferArgs, UploadActor},
};
use crate::{
    domain::{
        artifact::StoredObject,
        error::TaskError,
        id::TaskId,
        task::{Change, Fence, Release},
    },
    kit::tasks::Tasks,
    ports::{comfy::ComfyTransport, store::Assignment},
    queue::QueueMsg,
    system::System,
};

/// How often the queue is told again whether we take more.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// What the uploads hear.
#[derive(Debug)]
pub enum UploadsMsg {
    /// A finished prompt's artifacts. A task that is here already under the same fence is ignored.
    Begin { assignment: Box<Assignment> },
    /// A client wants the task stopped: nothing more is stored for it.
    Cancel { id: TaskId },
    /// The lease under this fence is lost: stop all work on it, write nothing.
    Drop { id: TaskId, fence: Fence },
    /// A transfer ended.
    Transferred {
        /// The task.
        id: TaskId,
        /// Under which fence.
        fence: Fence,
        /// Which artifact.
        index: u32,
        /// What came of it.
        result: Result<StoredObject, Failure>,
    },
    /// The server was told to forget its results: the task may run again.
    CacheDropped {
        /// The task.
        id: TaskId,
        /// Under which fence.
        fence: Fence,
        /// Why it runs again.
        error: Box<TaskError>,
    },
    /// The delay before another try is over.
    Again { id: TaskId, fence: Fence, index: u32 },
    /// Tell the queue whether we take more.
    Announce,
}

/// The supervisor.
pub struct UploadSupervisor;

/// Its state.
pub struct State {
    system: System,
    batches: HashMap<TaskId, Batch>,
    outages: Outages,
    ready: VecDeque<(TaskId, Fence, u32)>,
    /// Transfers under way; each is one permit.
    running: HashMap<ActorId, Running>,
    tasks: Tasks,
}

struct Running {
    id: TaskId,
    fence: Fence,
    index: u32,
    cell: ActorCell,
    since: Instant,
}

impl Actor for UploadSupervisor {
    type Msg = UploadsMsg;
    type State = State;
    type Arguments = System;

    async fn pre_start(&self, me: ActorRef<UploadsMsg>, system: System) -> Result<State, ActorProcessingErr> {
        let mut tasks = Tasks::default();
        tasks.follow(&me, system.slots.queue.watch(), || UploadsMsg::Announce);
        me.send_interval(ANNOUNCE_EVERY, || UploadsMsg::Announce);
        Ok(State {
            system,
            batches: HashMap::new(),
            outages: Outages::default(),
            ready: VecDeque::new(),
            running: HashMap::new(),
            tasks,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<UploadsMsg>,
        message: UploadsMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            UploadsMsg::Begin { assignment } => state.begin(&me, *assignment),
            UploadsMsg::Cancel { id } => state.cancel(&me, id),
            UploadsMsg::Drop { id, fence } => state.drop_batch(&me, id, fence),
            UploadsMsg::Transferred { id, fence, index, result } => state.on_transferred(&me, id, fence, index, result),
            UploadsMsg::CacheDropped { id, fence, error } => state.on_cache_dropped(&me, id, fence, *error),
            UploadsMsg::Again { id, fence, index } => state.ready.push_back((id, fence, index)),
            UploadsMsg::Announce => state.announce(&me),
        }
        state.start_transfers(&me).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<UploadsMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.on_child_event(&me, &event);
        state.start_transfers(&me).await;
        Ok(())
    }
}

impl State {
    fn begin(&mut self, me: &ActorRef<UploadsMsg>, assignment: Assignment) {
        let Assignment { task, options, artifacts, .. } = assignment;
        let (id, fence) = (task.id, task.fence);
        if self.batches.get(&id).is_some_and(|batch| batch.task.fence >= fence) {
            return;
        }
        self.remove(me, id);
        debug!(task.id = %id, outputs = artifacts.len(), "storing the task's outputs");
        let cancelling = task.is_cancelling();
        let batch = Batch::new(task, options, artifacts, self.system.clock.steady());
        self.ready.extend(batch.missing().map(|index| (id, fence, index)));
        let finished = batch.is_finished();
        self.batches.insert(id, batch);
        if cancelling {
            self.cancel(me, id);
        } else if finished {
            self.complete(me, id);
        }
        self.announce(me);
    }

    /// Starts as many waiting transfers as there are permits.
    async fn start_transfers(&mut self, me: &ActorRef<UploadsMsg>) {
        while self.running.len() < self.system.settings.uploads.parallel {
            let Some((id, fence, index)) = self.ready.pop_front() else { return };
            self.start_transfer(me, id, fence, index).await;
        }
    }

    async fn start_transfer(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, fence: Fence, index: u32) {
        let Some(batch) = self.batches.get(&id).filter(|batch| batch.task.fence == fence) else { return };
        let Some((artifact, stem)) = batch.transfer(index) else { return };
        let wanted = self.system.outputs.wanted(&batch.options.storage);
        let away = self.outages.away(&wanted, self.system.clock.steady());
        let options = batch.options.clone();
        let Some(comfy) = self.backend_of(id) else {
            return self.on_transferred(
                me,
                id,
                fence,
                index,
                Err(Failure::Lost("its backend is not configured any more".into())),
            );
        };
        let keeper = self.system.keeper();
        let args = TransferArgs { id, fence, artifact, options, stem, away, comfy, keeper, uploads: me.clone() };
        match UploadActor::spawn_linked(None, UploadActor, args, me.get_cell()).await {
            Ok((actor, _)) => {
                let cell = actor.get_cell();
                self.running.insert(cell.get_id(), Running { id, fence, index, cell, since: Instant::now() });
            }
            Err(error) => self.on_transferred(me, id, fence, index, Err(Failure::Crashed(error.to_string()))),
        }
    }

    /// A child is gone. If it died before it told how its transfer ended, that transfer failed.
    fn on_child_event(&mut self, me: &ActorRef<UploadsMsg>, event: &SupervisionEvent) {
        let (cell, reason) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            // Stopped by itself: it told how its transfer ended, though that word may still be in the mailbox. Events of children
            // overtake messages.
            SupervisionEvent::ActorTerminated(_, _, None) => return,
            SupervisionEvent::ActorTerminated(cell, _, Some(reason)) => (cell, reason.clone()),
            _ => return,
        };
        if let Some(Running { id, fence, index, .. }) = self.running.remove(&cell.get_id()) {
            self.fail(me, id, fence, index, Failure::Crashed(reason));
        }
    }

    fn on_transferred(
        &mut self,
        me: &ActorRef<UploadsMsg>,
        id: TaskId,
        fence: Fence,
        index: u32,
        result: Result<StoredObject, Failure>,
    ) {
        let is_it = |running: &Running| (running.id, running.fence, running.index) == (id, fence, index);
        for (_, ended) in self.running.extract_if(|_, running| is_it(running)) {
            if let Ok(object) = &result {
                self.system.metrics.uploaded(object.bytes, ended.since.elapsed());
            }
        }
        match result {
            Ok(object) => self.on_stored(me, id, fence, index, object),
            Err(failure) => self.fail(me, id, fence, index, failure),
        }
    }

    fn on_stored(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, fence: Fence, index: u32, object: StoredObject) {
        let Some(batch) = self.batches.get_mut(&id).filter(|batch| batch.task.fence == fence) else { return };
        self.outages.back(&object.target);
        batch.stored(index, object.clone());
        if batch.is_finished() {
            self.complete(me, id);
        } else {
            // So that a restart does not store it again. Nobody waits for it: storing twice is harmless.
            let source = self.system.source.clone();
            self.tasks.run_unreported(async move {
                let _ = source.apply(id, fence, Change::Store { index, object }).await;
            });
        }
    }

    fn fail(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, fence: Fence, index: u32, failure: Failure) {
        let (settings, now) = (self.system.settings.uploads, self.system.clock.steady());
        self.system.metrics.upload_failed(failure.as_str());
        let Some(batch) = self.batches.get_mut(&id).filter(|batch| batch.task.fence == fence) else { return };
        if matches!(failure, Failure::Storage(_)) {
            self.outages.failed(&self.system.outputs.wanted(&batch.options.storage), now);
        }
        match batch.failed(index, &failure, now, settings, rand::random()) {
            Verdict::Again(delay) => {
                info!(task.id = %id, index, %failure, ?delay, "an output could not be stored; trying again");
                me.send_after(delay, move || UploadsMsg::Again { id, fence, index });
            }
            Verdict::Fail(error) => self.give_up(me, id, error),
            Verdict::Rerun(error) => self.drop_cache(me, id, fence, error),
        }
    }

    fn give_up(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, error: TaskError) {
        let Some(batch) = self.batches.get(&id) else { return };
        let change = Change::Unstored { error, delay: Duration::ZERO, artifacts: batch.artifacts.clone() };
        self.settle(me, id, change);
    }

    /// Without this the next run would report the same missing file. Whether it was heard shows in that run.
    fn drop_cache(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, fence: Fence, error: TaskError) {
        let Some(comfy) = self.backend_of(id) else { return self.give_up(me, id, error) };
        info!(task.id = %id, %error.message, "an output's file is gone; its server forgets its results and the task runs again");
        let work = async move { _ = comfy.drop_cache().await };
        self.tasks.run(me, work, move |_| UploadsMsg::CacheDropped { id, fence, error: Box::new(error) });
    }

    fn on_cache_dropped(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, fence: Fence, error: TaskError) {
        if self.batches.get(&id).is_some_and(|batch| batch.task.fence == fence) {
            self.give_up(me, id, error);
        }
    }

    fn backend_of(&self, id: TaskId) -> Option<Arc<dyn ComfyTransport>> {
        let prompt = self.batches.get(&id)?.task.prompt.as_ref()?;
        self.system.backends.get(&prompt.backend).cloned()
    }

    fn complete(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId) {
        let Some(batch) = self.batches.get(&id) else { return };
        let change = Change::Complete { artifacts: batch.artifacts.clone() };
        self.settle(me, id, change);
    }

    fn cancel(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId) {
        self.settle(me, id, Change::Release(Release::Cancelled));
    }

    fn settle(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, change: Change) {
        let Some(batch) = self.remove(me, id) else { return };
        let (fence, change) = (batch.task.fence, Box::new(change));
        let prompt = batch.task.prompt.map(|prompt| prompt.id);
        self.system.slots.queue.cast(QueueMsg::Settle { id, fence, change, prompt });
    }

    fn drop_batch(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId, fence: Fence) {
        if self.batches.get(&id).is_some_and(|batch| batch.task.fence == fence) {
            self.remove(me, id);
        }
    }

    /// Forgets a task and stops its transfers; what they wrote so far is not visible to anybody.
    fn remove(&mut self, me: &ActorRef<UploadsMsg>, id: TaskId) -> Option<Batch> {
        let batch = self.batches.remove(&id)?;
        self.ready.retain(|(waiting, ..)| *waiting != id);
        self.running.retain(|_, running| {
            let theirs = running.id == id;
            if theirs {
                running.cell.kill();
            }
            !theirs
        });
        self.announce(me);
        Some(batch)
    }

    fn announce(&self, me: &ActorRef<UploadsMsg>) {
        let open = self.batches.len() < self.system.settings.uploads.max_tasks;
        self.system.slots.queue.cast(QueueMsg::UploadsOpen { epoch: me.get_id(), open });
    }
}
