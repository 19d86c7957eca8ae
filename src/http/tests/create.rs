use axum::http::StatusCode;
use comfyd_actors::{
    bridge::RequestError,
    domain::{task::TaskState, workflow::Workflow},
    ports::store::StoreError,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::fakes::{Answer, App, full};
use crate::{
    http::{
        create::{Subject, parse},
        files::Terms,
    },
    workflows::Found,
};

fn graph() -> Value {
    json!({"1": {"class_type": "A", "inputs": {"x": 1.0, "seed": 5}}, "2": {"class_type": "B", "inputs": {"from": ["1", 0]}}})
}

/// The places of all faults, in order.
fn places(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let errors = body["errors"].as_array().cloned().unwrap_or_default();
    let place = |error: &Value| {
        ["pointer", "parameter", "header"].iter().find_map(|key| error[*key].as_str().map(str::to_owned))
    };
    errors.iter().filter_map(place).collect()
}

#[tokio::test]
async fn a_named_workflow_is_accepted() {
    let app = App::start().await;
    let answer = app
        .create(json!({"workflow": "text-to-image", "inputs": {"prompt": "a boat", "seed": 42, "width": 768}, "priority": "high",
            "max_attempts": 5, "timeout": "1h 30m", "metadata": {"order": 7}}))
        .await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.json());
    let body = answer.json();
    let id = body["task_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/api/tasks/{id}"));
    assert_eq!((&body["status"], &body["stage"], &body["priority"]), (&json!("pending"), &json!("queued"), &json!(10)));
    let request = app.world.requests.lock().unwrap()[0].clone();
    let graph: Value = serde_json::from_str(&request.payload.graph).unwrap();
    assert_eq!((&graph["6"]["inputs"]["text"], &graph["3"]["inputs"]["seed"]), (&json!("a boat"), &json!(42)));
    assert_eq!((&graph["5"]["inputs"]["width"], &graph["5"]["inputs"]["height"]), (&json!(768), &json!(512)));
    assert_eq!((request.max_attempts, request.timeout.unwrap().as_secs()), (Some(5), 5_400));
    assert_eq!(&*request.payload.metadata, "{\"order\": 7}".replace(' ', ""));
    let got = app.get(&format!("/api/tasks/{id}")).await.json();
    assert_eq!((&got["inputs"]["prompt"], &got["metadata"]["order"]), (&json!("a boat"), &json!(7)));
}

#[tokio::test]
async fn an_unknown_target_is_told_with_everything_else() {
    let app = App::start().await;
    let answer = app.create(json!({"workflow": graph(), "priority": 1000, "storage": {"target": "locol"}})).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(places(&answer), ["/priority", "/storage/target"], "{}", answer.json());
    assert_eq!(answer.json()["errors"][1]["suggestion"], "local");
}

#[tokio::test]
async fn a_drawn_seed_is_told() {
    let app = App::start().await;
    let id = app.task(|_| {}).await;
    let inputs = app.get(&format!("/api/tasks/{id}")).await.json()["inputs"].clone();
    assert!(inputs["seed"].is_u64(), "{inputs}");
    let graph: Value = serde_json::from_str(&app.world.requests.lock().unwrap()[0].payload.graph).unwrap();
    assert_eq!(graph["3"]["inputs"]["seed"], inputs["seed"]);
}

#[tokio::test]
async fn a_graph_is_kept_as_it_was_written() {
    let app = App::start().await;
    let text = r#"{"1": {"inputs": {"x": 1.10, "n": 123456789012345678901234567890}, "class_type": "A"}}"#;
    let answer = app.post("/api/tasks/create", format!("{{\"workflow\": {text}}}")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(&*app.world.requests.lock().unwrap()[0].payload.graph, text);
    assert_eq!(answer.json()["workflow"], Value::Null);
    let answer = app.create(json!({"workflow": graph(), "inputs": {"1.x": 2, "2.from": 7}, "priority": null})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let changed: Value = serde_json::from_str(&app.world.requests.lock().unwrap()[1].payload.graph).unwrap();
    assert_eq!((&changed["1"]["inputs"]["x"], &changed["2"]["inputs"]["from"]), (&json!(2), &json!(7)));
}

#[tokio::test]
async fn each_bad_body_is_answered_with_the_places_at_fault() {
    let app = App::start().await;
    let deep = format!(
        "{{\"1\": {{\"class_type\": \"A\", \"inputs\": {{\"x\": {}1{}}}}}}}",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    let big = "x".repeat(70_000);
    for (body, status, wanted) in [
        ("".to_owned(), 400, &[][..]),
        ("{".to_owned(), 400, &[]),
        ("{} x".to_owned(), 400, &[]),
        ("[]".to_owned(), 422, &[""]),
        ("5".to_owned(), 422, &[""]),
        ("{}".to_owned(), 422, &["/workflow"]),
        (json!({"workflow": 5}).to_string(), 422, &["/workflow"]),
        (json!({"workflow": "text-to-imag", "inputs": {}}).to_string(), 404, &["/workflow"]),
        (json!({"workflow": "nothing", "priority": 101}).to_string(), 422, &["/priority", "/workflow"]),
        (json!({"workflow": "text-to-image"}).to_string(), 422, &["/inputs/prompt"]),
        (
            json!({"workflow": "text-to-image", "inputs": {"promt": "x", "steps": 0, "seed": "a", "width": 15.5}, "priorty": 1,
                "max_attempts": 0, "timeout": 30, "metadata": [], "priority": "urgent"})
            .to_string(),
            422,
            &[
                "/priorty", "/metadata", "/priority", "/max_attempts", "/timeout", "/inputs/promt", "/inputs/prompt",
                "/inputs/seed", "/inputs/steps", "/inputs/width",
            ],
        ),
        (json!({"workflow": {"nodes": [], "links": []}}).to_string(), 422, &["/workflow"]),
        (json!({"workflow": {}}).to_string(), 422, &["/workflow"]),
        (json!({"workflow": {"1": {"inputs": {"x": ["9", 0]}}}}).to_string(), 422, &["/workflow/1/class_type", "/workflow/1/inputs/x"]),
        (json!({"workflow": graph(), "inputs": {"1.y": 1, "x": 2}}).to_string(), 422, &["/inputs/1.y", "/inputs/x"]),
        (json!({"workflow": graph(), "inputs": []}).to_string(), 422, &["/inputs"]),
        (json!({"workflow": graph(), "metadata": {"x": big}}).to_string(), 422, &["/metadata"]),
        (json!({"workflow": graph(), "timeout": "0s"}).to_string(), 422, &["/timeout"]),
        (json!({"workflow": graph(), "timeout": "5"}).to_string(), 422, &["/timeout"]),
        (json!({"workflow": graph(), "delay": "1h", "run_at": "2030-01-01T00:00:00Z"}).to_string(), 422, &["/delay"]),
        (json!({"workflow": graph(), "delay": "367 days"}).to_string(), 422, &["/delay"]),
        (json!({"workflow": graph(), "delay": 5, "run_at": "2030-01-01"}).to_string(), 422, &["/run_at", "/delay"]),
        (json!({"workflow": graph(), "run_at": 1_700_000_000}).to_string(), 422, &["/run_at"]),
        (json!({"workflow": graph(), "priority": 1.5}).to_string(), 422, &["/priority"]),
        (format!("{{\"workflow\": {deep}}}"), 422, &["/workflow"]),
        (format!("{{\"workflow\": \"text-to-image\", \"inputs\": {{\"prompt\": \"\"}}, \"metadata\": {deep}}}"), 422, &["/metadata"]),
        ("{\"workflow\": {\"1\": {\"class_type\": \"A\", \"inputs\": {\"x\": 1e999}}}}".to_owned(), 422, &["/workflow"]),
        ("{\"workflow\": \"text-to-image\", \"workflow\": \"text-to-image\", \"inputs\": {\"prompt\": \"\"}}".to_owned(), 422, &["/workflow"]),
    ] {
        let answer = app.post("/api/tasks/create", body.clone()).await;
        let start: String = body.chars().take(120).collect();
        assert_eq!(answer.status.as_u16(), status, "{start}: {}", answer.json());
        assert_eq!(places(&answer), wanted, "{start}: {}", answer.json());
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    assert!(app.world.requests.lock().unwrap().is_empty(), "nothing was stored");
}

#[tokio::test]
async fn a_flood_of_faults_is_cut_short() {
    let app = App::start().await;
    let many: serde_json::Map<String, Value> = (0..5_000).map(|n| (format!("field{n}"), json!(1))).collect();
    for body in [Value::Object(many.clone()), json!({"workflow": graph(), "inputs": many})] {
        assert_eq!(places(&app.create(body).await).len(), 100);
    }
}

#[tokio::test]
async fn slips_of_the_fingers_are_guessed() {
    let app = App::start().await;
    let answer = app.create(json!({"workflow": "text-to-imag"})).await.json();
    assert_eq!(
        (&answer["code"], &answer["errors"][0]["suggestion"]),
        (&json!("unknown_workflow"), &json!("text-to-image"))
    );
    let answer = app.create(json!({"workflow": graph(), "inputs": {"1.sed": 1}, "max_atempts": 1})).await.json();
    assert_eq!(answer["errors"][0]["suggestion"], "max_attempts");
    assert_eq!(answer["errors"][1]["suggestion"], "1.seed");
    let answer = app.create(json!({"workflow": {"nodes": [], "links": []}})).await.json();
    assert!(answer["errors"][0]["detail"].as_str().unwrap().contains("Export (API)"), "{answer}");
}

#[tokio::test]
async fn what_is_not_json_is_refused_by_type_and_size() {
    let app = App::start().await;
    for kind in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let request =
            axum::http::Request::post("/api/tasks/create").header("content-type", kind).body("{}".into()).unwrap();
        assert_eq!(app.send(request).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
    }
    let answer = app.post("/api/tasks/create", " ".repeat((1 << 20) + 1)).await;
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("body_too_large")));
    let answer = app.post("/api/tasks/create", vec![b'{', b'"', 0xff, b'"', b'}']).await;
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_json")));
}

#[tokio::test]
async fn who_is_answered_early_is_told_to_come_back_on_another_connection() {
    let app = App::start().await;
    let huge = app.post_with("/api/tasks/create", &[("content-length", "1048577")], " ".repeat((1 << 20) + 1)).await;
    let nowhere = app.post("/api/nothing/here", "{}").await;
    assert_eq!((huge.status.as_u16(), nowhere.status.as_u16()), (413, 404));
    assert_eq!((huge.header("connection"), nowhere.header("connection")), ("close", "close"));
    let faulty = app.post("/api/tasks/create", "{}").await;
    let (read, missing) = (app.get("/api/tasks").await, app.get("/api/nothing/here").await);
    assert_eq!((faulty.status.as_u16(), read.status.as_u16(), missing.status.as_u16()), (422, 200, 404));
    assert!([faulty, read, missing].iter().all(|answer| answer.header("connection").is_empty()));
}

#[tokio::test]
async fn a_repeated_key_finds_the_first_task() {
    let app = App::start().await;
    let key = [("idempotency-key", "order-7")];
    let first = app.post_with("/api/tasks/create", &key, json!({"workflow": graph(), "priority": 1}).to_string()).await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (StatusCode::ACCEPTED, ""));
    let same = format!("{{\"priority\": 1,\n \"workflow\": {}}}", graph());
    let again = app.post_with("/api/tasks/create", &key, same).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::OK, "true"));
    assert_eq!(first.json()["task_id"], again.json()["task_id"]);
    let other = app.post_with("/api/tasks/create", &key, json!({"workflow": graph()}).to_string()).await;
    assert_eq!((other.status.as_u16(), &other.json()["code"]), (422, &json!("idempotency_key_reused")));
    for bad in ["", "a b", &"k".repeat(256), "\u{e9}"] {
        let answer = app
            .post_with("/api/tasks/create", &[("idempotency-key", bad)], json!({"workflow": graph()}).to_string())
            .await;
        assert_eq!((answer.status.as_u16(), places(&answer)), (422, vec!["Idempotency-Key".to_owned()]), "{bad}");
    }
}

#[tokio::test]
async fn refusals_say_when_to_come_back() {
    let app = App::start().await;
    for (error, status, code, after) in [
        (full(), 429, "queue_full", "3"),
        (RequestError::Draining, 503, "draining", "1"),
        (StoreError::Unavailable("disk /secret".into()).into(), 503, "store_unavailable", "1"),
        (StoreError::Corrupt("secret".into()).into(), 500, "internal", ""),
    ] {
        *app.world.refuse.lock().unwrap() = Some(error);
        let answer = app.create(json!({"workflow": graph()})).await;
        let body = answer.json();
        assert_eq!(
            (answer.status.as_u16(), body["code"].as_str().unwrap(), answer.header("retry-after")),
            (status, code, after)
        );
        assert!(!body.to_string().contains("secret"), "{body}");
    }
    app.slot.empty();
    let answer = app.create(json!({"workflow": graph()})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (503, &json!("restarting")));
    app.world.board.set_draining();
    assert_eq!(app.create(json!({"workflow": graph()})).await.json()["code"], "draining");
}

#[tokio::test(start_paused = true)]
async fn a_client_may_wait_for_the_end() {
    let app = App::start().await;
    let prefer = [("prefer", "respond-async, wait=5")];
    let answer = app.post_with("/api/tasks/create", &prefer, json!({"workflow": graph()}).to_string()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "it did not end in time");
    let id = answer.json()["task_id"].as_str().unwrap().parse().unwrap();
    let path = format!("/api/tasks/{id}");
    let (answer, ()) = tokio::join!(app.get_with(&path, &prefer), async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        app.finish(id, TaskState::Completed);
    });
    assert_eq!((&answer.json()["status"], answer.header("preference-applied")), (&json!("completed"), "wait"));
}

proptest! {
    #[test]
    fn no_body_makes_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        workflow in "\\PC{0,40}",
        field in "(workflow|inputs|priority|run_at|delay|max_attempts|timeout|metadata|[a-z]{1,9})",
        value in "(null|true|-1|1e9|1e999|[0-9]{1,30}|\"[a-z0-9 ]{0,9}\"|\\[\\[\\]\\]|\\{\"1\":\\{\\}\\})",
    ) {
        let text = include_str!("../../../config/workflows/text-to-image.json");
        let found = || Found { name: "a".into(), version: 1, workflow: Workflow::parse(text).unwrap().into() };
        let _ = parse(&bytes, None, Subject::Body, Terms::default());
        let _ = parse(workflow.as_bytes(), None, Subject::Path(found()), Terms::default());
        let body = format!("{{\"workflow\": \"text-to-image\", \"{field}\": {value}}}");
        if let Err(problem) = parse(body.as_bytes(), None, Subject::Named(Ok(found())), Terms::default()) {
            prop_assert!(problem.body().status == 400 || !problem.body().errors.is_empty());
        }
    }
}
