//! What watching costs: the time from a frame of ComfyUI's to those who watch, and what a crowd takes from the tasks of others.
//!
//! For the first, the fake lives in this process, so that both ends of a step are read off one clock. For the second there are two: one
//! samples for as long as the benchmark runs, with nobody or with a crowd watching, and the other works off a queue.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{collections::HashMap, sync::Arc, time::Duration};

use comfyd::clock::SystemClock;
use comfyd_actors::ports::clock::Clock;
use common::{Fake, ROUNDS, Report, Service, folder, graph, millis, quantile, timed};
use fake_comfyui::{EventKind, FakeComfy, FakeConfig};
use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const WATCHERS: usize = 100;
const STEPS: u32 = 100;
/// As quick as samplers are on a fast card.
const STEP: Duration = Duration::from_millis(50);

const CROWD: usize = 500;
const TASKS: usize = 500;
/// As quick as samplers usually are.
const CROWD_STEP: Duration = Duration::from_millis(200);
/// Longer than the benchmark.
const FOR_EVER: u32 = 10_000;

fn main() {
    common::run(watching());
}

async fn watching() -> Report {
    let mut report = Report::default();
    let mut late = Vec::new();
    for _ in 0..ROUNDS.min(3) {
        let delays = delays().await;
        report.note(format!("{} frames seen by {WATCHERS}: median {:?}", delays.len(), quantile(&delays, 0.5)));
        late.push(millis(quantile(&delays, 0.99)));
    }
    report.at_most(format!("frame to {WATCHERS} SSE clients, p99"), "ms", &late, 20.0);
    let shares = shares(&mut report).await;
    report.at_least(format!("tasks beside {CROWD} watchers, of the rate without"), "", &shares, 0.9);
    report
}

/// The graph as it is: its workflow allows fewer steps.
fn sampling(steps: u32) -> Value {
    let file: Value = serde_json::from_str(include_str!("../config/workflows/text-to-image.json")).expect("a workflow");
    json!({"workflow": file["workflow"], "inputs": {"3.steps": steps, "5.width": 64, "5.height": 64}})
}

/// How long each step was on its way to each watcher.
async fn delays() -> Vec<Duration> {
    let (clock, folder) = (Arc::new(SystemClock::start()), folder());
    let config = FakeConfig { node_time: STEP * STEPS, ..FakeConfig::default() };
    let fake = FakeComfy::start(config).await.expect("the fake starts");
    let control = fake.control();
    control.pause_execution();
    let service = Service::start(folder.path(), &fake.url()).await;
    service.online().await;
    let task = service.create_as(&sampling(STEPS)).await;
    let mut watching = JoinSet::new();
    for _ in 0..WATCHERS {
        let (mut events, clock) = (watch(&service, &task).await, clock.clone());
        watching.spawn(async move {
            let mut seen = HashMap::new();
            while let Some(chunk) = events.next().await {
                let (now, chunk) = (clock.now(), chunk.expect("the stream goes on"));
                let text = String::from_utf8_lossy(&chunk);
                for line in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
                    let event: Value = serde_json::from_str(line).expect("JSON");
                    if let Some(step) = event["progress"]["step"].as_u64() {
                        seen.entry(step).or_insert(now);
                    }
                }
            }
            seen
        });
    }
    control.resume();
    let seen = watching.join_all().await;
    let sent = control.log().into_iter().filter_map(|event| match event.kind {
        EventKind::Stepped { value, .. } => Some((value, i64::try_from(event.wall_ms).unwrap_or(0))),
        _ => None,
    });
    let sent: HashMap<u64, i64> = sent.collect();
    let delay = |(step, at): (&u64, &comfyd_actors::domain::time::Timestamp)| {
        Some(Duration::from_millis(u64::try_from(at.0 - sent.get(step)?).unwrap_or(0)))
    };
    seen.iter().flat_map(|seen| seen.iter().filter_map(delay)).collect()
}

async fn watch(
    service: &Service,
    task: &str,
) -> impl futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Unpin + use<> {
    let request = service.http.get(format!("{}/api/tasks/{task}/events", service.url));
    let answer = request.send().await.expect("an answer").error_for_status().expect("a stream");
    Box::pin(answer.bytes_stream())
}

/// The rate of tasks with a crowd watching another, of the rate without.
async fn shares(report: &mut Report) -> Vec<f64> {
    let (fakes, folder) = ([Fake::start(), Fake::start()], folder());
    let both = format!("{},{}", fakes[0].url, fakes[1].url);
    for fake in &fakes {
        fake.set_node_time(CROWD_STEP * FOR_EVER).await;
    }
    let service = Arc::new(Service::start(folder.path(), &both).await);
    service.online().await;
    let watched = service.create_as(&sampling(FOR_EVER)).await;
    let mut events = watch(&service, &watched).await;
    while !String::from_utf8_lossy(&events.next().await.expect("a stream").expect("events")).contains("\"step\"") {}
    drop(events);
    let busy = join_all(fakes.iter().map(Fake::running)).await;
    let other = if busy[0] { &fakes[1] } else { &fakes[0] };
    other.set_node_time(Duration::ZERO).await;
    let (mut shares, mut first) = (Vec::new(), 0);
    let mut round = async || {
        first += TASKS;
        work_off(other, &service, first - TASKS..first).await
    };
    for _ in 0..ROUNDS {
        let alone = round().await;
        let mut crowd = JoinSet::new();
        for _ in 0..CROWD {
            let mut events = watch(&service, &watched).await;
            crowd.spawn(async move { while events.next().await.is_some_and(|chunk| chunk.is_ok()) {} });
        }
        let beside = round().await;
        drop(crowd);
        report
            .note(format!("{TASKS} tasks: {alone:?} with nobody watching another, {beside:?} beside {CROWD} watchers"));
        shares.push(alone.as_secs_f64() / beside.as_secs_f64());
    }
    shares
}

/// Stores tasks while their server stands still, then lets it go: the time until all but the watched one are completed.
async fn work_off(fake: &Fake, service: &Arc<Service>, numbers: std::ops::Range<usize>) -> Duration {
    fake.order(json!({"pause": true})).await;
    let creating = futures_util::stream::iter(numbers).for_each_concurrent(16, |number| {
        let service = service.clone();
        async move { drop(service.create(&graph(number)).await) }
    });
    creating.await;
    timed(async {
        fake.order(json!({"resume": true})).await;
        loop {
            let rest = service.get("/api/tasks?status=pending,processing&limit=2").await;
            if rest["tasks"].as_array().is_some_and(|tasks| tasks.len() == 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .0
}
