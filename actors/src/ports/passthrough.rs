//! What a client says to a ComfyUI server through us, and what the server says back: as it is, in pieces, never as a whole.

use futures_util::stream::BoxStream;

use super::{ByteStream, comfy::ComfyError};
use crate::domain::passthrough::Target;

/// A request to be handed on. Its headers are those the server may see.
pub struct Relay {
    /// The method.
    pub method: http::Method,
    /// The path below the server's root.
    pub target: Target,
    /// The query as the client wrote it, without what was meant for us.
    pub query: Option<String>,
    /// Headers, `Content-Length` among them when the length is known.
    pub headers: http::HeaderMap,
    /// The body, if there is one.
    pub body: Option<ByteStream>,
}

/// The server's answer. `Location`, when it leads to the same server, is made a path below the server's root.
pub type Relayed = http::Response<ByteStream>;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// No connection: the server did not get the request.
    #[error("no connection to the ComfyUI server: {0}")]
    NotConnected(String),
    /// The connection broke: the server may have done what was asked.
    #[error("the connection to the ComfyUI server broke: {0}")]
    Broken(String),
    /// The server had the whole request, or would not take more of it, and was silent for too long.
    #[error("the ComfyUI server did not answer in time")]
    TimedOut,
    /// The client stopped sending its own body, or broke off.
    #[error("the body of the request did not come to its end: {0}")]
    Body(String),
    /// The server refused to open a WebSocket.
    #[error("the ComfyUI server answered {0} instead of opening a WebSocket")]
    NotASocket(http::StatusCode),
}

/// A message on a WebSocket that goes through us. Pings are each side's own affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(bytes::Bytes),
    /// The last message, with its code and reason.
    Close(Option<(u16, String)>),
}

/// What the client sends.
pub type FromClient = BoxStream<'static, Message>;

/// What the server sends, until it closes or fails. Hands on the client's messages and pings the server while it is polled, so it
/// must be polled without pause: a reader that stops stalls every client of the server (PROTOCOL.md 6.8).
pub type FromServer = BoxStream<'static, Result<Message, ComfyError>>;
