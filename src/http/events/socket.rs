//! Messages over a WebSocket: texts with JSON, previews as binary, pings when nothing happens.

use std::time::Duration;

use axum::{
    extract::{
        WebSocketUpgrade,
        ws::{self, CloseFrame, WebSocket, close_code},
    },
    response::Response,
};
use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::message::{End, Message, PreviewEvent, Reader, json};

/// Clients have nothing to say.
const MAX_FROM_CLIENT: usize = 4 << 10;
/// A client that takes nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Text<'a> {
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
    data: &'a RawValue,
}

#[derive(Serialize)]
struct Header<'a> {
    event: &'a str,
    data: &'a PreviewEvent,
}

/// Accepts the connection, and writes until there is nothing more to see.
pub fn serve(upgrade: WebSocketUpgrade, reader: Reader) -> Response {
    let upgrade = upgrade.max_message_size(MAX_FROM_CLIENT).max_frame_size(MAX_FROM_CLIENT);
    upgrade.on_upgrade(move |socket| write(socket, reader))
}

async fn write(mut socket: WebSocket, mut reader: Reader) {
    let end = loop {
        let message = tokio::select! {
            message = reader.next() => message,
            // What a client says is read, so that its pings are answered and its going is noticed, and means nothing.
            said = socket.recv() => match said {
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
        };
        let frame = match message {
            Ok(message) => frame(&message),
            Err(end) => break end,
        };
        let stopped = reader.stop().clone();
        tokio::select! {
            sent = timeout(SILENCE, socket.send(frame)) => if !matches!(sent, Ok(Ok(()))) { return },
            () = stopped.cancelled() => break End::Away,
        }
    };
    let (code, reason) = match end {
        End::Over => (close_code::NORMAL, "the task is over"),
        End::Away => (close_code::RESTART, "come again"),
    };
    let close = ws::Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    // A client that does not take it notices by itself.
    let _ = timeout(Duration::from_secs(1), socket.send(close)).await;
}

fn frame(message: &Message) -> ws::Message {
    match message {
        Message::Event { kind, id, data } => {
            let data = RawValue::from_string(data.clone()).unwrap_or_else(|_| RawValue::NULL.to_owned());
            ws::Message::Text(json(&Text { event: kind, id: *id, data: &data }).into())
        }
        Message::Preview(header, preview) => {
            let header = json(&Header { event: "preview", data: header });
            let mut frame = BytesMut::with_capacity(4 + header.len() + preview.image.len());
            frame.put_u32(u32::try_from(header.len()).unwrap_or(0));
            frame.put_slice(header.as_bytes());
            frame.put_slice(&preview.image);
            ws::Message::Binary(frame.freeze())
        }
        Message::Quiet => ws::Message::Ping(axum::body::Bytes::new()),
    }
}
