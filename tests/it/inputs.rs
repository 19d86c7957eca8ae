//! Files for tasks: every way of giving one, and what may happen to it on its way to the server.

use std::{fmt::Write as _, io, time::Duration};

use comfyd_actors::{domain::input::InputId, janitor::JanitorMsg};
use fake_comfyui::{EventKind, FakeConfig, Fault, Folder};
use futures_util::{StreamExt, stream};
use reqwest::{
    Body, Method, Response, StatusCode, header,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::{
    support::{Api, World, world},
    witness::{until, until_level},
};

/// A picture of one pixel. What follows its end means nothing, so there are as many different ones as a test needs.
pub const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";

/// The picture number so and so, of some length.
pub fn picture(number: u8, bytes: usize) -> Vec<u8> {
    let mut picture = decode(PIXEL);
    picture.push(number);
    picture.resize(picture.len().max(bytes), 0);
    picture
}

/// Plain base64, for one constant: tests need no more of it.
fn decode(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = text.bytes().filter(|byte| *byte != b'=').map(digit).collect();
    let groups = digits.chunks(4).flat_map(|group| {
        let word = group.iter().fold(0, |word, digit| word << 6 | digit) << (6 * (4 - group.len()));
        word.to_be_bytes()[1..group.len()].to_vec()
    });
    groups.collect()
}

/// A graph that loads one picture and saves it.
pub fn loading(picture: &Value) -> Value {
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "it"}},
    })
}

/// The body that runs it.
pub fn task(picture: &Value) -> Value {
    json!({"workflow": loading(picture)})
}

impl Api {
    async fn give(&self, form: Form) -> Response {
        self.client.post(self.url("/api/inputs")).multipart(form).send().await.unwrap()
    }

    /// Stores a picture; returns its reference.
    pub async fn store(&self, bytes: Vec<u8>) -> Value {
        let form = Form::new().part("file", Part::bytes(bytes).file_name("cat.png"));
        let answer = self.give(form).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let answer: Value = answer.json().await.unwrap();
        answer["inputs"][0]["ref"].clone()
    }

    /// A create that must be refused, for one reason at one place.
    async fn refused(&self, body: &Value, pointer: &str, word: &str) {
        let answer = self.post(body).await;
        let status = answer.status();
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        let errors = problem["errors"].as_array().unwrap();
        assert!(errors.len() == 1 && errors[0]["pointer"] == pointer, "{problem}");
        assert!(errors[0]["detail"].as_str().unwrap().contains(word), "{problem}");
    }
}

fn count(world: &World, wanted: impl Fn(&EventKind) -> bool) -> usize {
    world.fake().log().iter().filter(|event| wanted(&event.kind)).count()
}

fn uploads(world: &World) -> usize {
    count(world, |event| matches!(event, EventKind::UploadBegun))
}

fn posts(world: &World) -> usize {
    count(world, |event| matches!(event, EventKind::Posted { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_can_be_given_in_every_way() {
    let world = world().start().await;
    let stored = world.store(picture(1, 0)).await;
    let data = json!(format!("data:image/png;base64,{PIXEL}"));
    let object = json!({"base64": PIXEL, "filename": "../../cat.png"});
    let there = Form::new().part("image", Part::bytes(picture(9, 0)).file_name("there.png"));
    world.client.post(format!("{}/upload/image", world.fakes[0].url())).multipart(there).send().await.unwrap();
    let with = |picture: &Value| json!({"workflow": loading(&json!("nothing.png")), "inputs": {"1.image": picture}});
    for (body, is_reference) in [
        (with(&stored), true),
        (with(&data), true),
        (with(&object), true),
        (with(&json!({"ref": stored, "name": "cat.png"})), true),
        (with(&json!("there.png")), false),
        (task(&stored), false),
        (task(&data), false),
        (task(&object), false),
    ] {
        let id = world.create(&body).await;
        let done = world.ran(&id, 1).await;
        let shown = done["inputs"]["1.image"].as_str().unwrap_or_default();
        assert_eq!(shown.starts_with("comfyd://inputs/"), is_reference, "{done}");
    }
    // The row has the reference and not the bytes.
    let database = std::fs::read(world.dir.path().join("comfyd.db")).unwrap();
    let log = std::fs::read(world.dir.path().join("comfyd.db-wal")).unwrap_or_default();
    for file in [database, log] {
        assert!(!file.windows(40).any(|window| window == &PIXEL.as_bytes()[..40]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_workflow_takes_files() {
    let world = world().start().await;
    let inputs = json!([{"name": "picture", "node": "1", "field": "image", "type": "image", "required": true}]);
    let file = json!({"workflow": loading(&json!("example.png")), "inputs": inputs});
    let put = world.client.put(world.url("/api/workflows/copy")).json(&file).send().await.unwrap();
    assert!(put.status().is_success(), "{}", put.text().await.unwrap());
    let stored = world.store(picture(1, 0)).await;
    for given in [stored, json!(format!("data:;base64,{PIXEL}")), json!({"base64": PIXEL})] {
        let id = world.create(&json!({"workflow": "copy", "inputs": {"picture": given}})).await;
        let done = world.ran(&id, 1).await;
        assert!(done["inputs"]["picture"].as_str().unwrap().starts_with("comfyd://inputs/"), "{done}");
    }
    let sound = "UklGRiQAAABXQVZFZm10IA==";
    let body = json!({"workflow": "copy", "inputs": {"picture": {"base64": sound}}});
    world.refused(&body, "/inputs/picture", "expected an image").await;
    let sound = world.store(decode(sound)).await;
    let body = json!({"workflow": "copy", "inputs": {"picture": sound}});
    world.refused(&body, "/inputs/picture", "expected an image").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_nowhere_is_refused_with_its_place() {
    let world = world().start().await;
    let gone = json!(format!("comfyd://inputs/{}", "0".repeat(64)));
    world.refused(&task(&gone), "/workflow/1/inputs/image", "POST /api/inputs").await;
    let body = json!({"workflow": loading(&json!("x.png")), "inputs": {"1.image": gone}});
    world.refused(&body, "/inputs/1.image", "POST /api/inputs").await;
    world.refused(&task(&json!("https://localhost/cat.png")), "/workflow/1/inputs/image", "local network").await;
    world.refused(&task(&json!("data:image/png;base64,%%%")), "/workflow/1/inputs/image", "base64").await;
    assert_eq!(posts(&world), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_are_stored_and_sent_once() {
    let world = world().start().await;
    let stored = world.store(picture(1, 0)).await;
    assert_eq!(world.store(picture(1, 0)).await, stored);
    for _ in 0..3 {
        let id = world.create(&task(&stored)).await;
        world.ran(&id, 1).await;
    }
    assert_eq!(uploads(&world), 1);
    // The fake may have lost its files when it comes back.
    world.fake().inject(Fault::DropSockets).await.unwrap();
    world.online().await;
    until_level("reconnected", || count(&world, |event| matches!(event, EventKind::SocketOpened { .. })) == 2).await;
    world.online().await;
    let id = world.create(&task(&stored)).await;
    world.ran(&id, 1).await;
    assert_eq!(uploads(&world), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_the_server_lost_is_sent_again_once() {
    let world = world().start().await;
    let stored = world.store(picture(1, 0)).await;
    let id = world.create(&task(&stored)).await;
    world.ran(&id, 1).await;
    let name = format!("{}.png", InputId::from_uri(stored.as_str().unwrap()).unwrap());
    assert!(world.fake().delete_file(Folder::Input, "comfyd", &name));
    let id = world.create(&task(&stored)).await;
    world.ran(&id, 1).await;
    assert_eq!((uploads(&world), posts(&world)), (2, 3));
    world.assert_nothing_was_repeated();

    // A name that was never there is the client's own fault, at once.
    let id = world.create(&task(&json!("below/never.png"))).await;
    assert_eq!(world.finished(&id).await["error"]["code"], "invalid_prompt");
    assert_eq!(posts(&world), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_own_name_is_used() {
    let world = world().start().await;
    world.fake().inject(Fault::RenameUpload).await.unwrap();
    let id = world.create(&task(&world.store(picture(1, 0)).await)).await;
    world.ran(&id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_is_tried_again() {
    let world = world().start().await;
    for fault in [Fault::UploadStatus { status: 500 }, Fault::CutUpload { bytes: 10 }] {
        world.fake().inject_times(fault, 2).await.unwrap();
        let id = world.create(&task(&world.store(picture(u8::try_from(uploads(&world)).unwrap(), 5_000)).await)).await;
        world.ran(&id, 1).await;
    }
    assert_eq!((uploads(&world), posts(&world)), (6, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_always_fails_fails_the_task() {
    let world = world().with("COMFYD_TASKS__UPLOAD_ATTEMPTS", "2").start().await;
    let stored = world.store(picture(1, 0)).await;
    world.fake().inject(Fault::UploadStatus { status: 500 }).await.unwrap();
    let mut body = task(&stored);
    body["max_attempts"] = json!(2);
    let failed = world.finished(&world.create(&body).await).await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("backend_error"), &json!(2)), "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("1.image"), "{failed}");
    assert_eq!(uploads(&world), 4);

    world.fake().clear();
    world.fake().inject(Fault::UploadStatus { status: 413 }).await.unwrap();
    let failed = world.finished(&world.create(&body).await).await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("input_refused"), &json!(1)), "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("--max-upload-size"), "{failed}");
    assert_eq!((uploads(&world), posts(&world)), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_bytes_are_gone_fails_the_task() {
    let world = world().start().await;
    let stored = world.store(picture(1, 0)).await;
    let input = world.desk().inputs.find(&InputId::from_uri(stored.as_str().unwrap()).unwrap()).await.unwrap();
    world.desk().targets.inputs().delete(&input.key).await.unwrap();
    let failed = world.finished(&world.create(&task(&stored)).await).await;
    assert_eq!(
        (&failed["error"]["code"], &failed["error"]["node_id"]),
        (&json!("input_missing"), &json!("1")),
        "{failed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_cancelled_while_its_files_are_on_their_way() {
    let world = world().start().await;
    let stored = world.store(picture(1, 100_000)).await;
    world.fake().inject_times(Fault::SlowUpload { bytes_per_second: 1 }, 1).await.unwrap();
    let id = world.create(&task(&stored)).await;
    until(&world.fake(), |event| matches!(event, EventKind::UploadBegun)).await;
    let shown = world.now(&id).await;
    assert_eq!((&shown["stage"], &shown["progress"]["total_bytes"]), (&json!("preparing"), &json!(100_000)), "{shown}");
    // Another one need not wait for it.
    let other = world.create(&crate::support::task(1)).await;
    world.ran(&other, 1).await;
    world.cancel(&id).await;
    assert_eq!(world.finished(&id).await["status"], "cancelled");
    assert_eq!(posts(&world), 1);
    let again = world.create(&task(&stored)).await;
    world.ran(&again, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_while_it_is_handed_files_costs_nothing() {
    let world = world().start().await;
    let stored = world.store(picture(1, 100_000)).await;
    world.fake().inject_times(Fault::SlowUpload { bytes_per_second: 1 }, 1).await.unwrap();
    let id = world.create(&task(&stored)).await;
    until(&world.fake(), |event| matches!(event, EventKind::UploadBegun)).await;
    world.fake().inject(Fault::Restart { down: Duration::from_millis(100) }).await.unwrap();
    world.ran(&id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_takes_over_when_one_is_lost() {
    let world = world().fakes([FakeConfig::default(), FakeConfig::default()]).start().await;
    let stored = world.store(picture(1, 100_000)).await;
    for fake in &world.fakes {
        fake.control().inject_times(Fault::SlowUpload { bytes_per_second: 1 }, 1).await.unwrap();
    }
    let id = world.create(&task(&stored)).await;
    let begun = |index: usize| {
        world.fakes[index].control().log().iter().any(|event| matches!(event.kind, EventKind::UploadBegun))
    };
    until_level("an upload", || begun(0) || begun(1)).await;
    let (busy, idle) = if begun(0) { (0, 1) } else { (1, 0) };
    world.fakes[idle].control().clear();
    world.fakes[busy].control().inject(Fault::Kill).await.unwrap();
    let done = world.completed(&id).await;
    assert_eq!((&done["attempt"], world.fakes[idle].control().executions_of_task(&id)), (&json!(1), 1), "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_and_bodies_are_stored() {
    let world = world().start().await;
    let file = |bytes: Vec<u8>, name: &str| Part::bytes(bytes).file_name(name.to_owned());
    let form = Form::new()
        .part("a", file(picture(1, 0), "../../etc/../cat.png"))
        .part("a", file(b"hello".to_vec(), "C:\\x\\..\\a b.txt"))
        .part("b", file(picture(1, 0), ""));
    let answer = world.give(form).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let answer: Value = answer.json().await.unwrap();
    let shown: Vec<_> = answer["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| (input["name"].as_str().unwrap(), input["content_type"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, [("cat.png", "image/png"), ("a b.txt", "text/plain; charset=utf-8"), ("file", "image/png")]);
    assert_eq!(answer["inputs"][0]["ref"], answer["inputs"][2]["ref"]);

    let raw = world.client.post(world.url("/api/inputs")).header("content-type", "application/octet-stream");
    let raw: Value =
        raw.header("x-filename", "dog.png").body(picture(2, 0)).send().await.unwrap().json().await.unwrap();
    let input = &raw["inputs"][0];
    assert_eq!((&input["name"], &input["content_type"]), (&json!("dog.png"), &json!("image/png")), "{raw}");

    let url = format!("/api/inputs/{}", input["sha256"].as_str().unwrap());
    let get = |method: Method| world.client.request(method, world.url(&url)).send();
    let whole = get(Method::GET).await.unwrap();
    assert_eq!(whole.headers()[header::CONTENT_TYPE], "image/png");
    let etag = whole.headers()[header::ETAG].clone();
    assert_eq!(whole.bytes().await.unwrap(), picture(2, 0));
    let head = get(Method::HEAD).await.unwrap();
    assert_eq!((head.status(), head.headers()[header::ETAG].clone()), (StatusCode::OK, etag));
    for absent in ["0".repeat(64), "x".to_owned(), "..%2f..".to_owned()] {
        let answer = world.client.get(world.url(&format!("/api/inputs/{absent}"))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_refused() {
    let world = world().with("COMFYD_INPUTS__MAX_SIZE", "64KiB").start().await;
    let send = |kind: &str, body: Vec<u8>| {
        world.client.post(world.url("/api/inputs")).header("content-type", kind).body(body).send()
    };
    let boundary = "multipart/form-data; boundary=x";
    let part = "--x\r\ncontent-disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\n";
    let mut many = String::new();
    for _ in 0..65 {
        write!(many, "{part}1\r\n").unwrap();
    }
    for (kind, body, status, code) in [
        ("multipart/form-data", part.to_owned(), 400, "invalid_form"),
        (boundary, "nonsense".to_owned(), 400, "invalid_form"),
        (boundary, format!("{part}the end is missing"), 400, "broken_body"),
        (boundary, "--x--\r\n".to_owned(), 422, "invalid_request"),
        (boundary, format!("{part}\r\n--x--\r\n"), 422, "invalid_request"),
        (
            boundary,
            "--x\r\ncontent-disposition: form-data; name=\"f\"\r\n\r\n1\r\n--x--\r\n".to_owned(),
            422,
            "invalid_request",
        ),
        (boundary, format!("{many}--x--\r\n"), 422, "invalid_request"),
        ("image/png", String::new(), 422, "invalid_request"),
        ("application/x-www-form-urlencoded", "a=b".to_owned(), 415, "unsupported_media_type"),
        ("image/png", "x".repeat(70_000), 413, "body_too_large"),
        (boundary, format!("{part}{}\r\n--x--\r\n", "x".repeat(70_000)), 413, "body_too_large"),
    ] {
        let answer = send(kind, body.into_bytes()).await.unwrap();
        let told = answer.status();
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((told.as_u16(), problem["code"].as_str().unwrap()), (status, code), "{problem}");
    }
    // One that does not say how long it is: it is stopped on the way.
    let endless = stream::repeat_with(|| Ok::<_, io::Error>(vec![b'x'; 8_192])).take(1_000);
    let request = world.client.post(world.url("/api/inputs")).header("content-type", "image/png");
    // The answer may come while the body is still being sent: then the client only sees the connection end.
    if let Ok(answer) = request.body(Body::wrap_stream(endless.boxed())).send().await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_time_is_deleted() {
    let world = world().start().await;
    let (system, desk) = (world.system(), world.desk());
    let body = || stream::once(async { Ok(bytes::Bytes::from_static(b"x")) }).boxed();
    for (key, patience) in [("inputs/aa/past", 0), ("inputs/aa/not-past", 3_600)] {
        desk.inputs.reserve(key, Duration::from_secs(patience)).await.unwrap();
        desk.targets.inputs().put(key, "text/plain", None, body()).await.unwrap();
    }
    system.slots.janitor.cast(JanitorMsg::PruneInputs);
    let gone = async {
        while desk.targets.inputs().size("inputs/aa/past").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, gone).await.unwrap();
    assert!(desk.targets.inputs().size("inputs/aa/not-past").await.is_ok());
    assert!(desk.inputs.give_up(9).await.unwrap().is_empty(), "what is deleted is forgotten");
}
