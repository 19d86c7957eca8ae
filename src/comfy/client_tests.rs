//! The client against small servers that misbehave, one fault each.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use comfyd_actors::{
    domain::{
        artifact::FileRef,
        id::{ClientId, PromptId, TaskId},
        prompt::{Abilities, Outcome, Sighting},
    },
    ports::comfy::{ComfyError, ComfyTransport, Submission, SubmitError, Wanted},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{ComfyConfig, ConfigError, HttpComfy};

async fn serve(router: Router) -> HttpComfy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    comfy(&url)
}

fn comfy(url: &str) -> HttpComfy {
    HttpComfy::new(ComfyConfig {
        connect_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_millis(500),
        post_timeout: Duration::from_millis(500),
        view_idle_timeout: Duration::from_millis(200),
        max_json_bytes: 10_000,
        ..ComfyConfig::new(url)
    })
    .unwrap()
}

/// A server that answers everything with these very bytes, then hangs up. Counts the connections that sent something.
async fn raw(answer: &'static str) -> (HttpComfy, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 16_384];
            if socket.read(&mut request).await.is_ok_and(|read| read > 0) {
                counter.fetch_add(1, Ordering::SeqCst);
            }
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (comfy(&url), requests)
}

fn submission() -> Submission {
    let task = TaskId::new();
    Submission {
        task,
        dispatch: 1,
        prompt: PromptId::of(task, 1),
        client: ClientId::new("test"),
        graph: r#"{"2": {"b": 1.50,  "a": 10000000000000000000000}}"#.into(),
        previews: false,
    }
}

fn wanted() -> Wanted {
    let Submission { task, dispatch, prompt, .. } = submission();
    Wanted { prompt, task, dispatch }
}

fn file(filename: &str) -> FileRef {
    FileRef { filename: filename.into(), subfolder: "a b/ä".into(), folder_type: "output".into() }
}

#[tokio::test]
async fn a_prompt_goes_out_verbatim_with_its_marker() {
    let seen = Arc::new(Mutex::new(String::new()));
    let router = Router::new().route(
        "/prompt",
        post(|State(seen): State<Arc<Mutex<String>>>, body: String| async move {
            let id = serde_json::from_str::<Value>(&body).unwrap()["prompt_id"].clone();
            *seen.lock().unwrap() = body;
            Json(json!({"prompt_id": id, "number": 3, "node_errors": {}}))
        }),
    );
    let comfy = serve(router.with_state(Arc::clone(&seen))).await;
    let submission = submission();
    let receipt = comfy.submit(&submission).await.unwrap();
    assert_eq!((&receipt.prompt, &receipt.node_errors), (&submission.prompt, &None));
    let body = seen.lock().unwrap().clone();
    assert!(body.contains(&*submission.graph), "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["extra_data"], json!({"comfyd": {"task": submission.task, "dispatch": 1}}));
    assert_eq!(body["client_id"], submission.client.as_str());
}

#[tokio::test]
async fn answers_to_a_prompt_are_classified() {
    let verdict = r#"{"error": {"type": "no_prompt", "message": "No prompt provided"}, "node_errors": {}}"#;
    for (status, body, class) in [
        (200, r#"{"prompt_id": "abc", "number": 1, "node_errors": []}"#, "taken"),
        (200, r#"{"prompt_id": "../abc"}"#, "unknown"),
        (200, r#"{"number": 1}"#, "unknown"),
        (200, "<html>", "unknown"),
        (201, "{}", "unknown"),
        (302, "", "unknown"),
        (400, verdict, "refused"),
        (400, "", "refused"),
        (413, "Maximum request body size 104857600 exceeded.", "refused"),
        (401, "<html>", "not sent"),
        (404, verdict, "refused"),
        (408, "", "unknown"),
        (429, "slow down", "not sent"),
        (500, "500 Internal Server Error\n\nServer got itself in trouble", "failed"),
        (502, "<html>", "unknown"),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let comfy = serve(Router::new().route("/prompt", post(move || async move { (status, body) }))).await;
        let found = match comfy.submit(&submission()).await {
            Ok(_) => "taken",
            Err(SubmitError::Refused { .. }) => "refused",
            Err(SubmitError::NotSent(_)) => "not sent",
            Err(SubmitError::Failed(_)) => "failed",
            Err(SubmitError::Unknown(_)) => "unknown",
        };
        assert_eq!(found, class, "{status} {body}");
    }
}

#[tokio::test]
async fn partial_acceptance_is_told() {
    let answer =
        json!({"prompt_id": "p", "number": 1, "node_errors": {"5": {"errors": [], "class_type": "SaveImage"}}});
    let comfy = serve(Router::new().route("/prompt", post(|| async { Json(answer) }))).await;
    let faults = comfy.submit(&submission()).await.unwrap().node_errors.unwrap();
    assert_eq!(faults["5"]["class_type"], "SaveImage");
}

#[tokio::test]
async fn only_a_failed_connect_counts_as_not_sent() {
    // Bound and closed again: nobody listens there.
    let url = format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
    assert!(matches!(comfy(&url).submit(&submission()).await, Err(SubmitError::NotSent(_))));

    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{\"prompt_id\"", "garbage\r\n\r\n"] {
        let (comfy, requests) = raw(answer).await;
        let error = comfy.submit(&submission()).await.unwrap_err();
        assert!(matches!(error, SubmitError::Unknown(_)), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(requests.load(Ordering::SeqCst), 1, "a prompt must never be sent twice");
    }

    let slow = Router::new().route("/prompt", post(std::future::pending::<()>));
    assert!(matches!(serve(slow).await.submit(&submission()).await, Err(SubmitError::Unknown(_))));
}

#[tokio::test]
async fn a_prompt_is_not_sent_again_when_a_kept_connection_dies() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let comfy = comfy(&format!("http://{}", listener.local_addr().unwrap()));
    let posts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&posts);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut request = [0; 16_384];
                // Answers questions and keeps the connection, but hangs up as soon as it has a prompt.
                while let Ok(read @ 1..) = socket.read(&mut request).await {
                    if request[..read].starts_with(b"POST") {
                        counter.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                }
            });
        }
    });
    for sent in 1..=3 {
        assert!(comfy.queue().await.is_ok());
        assert!(matches!(comfy.submit(&submission()).await, Err(SubmitError::Unknown(_))));
        assert_eq!(posts.load(Ordering::SeqCst), sent);
    }
}

#[tokio::test]
async fn a_check_tells_comfyui_from_others() {
    let prompt = get(|| async { Json(json!({"exec_info": {"queue_remaining": 0}})) });
    let jobs = get(|| async { Json(json!({"jobs": [], "pagination": {}})) });
    let old = Router::new().route("/prompt", prompt);
    let new = old.clone().route("/api/jobs", jobs);
    let page = Router::new().fallback(any(|| async { "<html>" }));
    assert_eq!(serve(old).await.check().await, Ok(Abilities { jobs: false }));
    assert_eq!(serve(new.clone()).await.check().await, Ok(Abilities { jobs: true }));
    assert!(serve(page).await.check().await.is_err());

    let below = serve(Router::new().nest("/comfy/1", new)).await;
    let url = format!("{}/comfy/1/", below.id());
    assert_eq!(comfy(&url).check().await, Ok(Abilities { jobs: true }));
    assert_eq!(format!("{}/", comfy(&url).id()), url);
}

#[tokio::test]
async fn credentials_are_sent_and_never_shown() {
    async fn guarded(request: Request) -> Response {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // "user" and "p:ss", escaped in the address.
        if header("authorization") == "Basic dXNlcjpwOnNz" && header("x-key") == "k" {
            Json(json!({"exec_info": {"queue_remaining": 0}})).into_response()
        } else {
            StatusCode::UNAUTHORIZED.into_response()
        }
    }
    let address = serve(Router::new().fallback(any(guarded))).await.id().to_string();
    let url = address.replace("http://", "http://user:p%3Ass@");
    let config = ComfyConfig { headers: vec![("X-Key".into(), "k".into())], ..ComfyConfig::new(&url) };
    assert!(!format!("{config:?}").contains("p%3Ass"));
    let comfy = HttpComfy::new(config).unwrap();
    assert_eq!(comfy.id().as_str(), address);
    assert!(comfy.check().await.is_ok());
}

#[test]
fn unusable_configurations_are_refused() {
    for url in ["", "127.0.0.1:8188", "ftp://host", "http://", "unix:/x"] {
        assert!(matches!(HttpComfy::new(ComfyConfig::new(url)), Err(ConfigError::Url(_))), "{url}");
    }
    let headers = vec![("a b".to_owned(), "c".to_owned())];
    let config = ComfyConfig { headers, ..ComfyConfig::new("http://localhost") };
    assert!(matches!(HttpComfy::new(config), Err(ConfigError::Header(_))));
}

/// A server of the old kind: no jobs, and prompts under ids of its own.
fn old_server(queue: Value, history: Value) -> Router {
    let by_id = history.clone();
    Router::new()
        .route("/queue", get(|| async { Json(queue) }))
        .route("/history", get(|| async { Json(history) }))
        .route(
            "/history/{id}",
            get(|Path(id): Path<String>| async move {
                Json(by_id.get(&id).map_or_else(|| json!({}), |entry| json!({ id: entry })))
            }),
        )
}

#[tokio::test]
async fn a_prompt_is_found_wherever_it_is() {
    let wanted = wanted();
    let marker = json!({"comfyd": {"task": wanted.task, "dispatch": wanted.dispatch}});
    let tuple = |id: &str, extra: &Value| json!([1, id, {}, extra, []]);
    let entry = |id: &str, extra: &Value| json!({ id: {"prompt": tuple(id, extra), "outputs": {}, "status": {"status_str": "success", "messages": []}} });
    let ours = wanted.prompt.as_str();
    let nothing = json!({"queue_running": [], "queue_pending": []});
    let alive = |id: &str, running| Sighting::Alive { prompt: PromptId::new(id), running };

    let running = json!({"queue_running": [tuple(ours, &json!({}))], "queue_pending": []});
    assert_eq!(serve(old_server(running, json!({}))).await.look(&wanted).await, Ok(alive(ours, true)));
    let renamed = json!({"queue_running": [], "queue_pending": [tuple("theirs", &marker)]});
    assert_eq!(serve(old_server(renamed, json!({}))).await.look(&wanted).await, Ok(alive("theirs", false)));
    for (id, extra) in [(ours, &json!({})), ("theirs", &marker)] {
        let found = serve(old_server(nothing.clone(), entry(id, extra))).await.look(&wanted).await;
        assert!(
            matches!(found, Ok(Sighting::Ended(end)) if end.prompt.as_str() == id && end.outcome == Outcome::Success)
        );
    }
    let others = entry("other", &json!({}));
    assert_eq!(serve(old_server(nothing, others)).await.look(&wanted).await, Ok(Sighting::Absent));
}

#[tokio::test]
async fn absence_is_only_concluded_from_good_answers() {
    let empty = json!({"queue_running": [], "queue_pending": []});
    for queue in [json!({}), json!([]), json!({"queue_running": 7, "queue_pending": []})] {
        assert!(serve(old_server(queue, json!({}))).await.look(&wanted()).await.is_err());
    }
    let broken = Router::new()
        .route("/queue", get(|| async { Json(empty) }))
        .fallback(any(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error") }));
    assert!(serve(broken).await.look(&wanted()).await.is_err());
}

#[tokio::test]
async fn a_history_too_large_to_read_is_searched_in_part() {
    let wanted = wanted();
    let end = json!({"prompt": [1, "theirs", {}, {"comfyd": {"task": wanted.task, "dispatch": 1}}, []], "outputs": {}});
    let history = |Query(query): Query<std::collections::HashMap<String, String>>| async move {
        let padding = "x".repeat(if query["max_items"] == "16" { 10 } else { 20_000 });
        Json(json!({"theirs": end, "padding": padding}))
    };
    let router = Router::new()
        .route("/queue", get(|| async { Json(json!({"queue_running": [], "queue_pending": []})) }))
        .route("/history/{id}", get(|| async { Json(json!({})) }))
        .route("/history", get(history));
    let found = serve(router).await.look(&wanted).await;
    assert!(matches!(found, Ok(Sighting::Ended(end)) if end.prompt.as_str() == "theirs"));
}

#[tokio::test]
async fn a_job_tells_all_at_once() {
    let job = |status: &'static str| {
        Router::new().route("/api/jobs/{id}", get(move || async move { Json(json!({"status": status})) }))
    };
    let wanted = wanted();
    let alive = Sighting::Alive { prompt: wanted.prompt.clone(), running: true };
    assert_eq!(serve(job("in_progress")).await.look(&wanted).await, Ok(alive));
    assert!(matches!(serve(job("cancelled")).await.look(&wanted).await, Ok(Sighting::Ended(_))));
}

#[tokio::test]
async fn cancel_never_interrupts_bare_or_for_others() {
    type Log = Arc<Mutex<Vec<String>>>;
    async fn note(State(log): State<Log>, request: Request) {
        let path = request.uri().path().to_owned();
        let body = axum::body::to_bytes(request.into_body(), 1000).await.unwrap();
        log.lock().unwrap().push(format!("{path} {}", String::from_utf8_lossy(&body)));
    }
    let marked = json!([2, "another", {}, {"comfyd": {"task": wanted().task, "dispatch": 1}}, []]);
    let stranger = json!([2, "theirs", {}, {}, []]);
    for (version, running, waiting, interrupts) in [
        // Reads the id: nobody else can be hit.
        ("0.3.64", "ours", &stranger, true),
        ("v0.4.0-rc1", "ours", &stranger, true),
        ("0.3.64", "other", &marked, false),
        // Does not, or does not say: a stranger's prompt may begin before the interrupt arrives.
        ("0.3.43", "ours", &marked, true),
        ("0.3.43", "ours", &stranger, false),
        ("0.3.43", "other", &marked, false),
        ("nightly", "ours", &stranger, false),
    ] {
        let queue = json!({"queue_running": [[1, running, {}, {}, []]], "queue_pending": [waiting]});
        let log = Log::default();
        let router = Router::new()
            .route("/prompt", get(|| async { Json(json!({"exec_info": {"queue_remaining": 0}})) }))
            .route("/system_stats", get(move || async move { Json(json!({"system": {"comfyui_version": version}})) }))
            .route("/api/jobs", get(|| async { StatusCode::NOT_FOUND }))
            .route("/queue", get(|| async { Json(queue) }).post(note))
            .fallback(any(note))
            .with_state(Arc::clone(&log));
        let comfy = serve(router).await;
        comfy.check().await.unwrap();
        comfy.cancel(&PromptId::new("ours")).await.unwrap();
        let log = log.lock().unwrap().clone();
        let mut expected = vec![r#"/queue {"delete":["ours"]}"#];
        expected.extend(interrupts.then_some(r#"/interrupt {"prompt_id":"ours"}"#));
        assert_eq!(log, expected, "{version}, {running} runs, {waiting} waits");
    }
}

#[tokio::test]
async fn hostile_answers_are_unavailable_and_soon() {
    let huge = || async {
        let chunks = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b' '; 4096])));
        Body::from_stream(chunks)
    };
    let deep = || async { "[".repeat(9000) };
    for router in [
        Router::new().fallback(any(huge)),
        Router::new().fallback(any(deep)),
        Router::new().fallback(any(|| async { Bytes::from_static(b"\xff\xfe") })),
        Router::new().fallback(any(std::future::pending::<()>)),
    ] {
        let comfy = serve(router).await;
        assert!(matches!(comfy.queue().await, Err(ComfyError::Unavailable(_))));
        assert!(matches!(comfy.history(&PromptId::new("p")).await, Err(ComfyError::Unavailable(_))));
        assert!(matches!(comfy.check().await, Err(ComfyError::Unavailable(_))));
    }
    let (comfy, _) = raw("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{").await;
    assert!(matches!(comfy.system_stats().await, Err(ComfyError::Unavailable(why)) if why.contains("larger")));
}

#[tokio::test]
async fn a_file_is_asked_for_by_its_exact_name() {
    async fn view(Query(query): Query<std::collections::HashMap<String, String>>) -> Response {
        let exact = query["filename"] == "a&b=ö #1.png" && query["subfolder"] == "a b/ä" && query["type"] == "output";
        if exact {
            ([(header::CONTENT_TYPE, "image/png")], "bytes").into_response()
        } else {
            StatusCode::NOT_FOUND.into_response()
        }
    }
    let comfy = serve(Router::new().route("/view", get(view))).await;
    let download = comfy.view(&file("a&b=ö #1.png")).await.unwrap();
    assert_eq!((download.content_type.as_deref(), download.bytes), (Some("image/png"), Some(5)));
    let body: Vec<Bytes> = download.body.try_collect().await.unwrap();
    assert_eq!(body.concat(), b"bytes");
    for name in ["b.png", "../b.png", "a/b.png", "..", "a\0.png"] {
        assert!(matches!(comfy.view(&file(name)).await, Err(ComfyError::NotFound)), "{name}");
    }
}

#[tokio::test]
async fn a_download_that_ends_early_or_stalls_is_an_error() {
    let (cut, _) = raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let (chunked, _) = raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    let stalled = || async {
        let chunk = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"half"))]);
        Body::from_stream(chunk.chain(stream::pending()))
    };
    let stalled = serve(Router::new().route("/view", get(stalled))).await;
    for comfy in [cut, chunked, stalled] {
        let items: Vec<_> = comfy.view(&file("a.png")).await.unwrap().body.collect().await;
        assert_eq!(items.iter().filter(|item| item.is_err()).count(), 1);
        assert!(items.last().unwrap().is_err(), "the error is the last item");
    }
}
