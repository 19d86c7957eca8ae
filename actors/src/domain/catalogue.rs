//! What one `ComfyUI` server can run: its node classes, as its `/object_info` tells them, in the form in which graphs are held against
//! them.
//!
//! Whatever custom nodes say about themselves is taken as far as it is understood. What is not understood is never a fault of a graph.

mod read;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};
use uuid::Uuid;

use super::{
    lane::{ListValue, Needs},
    workflow::Kind,
};

/// The node classes of one server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Catalogue {
    classes: BTreeMap<Arc<str>, Class>,
    /// A hash of the answer it was read from: comparing whole catalogues would take milliseconds.
    print: Uuid,
}

impl PartialEq for Catalogue {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

/// A node class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// Its name for people.
    pub title: String,
    /// Where it stands in menus: "sampling/custom".
    pub category: String,
    /// What it does.
    pub description: String,
    /// Its inputs, in order. Hidden ones, which the server fills itself, are left out.
    pub inputs: Vec<InputSpec>,
    /// Its outputs; links name them by their place.
    pub outputs: Vec<OutputSpec>,
    /// It makes results; a graph needs at least one such node.
    pub is_output: bool,
    /// The server says nothing about it that is understood: only its name is known.
    pub is_opaque: bool,
}

/// An input of a class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it must be there.
    pub required: bool,
    /// What it takes.
    pub takes: Takes,
    /// What editors start with; the server itself fills in nothing.
    pub default: Option<Value>,
    /// It names a file in the server's input folder, and a new one of this kind may be uploaded.
    pub uploads: Option<Kind>,
}

/// What an input takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Takes {
    /// `INT`
    Whole(Range),
    /// `FLOAT`
    Number(Range),
    /// `STRING`; anything becomes text.
    Text,
    /// `BOOLEAN`; anything is true or false.
    Truth,
    /// One of a list, or several.
    Choice(Choice),
    /// A link to an output of this type; several types are separated by commas, `*` is any.
    Linked(Arc<str>),
    /// Inputs that multiply or change with others, and whatever is not understood. The text is its type.
    Anything(Arc<str>),
}

/// The bounds of a number, both inclusive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The least.
    pub least: Option<Number>,
    /// The greatest.
    pub most: Option<Number>,
}

/// A choice among listed values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The values; `None` when the server does not know them itself.
    pub list: Option<Arc<List>>,
    /// Several at once may be chosen.
    pub many: bool,
    /// Written `["a", "b"]` instead of `"COMBO"`: a link must then come from an output with the very same list.
    pub inline: bool,
}

/// A list of values. Long ones (models) are shared by all inputs that have the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<Value>", into = "Vec<Value>")]
pub struct List {
    /// In the server's order.
    pub values: Vec<Value>,
    texts: HashSet<String>,
}

/// An output of a class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputSpec {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: OutputKind,
    /// It is a list of such things.
    pub is_list: bool,
}

/// The type of an output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum OutputKind {
    /// By name.
    Named(Arc<str>),
    /// One of a list.
    OneOf(Arc<List>),
}

impl Catalogue {
    /// What tells it from others.
    #[must_use]
    pub fn print(&self) -> String {
        self.print.simple().to_string()
    }

    /// Reads the answer to `/object_info`.
    ///
    /// # Errors
    /// It is no JSON object of node classes.
    pub fn parse(text: &str) -> Result<Self, String> {
        read::catalogue(text)
    }

    /// A class.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.get(name)
    }

    /// All classes by name.
    pub fn classes(&self) -> impl Iterator<Item = (&str, &Class)> {
        self.classes.iter().map(|(name, class)| (&**name, class))
    }

    /// How many classes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Whether all of these classes and values are here.
    #[must_use]
    pub fn meets(&self, needs: &Needs) -> bool {
        needs.classes.iter().all(|class| self.classes.contains_key(class.as_str()))
            && needs.values.iter().all(|value| self.has(value))
    }

    /// Whether an input's list has a value. An input whose list is not known takes it.
    #[must_use]
    pub fn has(&self, wanted: &ListValue) -> bool {
        self.class(&wanted.class)
            .is_some_and(|class| class.list(&wanted.input).is_none_or(|list| list.has_text(&wanted.value)))
    }
}

impl Class {
    /// An input of it.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&InputSpec> {
        self.inputs.iter().find(|input| *input.name == *name)
    }

    /// Whether a name belongs to one of its inputs that grow: `images.image0` to `images`.
    #[must_use]
    pub fn grows(&self, name: &str) -> bool {
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        self.input(stem).is_some_and(|input| matches!(input.takes, Takes::Anything(_)))
    }

    /// The list of an input, if it has one.
    #[must_use]
    pub fn list(&self, input: &str) -> Option<&Arc<List>> {
        match &self.input(input)?.takes {
            Takes::Choice(choice) => choice.list.as_ref(),
            _ => None,
        }
    }
}

impl Takes {
    /// The name of its type.
    #[must_use]
    pub fn type_name(&self) -> &str {
        match self {
            Self::Whole(_) => "INT",
            Self::Number(_) => "FLOAT",
            Self::Text => "STRING",
            Self::Truth => "BOOLEAN",
            Self::Choice(_) => "COMBO",
            Self::Linked(name) | Self::Anything(name) => name,
        }
    }

    /// Whether an input of this kind goes by its own name in a graph, so that it can be missing. One that grows does not.
    #[must_use]
    pub fn must_be_there(&self) -> bool {
        !matches!(self, Self::Anything(_))
    }

    /// Whether a link from such an output is taken.
    #[must_use]
    pub fn takes_link(&self, from: &OutputKind) -> bool {
        match (self, from) {
            (Self::Anything(_), _) => true,
            (Self::Choice(Choice { inline: true, list, .. }), OutputKind::OneOf(other)) => list.as_ref() == Some(other),
            (Self::Choice(Choice { inline: true, .. }), OutputKind::Named(name)) => is_wild(name),
            (_, OutputKind::OneOf(_)) => is_wild(self.type_name()),
            (_, OutputKind::Named(name)) => overlap(name, self.type_name()),
        }
    }
}

/// Whether a type name stands for several types that cannot be told apart from here: any, or what other inputs decide.
fn is_wild(name: &str) -> bool {
    name == "*" || name.starts_with("COMFY_")
}

/// Two names, each of which may list several types, share one.
fn overlap(received: &str, wanted: &str) -> bool {
    received == wanted
        || received
            .split(',')
            .map(str::trim)
            .any(|one| is_wild(one) || wanted.split(',').map(str::trim).any(|other| is_wild(other) || one == other))
}

impl OutputKind {
    /// The name of its type.
    #[must_use]
    pub fn type_name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::OneOf(_) => "COMBO",
        }
    }
}

impl From<Vec<Value>> for List {
    fn from(values: Vec<Value>) -> Self {
        Self::new(values)
    }
}

impl From<List> for Vec<Value> {
    fn from(list: List) -> Self {
        list.values
    }
}

impl List {
    fn new(values: Vec<Value>) -> Self {
        let texts = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Self { values, texts }
    }

    /// Whether a text is in it.
    #[must_use]
    pub fn has_text(&self, text: &str) -> bool {
        self.texts.contains(text)
    }

    /// Whether a value is in it, as Python compares: 1, 1.0 and true are the same.
    #[must_use]
    pub fn has(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.has_text(text),
            other => self
                .values
                .iter()
                .any(|listed| listed == other || number(listed).is_some_and(|n| Some(n) == number(other))),
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_bool().map(|truth| f64::from(u8::from(truth))))
}

#[cfg(test)]
pub(crate) mod tests;
