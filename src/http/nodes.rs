//! The node classes of all ComfyUI servers: what a graph may be made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use comfyd_actors::domain::{
    catalogue::{Class, InputSpec, OutputSpec, Takes},
    fleet::Fleet,
};
use serde::Serialize;
use serde_json::{Number, Value};
use utoipa::ToSchema;

use super::{
    Service,
    problem::{FieldFault, Problem, ProblemBody, each_parameter},
};
use crate::config::nearest;

const PARAMETERS: [&str; 6] = ["search", "category", "backend", "output_node", "limit", "cursor"];
/// Entries of a page, unless asked for otherwise, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// A page of node classes.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodePage {
    /// By name.
    pub nodes: Vec<NodeClassSummary>,
    /// How many there are on all pages.
    pub total: usize,
    /// Send it as `cursor` to get the next page; null on the last one.
    pub next_cursor: Option<String>,
}

/// A node class in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeClassSummary {
    /// Its name, as graphs write it in `class_type`.
    #[schema(example = "KSampler")]
    pub class_type: String,
    /// Its name for people.
    pub display_name: String,
    /// Where it stands in menus.
    #[schema(example = "sampling")]
    pub category: String,
    /// Whether it makes results; a graph needs at least one such node.
    pub output_node: bool,
    /// The servers that have it.
    pub backends: Vec<String>,
}

/// A node class with everything.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeClass {
    /// What lists show.
    #[serde(flatten)]
    pub summary: NodeClassSummary,
    /// What it does, in its author's words.
    pub description: String,
    /// What it takes and makes. One entry when all servers agree, else one for each kind of them: lists of models mostly differ.
    pub variants: Vec<NodeVariant>,
}

/// What a node class takes and makes on some servers.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeVariant {
    /// These servers.
    pub backends: Vec<String>,
    /// Its inputs, in order.
    pub inputs: Vec<NodeInput>,
    /// Its outputs; links name them by their index.
    pub outputs: Vec<NodeOutput>,
}

/// An input of a node class.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeInput {
    /// Its name.
    pub name: String,
    /// `INT`, `FLOAT`, `STRING`, `BOOLEAN`, `COMBO` (one of `options`), or the type of output it must be linked to; `*` is any.
    #[serde(rename = "type")]
    #[schema(example = "INT")]
    pub kind: String,
    /// Whether it must be there.
    pub required: bool,
    /// What editors start with; the server itself fills in nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Least number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub minimum: Option<Number>,
    /// Greatest number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub maximum: Option<Number>,
    /// The values there are. Without it, a `COMBO` takes what the server knows at the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<Value>>,
    /// Several of them may be chosen.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub multiple: bool,
    /// It names a file, and a new one may be uploaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub upload: bool,
}

/// An output of a node class.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeOutput {
    /// Its index in links.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    #[schema(example = "IMAGE")]
    pub kind: String,
    /// It is a list of such things.
    pub list: bool,
}

/// List node classes
///
/// What the ComfyUI servers told when they were last asked: when they came online, now and then, and when a graph lacked something.
#[utoipa::path(
    get, path = "/api/nodes", operation_id = "list_nodes", tag = "comfyui",
    params(
        ("search" = Option<String>, Query, description = "Only those with this text in a name"),
        ("category" = Option<String>, Query, description = "Only of this category and those below it"),
        ("backend" = Option<String>, Query, description = "Only what this server has"),
        ("output_node" = Option<bool>, Query, description = "Only those that make results, or only the others"),
        ("limit" = Option<usize>, Query, description = "Entries of a page, 1 to 1000; 100 without it"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")
    ),
    responses(
        (status = 200, description = "A page of them", body = NodePage),
        (status = 422, description = "Faulty parameters, all of them listed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "No server has told yet, or they are not asked (`comfyui.validate`)", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(service): State<Arc<Service>>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<NodePage>, Problem> {
    let fleet = known(&service)?;
    let wanted = Wanted::parse(&fleet, &parameters)?;
    let mut classes: BTreeMap<&str, (&Class, Vec<String>)> = BTreeMap::new();
    for (backend, catalogue) in fleet.known() {
        for (name, class) in catalogue.classes().filter(|(name, class)| wanted.takes(backend.as_str(), name, class)) {
            classes.entry(name).or_insert_with(|| (class, Vec::new())).1.push(backend.to_string());
        }
    }
    let total = classes.len();
    let after = wanted.cursor.as_deref().unwrap_or_default();
    let mut rest = classes.into_iter().filter(|(name, _)| *name > after);
    let nodes: Vec<NodeClassSummary> = rest
        .by_ref()
        .take(wanted.limit)
        .map(|(name, (class, backends))| NodeClassSummary::of(name, class, backends))
        .collect();
    let next_cursor = rest.next().and_then(|_| nodes.last().map(|last| last.class_type.clone()));
    Ok(Json(NodePage { nodes, total, next_cursor }))
}

/// See a node class
#[utoipa::path(
    get, path = "/api/nodes/{class_type}", operation_id = "get_node", tag = "comfyui",
    params(("class_type" = String, Path, description = "Its name, as graphs write it")),
    responses(
        (status = 200, description = "What it takes and makes", body = NodeClass),
        (status = 404, description = "No server has it; similar names are suggested", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "No server has told yet, or they are not asked (`comfyui.validate`)", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(
    State(service): State<Arc<Service>>,
    Path(class_type): Path<String>,
) -> Result<Json<NodeClass>, Problem> {
    let fleet = known(&service)?;
    let mut variants: Vec<(&Class, Vec<String>)> = Vec::new();
    for (backend, catalogue) in fleet.known() {
        let Some(class) = catalogue.class(&class_type) else { continue };
        match variants.iter_mut().find(|(other, _)| *other == class) {
            Some((_, backends)) => backends.push(backend.to_string()),
            None => variants.push((class, vec![backend.to_string()])),
        }
    }
    let Some((first, _)) = variants.first() else { return Err(unknown(&fleet, &class_type)) };
    let all = variants.iter().flat_map(|(_, backends)| backends.clone()).collect::<BTreeSet<_>>();
    Ok(Json(NodeClass {
        summary: NodeClassSummary::of(&class_type, first, all.into_iter().collect()),
        description: first.description.clone(),
        variants: variants.into_iter().map(|(class, backends)| NodeVariant::of(class, backends)).collect(),
    }))
}

fn known(service: &Service) -> Result<Arc<Fleet>, Problem> {
    let Some(fleet) = service.bridge.fleet() else {
        let detail = "the servers are not asked what they have, because comfyui.validate is off";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "nodes_unknown", detail));
    };
    if fleet.known().next().is_none() {
        let detail = "no ComfyUI server has told yet what it has; /api/status says which are online";
        return Err(Problem::unavailable("nodes_unknown", detail));
    }
    Ok(fleet)
}

fn unknown(fleet: &Fleet, class_type: &str) -> Problem {
    let names: BTreeSet<&str> =
        fleet.known().flat_map(|(_, catalogue)| catalogue.classes()).map(|(name, _)| name).collect();
    let suggestion = nearest(class_type, names);
    let detail = "no ComfyUI server has a node class of this name";
    let fault = FieldFault::parameter("class_type", detail).suggesting(suggestion);
    Problem::new(StatusCode::NOT_FOUND, "unknown_node", detail).with_errors(vec![fault])
}

/// Which classes to list.
struct Wanted {
    search: Option<String>,
    category: Option<String>,
    backend: Option<String>,
    output_node: Option<bool>,
    limit: usize,
    cursor: Option<String>,
}

impl Wanted {
    fn parse(fleet: &Fleet, parameters: &[(String, String)]) -> Result<Self, Problem> {
        let mut wanted =
            Self { search: None, category: None, backend: None, output_node: None, limit: PAGE, cursor: None };
        let faults = each_parameter(parameters, &PARAMETERS, |name, value| {
            match name {
                "search" => wanted.search = Some(value.to_lowercase()),
                "category" => wanted.category = Some(value.trim_end_matches('/').to_owned()),
                "cursor" => wanted.cursor = Some(value.to_owned()),
                "backend" => {
                    let known: Vec<&str> = fleet.known().map(|(backend, _)| backend.as_str()).collect();
                    if !known.contains(&value) {
                        let detail = format!("no such server has told what it has; there are: {}", known.join(", "));
                        return Err(FieldFault::parameter(name, detail).suggesting(nearest(value, known)));
                    }
                    wanted.backend = Some(value.to_owned());
                }
                "output_node" => {
                    let fault = |_| FieldFault::parameter(name, "expected true or false");
                    wanted.output_node = Some(value.parse().map_err(fault)?);
                }
                _ => {
                    let fault = || FieldFault::parameter(name, format!("expected a whole number from 1 to {MAX_PAGE}"));
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
                    wanted.limit = limit.ok_or_else(fault)?;
                }
            }
            Ok(())
        });
        if faults.is_empty() { Ok(wanted) } else { Err(Problem::invalid(faults)) }
    }

    fn takes(&self, backend: &str, name: &str, class: &Class) -> bool {
        let found = |text: &String| {
            name.to_lowercase().contains(text.as_str()) || class.title.to_lowercase().contains(text.as_str())
        };
        let below = |category: &String| {
            class.category.strip_prefix(category.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.search.as_ref().is_none_or(found)
            && self.category.as_ref().is_none_or(below)
            && self.backend.as_ref().is_none_or(|wanted| wanted == backend)
            && self.output_node.is_none_or(|wanted| wanted == class.is_output)
    }
}

impl NodeClassSummary {
    fn of(name: &str, class: &Class, backends: Vec<String>) -> Self {
        Self {
            class_type: name.to_owned(),
            display_name: if class.title.is_empty() { name.to_owned() } else { class.title.clone() },
            category: class.category.clone(),
            output_node: class.is_output,
            backends,
        }
    }
}

impl NodeVariant {
    fn of(class: &Class, backends: Vec<String>) -> Self {
        let outputs = class.outputs.iter().enumerate();
        Self {
            backends,
            inputs: class.inputs.iter().map(NodeInput::of).collect(),
            outputs: outputs.map(|(index, output)| NodeOutput::of(index, output)).collect(),
        }
    }
}

impl NodeInput {
    fn of(spec: &InputSpec) -> Self {
        let (minimum, maximum) = match &spec.takes {
            Takes::Whole(range) | Takes::Number(range) => (range.least.clone(), range.most.clone()),
            _ => (None, None),
        };
        let (options, multiple) = match &spec.takes {
            Takes::Choice(choice) => (choice.list.as_ref().map(|list| list.values.clone()), choice.many),
            _ => (None, false),
        };
        Self {
            name: spec.name.to_string(),
            kind: spec.takes.type_name().to_owned(),
            required: spec.required,
            default: spec.default.clone(),
            minimum,
            maximum,
            options,
            multiple,
            upload: spec.uploads.is_some(),
        }
    }
}

impl NodeOutput {
    fn of(index: usize, output: &OutputSpec) -> Self {
        Self { index, name: output.name.clone(), kind: output.kind.type_name().to_owned(), list: output.is_list }
    }
}
