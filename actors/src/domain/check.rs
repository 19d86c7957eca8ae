//! Holds a graph against what one server has, by the rules by which `ComfyUI` itself validates (PROTOCOL.md 3): what it would refuse is
//! a fault here, and what it takes in silence (inputs nobody asked for, nodes that lead to no output) is none. Unlike `ComfyUI`, which
//! stops at the first missing class, every fault is found.

mod literal;

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::{
    catalogue::{Catalogue, Class, InputSpec},
    graph::link_source,
    lane::ListValue,
};

/// What is wrong with a graph, for one server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The node at fault; `None` when it is the graph as a whole.
    pub node: Option<String>,
    /// Its input; `None` when it is the class itself.
    pub input: Option<String>,
    /// What is wrong and what would be right.
    pub detail: String,
    /// What is missing here and may be there on another server.
    pub lack: Option<Lack>,
}

/// Something a server does not have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// A node class.
    Class(String),
    /// A value in a list: a model, mostly.
    Value(ListValue),
}

/// How a graph is looked at.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// Some outputs may be at fault, as long as one is not.
    pub allow_partial: bool,
    /// Whether the value of this node's input will be replaced before it is submitted, so that it says nothing.
    pub is_placeholder: &'a dyn Fn(&str, &str, &Value) -> bool,
}

/// Every fault of a graph that passed [`graph::check`](super::graph::check), in the order of its nodes. Empty = the server will take it.
#[must_use]
pub fn check(nodes: &Map<String, Value>, catalogue: &Catalogue, terms: Terms<'_>) -> Vec<Fault> {
    let mut check = Check::new(nodes, catalogue, terms);
    for node in 0..check.nodes.len() {
        check.look_up(node);
    }
    let missing_class = !check.faults.is_empty();
    // What a class that is not here would be is unknown, so what hangs on it is looked at as well.
    let roots: Vec<usize> = (0..check.nodes.len()).filter(|node| check.is_root(*node)).collect();
    if roots.is_empty() {
        check.faults.push(Fault {
            node: None,
            input: None,
            detail:
                "no node of this graph makes an output; end it with one that does, such as SaveImage or PreviewImage"
                    .to_owned(),
            lack: None,
        });
    }
    for root in &roots {
        check.walk(*root);
    }
    let some_output_is_good = !missing_class && roots.iter().any(|root| !check.bad[*root]);
    if terms.allow_partial && some_output_is_good {
        return Vec::new();
    }
    check.faults.sort();
    check.faults
}

struct Check<'a> {
    nodes: Vec<Node<'a>>,
    places: HashMap<&'a str, usize>,
    terms: Terms<'a>,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    /// It, or something it needs, is at fault.
    bad: Vec<bool>,
}

struct Node<'a> {
    id: &'a str,
    class_type: &'a str,
    class: Option<&'a Class>,
    inputs: Option<&'a Map<String, Value>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Not,
    /// Being looked at: whoever links to it now closes a circle.
    Open,
    Done,
}

impl<'a> Check<'a> {
    fn new(nodes: &'a Map<String, Value>, catalogue: &'a Catalogue, terms: Terms<'a>) -> Self {
        let read = |(id, node): (&'a String, &'a Value)| {
            let class_type = node.get("class_type").and_then(Value::as_str).unwrap_or_default();
            let inputs = node.get("inputs").and_then(Value::as_object);
            Node { id: id.as_str(), class_type, class: catalogue.class(class_type), inputs }
        };
        let nodes: Vec<Node<'a>> = nodes.iter().map(read).collect();
        let places = nodes.iter().enumerate().map(|(place, node)| (node.id, place)).collect();
        let count = nodes.len();
        let (seen, bad) = (vec![Seen::Not; count], vec![false; count]);
        Self { nodes, places, terms, faults: Vec::new(), seen, bad }
    }

    fn look_up(&mut self, node: usize) {
        let Node { id, class_type, class, .. } = self.nodes[node];
        if class.is_none() {
            let fault = Fault {
                node: Some(id.to_owned()),
                input: None,
                detail: format!("there is no node class {class_type}"),
                lack: Some(Lack::Class(class_type.to_owned())),
            };
            self.blame(node, fault);
        }
    }

    fn is_root(&self, node: usize) -> bool {
        self.nodes[node].class.is_none_or(|class| class.is_output)
    }

    fn blame(&mut self, node: usize, fault: Fault) {
        self.bad[node] = true;
        self.faults.push(fault);
    }

    fn blame_input(&mut self, node: usize, input: &str, detail: String, lack: Option<Lack>) {
        let id = self.nodes[node].id.to_owned();
        self.blame(node, Fault { node: Some(id), input: Some(input.to_owned()), detail, lack });
    }

    /// Looks at everything a node needs, and then at the node. Keeps its own stack: a graph from outside must not decide how deep ours
    /// grows.
    fn walk(&mut self, root: usize) {
        let mut path: Vec<(usize, Vec<(&'a str, usize)>)> = Vec::new();
        if self.seen[root] == Seen::Not {
            path.push((root, self.open(root)));
        }
        while let Some((node, links)) = path.last_mut() {
            let node = *node;
            match links.pop() {
                Some((_, source)) if self.seen[source] == Seen::Done => self.bad[node] |= self.bad[source],
                Some((input, source)) if self.seen[source] == Seen::Open => {
                    let from = path.iter().position(|(on_path, _)| *on_path == source).unwrap_or(0);
                    let circle = path[from..].iter().map(|(on_path, _)| self.nodes[*on_path].id).collect::<Vec<_>>();
                    let detail = format!("nodes {} wait for each other in a circle", circle.join(", "));
                    self.blame_input(node, input, detail, None);
                }
                Some((_, source)) => path.push((source, self.open(source))),
                None => {
                    self.seen[node] = Seen::Done;
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        self.bad[*parent] |= self.bad[node];
                    }
                }
            }
        }
    }

    /// Looks at a node's own inputs; answers which nodes it is linked to, the last one first.
    fn open(&mut self, node: usize) -> Vec<(&'a str, usize)> {
        self.seen[node] = Seen::Open;
        let Node { class, inputs, .. } = self.nodes[node];
        let Some(inputs) = inputs else { return Vec::new() };
        let Some(class) = class.filter(|class| !class.is_opaque) else { return self.all_links(inputs) };
        for spec in class.inputs.iter().filter(|spec| spec.required && spec.takes.must_be_there()) {
            if !inputs.contains_key(&*spec.name) {
                let detail = format!("the required input {} is missing", spec.name);
                self.blame_input(node, &spec.name, detail, None);
            }
        }
        let mut links = Vec::new();
        for (name, value) in inputs {
            match class.input(name) {
                Some(spec) => links.extend(self.input(node, spec, name, value)),
                // An input of a group that grows: `images.image0` of `images`.
                None if class.grows(name) => links.extend(self.link(name, value)),
                // Nobody asked for it: the server ignores it.
                None => {}
            }
        }
        links.reverse();
        links
    }

    fn all_links(&self, inputs: &'a Map<String, Value>) -> Vec<(&'a str, usize)> {
        inputs.iter().filter_map(|(name, value)| self.link(name, value)).collect()
    }

    fn link(&self, name: &'a str, value: &'a Value) -> Option<(&'a str, usize)> {
        Some((name, *self.places.get(link_source(value)?)?))
    }

    /// Looks at an input the class knows; answers the node it is linked to.
    fn input(&mut self, node: usize, spec: &InputSpec, name: &'a str, value: &'a Value) -> Option<(&'a str, usize)> {
        if let Value::Array(items) = value {
            return match self.slot(spec, items) {
                Ok(source) => Some((name, source)),
                Err(detail) => {
                    self.blame_input(node, name, detail, None);
                    self.link(name, value)
                }
            };
        }
        let Node { id, class_type, .. } = self.nodes[node];
        if (self.terms.is_placeholder)(id, name, value) {
            return None;
        }
        if let Err(refused) = literal::check(spec, value) {
            let lack = refused
                .missing
                .map(|value| Lack::Value(ListValue { class: class_type.to_owned(), input: name.to_owned(), value }));
            self.blame_input(node, name, refused.detail, lack);
        }
        None
    }

    /// The node a link comes from, if what comes from there is taken.
    fn slot(&self, spec: &InputSpec, link: &[Value]) -> Result<usize, String> {
        let [Value::String(id), slot] = link else {
            return Err(
                "a list here must be a link, [\"<node id>\", <output index>]; a list that is a value is written {\"__value__\": [...]}"
                    .to_owned(),
            );
        };
        let source = *self
            .places
            .get(id.as_str())
            .ok_or_else(|| format!("links to node {id}, which the graph does not have"))?;
        let Some(class) = self.nodes[source].class.filter(|class| !class.is_opaque) else { return Ok(source) };
        let class_type = self.nodes[source].class_type;
        let output = slot.as_u64().and_then(|slot| class.outputs.get(usize::try_from(slot).ok()?));
        let output = output.ok_or_else(|| match class.outputs.len() {
            0 => format!("links to an output of node {id}, and a {class_type} has none"),
            count => format!("links to output {slot} of node {id}; a {class_type} has outputs 0 to {}", count - 1),
        })?;
        if spec.takes.takes_link(&output.kind) {
            return Ok(source);
        }
        let (wanted, found) = (spec.takes.type_name(), output.kind.type_name());
        Err(format!("takes {wanted}, and output {slot} of node {id} ({class_type}) is {found}"))
    }
}

/// What a graph needs of a server: its classes, and the texts it chooses from lists as one catalogue knows them.
pub fn needed<'a>(nodes: &'a Map<String, Value>, catalogue: &'a Catalogue, terms: Terms<'a>) -> BTreeSet<Lack> {
    let mut all = BTreeSet::new();
    for (id, node) in nodes {
        let Some(class_type) = node.get("class_type").and_then(Value::as_str) else { continue };
        all.insert(Lack::Class(class_type.to_owned()));
        let Some(class) = catalogue.class(class_type) else { continue };
        let inputs = node.get("inputs").and_then(Value::as_object);
        for (name, value) in inputs.into_iter().flatten() {
            let Some(spec) = class.input(name) else { continue };
            if (terms.is_placeholder)(id, name, value) {
                continue;
            }
            let chosen = literal::chosen(spec, value).into_iter().map(|value| ListValue {
                class: class_type.to_owned(),
                input: name.clone(),
                value: value.to_owned(),
            });
            all.extend(chosen.map(Lack::Value));
        }
    }
    all
}

#[cfg(test)]
mod tests;
