//! Who is told of a task, and hears of it: the whole way, to a receiver that checks who sends.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    place,
    receiver::{Heard, Receiver, SECRET},
    support::{PATIENCE, World, task_with, world},
    tools,
};

fn kinds(heard: &[Heard]) -> Vec<&str> {
    heard.iter().map(Heard::kind).collect()
}

/// A task that tells the receiver of its end.
async fn told(world: &World, receiver: &Receiver, path: &str) -> String {
    let id = world.create(&task_with(1, &json!({"webhook_url": receiver.url(path)}))).await;
    world.completed(&id).await;
    id
}

async fn post(world: &World, path: &str) -> (StatusCode, Value) {
    let answer = world.client.post(world.url(path)).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

/// The only message of a log.
async fn only(world: &World, query: &str) -> Value {
    let page = world.get(&format!("/api/webhooks/deliveries?{query}")).await;
    let [delivery] = page["deliveries"].as_array().unwrap().as_slice() else { panic!("{page}") };
    delivery.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_told_as_it_was_asked_for() {
    let receiver = Receiver::start().await;
    let world = receiver.heard_from(world()).with("COMFYD_SERVER__PUBLIC_URL", "https://comfy.example").start().await;
    let events = ["task.queued", "task.executing", "task.completed"];
    let webhook = json!({"url": receiver.url("hook?token=secret"), "events": events});
    let body = task_with(7, &json!({"webhook_url": webhook, "metadata": {"order": 7}}));
    let id = world.create(&body).await;
    let done = world.completed(&id).await;
    assert_eq!(done["webhook"], json!({"url": receiver.url("hook"), "events": events}), "without the token");
    let heard = receiver.different(3).await;
    assert_eq!(kinds(&heard), events);
    assert!(heard.iter().all(|heard| heard.uri == "/hook?token=secret" && heard.task() == id));
    let end = &heard[2].message;
    assert_eq!(end["timestamp"], done["finished_at"]);
    let news = &end["data"];
    for same in ["status", "stage", "generation", "attempt", "workflow", "created_at", "timings", "metadata", "error"] {
        assert_eq!(news[same], done[same], "{same}");
    }
    let output = &news["outputs"][0];
    assert_eq!(output["url"], format!("https://comfy.example/api/tasks/{id}/outputs/0"));
    assert_eq!((&output["sha256"], &output["bytes"]), (&done["outputs"][0]["sha256"], &done["outputs"][0]["bytes"]));
    let first = &heard[0].message["data"];
    assert_eq!((&first["status"], &first["outputs"]), (&json!("pending"), &json!([])), "what was, not what is");
    let log = world.until("/api/webhooks/deliveries", |page| page["deliveries"][0]["status"] == "delivered").await;
    let listed = log["deliveries"].as_array().unwrap();
    assert_eq!(listed.iter().map(|it| it["type"].as_str().unwrap()).rev().collect::<Vec<_>>(), events);
    assert_eq!(listed[0]["webhook_id"], heard[2].id);
    assert_eq!(listed[0]["tries"][0]["status"], 204);
    assert_eq!(listed[0]["endpoint"]["url"], receiver.url("hook"));
    assert!(!log.to_string().contains("secret"), "{log}");
    let page = world.get("/api/webhooks/deliveries?limit=2").await;
    let rest = world.get(&format!("/api/webhooks/deliveries?cursor={}", page["next_cursor"].as_str().unwrap())).await;
    assert_eq!((page["deliveries"][1].clone(), rest["deliveries"][0].clone()), (listed[1].clone(), listed[2].clone()));
    let metrics = world.client.get(world.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("comfyd_webhook_tries_total{result=\"delivered\"} 3"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_asked_for_is_refused_before_anything_is_stored() {
    let receiver = Receiver::start().await;
    let world = world().start().await;
    for (webhook, word) in [
        (json!(receiver.url("x")), "https"),
        (json!("https://127.0.0.1/x"), "not a public address"),
        (json!("https://169.254.169.254/latest"), "not a public address"),
        (json!("https://user:pw@a.example/x"), "user or password"),
        (json!("ftp://a.example/x"), "ftp"),
        (json!({"url": "https://a.example/x", "events": ["completed"]}), "task.completed"),
        (json!({"url": "https://a.example/x", "event": []}), "`event`"),
        (json!(["https://a.example/x"]), "found a list"),
    ] {
        let answer = world.post(&task_with(1, &json!({"webhook_url": webhook}))).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{webhook}");
        let problem: Value = answer.json().await.unwrap();
        let fault = &problem["errors"][0];
        assert_eq!(fault["pointer"], "/webhook_url", "{problem}");
        assert!(fault["detail"].as_str().unwrap().contains(word), "{problem}");
        assert!(!problem.to_string().contains("pw"), "{problem}");
    }
    assert_eq!(world.get("/api/tasks").await["tasks"], json!([]));
    assert_eq!(receiver.heard().len(), 0);
}

/// Who is named in the configuration is told of what tells nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_names_who_hears_of_all_others() {
    let receiver = Receiver::start().await;
    let events = "task.uploading,task.completed";
    let world = receiver.heard_from(world()).with("WEBHOOK_URL", &receiver.url("all"));
    let world = world.with("COMFYD_WEBHOOKS__EVENTS", events).start().await;
    let plain = world.create(&task_with(1, &json!({}))).await;
    let own = told(&world, &receiver, "own").await;
    let heard = receiver.different(3).await;
    let of =
        |id: &str| heard.iter().filter(|it| it.task() == id).map(|it| (it.uri.as_str(), it.kind())).collect::<Vec<_>>();
    assert_eq!(of(&plain), [("/all", "task.uploading"), ("/all", "task.completed")]);
    assert_eq!(of(&own), [("/own", "task.completed")]);
}

/// Redirects are not followed, faults are tried again, and the same message keeps its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_taken_is_sent_again() {
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let world = receiver.heard_from(world()).with("COMFYD_WEBHOOKS__SCHEDULE", "10ms,20ms,30ms");
    let world =
        world.with("COMFYD_OUTBOUND__PORTS", &format!("{},{}", port(&receiver), port(&elsewhere))).start().await;
    let (times, other) = (std::sync::atomic::AtomicUsize::new(0), elsewhere.url("x"));
    receiver.answers(move |_| match times.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, other.clone())]),
        1 => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "0".to_owned())]),
        _ => (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain".to_owned())]),
    });
    told(&world, &receiver, "x").await;
    let heard = receiver.until(|heard| heard.len() == 3).await;
    assert_eq!(heard.iter().map(|heard| &heard.id).collect::<BTreeSet<_>>().len(), 1);
    let log = world.until("/api/webhooks/deliveries?status=delivered", |page| page["deliveries"][0].is_object()).await;
    let statuses: Vec<_> =
        log["deliveries"][0]["tries"].as_array().unwrap().iter().map(|it| it["status"].clone()).collect();
    assert_eq!(statuses, [307, 503, 200]);
    assert_eq!(elsewhere.heard().len(), 0);
}

fn port(receiver: &Receiver) -> u16 {
    receiver.url("").trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_and_asked_for_again() {
    let receiver = Receiver::start().await;
    let world = receiver.heard_from(world()).with("COMFYD_WEBHOOKS__SCHEDULE", "1ms").start().await;
    receiver.answers(|_| StatusCode::BAD_REQUEST);
    let id = told(&world, &receiver, "x").await;
    world.until("/api/webhooks/deliveries?status=failed", |page| page["deliveries"][0].is_object()).await;
    let failed = only(&world, &format!("task_id={id}")).await;
    assert_eq!((&failed["tries"][1]["status"], &failed["next_try_at"]), (&json!(400), &Value::Null));
    receiver.answers(|_| StatusCode::OK);
    let path = format!("/api/webhooks/deliveries/{}/redeliver", failed["delivery_id"]);
    let (status, asked) = post(&world, &path).await;
    assert_eq!((status, &asked["status"]), (StatusCode::ACCEPTED, &json!("pending")));
    world.until("/api/webhooks/deliveries?status=delivered", |page| page["deliveries"][0].is_object()).await;
    // One that was delivered as well.
    assert_eq!(post(&world, &path).await.0, StatusCode::ACCEPTED);
    let heard = receiver.until(|heard| heard.len() == 4).await;
    assert!(heard.iter().all(|it| it.id == heard[0].id));
    for nowhere in [
        "/api/webhooks/deliveries/999/redeliver",
        "/api/webhooks/deliveries/x/redeliver",
        "/api/webhooks/endpoints/x/enable",
    ] {
        assert_eq!(post(&world, nowhere).await.0, StatusCode::NOT_FOUND, "{nowhere}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_that_it_is_gone_gets_nothing_until_it_is_enabled() {
    let receiver = Receiver::start().await;
    let world = receiver.heard_from(world()).start().await;
    receiver.answers(|_| StatusCode::GONE);
    told(&world, &receiver, "x?a=1").await;
    let gone = |page: &Value| page["endpoints"][0]["disabled_at"].is_string();
    let page = world.until("/api/webhooks/endpoints", gone).await;
    let endpoint = page["endpoints"][0]["endpoint_id"].as_str().unwrap().to_owned();
    told(&world, &receiver, "x?a=2").await;
    let held = world.get(&format!("/api/webhooks/deliveries?endpoint_id={endpoint}&status=pending")).await;
    assert_eq!(held["deliveries"].as_array().unwrap().len(), 2);
    assert!(held["deliveries"].as_array().unwrap().iter().all(|it| it["next_try_at"].is_null()), "{held}");
    assert_eq!(receiver.heard().len(), 1);
    receiver.answers(|_| StatusCode::OK);
    let (status, enabled) = post(&world, &format!("/api/webhooks/endpoints/{endpoint}/enable")).await;
    assert_eq!((status, &enabled["disabled_at"]), (StatusCode::OK, &Value::Null));
    let heard = receiver.until(|heard| heard.len() == 3).await;
    let again = heard.iter().filter(|it| it.id == heard[0].id).count();
    assert_eq!(again, 2, "the one that was refused, and the one that was held back: {heard:#?}");
}

/// What is to be told outlives the process.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_heard_is_told_by_the_next_process() {
    let receiver = Receiver::start().await;
    let world = receiver.heard_from(world()).with("COMFYD_WEBHOOKS__SCHEDULE", "1s,1s,1s").start().await;
    receiver.answers(|_| StatusCode::INTERNAL_SERVER_ERROR);
    let id = told(&world, &receiver, "x").await;
    receiver.until(|heard| !heard.is_empty()).await;
    let world = world.restart().await;
    receiver.answers(|_| StatusCode::OK);
    world.until("/api/webhooks/deliveries?status=delivered", |page| page["deliveries"][0]["task_id"] == id).await;
}

/// The receiver that people start from, as it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_takes_what_is_genuine() {
    let port = place::free_address().port().to_string();
    let secrets = format!("whsec_{},{SECRET}", "A".repeat(32));
    let mut receiver = tools::python();
    receiver.arg(tools::root().join("examples/webhook_receiver.py")).env("PORT", &port).env("WEBHOOK_SECRETS", secrets);
    let (_receiver, mut lines) = tools::running(receiver);
    let mut line = async || timeout(PATIENCE, lines.recv()).await.expect("it says nothing").unwrap();
    assert_eq!(line().await, format!("listening on {port}"));
    let settings = [
        ("OUTBOUND_ALLOW_PRIVATE", "127.0.0.0/8"),
        ("COMFYD_OUTBOUND__HTTP", "true"),
        ("COMFYD_OUTBOUND__PORTS", port.as_str()),
        ("WEBHOOK_SECRETS", SECRET),
    ];
    let world = settings.into_iter().fold(world(), |world, (name, value)| world.with(name, value)).start().await;
    let url = format!("http://127.0.0.1:{port}/");
    let id = world.create(&task_with(1, &json!({"webhook_url": url}))).await;
    assert_eq!(line().await, format!("task.completed {id} /api/tasks/{id}/outputs/0"));
    let forged = world.client.post(&url).header("webhook-id", "msg_1").header("webhook-timestamp", "1").body("{}");
    assert_eq!(forged.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

/// The row of the crash table: killed while it sends, and again.
#[tokio::test(flavor = "multi_thread")]
async fn the_teller_dies() {
    let receiver = Receiver::start().await;
    let events = ["task.queued", "task.preparing", "task.executing", "task.uploading", "task.completed"];
    let world = receiver.heard_from(world()).with("WEBHOOK_URL", &receiver.url("x"));
    let world = world.with("COMFYD_WEBHOOKS__EVENTS", &events.join(",")).with("COMFYD_WEBHOOKS__TIMEOUT", "100ms");
    let world = world.start().await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(world.create(&task_with(n, &json!({}))).await);
        if n % 4 == 3 {
            receiver.different(ids.len()).await;
            world.kill(&world.system().slots.webhooks).await;
        }
    }
    let heard = receiver.different(ids.len() * events.len()).await;
    let mut first: BTreeMap<&str, Vec<&Heard>> = BTreeMap::new();
    for it in &heard {
        let of_task = first.entry(it.task()).or_default();
        if of_task.iter().all(|known| known.id != it.id) {
            of_task.push(it);
        }
    }
    for id in &ids {
        let told: Vec<_> = first[id.as_str()].iter().map(|heard| heard.kind()).collect();
        assert_eq!(told, events, "{id}");
    }
    assert_eq!(world.get("/api/status").await["restarts"]["webhooks"], 3);
}
