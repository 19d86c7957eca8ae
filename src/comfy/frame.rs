//! Decodes WebSocket frames. Pure; never fails and never panics: whatever is odd, unknown or malformed is
//! [`Signal::Other`], because a frame is a hint and the history is the truth (protocol 13.5).

use std::borrow::Cow;

use bytes::Bytes;
use comfyd_actors::domain::{id::PromptId, prompt::Signal};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    json::relaxed,
    redact::{self, is_name},
};

/// How frames of the one type begin that grows with the square of the graph: every step repeats the state of all nodes,
/// 222 MB for one large job (protocol 12.6). Told by its first bytes, its body is not even scanned. The server writes
/// `type` first and with Python's spacing; frames written otherwise are still told apart below, only less cheaply.
const PROGRESS_STATE: &str = r#"{"type": "progress_state""#;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Decodes a text frame (protocol 6.3).
#[must_use]
pub fn decode_text(text: &str) -> Signal {
    if text.starts_with(PROGRESS_STATE) {
        return Signal::Other;
    }
    signal(&relaxed(text)).unwrap_or(Signal::Other)
}

fn signal(text: &str) -> Option<Signal> {
    let Envelope { kind, data } = serde_json::from_str(text).ok()?;
    let data = data.get();
    match &*kind {
        "status" => status(data),
        "execution_start" => Some(Signal::Started { prompt: read::<Named>(data)?.prompt() }),
        "execution_cached" => cached(data),
        "executing" => executing(data),
        "progress" => stepped(data),
        "execution_success" | "execution_interrupted" => Some(Signal::Ending { prompt: read::<Named>(data)?.prompt() }),
        "execution_error" => failed(data),
        _ => None,
    }
}

fn read<'a, T: Deserialize<'a>>(data: &'a str) -> Option<T> {
    serde_json::from_str(data).ok()
}

#[derive(Deserialize)]
struct Named {
    prompt_id: String,
}

impl Named {
    fn prompt(self) -> PromptId {
        PromptId::new(self.prompt_id)
    }
}

fn status(data: &str) -> Option<Signal> {
    #[derive(Deserialize)]
    struct Data {
        status: Status,
        sid: Option<String>,
    }
    #[derive(Deserialize)]
    struct Status {
        exec_info: ExecInfo,
    }
    #[derive(Deserialize)]
    struct ExecInfo {
        queue_remaining: u64,
    }
    let Data { status, sid } = read(data)?;
    Some(Signal::Status { queue_remaining: status.exec_info.queue_remaining, sid })
}

fn cached(data: &str) -> Option<Signal> {
    #[derive(Deserialize)]
    struct Data {
        prompt_id: String,
        nodes: Vec<String>,
    }
    let Data { prompt_id, nodes } = read(data)?;
    Some(Signal::Cached { prompt: PromptId::new(prompt_id), nodes })
}

/// A null node is the end of the prompt. The frame after a reconnect has a node and no prompt (protocol 6.6), so a node
/// that is *missing* says nothing. The node is shown by the id the user knows: a subgraph's inner nodes carry the outer one
/// as `display_node`.
fn executing(data: &str) -> Option<Signal> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(default, deserialize_with = "present")]
        node: Option<Option<String>>,
        display_node: Option<String>,
        prompt_id: Option<String>,
    }
    let Data { node, display_node, prompt_id } = read(data)?;
    let prompt = prompt_id.map(PromptId::new);
    match node? {
        Some(node) => {
            let node = display_node.unwrap_or(node);
            is_name(&node).then_some(Signal::Executing { prompt, node })
        }
        None => Some(Signal::Ended { prompt: prompt? }),
    }
}

/// Tells a null field from a missing one, which serde takes for the same.
fn present<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(input).map(Some)
}

fn stepped(data: &str) -> Option<Signal> {
    #[derive(Deserialize)]
    struct Data {
        prompt_id: String,
        node: String,
        value: f64,
        max: f64,
    }
    let Data { prompt_id, node, value, max } = read::<Data>(data).filter(|data| is_name(&data.node))?;
    Some(Signal::Stepped { prompt: PromptId::new(prompt_id), node, value, max })
}

/// A blocked branch is reported as an error in mid-job, and the job goes on to success (protocol 6.4): no ending.
fn failed(data: &str) -> Option<Signal> {
    #[derive(Deserialize)]
    struct Data<'a> {
        prompt_id: String,
        #[serde(borrow)]
        exception_type: Option<Cow<'a, str>>,
    }
    let Data { prompt_id, exception_type } = read(data)?;
    (exception_type.as_deref() != Some("ExecutionBlocked")).then(|| Signal::Ending { prompt: PromptId::new(prompt_id) })
}

/// Decodes a binary frame (protocol 7). The picture shares the frame's memory.
#[must_use]
pub fn decode_binary(frame: Bytes) -> Signal {
    preview(&frame).unwrap_or(Signal::Other)
}

fn preview(frame: &Bytes) -> Option<Signal> {
    match word(frame, 0)? {
        1 => plain_preview(frame),
        4 => described_preview(frame),
        // 3 is a text for a node, which we do not use; 2 is never on the wire.
        _ => None,
    }
}

/// Type 1: image type, image.
fn plain_preview(frame: &Bytes) -> Option<Signal> {
    let content_type = match word(frame, 4)? {
        1 => "image/jpeg",
        2 => "image/png",
        _ => return None,
    };
    Some(Signal::Preview { prompt: None, node: None, content_type, image: image(frame, 8)? })
}

/// Type 4: length of the description, description as JSON, image. Sent instead of type 1 to clients whose first frame
/// asked for it.
fn described_preview(frame: &Bytes) -> Option<Signal> {
    #[derive(Deserialize)]
    struct Description<'a> {
        prompt_id: Option<String>,
        node_id: Option<String>,
        display_node_id: Option<String>,
        #[serde(borrow)]
        image_type: Cow<'a, str>,
    }
    let length = usize::try_from(word(frame, 4)?).ok()?;
    let start = 8_usize.checked_add(length)?;
    let Description { prompt_id, node_id, display_node_id, image_type } =
        serde_json::from_slice(frame.get(8..start)?).ok()?;
    let content_type = match &*image_type {
        "image/jpeg" => "image/jpeg",
        "image/png" => "image/png",
        "image/webp" => "image/webp",
        _ => return None,
    };
    Some(Signal::Preview {
        prompt: prompt_id.map(PromptId::new),
        node: redact::name(display_node_id.or(node_id)),
        content_type,
        image: image(frame, start)?,
    })
}

/// The big-endian number at `at`.
fn word(frame: &[u8], at: usize) -> Option<u32> {
    let bytes = frame.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The rest of the frame; none when there is no picture in it.
fn image(frame: &Bytes, start: usize) -> Option<Bytes> {
    (start < frame.len()).then(|| frame.slice(start..))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prompt() -> PromptId {
        PromptId::new("p")
    }

    #[test]
    fn text_frames_as_documented() {
        let ended = Signal::Ended { prompt: prompt() };
        let ending = Signal::Ending { prompt: prompt() };
        let running = |prompt, node: &str| Signal::Executing { prompt, node: node.into() };
        for (text, signal) in [
            (r#"{"type":"executing","data":{"node":null,"prompt_id":"p"}}"#, ended.clone()),
            (r#"{"data":{"prompt_id":"p","node":null},"type":"executing"}"#, ended),
            (r#"{"type":"executing","data":{"node":"7"}}"#, running(None, "7")),
            (
                r#"{"type":"executing","data":{"node":"1.0.0.3","display_node":"1","prompt_id":"p"}}"#,
                running(Some(prompt()), "1"),
            ),
            (r#"{"type":"executing","data":{"prompt_id":"p"}}"#, Signal::Other),
            (r#"{"type":"executing","data":{"node":null}}"#, Signal::Other),
            (r#"{"type":"execution_error","data":{"prompt_id":"p","current_inputs":{"x":[NaN]}}}"#, ending),
            (
                r#"{"type":"execution_error","data":{"prompt_id":"p","exception_type":"ExecutionBlocked"}}"#,
                Signal::Other,
            ),
            (
                r#"{"type":"progress","data":{"prompt_id":"p","node":"3","value":1,"max":20.0}}"#,
                Signal::Stepped { prompt: prompt(), node: "3".into(), value: 1.0, max: 20.0 },
            ),
            (
                r#"{"type":"execution_cached","data":{"prompt_id":"p","nodes":["1","2"]}}"#,
                Signal::Cached { prompt: prompt(), nodes: vec!["1".into(), "2".into()] },
            ),
            (r#"{"type":"status","data":{"status":{"exec_info":{"queue_remaining":-1}}}}"#, Signal::Other),
            (r#"{"type": "progress_state", "data": not even JSON"#, Signal::Other),
            (r#"{"type":"my_pack.event","data":[1]}"#, Signal::Other),
            (r#"{"type":"status"}"#, Signal::Other),
            (r#"[1,2]"#, Signal::Other),
            ("", Signal::Other),
        ] {
            assert_eq!(decode_text(text), signal, "{text}");
        }
    }

    #[test]
    fn binary_frames_are_bounds_checked() {
        let preview = |image: &'static [u8]| Signal::Preview {
            prompt: None,
            node: None,
            content_type: "image/png",
            image: Bytes::from_static(image),
        };
        let described = b"\0\0\0\x04\0\0\0\x1a{\"image_type\":\"image/png\"}x";
        for (frame, signal) in [
            (&b"\0\0\0\x01\0\0\0\x02png"[..], preview(b"png")),
            (described, preview(b"x")),
            (b"\0\0\0\x01\0\0\0\x02", Signal::Other),
            (b"\0\0\0\x01\0\0\0\x09png", Signal::Other),
            (b"\0\0\0\x03\0\0\0\x011text", Signal::Other),
            (b"\0\0\0\x04\xff\xff\xff\xff{}", Signal::Other),
            (b"\0\0\0\x04\0\0\0\x02{}x", Signal::Other),
            (b"\0\0\0", Signal::Other),
            (b"", Signal::Other),
        ] {
            assert_eq!(decode_binary(Bytes::from_static(frame)), signal, "{frame:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_signal(text in "\\PC{0,200}") {
            let _ = decode_text(&text);
        }

        #[test]
        fn any_data_is_a_signal(
            kind in "status|executing|progress|execution_(start|cached|error|success)",
            data in "(\\{|\\[|\"(node|value|prompt_id)\":|[0-9.,-]|null|NaN|\"x\"|\\}|\\]){0,20}",
        ) {
            let _ = decode_text(&format!(r#"{{"type":"{kind}","data":{data}}}"#));
        }

        #[test]
        fn any_bytes_are_a_signal(kind in 0_u32..6, length in any::<u32>(), rest in prop::collection::vec(any::<u8>(), 0..64)) {
            let frame: Vec<u8> = [&kind.to_be_bytes()[..], &length.to_be_bytes(), &rest].concat();
            let _ = decode_binary(Bytes::from(frame));
            let _ = decode_binary(Bytes::from(rest));
        }
    }
}
