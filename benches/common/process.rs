//! The processes that are measured: the fake ComfyUI and comfyd itself.

use std::{
    env,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fake_comfyui::{Event, EventKind, FakeComfy, FakeConfig};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::{PATIENCE, client};

/// Tells a process started by a benchmark that it is the fake.
const FAKE: &str = "COMFYD_BENCH_FAKE";
/// Tells the fake how many copies of its classes it has.
const COPIES: &str = "COMFYD_BENCH_COPIES";

pub fn is_fake() -> bool {
    env::var_os(FAKE).is_some()
}

/// Serves until it is killed; says where on its first line.
pub async fn fake() {
    let copies = env::var(COPIES).ok().and_then(|copies| copies.parse().ok()).unwrap_or(0);
    let fake = FakeComfy::start(FakeConfig { copies, ..FakeConfig::default() }).await.expect("the fake starts");
    println!("{}", fake.url());
    std::future::pending::<()>().await;
    drop(fake);
}

/// More lines of the fake's log than a prompt with a few files leaves.
const RECENT: u64 = 100;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, or ends now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A fake ComfyUI.
pub struct Fake {
    pub url: String,
    http: Client,
    _process: Process,
}

impl Fake {
    pub fn start() -> Self {
        Self::with_copies(0)
    }

    /// One whose every node class is there so many times more.
    pub fn with_copies(copies: usize) -> Self {
        let program = env::current_exe().expect("this program");
        let mut command = Command::new(program);
        let mut child =
            command.env(FAKE, "1").env(COPIES, copies.to_string()).stdout(Stdio::piped()).spawn().expect("a process");
        let mut url = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut url).expect("its address");
        Self { url: url.trim().to_owned(), http: client(), _process: Process(child) }
    }

    /// Gives it an order, see the fake's own page.
    pub async fn order(&self, order: Value) {
        let request = self.http.post(format!("{}/fake/control", self.url)).json(&order);
        request.send().await.expect("an answer").error_for_status().expect("the order is taken");
    }

    pub async fn set_node_time(&self, time: Duration) {
        self.order(json!({"node_time_ms": time.as_millis()})).await;
    }

    /// Whether a prompt runs.
    pub async fn running(&self) -> bool {
        self.get("/queue").await["queue_running"].as_array().is_some_and(|running| !running.is_empty())
    }

    /// One of its pages as JSON.
    pub async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.url));
        request.send().await.expect("an answer").json().await.expect("JSON")
    }

    /// The part of the time between the first start and the last end in which nothing ran.
    pub async fn idle_share(&self) -> f64 {
        self.get("/fake/stats").await["idle_share"].as_f64().expect("a number")
    }

    /// How long ago it ended its last prompt, to a millisecond.
    #[expect(clippy::disallowed_methods, reason = "the time is another process's")]
    pub async fn since_last_end(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let position = self.get("/fake/stats").await["position"].as_u64().expect("a number");
        let log = self.get(&format!("/fake/log?since={}", position.saturating_sub(RECENT))).await;
        let log: Vec<Event> = serde_json::from_value(log).expect("a log");
        let end = log.iter().rev().find(|event| matches!(event.kind, EventKind::Finished { .. }));
        now.saturating_sub(Duration::from_millis(end.expect("it ended a prompt").wall_ms))
    }

    /// Prompts it began to run since it was started.
    pub async fn executions(&self) -> u64 {
        self.get("/fake/stats").await["executions"].as_u64().expect("a number")
    }
}

/// A running comfyd.
pub struct Service {
    pub url: String,
    pub http: Client,
    /// From the start of the process to its first good answer to `/readyz`.
    pub ready_after: Duration,
    process: Process,
}

impl Service {
    /// Starts comfyd on the files in `folder`, with its default settings, and waits until it is ready.
    pub async fn start(folder: &Path, comfyui: &str) -> Self {
        Self::start_with(folder, comfyui, &[]).await
    }

    /// As [`Self::start`], with some settings of its own.
    pub async fn start_with(folder: &Path, comfyui: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_as(None, folder, comfyui, settings).await
    }

    /// As [`Self::start_with`], in a role of its own. A consumer that is told of an API is not told of the database.
    pub async fn start_as(role: Option<&str>, folder: &Path, comfyui: &str, settings: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).expect("a free port").port();
        let url = format!("http://127.0.0.1:{port}");
        let http = client();
        let began = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_comfyd"));
        command
            .current_dir(folder)
            .env("COMFYUI_URL", comfyui)
            .env("HOST", "127.0.0.1")
            .env(if role == Some("consumer") { "COMFYD_CONSUMER__PORT" } else { "PORT" }, port.to_string())
            .env("DATABASE_URL", database(folder))
            .env("STORAGE_LOCAL_DIR", folder.join("data/outputs"))
            .env("COMFYD_LOG__DIR", folder.join("logs"))
            // A benchmark makes more tasks in seconds than may wait by default.
            .env("COMFYD_QUEUE__MAX_PENDING", "10000000")
            .envs(settings.iter().copied())
            .args(role)
            .stdout(Stdio::null());
        if settings.iter().any(|(name, _)| *name == "TASK_API_URL") {
            command.env_remove("DATABASE_URL");
        }
        let process = Process(command.spawn().expect("comfyd starts"));
        let ready = async {
            loop {
                let answer = http.get(format!("{url}/readyz")).send().await;
                if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    return began.elapsed();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ready_after = tokio::time::timeout(PATIENCE, ready).await.expect("comfyd becomes ready");
        Self { url, http, ready_after, process }
    }

    /// Waits until its ComfyUI is connected.
    pub async fn online(&self) {
        while self.get("/api/status").await["backends"][0]["phase"] != "online" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until its ComfyUI has told what it has; how many node classes that are.
    pub async fn surveyed(&self) -> u64 {
        loop {
            if let Some(nodes) = self.get("/api/status").await["backends"][0]["nodes"].as_u64() {
                return nodes;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.expect("an answer");
        answer.error_for_status().expect("a good one").json().await.expect("JSON")
    }

    /// Creates a task; it is durable when this returns.
    pub async fn create(&self, graph: &Value) -> Value {
        self.post(graph, "respond-async").await
    }

    /// Creates a task from a whole body; its id.
    pub async fn create_as(&self, body: &Value) -> String {
        let request = self.http.post(format!("{}/api/tasks/create", self.url)).json(body);
        let answer = request.send().await.expect("an answer").error_for_status().expect("the task is taken");
        let task: Value = answer.json().await.expect("a task");
        task["task_id"].as_str().expect("its id").to_owned()
    }

    /// Creates a task and waits until its outputs are stored.
    pub async fn run(&self, graph: &Value) {
        self.completed(graph).await;
    }

    /// As [`Self::run`]; the task then.
    pub async fn completed(&self, graph: &Value) -> Value {
        let task = self.post(graph, "wait=60").await;
        assert_eq!(task["status"], "completed", "{task}");
        task
    }

    async fn post(&self, graph: &Value, prefer: &str) -> Value {
        let body = json!({"workflow": graph});
        let request = self.http.post(format!("{}/api/tasks/create", self.url)).header("Prefer", prefer).json(&body);
        let answer = request.send().await.expect("an answer").error_for_status().expect("the task is taken");
        answer.json().await.expect("a task")
    }

    /// Waits until no task is waiting or being worked on. `last` is one of the last to finish: its end is told, not asked for.
    pub async fn drained(&self, last: &str) {
        let request = self.http.get(format!("{}/api/tasks/{last}", self.url)).header("Prefer", "wait=60");
        request.send().await.expect("an answer").error_for_status().expect("the task");
        while self.get("/api/tasks?status=pending,processing&limit=1").await["tasks"] != json!([]) {}
    }

    /// The process's resident memory in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// The most memory it has while something else goes on.
    pub async fn peak_while(&self, work: impl Future<Output = ()>) -> u64 {
        let mut peak = 0;
        let sample = async {
            loop {
                peak = self.memory().max(peak);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = sample => {}
        }
        peak
    }
}

/// The URL of the database in `folder`.
pub fn database(folder: &Path) -> String {
    format!("sqlite://{}", database_file(folder).display())
}

/// The database in `folder`.
pub fn database_file(folder: &Path) -> PathBuf {
    folder.join("data/comfyd.db")
}
