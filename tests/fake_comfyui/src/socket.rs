//! The WebSocket side: who is connected, who gets which frame, and the task of one socket.
//!
//! The odd rules are ComfyUI's own. The newest socket of a client id gets everything. When *any* socket of that id closes, the id
//! is forgotten, so a newer socket goes deaf: it stays open, answers pings and never gets another frame.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::ws::{Message, WebSocket};
use futures_util::SinkExt;
use serde_json::Value as Json;
use tokio::sync::mpsc;

use crate::fault::{Breakage, Fault};
use crate::frames::{self, Preview};
use crate::log::EventKind;
use crate::net::{Link, Mode};
use crate::server::Server;

/// Bytes that may wait for one reader before its connection is cut. ComfyUI has no such limit (one slow reader stalls everybody);
/// a fake that eats all memory helps no test.
const BACKLOG_LIMIT: usize = 256 * 1024 * 1024;
/// Frames taken from the queue at once, to be flushed together.
const BATCH: usize = 64;
/// More than any reader takes: comfyd's limit is 64 MiB.
const HUGE: usize = 65 << 20;

#[derive(Debug, Clone)]
struct Outlet {
    frames: mpsc::UnboundedSender<Message>,
    backlog: Arc<AtomicUsize>,
    link: Option<Link>,
    /// Whether the client negotiated previews with metadata.
    metadata: bool,
}

impl Outlet {
    fn send(&self, message: Message) {
        let size = size(&message);
        if self.backlog.fetch_add(size, Ordering::Relaxed) + size > BACKLOG_LIMIT {
            if let Some(link) = &self.link {
                link.set(Mode::Closed);
            }
            return;
        }
        // A closed receiver is a socket that has just ended; its frames are lost, as with any closed connection.
        let _ = self.frames.send(message);
    }
}

fn size(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(bytes) => bytes.len(),
        _ => 0,
    }
}

/// The registered sockets, by client id.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    outlets: Mutex<HashMap<String, Outlet>>,
}

impl Hub {
    pub fn to_all(&self, text: String) {
        let outlets = self.lock();
        let message = Message::Text(text.into());
        outlets.values().for_each(|outlet| outlet.send(message.clone()));
    }

    /// To the owner, if it is connected now; lost otherwise, and for a prompt without owner.
    pub fn to_owner(&self, client: Option<&str>, make: impl FnOnce() -> String) {
        if let Some(outlet) = client.and_then(|client| self.lock().get(client).cloned()) {
            outlet.send(Message::Text(make().into()));
        }
    }

    /// To the owner, or to everybody when the prompt has none.
    pub fn to_owner_or_all(&self, client: Option<&str>, make: impl FnOnce() -> String) {
        self.send_each(client, || Message::Text(make().into()));
    }

    /// A binary text frame, to the owner or to everybody.
    pub fn progress_text(&self, client: Option<&str>, node: &str, text: &str) {
        self.send_each(client, || Message::Binary(frames::progress_text(node, text)));
    }

    /// The frames of one step of a node: state, progress and perhaps a preview, whose kind and place depend on what the client
    /// negotiated.
    pub fn step(
        &self,
        client: Option<&str>,
        ids: (&str, &str),
        state: String,
        progress: String,
        preview: Option<&Preview>,
    ) {
        let (prompt_id, node) = ids;
        let state = Message::Text(state.into());
        let progress = Message::Text(progress.into());
        for outlet in self.targets(client) {
            outlet.send(state.clone());
            match preview {
                // Only the owner's negotiation counts: without an owner everybody gets the plain form.
                Some(preview) if outlet.metadata && client.is_some() => {
                    outlet.send(Message::Binary(preview.with_metadata(prompt_id, node)));
                    outlet.send(progress.clone());
                }
                Some(preview) => {
                    outlet.send(progress.clone());
                    outlet.send(Message::Binary(preview.plain()));
                }
                None => outlet.send(progress.clone()),
            }
        }
    }

    /// Whether a frame for this owner would reach anybody.
    pub fn reaches(&self, client: Option<&str>) -> bool {
        let outlets = self.lock();
        client.map_or(!outlets.is_empty(), |client| outlets.contains_key(client))
    }

    /// Forgets every socket without closing it.
    pub fn forget_all(&self) {
        self.lock().clear();
    }

    fn targets(&self, client: Option<&str>) -> Vec<Outlet> {
        let outlets = self.lock();
        match client {
            Some(client) => outlets.get(client).cloned().into_iter().collect(),
            None => outlets.values().cloned().collect(),
        }
    }

    fn send_each(&self, client: Option<&str>, make: impl FnOnce() -> Message) {
        let targets = self.targets(client);
        if !targets.is_empty() {
            let message = make();
            targets.iter().for_each(|outlet| outlet.send(message.clone()));
        }
    }

    fn negotiate(&self, client: &str, metadata: bool) {
        if let Some(outlet) = self.lock().get_mut(client) {
            outlet.metadata = metadata;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Outlet>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one socket until it ends.
pub(crate) async fn serve(server: Arc<Server>, socket: WebSocket, client_id: String, link: Option<Link>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let outlet = Outlet { frames: sender, backlog: Arc::default(), link, metadata: false };
    greet(&server, &outlet, &client_id);
    server.log.push(EventKind::SocketOpened { client_id: client_id.clone() });
    converse(&server, socket, &client_id, receiver, &outlet).await;
    // Whoever is registered under the id now, perhaps a newer socket, is forgotten: this is what makes twins deaf.
    server.hub.lock().remove(&client_id);
    server.log.push(EventKind::SocketClosed { client_id });
}

/// Registers the socket and queues its first frames, with nothing in between.
fn greet(server: &Server, outlet: &Outlet, client_id: &str) {
    let jobs = server.jobs();
    let mut outlets = server.hub.lock();
    outlet.send(Message::Text(frames::status(jobs.remaining(), Some(client_id)).into()));
    let own = jobs.running.as_ref().filter(|running| running.prompt.client_id.as_deref() == Some(client_id));
    if let Some(node) = own.and_then(|running| running.node.as_deref()) {
        outlet.send(Message::Text(frames::executing_on_reconnect(node).into()));
    }
    outlets.insert(client_id.to_owned(), outlet.clone());
}

async fn converse(
    server: &Server,
    mut socket: WebSocket,
    client_id: &str,
    mut frames: mpsc::UnboundedReceiver<Message>,
    outlet: &Outlet,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut first_text = true;
    let mut deaf = false;
    loop {
        tokio::select! {
            count = frames.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return;
                }
                outlet.backlog.fetch_sub(batch.iter().map(size).sum(), Ordering::Relaxed);
                if server.faults.holds(&Fault::Silence) {
                    batch.clear();
                    continue;
                }
                for message in batch.drain(..) {
                    let message = match server.faults.breakage() {
                        None if deaf => continue,
                        None => message,
                        Some(how) => {
                            // What came before must not be lost with the socket.
                            if socket.flush().await.is_err() {
                                return;
                            }
                            deaf |= how == Breakage::Deaf;
                            let Some(instead) = breaking(server, outlet, how, message) else { continue };
                            instead
                        }
                    };
                    if socket.feed(message).await.is_err() {
                        return;
                    }
                }
                if socket.flush().await.is_err() {
                    return;
                }
            }
            received = socket.recv() => match received {
                Some(Ok(Message::Text(text))) => {
                    if std::mem::take(&mut first_text) {
                        negotiate(server, client_id, &text, outlet);
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                // Pings are answered below us; everything else means nothing to ComfyUI.
                Some(Ok(_)) => {}
            },
        }
    }
}

/// Breaks a socket; what is sent on it instead of the message.
fn breaking(server: &Server, outlet: &Outlet, how: Breakage, message: Message) -> Option<Message> {
    let set = |mode| outlet.link.iter().for_each(|link| link.set(mode));
    match how {
        Breakage::Close => set(Mode::Closed),
        Breakage::Reset => set(Mode::Reset),
        Breakage::HalfOpen => set(Mode::Frozen),
        Breakage::Deaf => {
            server.hub.forget_all();
            return None;
        }
        Breakage::Truncated => outlet.link.iter().for_each(|link| link.close_after(size(&message) as u64 / 2)),
        Breakage::Garbage => return Some(Message::Binary(vec![0xff; 64].into())),
        Breakage::Huge => return Some(Message::Binary(vec![0; HUGE].into())),
    }
    Some(message)
}

/// Feature flags count only in the very first text frame.
fn negotiate(server: &Server, client_id: &str, text: &str, outlet: &Outlet) {
    let Ok(message) = serde_json::from_str::<Json>(text) else {
        return;
    };
    if message.get("type").and_then(Json::as_str) != Some("feature_flags") {
        return;
    }
    let metadata = message.pointer("/data/supports_preview_metadata").and_then(Json::as_bool).unwrap_or(false);
    server.hub.negotiate(client_id, metadata);
    outlet.send(Message::Text(frames::text("feature_flags", &server.features()).into()));
    server.log.push(EventKind::FlagsNegotiated { client_id: client_id.to_owned() });
}
