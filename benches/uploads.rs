//! What storing in a bucket costs: four files of 1 MB from ComfyUI into an S3 server, by comfyd and by a bare client that does the same in
//! parallel, hashes and the check of what was stored included; the memory a video of 1 GB takes; and a thousand tasks while three requests of
//! ten fail.
//!
//! The server is the one the tests use (`tests/run` installs it; PYTHON names the interpreter that has it). It is written in Python and
//! is most of the time, for both.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;
#[path = "../tests/it/buckets/proxy.rs"]
#[expect(dead_code, reason = "a benchmark uses a part of it")]
mod proxy;

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use common::{Direct, Fake, ROUNDS, Report, Service, client, folder, graph, large_graph, megabytes, millis};
use proxy::{Dialect, Proxy};
use reqwest::Client;
use serde_json::json;

/// By then nothing of the start is going on any more.
const CALM: Duration = Duration::from_secs(2);
/// Runs per round.
const RUNS: usize = 10;
const TASKS: usize = 1_000;
/// Whoever signs anything is somebody to the server.
const SOMEBODY: &str =
    "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";

fn main() {
    common::run(uploads());
}

async fn uploads() -> Report {
    let mut report = Report::default();
    let server = Server::start();
    let (fake, folder, http) = (Fake::start(), folder(), client());
    let speed = server.bucket(&http, "speed").await;
    let service = Service::start_with(folder.path(), &fake.url, &settings("speed", &server.url)).await;
    service.online().await;
    let direct = Direct::connect(&fake.url, folder.path()).await;

    let four = || {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut graph = large_graph(4, 1_000_000);
        // Other files each time: nothing comes from the server's cache, and no key or file is there already.
        graph["1"]["inputs"]["seed"] = json!(NEXT.fetch_add(1, Ordering::Relaxed));
        graph
    };
    // From the end of the prompt to the last stored file: what a queue costs before it is measured by `latency`.
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let (mut bare, mut ours) = (Duration::ZERO, Duration::ZERO);
        // In turn, so that both meet the same machine.
        for _ in 0..RUNS {
            direct.run_into(&four(), &speed, SOMEBODY).await;
            bare += fake.since_last_end().await;
            service.run(&four()).await;
            ours += fake.since_last_end().await;
        }
        report.note(format!("{RUNS} runs: bare {:.0} ms, comfyd {:.0} ms", millis(bare), millis(ours)));
        ratios.push(ours.as_secs_f64() / bare.as_secs_f64());
    }
    report.at_most("4 x 1 MB from ComfyUI to S3, of a bare client's time", "", &ratios, 1.15);

    tokio::time::sleep(CALM).await;
    let before = service.memory();
    let peak = service
        .peak_while(async {
            let id = service.create_as(&json!({"workflow": large_graph(1, 1 << 30)})).await;
            service.drained(&id).await;
            assert_eq!(service.get(&format!("/api/tasks/{id}")).await["status"], "completed");
        })
        .await;
    report.at_most("more memory while 1 GiB is stored", "MB", &[megabytes(peak.saturating_sub(before))], 32.0);
    drop(service);

    let wrong = under_faults(&server, &fake, &http).await;
    report.at_most("objects missing or double, tasks run again, of 1,000", "", &[wrong], 0.0);
    report
}

/// A thousand tasks while three requests of ten are answered 500 or 503.
#[expect(clippy::cast_precision_loss, reason = "a count")]
async fn under_faults(server: &Server, fake: &Fake, http: &Client) -> f64 {
    server.bucket(http, "faults").await;
    let (proxy, folder) = (Proxy::start(&server.url, Dialect::Xml).await, folder());
    let service = Service::start_with(folder.path(), &fake.url, &settings("faults", &proxy.url())).await;
    service.online().await;
    let ran = fake.executions().await;
    proxy.fail(30);
    let mut ids = Vec::new();
    for number in 0..TASKS {
        ids.push(service.create_as(&json!({"workflow": graph(number)})).await);
    }
    service.drained(&ids[TASKS - 1]).await;
    let again = fake.executions().await - ran - TASKS as u64;
    let keys = server.keys(http, "faults").await;
    let stored = |id: &&String| keys.iter().filter(|key| key.contains(id.as_str())).count() == 1;
    let wrong = ids.iter().filter(|id| !stored(id)).count() + keys.len().abs_diff(TASKS);
    again as f64 + wrong as f64
}

fn settings<'a>(bucket: &'a str, endpoint: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("STORAGE_PROVIDER", "s3"),
        ("S3_BUCKET_NAME", bucket),
        ("S3_ENDPOINT_URL", endpoint),
        ("S3_ACCESS_KEY_ID", "somebody"),
        ("S3_SECRET_ACCESS_KEY", "hunter2"),
    ]
}

struct Server {
    url: String,
    process: Child,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned()));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bucket_server.py"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("Python");
        // Its address, and a key file that is not needed here, but must be read.
        let mut lines = BufReader::new(process.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let (Some(url), Some(_)) = (lines.next(), lines.next()) else {
            panic!(
                "the server of buckets does not start: tests/run installs it, PYTHON names an interpreter that has it"
            );
        };
        Self { url, process }
    }

    /// A new bucket's address.
    async fn bucket(&self, http: &Client, name: &str) -> String {
        let url = format!("{}/{name}", self.url);
        http.put(&url).send().await.expect("an answer").error_for_status().expect("a bucket");
        url
    }

    async fn keys(&self, http: &Client, bucket: &str) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        loop {
            let after = keys.last().cloned().unwrap_or_default();
            let url = format!("{}/{bucket}?list-type=2&start-after={after}", self.url);
            let page = http.get(url).send().await.expect("an answer").text().await.expect("a list");
            let before = keys.len();
            keys.extend(page.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())));
            if keys.len() == before {
                return keys;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
