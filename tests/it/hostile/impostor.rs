//! Something that speaks ComfyUI's protocol just well enough to be given a prompt, and then says what a test wants it to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        Path, Query, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::broadcast,
    task::{JoinHandle, JoinSet},
};

/// What it says, by the id of the prompt it was given.
#[derive(Clone)]
pub struct Script {
    /// The frames after a prompt was taken, before the one that says that it is over.
    pub frames: fn(&str) -> Vec<Message>,
    /// The answer to `/history/{id}`.
    pub history: fn(&str) -> Body,
    /// The answer to `/view`.
    pub view: fn() -> Response,
    /// The id it says a prompt has.
    pub id: fn(&str) -> String,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            frames: |_| Vec::new(),
            history: |id| success(id, &json!({"9": {"images": [file("a.png", "", "output")]}})).into(),
            view: || "bytes".into_response(),
            id: str::to_owned,
        }
    }
}

/// A file as a node reports it.
pub fn file(filename: &str, subfolder: &str, kind: &str) -> Value {
    json!({"filename": filename, "subfolder": subfolder, "type": kind})
}

/// The history of a prompt that ended well with these outputs.
pub fn success(id: &str, outputs: &Value) -> String {
    let status =
        json!({"status_str": "success", "completed": true, "messages": [["execution_success", {"prompt_id": id}]]});
    json!({id: {"prompt": [0, id, {}, {}, []], "outputs": outputs, "status": status}}).to_string()
}

/// It, until it is dropped.
pub struct Impostor {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    script: Mutex<Script>,
    frames: broadcast::Sender<Message>,
    viewed: Mutex<Vec<String>>,
    sockets: Mutex<JoinSet<()>>,
}

impl Impostor {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::default(),
            frames: broadcast::channel(1 << 20).0,
            viewed: Mutex::default(),
            sockets: Mutex::default(),
        });
        let app = Router::new()
            .route("/prompt", get(async || Json(json!({"exec_info": {"queue_remaining": 0}}))).post(prompt))
            .route("/ws", any(socket))
            .route("/queue", get(async || Json(json!({"queue_running": [], "queue_pending": []}))).post(async || ()))
            .route("/interrupt", post(async || ()))
            .route("/free", post(async || ()))
            .route("/history", get(async || Json(json!({}))).post(async || ()))
            .route("/history/{id}", get(history))
            .route("/view", get(view))
            .with_state(shared.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared, server }
    }

    pub fn says(&self, script: Script) {
        *self.shared.script.lock().unwrap() = script;
    }

    /// The names of the files it was asked for.
    pub fn viewed(&self) -> Vec<String> {
        self.shared.viewed.lock().unwrap().clone()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.server.abort();
        self.shared.sockets.lock().unwrap().abort_all();
    }
}

fn text(kind: &str, data: &Value) -> Message {
    Message::Text(json!({"type": kind, "data": data}).to_string().into())
}

fn status() -> Message {
    text("status", &json!({"status": {"exec_info": {"queue_remaining": 0}}}))
}

async fn prompt(State(shared): State<Arc<Shared>>, Json(body): Json<Value>) -> Json<Value> {
    let id = body["prompt_id"].as_str().unwrap();
    let Script { frames, id: named, .. } = shared.script.lock().unwrap().clone();
    let over = text("executing", &json!({"node": null, "prompt_id": id}));
    for message in [status()].into_iter().chain(frames(id)).chain([over]) {
        // Nobody may be listening.
        let _ = shared.frames.send(message);
    }
    Json(json!({"prompt_id": named(id), "number": 1, "node_errors": {}}))
}

async fn socket(State(shared): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let frames = shared.frames.subscribe();
        shared.sockets.lock().unwrap().spawn(serve(socket, frames));
    })
}

async fn serve(mut socket: WebSocket, mut frames: broadcast::Receiver<Message>) {
    if socket.send(status()).await.is_err() {
        return;
    }
    loop {
        let sent = tokio::select! {
            Ok(message) = frames.recv() => socket.send(message).await,
            Some(Ok(_)) = socket.recv() => Ok(()),
            else => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn history(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Body {
    let history = shared.script.lock().unwrap().history;
    history(&id)
}

async fn view(State(shared): State<Arc<Shared>>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let name = query.into_iter().find(|(name, _)| name == "filename").map(|(_, value)| value);
    shared.viewed.lock().unwrap().extend(name);
    let view = shared.script.lock().unwrap().view;
    view()
}
