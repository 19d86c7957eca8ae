//! The state of one fake server and its life: start, die, come back.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::net::TcpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::config::{FakeConfig, Generation};
use crate::fault::{Fault, Faults, Injection};
use crate::files::{Files, Folder};
use crate::frames;
use crate::gate::Gate;
use crate::http;
use crate::log::{EventKind, Log, wall_ms};
use crate::memory::{Free, Memory};
use crate::net::{self, Doorway, Links, Mode, Peer};
use crate::nodes::{Installed, Lists};
use crate::queue::{Jobs, Prompt, Record, Running};
use crate::socket::Hub;
use crate::worker;

/// What may change while the server runs, outside its memory proper.
#[derive(Debug)]
struct Settings {
    node_time: Duration,
    generation: Generation,
    checkpoints: Vec<String>,
}

/// Whether the server is up, and the tasks that make it so.
#[derive(Debug, Default)]
struct Life {
    worker: Option<JoinHandle<()>>,
    acceptor: Option<JoinHandle<()>>,
    /// Holds the address while the server is down, so that connections are refused and nobody else takes it.
    reserved: Option<TcpSocket>,
}

/// One fake server. Shared by its handlers, its worker and its controls.
#[derive(Debug)]
pub(crate) struct Server {
    pub config: FakeConfig,
    pub addr: SocketAddr,
    pub hub: Hub,
    pub files: Files,
    pub faults: Faults,
    pub gate: Gate,
    pub log: Log,
    pub links: Arc<Links>,
    jobs: Mutex<Jobs>,
    settings: Mutex<Settings>,
    /// Wakes the worker.
    arrived: Notify,
    pub memory: Memory,
    /// Counts the deaths: what was begun before one must not show after it.
    incarnation: AtomicU64,
    life: tokio::sync::Mutex<Life>,
}

impl Server {
    /// Binds the address and starts to serve.
    pub async fn start(config: FakeConfig) -> io::Result<Arc<Self>> {
        let links = Arc::new(Links::default());
        // A reserved address may be shared with ourselves, and must not be with another server of the same user.
        drop(std::net::TcpListener::bind(config.addr)?);
        let doorway = Doorway::open(net::reserve(config.addr)?, links.clone())?;
        let server = Arc::new(Self {
            addr: doorway.addr()?,
            hub: Hub::default(),
            files: Files::new(config.memory_cap),
            faults: Faults::new(),
            gate: Gate::new(),
            log: Log::new(config.log_capacity),
            links,
            jobs: Mutex::default(),
            settings: Mutex::new(Settings {
                node_time: config.node_time,
                generation: config.generation,
                checkpoints: config.checkpoints.clone(),
            }),
            arrived: Notify::new(),
            memory: Memory::new(config.vram),
            incarnation: AtomicU64::new(0),
            life: tokio::sync::Mutex::default(),
            config,
        });
        let mut life = server.life.lock().await;
        server.run(&mut life, doorway);
        drop(life);
        Ok(server)
    }

    fn run(self: &Arc<Self>, life: &mut Life, doorway: Doorway) {
        life.worker = Some(tokio::spawn(worker::work(self.clone())));
        let app = http::router(self.clone()).into_make_service_with_connect_info::<Peer>();
        life.acceptor = Some(tokio::spawn(async move {
            if let Err(error) = axum::serve(doorway, app).await {
                tracing::error!(%error, "the fake server stopped to accept");
            }
        }));
    }

    /// Dies: connections are cut (except the one that asked for it), memory is lost, the address refuses.
    pub async fn go_down(&self, asking: Option<u64>) -> io::Result<()> {
        let mut life = self.life.lock().await;
        if life.reserved.is_some() {
            return Ok(());
        }
        // Before the listener goes: in between, somebody's outgoing connection could be given the port.
        let reserved = net::reserve(self.addr)?;
        stop(life.acceptor.take()).await;
        stop(life.worker.take()).await;
        self.links.set_all(Mode::Closed, asking);
        self.hub.forget_all();
        // The count under the lock: a late result must see either the old memory or the new count.
        let mut jobs = self.jobs();
        self.incarnation.fetch_add(1, Ordering::SeqCst);
        *jobs = Jobs::default();
        drop(jobs);
        self.memory.forget();
        self.files.clear(Folder::Temp);
        life.reserved = Some(reserved);
        self.log.push(EventKind::WentDown);
        Ok(())
    }

    /// Comes back, empty. Does nothing when the server is up.
    pub async fn come_up(self: &Arc<Self>) -> io::Result<()> {
        let mut life = self.life.lock().await;
        let Some(reserved) = life.reserved.take() else {
            return Ok(());
        };
        let doorway = Doorway::open(reserved, self.links.clone())?;
        self.run(&mut life, doorway);
        self.log.push(EventKind::Restarted);
        Ok(())
    }

    /// Stops for good.
    pub async fn shut_down(&self) {
        let mut life = self.life.lock().await;
        stop(life.acceptor.take()).await;
        stop(life.worker.take()).await;
        life.reserved = None;
        self.links.set_all(Mode::Closed, None);
        self.hub.forget_all();
    }

    /// As [`Self::shut_down`], from a place that cannot wait.
    pub fn abort(&self) {
        if let Ok(mut life) = self.life.try_lock() {
            life.acceptor.iter().chain(&life.worker).for_each(JoinHandle::abort);
            // Without it a restart that is under way has nothing to come back to.
            life.reserved = None;
        }
        self.links.set_all(Mode::Closed, None);
        self.hub.forget_all();
    }

    /// Puts a fault in force, or plays it if it acts at once.
    pub async fn inject(self: &Arc<Self>, injection: Injection, asking: Option<u64>) -> io::Result<()> {
        match injection.fault {
            Fault::DropSockets => self.links.set_websockets(Mode::Closed),
            Fault::ResetSockets => self.links.set_websockets(Mode::Reset),
            Fault::HalfOpen => self.links.set_websockets(Mode::Frozen),
            Fault::Deafen => self.hub.forget_all(),
            Fault::FilesGone => {
                self.files.clear(Folder::Output);
                self.files.clear(Folder::Temp);
            }
            Fault::Generation { generation } => self.settings().generation = generation,
            Fault::Kill => self.go_down(asking).await?,
            Fault::Revive => self.come_up().await?,
            Fault::Restart { down } => {
                self.go_down(asking).await?;
                let server = self.clone();
                if down.is_zero() {
                    server.come_up().await?;
                } else {
                    tokio::spawn(async move {
                        tokio::time::sleep(down).await;
                        if let Err(error) = server.come_up().await {
                            tracing::error!(%error, "the fake server could not come back");
                        }
                    });
                }
            }
            _ => self.faults.add(injection),
        }
        Ok(())
    }

    pub fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn generation(&self) -> Generation {
        self.settings().generation
    }

    pub fn node_time(&self) -> Duration {
        self.settings().node_time
    }

    pub fn set_node_time(&self, node_time: Duration) {
        self.settings().node_time = node_time;
    }

    /// Queues a prompt; false is ComfyUI's stumble over a tie, after which the prompt is queued all the same.
    pub fn submit(&self, prompt: Prompt) -> bool {
        let posted = EventKind::Posted {
            prompt_id: prompt.id.clone(),
            client_id: prompt.client_id.clone(),
            task: prompt.task.clone(),
            accepted: true,
        };
        // Told under the lock: the worker must not get ahead of the news.
        let mut jobs = self.jobs();
        let sound = jobs.push(Arc::new(prompt));
        self.log.push(posted);
        self.hub.to_all(frames::status(jobs.remaining(), None));
        drop(jobs);
        self.arrived.notify_one();
        sound
    }

    /// Takes the next prompt for the worker.
    pub fn start_next(&self) -> Option<Running> {
        let mut jobs = self.jobs();
        let running = jobs.start_next(wall_ms())?;
        self.hub.to_all(frames::status(jobs.remaining(), None));
        Some(running)
    }

    pub async fn work_arrived(&self) {
        self.arrived.notified().await;
    }

    pub fn set_current_node(&self, node: &str) {
        if let Some(running) = &mut self.jobs().running {
            running.node = Some(node.to_owned());
        }
    }

    /// Ends the running prompt. Its history is written in the same moment, or `late` by this much.
    pub fn finish(self: &Arc<Self>, record: Record, late: Option<Duration>) {
        let prompt_id = record.prompt.id.clone();
        let finished = EventKind::Finished { prompt_id: prompt_id.clone(), outcome: record.outcome };
        let capacity = self.config.history_capacity;
        let mut jobs = self.jobs();
        jobs.running = None;
        self.log.push(finished);
        match late {
            None => {
                jobs.history.insert(record, capacity);
                self.log.push(EventKind::Recorded { prompt_id });
            }
            Some(delay) => {
                let server = self.clone();
                let incarnation = self.incarnation.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    server.record_late(record, incarnation);
                });
            }
        }
        self.hub.to_all(frames::status(jobs.remaining(), None));
    }

    /// Writes a late result, unless the server died since.
    fn record_late(&self, record: Record, incarnation: u64) {
        let mut jobs = self.jobs();
        if self.incarnation.load(Ordering::SeqCst) == incarnation {
            let prompt_id = record.prompt.id.clone();
            jobs.history.insert(record, self.config.history_capacity);
            self.log.push(EventKind::Recorded { prompt_id });
        }
    }

    /// Removes waiting prompts; tells whether there was any.
    pub fn delete_pending(&self, ids: &[String]) -> bool {
        let mut jobs = self.jobs();
        let deleted: Vec<&String> = ids.iter().filter(|id| jobs.delete(id)).collect();
        for id in &deleted {
            self.log.push(EventKind::Deleted { prompt_id: (*id).clone() });
            self.hub.to_all(frames::status(jobs.remaining(), None));
        }
        !deleted.is_empty()
    }

    pub fn clear_pending(&self) {
        let mut jobs = self.jobs();
        for prompt_id in jobs.clear_pending() {
            self.log.push(EventKind::Deleted { prompt_id });
        }
        self.hub.to_all(frames::status(jobs.remaining(), None));
    }

    /// Interrupts the running prompt, or only this one; tells whether it was hit.
    pub fn interrupt(&self, id: Option<&str>) -> bool {
        // The log under the lock: the prompt must not end before its interrupt is written down.
        let jobs = self.jobs();
        let hit = jobs.interrupt(id);
        let was_hit = hit.is_some();
        if let Some(prompt_id) = hit {
            self.log.push(EventKind::Interrupted { prompt_id });
        }
        was_hit
    }

    /// Asks the worker to free memory after the current prompt.
    pub fn request_free(&self, wish: Free) {
        self.memory.request(wish);
        self.arrived.notify_one();
    }

    /// The object of `/features` and of the feature flag handshake.
    pub fn features(&self) -> Json {
        if self.generation().has_jobs_api() {
            json!({
                "supports_preview_metadata": true,
                "supports_model_type_tags": true,
                "max_upload_size": self.config.max_body,
                "extension": {"manager": {"supports_v4": true}},
                "node_replacements": true,
                "assets": false,
            })
        } else {
            json!({"supports_preview_metadata": true, "max_upload_size": self.config.max_body})
        }
    }

    /// The names `CheckpointLoaderSimple` offers now.
    pub fn checkpoints(&self) -> Vec<String> {
        self.settings().checkpoints.clone()
    }

    pub fn set_checkpoints(&self, checkpoints: Vec<String>) {
        self.settings().checkpoints = checkpoints;
    }

    pub fn installed(&self) -> Installed<'_> {
        Installed { missing: &self.config.missing_classes, copies: self.config.copies }
    }

    pub fn lists(&self) -> Lists<'_> {
        Lists { checkpoints: self.checkpoints(), loras: &self.config.loras, files: &self.files }
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a task and waits until it is gone, with everything it holds.
async fn stop(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
        // The only outcome is "cancelled" or an end of its own, and both are fine.
        let _ = task.await;
    }
}
