//! The connection to the API: one client for everything a consumer asks, and the ear that waits for what happens.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::BytesMut;
use comfyd_actors::{
    domain::retry::Backoff,
    ports::{
        fetcher::FetchError,
        object_store::ObjectError,
        store::{Changed, Pause, StoreError},
        wire::Notice,
    },
    targets::Target,
};
use futures_util::StreamExt;
use reqwest::{RequestBuilder, Response, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::broadcast;
use tracing::{info, warn};

use super::protocol::{Cursor, HEARING, Heard, Listen, VERSION, VERSION_HEADER};
use crate::{
    config::values::{Secret, SecretUrl},
    describe::describe,
    tls,
};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for an answer, or another piece of one: above a slow commit. The deadline of the leases is later.
const ANSWER: Duration = Duration::from_secs(15);
/// Longest answer: graphs of a claim for a whole machine.
const LONGEST: usize = 256 << 20;
/// Between two attempts to hear something.
const PAUSE: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
/// Things that a slow listener may be behind.
const KEPT: usize = 4096;

/// The API as a consumer sees it. Clones are made of the `Arc` around it.
pub struct ApiClient {
    http: reqwest::Client,
    base: String,
    token: Option<Secret>,
    pub(super) changes: broadcast::Sender<Changed>,
    pub(super) heard: broadcast::Sender<Arc<Notice>>,
    /// The targets this consumer can reach itself.
    pub(super) own: BTreeMap<String, Target>,
    /// What the API said last is the target of tasks that do not say.
    pub(super) usual: Mutex<String>,
}

/// The API did not do what was asked, or nobody knows whether it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Away(pub(super) String);

impl From<Away> for StoreError {
    fn from(Away(why): Away) -> Self {
        Self::Unavailable(why)
    }
}

impl From<Away> for ObjectError {
    fn from(Away(why): Away) -> Self {
        Self::Unavailable(why)
    }
}

impl From<Away> for FetchError {
    fn from(Away(why): Away) -> Self {
        Self::Storage(why)
    }
}

impl ApiClient {
    /// Speaks to the API at `url`. Nothing is asked yet.
    ///
    /// # Errors
    /// When there is no TLS.
    pub fn new(url: &SecretUrl, token: Option<Secret>, own: BTreeMap<String, Target>) -> reqwest::Result<Arc<Self>> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls::client_config()).clone())
            .connect_timeout(CONNECT)
            .read_timeout(HEARING + ANSWER)
            .tcp_nodelay(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let usual = Mutex::default();
        let (changes, heard) = (broadcast::Sender::new(KEPT), broadcast::Sender::new(KEPT));
        Ok(Arc::new(Self { http, base: url.expose().to_owned(), token, changes, heard, own, usual }))
    }

    /// Asks for something small, as any consumer does; the answer's `Date`.
    ///
    /// # Errors
    /// Why this consumer can do nothing with what is there, in words.
    pub async fn greet(&self) -> Result<Option<String>, String> {
        let asked = self.post("pauses", &()).timeout(ANSWER);
        let answer = self.send(asked).await.map_err(|Away(why)| why)?;
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        let paused: Result<Vec<Pause>, StoreError> = read(answer).await.map_err(|Away(why)| why)?;
        paused.map(|_| date).map_err(|error| format!("the API cannot reach its tasks: {error}"))
    }

    /// Waits for what happens, for ever, and tells it to those who listen here.
    pub async fn listen(self: Arc<Self>) {
        let (mut after, mut failures): (Option<Cursor>, u32) = (None, 0);
        loop {
            match self.hear(after).await {
                Ok(heard) => {
                    if std::mem::take(&mut failures) > 0 {
                        info!("the API is back");
                    }
                    after = Some(heard.cursor);
                    self.pass_on(heard);
                }
                Err(Away(why)) => {
                    failures += 1;
                    // Once per outage: whoever reads the log wants to know that it began.
                    if failures == 1 {
                        warn!(
                            why,
                            "the API cannot be reached: what runs goes on, and leases hold until their deadline"
                        );
                    }
                    tokio::time::sleep(PAUSE.delay_at_least_half(failures, rand::random())).await;
                }
            }
        }
    }

    async fn hear(&self, after: Option<Cursor>) -> Result<Heard, Away> {
        let asked = self.post("listen", &Listen { after }).timeout(HEARING + ANSWER);
        self.answer::<Result<Heard, StoreError>>(asked).await?.map_err(|error| Away(error.to_string()))
    }

    fn pass_on(&self, Heard { changes, notices, .. }: Heard) {
        for changed in changes {
            // Nobody listening is no fault.
            let _ = self.changes.send(Changed { here: false, ..changed });
        }
        for notice in notices.into_iter().filter_map(super::protocol::Posted::read) {
            let _ = self.heard.send(Arc::new(notice));
        }
    }

    /// Asks something, and brings the answer.
    pub(super) async fn call<T, E>(&self, verb: &str, ask: &impl Serialize) -> Result<T, E>
    where
        T: DeserializeOwned,
        E: DeserializeOwned + From<Away>,
    {
        self.answer::<Result<T, E>>(self.post(verb, ask).timeout(ANSWER)).await?
    }

    /// As [`Self::call`], for what may take long.
    pub(super) async fn call_slowly<T, E>(&self, verb: &str, ask: &impl Serialize, limit: Duration) -> Result<T, E>
    where
        T: DeserializeOwned,
        E: DeserializeOwned + From<Away>,
    {
        self.answer::<Result<T, E>>(self.post(verb, ask).timeout(limit)).await?
    }

    fn post(&self, verb: &str, ask: &impl Serialize) -> RequestBuilder {
        self.signed(self.http.post(self.url(verb))).json(ask)
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.signed(self.http.get(self.url(path)))
    }

    pub(super) fn put(&self, path: &str) -> RequestBuilder {
        self.signed(self.http.put(self.url(path)))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/consumer/{path}", self.base)
    }

    fn signed(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.header(VERSION_HEADER, VERSION);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Sends a request and reads what comes.
    pub(super) async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Away> {
        read(self.send(request).await?).await
    }

    /// Sends a request; an answer that is none of the protocol's is a failure.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Away> {
        let sent = request.send().await;
        let answer = sent.map_err(|error| Away(format!("the API does not answer: {}", describe(error))))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        Err(Away(refusal(status, answer).await))
    }
}

/// Reads what the API answered.
async fn read<T: DeserializeOwned>(answer: Response) -> Result<T, Away> {
    let mut whole = BytesMut::new();
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Away(format!("the API's answer broke off: {}", describe(error))))?;
        if whole.len() + chunk.len() > LONGEST {
            return Err(Away(format!("the API's answer is longer than {LONGEST} bytes")));
        }
        whole.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&whole).map_err(|error| Away(format!("the API's answer is not understood: {error}")))
}

/// What the API says about a request it does not take.
async fn refusal(status: StatusCode, answer: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Told {
        detail: String,
    }
    let told: Option<Told> = match answer.content_length() {
        // Problems are short; what comes from a proxy need not be.
        Some(length) if length <= 64 << 10 => answer.json().await.ok(),
        _ => None,
    };
    told.map_or_else(
        || format!("the API answered {status}"),
        |told| format!("the API answered {status}: {}", told.detail),
    )
}
