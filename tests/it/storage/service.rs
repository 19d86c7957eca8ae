//! The service with a bucket.

use comfyd::{app::App, config};
use fake_comfyui::{EventKind, Fault};
use reqwest::{Client, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    buckets::{Bucket, Images, Seen, Trouble, WithoutProxy, settings},
    receiver::Receiver,
    support::{Builder, World, sha256, task, task_with, world},
    witness::until_level,
};

fn with(builder: Builder, env: &[(String, String)]) -> Builder {
    env.iter().fold(builder, |builder, (name, value)| builder.with(name, value))
}

fn is_put(seen: &Seen) -> bool {
    seen.method == "PUT" && seen.path.contains(".png") && !seen.path.contains("comfyd-check")
}

fn views(world: &World) -> usize {
    let is_view = |event: &EventKind| matches!(event, EventKind::Viewed { .. });
    world.fake().log().iter().filter(|event| is_view(&event.kind)).count()
}

async fn get(url: &str) -> reqwest::Response {
    Client::new_without_proxy().get(url).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_lie_in_the_bucket_and_links_lead_there() {
    let (bucket, receiver) = (Bucket::new().await, Receiver::start().await);
    for env in [bucket.s3(), bucket.gcs()] {
        let world = with(receiver.heard_from(world()), &env).with("COMFYD_STORAGE__PREFIX", "made/by-us").start().await;
        let more = json!({"storage": {"prefix": "renders/2026/"}, "webhook_url": receiver.url("x")});
        let id = world.create(&task_with(1, &more)).await;
        let done = world.ran(&id, 1).await;
        let output = &done["outputs"][0];
        let keys: Vec<String> = bucket.objects().await.into_keys().filter(|key| key.contains(&id)).collect();
        let [key] = keys.as_slice() else { panic!("{keys:?}") };
        assert!(key.starts_with("made/by-us/renders/2026/0/") && key.ends_with("-0.png"), "{key}");

        let direct = get(output["url"].as_str().unwrap()).await;
        assert_eq!(direct.headers()[header::CONTENT_TYPE], "image/png");
        assert_eq!(sha256(&direct.bytes().await.unwrap()), output["sha256"]);
        // Who is told of it can go there at once.
        let heard = receiver.until(|heard| heard.iter().any(|heard| heard.task() == id)).await;
        let told = &heard.last().unwrap().message["data"]["outputs"][0];
        assert_eq!(sha256(&get(told["url"].as_str().unwrap()).await.bytes().await.unwrap()), told["sha256"]);
        // Through us: the way there, or what is known of it.
        let ours = world.url(&format!("/api/tasks/{id}/outputs/0"));
        let redirect = get(&ours).await;
        assert_eq!(
            (redirect.status(), redirect.headers()[header::CACHE_CONTROL].as_bytes()),
            (StatusCode::TEMPORARY_REDIRECT, &b"no-store"[..])
        );
        let there = get(redirect.headers()[header::LOCATION].to_str().unwrap()).await;
        assert_eq!(sha256(&there.bytes().await.unwrap()), output["sha256"]);
        let head = Client::new_without_proxy().head(&ours).send().await.unwrap();
        assert_eq!(
            (head.status(), head.headers()[header::CONTENT_LENGTH].to_str().unwrap()),
            (StatusCode::OK, output["bytes"].to_string().as_str())
        );
        assert!(!world.dir.path().join("outputs/0").exists(), "nothing touches the disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_inline_and_what_clients_gave_works_with_a_bucket() {
    let bucket = Bucket::new().await;
    let world = with(world(), &bucket.s3()).start().await;
    let given = world.store(crate::inputs::picture(1, 10_000)).await;
    let mut body = crate::inputs::task(&given);
    body["output_options"] = json!({"inline": true});
    let id = world.create(&body).await;
    let done = world.ran(&id, 1).await;
    assert!(done["outputs"][0]["data"].as_str().is_some_and(|data| !data.is_empty()), "{done}");
    let keys: Vec<String> = bucket.objects().await.into_keys().collect();
    assert!(keys.iter().all(|key| key.starts_with("0/")), "inputs stay with us: {keys:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_is_waited_for_and_nothing_runs_again() {
    let bucket = Bucket::new().await;
    let world = with(world(), &bucket.s3()).start().await;
    for trouble in [Trouble::Answer(503, "SlowDown"), Trouble::Answer(403, "InvalidAccessKeyId"), Trouble::Cut] {
        bucket.proxy.always(Some(trouble));
        let (id, before) = (world.create(&task(1)).await, views(&world));
        until_level("several tries", || views(&world) >= before + 4).await;
        bucket.proxy.always(None);
        world.ran(&id, 1).await;
    }
    assert_eq!(bucket.objects().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_named_by_its_task_and_another_takes_over() {
    let (usual, archive) = (Bucket::new().await, Bucket::new().await);
    let table = json!({"archive": {
        "provider": "s3", "bucket_name": archive.name, "endpoint_url": archive.proxy.url(),
        "access_key_id": "somebody", "secret_access_key": "hunter2", "prefix": "old",
    }});
    let world = with(world(), &usual.r2())
        .with("COMFYD_STORAGE__TARGETS", &table.to_string())
        .with("COMFYD_STORAGE__FALLBACK", "local")
        .with("COMFYD_STORAGE__FALLBACK_AFTER", "100ms")
        .start()
        .await;
    let named = world.create(&task_with(1, &json!({"storage": {"target": "archive"}}))).await;
    world.ran(&named, 1).await;
    assert!(archive.objects().await.keys().all(|key| key.starts_with("old/0/") && key.contains(&named)));
    assert_eq!(usual.objects().await.len(), 0);

    for (choice, pointer, word) in [
        (json!({"target": "archiv"}), "/storage/target", "archive"),
        (json!({"target": 1}), "/storage", "text"),
        (json!({"prefix": "../x"}), "/storage", "prefix"),
    ] {
        let refused = world.post(&task_with(1, &json!({"storage": choice}))).await;
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let problem: Value = refused.json().await.unwrap();
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
        assert!(problem["errors"][0].to_string().contains(word), "{problem}");
    }

    usual.proxy.always(Some(Trouble::Answer(503, "SlowDown")));
    let waiting = world.create(&task(2)).await;
    let done = world.ran(&waiting, 1).await;
    // We keep it, so we serve it.
    let served = get(done["outputs"][0]["url"].as_str().unwrap()).await;
    assert_eq!(
        (served.status(), served.headers()[header::CONTENT_TYPE].as_bytes()),
        (StatusCode::OK, &b"image/png"[..])
    );
    assert!(done["outputs"][0]["url"].as_str().unwrap().starts_with(&world.url("")), "{done}");
    assert_eq!(usual.objects().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_not_sent_again() {
    let bucket = Bucket::new().await;
    let world = with(world(), &bucket.s3()).with("COMFYD_SERVER__DRAIN_GRACE", "100ms").start().await;
    // Two of three get there; the third one's file takes longer than the process lives.
    world.fake().inject_times(Fault::SlowView { bytes_per_second: 1 }, 1).await.unwrap();
    let inputs = json!({"bytes": 10_000, "count": 3, "seed": 1, "extension": "png", "filename_prefix": "x"});
    let id = world.create(&json!({"workflow": {"1": {"class_type": "FakeBytes", "inputs": inputs}}})).await;
    until_level("two are stored", || bucket.proxy.seen(is_put).len() == 2).await;
    let world = world.restart().await;
    let done = world.ran(&id, 1).await;
    assert_eq!(done["outputs"].as_array().unwrap().len(), 3);
    assert_eq!((bucket.objects().await.len(), bucket.proxy.seen(is_put).len()), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_under_a_key_stay_and_the_output_goes_beside_them() {
    let bucket = Bucket::new().await;
    let world = with(world(), &bucket.s3()).start().await;
    bucket.proxy.always(Some(Trouble::Cut));
    let id = world.create(&task(1)).await;
    until_level("a try", || !bucket.proxy.seen(is_put).is_empty()).await;
    let path = bucket.proxy.seen(is_put)[0].path.clone();
    let key = path.split('?').next().unwrap().trim_start_matches(&format!("/{}/", bucket.name)).to_owned();
    bucket.place(&key, "something else").await;
    bucket.proxy.always(None);
    let done = world.ran(&id, 1).await;
    let stored = get(done["outputs"][0]["url"].as_str().unwrap()).await.bytes().await.unwrap();
    assert_eq!(sha256(&stored), done["outputs"][0]["sha256"]);
    assert_eq!(bucket.object(&key).await.text().await.unwrap(), "something else");
    let beside = key.replace(".png", ".1.png");
    assert_eq!(bucket.objects().await.into_keys().collect::<Vec<_>>(), [beside, key]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_files_cloudflare_images_never_takes_is_refused_before_it_runs() {
    let (images, bucket) = (Images::start().await, Bucket::new().await);
    let world = with(world(), &images.settings()).start().await;
    let id = world.create(&task(1)).await;
    let done = world.ran(&id, 1).await;
    let output = &done["outputs"][0];
    assert_eq!(output["url"], output["variants"]["public"]);
    let shown = get(output["variants"]["thumb"].as_str().unwrap()).await;
    assert_eq!(sha256(&shown.bytes().await.unwrap()), output["sha256"]);
    let sound = json!({
        "1": {"class_type": "EmptyLatentAudio", "inputs": {"seconds": 1.0, "batch_size": 1}},
        "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "x"}},
    });
    let refused = world.post(&json!({"workflow": sound})).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["errors"][0]["pointer"], "/workflow/2", "{problem}");

    // With a second target for the rest, both go where they belong.
    let mut env = bucket.s3();
    env.extend(images.settings());
    env.extend(settings(&[("COMFYD_STORAGE__OTHERS", "s3")]));
    let world = with(self::world(), &env).start().await;
    let bytes = json!({"bytes": 100, "count": 1, "seed": 1, "extension": "bin", "filename_prefix": "x"});
    let both = json!({"workflow": {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 7}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "it"}},
        "3": {"class_type": "FakeBytes", "inputs": bytes},
    }});
    let id = world.create(&both).await;
    world.ran(&id, 1).await;
    assert_eq!(bucket.objects().await.keys().filter(|key| key.contains(&id)).count(), 1);
    assert_eq!(images.ids().iter().filter(|image| image.contains(&id)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_twice_or_run_again_while_many_requests_fail() {
    let bucket = Bucket::new().await;
    let world = with(world(), &bucket.s3()).start().await;
    bucket.proxy.fail(30);
    let mut ids = Vec::new();
    for color in 0..40 {
        ids.push(world.create(&task(color)).await);
    }
    for id in &ids {
        assert_eq!(world.finished(id).await["status"], "completed");
    }
    bucket.proxy.fail(0);
    for id in &ids {
        world.ran(id, 1).await;
    }
    let keys: Vec<String> = bucket.objects().await.into_keys().collect();
    assert_eq!(keys.len(), ids.len());
    assert!(ids.iter().all(|id| keys.iter().filter(|key| key.contains(id)).count() == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_keeps_the_service_from_starting() {
    let bucket = Bucket::missing().await;
    let dir = tempfile::tempdir().unwrap();
    let env = crate::support::environment(&dir, "http://127.0.0.1:9", &bucket.s3());
    let loaded = config::read(config::Sources { env, ..config::Sources::default() });
    let refused = App::start(&loaded.config).await.err().unwrap().to_string();
    assert!(refused.contains(&bucket.name) && refused.contains("create it"), "{refused}");
}
