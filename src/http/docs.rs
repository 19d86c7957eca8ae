//! The OpenAPI document, made from the handlers, and the page that shows it, which needs nothing from the internet.

use std::{collections::HashSet, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    response::{Html, Redirect},
    routing::get,
};
use serde_json::{Value, json};
use utoipa::{
    OpenApi,
    openapi::{ContentBuilder, PathItem, Ref, ResponseBuilder, path::Operation},
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    Service,
    problem::{MEDIA_TYPE, ProblemBody},
};
use crate::{webhooks::Message, workflows::Listed};

/// What the document says beside the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "comfyd",
        description = "A durable queue and a REST API in front of ComfyUI. Create a task, then ask for it until it is `completed`. \
                       Every error is `application/problem+json` and lists all faults of the request at once.",
        license(name = "MIT", identifier = "MIT"),
    ),
    tags(
        (name = "tasks", description = "Create tasks, follow them, get their outputs"),
        (name = "events", description = "Watch tasks while they run"),
        (name = "webhooks", description = "Messages to receivers that `webhook_url` names (`WebhookMessage`, signed as Standard Webhooks has it): the log, and sending again"),
        (name = "inputs", description = "Files for tasks: store them once, refer to them often"),
        (name = "workflows", description = "Named workflows: what there is, publishing, and one typed operation for each"),
        (name = "comfyui", description = "The ComfyUI servers behind the queue"),
        (name = "service", description = "Health and status of this service"),
        (name = "passthrough", description = "ComfyUI's own API, for clients that are written for it"),
    ),
    components(schemas(ProblemBody, Message)),
)]
pub struct Intro;

/// Any operation can end like this.
const EVERYWHERE: [(&str, &str); 2] =
    [("500", "A fault of ours; the log has more under the request's id"), ("504", "The request took too long")];
/// Any operation that changes something can.
const WRITES: (&str, &str) = ("403", "Sent by a browser on behalf of a page of another site");

/// The document of all routes, and of one operation for each of these workflows.
#[must_use]
pub fn document(workflows: &[Listed]) -> Value {
    let mut document = serde_json::to_value(routes()).unwrap_or_default();
    let Some(run) = document.pointer_mut("/paths/~1api~1workflows~1{name}~1tasks/post") else { return document };
    let any = run.clone();
    let create = document.pointer("/components/schemas/CreateTask").cloned().unwrap_or_default();
    let any_inputs = json!({"type": "object", "description": "The workflow's inputs by name."});
    document["paths"]["/api/workflows/{name}/tasks"]["post"] = taking(any.clone(), body_of(create.clone(), any_inputs));
    let mut ids = HashSet::new();
    for Listed { name, entry, .. } in workflows {
        let Some(loaded) = &entry.loaded else { continue };
        let mut operation = taking(any.clone(), body_of(create.clone(), loaded.workflow.schema()));
        operation["summary"] = json!(format!("Create a task from {name}"));
        if let Some(description) = loaded.workflow.description() {
            operation["description"] = json!(description);
        }
        operation["operationId"] = json!(operation_id(name, &mut ids));
        if let Some(Value::Array(parameters)) = operation.get_mut("parameters") {
            parameters.retain(|parameter| parameter["in"] != "path");
        }
        document["paths"][format!("/api/workflows/{name}/tasks")] = json!({"post": operation});
    }
    document
}

/// What a creation takes, its workflow being known: these inputs, and everything else as it is.
fn body_of(mut create: Value, inputs: Value) -> Value {
    let required = inputs["required"].as_array().is_some_and(|names| !names.is_empty());
    if let Some(properties) = create["properties"].as_object_mut() {
        properties.remove("workflow");
        properties.insert("inputs".to_owned(), inputs);
    }
    create["required"] = if required { json!(["inputs"]) } else { json!([]) };
    create["description"] = json!("A task to be created from this workflow.");
    create
}

fn taking(mut operation: Value, body: Value) -> Value {
    operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": body}}});
    operation
}

/// A name for generated clients: `run_text_to_image`. Two names that differ in their punctuation only get a number.
fn operation_id(name: &str, taken: &mut HashSet<String>) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let id = format!("run_{plain}");
    let mut free = id.clone();
    let mut number = 1;
    while !taken.insert(free.clone()) {
        number += 1;
        free = format!("{id}_{number}");
    }
    free
}

/// The document of all routes.
fn routes() -> utoipa::openapi::OpenApi {
    let mut document = super::routes().into_openapi();
    let paths = std::mem::take(&mut document.paths.paths);
    for (path, mut item) in paths {
        let writes = [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in writes.into_iter().flatten() {
            add_problem(operation, WRITES);
        }
        let mut operations = operations(&mut item);
        let ids: Vec<_> = operations.iter().map(|(_, operation)| operation.operation_id.clone()).collect();
        let shared = |id: &String| ids.iter().flatten().filter(|other| *other == id).count() > 1;
        for (method, operation) in &mut operations {
            EVERYWHERE.iter().for_each(|answer| add_problem(operation, *answer));
            // One handler for several methods; the document wants a name for each.
            if let Some(id) = operation.operation_id.as_mut().filter(|id| shared(id)) {
                *id = format!("{id}_{method}");
            }
        }
        // The router's spelling of "the rest of the path".
        document.paths.paths.insert(path.replace("{*", "{"), item);
    }
    document
}

/// The operations of a path by method.
fn operations(item: &mut PathItem) -> Vec<(&'static str, &mut Operation)> {
    let PathItem { get, head, post, put, patch, delete, options, trace, .. } = item;
    let all = [
        ("get", get),
        ("head", head),
        ("post", post),
        ("put", put),
        ("patch", patch),
        ("delete", delete),
        ("options", options),
        ("trace", trace),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?))).collect()
}

fn add_problem(operation: &mut Operation, (status, detail): (&str, &str)) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response = ResponseBuilder::new().description(detail).content(MEDIA_TYPE, content).build();
    operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
}

/// `/docs`, `/openapi.json`, and `/`, which leads there.
pub fn pages() -> Router<Arc<Service>> {
    // The usual validator is a service on the internet, which would be sent the document.
    let config = Config::new(["/openapi.json"]).validator_url("none").try_it_out_enabled(true);
    // No bar to load other documents with, and the schemas folded away: the operations are what people come for.
    let page = SwaggerUi::new("/docs").config(config.use_base_layout().default_models_expand_depth(0));
    Router::new()
        .route("/", get(|| async { Redirect::temporary("/docs") }))
        .route("/openapi.json", get(current))
        .route("/examples/watch", get(|| async { Html(include_str!("../../examples/watch.html")) }))
        .merge(page)
}

/// Made anew for each reader, because workflows come and go.
async fn current(State(service): State<Arc<Service>>) -> Json<Value> {
    Json(document(&service.workflows.list()))
}
