//! `POST /api/inputs` and `GET /api/inputs/{sha256}`: the files tasks are given.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::Response,
};
use comfyd_actors::{
    domain::input::{Input, InputId},
    ports::store::StoreError,
};
use futures_util::TryStreamExt;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Service, body,
    form::Form,
    problem::{FieldFault, Problem, ProblemBody},
    serve::{Binary, Stored, serve},
};
use crate::inputs::{IntakeError, take_in};

/// Files in one request. More come in more requests.
const MAX_FILES: usize = 64;

// Documents the body only.
/// A form with one or more files, whatever its fields are called.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct FilesForm {
    /// A file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// What was stored.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoredInputs {
    /// In the order of the request.
    pub inputs: Vec<StoredInput>,
}

/// A stored file.
#[derive(Debug, Serialize, ToSchema)]
pub struct StoredInput {
    /// What to give a task for it.
    #[serde(rename = "ref")]
    #[schema(example = "comfyd://inputs/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")]
    pub reference: String,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// What it is called.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// By its first bytes, else by its name.
    #[schema(example = "image/png")]
    pub content_type: String,
    /// Kept at least until then, and while an unfinished task needs it; giving it or using it again puts it off.
    #[schema(format = DateTime)]
    pub expires_at: String,
    /// Where to get it.
    pub url: String,
}

impl StoredInput {
    fn of(input: Input, base: &str) -> Self {
        Self {
            reference: input.id.uri(),
            url: format!("{base}/api/inputs/{}", input.id),
            sha256: input.id.to_string(),
            name: input.about.name,
            bytes: input.about.bytes,
            content_type: input.about.content_type,
            expires_at: input.expires_at.rfc3339(),
        }
    }
}

/// Store files for tasks
///
/// As a form with one or more files, or one file as the body itself. Give the `ref` of the answer wherever a task takes a file. The same
/// bytes are stored once, whoever sends them.
#[utoipa::path(
    post, path = "/api/inputs", tag = "inputs",
    params(("X-Filename" = Option<String>, Header, description = "What a file that is the body itself is called")),
    request_body(content(
        (FilesForm = "multipart/form-data"),
        (Binary = "application/octet-stream"),
        (Binary = "image/*"), (Binary = "audio/*"), (Binary = "video/*"),
    )),
    responses(
        (status = 201, description = "Stored", body = StoredInputs),
        (status = 400, description = "The body broke off, or the form cannot be read", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "More bytes than this server takes (inputs.max_size)", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "No content type that could be a file's", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "No file, an empty one, or too many", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Shutting down, or the storage or the task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn upload_inputs(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<StoredInputs>), Problem> {
    if service.is_draining() {
        return Err(Problem::unavailable("draining", "the service is shutting down; nothing was stored"));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (stream, trouble) = body::stream(&headers, body, service.config.files())?;
    // What ended the body early is known where it is read; behind it are only consequences.
    let cause = |consequence: Problem| trouble.get().cloned().unwrap_or(consequence);
    let inputs = if kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data") {
        let form = Form::new(kind, stream)?;
        take_all(&service, form).await.map_err(cause)?
    } else if is_file(kind) {
        let name = headers.get("x-filename").map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        let taken = take_in(service.shelves(), &name.unwrap_or_default(), stream).await;
        vec![taken.map_err(|error| cause(refused(error, "")))?]
    } else {
        let detail = "send a form (multipart/form-data) with files, or one file with its own content type, such as image/png or \
                      application/octet-stream";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    };
    let base = super::base_url(&service.config, &headers);
    let inputs = inputs.into_iter().map(|input| StoredInput::of(input, &base)).collect();
    Ok((StatusCode::CREATED, Json(StoredInputs { inputs })))
}

/// Any type but those of the fields of a web form, which a file is never sent as.
fn is_file(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.contains('/') && kind != "application/x-www-form-urlencoded" && !kind.starts_with("multipart/")
}

async fn take_all(service: &Service, mut form: Form) -> Result<Vec<Input>, Problem> {
    let mut inputs = Vec::new();
    while let Some(field) = form.next().await? {
        let pointer = format!("/{}", comfyd_actors::domain::graph::escape(field.name().unwrap_or_default()));
        let Some(name) = field.file_name().map(str::to_owned) else {
            let detail = "this field is no file: give it a filename (curl -F file=@picture.png)";
            return Err(Problem::invalid(vec![FieldFault::at(pointer, detail)]));
        };
        if inputs.len() == MAX_FILES {
            let detail = format!("more than {MAX_FILES} files in one request; those before this one are stored");
            return Err(Problem::invalid(vec![FieldFault::at(pointer, detail)]));
        }
        let bytes = field.map_err(std::io::Error::other);
        let taken = take_in(service.shelves(), &name, Box::pin(bytes)).await;
        inputs.push(taken.map_err(|error| refused(error, &pointer))?);
    }
    if inputs.is_empty() {
        return Err(Problem::invalid(vec![FieldFault::at("", "the form has no file")]));
    }
    Ok(inputs)
}

/// The answer when a file was not taken in.
pub fn refused(error: IntakeError, pointer: &str) -> Problem {
    match error {
        IntakeError::Empty => Problem::invalid(vec![FieldFault::at(pointer, error.to_string())]),
        IntakeError::Body(_) => Problem::new(StatusCode::BAD_REQUEST, "broken_body", error.to_string()),
        IntakeError::Storage(reason) => {
            tracing::warn!(%reason, "a file could not be stored");
            Problem::unavailable("storage_unavailable", "the storage cannot be used now; no task was created")
        }
        IntakeError::Store(StoreError::NotFound) => {
            Problem::unavailable("took_too_long", "the file took longer than a day; it was not stored")
        }
        IntakeError::Store(error) => error.into(),
    }
}

/// Download an input
///
/// Takes a single range and `If-None-Match`; the `ETag` is the SHA-256 of the bytes.
#[utoipa::path(
    method(get, head), path = "/api/inputs/{sha256}", tag = "inputs",
    params(
        ("sha256" = String, Path, description = "SHA-256 of the bytes, in hex"),
        ("Range" = Option<String>, Header, description = "bytes=first-last"),
        ("If-Range" = Option<String>, Header, description = "The ETag the range is meant for"),
        ("If-None-Match" = Option<String>, Header, description = "An ETag you have already")
    ),
    responses(
        (status = 200, description = "The bytes, under the type `content_type` tells", content_type = "*/*", body = Binary),
        (status = 206, description = "The part asked for", content_type = "*/*", body = Binary),
        (status = 304, description = "You have it already"),
        (status = 404, description = "Not stored (any more)", body = ProblemBody, content_type = "application/problem+json"),
        (status = 416, description = "The range lies outside", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The storage or the task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn download_input(
    State(service): State<Arc<Service>>,
    Path(sha256): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = InputId::parse(&sha256).ok_or_else(no_input)?;
    let input = service.bridge.inputs().find(&id).await.map_err(|error| match error {
        StoreError::NotFound => no_input(),
        other => other.into(),
    })?;
    let stored = Stored {
        store: service.bridge.targets().inputs().as_ref(),
        key: &input.key,
        bytes: input.about.bytes,
        sha256: input.id.as_str(),
        content_type: &input.about.content_type,
        filename: &input.about.name,
        missing: no_input(),
    };
    serve(&method, &headers, &stored).await
}

fn no_input() -> Problem {
    let detail = "no file of this hash is stored; inputs are deleted some time after their last use";
    Problem::new(StatusCode::NOT_FOUND, "input_not_found", detail)
}
