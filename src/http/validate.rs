//! Holds a new task's graph against what the ComfyUI servers have, before anything is stored and before any GPU is busy with it.

use std::{collections::BTreeSet, sync::Arc};

use axum::http::StatusCode;
use comfyd_actors::{
    bridge::TaskRequest,
    domain::{
        check::{Fault, Lack, Terms},
        fleet::{Fleet, Objection, Verdict},
        graph::escape,
        id::BackendId,
        lane::{Lane, Needs},
        workflow::Workflow,
    },
};
use serde_json::{Map, Value};

use super::{
    Service,
    problem::{FieldFault, MAX_FAULTS, Problem},
};

/// A graph up to this size is looked at on the spot: a fraction of a millisecond.
const SMALL: usize = 64 << 10;
/// Faults for which similar names are looked for, and how many are told.
const MAX_GUESSES: usize = 10;
const MAX_NAMES: usize = 3;

/// Finds the lane of a request, made of a graph or of a named workflow. A graph that lacks something is looked at again when the servers have been asked anew: somebody may
/// just have installed it.
///
/// # Errors
/// 422 with every fault, when no server will take the graph.
pub async fn validate(
    service: &Service,
    request: TaskRequest,
    workflow: Option<&Workflow>,
) -> Result<TaskRequest, Problem> {
    let Some(fleet) = service.bridge.fleet() else { return Ok(in_lane(service, Needs::default(), request)) };
    let first = judge(fleet.clone(), &request).await?;
    let verdict = match &first {
        Verdict::Refused(objections) if objections.iter().any(|objection| objection.fault.lack.is_some()) => {
            service.bridge.survey().await;
            let now = service.bridge.fleet().unwrap_or_default();
            if Arc::ptr_eq(&fleet, &now) { first } else { judge(now, &request).await? }
        }
        _ => first,
    };
    match verdict {
        Verdict::Taken(lane) => Ok(in_lane(service, Needs::clone(&lane.needs), request)),
        Verdict::Refused(objections) => {
            let fleet = service.bridge.fleet().unwrap_or_default();
            let origins = Origins::of(workflow, &request);
            // Looking for similar names among thousands takes its time.
            let refused = tokio::task::spawn_blocking(move || refusal(&fleet, objections, &origins)).await;
            Err(refused.unwrap_or_else(|_| Problem::internal()))
        }
    }
}

/// The lane of what a graph needs and what its client said.
fn in_lane(service: &Service, needs: Needs, request: TaskRequest) -> TaskRequest {
    let Needs { labels, tenant, .. } = Needs::clone(&request.lane.needs);
    let workflow = request.workflow.clone().filter(|_| service.config.workflow_lanes);
    TaskRequest { lane: Lane::of(Needs { labels, workflow, tenant, ..needs }), ..request }
}

async fn judge(fleet: Arc<Fleet>, request: &TaskRequest) -> Result<Verdict, Problem> {
    let (graph, allow_partial) = (request.payload.graph.clone(), request.payload.options.allow_partial);
    let judge = move || {
        let graph: Map<String, Value> = serde_json::from_str(&graph).map_err(|_| Problem::internal())?;
        Ok(fleet.judge(&graph, Terms { allow_partial, is_placeholder: &is_placeholder }))
    };
    if request.payload.graph.len() <= SMALL {
        return judge();
    }
    tokio::task::spawn_blocking(judge).await.unwrap_or_else(|_| Err(Problem::internal()))
}

/// A file that is still to be handed to the server: its name there is not known yet.
pub fn is_placeholder(_node: &str, _input: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => ["comfyd:", "data:"].iter().any(|scheme| text.starts_with(scheme)),
        Value::Object(fields) => !fields.contains_key("__value__"),
        _ => false,
    }
}

/// Where in the request the inputs of nodes come from.
struct Origins {
    /// Node, input, and the name the client gave its value under.
    given: Vec<(String, String, String)>,
    is_named: bool,
}

impl Origins {
    fn of(workflow: Option<&Workflow>, request: &TaskRequest) -> Self {
        let given: Map<String, Value> = serde_json::from_str(&request.payload.inputs).unwrap_or_default();
        let inputs = workflow.map(Workflow::inputs).unwrap_or_default();
        let named = inputs.iter().filter(|input| given.contains_key(&input.name));
        let mut origins: Vec<_> =
            named.map(|input| (input.node.clone(), input.field.clone(), input.name.clone())).collect();
        if workflow.is_none() {
            let address = |name: &String| {
                let (node, field) = name.split_once('.')?;
                Some((node.to_owned(), field.to_owned(), name.clone()))
            };
            origins.extend(given.keys().filter_map(address));
        }
        Self { given: origins, is_named: workflow.is_some() }
    }

    /// A JSON pointer to what the client can change about it.
    fn pointer(&self, fault: &Fault) -> String {
        let Some(node) = &fault.node else { return "/workflow".to_owned() };
        let input = fault.input.as_deref();
        if let Some((_, _, name)) = self.given.iter().find(|(at, field, _)| at == node && Some(field.as_str()) == input)
        {
            return format!("/inputs/{}", escape(name));
        }
        match input {
            _ if self.is_named => "/workflow".to_owned(),
            None => format!("/workflow/{}/class_type", escape(node)),
            Some(input) => format!("/workflow/{}/inputs/{}", escape(node), escape(input)),
        }
    }

    /// What the pointer does not say.
    fn place(&self, fault: &Fault) -> String {
        match (&fault.node, &fault.input) {
            (Some(node), Some(input)) if self.is_named => format!("node {node}, {input}: "),
            (Some(node), None) if self.is_named => format!("node {node}: "),
            _ => String::new(),
        }
    }
}

fn refusal(fleet: &Fleet, objections: Vec<Objection>, origins: &Origins) -> Problem {
    let several = fleet.known().count() > 1;
    let count = objections.len();
    let told = objections.into_iter().take(MAX_FAULTS).enumerate();
    let faults = told.map(|(index, Objection { fault, on, without })| {
        let names = match &fault.lack {
            Some(lack) if index < MAX_GUESSES => near(fleet, lack),
            _ => Vec::new(),
        };
        let mut detail = format!("{}{}", origins.place(&fault), fault.detail);
        if !without.is_empty() {
            let has = if fault.lack.is_some() { "has it" } else { "would take it" };
            detail = format!("{detail} (on {}; {} {has})", list(&on), list(&without));
        } else if several {
            detail.push_str(" (on every server)");
        }
        if names.len() > 1 {
            detail = format!("{detail}; similar: {}", names.join(", "));
        }
        FieldFault::at(origins.pointer(&fault), detail).suggesting(names.into_iter().next())
    });
    let faults: Vec<FieldFault> = faults.collect();
    let what = if count == 1 { "1 fault".to_owned() } else { format!("{count} faults") };
    let detail = format!("no ComfyUI server can run this graph, it has {what}; nothing was stored");
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_graph", detail).with_errors(faults)
}

fn list(backends: &[BackendId]) -> String {
    backends.iter().map(BackendId::as_str).collect::<Vec<_>>().join(", ")
}

/// What is there that is called alike, the most alike first.
fn near(fleet: &Fleet, lack: &Lack) -> Vec<String> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (_, catalogue) in fleet.known() {
        match lack {
            Lack::Class(_) => names.extend(catalogue.classes().map(|(name, _)| name)),
            Lack::Value(value) => {
                let list = catalogue.class(&value.class).and_then(|class| class.list(&value.input));
                names.extend(list.iter().flat_map(|list| list.values.iter().filter_map(Value::as_str)));
            }
        }
    }
    let wanted = match lack {
        Lack::Class(class) => class,
        Lack::Value(value) => &value.value,
    };
    similar(wanted, names)
}

/// The names most like the one wanted. Folder and extension count for nothing, so that a model is found wherever it lies.
fn similar<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    /// Below this two names have too little in common.
    const ALIKE: f64 = 0.6;
    /// Comparing costs the product of two lengths, and one of them comes from a client.
    const LONGEST: usize = 128;
    const MOST: usize = 5_000;
    let stem = |name: &str| {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_lowercase()
    };
    if wanted.len() > LONGEST {
        return Vec::new();
    }
    let wanted = stem(wanted);
    let compared = names.into_iter().filter(|name| name.len() <= LONGEST).take(MOST);
    let likeness = |name: &str| {
        let name = stem(name);
        let begins = name.starts_with(&wanted) || wanted.starts_with(&name);
        strsim::normalized_damerau_levenshtein(&wanted, &name).max(if begins && name.len() > 2 { ALIKE } else { 0.0 })
    };
    let mut alike: Vec<(f64, &str)> = compared.map(|name| (likeness(name), name)).collect();
    alike.retain(|(likeness, _)| *likeness >= ALIKE);
    alike.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    alike.into_iter().take(MAX_NAMES).map(|(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::similar;

    #[test]
    fn models_are_found_by_what_they_are_called() {
        let there =
            ["SD1.5/v1-5-pruned-emaonly.safetensors", "sd_xl_base_1.0.safetensors", "flux1-dev.safetensors", "x.ckpt"];
        for (wanted, found) in [
            ("v1-5-pruned-emaonly.ckpt", vec!["SD1.5/v1-5-pruned-emaonly.safetensors"]),
            ("sdxl_base_1.0.safetensors", vec!["sd_xl_base_1.0.safetensors"]),
            ("FLUX1-dev", vec!["flux1-dev.safetensors"]),
            ("sd_xl_base", vec!["sd_xl_base_1.0.safetensors"]),
            ("something else entirely.safetensors", vec![]),
        ] {
            assert_eq!(similar(wanted, there), found, "{wanted}");
        }
        assert!(similar(&"v".repeat(200), there).is_empty());
    }
}
