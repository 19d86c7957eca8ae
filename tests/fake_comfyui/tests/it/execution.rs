//! Running prompts: order, cache, pictures, gate, log.

use std::time::Instant;

use fake_comfyui::{EventKind, Outcome};
use serde_json::json;

use crate::client::{Rig, kinds, simple};

#[tokio::test]
async fn a_prompt_runs_and_its_file_can_be_fetched() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    let id = rig.run(simple(7), "me").await;
    let frames = socket.until(|frame| frame.ends(&id)).await;
    let expected = [
        "status",
        "status",
        "execution_start",
        "execution_cached",
        "progress_state",
        "executing",
        "progress_state",
        "progress_state",
        "executing",
        "executed",
        "progress_state",
        "execution_success",
        "status",
        "executing",
    ];
    assert_eq!(kinds(&frames), expected);

    let entry = rig.history(&id).await.expect("history");
    assert_eq!(entry["status"]["status_str"], "success");
    let file = &entry["outputs"]["2"]["images"][0];
    assert_eq!(
        *file,
        json!({"filename": "simple_00001_.png", "subfolder": "lab", "type": "output"})
    );
    let bytes = rig
        .get("/view?filename=simple_00001_.png&subfolder=lab&type=output")
        .await
        .bytes()
        .await
        .expect("bytes");
    assert!(bytes.starts_with(b"\x89PNG"));
    let job = rig.get_json(&format!("/api/jobs/{id}")).await;
    assert_eq!(job["status"], "completed");
}

#[tokio::test]
async fn throughput_is_not_limited_by_timers() {
    let rig = Rig::new().await;
    const COUNT: u32 = 200;
    let began = Instant::now();
    for color in 0..COUNT {
        rig.run(simple(color), "nobody").await;
    }
    let last = rig.control.log().into_iter().rev().find_map(|event| match event.kind {
        EventKind::Posted { prompt_id, .. } => Some(prompt_id),
        _ => None,
    });
    rig.wait_finished(&last.expect("a post")).await;
    assert_eq!(rig.control.total_executions(), u64::from(COUNT));
    eprintln!("{COUNT} in {:?}, idle {:?}", began.elapsed(), rig.control.idle_time());
    let _ = Outcome::Success;
}
