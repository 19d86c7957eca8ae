//! What the process asks for: memory while it idles and while it stores large outputs, and time to start.
//!
//! Memory is what the system counts as resident, the program itself included. A start is timed from making the process to its first good
//! answer to `/readyz`, which needs the store and the storage written to once. Each start after the first follows a `kill -9`.

mod common;

use std::{path::Path, time::Duration};

use common::{Fake, ROUNDS, Report, Service, folder, large_graph, megabytes, millis, prefill};
use serde_json::json;

const FILES: usize = 4;
const BYTES: usize = 20_000_000;
const PENDING: u32 = 100_000;
/// By then nothing of the start is going on any more.
const CALM: Duration = Duration::from_secs(2);

fn main() {
    common::run(process());
}

async fn process() -> Report {
    let mut report = Report::default();
    memory(&mut report).await;
    start(&mut report).await;
    report
}

async fn memory(report: &mut Report) {
    let fake = Fake::start();
    let (mut idle, mut more) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let folder = folder();
        let service = Service::start(folder.path(), &fake.url).await;
        service.online().await;
        tokio::time::sleep(CALM).await;
        let before = service.memory();
        let peak = service.peak_while(service.run(&large_graph(FILES, BYTES))).await;
        report.note(format!("idle {:.1} MB, at most {:.1} MB while storing", megabytes(before), megabytes(peak)));
        idle.push(megabytes(before));
        more.push(megabytes(peak.saturating_sub(before)));
    }
    report.at_most("memory when idle", "MB", &idle, 40.0);
    report.at_most(format!("more while {FILES} outputs of {} MB are stored", BYTES / 1_000_000), "MB", &more, 16.0);
}

async fn start(report: &mut Report) {
    let fake = Fake::start();
    fake.order(json!({"pause": true})).await;
    let mut empty = Vec::new();
    for _ in 0..ROUNDS {
        empty.push(ready_after(folder().path(), &fake).await);
    }
    let full_folder = folder();
    drop(prefill(full_folder.path(), PENDING, 0).await);
    let mut full = Vec::new();
    for _ in 0..ROUNDS {
        full.push(ready_after(full_folder.path(), &fake).await);
    }
    report.at_most("start to ready, empty store", "ms", &empty, 200.0);
    report.at_most(format!("start to ready, {PENDING} pending"), "ms", &full, 300.0);
}

async fn ready_after(folder: &Path, fake: &Fake) -> f64 {
    millis(Service::start(folder, &fake.url).await.ready_after)
}
