//! A proxy that passes everything on, notes it, and breaks on command.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, HeaderName, Method, Request, Response, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rand::RngExt;
use reqwest::{Client, redirect};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

/// How the server behind it words its errors.
#[derive(Debug, Clone, Copy)]
pub enum Dialect {
    /// S3 and Google.
    Xml,
    /// Cloudflare.
    Json,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// It is answered like this, and goes no further.
    Answer(u16, &'static str),
    /// The connection ends before it gets anywhere.
    Cut,
    /// It is done, and the connection ends before the answer.
    Lose,
    /// A byte of its body is another one when it arrives.
    Damage,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    /// With its query.
    pub path: String,
    pub headers: HeaderMap,
    pub bytes: usize,
}

type Matcher = fn(&Seen) -> bool;

#[derive(Default)]
struct Script {
    faults: VecDeque<(Matcher, Trouble)>,
    /// So many of a hundred are answered 500 or 503.
    failing: u32,
    /// All of them get this.
    always: Option<Trouble>,
    seen: Vec<Seen>,
}

struct Inner {
    upstream: String,
    dialect: Dialect,
    client: Client,
    script: Mutex<Script>,
}

pub struct Proxy {
    address: SocketAddr,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(upstream: &str, dialect: Dialect) -> Self {
        comfyd::tls::install_crypto_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
        let inner = Arc::new(Inner { upstream: upstream.to_owned(), dialect, client, script: Mutex::default() });
        let serving = tokio::spawn(serve(listener, inner.clone()));
        Self { address, inner, serving }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests that match get this, each fault once, in this order.
    pub fn inject(&self, times: usize, matcher: Matcher, trouble: Trouble) {
        self.inner.script.lock().unwrap().faults.extend(std::iter::repeat_n((matcher, trouble), times));
    }

    /// Every request gets this from now on; or none.
    pub fn always(&self, trouble: Option<Trouble>) {
        self.inner.script.lock().unwrap().always = trouble;
    }

    /// So many of a hundred requests fail from now on.
    pub fn fail(&self, percent: u32) {
        self.inner.script.lock().unwrap().failing = percent;
    }

    /// Faults that met no request yet.
    pub fn unused(&self) -> usize {
        self.inner.script.lock().unwrap().faults.len()
    }

    /// What came so far.
    pub fn seen(&self, matcher: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        self.inner.script.lock().unwrap().seen.iter().filter(|seen| matcher(seen)).cloned().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    while let Ok((stream, _)) = listener.accept().await {
        let inner = inner.clone();
        let service = service_fn(move |request| {
            let inner = inner.clone();
            async move { inner.answer(request).await }
        });
        tokio::spawn(async move {
            // An error of the service ends the connection, which is all we want of one.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The connection ends here.
type Ended = std::io::Error;

fn ended() -> Ended {
    Ended::other("on command")
}

impl Inner {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Ended> {
        let (parts, body) = request.into_parts();
        let mut body = to_bytes(Body::new(body), usize::MAX).await.map_err(|_| ended())?;
        let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let seen = Seen { method: parts.method, path, headers: parts.headers, bytes: body.len() };
        let trouble = self.note(&seen);
        match trouble {
            Some(Trouble::Cut) => return Err(ended()),
            Some(Trouble::Answer(status, code)) => return Ok(self.refuse(status, code)),
            Some(Trouble::Damage) => {
                let mut bytes = body.to_vec();
                // Somewhere in the middle, so that a form around it stays one.
                let at = bytes.len() / 2;
                bytes[at] ^= 0x55;
                body = bytes.into();
            }
            Some(Trouble::Lose) | None => {}
        }
        let answer = self.pass(&seen, body).await?;
        if matches!(trouble, Some(Trouble::Lose)) { Err(ended()) } else { Ok(answer) }
    }

    fn note(&self, seen: &Seen) -> Option<Trouble> {
        let mut script = self.script.lock().unwrap();
        script.seen.push(seen.clone());
        if script.always.is_some() {
            return script.always;
        }
        if rand::rng().random_range(0..100) < script.failing {
            return Some(if rand::random() {
                Trouble::Answer(500, "InternalError")
            } else {
                Trouble::Answer(503, "SlowDown")
            });
        }
        let at = script.faults.iter().position(|(matcher, _)| matcher(seen))?;
        script.faults.remove(at).map(|(_, trouble)| trouble)
    }

    fn refuse(&self, status: u16, code: &str) -> Response<Body> {
        let body = match self.dialect {
            Dialect::Xml => {
                format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on command</Message></Error>")
            }
            Dialect::Json => format!(
                "{{\"success\": false, \"errors\": [{{\"code\": 1, \"message\": \"{code}\"}}], \"messages\": [], \"result\": null}}"
            ),
        };
        Response::builder().status(status).body(Body::from(body)).unwrap()
    }

    async fn pass(&self, seen: &Seen, body: Bytes) -> Result<Response<Body>, Ended> {
        let mut headers = seen.headers.clone();
        headers.remove(header::HOST);
        // What Google calls it: the server behind knows S3's word only.
        if headers.remove("x-goog-if-generation-match").is_some_and(|generation| generation == "0") {
            headers.insert(header::IF_NONE_MATCH, "*".parse().unwrap());
        }
        // The server behind does not look at it.
        let hash = || Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if headers.get("x-amz-content-sha256").is_some_and(|told| told.len() == 64 && *told != *hash()) {
            return Ok(self.refuse(400, "XAmzContentSHA256Mismatch"));
        }
        let url = format!("{}{}", self.upstream, seen.path);
        let answer = self.client.request(seen.method.clone(), url).headers(headers).body(body).send().await;
        let answer = answer.map_err(|_| ended())?;
        let mut response = Response::builder().status(answer.status());
        let hop = |name: &HeaderName| *name == header::TRANSFER_ENCODING || *name == header::CONNECTION;
        for (name, value) in answer.headers().iter().filter(|(name, _)| !hop(name)) {
            response = response.header(name, value);
        }
        let body = answer.bytes().await.map_err(|_| ended())?;
        Ok(response.body(Body::from(body)).unwrap())
    }
}
