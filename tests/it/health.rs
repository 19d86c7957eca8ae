//! Servers that look well and are not, runs that do not move, and servers that somebody wants to switch off.

use fake_comfyui::{Control, EventKind, FakeConfig, Fault, Outcome};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    support::{Builder, World, task, task_with, world},
    witness::{posted, prompts, started, until, until_from},
};

/// Servers that are found out soon.
fn watchful(fakes: usize) -> Builder {
    let settings = [
        ("COMFYD_HEALTH__TEST_TIMEOUT", "400ms"),
        ("COMFYD_HEALTH__IDLE_AFTER", "400ms"),
        ("COMFYD_HEALTH__QUIET_AFTER", "200ms"),
        ("COMFYD_COMFYUI__STOP_GRACE", "400ms"),
    ];
    let fakes = std::iter::repeat_with(FakeConfig::default).take(fakes);
    settings.into_iter().fold(world().fakes(fakes), |world, (name, value)| world.with(name, value))
}

fn interrupted(event: &EventKind) -> bool {
    matches!(event, EventKind::Interrupted { .. })
}

/// Prompts of tasks, not of tests, that a fake was sent.
fn tasks_posted(fake: &Control, ids: &[&String]) -> usize {
    ids.iter().map(|id| prompts(fake, id).len()).sum()
}

impl World {
    fn backend_in<'a>(&self, status: &'a Value, index: usize) -> &'a Value {
        let url = self.fakes[index].url();
        let backends = status["backends"].as_array().unwrap();
        backends.iter().find(|backend| backend["backend"].as_str() == Some(&url)).unwrap()
    }

    /// Waits until the breaker of a backend is in one of these states; returns what is said of its health.
    async fn breaker(&self, index: usize, states: &[&str]) -> Value {
        let is_it =
            |status: &Value| states.iter().any(|state| self.backend_in(status, index)["health"]["breaker"] == *state);
        self.backend_in(&self.until_status(is_it).await, index)["health"].clone()
    }

    async fn open(&self, index: usize, cause: &str) -> Value {
        let health = self.breaker(index, &["open", "half_open"]).await;
        assert_eq!(health["cause"], cause, "{health}");
        health
    }

    async fn closed(&self, index: usize) {
        self.breaker(index, &["closed"]).await;
    }

    fn path_of(&self, index: usize, verb: &str) -> String {
        format!("/api/backends/{}/{verb}", self.fakes[index].url().trim_start_matches("http://"))
    }

    async fn say(&self, index: usize, verb: &str, body: Value, prefer: &str) -> (StatusCode, Value) {
        let request = self.client.post(self.url(&self.path_of(index, verb))).header("Prefer", prefer).json(&body);
        let response = request.send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// Creates a task and lets it run on this backend and no other.
    async fn run_on(&self, index: usize, body: &Value) -> String {
        let others: Vec<_> = (0..self.fakes.len()).filter(|other| *other != index).collect();
        for other in &others {
            self.say(*other, "pause", Value::Null, "").await;
        }
        let id = self.create(body).await;
        until(&self.fakes[index].control(), started(&id)).await;
        for other in &others {
            self.say(*other, "resume", Value::Null, "").await;
        }
        id
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_gets_no_task_before_it_ran_something() {
    let world = watchful(1).start().await;
    let fake = world.fake();
    fake.inject(Fault::Kill).await.unwrap();
    let health = world.open(0, "unreachable").await;
    assert_eq!(health["test_at"], Value::Null, "there is nobody to test: {health}");
    // It comes back with a dead worker: it answers everything, and accepts everything.
    fake.inject_times(Fault::WorkerGone, 1).await.unwrap();
    fake.inject(Fault::Revive).await.unwrap();
    world.breaker(0, &["half_open"]).await;
    let id = world.create(&task(1)).await;
    let tested = |status: &Value| {
        let reason = &world.backend_in(status, 0)["health"]["reason"];
        reason.as_str().is_some_and(|reason| reason.contains("not executed"))
    };
    let status = world.until_status(tested).await;
    assert_eq!(status["status"], "degraded");
    assert_eq!((tasks_posted(&fake, &[&id]), world.now(&id).await["stage"].clone()), (0, json!("queued")));
    // What did not run in time shall not run later.
    until(&fake, |event| matches!(event, EventKind::Deleted { .. })).await;

    fake.inject(Fault::Restart { down: std::time::Duration::ZERO }).await.unwrap();
    world.ran(&id, 1).await;
    world.closed(0).await;
    assert_eq!(tasks_posted(&fake, &[&id]), 1);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_nodes_of_the_test_is_tested_by_a_task() {
    let fake = FakeConfig { missing_classes: vec!["ImageBlur".to_owned()], ..FakeConfig::default() };
    let world = watchful(1).fakes([fake]).start().await;
    world.fake().inject(Fault::Kill).await.unwrap();
    world.open(0, "unreachable").await;
    world.fake().inject(Fault::Revive).await.unwrap();
    let id = world.create(&task(1)).await;
    world.ran(&id, 1).await;
}

/// The test of a server goes with the server: whoever comes back is tested afresh, though the old test had all the time in the world.
#[tokio::test(flavor = "multi_thread")]
async fn a_test_that_was_lost_with_its_server_keeps_nobody_waiting() {
    let world = watchful(1).with("COMFYD_HEALTH__TEST_TIMEOUT", "1h").start().await;
    let fake = world.fake();
    fake.inject(Fault::Kill).await.unwrap();
    world.open(0, "unreachable").await;
    fake.pause_execution();
    fake.inject(Fault::Revive).await.unwrap();
    until(&fake, |event| matches!(event, EventKind::Gated { .. })).await;
    fake.inject(Fault::Restart { down: std::time::Duration::ZERO }).await.unwrap();
    fake.resume();
    world.closed(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_runs_there_is_the_test_of_its_server() {
    let world = watchful(1).start().await;
    let fake = world.fake();
    fake.pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    fake.inject(Fault::Unhealthy).await.unwrap();
    fake.inject(Fault::ResetSockets).await.unwrap();
    world.open(0, "unreachable").await;
    fake.clear();
    world.breaker(0, &["half_open"]).await;
    // Asked about it again and again, and nothing else was sent meanwhile.
    let before = world.asked().await;
    world.until_asked(before + 2.0).await;
    fake.resume();
    world.ran(&id, 1).await;
    world.closed(0).await;
    let sent = fake.log().into_iter().filter(|event| matches!(event.kind, EventKind::Posted { .. })).count();
    assert_eq!(sent, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_gives_back_what_it_holds_and_gets_no_more() {
    let world = watchful(2).start().await;
    let (zombie, other) = (world.fakes[0].control(), world.fakes[1].control());
    other.pause_execution();
    zombie.inject_times(Fault::WorkerGone, 1).await.unwrap();
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.create(&task(color)).await);
    }
    let health = world.open(0, "zombie").await;
    assert!(health["reason"].as_str().unwrap().contains("restart"), "{health}");
    other.resume();
    for id in &ids {
        world.ran(id, 1).await;
        assert_eq!(world.fakes[1].control().executions_of_task(id), 1);
    }
    // What it holds was taken out of its queue: when it is restarted, or its worker comes back, nothing runs twice.
    let held: Vec<_> = ids.iter().flat_map(|id| prompts(&zombie, id)).collect();
    assert!(!held.is_empty());
    for prompt in held {
        until(&zombie, |event| matches!(event, EventKind::Deleted { prompt_id } if *prompt_id == prompt)).await;
    }
    let position = zombie.position();
    zombie.inject(Fault::Restart { down: std::time::Duration::ZERO }).await.unwrap();
    world.closed(0).await;
    until_from(&zombie, position, |event| matches!(event, EventKind::Finished { .. })).await;
    assert_eq!(ids.iter().map(|id| zombie.executions_of_task(id)).sum::<usize>(), 0);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_zombie_keeps_no_task_from_running_once_it_is_restarted() {
    let world = watchful(1).start().await;
    let fake = world.fake();
    fake.inject_times(Fault::WorkerGone, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.open(0, "zombie").await;
    world.stage(&id, "queued").await;
    fake.inject(Fault::Restart { down: std::time::Duration::ZERO }).await.unwrap();
    world.ran(&id, 1).await;
    world.assert_nothing_was_repeated();
}

fn broken_device() -> Fault {
    let message = "CUDA error: an illegal memory access was encountered".to_owned();
    Fault::NodeError { exception_type: "torch.AcceleratorError".to_owned(), message }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_device_costs_its_task_nothing_and_its_server_everything() {
    let world = watchful(2).start().await;
    let (broken, other) = (world.fakes[0].control(), world.fakes[1].control());
    // Whatever runs there from now on fails, the tests of the server included.
    broken.inject(broken_device()).await.unwrap();
    let id = world.run_on(0, &task_with(1, &json!({"max_attempts": 1}))).await;
    let done = world.ran(&id, 2).await;
    assert_eq!((broken.executions_of_task(&id), other.executions_of_task(&id)), (1, 1), "{done}");
    world.open(0, "fatal").await;
    let tested = |status: &Value| {
        let reason = &world.backend_in(status, 0)["health"]["reason"];
        reason.as_str().is_some_and(|reason| reason.contains("test prompt failed") && reason.contains("CUDA"))
    };
    world.until_status(tested).await;
    let more = world.create(&task(2)).await;
    world.ran(&more, 1).await;
    assert_eq!(tasks_posted(&broken, &[&more]), 0);
    broken.clear();
    broken.inject(Fault::Restart { down: std::time::Duration::ZERO }).await.unwrap();
    world.closed(0).await;
    assert!(world.counted("comfyd_backend_breaker_openings_total", Some("fatal")).await >= 1.0);
    for result in ["failed", "passed"] {
        assert!(world.counted("comfyd_backend_tests_total", Some(result)).await >= 1.0, "{result}");
    }
    world.assert_nothing_was_repeated();
}

/// The one that waited behind it began before anybody knew, and needs no device.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_device_is_trusted_after_a_test_of_it_and_not_after_a_task() {
    let world = watchful(1).start().await;
    let fake = world.fake();
    fake.pause_execution();
    fake.inject_times(broken_device(), 1).await.unwrap();
    fake.inject_times(Fault::LateHistory { delay: std::time::Duration::from_secs(1) }, 1).await.unwrap();
    let [broke, sound] = [world.create(&task_with(1, &json!({"max_attempts": 1}))).await, world.create(&task(2)).await];
    until(&fake, posted(&sound)).await;
    fake.step();
    until(&fake, started(&sound)).await;
    world.open(0, "fatal").await;
    fake.step();
    world.ran(&sound, 1).await;
    world.open(0, "fatal").await;
    assert_eq!((tasks_posted(&fake, &[&broke]), world.now(&broke).await["stage"].clone()), (1, json!("queued")));
    fake.resume();
    world.ran(&broke, 2).await;
    let log = fake.log();
    let again = log.iter().rposition(|event| posted(&broke)(&event.kind)).unwrap();
    let ours = [prompts(&fake, &broke), prompts(&fake, &sound)].concat();
    let tested = log[..again].iter().find_map(|event| match &event.kind {
        EventKind::Finished { prompt_id, outcome: Outcome::Success } => Some(prompt_id).filter(|id| !ours.contains(id)),
        _ => None,
    });
    let test = tested.unwrap_or_else(|| panic!("nothing was tried before: {log:#?}"));
    world.closed(0).await;
    // It leaves nothing behind.
    until(&fake, |event| matches!(event, EventKind::HistoryDeleted { prompt_id } if prompt_id == test)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_on_a_dead_worker_runs_elsewhere_at_no_cost() {
    let world = watchful(2).start().await;
    let (dead, other) = (world.fakes[0].control(), world.fakes[1].control());
    dead.inject_times(Fault::DeadWorker, 1).await.unwrap();
    let id = world.run_on(0, &task_with(1, &json!({"no_progress_timeout": "500ms"}))).await;
    // Told to stop, and it does not.
    until(&dead, interrupted).await;
    let done = world.ran(&id, 2).await;
    assert_eq!((dead.executions_of_task(&id), other.executions_of_task(&id)), (1, 1), "{done}");
    let health = world.open(0, "stuck").await;
    assert!(
        health["reason"].as_str().unwrap().contains(&id) || health["reason"].as_str().unwrap().contains("test"),
        "{health}"
    );
    let more = world.create(&task(2)).await;
    world.ran(&more, 1).await;
    assert_eq!(tasks_posted(&dead, &[&more]), 0);
    dead.inject(Fault::Restart { down: std::time::Duration::ZERO }).await.unwrap();
    world.closed(0).await;
    assert_eq!(dead.executions_of_task(&id), 1);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_run_that_stops_is_tried_again_elsewhere() {
    let world = watchful(2).with("COMFYD_HEALTH__NO_PROGRESS_TIMEOUT", "500ms").start().await;
    let (slow, other) = (world.fakes[0].control(), world.fakes[1].control());
    slow.pause_execution();
    let id = world.run_on(0, &task(1)).await;
    until(&slow, interrupted).await;
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], slow.executions_of_task(&id), other.executions_of_task(&id)), (&json!(2), 1, 1));
    world.open(0, "stuck").await;
    // Full memory is what stalls most runs.
    until(&slow, |event| matches!(event, EventKind::Freed { .. })).await;
    for runs in ["comfyd_runs_stuck_total", "comfyd_runs_quiet_total"] {
        assert!(world.counted(runs, None).await >= 1.0, "{runs}");
    }
    slow.resume();
    world.closed(0).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_task_says_where_it_got_stuck() {
    let world = watchful(1).start().await;
    let slow = json!({"workflow": "slow", "no_progress_timeout": "500ms", "max_attempts": 1});
    let file = json!({"workflow": task(1)["workflow"], "no_progress_timeout": "1h"});
    let put = world.client.put(world.url("/api/workflows/slow")).json(&file).send().await.unwrap();
    assert!(put.status().is_success(), "{}", put.text().await.unwrap());
    world.fake().pause_execution();
    let id = world.create(&slow).await;
    let failed = world.finished(&id).await;
    let error = &failed["error"];
    assert_eq!((&failed["status"], &error["code"]), (&json!("failed"), &json!("stuck")), "{failed}");
    assert_eq!((&error["node_id"], &error["class_type"]), (&json!("1"), &json!("EmptyImage")), "{failed}");
    assert!(error["message"].as_str().unwrap().contains("500ms in node 1"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_says_how_long_its_runs_may_be_silent() {
    let world = watchful(1).start().await;
    let file = json!({"workflow": task(1)["workflow"], "no_progress_timeout": "500ms"});
    let put = world.client.put(world.url("/api/workflows/silent")).json(&file).send().await.unwrap();
    assert!(put.status().is_success());
    world.fake().pause_execution();
    let id = world.create(&json!({"workflow": "silent", "max_attempts": 1})).await;
    assert_eq!(world.finished(&id).await["error"]["code"], "stuck");
    let faulty = json!({"workflow": task(1)["workflow"], "no_progress_timeout": 5});
    let put = world.client.put(world.url("/api/workflows/silent")).json(&faulty).send().await.unwrap();
    let problem: Value = put.json().await.unwrap();
    assert_eq!(problem["errors"][0]["pointer"], "/no_progress_timeout", "{problem}");
}

/// Frames go to the connection a prompt was sent under. When that is gone, the silence is ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_frames_cannot_reach_us_is_not_taken_to_be_stuck() {
    let world = watchful(2).with("COMFYD_HEALTH__NO_PROGRESS_TIMEOUT", "700ms").start().await;
    let [ours, measure] = [0, 1].map(|index| world.fakes[index].control());
    ours.pause_execution();
    measure.pause_execution();
    let id = world.run_on(0, &task(1)).await;
    world.heard(&id).await;
    ours.inject(Fault::ResetSockets).await.unwrap();
    // Begun later, silent for as long, and found stuck.
    let stuck = world.run_on(1, &task(2)).await;
    until(&measure, interrupted).await;
    assert!(!ours.log().iter().any(|event| interrupted(&event.kind)));
    ours.resume();
    world.ran(&id, 1).await;
    measure.resume();
    world.completed(&stuck).await;
}

/// A deaf socket looks like a silent run.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_deafness_is_found_out_before_a_run_is_blamed() {
    let world = watchful(1).with("COMFYD_HEALTH__NO_PROGRESS_TIMEOUT", "3s").start().await;
    let fake = world.fake();
    fake.pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    world.heard(&id).await;
    let position = fake.position();
    fake.inject(Fault::Deafen).await.unwrap();
    until_from(&fake, position, |event| matches!(event, EventKind::SocketOpened { .. })).await;
    fake.resume();
    world.ran(&id, 1).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_does_not_stop_shuts_its_server() {
    let world = watchful(1).start().await;
    let fake = world.fake();
    fake.inject_times(Fault::Hang, 1).await.unwrap();
    let hung = world.create(&task(1)).await;
    world.running(&hung).await;
    world.cancel(&hung).await;
    assert_eq!(world.finished(&hung).await["status"], "cancelled");
    world.open(0, "stuck").await;
    let next = world.create(&task(2)).await;
    let tested = |status: &Value| {
        let reason = &world.backend_in(status, 0)["health"]["reason"];
        reason.as_str().is_some_and(|reason| reason.contains("not executed"))
    };
    world.until_status(tested).await;
    assert_eq!(tasks_posted(&fake, &[&next]), 0, "it would wait behind the one that hangs");
    // The node comes to its end after all.
    fake.clear();
    world.ran(&next, 1).await;
    world.closed(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_half_of_what_it_gets_is_given_a_rest() {
    let world =
        watchful(1).with("COMFYD_HEALTH__TASKS", "4").with("COMFYD_COMFYUI__VALIDATE_GRACE", "0s").start().await;
    world.fake().inject_times(Fault::PostFails, 4).await.unwrap();
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.create(&task_with(color, &json!({"max_attempts": 9}))).await);
    }
    let health = world.open(0, "failing").await;
    assert!(health["reason"].is_string(), "{health}");
    for id in &ids {
        world.completed(id).await;
    }
    world.closed(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_gives_its_tasks_up_once() {
    let world = watchful(2).with("COMFYD_COMFYUI__BACKEND_LOST_AFTER", "300ms").start().await;
    let (dies, other) = (world.fakes[0].control(), world.fakes[1].control());
    dies.pause_execution();
    other.pause_execution();
    let running = world.run_on(0, &task(1)).await;
    let blocks = world.run_on(1, &task(2)).await;
    let mut waiting = Vec::new();
    for color in 3..6 {
        let id = world.create(&task(color)).await;
        waiting.push(id);
    }
    dies.inject(Fault::Kill).await.unwrap();
    world.open(0, "unreachable").await;
    other.resume();
    for id in waiting.iter().chain([&blocks]) {
        world.ran(id, 1).await;
    }
    world.ran(&running, 2).await;
    // It went back to the queue once, and whoever watches was told so once.
    let events = world.get(&format!("/api/tasks/{running}")).await;
    assert_eq!((&events["attempt"], dies.executions_of_task(&running)), (&json!(1), 1), "{events}");
    dies.resume();
    dies.inject(Fault::Revive).await.unwrap();
    world.closed(0).await;
    let all: Vec<_> = waiting.iter().chain([&running, &blocks]).collect();
    assert_eq!(all.iter().map(|id| world.executions(id)).sum::<usize>(), all.len() + 1);
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_server_can_be_switched_off() {
    let world = watchful(2).start().await;
    let (drained, other) = (world.fakes[0].control(), world.fakes[1].control());
    drained.pause_execution();
    let runs = world.run_on(0, &task(1)).await;
    let (status, answer) = world.say(0, "drain", Value::Null, "").await;
    assert_eq!(
        (status, &answer["drained"], &answer["tasks_left"]),
        (StatusCode::OK, &json!(false), &json!(1)),
        "{answer}"
    );
    assert_eq!((&answer["paused"], &answer["move_at"]), (&json!(true), &Value::Null), "{answer}");
    let next = world.create(&task(2)).await;
    world.ran(&next, 1).await;
    assert_eq!(other.executions_of_task(&next), 1);
    // It may take as long as it takes: nobody interrupted it.
    assert!(!drained.log().iter().any(|event| interrupted(&event.kind)));
    let (answer, ()) = tokio::join!(world.say(0, "drain", Value::Null, "wait=30"), async { drained.resume() });
    assert_eq!((&answer.1["drained"], &answer.1["tasks_left"]), (&json!(true), &json!(0)), "{}", answer.1);
    world.ran(&runs, 1).await;

    let (status, view) = world.say(0, "resume", Value::Null, "").await;
    assert_eq!((status, &view["paused"]), (StatusCode::OK, &json!(false)));
    let back = world.run_on(0, &task(3)).await;
    world.ran(&back, 1).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_with_a_deadline_moves_what_still_runs() {
    let world = watchful(2).start().await;
    let (drained, other) = (world.fakes[0].control(), world.fakes[1].control());
    drained.pause_execution();
    let id = world.run_on(0, &task(1)).await;
    let prompt = prompts(&drained, &id).remove(0);
    let (_, answer) = world.say(0, "drain", json!({"within": "1h"}), "").await;
    assert!(answer["move_at"].is_string(), "{answer}");
    // The deadline is kept over a restart, and what was said last counts.
    let world = world.restart().await;
    world.online().await;
    let listed = world.get("/api/backends").await;
    assert_eq!(world.backend_in(&listed, 0)["move_at"], answer["move_at"]);
    let (_, answer) = world.say(0, "drain", json!({"within": "0s"}), "wait=30").await;
    assert_eq!(answer["drained"], true, "{answer}");
    let hit = |event: &EventKind| matches!(event, EventKind::Interrupted { prompt_id } if *prompt_id == prompt);
    until(&drained, hit).await;
    until(&other, posted(&id)).await;
    world.ran(&id, 2).await;

    for (body, pointer) in
        [(json!({"within": 5}), "/within"), (json!({"within": "60d"}), "/within"), (json!({"in": "5m"}), "/in")]
    {
        let (status, problem) = world.say(0, "drain", body, "").await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(pointer)));
    }
    let unknown = world.client.post(world.url("/api/backends/nowhere:1/drain")).send().await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}
