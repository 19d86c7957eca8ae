//! The order in which ComfyUI runs the nodes of a graph.

use std::collections::HashSet;

use super::Graph;

/// What is left to run of a prompt: the nodes its outputs need and the cache does not have.
#[derive(Debug)]
pub(crate) struct Staging {
    /// Nodes not yet finished, in the order they were found.
    pending: Vec<usize>,
    /// For each node, how many unfinished nodes it waits for.
    waits_for: Vec<usize>,
    /// For each node, the nodes that wait for it.
    blocks: Vec<Vec<usize>>,
    output: Vec<bool>,
}

impl Staging {
    /// Collects what `outputs` (node indexes) need, leaving out what `is_cached` knows; the outputs themselves are always staged.
    pub fn new(graph: &Graph, outputs: &[usize], is_cached: impl Fn(usize) -> bool) -> Self {
        let count = graph.nodes.len();
        let mut staging = Self {
            pending: Vec::new(),
            waits_for: vec![0; count],
            blocks: vec![Vec::new(); count],
            output: graph.nodes.iter().map(|node| node.class.output_node).collect(),
        };
        let mut seen = HashSet::new();
        for &output in outputs {
            // Depth first from the last input to the first, as the original does with its stack.
            let mut stack = vec![output];
            while let Some(node) = stack.pop() {
                if !seen.insert(node) {
                    continue;
                }
                staging.pending.push(node);
                if is_cached(node) {
                    continue;
                }
                let mut sources = HashSet::new();
                for source in graph.nodes[node].links().filter(|&source| !is_cached(source)) {
                    stack.push(source);
                    if sources.insert(source) {
                        staging.waits_for[node] += 1;
                        staging.blocks[source].push(node);
                    }
                }
            }
        }
        staging
    }

    /// Takes the next node to run: one that waits for nothing, and among those one that brings an output nearest.
    pub fn next(&mut self) -> Option<usize> {
        let ready: Vec<usize> = self.pending.iter().copied().filter(|&node| self.waits_for[node] == 0).collect();
        let pick = ready
            .iter()
            .copied()
            .find(|&node| self.output[node])
            .or_else(|| ready.iter().copied().find(|&node| self.blocks[node].iter().any(|&next| self.output[next])))
            .or_else(|| {
                let two_away = |&node: &usize| {
                    self.blocks[node].iter().any(|&next| self.blocks[next].iter().any(|&last| self.output[last]))
                };
                ready.iter().copied().find(two_away)
            })
            .or_else(|| ready.first().copied())?;
        self.pending.retain(|&node| node != pick);
        Some(pick)
    }

    /// Notes that a node is done, which may free others.
    pub fn finish(&mut self, node: usize) {
        for blocked in std::mem::take(&mut self.blocks[node]) {
            self.waits_for[blocked] = self.waits_for[blocked].saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::nodes::Installed;

    fn order(text: &str, cached: &[&str]) -> Vec<String> {
        let raw = RawValue::from_string(text.to_owned()).expect("valid JSON");
        let graph = Graph::parse(&raw, false, Installed::default()).expect("a graph");
        let outputs: Vec<usize> = (0..graph.nodes.len()).filter(|&node| graph.nodes[node].class.output_node).collect();
        let mut staging = Staging::new(&graph, &outputs, |node| cached.contains(&graph.nodes[node].id.as_str()));
        let mut order = Vec::new();
        while let Some(node) = staging.next() {
            order.push(graph.nodes[node].id.clone());
            staging.finish(node);
        }
        order
    }

    const TEXT_TO_IMAGE: &str = r#"{
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}}}"#;

    #[test]
    fn runs_text_to_image_in_the_recorded_order() {
        assert_eq!(order(TEXT_TO_IMAGE, &[]), ["4", "5", "7", "6", "3", "8", "9"]);
    }

    #[test]
    fn leaves_out_what_the_cache_has() {
        assert_eq!(order(TEXT_TO_IMAGE, &["4", "5", "6", "7"]), ["3", "8", "9"]);
        assert_eq!(order(TEXT_TO_IMAGE, &["3", "4", "5", "6", "7", "8", "9"]), ["9"]);
    }
}
