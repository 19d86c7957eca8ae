//! What all endpoints have in common: the document, problems, ids, browsers.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    middleware,
    routing::get,
};
use comfyd_actors::ports::edge::HttpEdge;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::fakes::{App, workflows};
use crate::{
    config::Sources,
    http::{AxumEdge, HttpConfig, document, frame, router},
};

fn config() -> HttpConfig {
    let mut config = HttpConfig::from(&crate::config::read(Sources::default()).config);
    config.cors_origins = vec!["https://app.example".into()];
    config
}

const METHODS: [&str; 8] = ["get", "head", "post", "put", "patch", "delete", "options", "trace"];

/// Every path the router knows, taken from what it prints of itself for debugging: there is no other way to ask it.
fn served(router: &Router) -> BTreeSet<String> {
    let printed = format!("{router:?}");
    let quoted = printed.split('"').skip(1).step_by(2);
    // The fallback has a path of its own.
    quoted.filter(|text| text.starts_with('/') && !text.contains("__axum_fallback")).map(str::to_owned).collect()
}

/// The pages about the API are no part of it.
fn is_page(path: &str) -> bool {
    path == "/" || path == "/openapi.json" || path == "/docs" || path.starts_with("/docs/") || path == "/examples/watch"
}

#[tokio::test]
async fn the_document_lists_exactly_what_is_served() {
    let app = App::start().await;
    let document = document(&[]);
    let documented: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let served: BTreeSet<String> =
        served(&app.router).iter().filter(|path| !is_page(path)).map(|path| path.replace("{*", "{")).collect();
    assert_eq!(served, documented);
    for path in documented {
        let operations = &document["paths"][&path];
        let address = path.replace("{task_id}", "01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11");
        let address = address.replace(['{', '}'], "");
        for method in METHODS {
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(&address);
            let answer = app.send(request.body(Body::empty()).unwrap()).await;
            let status = answer.status.as_u16().to_string();
            let operation = &operations[method];
            if operation.is_null() {
                // HEAD comes with GET.
                let is_served = method == "head" && operations["get"].is_object();
                assert_eq!(status == "405", !is_served, "{method} {path} answers {status} and is not documented");
                continue;
            }
            assert!(operation["responses"].get(&status).is_some(), "{method} {path} answers {status}, undocumented");
            assert!(operation["summary"].is_string(), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn operations_have_names_of_their_own() {
    let document = document(&workflows().await.list());
    let items = document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let names: Vec<&str> = items.filter_map(|operation| operation["operationId"].as_str()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
}

#[tokio::test]
async fn a_wrong_method_and_the_examples() {
    let app = App::start().await;
    let answer = app.send(Request::delete("/api/tasks/create").body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (405, &json!("method_not_allowed")));
    assert!(!answer.header("allow").is_empty());
    let document = document(&[]);
    let paths = &document["paths"];
    let examples = &paths["/api/tasks/create"]["post"]["requestBody"]["content"]["application/json"]["examples"];
    for (name, example) in examples.as_object().unwrap() {
        let answer = app.create(example["value"].clone()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{name}: {}", answer.json());
    }
}

#[tokio::test]
async fn the_document_refers_to_nothing_that_is_not_there() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = document(&workflows().await.list());
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_docs_need_no_internet() {
    let app = App::start().await;
    let answer = app.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (307, "/docs"));
    assert_eq!(app.get("/openapi.json").await.json()["info"]["title"], "comfyd");
    let page = app.get("/docs/").await;
    assert_eq!(page.status, StatusCode::OK);
    let script = app.get("/docs/swagger-initializer.js").await;
    let text = [page.body, script.body].map(|body| String::from_utf8(body.to_vec()).unwrap()).concat();
    assert!(text.contains("\"validatorUrl\": \"none\"") && !text.contains("src=\"http"), "{text}");
}

#[tokio::test]
async fn every_answer_has_an_id() {
    let app = App::start().await;
    let answer = app.get_with("/api/nothing", &[("x-request-id", "mine-1")]).await;
    assert_eq!((answer.header("x-request-id"), &answer.json()["request_id"]), ("mine-1", &json!("mine-1")));
    for bad in ["", "a b", "x\"y", &"z".repeat(200)] {
        let answer = app.get_with("/livez", &[("x-request-id", bad)]).await;
        assert_eq!(answer.header("x-request-id").len(), 36, "{bad}");
    }
}

#[tokio::test]
async fn a_panic_is_a_problem() {
    async fn boom() -> &'static str {
        panic!("secret")
    }
    let framed = middleware::from_fn_with_state(Arc::new(config()), frame::frame);
    let app: Router = Router::new().route("/", get(boom)).layer(framed);
    let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["code"], "internal");
    assert!(!body.to_string().contains("secret"));
}

#[tokio::test]
async fn browsers_act_for_allowed_pages_only() {
    let app = App::with(|http| *http = config(), Vec::new()).await;
    let evil = [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")];
    let answer = app.post_with("/api/comfyui-interrupt", &evil, "").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (403, &json!("cross_site")));
    let good = [("sec-fetch-site", "cross-site"), ("origin", "https://app.example")];
    let answer = app.post_with("/api/comfyui-interrupt", &good, "").await;
    assert_eq!((answer.status.as_u16(), answer.header("access-control-allow-origin")), (200, "https://app.example"));
    assert_eq!(
        app.post_with("/api/comfyui-interrupt", &[("sec-fetch-site", "same-origin")], "").await.status.as_u16(),
        200
    );
    let preflight = Request::options("/api/tasks/create")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key")
        .body(Body::empty());
    let answer = app.send(preflight.unwrap()).await;
    assert!(answer.header("access-control-allow-headers").contains("idempotency-key"));
    let off = App::start().await;
    assert_eq!(
        off.get_with("/livez", &[("origin", "https://app.example")]).await.header("access-control-allow-origin"),
        ""
    );
}

/// One request over a real socket.
async fn fetch(address: std::net::SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_socket_outlives_the_server() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (bridge, workflows, settings) = (App::bridge().await, workflows().await, Arc::new(config()));
    let connections = settings.connections;
    let pages = Box::new(move |stop| router(bridge.clone(), settings.clone(), workflows.clone(), None, stop));
    let edge = Arc::new(AxumEdge::new(listener, connections, pages, Duration::from_millis(100)).unwrap());
    let address = edge.local_addr().unwrap();
    for _ in 0..2 {
        let stop = CancellationToken::new();
        let server = {
            let (edge, stop) = (edge.clone(), stop.clone());
            tokio::spawn(async move { edge.serve(stop).await })
        };
        assert!(fetch(address).await.contains("200 OK"));
        // A connection that never says anything must not keep the server from ending.
        let _idle = tokio::net::TcpStream::connect(address).await.unwrap();
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
    }
}
