//! Files that lie elsewhere: fetched by the service itself, when their task is about to run, and only from where it may.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use fake_comfyui::{EventKind, Fault};
use futures_util::{StreamExt, stream};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    inputs::{loading, picture, task},
    support::{Builder, PATIENCE, World, sha256, world},
    witness::{until, until_level},
};

/// A host of files at an address of this machine that the service may reach, among others that it may not.
struct Host {
    address: SocketAddr,
    state: Arc<HostState>,
}

struct HostState {
    hits: Mutex<HashMap<String, usize>>,
    /// How often a flaky file is not there yet.
    unwell: Mutex<usize>,
    /// When a busy one was asked for.
    asked: Mutex<Vec<Instant>>,
    gate: Semaphore,
}

impl Host {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(HostState {
            hits: Mutex::default(),
            unwell: Mutex::default(),
            asked: Mutex::default(),
            gate: Semaphore::new(0),
        });
        let router = Router::new().fallback(answer).with_state(state.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { address, state }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How often a path was asked for; all that begin so together.
    fn hits(&self, path: &str) -> usize {
        let hits = self.state.hits.lock().unwrap();
        hits.iter().filter(|(asked, _)| asked.starts_with(path)).map(|(_, count)| count).sum()
    }

    /// Lets so many of those pass that wait at the gate.
    fn let_pass(&self, many: usize) {
        self.state.gate.add_permits(many);
    }
}

async fn answer(State(state): State<Arc<HostState>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    *state.hits.lock().unwrap().entry(path.clone()).or_default() += 1;
    let endless = |chunk: Vec<u8>| stream::repeat(Bytes::from(chunk)).map(Ok::<_, std::io::Error>);
    let (_, name) = path.rsplit_once('/').unwrap();
    match name {
        "away" => {
            let to = request.uri().query().unwrap_or_default().to_owned();
            (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
        }
        "flaky.png" if std::mem::take(&mut *state.unwell.lock().unwrap()) > 0 => {
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        "busy.png" => {
            let mut asked = state.asked.lock().unwrap();
            asked.push(Instant::now());
            match asked.len() {
                1 => (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")]).into_response(),
                2 => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response(),
                3 => (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "soon")]).into_response(),
                _ => picture(1, 0).into_response(),
            }
        }
        "login.png" if request.headers().get(header::AUTHORIZATION).is_none() => StatusCode::FORBIDDEN.into_response(),
        "page.png" => "<!DOCTYPE html><html><body>not here</body></html>".into_response(),
        "noise.png" => vec![7; 100].into_response(),
        "empty.png" => ().into_response(),
        "large.png" => picture(1, 3 << 20).into_response(),
        "endless.png" => {
            Body::from_stream(stream::once(async { Ok(picture(1, 0).into()) }).chain(endless(vec![0; 65_536])))
                .into_response()
        }
        "wide.png" => {
            let mut wide = picture(1, 0);
            wide[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20]);
            wide.into_response()
        }
        "cut.png" => {
            // What is there leaves before the stream breaks: a server that waits sends what it has.
            let whole = stream::once(async { Ok(Bytes::from(picture(1, 9_000))) });
            let cut = whole.chain(stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            }));
            Body::from_stream(cut).into_response()
        }
        "never.png" => Body::from_stream(
            stream::once(async { Ok(Bytes::from(picture(1, 0))) })
                .chain(stream::pending::<Result<_, std::io::Error>>()),
        )
        .into_response(),
        name if name.starts_with("gate") => {
            state.gate.acquire().await.unwrap().forget();
            picture(1, 0).into_response()
        }
        name => match name.strip_suffix(".png").map(str::parse::<u8>) {
            Some(number) => picture(number.unwrap_or(1), 0).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
    }
}

/// A service that may reach the host and nothing else that is not public.
fn reaching() -> Builder {
    world()
        .with("OUTBOUND_ALLOW_PRIVATE", "127.0.0.2")
        .with("COMFYD_OUTBOUND__HTTP", "true")
        .with("COMFYD_OUTBOUND__PORTS", " ,")
}

fn count(world: &World, wanted: impl Fn(&EventKind) -> bool) -> usize {
    world.fake().log().iter().filter(|event| wanted(&event.kind)).count()
}

fn posts(world: &World) -> usize {
    count(world, |event| matches!(event, EventKind::Posted { .. }))
}

/// A graph that loads several pictures and saves them all.
fn loading_all(pictures: impl IntoIterator<Item = Value>) -> Value {
    let mut graph = json!({});
    for (number, picture) in pictures.into_iter().enumerate() {
        let (load, save) = (format!("{}", 2 * number + 1), format!("{}", 2 * number + 2));
        graph[&load] = json!({"class_type": "LoadImage", "inputs": {"image": picture}});
        graph[&save] = json!({"class_type": "SaveImage", "inputs": {"images": [load, 0], "filename_prefix": "it"}});
    }
    json!({"workflow": graph})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_as_good_as_a_file() {
    let (world, host) = (reaching().start().await, Host::start().await);
    let inputs = json!([{"name": "picture", "node": "1", "field": "image", "type": "image", "required": true}]);
    let file = json!({"workflow": loading(&json!("example.png")), "inputs": inputs});
    let put = world.client.put(world.url("/api/workflows/copy")).json(&file).send().await.unwrap();
    assert!(put.status().is_success());
    let url = json!(host.url("/cat.png?signature=hunter2"));
    let there = Form::new().part("image", Part::bytes(picture(9, 0)).file_name("there.png"));
    world.client.post(format!("{}/upload/image", world.fakes[0].url())).multipart(there).send().await.unwrap();
    for (body, shown) in [
        (task(&url), json!({})),
        (task(&json!({"url": url})), json!({})),
        (json!({"workflow": loading(&json!("there.png")), "inputs": {"1.image": url}}), json!({"1.image": url})),
        (json!({"workflow": "copy", "inputs": {"picture": url}}), json!({"picture": url})),
        (
            json!({"workflow": "copy", "inputs": {"picture": host.url(&format!("/away?{}", url.as_str().unwrap()))}}),
            Value::Null,
        ),
    ] {
        let done = world.ran(&world.create(&body).await, 1).await;
        assert!(shown.is_null() || done["inputs"] == shown, "an input is shown as it was given: {done}");
    }
    assert_eq!(host.hits("/cat.png"), 5);
    // What came is a file like those that were given: stored once, whoever asked for it, under its content's name.
    let bytes = world.client.get(world.url(&format!("/api/inputs/{}", sha256(&picture(1, 0))))).send().await.unwrap();
    assert_eq!(bytes.headers()[header::CONTENT_TYPE], "image/png");
    assert_eq!(bytes.bytes().await.unwrap(), picture(1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_never_be_asked_for_is_refused_at_once() {
    let (world, host) = (reaching().start().await, Host::start().await);
    for (url, word) in [
        ("http://127.0.0.1/a.png", "not a public address"),
        ("http://2130706433/a.png", "not a public address"),
        ("http://[::ffff:7f00:1]/a.png", "not a public address"),
        ("http://169.254.169.254/latest/", "metadata"),
        ("http://u:hunter2@127.0.0.2/", "user or password"),
    ] {
        let answer = world.post(&task(&json!(url))).await;
        let problem: Value = answer.json().await.unwrap();
        let error = &problem["errors"][0];
        assert_eq!(
            (&problem["status"], &error["pointer"]),
            (&json!(422), &json!("/workflow/1/inputs/image")),
            "{problem}"
        );
        assert!(error["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    // A name tells only when it is resolved, and a redirect when it is followed.
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = format!("http://localhost:{}/", trap.local_addr().unwrap().port());
    for url in [local.clone(), host.url(&format!("/away?{local}"))] {
        let failed = world.finished(&world.create(&task(&json!(url))).await).await;
        assert_eq!(
            (&failed["error"]["code"], &failed["attempt"]),
            (&json!("input_not_fetched"), &json!(1)),
            "{failed}"
        );
        assert!(failed["error"]["message"].as_str().unwrap().contains("localhost is not a public address"), "{failed}");
    }
    let ours = tokio::net::TcpStream::connect(trap.local_addr().unwrap()).await.unwrap();
    assert_eq!(trap.accept().await.unwrap().1, ours.local_addr().unwrap(), "nobody connected before");
    assert_eq!(posts(&world), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_not_wanted_fails_its_task_once() {
    let (world, host) = (reaching().with("COMFYD_INPUTS__MAX_SIZE", "2MiB").start().await, Host::start().await);
    for (path, word) in [
        ("/gone", "answered 404"),
        ("/login.png", "outbound.headers"),
        ("/page.png", "expected an image; the file is text/html"),
        ("/noise.png", "nothing that is known"),
        ("/empty.png", "nothing that is known"),
        ("/large.png", "inputs.max_size"),
        ("/endless.png", "inputs.max_size"),
        ("/wide.png", "20000 x 20000 pixels"),
        ("/away?ftp://x", "the scheme `ftp`"),
    ] {
        let url = format!("{}{}token=hunter2", host.url(path), if path.contains('?') { "&" } else { "?" });
        let body = json!({"workflow": loading(&json!("example.png")), "inputs": {"1.image": url}});
        let failed = world.finished(&world.create(&body).await).await;
        let error = &failed["error"];
        assert_eq!(
            (&error["code"], &error["class"], &failed["attempt"]),
            (&json!("input_not_fetched"), &json!("validation"), &json!(1)),
            "{failed}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(word) && message.contains("1.image") && !message.contains("hunter2"),
            "{path}: {message}"
        );
        assert_eq!(error["node_id"], "1");
        assert_eq!(host.hits(path.split('?').next().unwrap()), 1, "{path}");
    }
    assert_eq!(posts(&world), 0);
    let picture = world.client.get(world.url(&format!("/api/inputs/{}", sha256(&[7; 100])))).send().await.unwrap();
    assert_eq!(picture.status(), StatusCode::NOT_FOUND, "what is not wanted is not stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_well_is_asked_again_and_the_others_are_not() {
    let (world, host) = (reaching().start().await, Host::start().await);
    *host.state.unwell.lock().unwrap() = 1;
    let body = loading_all(["/2.png", "/flaky.png"].map(|path| json!(host.url(path))));
    let done = world.completed(&world.create(&body).await).await;
    assert_eq!(done["attempt"], 2, "{done}");
    assert_eq!(host.hits("/flaky.png"), 2);
    assert!((1..=2).contains(&host.hits("/2.png")));

    // What went wrong after they were there does not bring them here again.
    world
        .fake()
        .inject_times(Fault::NodeError { exception_type: "RuntimeError".into(), message: "x".into() }, 1)
        .await
        .unwrap();
    let done = world
        .completed(&world.create(&loading_all(["/5.png", "/6.png"].map(|path| json!(host.url(path))))).await)
        .await;
    assert_eq!((&done["attempt"], host.hits("/5.png"), host.hits("/6.png")), (&json!(2), 1, 1), "{done}");

    // What is cut short is the host's fault as well.
    let failed = world
        .finished(&world.create(&json!({"workflow": loading(&json!(host.url("/cut.png"))), "max_attempts": 2})).await)
        .await;
    assert_eq!((&failed["error"]["code"], &failed["attempt"]), (&json!("host_unavailable"), &json!(2)), "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("127.0.0.2 broke off"), "{failed}");
    assert_eq!(host.hits("/cut.png"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_asks_for_a_pause_gets_it() {
    let (world, host) = (reaching().start().await, Host::start().await);
    let body = json!({"workflow": loading(&json!(host.url("/busy.png"))), "max_attempts": 4});
    let done = world.completed(&world.create(&body).await).await;
    assert_eq!((&done["attempt"], posts(&world)), (&json!(4), 1), "{done}");
    let asked = host.state.asked.lock().unwrap().clone();
    let second = Duration::from_secs(1);
    assert!(asked[1] - asked[0] >= second && asked[2] - asked[1] >= second, "{asked:?}");
    // The pauses of the tests are 50 ms at most: what is no time asks for nothing.
    let metrics = world.client.get(world.url("/metrics")).send().await.unwrap().text().await.unwrap();
    for (result, times) in [("busy", 2), ("failed", 1), ("stored", 1)] {
        let line = format!("comfyd_input_fetches_total{{result=\"{result}\"}} {times}\n");
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
    assert!(metrics.contains("comfyd_input_fetch_seconds_count 1\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_ends_is_given_up() {
    let (world, host) = (reaching().with("COMFYD_INPUTS__FETCH_TIMEOUT", "200ms").start().await, Host::start().await);
    let body = json!({"workflow": loading(&json!(host.url("/never.png"))), "max_attempts": 1});
    let failed = world.finished(&world.create(&body).await).await;
    assert_eq!(failed["error"]["code"], "host_unavailable", "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("127.0.0.2"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_are_fetched_at_once_and_nobody_waits_for_them() {
    let (world, host) = (reaching().with("COMFYD_INPUTS__FETCH_PARALLEL", "2").start().await, Host::start().await);
    let urls = (0..4).map(|number| json!(host.url(&format!("/gate{number}.png"))));
    let id = world.create(&loading_all(urls)).await;
    until_level("two are asked for", || host.hits("/gate") == 2).await;
    assert_eq!(world.now(&id).await["stage"], "preparing");
    // Another one need not wait for it, and its prompt runs while the files are on their way.
    world.ran(&world.create(&crate::support::task(1)).await, 1).await;
    assert_eq!(host.hits("/gate"), 2);
    host.let_pass(1);
    until_level("a third is", || host.hits("/gate") == 3).await;
    host.let_pass(3);
    let done = world.ran(&id, 1).await;
    assert_eq!(done["outputs"].as_array().unwrap().len(), 4, "{done}");
    // All four are the same picture: the server got it once.
    assert_eq!(count(&world, |event| matches!(event, EventKind::UploadBegun)), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_fetched_while_another_prompt_runs_and_a_cancellation_ends_it() {
    let (world, host) = (reaching().start().await, Host::start().await);
    world.fake().inject(Fault::Hang).await.unwrap();
    let first = world.create(&crate::support::task(1)).await;
    world.running(&first).await;
    let second = world.create(&task(&json!(host.url("/cat.png")))).await;
    until(&world.fake(), |event| matches!(event, EventKind::UploadBegun)).await;
    assert_eq!(world.now(&first).await["stage"], "executing");
    let third = world.create(&task(&json!(host.url("/gate.png")))).await;
    world.fake().clear();
    world.ran(&first, 1).await;
    world.ran(&second, 1).await;
    until_level("it waits at the gate", || host.hits("/gate") == 1).await;
    world.cancel(&third).await;
    assert_eq!(world.finished(&third).await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_login_is_sent_and_never_shown() {
    let host = Host::start().await;
    let headers = r#"{"127.0.0.2": {"Authorization": "Bearer hunter2"}}"#;
    let world = reaching().with("COMFYD_OUTBOUND__HEADERS", headers).start().await;
    let done = world.ran(&world.create(&task(&json!(host.url("/login.png")))).await, 1).await;
    let status = world.get("/api/status").await;
    assert!(!format!("{done}{status}").contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_fetch_again_what_is_there() {
    let (world, host) = (reaching().start().await, Host::start().await);
    let urls = ["/cat.png", "/gate.png"].map(|path| json!(host.url(path)));
    let id = world.create(&loading_all(urls)).await;
    let noted = async {
        loop {
            let there = world.desk().inputs.fetched(crate::support::id(&id)).await.unwrap();
            if there.len() == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noted).await.unwrap();
    let world = world.restart().await;
    until_level("asked again for the other", || host.hits("/gate") == 2).await;
    host.let_pass(2);
    world.ran(&id, 1).await;
    assert_eq!(host.hits("/cat.png"), 1);
}
