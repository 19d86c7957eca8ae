//! Collects the files and texts a run reported. Pure.
//!
//! Key names mean nothing: videos come under `images`, packs invent their own (protocol 8). So every key is walked, and
//! each object with a `filename` is a file. The order is the same however the server or a JSON library shuffles its maps:
//! nodes by the number in their id, within a node the keys by name, within a key as listed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
};

use comfyd_actors::domain::{
    artifact::{FileRef, Kind, Source, media_of},
    natural::natural,
    prompt::NodeOutput,
};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{
    history::{Odd, Raw},
    redact::is_name,
};

/// Nested this deep, nothing is looked for: real outputs have two levels.
const MAX_DEPTH: usize = 8;
/// Most outputs of one run.
const MAX_FILES: usize = 10_000;
/// Most text of one run, in bytes: it is kept in the task store until it is stored.
const MAX_TEXT: usize = 4 << 20;

/// What is known about node ids: nodes that a subgraph expanded into run under ids such as `1.0.0.3`, of which the user
/// knows only the outer `1`.
pub(super) struct Names<'a> {
    /// History's `meta`: per node its `display_node`. `/api/jobs` has none.
    meta: Value,
    /// The nodes of the graph as it was sent.
    graph: HashSet<Cow<'a, str>>,
}

impl<'a> Names<'a> {
    pub(super) fn new(meta: Option<Raw<'a>>, graph: Option<Raw<'a>>) -> Self {
        let graph: BTreeMap<Cow<'a, str>, IgnoredAny> =
            graph.and_then(|graph| serde_json::from_str(graph.get()).ok()).unwrap_or_default();
        Self {
            meta: meta.and_then(|meta| serde_json::from_str(meta.get()).ok()).unwrap_or_default(),
            graph: graph.into_keys().collect(),
        }
    }

    /// The node as the user knows it: as `meta` says, else the longest leading part of a dotted id that is in the graph.
    fn shown<'n>(&'n self, node: &'n str) -> &'n str {
        if let Some(shown) = self.meta.get(node).and_then(|meta| meta.get("display_node")).and_then(Value::as_str) {
            return shown;
        }
        let mut outer = node;
        while !self.graph.contains(outer) {
            let Some((before, _)) = outer.rsplit_once('.') else { return node };
            outer = before;
        }
        outer
    }
}

/// A run that reports such things is not believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unbelievable {
    #[error(
        "the run reported an output of a node whose id is empty, longer than 256 bytes or not printable; give the node another id"
    )]
    Node,
    #[error("the run reported more than {MAX_FILES} outputs; save fewer in one task")]
    Outputs,
    #[error("the run reported more than {} MiB of text; save long texts to a file (SaveText)", MAX_TEXT >> 20)]
    Text,
}

/// Everything in `outputs`, each file once per node.
pub(super) fn collect(
    outputs: Option<Raw<'_>>,
    names: &Names<'_>,
) -> Result<Result<Vec<NodeOutput>, Unbelievable>, Odd> {
    let Some(outputs) = outputs else { return Ok(Ok(Vec::new())) };
    let outputs: BTreeMap<String, Value> =
        serde_json::from_str(outputs.get()).map_err(|error| Odd::json("a list of outputs", &error))?;
    if !outputs.keys().all(|node| is_name(node) && is_name(names.shown(node))) {
        return Ok(Err(Unbelievable::Node));
    }
    let mut nodes: Vec<(&str, &str, &Value)> =
        outputs.iter().map(|(node, output)| (names.shown(node), node.as_str(), output)).collect();
    nodes.sort_by(|(shown_a, a, _), (shown_b, b, _)| natural(shown_a, shown_b).then_with(|| natural(a, b)));

    let mut collected = Vec::new();
    let mut seen = HashSet::new();
    let mut text_bytes = 0;
    for (shown, _, output) in nodes {
        let mut found = Vec::new();
        walk(output, MAX_DEPTH, &mut found);
        let texts = texts(output, &found);
        text_bytes += texts.iter().map(|text| text.len()).sum::<usize>();
        let files = found.into_iter().filter(|file| seen.insert((shown, file.clone()))).map(Source::File);
        let texts = texts
            .into_iter()
            .zip(1..)
            .map(|(text, number)| Source::Text { filename: format!("text_{number:05}.txt"), text: text.to_owned() });
        collected.extend(files.chain(texts).map(|source| NodeOutput { node_id: shown.to_owned(), source }));
        if collected.len() > MAX_FILES {
            return Ok(Err(Unbelievable::Outputs));
        }
        if text_bytes > MAX_TEXT {
            return Ok(Err(Unbelievable::Text));
        }
    }
    Ok(Ok(collected))
}

/// The texts a node shows: strings under the key `text`, as `PreviewAny` and the packs that follow it write them. Not those of a node
/// that also saved as many text files (`SaveText`): these are the same.
fn texts<'v>(output: &'v Value, files: &[FileRef]) -> Vec<&'v str> {
    let found: Vec<&str> = match output.get("text") {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).take(MAX_FILES + 1).collect(),
        _ => Vec::new(),
    };
    let saved = files.iter().filter(|file| media_of(&file.filename).0 == Kind::Text).count();
    if saved == found.len() { Vec::new() } else { found }
}

fn walk(value: &Value, depth: usize, found: &mut Vec<FileRef>) {
    // One more than allowed is enough to know that there are too many.
    if depth == 0 || found.len() > MAX_FILES {
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, depth - 1, found)),
        Value::Object(fields) => match file(fields) {
            Some(file) => found.push(file),
            None => by_name(fields).into_iter().for_each(|(_, field)| walk(field, depth - 1, found)),
        },
        _ => {}
    }
}

/// Fields by name, whether or not the JSON library keeps them sorted (a feature any dependency could switch).
fn by_name(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_by_key(|(name, _)| *name);
    fields
}

/// The file an object names. Missing parts mean what they mean to `/view`.
fn file(fields: &Map<String, Value>) -> Option<FileRef> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    Some(FileRef {
        filename: text("filename")?.to_owned(),
        subfolder: text("subfolder").unwrap_or_default().to_owned(),
        folder_type: text("type").unwrap_or("output").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::RawValue};

    use super::*;

    fn collect(outputs: &Value, meta: &Value, graph: &Value) -> Option<Vec<(String, String)>> {
        let raw = |value: &Value| RawValue::from_string(value.to_string()).unwrap();
        let (outputs, meta, graph) = (raw(outputs), raw(meta), raw(graph));
        let found = super::collect(Some(&outputs), &Names::new(Some(&meta), Some(&graph))).unwrap().ok()?;
        Some(found.into_iter().map(|found| (found.node_id, found.source.filename().to_owned())).collect())
    }

    fn pairs(expected: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(expected.iter().map(|(node, name)| ((*node).to_owned(), (*name).to_owned())).collect())
    }

    #[test]
    fn every_key_at_any_depth_in_a_fixed_order() {
        let file = |name: &str| json!({"filename": name, "subfolder": "", "type": "output"});
        let outputs = json!({
            "10": {"images": [file("d")]},
            "9": {"z": [file("c")], "gifs": [file("a"), file("b"), file("a")], "tags": ["x"], "animated": [true]},
            "2": {"pack": {"deep": [[file("0")]]}},
        });
        let expected = pairs(&[("2", "0"), ("9", "a"), ("9", "b"), ("9", "c"), ("10", "d")]);
        assert_eq!(collect(&outputs, &Value::Null, &Value::Null), expected);
    }

    #[test]
    fn texts_are_outputs_unless_they_were_saved_as_files_too() {
        let outputs = json!({
            "1": {"text": ["plain", 7, "second"]},
            "2": {"text": ["saved"], "files": [{"filename": "t.txt", "subfolder": "", "type": "output"}]},
            "3": {"text": "caption", "images": [{"filename": "a.png"}]},
            "4": {"text": [], "lab_extra": [{"answer": 42}]},
        });
        let expected = pairs(&[
            ("1", "text_00001.txt"),
            ("1", "text_00002.txt"),
            ("2", "t.txt"),
            ("3", "a.png"),
            ("3", "text_00001.txt"),
        ]);
        assert_eq!(collect(&outputs, &Value::Null, &Value::Null), expected);
        let long = "x".repeat(MAX_TEXT);
        assert!(collect(&json!({"1": {"text": [long]}}), &Value::Null, &Value::Null).is_some());
        assert_eq!(collect(&json!({"1": {"text": [long]}, "2": {"text": ["x"]}}), &Value::Null, &Value::Null), None);
    }

    #[test]
    fn inner_nodes_are_shown_as_the_outer_one() {
        let outputs = json!({"2": {"images": [{"filename": "b"}]}, "1.0.0.3": {"images": [{"filename": "a"}]}});
        let expected = pairs(&[("1", "a"), ("2", "b")]);
        let meta = json!({"1.0.0.3": {"display_node": "1"}});
        assert_eq!(collect(&outputs, &meta, &Value::Null), expected);
        assert_eq!(collect(&outputs, &Value::Null, &json!({"1": {}, "2": {}})), expected);
        assert_eq!(collect(&outputs, &Value::Null, &Value::Null), pairs(&[("1.0.0.3", "a"), ("2", "b")]));
    }

    #[test]
    fn too_many_files_are_not_believed() {
        let files = vec![json!({"filename": "a"}); 3];
        assert!(collect(&json!({"1": {"images": files}}), &Value::Null, &Value::Null).is_some());
        let many: Vec<Value> = (0..=MAX_FILES).map(|n| json!({"filename": n.to_string()})).collect();
        assert_eq!(collect(&json!({"1": {"images": many}}), &Value::Null, &Value::Null), None);
    }
}
