//! Named workflows: a graph with named, typed inputs, so that a client sends `{"prompt": "a boat"}` and not a graph.
//!
//! The file is `{"workflow": <API graph>, "inputs": [...], "description": "..."}` (`read`). An input is an object that says all about
//! itself, or just a name that is [resolved](super::resolve) from the graph. A raw graph has inputs too: each field of each node,
//! addressed `"<node id>.<field>"`.

use std::time::Duration;

use serde_json::{Map, Value};

use super::graph;

mod input;
mod name;
mod read;
mod schema;

use input::Wanted;

pub use input::{Input, Kind};
pub use name::{MAX_NAME, Reference, check_name};
pub use read::FileFault;

/// Drawn seeds stay below 2^53, so that a client that reads them as doubles (JavaScript) can send them back unchanged.
const SEED_DRAW: u64 = 1 << 53;

/// A graph whose inputs have names.
#[derive(Debug, Clone, PartialEq)]
pub struct Workflow {
    graph: Value,
    inputs: Vec<Input>,
    description: Option<String>,
    no_progress_timeout: Option<Duration>,
}

/// Why a value was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFault {
    /// The input's name as the client wrote it, or as the workflow wants it.
    pub name: String,
    /// What is wrong.
    pub detail: String,
    /// There is no such input, so a similar name may help.
    pub unknown: bool,
}

/// A graph ready to be submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The graph with all values in place.
    pub graph: Value,
    /// The inputs as given, and what was drawn at random.
    pub inputs: Map<String, Value>,
}

impl Workflow {
    /// Its inputs, in the file's order.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The graph as the file has it.
    #[must_use]
    pub fn graph(&self) -> &Value {
        &self.graph
    }

    /// What it is for.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// How long its runs may show no sign of progress, if it says so.
    #[must_use]
    pub fn no_progress_timeout(&self) -> Option<Duration> {
        self.no_progress_timeout
    }

    /// The graph's own value of a field.
    fn literal(&self, node: &str, field: &str) -> Option<&Value> {
        self.graph.get(node)?.get("inputs")?.get(field)
    }

    /// The graph with the given inputs in place; `draw` makes the seeds that are missing.
    ///
    /// # Errors
    /// Every input at fault.
    pub fn apply(&self, given: Map<String, Value>, mut draw: impl FnMut() -> u64) -> Result<Applied, Vec<InputFault>> {
        let mut applied = Applied { graph: self.graph.clone(), inputs: given };
        let unknown = applied.inputs.keys().filter(|name| !self.inputs.iter().any(|input| input.name == **name));
        let mut faults: Vec<InputFault> =
            unknown.map(|name| InputFault::unknown(name, "no input has this name")).collect();
        for input in &self.inputs {
            match input.value(applied.inputs.get(&input.name)) {
                Ok(Wanted::Value(value)) => set(&mut applied.graph, &input.node, &input.field, value),
                Ok(Wanted::Drawn) => {
                    let seed = Value::from(draw() % SEED_DRAW);
                    applied.inputs.insert(input.name.clone(), seed.clone());
                    set(&mut applied.graph, &input.node, &input.field, seed);
                }
                Ok(Wanted::Untouched) => {}
                Err(detail) => faults.push(InputFault::new(&input.name, detail)),
            }
        }
        if faults.is_empty() { Ok(applied) } else { Err(faults) }
    }
}

/// Writes inputs addressed `"<node id>.<field>"` into a raw graph that passed [`graph::check`].
///
/// # Errors
/// Every address that leads nowhere and every link to a node that is not there.
pub fn apply_raw(graph: &mut Value, inputs: &Map<String, Value>) -> Result<(), Vec<InputFault>> {
    let Some(nodes) = graph.as_object() else { return Ok(()) };
    let mut faults = Vec::new();
    let mut writes = Vec::with_capacity(inputs.len());
    for (name, value) in inputs {
        let Some((node, field)) = address(nodes, name) else {
            faults.push(InputFault::unknown(
                name,
                "the inputs of a graph are addressed \"<node id>.<field>\"; there is no such field",
            ));
            continue;
        };
        match graph::link_fault(nodes, value) {
            Some(detail) => faults.push(InputFault::new(name, detail)),
            None => writes.push((node.to_owned(), field.to_owned(), value.clone())),
        }
    }
    for (node, field, value) in writes {
        set(graph, &node, &field, value);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// The addresses of all fields of a graph.
pub fn addresses(nodes: &Map<String, Value>) -> impl Iterator<Item = String> {
    nodes.iter().flat_map(|(id, node)| {
        let fields = node.get("inputs").and_then(Value::as_object);
        fields.into_iter().flat_map(move |fields| fields.keys().map(move |field| format!("{id}.{field}")))
    })
}

/// The node, and the name of its field, that an input of a raw graph addresses.
#[must_use]
pub fn field_at<'a>(graph: &'a Value, name: &'a str) -> Option<(&'a Value, &'a str)> {
    let nodes = graph.as_object()?;
    let (node, field) = address(nodes, name)?;
    Some((nodes.get(node)?, field))
}

/// Fields may have dots of their own (`images.image0`), and so may node ids: whatever split names something that is there.
fn address<'a>(nodes: &Map<String, Value>, name: &'a str) -> Option<(&'a str, &'a str)> {
    name.match_indices('.')
        .map(|(dot, _)| (&name[..dot], &name[dot + 1..]))
        .find(|(node, field)| nodes.get(*node).and_then(|node| node.get("inputs")?.get(*field)).is_some())
}

fn set(graph: &mut Value, node: &str, field: &str, value: Value) {
    if let Some(inputs) = graph.get_mut(node).and_then(|node| node.get_mut("inputs")?.as_object_mut()) {
        inputs.insert(field.to_owned(), value);
    }
}

impl InputFault {
    fn new(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), detail: detail.into(), unknown: false }
    }

    fn unknown(name: &str, detail: &str) -> Self {
        Self { unknown: true, ..Self::new(name, detail) }
    }
}

/// A JSON value's type in words.
#[must_use]
pub fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
