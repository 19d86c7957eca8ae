//! The opening of a WebSocket.

use std::collections::HashMap;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, Query, State};
use axum::response::Response;
use uuid::Uuid;

use super::Shared;
use crate::net::Peer;
use crate::socket;

/// ComfyUI closes the socket of a client that sends more in one message.
const MAX_CLIENT_MESSAGE: usize = 4 * 1024 * 1024;

pub(super) async fn open(
    State(server): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Query(query): Query<HashMap<String, String>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let client_id = query.get("clientId").filter(|id| !id.is_empty()).cloned();
    let client_id = client_id.unwrap_or_else(|| Uuid::new_v4().simple().to_string());
    if let Some(link) = &peer.0 {
        link.mark_websocket();
    }
    upgrade
        .max_message_size(MAX_CLIENT_MESSAGE)
        .max_frame_size(MAX_CLIENT_MESSAGE)
        .on_upgrade(move |socket| socket::serve(server, socket, client_id, peer.0))
}
