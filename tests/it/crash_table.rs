//! The crash table of `actors/README.md`, row by row: each actor is killed while tasks flow, and each task still ends once.
//!
//! "Once" is counted by the fake server: a crash of ours never runs anything again while the server is reachable.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use comfyd::{app::AppError, store::WRITER};
use comfyd_actors::system::Slots;
use fake_comfyui::{EventKind, FakeConfig, Fault};
use futures_util::{StreamExt, stream};
use ractor::{ActorCell, Message};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

use crate::support::{Builder, PATIENCE, World, task, world};

/// Tasks in a flow.
const TASKS: u32 = 24;
/// A kill comes when this many of them have started.
const KILLS_AT: [usize; 3] = [3, 9, 15];

/// A world whose prompts take a moment, so that kills meet some that run.
fn busy() -> Builder {
    world().fakes([FakeConfig { node_time: Duration::from_millis(10), ..FakeConfig::default() }])
}

/// Creates tasks, a few at a time, kills in between, and sees every task end once.
async fn survives(world: &World, kill: impl AsyncFn()) {
    let creating = stream::iter(0..TASKS)
        .map(async |n| world.create_stubbornly(&task(n), &format!("flow-{n}")).await)
        .buffered(4)
        .collect::<Vec<_>>();
    let killing = async {
        for starts in KILLS_AT {
            started(world, starts).await;
            kill().await;
        }
    };
    let (ids, ()) = tokio::join!(creating, killing);
    end_once(world, &ids).await;
}

/// Every task completes with its bytes, in its first attempt, having run once.
async fn end_once(world: &World, ids: &[String]) {
    for id in ids {
        let done = world.completed(id).await;
        assert_eq!(done["attempt"], 1, "{done}");
        assert_eq!(world.executions(id), 1, "{id} ran more than once");
    }
}

/// Waits until so many prompts have started on the first fake.
async fn started(world: &World, starts: usize) {
    let seen = Cell::new(0);
    let control = world.fake();
    let enough = control.wait_for(|event| {
        seen.set(seen.get() + usize::from(matches!(event, EventKind::Started { .. })));
        seen.get() == starts
    });
    tokio::time::timeout(PATIENCE, enough).await.expect("the tasks do not flow");
}

fn slots(world: &World) -> &Slots {
    &world.system().slots
}

async fn restarts(world: &World, actor: &str) -> u64 {
    world.get("/api/status").await["restarts"][actor].as_u64().unwrap_or(0)
}

async fn event(world: &World, wanted: impl Fn(&EventKind) -> bool) {
    tokio::time::timeout(PATIENCE, world.fake().wait_for(wanted)).await.expect("the event does not come");
}

/// Waits until the fault has hit somebody.
async fn struck(world: &World) {
    let struck = async {
        while !world.fake().faults().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, struck).await.expect("the fault hits nobody");
}

/// The transfers under way.
fn transfers(world: &World) -> Vec<ActorCell> {
    slots(world).uploads.get().map(|uploads| uploads.get_cell().get_children()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_dies() {
    let world = busy().start().await;
    survives(&world, async || world.kill(&slots(&world).queue).await).await;
    assert_eq!(restarts(&world, "queue").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_writer_dies() {
    let world = busy().start().await;
    survives(&world, async || world.kill(&slots(&world).services[WRITER]).await).await;
    assert_eq!(restarts(&world, WRITER).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies() {
    let world = busy().start().await;
    survives(&world, async || world.kill(world.session(0)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_session_is_not_shown_as_online() {
    let (base, cap) = ("COMFYD_SUPERVISION__BACKOFF_BASE", "COMFYD_SUPERVISION__BACKOFF_CAP");
    let world = world().with(base, "30m").with(cap, "30m").start().await;
    world.kill(world.session(0)).await;
    let status = world.until_status(|status| status["backends"][0]["phase"] == "disconnected").await;
    assert!(status["backends"][0]["problem"].as_str().unwrap().contains("died"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_die() {
    let world = busy().start().await;
    survives(&world, async || world.fake().inject(Fault::ResetSockets).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies_while_its_prompt_runs() {
    let world = world().start().await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..3 {
        ids.push(world.create(&task(color)).await);
    }
    world.running(&ids[0]).await;
    world.kill(world.session(0)).await;
    world.online().await;
    world.fake().resume();
    end_once(&world, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies_while_it_waits_for_the_answer_to_a_submission() {
    let world = world().start().await;
    world.fake().pause_execution();
    world.fake().inject_times(Fault::PostDelayed { delay: PATIENCE }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    world.kill(world.session(0)).await;
    // What it finds is evidence, and recorded as such: clients see that the task runs.
    let runs = async {
        while world.get_now(&format!("/api/tasks/{id}")).await["stage"] != "executing" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, runs).await.expect("nobody notices that the prompt runs");
    world.fake().resume();
    end_once(&world, &[id]).await;
}

/// A world in which a prompt that may be on its way is never given up: whoever needs to know must know.
fn without_doubt() -> Builder {
    world().with("COMFYD_COMFYUI__VALIDATE_GRACE", "1h")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies_and_its_submission_fails_later() {
    let world = without_doubt().with("COMFYD_COMFYUI__VALIDATE", "off").start().await;
    world.fake().inject_times(Fault::PostHeld { delay: Duration::from_millis(300) }, 1).await.unwrap();
    let id = world.create(&json!({"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})).await;
    struck(&world).await;
    world.kill(world.session(0)).await;
    // What the server told somebody who is dead.
    assert_eq!(world.finished(&id).await["error"]["code"], "invalid_prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_dies_while_it_claims() {
    let world = without_doubt().start().await;
    let ids = stream::iter(0..TASKS)
        .map(async |n| {
            let id = world.create_stubbornly(&task(n), &format!("claimed-{n}")).await;
            world.kill(&slots(&world).queue).await;
            id
        })
        .buffered(4)
        .collect::<Vec<_>>()
        .await;
    end_once(&world, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies_and_its_submission_arrives_later() {
    let world = without_doubt().start().await;
    world.fake().inject_times(Fault::PostHeld { delay: Duration::from_millis(300) }, 1).await.unwrap();
    let position = world.fake().position();
    let id = world.create(&task(1)).await;
    struck(&world).await;
    world.kill(world.session(0)).await;
    end_once(&world, std::slice::from_ref(&id)).await;
    let posts = world.fake().log_since(position).into_iter();
    assert_eq!(posts.filter(|event| matches!(event.kind, EventKind::PostArrived)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_dies_while_its_files_are_stored() {
    let world = world().start().await;
    world.fake().inject_times(Fault::SlowView { bytes_per_second: 100 }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    event(&world, |event| matches!(event, EventKind::Viewed { .. })).await;
    world.kill(world.session(0)).await;
    end_once(&world, &[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_dies() {
    let world = world().start().await;
    // So slow that only another try can bring it.
    world.fake().inject_times(Fault::SlowView { bytes_per_second: 1 }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    event(&world, |event| matches!(event, EventKind::Viewed { .. })).await;
    let killed = async {
        // It asks for the file before its supervisor has it in its books.
        while transfers(&world).iter().map(ActorCell::kill).count() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, killed).await.expect("nobody transfers");
    end_once(&world, &[id]).await;
}

/// A transfer that tells its failure and goes has failed once, not once more for having gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_transfer_counts_once() {
    let world = world().start().await;
    for color in 0..8 {
        // One less than an output gets.
        world.fake().inject_times(Fault::CutView { bytes: 10 }, 4).await.unwrap();
        let id = world.create(&task(color)).await;
        end_once(&world, &[id]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_die_in_a_flow() {
    let world = busy().start().await;
    survives(&world, async || transfers(&world).iter().for_each(ActorCell::kill)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_supervisor_of_the_uploads_dies() {
    let world = busy().start().await;
    survives(&world, async || world.kill(&slots(&world).uploads).await).await;
    assert_eq!(restarts(&world, "uploads").await, 3);

    world.fake().inject_times(Fault::SlowView { bytes_per_second: 1 }, 1).await.unwrap();
    let position = world.fake().position();
    let id = world.create(&task(99)).await;
    world.fake().wait_from(position, |event| matches!(event, EventKind::Viewed { .. })).await;
    world.kill(&slots(&world).uploads).await;
    end_once(&world, &[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_supervisor_of_the_sessions_dies() {
    let world = busy().start().await;
    survives(&world, async || world.kill(&slots(&world).backends).await).await;
    assert_eq!(restarts(&world, "backends").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_janitor_dies() {
    let world = busy().start().await;
    // It is the janitor who starts the second attempt.
    world.fake().inject_times(Fault::node_error("a passing fault"), 1).await.unwrap();
    let retried = world.create(&task(99)).await;
    world.running(&retried).await;
    world.kill(&slots(&world).janitor).await;
    assert_eq!(world.completed(&retried).await["attempt"], 2);
    survives(&world, async || world.kill(&slots(&world).janitor).await).await;
    assert_eq!(restarts(&world, "janitor").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_server_dies() {
    let world = busy().start().await;
    survives(&world, async || world.kill(&slots(&world).http).await).await;
    assert_eq!(restarts(&world, "http").await, 3);
}

/// Nobody owns the connections of a dead server, so they end: else no drain would wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_http_server_its_connections_end() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    let (waits, begun) = (format!("/api/tasks/{id}"), Instant::now());
    let asked = async {
        // Time for the request to arrive: one that comes too late is cut off or waits, and fails the test.
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.kill(&slots(&world).http).await;
    };
    let request = world.client.get(world.url(&waits)).header("Prefer", "wait=50").send();
    let (answer, ()) = tokio::join!(request, asked);
    assert!(answer.is_err() || answer.unwrap().json::<Value>().await.unwrap()["status"] == "processing");
    assert!(begun.elapsed() < Duration::from_secs(40), "nobody told it");
    world.fake().resume();
    end_once(&world, &[id]).await;
}

/// Another process holds the database's lock for longer than a write waits, and a session dies meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_unreachable_for_a_while() {
    let world = world().start().await;
    world.fake().pause_execution();
    let running = world.create(&task(1)).await;
    world.running(&running).await;

    let file = SqliteConnectOptions::new().filename(world.dir.path().join("comfyd.db"));
    let mut other = file.connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    world.kill(world.session(0)).await;
    world.online().await;
    world.fake().resume();
    let not_ready = async {
        while world.client.get(world.url("/readyz")).send().await.unwrap().status() == StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let body = task(2);
    let (refused, told) = tokio::join!(world.post(&body), tokio::time::timeout(PATIENCE, not_ready));
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    told.expect("it calls itself ready");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();

    let later = world.create_stubbornly(&task(3), "later").await;
    end_once(&world, &[running, later]).await;
    let restarts = world.get("/api/status").await["restarts"].as_object().unwrap().clone();
    assert_eq!(restarts.len(), 1, "a store that is away is no crash: {restarts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn comfyui_is_unreachable_for_a_while() {
    let world = world().start().await;
    world.fake().inject(Fault::Kill).await.unwrap();
    world.until_status(|status| status["backends"][0]["phase"] != "online").await;
    let mut ids = Vec::new();
    for color in 0..3 {
        ids.push(world.create(&task(color)).await);
    }
    world.fake().inject(Fault::Revive).await.unwrap();
    end_once(&world, &ids).await;
    assert_eq!(world.get("/api/status").await["restarts"], json!({}), "a server that is away is no crash");
}

/// Kills the actor until its budget of two restarts is spent.
async fn spend<M: Message>(world: &World, slot: &comfyd_actors::kit::slot::Slot<M>) {
    for _ in 0..3 {
        world.kill(slot).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_gives_up_and_the_next_process_finishes() {
    let mut world = world().with("COMFYD_SUPERVISION__MAX_RESTARTS", "2").start().await;
    world.fake().pause_execution();
    let mut ids = Vec::new();
    for color in 0..20 {
        ids.push(world.create(&task(color)).await);
    }
    world.running(&ids[0]).await;
    spend(&world, &slots(&world).queue.clone()).await;
    let ended = tokio::time::timeout(PATIENCE, world.app.ended()).await.expect("it does not end");
    assert!(matches!(ended, Err(AppError::GaveUp)), "{ended:?}");
    let world = world.start_again().await;
    world.fake().resume();
    end_once(&world, &ids).await;
}

/// Two backends, the first with its session's budget spent.
async fn quarantined(quarantine: &str) -> World {
    let world = world()
        .fakes([FakeConfig::default(), FakeConfig::default()])
        .with("COMFYD_SUPERVISION__MAX_RESTARTS", "2")
        .with("COMFYD_SUPERVISION__QUARANTINE", quarantine)
        .start()
        .await;
    spend(&world, world.session(0)).await;
    world
}

fn phase_of(status: &Value, url: &str) -> Value {
    let backends = status["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["backend"].as_str() == Some(url)).unwrap()["phase"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_backend_gets_nothing_and_the_other_goes_on() {
    let world = quarantined("1h").await;
    let bad = world.fakes[0].url();
    world.until_status(|status| phase_of(status, &bad) == "quarantined").await;
    // While the other is busy, whatever still counted on this one would be handed tasks.
    world.fakes[1].control().pause_execution();
    let first = world.create(&task(TASKS)).await;
    world.running(&first).await;
    let mut ids: Vec<_> =
        stream::iter(0..TASKS).map(async |n| world.create(&task(n)).await).buffered(4).collect().await;
    ids.push(first);
    world.fakes[1].control().resume();
    end_once(&world, &ids).await;
    assert_eq!(world.fakes[0].control().total_executions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_backend_is_pardoned() {
    let begun = Instant::now();
    let world = quarantined("500ms").await;
    world.until_status(|status| phase_of(status, &world.fakes[0].url()) == "quarantined").await;
    world.online().await;
    assert!(begun.elapsed() >= Duration::from_millis(500));
    world.fakes.iter().for_each(|fake| fake.control().pause_execution());
    let (one, two) = (world.create(&task(1)).await, world.create(&task(2)).await);
    let mut places = [world.running(&one).await, world.running(&two).await];
    places.sort_unstable();
    assert_eq!(places, [0, 1], "both work again");
    world.fakes.iter().for_each(|fake| fake.control().resume());
    end_once(&world, &[one, two]).await;
}
