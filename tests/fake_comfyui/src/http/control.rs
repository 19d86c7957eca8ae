//! The endpoints that are not ComfyUI's: `/fake/control`, `/fake/log`, `/fake/stats`.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::{Shared, json, read_body};
use crate::control::Order;
use crate::net::{Link, Peer};

/// The faults in force.
pub(super) async fn show(State(server): Shared) -> Response {
    let node_time = u64::try_from(server.node_time().as_millis()).unwrap_or(u64::MAX);
    let state = json!({"faults": server.faults.active(), "node_time_ms": node_time, "generation": server.generation()});
    json(StatusCode::OK, &state)
}

pub(super) async fn play(State(server): Shared, ConnectInfo(peer): ConnectInfo<Peer>, body: Body) -> Response {
    let body = match read_body(&server, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let order = match Order::parse(&body) {
        Ok(order) => order,
        Err(error) => return json(StatusCode::BAD_REQUEST, &json!({"error": error})),
    };
    // In a task of its own: an order that takes the server down must not depend on this connection.
    let asking = peer.0.as_ref().map(Link::id);
    let played = tokio::spawn(async move { order.play(&server, asking).await }).await;
    match played {
        Ok(Ok(())) => json(StatusCode::OK, &json!({})),
        Ok(Err(error)) => json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": error.to_string()})),
        Err(error) => json(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": error.to_string()})),
    }
}

/// The events kept, from position `since` on.
pub(super) async fn log(State(server): Shared, Query(query): Query<HashMap<String, String>>) -> Response {
    let since = query.get("since").and_then(|text| text.parse().ok()).unwrap_or(0);
    json(StatusCode::OK, &server.log.since(since))
}

pub(super) async fn stats(State(server): Shared) -> Response {
    let idle = server.log.idle_time();
    let stats = json!({
        "executions": server.log.total_executions(),
        "position": server.log.position(),
        "idle": idle,
        "idle_share": idle.share(),
        "queue_remaining": server.jobs().remaining(),
    });
    json(StatusCode::OK, &stats)
}
