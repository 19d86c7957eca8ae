//! What a broken WebSocket costs in time: it breaks at every single frame of a run, in seven ways, under the default settings.
//!
//! For each way there are a server and a service of their own. Each run has its socket broken one frame later than the one before, until a
//! run has fewer frames. The delay is told by the slowest run, beyond the median of runs with a sound socket.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::time::Duration;

use common::{Fake, Report, Service, folder, graph, median, millis, timed};
use futures_util::future::join_all;
use serde_json::{Value, json};

const WAYS: [&str; 7] = ["close", "reset", "half_open", "deaf", "truncated", "garbage", "huge"];
/// Runs with a sound socket, before the others.
const SOUND: usize = 9;

fn main() {
    common::run(sockets());
}

async fn sockets() -> Report {
    let mut report = Report::default();
    let mut again = 0;
    for Broken { way, frames, worst, calm, repeated } in join_all(WAYS.map(breaking)).await {
        report.note(format!("{way}: {frames} runs, the slowest {worst:?}, {calm:?} with a sound socket"));
        let delay = millis(worst.saturating_sub(calm));
        report.at_most(format!("extra delay, {way} at each of {frames} frames"), "ms", &[delay], 2_000.0);
        again += repeated;
    }
    report.at_most("tasks that ran more than once", "", &[f64::from(again)], 0.0);
    report
}

/// What came of one way.
struct Broken {
    way: &'static str,
    frames: usize,
    worst: Duration,
    calm: Duration,
    repeated: u32,
}

async fn breaking(way: &'static str) -> Broken {
    let (fake, folder) = (Fake::start(), folder());
    let service = Service::start(folder.path(), &fake.url).await;
    service.online().await;
    let mut calm = Vec::new();
    for number in 0..SOUND {
        calm.push(timed(service.run(&sampling(number))).await.0);
    }
    let (mut worst, mut frames) = (Duration::ZERO, 0);
    loop {
        fake.order(json!({"fault": "break_socket", "after": frames, "how": way})).await;
        let (time, task) = timed(service.completed(&sampling(SOUND + frames))).await;
        assert_eq!(task["attempt"], 1, "{task}");
        worst = worst.max(time);
        if fake.get("/fake/control").await["faults"] != json!([]) {
            break;
        }
        frames += 1;
        sound_again(&fake, &service).await;
    }
    let repeated = fake.executions().await.saturating_sub((SOUND + frames + 1) as u64);
    Broken { way, frames, worst, calm: median(&calm), repeated: u32::try_from(repeated).unwrap_or(u32::MAX) }
}

/// Replaces the socket by a sound one: nothing tells a session that it is deaf until it sends a prompt.
async fn sound_again(fake: &Fake, service: &Service) {
    let position = fake.get("/fake/stats").await["position"].as_u64().expect("a position");
    fake.order(json!({"fault": "drop_sockets"})).await;
    let log = format!("/fake/log?since={position}");
    let is_ready = |event: &Value| event["event"] == "flags_negotiated";
    while !fake.get(&log).await.as_array().expect("events").iter().any(is_ready) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    service.online().await;
}

/// A graph whose run shows every kind of frame.
fn sampling(number: usize) -> Value {
    let mut graph = graph(number);
    let steps = json!({"image": ["1", 0], "steps": 3, "seconds_per_step": 0.01, "preview": true, "preview_format": "PNG", "nonce": number});
    graph["3"] = json!({"class_type": "LabSlowProgress", "inputs": steps});
    graph["2"]["inputs"]["images"] = json!(["3", 0]);
    graph
}
