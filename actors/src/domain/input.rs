//! Files that clients give: named by their content, referred to in graphs, and put under the server's own name just before a graph is
//! sent.
//!
//! In every graph we keep, a file is a [`Source`]: `comfyd://inputs/<sha256>` when it is stored, `comfyd://url/<URL>` when it is to be
//! fetched for the task. The bytes are never part of a graph or of the inputs as shown; [`places`] finds what a graph needs,
//! [`put_names`] replaces it.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::time::Timestamp;

/// What every reference to a stored file begins with.
pub const SCHEME: &str = "comfyd://inputs/";
/// What every reference to a file that is to be fetched begins with; its URL follows.
pub const URL_SCHEME: &str = "comfyd://url/";

/// The name of a file's content: SHA-256, 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InputId(String);

impl InputId {
    /// From the digits; capitals are as good.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| Self(text.to_ascii_lowercase()))
    }

    /// From a reference.
    #[must_use]
    pub fn from_uri(text: &str) -> Option<Self> {
        text.strip_prefix(SCHEME).and_then(Self::parse)
    }

    /// The reference.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// It is stored.
    Stored(InputId),
    /// It lies at this URL, and is fetched when the task that needs it is about to run.
    Url(String),
}

impl Source {
    /// From a reference.
    #[must_use]
    pub fn from_uri(text: &str) -> Option<Self> {
        let url = || text.strip_prefix(URL_SCHEME).map(|url| Self::Url(url.to_owned()));
        InputId::from_uri(text).map(Self::Stored).or_else(url)
    }

    /// The reference.
    #[must_use]
    pub fn uri(&self) -> String {
        match self {
            Self::Stored(id) => id.uri(),
            Self::Url(url) => format!("{URL_SCHEME}{url}"),
        }
    }
}

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its content's name.
    pub id: InputId,
    /// Where it lies in storage.
    pub key: String,
    /// What it is.
    pub about: About,
    /// Kept at least until then, longer while an unfinished task needs it.
    pub expires_at: Timestamp,
}

/// What a file is, beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What the client called it last. For people; no path is ever built from it.
    pub name: String,
    /// By its first bytes, else by its name.
    pub content_type: String,
    /// Of the same origin, lowercase letters and digits; nodes for video and audio choose by it.
    pub extension: Option<String>,
    /// Size.
    pub bytes: u64,
}

impl Input {
    /// The name it is given on a ComfyUI server: by its content, so that the same file is stored there once, whoever sends it, and nothing a
    /// client wrote ever becomes a path.
    #[must_use]
    pub fn server_name(&self) -> String {
        match &self.about.extension {
            Some(extension) => format!("{}.{extension}", self.id),
            None => self.id.to_string(),
        }
    }
}

/// A field of a graph that refers to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: String,
    /// Its field.
    pub field: String,
    /// The file.
    pub source: Source,
}

/// Every field of a graph that refers to a file, in the graph's order.
#[must_use]
pub fn places(graph: &Value) -> Vec<Place> {
    fields(graph)
        .filter_map(|(node, field, value)| {
            let source = Source::from_uri(value.as_str()?)?;
            Some(Place { node: node.to_owned(), field: field.to_owned(), source })
        })
        .collect()
}

/// The stored files a graph refers to.
#[must_use]
pub fn references(graph: &Value) -> BTreeSet<InputId> {
    fields(graph).filter_map(|(_, _, value)| InputId::from_uri(value.as_str()?)).collect()
}

/// Every field of every node.
fn fields(graph: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    graph.as_object().into_iter().flatten().flat_map(|(id, node)| {
        let fields = node.get("inputs").and_then(Value::as_object).into_iter().flatten();
        fields.map(move |(field, value)| (id.as_str(), field.as_str(), value))
    })
}

/// Puts the names under which a server has the files in the place of the references.
pub fn put_names<'a>(graph: &mut Value, name: impl Fn(&Source) -> Option<&'a str>) {
    let nodes = graph.as_object_mut().into_iter().flat_map(|nodes| nodes.values_mut());
    for inputs in nodes.filter_map(|node| node.get_mut("inputs")?.as_object_mut()) {
        for value in inputs.values_mut() {
            if let Some(name) = value.as_str().and_then(Source::from_uri).and_then(|source| name(&source)) {
                *value = Value::from(name);
            }
        }
    }
}

/// A client's file name, fit to be shown and stored: its last part, without control characters, at most 255 bytes.
#[must_use]
pub fn plain_name(given: &str) -> String {
    /// What file systems take.
    const LONGEST: usize = 255;
    let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut name: String = last.chars().filter(|c| !c.is_control()).collect();
    while name.len() > LONGEST {
        name.pop();
    }
    let name = name.trim();
    if matches!(name, "" | "." | "..") { "file".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(digit: char) -> InputId {
        InputId::parse(&digit.to_string().repeat(64)).unwrap()
    }

    #[test]
    fn a_reference_is_read_as_it_was_written() {
        let id = id('a');
        assert_eq!(InputId::from_uri(&id.uri()), Some(id.clone()));
        assert_eq!(InputId::parse(&"A".repeat(64)).as_ref(), Some(&id));
        for bad in ["", "comfyd://inputs/", "comfyd://inputs/ab", &format!("comfyd://inputs/{}", "g".repeat(64))] {
            assert_eq!(Source::from_uri(bad), None, "{bad}");
        }
        for source in [Source::Stored(id.clone()), Source::Url("https://example.org/a?b#c".to_owned())] {
            assert_eq!(Source::from_uri(&source.uri()), Some(source));
        }
    }

    #[test]
    fn references_are_found_and_replaced_and_nothing_else_is() {
        let mut graph = json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": id('a').uri(), "text": format!("{} ", id('a').uri())}},
            "2": {"class_type": "X", "inputs": {"b": id('b').uri(), "c": id('c').uri(), "link": ["1", 0]}},
            "3": {"class_type": "X", "inputs": {"d": "comfyd://url/https://d", "e": "https://d"}},
            "4": 7,
        });
        let found: Vec<_> = places(&graph).into_iter().map(|place| format!("{}.{}", place.node, place.field)).collect();
        assert_eq!(found, ["1.image", "2.b", "2.c", "3.d"]);
        assert_eq!(references(&graph).len(), 3);
        put_names(&mut graph, |source| match source {
            Source::Stored(input) if *input == id('a') => Some("comfyd/a.png"),
            Source::Stored(input) if *input == id('b') => Some("b.png"),
            Source::Url(url) if url == "https://d" => Some("d.png"),
            _ => None,
        });
        assert_eq!(graph["1"]["inputs"], json!({"image": "comfyd/a.png", "text": format!("{} ", id('a').uri())}));
        assert_eq!(graph["2"]["inputs"], json!({"b": "b.png", "c": id('c').uri(), "link": ["1", 0]}));
        assert_eq!(graph["3"]["inputs"], json!({"d": "d.png", "e": "https://d"}), "a text that is a URL stays one");
    }

    #[test]
    fn names_of_clients_are_only_ever_names() {
        for (given, kept) in [
            ("cat.png", "cat.png"),
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\cat.png", "cat.png"),
            ("a\r\nb\0.png", "ab.png"),
            ("..", "file"),
            ("", "file"),
            ("dir/", "file"),
            ("фото.png", "фото.png"),
        ] {
            assert_eq!(plain_name(given), kept, "{given:?}");
        }
        let long = plain_name(&"ф".repeat(300));
        assert!(long.len() <= 255 && !long.is_empty());
    }
}
