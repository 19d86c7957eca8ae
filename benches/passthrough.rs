//! What going through comfyd costs: a file of 100 MB from ComfyUI's `/view`, straight and through `/api/comfyui/view`, one after the
//! other in the same run.
//!
//! The client throws the bytes away, so that the way is measured and not a disk. Memory is what the system counts as resident.
#![expect(clippy::expect_used, reason = "a benchmark that cannot measure says so and ends")]

mod common;

use std::{io, iter, time::Duration};

use bytes::Bytes;
use common::{Fake, ROUNDS, Report, Service, client, folder, megabytes, millis, timed};
use futures_util::stream;
use reqwest::{Body, Client};

/// ComfyUI takes 100 MiB at most.
const PIECE: usize = 1_000_000;
const PIECES: usize = 100;
/// By then nothing of the start is going on any more.
const CALM: Duration = Duration::from_secs(2);

fn main() {
    common::run(passthrough());
}

async fn passthrough() -> Report {
    let mut report = Report::default();
    let (fake, folder, http) = (Fake::start(), folder(), client());
    let service = Service::start(folder.path(), &fake.url).await;
    service.online().await;
    let through = format!("{}/api/comfyui", service.url);
    send(&http, &fake.url).await;
    tokio::time::sleep(CALM).await;
    let before = service.memory();

    let (mut speeds, mut down, mut up) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (direct, ()) = timed(fetch(&http, &fake.url)).await;
        let (passed, ()) = timed(fetch(&http, &through)).await;
        report.note(format!("straight {:.0} ms, through {:.0} ms", millis(direct), millis(passed)));
        speeds.push(direct.as_secs_f64() / passed.as_secs_f64());
        let more = |peak: u64| megabytes(peak.saturating_sub(before));
        down.push(more(service.peak_while(fetch(&http, &through)).await));
        up.push(more(service.peak_while(send(&http, &through)).await));
    }
    report.at_least("a /view of 100 MB, of the direct speed", "", &speeds, 0.7);
    report.at_most("more memory while it goes through", "MB", &down, 4.0);
    report.at_most("more memory while as much is uploaded", "MB", &up, 4.0);
    report
}

async fn fetch(http: &Client, comfyui: &str) {
    let request = http.get(format!("{comfyui}/view?filename=large.bin&type=input"));
    let mut answer = request.send().await.expect("an answer").error_for_status().expect("the file");
    let mut seen = 0;
    while let Some(chunk) = answer.chunk().await.expect("the whole file") {
        seen += chunk.len();
    }
    assert_eq!(seen, PIECE * PIECES);
}

async fn send(http: &Client, comfyui: &str) {
    let head = "--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"large.bin\"\r\n\r\n";
    let pieces = iter::once(Bytes::from(head))
        .chain(iter::repeat_n(Bytes::from(vec![b'z'; PIECE]), PIECES))
        .chain(iter::once(Bytes::from("\r\n--x--\r\n")))
        .map(Ok::<_, io::Error>);
    let request = http
        .post(format!("{comfyui}/upload/image"))
        .header("Content-Type", "multipart/form-data; boundary=x")
        .body(Body::wrap_stream(stream::iter(pieces)));
    request.send().await.expect("an answer").error_for_status().expect("it is stored");
}
