//! Tenants: what a gateway says in a header decides how many tasks may wait and run.

use fake_comfyui::{FakeConfig, Fault};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Api, World, task, task_with, world};

/// Sends a task as a gateway would, with these values of its header.
pub async fn send(api: &Api, tenants: &[&str], body: &Value) -> Response {
    let mut request = api.client.post(api.url("/api/tasks/create")).json(body);
    for tenant in tenants {
        request = request.header("x-tenant", *tenant);
    }
    request.send().await.unwrap()
}

/// The task's id.
pub async fn create(api: &Api, tenant: &str, body: &Value) -> String {
    let answer = send(api, &[tenant], body).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    answer.json::<Value>().await.unwrap()["task_id"].as_str().unwrap().to_owned()
}

/// How many of these are worked on.
async fn processing(api: &Api, ids: &[String]) -> usize {
    let mut count = 0;
    for id in ids {
        count += usize::from(api.get_now(&format!("/api/tasks/{id}")).await["status"] == "processing");
    }
    count
}

async fn refused(answer: Response, status: u16, code: &str) -> Value {
    let found = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    assert_eq!((found, body["code"].as_str()), (status, Some(code)), "{body}");
    body
}

async fn pause(world: &World, verb: &str) {
    let answer = world.client.post(world.url(&format!("/api/queue/{verb}"))).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_leaves_servers_to_the_others() {
    let world = world()
        .fakes(vec![FakeConfig::default(); 3])
        .with("COMFYD_TENANTS__HEADER", "X-Tenant")
        .with("COMFYD_TENANTS__MAX_RUNNING", "1")
        .with("COMFYD_TENANTS__LIMITS", r#"{"big": {"max_running": 2}}"#)
        .start()
        .await;
    world.fakes.iter().for_each(|fake| fake.control().pause_execution());
    let mut acmes = Vec::new();
    for seed in 0..3 {
        acmes.push(create(&world, "acme", &task_with(seed, &json!({"priority": "high"}))).await);
    }
    let mut bigs = Vec::new();
    for seed in 3..6 {
        bigs.push(create(&world, "big", &task(seed)).await);
    }
    // Though acme's came first and are more urgent, two servers are left to big's.
    world.until(&format!("/api/tasks/{}", bigs[1]), |task| task["status"] == "processing").await;
    assert_eq!((processing(&world, &acmes).await, processing(&world, &bigs).await), (1, 2));
    let shown = world.get_now(&format!("/api/tasks/{}", acmes[2])).await;
    assert_eq!(
        (&shown["tenant"], &shown["status"], &shown["waiting_for"]),
        (&json!("acme"), &json!("pending"), &Value::Null)
    );
    world.fakes.iter().for_each(|fake| fake.control().resume());
    for id in acmes.iter().chain(&bigs) {
        world.completed(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_fills_its_part_of_the_queue_alone() {
    let world = world()
        .with("COMFYD_TENANTS__HEADER", "X-Tenant")
        .with("COMFYD_TENANTS__MAX_WAITING", "5")
        .with("COMFYD_TENANTS__LIMITS", r#"{"big": {"max_waiting": 0}}"#)
        .start()
        .await;
    pause(&world, "pause").await;
    // However many come at the same time, no more are taken.
    let later = json!({"delay": "1h"});
    let bodies: Vec<Value> =
        (0..20).map(|seed| if seed % 2 == 0 { task_with(seed, &later) } else { task(seed) }).collect();
    let sent = bodies.iter().map(|body| send(&world, &["acme"], body));
    let mut taken = Vec::new();
    for answer in futures_util::future::join_all(sent).await {
        if answer.status() == StatusCode::ACCEPTED {
            taken.push(answer.json::<Value>().await.unwrap()["task_id"].as_str().unwrap().to_owned());
        } else {
            assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
            let body = refused(answer, 429, "tenant_full").await;
            let detail = body["detail"].as_str().unwrap();
            assert!(detail.contains("tenant `acme` wait as may (5)"), "{detail}");
        }
    }
    assert!((1..=5).contains(&taken.len()), "{}", taken.len());
    while taken.len() < 5 {
        taken.push(create(&world, "acme", &task(90)).await);
    }
    refused(send(&world, &["acme"], &task(91)).await, 429, "tenant_full").await;
    for tenants in [&["other"][..], &["big"], &[]] {
        for seed in 0..6 {
            let answer = send(&world, tenants, &task(seed)).await;
            let expected = if tenants == ["other"] && seed == 5 { 429 } else { 202 };
            assert_eq!(answer.status().as_u16(), expected, "{tenants:?} {seed}");
        }
    }
    world.cancel(&taken[0]).await;
    let more = create(&world, "acme", &task(92)).await;
    pause(&world, "resume").await;
    world.completed(&more).await;
}

/// A task that is asked for again takes a place of its tenant's, as a new one does, and only if it comes to wait by that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_tried_again_takes_a_place_of_its_tenant() {
    let world = world()
        .with("COMFYD_TENANTS__HEADER", "X-Tenant")
        .with("COMFYD_TENANTS__LIMITS", r#"{"acme": {"max_waiting": 2}}"#)
        .start()
        .await;
    pause(&world, "pause").await;
    let mut over = Vec::new();
    for (seed, tenant) in (0..).zip(["acme", "acme", "acme", "big"]) {
        let id = create(&world, tenant, &task(seed)).await;
        world.cancel(&id).await;
        over.push(id);
    }
    let waits = create(&world, "acme", &task(10)).await;
    let again = async |id: &str| world.client.post(world.url(&format!("/api/tasks/{id}/retry"))).send().await.unwrap();
    // However many are asked for at the same time.
    let answers = futures_util::future::join_all(over[..3].iter().map(|id| again(id))).await;
    let taken = answers.iter().filter(|answer| answer.status() == StatusCode::ACCEPTED).count();
    assert!(taken <= 1, "{taken}");
    for answer in answers.into_iter().filter(|answer| answer.status() != StatusCode::ACCEPTED) {
        refused(answer, 429, "tenant_full").await;
    }
    if taken == 0 {
        assert_eq!(again(&over[0]).await.status(), StatusCode::ACCEPTED);
    }
    assert_eq!(again(&waits).await.status(), StatusCode::ACCEPTED, "it takes no other place");
    assert_eq!(again(&over[3]).await.status(), StatusCode::ACCEPTED, "another tenant");
    refused(send(&world, &["acme"], &task(11)).await, 429, "tenant_full").await;
    world.cancel(&waits).await;
    let mut last = Vec::new();
    for id in &over[..3] {
        last.push(world.get_now(&format!("/api/tasks/{id}")).await);
    }
    last.retain(|task| task["status"] == "cancelled");
    assert_eq!(last.len(), 2, "what was refused was not changed: {last:?}");
    assert_eq!(again(last[0]["task_id"].as_str().unwrap()).await.status(), StatusCode::ACCEPTED);
    refused(again(last[1]["task_id"].as_str().unwrap()).await, 429, "tenant_full").await;
    refused(again("01890000-0000-7000-8000-000000000000").await, 404, "task_not_found").await;
    pause(&world, "resume").await;
    world.completed(last[0]["task_id"].as_str().unwrap()).await;
}

/// Of failed tasks that are run again those of a full tenant are left, and hold up nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_passes_over_who_has_no_room() {
    let world = world()
        .with("COMFYD_TENANTS__HEADER", "X-Tenant")
        .with("COMFYD_TENANTS__LIMITS", r#"{"acme": {"max_waiting": 1}}"#)
        .start()
        .await;
    let once = json!({"max_attempts": 1});
    let mut failed = Vec::new();
    for (seed, tenant) in (0..).zip(["acme", "acme", "big"]) {
        world.fake().inject(Fault::node_error("boom")).await.unwrap();
        let id = create(&world, tenant, &task_with(seed, &once)).await;
        assert_eq!(world.finished(&id).await["status"], "failed");
        world.fake().clear();
        failed.push(id);
    }
    pause(&world, "pause").await;
    let waits = create(&world, "acme", &task(10)).await;
    let asked = world.client.post(world.url("/api/dead-letters/replay")).json(&json!({"all": true}));
    let report: Value = asked.send().await.unwrap().json().await.unwrap();
    assert_eq!(report["task_ids"], json!([failed[2]]), "{report}");
    let left = report["not_replayed"].as_array().unwrap();
    assert_eq!((left.len(), &report["stopped"]), (2, &Value::Null), "{report}");
    assert!(left[0]["reason"].as_str().unwrap().contains("tenant `acme` wait as may (1)"), "{report}");
    pause(&world, "resume").await;
    world.completed(&waits).await;
    world.completed(&failed[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_named_once_and_well() {
    let world =
        world().with("COMFYD_TENANTS__HEADER", "X-Tenant").with("COMFYD_TENANTS__REQUIRED", "true").start().await;
    refused(send(&world, &[], &task(1)).await, 400, "tenant_missing").await;
    let long = "x".repeat(129);
    for bad in [&["a", "b"][..], &["a", "a"], &[""], &["two words"], &["a,\tb"], &[long.as_str()]] {
        refused(send(&world, bad, &task(1)).await, 400, "tenant_invalid").await;
    }
    // Each has keys of their own.
    let keyed = async |tenant: &str| {
        let request = world.client.post(world.url("/api/tasks/create")).json(&task(2)).header("x-tenant", tenant);
        let answer = request.header("idempotency-key", "same").send().await.unwrap();
        answer.json::<Value>().await.unwrap()["task_id"].as_str().unwrap().to_owned()
    };
    let (acmes, others) = (keyed("acme").await, keyed("other").await);
    assert_ne!(acmes, others);
    assert_eq!(keyed("acme").await, acmes);
    world.completed(&acmes).await;
    world.completed(&others).await;
    assert_eq!(world.get(&format!("/api/tasks/{others}")).await["tenant"], "other");
    // Somebody's own word counts for nothing where no gateway is.
    let open = crate::support::world().start().await;
    let id = create(&open, "acme", &task(3)).await;
    assert_eq!(open.completed(&id).await["tenant"], Value::Null);
}
