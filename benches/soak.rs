//! Whether memory grows: ten minutes of tasks at full speed, with somebody reading pages and somebody watching all events.
//!
//! `COMFYD_BENCH_SECONDS` makes it shorter or longer. Memory is what the system counts as resident. It is compared with what it was after a
//! tenth of the time (one minute), when every buffer has been used once.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Fake, Report, Service, folder, graph, megabytes};
use futures_util::StreamExt;
use tokio::task::JoinSet;

const SECONDS: u64 = 600;
/// Clients that create a task and wait for it, one after the other.
const CLIENTS: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const READ_EVERY: Duration = Duration::from_millis(100);

fn main() {
    common::run(soak());
}

async fn soak() -> Report {
    let seconds = std::env::var("COMFYD_BENCH_SECONDS").map_or(SECONDS, |text| text.parse().expect("seconds"));
    let (fake, folder) = (Fake::start(), folder());
    let service = Arc::new(Service::start(folder.path(), &fake.url).await);
    service.online().await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut load = JoinSet::new();
    for _ in 0..CLIENTS {
        let (service, done) = (Arc::clone(&service), Arc::clone(&done));
        load.spawn(async move {
            loop {
                service.run(&graph(done.fetch_add(1, Ordering::Relaxed))).await;
            }
        });
    }
    load.spawn(read(Arc::clone(&service)));
    load.spawn(watch(Arc::clone(&service)));

    let mut report = Report::default();
    let (began, mut samples) = (Instant::now(), Vec::new());
    while began.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(LOOK_EVERY).await;
        samples.push(service.memory());
        if let Some(ended) = load.try_join_next() {
            ended.expect("the load goes on");
        }
    }
    load.shutdown().await;
    // A part long enough that one busy second does not decide.
    let part = (samples.len() / 20).max(1);
    let after_warming_up = middle(&samples[samples.len() / 10..][..part]);
    let in_the_end = middle(&samples[samples.len() - part..]);
    let tasks = done.load(Ordering::Relaxed);
    report.note(format!("{tasks} tasks in {seconds} s, {} a second", tasks as u64 / seconds));
    let (first, last) = (megabytes(after_warming_up), megabytes(in_the_end));
    report.note(format!("{first:.1} MB after a tenth of the time, {last:.1} MB in the end"));
    report.at_most(format!("growth of memory over {seconds} s at full speed"), "%", &[(last / first - 1.0) * 1e2], 5.0);
    report
}

fn middle(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Looks at pages, as a person with a browser does.
async fn read(service: Arc<Service>) {
    loop {
        for path in ["/api/tasks?limit=100", "/api/status", "/readyz"] {
            let answer = service.http.get(format!("{}{path}", service.url)).send().await.expect("an answer");
            drop(answer.error_for_status().expect("a good one").bytes().await);
            tokio::time::sleep(READ_EVERY).await;
        }
    }
}

/// Watches everything that happens, and connects again when that takes too long for the client.
async fn watch(service: Arc<Service>) {
    loop {
        let answer = service.http.get(format!("{}/api/events", service.url)).send().await.expect("an answer");
        let mut events = answer.error_for_status().expect("a stream").bytes_stream();
        while events.next().await.is_some_and(|chunk| chunk.is_ok()) {}
    }
}
