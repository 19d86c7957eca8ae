//! Finds the field a short input name means, from the shape of the graph alone.
//!
//! `prompt` and `negative_prompt` are the texts that feed a sampler's `positive` and `negative`, through whatever stands between.
//! Any other name is the single field of that name. When more than one field fits, that is an error that names them all:
//! guessing would make a picture of something else.

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
const TEXTS: [&str; 8] = ["text", "prompt", "value", "string", "text_g", "text_l", "clip_l", "t5xxl"];
/// What samplers call their seed.
const SEEDS: [&str; 2] = ["seed", "noise_seed"];

/// The input that `name` means.
///
/// # Errors
/// That no field fits, or which do.
pub fn by_name(nodes: &Nodes, name: &str) -> Result<Input, String> {
    let found: BTreeSet<Field<'_>> = match name {
        "prompt" => texts_feeding(nodes, "positive"),
        "negative_prompt" => texts_feeding(nodes, "negative"),
        "seed" => SEEDS.iter().flat_map(|seed| fields_named(nodes, seed)).collect(),
        _ => fields_named(nodes, name).collect(),
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
    let value = literal(nodes, node, field).and_then(Kind::of);
    let kind = if name == "seed" { Some(Kind::Seed) } else { value };
    Ok(Input {
        name: name.to_owned(),
        node: node.to_owned(),
        field: field.to_owned(),
        kind: kind.ok_or_else(|| format!("input {name}: {node}.{field} holds neither text, number nor boolean"))?,
        // The picture somebody else once saved with the graph is never what a client wants.
        required: name == "prompt",
        default: None,
        minimum: None,
        maximum: None,
        choices: Vec::new(),
        description: None,
    })
}

/// All fields of that name that hold a value and not a link.
fn fields_named<'a>(nodes: &'a Nodes, name: &str) -> impl Iterator<Item = Field<'a>> {
    nodes.iter().filter_map(move |(id, node)| {
        let (field, value) = node.get("inputs")?.as_object()?.get_key_value(name)?;
        link_source(value).is_none().then_some((id.as_str(), field.as_str()))
    })
}

/// All texts upstream of any `positive` (or `negative`). A graph whose guider has one conditioning only has no such field: its
/// only text, if it has just one, is the prompt.
fn texts_feeding<'a>(nodes: &'a Nodes, role: &str) -> BTreeSet<Field<'a>> {
    let mut found = BTreeSet::new();
    let mut seen = HashSet::new();
    let mut waiting: Vec<&str> =
        nodes.values().filter_map(|node| link_source(node.get("inputs")?.get(role)?)).collect();
    if waiting.is_empty() && role == "positive" {
        return fields_named(nodes, "text").collect();
    }
    while let Some(id) = waiting.pop() {
        if seen.insert(id) {
            visit(nodes, id, role, &mut found, &mut waiting);
        }
    }
    found
}

/// Takes a node's own texts, or else goes on to the nodes before it.
fn visit<'a>(nodes: &'a Nodes, id: &'a str, role: &str, found: &mut BTreeSet<Field<'a>>, waiting: &mut Vec<&'a str>) {
    let Some(inputs) = nodes.get(id).and_then(|node| node.get("inputs")?.as_object()) else { return };
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

fn literal<'a>(nodes: &'a Nodes, node: &str, field: &str) -> Option<&'a Value> {
    nodes.get(node)?.get("inputs")?.get(field)
}
