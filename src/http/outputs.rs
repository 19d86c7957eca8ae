//! `GET /api/tasks/{id}/outputs/{n}`: the bytes of an output.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode},
    response::Response,
};

use super::{
    Service,
    problem::{Problem, ProblemBody},
    serve::{Binary, Stored, serve},
    tasks::parse_id,
};

/// Download an output
///
/// Takes a single range and `If-None-Match`; the `ETag` is the SHA-256 of the bytes.
#[utoipa::path(
    method(get, head), path = "/api/tasks/{task_id}/outputs/{index}", tag = "tasks",
    params(
        ("task_id" = String, Path, description = "As the creation answered it"),
        ("index" = String, Path, description = "`index` of the output"),
        ("Range" = Option<String>, Header, description = "bytes=first-last"),
        ("If-Range" = Option<String>, Header, description = "The ETag the range is meant for"),
        ("If-None-Match" = Option<String>, Header, description = "An ETag you have already")
    ),
    responses(
        (status = 200, description = "The bytes, under the type `content_type` of the output tells", content_type = "*/*", body = Binary),
        (status = 206, description = "The part asked for", content_type = "*/*", body = Binary),
        (status = 304, description = "You have it already"),
        (status = 404, description = "No such task or output, or it is not stored yet", body = ProblemBody, content_type = "application/problem+json"),
        (status = 416, description = "The range lies outside", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The storage or the task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn download(
    State(service): State<Arc<Service>>,
    Path((id, index)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (record, _) = service.bridge.get(parse_id(&id)?).await?;
    let wanted = index.parse::<u32>().ok();
    let artifact =
        record.artifacts.into_iter().find(|artifact| Some(artifact.index) == wanted).ok_or_else(no_output)?;
    let object = artifact.object.as_ref().ok_or_else(no_output)?;
    let filename = artifact.filename();
    let stored = Stored {
        key: &object.key,
        bytes: object.bytes,
        sha256: &object.sha256,
        content_type: &object.content_type,
        filename: &filename,
        missing: Problem::new(StatusCode::NOT_FOUND, "output_missing", "the output is not in the storage any more"),
    };
    serve(&service, &method, &headers, &stored).await
}

fn no_output() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "output_not_found", "the task has no stored output of this number (yet)")
}
