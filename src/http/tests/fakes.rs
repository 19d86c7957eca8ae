//! A service whose queue, store, storage and servers are tables in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use bytes::Bytes;
use comfyd_actors::{
    board::Board,
    bridge::{Bridge, Parts, RequestError, TaskRequest, Wish},
    catalogues::Catalogues,
    domain::{
        artifact::FileRef,
        catalogue::Catalogue,
        event::Event,
        health::Load,
        id::{BackendId, ClientId, PromptId, TaskId, WorkerId},
        lane::Lane,
        order::{Ordering, Priority},
        prompt::{Abilities, Finished, Receipt, Sighting},
        task::{Change, Fence, Task, TaskState},
        time::Timestamp,
    },
    kit::slot::Slot,
    metrics::Metrics,
    ports::{
        ByteStream,
        comfy::{ComfyError, ComfyTransport, Download, Signals, Submission, SubmitError, Upload, UploadError, Wanted},
        object_store::{ByteRange, ObjectError, ObjectStore, Reading, Written},
        passthrough::{FromClient, FromServer, Relay, RelayError, Relayed},
        store::{
            Changed, Claim, Counts, Created, Creation, Depth, FailedQuery, Hold, NewTask, Pausable, Pause, Query,
            Retention, StoreError, TaskRecord, TaskStore,
        },
    },
    queue::QueueMsg,
    targets::Targets,
    testing::{MemoryStore, TestClock},
};
use futures_util::StreamExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{
    config::Sources,
    http::{HttpConfig, router},
    workflows::Workflows,
};

/// What the fakes share.
pub struct World {
    pub records: Mutex<HashMap<TaskId, TaskRecord>>,
    pub requests: Mutex<Vec<TaskRequest>>,
    pub refuse: Mutex<Option<RequestError>>,
    pub store_down: Mutex<bool>,
    pub objects: Mutex<HashMap<String, Bytes>>,
    pub events: Mutex<Vec<Event>>,
    pub changes: broadcast::Sender<Changed>,
    pub board: Board,
    pub catalogues: Catalogues,
}

/// A router and the world behind it.
pub struct App {
    pub router: Router,
    pub world: Arc<World>,
    pub slot: Slot<QueueMsg>,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl App {
    pub async fn start() -> Self {
        Self::with(|_| {}, vec![FakeComfy::up("http://a")]).await
    }

    pub async fn with(alter: impl FnOnce(&mut HttpConfig), backends: Vec<Arc<dyn ComfyTransport>>) -> Self {
        let (bridge, world, slot) = parts(backends).await;
        let mut config = HttpConfig::from(&crate::config::read(Sources::default()).config);
        config.body_limit = 1 << 20;
        alter(&mut config);
        let workflows = workflows().await;
        Self { router: router(bridge, Arc::new(config), workflows, None, CancellationToken::new()), world, slot }
    }

    /// A bridge alone.
    pub async fn bridge() -> Bridge {
        parts(Vec::new()).await.0
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        // A stream of events has no end.
        let endless = parts.headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let body = if endless { Bytes::new() } else { to_bytes(body, usize::MAX).await.unwrap() };
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.send(request.body(body.into()).unwrap()).await
    }

    pub async fn create(&self, body: Value) -> Answer {
        self.post("/api/tasks/create", body.to_string()).await
    }

    /// Creates a task and alters its record.
    pub async fn task(&self, alter: impl FnOnce(&mut TaskRecord)) -> TaskId {
        let answer = self.create(json!({"workflow": "text-to-image", "inputs": {"prompt": "x"}})).await;
        let id: TaskId = answer.json()["task_id"].as_str().unwrap().parse().unwrap();
        let mut records = self.world.records.lock().unwrap();
        alter(records.get_mut(&id).unwrap());
        id
    }

    /// Ends a task as another part of the service would.
    pub fn finish(&self, id: TaskId, state: TaskState) {
        self.world.records.lock().unwrap().get_mut(&id).unwrap().task.state = state;
        let _ = self.world.changes.send(Changed {
            id,
            was: Some(TaskState::Pending),
            state,
            priority: Priority::default(),
            cancelling: false,
            hooked: false,
            of_tenant: false,
            here: true,
        });
    }
}

/// What is built in, and a store for what is published.
pub async fn workflows() -> Arc<Workflows> {
    let store = MemoryStore::new(Arc::new(TestClock::default()));
    Arc::new(Workflows::open(Path::new("/nowhere"), Arc::new(store)).await.unwrap())
}

async fn parts(backends: Vec<Arc<dyn ComfyTransport>>) -> (Bridge, Arc<World>, Slot<QueueMsg>) {
    let world = Arc::new(World {
        records: Mutex::default(),
        requests: Mutex::default(),
        refuse: Mutex::default(),
        store_down: Mutex::default(),
        objects: Mutex::default(),
        events: Mutex::default(),
        changes: broadcast::channel(16).0,
        board: Board::default(),
        catalogues: Catalogues::new(backends.iter().map(|backend| backend.id().clone())),
    });
    let (queue, _) = Actor::spawn(None, FakeQueue(world.clone()), ()).await.unwrap();
    let slot = Slot::default();
    slot.fill(queue);
    let memory = Arc::new(MemoryStore::new(Arc::new(TestClock::default())));
    let bridge = Bridge::new(Parts {
        queue: slot.clone(),
        store: Arc::new(FakeStore(world.clone())),
        inputs: memory.clone(),
        hooks: memory,
        webhooks: Slot::default(),
        targets: Targets::single(Arc::new(FakeObjects(world.clone()))),
        backends,
        board: world.board.clone(),
        catalogues: world.catalogues.clone(),
        sessions: BTreeMap::new(),
        validate: true,
        metrics: Metrics::new().unwrap(),
        clock: Arc::new(TestClock::default()),
    });
    (bridge, world, slot)
}

fn new_task(request: &TaskRequest) -> Task {
    let now = Timestamp(1_700_000_000_000);
    Task {
        id: TaskId::new(),
        tenant: request.tenant,
        lane: request.lane.id,
        workflow: request.workflow.clone(),
        priority: request.priority,
        sort_key: 0,
        queued_at: now,
        state: TaskState::Pending,
        generation: 1,
        uploads_only: false,
        fence: Fence(0),
        dispatch: 0,
        attempt: 1,
        max_attempts: request.max_attempts.unwrap_or(3),
        poison: 0,
        ooms: 0,
        timeout: request.timeout,
        lease: None,
        prompt: None,
        run_at: None,
        cancel_requested_at: None,
        created_at: now,
        started_at: None,
        executing_at: None,
        uploading_at: None,
        finished_at: None,
        error: None,
        hook: None,
    }
}

struct FakeQueue(Arc<World>);

impl FakeQueue {
    fn submit(&self, request: TaskRequest) -> Result<Created, RequestError> {
        if let Some(error) = self.0.refuse.lock().unwrap().clone() {
            return Err(error);
        }
        let mut requests = self.0.requests.lock().unwrap();
        let mut records = self.0.records.lock().unwrap();
        if let Some(wanted) = &request.idempotency {
            let before = requests.iter().position(|r| r.idempotency.as_ref().is_some_and(|i| i.key == wanted.key));
            if let Some(index) = before {
                let same = requests[index].idempotency.as_ref() == Some(wanted);
                let oldest = records.values().find(|r| r.inputs == requests[index].payload.inputs).unwrap();
                return Ok(if same { Created::Replayed(oldest.task.clone()) } else { Created::KeyReused });
            }
        }
        let task = new_task(&request);
        let (inputs, metadata) = (request.payload.inputs.clone(), request.payload.metadata.clone());
        records.insert(
            task.id,
            TaskRecord {
                task: task.clone(),
                inputs,
                metadata,
                options: request.payload.options.clone(),
                needs: request.lane.needs.clone(),
                artifacts: Vec::new(),
                nodes: Vec::new(),
            },
        );
        requests.push(request);
        Ok(Created::New(task))
    }

    fn amend(&self, id: TaskId, wish: Wish) -> Result<Task, RequestError> {
        let mut records = self.0.records.lock().unwrap();
        let record = records.get_mut(&id).ok_or(StoreError::NotFound)?;
        let ordering = Ordering::Aged;
        let change = match wish {
            Wish::Cancel => Change::Cancel,
            Wish::Prioritize(priority) => Change::Reprioritize { priority, ordering },
            Wish::Again => Change::Reopen { ordering },
            Wish::UploadsAgain => Change::ReopenUploads { worker: WorkerId::new("fake:1") },
        };
        if !record.task.fulfils(&change) {
            record.task.apply(None, change, Timestamp(1_700_000_001_000)).map_err(StoreError::from)?;
        }
        Ok(record.task.clone())
    }

    fn set_paused(&self, what: Pausable, hold: Hold) -> Vec<Pause> {
        let mut pauses = self.0.board.pauses();
        pauses.retain(|pause| pause.what != what);
        let since = Timestamp(1_700_000_001_000);
        match hold {
            Hold::Resume => {}
            Hold::Pause => pauses.push(Pause { what, since, move_at: None }),
            Hold::Drain { move_at } => pauses.push(Pause { what, since, move_at }),
        }
        self.0.board.set_pauses(&pauses);
        pauses
    }
}

impl Actor for FakeQueue {
    type Msg = QueueMsg;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<QueueMsg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<QueueMsg>, message: QueueMsg, (): &mut ()) -> Result<(), ActorProcessingErr> {
        match message {
            QueueMsg::Submit { request, reply } => drop(reply.send(self.submit(*request))),
            QueueMsg::Amend { id, wish, reply } => drop(reply.send(self.amend(id, wish))),
            QueueMsg::SetPaused { what, hold, reply } => drop(reply.send(Ok(self.set_paused(what, hold)))),
            QueueMsg::Running { reply } => {
                let records = self.0.records.lock().unwrap();
                let running = records.values().filter(|r| r.task.state == TaskState::Executing).map(|r| r.task.id);
                drop(reply.send(running.collect()));
            }
            other => unreachable!("no handler sends {other:?}"),
        }
        Ok(())
    }
}

struct FakeStore(Arc<World>);

impl FakeStore {
    fn up(&self) -> Result<(), StoreError> {
        let down = *self.0.store_down.lock().unwrap();
        if down { Err(StoreError::Unavailable("secret path".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl TaskStore for FakeStore {
    async fn create(&self, _: NewTask, _: Option<Claim>) -> Result<Creation, StoreError> {
        unreachable!("the fake queue creates")
    }

    async fn amend(&self, _: TaskId, _: Change) -> Result<Task, StoreError> {
        unreachable!("the fake queue amends")
    }

    async fn get(&self, id: TaskId) -> Result<TaskRecord, StoreError> {
        self.up()?;
        self.0.records.lock().unwrap().get(&id).cloned().ok_or(StoreError::NotFound)
    }

    async fn list(&self, query: Query) -> Result<Vec<Task>, StoreError> {
        self.up()?;
        let records = self.0.records.lock().unwrap();
        let mut tasks: Vec<Task> = records.values().map(|record| record.task.clone()).collect();
        tasks.sort_by_key(|task| std::cmp::Reverse((task.created_at, task.id)));
        tasks.retain(|task| query.states.is_empty() || query.states.contains(&task.state));
        tasks.retain(|task| query.workflow.is_none() || query.workflow == task.workflow);
        tasks.retain(|task| query.before.is_none_or(|before| (task.created_at, task.id) < before));
        tasks.truncate(query.limit as usize);
        Ok(tasks)
    }

    async fn failed(&self, query: FailedQuery) -> Result<Vec<Task>, StoreError> {
        self.up()?;
        let records = self.0.records.lock().unwrap();
        let class = |task: &Task| task.error.as_ref().map(|error| error.class);
        let mut tasks: Vec<Task> = records.values().map(|record| record.task.clone()).collect();
        tasks.sort_by_key(|task| std::cmp::Reverse((task.finished_at, task.id)));
        tasks.retain(|task| task.state == TaskState::Failed);
        tasks
            .retain(|task| query.classes.is_empty() || class(task).is_some_and(|class| query.classes.contains(&class)));
        tasks.retain(|task| query.workflow.is_none() || query.workflow == task.workflow);
        tasks.retain(|task| query.before.is_none_or(|(at, id)| (task.finished_at, task.id) < (Some(at), id)));
        tasks.truncate(query.limit as usize);
        Ok(tasks)
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        let pending = self.0.records.lock().unwrap().len() as u64;
        Ok(Counts { scheduled: 0, pending, held: 0 })
    }

    async fn waiting(&self) -> Result<Vec<(Lane, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn crowd(&self, _: BTreeSet<i64>, _: u32) -> Result<u32, StoreError> {
        unreachable!("the queue counts")
    }

    async fn depths(&self) -> Result<Vec<Depth>, StoreError> {
        Ok(Vec::new())
    }

    async fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        unreachable!("the queue reads them")
    }

    async fn set_paused(&self, _: Pausable, _: Hold) -> Result<Vec<Pause>, StoreError> {
        unreachable!("the queue pauses")
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.up()
    }

    async fn events(&self, of: Option<TaskId>, after: i64, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.up()?;
        let events = self.0.events.lock().unwrap();
        let wanted = events.iter().filter(|event| event.seq > after && of.is_none_or(|id| event.task == id));
        Ok(wanted.take(limit as usize).cloned().collect())
    }

    async fn newest_event(&self) -> Result<i64, StoreError> {
        self.up()?;
        Ok(self.0.events.lock().unwrap().last().map_or(0, |event| event.seq))
    }

    async fn ahead(&self, id: TaskId, _: u32) -> Result<Option<u32>, StoreError> {
        self.up()?;
        let records = self.0.records.lock().unwrap();
        Ok(records.get(&id).filter(|record| record.task.state == TaskState::Pending).map(|_| 0))
    }

    async fn promote(&self, _: u32) -> Result<u32, StoreError> {
        unreachable!("the janitor promotes")
    }

    async fn next_scheduled(&self) -> Result<Option<Timestamp>, StoreError> {
        unreachable!("the janitor promotes")
    }

    async fn prune(&self, _: Retention, _: u32) -> Result<u32, StoreError> {
        unreachable!("the janitor prunes")
    }

    async fn unswept(&self, _: TaskState, _: Timestamp, _: u32) -> Result<Vec<Task>, StoreError> {
        unreachable!("the janitor sweeps")
    }

    async fn note_swept(&self, _: TaskState, _: (Timestamp, TaskId)) -> Result<(), StoreError> {
        unreachable!("the janitor sweeps")
    }

    fn changes(&self) -> broadcast::Receiver<Changed> {
        self.0.changes.subscribe()
    }
}

struct FakeObjects(Arc<World>);

#[async_trait]
impl ObjectStore for FakeObjects {
    async fn put(&self, _: &str, _: &str, _: Option<u64>, _: ByteStream) -> Result<Written, ObjectError> {
        unreachable!("the edge stores nothing")
    }

    async fn size(&self, key: &str) -> Result<u64, ObjectError> {
        self.0.objects.lock().unwrap().get(key).map(|bytes| bytes.len() as u64).ok_or(ObjectError::NotFound)
    }

    async fn open(&self, key: &str, range: Option<ByteRange>) -> Result<Reading, ObjectError> {
        let whole = self.0.objects.lock().unwrap().get(key).cloned().ok_or(ObjectError::NotFound)?;
        let part = match range {
            Some(ByteRange { first, last }) => {
                whole.slice(usize::try_from(first).unwrap()..=usize::try_from(last).unwrap())
            }
            None => whole.clone(),
        };
        let body = futures_util::stream::once(async move { Ok(part) }).boxed();
        Ok(Reading { bytes: whole.len() as u64, body })
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.0.objects.lock().unwrap().remove(key);
        Ok(())
    }

    async fn list(&self, _: &str, _: usize) -> Result<Vec<String>, ObjectError> {
        unreachable!("the janitor looks for what is left over")
    }

    async fn check(&self) -> Result<(), ObjectError> {
        Ok(())
    }
}

/// A server that answers two questions, or none.
pub struct FakeComfy {
    id: BackendId,
    up: bool,
    tunnel: Mutex<Option<FromServer>>,
}

impl FakeComfy {
    pub fn up(id: &str) -> Arc<dyn ComfyTransport> {
        Arc::new(Self { id: BackendId::new(id), up: true, tunnel: Mutex::default() })
    }

    pub fn down(id: &str) -> Arc<dyn ComfyTransport> {
        Arc::new(Self { id: BackendId::new(id), up: false, tunnel: Mutex::default() })
    }

    /// Lets one client in, who hears this.
    pub fn with_tunnel(id: &str, tunnel: FromServer) -> Arc<dyn ComfyTransport> {
        Arc::new(Self { id: BackendId::new(id), up: true, tunnel: Mutex::new(Some(tunnel)) })
    }

    fn answer(&self, value: Value) -> Result<Value, ComfyError> {
        if self.up { Ok(value) } else { Err(ComfyError::Unavailable("refused".into())) }
    }
}

#[async_trait]
impl ComfyTransport for FakeComfy {
    fn id(&self) -> &BackendId {
        &self.id
    }

    async fn check(&self) -> Result<Abilities, ComfyError> {
        unreachable!()
    }

    async fn connect(&self, _: &ClientId) -> Result<Signals, ComfyError> {
        unreachable!()
    }

    async fn submit(&self, _: &Submission) -> Result<Receipt, SubmitError> {
        unreachable!()
    }

    async fn look(&self, _: &Wanted) -> Result<Sighting, ComfyError> {
        unreachable!()
    }

    async fn history(&self, _: &PromptId) -> Result<Option<Finished>, ComfyError> {
        unreachable!()
    }

    async fn cancel(&self, _: &PromptId) -> Result<(), ComfyError> {
        unreachable!()
    }

    async fn withdraw(&self, _: &PromptId) -> Result<(), ComfyError> {
        unreachable!()
    }

    async fn forget(&self, _: &[PromptId]) -> Result<(), ComfyError> {
        unreachable!()
    }

    async fn free(&self) -> Result<(), ComfyError> {
        Ok(())
    }

    async fn drop_cache(&self) -> Result<(), ComfyError> {
        Ok(())
    }

    async fn load(&self) -> Result<Load, ComfyError> {
        unreachable!("sessions ask for it")
    }

    async fn view(&self, _: &FileRef) -> Result<Download, ComfyError> {
        unreachable!()
    }

    async fn object_info(&self) -> Result<Catalogue, ComfyError> {
        unreachable!("sessions ask for it")
    }

    async fn upload(&self, _: Upload) -> Result<String, UploadError> {
        unreachable!()
    }

    async fn queue(&self) -> Result<Value, ComfyError> {
        self.answer(json!({"queue_running": [[0, "p1", {}, {}, []]], "queue_pending": [[1, "p2", {}, {}, []], [2, "p3", {}, {}, []]]}))
    }

    async fn system_stats(&self) -> Result<Value, ComfyError> {
        self.answer(json!({"system": {"os": "posix"}, "devices": [], "from": self.id.as_str()}))
    }

    async fn relay(&self, _: Relay) -> Result<Relayed, RelayError> {
        Err(RelayError::NotConnected("refused".into()))
    }

    async fn tunnel(&self, _: Relay, _: FromClient) -> Result<FromServer, RelayError> {
        self.tunnel.lock().unwrap().take().ok_or_else(|| RelayError::NotConnected("refused".into()))
    }
}

/// The limit of a full queue.
pub fn full() -> RequestError {
    RequestError::Full { pending: 5, limit: 5, retry_after: Duration::from_millis(2_500) }
}
