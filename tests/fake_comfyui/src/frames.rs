//! The frames of the WebSocket, as text and as bytes.

use axum::body::Bytes;
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::nodes::expand::{parent, shown};

/// A text frame: `{"type": ..., "data": ...}`.
pub(crate) fn text<T: Serialize>(kind: &str, data: &T) -> String {
    #[derive(Serialize)]
    struct Frame<'a, T> {
        r#type: &'a str,
        data: &'a T,
    }
    // Our own types have string keys only, so this cannot fail.
    serde_json::to_string(&Frame { r#type: kind, data }).unwrap_or_default()
}

/// `status`; the first frame of a socket also carries its id.
pub(crate) fn status(remaining: usize, sid: Option<&str>) -> String {
    let mut data = json!({"status": {"exec_info": {"queue_remaining": remaining}}});
    if let Some(sid) = sid {
        data["sid"] = Json::String(sid.to_owned());
    }
    text("status", &data)
}

/// `executing`, for the start of a node or, without one, the end of the prompt.
pub(crate) fn executing(prompt_id: &str, node: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Data<'a> {
        node: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        display_node: Option<&'a str>,
        prompt_id: &'a str,
    }
    text("executing", &Data { node, display_node: node.map(shown), prompt_id })
}

/// `executing` as a client gets it that reconnects while its prompt runs: no prompt id.
pub(crate) fn executing_on_reconnect(node: &str) -> String {
    text("executing", &json!({"node": node}))
}

pub(crate) fn executed(prompt_id: &str, node: &str, output: &Json) -> String {
    #[derive(Serialize)]
    struct Data<'a> {
        node: &'a str,
        display_node: &'a str,
        output: &'a Json,
        prompt_id: &'a str,
    }
    text("executed", &Data { node, display_node: shown(node), output, prompt_id })
}

pub(crate) fn progress(prompt_id: &str, node: &str, value: u64, max: u64) -> String {
    #[derive(Serialize)]
    struct Data<'a> {
        value: u64,
        max: u64,
        prompt_id: &'a str,
        node: &'a str,
    }
    text("progress", &Data { value, max, prompt_id, node })
}

/// How far a node is: nodes that report count steps, the others go from 0.0 to 1.0.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(crate) enum Amount {
    Steps(u64),
    Part(f64),
}

/// A line of `progress_state`.
#[derive(Debug, Clone)]
pub(crate) struct NodeState {
    pub id: String,
    pub value: Amount,
    pub max: Amount,
    pub finished: bool,
}

/// `progress_state`: every node touched so far.
pub(crate) fn progress_state(prompt_id: &str, states: &[NodeState]) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        value: Amount,
        max: Amount,
        state: &'a str,
        node_id: &'a str,
        prompt_id: &'a str,
        display_node_id: &'a str,
        parent_node_id: Option<&'a str>,
        real_node_id: &'a str,
    }
    struct Lines<'a>(&'a str, &'a [NodeState]);
    impl Serialize for Lines<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.1.iter().map(|state| {
                let line = Line {
                    value: state.value,
                    max: state.max,
                    state: if state.finished { "finished" } else { "running" },
                    node_id: &state.id,
                    prompt_id: self.0,
                    display_node_id: shown(&state.id),
                    parent_node_id: parent(&state.id),
                    real_node_id: shown(&state.id),
                };
                (&state.id, line)
            }))
        }
    }
    #[derive(Serialize)]
    struct Data<'a> {
        prompt_id: &'a str,
        nodes: Lines<'a>,
    }
    text("progress_state", &Data { prompt_id, nodes: Lines(prompt_id, states) })
}

/// The file format of a preview.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PreviewFormat {
    Jpeg,
    Png,
}

/// A picture of unfinished work.
#[derive(Debug)]
pub(crate) struct Preview {
    pub format: PreviewFormat,
    pub bytes: Vec<u8>,
}

impl Preview {
    /// Binary frame 1: event, image type, image. It names neither node nor prompt.
    pub fn plain(&self) -> Bytes {
        let format = match self.format {
            PreviewFormat::Jpeg => 1,
            PreviewFormat::Png => 2,
        };
        binary(&[&1u32.to_be_bytes(), &u32::to_be_bytes(format), &self.bytes])
    }

    /// Binary frame 4, for clients that negotiated it: event, length, metadata, image.
    pub fn with_metadata(&self, prompt_id: &str, node: &str) -> Bytes {
        let image_type = match self.format {
            PreviewFormat::Jpeg => "image/jpeg",
            PreviewFormat::Png => "image/png",
        };
        let metadata = json!({
            "node_id": node,
            "prompt_id": prompt_id,
            "display_node_id": node,
            "parent_node_id": null,
            "real_node_id": node,
            "image_type": image_type,
        })
        .to_string();
        binary(&[&4u32.to_be_bytes(), &length(&metadata), metadata.as_bytes(), &self.bytes])
    }
}

/// Binary frame 3: event, length of the node id, node id, text.
pub(crate) fn progress_text(node: &str, text: &str) -> Bytes {
    binary(&[&3u32.to_be_bytes(), &length(node), node.as_bytes(), text.as_bytes()])
}

fn length(text: &str) -> [u8; 4] {
    u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes()
}

fn binary(parts: &[&[u8]]) -> Bytes {
    Bytes::from(parts.concat())
}
