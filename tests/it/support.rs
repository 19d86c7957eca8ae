//! A whole comfyd in this process, with real SQLite, real files, real HTTP, and fake ComfyUI servers that break on command.

use std::{net::SocketAddr, ops::Deref, sync::Arc, time::Duration};

use comfyd::{
    app::App,
    clock::SystemClock,
    config::{self, Config, Sources},
};
use comfyd_actors::{
    domain::id::{BackendId, TaskId},
    kit::slot::Slot,
    ports::clock::Clock,
    system::{Desk, System},
};
use fake_comfyui::{Control, EventKind, FakeComfy, FakeConfig};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A test that waits longer than this has failed. Far above what a loaded machine needs: nothing is asserted about speed here.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Settings that shorten what a test would wait for, and widen what it would use up. The promises do not depend on any of them.
const FAST: &[(&str, &str)] = &[
    ("COMFYD_COMFYUI__VALIDATE_GRACE", "500ms"),
    ("COMFYD_COMFYUI__RECONNECT_BASE", "20ms"),
    ("COMFYD_COMFYUI__RECONNECT_CAP", "200ms"),
    ("COMFYD_COMFYUI__SILENCE", "200ms"),
    ("COMFYD_COMFYUI__DEAF_AFTER", "500ms"),
    ("COMFYD_COMFYUI__STOP_GRACE", "3s"),
    ("COMFYD_COMFYUI__NODES_RECHECK", "0s"),
    ("COMFYD_HEALTH__PAUSE_BASE", "50ms"),
    ("COMFYD_HEALTH__PAUSE_CAP", "500ms"),
    ("COMFYD_TASKS__RETRY_BASE", "10ms"),
    ("COMFYD_TASKS__RETRY_CAP", "50ms"),
    ("COMFYD_TASKS__UPLOAD_RETRY_BASE", "10ms"),
    ("COMFYD_TASKS__UPLOAD_RETRY_CAP", "50ms"),
    ("COMFYD_SUPERVISION__MAX_RESTARTS", "1000000"),
    ("COMFYD_SUPERVISION__BACKOFF_BASE", "5ms"),
    ("COMFYD_SUPERVISION__BACKOFF_CAP", "20ms"),
    ("COMFYD_SERVER__DRAIN_DELAY", "0s"),
    ("COMFYD_SERVER__DRAIN_GRACE", "2s"),
];

/// What a world is made of.
pub struct Builder {
    fakes: Vec<FakeConfig>,
    settings: Vec<(String, String)>,
    clock: Arc<dyn Clock>,
}

/// A comfyd as its clients see it.
#[derive(Clone)]
pub struct Api {
    pub client: Client,
    base: String,
}

/// A running world.
pub struct World {
    pub app: App,
    pub fakes: Vec<FakeComfy>,
    api: Api,
    settings: Vec<(String, String)>,
    pub dir: TempDir,
}

/// A world with one fake that takes no time.
pub fn world() -> Builder {
    Builder { fakes: vec![FakeConfig::default()], settings: Vec::new(), clock: Arc::new(SystemClock::start()) }
}

impl Builder {
    /// These fakes instead.
    pub fn fakes(mut self, fakes: impl IntoIterator<Item = FakeConfig>) -> Self {
        self.fakes = fakes.into_iter().collect();
        self
    }

    /// One setting, by its environment name.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// By this clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Starts it and waits until every backend is online.
    pub async fn start(self) -> World {
        let mut fakes = Vec::new();
        for config in self.fakes {
            fakes.push(FakeComfy::start(config).await.unwrap());
        }
        let dir = tempfile::tempdir().unwrap();
        let app = App::start_at(&config(&dir, &fakes, &self.settings), self.clock.clone()).await.unwrap();
        let api = Api::new(app.address());
        let world = World { app, fakes, api, settings: self.settings, dir };
        world.online().await;
        if world.system().settings.validate {
            world.surveyed().await;
        }
        world
    }
}

/// The configuration of a world: defaults, then what makes tests fast, then what the test asks for.
fn config(dir: &TempDir, fakes: &[FakeComfy], settings: &[(String, String)]) -> Config {
    let loaded = config::read(Sources { env: environment(dir, &urls(fakes), settings), ..Sources::default() });
    assert!(loaded.faults.is_empty(), "{:?}", loaded.faults);
    loaded.config
}

fn urls(fakes: &[FakeComfy]) -> String {
    fakes.iter().map(FakeComfy::url).collect::<Vec<_>>().join(",")
}

/// The same as environment variables, for a real process too.
pub fn environment(dir: &TempDir, comfyui: &str, settings: &[(String, String)]) -> Vec<(String, String)> {
    let own = |name: &str, value: String| (name.to_owned(), value);
    let mut env: Vec<_> = FAST.iter().map(|(name, value)| own(name, (*value).to_owned())).collect();
    env.push(own("COMFYUI_URL", comfyui.to_owned()));
    env.push(own("PORT", "0".to_owned()));
    env.push(own("DATABASE_URL", format!("sqlite://{}/comfyd.db", dir.path().display())));
    env.push(own("STORAGE_LOCAL_DIR", format!("{}/outputs", dir.path().display())));
    env.push(own("COMFYD_WORKFLOWS__DIR", format!("{}/config/workflows", dir.path().display())));
    env.push(own("COMFYD_LOG__DIR", format!("{}/logs", dir.path().display())));
    for (name, value) in settings {
        env.retain(|(known, _)| known != name);
        env.push(own(name, value.clone()));
    }
    env
}

impl Api {
    pub fn new(address: SocketAddr) -> Self {
        comfyd::tls::install_crypto_provider();
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { client, base: format!("http://{address}") }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Waits until every backend is online and given tasks.
    pub async fn online(&self) {
        let takes = |backend: &Value| backend["phase"] == "online" && backend["health"]["breaker"] == "closed";
        self.until_status(|status| {
            let backends = status["backends"].as_array().unwrap();
            !backends.is_empty() && backends.iter().all(takes)
        })
        .await;
    }

    /// Waits until every backend has told what it has.
    pub async fn surveyed(&self) {
        let told = |status: &Value| status["backends"].as_array().unwrap().iter().all(|it| it["nodes"].is_u64());
        self.until_status(told).await;
    }

    /// Waits until `/api/status` looks like that.
    pub async fn until_status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until("/api/status", wanted).await
    }

    /// Waits until a page looks like that: levels without an event for clients.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let looks = async {
            loop {
                let page = self.get_now(path).await;
                if wanted(&page) {
                    return page;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looks).await.unwrap_or_else(|_| panic!("{path} does not become what it should"))
    }

    /// Sends a create request.
    pub async fn post(&self, body: &Value) -> Response {
        self.client.post(self.url("/api/tasks/create")).json(body).send().await.unwrap()
    }

    /// Creates a task that must be accepted; returns its id.
    pub async fn create(&self, body: &Value) -> String {
        let response = self.post(body).await;
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        answer["task_id"].as_str().unwrap().to_owned()
    }

    /// Creates a task as a sensible client does: with a key, again and again while the service is restarting something.
    pub async fn create_stubbornly(&self, body: &Value, key: &str) -> String {
        loop {
            let request = self.client.post(self.url("/api/tasks/create")).json(body).header("Idempotency-Key", key);
            match request.send().await {
                Ok(response) if response.status().is_success() => {
                    let answer: Value = response.json().await.unwrap();
                    return answer["task_id"].as_str().unwrap().to_owned();
                }
                Ok(response) => assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE),
                // The HTTP server was restarted under our feet.
                Err(error) => assert!(!error.is_timeout(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A GET that must succeed; again while the HTTP server is being restarted. A task is waited for.
    pub async fn get(&self, path: &str) -> Value {
        self.get_with(path, "wait=30").await
    }

    /// As [`Self::get`], and a task is shown as it is.
    pub async fn get_now(&self, path: &str) -> Value {
        self.get_with(path, "wait=0").await
    }

    async fn get_with(&self, path: &str, prefer: &str) -> Value {
        loop {
            match self.client.get(self.url(path)).header("Prefer", prefer).send().await {
                Ok(response) if response.status() == StatusCode::OK => match response.json().await {
                    Ok(value) => return value,
                    Err(error) => assert!(!error.is_timeout(), "{error}"),
                },
                Ok(response) => assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}"),
                Err(error) => assert!(!error.is_timeout(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The task once it is over.
    pub async fn finished(&self, id: &str) -> Value {
        let over = async {
            loop {
                let task = self.get(&format!("/api/tasks/{id}")).await;
                if matches!(task["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
                    return task;
                }
            }
        };
        tokio::time::timeout(PATIENCE, over).await.unwrap_or_else(|_| panic!("task {id} does not end"))
    }

    /// The task, which must have completed with all its bytes in place.
    pub async fn completed(&self, id: &str) -> Value {
        let task = self.finished(id).await;
        assert_eq!(task["status"], "completed", "{task}");
        let outputs = task["outputs"].as_array().unwrap();
        assert!(!outputs.is_empty(), "{task}");
        for output in outputs {
            let url = self.url(&format!("/api/tasks/{id}/outputs/{}", output["index"]));
            let bytes = self.client.get(url).send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap();
            assert_eq!(bytes.len() as u64, output["bytes"].as_u64().unwrap());
            assert_eq!(sha256(&bytes), output["sha256"].as_str().unwrap());
        }
        task
    }

    pub async fn cancel(&self, id: &str) -> (StatusCode, Value) {
        let response = self.client.post(self.url(&format!("/api/tasks/{id}/cancel"))).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }
}

impl Deref for World {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl World {
    /// Ports, settings and addresses.
    /// What its side towards clients stands on.
    pub fn desk(&self) -> &Desk {
        self.system().desk.as_ref().unwrap()
    }

    pub fn system(&self) -> &System {
        self.app.system()
    }

    /// The first fake's controls.
    pub fn fake(&self) -> Control {
        self.fakes[0].control()
    }

    /// Waits until a prompt of the task runs on some fake, and returns which.
    pub async fn running(&self, id: &str) -> usize {
        let waits = self.fakes.iter().enumerate().map(|(index, fake)| {
            let (control, id) = (fake.control(), id.to_owned());
            Box::pin(async move {
                let is_it =
                    |event: &EventKind| matches!(event, EventKind::Started { task: Some(task), .. } if *task == id);
                control.wait_for(is_it).await;
                index
            })
        });
        let first = futures_util::future::select_all(waits);
        tokio::time::timeout(PATIENCE, first).await.expect("the task does not start").0
    }

    /// How often prompts of the task ran, on all fakes.
    pub fn executions(&self, id: &str) -> usize {
        self.fakes.iter().map(|fake| fake.control().executions_of_task(id)).sum()
    }

    /// Kills the actor behind an address, as a bug would, waiting for it if it is just being restarted; returns when it is dead and its
    /// supervisor knows.
    pub async fn kill<M: ractor::Message>(&self, slot: &Slot<M>) {
        let mut address = slot.watch();
        let killed = async {
            let actor = address.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            let _ = actor.kill_and_wait(None).await;
            address.wait_for(|now| now.as_ref().is_none_or(|now| now.get_id() != actor.get_id())).await.unwrap();
        };
        tokio::time::timeout(PATIENCE, killed).await.expect("a killed actor's supervisor does not notice");
    }

    /// The address of a backend's session.
    pub fn session(&self, index: usize) -> &Slot<comfyd_actors::comfy_session::SessionMsg> {
        &self.system().slots.sessions[&BackendId::new(self.fakes[index].url())]
    }

    /// Starts a second one on the same data.
    pub async fn beside(&self) -> (App, Api) {
        let app = App::start(&config(&self.dir, &self.fakes, &self.settings)).await.unwrap();
        let api = Api::new(app.address());
        api.online().await;
        (app, api)
    }

    /// Stops the service in good order and starts it again on the same data.
    pub async fn restart(mut self) -> Self {
        self.app.shut_down();
        self.app.ended().await.unwrap();
        self.start_again().await
    }

    /// Starts the service, which has ended, again on the same data.
    pub async fn start_again(self) -> Self {
        drop(self.app);
        let app = App::start(&config(&self.dir, &self.fakes, &self.settings)).await.unwrap();
        let api = Api::new(app.address());
        Self { app, api, ..self }
    }
}

/// A graph that takes no model: an image of one colour, saved.
pub fn image(color: u32) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "it"}},
    })
}

/// The body that runs it.
pub fn task(color: u32) -> Value {
    json!({"workflow": image(color)})
}

/// As [`task`], with more fields.
pub fn task_with(color: u32, more: &Value) -> Value {
    let mut body = task(color);
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub fn id(text: &str) -> TaskId {
    text.parse().unwrap()
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
