//! The recorded traces, and what it means for the fake to behave alike: the same status codes, the same shape of JSON (keys and
//! types, not values), the same sequence of frames per prompt.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use serde_json::{Value as Json, json};

use crate::client::Frame;

/// A recorded case.
pub struct Trace {
    pub name: String,
    pub events: Vec<Json>,
}

impl Trace {
    /// Reads `tests/fixtures/<set>/<number>_*.json`.
    pub fn load(set: &str, number: &str) -> Self {
        // Tests run in their package's folder.
        let folder = PathBuf::from("../fixtures").join(set);
        let prefix = format!("{number}_");
        let path = std::fs::read_dir(&folder)
            .expect("the fixtures")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix)))
            .unwrap_or_else(|| panic!("no trace {number} in {}", folder.display()));
        let text = std::fs::read_to_string(&path).expect("a readable trace");
        let trace: Json = serde_json::from_str(&text).expect("JSON");
        let events = trace["events"].as_array().cloned().expect("events");
        Self { name: format!("{set}/{number}"), events }
    }

    /// The recorded requests with their answers.
    pub fn requests(&self) -> impl Iterator<Item = Request<'_>> {
        self.events.iter().filter(|event| event["kind"] == "http").map(Request)
    }

    /// The frames one recorded socket got, in order; previews are reduced to their kind.
    pub fn frames(&self, socket: &str) -> Vec<Frame> {
        let own = self.events.iter().filter(|event| event["ws"] == socket);
        own.filter_map(|event| match event["kind"].as_str()? {
            "ws_text" => Some(Frame::Text(serde_json::from_str(event["data"].as_str()?).ok()?)),
            "ws_binary" => Some(Frame::Binary(vec![0, 0, 0, u8::try_from(event["event_type"].as_u64()?).ok()?])),
            _ => None,
        })
        .collect()
    }
}

/// A recorded request with its answer.
#[derive(Clone, Copy)]
pub struct Request<'a>(pub &'a Json);

impl Request<'_> {
    pub fn note(&self) -> &str {
        self.0["note"].as_str().unwrap_or("")
    }

    pub fn method(&self) -> &str {
        self.0["request"]["method"].as_str().expect("a method")
    }

    pub fn path(&self) -> &str {
        self.0["request"]["path"].as_str().expect("a path")
    }

    /// The body as text; forms are not in the traces.
    pub fn body(&self) -> Option<&str> {
        self.0["request"]["body"].as_str()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.0["request"]["headers"], name)
    }

    pub fn status(&self) -> u16 {
        self.0["response"]["status"].as_u64().and_then(|status| u16::try_from(status).ok()).expect("a status")
    }

    pub fn answer_header(&self, name: &str) -> Option<&str> {
        header(&self.0["response"]["headers"], name)
    }

    /// The answer as text, if it was recorded.
    pub fn answer(&self) -> Option<&str> {
        self.0["response"]["body"].as_str().filter(|text| *text != "<dropped>")
    }

    /// The prompt id an accepting answer names.
    pub fn accepted_id(&self) -> Option<String> {
        if self.method() != "POST" || !self.path().ends_with("/prompt") || self.status() != 200 {
            return None;
        }
        let answer: Json = serde_json::from_str(self.answer()?).ok()?;
        answer["prompt_id"].as_str().map(str::to_owned)
    }
}

fn header<'a>(headers: &'a Json, name: &str) -> Option<&'a str> {
    let found =
        headers.as_array()?.iter().find(|pair| pair[0].as_str().is_some_and(|key| key.eq_ignore_ascii_case(name)));
    found?[1].as_str()
}

/// Keys and types of a value. Objects keep their keys, arrays the set of their elements' shapes; all numbers are alike, since
/// ComfyUI itself mixes integers and floats.
pub fn shape(value: &Json) -> Json {
    match value {
        Json::Null => json!("null"),
        Json::Bool(_) => json!("bool"),
        Json::Number(_) => json!("number"),
        Json::String(_) => json!("string"),
        Json::Array(items) => {
            let shapes: BTreeSet<String> = items.iter().map(|item| shape(item).to_string()).collect();
            json!({"[]": shapes})
        }
        Json::Object(members) => members.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
    }
}

/// Replaces ids, wherever they stand, keys included.
pub fn rename(value: &Json, ids: &HashMap<String, String>) -> Json {
    let text = |text: &String| ids.get(text).unwrap_or(text).clone();
    match value {
        Json::String(name) => Json::String(text(name)),
        Json::Array(items) => items.iter().map(|item| rename(item, ids)).collect(),
        Json::Object(members) => members.iter().map(|(key, value)| (text(key), rename(value, ids))).collect(),
        other => other.clone(),
    }
}

/// The frames of each prompt of a socket, each reduced to one line: kind, node and, for `progress_state`, the state of every node.
/// Frames that name no prompt belong to the one whose frame came last; what comes before the first belongs to none.
pub fn lines_by_prompt(frames: &[Frame]) -> BTreeMap<String, Vec<String>> {
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current: Option<String> = None;
    for frame in frames {
        if let Some(id) = frame.data()["prompt_id"].as_str() {
            current = Some(id.to_owned());
        }
        // Other prompts come and go; their status frames fall anywhere.
        if frame.kind() == "status" {
            continue;
        }
        if let Some(id) = &current {
            lines.entry(id.clone()).or_default().push(line(frame));
        }
    }
    lines
}

fn line(frame: &Frame) -> String {
    let data = frame.data();
    let node = |key: &str| data[key].as_str().map(|node| format!(" {node}")).unwrap_or_default();
    match frame.kind().as_str() {
        "progress_state" => {
            let states = data["nodes"].as_object().into_iter().flatten().map(|(id, state)| {
                format!(" {id}:{}/{}={}", state["value"], state["max"], state["state"].as_str().unwrap_or("?"))
            });
            format!("progress_state{}", states.collect::<String>())
        }
        "progress" => format!("progress{} {}/{}", node("node"), data["value"], data["max"]),
        "execution_cached" => format!("execution_cached {}", data["nodes"]),
        kind @ ("execution_error" | "execution_interrupted") => {
            format!("{kind}{} after {}", node("node_id"), data["executed"])
        }
        kind => format!("{kind}{}", node("node")),
    }
}

/// The shape of the data of each kind of text frame a socket got.
pub fn shapes_by_kind(frames: &[Frame]) -> BTreeMap<String, BTreeSet<String>> {
    let mut shapes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for frame in frames.iter().filter(|frame| matches!(frame, Frame::Text(_))) {
        // The nodes of a progress_state are keys; one of them stands for all.
        let mut data = frame.data().clone();
        if let Some(nodes) = data["nodes"].as_object() {
            data["nodes"] = json!(nodes.values().take(1).collect::<Vec<_>>());
        }
        if frame.kind() == "execution_error" {
            // Depends on the failing node's inputs.
            data["current_inputs"] = json!({});
        }
        shapes.entry(frame.kind()).or_default().insert(shape(&data).to_string());
    }
    shapes
}
