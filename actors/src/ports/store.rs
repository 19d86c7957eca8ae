//! The truth about all tasks, as two ports: [`TaskStore`] is what the API side needs, [`WorkSource`] what a consumer needs.
//!
//! They are apart so that a consumer without a database (one that speaks HTTPS to the API) implements only the second.
//!
//! A store decides nothing about a task: it loads one, calls [`Task::apply`], saves what comes out, all in one transaction. Its own
//! rules are these:
//! - a change is durable when the call returns; when [`Change::is_promise`] says so, even against a power cut (a creation says itself when
//!   it is, see [`Creation`]);
//! - the pending tasks of a lane are claimed in the order of `(sort_key, id)`;
//! - leases are computed from the store's own clock, so all consumers agree on it;
//! - every committed change is told to [`TaskStore::changes`];
//! - what [`facts`](crate::domain::event::facts) makes of a change is written in the same transaction as events. Their numbers grow in the
//!   order in which they become visible: whoever has read up to a number never finds a lower one later. One writer at a time gives that for
//!   nothing. A store with concurrent writers must see to it, for example by drawing the numbers under a lock that is held until the
//!   commit; a plain sequence is not enough, because a transaction that drew early may commit late.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

mod claim;
mod creation;

pub use self::{
    claim::{Assignment, Claim, ClaimSlot, Renewed, Sweep},
    creation::{Created, Creation, Durable, Idempotency, NewTask, Payload},
};
use crate::domain::{
    artifact::Artifact,
    event::{Event, Stage},
    failure::Class,
    id::{BackendId, TaskId, WorkerId},
    lane::{Lane, Needs},
    options::TaskOptions,
    order::Priority,
    progress::NodeTiming,
    task::{Change, Fence, Refusal, Task, TaskState},
    tenant::NOBODY,
    time::Timestamp,
};

/// A task with everything the API shows of it.
#[derive(Debug, Clone)]
pub struct TaskRecord {
    /// The row.
    pub task: Task,
    /// The inputs as given, a JSON object as text.
    pub inputs: Arc<str>,
    /// The client's own data, JSON text.
    pub metadata: Arc<str>,
    /// What is done differently for it.
    pub options: Arc<TaskOptions>,
    /// What it needs that not every backend has.
    pub needs: Arc<Needs>,
    /// Its artifacts in order.
    pub artifacts: Vec<Artifact>,
    /// What its newest run spent on each node, as far as it was heard; empty while it runs.
    pub nodes: Vec<NodeTiming>,
}

/// Which tasks to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Only these states; empty = all.
    pub states: Vec<TaskState>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only tasks that are on this server now, or whose files are fetched from it.
    pub backend: Option<BackendId>,
    /// Only tasks created at this moment or later.
    pub created_from: Option<Timestamp>,
    /// Only tasks created before this moment.
    pub created_until: Option<Timestamp>,
    /// Only tasks older than this one, which was the last of the page before.
    pub before: Option<(Timestamp, TaskId)>,
    /// At most this many.
    pub limit: u32,
}

/// So many of the newest completed tasks tell how long tasks take: a few odd ones do not sway it.
const LESSONS: u32 = 100;
/// More tasks than are ever held at the same time: a held task has a server, or had one.
const MOST_HELD: u32 = 10_000;

impl Query {
    /// The tasks to learn from how long tasks take.
    #[must_use]
    pub fn lessons() -> Self {
        Self { states: vec![TaskState::Completed], limit: LESSONS, ..Self::default() }
    }

    /// All that are in one of these states, of those in which somebody holds them.
    #[must_use]
    pub fn all_held(states: Vec<TaskState>) -> Self {
        Self { states, limit: MOST_HELD, ..Self::default() }
    }
}

/// Which failed tasks to list, the newest failures first.
#[derive(Debug, Clone, Default)]
pub struct FailedQuery {
    /// Only failures that are treated like one of these; empty = all.
    pub classes: Vec<Class>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only those that failed at this moment or later.
    pub failed_from: Option<Timestamp>,
    /// Only those that failed before this moment.
    pub failed_until: Option<Timestamp>,
    /// Only those that failed before this one, which was the last of the page before.
    pub before: Option<(Timestamp, TaskId)>,
    /// At most this many.
    pub limit: u32,
}

/// How many tasks are not over yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for their time.
    pub scheduled: u64,
    /// Waiting for their turn.
    pub pending: u64,
    /// Held by a consumer.
    pub held: u64,
}

/// The tasks of one priority that wait for their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Which.
    pub priority: Priority,
    /// How many.
    pub waiting: u64,
    /// Since when the oldest of them does.
    pub oldest: Timestamp,
}

/// What can be told to take nothing new.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Pausable {
    /// All of it.
    Queue,
    /// One server.
    Backend(BackendId),
}

/// Something that takes nothing new, until it is told to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// What.
    pub what: Pausable,
    /// Since when.
    pub since: Timestamp,
    /// When what still runs there is moved elsewhere, if ever.
    pub move_at: Option<Timestamp>,
}

/// What to do about a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// End it.
    Resume,
    /// Begin it; one that is there stays as it is.
    Pause,
    /// Begin it, if it is not there, and set when what still runs is moved elsewhere.
    Drain {
        /// `None` = never: it may take as long as it takes.
        move_at: Option<Timestamp>,
    },
}

/// How long finished tasks are kept.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Completed and cancelled ones.
    pub completed: Duration,
    /// Failed ones.
    pub failed: Duration,
    /// Idempotency keys, from the creation of their task.
    pub idempotency: Duration,
    /// Tasks of which something is still to be told to a webhook stay longer than that, until it has been due for so long.
    pub webhooks: Duration,
}

/// A committed change, told to whoever listens. A hint: a listener that lags reads the store instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Which task.
    pub id: TaskId,
    /// Where it stood before; `None` for a new one.
    pub was: Option<TaskState>,
    /// Where it stands now.
    pub state: TaskState,
    /// Its urgency now.
    pub priority: Priority,
    /// Its cancellation is asked for and not done.
    pub cancelling: bool,
    /// A webhook is told of where it stands now.
    pub hooked: bool,
    /// It is some tenant's: when it is held no more, another of theirs may be taken.
    #[serde(default)]
    pub of_tenant: bool,
    /// It was committed through this process.
    pub here: bool,
}

impl Changed {
    /// What to tell of a task that stood at `was` before, and that this process changed.
    #[must_use]
    pub fn of(task: &Task, was: Option<TaskState>) -> Self {
        let Task { id, state, priority, tenant, .. } = *task;
        let hooked = task.hook.is_some_and(|hook| hook.events.contains(Stage::of(task)));
        let (cancelling, of_tenant) = (task.is_cancelling(), tenant != NOBODY);
        Self { id, was, state, priority, cancelling, hooked, of_tenant, here: true }
    }

    /// Whether another task of its tenant may be taken now that could not be before.
    #[must_use]
    pub fn frees_room(&self) -> bool {
        self.of_tenant && self.was.is_some_and(TaskState::is_held) && !self.state.is_held()
    }
}

/// Why a store could not do what was asked. In every case nothing is half-done.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// The store cannot be reached or written now: busy for too long, disk full, gone. Worth trying again.
    #[error("the task store is unavailable: {0}")]
    Unavailable(String),
    /// No such task.
    #[error("no such task")]
    NotFound,
    /// The task refused the change.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the store holds makes no sense: a fault of ours or a damaged file.
    #[error("the task store holds something unreadable: {0}")]
    Corrupt(String),
}

/// What the API side needs.
#[async_trait]
pub trait TaskStore: Send + Sync + 'static {
    /// Creates a task and, in the same transaction, claims up to `claim.slots.len()` tasks from the head of the order (often
    /// the new one): one commit and no wait when a backend is free.
    ///
    /// It returns after the commit, and tells later when that is safe from a power cut: work may begin meanwhile, the client must wait.
    /// With an idempotency key it is idempotent; without one a caller that did not see the answer cannot know.
    ///
    /// # Errors
    /// `Unavailable`: it may have been written, when the disk did not confirm it or the writer died.
    async fn create(&self, new: NewTask, claim: Option<Claim>) -> Result<Creation, StoreError>;

    /// Makes a client's change to a task and returns it as it is then. A task that fulfils the wish already ([`Task::fulfils`]) comes back
    /// as it is.
    ///
    /// # Errors
    /// `NotFound`, `Refused`, `Unavailable`.
    async fn amend(&self, id: TaskId, change: Change) -> Result<Task, StoreError>;

    /// Asks for a task's end ([`Change::Cancel`]) and returns it as it is then. A task that is over comes back as it is.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn cancel(&self, id: TaskId) -> Result<Task, StoreError> {
        self.amend(id, Change::Cancel).await
    }

    /// One task.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError>;

    /// A page of tasks, newest first (by creation, then id).
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list(&self, query: Query) -> Result<Vec<Task>, StoreError>;

    /// A page of failed tasks, newest failure first (by end, then id). The cost grows with the page; with a workflow, with the failures that
    /// are passed over.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn failed(&self, query: FailedQuery) -> Result<Vec<Task>, StoreError>;

    /// Exact counts. Costs a walk over the waiting tasks: for start-up and slow timers, never per request.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn counts(&self) -> Result<Counts, StoreError>;

    /// How many tasks wait in each lane that has any, but for lane 0; by id. Costs a walk, as [`counts`](Self::counts).
    ///
    /// # Errors
    /// `Unavailable`.
    async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError>;

    /// How many tasks wait in these lanes, for their turn or their time, counted no further than `limit`. Nothing is counted in lane 0.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn crowd(&self, lanes: BTreeSet<i64>, limit: u32) -> Result<u32, StoreError>;

    /// The waiting tasks by priority, least urgent first. As costly as [`Self::counts`].
    ///
    /// # Errors
    /// `Unavailable`.
    async fn depths(&self) -> Result<Vec<Depth>, StoreError>;

    /// What is paused, in order.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;

    /// Pauses something, or ends its pause, and returns all that is paused then. Repeating it does not change since when. Durable against a power cut when it returns.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn set_paused(&self, what: Pausable, hold: Hold) -> Result<Vec<Pause>, StoreError>;

    /// Whether a write would be taken now.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn check(&self) -> Result<(), StoreError>;

    /// Events of one task, or of all, with numbers above `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable`. A task that is not there has no events.
    async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError>;

    /// The number of the newest event, 0 before the first. Never smaller than one told before, even when its task is deleted.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn newest_event(&self) -> Result<i64, StoreError>;

    /// How many tasks are to be taken before this one, over all lanes, counted no further than `limit` in each: the cost does not grow with
    /// the queue. `None` when it does not wait for its turn.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn ahead(&self, id: TaskId, limit: u32) -> Result<Option<u32>, StoreError>;

    /// Makes up to `limit` scheduled tasks whose time has come pending; returns how many.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn promote(&self, limit: u32) -> Result<u32, StoreError>;

    /// When the next scheduled task's time comes, if any is scheduled.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Deletes up to `limit` finished tasks and idempotency keys past their retention; returns how many.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn prune(&self, retention: Retention, limit: u32) -> Result<u32, StoreError>;

    /// Tasks that are over in this state and ended before `until`, the first ends first, after all that are [swept](Self::note_swept); at
    /// most `limit`. `state` is a final one.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn unswept(&self, state: TaskState, until: Timestamp, limit: u32) -> Result<Vec<Task>, StoreError>;

    /// What was left in storage by all tasks that are over in this state, up to this one in the order of their ends, is deleted. Harmless to
    /// repeat, also in another order.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn note_swept(&self, state: TaskState, last: (Timestamp, TaskId)) -> Result<(), StoreError>;

    /// All changes committed through this process from now on and, as far as the store hears of them, those of others.
    fn changes(&self) -> broadcast::Receiver<Changed>;
}

/// What somebody has to hear of to do its part in time, whichever way it comes to its tasks.
#[async_trait]
pub trait Hints: Send + Sync + 'static {
    /// As [`TaskStore::changes`], at least those that concern a consumer: what became pending, and what is to end.
    fn changes(&self) -> broadcast::Receiver<Changed>;

    /// As [`TaskStore::pauses`].
    ///
    /// # Errors
    /// `Unavailable`.
    async fn pauses(&self) -> Result<Vec<Pause>, StoreError>;
}

#[async_trait]
impl<S: TaskStore> Hints for S {
    fn changes(&self) -> broadcast::Receiver<Changed> {
        TaskStore::changes(self)
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        TaskStore::pauses(self).await
    }
}

/// What a consumer needs.
#[async_trait]
pub trait WorkSource: Send + Sync + 'static {
    /// Takes tasks from the heads of the lanes that the slots serve, at most one per slot, as [`allot`](crate::domain::lane::allot)
    /// says; answers in the order of the queue. Of a tenant with a cap no more tasks are held afterwards than it says, however many claim at
    /// the same time.
    ///
    /// # Errors
    /// `Unavailable`: nothing was taken, or it will be seen as held.
    async fn claim(&self, claim: Claim) -> Result<Vec<Assignment>, StoreError>;

    /// Makes a change to a held task. Repeating a change that was done is refused as `Stale` or `WrongState`, never done twice.
    ///
    /// # Errors
    /// `Refused(Stale)`: somebody else holds it; stop all work on it. `NotFound`, `Unavailable`.
    async fn apply(&self, id: TaskId, fence: Fence, change: Change) -> Result<Task, StoreError>;

    /// Notes what dispatch number `dispatch` of a task spent on each node. A picture for people: without effect when the task has gone on to
    /// another dispatch, or is not there any more.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn note_run(&self, id: TaskId, dispatch: i64, nodes: Vec<NodeTiming>) -> Result<(), StoreError>;

    /// Renews leases in one go. Those that expired are not renewed, even if nobody took them yet: somebody may be about to.
    ///
    /// # Errors
    /// `Unavailable`: none was renewed.
    async fn renew(
        &self,
        worker: &WorkerId,
        lease: Duration,
        held: &[(TaskId, Fence)],
    ) -> Result<Vec<Renewed>, StoreError>;

    /// The lanes of all tasks that are not over, but for lane 0, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn lanes(&self) -> Result<Vec<Lane>, StoreError>;

    /// All tasks this incarnation holds: what a restarted actor works from.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn held(&self, worker: &WorkerId) -> Result<Vec<Assignment>, StoreError>;

    /// Adopts every task held by an earlier incarnation of the same node, without waiting for the leases to expire. Only for a
    /// caller that knows those incarnations to be dead (it holds the node's lock).
    ///
    /// # Errors
    /// `Unavailable`.
    async fn take_over(&self, worker: &WorkerId, lease: Duration) -> Result<Vec<Assignment>, StoreError>;

    /// Adopts tasks whose lease expired, as the sweep says, oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn adopt_expired(&self, sweep: &Sweep) -> Result<Vec<Assignment>, StoreError>;
}
