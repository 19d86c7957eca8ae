//! Clients that write down all they are told, and what is left to read when everything is over: together the history for the checker.
//!
//! The clients are sensible ones: they repeat what was not answered, and every creation has a key.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfyd_actors::domain::webhook::Events;
use fake_comfyui::FakeComfy;
use futures_util::StreamExt;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;
use sqlx::{
    ConnectOptions, PgConnection, Row as _, SqliteConnection, postgres::PgConnectOptions, sqlite::SqliteConnectOptions,
};
use tokio::time::{sleep, timeout};

use crate::{
    checker::{Fact, History, Object, Output, Row, Stored, Told, View, Word},
    place::Place,
    support::{Api, PATIENCE, sha256},
};

/// Between two tries of a request that is not answered.
const AGAIN: Duration = Duration::from_millis(10);
/// How long one wish is repeated: many restarts long.
const PERSISTENCE: Duration = Duration::from_secs(300);

/// Clients of one service, and what they were told. Clones write into the same book.
#[derive(Clone)]
pub struct Recorder {
    api: Api,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Recorder {
    pub fn new(api: Api) -> Self {
        Self { api, told: Arc::default() }
    }

    /// The same clients, now speaking to another process.
    pub fn at(&self, api: Api) -> Self {
        Self { api, told: Arc::clone(&self.told) }
    }

    /// What was told so far.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn note(&self, at: u64, word: Word) {
        self.told.lock().unwrap().push(Told { at, word });
    }

    /// Sends a request until it is answered by a service that is well. `unanswered` is told of each time it was not.
    async fn ask(&self, request: impl Fn() -> RequestBuilder, unanswered: impl Fn()) -> (StatusCode, Value) {
        let asking = async {
            loop {
                if let Some(answer) = well(request().send().await).await {
                    return answer;
                }
                unanswered();
                sleep(AGAIN).await;
            }
        };
        timeout(PERSISTENCE, asking).await.expect("the service does not answer")
    }

    /// Creates a task; its id.
    pub async fn create(&self, body: &Value, key: &str, color: Option<u32>) -> String {
        let url = self.api.url("/api/tasks/create");
        let request = || self.api.client.post(&url).header("Idempotency-Key", key).json(body);
        let unanswered = || self.note(now(), Word::Unanswered { key: key.to_owned() });
        let (status, task) = self.ask(request, unanswered).await;
        assert!(status.is_success(), "{task}");
        let id = task["task_id"].as_str().unwrap().to_owned();
        self.note(now(), Word::Accepted { key: key.to_owned(), color, task: id.clone() });
        id
    }

    /// The task as it is when it is over, or after a moment.
    pub async fn see(&self, id: &str) -> View {
        let url = self.api.url(&format!("/api/tasks/{id}"));
        let (status, task) = self.ask(|| self.api.client.get(&url).header("Prefer", "wait=1"), || {}).await;
        assert_eq!(status, StatusCode::OK, "{task}");
        let view = view(&task);
        self.note(now(), Word::Seen(view.clone()));
        view
    }

    /// Waits until the task is at a stage, or over.
    pub async fn until_stage(&self, id: &str, stage: &str) {
        let url = self.api.url(&format!("/api/tasks/{id}"));
        loop {
            let (_, task) = self.ask(|| self.api.client.get(&url).header("Prefer", "wait=0"), || {}).await;
            if task["stage"] == stage || view(&task).is_final() {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for its end.
    pub async fn end(&self, id: &str) -> View {
        let ending = async {
            loop {
                let view = self.see(id).await;
                if view.is_final() {
                    return view;
                }
            }
        };
        timeout(PERSISTENCE, ending).await.unwrap_or_else(|_| panic!("{id} does not end"))
    }

    /// Reads all its outputs.
    pub async fn read(&self, view: &View) {
        for output in &view.outputs {
            let url = self.api.url(&format!("/api/tasks/{}/outputs/{}", view.task, output.index));
            let bytes = loop {
                let answer = self.api.client.get(&url).send().await.and_then(Response::error_for_status);
                let Ok(answer) = answer else {
                    sleep(AGAIN).await;
                    continue;
                };
                if let Ok(bytes) = answer.bytes().await {
                    break bytes;
                }
            };
            let (task, index, sha256) = (view.task.clone(), output.index, sha256(&bytes));
            self.note(now(), Word::Read { task, index, bytes: bytes.len() as u64, sha256 });
        }
    }

    /// Cancels the task.
    pub async fn cancel(&self, id: &str) {
        let url = self.api.url(&format!("/api/tasks/{id}/cancel"));
        let (status, task) = self.ask(|| self.api.client.post(&url), || {}).await;
        assert!(status.is_success(), "{task}");
        self.note(now(), Word::Cancelled(view(&task)));
    }

    /// Asks for the task again.
    pub async fn reopen(&self, id: &str) {
        let asked = now();
        let url = self.api.url(&format!("/api/tasks/{id}/retry"));
        let (status, task) = self.ask(|| self.api.client.post(&url), || {}).await;
        assert!(status.is_success(), "{task}");
        self.note(asked, Word::Reopened(view(&task)));
    }

    /// Listens to all that happens, from the beginning, for ever; after every restart where it left.
    pub async fn listen(&self) {
        let (url, mut last) = (self.api.url("/api/events"), 0_i64);
        loop {
            let request = self.api.client.get(&url).timeout(PERSISTENCE).header("Last-Event-ID", last);
            if let Ok(answer) = request.send().await.and_then(Response::error_for_status) {
                let (mut body, mut read) = (answer.bytes_stream(), String::new());
                while let Some(Ok(chunk)) = body.next().await {
                    read.push_str(&String::from_utf8_lossy(&chunk));
                    while let Some(end) = read.find("\n\n") {
                        let block: String = read.drain(..end + 2).collect();
                        let Some((seq, task)) = event(&block) else { continue };
                        last = seq;
                        self.note(now(), Word::Heard { seq, task });
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }

    /// Waits until every message to a webhook is delivered.
    pub async fn nothing_left_to_tell(&self) {
        let url = self.api.url("/api/webhooks/deliveries?status=pending&limit=1");
        let telling = async {
            while self.ask(|| self.api.client.get(&url), || {}).await.1["deliveries"] != serde_json::json!([]) {
                sleep(AGAIN).await;
            }
        };
        timeout(PATIENCE, telling).await.expect("a message is never delivered");
    }

    /// Waits until somebody who listens has heard of event number `seq`.
    pub async fn heard(&self, seq: i64) {
        let is_it = |told: &Told| matches!(told.word, Word::Heard { seq: heard, .. } if heard >= seq);
        let hearing = async {
            while !self.told.lock().unwrap().iter().rev().any(is_it) {
                sleep(AGAIN).await;
            }
        };
        timeout(PATIENCE, hearing).await.expect("an event does not arrive");
    }
}

/// The answer of a service that is there and not about to stop. The connection may be cut at any byte.
async fn well(answer: reqwest::Result<Response>) -> Option<(StatusCode, Value)> {
    let answer = answer.ok()?;
    let status = answer.status();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return None;
    }
    Some((status, answer.json().await.ok()?))
}

/// Number and task of an event of a stream; `None` for what has no number.
fn event(block: &str) -> Option<(i64, String)> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data: Value = serde_json::from_str(field("data")?).unwrap();
    Some((field("id")?.parse().unwrap(), data["task_id"].as_str().unwrap().to_owned()))
}

fn view(task: &Value) -> View {
    let text = |name: &str| task[name].as_str().unwrap().to_owned();
    let outputs = task["outputs"].as_array().unwrap().iter().map(|output| Output {
        index: u32::try_from(output["index"].as_u64().unwrap()).unwrap(),
        bytes: output["bytes"].as_u64().unwrap(),
        sha256: output["sha256"].as_str().unwrap().to_owned(),
    });
    View {
        task: text("task_id"),
        status: text("status"),
        generation: task["generation"].as_i64().unwrap(),
        attempt: task["attempt"].as_i64().unwrap(),
        finished_at: task["finished_at"].as_str().map(str::to_owned),
        outputs: outputs.collect(),
    }
}

/// The wall clock in milliseconds, as in the logs of the fakes.
#[expect(clippy::disallowed_methods, reason = "compared with the fakes' logs, which follow the same clock")]
fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

const NEWEST: &str = "SELECT coalesce(max(seq), 0) FROM task_events";

/// The number of the newest event in a database.
pub async fn newest_event(database: &str) -> i64 {
    match open(database).await {
        Database::Sqlite(mut conn) => sqlx::query(NEWEST).fetch_one(&mut conn).await.unwrap().get(0),
        Database::Postgres(mut conn) => sqlx::query(NEWEST).fetch_one(&mut conn).await.unwrap().get(0),
    }
}

/// A connection to where the tasks are.
enum Database {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

async fn open(database: &str) -> Database {
    if let Some(file) = database.strip_prefix("sqlite://") {
        let options = SqliteConnectOptions::new().filename(file).busy_timeout(PATIENCE);
        return Database::Sqlite(options.connect().await.unwrap());
    }
    let options: PgConnectOptions = database.parse().unwrap();
    Database::Postgres(options.connect().await.unwrap())
}

/// Everything there is to know about a run that is over.
pub async fn gather(recorder: &Recorder, fakes: &[FakeComfy], place: &Place) -> History {
    let (rows, integrity) = match open(&place.database()).await {
        Database::Sqlite(mut conn) => {
            let integrity = sqlx::query("PRAGMA integrity_check").fetch_one(&mut conn).await.unwrap().get(0);
            (sqlite_rows(&mut conn).await, integrity)
        }
        Database::Postgres(mut conn) => (postgres_rows(&mut conn).await, "ok".to_owned()),
    };
    let mut objects = BTreeMap::new();
    find_objects(&place.dir.path().join("outputs"), "", &mut objects);
    History {
        told: recorder.told(),
        servers: fakes.iter().map(|fake| fake.control().log()).collect(),
        rows,
        objects,
        integrity,
        messages: Vec::new(),
        pardons: BTreeMap::new(),
        is_tidied: false,
    }
}

/// Reads all tasks in the words of a database: how it writes the id of a row, that of a task in another table, and an artifact's object.
macro_rules! rows {
    ($conn:expr, $id:literal, $task:literal, $object:literal) => {{
        let tasks = concat!(
            "SELECT ",
            $id,
            " AS id, state, generation, attempt, dispatch, hook_events FROM tasks ORDER BY created_at, id"
        );
        let mut rows: Vec<Row> = Vec::new();
        for row in sqlx::query(tasks).fetch_all(&mut *$conn).await.unwrap() {
            rows.push(Row {
                id: dashed(row.get("id")),
                state: row.get("state"),
                generation: row.get("generation"),
                attempt: row.get("attempt"),
                dispatch: row.get("dispatch"),
                told_of: Vec::from(Events::of_bits(row.get("hook_events"))).iter().map(ToString::to_string).collect(),
                ..Row::default()
            });
        }
        let place: HashMap<String, usize> = rows.iter().enumerate().map(|(at, row)| (row.id.clone(), at)).collect();
        let at = |id: &str| place.get(&dashed(id)).copied();
        let keys = concat!("SELECT ", $task, " AS id, key FROM idempotency");
        for row in sqlx::query(keys).fetch_all(&mut *$conn).await.unwrap() {
            if let Some(at) = at(row.get("id")) {
                rows[at].keys.push(row.get("key"));
            }
        }
        let outputs = concat!("SELECT ", $task, " AS id, idx, ", $object, " FROM task_outputs ORDER BY task_id, idx");
        for row in sqlx::query(outputs).fetch_all(&mut *$conn).await.unwrap() {
            let stored = Stored {
                index: row.get::<i64, _>("idx").try_into().unwrap(),
                key: row.get("object_key"),
                bytes: row.get::<Option<i64>, _>("bytes").unwrap_or(0).try_into().unwrap(),
                sha256: row.get::<Option<String>, _>("sha256").unwrap_or_default(),
            };
            if let Some(at) = at(row.get("id")) {
                rows[at].outputs.push(stored);
            }
        }
        let facts = concat!("SELECT ", $task, " AS id, seq, stage FROM task_events ORDER BY seq");
        for row in sqlx::query(facts).fetch_all(&mut *$conn).await.unwrap() {
            if let Some(at) = at(row.get("id")) {
                rows[at].facts.push(Fact { seq: row.get("seq"), stage: row.get("stage") });
            }
        }
        let deliveries =
            concat!("SELECT ", $task, " AS id, id AS number, stage FROM webhook_deliveries ORDER BY number");
        for row in sqlx::query(deliveries).fetch_all(&mut *$conn).await.unwrap() {
            if let Some(at) = at(row.get("id")) {
                rows[at].posted.push((row.get("number"), row.get("stage")));
            }
        }
        rows
    }};
}

async fn sqlite_rows(conn: &mut SqliteConnection) -> Vec<Row> {
    rows!(conn, "lower(hex(id))", "lower(hex(task_id))", "object_key, bytes, sha256")
}

async fn postgres_rows(conn: &mut PgConnection) -> Vec<Row> {
    rows!(
        conn,
        "id::text",
        "task_id::text",
        "artifact::json #>> '{object,key}' AS object_key, (artifact::json #>> '{object,bytes}')::bigint AS bytes,
         artifact::json #>> '{object,sha256}' AS sha256"
    )
}

/// A UUID as clients write it.
fn dashed(hex: &str) -> String {
    uuid::Uuid::parse_str(hex).unwrap().to_string()
}

/// The objects below a folder. What is still being written has no key, and what clients gave is no output.
fn find_objects(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Object>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let key = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if matches!(key.as_str(), ".tmp" | "inputs") {
            continue;
        }
        if path.is_dir() {
            find_objects(&path, &key, found);
        } else {
            let bytes = fs::read(&path).unwrap();
            let (sha256, color) = (sha256(&bytes), color(&bytes));
            found.insert(key, Object { bytes: bytes.len() as u64, sha256, color });
        }
    }
}

/// The first pixel of a picture.
fn color(bytes: &[u8]) -> Option<u32> {
    let picture = image::load_from_memory(bytes).ok()?.to_rgb8();
    let [red, green, blue] = picture.get_pixel_checked(0, 0)?.0;
    Some(u32::from_be_bytes([0, red, green, blue]))
}
