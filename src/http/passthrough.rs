//! `/api/comfyui/{path}`: ComfyUI's own API through us, for clients that are written for ComfyUI and change nothing but its address.
//!
//! What goes through is decided by [`domain::passthrough`](comfyd_actors::domain::passthrough), what of the headers does in
//! [`headers`]; the rest is streaming, of bodies here and of WebSocket messages in [`tunnel`]. Nothing is stored, retried or put in
//! our queue.

mod headers;
mod tunnel;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{FromRequestParts, Request, State, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use comfyd_actors::{
    board::PhaseName,
    domain::passthrough::{Target, Verdict},
    ports::{
        comfy::ComfyTransport,
        passthrough::{Relay, RelayError},
    },
};
use futures_util::{StreamExt, TryStreamExt};

use super::{
    Service,
    problem::{FieldFault, Problem, ProblemBody, Verbatim},
    serve::Binary,
};
use crate::config::nearest;

/// Below this is ComfyUI's root.
const ROOT: &str = "/api/comfyui";
/// Names the backend, as the query parameter of [`BACKEND`] does.
const BACKEND_HEADER: &str = "comfyd-backend";
const BACKEND: &str = "backend";

/// ComfyUI's own API
///
/// Hands the request to one ComfyUI server and its answer back, both as they are: `POST /api/comfyui/prompt` is ComfyUI's
/// `POST /prompt`. A client written for ComfyUI works with `http://<this service>/api/comfyui` as the server's address, its WebSocket
/// (`/api/comfyui/ws?clientId=...`) included.
///
/// What reads or adds goes through. What ends, changes or deletes something on the server, where everybody's prompts are, does not,
/// unless `passthrough.allow` lists it. A prompt sent here is not a task: it is not stored, and not in our queue.
///
/// Without `backend` the first server that is online answers, which need not be the same one each time when there are several.
#[utoipa::path(
    method(get, head, post, put, patch, delete, options), path = "/api/comfyui/{*path}", tag = "passthrough",
    params(
        ("path" = String, Path, description = "A path of ComfyUI's", example = "system_stats"),
        ("backend" = Option<String>, Query, description = "Which ComfyUI server, as `/api/status` names it; goes before the header"),
        ("Comfyd-Backend" = Option<String>, Header, description = "The same")
    ),
    request_body(content = Option<Binary>, content_type = "*/*", description = "Whatever ComfyUI takes there, of any length"),
    responses(
        (status = "default", description = "ComfyUI's own answer, with its status and its type", content_type = "*/*"),
        (status = 400, description = "A path that can be read in two ways; or ComfyUI's own answer", content_type = "*/*"),
        (status = 403, description = "It does not go through (`detail` names the setting that lets it); or ComfyUI's own answer", content_type = "*/*"),
        (status = 404, description = "No such backend; or ComfyUI's own answer", content_type = "*/*"),
        (status = 408, description = "The body of the request stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 502, description = "The ComfyUI server cannot be reached, or broke off", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "No ComfyUI server is online, or too many WebSockets are open; or ComfyUI's own answer", content_type = "*/*"),
        (status = 504, description = "The ComfyUI server does not answer", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn pass(State(service): State<Arc<Service>>, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let target = target(&parts)?;
    let verdict = admit(&service, &parts, &target)?;
    let (wanted, query) = wanted_backend(&parts)?;
    let backend = choose(&service, wanted.as_deref())?;
    let upgrade = upgrade(&mut parts).await;
    let relay = Relay {
        method: parts.method,
        target,
        query,
        body: has_body(&parts.headers).then(|| body.into_data_stream().map_err(std::io::Error::other).boxed()),
        headers: headers::of_request(&parts.headers),
    };
    match upgrade {
        Some(upgrade) => tunnel::open(&service, backend, relay, upgrade).await,
        None => answer(backend, relay, verdict).await,
    }
}

/// The path as it was sent: the router's own reading of it has lost what tells `%2F` from `/`.
fn target(parts: &Parts) -> Result<Target, Problem> {
    let raw = parts.uri.path().strip_prefix(ROOT).and_then(|path| path.strip_prefix('/')).unwrap_or_default();
    Target::parse(raw).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "bad_path", format!("{error}; nothing was sent to ComfyUI"))
    })
}

fn admit(service: &Service, parts: &Parts, target: &Target) -> Result<Verdict, Problem> {
    let settings = &service.config.passthrough;
    let (method, route) = (parts.method.as_str(), target.to_string());
    let closed = |code, detail| Err(Problem::new(StatusCode::FORBIDDEN, code, detail));
    if !settings.enabled {
        return closed("passthrough_off", "ComfyUI's own API is turned off here (passthrough.enabled)".to_owned());
    }
    match settings.gate.judge(method, target) {
        verdict @ (Verdict::Open | Verdict::Allowed) => Ok(verdict),
        Verdict::Denied => closed(
            "passthrough_denied",
            format!("{method} {route} is turned off here (passthrough.deny); nothing was sent to ComfyUI"),
        ),
        Verdict::Closed => closed(
            "passthrough_closed",
            format!(
                "{method} {route} does not go through: it may end, change or show what belongs to others on the same ComfyUI server. \
                 Nothing was sent. The operator opens it with \"{method} {route}\" in passthrough.allow \
                 (COMFYD_PASSTHROUGH__ALLOW). To end a task of this service, use POST /api/tasks/{{task_id}}/cancel"
            ),
        ),
    }
}

/// Which backend the client wants, and the query without that wish.
fn wanted_backend(parts: &Parts) -> Result<(Option<String>, Option<String>), Problem> {
    let is_ours = |pair: &&str| pair.split('=').next() == Some(BACKEND);
    let (ours, theirs): (Vec<&str>, Vec<&str>) =
        parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).partition(is_ours);
    let named = ours.first().and_then(|pair| url::form_urlencoded::parse(pair.as_bytes()).next());
    let named = match (named, parts.headers.get(BACKEND_HEADER)) {
        (Some((_, name)), _) => Some(name.into_owned()),
        (None, Some(header)) => {
            let fault =
                || FieldFault::header("Comfyd-Backend", "expected the name of a backend, as /api/status shows it");
            Some(header.to_str().map_err(|_| Problem::invalid(vec![fault()]))?.to_owned())
        }
        (None, None) => None,
    };
    Ok((named, (!theirs.is_empty()).then(|| theirs.join("&"))))
}

/// The backend of that name, online or not; without a name the first that is online.
fn choose(service: &Service, wanted: Option<&str>) -> Result<Arc<dyn ComfyTransport>, Problem> {
    let backends = service.bridge.backends();
    if let Some(name) = wanted {
        let found = backends.iter().find(|backend| backend.id().as_str() == name.trim_end_matches('/'));
        return found.cloned().ok_or_else(|| no_backend(name, backends));
    }
    let status = service.bridge.backend_status();
    let is_online = |backend: &&Arc<dyn ComfyTransport>| {
        status.get(backend.id()).is_some_and(|status| status.phase == PhaseName::Online)
    };
    backends.iter().find(is_online).cloned().ok_or_else(|| {
        Problem::unavailable("comfyui_unavailable", "no ComfyUI server is online; nothing was sent. See /api/status")
    })
}

fn no_backend(name: &str, backends: &[Arc<dyn ComfyTransport>]) -> Problem {
    let names: Vec<&str> = backends.iter().map(|backend| backend.id().as_str()).collect();
    let fault = FieldFault::parameter(BACKEND, format!("there is no such backend; there are: {}", names.join(", ")))
        .suggesting(nearest(name, names.iter().copied()));
    Problem::new(StatusCode::NOT_FOUND, "backend_not_found", "there is no such ComfyUI server here; nothing was sent")
        .with_errors(vec![fault])
}

async fn upgrade(parts: &mut Parts) -> Option<WebSocketUpgrade> {
    let wanted = parts.headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    // A handshake that is not one goes on as a plain request: what is wrong with it, ComfyUI says.
    if wanted { WebSocketUpgrade::from_request_parts(parts, &()).await.ok() } else { None }
}

/// RFC 9112, 6.3: these two announce a body.
fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    length.is_some_and(|length| length != "0") || headers.contains_key(header::TRANSFER_ENCODING)
}

async fn answer(backend: Arc<dyn ComfyTransport>, relay: Relay, verdict: Verdict) -> Result<Response, Problem> {
    let (parts, body) = backend.relay(relay).await.map_err(|error| failed(&*backend, error))?.into_parts();
    let mut response =
        (parts.status, headers::of_response(&parts.headers, ROOT), Body::from_stream(body)).into_response();
    if verdict == Verdict::Open {
        // What is open is data. A file that a node wrote must not run as a page of ours, where it could do all that we let it.
        let policy = HeaderValue::from_static("default-src 'none'; sandbox");
        response.headers_mut().entry(header::CONTENT_SECURITY_POLICY).or_insert(policy);
    }
    response.extensions_mut().insert(Verbatim);
    Ok(response)
}

/// What happened, what it means, what to do.
fn failed(backend: &dyn ComfyTransport, error: RelayError) -> Problem {
    let name = backend.id();
    tracing::warn!(backend = %name, %error, "a request was not passed through");
    let (status, code, meaning) = match &error {
        RelayError::NotConnected(_) => {
            (StatusCode::BAD_GATEWAY, "comfyui_unreachable", "nothing was sent, so it may be sent again")
        }
        RelayError::Broken(_) => (
            StatusCode::BAD_GATEWAY,
            "comfyui_broke_off",
            "ComfyUI may have done what was asked: look before sending it again",
        ),
        RelayError::TimedOut => (
            StatusCode::GATEWAY_TIMEOUT,
            "comfyui_timeout",
            "it may still do what was asked: look before sending it again; passthrough.idle_timeout sets how long it is waited for",
        ),
        RelayError::Body(_) => (StatusCode::REQUEST_TIMEOUT, "body_timeout", "send it again"),
        RelayError::NotASocket(_) => {
            (StatusCode::BAD_GATEWAY, "comfyui_no_websocket", "there is no WebSocket at this path")
        }
    };
    Problem::new(status, code, format!("{name}: {error}; {meaning}"))
}
