//! The OpenAPI document, made from the handlers, and the page that shows it, which needs nothing from the internet.

use axum::{Router, response::Redirect, routing::get};
use utoipa::{
    OpenApi,
    openapi::{ContentBuilder, PathItem, Ref, ResponseBuilder, path::Operation},
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::problem::{MEDIA_TYPE, ProblemBody};

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
        (name = "comfyui", description = "The ComfyUI servers behind the queue"),
        (name = "service", description = "Health and status of this service"),
    ),
    components(schemas(ProblemBody)),
)]
pub struct Intro;

/// Any operation can end like this.
const EVERYWHERE: [(&str, &str); 2] =
    [("500", "A fault of ours; the log has more under the request's id"), ("504", "The request took too long")];
/// Any operation that changes something can.
const WRITES: (&str, &str) = ("403", "Sent by a browser on behalf of a page of another site");

/// The document of all routes.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = super::routes().into_openapi();
    let paths = std::mem::take(&mut document.paths.paths);
    for (path, mut item) in paths {
        let writes = [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in writes.into_iter().flatten() {
            add_problem(operation, WRITES);
        }
        let mut operations = operations(&mut item);
        let shared = operations.len() > 1;
        for (method, operation) in &mut operations {
            EVERYWHERE.iter().for_each(|answer| add_problem(operation, *answer));
            // One handler for several methods; the document wants a name for each.
            if let Some(id) = operation.operation_id.as_mut().filter(|_| shared) {
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
pub fn pages<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = SwaggerUi::new("/docs").url("/openapi.json", document());
    // The usual validator is a service on the internet, which would be sent the document.
    let config = Config::new(["/openapi.json"]).validator_url("none").try_it_out_enabled(true);
    // No bar to load other documents with, and the schemas folded away: the operations are what people come for.
    let page = page.config(config.use_base_layout().default_models_expand_depth(0));
    Router::new().route("/", get(|| async { Redirect::temporary("/docs") })).merge(page)
}
