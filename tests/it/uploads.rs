//! From ComfyUI's files to stored outputs: slow, cut and missing files, a storage that is away, and what clients can ask of an output.

use std::{fs, time::Duration};

use comfyd_actors::domain::{artifact::object_prefix, id::TaskId, task::TaskState, time::Timestamp};
use fake_comfyui::{EventKind, Fault};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    support::{PATIENCE, World, task, task_with, world},
    witness::{started, until, until_level},
};

fn views(world: &World) -> usize {
    let is_view = |event: &EventKind| matches!(event, EventKind::Viewed { .. });
    world.fake().log().iter().filter(|event| is_view(&event.kind)).count()
}

/// Waits until the task shows that its files are being stored: that record is made beside the transfers.
async fn uploading(world: &World, id: &str) {
    let shown = async {
        while world.now(id).await["stage"] != "uploading" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, shown).await.expect("the stage does not follow");
}

/// A graph whose nodes announce files of some length.
fn files(nodes: &[(&str, u64)], bytes: u64) -> Value {
    let node = |(name, count): &(&str, u64)| {
        let inputs = json!({"bytes": bytes, "count": count, "seed": 1, "extension": "bin", "filename_prefix": format!("n{name}")});
        ((*name).to_owned(), json!({"class_type": "FakeBytes", "inputs": inputs}))
    };
    json!({"workflow": nodes.iter().map(node).collect::<serde_json::Map<_, _>>()})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_file_arrives_whole() {
    let world = world().start().await;
    world.fake().inject(Fault::SlowView { bytes_per_second: 1000 }).await.unwrap();
    let id = world.create(&files(&[("1", 1)], 700)).await;
    let done = world.ran(&id, 1).await;
    assert_eq!(done["outputs"][0]["bytes"], 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_file_is_fetched_again() {
    let world = world().start().await;
    world.fake().inject_times(Fault::CutView { bytes: 10 }, 2).await.unwrap();
    let id = world.create(&task(1)).await;
    world.ran(&id, 1).await;
    assert_eq!(views(&world), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_error_on_a_file_is_no_reason_to_run_again() {
    let world = world().start().await;
    world.fake().inject_times(Fault::ViewStatus { status: 500 }, 2).await.unwrap();
    let id = world.create(&task(1)).await;
    world.ran(&id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_always_cut_is_made_again_and_then_given_up() {
    let world = world().with("COMFYD_TASKS__UPLOAD_ATTEMPTS", "3").start().await;
    world.fake().inject(Fault::CutView { bytes: 10 }).await.unwrap();
    let id = world.create(&task_with(1, &json!({"max_attempts": 2}))).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("output_missing"), &json!(2)), "{failed}");
    assert_eq!((world.executions(&id), views(&world)), (2, 6));
    assert_eq!(failed["outputs"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_is_made_again() {
    let world = world().start().await;
    world.fake().inject_times(Fault::ViewStatus { status: 404 }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], world.executions(&id)), (&json!(2), 2));

    world.fake().inject(Fault::ViewStatus { status: 404 }).await.unwrap();
    let id = world.create(&task_with(2, &json!({"max_attempts": 2}))).await;
    let failed = world.finished(&id).await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("output_missing"), &json!(2)), "{failed}");
}

/// What the task names stays, and so does what is another's. A storage that is away is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_left_that_was_given_up_is_deleted() {
    let world = world().with("COMFYD_RETENTION__LEFTOVERS", "1s").start().await;
    world.fake().inject_times(Fault::ViewStatus { status: 404 }, 1).await.unwrap();
    let id = world.create(&task(1)).await;
    world.completed(&id).await;
    assert_eq!(world.executions(&id), 2);
    let task = world.desk().store.get(crate::support::id(&id)).await.unwrap();
    let kept = task.artifacts[0].object.clone().unwrap().key;
    assert!(kept.starts_with(&object_prefix(&task.task)), "{kept}");

    let folder = world.dir.path().join("outputs");
    let day = folder.join(kept.rsplit_once('/').unwrap().0);
    let aside = world.dir.path().join("aside");
    let left = day.join(format!("{id}_1_9-0.png"));
    let others = day.join(format!("{}_1_9-0.png", TaskId::new()));
    for path in [&left, &others] {
        fs::write(path, "x").unwrap();
    }
    fs::rename(&day, &aside).unwrap();
    fs::write(&day, "in the way").unwrap();
    let ended = task.task.finished_at.unwrap();
    until_level("it is long over", || ended < world.system().clock.now().before(Duration::from_millis(2_500))).await;
    fs::remove_file(&day).unwrap();
    fs::rename(&aside, &day).unwrap();

    until_level("it is deleted", || !left.exists()).await;
    assert!(folder.join(&kept).exists() && others.exists());
    let answer = ask(&world, Method::GET, &format!("/api/tasks/{id}/outputs/0"), &[]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let counted = async {
        while !ask(&world, Method::GET, "/metrics", &[])
            .await
            .text()
            .await
            .unwrap()
            .contains("leftovers_deleted_total 1")
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("it is not counted");
    assert!(world.desk().store.unswept(TaskState::Completed, Timestamp(i64::MAX), 9).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_stored_side_by_side_and_no_more_at_once_than_allowed() {
    let world = world().start().await;
    // A file takes longer than any test: whatever is asked for now was asked for at the same time.
    world.fake().inject(Fault::SlowView { bytes_per_second: 1 }).await.unwrap();
    let id = world.create(&files(&[("1", 6)], 100_000)).await;
    until_level("four at once", || views(&world) == 4).await;
    uploading(&world, &id).await;
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["status"], "cancelled");
    assert_eq!(views(&world), 4);

    world.fake().clear();
    let id = world.create(&files(&[("1", 6)], 100_000)).await;
    let done = world.ran(&id, 1).await;
    assert_eq!(done["outputs"].as_array().unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_come_in_the_order_of_nodes_and_of_their_lists() {
    let world = world().start().await;
    // The later ones are stored first.
    world.fake().inject_times(Fault::SlowView { bytes_per_second: 200 }, 2).await.unwrap();
    let id = world.create(&files(&[("10", 2), ("9", 2), ("2", 2)], 64)).await;
    let done = world.ran(&id, 1).await;
    let outputs = done["outputs"].as_array().unwrap();
    let nodes: Vec<_> = outputs.iter().map(|output| output["node_id"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["2", "2", "9", "9", "10", "10"]);
    let indices: Vec<_> = outputs.iter().map(|output| output["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    for pair in outputs.chunks(2) {
        let [first, second] = pair else { panic!() };
        assert!(first["filename"].as_str() < second["filename"].as_str(), "{done}");
    }
}

async fn ask(world: &World, method: Method, url: &str, headers: &[(header::HeaderName, &str)]) -> Response {
    let request = world.client.request(method, world.url(url));
    headers.iter().fold(request, |request, (name, value)| request.header(name, *value)).send().await.unwrap()
}

fn text(response: &Response, name: &header::HeaderName) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_can_be_had_in_parts() {
    let world = world().start().await;
    let id = world.create(&files(&[("1", 1)], 1000)).await;
    world.ran(&id, 1).await;
    let url = format!("/api/tasks/{id}/outputs/0");
    let whole = ask(&world, Method::GET, &url, &[]).await;
    assert_eq!(text(&whole, &header::ACCEPT_RANGES), "bytes");
    let etag = text(&whole, &header::ETAG);
    let whole = whole.bytes().await.unwrap();

    for (range, told, first, last) in [
        ("bytes=10-19", "bytes 10-19/1000", 10, 19),
        ("bytes=990-", "bytes 990-999/1000", 990, 999),
        ("bytes=-5", "bytes 995-999/1000", 995, 999),
        ("bytes=999-5000", "bytes 999-999/1000", 999, 999),
    ] {
        let part = ask(&world, Method::GET, &url, &[(header::RANGE, range)]).await;
        assert_eq!((part.status(), text(&part, &header::CONTENT_RANGE).as_str()), (StatusCode::PARTIAL_CONTENT, told));
        assert_eq!(part.bytes().await.unwrap(), whole.slice(first..=last), "{range}");
    }
    let outside = ask(&world, Method::GET, &url, &[(header::RANGE, "bytes=1000-")]).await;
    assert_eq!(outside.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(text(&outside, &header::CONTENT_RANGE), "bytes */1000");
    let several = ask(&world, Method::GET, &url, &[(header::RANGE, "bytes=0-1,5-6")]).await;
    assert_eq!((several.status(), several.bytes().await.unwrap()), (StatusCode::OK, whole.clone()));

    // A part of what the client has, or everything when it has something else.
    let half = [(header::RANGE, "bytes=0-9"), (header::IF_RANGE, etag.as_str())];
    assert_eq!(ask(&world, Method::GET, &url, &half).await.status(), StatusCode::PARTIAL_CONTENT);
    let half = [(header::RANGE, "bytes=0-9"), (header::IF_RANGE, "\"other\"")];
    assert_eq!(ask(&world, Method::GET, &url, &half).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_can_be_asked_about() {
    let world = world().start().await;
    let id = world.create(&files(&[("1", 1)], 1000)).await;
    let done = world.ran(&id, 1).await;
    let url = format!("/api/tasks/{id}/outputs/0");
    // What ranges mean is defined for GET alone.
    for headers in [&[][..], &[(header::RANGE, "bytes=0-9")][..]] {
        let head = ask(&world, Method::HEAD, &url, headers).await;
        assert_eq!((head.status(), text(&head, &header::CONTENT_LENGTH).as_str()), (StatusCode::OK, "1000"));
        assert_eq!(text(&head, &header::ETAG), format!("\"{}\"", done["outputs"][0]["sha256"].as_str().unwrap()));
        assert!(head.bytes().await.unwrap().is_empty());
    }
    let etag = text(&ask(&world, Method::HEAD, &url, &[]).await, &header::ETAG);
    for (known, status) in
        [(etag.as_str(), StatusCode::NOT_MODIFIED), ("*", StatusCode::NOT_MODIFIED), ("\"other\"", StatusCode::OK)]
    {
        for method in [Method::GET, Method::HEAD] {
            let answer = ask(&world, method, &url, &[(header::IF_NONE_MATCH, known)]).await;
            assert_eq!((answer.status(), text(&answer, &header::ETAG)), (status, etag.clone()));
        }
    }
    for absent in ["1", "-1", "x"] {
        let answer = ask(&world, Method::GET, &format!("/api/tasks/{id}/outputs/{absent}"), &[]).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_is_away_is_waited_for_and_nothing_runs_again() {
    let world = world().start().await;
    let (folder, aside) = (world.dir.path().join("outputs"), world.dir.path().join("aside"));
    // A file in the place of the folder: nothing can be written there, not even by root.
    fs::rename(&folder, &aside).unwrap();
    fs::write(&folder, "in the way").unwrap();
    let id = world.create(&task(1)).await;
    until_level("several tries", || views(&world) >= 6).await;
    uploading(&world, &id).await;

    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    world.ran(&id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_task_runs_while_files_are_stored() {
    let world = world().start().await;
    world.fake().inject_times(Fault::SlowView { bytes_per_second: 1 }, 1).await.unwrap();
    let storing = world.create(&files(&[("1", 1)], 100_000)).await;
    until_level("storing", || views(&world) == 1).await;
    let next = world.create(&task(2)).await;
    until(&world.fake(), started(&next)).await;
    world.ran(&next, 1).await;
    uploading(&world, &storing).await;
    world.cancel(&storing).await;
    assert_eq!(world.finished(&storing).await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_storing_costs_no_run() {
    let world = world().with("COMFYD_SERVER__DRAIN_GRACE", "100ms").start().await;
    world.fake().inject_times(Fault::SlowView { bytes_per_second: 1 }, 1).await.unwrap();
    let id = world.create(&files(&[("1", 3)], 10_000)).await;
    until_level("storing", || views(&world) == 3).await;
    let world = tokio::time::timeout(Duration::from_secs(30), world.restart()).await.unwrap();
    let done = world.ran(&id, 1).await;
    assert_eq!(done["outputs"].as_array().unwrap().len(), 3);
}
