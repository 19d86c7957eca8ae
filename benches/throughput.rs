//! How much of ComfyUI's own speed is left when a long queue is worked off.
//!
//! The tasks wait in comfyd, stored, when the clock starts; it stops when all of them are completed, outputs and all. The
//! [direct client](common::Direct) keeps one prompt running and one queued, and stores outputs meanwhile. For the idle share the
//! yardstick is a queue that cannot run dry: all prompts put into ComfyUI at once.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Direct, Fake, ROUNDS, Report, Service, folder, graph, timed};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const TASKS: usize = 500;
/// Enough for a share of a thousandth to show.
const LONG_TASKS: usize = 100;
const LONG: Duration = Duration::from_millis(50);
/// Connections over which tasks are created.
const CONNECTIONS: usize = 16;

fn main() {
    common::run(throughput());
}

async fn throughput() -> Report {
    let (fake, folder) = (Fake::start(), folder());
    let direct = Direct::connect(&fake.url, folder.path()).await;
    let service = Arc::new(Service::start(folder.path(), &fake.url).await);
    service.online().await;
    let mut first = 0;
    let mut graphs = |count: usize| {
        first += count;
        (first - count..first).map(graph).collect::<Vec<_>>()
    };
    let mut report = Report::default();

    for (node_time, bound) in [(Duration::from_millis(10), 0.95), (Duration::ZERO, 0.5)] {
        fake.set_node_time(node_time).await;
        let mut shares = Vec::new();
        for _ in 0..ROUNDS {
            let theirs = rate(TASKS, timed(direct.run_all(graphs(TASKS).into_iter())).await.0);
            let ours = rate(TASKS, work_off(&fake, &service, graphs(TASKS)).await);
            report.note(format!("{node_time:?} tasks: direct {theirs:.1}/s, service {ours:.1}/s"));
            shares.push(ours / theirs);
        }
        report.at_least(format!("{TASKS} queued tasks of {node_time:?}, of the direct rate"), "", &shares, bound);
    }

    fake.set_node_time(LONG).await;
    let mut excess = Vec::new();
    for _ in 0..ROUNDS.min(3) {
        fake.order(json!({"reset_idle_time": true})).await;
        let submitted = join_all(graphs(LONG_TASKS).iter().map(|graph| direct.submit(graph))).await;
        join_all(submitted.into_iter().map(|(_, ended)| ended)).await;
        let theirs = fake.idle_share().await;
        fake.order(json!({"reset_idle_time": true})).await;
        work_off(&fake, &service, graphs(LONG_TASKS)).await;
        let ours = fake.idle_share().await;
        report.note(format!(
            "{LONG:?} tasks: idle {:.2} % when filled directly, {:.2} % here",
            theirs * 1e2,
            ours * 1e2
        ));
        excess.push((ours - theirs) * 1e2);
    }
    report.at_most(format!("idle with tasks of {LONG:?}, above a filled queue"), "%", &excess, 1.0);
    report
}

/// Stores tasks while ComfyUI stands still, then lets it go: the time until all are completed.
async fn work_off(fake: &Fake, service: &Arc<Service>, graphs: Vec<Value>) -> Duration {
    fake.order(json!({"pause": true})).await;
    let graphs = Arc::new(graphs);
    let mut creating = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let (service, graphs) = (Arc::clone(service), Arc::clone(&graphs));
        creating.spawn(async move {
            let mut last = Value::Null;
            for graph in graphs.iter().skip(connection).step_by(CONNECTIONS) {
                last = service.create(graph).await;
            }
            last
        });
    }
    let created = creating.join_all().await;
    let last = created.iter().filter_map(|task| task["task_id"].as_str()).max().expect("tasks were created");
    timed(async {
        fake.order(json!({"resume": true})).await;
        service.drained(last).await;
    })
    .await
    .0
}

#[expect(clippy::cast_precision_loss, reason = "a count of tasks")]
fn rate(tasks: usize, time: Duration) -> f64 {
    tasks as f64 / time.as_secs_f64()
}
