//! QueueActor: the order of all tasks, and who works on what.
//!
//! - **Owns** the admission of new tasks, the matching of waiting tasks to free backends, the leases this process holds. It is the
//!   process's only caller of claim. The order itself is the store's index; no copy of it is kept.
//! - **Talks** to HTTP handlers (through `Bridge`), sessions, the uploads, the janitor, the store.
//! - **When it dies** its successor reads the held leases back from the store, and sessions and uploads announce themselves again.
//!   A create in flight is answered 503; its idempotency key finds it.
//! - **Must never** wait for the store in a handler, or hand out more than there are places for.

mod admission;
mod matching;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::{sync::broadcast, time::Instant};
use tracing::{debug, error, info, warn};

use self::{
    admission::Waiting,
    matching::{Place, free_places, to_recall},
};
use crate::{
    bridge::{RequestError, TaskRequest},
    comfy_session::{Origin, SessionMsg},
    domain::{
        id::{BackendId, ClientId, PromptId, TaskId},
        order::sort_key,
        task::{Change, Fence, Intent, Refusal, Release, Task, TaskState},
    },
    kit::{
        slot::Slot,
        tasks::{Panicked, Tasks},
    },
    ports::store::{Assignment, Claim, Counts, Created, NewTask, Renewed, StoreError},
    system::System,
    uploads::UploadsMsg,
};

/// The backstop behind every wake-up.
const TICK: Duration = Duration::from_secs(1);
/// Exact counts are taken this often; in between they are kept up.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// A backend must have been idle this long before another gives a prepared prompt back: a prompt about to start is faster where it is.
const RECALL_AFTER: Duration = Duration::from_millis(50);
/// First and longest delay before the store is asked again for what must not be lost.
const STORE_BACKOFF: crate::domain::retry::Backoff =
    crate::domain::retry::Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// What a backend can take: a level, sent on change and every second.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Which backend.
    pub backend: BackendId,
    /// Which incarnation of its session.
    pub epoch: ActorId,
    /// The connection that prompts' events go to; `None` while it takes no work.
    pub client: Option<ClientId>,
}

/// What the queue hears.
#[derive(Debug)]
pub enum QueueMsg {
    /// A client wants a task done.
    Submit {
        /// The task.
        request: Box<TaskRequest>,
        /// Answered after the commit.
        reply: RpcReplyPort<Result<Created, RequestError>>,
    },
    /// The commit of a new task ended.
    Stored {
        /// Who waits for it.
        reply: RpcReplyPort<Result<Created, RequestError>>,
        /// The backend a place was kept on.
        kept: Option<BackendId>,
        /// What came of it.
        result: Result<Result<(Created, Vec<Assignment>), StoreError>, Panicked>,
    },
    /// A client wants a task stopped.
    Cancel {
        /// Which.
        id: TaskId,
        /// Answered after the commit.
        reply: RpcReplyPort<Result<Task, RequestError>>,
    },
    /// The commit of a cancellation ended.
    CancelStored {
        /// Who waits for it.
        reply: RpcReplyPort<Result<Task, RequestError>>,
        /// What came of it.
        result: Result<Result<Task, StoreError>, Panicked>,
    },
    /// Which tasks run on a backend now?
    Running {
        /// Answered from memory.
        reply: RpcReplyPort<Vec<TaskId>>,
    },
    /// A session tells what it can take.
    Demand(Demand),
    /// The uploads tell whether they take more.
    UploadsOpen {
        /// Which incarnation of their supervisor.
        epoch: ActorId,
        /// They do.
        open: bool,
    },
    /// The backend of this task is free for the next, though the task is not finished.
    Ran { id: TaskId },
    /// The task is with the uploads now.
    Uploading { id: TaskId },
    /// The work on a task ended: record it.
    Settle {
        /// The task.
        id: TaskId,
        /// Under which fence.
        fence: Fence,
        /// How.
        change: Box<Change>,
        /// Its prompt, to be dropped from the server's history afterwards.
        prompt: Option<PromptId>,
    },
    /// The record of an ending was made, or refused.
    Settled {
        /// The task.
        id: TaskId,
        /// Under which fence.
        fence: Fence,
        /// Its prompt.
        prompt: Option<PromptId>,
        /// What came of it.
        result: Result<Result<Task, StoreError>, Panicked>,
    },
    /// Something became pending.
    Wake,
    /// A claim ended.
    Claimed {
        /// The backends places were kept on.
        kept: Vec<BackendId>,
        /// What came of it.
        result: Result<Result<Vec<Assignment>, StoreError>, Panicked>,
    },
    /// The janitor adopted abandoned tasks.
    Adopted { assignments: Vec<Assignment> },
    /// Held leases were read back from the store.
    Recovered(Result<Result<Vec<Assignment>, StoreError>, Panicked>),
    /// Time to renew the leases.
    Renew,
    /// The renewal that began at `asked` ended.
    Renewed {
        /// On the monotonic clock.
        asked: Instant,
        /// What was asked for.
        held: Vec<(TaskId, Fence)>,
        /// What came of it.
        result: Result<Result<Vec<Renewed>, StoreError>, Panicked>,
    },
    /// Exact counts arrived.
    Counted(Result<Result<Counts, StoreError>, Panicked>),
    /// Time for an exact count.
    Count,
    /// A backend may have been idle long enough for a recall.
    ConsiderRecall,
    /// The backstop.
    Tick,
    /// Take nothing more, wait for uploads, hand the rest over; answered when done.
    Drain { reply: RpcReplyPort<()> },
    /// The patience of a drain is over, or every lease was handed over.
    HandOver,
    /// The leases were handed over.
    HandedOver,
}

/// Where a held task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    /// With a session, occupying its backend.
    Backend,
    /// With a session, the backend being free already.
    Ran,
    /// With the uploads.
    Uploads,
    /// Its end is being recorded.
    Settling,
}

#[derive(Debug)]
struct Held {
    fence: Fence,
    attempt: i32,
    backend: BackendId,
    at: Whereabouts,
    /// How it came here, while its session could not be told: nobody has acted on it since.
    untold: Option<Origin>,
}

/// The queue.
pub struct QueueActor;

/// The queue's state.
pub struct State {
    system: System,
    held: HashMap<TaskId, Held>,
    sessions: BTreeMap<BackendId, Demand>,
    /// Places kept for claims and creates under way.
    kept: HashMap<BackendId, usize>,
    uploads: Option<ActorId>,
    uploads_open: bool,
    waiting: Waiting,
    creating: u64,
    /// Nothing was left in the store when it was last asked.
    dry: bool,
    claiming: bool,
    /// Something became pending while a claim was under way, perhaps too late for it.
    woken: bool,
    recovered: bool,
    recovering: bool,
    /// A claim failed, though the store may have made it, or reading back failed: what we hold must be read (again).
    doubtful: bool,
    /// Ended while the held tasks were being read back, so what was read may show them as held still.
    ended_meanwhile: HashSet<TaskId>,
    draining: Vec<RpcReplyPort<()>>,
    tasks: Tasks,
}

impl Actor for QueueActor {
    type Msg = QueueMsg;
    type State = State;
    type Arguments = System;

    async fn pre_start(&self, me: ActorRef<QueueMsg>, system: System) -> Result<State, ActorProcessingErr> {
        let mut state = State::new(system);
        state.listen(&me);
        state.recover(&me);
        me.send_interval(TICK, || QueueMsg::Tick);
        me.send_interval(COUNT_EVERY, || QueueMsg::Count);
        me.send_interval(state.system.settings.renew_every, || QueueMsg::Renew);
        me.cast(QueueMsg::Count)?;
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<QueueMsg>,
        message: QueueMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            QueueMsg::Submit { request, reply } => state.submit(&me, *request, reply),
            QueueMsg::Stored { reply, kept, result } => state.on_stored(&me, reply, kept, result),
            QueueMsg::Cancel { id, reply } => state.cancel(&me, id, reply),
            QueueMsg::CancelStored { reply, result } => state.on_cancel_stored(reply, result),
            QueueMsg::Running { reply } => _ = reply.send(state.running()),
            QueueMsg::Demand(demand) => state.on_demand(&me, demand),
            QueueMsg::UploadsOpen { epoch, open } => state.on_uploads_open(&me, epoch, open),
            QueueMsg::Ran { id } => state.on_moved(&me, id, Whereabouts::Ran),
            QueueMsg::Uploading { id } => state.on_moved(&me, id, Whereabouts::Uploads),
            QueueMsg::Settle { id, fence, change, prompt } => state.settle(&me, id, fence, *change, prompt),
            QueueMsg::Settled { id, fence, prompt, result } => state.on_settled(&me, id, fence, prompt, result),
            QueueMsg::Wake => state.on_wake(&me),
            QueueMsg::Claimed { kept, result } => state.on_claimed(&me, kept, result),
            QueueMsg::Adopted { assignments } => state.assign_all(&me, assignments, Origin::Expired),
            QueueMsg::Recovered(result) => state.on_recovered(&me, result),
            QueueMsg::Renew => state.renew(&me),
            QueueMsg::Renewed { asked, held, result } => state.on_renewed(asked, &held, result),
            QueueMsg::Counted(result) => state.on_counted(result),
            QueueMsg::Count => state.count(&me),
            QueueMsg::ConsiderRecall => state.recall(),
            QueueMsg::Tick => state.on_tick(&me),
            QueueMsg::Drain { reply } => state.drain(&me, reply),
            QueueMsg::HandOver => state.hand_over(&me),
            QueueMsg::HandedOver => state.on_handed_over(),
        }
        Ok(())
    }
}

impl State {
    fn new(system: System) -> Self {
        Self {
            system,
            held: HashMap::new(),
            sessions: BTreeMap::new(),
            kept: HashMap::new(),
            uploads: None,
            uploads_open: false,
            waiting: Waiting::default(),
            creating: 0,
            dry: false,
            claiming: false,
            woken: false,
            recovered: false,
            recovering: false,
            doubtful: false,
            ended_meanwhile: HashSet::new(),
            draining: Vec::new(),
            tasks: Tasks::default(),
        }
    }

    /// Wakes the queue when something becomes pending, whoever made it so. A lagging listener has missed something: it wakes too.
    fn listen(&mut self, me: &ActorRef<QueueMsg>) {
        let (mut changes, me) = (self.system.store.changes(), me.clone());
        self.tasks.run_unreported(async move {
            loop {
                match changes.recv().await {
                    Ok(changed) if changed.state != TaskState::Pending => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        if me.cast(QueueMsg::Wake).is_err() {
                            return;
                        }
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }
}

/// New tasks and cancellations.
impl State {
    fn submit(
        &mut self,
        me: &ActorRef<QueueMsg>,
        request: TaskRequest,
        reply: RpcReplyPort<Result<Created, RequestError>>,
    ) {
        let limit = self.system.settings.max_pending;
        if !self.draining.is_empty() {
            _ = reply.send(Err(RequestError::Draining));
        } else if let Err(retry_after) = self.waiting.admit(self.creating, limit, COUNT_EVERY) {
            _ = reply.send(Err(RequestError::Full { pending: self.waiting.count(), limit, retry_after }));
        } else {
            self.create(me, request, reply);
        }
    }

    /// Stores the task and, when a backend is free, takes the head of the order in the same commit: one disk flush, no wait.
    fn create(
        &mut self,
        me: &ActorRef<QueueMsg>,
        request: TaskRequest,
        reply: RpcReplyPort<Result<Created, RequestError>>,
    ) {
        let new = self.new_task(request);
        let slot = self.places_to_fill().into_iter().next();
        let claim = slot.map(|intent| self.keep(vec![intent]));
        let kept = claim.as_ref().and_then(|claim| claim.slots.first()).map(|intent| intent.backend.clone());
        let store = self.system.store.clone();
        self.creating += 1;
        self.tasks.run(me, async move { store.create(new, claim).await }, |result| QueueMsg::Stored {
            reply,
            kept,
            result,
        });
    }

    fn new_task(&self, request: TaskRequest) -> NewTask {
        let settings = &self.system.settings;
        let created_at = self.system.clock.now();
        NewTask {
            id: TaskId::new(),
            tenant: request.tenant,
            lane: 0,
            workflow: request.workflow,
            priority: request.priority,
            sort_key: sort_key(created_at, request.priority, settings.ordering),
            max_attempts: request.max_attempts.unwrap_or(settings.max_attempts),
            timeout: Some(request.timeout.unwrap_or(settings.timeout)),
            created_at,
            payload: request.payload,
            idempotency: request.idempotency,
        }
    }

    fn on_stored(
        &mut self,
        me: &ActorRef<QueueMsg>,
        reply: RpcReplyPort<Result<Created, RequestError>>,
        kept: Option<BackendId>,
        result: Result<Result<(Created, Vec<Assignment>), StoreError>, Panicked>,
    ) {
        self.creating = self.creating.saturating_sub(1);
        self.doubtful |= kept.is_some() && !matches!(result, Ok(Ok(_)));
        self.release_places(kept);
        let answer = match result {
            Ok(Ok((created, assignments))) => {
                if matches!(created, Created::New(_)) {
                    self.waiting.entered();
                }
                self.waiting.left(assignments.len() as u64);
                self.assign_all(me, assignments, Origin::Claimed);
                Ok(created)
            }
            Ok(Err(error)) => Err(RequestError::Store(error)),
            Err(Panicked) => Err(RequestError::Store(StoreError::Unavailable(Panicked.to_string()))),
        };
        // A client that went away is no fault: its task is stored.
        _ = reply.send(answer);
    }

    fn cancel(&mut self, me: &ActorRef<QueueMsg>, id: TaskId, reply: RpcReplyPort<Result<Task, RequestError>>) {
        let store = self.system.store.clone();
        self.tasks.run(me, async move { store.cancel(id).await }, |result| QueueMsg::CancelStored { reply, result });
    }

    fn on_cancel_stored(
        &mut self,
        reply: RpcReplyPort<Result<Task, RequestError>>,
        result: Result<Result<Task, StoreError>, Panicked>,
    ) {
        let result = result.unwrap_or_else(|panicked| Err(StoreError::Unavailable(panicked.to_string())));
        if let Ok(task) = &result {
            self.tell_cancelled(task.id);
        }
        _ = reply.send(result.map_err(RequestError::Store));
    }

    /// Whoever has the task stops it. In another process, the next renewal of its lease tells.
    fn tell_cancelled(&self, id: TaskId) {
        match self.held.get(&id) {
            Some(Held { at: Whereabouts::Backend | Whereabouts::Ran, backend, .. }) => {
                self.tell_session(backend, SessionMsg::Cancel { id });
            }
            Some(Held { at: Whereabouts::Uploads, .. }) => {
                _ = self.system.slots.uploads.cast(UploadsMsg::Cancel { id });
            }
            Some(Held { at: Whereabouts::Settling, .. }) | None => {}
        }
    }

    fn running(&self) -> Vec<TaskId> {
        self.held.iter().filter(|(_, held)| held.at == Whereabouts::Backend).map(|(id, _)| *id).collect()
    }
}

/// Work for backends.
impl State {
    fn on_demand(&mut self, me: &ActorRef<QueueMsg>, demand: Demand) {
        let backend = demand.backend.clone();
        let before = self.sessions.insert(backend, demand.clone());
        if before.is_none_or(|before| before.epoch != demand.epoch) {
            // A new session knows nothing of what its predecessor had.
            self.recover(me);
        }
        self.fill(me);
    }

    fn on_uploads_open(&mut self, me: &ActorRef<QueueMsg>, epoch: ActorId, open: bool) {
        self.uploads_open = open;
        if self.uploads.replace(epoch) != Some(epoch) {
            self.recover(me);
        }
        self.fill(me);
    }

    fn on_moved(&mut self, me: &ActorRef<QueueMsg>, id: TaskId, to: Whereabouts) {
        let Some(held) = self.held.get_mut(&id) else { return };
        if held.at == Whereabouts::Backend || held.at == Whereabouts::Ran {
            held.at = to;
            self.fill(me);
        }
    }

    fn on_wake(&mut self, me: &ActorRef<QueueMsg>) {
        self.dry = false;
        self.woken = self.claiming;
        self.fill(me);
    }

    /// Takes tasks for all free places, if there may be any.
    fn fill(&mut self, me: &ActorRef<QueueMsg>) {
        if self.claiming {
            return;
        }
        if self.dry {
            if to_recall(&self.places()).is_some() {
                me.send_after(RECALL_AFTER, || QueueMsg::ConsiderRecall);
            }
            return;
        }
        let slots = self.places_to_fill();
        if slots.is_empty() {
            return;
        }
        self.claiming = true;
        let claim = self.keep(slots);
        let kept = claim.slots.iter().map(|intent| intent.backend.clone()).collect();
        let source = self.system.source.clone();
        self.tasks.run(me, async move { source.claim(claim).await }, |result| QueueMsg::Claimed { kept, result });
    }

    fn on_claimed(
        &mut self,
        me: &ActorRef<QueueMsg>,
        kept: Vec<BackendId>,
        result: Result<Result<Vec<Assignment>, StoreError>, Panicked>,
    ) {
        self.claiming = false;
        let wanted = kept.len();
        self.release_places(kept);
        match result {
            Ok(Ok(assignments)) => {
                self.dry = assignments.len() < wanted && !std::mem::take(&mut self.woken);
                self.waiting.left(assignments.len() as u64);
                self.assign_all(me, assignments, Origin::Claimed);
                self.fill(me);
            }
            // Dispatch is held; the next tick asks again.
            Ok(Err(error)) => {
                self.doubtful = true;
                debug!(%error, "could not claim tasks");
            }
            Err(Panicked) => {
                self.doubtful = true;
                error!("a claim panicked");
            }
        }
    }

    /// Intents for every free place, best first. None while something else comes first.
    fn places_to_fill(&self) -> Vec<Intent> {
        if !self.recovered || self.recovering || !self.uploads_open || !self.draining.is_empty() {
            return Vec::new();
        }
        let free = free_places(&self.places(), self.system.settings.prepare_ahead);
        free.into_iter()
            .filter_map(|backend| {
                let client = self.sessions.get(&backend)?.client.clone()?;
                Some(Intent { backend, client })
            })
            .collect()
    }

    fn places(&self) -> Vec<Place> {
        self.sessions
            .iter()
            .map(|(backend, demand)| {
                let there =
                    self.held.values().filter(|held| held.at == Whereabouts::Backend && held.backend == *backend);
                let kept = self.kept.get(backend).copied().unwrap_or(0);
                let online = demand.client.is_some() && self.is_up(demand);
                Place { backend: backend.clone(), online, occupied: there.count() + kept }
            })
            .collect()
    }

    /// Whether the session that said so still lives: one that died, perhaps for a whole quarantine, takes nothing.
    fn is_up(&self, demand: &Demand) -> bool {
        let session = self.system.slots.sessions.get(&demand.backend).and_then(Slot::get);
        session.is_some_and(|session| session.get_id() == demand.epoch)
    }

    fn keep(&mut self, slots: Vec<Intent>) -> Claim {
        for intent in &slots {
            *self.kept.entry(intent.backend.clone()).or_default() += 1;
        }
        Claim { worker: self.system.worker.clone(), lease: self.system.settings.lease, slots }
    }

    fn release_places(&mut self, backends: impl IntoIterator<Item = BackendId>) {
        for backend in backends {
            if let Some(kept) = self.kept.get_mut(&backend) {
                *kept = kept.saturating_sub(1);
            }
        }
    }

    /// Nothing waits, one backend has nothing to do, another has a prompt prepared: that one moves over.
    fn recall(&mut self) {
        if !self.dry || self.claiming || !self.recovered || !self.draining.is_empty() {
            return;
        }
        if let Some(backend) = to_recall(&self.places()) {
            debug!(%backend, "recalling a prepared prompt for an idle backend");
            self.tell_session(&backend, SessionMsg::Recall);
        }
    }

    fn assign_all(&mut self, me: &ActorRef<QueueMsg>, assignments: Vec<Assignment>, origin: Origin) {
        for assignment in assignments {
            self.assign(me, assignment, origin);
        }
    }

    /// Hands a held task to whoever works on it in its state. Whoever has it already ignores it.
    fn assign(&mut self, me: &ActorRef<QueueMsg>, assignment: Assignment, origin: Origin) {
        let task = &assignment.task;
        let (id, fence) = (task.id, task.fence);
        let Some(backend) = task.prompt.as_ref().map(|prompt| prompt.backend.clone()) else {
            return self.settle(me, id, fence, Change::Release(Release::Recalled), None);
        };
        if !self.system.backends.contains_key(&backend) {
            warn!(task.id = %id, %backend, "the task's backend is not configured any more; it runs elsewhere");
            return self.settle(me, id, fence, Change::Release(Release::Recalled), None);
        }
        let uploading = task.state == TaskState::Uploading;
        let known = self.held.get(&id).filter(|held| held.fence == fence);
        let at = match known.map(|held| held.at) {
            Some(Whereabouts::Settling) => return,
            _ if uploading => Whereabouts::Uploads,
            known => known.unwrap_or(Whereabouts::Backend),
        };
        let origin = known.and_then(|held| held.untold).unwrap_or(origin);
        let (attempt, created_at) = (task.attempt, task.created_at);
        let assignment = Box::new(assignment);
        let told = if uploading {
            self.system.slots.uploads.cast(UploadsMsg::Begin { assignment })
        } else {
            let unsure = self.system.settings.unclean_start && created_at < self.system.started_at;
            let origin = if origin == Origin::Claimed && unsure { Origin::ClaimedUnsure } else { origin };
            self.tell_session(&backend, SessionMsg::Run { assignment, origin })
        };
        self.held.insert(id, Held { fence, attempt, backend, at, untold: (!told).then_some(origin) });
    }

    /// False when the session is down and the message lost; its successor's first demand makes up for it.
    fn tell_session(&self, backend: &BackendId, message: SessionMsg) -> bool {
        self.system.slots.sessions.get(backend).is_some_and(|slot| slot.cast(message))
    }
}

/// Endings.
impl State {
    fn settle(&mut self, me: &ActorRef<QueueMsg>, id: TaskId, fence: Fence, change: Change, prompt: Option<PromptId>) {
        if let Some(held) = self.held.get_mut(&id) {
            held.at = Whereabouts::Settling;
        }
        let change = self.with_delay(id, change);
        let (source, clock) = (self.system.source.clone(), self.system.settings.lease);
        let work = async move { settle_until(clock, || source.apply(id, fence, change.clone())).await };
        self.tasks.run(me, work, move |result| QueueMsg::Settled { id, fence, prompt, result });
        self.fill(me);
    }

    /// The delay before another attempt grows with the attempts: it is drawn here, where jitter is allowed.
    fn with_delay(&self, id: TaskId, change: Change) -> Change {
        match change {
            Change::Retry { error, .. } => {
                let failures = self.held.get(&id).and_then(|held| u32::try_from(held.attempt).ok()).unwrap_or(1);
                let delay = self.system.settings.retry.delay_at_least_half(failures, rand::random());
                Change::Retry { error, delay }
            }
            other => other,
        }
    }

    fn on_settled(
        &mut self,
        me: &ActorRef<QueueMsg>,
        id: TaskId,
        fence: Fence,
        prompt: Option<PromptId>,
        result: Result<Result<Task, StoreError>, Panicked>,
    ) {
        match &result {
            Ok(Ok(task)) => note_ending(task),
            Ok(Err(StoreError::Refused(Refusal::Stale))) => {
                info!(task.id = %id, "the task's end is somebody else's to record");
            }
            Ok(Err(error)) => error!(task.id = %id, %error, "could not record the task's end; it will be found again"),
            Err(Panicked) => error!(task.id = %id, "recording the task's end panicked; it will be found again"),
        }
        if self.recovering {
            self.ended_meanwhile.insert(id);
        }
        let Some(held) = self.held.get(&id).filter(|held| held.fence == fence) else { return };
        let recorded = matches!(result, Ok(Ok(_) | Err(StoreError::Refused(_) | StoreError::NotFound)));
        if let (Ok(Ok(_)), Some(prompt)) = (&result, prompt) {
            self.tell_session(&held.backend, SessionMsg::Forget { prompt });
        }
        self.held.remove(&id);
        if !recorded {
            self.recover(me);
        }
        if !self.draining.is_empty() && self.held.is_empty() {
            _ = me.cast(QueueMsg::HandOver);
        }
        self.fill(me);
    }
}

/// Leases.
impl State {
    /// Reads back what this process holds and hands it out again: after a restart of this actor, of a session or of the uploads.
    fn recover(&mut self, me: &ActorRef<QueueMsg>) {
        if std::mem::replace(&mut self.recovering, true) {
            return;
        }
        let system = self.system.clone();
        let work = async move {
            let (worker, lease) = (&system.worker, system.settings.lease);
            if system.settings.takes_over {
                system.source.take_over(worker, lease).await?;
            }
            system.source.held(worker).await
        };
        self.tasks.run(me, work, QueueMsg::Recovered);
    }

    fn on_recovered(&mut self, me: &ActorRef<QueueMsg>, result: Result<Result<Vec<Assignment>, StoreError>, Panicked>) {
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
        if self.kept.values().any(|kept| *kept > 0) {
            // A claim under way may show up in what was read, before its own answer does: read again.
            return self.recover(me);
        }
        self.doubtful = false;
        assignments.retain(|assignment| !ended.contains(&assignment.task.id));
        if !self.recovered {
            self.recovered = true;
            self.system.deadline.extend(Instant::now(), self.system.settings.lease * 2 / 3);
            if !assignments.is_empty() {
                info!(tasks = assignments.len(), "took up the tasks held before the restart");
            }
        }
        self.assign_all(me, assignments, Origin::Resumed);
        self.fill(me);
    }

    fn renew(&mut self, me: &ActorRef<QueueMsg>) {
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

    fn on_renewed(
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
        // Two thirds: whoever acts on a lease must have stopped before others may adopt.
        self.system.deadline.extend(asked, self.system.settings.lease * 2 / 3);
        let renewed: HashMap<_, _> = renewed.into_iter().map(|lease| (lease.id, lease.cancel_requested)).collect();
        for (id, fence) in held {
            match renewed.get(id) {
                Some(true) => self.tell_cancelled(*id),
                Some(false) => {}
                None => self.on_lost(*id, *fence),
            }
        }
    }

    fn on_lost(&mut self, id: TaskId, fence: Fence) {
        // A lease that is being settled, or was settled while the renewal was under way, is not lost.
        if self.held.get(&id).is_none_or(|held| held.fence != fence || held.at == Whereabouts::Settling) {
            return;
        }
        let Some(held) = self.held.remove(&id) else { return };
        self.tell_session(&held.backend, SessionMsg::Drop { id });
        self.system.slots.uploads.cast(UploadsMsg::Drop { id });
    }
}

/// Timers and the end.
impl State {
    fn on_tick(&mut self, me: &ActorRef<QueueMsg>) {
        if !self.recovered || self.doubtful {
            return self.recover(me);
        }
        self.on_wake(me);
    }

    fn count(&mut self, me: &ActorRef<QueueMsg>) {
        let store = self.system.store.clone();
        self.tasks.run(me, async move { store.counts().await }, QueueMsg::Counted);
    }

    fn on_counted(&mut self, result: Result<Result<Counts, StoreError>, Panicked>) {
        match result {
            Ok(Ok(counts)) => self.waiting.counted(counts.pending + counts.scheduled),
            Ok(Err(error)) => debug!(%error, "could not count the waiting tasks"),
            Err(Panicked) => error!("counting the waiting tasks panicked"),
        }
    }

    fn drain(&mut self, me: &ActorRef<QueueMsg>, reply: RpcReplyPort<()>) {
        self.draining.push(reply);
        let uploading = self
            .held
            .values()
            .any(|held| matches!(held.at, Whereabouts::Uploads | Whereabouts::Settling | Whereabouts::Ran));
        let patience = if uploading { self.system.settings.drain } else { Duration::ZERO };
        me.send_after(patience, || QueueMsg::HandOver);
    }

    /// Whatever is still held goes to whoever comes next, prompts running on: no attempt is spent, the GPU keeps working.
    fn hand_over(&mut self, me: &ActorRef<QueueMsg>) {
        let (source, held) = (self.system.source.clone(), std::mem::take(&mut self.held));
        let work = async move {
            for (id, held) in held {
                // Refused or unavailable: the lease expires by itself.
                let _ = source.apply(id, held.fence, Change::HandOff).await;
            }
        };
        self.tasks.run(me, work, |_| QueueMsg::HandedOver);
    }

    fn on_handed_over(&mut self) {
        for reply in &mut self.draining.drain(..) {
            _ = reply.send(());
        }
    }
}

/// Repeats a write until it is made or refused, or the lease is gone anyway.
async fn settle_until<F, W>(lease: Duration, mut write: F) -> Result<Task, StoreError>
where
    F: FnMut() -> W,
    W: Future<Output = Result<Task, StoreError>>,
{
    let begun = Instant::now();
    let mut failures = 0;
    loop {
        match write().await {
            Err(StoreError::Unavailable(reason)) if begun.elapsed() < lease => {
                failures += 1;
                debug!(%reason, failures, "the store is unavailable; the ending is written again");
                tokio::time::sleep(STORE_BACKOFF.delay_at_least_half(failures, rand::random())).await;
            }
            result => return result,
        }
    }
}

fn note_ending(task: &Task) {
    let reason = task.error.as_ref().map(|error| error.message.as_str());
    match task.state {
        TaskState::Failed => info!(task.id = %task.id, attempt = task.attempt, reason, "the task failed"),
        TaskState::Scheduled => info!(task.id = %task.id, attempt = task.attempt, reason, "the task is tried again"),
        TaskState::Pending => info!(task.id = %task.id, dispatch = task.dispatch, "the task went back to the queue"),
        state => debug!(task.id = %task.id, %state, "the task ended"),
    }
}
