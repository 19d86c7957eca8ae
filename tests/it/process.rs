//! The real program as a process: killed, stopped, started again, and asked what it thinks of its configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use fake_comfyui::{EventKind, Fault};
use futures_util::{StreamExt, stream};
use rand::RngExt;
use reqwest::StatusCode;

use crate::{
    chaos::with_seed,
    inputs,
    place::{Place, command},
    support::PATIENCE,
};

/// Runs the program to its end.
async fn run(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap());
    tokio::time::timeout(PATIENCE, ended).await.expect("the program does not end").unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_prompt_runs_the_next_process_adopts_it() {
    let place = Place::new().await;
    let process = place.start().await;
    place.control().pause_execution();
    let ids = place.create(1).await;
    let prompt = place.running(&ids[0]).await;
    drop(process);
    let _process = place.start().await;
    place.control().resume();
    place.end(&ids, 1).await;
    assert_eq!(place.control().executions(&prompt), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_files_are_on_their_way_the_next_process_sends_them() {
    let place = Place::new().await;
    let process = place.start().await;
    let stored = place.api.store(inputs::picture(1, 100_000)).await;
    place.control().inject_times(Fault::SlowUpload { bytes_per_second: 1 }, 1).await.unwrap();
    let id = place.api.create(&inputs::task(&stored)).await;
    place.wait_for(|event| matches!(event, EventKind::UploadBegun)).await;
    drop(process);
    let _process = place.start().await;
    place.end(&[id], 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_goes_through_in_small_pieces() {
    let place = Place::new().await.with("COMFYD_INPUTS__MAX_SIZE", "120MB");
    let process = place.start().await;
    // What it has to have anyway.
    let first = place.api.store(inputs::picture(1, 0)).await;
    place.end(&[place.api.create(&inputs::task(&first)).await], 1).await;
    let before = process.peak_memory();
    let stored = place.api.store(inputs::picture(2, 80 << 20)).await;
    let id = place.api.create(&inputs::task(&stored)).await;
    place.end(&[id], 1).await;
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 16])).take(10_000);
    let request = place.api.client.post(place.api.url("/api/inputs")).header("content-type", "image/png");
    // The answer may come while the body is still being sent: then the client only sees the connection end.
    if let Ok(answer) = request.body(reqwest::Body::wrap_stream(endless)).send().await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    let grown = process.peak_memory().saturating_sub(before) >> 10;
    println!("80 MiB went through with {grown} KiB more than before");
    assert!(grown < 32 << 10, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_with_many_waiting_none_is_lost() {
    let place = Place::new().await;
    let process = place.start().await;
    place.control().pause_execution();
    let first = place.create(1).await;
    place.running(&first[0]).await;
    let ids = place.create(20).await;
    drop(process);
    let _process = place.start().await;
    place.control().resume();
    place.end(&ids, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_storing_it_stores_again_and_runs_nothing() {
    let place = Place::new().await;
    let process = place.start().await;
    place.control().inject_times(Fault::SlowView { bytes_per_second: 1 }, 1).await.unwrap();
    let ids = place.create(1).await;
    place.wait_for(|event| matches!(event, EventKind::Viewed { .. })).await;
    drop(process);
    let _process = place.start().await;
    place.end(&ids, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_under_load() {
    with_seed(async |mut rng| {
        let place = Place::new().await;
        place.control().set_node_time(Duration::from_millis(20));
        let first = place.start().await;
        let restarting = async {
            let mut process = first;
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(rng.random_range(20..300))).await;
                drop(process);
                process = place.start().await;
            }
            process
        };
        let (ids, _process) = tokio::join!(place.create(60), restarting);
        place.end(&ids, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_its_prompt_runs_it_once_more() {
    let place = Place::new().await;
    let _process = place.start().await;
    place.control().pause_execution();
    let ids = place.create(1).await;
    place.running(&ids[0]).await;
    place.control().inject(Fault::Restart { down: Duration::from_millis(200) }).await.unwrap();
    place.control().resume();
    place.end(&ids, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_hands_over_and_the_next_process_adopts() {
    let place = Place::new().await;
    let mut process = place.start().await;
    place.control().pause_execution();
    let first = place.create(1).await;
    let prompt = place.running(&first[0]).await;
    let ids = place.create(5).await;
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(0));
    let _process = place.start().await;
    place.control().resume();
    place.end(&ids, 1).await;
    assert_eq!(place.control().executions(&prompt), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let place = Place::new().await.with("COMFYD_SERVER__DRAIN_GRACE", "10m");
    let mut process = place.start().await;
    place.control().inject_times(Fault::SlowView { bytes_per_second: 1 }, 1).await.unwrap();
    let ids = place.create(1).await;
    place.wait_for(|event| matches!(event, EventKind::Viewed { .. })).await;
    process.signal("TERM");
    // It waits for the upload, and says so: the first signal has been taken.
    place.api.until_status(|status| status["status"] == "draining").await;
    process.signal("TERM");
    assert_eq!(process.ended().await.code(), Some(130));
    let _process = place.start().await;
    place.end(&ids, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_leaves_three_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = command(dir.path());
    demo.args(["demo", "--exit"]);
    let output = run(demo).await;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let mut pictures = Vec::new();
    find_files(&dir.path().join("data/outputs"), &mut pictures);
    assert_eq!(pictures.len(), 3, "{pictures:?}");
    for picture in pictures {
        assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"), "{picture:?}");
        assert!(text(&output.stdout).contains(picture.file_name().unwrap().to_str().unwrap()), "{picture:?}");
    }
}

fn find_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { find_files(&path, found) } else { found.push(path) }
    }
}

/// Three faults of three kinds.
const FAULTS: [(&str, &str); 3] =
    [("PORT", "many"), ("COMFYD_QUEUE__RENEW_EVERY", "29s"), ("COMFYD_SERVER__DRAIN_GRACEE", "1s")];

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let mut sound = command(dir.path());
    sound.arg("check-config");
    let output = run(sound).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("The configuration is sound."));

    let mut faulty = command(dir.path());
    faulty.arg("check-config").envs(FAULTS);
    let output = run(faulty).await;
    assert_eq!(output.status.code(), Some(1));
    assert_all_are_named(&text(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_configuration_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut faulty = command(dir.path());
    faulty.envs(FAULTS);
    let output = run(faulty).await;
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
    assert_all_are_named(&text(&output.stderr));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it wrote something");
}

fn assert_all_are_named(text: &str) {
    for named in ["server.port = \"many\"", "queue.renew_every", "COMFYD_SERVER__DRAIN_GRACEE", "drain_grace"] {
        assert!(text.to_lowercase().contains(&named.to_lowercase()), "{named} is not in:\n{text}");
    }
    assert!(text.contains("3 fault(s)"), "{text}");
}
