//! `POST /prompt` and `GET /prompt`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use super::{Shared, json, read_body, trouble};
use crate::config::Generation;
use crate::fault::Fault;
use crate::graph::validate::{float, validate};
use crate::graph::{Graph, GraphError, Members};
use crate::log::{EventKind, wall_ms};
use crate::net::Peer;
use crate::queue::{Number, Prompt};
use crate::server::Server;

pub(super) async fn remaining(State(server): Shared) -> Response {
    let remaining = server.jobs().remaining();
    json(StatusCode::OK, &json!({"exec_info": {"queue_remaining": remaining}}))
}

pub(super) async fn submit(State(server): Shared, ConnectInfo(peer): ConnectInfo<Peer>, body: Body) -> Response {
    let body = match read_body(&server, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    server.log.push(EventKind::PostArrived);
    if server.faults.strikes(&Fault::PostFails) {
        return trouble();
    }
    let held = server.faults.strike(|fault| match fault {
        Fault::PostHeld { delay } => Some(*delay),
        _ => None,
    });
    let answer = match held {
        Some(delay) => decide_later(server.clone(), body, delay).await,
        None => decide(&server, &body),
    };
    let answer = match answer {
        Answer::Accepted(response) => response,
        Answer::Refused(response) => return response,
    };
    after_accept(&server, &peer, answer).await
}

/// Decides after a delay, in a task of its own: it happens even if the client hangs up meanwhile.
async fn decide_later(server: Arc<Server>, body: Bytes, delay: Duration) -> Answer {
    let decided = tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        decide(&server, &body)
    });
    decided.await.unwrap_or_else(|_| Answer::Refused(trouble()))
}

/// The faults between acceptance and answer.
async fn after_accept(server: &Server, peer: &Peer, answer: Response) -> Response {
    let delay = server.faults.strike(|fault| match fault {
        Fault::PostDelayed { delay } => Some(*delay),
        _ => None,
    });
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    if server.faults.strikes(&Fault::PostLost) {
        peer.cut();
    }
    if server.faults.strikes(&Fault::PostFailsAfterAccept) {
        return trouble();
    }
    answer
}

enum Answer {
    Accepted(Response),
    Refused(Response),
}

/// A 400 with the error and the node errors.
struct Refusal {
    kind: &'static str,
    message: String,
    details: String,
    extra_info: Json,
    node_errors: Map<String, Json>,
}

impl Refusal {
    fn new(kind: &'static str, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: details.into(), extra_info: json!({}), node_errors: Map::new() }
    }

    fn into_response(self) -> Response {
        let error = json!({
            "type": self.kind,
            "message": self.message,
            "details": self.details,
            "extra_info": self.extra_info,
        });
        json(StatusCode::BAD_REQUEST, &json!({"error": error, "node_errors": self.node_errors}))
    }
}

/// Why a request was not taken.
enum Rejection {
    /// With an explanation.
    Refused(Box<Refusal>),
    /// ComfyUI stumbled: 500 without a word.
    Stumbled,
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

fn decide(server: &Server, body: &[u8]) -> Answer {
    match prepare(server, body) {
        Ok((prompt, node_errors)) => {
            let answer = json!({"prompt_id": prompt.id, "number": prompt.number, "node_errors": node_errors});
            if server.submit(prompt) {
                Answer::Accepted(json(StatusCode::OK, &answer))
            } else {
                Answer::Accepted(trouble())
            }
        }
        Err(Rejection::Stumbled) => Answer::Refused(trouble()),
        Err(Rejection::Refused(refusal)) => Answer::Refused(refusal.into_response()),
    }
}

/// Reads and checks a request, in ComfyUI's order of checks.
fn prepare(server: &Server, body: &[u8]) -> Result<(Prompt, Map<String, Json>), Rejection> {
    let no_prompt = || Refusal::new("no_prompt", "No prompt provided", "No prompt provided");
    let value: &RawValue = serde_json::from_slice(body).map_err(|_| Rejection::Stumbled)?;
    let request: Members = match value.get().trim_start().as_bytes().first() {
        Some(b'{') => serde_json::from_str(value.get()).map_err(|_| Rejection::Stumbled)?,
        // `"number" in [..]` works in Python, so a list or a string has no prompt but does count.
        Some(b'[' | b'"') => Members::default(),
        _ => return Err(Rejection::Stumbled),
    };
    let number = number(server, &request)?;
    let Some(text) = request.get("prompt") else {
        return Err(no_prompt().into());
    };
    let id = prompt_id(server.generation(), &request)?;
    let refused = |refusal: Refusal| {
        let client_id = client_id(&request);
        server.log.push(EventKind::Posted { prompt_id: id.clone(), client_id, task: task(&request), accepted: false });
        Rejection::from(refusal)
    };
    if server.faults.strikes(&Fault::PostRefused) {
        return Err(refused(Refusal::new("prompt_outputs_failed_validation", "Prompt outputs failed validation", "")));
    }

    let graph =
        Graph::parse(text, !server.generation().has_jobs_api(), server.installed()).map_err(|error| match error {
            GraphError::Shape => Rejection::Stumbled,
            GraphError::UnknownClass { node_id, class_type, title } => {
                refused(unknown_class(server.generation(), &node_id, class_type, title))
            }
        })?;
    let outputs = wanted_outputs(&graph, &request)?;
    if outputs.is_empty() {
        return Err(refused(Refusal::new("prompt_no_outputs", "Prompt has no outputs", "")));
    }
    let mut verdict = validate(&graph, &outputs, &server.lists(), server.generation());
    if verdict.outputs.is_empty() {
        let message = "Prompt outputs failed validation";
        let mut refusal = Refusal::new("prompt_outputs_failed_validation", message, verdict.details);
        refusal.node_errors = verdict.node_errors;
        return Err(refused(refusal));
    }
    if server.faults.strikes(&Fault::PartialAcceptance)
        && let Some(blamed) = verdict.outputs.pop()
    {
        let node = &graph.nodes[blamed];
        let error = json!({"type": "custom_validation_failed", "message": "Custom validation failed for node",
            "details": "scripted", "extra_info": {}});
        let errors = json!({"errors": [error], "dependent_outputs": [node.id], "class_type": node.class.name});
        verdict.node_errors.insert(node.id.clone(), errors);
    }
    let create_time = wall_ms();
    let extra_data = extra_data(server, &request, create_time)?;
    let prompt = Prompt {
        previews: wants_previews(server, &extra_data),
        client_id: client_id(&request),
        task: task(&request),
        id,
        number,
        text: text.to_owned(),
        extra_data,
        outputs: verdict.outputs,
        create_time,
        graph,
    };
    Ok((prompt, verdict.node_errors))
}

fn number(server: &Server, request: &Members) -> Result<Number, Rejection> {
    match request.value("number") {
        Some(number) => float(&number).map(Number::Given).ok_or(Rejection::Stumbled),
        None => {
            let front = request.value("front").is_some_and(|front| front.as_bool().unwrap_or(!front.is_null()));
            Ok(server.jobs().count(front))
        }
    }
}

fn prompt_id(generation: Generation, request: &Members) -> Result<String, Rejection> {
    let given = request.value("prompt_id").filter(|given| !given.is_null());
    let Some(given) = given.filter(|_| generation != Generation::IgnoresPromptId) else {
        return Ok(Uuid::new_v4().to_string());
    };
    let text = given.as_str().map_or_else(|| given.to_string(), str::to_owned);
    if generation == Generation::V0_3_64 {
        return Ok(text);
    }
    let canonical = Uuid::try_parse(&text).is_ok_and(|uuid| uuid.to_string() == text);
    if given.is_string() && canonical {
        return Ok(text);
    }
    Err(Refusal::new(
        "invalid_prompt_id",
        "prompt_id must be a valid UUID",
        "prompt_id must be a UUID string in canonical lowercase hyphenated form; omit it to let the server generate one",
    )
    .into())
}

fn unknown_class(generation: Generation, node_id: &str, class_type: Option<String>, title: Option<String>) -> Refusal {
    let details = format!("Node ID '#{node_id}'");
    if !generation.has_jobs_api() {
        let message = match class_type {
            Some(class) => format!("Cannot execute because node {class} does not exist."),
            None => "Cannot execute because a node is missing the class_type property.".to_owned(),
        };
        return Refusal::new("invalid_prompt", message, details);
    }
    let message = match (&class_type, &title) {
        (Some(class), title) => {
            let name = title.as_ref().unwrap_or(class);
            format!("Node '{name}' not found. The custom node may not be installed.")
        }
        (None, _) => {
            format!(
                "Node 'ID #{node_id}' has no class_type. The workflow may be corrupted or a custom node is missing."
            )
        }
    };
    let extra_info = json!({"node_id": node_id, "class_type": class_type, "node_title": title});
    Refusal { extra_info, ..Refusal::new("missing_node_type", message, details) }
}

/// The output nodes to run: all of them, or those that were asked for.
fn wanted_outputs(graph: &Graph, request: &Members) -> Result<Vec<usize>, Rejection> {
    let targets: Option<Vec<String>> = match request.value("partial_execution_targets") {
        None | Some(Json::Null) => None,
        Some(targets) => Some(serde_json::from_value(targets).map_err(|_| Rejection::Stumbled)?),
    };
    let wanted = |at: &usize| {
        let node = &graph.nodes[*at];
        node.class.output_node && targets.as_ref().is_none_or(|targets| targets.contains(&node.id))
    };
    Ok((0..graph.nodes.len()).filter(wanted).collect())
}

fn client_id(request: &Members) -> Option<String> {
    request.value("client_id")?.as_str().map(str::to_owned)
}

/// The task marker in `extra_data`.
fn task(request: &Members) -> Option<String> {
    let extra: Members = serde_json::from_str(request.get("extra_data")?.get()).ok()?;
    let marker = extra.value("comfyd")?.get("task")?.clone();
    Some(marker.as_str().map_or_else(|| marker.to_string(), str::to_owned))
}

/// `extra_data` as it is stored: without the secrets, with the client and the time.
fn extra_data(server: &Server, request: &Members, create_time: u64) -> Result<Members, Rejection> {
    let mut extra: Members = match request.get("extra_data") {
        Some(raw) => serde_json::from_str(raw.get()).map_err(|_| Rejection::Stumbled)?,
        None => Members::default(),
    };
    extra.0.retain(|(name, _)| !matches!(name.as_str(), "auth_token_comfy_org" | "api_key_comfy_org"));
    if let Some(client) = request.get("client_id") {
        extra.0.push(("client_id".to_owned(), client.to_owned()));
    }
    if server.generation().has_jobs_api()
        && let Ok(time) = to_raw_value(&create_time)
    {
        extra.0.push(("create_time".to_owned(), time));
    }
    Ok(extra)
}

fn wants_previews(server: &Server, extra_data: &Members) -> bool {
    match extra_data.value("preview_method").as_ref().and_then(Json::as_str) {
        Some("none") => false,
        Some("default") | None => server.config.sampler_previews,
        Some(_) => true,
    }
}
