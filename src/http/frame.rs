//! What is around every request: its id, its span, its longest time, and what becomes of a panic or an error without a problem.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tracing::{Instrument, field};
use uuid::Uuid;

use super::{
    HttpConfig,
    problem::{self, Problem, Verbatim},
};

/// The request's name, in the request, the answer and the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest time until an answer begins: above the longest wait a client can ask for (60 s) and an actor's answer (15 s).
const PATIENCE: Duration = Duration::from_secs(120);

/// The outermost layer.
pub async fn frame(State(config): State<Arc<HttpConfig>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let head = request.method() == Method::HEAD;
    let span = tracing::info_span!(
        "request",
        request.id = id.as_str(),
        method = %request.method(),
        path = request.uri().path(),
        task.id = field::Empty,
    );
    let mut response = if is_foreign(&config, &request) {
        foreign().into_response()
    } else {
        answer(request, next).instrument(span.clone()).await
    };
    let problem = response.extensions_mut().remove::<Problem>().or_else(|| bare_error(&response));
    if let Some(problem) = problem {
        response = problem.write(response, &id);
        if head {
            *response.body_mut() = Body::empty();
        }
    }
    let status = response.status().as_u16();
    span.in_scope(|| tracing::debug!(status, "answered"));
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn answer(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        // The panic itself is in the log already, under the same span.
        tracing::error!("a handler panicked");
        Problem::internal().into_response()
    })
}

/// The layer around all but the handlers that stream what a client sends: those watch each silence instead.
pub async fn patience(request: Request, next: Next) -> Response {
    let late = |_| Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the request took too long").into_response();
    tokio::time::timeout(PATIENCE, next.run(request)).await.unwrap_or_else(late)
}

/// The problem for an error answer of the router or of a layer, which know nothing of problems.
fn bare_error(response: &Response) -> Option<Problem> {
    let status = response.status();
    let is_problem = || response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == problem::MEDIA_TYPE);
    let is_error = status.is_client_error() || status.is_server_error();
    let is_ours = response.extensions().get::<Verbatim>().is_none();
    (is_error && is_ours && !is_problem()).then(|| Problem::of_status(status))
}

/// The client's own id when it can be logged as it is, else a fresh one.
pub fn request_id(headers: &HeaderMap) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(plain))
        .map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Whether a browser sent this on behalf of a page of another site. Without a login, any page somebody opens could otherwise
/// stop the tasks of a service on their own machine. Only browsers send the header, so nobody else is concerned.
fn is_foreign(config: &HttpConfig, request: &Request) -> bool {
    let writes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let elsewhere = matches!(text("sec-fetch-site"), Some("cross-site" | "same-site"));
    let allowed = text("origin").is_some_and(|origin| config.cors_origins.iter().any(|known| known == origin));
    // A page may open WebSockets to anywhere and read what comes, so for them the browser's word about the page is all there is.
    let socket = text("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"));
    let ours = || text("host").is_some_and(|host| text("origin").is_some_and(|page| is_of(page, host)));
    let foreign_socket = socket && text("origin").is_some() && !ours();
    (writes && elsewhere || foreign_socket) && !allowed
}

/// Whether a page's origin is the host it talks to.
fn is_of(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host))
}

fn foreign() -> Problem {
    let detail = "a web page of another origin may not do this; allow it with CORS_ORIGINS";
    Problem::new(StatusCode::FORBIDDEN, "cross_site", detail)
}
