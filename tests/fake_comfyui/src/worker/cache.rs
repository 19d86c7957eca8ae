//! The result cache: a node with the same class and inputs as one of the previous prompt is not run again.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::Value as Json;

use crate::files::Files;
use crate::graph::{Graph, Input};
use crate::nodes::{Product, Value, Work};

/// Identifies the work of a node: its class, its literals and, through its links, everything before it; neither node ids nor
/// extra data. Two 64-bit hashes keep accidental equality out of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Signature(u64, u64);

/// Signatures of all nodes of a graph.
pub(crate) fn signatures(graph: &Graph, files: &Files) -> Vec<Signature> {
    let mut known: Vec<Option<Signature>> = vec![None; graph.nodes.len()];
    for start in 0..graph.nodes.len() {
        let mut path = vec![start];
        while let Some(&node) = path.last() {
            // Nodes that are on the path already are a cycle, which validation keeps from running; any value will do for it.
            let open = graph.nodes[node].links().find(|&source| known[source].is_none() && !path.contains(&source));
            match open {
                Some(source) => path.push(source),
                None => {
                    if known[node].is_none() {
                        known[node] = Some(sign(graph, node, &known, files));
                    }
                    path.pop();
                }
            }
        }
    }
    known.into_iter().map(|signature| signature.unwrap_or(Signature(0, 0))).collect()
}

fn sign(graph: &Graph, at: usize, known: &[Option<Signature>], files: &Files) -> Signature {
    let node = &graph.nodes[at];
    let mut inputs: Vec<&(String, Input)> = node.inputs.iter().collect();
    inputs.sort_by(|left, right| left.0.cmp(&right.0));
    let hash = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        node.class.name.hash(&mut hasher);
        for (name, input) in &inputs {
            name.hash(&mut hasher);
            match input {
                Input::Link { node, slot } => (1u8, known[*node], slot).hash(&mut hasher),
                Input::Literal(value) | Input::BadLink(value) => {
                    2u8.hash(&mut hasher);
                    hash_json(value, &mut hasher);
                }
            }
        }
        if matches!(node.class.work, Work::LoadImage | Work::LoadImageMask)
            && let Some(Input::Literal(Json::String(name))) = node.input("image")
        {
            files.find_annotated(name).map(|file| file.version).hash(&mut hasher);
        }
        hasher.finish()
    };
    Signature(hash(0), hash(1))
}

fn hash_json(value: &Json, hasher: &mut DefaultHasher) {
    match value {
        Json::String(text) => text.hash(hasher),
        other => other.to_string().hash(hasher),
    }
}

#[derive(Debug)]
struct Kept {
    values: Arc<Vec<Value>>,
    ui: Option<Arc<Json>>,
}

/// What the last prompts' nodes produced.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    kept: HashMap<Signature, Kept>,
}

impl Cache {
    /// Forgets whatever the prompt that starts now does not use, as ComfyUI's default cache does.
    pub fn keep_only(&mut self, signatures: &[Signature]) {
        let used: HashSet<&Signature> = signatures.iter().collect();
        self.kept.retain(|signature, _| used.contains(signature));
    }

    pub fn has(&self, signature: &Signature) -> bool {
        self.kept.contains_key(signature)
    }

    /// What a kept node shows: `None` when it is not kept, `Some(None)` when it shows nothing.
    pub fn ui(&self, signature: &Signature) -> Option<Option<Arc<Json>>> {
        self.kept.get(signature).map(|kept| kept.ui.clone())
    }

    pub fn values(&self, signature: &Signature) -> Option<Arc<Vec<Value>>> {
        self.kept.get(signature).map(|kept| kept.values.clone())
    }

    pub fn insert(&mut self, signature: Signature, product: Product) {
        self.kept.insert(signature, Kept { values: Arc::new(product.values), ui: product.ui.map(Arc::new) });
    }

    pub fn clear(&mut self) {
        self.kept.clear();
    }
}
