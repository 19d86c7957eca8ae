//! Every scripted fault, and what a client sees of it.

use std::time::Duration;

use fake_comfyui::{EventKind, FakeConfig, Fault, Generation, Outcome};
use serde_json::{Value as Json, json};

use crate::client::{Frame, Rig, kinds, simple, within};

/// Long enough to be seen, short enough for tests.
const SHORT: Duration = Duration::from_millis(30);

fn uuid(number: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{number:02x}")
}

fn request(id: &str) -> Json {
    json!({"prompt": simple(1), "prompt_id": id, "client_id": "me", "extra_data": {"comfyd": {"task": "t1", "attempt": 1}}})
}

#[tokio::test]
async fn dropped_and_reset_sockets_end_without_a_close_frame() {
    let rig = Rig::new().await;
    for fault in [Fault::DropSockets, Fault::ResetSockets] {
        let mut socket = rig.socket("me").await;
        let position = rig.control.position();
        rig.control.inject(fault).await.expect("injected");
        assert_eq!(socket.next().await, Frame::Closed(1006));
        within(
            "the end of the socket",
            rig.control.wait_from(position, |event| matches!(event, EventKind::SocketClosed { .. })),
        )
        .await;
    }
    // HTTP goes on, and so does a new socket.
    let mut socket = rig.socket("me").await;
    let id = rig.run(simple(1), "me").await;
    socket.until(|frame| frame.ends(&id)).await;
}

#[tokio::test]
async fn silent_sockets_answer_pings_only() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    rig.control.inject(Fault::Silence).await.expect("injected");
    let id = rig.run(simple(1), "me").await;
    rig.wait_finished(&id).await;
    assert_eq!(kinds(&socket.drain().await), [""; 0]);
    rig.control.clear();
    let id = rig.run(simple(2), "me").await;
    socket.until(|frame| frame.ends(&id)).await;
}

#[tokio::test]
async fn deaf_sockets_stay_deaf_until_the_client_reconnects() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    rig.control.inject(Fault::Deafen).await.expect("injected");
    let id = rig.run(simple(1), "me").await;
    rig.wait_finished(&id).await;
    rig.control.clear();
    assert_eq!(kinds(&socket.drain().await), [""; 0]);
    let mut fresh = rig.socket("fresh").await;
    let id = rig.run(simple(2), "fresh").await;
    fresh.until(|frame| frame.ends(&id)).await;
}

#[tokio::test]
async fn half_open_sockets_answer_nothing() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    rig.control.inject(Fault::HalfOpen).await.expect("injected");
    let id = rig.run(simple(1), "me").await;
    rig.wait_finished(&id).await;
    socket.ping().await;
    // Nothing comes is the one thing that cannot be awaited; HTTP being alive shows that the server had its chance.
    rig.get_json("/queue").await;
    assert!(tokio::time::timeout(SHORT, socket.next()).await.is_err());
    // It takes the server's end to make the client see one.
    rig.fake.shutdown().await;
    assert_eq!(socket.next().await, Frame::Closed(1006));
}

#[tokio::test]
async fn a_restart_forgets_everything_but_the_outputs() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    let done = rig.run(simple(1), "me").await;
    let temp = rig.run(preview(1), "me").await;
    rig.wait_finished(&temp).await;
    let preview = rig.history(&temp).await.expect("history")["outputs"]["2"]["images"][0]["filename"].clone();
    rig.control.pause_execution();
    let lost = rig.run(simple(2), "me").await;
    rig.wait_gated(&lost).await;

    rig.control.inject(Fault::Restart { down: Duration::ZERO }).await.expect("injected");
    loop {
        if let Frame::Closed(code) = socket.next().await {
            assert_eq!(code, 1006);
            break;
        }
    }
    rig.control.resume();
    assert_eq!(rig.get_json("/history").await, json!({}));
    assert_eq!(rig.get_json("/queue").await, json!({"queue_running": [], "queue_pending": []}));
    assert_eq!(rig.get("/view?filename=simple_00001_.png&subfolder=lab").await.status(), 200);
    let temp_path = format!("/view?type=temp&filename={}", preview.as_str().expect("a name"));
    assert_eq!(rig.get(&temp_path).await.status(), 404);
    assert_eq!(rig.get(&format!("/api/jobs/{done}")).await.status(), 404);
    // The counter begins again, and the cache is empty.
    let answer: Json = rig.post("/prompt", &request(&uuid(1))).await.json().await.expect("JSON");
    assert_eq!(answer["number"], 0);
    rig.wait_finished(&uuid(1)).await;
    assert_eq!(rig.history(&uuid(1)).await.expect("history")["status"]["messages"][1][1]["nodes"], json!([]));
    assert_eq!(rig.control.executions(&lost), 1);
}

fn preview(color: u32) -> Json {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    })
}

#[tokio::test]
async fn a_killed_server_refuses_connections_until_revived() {
    let rig = Rig::new().await;
    rig.control.inject(Fault::Kill).await.expect("injected");
    let refused = rig.http.get(rig.url("/queue")).send().await.expect_err("nobody listens");
    assert!(refused.is_connect());
    rig.control.inject(Fault::Revive).await.expect("injected");
    assert_eq!(rig.get("/queue").await.status(), 200);
}

#[tokio::test]
async fn a_restart_by_http_answers_before_it_refuses() {
    let rig = Rig::new().await;
    let position = rig.control.position();
    let answer = rig.post("/fake/control", &json!({"fault": "restart", "down_ms": 20})).await;
    assert_eq!(answer.status(), 200);
    within("the restart", rig.control.wait_from(position, |event| *event == EventKind::Restarted)).await;
    assert_eq!(rig.get("/queue").await.status(), 200);
}

#[tokio::test]
async fn a_failed_answer_does_not_mean_a_refused_prompt() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::PostFailsAfterAccept, 1).await.expect("injected");
    assert_eq!(rig.post("/prompt", &request(&uuid(1))).await.status(), 500);
    rig.wait_finished(&uuid(1)).await;
    assert_eq!(rig.control.executions(&uuid(1)), 1);
    assert_eq!(rig.control.executions_of_task("t1"), 1);
    assert_eq!(rig.post("/prompt", &request(&uuid(2))).await.status(), 200);
}

#[tokio::test]
async fn a_lost_answer_cuts_the_connection() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::PostLost, 1).await.expect("injected");
    let body = request(&uuid(1)).to_string();
    let error = rig.http.post(rig.url("/prompt")).body(body).send().await.expect_err("no answer");
    assert!(!error.is_connect());
    rig.wait_finished(&uuid(1)).await;
}

#[tokio::test]
async fn a_delayed_answer_does_not_delay_the_prompt() {
    let rig = Rig::new().await;
    let delay = Duration::from_secs(3600);
    rig.control.inject_times(Fault::PostDelayed { delay }, 1).await.expect("injected");
    let body = request(&uuid(1)).to_string();
    let post = tokio::spawn(rig.http.post(rig.url("/prompt")).body(body).send());
    rig.wait_finished(&uuid(1)).await;
    assert!(!post.is_finished());
    post.abort();
}

#[tokio::test]
async fn a_held_prompt_arrives_after_its_client_has_gone() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::PostHeld { delay: SHORT }, 1).await.expect("injected");
    let body = request(&uuid(1)).to_string();
    let client = rig.http.post(rig.url("/prompt")).timeout(Duration::from_millis(1)).body(body);
    // Whether the client still gets an answer is a matter of luck; the prompt runs if the request was sent at all.
    if client.send().await.is_err() && rig.control.faults().is_empty() {
        rig.wait_finished(&uuid(1)).await;
    }
}

#[tokio::test]
async fn refused_prompts_do_not_run() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::PostFails, 1).await.expect("injected");
    assert_eq!(rig.post("/prompt", &request(&uuid(1))).await.status(), 500);
    rig.control.inject_times(Fault::PostRefused, 1).await.expect("injected");
    let refused = rig.post("/prompt", &request(&uuid(1))).await;
    assert_eq!(refused.status(), 400);
    let refused: Json = refused.json().await.expect("JSON");
    assert_eq!(refused["error"]["type"], "prompt_outputs_failed_validation");
    assert_eq!(rig.control.total_executions(), 0);
}

#[tokio::test]
async fn partial_acceptance_leaves_out_an_output() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::PartialAcceptance, 1).await.expect("injected");
    let mut graph = simple(1);
    graph["3"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}});
    let answer = rig.post("/prompt", &json!({"prompt": graph})).await;
    assert_eq!(answer.status(), 200);
    let answer: Json = answer.json().await.expect("JSON");
    assert!(answer["node_errors"]["3"].is_object());
    let id = answer["prompt_id"].as_str().expect("an id");
    rig.wait_finished(id).await;
    let entry = rig.history(id).await.expect("history");
    assert_eq!(entry["status"]["status_str"], "success");
    assert!(entry["outputs"]["2"].is_object() && entry["outputs"]["3"].is_null());
}

#[tokio::test]
async fn node_errors_and_lack_of_memory_end_one_prompt_only() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    for (fault, exception) in
        [(Fault::node_error("scripted"), "RuntimeError"), (Fault::OutOfMemory, "torch.OutOfMemoryError")]
    {
        rig.control.inject_times(fault, 1).await.expect("injected");
        let id = rig.run(simple(1), "me").await;
        let frames = socket.until(|frame| frame.ends(&id)).await;
        let error = frames.iter().find(|frame| frame.kind() == "execution_error").expect("an error");
        assert_eq!(error.data()["exception_type"], exception);
        let entry = rig.history(&id).await.expect("history");
        assert_eq!(entry["status"]["status_str"], "error");
        assert_eq!(rig.get_json(&format!("/api/jobs/{id}")).await["status"], "failed");
    }
    let id = rig.run(simple(1), "me").await;
    rig.wait("success", |event| *event == EventKind::Finished { prompt_id: id.clone(), outcome: Outcome::Success })
        .await;
}

#[tokio::test]
async fn a_hanging_node_ignores_interrupts_until_cleared() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::Hang, 1).await.expect("injected");
    let mut socket = rig.socket("me").await;
    let id = rig.run(simple(1), "me").await;
    socket.until(|frame| frame.kind() == "executing").await;
    assert_eq!(rig.post("/interrupt", &json!({"prompt_id": id})).await.status(), 200);
    assert_eq!(rig.get_json("/queue").await["queue_running"][0][1], id.as_str());
    rig.control.clear();
    // The next node sees the interrupt.
    let frames = socket.until(|frame| frame.ends(&id)).await;
    let last = frames.iter().find(|frame| frame.kind() == "execution_interrupted").expect("an interrupt");
    assert_eq!(last.data()["node_id"], "2");
}

#[tokio::test]
async fn a_dead_worker_takes_prompts_and_never_runs_them() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::DeadWorker, 1).await.expect("injected");
    let mut socket = rig.socket("me").await;
    let id = rig.run(simple(1), "me").await;
    socket.until(|frame| frame.kind() == "executing").await;
    let waiting = rig.run(simple(2), "me").await;
    rig.control.clear();
    let queue = rig.get_json("/queue").await;
    assert_eq!(queue["queue_running"][0][1], id.as_str());
    assert_eq!(queue["queue_pending"][0][1], waiting.as_str());
    rig.control.inject(Fault::Restart { down: Duration::ZERO }).await.expect("injected");
    let id = rig.run(simple(3), "me").await;
    rig.wait_finished(&id).await;
}

#[tokio::test]
async fn a_worker_that_is_gone_leaves_its_queue_waiting() {
    let rig = Rig::new().await;
    rig.control.inject_times(Fault::WorkerGone, 1).await.expect("injected");
    // It may be waiting for work already; whatever comes first wakes it to its end.
    let waiting = rig.run(simple(1), "me").await;
    let queue = rig.get_json("/queue").await;
    assert_eq!(queue["queue_running"], json!([]));
    assert_eq!(queue["queue_pending"][0][1], waiting.as_str());
    rig.control.inject(Fault::Restart { down: Duration::ZERO }).await.expect("injected");
    let id = rig.run(simple(2), "me").await;
    rig.wait_finished(&id).await;
}

#[tokio::test]
async fn history_can_lag_behind_success_and_behind_the_end() {
    let rig = Rig::new().await;
    let mut socket = rig.socket("me").await;
    rig.control.inject_times(Fault::SlowHistory { delay: SHORT }, 1).await.expect("injected");
    let id = rig.run(simple(1), "me").await;
    socket.until(|frame| frame.kind() == "execution_success").await;
    socket.until(|frame| frame.ends(&id)).await;
    assert!(rig.history(&id).await.is_some());
    let position = |wanted: &dyn Fn(&EventKind) -> bool| rig.control.log().iter().position(|event| wanted(&event.kind));
    assert!(position(&|event| matches!(event, EventKind::Recorded { .. })).is_some());

    rig.control.inject_times(Fault::LateHistory { delay: Duration::from_secs(1) }, 1).await.expect("injected");
    let id = rig.run(simple(2), "me").await;
    socket.until(|frame| frame.ends(&id)).await;
    assert_eq!(rig.get_json("/queue").await["queue_running"], json!([]));
    rig.wait("the late entry", |event| *event == EventKind::Recorded { prompt_id: id.clone() }).await;
    assert!(rig.history(&id).await.is_some());
    let log = rig.control.log();
    let at =
        |wanted: EventKind| log.iter().find(|event| event.kind == wanted).map(|event| event.at_us).expect("logged");
    let finished = at(EventKind::Finished { prompt_id: id.clone(), outcome: Outcome::Success });
    assert!(at(EventKind::Recorded { prompt_id: id }) - finished >= 1_000_000);
}

#[tokio::test]
async fn views_can_be_slow_cut_or_refused() {
    let rig = Rig::new().await;
    let graph = json!({"1": {"class_type": "FakeBytes", "inputs": {"bytes": 300_000, "count": 1, "seed": 5, "extension": "bin"}}});
    let id = rig.run(graph, "me").await;
    rig.wait_finished(&id).await;
    let path = "/view?filename=fake_00001_.bin";
    let whole = rig.get(path).await.bytes().await.expect("the file");
    assert_eq!(whole.len(), 300_000);

    rig.control.inject_times(Fault::SlowView { bytes_per_second: 3_000_000 }, 1).await.expect("injected");
    let began = std::time::Instant::now();
    assert_eq!(rig.get(path).await.bytes().await.expect("the file"), whole);
    assert!(began.elapsed() >= Duration::from_millis(90));

    rig.control.inject_times(Fault::CutView { bytes: 1000 }, 1).await.expect("injected");
    let answer = rig.get(path).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.content_length(), Some(300_000));
    assert!(answer.bytes().await.is_err());

    for status in [404, 500] {
        rig.control.inject_times(Fault::ViewStatus { status }, 1).await.expect("injected");
        assert_eq!(rig.get(path).await.status(), status);
    }
    assert_eq!(rig.get(path).await.bytes().await.expect("the file"), whole);
}

#[tokio::test]
async fn an_unhealthy_server_answers_500_everywhere_but_on_control() {
    let rig = Rig::new().await;
    assert_eq!(rig.post("/fake/control", &json!({"fault": "unhealthy"})).await.status(), 200);
    for path in ["/queue", "/prompt", "/system_stats", "/api/jobs", "/ws?clientId=x"] {
        assert_eq!(rig.get(path).await.status(), 500, "{path}");
    }
    let state = rig.get_json("/fake/control").await;
    assert_eq!(state["faults"], json!([{"fault": "unhealthy"}]));
    assert_eq!(rig.post("/fake/control", &json!({"clear": true})).await.status(), 200);
    assert_eq!(rig.get("/queue").await.status(), 200);
}

#[tokio::test]
async fn control_refuses_what_it_does_not_know() {
    let rig = Rig::new().await;
    for order in [json!({"fault": "no_such_fault"}), json!({"fault": "post_delayed"}), json!({"step": "x"}), json!(5)] {
        assert_eq!(rig.post("/fake/control", &order).await.status(), 400, "{order}");
    }
}

#[tokio::test]
async fn the_old_generation_has_no_jobs_api_and_takes_any_id() {
    let rig = Rig::with(FakeConfig { generation: Generation::V0_3_64, ..FakeConfig::default() }).await;
    assert_eq!(rig.get("/api/jobs").await.status(), 404);
    assert_eq!(rig.post(&format!("/api/jobs/{}/cancel", uuid(1)), &json!({})).await.status(), 405);
    let id = rig.submit(&json!({"prompt": simple(1), "prompt_id": "hello"})).await;
    assert_eq!(id, "hello");
    rig.wait_finished("hello").await;
    rig.control.inject(Fault::Generation { generation: Generation::Current }).await.expect("injected");
    assert_eq!(rig.get("/api/jobs").await.status(), 200);
}

#[tokio::test]
async fn the_oldest_generation_ignores_prompt_ids() {
    let rig = Rig::with(FakeConfig { generation: Generation::IgnoresPromptId, ..FakeConfig::default() }).await;
    rig.control.pause_execution();
    let id = rig.submit(&request(&uuid(1))).await;
    assert_ne!(id, uuid(1));
    rig.wait_gated(&id).await;
    let queue = rig.get_json("/queue").await;
    assert_eq!(queue["queue_running"][0][1], id.as_str());
    assert_eq!(queue["queue_running"][0][3]["comfyd"]["task"], "t1");
    // An interrupt hits what runs, whatever it names.
    rig.post("/interrupt", &json!({"prompt_id": uuid(9)})).await;
    rig.wait("the interrupt", |event| {
        *event == EventKind::Finished { prompt_id: id.clone(), outcome: Outcome::Interrupted }
    })
    .await;
    assert_eq!(rig.control.executions_of_task("t1"), 1);
}
