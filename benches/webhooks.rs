//! How long after its end a task's webhook has heard of it.
//!
//! From `timestamp` of the message, which is the moment of the end as it is committed, to the arrival of its last byte at a receiver in this
//! process, which answers at once. Both are the wall clock of one machine, in whole milliseconds. In between lie the flush of the end, the
//! flush after which nothing can undo what is told, and the request itself. Tasks come one after the other, each waited for.

#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode};
use comfyd_actors::domain::time::Timestamp;
use common::{Fake, PATIENCE, ROUNDS, Report, Service, folder, graph};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, UnboundedSender},
    time::timeout,
};

/// Tasks in a round.
const TASKS: usize = 200;
/// The figure of the issue, in milliseconds.
const BOUND: f64 = 20.0;

fn main() {
    common::run(webhooks());
}

async fn webhooks() -> Report {
    let (heard, mut ages) = mpsc::unbounded_channel();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let receiver = Router::new().fallback(hear).with_state(heard);
    let server = tokio::spawn(async move { axum::serve(listener, receiver).await });
    let (fake, folder) = (Fake::start(), folder());
    let port = address.port().to_string();
    let settings = [
        ("OUTBOUND_ALLOW_PRIVATE", "127.0.0.0/8"),
        ("COMFYD_OUTBOUND__HTTP", "true"),
        ("COMFYD_OUTBOUND__PORTS", port.as_str()),
        ("WEBHOOK_SECRETS", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ];
    let service = Service::start_with(folder.path(), &fake.url, &settings).await;
    service.online().await;
    let url = format!("http://{address}/hook");
    let mut report = Report::default();
    let [mut middle, mut worst] = [(); 2].map(|()| Vec::new());
    let mut numbers = 0..;
    // The first round warms up connections, caches and allocators.
    for round in 0..=ROUNDS {
        let mut samples = Vec::new();
        for _ in 0..TASKS {
            let body = json!({"workflow": graph(numbers.next().unwrap_or_default()), "webhook_url": url});
            service.create_as(&body).await;
            samples.push(timeout(PATIENCE, ages.recv()).await.expect("it hears").expect("it is there"));
        }
        samples.sort_by(f64::total_cmp);
        if round > 0 {
            middle.push(samples[TASKS / 2]);
            worst.push(samples[TASKS * 99 / 100]);
        }
    }
    report.at_most("from the end of a task to its webhook, p50", "ms", &middle, BOUND);
    report.at_most("the same, p99", "ms", &worst, 10.0 * BOUND);
    server.abort();
    report
}

/// Notes how old what it hears is, in milliseconds.
#[expect(clippy::disallowed_methods, reason = "compared with the service's clock, which is the same")]
async fn hear(State(heard): State<UnboundedSender<f64>>, body: Bytes) -> StatusCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64() * 1_000.0;
    let message: Value = serde_json::from_slice(&body).expect("JSON");
    let ended = message["timestamp"].as_str().and_then(Timestamp::parse).expect("a moment");
    #[expect(clippy::cast_precision_loss, reason = "until the year 285428")]
    let age = now - ended.0 as f64;
    _ = heard.send(age);
    StatusCode::NO_CONTENT
}
