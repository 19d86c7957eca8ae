//! A small client: HTTP by reqwest, one WebSocket per [`Socket`]. Waiting is always for an event, under one generous limit.

use std::time::Duration;

use fake_comfyui::{Control, Event, EventKind, FakeComfy, FakeConfig};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// How long anything may take before a test gives up; only failing tests ever wait that long.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Fails the test when the future takes longer than [`LIMIT`].
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// A fake server with a client for it.
pub struct Rig {
    pub fake: FakeComfy,
    pub control: Control,
    pub http: reqwest::Client,
}

/// A frame as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    Text(Json),
    Binary(Vec<u8>),
    Pong,
    /// The close code; 1006 stands for a connection that just ended.
    Closed(u16),
}

impl Frame {
    /// The type of a text frame, `BIN<event>` for a binary one.
    pub fn kind(&self) -> String {
        match self {
            Self::Text(text) => text["type"].as_str().unwrap_or("?").to_owned(),
            Self::Binary(bytes) => format!("BIN{}", bytes.get(3).copied().unwrap_or(0)),
            Self::Pong => "PONG".to_owned(),
            Self::Closed(code) => format!("CLOSED{code}"),
        }
    }

    pub fn data(&self) -> &Json {
        match self {
            Self::Text(text) => &text["data"],
            _ => &Json::Null,
        }
    }

    /// Whether this is the last frame of a prompt.
    pub fn ends(&self, prompt_id: &str) -> bool {
        self.kind() == "executing" && self.data()["node"].is_null() && self.data()["prompt_id"] == prompt_id
    }
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(FakeConfig::default()).await
    }

    pub async fn with(config: FakeConfig) -> Self {
        // Several tests share the process; all but the first find it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fake = FakeComfy::start(config).await.expect("a free port");
        let control = fake.control();
        let http = reqwest::Client::builder().timeout(LIMIT).build().expect("a client");
        Self { fake, control, http }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.fake.url())
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(self.url(path)).send().await.expect("an answer")
    }

    pub async fn get_json(&self, path: &str) -> Json {
        self.get(path).await.json().await.expect("JSON")
    }

    pub async fn post(&self, path: &str, body: &Json) -> reqwest::Response {
        self.http.post(self.url(path)).body(body.to_string()).send().await.expect("an answer")
    }

    /// Posts a prompt that must be taken; returns its id.
    pub async fn submit(&self, request: &Json) -> String {
        let response = self.post("/prompt", request).await;
        assert_eq!(response.status(), 200);
        let answer: Json = response.json().await.expect("JSON");
        answer["prompt_id"].as_str().expect("an id").to_owned()
    }

    /// Posts a graph of this client.
    pub async fn run(&self, graph: Json, client_id: &str) -> String {
        self.submit(&json!({"prompt": graph, "client_id": client_id})).await
    }

    pub async fn wait(&self, what: &str, wanted: impl Fn(&EventKind) -> bool) -> Event {
        within(what, self.control.wait_for(wanted)).await
    }

    pub async fn wait_finished(&self, prompt_id: &str) {
        self.wait(
            "the end of a prompt",
            |event| matches!(event, EventKind::Finished { prompt_id: id, .. } if id == prompt_id),
        )
        .await;
    }

    pub async fn wait_gated(&self, prompt_id: &str) {
        self.wait(
            "a prompt at the gate",
            |event| matches!(event, EventKind::Gated { prompt_id: id } if id == prompt_id),
        )
        .await;
    }

    pub async fn history(&self, prompt_id: &str) -> Option<Json> {
        self.get_json(&format!("/history/{prompt_id}")).await.get(prompt_id).cloned()
    }

    /// Opens a socket and takes its greeting.
    pub async fn socket(&self, client_id: &str) -> Socket {
        let mut socket = Socket::open(&self.fake, &format!("/ws?clientId={client_id}")).await;
        let greeting = socket.next().await;
        assert_eq!(greeting.data()["sid"], client_id);
        socket
    }
}

/// A WebSocket client.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    pub async fn open(fake: &FakeComfy, path: &str) -> Self {
        let url = format!("ws://{}{path}", fake.addr());
        let (stream, _) = within("a handshake", tokio_tungstenite::connect_async(url)).await.expect("an open socket");
        Self { stream }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.send(Message::text(text)).await.expect("an open socket");
    }

    /// Sends where the server may hang up in the middle.
    pub async fn try_send(&mut self, text: &str) {
        // Losing the connection is what the caller waits for next.
        let _ = self.stream.send(Message::text(text)).await;
    }

    pub async fn negotiate(&mut self) {
        self.send(r#"{"type": "feature_flags", "data": {"supports_preview_metadata": true}}"#).await;
        assert_eq!(self.next().await.kind(), "feature_flags");
    }

    pub async fn ping(&mut self) {
        self.stream.send(Message::Ping(Vec::new().into())).await.expect("an open socket");
    }

    pub async fn close(mut self) {
        self.stream.close(None).await.expect("an open socket");
    }

    pub async fn next(&mut self) -> Frame {
        match within("a frame", self.stream.next()).await {
            Some(Ok(Message::Text(text))) => Frame::Text(serde_json::from_str(&text).expect("JSON")),
            Some(Ok(Message::Binary(bytes))) => Frame::Binary(bytes.to_vec()),
            Some(Ok(Message::Pong(_))) => Frame::Pong,
            Some(Ok(Message::Close(Some(close)))) => Frame::Closed(close.code.into()),
            Some(Ok(Message::Close(None))) => Frame::Closed(1005),
            Some(Err(_)) | None => Frame::Closed(1006),
            Some(Ok(other)) => panic!("unexpected message {other:?}"),
        }
    }

    /// Everything up to and including the first frame that fits.
    pub async fn until(&mut self, last: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await;
            if let Frame::Closed(code) = frame {
                panic!("closed with {code} after {frames:?}");
            }
            let done = last(&frame);
            frames.push(frame);
            if done {
                return frames;
            }
        }
    }

    /// Everything up to the answer to a ping: what the server had to say so far.
    pub async fn drain(&mut self) -> Vec<Frame> {
        self.ping().await;
        let mut frames = self.until(|frame| *frame == Frame::Pong).await;
        frames.pop();
        frames
    }
}

/// `EmptyImage -> SaveImage`, with the colour as the only difference between prompts.
pub fn simple(color: u32) -> Json {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "lab/simple"}},
    })
}

/// `EmptyImage -> LabSlowProgress -> SaveImage`.
pub fn slow(nonce: u32, steps: u32, seconds_per_step: f64) -> Json {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 96, "batch_size": 1, "color": nonce}},
        "2": {"class_type": "LabSlowProgress", "inputs": {"image": ["1", 0], "steps": steps,
            "seconds_per_step": seconds_per_step, "preview": true, "preview_format": "JPEG", "nonce": nonce}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "lab/slow"}},
    })
}

/// The types of frames, in order.
pub fn kinds(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(Frame::kind).collect()
}
