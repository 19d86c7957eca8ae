use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use bytes::Bytes;
use comfyd_actors::{
    board::PhaseName,
    domain::{
        artifact::{Artifact, Facts, FileRef, Kind, Source, StoredObject},
        error::{ErrorCode, TaskError},
        id::BackendId,
        progress::Progress,
        task::{Fence, TaskState},
        time::Timestamp,
    },
    ports::store::TaskRecord,
    watch::Run,
};
use serde_json::json;

use super::fakes::{App, FakeComfy};

fn complete(record: &mut TaskRecord) {
    let at = |ms: i64| Some(Timestamp(1_700_000_000_000 + ms));
    record.task.state = TaskState::Completed;
    (record.task.started_at, record.task.executing_at) = (at(3), at(15));
    (record.task.uploading_at, record.task.finished_at) = (at(1_818), at(1_913));
    let source = FileRef { filename: "bé.png".into(), subfolder: String::new(), folder_type: "output".into() };
    let object = StoredObject {
        target: "local".into(),
        key: "k/0".into(),
        content_type: "image/png".into(),
        bytes: 10,
        sha256: "ab".into(),
        facts: Facts { width: Some(4), height: Some(3), frames: Some(1), ..Facts::default() },
    };
    let stored = Artifact {
        index: 0,
        node_id: "9".into(),
        kind: Kind::Image,
        source: Source::File(source),
        object: Some(object),
    };
    record.artifacts = vec![stored.clone(), Artifact { index: 1, object: None, ..stored }];
}

#[tokio::test]
async fn a_finished_task_is_shown_as_promised() {
    let app = App::start().await;
    let id = app.task(complete).await;
    let body = app.get_with(&format!("/api/tasks/{id}"), &[("host", "gpu.example:8000")]).await.json();
    assert_eq!(
        body["timings"],
        json!({"queued_ms": 3, "prepare_ms": 12, "execute_ms": 1803, "upload_ms": 95, "total_ms": 1913})
    );
    assert_eq!(
        (&body["status"], &body["stage"], &body["error"]),
        (&json!("completed"), &json!("completed"), &json!(null))
    );
    assert_eq!(body["progress"], json!({"percent": 100}));
    assert_eq!(body["outputs"].as_array().unwrap().len(), 1, "only what is stored");
    assert_eq!(
        body["outputs"][0],
        json!({"index": 0, "node_id": "9", "kind": "image", "content_type": "image/png", "bytes": 10, "sha256": "ab",
            "width": 4, "height": 3, "duration_ms": null, "frames": 1, "filename": "bé.png", "url": format!("http://gpu.example:8000/api/tasks/{id}/outputs/0")})
    );
    let public = App::with(|config| config.public_url = Some("https://pub.example".into()), Vec::new()).await;
    let id = public.task(complete).await;
    let body = public.get(&format!("/api/tasks/{id}")).await.json();
    assert_eq!(body["outputs"][0]["url"], format!("https://pub.example/api/tasks/{id}/outputs/0"));
}

#[tokio::test]
async fn each_state_has_its_words() {
    let app = App::start().await;
    for (state, status, stage, percent) in [
        (TaskState::Scheduled, "pending", "scheduled", json!(0)),
        (TaskState::Pending, "pending", "queued", json!(0)),
        (TaskState::Dispatching, "processing", "preparing", json!(0)),
        (TaskState::Executing, "processing", "executing", json!(40)),
        (TaskState::Uploading, "processing", "uploading", json!(99)),
        (TaskState::Failed, "failed", "failed", json!(null)),
        (TaskState::Cancelled, "cancelled", "cancelled", json!(null)),
    ] {
        let id = app
            .task(|record| {
                record.task.state = state;
                record.task.error = Some(TaskError::new(ErrorCode::NodeFailed, "boom"));
            })
            .await;
        app.world.board.set_progress(
            &Run { task: id, fence: Fence(1), workflow: None },
            Progress { percent: 40, node: Some("3".into()), step: Some(8), steps: Some(20), ..Progress::default() },
        );
        let body = app.get(&format!("/api/tasks/{id}")).await.json();
        assert_eq!((&body["status"], &body["stage"]), (&json!(status), &json!(stage)));
        assert_eq!(body["progress"]["percent"], percent, "{state}");
        assert_eq!(body["error"]["code"], "node_failed");
    }
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let app = App::start().await;
    let id = app.task(|_| {}).await;
    for path in [
        "/api/tasks/nonsense".to_owned(),
        "/api/tasks/01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11".to_owned(),
        format!("/api/tasks/{id}/outputs/0"),
        format!("/api/tasks/{id}/outputs/-1"),
        "/api/nothing".to_owned(),
    ] {
        let answer = app.get(&path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.json()["request_id"], answer.header("x-request-id"));
    }
    *app.world.store_down.lock().unwrap() = true;
    let answer = app.get(&format!("/api/tasks/{id}")).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
}

#[tokio::test]
async fn outputs_are_served_whole_and_in_part() {
    let app = App::start().await;
    app.world.objects.lock().unwrap().insert("k/0".into(), Bytes::from_static(b"0123456789"));
    let id = app.task(complete).await;
    let path = format!("/api/tasks/{id}/outputs/0");
    let whole = app.get(&path).await;
    assert_eq!((whole.status.as_u16(), &whole.body[..], whole.header("etag")), (200, &b"0123456789"[..], "\"ab\""));
    assert_eq!(whole.header("content-disposition"), "inline; filename=\"b_.png\"; filename*=UTF-8''b%C3%A9.png");
    assert_eq!((whole.header("content-type"), whole.header("x-content-type-options")), ("image/png", "nosniff"));
    let part = app.get_with(&path, &[("range", "bytes=2-4")]).await;
    assert_eq!(
        (part.status.as_u16(), &part.body[..], part.header("content-range")),
        (206, &b"234"[..], "bytes 2-4/10")
    );
    assert_eq!(part.header("content-length"), "3");
    let outside = app.get_with(&path, &[("range", "bytes=10-")]).await;
    assert_eq!((outside.status.as_u16(), outside.header("content-range")), (416, "bytes */10"));
    assert_eq!(outside.json()["code"], "range_not_satisfiable");
    let known = app.get_with(&path, &[("if-none-match", "\"x\", W/\"ab\"")]).await;
    assert_eq!((known.status.as_u16(), known.body.len()), (304, 0));
    let other = app.get_with(&path, &[("range", "bytes=2-4"), ("if-range", "\"old\"")]).await;
    assert_eq!((other.status.as_u16(), other.body.len()), (200, 10));
    let head = app.send(Request::head(&path).body(Body::empty()).unwrap()).await;
    assert_eq!((head.status.as_u16(), head.body.len(), head.header("content-length")), (200, 0, "10"));
    app.world.objects.lock().unwrap().clear();
    assert_eq!(app.get(&path).await.json()["code"], "output_missing");
}

#[tokio::test]
async fn pages_do_not_overlap_and_end() {
    let app = App::start().await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(app.task(|_| {}).await.to_string());
    }
    app.task(|record| record.task.state = TaskState::Failed).await;
    all.reverse();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for _ in 0..3 {
        let page = app
            .get(&format!("/api/tasks?status=pending,processing&workflow=text-to-image&limit=2{cursor}"))
            .await
            .json();
        seen.extend(page["tasks"].as_array().unwrap().iter().map(|task| task["task_id"].as_str().unwrap().to_owned()));
        cursor = page["next_cursor"].as_str().map(|c| format!("&cursor={c}")).unwrap_or_default();
    }
    assert_eq!((seen, cursor), (all, String::new()));
    let answer = app.get("/api/tasks?status=done&limit=201&cursor=x&staus=1").await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    let body = answer.json();
    let names: Vec<_> = body["errors"].as_array().unwrap().iter().map(|e| e["parameter"].as_str().unwrap()).collect();
    assert_eq!(
        (names, &body["errors"][3]["suggestion"]),
        (vec!["status", "limit", "cursor", "staus"], &json!("status"))
    );
}

#[tokio::test]
async fn cancelling_tells_how_far_it_is() {
    let app = App::start().await;
    let waiting = app.task(|_| {}).await;
    let answer = app.post(&format!("/api/tasks/{waiting}/cancel"), "").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("cancelled")));
    let running = app.task(|record| record.task.state = TaskState::Executing).await;
    let answer = app.post(&format!("/api/tasks/{running}/cancel"), "").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["stage"]), (202, &json!("cancelling")));
    let finished = app.task(complete).await;
    let answer = app.post(&format!("/api/tasks/{finished}/cancel"), "").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["outputs"][0]["index"]), (200, &json!(0)));
    assert_eq!(app.post("/api/tasks/x/cancel", "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_interrupt_is_for_our_own_tasks() {
    let app = App::start().await;
    let running = app.task(|record| record.task.state = TaskState::Executing).await.to_string();
    let waiting = app.task(|_| {}).await.to_string();
    let request = Request::post("/api/comfyui-interrupt").body(Body::empty()).unwrap();
    assert_eq!(app.send(request).await.json(), json!({"success": true, "data": {"task_ids": [running]}}));
    let named = app.post("/api/comfyui-interrupt", json!({"task_id": waiting}).to_string()).await;
    assert_eq!(named.json()["data"]["task_ids"], json!([waiting]));
    let finished = app.task(complete).await;
    let over = app.post("/api/comfyui-interrupt", json!({"task_id": finished.to_string()}).to_string()).await;
    assert_eq!((over.status.as_u16(), &over.json()["data"]["task_ids"]), (200, &json!([])));
    for (body, status) in [("{\"task_id\": 5, \"x\": 1}", 422), ("{", 400), ("{\"task_id\": \"nope\"}", 404)] {
        assert_eq!(app.post("/api/comfyui-interrupt", body).await.status.as_u16(), status, "{body}");
    }
}

#[tokio::test]
async fn servers_are_summed_up_and_told_apart() {
    let app =
        App::with(|_| {}, vec![FakeComfy::down("http://a"), FakeComfy::up("http://b"), FakeComfy::up("http://c")])
            .await;
    let body = app.get("/api/comfyui-queue-status").await.json();
    let data = &body["data"];
    assert_eq!((&data["running"], &data["pending"], &data["total"]), (&json!(2), &json!(4), &json!(6)));
    assert_eq!((data["queue_running"].as_array().unwrap().len(), &data["queue_pending"][0][1]), (2, &json!("p2")));
    assert!(body["backends"][0]["error"].as_str().unwrap().contains("refused"));
    let body = app.get("/api/comfyui-system-stats").await.json();
    assert_eq!(
        (&body["success"], &body["data"]["from"], &body["backends"][2]["data"]["from"]),
        (&json!(true), &json!("http://b"), &json!("http://c"))
    );
    let none = App::with(|_| {}, vec![FakeComfy::down("http://a")]).await;
    for path in ["/api/comfyui-queue-status", "/api/comfyui-system-stats"] {
        let answer = none.get(path).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (503, &json!("comfyui_unavailable")));
    }
}

#[tokio::test(start_paused = true)]
async fn probes_tell_what_is_wrong() {
    let app = App::start().await;
    assert_eq!(app.get("/api/health").await.json()["status"], "ok");
    assert_eq!((app.get("/livez").await.status.as_u16(), app.get("/readyz").await.status.as_u16()), (200, 200));
    app.world.board.update_backend(&BackendId::new("http://a"), |status| status.phase = PhaseName::Online);
    app.world.board.set_restarts("queue", 2);
    let status = app.get("/api/status").await.json();
    assert_eq!((&status["status"], &status["restarts"]["queue"]), (&json!("ok"), &json!(2)));
    assert_eq!((&status["backends"][0]["phase"], &status["store"]["ok"]), (&json!("online"), &json!(true)));
    *app.world.store_down.lock().unwrap() = true;
    assert_eq!(app.get("/readyz").await.status.as_u16(), 200, "a fresh check is not repeated");
    tokio::time::advance(std::time::Duration::from_secs(3)).await;
    app.world.board.set_draining();
    let answer = app.get("/readyz").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["errors"][0]["pointer"]), (503, &json!("/store")));
    assert_eq!(answer.json()["errors"][1]["pointer"], "/draining");
    let status = app.get("/api/status").await.json();
    assert_eq!((&status["status"], &status["store"]["ok"]), (&json!("draining"), &json!(false)));
    assert!(!status.to_string().contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_nothing_any_more_is_not_alive() {
    let app = App::start().await;
    assert_eq!(app.get("/livez").await.status, StatusCode::OK);
    // Nobody beats the pulse of this one.
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    let answer = app.get("/livez").await;
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("stuck")));
}
