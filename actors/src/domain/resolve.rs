//! Finds the field a short input name means, from the shape of the graph alone.
//!
//! `prompt` and `negative_prompt` are the texts that feed a sampler's `positive` and `negative`, through whatever stands between.
//! `image`, `mask`, `audio` and `video` are what a loader loads. Any other name is the single field of that name, or the value that is
//! handed on to it. When more than one field fits, that is an error that names them all: guessing would make a picture of something
//! else.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value};

use super::{
    graph::link_source,
    workflow::{Input, Kind},
};

type Nodes = Map<String, Value>;
/// A node's id and the name of one of its fields.
type Field<'a> = (&'a str, &'a str);

/// Fields that hold a text, in nodes that encode one and in those that only pass one on.
const TEXTS: [&str; 10] =
    ["text", "prompt", "value", "string", "string_a", "string_b", "text_g", "text_l", "clip_l", "t5xxl"];
/// What samplers call their seed.
const SEEDS: [&str; 2] = ["seed", "noise_seed"];
/// It hands a conditioning on with everything taken out: the text before it does not matter.
const SILENCER: &str = "ConditioningZeroOut";

/// The input that `name` means.
///
/// # Errors
/// That no field fits, or which do.
pub fn by_name(nodes: &Nodes, name: &str) -> Result<Input, String> {
    let found = match name {
        "prompt" => texts_feeding(nodes, "positive"),
        "negative_prompt" => texts_feeding(nodes, "negative"),
        "seed" => values_of(nodes, &SEEDS),
        "image" => files(nodes, name, Kind::Image),
        "mask" => files(nodes, name, Kind::Mask),
        "audio" => files(nodes, name, Kind::Audio),
        "video" => files(nodes, name, Kind::Video),
        _ => values_of(nodes, &[name]),
    };
    let mut fields = found.iter();
    match (fields.next(), fields.next()) {
        (Some((node, field)), None) => input(nodes, name, node, field),
        (None, _) => Err(format!(
            "input {name}: no field of the graph fits; say which with {{\"name\": \"{name}\", \"node\", \"field\"}}"
        )),
        _ => {
            let names: Vec<String> = found.iter().map(|(node, field)| format!("{node}.{field}")).collect();
            Err(format!(
                "input {name}: more than one field fits ({}); say which with {{\"name\": \"{name}\", \"node\", \"field\"}}",
                names.join(", ")
            ))
        }
    }
}

fn input(nodes: &Nodes, name: &str, node: &str, field: &str) -> Result<Input, String> {
    let value = nodes.get(node).and_then(|node| Kind::of_field(node, field));
    let kind = if name == "seed" { Some(Kind::Seed) } else { value };
    let kind = kind.ok_or_else(|| format!("input {name}: {node}.{field} holds neither text, number nor boolean"))?;
    Ok(Input {
        name: name.to_owned(),
        node: node.to_owned(),
        field: field.to_owned(),
        kind,
        // The picture somebody else once saved with the graph is never what a client wants.
        required: name == "prompt" || kind.is_file(),
        default: None,
        minimum: None,
        maximum: None,
        choices: Vec::new(),
        description: None,
    })
}

/// The fields from which loaders take files of a kind; without any, what is called so.
fn files<'a>(nodes: &'a Nodes, name: &str, kind: Kind) -> BTreeSet<Field<'a>> {
    let loads = |(id, node): (&'a String, &'a Value)| {
        let fields = node.get("inputs").and_then(Value::as_object).into_iter().flatten();
        fields.filter_map(move |(field, value)| {
            let fits = link_source(value).is_none() && Kind::of_field(node, field) == Some(kind);
            fits.then_some((id.as_str(), field.as_str()))
        })
    };
    let found: BTreeSet<Field<'a>> = nodes.iter().flat_map(loads).collect();
    if found.is_empty() { values_of(nodes, &[name]) } else { found }
}

/// The values of all fields of these names: their own, or those that are handed on to them.
fn values_of<'a>(nodes: &'a Nodes, names: &[&str]) -> BTreeSet<Field<'a>> {
    let mut found = BTreeSet::new();
    for (id, node) in nodes {
        let fields = node.get("inputs").and_then(Value::as_object).into_iter().flatten();
        for (field, value) in fields.filter(|(field, _)| names.contains(&field.as_str())) {
            match link_source(value) {
                None => found.extend([(id.as_str(), field.as_str())]),
                Some(source) => found.extend(handed_on(nodes, source)),
            }
        }
    }
    found
}

/// The value that a node only hands on: that of a primitive, seen through any number of reroutes. A node with more than one input
/// computes something.
fn handed_on<'a>(nodes: &'a Nodes, mut id: &'a str) -> Option<Field<'a>> {
    let mut seen = HashSet::new();
    while seen.insert(id) {
        let inputs = nodes.get(id)?.get("inputs")?.as_object()?;
        let (field, value) =
            inputs.get_key_value("value").or_else(|| inputs.iter().next().filter(|_| inputs.len() == 1))?;
        match link_source(value) {
            None => return Some((id, field)),
            Some(source) => id = source,
        }
    }
    None
}

/// All texts upstream of any `positive` (or `negative`). A graph whose guider has one conditioning only has no such field: what feeds
/// that one is the prompt, and in a graph without guiders its text is, if it has just one.
fn texts_feeding<'a>(nodes: &'a Nodes, role: &str) -> BTreeSet<Field<'a>> {
    let source = |node: &'a Value, field: &str| link_source(node.get("inputs")?.get(field)?);
    let mut waiting: Vec<&str> = nodes.values().filter_map(|node| source(node, role)).collect();
    if waiting.is_empty() && role == "positive" {
        let guides =
            |node: &&Value| node.get("class_type").and_then(Value::as_str).is_some_and(|c| c.contains("Guider"));
        waiting = nodes.values().filter(guides).filter_map(|node| source(node, "conditioning")).collect();
        if waiting.is_empty() {
            return values_of(nodes, &["text"]);
        }
    }
    let (mut found, mut seen) = (BTreeSet::new(), HashSet::new());
    while let Some(id) = waiting.pop() {
        if seen.insert(id) {
            visit(nodes, id, role, &mut found, &mut waiting);
        }
    }
    found
}

/// Takes a node's own texts, or else goes on to the nodes before it.
fn visit<'a>(nodes: &'a Nodes, id: &'a str, role: &str, found: &mut BTreeSet<Field<'a>>, waiting: &mut Vec<&'a str>) {
    let Some(node) = nodes.get(id).filter(|node| node.get("class_type").is_none_or(|class| class != SILENCER)) else {
        return;
    };
    let Some(inputs) = node.get("inputs").and_then(Value::as_object) else { return };
    let texts = inputs.iter().filter(|(field, _)| TEXTS.contains(&field.as_str()));
    let (links, own): (Vec<_>, Vec<_>) = texts.partition(|(_, value)| link_source(value).is_some());
    found.extend(own.iter().filter(|(_, value)| value.is_string()).map(|(field, _)| (id, field.as_str())));
    if !links.is_empty() {
        return waiting.extend(links.iter().filter_map(|(_, value)| link_source(value)));
    }
    if !own.is_empty() {
        return;
    }
    // A node between, such as a ControlNet, has both roles: only ours goes on.
    let before: Vec<&str> = match inputs.get(role).and_then(link_source) {
        Some(source) => vec![source],
        None => inputs.values().filter_map(link_source).collect(),
    };
    waiting.extend(before);
}
