//! What ComfyUI checks before it takes a prompt, and the words in which it refuses.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{Graph, Input, Node};
use crate::config::Generation;
use crate::files::Files;
use crate::nodes::{InputSpec, Kind, Lists, Work};

/// Chains longer than this end in Python's recursion limit: 400 nodes pass on a real server, 2000 do not.
const MAX_DEPTH: usize = 480;
/// Longer lists are not echoed in the details of `value_not_in_list`.
const ECHOED_OPTIONS: usize = 20;

/// The verdict on a graph that has output nodes.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Indexes of the output nodes that may run; empty means the prompt is refused.
    pub outputs: Vec<usize>,
    /// What is wrong, by node id; not empty beside valid outputs is partial acceptance.
    pub node_errors: Map<String, Json>,
    /// The `details` of a refusal: the faults of the output nodes themselves.
    pub details: String,
}

/// The result of one node.
#[derive(Debug, Clone)]
struct Checked {
    valid: bool,
    errors: Vec<Json>,
}

/// Checks `outputs` (indexes of output nodes) and everything they need.
pub(crate) fn validate(graph: &Graph, outputs: &[usize], lists: &Lists<'_>, generation: Generation) -> Verdict {
    let mut checker = Checker { graph, lists, generation, checked: HashMap::new() };
    let mut good = Vec::new();
    let mut node_errors = Map::new();
    let mut details = Vec::new();
    for &output in outputs {
        checker.check_tree(output);
        let own = checker.checked.get(&output);
        if own.is_some_and(|own| own.valid) {
            good.push(output);
            continue;
        }
        for error in own.map(|own| own.errors.as_slice()).unwrap_or_default() {
            let text = |key: &str| error.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
            details.push(format!("{}: {}", text("message"), text("details")));
        }
        let mut wrong: Vec<usize> = checker
            .checked
            .iter()
            .filter(|(_, result)| !result.valid && !result.errors.is_empty())
            .map(|(at, _)| *at)
            .collect();
        wrong.sort_unstable();
        for at in wrong {
            let node = &graph.nodes[at];
            let entry = node_errors.entry(node.id.clone()).or_insert_with(|| {
                json!({"errors": checker.checked[&at].errors, "dependent_outputs": [], "class_type": node.class.name})
            });
            if let Some(Json::Array(dependents)) = entry.get_mut("dependent_outputs") {
                dependents.push(Json::String(graph.nodes[output].id.clone()));
            }
        }
    }
    Verdict { outputs: good, node_errors, details: details.join("\n") }
}

struct Checker<'a> {
    graph: &'a Graph,
    lists: &'a Lists<'a>,
    generation: Generation,
    checked: HashMap<usize, Checked>,
}

impl Checker<'_> {
    /// Checks a node after everything it is linked to. The walk keeps its own stack: a graph from outside must not decide how
    /// deep ours grows.
    fn check_tree(&mut self, output: usize) {
        let mut path: Vec<(usize, Vec<usize>)> = Vec::new();
        self.enter(&mut path, output);
        while let Some((node, open)) = path.last_mut() {
            let node = *node;
            match open.pop() {
                Some(next) if self.checked.contains_key(&next) => {}
                Some(next) if path.iter().any(|(on_path, _)| *on_path == next) => {
                    self.report_cycle(&path, next);
                    return;
                }
                Some(_) if path.len() >= MAX_DEPTH => {
                    let message = "maximum recursion depth exceeded".to_owned();
                    path.pop();
                    let parent = path.last().map(|(parent, _)| *parent);
                    let result = self.raised(node, parent, message, "RecursionError");
                    self.checked.insert(node, result);
                }
                Some(next) => self.enter(&mut path, next),
                None => {
                    path.pop();
                    let result = self.check(node, path.last().map(|(parent, _)| *parent));
                    self.checked.insert(node, result);
                }
            }
        }
    }

    fn enter(&self, path: &mut Vec<(usize, Vec<usize>)>, node: usize) {
        let mut links: Vec<usize> = self.graph.nodes[node].links().collect();
        links.reverse();
        path.push((node, links));
    }

    fn report_cycle(&mut self, path: &[(usize, Vec<usize>)], again: usize) {
        let from = path.iter().position(|(node, _)| *node == again).unwrap_or(0);
        let cycle: Vec<usize> = path[from..].iter().map(|(node, _)| *node).collect();
        let label = |at: &usize| format!("{} ({})", self.graph.nodes[*at].id, self.graph.nodes[*at].class.name);
        let details = cycle.iter().chain(cycle.first()).map(label).collect::<Vec<_>>().join(" -> ");
        let ids: Vec<&str> = cycle.iter().map(|at| self.graph.nodes[*at].id.as_str()).collect();
        for &(node, _) in path {
            let on_cycle = cycle.contains(&node) && self.generation.has_jobs_api();
            let error = json!({
                "type": "dependency_cycle",
                "message": "Dependency cycle detected",
                "details": details,
                "extra_info": {"node_id": self.graph.nodes[node].id, "cycle_nodes": ids},
            });
            let errors = if on_cycle { vec![error] } else { Vec::new() };
            self.checked.insert(node, Checked { valid: false, errors });
        }
    }

    fn check(&self, at: usize, parent: Option<usize>) -> Checked {
        let node = &self.graph.nodes[at];
        if !node.has_inputs {
            return self.raised(at, parent, "'inputs'".to_owned(), "KeyError");
        }
        let mut errors = Vec::new();
        let mut valid = true;
        for spec in node.class.inputs {
            match node.input(spec.name) {
                None if spec.required => errors.push(missing(spec)),
                None => {}
                Some(Input::Link { node: source, slot }) => match self.check_link(spec, *source, *slot) {
                    Ok(sound) => valid &= sound,
                    Err(LinkFault::Mismatch(error)) => errors.push(error),
                    Err(LinkFault::Raised(message, kind)) => return self.raised(at, parent, message, kind),
                },
                Some(Input::BadLink(value)) => match value.as_array().map(Vec::as_slice) {
                    Some([id, _]) => {
                        let message = id.as_str().map_or_else(|| id.to_string(), |id| format!("'{id}'"));
                        return self.raised(at, parent, message, "KeyError");
                    }
                    _ => errors.push(self.bad_link(spec, value)),
                },
                Some(Input::Literal(value)) => errors.extend(self.check_literal(spec, value)),
            }
        }
        if errors.is_empty()
            && let Some(error) = custom_check(node, self.lists.files)
        {
            errors.push(error);
        }
        Checked { valid: valid && errors.is_empty(), errors }
    }

    /// An exception while checking `at`: told by the node that asked for it, or by the top when `at` is the output itself.
    fn raised(&self, at: usize, parent: Option<usize>, message: String, exception_type: &'static str) -> Checked {
        let mut error = json!({
            "type": "exception_during_validation",
            "message": "Exception when validating node",
            "details": message,
            "extra_info": {"exception_type": exception_type, "traceback": traceback()},
        });
        if let Some(parent) = parent {
            error["type"] = json!("exception_during_inner_validation");
            error["message"] = json!("Exception when validating inner node");
            let info = &mut error["extra_info"];
            info["exception_message"] = json!(message);
            let parent = &self.graph.nodes[parent];
            let by = parent.inputs.iter().find_map(|(name, input)| match input {
                Input::Link { node, slot } if *node == at => Some((name, *slot)),
                _ => None,
            });
            if let Some((name, slot)) = by {
                let spec = parent.class.inputs.iter().find(|spec| spec.name == name);
                info["input_name"] = json!(name);
                info["input_config"] = spec.map_or(Json::Null, |spec| self.lists.config(spec.kind));
                info["linked_node"] = json!([self.graph.nodes[at].id, slot]);
            }
        }
        Checked { valid: false, errors: vec![error] }
    }

    fn check_link(&self, spec: &InputSpec, source: usize, slot: usize) -> Result<bool, LinkFault> {
        let Some((received, _)) = self.graph.nodes[source].class.outputs.get(slot) else {
            return Err(LinkFault::Raised("tuple index out of range".to_owned(), "IndexError"));
        };
        let expected = spec.kind.type_name();
        if expected != "*" && *received != expected {
            let details = format!("{}, received_type({received}) mismatch input_type({expected})", spec.name);
            return Err(LinkFault::Mismatch(json!({
                "type": "return_type_mismatch",
                "message": "Return type mismatch between linked nodes",
                "details": details,
                "extra_info": {
                    "input_name": spec.name,
                    "input_config": self.lists.config(spec.kind),
                    "received_type": received,
                    "linked_node": [self.graph.nodes[source].id, slot],
                },
            })));
        }
        Ok(self.checked.get(&source).is_some_and(|source| source.valid))
    }

    fn bad_link(&self, spec: &InputSpec, value: &Json) -> Json {
        json!({
            "type": "bad_linked_input",
            "message": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
            "details": spec.name,
            "extra_info": {"input_name": spec.name, "input_config": self.lists.config(spec.kind), "received_value": value},
        })
    }

    fn check_literal(&self, spec: &InputSpec, value: &Json) -> Option<Json> {
        let error = |kind: &str, message: String, details: String| {
            Some(json!({
                "type": kind,
                "message": message,
                "details": details,
                "extra_info": {
                    "input_name": spec.name,
                    "input_config": self.lists.config(spec.kind),
                    "received_value": value,
                },
            }))
        };
        match spec.kind {
            Kind::Int { min, max, .. } => match int(value) {
                None => Some(self.unconvertible(spec, value, "INT")),
                Some(number) if number < i128::from(min) => error(
                    "value_smaller_than_min",
                    format!("Value {number} smaller than min of {min}"),
                    spec.name.to_owned(),
                ),
                Some(number) if number > i128::from(max) => error(
                    "value_bigger_than_max",
                    format!("Value {number} bigger than max of {max}"),
                    spec.name.to_owned(),
                ),
                Some(_) => None,
            },
            Kind::Seed => match int(value) {
                None => Some(self.unconvertible(spec, value, "INT")),
                Some(number) if number < 0 => error(
                    "value_smaller_than_min",
                    format!("Value {number} smaller than min of 0"),
                    spec.name.to_owned(),
                ),
                Some(number) if number > i128::from(u64::MAX) => {
                    let message = format!("Value {number} bigger than max of {}", u64::MAX);
                    error("value_bigger_than_max", message, spec.name.to_owned())
                }
                Some(_) => None,
            },
            Kind::Float { min, max, .. } => match float(value) {
                None => Some(self.unconvertible(spec, value, "FLOAT")),
                Some(number) if number < min => error(
                    "value_smaller_than_min",
                    format!("Value {number} smaller than min of {min}"),
                    spec.name.to_owned(),
                ),
                Some(number) if number > max => error(
                    "value_bigger_than_max",
                    format!("Value {number} bigger than max of {max}"),
                    spec.name.to_owned(),
                ),
                Some(_) => None,
            },
            Kind::Choice(_) | Kind::List(_) => {
                let options = self.lists.options(spec.kind).unwrap_or_default();
                if value.as_str().is_some_and(|value| options.iter().any(|option| option == value)) {
                    return None;
                }
                let shown = if options.len() > ECHOED_OPTIONS {
                    format!("(list of length {})", options.len())
                } else {
                    format!("[{}]", options.iter().map(|option| format!("'{option}'")).collect::<Vec<_>>().join(", "))
                };
                let found = value.as_str().map_or_else(|| value.to_string(), |text| format!("'{text}'"));
                error(
                    "value_not_in_list",
                    "Value not in list".to_owned(),
                    format!("{}: {found} not in {shown}", spec.name),
                )
            }
            Kind::Text { .. } | Kind::Bool { .. } | Kind::ImageFile | Kind::Linked(_) => None,
        }
    }

    fn unconvertible(&self, spec: &InputSpec, value: &Json, kind: &str) -> Json {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let why = match kind {
            "INT" => format!("invalid literal for int() with base 10: '{text}'"),
            _ => format!("could not convert string to float: '{text}'"),
        };
        json!({
            "type": "invalid_input_type",
            "message": format!("Failed to convert an input value to a {kind} value"),
            "details": format!("{}, {text}, {why}", spec.name),
            "extra_info": {
                "input_name": spec.name,
                "input_config": self.lists.config(spec.kind),
                "received_value": value,
                "exception_message": why,
            },
        })
    }
}

enum LinkFault {
    Mismatch(Json),
    Raised(String, &'static str),
}

fn missing(spec: &InputSpec) -> Json {
    json!({
        "type": "required_input_missing",
        "message": "Required input is missing",
        "details": spec.name,
        "extra_info": {"input_name": spec.name},
    })
}

/// The one traceback this server has.
pub(crate) fn traceback() -> [&'static str; 2] {
    ["  File \"/comfyui/execution.py\", line 1, in execute\n", "  File \"/comfyui/nodes.py\", line 1, in run\n"]
}

/// `VALIDATE_INPUTS` of the image loaders: the named file must exist.
fn custom_check(node: &Node, files: &Files) -> Option<Json> {
    if !matches!(node.class.work, Work::LoadImage | Work::LoadImageMask) {
        return None;
    }
    let Some(Input::Literal(Json::String(name))) = node.input("image") else {
        return None;
    };
    files.find_annotated(name).is_none().then(|| {
        json!({
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": format!("image - Invalid image file: {name}"),
            "extra_info": {"input_name": "image"},
        })
    })
}

/// `int(value)` as Python does it: numbers are cut, numeric strings and booleans taken.
pub(crate) fn int(value: &Json) -> Option<i128> {
    match value {
        Json::Number(number) => number
            .as_i64()
            .map(i128::from)
            .or_else(|| number.as_u64().map(i128::from))
            .or_else(|| number.as_f64().map(|float| float.trunc() as i128)),
        Json::String(text) => text.trim().replace('_', "").parse().ok(),
        Json::Bool(flag) => Some(i128::from(*flag)),
        _ => None,
    }
}

/// `float(value)` as Python does it.
pub(crate) fn float(value: &Json) -> Option<f64> {
    match value {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => text.trim().parse().ok(),
        Json::Bool(flag) => Some(f64::from(u8::from(*flag))),
        _ => None,
    }
}
