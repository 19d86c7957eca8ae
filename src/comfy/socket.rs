//! The WebSocket: opens it, keeps it honest, and turns its frames into signals.
//!
//! The stream reads only while it is polled and buffers nothing of its own, so whoever holds it must poll it without
//! pause: a client that stops reading stalls every client of the server (protocol 6.8). The server never pings and TCP does
//! not notice a peer that vanished, hence the pings here. The stream ends with one error that says why; a new connection
//! takes a new client id (protocol 6.7).

use std::time::Duration;

use comfyd_actors::ports::{
    comfy::{ComfyError, Signals},
    passthrough::{self, FromClient, FromServer, RelayError},
};
use futures_util::{SinkExt, StreamExt, stream};
use reqwest::header::HeaderMap;
use tokio::{
    net::TcpStream,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{
        Error, Message, Utf8Bytes,
        client::IntoClientRequest,
        protocol::{CloseFrame, WebSocketConfig},
    },
};
use url::Url;

use super::frame::{decode_binary, decode_text};
use crate::tls;

/// Limit for name, TCP, TLS, handshake and our first frame together.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Largest message. Final pictures come as previews of full size, and single state frames exceed 100 KB (protocol 7, 12.6).
const MAX_MESSAGE: usize = 64 << 20;
/// Our own frames are tiny, and ComfyUI takes none over 4 MiB from anybody; more than this unsent means that it does not read.
const MAX_UNSENT: usize = 8 << 20;
/// Must be the very first text frame, or it is ignored (protocol 6.2). Without it previews name no prompt.
const FEATURE_FLAGS: Utf8Bytes =
    Utf8Bytes::from_static(r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#);

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Opens a connection to `url` (`http` or `https`) and sends the feature flags.
pub(super) async fn open(url: Url, headers: &HeaderMap) -> Result<Socket, ComfyError> {
    let failed =
        |error: &Error| ComfyError::Unavailable(format!("the WebSocket could not be opened: {}", words(error)));
    let opening = async {
        let mut socket = handshake(url, headers).await?;
        socket.send(Message::Text(FEATURE_FLAGS)).await?;
        Ok(socket)
    };
    match timeout(OPEN_LIMIT, opening).await {
        Ok(opened) => opened.map_err(|error| failed(&error)),
        Err(_) => Err(ComfyError::Unavailable("the WebSocket could not be opened in time".to_owned())),
    }
}

/// Opens a connection to `url` for a client, who says by itself what it wants.
pub(super) async fn dial(url: Url, headers: &HeaderMap) -> Result<Socket, RelayError> {
    match timeout(OPEN_LIMIT, handshake(url, headers)).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(Error::Http(response))) => Err(RelayError::NotASocket(response.status())),
        Ok(Err(error)) => Err(RelayError::NotConnected(words(&error))),
        Err(_) => Err(RelayError::TimedOut),
    }
}

async fn handshake(mut url: Url, headers: &HeaderMap) -> Result<Socket, Error> {
    let (scheme, connector) = match url.scheme() {
        "https" => ("wss", Connector::Rustls(tls::client_config())),
        _ => ("ws", Connector::Plain),
    };
    // Fails only between kinds of schemes, and these are of one kind.
    let _ = url.set_scheme(scheme);
    let mut request = url.as_str().into_client_request()?;
    for (name, value) in headers {
        request.headers_mut().append(name, value.clone());
    }
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .max_write_buffer_size(MAX_UNSENT);
    let (socket, _) = connect_async_tls_with_config(request, Some(limits), true, Some(connector)).await?;
    Ok(socket)
}

/// The frames of a connection as signals, pinging the server every `interval`.
pub(super) fn signals(socket: Socket, interval: Duration) -> Signals {
    let reader = Reader::new(socket, interval, stream::pending().boxed());
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        let signal = loop {
            match reader.next().await {
                Ok(Message::Text(text)) => break decode_text(&text),
                Ok(Message::Binary(frame)) => break decode_binary(frame),
                Ok(Message::Close(frame)) => {
                    let why = frame.map(|frame| format!(" ({})", u16::from(frame.code))).unwrap_or_default();
                    let closed = ComfyError::Unavailable(format!("the server closed the WebSocket{why}"));
                    return Some((Err(closed), None));
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(why) => return Some((Err(ComfyError::Unavailable(why)), None)),
            }
        };
        Some((Ok(signal), Some(reader)))
    })
    .boxed()
}

/// The messages of a connection as they are, pinging the server every `interval` and sending it what the client says.
pub(super) fn messages(socket: Socket, interval: Duration, from_client: FromClient) -> FromServer {
    let reader = Reader::new(socket, interval, from_client);
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        loop {
            match reader.next().await {
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Text(text)) => {
                    return Some((Ok(passthrough::Message::Text(text.to_string())), Some(reader)));
                }
                Ok(Message::Binary(bytes)) => return Some((Ok(passthrough::Message::Binary(bytes)), Some(reader))),
                Ok(Message::Close(frame)) => {
                    let why = frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                    return Some((Ok(passthrough::Message::Close(why)), None));
                }
                Err(why) => return Some((Err(ComfyError::Unavailable(why)), None)),
            }
        }
    })
    .boxed()
}

struct Reader {
    socket: Socket,
    interval: Duration,
    ticks: Interval,
    /// When anything at all last came, pongs included.
    heard: Instant,
    to_send: stream::Fuse<FromClient>,
}

impl Reader {
    fn new(socket: Socket, interval: Duration, to_send: FromClient) -> Self {
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { socket, interval, ticks, heard: Instant::now(), to_send: to_send.fuse() }
    }

    /// The next message, or why there will be none.
    async fn next(&mut self) -> Result<Message, String> {
        loop {
            let message = tokio::select! {
                // Frames first: a reader that was held up must not take its own delay for the server's silence.
                biased;
                message = self.socket.next() => message,
                _ = self.ticks.tick() => {
                    self.ping().await?;
                    continue;
                }
                Some(message) = self.to_send.next() => {
                    self.send(written(message)).await?;
                    continue;
                }
            };
            self.heard = Instant::now();
            return match message {
                Some(Ok(message)) => Ok(message),
                Some(Err(error)) => Err(format!("the WebSocket failed: {}", words(&error))),
                None => Err("the WebSocket ended".to_owned()),
            };
        }
    }

    async fn ping(&mut self) -> Result<(), String> {
        // Two pings and half an interval for the second pong.
        let patience = self.interval * 5 / 2;
        let silence = self.heard.elapsed();
        if silence >= patience {
            return Err(format!("the server was silent for {} ms", silence.as_millis()));
        }
        self.send(Message::Ping(bytes::Bytes::new())).await
    }

    /// While a message waits to be written nothing is read, so it must not wait long.
    async fn send(&mut self, message: Message) -> Result<(), String> {
        match timeout(self.interval, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the WebSocket failed: {}", words(&error))),
            Err(_) => Err("the server does not read from the WebSocket".to_owned()),
        }
    }
}

fn written(message: passthrough::Message) -> Message {
    match message {
        passthrough::Message::Text(text) => Message::Text(text.into()),
        passthrough::Message::Binary(bytes) => Message::Binary(bytes),
        passthrough::Message::Close(why) => {
            Message::Close(why.map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() }))
        }
    }
}

/// An error in words, with the status when the server answered the handshake with one, and without the server's own text.
fn words(error: &Error) -> String {
    match error {
        Error::Http(response) => format!("the server answered {}", response.status()),
        other => other.to_string(),
    }
}
