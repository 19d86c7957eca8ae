//! A task's life: its states, and the one function that changes them.
//!
//! ```text
//! scheduled --Promote--> pending --Claim--> dispatching --Accept--> executing --Plan--> uploading --Complete--> completed
//!     ^                     ^ ^                  |                     |                    |
//!     `- Retry, Cramped ----|-'- Release, -------'---------------------'--------------------'--Fail--> failed
//!                           |    Elsewhere                                                         `-> cancelled
//!                    (new tasks start here, or in scheduled)
//! ```
//!
//! A failed or cancelled task that somebody asks for again begins another generation: `Reopen` puts it back into `pending`,
//! `ReopenUploads` into `uploading`. A completed one never changes again.
//!
//! Stores do not decide anything: they load a task, call [`Task::apply`], and save what it returns. So an in-memory store, `SQLite`
//! and `PostgreSQL` cannot disagree about what a change means.

mod endings;
mod generation;
mod repeat;
mod stages;

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{endings::POISON_LIMIT, stages::Stages};

use super::{
    artifact::{Artifact, StoredObject},
    error::TaskError,
    id::{BackendId, ClientId, PromptId, TaskId, WorkerId},
    lane::Lane,
    moment::Moment,
    order::{Ordering, Priority},
    time::Timestamp,
    webhook::Hook,
};

/// Where a task stands. Clients see `processing` for the three in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Waits for its time: asked to run later, or a retry with backoff.
    Scheduled,
    /// Waits for its turn.
    Pending,
    /// Held; its prompt may have been sent, no answer is recorded.
    Dispatching,
    /// Held; a server confirmed the prompt.
    Executing,
    /// Held; the prompt succeeded and its files are being stored.
    Uploading,
    /// Every output is stored. Final.
    Completed,
    /// Final.
    Failed,
    /// Final.
    Cancelled,
}

impl TaskState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Pending,
        Self::Dispatching,
        Self::Executing,
        Self::Uploading,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The word stored in databases.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Pending => "pending",
            Self::Dispatching => "dispatching",
            Self::Executing => "executing",
            Self::Uploading => "uploading",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state a database's word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Never changes again within its generation.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// A consumer holds a lease on it.
    #[must_use]
    pub fn is_held(self) -> bool {
        matches!(self, Self::Dispatching | Self::Executing | Self::Uploading)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Guards every write of a holder: +1 on each claim and adoption, never reset. A write that carries an older one is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub i64);

/// Who may act on a task, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The incarnation that holds it.
    pub worker: WorkerId,
    /// By the store's clock. After it, anybody may adopt the task.
    pub until: Timestamp,
}

impl Lease {
    /// Whether `worker` may make it last, which was given for `span`. One that expired it may not, even if nobody took the task yet: somebody
    /// may be about to. Only when the clock was set, nobody is: then the lease of whoever asks is alive, whatever it says.
    #[must_use]
    pub fn may_be_renewed(&self, worker: &WorkerId, span: Duration, moment: Moment) -> bool {
        self.worker == *worker && (self.until > moment.now || !moment.is_settled(span))
    }
}

/// The newest prompt of a task: recorded before its POST, so that whoever comes after knows what to look for and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// The id we sent; after acceptance the id the server goes by.
    pub id: PromptId,
    /// The server it was meant for.
    pub backend: BackendId,
    /// The connection its events go to, as long as it is held by the process that chose it: who adopts it hears nothing of it.
    pub client: Option<ClientId>,
    /// A server confirmed it.
    pub accepted: bool,
}

/// A task without its payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its name.
    pub id: TaskId,
    /// Whose it is. 0 until keys exist.
    pub tenant: i64,
    /// Hash of tenant and requirements: a claimer serves whole lanes. 0 = anybody can run it.
    pub lane: i64,
    /// The named workflow it was made from, if any.
    pub workflow: Option<String>,
    /// As asked for.
    pub priority: Priority,
    /// Place in the order (`order::sort_key`), kept over retries.
    pub sort_key: i64,
    /// Since when it waits for its turn, which is what its place is counted from: its creation, the time it was meant to run at, or when
    /// it was asked for again.
    pub queued_at: Timestamp,
    /// Where it stands.
    pub state: TaskState,
    /// +1 when somebody explicitly retries a failed or cancelled task.
    pub generation: i32,
    /// This generation shall store the files its prompt left behind, and nothing else: what would run it again fails it instead.
    pub uploads_only: bool,
    /// Guards every write.
    pub fence: Fence,
    /// Number of prompts meant for it so far.
    pub dispatch: i64,
    /// Which attempt this is, from 1. Spent only by what is the task's own failure.
    pub attempt: i32,
    /// Attempts allowed.
    pub max_attempts: i32,
    /// Servers that died, or whose device failed, while running it.
    pub poison: i32,
    /// How often this generation ran out of memory. From the first time on it runs alone on a server whose memory was freed for it.
    pub ooms: i32,
    /// Longest time one attempt may execute.
    pub timeout: Option<Duration>,
    /// Who holds it.
    pub lease: Option<Lease>,
    /// Its newest prompt.
    pub prompt: Option<Prompt>,
    /// When a scheduled task becomes pending.
    pub run_at: Option<Timestamp>,
    /// When its cancellation was asked for.
    pub cancel_requested_at: Option<Timestamp>,
    /// Acceptance by us.
    pub created_at: Timestamp,
    /// First claim of the newest attempt.
    pub started_at: Option<Timestamp>,
    /// Acceptance by a server.
    pub executing_at: Option<Timestamp>,
    /// End of its run.
    pub uploading_at: Option<Timestamp>,
    /// Its end.
    pub finished_at: Option<Timestamp>,
    /// Why it failed, or why its newest attempt did.
    pub error: Option<TaskError>,
    /// Who is told of it.
    pub hook: Option<Hook>,
}

/// A prompt about to be submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The server it is for.
    pub backend: BackendId,
    /// The connection its events go to.
    pub client: ClientId,
}

/// Why a holder gives a task back unfinished, at no cost to its attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// Taken back from the server before it ran, or never sent.
    Recalled,
    /// The server died or forgot it while it may have been running. Counts towards [`POISON_LIMIT`].
    ServerDied,
    /// Somebody else interrupted it on the server.
    Interrupted,
    /// The end of a cancellation; as every release of a task whose cancellation was asked for.
    Cancelled,
}

/// Something that happens to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// A consumer takes a pending task, and says at once what it is about to submit where.
    Claim { worker: WorkerId, until: Timestamp, intent: Intent },
    /// A consumer takes over an abandoned task in the state it is in.
    Adopt { worker: WorkerId, until: Timestamp },
    /// The holder keeps its lease.
    Renew { until: Timestamp },
    /// The holder lets the lease end now, keeping state and prompt, so that another adopts at once.
    HandOff,
    /// A server confirmed the prompt, under this id.
    Accept { prompt: PromptId },
    /// The prompt succeeded with these artifacts.
    Plan { artifacts: Vec<Artifact> },
    /// One artifact is stored.
    Store { index: u32, object: StoredObject },
    /// All artifacts are stored: the task's manifest.
    Complete { artifacts: Vec<Artifact> },
    /// It failed for good.
    Fail { error: TaskError },
    /// It failed in a way worth another attempt after `delay`; fails for good when none is left.
    Retry { error: TaskError, delay: Duration },
    /// It ran out of memory. Another attempt after `delay` as with [`Self::Retry`], in `lane` if there is one: that of the servers on which
    /// it may fit. Fails for good when it was given every chance.
    Cramped { error: TaskError, delay: Duration, lane: Option<Lane> },
    /// Its server broke under it: another one runs it, at no cost to its attempts. `blamed` when the server was thought to be well until
    /// then, so that the task may be what broke it: that counts towards [`POISON_LIMIT`].
    Elsewhere { error: TaskError, blamed: bool },
    /// Its run succeeded, and not every artifact could be stored: what is stored and what is not. It is tried again after `delay`, as with
    /// [`Self::Retry`], when that can end differently; else it failed and keeps its artifacts, so that the rest can be stored later.
    Unstored { error: TaskError, delay: Duration, artifacts: Vec<Artifact> },
    /// The holder gives it back.
    Release(Release),
    /// Its time has come.
    Promote,
    /// A client wants it stopped.
    Cancel,
    /// A client wants it sooner or later than it asked before. Of use while it waits, now or again; harmless while it runs.
    Reprioritize { priority: Priority, ordering: Ordering },
    /// A client wants a failed or cancelled task done from the beginning.
    Reopen { ordering: Ordering },
    /// A client wants the files stored that a failed or cancelled task left on its server. It is abandoned in the state in which they were
    /// being stored, under the name of this worker: whoever looks for abandoned tasks next takes it up.
    ReopenUploads { worker: WorkerId },
}

/// What becomes of the stored artifacts with a change.
#[derive(Debug, Clone, PartialEq)]
pub enum ArtifactEdit {
    /// Untouched.
    Keep,
    /// The list is replaced: a plan, a manifest, or nothing when a new run starts.
    Replace(Vec<Artifact>),
    /// One of them is stored.
    Stored(u32, StoredObject),
}

/// Why a change was refused. Nothing was altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Somebody else holds the task now. The writer must stop all work on it.
    #[error("the lease is held by somebody else")]
    Stale,
    /// The task is over.
    #[error("the task is already over")]
    Over,
    /// The change makes no sense in the task's state.
    #[error("the change is not possible in the task's state")]
    WrongState,
    /// Its cancellation was asked for and is not done yet.
    #[error("the task is being cancelled: wait for its end, then ask again")]
    Cancelling,
    /// Only its files were asked for, and it made none that are known of.
    #[error("the task left no files to store: it has to run again as a whole")]
    NoFiles,
}

impl Change {
    /// Whether its effect must survive a power cut before anybody is told: what was promised to a client. Losing any other change
    /// costs a look at the server, not a promise.
    #[must_use]
    pub fn is_promise(&self) -> bool {
        matches!(self, Self::Complete { .. } | Self::Fail { .. } | Self::Retry { .. } | Self::Release(_))
            || matches!(self, Self::Unstored { .. } | Self::Cramped { .. } | Self::Elsewhere { .. })
            || self.is_clients()
    }

    /// Whether nobody waits until it is recorded: evidence that saves a successor some looks at the server.
    #[must_use]
    pub fn can_wait(&self) -> bool {
        matches!(self, Self::Accept { .. } | Self::Plan { .. } | Self::Store { .. })
    }

    /// The lane a task may be in afterwards that nobody knows yet.
    #[must_use]
    pub fn new_lane(&self) -> Option<&Lane> {
        match self {
            Self::Cramped { lane, .. } => lane.as_ref(),
            _ => None,
        }
    }

    /// Whether only the holder may do it, so that it must carry the fence.
    fn is_holders(&self) -> bool {
        !matches!(self, Self::Claim { .. } | Self::Adopt { .. } | Self::Promote) && !self.is_clients()
    }

    /// Whether it is a client's wish.
    fn is_clients(&self) -> bool {
        matches!(self, Self::Cancel | Self::Reprioritize { .. }) || self.reopens()
    }

    /// Whether it is for tasks that are over.
    fn reopens(&self) -> bool {
        matches!(self, Self::Reopen { .. } | Self::ReopenUploads { .. })
    }
}

impl Task {
    /// The only function that changes a task.
    ///
    /// `fence` is the holder's; changes that are not a holder's ignore it. On success the artifacts' fate is returned.
    ///
    /// # Errors
    /// [`Refusal`]; the task is then exactly as before.
    pub fn apply(&mut self, fence: Option<Fence>, change: Change, now: Timestamp) -> Result<ArtifactEdit, Refusal> {
        if self.state.is_final() && !change.reopens() {
            return Err(if change.is_holders() { Refusal::Stale } else { Refusal::Over });
        }
        if change.is_holders() && (!self.state.is_held() || fence != Some(self.fence)) {
            return Err(Refusal::Stale);
        }
        match change {
            Change::Claim { worker, until, intent } => self.claim(worker, until, intent, now),
            Change::Adopt { worker, until } => self.adopt(worker, until),
            Change::Renew { until } => self.renew(until),
            Change::HandOff => self.renew(now),
            Change::Accept { prompt } => self.accept(prompt, now),
            Change::Plan { artifacts } => self.plan(artifacts, now),
            Change::Store { index, object } => self.in_state(TaskState::Uploading, ArtifactEdit::Stored(index, object)),
            Change::Complete { artifacts } => self.complete(artifacts, now),
            Change::Fail { error } => Ok(self.fail(error, now)),
            Change::Retry { error, delay } => Ok(self.retry(error, delay, now)),
            Change::Cramped { error, delay, lane } => Ok(self.cramped(error, delay, lane, now)),
            Change::Elsewhere { error, blamed } => Ok(self.elsewhere(error, blamed, now)),
            Change::Unstored { error, delay, artifacts } => self.unstored(error, delay, artifacts, now),
            Change::Release(reason) => Ok(self.release(reason, now)),
            Change::Promote => self.promote(now),
            Change::Cancel => Ok(self.cancel(now)),
            Change::Reprioritize { priority, ordering } => Ok(self.reprioritize(priority, ordering)),
            Change::Reopen { ordering } => self.reopen(ordering, now),
            Change::ReopenUploads { worker } => self.reopen_uploads(worker, now),
        }
    }

    /// Whether its cancellation was asked for and it has not ended yet.
    #[must_use]
    pub fn is_cancelling(&self) -> bool {
        self.cancel_requested_at.is_some() && !self.state.is_final()
    }

    fn in_state(&self, state: TaskState, edit: ArtifactEdit) -> Result<ArtifactEdit, Refusal> {
        if self.state == state { Ok(edit) } else { Err(Refusal::WrongState) }
    }

    fn claim(
        &mut self,
        worker: WorkerId,
        until: Timestamp,
        intent: Intent,
        now: Timestamp,
    ) -> Result<ArtifactEdit, Refusal> {
        self.in_state(TaskState::Pending, ArtifactEdit::Keep)?;
        self.state = TaskState::Dispatching;
        self.fence.0 += 1;
        self.lease = Some(Lease { worker, until });
        self.started_at = Some(now);
        self.executing_at = None;
        self.uploading_at = None;
        self.set_intent(intent);
        Ok(ArtifactEdit::Keep)
    }

    fn adopt(&mut self, worker: WorkerId, until: Timestamp) -> Result<ArtifactEdit, Refusal> {
        if !self.state.is_held() {
            return Err(Refusal::WrongState);
        }
        self.fence.0 += 1;
        self.lease = Some(Lease { worker, until });
        if let Some(prompt) = &mut self.prompt {
            prompt.client = None;
        }
        Ok(ArtifactEdit::Keep)
    }

    fn renew(&mut self, until: Timestamp) -> Result<ArtifactEdit, Refusal> {
        let lease = self.lease.as_mut().ok_or(Refusal::Stale)?;
        lease.until = until;
        Ok(ArtifactEdit::Keep)
    }

    /// Whether this process chose the newest prompt and held it ever since, so that nobody else can have sent it. That it was not accepted is
    /// part of it: then there is nothing to be found out.
    #[must_use]
    pub fn is_intended_by(&self, worker: &WorkerId) -> bool {
        let open = self.prompt.as_ref().filter(|prompt| !prompt.accepted && self.state == TaskState::Dispatching);
        open.and_then(|prompt| prompt.client.as_ref()).is_some_and(|client| client.is_of(worker))
    }

    fn set_intent(&mut self, intent: Intent) {
        self.dispatch += 1;
        self.prompt = Some(Prompt {
            id: PromptId::of(self.id, self.dispatch),
            backend: intent.backend,
            client: Some(intent.client),
            accepted: false,
        });
    }

    fn accept(&mut self, id: PromptId, now: Timestamp) -> Result<ArtifactEdit, Refusal> {
        if self.state == TaskState::Uploading {
            return Err(Refusal::WrongState);
        }
        let prompt = self.prompt.as_mut().ok_or(Refusal::WrongState)?;
        prompt.id = id;
        prompt.accepted = true;
        self.state = TaskState::Executing;
        self.executing_at.get_or_insert(now);
        Ok(ArtifactEdit::Keep)
    }

    fn plan(&mut self, artifacts: Vec<Artifact>, now: Timestamp) -> Result<ArtifactEdit, Refusal> {
        let prompt = self.prompt.as_mut().ok_or(Refusal::WrongState)?;
        if self.state == TaskState::Uploading {
            return Err(Refusal::WrongState);
        }
        prompt.accepted = true;
        self.state = TaskState::Uploading;
        self.executing_at.get_or_insert(now);
        self.uploading_at = Some(now);
        self.poison = 0;
        Ok(ArtifactEdit::Replace(artifacts))
    }

    fn complete(&mut self, artifacts: Vec<Artifact>, now: Timestamp) -> Result<ArtifactEdit, Refusal> {
        // Whether its plan was recorded does not matter any more: the manifest says it all.
        if self.prompt.is_none() || artifacts.iter().any(|artifact| artifact.object.is_none()) {
            return Err(Refusal::WrongState);
        }
        self.executing_at.get_or_insert(now);
        self.uploading_at.get_or_insert(now);
        self.poison = 0;
        if self.cancel_requested_at.is_some() {
            return Ok(self.end(TaskState::Cancelled, None, now));
        }
        self.end(TaskState::Completed, None, now);
        Ok(ArtifactEdit::Replace(artifacts))
    }

    fn promote(&mut self, now: Timestamp) -> Result<ArtifactEdit, Refusal> {
        if self.state != TaskState::Scheduled || self.run_at.is_some_and(|at| at > now) {
            return Err(Refusal::WrongState);
        }
        self.state = TaskState::Pending;
        self.run_at = None;
        Ok(ArtifactEdit::Keep)
    }

    fn cancel(&mut self, now: Timestamp) -> ArtifactEdit {
        self.cancel_requested_at.get_or_insert(now);
        if self.state.is_held() {
            return ArtifactEdit::Keep;
        }
        self.end(TaskState::Cancelled, None, now)
    }
}

#[cfg(test)]
pub(crate) mod tests;
