//! Named workflows: what there is, what it takes, publishing and running it.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use comfyd_actors::{
    domain::workflow::{FileFault, Input, Kind, Reference, Workflow, check_name},
    ports::workflow_store::{Kept, MAX_NAMES, Publication},
};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    Service,
    body::{self, Fields},
    create::{self, Subject},
    problem::{FieldFault, Problem, ProblemBody},
    view::TaskSummary,
};
use crate::{
    config::nearest,
    workflows::{
        FindError, Found, Listed, MAX_FILE,
        catalogue::{Entry, Source, canonical},
    },
};

/// All named workflows.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkflowList {
    /// In the order of their names.
    pub workflows: Vec<WorkflowSummary>,
}

/// A named workflow without its graph.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkflowSummary {
    /// Its name.
    #[schema(example = "text-to-image")]
    pub name: String,
    /// Its number under this name: run it with `name@version`, for as long as it is kept (the newest 100 are). Null for a moment after a
    /// start, or when it cannot be run.
    #[schema(example = 3)]
    pub version: Option<u32>,
    /// Where it comes from; null for a version that the name does not mean any more.
    pub source: Option<Source>,
    /// Where else the name has a meaning, which this one hides.
    pub hides: Vec<Source>,
    /// What it is for.
    pub description: Option<String>,
    /// What it takes.
    pub inputs: Vec<InputView>,
    /// What is wrong with its newest file. The last good one runs on; `version` is null when there was none.
    pub faults: Vec<String>,
}

/// A named workflow with its graph.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkflowView {
    /// What lists show.
    #[serde(flatten)]
    pub summary: WorkflowSummary,
    /// Its graph in ComfyUI's API format; null when it cannot be run.
    #[schema(value_type = Option<Object>)]
    pub workflow: Option<Value>,
    /// The versions that are kept, newest first.
    pub versions: Vec<VersionView>,
}

/// A version that is kept.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionView {
    /// Its number.
    pub version: u32,
    /// When it was first seen.
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// One input of a named workflow.
#[derive(Debug, Serialize, ToSchema)]
pub struct InputView {
    /// Its name.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean`, `choice`, `seed` (a whole number, drawn when missing), or a file: `image`, `mask`,
    /// `audio`, `video`, `file`.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "string")]
    pub kind: Kind,
    /// Whether it must be given.
    pub required: bool,
    /// The node it is written to.
    pub node: String,
    /// The field of that node.
    pub field: String,
    /// Used when it is not given; without one the graph's own value stays.
    #[schema(value_type = Value)]
    pub default: Option<Value>,
    /// Least number.
    pub minimum: Option<f64>,
    /// Greatest number.
    pub maximum: Option<f64>,
    /// The only values taken; empty = any.
    #[schema(value_type = Vec<Value>)]
    pub choices: Vec<Value>,
    /// For people.
    pub description: Option<String>,
}

// Documents the body only: it is read by `Workflow::read`, which tells all faults.
/// A workflow's file.
#[derive(ToSchema)]
#[schema(as = WorkflowFile)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct WorkflowFile {
    /// The graph in ComfyUI's API format.
    #[schema(value_type = Object)]
    workflow: Value,
    /// Names that are found in the graph, as `"prompt"`, `"seed"`, `"image"`, `"steps"`; or objects with `name`, `node`, `field` and, as
    /// wanted, `type`, `required`, `default`, `minimum`, `maximum`, `choices`, `description`.
    #[schema(value_type = Option<Vec<NameOrInput>>)]
    inputs: Option<Value>,
    /// What it is for.
    description: Option<String>,
    /// Longest time a run of it may show no sign of progress, for tasks that do not say: "5m", "1h 30m".
    no_progress_timeout: Option<String>,
}

/// The name of an input that is found in the graph, or one that says all about itself.
#[derive(ToSchema)]
#[schema(as = NameOrInput)]
#[serde(untagged)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub enum NameOrInput {
    /// A name.
    Name(String),
    /// An object with at least `name`, `node` and `field`.
    #[schema(value_type = Object)]
    Input(Value),
}

/// List the named workflows
///
/// Each with where it comes from: what is published here comes before the files of `config/workflows`, and these before what is built
/// in. A file that is broken is listed with its faults, and its last good version runs on.
#[utoipa::path(
    get, path = "/api/workflows", tag = "workflows", operation_id = "list_workflows",
    responses((status = 200, description = "All of them", body = WorkflowList))
)]
pub async fn list(State(service): State<Arc<Service>>) -> Json<WorkflowList> {
    Json(WorkflowList { workflows: service.workflows.list().into_iter().map(WorkflowSummary::of).collect() })
}

/// Get a named workflow
///
/// With its graph and the versions that are kept. `name@version` gets exactly that version.
#[utoipa::path(
    get, path = "/api/workflows/{name}", tag = "workflows", operation_id = "get_workflow",
    params(("name" = String, Path, description = "Its name, or name@version", example = "text-to-image")),
    responses(
        (status = 200, description = "The workflow", body = WorkflowView),
        (status = 404, description = "No workflow of this name, or no such version", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away, or that version cannot be read", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    State(service): State<Arc<Service>>,
    Path(reference): Path<String>,
) -> Result<Json<WorkflowView>, Problem> {
    let reference = Reference::parse(&reference);
    let here = service.workflows.get(&reference.name);
    let listed = match here.filter(|here| reference.version.is_none_or(|version| here.entry.version == Some(version))) {
        Some(listed) => listed,
        None => Listed::exactly(find(&service, &reference).await?),
    };
    Ok(Json(view(&service, listed).await?))
}

/// Get the inputs of a named workflow as JSON Schema
///
/// Draft 2020-12, of the `inputs` object: for forms, for validators, for typed clients.
#[utoipa::path(
    get, path = "/api/workflows/{name}/schema", tag = "workflows", operation_id = "get_workflow_schema",
    params(("name" = String, Path, description = "Its name, or name@version", example = "text-to-image")),
    responses(
        (status = 200, description = "The schema", body = Object, content_type = "application/schema+json"),
        (status = 404, description = "No workflow of this name, or no such version", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away, or the workflow is broken", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn schema(
    State(service): State<Arc<Service>>,
    Path(reference): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let Found { name, version, workflow } = find(&service, &Reference::parse(&reference)).await?;
    let mut schema = workflow.schema();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!(format!("{name}@{version}"));
    if let Some(description) = workflow.description() {
        schema["description"] = json!(description);
    }
    Ok(([(header::CONTENT_TYPE, "application/schema+json")], schema.to_string()))
}

/// Publish a named workflow
///
/// From now on the name means this workflow, here and in every process on the same task store. It is checked first, and gets the next
/// number of its name; the very workflow that is published already keeps its number.
#[utoipa::path(
    put, path = "/api/workflows/{name}", tag = "workflows", operation_id = "publish_workflow",
    params(("name" = String, Path, description = "1 to 64 letters, digits, `-`, `_` and `.`", example = "red-square")),
    request_body(content = WorkflowFile, example = json!({
        "workflow": {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 16_711_680}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "comfyd"}}
        },
        "inputs": ["color", {"name": "size", "node": "1", "field": "width", "minimum": 1, "maximum": 1024}],
        "description": "A picture of one colour."
    })),
    responses(
        (status = 200, description = "It is published already", body = WorkflowView),
        (status = 201, description = "It is published, under a new version", body = WorkflowView, headers(("Location" = String, description = "The workflow"))),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "There are too many names", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "Larger than 1 MiB, or than server.body_limit", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Everything that is wrong with it", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn put(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    check_name(&name).map_err(|detail| Problem::invalid(vec![FieldFault::parameter("name", detail)]))?;
    let body = body::read(&headers, body, service.config.body().at_most(MAX_FILE as u64)).await?;
    let text = tokio::task::spawn_blocking(move || check_file(&body)).await.map_err(|_| Problem::internal())??;
    let fresh = match service.workflows.publish(&name, &text).await? {
        Publication::New(_) => true,
        Publication::Same(_) => false,
        Publication::TooMany => {
            let detail = format!(
                "{MAX_NAMES} names have been published on this store, the most it takes; publish under one of them"
            );
            return Err(Problem::new(StatusCode::CONFLICT, "too_many_workflows", detail));
        }
    };
    let listed = service.workflows.get(&name).ok_or_else(Problem::internal)?;
    let view = Json(view(&service, listed).await?);
    match HeaderValue::try_from(format!("/api/workflows/{name}")) {
        Ok(place) if fresh => Ok((StatusCode::CREATED, [(header::LOCATION, place)], view).into_response()),
        _ => Ok(view.into_response()),
    }
}

/// Take back a published workflow
///
/// The name means again what the folder or the program has under it, or nothing. Tasks that were made from it are not touched, and its
/// versions can still be run by those who name one exactly.
#[utoipa::path(
    delete, path = "/api/workflows/{name}", tag = "workflows", operation_id = "withdraw_workflow",
    params(("name" = String, Path, description = "Its name", example = "red-square")),
    responses(
        (status = 204, description = "It is not published any more"),
        (status = 404, description = "No workflow of this name", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is not published: it is a file, or built in", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The task store is away", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn delete(State(service): State<Arc<Service>>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    if service.workflows.withdraw(&name).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(match service.workflows.get(&name).map(|listed| listed.sources) {
        Some(sources) => {
            let from = sources.first().map(ToString::to_string).unwrap_or_default();
            let detail = format!(
                "this workflow was not published through the API: it comes from {from}, and only there can it be removed"
            );
            Problem::new(StatusCode::CONFLICT, "not_published", detail)
        }
        None => not_found(FindError::Unknown(service.workflows.names()), &Reference { name, version: None }, None),
    })
}

/// Create a task from a named workflow
///
/// As `/api/tasks/create`, with the workflow in the path: each one has an operation of its own here, with its inputs typed.
#[utoipa::path(
    post, path = "/api/workflows/{name}/tasks", tag = "workflows", operation_id = "run_workflow",
    params(
        ("name" = String, Path, description = "Its name, or name@version", example = "text-to-image"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; the same key and body find the first task"),
        ("Prefer" = Option<String>, Header, description = "wait=N: answer with the finished task if it ends within N seconds (at most 60)")
    ),
    request_body(content = Object, content_type = "application/json"),
    responses(
        (status = 202, description = "Accepted and stored", body = TaskSummary, headers(("Location" = String, description = "The task"))),
        (status = 200, description = "The task an earlier request with this key made (`Idempotent-Replayed: true`), or the finished task (`Prefer`)", body = TaskSummary),
        (status = 400, description = "Not JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No workflow of this name, or no such version", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body stopped coming", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "Not sent as JSON", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "Faulty fields, all of them listed; or the key was used for another body", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full; nothing was stored", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Shutting down, the task store is away, or the workflow is broken", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn run(
    State(service): State<Arc<Service>>,
    Path(reference): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let found = find(&service, &Reference::parse(&reference)).await?;
    let body = body::read(&headers, body, service.config.body()).await?;
    create::submit(&service, &headers, body, Subject::Path(found)).await
}

async fn find(service: &Service, reference: &Reference) -> Result<Found, Problem> {
    service.workflows.find(reference).await.map_err(|error| not_found(error, reference, None))
}

/// The problem of a reference that leads to nothing that can be run; `pointer` says where in the body it is, if it is there.
pub fn not_found(error: FindError, reference: &Reference, pointer: Option<&str>) -> Problem {
    let (status, code) = match &error {
        FindError::Unknown(_) => (StatusCode::NOT_FOUND, "unknown_workflow"),
        FindError::NoVersion => (StatusCode::NOT_FOUND, "unknown_version"),
        FindError::Broken { .. } => (StatusCode::SERVICE_UNAVAILABLE, "workflow_broken"),
        FindError::Store(_) => return store_problem(error),
    };
    let suggestion = match &error {
        FindError::Unknown(names) => nearest(&reference.name, names.iter().map(String::as_str)),
        _ => None,
    };
    let detail = error.to_string();
    let place = match pointer {
        Some(pointer) => FieldFault::at(pointer, detail.clone()),
        None => FieldFault::parameter("name", detail.clone()),
    };
    Problem::new(status, code, detail).with_errors(vec![place.suggesting(suggestion)])
}

fn store_problem(error: FindError) -> Problem {
    match error {
        FindError::Store(error) => error.into(),
        _ => Problem::internal(),
    }
}

/// The canonical text of a sound file.
fn check_file(body: &[u8]) -> Result<Arc<str>, Problem> {
    Fields::parse(body)?;
    let file: Value = body::whole(body)?;
    let text = canonical(&file);
    let at = |FileFault { pointer, detail }| FieldFault::at(pointer, detail);
    Workflow::read(file).map_err(|faults| Problem::invalid(faults.into_iter().map(at).collect()))?;
    Ok(text)
}

async fn view(service: &Service, listed: Listed) -> Result<WorkflowView, Problem> {
    let versions = service.workflows.versions(&listed.name).await?;
    Ok(WorkflowView {
        workflow: listed.entry.loaded.as_ref().map(|loaded| loaded.workflow.graph().clone()),
        versions: versions.into_iter().map(VersionView::of).collect(),
        summary: WorkflowSummary::of(listed),
    })
}

impl VersionView {
    fn of(kept: Kept) -> Self {
        Self { version: kept.version, created_at: kept.created_at.rfc3339() }
    }
}

impl WorkflowSummary {
    fn of(listed: Listed) -> Self {
        let Listed { name, sources, entry: Entry { loaded, version, faults } } = listed;
        let workflow = loaded.as_ref().map(|loaded| &loaded.workflow);
        Self {
            name,
            version: version.filter(|_| workflow.is_some()),
            source: sources.first().copied(),
            hides: sources.into_iter().skip(1).collect(),
            description: workflow.and_then(|workflow| workflow.description()).map(str::to_owned),
            inputs: workflow.map(|workflow| workflow.inputs().iter().map(InputView::of).collect()).unwrap_or_default(),
            faults,
        }
    }
}

impl InputView {
    fn of(input: &Input) -> Self {
        let input = input.clone();
        Self {
            name: input.name,
            kind: input.kind,
            required: input.required,
            node: input.node,
            field: input.field,
            default: input.default,
            minimum: input.minimum,
            maximum: input.maximum,
            choices: input.choices,
            description: input.description,
        }
    }
}
