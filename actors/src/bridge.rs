//! What HTTP handlers hold: verbs for clients, reads that bypass every mailbox.

mod figures;
mod replay;
mod request;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::broadcast, time::Instant};

pub use self::{
    replay::{Replay, Replayed, Unfit},
    request::{RequestError, Start, TaskRequest, Wish},
};
use crate::{
    board::{BackendStatus, Board, Elsewhere, PhaseName},
    catalogues::Catalogues,
    comfy_session::SessionMsg,
    domain::{
        fleet::Fleet,
        id::{BackendId, TaskId},
        lane::Needs,
        progress::Progress,
        task::{Task, TaskState},
        time::Timestamp,
        webhook::{Delivery, Endpoint, EndpointId},
    },
    kit::slot::Slot,
    metrics::Metrics,
    ports::{
        clock::Clock,
        comfy::ComfyTransport,
        hook_store::{DeliveryQuery, HookLevels, HookStore},
        input_store::InputStore,
        store::{Changed, Created, Hold, Pausable, Pause, Query, StoreError, TaskRecord, TaskStore},
    },
    queue::QueueMsg,
    targets::Targets,
    watch::{FAR, Place, View, Watching},
    webhooks::WebhookMsg,
};

/// How long a handler waits for an actor. Above a slow commit, below the patience of most clients.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a request that lacks something waits for the servers to be asked again. A large installation takes a second or two.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a task somebody waits for is read without being told to: word of a change is lost when the store's writer dies between
/// the commit and the telling.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same when other processes run tasks and nothing is heard of them.
const LOOK_EVERY_DEAF: Duration = Duration::from_millis(50);

/// Where a task stands that is not over.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Before its turn.
    Waits(Place),
    /// On a server.
    Runs(Progress),
}

/// The handlers' way in. Clones are cheap.
#[derive(Clone)]
pub struct Bridge(Arc<Parts>);

/// What a [`Bridge`] is made of.
pub struct Parts {
    /// The queue's current address.
    pub queue: Slot<QueueMsg>,
    /// Reads.
    pub store: Arc<dyn TaskStore>,
    /// The files clients gave.
    pub inputs: Arc<dyn InputStore>,
    /// The messages to webhooks.
    pub hooks: Arc<dyn HookStore>,
    /// Who sends them.
    pub webhooks: Slot<WebhookMsg>,
    /// Where the bytes of outputs and inputs are.
    pub targets: Targets,
    /// All backends, in the order of the configuration.
    pub backends: Vec<Arc<dyn ComfyTransport>>,
    /// Progress, phases, restarts.
    pub board: Board,
    /// What every backend can run.
    pub catalogues: Catalogues,
    /// The sessions' current addresses.
    pub sessions: BTreeMap<BackendId, Slot<SessionMsg>>,
    /// Graphs are held against what the backends have.
    pub validate: bool,
    /// What is counted and timed.
    pub metrics: Metrics,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
}

impl Bridge {
    /// Joins the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Accepts a task. When it returns `New`, the task is stored durably.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn submit(&self, request: TaskRequest) -> Result<Created, RequestError> {
        if self.0.board.is_draining() {
            return Err(RequestError::Draining);
        }
        let request = Box::new(request);
        self.0.queue.ask(|reply| QueueMsg::Submit { request, reply }, ASK_TIMEOUT).await?
    }

    /// Makes a client's change to a task and returns it as it is then. A wish that is fulfilled already changes nothing.
    ///
    /// # Errors
    /// `Store(NotFound)`, `Store(Refused)`, or as for any request.
    pub async fn amend(&self, id: TaskId, wish: Wish) -> Result<Task, RequestError> {
        self.0.queue.ask(|reply| QueueMsg::Amend { id, wish, reply }, ASK_TIMEOUT).await?
    }

    /// Asks for a task's end and returns it as it is then: over, or `is_cancelling`.
    ///
    /// # Errors
    /// As for [`Self::amend`].
    pub async fn cancel(&self, id: TaskId) -> Result<Task, RequestError> {
        self.amend(id, Wish::Cancel).await
    }

    /// Lets the queue or one backend take nothing new, or go on, and returns all that is paused then. What runs goes on.
    ///
    /// # Errors
    /// As for any request.
    pub async fn set_paused(&self, what: Pausable, hold: Hold) -> Result<Vec<Pause>, RequestError> {
        self.0.queue.ask(|reply| QueueMsg::SetPaused { what, hold, reply }, ASK_TIMEOUT).await?
    }

    /// Asks for the end of every task of ours that runs on a backend now, whichever process has it there; returns them.
    ///
    /// # Errors
    /// As for any request.
    pub async fn interrupt_running(&self) -> Result<Vec<TaskId>, RequestError> {
        // What runs here is known sooner than it is stored.
        let here = self.0.queue.ask(|reply| QueueMsg::Running { reply }, ASK_TIMEOUT).await?;
        let everywhere = self.0.store.list(Query::all_held(vec![TaskState::Executing])).await?;
        let ids: BTreeSet<TaskId> = here.into_iter().chain(everywhere.iter().map(|task| task.id)).collect();
        for id in &ids {
            self.cancel(*id).await?;
        }
        Ok(ids.into_iter().collect())
    }

    /// One task with its place in the queue or, if it runs, its newest progress as far as that is known here. Of its needs those are left
    /// that it waits for: none, unless it is pending and no backend that is online has what it needs.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn get(&self, id: TaskId) -> Result<(TaskRecord, Option<Standing>), StoreError> {
        let mut record = self.0.store.get(id).await?;
        if record.task.state != TaskState::Pending || self.is_served(&record.needs) {
            record.needs = Arc::new(Needs { tenant: record.needs.tenant.clone(), ..Needs::default() });
        }
        let standing = match record.task.state {
            TaskState::Dispatching | TaskState::Executing => self.0.board.progress(&record.task).map(Standing::Runs),
            TaskState::Pending => {
                let ahead = self.0.store.ahead(id, FAR).await?;
                ahead.map(|ahead| Standing::Waits(self.0.board.place(record.task.workflow.as_deref(), ahead)))
            }
            _ => None,
        };
        Ok((record, standing))
    }

    /// Watches a task, or all of them. After `patience` without anything to see the watcher is told so; at most `limit` watch at a time.
    /// `after` is the number of the last event seen: nothing is lost since, and nothing comes twice.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn watch(
        &self,
        view: View,
        after: Option<i64>,
        patience: Duration,
        limit: usize,
    ) -> Result<Watching, StoreError> {
        self.0.board.watch().begin_watching(self.0.store.clone(), view, after, patience, limit).await
    }

    /// One task, once it is over or `patience` has passed, whichever comes first.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn get_finished(
        &self,
        id: TaskId,
        patience: Duration,
    ) -> Result<(TaskRecord, Option<Standing>), StoreError> {
        // Subscribed before the read, so that an end between the two is not missed.
        let mut changes = self.0.store.changes();
        let wait = async {
            loop {
                let look_again = Instant::now() + if self.0.board.is_deaf() { LOOK_EVERY_DEAF } else { LOOK_EVERY };
                let record = self.0.store.get(id).await?;
                if record.task.state.is_final() {
                    return Ok(());
                }
                loop {
                    let Ok(word) = tokio::time::timeout_at(look_again, changes.recv()).await else { break };
                    match word {
                        Ok(changed) if changed.id == id && changed.state.is_final() => return Ok(()),
                        Ok(_) => {}
                        // Lagged or closed: what was missed is in the store.
                        Err(broadcast::error::RecvError::Lagged(_)) => break,
                        Err(broadcast::error::RecvError::Closed) => return Ok(()),
                    }
                }
            }
        };
        match tokio::time::timeout(patience, wait).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(_) => self.get(id).await,
        }
    }

    /// The time of day, as everything that is stored has it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// How many tasks need a backend: those that run or wait there, and those whose files are fetched from it. Of many only that they are.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn tasks_on(&self, backend: &BackendId) -> Result<usize, StoreError> {
        /// More than any backend has.
        const MANY: u32 = 1_000;
        let query = Query { backend: Some(backend.clone()), limit: MANY, ..Query::default() };
        Ok(self.0.store.list(query).await?.len())
    }

    /// The same once there is none, or when `patience` has passed.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn tasks_left_on(&self, backend: &BackendId, patience: Duration) -> Result<usize, StoreError> {
        // Subscribed before the first read, so that an end between the two is not missed.
        let (mut changes, until) = (self.0.store.changes(), Instant::now() + patience);
        loop {
            let left = self.tasks_on(backend).await?;
            if left == 0 || Instant::now() >= until {
                return Ok(left);
            }
            let look_again = until.min(Instant::now() + LOOK_EVERY);
            loop {
                match tokio::time::timeout_at(look_again, changes.recv()).await {
                    Ok(Ok(changed)) if changed.was.is_some_and(TaskState::is_held) && !changed.state.is_held() => break,
                    Ok(Ok(_)) => {}
                    Ok(Err(broadcast::error::RecvError::Closed)) => return Ok(left),
                    // Lagged, or time to look again.
                    Ok(Err(broadcast::error::RecvError::Lagged(_))) | Err(_) => break,
                }
            }
        }
    }

    /// A page of tasks.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, query: Query) -> Result<Vec<Task>, StoreError> {
        self.0.store.list(query).await
    }

    /// What the backends have; `None` when nobody asks them.
    #[must_use]
    pub fn fleet(&self) -> Option<Arc<Fleet>> {
        self.0.validate.then(|| self.0.catalogues.fleet())
    }

    /// Has every backend asked anew what it has, but for those that were asked just now. One that does not answer is as it was.
    pub async fn survey(&self) {
        let asks = self.0.sessions.values().map(|slot| slot.ask(|reply| SessionMsg::Survey { reply }, SURVEY_TIMEOUT));
        futures_util::future::join_all(asks).await;
    }

    /// Whether a backend that is online can run tasks with these needs.
    #[must_use]
    pub fn is_served(&self, needs: &Needs) -> bool {
        let fleet = self.0.catalogues.fleet();
        let fits = |backend: &BackendId| {
            if self.0.validate { fleet.meets(backend, needs) } else { fleet.allows(backend, needs) }
        };
        needs.is_empty() || self.all_backends().iter().any(|(id, status)| status.phase == PhaseName::Online && fits(id))
    }

    /// Every committed change from now on.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Changed> {
        self.0.store.changes()
    }

    /// The task store, for counts and checks.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn TaskStore> {
        &self.0.store
    }

    /// The files clients gave.
    #[must_use]
    pub fn inputs(&self) -> &Arc<dyn InputStore> {
        &self.0.inputs
    }

    /// Where outputs and inputs are.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.0.targets
    }

    /// A page of messages to webhooks, newest first, each with its receiver.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn deliveries(&self, query: DeliveryQuery) -> Result<Vec<(Delivery, Endpoint)>, StoreError> {
        self.0.hooks.deliveries(query).await
    }

    /// Has a message sent, whatever became of it.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn redeliver(&self, id: i64) -> Result<(Delivery, Endpoint), StoreError> {
        let asked = self.0.hooks.redeliver(id).await?;
        self.0.webhooks.cast(WebhookMsg::Look);
        Ok(asked)
    }

    /// A page of receivers of messages, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn hook_endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
        self.0.hooks.endpoints(after, limit).await
    }

    /// Has a receiver given what is held back for it.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn enable_endpoint(&self, id: EndpointId) -> Result<Endpoint, StoreError> {
        let endpoint = self.0.hooks.enable(id).await?;
        self.0.webhooks.cast(WebhookMsg::Look);
        Ok(endpoint)
    }

    /// What waits for webhooks, as it was counted last.
    #[must_use]
    pub fn hook_levels(&self) -> HookLevels {
        self.0.board.webhooks()
    }

    /// All backends.
    #[must_use]
    pub fn backends(&self) -> &[Arc<dyn ComfyTransport>] {
        &self.0.backends
    }

    /// What each backend's session is doing.
    #[must_use]
    pub fn backend_status(&self) -> BTreeMap<BackendId, BackendStatus> {
        self.0.board.backends()
    }

    /// The same of every backend there is, those of other processes included.
    #[must_use]
    pub fn all_backends(&self) -> BTreeMap<BackendId, BackendStatus> {
        let mut all: BTreeMap<_, _> =
            self.0.board.elsewhere().into_iter().map(|(id, other)| (id, other.status)).collect();
        let known = self.0.board.backends();
        let own = self.0.backends.iter().map(|backend| backend.id().clone());
        all.extend(own.map(|id| (id.clone(), known.get(&id).cloned().unwrap_or_else(BackendStatus::unknown))));
        all
    }

    /// Backends of other processes.
    #[must_use]
    pub fn elsewhere(&self) -> BTreeMap<BackendId, Elsewhere> {
        self.0.board.elsewhere()
    }

    /// What takes nothing new, as this process knows it.
    #[must_use]
    pub fn pauses(&self) -> Vec<Pause> {
        self.0.board.pauses()
    }

    /// Whether the process gets round to its work.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.board.pulse().is_felt()
    }

    /// Restarts per actor.
    #[must_use]
    pub fn restarts(&self) -> BTreeMap<String, u64> {
        self.0.board.restarts()
    }

    /// Whether the process is about to stop: whoever can go elsewhere should.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.0.board.is_leaving()
    }

    /// Whether the process is stopping and takes no new tasks.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.board.is_draining()
    }

    /// Whether the queue can be asked for anything now. It cannot while it is being restarted.
    #[must_use]
    pub fn has_queue(&self) -> bool {
        self.0.queue.get().is_some()
    }
}
