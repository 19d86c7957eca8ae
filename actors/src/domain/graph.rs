//! A graph in `ComfyUI`'s API format: `{"<node id>": {"class_type": "...", "inputs": {...}}, ...}`.
//!
//! Only its shape is judged here, before any server is asked: whether classes and models exist is the server's business.

use serde_json::{Map, Value};

/// More nodes than the largest workflows people share, and few enough to check in a moment.
pub const MAX_NODES: usize = 2_000;
/// Nesting that no node needs, far below what makes parsers overflow.
pub const MAX_DEPTH: usize = 64;
/// A graph with more faults than this is not a graph; telling all of them helps nobody.
const MAX_FAULTS: usize = 100;

/// What is wrong at one place of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphFault {
    /// JSON pointer from the graph's own root.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

impl GraphFault {
    fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

/// Checks the shape of a whole graph.
///
/// # Errors
/// Every fault, at most a hundred of them.
pub fn check(graph: &Value) -> Result<&Map<String, Value>, Vec<GraphFault>> {
    let one = |detail: &str| Err(vec![GraphFault::new("", detail)]);
    let Some(nodes) = graph.as_object() else {
        return one("a graph is an object of nodes: {\"<node id>\": {\"class_type\": ..., \"inputs\": ...}}");
    };
    if nodes.get("nodes").is_some_and(Value::is_array) && nodes.contains_key("links") {
        return one(
            "this is the format of ComfyUI's editor, not of its API: open the workflow in ComfyUI and export it with \
                    Workflow > Export (API), or turn on dev mode and press Save (API Format)",
        );
    }
    if nodes.get("prompt").is_some_and(|prompt| prompt.is_object() && prompt.get("class_type").is_none()) {
        return one("this is a whole request to ComfyUI's /prompt: send what is inside its `prompt`");
    }
    if nodes.is_empty() {
        return one("the graph has no nodes");
    }
    if nodes.len() > MAX_NODES {
        return one(&format!("the graph has {} nodes; at most {MAX_NODES} are taken", nodes.len()));
    }
    if !is_shallow(graph, MAX_DEPTH) {
        return one(&format!("the graph is nested deeper than {MAX_DEPTH} levels"));
    }
    let mut faults: Vec<GraphFault> = nodes.iter().flat_map(|(id, node)| node_faults(nodes, id, node)).collect();
    faults.truncate(MAX_FAULTS);
    if faults.is_empty() { Ok(nodes) } else { Err(faults) }
}

fn node_faults(nodes: &Map<String, Value>, id: &str, node: &Value) -> Vec<GraphFault> {
    let at = format!("/{}", escape(id));
    let Some(node) = node.as_object() else {
        return vec![GraphFault::new(at, "a node is an object with `class_type` and `inputs`")];
    };
    let mut faults = Vec::new();
    if node.get("class_type").and_then(Value::as_str).is_none_or(str::is_empty) {
        faults.push(GraphFault::new(format!("{at}/class_type"), "a node needs `class_type`, the name of its class"));
    }
    match node.get("inputs").map(Value::as_object) {
        Some(Some(inputs)) => faults.extend(inputs.iter().filter_map(|(field, value)| {
            let detail = link_fault(nodes, value)?;
            Some(GraphFault::new(format!("{at}/inputs/{}", escape(field)), detail))
        })),
        _ => faults.push(GraphFault::new(format!("{at}/inputs"), "a node needs `inputs`, an object; it may be empty")),
    }
    faults
}

/// What is wrong with a value if it is a link, `["<node id>", <output index>]`.
#[must_use]
pub fn link_fault(nodes: &Map<String, Value>, value: &Value) -> Option<String> {
    let source = link_source(value)?;
    (!nodes.contains_key(source)).then(|| format!("links to node {source}, which the graph does not have"))
}

/// The node a value links to, if it is a link.
#[must_use]
pub fn link_source(value: &Value) -> Option<&str> {
    match value.as_array().map(Vec::as_slice) {
        Some([Value::String(source), Value::Number(_)]) => Some(source),
        _ => None,
    }
}

/// A text as one step of a JSON pointer.
#[must_use]
pub fn escape(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}

/// Whether nothing is nested deeper than `levels`. Never descends further than that.
#[must_use]
pub fn is_shallow(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_shallow(item, levels - 1)),
        Value::Object(fields) => levels > 0 && fields.values().all(|field| is_shallow(field, levels - 1)),
        _ => true,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn faults(graph: &Value) -> Vec<(String, String)> {
        check(graph).err().unwrap_or_default().into_iter().map(|fault| (fault.pointer, fault.detail)).collect()
    }

    #[test]
    fn a_good_graph_passes() {
        let graph = json!({
            "1": {"class_type": "A", "inputs": {}, "_meta": {"title": "x"}},
            "2:3": {"class_type": "B", "inputs": {"image": ["1", 0], "size": [1, 2], "names": ["a", "b"]}},
        });
        assert_eq!(faults(&graph), []);
    }

    #[test]
    fn each_fault_has_its_place() {
        let deep = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
        let many: Map<String, Value> =
            (0..=MAX_NODES).map(|n| (n.to_string(), json!({"class_type": "A", "inputs": {}}))).collect();
        for (graph, pointer, word) in [
            (json!([]), "", "object of nodes"),
            (json!({}), "", "no nodes"),
            (json!({"nodes": [], "links": [], "version": 0.4}), "", "Export (API)"),
            (json!({"prompt": {"1": {"class_type": "A", "inputs": {}}}}), "", "/prompt"),
            (json!({"1": 5}), "/1", "object"),
            (json!({"1": {"inputs": {}}}), "/1/class_type", "class_type"),
            (json!({"1": {"class_type": 5, "inputs": {}}}), "/1/class_type", "class_type"),
            (json!({"a/b~": {"class_type": "A"}}), "/a~1b~0/inputs", "inputs"),
            (json!({"1": {"class_type": "A", "inputs": {"x/y": ["7", 0]}}}), "/1/inputs/x~1y", "node 7"),
            (json!({"1": {"class_type": "A", "inputs": {"x": deep}}}), "", "deeper"),
            (Value::Object(many), "", "2001 nodes"),
        ] {
            let found = faults(&graph);
            assert!(found.len() == 1 && found[0].0 == pointer && found[0].1.contains(word), "{pointer}: {found:?}");
        }
        let two = json!({"1": {"class_type": "A", "inputs": {"x": ["7", 0]}}, "2": {}});
        assert_eq!(faults(&two).len(), 3, "all faults at once");
    }

    /// Any JSON of a moderate size, biased towards the keys that mean something here.
    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[0-9a-z./~]{0,4}".prop_map(Value::from),
        ];
        let key =
            prop_oneof!["[0-9]", "inputs", "class_type", "positive", "text", "seed", "nodes", "links", "[a-z./~]{0,3}"];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_makes_it_panic(graph in any_json()) {
            let _ = check(&graph);
        }
    }
}
