//! What every actor of one comfyd is given: ports, settings and the addresses of its peers. No globals, so that two systems can
//! run in one process.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{self, AtomicBool},
    },
    time::Duration,
};

use crate::{
    backends::BackendsMsg,
    board::Board,
    catalogues::Catalogues,
    comfy_session::SessionMsg,
    domain::{
        health,
        id::{BackendId, WorkerId},
        order::Ordering,
        retry::Backoff,
        tenant::Tenants,
        time::Timestamp,
    },
    http::HttpMsg,
    janitor::JanitorMsg,
    kit::{
        budget::Limits,
        deadline::Deadline,
        service::{Factory, ServiceMsg},
        slot::Slot,
    },
    metrics::Metrics,
    ports::{
        clock::Clock,
        comfy::ComfyTransport,
        edge::HttpEdge,
        hook_sender::HookSender,
        hook_store::HookStore,
        input_files::InputFiles,
        input_store::InputStore,
        media::Media,
        outputs::Outputs,
        store::{Hints, Retention, TaskStore, WorkSource},
        wire::Wire,
    },
    posts::Posts,
    queue::QueueMsg,
    targets::Targets,
    uploads::{UploadsMsg, transfer::Keeper},
    webhooks::{HookSettings, WebhookMsg},
};

/// One comfyd. Clones share everything.
pub type System = Arc<Parts>;

/// The parts of a [`System`].
pub struct Parts {
    /// This incarnation of the process.
    pub worker: WorkerId,
    /// When it started.
    pub started_at: Timestamp,
    /// What it is there for.
    pub role: Role,
    /// The API side of the store; `None` in a consumer that comes to its tasks over HTTP.
    pub store: Option<Arc<dyn TaskStore>>,
    /// The consumer side of the store, or the way to it.
    pub source: Arc<dyn WorkSource>,
    /// What others do to tasks.
    pub hints: Arc<dyn Hints>,
    /// What only the side towards clients needs; `None` in a consumer.
    pub desk: Option<Desk>,
    /// The files of inputs.
    pub files: Arc<dyn InputFiles>,
    /// Notices for processes that share the store.
    pub wire: Arc<dyn Wire>,
    /// Where outputs are kept.
    pub outputs: Arc<dyn Outputs>,
    /// What is done to outputs on their way there.
    pub media: Arc<dyn Media>,
    /// The ComfyUI servers.
    pub backends: BTreeMap<BackendId, Arc<dyn ComfyTransport>>,
    /// The HTTP server.
    pub edge: Arc<dyn HttpEdge>,
    /// Long-lived futures the adapters need (the store's writer), by name, started before all else.
    pub services: Vec<(&'static str, Factory)>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What everybody may see.
    pub board: Board,
    /// What every backend can run.
    pub catalogues: Catalogues,
    /// What is counted and timed.
    pub metrics: Metrics,
    /// Whether there are leases of dead processes to take over.
    pub predecessors: Predecessors,
    /// What was sent to the servers.
    pub posts: Posts,
    /// Until when this process may act on the leases it holds.
    pub deadline: Deadline,
    /// How to behave.
    pub settings: Settings,
    /// Where the actors are.
    pub slots: Slots,
}

/// What a process is there for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Clients and tasks.
    #[default]
    Both,
    /// Clients: it takes tasks in and shows them, and others run them.
    Api,
    /// Tasks: it runs what others took in.
    Consumer,
}

impl Role {
    /// Whether it runs tasks.
    #[must_use]
    pub fn runs_tasks(self) -> bool {
        self != Self::Api
    }
}

/// What only the side towards clients needs.
pub struct Desk {
    /// The task store.
    pub store: Arc<dyn TaskStore>,
    /// What is known of the files clients gave.
    pub inputs: Arc<dyn InputStore>,
    /// Where their bytes are, and those of outputs.
    pub targets: Targets,
    /// The messages to webhooks.
    pub hooks: Arc<dyn HookStore>,
    /// The way to their receivers.
    pub hook_sender: Arc<dyn HookSender>,
}

/// Whether the leases of this node's earlier processes are still to be taken over. Only who was alone at its start may, and only once:
/// whoever holds a lease afterwards may be a process that started later.
#[derive(Debug)]
pub struct Predecessors(AtomicBool);

impl Predecessors {
    /// `dead` when nobody else used the store at the start of this process.
    #[must_use]
    pub fn new(dead: bool) -> Self {
        Self(AtomicBool::new(dead))
    }

    /// Whether they have left something.
    #[must_use]
    pub fn have_left(&self) -> bool {
        self.0.load(atomic::Ordering::Acquire)
    }

    /// It is taken over.
    pub fn are_done(&self) {
        self.0.store(false, atomic::Ordering::Release);
    }
}

/// The addresses of the tree's actors, filled by their supervisors.
#[derive(Clone, Default)]
pub struct Slots {
    /// The queue.
    pub queue: Slot<QueueMsg>,
    /// The supervisor of the uploads.
    pub uploads: Slot<UploadsMsg>,
    /// Who speaks to webhooks.
    pub webhooks: Slot<WebhookMsg>,
    /// The janitor.
    pub janitor: Slot<JanitorMsg>,
    /// The HTTP server's owner.
    pub http: Slot<HttpMsg>,
    /// The supervisor of the sessions.
    pub backends: Slot<BackendsMsg>,
    /// The owners of the adapters' long-lived futures, by name.
    pub services: BTreeMap<&'static str, Slot<ServiceMsg>>,
    /// One session per backend.
    pub sessions: BTreeMap<BackendId, Slot<SessionMsg>>,
}

impl Parts {
    /// The way of outputs into the storage.
    #[must_use]
    pub fn keeper(&self) -> Keeper {
        let largest = self.settings.uploads.largest;
        Keeper { media: self.media.clone(), outputs: self.outputs.clone(), largest }
    }
}

/// How the actors behave. `config/default.toml` is the manual of these.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The process before this one did not stop cleanly: the first prompt of a task that is older than this process is looked for before
    /// it is sent, because the record of having sent it may have been lost with the power.
    pub unclean_start: bool,
    /// Graphs are held against what the backends have, and tasks go where they can run.
    pub validate: bool,
    /// How tasks are ordered.
    pub ordering: Ordering,
    /// Most tasks that may wait.
    pub max_pending: u64,
    /// How many tasks tenants may have.
    pub tenants: Tenants,
    /// Prompts put into a backend's own queue ahead of their turn; 0 = strict priority.
    pub prepare_ahead: usize,
    /// Life of a lease.
    pub lease: Duration,
    /// Time between renewals.
    pub renew_every: Duration,
    /// Attempts of a task that does not say.
    pub max_attempts: i32,
    /// Longest execution of an attempt of a task that does not say.
    pub timeout: Duration,
    /// Delay before another attempt.
    pub retry: Backoff,
    /// How sessions behave.
    pub session: SessionSettings,
    /// How uploads behave.
    pub uploads: UploadSettings,
    /// How webhooks are told.
    pub webhooks: HookSettings,
    /// How long finished tasks are kept.
    pub retention: Retention,
    /// How long after the end of a task it is looked for what runs of it that were given up left in storage.
    pub leftovers: Duration,
    /// Restart budget of every child of the root, and of every session.
    pub restarts: Limits,
    /// How long a backend whose session spent its budget is left alone.
    pub quarantine: Duration,
    /// How long a stop waits for uploads before it hands the rest over.
    pub drain: Duration,
}

/// How a session behaves.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Prefix of our client ids.
    pub client_prefix: String,
    /// Delay before another connection attempt.
    pub reconnect: Backoff,
    /// A POST takes at most this long to arrive after it was sent.
    pub post_timeout: Duration,
    /// An arrived POST is validated and queued within this time.
    pub validate_grace: Duration,
    /// No word about a prompt for this long: ask.
    pub silence: Duration,
    /// An accepted prompt must bring a status frame within this time, else the socket is deaf.
    pub deaf_after: Duration,
    /// A backend unreachable for this long is given up: its tasks go elsewhere.
    pub backend_lost_after: Duration,
    /// A prompt that was asked to stop and did not within this time is abandoned.
    pub stop_grace: Duration,
    /// How long a server is given to free its memory for a task that ran out of it.
    pub free_wait: Duration,
    /// A running prompt that shows no progress for this long is looked into.
    pub quiet_after: Duration,
    /// One that shows none for this long is stuck, unless its task says otherwise.
    pub no_progress_timeout: Duration,
    /// When a server gets no more work, and how it is tested.
    pub health: health::Limits,
    /// How often a server is asked what it has.
    pub nodes_refresh: Duration,
    /// How often at most, when something is missing.
    pub nodes_recheck: Duration,
    /// Servers are asked for pictures of unfinished work of every task, not only of those that want them.
    pub previews: bool,
}

/// How uploads behave.
#[derive(Debug, Clone, Copy)]
pub struct UploadSettings {
    /// Most bytes of one output.
    pub largest: u64,
    /// Transfers at the same time.
    pub parallel: usize,
    /// Tasks whose outputs wait or are being stored; at this many no new work is taken.
    pub max_tasks: usize,
    /// Tries to read one output from its server.
    pub attempts: u32,
    /// Delay before another try.
    pub backoff: Backoff,
    /// How long an unreachable storage is waited for, per task.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let days = |n: u64| seconds(n * 86_400);
        Self {
            unclean_start: false,
            validate: true,
            ordering: Ordering::Aged,
            max_pending: 100_000,
            tenants: Tenants::default(),
            prepare_ahead: 1,
            lease: seconds(30),
            renew_every: seconds(10),
            max_attempts: 3,
            timeout: seconds(3600),
            retry: Backoff { base: seconds(1), cap: seconds(60) },
            session: SessionSettings::default(),
            uploads: UploadSettings::default(),
            webhooks: HookSettings { parallel: 32, ..HookSettings::default() },
            retention: Retention { completed: days(7), failed: days(30), idempotency: days(1), webhooks: days(4) },
            leftovers: Duration::from_secs(3_600),
            restarts: Limits::default(),
            quarantine: seconds(300),
            drain: seconds(10),
        }
    }
}

impl Default for SessionSettings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            client_prefix: "comfyd".to_owned(),
            reconnect: Backoff { base: Duration::from_millis(250), cap: seconds(10) },
            post_timeout: seconds(30),
            validate_grace: seconds(10),
            silence: seconds(1),
            deaf_after: seconds(2),
            backend_lost_after: seconds(300),
            stop_grace: seconds(30),
            free_wait: seconds(10),
            quiet_after: seconds(120),
            no_progress_timeout: seconds(900),
            health: health::Limits::default(),
            nodes_refresh: seconds(300),
            nodes_recheck: seconds(5),
            previews: false,
        }
    }
}

impl Default for UploadSettings {
    fn default() -> Self {
        Self {
            largest: 8 << 30,
            parallel: 4,
            max_tasks: 64,
            attempts: 5,
            backoff: Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) },
            patience: Duration::from_secs(86_400),
        }
    }
}

impl Slots {
    /// Empty slots, one per backend and per service.
    #[must_use]
    pub fn new<'a>(
        backends: impl IntoIterator<Item = &'a BackendId>,
        services: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let sessions = backends.into_iter().map(|id| (id.clone(), Slot::default())).collect();
        let services = services.into_iter().map(|name| (name, Slot::default())).collect();
        Self { sessions, services, ..Self::default() }
    }
}
