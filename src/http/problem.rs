//! Every error a client can see, as `application/problem+json` (RFC 9457), and the one place where our errors become statuses.
//!
//! A handler returns a [`Problem`]; [`frame`](super::frame) writes it out, because only there the request's id is known.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comfyd_actors::{bridge::RequestError, domain::task::Refusal, kit::slot::AskError, ports::store::StoreError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::nearest;

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// More faults than this in one answer help nobody.
pub const MAX_FAULTS: usize = 100;

/// An error on its way to the client. Boxed, because it is large and rare.
#[derive(Debug, Clone)]
pub struct Problem {
    body: Box<ProblemBody>,
    retry_after: Option<Duration>,
}

/// Marks an answer that is not ours: an error in it is left as it is.
#[derive(Debug, Clone, Copy)]
pub struct Verbatim;

/// What went wrong (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "urn:comfyd:problem:invalid_request", "title": "Unprocessable Entity", "status": 422,
    "detail": "the request has 1 fault", "code": "invalid_request", "request_id": "6f0c...",
    "errors": [{"pointer": "/priorty", "detail": "there is no such field", "suggestion": "priority"}]
}))]
pub struct ProblemBody {
    /// A URI that names the kind of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened and what to do about it.
    pub detail: String,
    /// A stable word for programs.
    pub code: String,
    /// The answer's `x-request-id`; the log has it too.
    pub request_id: String,
    /// Every fault of the request, when it is the request that is at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldFault>,
}

/// What is wrong at one place of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldFault {
    /// JSON pointer into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// The query parameter, when it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// The header, when it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What is wrong and what would be right.
    pub detail: String,
    /// What was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

impl FieldFault {
    /// A fault in the body.
    pub fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), detail: detail.into(), ..Self::default() }
    }

    /// A fault of a query parameter.
    pub fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { parameter: Some(name.into()), detail: detail.into(), ..Self::default() }
    }

    /// A fault of a header.
    pub fn header(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { header: Some(name.into()), detail: detail.into(), ..Self::default() }
    }

    /// Adds what was probably meant.
    #[must_use]
    pub fn suggesting(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

/// Reads the parameters of a query one by one; what `set` finds wrong with one is told of that one, and so is one that is not `known`.
pub fn each_parameter(
    parameters: &[(String, String)],
    known: &[&str],
    mut set: impl FnMut(&str, &str) -> Result<(), FieldFault>,
) -> Vec<FieldFault> {
    let read = |(name, value): &(String, String)| {
        if known.contains(&name.as_str()) {
            return set(name, value).err().map(|fault| FieldFault { parameter: Some(name.clone()), ..fault });
        }
        let near = nearest(name, known.iter().copied());
        Some(FieldFault::parameter(name, "there is no such parameter").suggesting(near))
    };
    parameters.iter().filter_map(read).collect()
}

impl Problem {
    /// An error of a kind.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let body = ProblemBody {
            kind: format!("urn:comfyd:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            request_id: String::new(),
            errors: Vec::new(),
        };
        Self { body: Box::new(body), retry_after: None }
    }

    /// The request is understood and wrong.
    #[must_use]
    pub fn invalid(errors: Vec<FieldFault>) -> Self {
        let detail = match errors.len() {
            1 => "the request has 1 fault".to_owned(),
            n => format!("the request has {n} faults"),
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", detail).with_errors(errors)
    }

    /// No task has this id.
    #[must_use]
    pub fn no_task() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "task_not_found",
            "there is no task with this id; finished tasks are deleted after a time",
        )
    }

    /// Something we need is away; it will be back.
    pub fn unavailable(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(Duration::from_secs(1))
    }

    /// A fault of ours. What it was is in the log, under the request's id.
    #[must_use]
    pub fn internal() -> Self {
        Self::of_status(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// For an error answer that came without a problem.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => ("not_found", "there is nothing at this address; all of them are listed at /docs"),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method_not_allowed", "this address does not take this method; see `Allow`")
            }
            StatusCode::INTERNAL_SERVER_ERROR => {
                ("internal", "a fault of ours: please report it together with the log lines of this request's id")
            }
            _ => ("http_error", status.canonical_reason().unwrap_or("the request failed")),
        };
        Self::new(status, code, detail)
    }

    /// Lists the faults of the request.
    #[must_use]
    pub fn with_errors(mut self, mut errors: Vec<FieldFault>) -> Self {
        errors.truncate(MAX_FAULTS);
        self.body.errors = errors;
        self
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// What happened, in words.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.body.detail
    }

    /// The faults it lists.
    #[must_use]
    pub fn errors(&self) -> &[FieldFault] {
        &self.body.errors
    }

    /// The problem as it is written.
    #[cfg(test)]
    pub fn body(&self) -> &ProblemBody {
        &self.body
    }

    /// Writes the problem into an answer, whose other headers stay.
    #[must_use]
    pub fn write(mut self, response: Response, request_id: &str) -> Response {
        request_id.clone_into(&mut self.body.request_id);
        let (mut parts, _) = response.into_parts();
        parts.status = StatusCode::from_u16(self.body.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = self.retry_after_seconds() {
            parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let body = serde_json::to_vec(&self.body).unwrap_or_default();
        Response::from_parts(parts, Body::from(body))
    }

    /// The whole of an answer as bytes, the last on its connection: for those that never became requests.
    #[must_use]
    pub fn raw(&self) -> Vec<u8> {
        let status = StatusCode::from_u16(self.body.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.body).unwrap_or_default();
        let retry = self.retry_after_seconds().map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {MEDIA_TYPE}\r\n{retry}content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), &body].concat()
    }

    fn retry_after_seconds(&self) -> Option<u64> {
        let after = self.retry_after?;
        Some(after.as_secs().max(1) + u64::from(after.subsec_nanos() > 0 && after.as_secs() > 0))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.body.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::no_task(),
            StoreError::Refused(refusal) => {
                let code = match refusal {
                    Refusal::Over => "task_over",
                    Refusal::Cancelling => "task_cancelling",
                    Refusal::NoFiles => "no_files",
                    Refusal::Stale | Refusal::WrongState => "conflict",
                };
                Self::new(StatusCode::CONFLICT, code, refusal.to_string())
            }
            StoreError::Unavailable(reason) => {
                tracing::warn!(reason, "the task store is unavailable");
                // A commit that the disk did not confirm may have been made all the same.
                Self::unavailable(
                    "store_unavailable",
                    "the task store cannot be used now. What you asked for may or may not be stored: repeat the request, a new task with \
                     the same Idempotency-Key",
                )
            }
            StoreError::Corrupt(reason) => {
                tracing::error!(reason, "the task store holds something unreadable");
                Self::internal()
            }
        }
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Full { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", error.to_string()).retry_after(retry_after)
            }
            RequestError::TenantFull { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "tenant_full", error.to_string()).retry_after(retry_after)
            }
            RequestError::Draining => Self::unavailable("draining", "the service is shutting down; nothing was stored"),
            RequestError::Actor(AskError::Unavailable) => {
                Self::unavailable("restarting", "a part of the service is being restarted; nothing was changed")
            }
            RequestError::Actor(AskError::Died | AskError::TimedOut) => Self::unavailable(
                "unanswered",
                "it is not known whether this was done: repeat it, a new task with the same Idempotency-Key",
            ),
            RequestError::Store(error) => error.into(),
        }
    }
}
