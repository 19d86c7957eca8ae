//! Named workflows: a graph with named, typed inputs, so that a client sends `{"prompt": "a boat"}` and not a graph.
//!
//! The file is `{"workflow": <API graph>, "inputs": [...]}`. An input is an object that says all about itself, or just a name that
//! is [resolved](super::resolve) from the graph. A raw graph has inputs too: each field of each node, addressed
//! `"<node id>.<field>"`.

use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::{
    graph::{self, GraphFault},
    resolve,
};

/// Drawn seeds stay below 2^53, so that a client that reads them as doubles (JavaScript) can send them back unchanged.
const SEED_DRAW: u64 = 1 << 53;

/// A graph whose inputs have names.
#[derive(Debug, Clone, PartialEq)]
pub struct Workflow {
    graph: Value,
    inputs: Vec<Input>,
}

/// One named input.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// What clients call it.
    pub name: String,
    /// The node it is written to.
    pub node: String,
    /// The field of that node.
    pub field: String,
    /// What it takes.
    pub kind: Kind,
    /// Whether it must be given.
    pub required: bool,
    /// Used when it is not given; without one the graph's own value stays.
    pub default: Option<Value>,
    /// Least number.
    pub minimum: Option<f64>,
    /// Greatest number.
    pub maximum: Option<f64>,
    /// The only values taken, if any are listed.
    pub choices: Vec<Value>,
    /// For people.
    pub description: Option<String>,
}

/// What an input takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// true or false.
    Boolean,
    /// A whole number from 0 to 2^64 - 1, drawn at random when it is not given.
    Seed,
}

/// An input as its file writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    node: String,
    field: String,
    #[serde(rename = "type")]
    kind: Option<Kind>,
    #[serde(default)]
    required: bool,
    default: Option<Value>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    #[serde(default)]
    choices: Vec<Value>,
    description: Option<String>,
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
    /// Reads a workflow file.
    ///
    /// # Errors
    /// Everything that is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let file: Value = serde_json::from_str(text).map_err(|error| vec![format!("not JSON: {error}")])?;
        let Value::Object(mut file) = file else { return Err(vec!["expected an object".to_owned()]) };
        let graph = file.remove("workflow").ok_or_else(|| vec!["`workflow`, the graph, is missing".to_owned()])?;
        let inputs = file.remove("inputs").unwrap_or_else(|| Value::Array(Vec::new()));
        let mut faults: Vec<String> = file.keys().map(|key| format!("there is no field `{key}`")).collect();
        let nodes = match graph::check(&graph) {
            Ok(nodes) => nodes,
            Err(found) => {
                faults.extend(
                    found.into_iter().map(|GraphFault { pointer, detail }| format!("workflow{pointer}: {detail}")),
                );
                return Err(faults);
            }
        };
        let Value::Array(inputs) = inputs else { return Err(vec!["`inputs` must be a list".to_owned()]) };
        let mut parsed: Vec<Input> = Vec::new();
        for input in inputs {
            match parse_input(nodes, input) {
                Ok(input) if parsed.iter().any(|other| other.name == input.name) => {
                    faults.push(format!("input {} is there twice", input.name));
                }
                Ok(input) => parsed.push(input),
                Err(fault) => faults.push(fault),
            }
        }
        if faults.is_empty() { Ok(Self { graph, inputs: parsed }) } else { Err(faults) }
    }

    /// Its inputs, in the file's order.
    #[must_use]
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
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

fn parse_input(nodes: &Map<String, Value>, input: Value) -> Result<Input, String> {
    if let Value::String(name) = &input {
        return resolve::by_name(nodes, name);
    }
    let label = input.get("name").and_then(Value::as_str).unwrap_or("without a name").to_owned();
    let written: Written = serde_json::from_value(input).map_err(|error| format!("input {label}: {error}"))?;
    let value = nodes.get(&written.node).and_then(|node| node.get("inputs")?.get(&written.field));
    let value = value.ok_or_else(|| format!("input {label}: the graph has no {}.{}", written.node, written.field))?;
    let kind = written.kind.or_else(|| Kind::of(value)).ok_or_else(|| {
        format!(
            "input {label}: its `type` cannot be told from the graph; write string, integer, number, boolean or seed"
        )
    })?;
    let input = Input {
        name: written.name,
        node: written.node,
        field: written.field,
        kind,
        required: written.required,
        default: written.default,
        minimum: written.minimum,
        maximum: written.maximum,
        choices: written.choices,
        description: written.description,
    };
    match &input.default {
        Some(default) => input.accept(default).map_err(|detail| format!("input {label}: its default: {detail}"))?,
        None => Value::Null,
    };
    Ok(input)
}

impl InputFault {
    fn new(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), detail: detail.into(), unknown: false }
    }

    fn unknown(name: &str, detail: &str) -> Self {
        Self { unknown: true, ..Self::new(name, detail) }
    }
}

impl Kind {
    /// The kind a graph's own value suggests.
    #[must_use]
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(_) => Some(Self::String),
            Value::Bool(_) => Some(Self::Boolean),
            Value::Number(number) if number.is_f64() => Some(Self::Number),
            Value::Number(_) => Some(Self::Integer),
            _ => None,
        }
    }
}

/// What becomes of an input's field.
enum Wanted {
    Value(Value),
    Drawn,
    Untouched,
}

impl Input {
    fn value(&self, given: Option<&Value>) -> Result<Wanted, String> {
        match given {
            Some(value) => self.accept(value).map(Wanted::Value),
            None if self.required => Err("this input is required".to_owned()),
            None => Ok(match &self.default {
                Some(default) => Wanted::Value(default.clone()),
                None if self.kind == Kind::Seed => Wanted::Drawn,
                None => Wanted::Untouched,
            }),
        }
    }

    /// The value as the graph gets it.
    fn accept(&self, value: &Value) -> Result<Value, String> {
        let value = match (self.kind, value) {
            (Kind::String, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) => value.clone(),
            (Kind::Integer | Kind::Seed, Value::Number(number)) => {
                Value::Number(whole(number).ok_or("expected a whole number")?)
            }
            (Kind::Number, Value::Number(_)) => value.clone(),
            _ => return Err(format!("expected {}, found {}", self.kind.words(), type_of(value))),
        };
        if self.kind == Kind::Seed && value.as_u64().is_none() {
            return Err("expected a whole number from 0 to 18446744073709551615".to_owned());
        }
        if let Some(number) = value.as_f64() {
            self.check_range(number)?;
        }
        if self.choices.is_empty() || self.choices.contains(&value) {
            return Ok(value);
        }
        let choices: Vec<String> = self.choices.iter().map(Value::to_string).collect();
        Err(format!("expected one of {}", choices.join(", ")))
    }

    fn check_range(&self, number: f64) -> Result<(), String> {
        match (self.minimum, self.maximum) {
            (Some(least), Some(most)) if !(least..=most).contains(&number) => {
                Err(format!("must be from {least} to {most}"))
            }
            (Some(least), _) if number < least => Err(format!("must be at least {least}")),
            (_, Some(most)) if number > most => Err(format!("must be at most {most}")),
            _ => Ok(()),
        }
    }
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::String => "text",
            Self::Integer | Self::Seed => "a whole number",
            Self::Number => "a number",
            Self::Boolean => "true or false",
        }
    }
}

/// 20.0 is 20 to everybody but a strict parser; clients in some languages have no other numbers.
fn whole(number: &Number) -> Option<Number> {
    /// Up to here a double is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if !number.is_f64() {
        return Some(number.clone());
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT)?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53, checked just before")]
    Some(Number::from(float as i64))
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
