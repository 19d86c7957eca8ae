//! What consumers apart from the API give and cost: the throughput of four of them against one, and what a task waits longer when its
//! consumer has nothing but HTTP.
//!
//! One API and its consumers are processes of their own on one SQLite file; each consumer has a fake ComfyUI. The yardstick of the latency
//! is a service that is API and consumer in one process, which is quicker than any consumer beside a store.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::time::Duration;

use common::{Fake, ROUNDS, Report, Service, folder, graph, median, millis, timed};
use futures_util::{StreamExt, stream};
use serde_json::json;

const CONSUMERS: usize = 4;
const NODE_TIME: Duration = Duration::from_millis(50);
/// Work for each consumer.
const TASKS: usize = 40;
/// Tasks one after the other, in a round.
const SAMPLES: usize = 40;
/// What HTTP may add.
const ADDED: f64 = 5.0;

fn main() {
    common::run(consumers());
}

async fn consumers() -> Report {
    let mut report = Report::default();
    throughput(&mut report).await;
    latency(&mut report).await;
    report
}

async fn throughput(report: &mut Report) {
    let mut shares = Vec::new();
    for _ in 0..ROUNDS.min(3) {
        let one = rate(1).await;
        let all = rate(CONSUMERS).await;
        report.note(format!("{NODE_TIME:?} tasks: one consumer {one:.1}/s, {CONSUMERS} consumers {all:.1}/s"));
        shares.push(all / one);
    }
    report.at_least(format!("throughput of {CONSUMERS} consumers against one, {NODE_TIME:?} tasks"), "", &shares, 3.8);
}

/// Tasks a second of so many consumers over HTTP, from a queue that is there when they begin.
async fn rate(consumers: usize) -> f64 {
    let folder = folder();
    let api = Service::start_as(Some("api"), folder.path(), "http://127.0.0.1:1", &[]).await;
    let mut all = Vec::new();
    for _ in 0..consumers {
        let fake = Fake::start();
        fake.set_node_time(NODE_TIME).await;
        let consumer = remote(folder.path(), &api, &fake).await;
        all.push((fake, consumer));
    }
    api.http.post(format!("{}/api/queue/pause", api.url)).send().await.expect("an answer");
    let tasks = TASKS * consumers;
    let made: Vec<_> = stream::iter(0..tasks)
        .map(|number| {
            let api = &api;
            async move { api.create_as(&json!({"workflow": graph(number)})).await }
        })
        .buffered(16)
        .collect()
        .await;
    let last = made.last().expect("a task").clone();
    let (took, ()) = timed(async {
        api.http.post(format!("{}/api/queue/resume", api.url)).send().await.expect("an answer");
        api.drained(&last).await;
    })
    .await;
    f64::from(u32::try_from(tasks).expect("few")) / took.as_secs_f64()
}

async fn latency(report: &mut Report) {
    let (near_folder, far_folder) = (folder(), folder());
    let (near_fake, far_fake) = (Fake::start(), Fake::start());
    let near = Service::start(near_folder.path(), &near_fake.url).await;
    near.online().await;
    let api = Service::start_as(Some("api"), far_folder.path(), "http://127.0.0.1:1", &[]).await;
    let _consumer = remote(far_folder.path(), &api, &far_fake).await;
    let mut numbers = 0..;
    let mut next = || graph(numbers.next().unwrap_or_default());
    let mut added = Vec::new();
    // The first round warms up.
    for round in 0..=ROUNDS {
        let [mut theirs, mut ours] = [(); 2].map(|()| Vec::new());
        for _ in 0..SAMPLES {
            theirs.push(timed(near.run(&next())).await.0);
            ours.push(timed(api.run(&next())).await.0);
        }
        if round > 0 {
            let [theirs, ours] = [theirs, ours].map(|samples| millis(median(&samples)));
            report.note(format!("in one process {theirs:.2} ms, over HTTP {ours:.2} ms"));
            added.push(ours - theirs);
        }
    }
    report.at_most("added by a consumer over HTTP, p50", "ms", &added, ADDED);
}

/// A consumer that has nothing but the API's address.
async fn remote(folder: &std::path::Path, api: &Service, fake: &Fake) -> Service {
    Service::start_as(Some("consumer"), folder, &fake.url, &[("TASK_API_URL", api.url.as_str())]).await
}
