//! What a service does the same on every server that keeps its tasks.

use comfyd_actors::{domain::task::TaskState, ports::store::Query};
use fake_comfyui::FakeConfig;
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    place::command,
    support::{PATIENCE, World, task, task_with, world},
    tools,
};

/// Created, run, stored, listed, cancelled, repeated, made from a workflow: all as on SQLite.
pub async fn keeps_its_tasks(world: World) {
    let id = world.create(&task(0xff_00_00)).await;
    let done = world.completed(&id).await;
    assert_eq!((done["outputs"][0]["kind"].as_str(), world.executions(&id)), (Some("image"), 1));
    let inputs = json!({"prompt": "a house", "steps": 2, "width": 64, "height": 64});
    let named = world.create(&json!({"workflow": "text-to-image", "inputs": inputs})).await;
    assert_eq!(world.completed(&named).await["workflow"], "text-to-image");
    let keyed = world.create_stubbornly(&task(2), "k1").await;
    assert_eq!(world.create_stubbornly(&task(2), "k1").await, keyed);
    world.completed(&keyed).await;
    world.fake().pause_execution();
    let running = world.create(&task(3)).await;
    world.running(&running).await;
    let waiting = world.create(&task_with(4, &json!({"priority": "high"}))).await;
    for id in [&waiting, &running] {
        assert!(world.cancel(id).await.0.is_success());
    }
    world.fake().resume();
    for id in [&waiting, &running] {
        assert_eq!(world.finished(id).await["status"], "cancelled");
    }
    let list = world.get("/api/tasks").await;
    assert_eq!(list["tasks"].as_array().map(Vec::len), Some(5), "{list}");
}

/// While its server is away the service says so; when it is back, everything goes on, and nothing ran twice.
pub async fn waits_for_its_server(url: &str, kill: impl AsyncFnOnce(), start: impl AsyncFnOnce()) {
    let world = world().fakes([FakeConfig::default()]).with("DATABASE_URL", url).start().await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.create(&task(color)).await);
    }
    world.running(&ids[0]).await;
    kill().await;
    let refused = world.post(&task(9)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!refused.text().await.unwrap().contains("hunter2"));
    world.fake().resume();
    start().await;
    for id in &ids {
        world.completed(id).await;
        assert_eq!(world.executions(id), 1, "{id}");
    }
}

/// A second process on the same server sees what the first one has.
pub async fn shares_its_tasks(world: World) {
    let (other, api) = world.beside().await;
    let id = api.create(&task(1)).await;
    world.completed(&id).await;
    let tasks = other.system().store.as_ref().unwrap().list(Query { limit: 9, ..Query::default() }).await.unwrap();
    assert_eq!(tasks.iter().map(|task| task.state).collect::<Vec<_>>(), [TaskState::Completed]);
}

/// What `comfyd doctor` says of a service with its tasks there.
pub async fn examined(url: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut doctor = command(dir.path());
    doctor.arg("doctor").env("DATABASE_URL", url).env("PORT", "0");
    String::from_utf8(tools::run(doctor, PATIENCE).await.stdout).unwrap()
}
