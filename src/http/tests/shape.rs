//! What all endpoints have in common: the document, problems, ids, browsers.

use std::{sync::Arc, time::Duration};

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

use super::fakes::App;
use crate::{
    http::{AxumEdge, HttpConfig, document, frame},
    workflows::Workflows,
};

fn config() -> HttpConfig {
    HttpConfig { body_limit: 1024, public_url: None, cors_origins: vec!["https://app.example".into()] }
}

#[tokio::test]
async fn every_documented_route_is_served_and_its_examples_work() {
    let app = App::start().await;
    let document = serde_json::to_value(document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 12, "{:?}", paths.keys());
    for (path, operations) in paths {
        let path = path.replace("{task_id}", "01982d2c-7a4e-7bb0-9d1b-6a0f2f5f9c11").replace("{index}", "0");
        for (method, operation) in operations.as_object().unwrap() {
            let request =
                Request::builder().method(method.to_uppercase().as_str()).uri(&path).body(Body::empty()).unwrap();
            let answer = app.send(request).await;
            let status = answer.status.as_u16().to_string();
            assert_ne!(status, "405", "{method} {path}");
            assert!(
                operation["responses"].get(&status).is_some(),
                "{method} {path} answers {status}, which is not documented"
            );
            assert!(operation["summary"].is_string(), "{method} {path}");
        }
        let request = Request::delete(&path).body(Body::empty()).unwrap();
        let answer = app.send(request).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (405, &json!("method_not_allowed")), "{path}");
        assert!(!answer.header("allow").is_empty());
    }
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
    let document = serde_json::to_value(document()).unwrap();
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
    let workflows = Arc::new(Workflows::built_in().unwrap());
    let edge = Arc::new(AxumEdge::new(listener, config(), workflows, Duration::from_millis(100)).unwrap());
    let address = edge.local_addr().unwrap();
    let bridge = App::bridge().await;
    for _ in 0..2 {
        let stop = CancellationToken::new();
        let server = {
            let (edge, bridge, stop) = (edge.clone(), bridge.clone(), stop.clone());
            tokio::spawn(async move { edge.serve(bridge, stop).await })
        };
        assert!(fetch(address).await.contains("200 OK"));
        // A connection that never says anything must not keep the server from ending.
        let _idle = tokio::net::TcpStream::connect(address).await.unwrap();
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
    }
}
