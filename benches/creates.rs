//! How many tasks can be created, each of them on the disk before the client hears of it.
//!
//! Sixteen connections post without pause. ComfyUI is there and busy with its first task, so what is measured is taking tasks in.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Fake, ROUNDS, Report, Service, folder, graph, median, millis, quantile, timed};
use serde_json::json;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 16;
const ROUND: Duration = Duration::from_secs(3);

fn main() {
    common::run(creates());
}

async fn creates() -> Report {
    let (fake, folder) = (Fake::start(), folder());
    fake.order(json!({"pause": true})).await;
    let service = Arc::new(Service::start(folder.path(), &fake.url).await);
    service.online().await;
    let mut report = Report::default();
    let (mut rates, mut slowest) = (Vec::new(), Vec::new());
    // The first round warms up connections, caches and allocators.
    for round in 0..=ROUNDS {
        let times = create_for(&service, ROUND).await;
        if round == 0 {
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of tasks")]
        let rate = times.len() as f64 / ROUND.as_secs_f64();
        let (middle, high) = (millis(median(&times)), millis(quantile(&times, 0.99)));
        report.note(format!("{rate:.0}/s, p50 {middle:.2} ms, p99 {high:.2} ms"));
        rates.push(rate);
        slowest.push(high);
    }
    report.at_least(format!("creates at {CONNECTIONS} connections"), "/s", &rates, 2000.0);
    report.at_most("their p99", "ms", &slowest, 25.0);
    report
}

async fn create_for(service: &Arc<Service>, time: Duration) -> Vec<Duration> {
    let began = Instant::now();
    let mut connections = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let service = Arc::clone(service);
        connections.spawn(async move {
            let graph = graph(connection);
            let mut times = Vec::new();
            while began.elapsed() < time {
                times.push(timed(service.create(&graph)).await.0);
            }
            times
        });
    }
    connections.join_all().await.concat()
}
