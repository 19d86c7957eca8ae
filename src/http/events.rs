//! Watching tasks: Server-Sent Events, or the same over a WebSocket when the request asks for one.
//!
//! What happened has a number, and a client that comes back with it (`Last-Event-ID`, `after`) loses nothing and sees nothing twice. How
//! far a task is, its previews and its place in the queue have none: only the newest is sent, as often as the client takes it. A client
//! that reads slowly holds up nobody but itself; the connection has no buffer of its own.

mod message;
mod socket;
mod sse;

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path, Query, Request, State, WebSocketUpgrade},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use comfyd_actors::{
    domain::task::TaskState,
    watch::{View, Watching},
};

use self::message::Reader;
use super::{
    Service, base_url,
    problem::{FieldFault, Problem, ProblemBody, each_parameter},
    tasks::{STATUSES, parse_id},
    view,
};
use crate::config::nearest;

/// Watch a task
///
/// Server-Sent Events, each with JSON: `stage` when a stage begins, `output` as soon as an output is stored, `progress` (percent, node,
/// step, place in the queue, `eta_ms`) and, when asked for, `preview` (a picture as a data URI), then `end`, after which the stream closes.
/// Those with an id come in order and are kept with the task: send the last id as `Last-Event-ID` or `after` to go on from there; without one
/// the task's whole story comes first. `204` says that there is nothing more to come, which also keeps a browser's `EventSource` from coming
/// back. A WebSocket handshake gets the same as messages `{"event", "id", "data"}`; previews are binary: four bytes with the length of a JSON
/// header (big-endian), the header, the picture.
#[utoipa::path(
    get, path = "/api/tasks/{task_id}/events", operation_id = "watch_task", tag = "events",
    params(
        ("task_id" = String, Path, description = "As the creation answered it"),
        ("previews" = Option<bool>, Query, description = "Pictures of unfinished work too; samplers make them for tasks created with `\"previews\": true`"),
        ("after" = Option<i64>, Query, minimum = 0, description = "The id of the last event seen"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same; browsers send it by themselves. It wins over `after`")
    ),
    responses(
        (status = 200, description = "The stream", body = String, content_type = "text/event-stream"),
        (status = 101, description = "The WebSocket is open"),
        (status = 204, description = "The task is over and its end was seen"),
        (status = 403, description = "A WebSocket for a page of another site", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty parameters, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Too many watch, or the task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn of_task(
    State(service): State<Arc<Service>>,
    Path(id): Path<String>,
    Query(parameters): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Problem> {
    let task = Some(parse_id(&id)?);
    let wanted = Wanted::read(&parameters, request.headers(), &["previews", "after"])?;
    open(&service, View { task, previews: wanted.previews }, wanted, request).await
}

/// Watch all tasks
///
/// The same events as of one task, of all of them, without an end. Without `after` it begins now; `after=0` begins with the oldest event that
/// is still kept.
#[utoipa::path(
    get, path = "/api/events", operation_id = "watch_all", tag = "events",
    params(
        ("workflow" = Option<String>, Query, description = "Only of tasks made from this named workflow", example = "text-to-image"),
        ("status" = Option<String>, Query, description = "Only of tasks that are, by this event, one of these, comma-separated: pending, processing, completed, failed, cancelled", example = "completed,failed"),
        ("previews" = Option<bool>, Query, description = "Pictures of unfinished work too"),
        ("after" = Option<i64>, Query, minimum = 0, description = "The id of the last event seen"),
        ("Last-Event-ID" = Option<String>, Header, description = "The same; browsers send it by themselves. It wins over `after`")
    ),
    responses(
        (status = 200, description = "The stream", body = String, content_type = "text/event-stream"),
        (status = 101, description = "The WebSocket is open"),
        (status = 403, description = "A WebSocket for a page of another site", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty parameters, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Too many watch, or the task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn of_all(
    State(service): State<Arc<Service>>,
    Query(parameters): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Problem> {
    let wanted = Wanted::read(&parameters, request.headers(), &["workflow", "status", "previews", "after"])?;
    open(&service, View { task: None, previews: wanted.previews }, wanted, request).await
}

/// What a client wants to see.
#[derive(Debug, Default)]
struct Wanted {
    previews: bool,
    after: Option<i64>,
    workflow: Option<String>,
    /// Empty = all.
    states: Vec<TaskState>,
}

impl Wanted {
    fn read(parameters: &[(String, String)], headers: &HeaderMap, known: &[&str]) -> Result<Self, Problem> {
        let mut wanted = Self::default();
        let mut faults = each_parameter(parameters, known, |name, value| wanted.set(name, value));
        if let Some(last) = headers.get("last-event-id") {
            match last.to_str().map_err(|_| ()).and_then(|text| number(text).ok_or(())) {
                Ok(last) => wanted.after = Some(last),
                Err(()) => faults.push(FieldFault::header("Last-Event-ID", NOT_AN_ID)),
            }
        }
        if faults.is_empty() { Ok(wanted) } else { Err(Problem::invalid(faults)) }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), FieldFault> {
        match name {
            "previews" => self.previews = truth(value)?,
            "after" => self.after = Some(number(value).ok_or_else(|| FieldFault::parameter(name, NOT_AN_ID))?),
            "status" => self.states.extend(statuses(value)?),
            _ => self.workflow = Some(value.to_owned()),
        }
        Ok(())
    }
}

const NOT_AN_ID: &str = "expected the id of an event: a whole number from 0 on";

fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok().filter(|number| *number >= 0)
}

fn truth(text: &str) -> Result<bool, FieldFault> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(FieldFault::parameter("previews", "expected true or false")),
    }
}

fn statuses(words: &str) -> Result<Vec<TaskState>, FieldFault> {
    let mut found = Vec::new();
    for word in words.split(',').map(str::trim) {
        let states = view::states(word);
        if states.is_empty() {
            let detail = format!("`{word}` is no status; there are {}", STATUSES.join(", "));
            return Err(FieldFault::parameter("status", detail).suggesting(nearest(word, STATUSES)));
        }
        found.extend(states);
    }
    Ok(found)
}

async fn open(service: &Arc<Service>, view: View, wanted: Wanted, request: Request) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    if service.is_draining() {
        return Err(Problem::unavailable("draining", "the service is shutting down; watch again in a moment"));
    }
    let events = service.config.events;
    let watching = service.bridge.watch(view, wanted.after, events.heartbeat, events.max_watchers).await?;
    let watcher = match watching {
        Watching::On(watcher) => watcher,
        Watching::Over => return Ok(StatusCode::NO_CONTENT.into_response()),
        Watching::Full => {
            let detail =
                format!("{} streams are open, the most there may be (events.max_watchers)", events.max_watchers);
            return Err(Problem::unavailable("too_many_watchers", detail));
        }
    };
    let base = base_url(&service.config, &parts.headers);
    let reader = Reader::new(*watcher, base, wanted, service.stop.clone());
    match upgrade(&mut parts).await {
        Some(upgrade) => Ok(socket::serve(upgrade, reader)),
        None => Ok(sse::serve(reader)),
    }
}

/// The handshake, when the client asks for a WebSocket. One that cannot become a WebSocket gets the events as they are.
async fn upgrade(parts: &mut Parts) -> Option<WebSocketUpgrade> {
    WebSocketUpgrade::from_request_parts(parts, &()).await.ok()
}
