//! What failed for good can be looked through and asked for again.

use fake_comfyui::Fault;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{World, task, task_with, world};

impl World {
    async fn dead(&self, query: &str) -> Vec<String> {
        let page = self.get(&format!("/api/dead-letters?{query}")).await;
        page["tasks"].as_array().unwrap().iter().map(|task| task["task_id"].as_str().unwrap().to_owned()).collect()
    }

    async fn replay(&self, body: Value) -> (StatusCode, Value) {
        let answer = self.client.post(self.url("/api/dead-letters/replay")).json(&body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// A task that fails with this.
    async fn failing(&self, fault: Fault, body: &Value) -> String {
        self.fake().inject(fault).await.unwrap();
        let id = self.create(body).await;
        assert_eq!(self.finished(&id).await["status"], "failed");
        self.fake().clear();
        id
    }
}

fn wrong() -> Fault {
    Fault::NodeError { exception_type: "ValueError".into(), message: "boom".into() }
}

fn text_to_image() -> Value {
    json!({"workflow": "text-to-image", "inputs": {"prompt": "x", "steps": 1, "width": 64, "height": 64}, "max_attempts": 1})
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_listed_by_how_and_when_they_failed() {
    let world = world().start().await;
    let permanent = world.failing(wrong(), &task(1)).await;
    let cramped = world.failing(Fault::OutOfMemory, &task_with(2, &json!({"max_attempts": 1}))).await;
    let named = world.failing(Fault::node_error("passing"), &text_to_image()).await;
    world.completed(&world.create(&task(3)).await).await;
    assert_eq!(world.dead("").await, [&*named, &*cramped, &*permanent], "the newest failure first, and nothing else");
    assert_eq!(world.dead("class=out_of_memory").await, [&*cramped]);
    assert_eq!(world.dead("class=permanent,transient").await, [&*named, &*permanent]);
    assert_eq!(world.dead("workflow=text-to-image").await, [&*named]);
    let failed_at = world.now(&cramped).await["finished_at"].as_str().unwrap().to_owned();
    assert_eq!(world.dead(&format!("failed_after={failed_at}")).await, [&*named, &*cramped]);
    assert_eq!(world.dead(&format!("failed_before={failed_at}")).await, [&*permanent]);
    let first = world.get("/api/dead-letters?limit=2").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(world.dead(&format!("limit=2&cursor={cursor}")).await, [&*permanent]);
    let entry = &first["tasks"][1];
    assert_eq!((&entry["error"]["class"], &entry["error"]["next"]), (&json!("out_of_memory"), &json!("nothing")));
    assert!(entry["error"]["advice"].is_string() && entry["error"]["node_id"] == "1", "{entry}");
    let answer = world.client.get(world.url("/api/dead-letters?class=oom&limit=0&clas=x")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let faults: Value = answer.json().await.unwrap();
    assert_eq!(faults["errors"].as_array().unwrap().len(), 3, "{faults}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_tasks_run_again_by_name_or_by_what_they_have_in_common() {
    let world = world().start().await;
    let mut ids = Vec::new();
    for color in 0..5 {
        ids.push(world.failing(wrong(), &task(color)).await);
    }
    let cramped = world.failing(Fault::OutOfMemory, &task_with(9, &json!({"max_attempts": 1}))).await;
    let good = world.create(&task(10)).await;
    world.completed(&good).await;

    let unknown = "01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11";
    let (status, report) = world.replay(json!({"task_ids": [ids[0], unknown, good, ids[0]]})).await;
    assert_eq!((status, &report["replayed"]), (StatusCode::OK, &json!(2)), "{report}");
    assert_eq!(report["not_replayed"][0]["task_id"], unknown);
    assert_eq!(world.completed(&ids[0]).await["generation"], 2);
    assert_eq!(world.completed(&good).await["generation"], 1, "what is completed stays so");

    // The oldest failures of those at hand go first; the rest is for the next time.
    let (_, report) = world.replay(json!({"class": ["permanent"], "limit": 3})).await;
    assert_eq!((&report["replayed"], &report["more"]), (&json!(3), &json!(true)), "{report}");
    assert_eq!(report["task_ids"], json!([ids[2], ids[3], ids[4]]));
    for id in &ids[2..] {
        world.completed(id).await;
    }
    assert_eq!(world.dead("").await, [&*cramped, &*ids[1]]);
    let (_, report) = world.replay(json!({"all": true})).await;
    assert_eq!((&report["replayed"], &report["more"]), (&json!(2), &json!(false)), "{report}");
    for id in [&cramped, &ids[1]] {
        let done = world.completed(id).await;
        assert_eq!((&done["generation"], world.executions(id)), (&json!(2), 2));
    }
    assert!(world.dead("").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_takes_places_in_the_queue_and_stops_when_there_are_none() {
    let world = world().with("COMFYD_QUEUE__MAX_PENDING", "2").start().await;
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.failing(wrong(), &task(color)).await);
    }
    world.client.post(world.url("/api/queue/pause")).send().await.unwrap();
    let waiting = [world.create(&task(10)).await, world.create(&task(11)).await];
    let (status, problem) = world.replay(json!({"all": true})).await;
    assert_eq!((status, &problem["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("queue_full")), "{problem}");
    assert_eq!(world.dead("").await.len(), 4, "nothing was changed");
    world.client.post(world.url("/api/queue/resume")).send().await.unwrap();
    for id in &waiting {
        world.completed(id).await;
    }
}

/// Those that are asked for together take a place each.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_fills_the_queue_stops_halfway_and_says_so() {
    let world = world().with("COMFYD_QUEUE__MAX_PENDING", "2").start().await;
    let mut ids = Vec::new();
    for color in 0..4 {
        ids.push(world.failing(wrong(), &task(color)).await);
    }
    world.client.post(world.url("/api/queue/pause")).send().await.unwrap();
    let (status, report) = world.replay(json!({"all": true})).await;
    assert_eq!((status, &report["task_ids"]), (StatusCode::OK, &json!([ids[0], ids[1]])), "{report}");
    assert_eq!((&report["replayed"], &report["more"]), (&json!(2), &json!(true)), "{report}");
    assert!(report["stopped"].as_str().unwrap().contains("full"), "{report}");
    assert_eq!(world.dead("").await, [&*ids[3], &*ids[2]], "the rest is untouched");
    // What waits again counts as what is new does.
    assert_eq!(world.post(&task(9)).await.status(), StatusCode::TOO_MANY_REQUESTS);
    world.client.post(world.url("/api/queue/resume")).send().await.unwrap();
    for id in &ids[..2] {
        assert_eq!(world.completed(id).await["generation"], 2);
    }
    let (_, report) = world.replay(json!({"all": true})).await;
    assert_eq!((&report["replayed"], &report["stopped"]), (&json!(2), &Value::Null), "{report}");
    for id in &ids {
        assert_eq!((world.completed(id).await["generation"].clone(), world.executions(id)), (json!(2), 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_must_say_what_it_wants() {
    let world = world().start().await;
    let id = "01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11";
    for (body, pointer) in [
        (json!({}), ""),
        (json!({"all": false}), ""),
        (json!({"limit": 5}), ""),
        (json!({"task_ids": [id], "class": "poison"}), "/task_ids"),
        (json!({"task_ids": []}), "/task_ids"),
        (json!({"task_ids": ["x"]}), "/task_ids"),
        (json!({"class": "oom"}), "/class"),
        (json!({"class": []}), "/class"),
        (json!({"all": true, "limit": 1001}), "/limit"),
        (json!({"all": true, "only": "files"}), "/only"),
        (json!({"failed_after": "yesterday"}), "/failed_after"),
        (json!({"clas": "poison"}), "/clas"),
    ] {
        let (status, problem) = world.replay(body.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {problem}");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
    }
}
