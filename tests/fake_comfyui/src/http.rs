//! The routes. Everything ComfyUI serves under `/` it also serves under `/api`; the jobs routes exist only there.

mod control;
mod history;
mod info;
mod jobs;
mod prompt;
mod queue;
mod upload;
mod view;
mod ws;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Router, http::HeaderValue};
use bytes::BytesMut;
use futures_util::StreamExt;
use serde::Serialize;

use crate::fault::Fault;
use crate::server::Server;

/// How long a body is read on that is too large (`lingering_time` of aiohttp).
const LINGERING: Duration = Duration::from_secs(10);

type Shared = State<Arc<Server>>;

/// The whole application.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let both = Router::new()
        .route("/prompt", get(prompt::remaining).post(prompt::submit))
        .route("/queue", get(queue::list).post(queue::change))
        .route("/interrupt", post(queue::interrupt))
        .route("/free", post(queue::free))
        .route("/history", get(history::list).post(history::change))
        .route("/history/{id}", get(history::one))
        .route("/view", get(view::view))
        .route("/upload/image", post(upload::image))
        .route("/upload/mask", post(upload::mask))
        .route("/system_stats", get(info::system_stats))
        .route("/features", get(info::features))
        .route("/object_info", get(info::object_info))
        .route("/object_info/{class}", get(info::object_info_of))
        .route("/models", get(info::models))
        .route("/models/{folder}", get(info::models_in))
        .route("/embeddings", get(info::embeddings))
        .route("/extensions", get(info::extensions))
        .route("/ws", any(ws::open));
    let jobs = Router::new()
        .route("/api/jobs", get(jobs::list))
        .route("/api/jobs/cancel", post(jobs::cancel_many))
        .route("/api/jobs/{id}", get(jobs::one))
        .route("/api/jobs/{id}/cancel", post(jobs::cancel))
        .layer(middleware::from_fn_with_state(server.clone(), only_current));
    let comfyui = both
        .clone()
        .nest("/api", both)
        .merge(jobs)
        .method_not_allowed_fallback(async || (StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(middleware::from_fn_with_state(server.clone(), guard));
    let control = Router::new()
        .route("/fake/control", get(control::show).post(control::play))
        .route("/fake/log", get(control::log))
        .route("/fake/stats", get(control::stats));
    control.merge(comfyui).with_state(server)
}

/// Routes of the current generation are not there in the older ones: 404 to read, 405 to write.
async fn only_current(State(server): Shared, request: Request, next: Next) -> Response {
    if server.generation().has_jobs_api() {
        return next.run(request).await;
    }
    match *request.method() {
        Method::GET | Method::HEAD => StatusCode::NOT_FOUND.into_response(),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed").into_response(),
    }
}

/// What holds for every route: health, foreign origins, OPTIONS.
async fn guard(State(server): Shared, request: Request, next: Next) -> Response {
    if server.faults.strikes(&Fault::Unhealthy) {
        return trouble();
    }
    if request.method() == Method::OPTIONS {
        return StatusCode::OK.into_response();
    }
    if is_foreign(request.headers(), request.uri()) {
        return StatusCode::FORBIDDEN.into_response();
    }
    next.run(request).await
}

/// ComfyUI's guard against foreign web pages: on a loopback name the origin must be the same host and port.
fn is_foreign(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        return true;
    }
    let (Some(host), Some(origin)) = (text(header::HOST).or(uri.host()), text(header::ORIGIN)) else {
        return false;
    };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if !matches!(name, "127.0.0.1" | "localhost" | "[::1]") {
        return false;
    }
    let origin_host = origin.split_once("://").map_or(origin, |(_, host)| host);
    !origin_host.is_empty() && origin_host != host
}

/// ComfyUI's answer to everything it did not expect.
fn trouble() -> Response {
    let text = "500 Internal Server Error\n\nServer got itself in trouble";
    (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONNECTION, "close")], text).into_response()
}

/// A JSON answer as aiohttp labels it.
fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let label = HeaderValue::from_static("application/json; charset=utf-8");
            (status, [(header::CONTENT_TYPE, label)], bytes).into_response()
        }
        Err(_) => trouble(),
    }
}

/// Reads a body up to the limit; above it the answer is 413.
async fn read_body(server: &Server, body: Body) -> Result<Bytes, Response> {
    let limit = server.config.max_body;
    let mut body = body.into_data_stream();
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        // Whoever sent it is gone.
        let Ok(chunk) = chunk else { return Err(trouble()) };
        if whole.len() + chunk.len() > limit {
            tokio::spawn(read_to_the_end(body));
            let text = format!("Maximum request body size {limit} exceeded.");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, [(header::CONNECTION, "close")], text).into_response());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// As aiohttp: a connection that is closed on somebody who is still sending takes the answer with it.
async fn read_to_the_end(mut body: BodyDataStream) {
    let reading = async { while body.next().await.is_some_and(|chunk| chunk.is_ok()) {} };
    // Who takes longer has had his time.
    _ = tokio::time::timeout(LINGERING, reading).await;
}
