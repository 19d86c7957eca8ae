//! `/api/comfyui/...`: a client written for ComfyUI speaks to it through us and cannot tell, but for what is closed.

use std::time::Duration;

use bytes::Bytes;
use fake_comfyui::{EventKind, FakeConfig, Fault};
use futures_util::{SinkExt, StreamExt, stream};
use reqwest::{Method, StatusCode, multipart};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message},
};

use crate::support::{PATIENCE, World, image, world};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// ComfyUI's address as its clients would be given it.
fn comfyui(world: &World) -> String {
    world.url("/api/comfyui")
}

async fn open(world: &World, path: &str) -> Result<Socket, tungstenite::Error> {
    let url = format!("{}/{path}", comfyui(world)).replacen("http", "ws", 1);
    connect_async(url).await.map(|(socket, _)| socket)
}

/// The status and the code of the problem a handshake was answered with.
fn refusal(answer: Result<Socket, tungstenite::Error>) -> (u16, Value) {
    let Err(tungstenite::Error::Http(response)) = answer else { panic!("it was not refused: {answer:?}") };
    let problem: Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
    (response.status().as_u16(), problem["code"].clone())
}

async fn next(socket: &mut Socket) -> Option<Result<Message, tungstenite::Error>> {
    timeout(PATIENCE, socket.next()).await.expect("the socket is silent")
}

/// The next text frame.
async fn frame(socket: &mut Socket) -> Value {
    loop {
        match next(socket).await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Binary(_) | Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn get(world: &World, path: &str) -> reqwest::Response {
    world.client.get(format!("{}/{path}", comfyui(world))).send().await.unwrap()
}

async fn json_of(response: reqwest::Response) -> Value {
    response.json().await.unwrap()
}

/// What everybody's ComfyUI client does: open the socket, send the graph, wait for the end, read the history, fetch the files.
async fn run(world: &World, graph: &Value, prefix: &str) -> (Vec<Bytes>, usize) {
    let mut socket = open(world, &format!("{prefix}ws?clientId=mine")).await.unwrap();
    let first = frame(&mut socket).await;
    assert_eq!((&first["type"], &first["data"]["sid"]), (&json!("status"), &json!("mine")));
    let body = json!({"prompt": graph, "client_id": "mine"});
    let answer = world.client.post(format!("{}/{prefix}prompt", comfyui(world))).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let prompt = json_of(answer).await["prompt_id"].as_str().unwrap().to_owned();
    let mut previews = 0;
    loop {
        match next(&mut socket).await.unwrap().unwrap() {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                let data = &frame["data"];
                if frame["type"] == "executing" && data["node"].is_null() && data["prompt_id"] == *prompt {
                    break;
                }
            }
            Message::Binary(_) => previews += 1,
            other => panic!("{other:?}"),
        }
    }
    let history = json_of(get(world, &format!("{prefix}history/{prompt}")).await).await;
    let mut files = Vec::new();
    for output in history[&prompt]["outputs"].as_object().unwrap().values() {
        for file in output["images"].as_array().unwrap() {
            let query = ["filename", "subfolder", "type"].map(|name| (name, file[name].as_str().unwrap().to_owned()));
            let request = world.client.get(format!("{}/{prefix}view", comfyui(world))).query(&query);
            files.push(request.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap());
        }
    }
    (files, previews)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_changes_one_url_and_is_done() {
    let world = world().start().await;
    for prefix in ["", "api/"] {
        let mut graph = image(if prefix.is_empty() { 1 } else { 2 });
        let steps = json!({"image": ["1", 0], "steps": 3, "seconds_per_step": 0.01, "preview": true, "preview_format": "PNG", "nonce": prefix.len()});
        graph["3"] = json!({"class_type": "LabSlowProgress", "inputs": steps});
        graph["2"]["inputs"]["images"] = json!(["3", 0]);
        let (files, previews) = run(&world, &graph, prefix).await;
        assert_eq!((files.len(), previews), (1, 3));
        assert!(files[0].starts_with(b"\x89PNG"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_says_on_its_socket_reaches_the_server() {
    let world = world().start().await;
    let mut socket = open(&world, "ws?clientId=mine").await.unwrap();
    let flags = json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}});
    socket.send(Message::text(flags.to_string())).await.unwrap();
    frame(&mut socket).await;
    assert_eq!(frame(&mut socket).await["type"], "feature_flags");
    socket.close(None).await.unwrap();
    let closed = |event: &EventKind| matches!(event, EventKind::SocketClosed { client_id } if client_id == "mine");
    timeout(PATIENCE, world.fake().wait_for(closed)).await.expect("the server's side stays open");
    // The close was answered: a client that waits for it is not left with a broken connection.
    loop {
        match next(&mut socket).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("{error}"),
            None => break,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_ends_with_the_server() {
    let world = world().start().await;
    let mut socket = open(&world, "ws").await.unwrap();
    frame(&mut socket).await;
    world.fake().inject(Fault::Kill).await.unwrap();
    let last = loop {
        match next(&mut socket).await.unwrap() {
            Ok(Message::Close(why)) => break why.unwrap(),
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert!(!last.reason.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_ends_with_the_service() {
    let world = world().start().await;
    let mut socket = open(&world, "ws").await.unwrap();
    frame(&mut socket).await;
    world.app.shut_down();
    while let Some(Ok(message)) = next(&mut socket).await {
        if let Message::Close(why) = message {
            assert_eq!(u16::from(why.unwrap().code), 1001);
            return;
        }
    }
    panic!("the socket broke off");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_have_a_limit_and_no_one_takes_our_own_name() {
    let world = world().with("COMFYD_PASSTHROUGH__MAX_SOCKETS", "1").start().await;
    let ours = open(&world, "ws?clientId=comfyd%2D0123456789abcdef").await;
    assert_eq!(refusal(ours), (403, json!("client_id_reserved")));
    let first = open(&world, "ws").await.unwrap();
    assert_eq!(refusal(open(&world, "ws").await), (503, json!("too_many_sockets")));
    drop(first);
    let again = async {
        while open(&world, "ws").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("a place is never free again");
    assert_eq!(refusal(open(&world, "nothing/there").await), (403, json!("passthrough_closed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_others_is_closed_and_nothing_of_it_is_sent() {
    let world = world().start().await;
    world.fake().pause_execution();
    let running = world.create(&json!({"workflow": image(1)})).await;
    world.running(&running).await;
    for (method, path) in [
        (Method::POST, "interrupt"),
        (Method::POST, "api/interrupt"),
        (Method::POST, "api/%69nterrupt"),
        (Method::POST, "queue"),
        (Method::POST, "history"),
        (Method::POST, "free"),
        (Method::POST, "api/jobs/cancel"),
        (Method::GET, "internal/logs"),
        (Method::GET, "userdata?dir=x"),
        (Method::GET, "fake/log"),
        (Method::DELETE, "view"),
    ] {
        let request = world.client.request(method.clone(), format!("{}/{path}", comfyui(&world)));
        let answer = request.json(&json!({"clear": true})).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{method} {path}");
        let problem = json_of(answer).await;
        assert_eq!(problem["code"], "passthrough_closed");
        assert!(problem["detail"].as_str().unwrap().contains("passthrough.allow"), "{problem}");
    }
    // As a client that does not tidy paths sends them.
    for path in ["queue/..%2Finterrupt", "prompt//interrupt", "%252e%252e/interrupt"] {
        let answer = get(&world, path).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(json_of(answer).await["code"], "bad_path");
    }
    world.fake().resume();
    world.completed(&running).await;
    assert_eq!(world.executions(&running), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_opens_closes_and_turns_off() {
    let settings =
        [("COMFYD_PASSTHROUGH__ALLOW", "POST /free, /internal/*"), ("COMFYD_PASSTHROUGH__DENY", "POST /prompt")];
    let world = settings.into_iter().fold(world(), |world, (name, value)| world.with(name, value)).start().await;
    let post =
        |path: &str| world.client.post(format!("{}/{path}", comfyui(&world))).json(&json!({"free_memory": true}));
    assert_eq!(post("free").send().await.unwrap().status(), StatusCode::OK);
    // The fake has none, so this is the server's own answer: without a body, and without one of ours.
    let theirs = get(&world, "internal/logs").await;
    assert_eq!((theirs.status(), theirs.content_length()), (StatusCode::NOT_FOUND, Some(0)));
    let denied = post("prompt").send().await.unwrap();
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(json_of(denied).await["code"], "passthrough_denied");

    let off = crate::support::world().with("COMFYD_PASSTHROUGH__ENABLED", "false").start().await;
    let answer = get(&off, "queue").await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert!(json_of(answer).await["detail"].as_str().unwrap().contains("passthrough.enabled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_server_are_the_servers() {
    let world = world().start().await;
    let prompt = |body: String| world.client.post(format!("{}/prompt", comfyui(&world))).body(body);
    let refused =
        prompt(json!({"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}}).to_string()).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert!(refused.headers().contains_key("x-request-id"));
    assert_eq!(json_of(refused).await["error"]["type"], "missing_node_type");
    let stumbled = prompt("{".to_owned()).send().await.unwrap();
    assert_eq!(stumbled.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(stumbled.text().await.unwrap().contains("Server got itself in trouble"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_whole_in_part_or_not_at_all() {
    let world = world().start().await;
    let form = multipart::Form::new().part("image", multipart::Part::bytes(vec![7; 5_000]).file_name("a b.bin"));
    let stored = world.client.post(format!("{}/upload/image", comfyui(&world))).multipart(form).send().await.unwrap();
    assert_eq!(json_of(stored).await["name"], "a b.bin");
    let view = |method: Method| {
        world.client.request(method, format!("{}/view?filename=a%20b.bin&type=input", comfyui(&world)))
    };
    let whole = view(Method::GET).send().await.unwrap();
    let etag = whole.headers()["etag"].clone();
    assert_eq!(whole.headers()["content-security-policy"], "default-src 'none'; sandbox");
    assert_eq!(whole.bytes().await.unwrap(), vec![7; 5_000]);
    let part = view(Method::GET).header("Range", "bytes=10-19").send().await.unwrap();
    assert_eq!(
        (part.status(), part.headers()["content-range"].to_str().unwrap()),
        (StatusCode::PARTIAL_CONTENT, "bytes 10-19/5000")
    );
    assert_eq!(part.bytes().await.unwrap().len(), 10);
    let known = view(Method::GET).header("If-None-Match", etag).send().await.unwrap();
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    let head = view(Method::HEAD).send().await.unwrap();
    assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &"5000".parse().unwrap()));
    world.fake().inject_times(Fault::CutView { bytes: 1_000 }, 1).await.unwrap();
    assert!(view(Method::GET).send().await.unwrap().bytes().await.is_err(), "a part is taken for the whole");
}

/// A multipart body of this many bytes of file, made while it is sent.
fn upload(world: &World, megabytes: usize) -> reqwest::RequestBuilder {
    let head = "--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"large.bin\"\r\n\r\n";
    let piece = Bytes::from(vec![b'z'; 1 << 20]);
    let pieces = std::iter::once(Bytes::from(head))
        .chain(std::iter::repeat_n(piece, megabytes))
        .chain(std::iter::once(Bytes::from("\r\n--x--\r\n")));
    world
        .client
        .post(format!("{}/upload/image", comfyui(world)))
        .header("Content-Type", "multipart/form-data; boundary=x")
        .body(reqwest::Body::wrap_stream(stream::iter(pieces.map(Ok::<_, std::io::Error>))))
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_and_the_limit_is_the_servers() {
    let world = world().start().await;
    let stored = upload(&world, 99).send().await.unwrap();
    assert_eq!(stored.status(), StatusCode::OK);
    assert_eq!(json_of(stored).await["name"], "large.bin");
    let mut back = get(&world, "view?filename=large.bin&type=input").await.error_for_status().unwrap();
    let mut hash = Sha256::new();
    while let Some(chunk) = back.chunk().await.unwrap() {
        hash.update(&chunk);
    }
    let mut wanted = Sha256::new();
    (0..99).for_each(|_| wanted.update(vec![b'z'; 1 << 20]));
    assert_eq!(hash.finalize(), wanted.finalize());
    // The answer may come while the body is still being sent, and the connection be closed under it.
    if let Ok(refused) = upload(&world, 101).send().await {
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert!(refused.text().await.unwrap().contains("Maximum request body size"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_may_call_us_may_call_comfyui() {
    let world = world().with("CORS_ORIGINS", "https://app.example").start().await;
    let request = world.client.post(format!("{}/prompt", comfyui(&world))).json(&json!({"prompt": image(1)}));
    let browser = [("Origin", "https://app.example"), ("Sec-Fetch-Site", "cross-site"), ("Cookie", "a=b")];
    let request = browser.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "ComfyUI refuses foreign origins");
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
    let foreign = world.client.post(format!("{}/prompt", comfyui(&world))).header("Sec-Fetch-Site", "cross-site");
    assert_eq!(foreign.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_chosen_by_name() {
    let slow = FakeConfig { checkpoints: vec!["second.safetensors".to_owned()], ..FakeConfig::default() };
    let world = world().fakes([FakeConfig::default(), slow]).start().await;
    let second = world.fakes[1].url();
    let asked = |request: reqwest::RequestBuilder| async move { json_of(request.send().await.unwrap()).await };
    let models = format!("{}/models/checkpoints", comfyui(&world));
    let is_second = |names: &Value| *names == json!(["second.safetensors"]);
    assert!(!is_second(&asked(world.client.get(&models)).await), "the first one is the default");
    assert!(is_second(&asked(world.client.get(&models).query(&[("backend", &second)])).await));
    assert!(is_second(&asked(world.client.get(&models).header("Comfyd-Backend", &second)).await));

    let unknown = world.client.get(&models).query(&[("backend", format!("{second}1"))]).send().await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let problem = json_of(unknown).await;
    assert_eq!((&problem["code"], &problem["errors"][0]["suggestion"]), (&json!("backend_not_found"), &json!(second)));

    world.fakes[0].control().inject(Fault::Kill).await.unwrap();
    world.until_status(|status| status["backends"].as_array().unwrap().iter().any(|b| b["phase"] != "online")).await;
    assert!(is_second(&asked(world.client.get(&models)).await), "the first that is online");
    let first = world.client.get(&models).query(&[("backend", world.fakes[0].url())]).send().await.unwrap();
    assert_eq!(first.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(json_of(first).await["code"], "comfyui_unreachable");
    world.fakes[1].control().inject(Fault::Kill).await.unwrap();
    world.until_status(|status| status["backends"].as_array().unwrap().iter().all(|b| b["phase"] != "online")).await;
    let none = world.client.get(&models).send().await.unwrap();
    assert_eq!((none.status(), none.headers().contains_key("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_not_waited_for_for_ever() {
    let world = world().with("COMFYD_PASSTHROUGH__IDLE_TIMEOUT", "200ms").start().await;
    world.fake().inject_times(Fault::PostDelayed { delay: Duration::from_secs(30) }, 1).await.unwrap();
    let request = world.client.post(format!("{}/prompt", comfyui(&world))).json(&json!({"prompt": image(1)}));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    let problem = json_of(answer).await;
    assert_eq!(problem["code"], "comfyui_timeout");
    assert!(problem["detail"].as_str().unwrap().contains("passthrough.idle_timeout"), "{problem}");
}
