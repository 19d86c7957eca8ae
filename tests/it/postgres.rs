//! The whole service with its tasks in PostgreSQL.

use std::sync::Arc;

use comfyd_actors::{domain::task::TaskState, ports::store::Query};
use fake_comfyui::FakeConfig;
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    databases::{Server, database},
    place::command,
    support::{PATIENCE, task, task_with, world},
    tools,
};

/// Created, run, stored, listed, cancelled, repeated, made from a workflow: all as on SQLite.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_keeps_its_tasks_in_postgres() {
    let world = world().with("DATABASE_URL", &database().await).start().await;
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
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_goes_away_is_waited_for() {
    let server = Arc::new(tokio::task::spawn_blocking(Server::start).await.unwrap());
    let url = server.url(&server.database().await, server.port());
    let world = world().fakes([FakeConfig::default()]).with("DATABASE_URL", &url).start().await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.create(&task(color)).await);
    }
    world.running(&ids[0]).await;
    let stopping = Arc::clone(&server);
    tokio::task::spawn_blocking(move || stopping.kill()).await.unwrap();
    let refused = world.post(&task(9)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!refused.text().await.unwrap().contains("hunter2"));
    world.fake().resume();
    let starting = Arc::clone(&server);
    tokio::task::spawn_blocking(move || starting.start_again()).await.unwrap();
    for id in &ids {
        world.completed(id).await;
        assert_eq!(world.executions(id), 1, "{id}");
    }
}

/// A second process on the same database sees what the first one has.
#[tokio::test(flavor = "multi_thread")]
async fn two_services_share_a_postgres() {
    let world = world().with("DATABASE_URL", &database().await).start().await;
    let (other, api) = world.beside().await;
    let id = api.create(&task(1)).await;
    world.completed(&id).await;
    let tasks = other.system().store.as_ref().unwrap().list(Query { limit: 9, ..Query::default() }).await.unwrap();
    assert_eq!(tasks.iter().map(|task| task.state).collect::<Vec<_>>(), [TaskState::Completed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_looks_at_postgres() {
    let dir = tempfile::tempdir().unwrap();
    let examined = async |url: String| {
        let mut doctor = command(dir.path());
        doctor.arg("doctor").env("DATABASE_URL", url).env("PORT", "0");
        String::from_utf8(tools::run(doctor, PATIENCE).await.stdout).unwrap()
    };
    let text = examined(database().await).await;
    for told in ["Store  PostgreSQL at 127.0.0.1", "answers in", "no tables yet", "fsync is off"] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
    let text = examined("postgres://comfyd:hunter2@127.0.0.1:1/x".to_owned()).await;
    assert!(text.contains("cannot be reached") && !text.contains("hunter2"), "{text}");
}
