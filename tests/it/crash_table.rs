//! Every row of the crash table in `actors/README.md`: an actor is killed inside a running system while tasks flow, and all of them
//! end exactly once.

use std::time::Duration;

use comfyd::app::AppError;
use fake_comfyui::{EventKind, FakeConfig, Fault};
use serde_json::json;

use crate::support::{World, task, task_with, world};

/// Tasks that flow while something is killed.
const TASKS: u32 = 24;

/// Lets tasks flow, kills in the middle of it, and checks that all of them complete, each after one run.
async fn survives<K, F>(world: World, kill: K) -> World
where
    K: Fn(usize) -> F,
    F: Future<Output = ()>,
{
    let flow = async {
        let mut ids = Vec::new();
        for n in 0..TASKS {
            ids.push(world.create_stubbornly(&task(n), &format!("flow-{n}")).await);
        }
        ids
    };
    let kills = async {
        for round in 0..6 {
            // A schedule, not a wait: the kills fall anywhere into the flow.
            tokio::time::sleep(Duration::from_millis(60)).await;
            kill(round).await;
        }
    };
    let (ids, ()) = tokio::join!(flow, kills);
    for id in &ids {
        let done = world.completed(id).await;
        assert_eq!(done["attempt"], 1, "{done}");
        assert_eq!(world.executions(id), 1, "task {id} ran again because of a crash of ours");
    }
    let status = world.get("/api/status").await;
    assert_eq!(status["queue"], json!({"scheduled": 0, "pending": 0, "processing": 0}));
    world
}

/// A fake slow enough that kills hit running prompts, fast enough for a test.
fn slow() -> FakeConfig {
    FakeConfig { node_time: Duration::from_millis(15), ..FakeConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_dies() {
    let world = world().fakes([slow()]).start().await;
    let system = world.system().clone();
    survives(world, |_| async { World::kill(&system.slots.queue).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies() {
    let world = world().fakes([slow(), slow()]).start().await;
    let slots: Vec<_> = world.system().slots.sessions.values().cloned().collect();
    survives(world, |round| World::kill(&slots[round % 2])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_uploads_die() {
    let world = world().fakes([slow()]).start().await;
    let system = world.system().clone();
    survives(world, |_| async { World::kill(&system.slots.uploads).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_janitor_dies() {
    let world = world().fakes([slow()]).start().await;
    // Retries wait for the janitor to promote them.
    world.fake().inject_times(Fault::node_error("a passing fault"), 1).await.unwrap();
    let retried = world.create(&task(1_000)).await;
    world.running(&retried).await;
    let system = world.system().clone();
    let world = survives(world, |_| async { World::kill(&system.slots.janitor).await }).await;
    assert_eq!(world.completed(&retried).await["attempt"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_server_dies() {
    let world = world().fakes([slow()]).start().await;
    let system = world.system().clone();
    survives(world, |_| async { World::kill(&system.slots.http).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_supervisor_of_the_backends_dies() {
    let world = world().fakes([slow(), slow()]).start().await;
    let system = world.system().clone();
    survives(world, |_| async { World::kill(&system.slots.backends).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_of_the_store_dies() {
    let world = world().fakes([slow()]).start().await;
    let writer = world.system().slots.services["store writer"].clone();
    survives(world, |_| World::kill(&writer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_dies() {
    let world = world().start().await;
    world.fake().inject(Fault::SlowView { bytes_per_second: 1 }).await.unwrap();
    let id = world.create(&task(1)).await;
    world.fake().wait_for(|event| matches!(event, EventKind::Viewed { .. })).await;
    world.fake().clear();
    let uploads = world.system().slots.uploads.get().unwrap();
    let transfers = uploads.get_children();
    assert_eq!(transfers.len(), 1);
    transfers[0].kill();
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], world.executions(&id)), (&json!(1), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies_while_it_sends_a_prompt() {
    let world = world().start().await;
    world.fake().inject_times(Fault::PostDelayed { delay: Duration::from_millis(500) }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.fake().wait_for(|event| matches!(event, EventKind::Posted { .. })).await;
    World::kill(world.session(0)).await;
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], world.executions(&id)), (&json!(1), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_dies_while_a_prompt_runs() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    World::kill(&world.system().slots.queue).await;
    World::kill(world.session(0)).await;
    World::kill(&world.system().slots.uploads).await;
    World::kill(&world.system().slots.janitor).await;
    world.fake().resume();
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], world.executions(&id)), (&json!(1), 1));
    let restarts = world.get("/api/status").await["restarts"].clone();
    for actor in ["queue", "uploads", "janitor"] {
        assert_eq!(restarts[actor], 1, "{restarts}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_budget_ends_the_process_and_loses_nothing() {
    let world = world().with("COMFYD_SUPERVISION__MAX_RESTARTS", "2").start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    let mut world = world;
    let janitor = world.system().slots.janitor.clone();
    let killing = async {
        loop {
            World::kill(&janitor).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = world.app.ended() => assert!(matches!(ended, Err(AppError::GaveUp))),
        () = killing => {}
    }
    let world = world.start_again().await;
    world.fake().resume();
    world.completed(&id).await;
    assert_eq!(world.executions(&id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_dies_too_often_is_left_alone_while_the_others_go_on() {
    let world = world()
        .fakes([FakeConfig::default(), FakeConfig::default()])
        .with("COMFYD_SUPERVISION__MAX_RESTARTS", "2")
        .with("COMFYD_SUPERVISION__QUARANTINE", "2s")
        .start()
        .await;
    let name = world.fakes[0].url();
    let phase = async |wanted: &str| loop {
        let status = world.get("/api/status").await;
        let backends = status["backends"].as_array().unwrap();
        if backends.iter().any(|backend| backend["backend"] == name.as_str() && backend["phase"] == wanted) {
            return;
        }
        if wanted == "quarantined" {
            World::kill(world.session(0)).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    phase("quarantined").await;
    let id = world.create(&task_with(1, &json!({}))).await;
    world.completed(&id).await;
    phase("online").await;
}
