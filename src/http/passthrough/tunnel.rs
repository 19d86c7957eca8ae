//! A client's WebSocket, through us to the server.
//!
//! The server is read eagerly whatever the client does, because a reader that stops stalls every client of the server (PROTOCOL.md
//! 6.8). What a slow client has not taken yet is kept up to a limit, and a client beyond it is sent away.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        WebSocketUpgrade,
        ws::{CloseFrame, Message as Written, WebSocket, close_code},
    },
    http::StatusCode,
    response::Response,
};
use comfyd_actors::ports::{
    comfy::ComfyTransport,
    passthrough::{FromServer, Message, Relay},
};
use futures_util::{
    SinkExt, StreamExt,
    stream::{self, SplitSink, SplitStream},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{super::Service, failed};
use crate::http::problem::Problem;

/// ComfyUI closes the connection of a client that sends a longer message.
const MAX_FROM_CLIENT: usize = 4 << 20;
/// What a client may be behind, in KiB: a hundred and more previews.
const MAX_BEHIND: usize = 8 << 10;
/// And in messages, so that tiny ones do not cost more than they hold.
const MAX_MESSAGES: usize = 10_000;
/// RFC 6455, 5.5: a close has 125 bytes, two of them for the code.
const MAX_REASON: usize = 123;
/// A client that is sent away gets this long to take what it has not taken yet.
const FAREWELL: Duration = Duration::from_secs(5);

/// Opens the server's side, then accepts the client's.
pub async fn open(
    service: &Arc<Service>,
    backend: Arc<dyn ComfyTransport>,
    relay: Relay,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    refuse_our_own_name(service, &relay)?;
    let place = service.sockets.clone().try_acquire_owned().map_err(|_| {
        Problem::unavailable("too_many_sockets", "too many WebSockets are open to ComfyUI (passthrough.max_sockets)")
    })?;
    let (to_server, mut from_client) = mpsc::channel(1);
    let from_client = stream::poll_fn(move |context| from_client.poll_recv(context)).boxed();
    let from_server = backend.tunnel(relay, from_client).await.map_err(|error| failed(&*backend, error))?;
    let stop = service.stop.clone();
    let upgrade = upgrade.max_message_size(MAX_FROM_CLIENT).max_frame_size(MAX_FROM_CLIENT);
    Ok(upgrade.on_upgrade(move |client| async move {
        join(client, from_server, to_server, stop).await;
        drop(place);
    }))
}

/// Of two connections of one name ComfyUI serves one only (PROTOCOL.md 6.7): a client by the name of our own would make us deaf.
fn refuse_our_own_name(service: &Service, relay: &Relay) -> Result<(), Problem> {
    let query = relay.query.as_deref().unwrap_or_default();
    let prefix = format!("{}-", service.config.client_prefix);
    let ours = url::form_urlencoded::parse(query.as_bytes())
        .any(|(name, value)| name == "clientId" && value.starts_with(&prefix));
    if ours {
        let detail = format!(
            "client ids that begin with `{prefix}` are those of this service's own connections; choose another one"
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, "client_id_reserved", detail));
    }
    Ok(())
}

/// Why a tunnel ends, as the client is told.
type Farewell = Option<(u16, String)>;

async fn join(client: WebSocket, from_server: FromServer, to_server: mpsc::Sender<Message>, stop: CancellationToken) {
    let (to_client, from_client) = client.split();
    let (kept, to_take) = mpsc::channel(MAX_MESSAGES);
    let mut writing = std::pin::pin!(write(to_client, to_take));
    let ending = {
        let reading = read(from_server, kept.clone());
        let sending = send(from_client, to_server);
        tokio::select! {
            farewell = reading => Some(farewell),
            // The client has gone; there is nobody to say anything to.
            () = sending => None,
            () = &mut writing => None,
            () = stop.cancelled() => Some(Some((close_code::AWAY, "the service is shutting down".to_owned()))),
        }
    };
    if let Some(farewell) = ending {
        let last = async move {
            let _ = kept.send((Message::Close(farewell), None)).await;
        };
        // A client that does not take its farewell is cut off.
        let _ = tokio::time::timeout(FAREWELL, futures_util::future::join(last, writing)).await;
    }
}

/// A message on its way to the client, and the room it takes.
type Kept = (Message, Option<OwnedSemaphorePermit>);

/// Reads the server to its end, never waiting for the client.
async fn read(mut from_server: FromServer, kept: mpsc::Sender<Kept>) -> Farewell {
    let room = Arc::new(Semaphore::new(MAX_BEHIND));
    while let Some(message) = from_server.next().await {
        let message = match message {
            Ok(Message::Close(why)) => return why,
            Ok(message) => message,
            Err(error) => return Some((close_code::ERROR, error.to_string())),
        };
        let size = match &message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) => bytes.len(),
            Message::Close(_) => 0,
        };
        // Never more than all of it: a picture larger than the limit passes when nothing else waits.
        let size = u32::try_from((size >> 10).min(MAX_BEHIND)).unwrap_or_default();
        let Ok(permit) = room.clone().try_acquire_many_owned(size) else { return Some(too_slow()) };
        if kept.try_send((message, Some(permit))).is_err() {
            return Some(too_slow());
        }
    }
    None
}

fn too_slow() -> (u16, String) {
    (close_code::POLICY, "you read too slowly, and would hold up everybody's events".to_owned())
}

async fn write(mut to_client: SplitSink<WebSocket, Written>, mut to_take: mpsc::Receiver<Kept>) {
    while let Some((message, _room)) = to_take.recv().await {
        if to_client.send(written(message)).await.is_err() {
            return;
        }
    }
}

fn written(message: Message) -> Written {
    match message {
        Message::Text(text) => Written::Text(text.into()),
        Message::Binary(bytes) => Written::Binary(bytes),
        Message::Close(why) => Written::Close(why.map(|(code, reason)| {
            let reason = reason.get(..reason.floor_char_boundary(MAX_REASON)).unwrap_or_default();
            CloseFrame { code, reason: reason.into() }
        })),
    }
}

/// Hands on what the client says. A server that does not take it holds the client up.
async fn send(mut from_client: SplitStream<WebSocket>, to_server: mpsc::Sender<Message>) {
    while let Some(Ok(message)) = from_client.next().await {
        let message = match message {
            Written::Text(text) => Message::Text(text.to_string()),
            Written::Binary(bytes) => Message::Binary(bytes),
            // After a close nothing comes; asking for it lets the answer to the close out.
            Written::Close(_) | Written::Ping(_) | Written::Pong(_) => continue,
        };
        if to_server.send(message).await.is_err() {
            return;
        }
    }
}
