//! A workflow in API format: `{"<node id>": {"class_type": ..., "inputs": {...}}}`.
//!
//! The text of the graph is kept as it came, because `/queue` and `/history` echo it; what is parsed here serves validation and
//! execution only. The order of nodes and inputs is kept too: it decides the order of execution.

pub(crate) mod order;
pub(crate) mod validate;

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::nodes::{Installed, NodeClass};

/// A JSON object whose members keep their order and their text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Members(pub Vec<(String, Box<RawValue>)>);

impl Members {
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        // The last one wins, as in Python.
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, raw)| &**raw)
    }

    /// The member as a value; absent and unreadable are both `None`.
    pub fn value(&self, key: &str) -> Option<Value> {
        serde_json::from_str(self.get(key)?.get()).ok()
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = Vec::with_capacity(access.size_hint().unwrap_or(8));
                while let Some(member) = access.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

impl serde::Serialize for Members {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, raw)| (name, raw)))
    }
}

/// What an input of a node is fed from.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Output `slot` of the node with this index.
    Link { node: usize, slot: usize },
    /// A literal.
    Literal(Value),
    /// A list that is not a usable link; validation says what is wrong with it.
    BadLink(Value),
}

/// A node of a known class.
#[derive(Debug)]
pub(crate) struct Node {
    pub id: String,
    pub class: &'static NodeClass,
    pub inputs: Vec<(String, Input)>,
    /// A node without `inputs` fails validation with an exception.
    pub has_inputs: bool,
}

impl Node {
    pub fn input(&self, name: &str) -> Option<&Input> {
        self.inputs.iter().rev().find(|(key, _)| key == name).map(|(_, input)| input)
    }

    /// The nodes this one is linked to, in the order of its inputs.
    pub fn links(&self) -> impl Iterator<Item = usize> {
        self.inputs.iter().filter_map(|(_, input)| match input {
            Input::Link { node, .. } => Some(*node),
            _ => None,
        })
    }
}

/// A parsed graph. Links may still point to missing slots or form cycles.
#[derive(Debug)]
pub(crate) struct Graph {
    pub nodes: Vec<Node>,
}

/// Why a text is not a graph of known nodes.
#[derive(Debug)]
pub(crate) enum GraphError {
    /// Not an object of objects: ComfyUI stumbles and answers 500.
    Shape,
    /// A class that is not installed, or none.
    UnknownClass { node_id: String, class_type: Option<String>, title: Option<String> },
}

impl Graph {
    /// Reads a graph. The older servers are `lenient`: a list has no nodes, and a node that is no object has no class.
    pub fn parse(text: &RawValue, lenient: bool, installed: Installed<'_>) -> Result<Self, GraphError> {
        if lenient && text.get().starts_with('[') {
            return Ok(Self { nodes: Vec::new() });
        }
        let members: Members = serde_json::from_str(text.get()).map_err(|_| GraphError::Shape)?;
        let index: HashMap<&str, usize> = members.0.iter().enumerate().map(|(at, (id, _))| (id.as_str(), at)).collect();
        let nodes = members
            .0
            .iter()
            .map(|(id, raw)| parse_node(id, raw, &index, lenient, installed))
            .collect::<Result<_, _>>()?;
        Ok(Self { nodes })
    }
}

fn parse_node(
    id: &str,
    raw: &RawValue,
    index: &HashMap<&str, usize>,
    lenient: bool,
    installed: Installed<'_>,
) -> Result<Node, GraphError> {
    let members: Members = match serde_json::from_str(raw.get()) {
        Ok(members) => members,
        Err(_) if lenient && raw.get().starts_with(['"', '[']) => Members::default(),
        Err(_) => return Err(GraphError::Shape),
    };
    let class_type = members.value("class_type").and_then(|value| value.as_str().map(str::to_owned));
    let Some(class) = class_type.as_deref().and_then(|name| installed.find(name)) else {
        let title = members.value("_meta").and_then(|meta| meta.get("title")?.as_str().map(str::to_owned));
        return Err(GraphError::UnknownClass { node_id: id.to_owned(), class_type, title });
    };
    let inputs: Option<Members> = members.get("inputs").and_then(|raw| serde_json::from_str(raw.get()).ok());
    let has_inputs = inputs.is_some();
    let inputs = inputs.unwrap_or_default().0.into_iter().map(|(name, raw)| (name, parse_input(&raw, index))).collect();
    Ok(Node { id: id.to_owned(), class, inputs, has_inputs })
}

fn parse_input(raw: &RawValue, index: &HashMap<&str, usize>) -> Input {
    let value: Value = serde_json::from_str(raw.get()).unwrap_or(Value::Null);
    match &value {
        Value::Array(items) => {
            let link = match items.as_slice() {
                [Value::String(id), slot] => slot.as_u64().and_then(|slot| {
                    Some(Input::Link { node: *index.get(id.as_str())?, slot: usize::try_from(slot).ok()? })
                }),
                _ => None,
            };
            link.unwrap_or(Input::BadLink(value))
        }
        // How a literal list is spelled, since a bare list is a link.
        Value::Object(object) if object.len() == 1 && object.contains_key("__value__") => {
            Input::Literal(object.get("__value__").cloned().unwrap_or(Value::Null))
        }
        _ => Input::Literal(value),
    }
}
