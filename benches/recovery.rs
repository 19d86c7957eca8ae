//! How long a task waits for the next process when comfyd is killed: from the moment it is ready again to the stored end of a task that was
//! under way, which includes finding its prompt, reading its history and storing its output. And that nothing runs a second time.
//!
//! `kill -9` while the prompt runs, while the answer to it is awaited, while its output is stored. Everything as it is by default.

#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::time::Duration;

use common::{Fake, Report, Service, folder, graph, millis, quantile, timed};
use serde_json::{Value, json};

/// Kills of each kind.
const KILLS: usize = 10;
/// From ready to the end of the task.
const BOUND: f64 = 2_000.0;

fn main() {
    common::run(recovery());
}

async fn recovery() -> Report {
    let mut report = Report::default();
    let pause = json!({"pause": true});
    let late = json!({"pause": true, "fault": "post_delayed", "delay_ms": 600_000, "times": 1});
    let trickle = json!({"fault": "slow_view", "bytes_per_second": 1, "times": 1});
    for (what, order) in
        [("while it runs", pause), ("while the answer to it is awaited", late), ("while its output is stored", trickle)]
    {
        killed(&mut report, what, &order).await;
    }
    report
}

async fn killed(report: &mut Report, what: &str, order: &Value) {
    let (fake, folder) = (Fake::start(), folder());
    let mut adopted = Vec::new();
    for number in 0..KILLS {
        let service = Service::start(folder.path(), &fake.url).await;
        service.online().await;
        fake.order(order.clone()).await;
        let task = service.create(&graph(number)).await;
        let path = format!("/api/tasks/{}", task["task_id"].as_str().expect("its id"));
        // The gate holds it inside its first node; a trickling output holds it in our hands.
        let stage = if order["pause"] == true { None } else { Some("uploading") };
        while !reached(&fake, &service, &path, stage).await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(service);
        let next = Service::start(folder.path(), &fake.url).await;
        fake.order(json!({"clear": true, "resume": true})).await;
        let (took, task) = timed(finished(&next, &path)).await;
        assert_eq!(task["status"], "completed", "{task}");
        adopted.push(took);
    }
    let [half, most] = [0.5, 1.0].map(|part| millis(quantile(&adopted, part)));
    report.note(format!("killed {what}: p50 {half:.0} ms, at most {most:.0} ms"));
    report.at_most(format!("ready to stored, killed {what}"), "ms", &[most], BOUND);
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let extra = (fake.executions().await - KILLS as u64) as f64;
    report.at_most(format!("extra runs, killed {what}"), "", &[extra], 0.0);
}

/// Whether it is time to kill.
async fn reached(fake: &Fake, service: &Service, path: &str, stage: Option<&str>) -> bool {
    match stage {
        Some(stage) => service.get(path).await["stage"] == stage,
        None => fake.running().await,
    }
}

async fn finished(service: &Service, path: &str) -> Value {
    let request = service.http.get(format!("{}{path}", service.url)).header("Prefer", "wait=60");
    request.send().await.expect("an answer").json().await.expect("a task")
}
