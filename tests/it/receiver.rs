//! Somebody who is told of tasks: an HTTP server that keeps what it hears, checks who sent it, and answers as it is told to.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::Value;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

use crate::support::{Builder, PATIENCE};

/// What it shares with who sends.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A message that came.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The path and what is behind it.
    pub uri: String,
    /// Its `webhook-id`.
    pub id: String,
    /// What it says.
    pub message: Value,
}

impl Heard {
    pub fn kind(&self) -> &str {
        self.message["type"].as_str().unwrap()
    }

    pub fn task(&self) -> &str {
        self.message["data"]["task_id"].as_str().unwrap()
    }

    /// The number in its id.
    pub fn number(&self) -> i64 {
        self.id.rsplit_once('_').unwrap().1.parse().unwrap()
    }
}

type Mood = Box<dyn Fn(&Heard) -> Response + Send>;

struct Inner {
    heard: Mutex<Vec<Heard>>,
    mood: Mutex<Mood>,
    came: Notify,
}

/// The receiver. It ends with its test.
pub struct Receiver {
    port: u16,
    inner: Arc<Inner>,
    server: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Receiver {
    /// One that takes everything.
    pub async fn start() -> Self {
        let inner = Arc::new(Inner {
            heard: Mutex::default(),
            mood: Mutex::new(Box::new(|_| StatusCode::NO_CONTENT.into_response())),
            came: Notify::new(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let app = Router::new().fallback(hear).with_state(inner.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, inner, server }
    }

    /// From now on it answers like this.
    pub fn answers<R: IntoResponse>(&self, mood: impl Fn(&Heard) -> R + Send + 'static) {
        *self.inner.mood.lock().unwrap() = Box::new(move |heard| mood(heard).into_response());
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// What a service needs to be allowed to speak to it, and how it signs.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        [
            ("OUTBOUND_ALLOW_PRIVATE", "127.0.0.0/8".to_owned()),
            ("COMFYD_OUTBOUND__HTTP", "true".to_owned()),
            ("COMFYD_OUTBOUND__PORTS", self.port.to_string()),
            ("WEBHOOK_SECRETS", SECRET.to_owned()),
        ]
    }

    /// A world that may speak to it.
    pub fn heard_from(&self, world: Builder) -> Builder {
        self.settings().into_iter().fold(world, |world, (name, value)| world.with(name, &value))
    }

    /// Everything it heard so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.inner.heard.lock().unwrap().clone()
    }

    /// Waits until what it heard is enough.
    pub async fn until(&self, enough: impl Fn(&[Heard]) -> bool) -> Vec<Heard> {
        let waiting = async {
            loop {
                let came = self.inner.came.notified();
                let heard = self.heard();
                if enough(&heard) {
                    return heard;
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("only {:#?}", self.heard()))
    }

    /// Waits until it heard so many different messages.
    pub async fn different(&self, messages: usize) -> Vec<Heard> {
        self.until(|heard| heard.iter().map(|heard| &heard.id).collect::<BTreeSet<_>>().len() >= messages).await
    }
}

async fn hear(State(inner): State<Arc<Inner>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let (id, timestamp, signatures) = (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"));
    assert!(is_signed(SECRET, &id, &timestamp, &body, &signatures), "{signatures}");
    let heard = Heard { uri: uri.to_string(), id, message: serde_json::from_slice(&body).unwrap() };
    let answer = (inner.mood.lock().unwrap())(&heard);
    inner.heard.lock().unwrap().push(heard);
    inner.came.notify_waiters();
    answer
}

/// Whether one of the signatures was made with the secret.
pub fn is_signed(secret: &str, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    let is_it = |signature: &str| {
        let signature = signature.strip_prefix("v1,").and_then(|signature| STANDARD.decode(signature).ok());
        signature.is_some_and(|signature| hmac::verify(&key, &signed, &signature).is_ok())
    };
    signatures.split(' ').any(is_it)
}
