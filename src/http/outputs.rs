//! `GET /api/tasks/{id}/outputs/{n}`: the bytes of an output.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use comfyd_actors::ports::object_store::ObjectError;

use super::{
    Service,
    problem::{Problem, ProblemBody},
    serve::{Binary, Stored, serve},
    tasks::parse_id,
};

/// Download an output
///
/// What lies in a bucket is answered with a redirect to it; what lies in a folder of ours comes from here, and then a single range and
/// `If-None-Match` are taken, the `ETag` being the SHA-256 of the bytes. `HEAD` is answered from here in any case.
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
        (status = 307, description = "It lies in a bucket: there, by a link that ends after a while (a public one does not)", headers(("Location" = String, description = "Where to get it"))),
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
    let target = service.bridge.targets().holder(object).ok_or_else(|| no_target(&object.target))?;
    if method == Method::GET
        && let Some(link) = target.store.link(&object.key).await.map_err(|error| cannot_link(&error))?
    {
        return Ok(elsewhere(&link.url));
    }
    let stored = Stored {
        store: target.store.as_ref(),
        key: &object.key,
        bytes: object.bytes,
        sha256: &object.sha256,
        content_type: &object.content_type,
        filename: &filename,
        missing: Problem::new(StatusCode::NOT_FOUND, "output_missing", "the output is not in the storage any more"),
    };
    serve(&method, &headers, &stored).await
}

/// Every look makes a new link, so nobody is to keep this one.
fn elsewhere(url: &str) -> Response {
    let headers = [(header::LOCATION, url.to_owned()), (header::CACHE_CONTROL, "no-store".to_owned())];
    (StatusCode::TEMPORARY_REDIRECT, headers).into_response()
}

fn no_target(name: &str) -> Problem {
    tracing::error!(target = name, "an output lies in a storage target that is not configured any more");
    let detail = format!(
        "the output lies in the storage target {name}, which is not configured any more: name it again in [storage]"
    );
    Problem::new(StatusCode::NOT_FOUND, "output_missing", detail)
}

fn cannot_link(error: &ObjectError) -> Problem {
    tracing::warn!(%error, "no link could be made for a stored output");
    Problem::unavailable("storage_unavailable", "the storage cannot be used now")
}

fn no_output() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "output_not_found", "the task has no stored output of this number (yet)")
}
