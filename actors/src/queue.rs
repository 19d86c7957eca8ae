//! QueueActor: the order of all tasks, and who works on what.
//!
//! - **Owns** the admission of new tasks, the matching of waiting tasks to free backends, the leases this process holds. It is the
//!   process's only caller of claim. The order itself is the store's index; no copy of it is kept.
//! - **Talks** to HTTP handlers (through `Bridge`), sessions, the uploads, the janitor, the store.
//! - **When it dies** its successor reads the held leases back from the store, and sessions and uploads announce themselves again.
//!   A create in flight is answered 503; its idempotency key finds it.
//! - **Must never** wait for the store in a handler, or hand out more than there are places for.

mod admission;
mod control;
mod dispatch;
mod drain;
mod endings;
mod gaps;
mod intake;
mod leases;
mod matching;
mod pace;
mod rounds;
mod routes;
mod tenants;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::{sync::broadcast, time::Instant};
use tracing::{debug, info};

use self::{
    admission::Waiting,
    control::Pauses,
    drain::Drain,
    gaps::Gaps,
    pace::Pace,
    routes::Routes,
    tenants::{Entering, Entrant, Tally},
};
use crate::{
    bridge::{RequestError, TaskRequest, Wish},
    comfy_session::Origin,
    domain::{
        id::{BackendId, ClientId, PromptId, TaskId},
        lane::{Lane, Lanes},
        task::{Change, Fence, Task, TaskState},
        time::Timestamp,
    },
    kit::tasks::{Panicked, Tasks},
    ports::store::{
        Assignment, Counts, Created, Creation, Depth, Hold, Pausable, Pause, Query, Renewed, StoreError, TaskRecord,
    },
    system::System,
};

/// The backstop behind every wake-up.
const TICK: Duration = Duration::from_secs(1);
/// Exact counts are taken this often; in between they are kept up.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// A backend must have been idle this long before another gives a prepared prompt back: a prompt about to start is faster where it is.
const RECALL_AFTER: Duration = Duration::from_millis(50);
/// Completed tasks that teach a new process how long tasks take.
const LESSONS: u32 = 300;
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
    /// What its device has, in bytes; `None` = it has not told.
    pub memory: Option<u64>,
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
        /// Whose it is.
        tenant: i64,
        /// The backend a place was kept on.
        kept: Option<BackendId>,
        /// When it began: the deadline's stretch.
        stretch: u64,
        /// What came of it.
        result: Result<Result<Creation, StoreError>, Panicked>,
    },
    /// What waits of a tenant with a limit was counted.
    Tallied {
        /// The task that is to wait beside it.
        entrant: Entrant,
        /// What was on its way when the counting began.
        tally: Tally,
        /// What came of it.
        result: Result<Result<u32, StoreError>, Panicked>,
    },
    /// A client wants something of a task that is there.
    Amend {
        /// Which.
        id: TaskId,
        /// What.
        wish: Wish,
        /// Answered after the commit.
        reply: RpcReplyPort<Result<Task, RequestError>>,
    },
    /// A task that is to be done again was looked up, to see whose it is.
    Found {
        /// Which.
        id: TaskId,
        /// Answered after the commit.
        reply: RpcReplyPort<Result<Task, RequestError>>,
        /// What came of it.
        result: Result<Result<TaskRecord, StoreError>, Panicked>,
    },
    /// The commit of a client's change ended.
    Amended {
        /// What was wanted.
        wish: Wish,
        /// Whose it is, when that was looked up.
        tenant: i64,
        /// When.
        asked: Timestamp,
        /// Who waits for it.
        reply: RpcReplyPort<Result<Task, RequestError>>,
        /// What came of it.
        result: Result<Result<Task, StoreError>, Panicked>,
    },
    /// Take nothing new, or go on.
    SetPaused {
        /// All of us, or one backend.
        what: Pausable,
        /// Nothing new, or go on.
        hold: Hold,
        /// Answered after the commit with all that is paused.
        reply: RpcReplyPort<Result<Vec<Pause>, RequestError>>,
    },
    /// The commit of a pause or its end ended.
    PauseStored {
        /// Who waits for it.
        reply: RpcReplyPort<Result<Vec<Pause>, RequestError>>,
        /// What came of it.
        result: Result<Result<Vec<Pause>, StoreError>, Panicked>,
    },
    /// What is paused was read back.
    PausesRead {
        /// Changes asked for when the reading began.
        changes: u64,
        /// What came of it.
        result: Result<Result<Vec<Pause>, StoreError>, Panicked>,
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
    /// The same in another process, perhaps in a lane that is not known here.
    WokenElsewhere,
    /// Another process took note that a task is to end. Perhaps it is held here.
    CancelledElsewhere { id: TaskId },
    /// Another process may have paused something, or let it go on.
    ReadPauses,
    /// A backend has other nodes or models now.
    CataloguesChanged,
    /// The lanes that have tasks were read.
    LanesRead(Result<Result<Vec<Lane>, StoreError>, Panicked>),
    /// A claim ended.
    Claimed {
        /// The backends places were kept on, and what they serve.
        kept: Vec<(BackendId, Lanes)>,
        /// When it began: the deadline's stretch.
        stretch: u64,
        /// What came of it.
        result: Result<Result<Vec<Assignment>, StoreError>, Panicked>,
    },
    /// The janitor adopted abandoned tasks.
    Adopted { assignments: Vec<Assignment> },
    /// Held leases were read back from the store.
    Recovered {
        /// When the reading began: the deadline's stretch.
        stretch: u64,
        /// What came of it.
        result: Result<Result<Vec<Assignment>, StoreError>, Panicked>,
    },
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
    Counted(Result<Result<(Counts, Vec<Depth>), StoreError>, Panicked>),
    /// Time for an exact count.
    Count,
    /// A backend may have been idle long enough for a recall.
    ConsiderRecall,
    /// The backstop.
    Tick,
    /// Take nothing more, wait for uploads, hand the rest over; answered when done.
    Drain { reply: RpcReplyPort<()> },
    /// The sessions send nothing more.
    Quiet,
    /// The patience of a drain is over.
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
    lane: i64,
    attempt: i32,
    /// How often it ran out of memory.
    ooms: i32,
    backend: BackendId,
    at: Whereabouts,
    /// When it was taken: the deadline's stretch.
    stretch: u64,
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
    /// Tasks that will wait once their commit is made: new ones, and those asked for again.
    entering: u64,
    /// The same of tenants that have a limit.
    tenants: HashMap<i64, Entering>,
    /// Of these lanes nothing was left in the store when it was last asked.
    dry: HashSet<Lanes>,
    routes: Routes,
    claiming: bool,
    /// Something became pending while a claim was under way, perhaps too late for it.
    woken: bool,
    recovered: bool,
    recovering: bool,
    /// A claim failed, though the store may have made it, or reading back failed: what we hold must be read (again).
    doubtful: bool,
    /// Ended while the held tasks were being read back, so what was read may show them as held still.
    ended_meanwhile: HashSet<TaskId>,
    /// Cancelled since the last heartbeat, and held by somebody. By us perhaps: a claim that was made before may still be on its way here.
    cancelled_early: HashSet<TaskId>,
    drain: Drain,
    pauses: Pauses,
    gaps: Gaps,
    paces: HashMap<BackendId, Pace>,
    counting: bool,
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
        state.read_pauses(&me);
        state.hear_of_pauses(&me);
        state.work_out_routes();
        state.watch_catalogues(&me);
        state.read_lanes(&me);
        state.learn_from_the_past();
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
            QueueMsg::Stored { reply, tenant, kept, stretch, result } => {
                state.on_stored(&me, reply, tenant, kept, stretch, result);
            }
            QueueMsg::Tallied { entrant, tally, result } => state.on_tallied(&me, entrant, tally, result),
            QueueMsg::Amend { id, wish, reply } => state.amend(&me, id, wish, reply),
            QueueMsg::Found { id, reply, result } => state.on_found(&me, id, reply, result),
            QueueMsg::Amended { wish, tenant, asked, reply, result } => {
                state.on_amended(&me, wish, tenant, asked, reply, result);
            }
            QueueMsg::SetPaused { what, hold, reply } => state.set_paused(&me, what, hold, reply),
            QueueMsg::PauseStored { reply, result } => state.on_pause_stored(&me, reply, result),
            QueueMsg::PausesRead { changes, result } => state.on_pauses_read(&me, changes, result),
            QueueMsg::Running { reply } => _ = reply.send(state.running()),
            QueueMsg::Demand(demand) => state.on_demand(&me, demand),
            QueueMsg::UploadsOpen { epoch, open } => state.on_uploads_open(&me, epoch, open),
            QueueMsg::Ran { id } => state.on_moved(&me, id, Whereabouts::Ran),
            QueueMsg::Uploading { id } => state.on_moved(&me, id, Whereabouts::Uploads),
            QueueMsg::Settle { id, fence, change, prompt } => state.settle(&me, id, fence, *change, prompt),
            QueueMsg::Settled { id, fence, prompt, result } => state.on_settled(&me, id, fence, prompt, result),
            QueueMsg::Wake => state.on_wake(&me),
            QueueMsg::WokenElsewhere => state.on_woken_elsewhere(&me),
            QueueMsg::CancelledElsewhere { id } => state.on_cancelled(id),
            QueueMsg::ReadPauses => state.read_pauses(&me),
            QueueMsg::CataloguesChanged => state.on_catalogues_changed(&me),
            QueueMsg::LanesRead(result) => state.on_lanes_read(&me, result),
            QueueMsg::Claimed { kept, stretch, result } => state.on_claimed(&me, kept, stretch, result),
            QueueMsg::Adopted { assignments } => state.on_adopted(&me, assignments),
            QueueMsg::Recovered { stretch, result } => state.on_recovered(&me, stretch, result),
            QueueMsg::Renew => state.renew(&me),
            QueueMsg::Renewed { asked, held, result } => state.on_renewed(asked, &held, result),
            QueueMsg::Counted(result) => state.on_counted(result),
            QueueMsg::Count => state.count(&me),
            QueueMsg::ConsiderRecall => state.recall(),
            QueueMsg::Tick => state.on_tick(&me),
            QueueMsg::Drain { reply } => state.drain(&me, reply),
            QueueMsg::Quiet => state.on_quiet(&me),
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
            entering: 0,
            tenants: HashMap::new(),
            dry: HashSet::new(),
            routes: Routes::default(),
            claiming: false,
            woken: false,
            recovered: false,
            recovering: false,
            doubtful: false,
            ended_meanwhile: HashSet::new(),
            cancelled_early: HashSet::new(),
            drain: Drain::default(),
            pauses: Pauses::default(),
            gaps: Gaps::default(),
            paces: HashMap::new(),
            counting: false,
            tasks: Tasks::default(),
        }
    }

    /// How long tasks take was learned by a process that is gone: the last that completed teach it anew.
    fn learn_from_the_past(&mut self) {
        let system = self.system.clone();
        let Some(store) = system.store.clone().filter(|_| !system.board.has_learned()) else { return };
        self.tasks.run_unreported(async move {
            let last = Query { states: vec![TaskState::Completed], limit: LESSONS, ..Query::default() };
            // Without them the next tasks teach it.
            let tasks = store.list(last).await.unwrap_or_default();
            tasks.iter().rev().for_each(|task| system.board.learn(task));
        });
    }

    /// Wakes the queue when something becomes pending, whoever made it so. A lagging listener has missed something: it wakes too.
    fn listen(&mut self, me: &ActorRef<QueueMsg>) {
        let (mut changes, me) = (self.system.hints.changes(), me.clone());
        let (metrics, clock) = (self.system.metrics.clone(), self.system.clock.clone());
        self.tasks.run_unreported(async move {
            loop {
                match changes.recv().await {
                    Ok(changed) => {
                        metrics.changed(&changed, clock.now());
                        let word = match changed.state {
                            TaskState::Pending if changed.here => QueueMsg::Wake,
                            TaskState::Pending => QueueMsg::WokenElsewhere,
                            _ if changed.cancelling && !changed.here => QueueMsg::CancelledElsewhere { id: changed.id },
                            // What waits for room under a cap may be taken now.
                            _ if changed.frees_room() => QueueMsg::Wake,
                            _ => continue,
                        };
                        if me.cast(word).is_err() {
                            return;
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        if me.cast(QueueMsg::Wake).is_err() || me.cast(QueueMsg::Count).is_err() {
                            return;
                        }
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
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
