//! A ComfyUI server that cannot be believed: every task ends with a word about why, and the next one is done as ever.

use std::{io, path::Path};

use axum::{
    body::Body,
    extract::ws::Message,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::impostor::{Impostor, Script, file, success};
use crate::support::{World, task_with, world};

/// A service in front of an impostor.
struct Stage {
    world: World,
    impostor: Impostor,
}

impl Stage {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let impostor = Impostor::start().await;
        let world = world()
            .fakes([])
            .with("COMFYUI_URL", &format!("http://{}", impostor.address))
            .with("COMFYD_COMFYUI__VALIDATE", "off")
            .with("COMFYD_TASKS__UPLOAD_ATTEMPTS", "2");
        let world = settings.iter().fold(world, |world, (name, value)| world.with(name, value)).start().await;
        Self { world, impostor }
    }

    /// The error of a task that is run by such a server.
    async fn error(&self, script: Script) -> Value {
        self.impostor.says(script);
        let id = self.world.create(&task_with(1, &json!({"max_attempts": 1, "timeout": "5s"}))).await;
        let task = self.world.finished(&id).await;
        assert_eq!(task["status"], "failed", "{task}");
        task["error"].clone()
    }

    /// It says nothing but the truth again, and is believed.
    async fn is_sound(&self) {
        self.impostor.says(Script::default());
        let id = self.world.create(&task_with(1, &json!({"max_attempts": 1}))).await;
        self.world.completed(&id).await;
    }

    /// What lies in the storage: files under their keys, and those being written.
    fn stored(&self) -> usize {
        fn count(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
        }
        count(&self.world.dir.path().join("outputs"))
    }
}

/// As [`Script::history`], for these outputs.
macro_rules! outputs {
    ($outputs:tt) => {
        |id| success(id, &json!($outputs)).into()
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_are_never_asked_for() {
    let stage = Stage::start(&[]).await;
    let histories: &[fn(&str) -> Body] = &[
        outputs!({"9": {"images": [file("../../x", "", "output")]}}),
        outputs!({"9": {"images": [file("..", "", "output")]}}),
        outputs!({"9": {"images": [file("a\0b", "", "output")]}}),
        outputs!({"9": {"images": [file("a\r\nx-evil: 1", "", "output")]}}),
        outputs!({"9": {"images": [file("C:\\x", "", "output")]}}),
        outputs!({"9": {"images": [file("a.png", "../..", "output")]}}),
        outputs!({"9": {"images": [file("a.png", "/etc", "output")]}}),
        outputs!({"9": {"images": [file("a.png", "", "models")]}}),
        outputs!({"9": {"images": [file(&"a".repeat(300), "", "output")]}}),
    ];
    for history in histories {
        let error = stage.error(Script { history: *history, ..Script::default() }).await;
        assert_eq!((&error["code"], &error["node_id"]), (&json!("output_missing"), &json!("9")), "{error}");
        assert!(error["message"].as_str().unwrap().contains("unsafe name"), "{error}");
    }
    assert_eq!(stage.impostor.viewed(), Vec::<String>::new());
    stage.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_beyond_belief_fail_the_task_once() {
    let stage = Stage::start(&[]).await;
    let many: fn(&str) -> Body = |id| {
        let files: Vec<Value> = (0..20_000).map(|n| file(&n.to_string(), "", "output")).collect();
        success(id, &json!({"9": {"images": files}})).into()
    };
    let named: fn(&str) -> Body =
        |id| success(id, &json!({"n".repeat(1 << 20): {"images": [file("a.png", "", "output")]}})).into();
    for (history, word) in [(many, "10000 outputs"), (named, "whose id")] {
        let error = stage.error(Script { history, ..Script::default() }).await;
        assert_eq!((&error["code"], &error["retryable"]), (&json!("backend_error"), &json!(false)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    stage.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cannot_be_read_end_the_task_in_its_time() {
    let settings = [("COMFYD_COMFYUI__MAX_ANSWER", "20MB"), ("COMFYD_COMFYUI__BACKEND_LOST_AFTER", "500ms")];
    let histories: &[fn(&str) -> Body] = &[
        // Endless, without a length.
        |_| Body::from_stream(stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[b' '; 1 << 16])))),
        // A million outputs, a bomb, and a tower.
        |id| {
            format!(
                r#"{{"{id}": {{"outputs": {{"9": {{"images": [{}7]}}}}}}}}"#,
                r#"{"filename":"a"},"#.repeat(1_000_000)
            )
            .into()
        },
        |_| format!("[{}0]", "0,".repeat(5_000_000)).into(),
        |id| format!(r#"{{"{id}": {{"outputs": {}{}}}}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20)).into(),
        |_| "{\"".into(),
        |_| vec![0xff; 100].into(),
    ];
    let each = histories.iter().map(async |history| {
        let stage = Stage::start(&settings).await;
        // Its server is given up as one that is away would be, and after some of those the task is not tried again.
        let error = stage.error(Script { history: *history, ..Script::default() }).await;
        assert_eq!(error["code"], "poison", "{error}");
        stage.is_sound().await;
    });
    futures_util::future::join_all(each).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_end_leave_nothing_behind() {
    let stage = Stage::start(&[("COMFYD_TASKS__MAX_OUTPUT", "1MiB")]).await;
    let endless: fn() -> Response = || {
        let body = stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[0; 1 << 16])));
        Body::from_stream(body).into_response()
    };
    let told: fn() -> Response = || {
        let body = Body::from_stream(stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[0; 1 << 16]))));
        ([(header::CONTENT_LENGTH, "10737418240")], body).into_response()
    };
    for view in [endless, told] {
        let error = stage.error(Script { view, ..Script::default() }).await;
        assert_eq!((&error["code"], &error["retryable"]), (&json!("upload_failed"), &json!(false)), "{error}");
        assert!(error["message"].as_str().unwrap().contains("tasks.max_output"), "{error}");
    }
    assert_eq!(stage.impostor.viewed().len(), 2, "there is no use in asking again");
    assert_eq!(stage.stored(), 0);
    stage.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_was_said_is_not_stored() {
    let stage = Stage::start(&[]).await;
    let page: fn() -> Response = || (StatusCode::INTERNAL_SERVER_ERROR, "<html>").into_response();
    let error = stage.error(Script { view: page, ..Script::default() }).await;
    assert_eq!(error["code"], "output_missing", "{error}");
    assert_eq!(stage.stored(), 0);
    stage.is_sound().await;
}

/// A server that hangs up in the middle of what it said would be longer, spoken to over a bare socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_a_lie_is_found_out() {
    let stage = Stage::start(&[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let liar = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let request = socket.read(&mut [0; 4 << 10]).await.unwrap();
            assert!(request > 0);
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nshort").await.unwrap();
        }
    });
    let comfy = comfyd::comfy::HttpComfy::new(comfyd::comfy::ComfyConfig::new(format!("http://{address}"))).unwrap();
    let file = comfyd_actors::domain::artifact::FileRef {
        filename: "a.png".to_owned(),
        subfolder: String::new(),
        folder_type: "output".to_owned(),
    };
    let download = comfyd_actors::ports::comfy::ComfyTransport::view(&comfy, &file).await.unwrap();
    assert_eq!(download.bytes, Some(1000));
    let objects = stage.world.desk().targets.inputs();
    assert!(objects.put("0/x/lie", "image/png", download.bytes, download.body).await.is_err());
    assert_eq!(stage.stored(), 0);
    liar.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_frames_changes_nothing() {
    let stage = Stage::start(&[]).await;
    stage.impostor.says(Script {
        frames: |id| {
            let strangers = (0..50_000).map(|n| {
                let data = json!({"prompt_id": format!("stranger-{n}"), "node": null});
                let kind = ["executing", "execution_success", "execution_error", "execution_start"][n % 4];
                Message::Text(json!({"type": kind, "data": data}).to_string().into())
            });
            let ours = (0..50_000).map(|n| {
                let data = json!({"prompt_id": id, "node": format!("{n}"), "value": n, "max": 1});
                Message::Text(json!({"type": "progress", "data": data}).to_string().into())
            });
            let garbage = (0_u32..1_000).map(|n| Message::Binary(n.to_be_bytes().repeat(64).into()));
            let large = Message::Text(
                json!({"type": "executing", "data": {"prompt_id": id, "node": "n".repeat(1 << 20)}}).to_string().into(),
            );
            strangers.chain(ours).chain(garbage).chain([large]).collect()
        },
        ..Script::default()
    });
    let id = stage.world.create(&task_with(1, &json!({"max_attempts": 1}))).await;
    stage.world.completed(&id).await;
    stage.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_beyond_measure_costs_the_connection_and_not_the_task() {
    let stage = Stage::start(&[]).await;
    stage.impostor.says(Script { frames: |_| vec![Message::Binary(vec![0; 65 << 20].into())], ..Script::default() });
    let id = stage.world.create(&task_with(1, &json!({"max_attempts": 1}))).await;
    stage.world.completed(&id).await;
    stage.world.until_status(|status| status["backends"][0]["connections"].as_u64() >= Some(2)).await;
    stage.world.online().await;
    stage.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_none_is_not_used() {
    let stage = Stage::start(&[("COMFYD_COMFYUI__POST_TIMEOUT", "500ms")]).await;
    stage.impostor.says(Script { id: |_| "../../interrupt".to_owned(), ..Script::default() });
    // What became of the prompt is unknown, so it is looked for by our own id, and found.
    let id = stage.world.create(&task_with(1, &json!({"max_attempts": 1}))).await;
    stage.world.completed(&id).await;
}
