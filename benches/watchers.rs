//! What two thousand watchers of one API cost, whose tasks run in a consumer apart: how late what happened reaches them, and what they take
//! from the rate of tasks.
//!
//! The API, a consumer that reaches it over HTTP and two fakes are processes of their own; the watchers live in this one, on the same
//! machine, and their work counts against the service too. How late an event is, is the time from the moment it tells, which the store
//! gave it before its commit, to its arrival here.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]
#![expect(
    clippy::disallowed_methods,
    reason = "what is measured is how far it is from the time that another process told"
)]

mod common;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{Fake, PATIENCE, ROUNDS, Report, Service, folder, graph, millis, quantile, timed};
use futures_util::{StreamExt, stream};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

const WATCHERS: usize = 2_000;
const TASKS: usize = 200;
/// Shorter than what a GPU does. With tasks of no time at all nothing but the processor's share is measured, which watchers in this process
/// have most of.
const TASK_TIME: Duration = Duration::from_millis(50);
/// What one task that all watch tells: as quick as samplers usually are.
const STEP: Duration = Duration::from_millis(200);
/// Longer than the benchmark.
const FOR_EVER: u32 = 10_000;
/// A person takes that for at once.
const LATE: f64 = 100.0;

fn main() {
    common::run(watchers());
}

async fn watchers() -> Report {
    let mut report = Report::default();
    each_their_own(&mut report).await;
    all_the_same(&mut report).await;
    report
}

/// An API, a consumer, and the servers it has.
struct Apart {
    api: Service,
    fakes: [Fake; 2],
    /// Without a limit for a whole answer.
    http: Client,
    _consumer: Service,
    _folder: TempDir,
}

impl Apart {
    async fn start() -> Self {
        let (folder, fakes) = (folder(), [Fake::start(), Fake::start()]);
        let room = ("COMFYD_EVENTS__MAX_WATCHERS", "2100");
        let api = Service::start_as(Some("api"), folder.path(), "http://127.0.0.1:1", &[room]).await;
        let url = format!("{}/api", api.url);
        let both = format!("{},{}", fakes[0].url, fakes[1].url);
        let consumer = Service::start_as(Some("consumer"), folder.path(), &both, &[("TASK_API_URL", &url)]).await;
        while api.get("/api/backends").await["backends"].as_array().is_none_or(|backends| backends.len() < 2) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let http = Client::builder().no_proxy().tcp_nodelay(true).build().expect("an HTTP client");
        Self { api, fakes, http, _consumer: consumer, _folder: folder }
    }

    async fn order(&self, path: &str) {
        let asked = self.http.post(format!("{}{path}", self.api.url)).send().await;
        asked.expect("an answer").error_for_status().expect("it is done");
    }

    /// Stores tasks while the queue stands still.
    async fn store(&self, numbers: std::ops::Range<usize>) -> Vec<String> {
        self.order("/api/queue/pause").await;
        let create = |number| async move { self.api.create_as(&json!({"workflow": graph(number)})).await };
        stream::iter(numbers).map(create).buffered(16).collect().await
    }

    /// Lets the queue go: the time until the tasks are done.
    async fn work_off(&self, ids: &[String]) -> Duration {
        let last = ids.last().expect("a task");
        let done = async {
            self.order("/api/queue/resume").await;
            let wait = self.http.get(format!("{}/api/tasks/{last}", self.api.url)).header("Prefer", "wait=60");
            wait.send().await.expect("an answer").error_for_status().expect("the task");
            while self.api.get("/api/tasks?status=pending&limit=1").await["tasks"] != json!([])
                || self.api.get("/api/tasks?status=processing&limit=2").await["tasks"].as_array().map_or(0, Vec::len)
                    > 1
            {}
        };
        timed(done).await.0
    }

    /// Has so many watch these tasks, in turn. They tell how late each event was that happened since.
    async fn watch(&self, ids: &[String]) -> Crowd {
        let mut crowd = JoinSet::new();
        let since = SystemTime::now();
        for id in ids.iter().cycle().take(WATCHERS) {
            let asked = self.http.get(format!("{}/api/tasks/{id}/events", self.api.url)).send().await;
            let answer = asked.expect("an answer").error_for_status().expect("a stream");
            crowd.spawn(async move {
                let (mut body, mut late) = (Box::pin(answer.bytes_stream()), Vec::new());
                while let Some(Ok(chunk)) = body.next().await {
                    let now = SystemTime::now();
                    let text = String::from_utf8_lossy(&chunk);
                    let told = text.split("\"at\":\"").skip(1).filter_map(|rest| rest.split('"').next());
                    let told = told.filter_map(|at| humantime::parse_rfc3339(at).ok()).filter(|at| *at > since);
                    late.extend(told.map(|at| now.duration_since(at).unwrap_or_default()));
                }
                late
            });
        }
        Crowd(crowd)
    }
}

/// Those who watch.
struct Crowd(JoinSet<Vec<Duration>>);

impl Crowd {
    /// How late all of it was, once their tasks are over.
    async fn late(self) -> Vec<Duration> {
        tokio::time::timeout(PATIENCE, self.0.join_all()).await.expect("the streams end").concat()
    }
}

/// Each of the tasks that are worked off has its watchers.
async fn each_their_own(report: &mut Report) {
    let apart = Apart::start().await;
    for fake in &apart.fakes {
        fake.set_node_time(TASK_TIME).await;
    }
    let (mut lateness, mut shares, mut first) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS.min(3) {
        let mut next = async || {
            first += TASKS;
            apart.store(first - TASKS..first).await
        };
        let unseen = next().await;
        let alone = apart.work_off(&unseen).await;
        let seen = next().await;
        let crowd = apart.watch(&seen).await;
        let beside = apart.work_off(&seen).await;
        let late = crowd.late().await;
        report.note(format!(
            "{TASKS} tasks: {alone:?} unseen, {beside:?} seen by {WATCHERS}; {} events late by {:?} (median)",
            late.len(),
            quantile(&late, 0.5)
        ));
        lateness.push(millis(quantile(&late, 0.99)));
        shares.push(alone.as_secs_f64() / beside.as_secs_f64());
    }
    report.at_most(format!("event to {WATCHERS} watchers of {TASKS} tasks, p99"), "ms", &lateness, LATE);
    report.at_least(format!("tasks of {TASK_TIME:?} that are watched, of the rate without"), "", &shares, 0.9);
}

/// One task that takes long has all the watchers, and others are worked off beside it.
async fn all_the_same(report: &mut Report) {
    let apart = Arc::new(Apart::start().await);
    let (mut lateness, mut shares, mut first) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS.min(3) {
        for fake in &apart.fakes {
            fake.set_node_time(STEP * FOR_EVER).await;
        }
        let file: Value =
            serde_json::from_str(include_str!("../config/workflows/text-to-image.json")).expect("a workflow");
        let sampling =
            json!({"workflow": file["workflow"], "inputs": {"3.steps": FOR_EVER, "5.width": 64, "5.height": 64}});
        let watched = apart.api.create_as(&sampling).await;
        let other = loop {
            match (apart.fakes[0].running().await, apart.fakes[1].running().await) {
                (true, false) => break &apart.fakes[1],
                (false, true) => break &apart.fakes[0],
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        other.set_node_time(TASK_TIME).await;
        let mut next = async || {
            first += TASKS;
            apart.store(first - TASKS..first).await
        };
        let ids = next().await;
        let alone = apart.work_off(&ids).await;
        let ids = next().await;
        let crowd = apart.watch(std::slice::from_ref(&watched)).await;
        let beside = apart.work_off(&ids).await;
        apart.order(&format!("/api/tasks/{watched}/cancel")).await;
        let late = crowd.late().await;
        report.note(format!(
            "{TASKS} tasks: {alone:?} alone, {beside:?} beside {WATCHERS} watchers of another; its end late by {:?} (median of {})",
            quantile(&late, 0.5),
            late.len()
        ));
        lateness.push(millis(quantile(&late, 0.99)));
        shares.push(alone.as_secs_f64() / beside.as_secs_f64());
    }
    report.at_most(format!("event to {WATCHERS} watchers of one task, p99"), "ms", &lateness, LATE);
    report.at_least(
        format!("tasks of {TASK_TIME:?} beside {WATCHERS} watchers, of the rate without"),
        "",
        &shares,
        0.9,
    );
}
