//! Messages as Server-Sent Events. The stream is pulled by the connection: a client that does not read is not written for.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::message::{Message, PreviewEvent, Reader, json};

/// Sent first: how many milliseconds a browser waits before it comes again.
const GREETING: &str = "retry: 1000\n\n";
/// A comment: says that the stream is alive, and means nothing.
const HEARTBEAT: &str = ":\n\n";

#[derive(Serialize)]
struct WithImage<'a> {
    #[serde(flatten)]
    header: &'a PreviewEvent,
    image: String,
}

/// The answer, whose body goes on until there is nothing more to see.
pub fn serve(reader: Reader) -> Response {
    let messages = stream::unfold(reader, |mut reader| async move {
        let message = reader.next().await.ok()?;
        Some((written(&message), reader))
    });
    let greeting = stream::once(async { Bytes::from_static(GREETING.as_bytes()) });
    let body = Body::from_stream(greeting.chain(messages).map(Ok::<_, Infallible>));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // Nobody on the way may keep it or wait until there is more of it.
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

fn written(message: &Message) -> Bytes {
    let text = match message {
        // JSON as we write it has no line breaks.
        Message::Event { kind, id: Some(id), data } => format!("id: {id}\nevent: {kind}\ndata: {data}\n\n"),
        Message::Event { kind, id: None, data } => format!("event: {kind}\ndata: {data}\n\n"),
        Message::Preview(header, preview) => {
            let image = format!("data:{};base64,{}", preview.content_type, BASE64_STANDARD.encode(&preview.image));
            format!("event: preview\ndata: {}\n\n", json(&WithImage { header, image }))
        }
        Message::Quiet => return Bytes::from_static(HEARTBEAT.as_bytes()),
    };
    Bytes::from(text)
}
