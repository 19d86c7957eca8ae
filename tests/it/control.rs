//! What clients change after a task's creation: when it runs, whether it runs again, how urgent it is, and whether anything runs at all.

use fake_comfyui::{EventKind, FakeConfig, Fault};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    support::{World, task, task_with, world},
    witness::{posted, started, until, until_from, until_level},
};

impl World {
    async fn send(&self, method: Method, path: &str, body: &Value) -> Response {
        let request = self.client.request(method, self.url(path));
        let request = if body.is_null() { request } else { request.json(body) };
        request.send().await.unwrap()
    }

    /// Sends a request and takes its answer apart.
    async fn ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let response = self.send(method, path, &body).await;
        (response.status(), response.json().await.unwrap())
    }

    async fn retry(&self, id: &str, body: Value) -> (StatusCode, Value) {
        self.ask(Method::POST, &format!("/api/tasks/{id}/retry"), body).await
    }

    async fn uploads_again(&self, id: &str) -> (StatusCode, Value) {
        self.retry(id, json!({"only": "uploads"})).await
    }

    async fn prioritize(&self, id: &str, priority: Value) -> (StatusCode, Value) {
        self.ask(Method::PATCH, &format!("/api/tasks/{id}"), json!({"priority": priority})).await
    }

    /// Pauses or resumes the queue, or with a path a backend.
    async fn control(&self, path: &str) -> Value {
        let (status, answer) = self.ask(Method::POST, path, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// How a backend is named in paths.
    fn name(&self, index: usize) -> String {
        self.fakes[index].url().trim_start_matches("http://").to_owned()
    }

    async fn failed(&self, id: &str) -> Value {
        let failed = self.finished(id).await;
        assert_eq!(failed["status"], "failed", "{failed}");
        failed
    }
}

/// A node fails, and would fail again.
fn wrong() -> Fault {
    Fault::NodeError { exception_type: "ValueError".into(), message: "boom".into() }
}

/// A node that announces files and a node that shows them.
fn files(count: u64, max_attempts: u64) -> Value {
    let inputs = json!({"bytes": 300, "count": count, "seed": 1, "extension": "bin", "filename_prefix": "f"});
    json!({"workflow": {"1": {"class_type": "FakeBytes", "inputs": inputs}}, "max_attempts": max_attempts})
}

fn moment(task: &Value, field: &str) -> i64 {
    let text = task[field].as_str().unwrap_or_else(|| panic!("no {field}: {task}"));
    comfyd_actors::domain::time::Timestamp::parse(text).unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_task_runs_when_it_is_due() {
    let world = world().start().await;
    // The timer is armed for a task that is due much later, and must be armed anew.
    let later = world.create(&task_with(1, &json!({"delay": "1h"}))).await;
    let id = world.create(&task_with(2, &json!({"delay": "700ms"}))).await;
    let waiting = world.now(&id).await;
    assert_eq!((&waiting["status"], &waiting["stage"]), (&json!("pending"), &json!("scheduled")), "{waiting}");
    let due = moment(&waiting, "run_at");
    assert_eq!(due - moment(&waiting, "created_at"), 700);
    let done = world.completed(&id).await;
    let late = moment(&done, "started_at") - due;
    // Whoever only looked now and then would come seconds later: the next such look is ten seconds after the start.
    assert!((0..5_000).contains(&late), "{late} ms late");
    assert!(done["run_at"].is_null() && done["timings"]["queued_ms"].as_i64().unwrap() < 5_000, "{done}");
    assert_eq!(world.now(&later).await["stage"], "scheduled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_task_outlives_a_restart_and_can_be_cancelled() {
    let world = world().start().await;
    let far = json!({"run_at": "2999-01-01T08:00:00+01:00"});
    let [kept, cancelled] = [world.create(&task_with(1, &far)).await, world.create(&task_with(2, &far)).await];
    let world = world.restart().await;
    let task = world.now(&kept).await;
    assert_eq!((&task["stage"], &task["run_at"]), (&json!("scheduled"), &json!("2999-01-01T07:00:00Z")));
    let (status, over) = world.cancel(&cancelled).await;
    assert_eq!((status, &over["status"]), (StatusCode::OK, &json!("cancelled")));
    let past = world.create(&task_with(3, &json!({"run_at": "2001-01-01T00:00:00Z"}))).await;
    world.ran(&past, 1).await;
    assert_eq!((world.executions(&kept), world.executions(&cancelled)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_task_is_done_again_from_the_beginning() {
    let world = world().start().await;
    world.fake().inject_times(wrong(), 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.failed(&id).await;
    let (status, again) = world.retry(&id, Value::Null).await;
    assert_eq!((status, &again["generation"], &again["error"]), (StatusCode::ACCEPTED, &json!(2), &Value::Null));
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], world.executions(&id)), (&json!(1), 2));
    world.assert_nothing_was_repeated();
    // Completed is never reopened, and asking twice is no fault.
    for body in [Value::Null, json!({}), json!({"only": "uploads"})] {
        let (status, same) = world.retry(&id, body).await;
        assert_eq!((status, &same["status"], &same["generation"]), (StatusCode::OK, &json!("completed"), &json!(2)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_is_done_again_and_asking_twice_is_asking_once() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["status"], "cancelled");
    for _ in 0..3 {
        let (status, again) = world.retry(&id, Value::Null).await;
        assert_eq!((status, &again["generation"]), (StatusCode::ACCEPTED, &json!(2)), "{again}");
    }
    world.fake().resume();
    let done = world.completed(&id).await;
    assert_eq!(
        (&done["generation"], world.fake().log().iter().filter(|event| posted(&id)(&event.kind)).count()),
        (&json!(2), 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_being_cancelled_cannot_be_asked_for_again_yet() {
    let world = world().with("COMFYD_COMFYUI__STOP_GRACE", "1h").start().await;
    // A node that cannot be interrupted.
    world.fake().inject(Fault::Hang).await.unwrap();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    let (status, cancelling) = world.cancel(&id).await;
    assert_eq!((status, &cancelling["stage"]), (StatusCode::ACCEPTED, &json!("cancelling")));
    let (status, problem) = world.retry(&id, Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("task_cancelling")), "{problem}");
    world.fake().clear();
    assert_eq!(world.finished(&id).await["status"], "cancelled");
    world.retry(&id, Value::Null).await;
    world.completed(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_missing_is_stored_again() {
    let world = world().with("COMFYD_TASKS__UPLOAD_PARALLEL", "1").start().await;
    // One after the other: the first is stored, the second is not to be had.
    let position = world.fake().position();
    world.fake().pause_execution();
    let id = world.create(&files(3, 1)).await;
    world.running(&id).await;
    world.fake().inject(Fault::SlowView { bytes_per_second: 3_000 }).await.unwrap();
    world.fake().resume();
    until_from(&world.fake(), position, |event| matches!(event, EventKind::Viewed { .. })).await;
    world.fake().inject(Fault::ViewStatus { status: 404 }).await.unwrap();
    let failed = world.failed(&id).await;
    assert_eq!(failed["error"]["code"], "output_missing");
    let stored = failed["outputs"].as_array().unwrap().clone();
    assert!(stored.len() < 3, "{failed}");

    world.fake().clear();
    let position = world.fake().position();
    let (status, again) = world.uploads_again(&id).await;
    assert_eq!((status, &again["stage"], &again["generation"]), (StatusCode::ACCEPTED, &json!("uploading"), &json!(2)));
    let done = world.completed(&id).await;
    assert_eq!((done["outputs"].as_array().unwrap().len(), world.executions(&id)), (3, 1), "{done}");
    let views =
        world.fake().log_since(position).iter().filter(|event| matches!(event.kind, EventKind::Viewed { .. })).count();
    assert_eq!(views, 3 - stored.len(), "what was stored is not fetched again");
    assert_eq!(&done["outputs"].as_array().unwrap()[..stored.len()], &stored[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_gone_make_it_fail_again_and_nothing_runs() {
    let world = world().start().await;
    world.fake().inject_times(Fault::ViewStatus { status: 404 }, 1).await.unwrap();
    let id = world.create(&files(1, 1)).await;
    world.failed(&id).await;
    world.fake().inject(Fault::ViewStatus { status: 404 }).await.unwrap();
    let (status, _) = world.uploads_again(&id).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let failed = world.failed(&id).await;
    assert_eq!((&failed["error"]["code"], &failed["generation"]), (&json!("output_missing"), &json!(2)), "{failed}");
    assert_eq!(world.executions(&id), 1);
    // The whole task still can.
    world.fake().clear();
    world.retry(&id, Value::Null).await;
    let done = world.completed(&id).await;
    assert_eq!((&done["generation"], world.executions(&id)), (&json!(3), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_while_the_files_are_stored_changes_nothing() {
    let world = world().start().await;
    world.fake().inject(Fault::SlowView { bytes_per_second: 1 }).await.unwrap();
    let id = world.create(&files(1, 1)).await;
    world.stage(&id, "uploading").await;
    for body in [Value::Null, json!({"only": "uploads"})] {
        let (status, same) = world.retry(&id, body).await;
        assert_eq!(
            (status, &same["stage"], &same["generation"]),
            (StatusCode::ACCEPTED, &json!("uploading"), &json!(1))
        );
    }
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["status"], "cancelled");
    world.fake().clear();
    // It was cancelled over its files: they are still there.
    world.uploads_again(&id).await;
    let done = world.completed(&id).await;
    assert_eq!((&done["generation"], world.executions(&id)), (&json!(2), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_retry_of_uploads_costs_no_run() {
    let world = world().with("COMFYD_SERVER__DRAIN_GRACE", "100ms").start().await;
    world.fake().inject_times(Fault::ViewStatus { status: 404 }, 1).await.unwrap();
    let id = world.create(&files(2, 1)).await;
    world.failed(&id).await;
    world.fake().inject(Fault::SlowView { bytes_per_second: 1 }).await.unwrap();
    let position = world.fake().position();
    world.uploads_again(&id).await;
    until_from(&world.fake(), position, |event| matches!(event, EventKind::Viewed { .. })).await;
    // The transfers under way stay slow; those of the next process are not.
    world.fake().clear();
    let world = world.restart().await;
    let done = world.completed(&id).await;
    assert_eq!((&done["generation"], world.executions(&id)), (&json!(2), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_retried_says_why() {
    let world = world().start().await;
    world.fake().inject_times(wrong(), 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.failed(&id).await;
    let (status, problem) = world.uploads_again(&id).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("no_files")), "{problem}");
    assert_eq!(world.now(&id).await["generation"], 1);
    for (body, pointer) in
        [(json!({"only": "inputs"}), "/only"), (json!({"only": 1}), "/only"), (json!({"onyl": "uploads"}), "/onyl")]
    {
        let (status, problem) = world.retry(&id, body).await;
        assert_eq!(
            (status, &problem["errors"][0]["pointer"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(pointer)),
            "{problem}"
        );
    }
    let (status, problem) = world.retry("01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11", Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("task_not_found")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_takes_no_retries_of_whole_tasks() {
    let world = world().with("COMFYD_QUEUE__MAX_PENDING", "1").start().await;
    world.fake().inject_times(wrong(), 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.failed(&id).await;
    world.control("/api/queue/pause").await;
    let waiting = world.create(&task(2)).await;
    let (status, problem) = world.retry(&id, Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("queue_full")), "{problem}");
    world.control("/api/queue/resume").await;
    world.completed(&waiting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_priority_is_a_new_place() {
    let world = world().start().await;
    world.control("/api/queue/pause").await;
    let [first, second, third] =
        [world.create(&task(1)).await, world.create(&task(2)).await, world.create(&task(3)).await];
    let (status, changed) = world.prioritize(&third, json!("high")).await;
    assert_eq!((status, &changed["priority"], &changed["stage"]), (StatusCode::OK, &json!(10), &json!("queued")));
    world.prioritize(&first, json!(-100)).await;
    world.control("/api/queue/resume").await;
    for id in [&first, &second, &third] {
        world.completed(id).await;
    }
    let at = |id: &str| world.fake().log().iter().position(|event| started(id)(&event.kind)).unwrap();
    assert!(at(&third) < at(&second) && at(&second) < at(&first));

    let (status, problem) = world.prioritize(&first, json!(1)).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("task_over")), "{problem}");
    for (priority, pointer) in [(json!("urgent"), "/priority"), (json!(101), "/priority"), (Value::Null, "/priority")] {
        let (status, problem) = world.prioritize(&first, priority).await;
        assert_eq!(
            (status, &problem["errors"][0]["pointer"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(pointer)),
            "{problem}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_keeps_running_and_remembers_its_new_priority() {
    let world = world().start().await;
    world.fake().pause_execution();
    let id = world.create(&task(1)).await;
    world.running(&id).await;
    let (status, changed) = world.prioritize(&id, json!("low")).await;
    assert_eq!((status, &changed["priority"]), (StatusCode::OK, &json!(-10)));
    world.fake().resume();
    let done = world.ran(&id, 1).await;
    assert_eq!(done["priority"], -10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_starts_nothing_new_and_stays_paused_over_a_restart() {
    let world = world().start().await;
    world.fake().pause_execution();
    let running = world.create(&task(1)).await;
    world.running(&running).await;
    let prepared = world.create(&task(2)).await;
    until(&world.fake(), posted(&prepared)).await;

    let state = world.control("/api/queue/pause").await;
    assert_eq!(state["paused"], true);
    assert_eq!(world.control("/api/queue/pause").await, state, "since the first time");
    // What only waited on the server comes back, what runs goes on.
    until(&world.fake(), |event| matches!(event, EventKind::Deleted { .. })).await;
    world.stage(&prepared, "queued").await;
    let new = world.create(&task(3)).await;
    world.fake().resume();
    world.ran(&running, 1).await;
    assert_eq!(world.now(&new).await["stage"], "queued");

    let world = world.restart().await;
    let status = world.until_status(|status| status["paused"] == true).await;
    assert_eq!(status["queue"]["pending"], 2, "{status}");
    let ready = world.send(Method::GET, "/readyz", &Value::Null).await;
    assert_eq!(ready.status(), StatusCode::OK, "new tasks are taken all the same");
    assert_eq!((world.executions(&prepared), world.executions(&new)), (0, 0));

    assert_eq!(world.control("/api/queue/resume").await, json!({"paused": false, "paused_since": null}));
    world.completed(&prepared).await;
    world.completed(&new).await;
    world.assert_nothing_was_repeated();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_backend_is_given_nothing_and_the_other_does_the_work() {
    let world = world().fakes([FakeConfig::default(), FakeConfig::default()]).start().await;
    let name = world.name(0);
    let paused = world.control(&format!("/api/backends/{name}/pause")).await;
    assert_eq!((&paused["name"], &paused["paused"]), (&json!(name), &json!(true)));
    let world = world.restart().await;
    world.online().await;
    let mut tasks = Vec::new();
    for color in 0..6 {
        tasks.push(world.create(&task(color)).await);
    }
    for id in &tasks {
        world.completed(id).await;
        assert_eq!(world.fakes[0].control().executions_of_task(id), 0);
    }
    let list = world.get("/api/backends").await;
    let seen = |name: &str| {
        let all = list["backends"].as_array().unwrap();
        all.iter().find(|backend| backend["name"] == name).unwrap_or_else(|| panic!("{list}"))["paused"].clone()
    };
    assert_eq!((seen(&name), seen(&world.name(1))), (json!(true), json!(false)));

    // By its whole address as well.
    let address = world.fakes[0].url().replace(':', "%3A").replace('/', "%2F");
    assert_eq!(world.control(&format!("/api/backends/{address}/resume")).await["paused"], false);
    world.fakes[1].control().pause_execution();
    let one = world.create(&task(7)).await;
    let other = world.create(&task(8)).await;
    let on_first =
        || world.fakes[0].control().executions_of_task(&one) + world.fakes[0].control().executions_of_task(&other);
    until_level("the resumed backend works", || on_first() >= 1).await;
    world.fakes[1].control().resume();
    world.completed(&one).await;
    world.completed(&other).await;

    let (status, problem) = world.ask(Method::POST, "/api/backends/gpu-9:8188/pause", Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("unknown_backend")), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_the_death_of_the_queue() {
    let world = world().start().await;
    world.control("/api/queue/pause").await;
    world.kill(&world.system().slots.queue).await;
    let id = world.create_stubbornly(&task(1), "k").await;
    // The new queue has told what it read by the time it counts.
    world.until_status(|status| status["queue"]["pending"] == 1).await;
    assert_eq!((world.executions(&id), &world.now(&id).await["stage"]), (0, &json!("queued")));
    world.control("/api/queue/resume").await;
    world.ran(&id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_found_by_time_and_by_server() {
    let world = world().start().await;
    let old = world.create(&task(1)).await;
    let old = world.completed(&old).await;
    world.fake().pause_execution();
    let running = world.create(&task(2)).await;
    world.running(&running).await;
    world.stage(&running, "executing").await;
    let listed = async |query: &str| -> Vec<String> {
        let page = world.get(&format!("/api/tasks?{query}")).await;
        page["tasks"].as_array().unwrap().iter().map(|task| task["task_id"].as_str().unwrap().to_owned()).collect()
    };
    let (first, name) = (old["created_at"].as_str().unwrap(), world.name(0));
    let second = world.now(&running).await["created_at"].as_str().unwrap().to_owned();
    let old = old["task_id"].as_str().unwrap();
    assert_eq!(listed(&format!("created_after={first}")).await, [running.as_str(), old]);
    assert_eq!(listed(&format!("created_before={second}")).await, [old]);
    assert_eq!(listed(&format!("created_after={first}&created_before={second}&status=completed")).await, [old]);
    assert_eq!(listed(&format!("backend={name}")).await, [running.as_str()]);
    assert_eq!(listed(&format!("backend={name}&status=completed")).await, Vec::<String>::new());
    world.fake().resume();
    world.completed(&running).await;
    assert_eq!(listed(&format!("backend={name}")).await, Vec::<String>::new());
    let (status, problem) =
        world.ask(Method::GET, "/api/tasks?created_after=yesterday&backend=x&created_befor=1", Value::Null).await;
    let named: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|fault| fault["parameter"].as_str().unwrap()).collect();
    assert_eq!((status, named), (StatusCode::UNPROCESSABLE_ENTITY, vec!["created_after", "backend", "created_befor"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_shows_what_it_took() {
    let world = world().start().await;
    let run = json!({"workflow": "text-to-image", "inputs": {"prompt": "a house", "steps": 2, "width": 64, "height": 64, "seed": 1}});
    let noted = async |id: String| -> Vec<Value> {
        world.completed(&id).await;
        // The note is made beside the work, so it may come a moment later.
        loop {
            let nodes = world.now(&id).await["nodes"].as_array().unwrap().clone();
            if !nodes.is_empty() {
                return nodes;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let nodes = noted(world.create(&run).await).await;
    let classes: Vec<_> = nodes.iter().map(|node| node["class_type"].as_str().unwrap()).collect();
    assert!(classes.contains(&"KSampler") && classes.contains(&"SaveImage"), "{nodes:?}");
    assert!(nodes.iter().all(|node| node["cached"] == false && node["ms"].as_i64().unwrap() >= 0), "{nodes:?}");
    let nodes = noted(world.create(&run).await).await;
    let cached: Vec<_> = nodes.iter().filter(|node| node["cached"] == true).map(|node| &node["class_type"]).collect();
    assert!(cached.contains(&&json!("KSampler")), "{nodes:?}");
}
