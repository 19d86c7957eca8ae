//! The `ComfyTransport` port: each question to the server, and how its answer is classified.
//!
//! One per server, shared by everything that talks to it; it holds no state but what the server can do. When the server
//! is gone every call fails with `Unavailable` within its time limit, and works again when the server is back.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use async_trait::async_trait;
use comfyd_actors::{
    domain::{
        artifact::FileRef,
        catalogue::Catalogue,
        health::Load,
        id::{BackendId, ClientId, PromptId},
        prompt::{Abilities, Finished, Receipt, Sighting},
    },
    ports::{
        comfy::{ComfyError, ComfyTransport, Download, Signals, Submission, SubmitError, Upload, UploadError, Wanted},
        passthrough::{FromClient, FromServer, Relay, RelayError, Relayed},
    },
};
use reqwest::{Method, StatusCode, header::ACCEPT_ENCODING};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{
    ComfyConfig, ConfigError,
    history::{self, Odd},
    http::{Answer, Fault, Http, fault},
    json::relaxed,
    lookup::{self, Marker},
    refusal, relay, socket, upload, view,
};
use crate::crash_point;

/// How many of the newest history entries are searched for our marker. Each holds a whole graph; when so many are too
/// large to read, fewer are tried.
const SEARCHED: [&str; 4] = ["256", "64", "16", "4"];
/// The oldest version that was seen to interrupt only the prompt it is told (PROTOCOL.md 4 and 14). Some before it do too: they are
/// treated with more care than they need.
const INTERRUPTS_BY_ID: [u32; 3] = [0, 3, 64];

/// One ComfyUI server over HTTP and WebSocket.
pub struct HttpComfy {
    id: BackendId,
    http: Http,
    config: ComfyConfig,
    jobs: Jobs,
    /// Whether an interrupt hits only the prompt it names. Not unless that is known.
    interrupts_by_id: AtomicBool,
}

/// Whether the server has `/api/jobs`, as far as known.
#[derive(Default)]
struct Jobs(AtomicU8);

impl Jobs {
    fn learn(&self, there: bool) {
        self.0.store(if there { 2 } else { 1 }, Ordering::Relaxed);
    }

    /// Unknown counts as possible: asking an old server costs one 404.
    fn possible(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 1
    }
}

impl From<Odd> for ComfyError {
    fn from(odd: Odd) -> Self {
        Self::Unavailable(odd.to_string())
    }
}

/// The body of `POST /prompt`. The graph goes out as the very text that came in.
#[derive(Serialize)]
struct PromptBody<'a> {
    prompt: &'a RawValue,
    prompt_id: &'a PromptId,
    client_id: &'a ClientId,
    extra_data: ExtraData,
}

#[derive(Serialize)]
struct ExtraData {
    comfyd: Marker,
    /// Left out, the server does as it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    preview_method: Option<&'static str>,
}

/// The best the server can do for the model: a small decoder if it has one, else an approximation.
const PREVIEW_METHOD: &str = "auto";

impl HttpComfy {
    /// Prepares to talk to a server. Opens no connection yet.
    ///
    /// # Errors
    /// When the address or a header cannot be used.
    pub fn new(config: ComfyConfig) -> Result<Self, ConfigError> {
        let http = Http::new(&config)?;
        Ok(Self {
            id: http.id(config.machine.as_deref()),
            http,
            config,
            jobs: Jobs::default(),
            interrupts_by_id: AtomicBool::new(false),
        })
    }

    /// Asks `/api/jobs/{id}`. `None` when it has no usable answer: `/queue` and `/history` then decide.
    async fn job(&self, prompt: &PromptId) -> Result<Option<Sighting>, ComfyError> {
        let Answer { status, body } = self.http.get(&["api", "jobs", prompt.as_str()], &[]).await?;
        if status != StatusCode::OK {
            return Ok(None);
        }
        Ok(lookup::job(&relaxed(&body?), prompt).ok())
    }

    /// Looks for our marker among the newest history entries, for servers that run prompts under ids of their own.
    async fn search_history(&self, wanted: &Wanted) -> Result<Option<Finished>, ComfyError> {
        let mut last = Fault::Broken("nothing was asked".to_owned());
        for max_items in SEARCHED {
            match self.http.json(&["history"], &[("max_items", max_items)]).await {
                Ok(text) => return Ok(lookup::in_history(&text, wanted)?),
                Err(fault @ (Fault::TooLarge(_) | Fault::TooMany(_))) => last = fault,
                Err(fault) => return Err(fault.into()),
            }
        }
        Err(last.into())
    }

    /// Whether the server is known to read the id in an interrupt. One that does not tell its version is taken for older.
    async fn is_recent(&self) -> bool {
        let stats =
            self.http.json(&["system_stats"], &[]).await.and_then(|text| {
                serde_json::from_str::<Value>(&text).map_err(|error| Fault::Broken(error.to_string()))
            });
        let version = stats.ok().and_then(|stats| version(stats.pointer("/system/comfyui_version")?.as_str()?));
        version.is_some_and(|version| version >= INTERRUPTS_BY_ID)
    }

    async fn cancel_job(&self, prompt: &PromptId) -> Result<bool, ComfyError> {
        match self.http.tell(&["api", "jobs", prompt.as_str(), "cancel"], &json!({})).await? {
            StatusCode::OK => {
                crash_point::reach("stopped");
                Ok(true)
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            status => Err(refused(status)),
        }
    }
}

#[async_trait]
impl ComfyTransport for HttpComfy {
    fn id(&self) -> &BackendId {
        &self.id
    }

    async fn check(&self) -> Result<Abilities, ComfyError> {
        let text = self.http.json(&["prompt"], &[]).await?;
        if !is_comfyui(&text) {
            return Err(ComfyError::Unavailable("what answers there is not a ComfyUI server".to_owned()));
        }
        // A 200 alone proves nothing: proxies answer any path with their front page.
        let Answer { status, body } = self.http.get(&["api", "jobs"], &[("limit", "1")]).await?;
        let jobs = status == StatusCode::OK && body.is_ok_and(|text| is_job_list(&relaxed(&text)));
        self.jobs.learn(jobs);
        self.interrupts_by_id.store(jobs || self.is_recent().await, Ordering::Relaxed);
        Ok(Abilities { jobs })
    }

    async fn connect(&self, client: &ClientId) -> Result<Signals, ComfyError> {
        let mut url = self.http.url(&["ws"]);
        url.query_pairs_mut().append_pair("clientId", client.as_str());
        let socket = socket::open(url, self.http.headers()).await?;
        Ok(socket::signals(socket, self.config.ping_interval))
    }

    async fn submit(&self, submission: &Submission) -> Result<Receipt, SubmitError> {
        let graph: &RawValue = serde_json::from_str(&submission.graph).map_err(|error| SubmitError::Refused {
            message: format!("the graph is not JSON: {error}"),
            node_id: None,
            class_type: None,
            node_errors: None,
        })?;
        let body = PromptBody {
            prompt: graph,
            prompt_id: &submission.prompt,
            client_id: &submission.client,
            extra_data: ExtraData {
                comfyd: Marker { task: submission.task.0, dispatch: submission.dispatch },
                preview_method: submission.previews.then_some(PREVIEW_METHOD),
            },
        };
        crash_point::reach("post");
        let answer = self.http.post(&["prompt"], &body, self.config.post_timeout).await;
        crash_point::reach("posted");
        match answer {
            Ok(answer) => verdict(answer),
            Err(Fault::NotConnected(why)) => Err(SubmitError::NotSent(why)),
            Err(fault) => Err(SubmitError::Unknown(fault.to_string())),
        }
    }

    /// A 404 of `/api/jobs` is confirmed by the queue and the history: it is cheap, and concluding absence wrongly runs a
    /// prompt twice.
    async fn look(&self, wanted: &Wanted) -> Result<Sighting, ComfyError> {
        if self.jobs.possible()
            && let Some(sighting) = self.job(&wanted.prompt).await?
        {
            return Ok(sighting);
        }
        let queue = self.http.json(&["queue"], &[]).await?;
        if let Some(alive) = lookup::in_queue(&queue, wanted)? {
            return Ok(alive);
        }
        drop(queue);
        if let Some(finished) = self.history(&wanted.prompt).await? {
            return Ok(Sighting::Ended(finished));
        }
        Ok(self.search_history(wanted).await?.map_or(Sighting::Absent, Sighting::Ended))
    }

    async fn history(&self, prompt: &PromptId) -> Result<Option<Finished>, ComfyError> {
        let text = self.http.json(&["history", prompt.as_str()], &[]).await?;
        let finished = history::answer(&text, prompt)?;
        if finished.is_some() {
            crash_point::reach("history-read");
        }
        Ok(finished)
    }

    async fn cancel(&self, prompt: &PromptId) -> Result<(), ComfyError> {
        crash_point::reach("stop");
        if self.jobs.possible() && self.cancel_job(prompt).await? {
            return Ok(());
        }
        self.withdraw(prompt).await?;
        let queue = lookup::neighbours(&self.http.json(&["queue"], &[]).await?, prompt)?;
        // Old builds read no id and interrupt whatever runs by then: what waits behind ours may have begun. Others' work is not put at
        // risk: ours runs to its end for nothing, or until nobody waits behind it. A prompt of ours that is hit goes back to the queue.
        let exact = self.interrupts_by_id.load(Ordering::Relaxed);
        if queue.runs && (exact || !queue.strangers_wait) {
            check_status(self.http.tell(&["interrupt"], &json!({ "prompt_id": prompt })).await?)?;
        }
        Ok(())
    }

    async fn withdraw(&self, prompt: &PromptId) -> Result<(), ComfyError> {
        check_status(self.http.tell(&["queue"], &json!({ "delete": [prompt] })).await?)
    }

    async fn forget(&self, prompts: &[PromptId]) -> Result<(), ComfyError> {
        if prompts.is_empty() {
            return Ok(());
        }
        crash_point::reach("forget");
        check_status(self.http.tell(&["history"], &json!({ "delete": prompts })).await?)
    }

    async fn drop_cache(&self) -> Result<(), ComfyError> {
        let wish = json!({ "unload_models": false, "free_memory": true });
        check_status(self.http.tell(&["free"], &wish).await?)
    }

    async fn free(&self) -> Result<(), ComfyError> {
        let wish = json!({ "unload_models": true, "free_memory": true });
        check_status(self.http.tell(&["free"], &wish).await?)
    }

    async fn load(&self) -> Result<Load, ComfyError> {
        Ok(lookup::load(&self.http.json(&["queue"], &[]).await?)?)
    }

    async fn view(&self, file: &FileRef) -> Result<Download, ComfyError> {
        if !file.is_safe() {
            return Err(ComfyError::NotFound);
        }
        let query = [("filename", &file.filename), ("subfolder", &file.subfolder), ("type", &file.folder_type)];
        let request = self
            .http
            .request(Method::GET, self.http.url(&["view"]))
            .query(&query)
            // A compressed answer would tell the wrong length.
            .header(ACCEPT_ENCODING, "identity");
        let response = tokio::time::timeout(self.config.request_timeout, request.send())
            .await
            .map_err(|_| ComfyError::Unavailable("no answer in time".to_owned()))?
            .map_err(fault)?;
        match response.status() {
            StatusCode::OK => {
                crash_point::reach("view");
                Ok(view::download(response, self.config.view_idle_timeout))
            }
            // 400 is for names it does not take. A 403 can only be a proxy's, as safe names do not leave the folder.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Err(ComfyError::NotFound),
            status => Err(refused(status)),
        }
    }

    /// Read away from the others: some tens of milliseconds of work for a server with many custom nodes.
    async fn object_info(&self) -> Result<Catalogue, ComfyError> {
        let text = self.http.json(&["object_info"], &[]).await?;
        let read = tokio::task::spawn_blocking(move || Catalogue::parse(&text)).await;
        let read = read.unwrap_or_else(|_| Err("reading it failed".to_owned()));
        read.map_err(|reason| ComfyError::Unavailable(format!("its /object_info is not understood: {reason}")))
    }

    async fn upload(&self, file: Upload) -> Result<String, UploadError> {
        crash_point::reach("hand-over");
        let name = upload::upload(&self.http, file, self.config.view_idle_timeout, self.config.request_timeout).await;
        crash_point::reach("handed-over");
        name
    }

    async fn queue(&self) -> Result<Value, ComfyError> {
        as_value(&self.http.json(&["queue"], &[]).await?)
    }

    async fn system_stats(&self) -> Result<Value, ComfyError> {
        as_value(&self.http.json(&["system_stats"], &[]).await?)
    }

    async fn relay(&self, request: Relay) -> Result<Relayed, RelayError> {
        relay::relay(&self.http, request, self.config.relay_idle_timeout).await
    }

    async fn tunnel(&self, request: Relay, from_client: FromClient) -> Result<FromServer, RelayError> {
        let url = self.http.below(&request.target, request.query.as_deref());
        let mut headers = request.headers;
        for name in self.http.headers().keys() {
            headers.remove(name);
        }
        headers.extend(self.http.headers().clone());
        let socket = socket::dial(url, &headers).await?;
        Ok(socket::messages(socket, self.config.ping_interval, from_client))
    }
}

/// Classifies the answer to a prompt. What is not certain is `Unknown`: a 500 does not mean "not queued" (protocol 3).
fn verdict(answer: Answer) -> Result<Receipt, SubmitError> {
    let Answer { status, body } = answer;
    match status {
        StatusCode::OK => body
            .map_err(|fault| SubmitError::Unknown(fault.to_string()))
            .and_then(|text| receipt(&relaxed(&text)).map_err(SubmitError::Unknown)),
        // Whether a proxy that answers "request timeout" passed the request on is anybody's guess.
        StatusCode::REQUEST_TIMEOUT => Err(SubmitError::Unknown(format!("the server answered {status}"))),
        status if status.is_client_error() => {
            let text = body.unwrap_or_default();
            // These are the words of a proxy about us, not of ComfyUI about the graph: no reason to fail the task for good.
            if is_gatekeeper(status) && !refusal::is_verdict(&text) {
                return Err(SubmitError::NotSent(format!("{status} from what guards the server")));
            }
            Err(refusal::read(status.as_u16(), &text))
        }
        StatusCode::INTERNAL_SERVER_ERROR => Err(SubmitError::Failed(format!("it answered {status}"))),
        status => Err(SubmitError::Unknown(format!("the server answered {status}"))),
    }
}

fn is_gatekeeper(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
            | StatusCode::TOO_MANY_REQUESTS
    )
}

pub(super) fn receipt(text: &str) -> Result<Receipt, String> {
    #[derive(Deserialize)]
    struct Taken {
        prompt_id: String,
        node_errors: Option<Value>,
    }
    let taken: Taken = serde_json::from_str(text).map_err(|error| format!("the answer is not a receipt: {error}"))?;
    let prompt = lookup::plain_id(&taken.prompt_id).ok_or("the server gave an unusable prompt id")?;
    let faults = taken.node_errors.as_ref().and_then(Value::as_object).filter(|nodes| !nodes.is_empty());
    Ok(Receipt { prompt, node_errors: faults.map(refusal::faults) })
}

fn is_comfyui(text: &str) -> bool {
    let answer: Option<Value> = serde_json::from_str(text).ok();
    answer.is_some_and(|answer| answer.pointer("/exec_info/queue_remaining").is_some_and(Value::is_u64))
}

/// The first three numbers of a version.
fn version(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-', '+']).map(|part| part.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

fn is_job_list(text: &str) -> bool {
    let answer: Option<Value> = serde_json::from_str(text).ok();
    answer.is_some_and(|answer| answer.get("jobs").is_some_and(Value::is_array))
}

fn as_value(text: &str) -> Result<Value, ComfyError> {
    serde_json::from_str(text).map_err(|error| ComfyError::Unavailable(format!("the answer is not JSON: {error}")))
}

fn check_status(status: StatusCode) -> Result<(), ComfyError> {
    if status.is_success() { Ok(()) } else { Err(refused(status)) }
}

fn refused(status: StatusCode) -> ComfyError {
    ComfyError::Unavailable(format!("the server answered {status}"))
}
