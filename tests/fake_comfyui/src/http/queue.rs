//! `/queue`, `/interrupt` and `/free`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value as Json;

use super::{Shared, json, read_body, trouble};
use crate::config::Generation;
use crate::fault::Fault;
use crate::memory::Free;
use crate::queue::Prompt;

pub(super) async fn list(State(server): Shared) -> Response {
    #[derive(Serialize)]
    struct Queue<'a> {
        queue_running: Vec<&'a Prompt>,
        queue_pending: Vec<&'a Prompt>,
    }
    let (running, pending): (Option<Arc<Prompt>>, Vec<Arc<Prompt>>) = {
        let jobs = server.jobs();
        (jobs.running.as_ref().map(|running| running.prompt.clone()), jobs.pending().cloned().collect())
    };
    let queue = Queue {
        queue_running: running.iter().map(|prompt| &**prompt).collect(),
        queue_pending: pending.iter().map(|prompt| &**prompt).collect(),
    };
    json(StatusCode::OK, &queue)
}

pub(super) async fn change(State(server): Shared, body: Body) -> Response {
    let body = match read_body(&server, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let Ok(Json::Object(request)) = serde_json::from_slice(&body) else {
        return trouble();
    };
    if request.get("clear").is_some_and(is_true) {
        server.clear_pending();
    }
    if let Some(ids) = request.get("delete") {
        let Some(ids) = ids.as_array() else { return trouble() };
        let ids: Vec<String> = ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect();
        server.delete_pending(&ids);
    }
    StatusCode::OK.into_response()
}

/// Always 200 with an empty body, unless the body is a list.
pub(super) async fn interrupt(State(server): Shared, body: Body) -> Response {
    let body = match read_body(&server, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let request: Json = serde_json::from_slice(&body).unwrap_or_default();
    if request.is_array() {
        return trouble();
    }
    let id = request.get("prompt_id").and_then(Json::as_str);
    // The oldest generation does not read the body.
    server.interrupt(id.filter(|_| server.generation() != Generation::IgnoresPromptId));
    StatusCode::OK.into_response()
}

pub(super) async fn free(State(server): Shared, body: Body) -> Response {
    let body = match read_body(&server, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let Ok(Json::Object(request)) = serde_json::from_slice(&body) else {
        return trouble();
    };
    let asks = |name| request.get(name).map(is_true);
    let results = asks("free_memory").unwrap_or(false);
    let wish = Free { models: asks("unload_models").unwrap_or(results), results };
    let slow = server.faults.strike(|fault| match fault {
        Fault::SlowFree { delay } => Some(*delay),
        _ => None,
    });
    match slow {
        Some(delay) => drop(tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            server.request_free(wish);
        })),
        None => server.request_free(wish),
    }
    StatusCode::OK.into_response()
}

/// Python's idea of true, as far as it matters here.
pub(super) fn is_true(value: &Json) -> bool {
    match value {
        Json::Bool(flag) => *flag,
        Json::Number(number) => number.as_f64() != Some(0.0),
        Json::String(text) => !text.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(members) => !members.is_empty(),
        Json::Null => false,
    }
}
