//! Reads the file of a workflow and tells everything that is wrong with it, each fault with its place.

use std::{collections::HashSet, fmt, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    super::{
        graph::{self, GraphFault, escape},
        resolve,
    },
    Input, Kind, Workflow, type_of,
};

/// What is wrong at one place of a workflow's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFault {
    /// JSON pointer from the file's root.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

impl FileFault {
    fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() { f.write_str(&self.detail) } else { write!(f, "{}: {}", self.pointer, self.detail) }
    }
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

const FIELDS: [&str; 4] = ["workflow", "inputs", "description", "no_progress_timeout"];
/// A run that is silent for longer is hung.
const MAX_SILENCE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// An input's name is a word to be typed.
const MAX_NAME: usize = 64;

impl Workflow {
    /// Reads a workflow file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<FileFault>> {
        let file =
            serde_json::from_str(text).map_err(|error| vec![FileFault::new("", format!("not JSON: {error}"))])?;
        Self::read(file)
    }

    /// Reads the contents of a workflow file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(file: Value) -> Result<Self, Vec<FileFault>> {
        let Value::Object(mut file) = file else {
            let detail = format!("expected {{\"workflow\": <graph>, \"inputs\": [...]}}, found {}", type_of(&file));
            return Err(vec![FileFault::new("", detail)]);
        };
        let mut faults: Vec<FileFault> = file.keys().filter_map(|key| unknown(key)).collect();
        let description = description(file.remove("description"), &mut faults);
        let no_progress_timeout = silence(file.remove("no_progress_timeout"), &mut faults);
        let inputs = list(file.remove("inputs"), &mut faults);
        let Some(graph) = file.remove("workflow") else {
            faults.push(FileFault::new("/workflow", "required: the graph, in ComfyUI's API format"));
            return Err(faults);
        };
        let nodes = match graph::check(&graph) {
            Ok(nodes) => nodes,
            Err(found) => {
                let at = |GraphFault { pointer, detail }| FileFault::new(format!("/workflow{pointer}"), detail);
                faults.extend(found.into_iter().map(at));
                return Err(faults);
            }
        };
        let inputs = read_inputs(nodes, inputs, &mut faults);
        if faults.is_empty() { Ok(Self { graph, inputs, description, no_progress_timeout }) } else { Err(faults) }
    }
}

fn unknown(key: &str) -> Option<FileFault> {
    let detail = "there is no such field; a workflow has `workflow`, `inputs`, `description` and `no_progress_timeout`";
    (!FIELDS.contains(&key)).then(|| FileFault::new(format!("/{}", escape(key)), detail))
}

fn description(value: Option<Value>, faults: &mut Vec<FileFault>) -> Option<String> {
    match value {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => {
            faults.push(FileFault::new("/description", format!("expected text, found {}", type_of(&other))));
            None
        }
    }
}

fn silence(value: Option<Value>, faults: &mut Vec<FileFault>) -> Option<Duration> {
    let value = value.filter(|value| !value.is_null())?;
    let duration = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
    let good = duration.filter(|duration| !duration.is_zero() && *duration <= MAX_SILENCE);
    if good.is_none() {
        let detail =
            "expected a duration as text, such as \"90s\" or \"1h 30m\", more than nothing and at most 30 days";
        faults.push(FileFault::new("/no_progress_timeout", detail));
    }
    good
}

fn list(value: Option<Value>, faults: &mut Vec<FileFault>) -> Vec<Value> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(inputs)) => inputs,
        Some(other) => {
            faults.push(FileFault::new("/inputs", format!("expected a list, found {}", type_of(&other))));
            Vec::new()
        }
    }
}

fn read_inputs(nodes: &Map<String, Value>, inputs: Vec<Value>, faults: &mut Vec<FileFault>) -> Vec<Input> {
    let (mut names, mut places) = (HashSet::new(), HashSet::new());
    let mut read = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        let pointer = format!("/inputs/{index}");
        let input = match read_input(nodes, &pointer, input) {
            Ok(input) => input,
            Err(found) => {
                faults.extend(found);
                continue;
            }
        };
        if !names.insert(input.name.clone()) {
            faults.push(FileFault::new(&pointer, format!("input {} is there twice", input.name)));
        } else if !places.insert((input.node.clone(), input.field.clone())) {
            let detail = format!("input {}: another input writes to {}.{} too", input.name, input.node, input.field);
            faults.push(FileFault::new(&pointer, detail));
        }
        read.push(input);
    }
    read
}

fn read_input(nodes: &Map<String, Value>, pointer: &str, input: Value) -> Result<Input, Vec<FileFault>> {
    let one = |detail: String| vec![FileFault::new(pointer, detail)];
    if let Value::String(name) = &input {
        return resolve::by_name(nodes, name).map_err(one);
    }
    if !input.is_object() {
        return Err(one(format!("expected the name of an input or an object, found {}", type_of(&input))));
    }
    let label = input.get("name").and_then(Value::as_str).unwrap_or("without a name").to_owned();
    let written: Written = serde_json::from_value(input).map_err(|error| one(format!("input {label}: {error}")))?;
    let node = nodes.get(&written.node);
    let found = node.and_then(|node| node.get("inputs")?.get(&written.field)).is_some();
    let (Some(node), true) = (node, found) else {
        return Err(one(format!("input {label}: the graph has no {}.{}", written.node, written.field)));
    };
    let guess = || if written.choices.is_empty() { Kind::of_field(node, &written.field) } else { Some(Kind::Choice) };
    let Some(kind) = written.kind.or_else(guess) else {
        return Err(one(format!(
            "input {label}: its `type` cannot be told from the graph; write string, integer, number, boolean, choice, seed, \
             image, mask, audio, video or file"
        )));
    };
    let input = normal(Input {
        name: written.name,
        node: written.node,
        field: written.field,
        kind,
        required: written.required,
        default: written.default.filter(|default| !default.is_null()),
        minimum: written.minimum,
        maximum: written.maximum,
        choices: written.choices,
        description: written.description,
    });
    let faults: Vec<FileFault> = contradictions(&input)
        .into_iter()
        .map(|(field, detail)| FileFault::new(format!("{pointer}/{field}"), format!("input {label}: {detail}")))
        .collect();
    if faults.is_empty() { Ok(input) } else { Err(faults) }
}

/// With its default and choices as given values will be compared with them: 20, not 20.0.
fn normal(input: Input) -> Input {
    let free = Input { choices: Vec::new(), ..input.clone() };
    let normal = |value: Value| free.accept(&value).unwrap_or(value);
    Input { choices: input.choices.into_iter().map(normal).collect(), default: input.default.map(normal), ..free }
}

/// What an input says of itself that cannot be: `(field, detail)`.
fn contradictions(input: &Input) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if input.name.is_empty() || input.name.chars().count() > MAX_NAME || input.name.chars().any(char::is_control) {
        found.push(("name", format!("a name has 1 to {MAX_NAME} characters, none of them a control character")));
    }
    for (field, bound) in [("minimum", input.minimum), ("maximum", input.maximum)] {
        if bound.is_some() && !input.kind.is_number() {
            found.push((field, format!("an input of type {} has no range", input.kind.as_str())));
        }
    }
    if input.minimum.zip(input.maximum).is_some_and(|(least, most)| least > most) {
        found.push(("minimum", "is above the maximum".to_owned()));
    }
    if input.kind == Kind::Choice && input.choices.is_empty() {
        found.push(("choices", "an input of type choice lists its choices".to_owned()));
    }
    let free = Input { choices: Vec::new(), ..input.clone() };
    let misfit = input.choices.iter().find_map(|choice| free.accept(choice).err().map(|detail| (choice, detail)));
    if let Some((choice, detail)) = misfit {
        found.push(("choices", format!("{choice}: {detail}")));
    }
    if let Some(Err(detail)) = input.default.as_ref().map(|default| input.accept(default)) {
        found.push(("default", format!("its default: {detail}")));
    }
    if input.required && input.default.is_some() {
        found.push(("default", "what is required has no default".to_owned()));
    }
    found
}
