//! A task's way through, without trouble and with the troubles a task makes itself.

use std::time::Duration;

use fake_comfyui::{EventKind, Fault};
use reqwest::StatusCode;
use serde_json::json;

use crate::support::{task, task_with, world};

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_becomes_a_stored_picture() {
    let world = world().start().await;
    let id = world.create(&task(0xff_00_00)).await;
    let done = world.completed(&id).await;
    assert_eq!(done["outputs"][0]["kind"], "image");
    assert_eq!(done["outputs"][0]["node_id"], "2");
    assert_eq!(done["attempt"], 1);
    assert_eq!(world.executions(&id), 1);
    // Finished prompts leave the server's history.
    world.fake().wait_for(|event| matches!(event, EventKind::HistoryDeleted { .. })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_workflow_reports_the_seed_it_drew() {
    let world = world().start().await;
    let inputs = json!({"prompt": "a house", "steps": 2, "width": 64, "height": 64});
    let id = world.create(&json!({"workflow": "text-to-image", "inputs": inputs})).await;
    let done = world.completed(&id).await;
    assert_eq!(done["workflow"], "text-to-image");
    assert!(done["inputs"]["seed"].is_u64(), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_task() {
    let world = world().start().await;
    let send = |color: u32| {
        let request = world.client.post(world.url("/api/tasks/create")).header("Idempotency-Key", "k1");
        request.json(&task(color)).send()
    };
    let (first, again) = (send(1).await.unwrap(), send(1).await.unwrap());
    assert_eq!((first.status(), again.status()), (StatusCode::ACCEPTED, StatusCode::OK));
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    let id = |answer: serde_json::Value| answer["task_id"].as_str().unwrap().to_owned();
    let (first, again) = (id(first.json().await.unwrap()), id(again.json().await.unwrap()));
    assert_eq!(first, again);
    assert_eq!(send(2).await.unwrap().status(), StatusCode::UNPROCESSABLE_ENTITY);
    world.completed(&first).await;
    assert_eq!(world.executions(&first), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_urgent_overtake() {
    let world = world().with("COMFYD_QUEUE__PREPARE_AHEAD", "0").start().await;
    world.fake().pause_execution();
    let first = world.create(&task(1)).await;
    world.running(&first).await;
    let low = world.create(&task_with(2, &json!({"priority": "low"}))).await;
    let high = world.create(&task_with(3, &json!({"priority": "high"}))).await;
    world.fake().resume();
    for id in [&first, &low, &high] {
        world.completed(id).await;
    }
    let started: Vec<_> = world
        .fake()
        .log()
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::Started { task, .. } => task,
            _ => None,
        })
        .collect();
    assert_eq!(started, [first, high, low]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_prompt_is_prepared_ahead_and_no_more() {
    let world = world().start().await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..5 {
        ids.push(world.create(&task(color)).await);
    }
    world.running(&ids[0]).await;
    let posted =
        |id: &str, event: &EventKind| matches!(event, EventKind::Posted { task: Some(task), .. } if task == id);
    world.fake().wait_for(|event| posted(&ids[1], event)).await;
    let posts = world.fake().log().iter().filter(|event| matches!(event.kind, EventKind::Posted { .. })).count();
    assert_eq!(posts, 2);
    world.fake().resume();
    for id in &ids {
        world.completed(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    let world = world().start().await;
    world.fake().inject_times(Fault::node_error("a passing fault"), 1).await.unwrap();
    let id = world.create(&task(1)).await;
    assert_eq!(world.completed(&id).await["attempt"], 2);

    let hopeless = Fault::NodeError { exception_type: "ValueError".into(), message: "no such thing".into() };
    world.fake().inject_times(hopeless, 1).await.unwrap();
    let id = world.create(&task(2)).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("node_failed")));
    assert_eq!(world.executions(&id), 1);

    world.fake().inject(Fault::node_error("again and again")).await.unwrap();
    let id = world.create(&task_with(3, &json!({"max_attempts": 2}))).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["status"], &failed["attempt"]), (&json!("failed"), &json!(2)));
    assert_eq!(world.executions(&id), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_graph_says_why() {
    let world = world().with("COMFYD_COMFYUI__VALIDATE", "off").start().await;
    let mut body = task(1);
    body["workflow"]["1"]["class_type"] = json!("NoSuchNode");
    let id = world.create(&body).await;
    let failed = world.finished(&id).await;
    assert_eq!(failed["error"]["code"], "invalid_prompt", "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("NoSuchNode"), "{failed}");
    assert_eq!(world.executions(&id), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partly_accepted_graph_is_taken_back() {
    let world = world().start().await;
    world.fake().inject_times(Fault::PartialAcceptance, 1).await.unwrap();
    let mut body = task(1);
    body["workflow"]["3"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}});
    let id = world.create(&body).await;
    let failed = world.finished(&id).await;
    assert_eq!(failed["error"]["code"], "partially_accepted", "{failed}");
    assert!(failed["error"]["node_errors"].is_object(), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partly_accepted_graph_runs_in_part_when_that_is_allowed() {
    let world = world().start().await;
    world.fake().inject_times(Fault::PartialAcceptance, 1).await.unwrap();
    let mut body = task(1);
    body["workflow"]["3"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}});
    body["allow_partial"] = json!(true);
    let id = world.create(&body).await;
    let done = world.finished(&id).await;
    assert_eq!((&done["status"], world.executions(&id)), (&json!("completed"), 1), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_wherever_it_is() {
    let world = world().start().await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.create(&task(color)).await);
    }
    let [running, prepared, pending, other] = &ids[..] else { panic!() };
    world.running(running).await;
    let is_prepared =
        |event: &EventKind| matches!(event, EventKind::Posted { task: Some(task), .. } if task == prepared);
    world.fake().wait_for(is_prepared).await;

    let (status, task) = world.cancel(pending).await;
    assert_eq!((status, &task["status"]), (StatusCode::OK, &json!("cancelled")));
    world.stop(prepared).await;
    world.stop(running).await;
    for id in [running, prepared, pending] {
        assert_eq!(world.finished(id).await["status"], "cancelled");
    }
    world.fake().resume();
    world.completed(other).await;
    assert_eq!((world.executions(prepared), world.executions(pending)), (0, 0));
    let (status, task) = world.cancel(other).await;
    assert_eq!((status, &task["status"]), (StatusCode::OK, &json!("completed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_while_its_files_are_stored() {
    let world = world().start().await;
    world.fake().inject(Fault::SlowView { bytes_per_second: 1 }).await.unwrap();
    let id = world.create(&task(1)).await;
    world.fake().wait_for(|event| matches!(event, EventKind::Viewed { .. })).await;
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_task_times_out_and_the_next_one_runs() {
    let world = world().start().await;
    world.fake().inject_times(Fault::Hang, 1).await.unwrap();
    let id = world.create(&task_with(1, &json!({"timeout": "1s"}))).await;
    let failed = world.finished(&id).await;
    assert_eq!(failed["error"]["code"], "timeout", "{failed}");
    assert_eq!(failed["attempt"], 1);
    world.fake().clear();
    let next = world.create(&task(2)).await;
    world.completed(&next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_stop_and_a_start_lose_nothing() {
    let world = world().start().await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.create(&task(color)).await);
    }
    world.running(&ids[0]).await;
    let world = tokio::time::timeout(Duration::from_secs(30), world.restart()).await.unwrap();
    world.fake().resume();
    for id in &ids {
        let done = world.completed(id).await;
        assert_eq!(done["attempt"], 1);
        assert_eq!(world.executions(id), 1);
    }
}
