//! Collects the files a run reported. Pure.
//!
//! Key names mean nothing: videos come under `images`, packs invent their own (protocol 8). So every key is walked, and
//! each object with a `filename` is a file. The order is the same however the server or a JSON library shuffles its maps:
//! nodes by the number in their id, within a node the keys by name, within a key as listed.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{BTreeMap, HashSet},
};

use comfyd_actors::domain::{artifact::FileRef, prompt::NodeFile};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::history::{Odd, Raw};

/// Nested this deep, nothing is looked for: real outputs have two levels.
const MAX_DEPTH: usize = 8;
/// Most files of one run.
const MAX_FILES: usize = 10_000;

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

/// Every file in `outputs`, each once per node. `None` when there are too many to believe.
pub(super) fn files(outputs: Option<Raw<'_>>, names: &Names<'_>) -> Result<Option<Vec<NodeFile>>, Odd> {
    let Some(outputs) = outputs else { return Ok(Some(Vec::new())) };
    let outputs: BTreeMap<String, Value> =
        serde_json::from_str(outputs.get()).map_err(|error| Odd::json("a list of outputs", &error))?;
    let mut nodes: Vec<(&str, &str, &Value)> =
        outputs.iter().map(|(node, output)| (names.shown(node), node.as_str(), output)).collect();
    nodes.sort_by(|(shown_a, a, _), (shown_b, b, _)| natural(shown_a, shown_b).then_with(|| natural(a, b)));

    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for (shown, _, output) in nodes {
        let mut found = Vec::new();
        walk(output, MAX_DEPTH, &mut found);
        for file in found {
            if seen.insert((shown, file.clone())) {
                files.push(NodeFile { node_id: shown.to_owned(), file });
            }
        }
        if files.len() > MAX_FILES {
            return Ok(None);
        }
    }
    Ok(Some(files))
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

/// Orders ids as people do: `2` before `10`, `3:2` before `3:10`.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        match (chunk(left), chunk(right)) {
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some((x, rest_x)), Some((y, rest_y))) => {
                let order = compare_chunks(x, y);
                if order != Ordering::Equal {
                    return order;
                }
                (left, right) = (rest_x, rest_y);
            }
        }
    }
}

/// Splits off the leading run of digits or of anything else.
fn chunk(text: &str) -> Option<(&str, &str)> {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn compare_chunks(x: &str, y: &str) -> Ordering {
    let numeric = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    if !(numeric(x) && numeric(y)) {
        return x.cmp(y);
    }
    // By value without parsing: numbers may be longer than any integer type.
    let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
    x.len().cmp(&y.len()).then_with(|| x.cmp(y))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{json, value::RawValue};

    use super::*;

    fn collect(outputs: &Value, meta: &Value, graph: &Value) -> Option<Vec<(String, String)>> {
        let raw = |value: &Value| RawValue::from_string(value.to_string()).unwrap();
        let (outputs, meta, graph) = (raw(outputs), raw(meta), raw(graph));
        let found = files(Some(&outputs), &Names::new(Some(&meta), Some(&graph))).unwrap()?;
        Some(found.into_iter().map(|found| (found.node_id, found.file.filename)).collect())
    }

    fn pairs(expected: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(expected.iter().map(|(node, name)| ((*node).to_owned(), (*name).to_owned())).collect())
    }

    #[test]
    fn every_key_at_any_depth_in_a_fixed_order() {
        let file = |name: &str| json!({"filename": name, "subfolder": "", "type": "output"});
        let outputs = json!({
            "10": {"images": [file("d")]},
            "9": {"z": [file("c")], "gifs": [file("a"), file("b"), file("a")], "text": ["x"], "animated": [true]},
            "2": {"pack": {"deep": [[file("0")]]}},
        });
        let expected = pairs(&[("2", "0"), ("9", "a"), ("9", "b"), ("9", "c"), ("10", "d")]);
        assert_eq!(collect(&outputs, &Value::Null, &Value::Null), expected);
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

    #[test]
    fn ids_sort_by_their_numbers() {
        let mut ids = ["10", "2", "1.0.0.10", "1.0.0.9", "1", "3:10", "3:2", "a", "007", "99999999999999999999999", ""];
        ids.sort_by(|a, b| natural(a, b));
        let sorted = ["", "1", "1.0.0.9", "1.0.0.10", "2", "3:2", "3:10", "007", "10", "99999999999999999999999", "a"];
        assert_eq!(ids, sorted);
    }

    proptest! {
        #[test]
        fn natural_is_an_order(a in "[0-9a.:]{0,6}", b in "[0-9a.:]{0,6}", c in "[0-9a.:]{0,6}") {
            prop_assert_eq!(natural(&a, &b), natural(&b, &a).reverse());
            prop_assert_eq!(natural(&a, &b) == Ordering::Equal, a == b);
            if natural(&a, &b).is_le() && natural(&b, &c).is_le() {
                prop_assert!(natural(&a, &c).is_le());
            }
        }
    }
}
