//! What a ComfyUI server says.

use bytes::Bytes;
use comfyd_actors::{
    domain::{
        artifact::FileRef,
        catalogue::Catalogue,
        check::{Terms, check, needed},
        graph,
        id::{PromptId, TaskId},
        options::OutputOptions,
        prompt::{Finished, Outcome, Signal},
    },
    ports::comfy::{SubmitError, Wanted},
};
use serde_json::Value;
use uuid::Uuid;

use super::{frame, history, json::relaxed, lookup, redact, refusal};
use crate::fuzz::{Target, text};

pub const TARGETS: &[Target] = &[
    Target {
        name: "comfy_frame_text",
        run: frame_text,
        seeds: &[
            br#"{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "a"}}"#,
            br#"{"type": "executing", "data": {"node": "1.0.0.3", "display_node": "1", "prompt_id": "p"}}"#,
            br#"{"type": "execution_cached", "data": {"nodes": ["1", "2"], "prompt_id": "p", "timestamp": 1}}"#,
            br#"{"type": "progress", "data": {"value": 1, "max": 20, "prompt_id": "p", "node": "3"}}"#,
            br#"{"type": "execution_error", "data": {"prompt_id": "p", "exception_type": "ValueError", "current_inputs": [NaN]}}"#,
        ],
    },
    Target {
        name: "comfy_frame_binary",
        run: frame_binary,
        seeds: &[
            b"\0\0\0\x01\0\0\0\x02png",
            b"\0\0\0\x04\0\0\0\x45{\"node_id\": \"3\", \"prompt_id\": \"p\", \"image_type\": \"image/png\", \"x\": 1}png",
            b"\0\0\0\x03\0\0\0\x011text",
        ],
    },
    Target {
        name: "comfy_history",
        run: read_history,
        seeds: &[
            br#"{"p": {"prompt": [0, "p", {"1": {}}, {}, ["1"]], "outputs": {"1": {"images": [{"filename": "a.png", "subfolder": "x", "type": "output"}], "text": ["t"]}}, "status": {"status_str": "success", "completed": true, "messages": [["execution_success", {}]]}, "meta": {"1": {"display_node": "1"}}}}"#,
            br#"{"p": {"outputs": {}, "status": {"status_str": "error", "messages": [["execution_error", {"exception_type": "torch.OutOfMemoryError", "exception_message": "at /srv/x/y.py", "node_id": "4", "node_type": "KSampler"}]]}}}"#,
            br#"{"p": {"outputs": {"2": {"gifs": [{"filename": "../../etc/passwd"}, {"filename": "C:\\x", "subfolder": "/etc", "type": "models"}, {"filename": "a\u0000\r\n"}]}}, "status": {"status_str": "success", "messages": []}}}"#,
        ],
    },
    Target {
        name: "comfy_queue",
        run: read_queue,
        seeds: &[
            br#"{"queue_running": [[5, "theirs", {}, {"comfyd": {"task": "00000000-0000-0000-0000-000000000007", "dispatch": 2}}, ["1"]]], "queue_pending": [[1, "ours", {}, {}, []]]}"#,
            br#"{"status": "failed", "execution_error": {"exception_type": "KeyError", "node_id": "1"}, "execution_status": {"status_str": "error", "messages": []}, "outputs": {}, "workflow": {"prompt": {"1": {}}}}"#,
            br#"{"theirs": {"prompt": [5, "theirs", {}, {"comfyd": {"task": "00000000-0000-0000-0000-000000000007", "dispatch": 2}}, ["1"]], "outputs": {}, "status": {"status_str": "success", "messages": []}}}"#,
        ],
    },
    Target {
        name: "comfy_object_info",
        run: object_info,
        seeds: &[
            br#"{"A": {"input": {"required": {"image": ["IMAGE"], "n": ["INT", {"min": 0, "max": 9, "default": 1}], "c": [["a", "b"]]}, "optional": {"s": ["COMBO", {"options": ["x"], "multiselect": true}]}}, "input_order": {"required": ["n", "image"]}, "output": ["IMAGE", ["a"]], "output_name": ["x"], "output_is_list": [true], "output_node": true}}"#,
            br#"{"B": {"input": {"required": {"x": ["COMFY_DYNAMICCOMBO_V3", {}], "f": ["FLOAT", {"min": -1e308}]}}, "output": "IMAGE"}, "A": 7}"#,
        ],
    },
    Target {
        name: "comfy_refusal",
        run: read_refusal,
        seeds: &[
            br#"{"error": {"type": "prompt_outputs_failed_validation", "message": "m", "details": "Node ID '#4'", "extra_info": {"node_id": "4", "class_type": "C"}}, "node_errors": {"4": {"class_type": "C", "errors": [{"message": "Value not in list", "details": "a: '/srv/a/b'", "extra_info": {"input_name": "a", "received_value": "x"}}]}}}"#,
            br#"{"prompt_id": "8bc360d2-7244-4fd0-8ea8-919b8182fb16", "number": 1, "node_errors": {"1": {"errors": [], "class_type": "C"}}}"#,
            b"<html>413</html>",
        ],
    },
    Target {
        name: "comfy_json",
        run: pythons_json,
        seeds: &[br#"{"a": [NaN, -Infinity, Infinity, -1], "b": "a \" NaN, \\", "c": "-Infinity"}"#],
    },
    Target {
        name: "comfy_words",
        run: words,
        seeds: &[
            b"cannot identify '/comfyui/input/corrupt.png' at C:\\Users\\John Smith\\x.py",
            b"boom\nTraceback (most recent call last):\n  File \"/srv/x.py\", line 1",
        ],
    },
];

/// Longest name that may come out, as `redact` has it.
const NAME: usize = 256;
/// Longest message: what `redact` keeps, a little more for each path in it, and the words around it.
const MESSAGE: usize = 16 << 10;

fn frame_text(data: &[u8]) {
    match frame::decode_text(&text(data)) {
        Signal::Executing { node, .. } | Signal::Stepped { node, .. } => assert!(node.len() <= NAME),
        _ => {}
    }
}

fn frame_binary(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    if let Signal::Preview { image, node, .. } = frame::decode_binary(frame) {
        assert!(!image.is_empty() && data.ends_with(&image), "a picture is what is left of its frame");
        assert!(node.is_none_or(|node| node.len() <= NAME));
    }
}

fn prompt() -> PromptId {
    PromptId::new("p")
}

fn read_history(data: &[u8]) {
    let text = text(data);
    for finished in [history::answer(&text, &prompt()).ok().flatten(), history::entry(&text, &prompt()).ok()] {
        finished.iter().for_each(ended);
    }
}

/// Whatever a run says of itself, what is kept of it is within bounds, and what is asked of the server stays in its folders.
fn ended(finished: &Finished) {
    if let Outcome::Failed(error) = &finished.outcome {
        assert!(error.message.len() <= MESSAGE);
        assert!(error.node_id.iter().chain(&error.class_type).all(|name| name.len() <= NAME));
    }
    let Ok(artifacts) = finished.artifacts(&OutputOptions::default(), &[]) else { return };
    assert!(artifacts.len() <= 10_000);
    for artifact in artifacts {
        assert!(artifact.node_id.len() <= NAME);
        if let comfyd_actors::domain::artifact::Source::File(file) = artifact.source {
            stays_inside(&file);
        }
    }
}

/// A path built of it by the most careless of servers does not leave the folder.
fn stays_inside(file: &FileRef) {
    let path = format!("/root/{}/{}", file.subfolder, file.filename);
    assert!(path.split(['/', '\\']).all(|part| part != ".."), "{path}");
    assert!(!path.chars().any(char::is_control) && !file.filename.is_empty());
    assert!(!file.subfolder.starts_with('/') && matches!(file.folder_type.as_str(), "output" | "temp" | "input"));
}

fn read_queue(data: &[u8]) {
    let wanted = Wanted { prompt: PromptId::new("ours"), task: TaskId(Uuid::from_u128(7)), dispatch: 2 };
    let text = text(data);
    let _ = lookup::in_queue(&text, &wanted);
    if let Ok(Some(finished)) = lookup::in_history(&text, &wanted) {
        assert!(lookup::plain_id(finished.prompt.as_str()).is_some(), "an id that goes into paths and logs");
        ended(&finished);
    }
    let _ = lookup::job(&text, &wanted.prompt);
}

fn object_info(data: &[u8]) {
    let Ok(catalogue) = Catalogue::parse(&text(data)) else { return };
    let graph = serde_json::json!({
        "1": {"class_type": "A", "inputs": {"image": ["2", 0], "n": 3, "c": "a", "s": ["x"]}},
        "2": {"class_type": "B", "inputs": {"x": {"a": 1}, "f": 1e300}},
        "3": {"class_type": "A", "inputs": {"image": ["3", 7], "n": "x", "c": ["1", 1]}},
    });
    let Ok(nodes) = graph::check(&graph) else { unreachable!("it is a graph") };
    for allow_partial in [false, true] {
        let terms = Terms { allow_partial, is_placeholder: &|_, _, _| false };
        let _ = (check(nodes, &catalogue, terms), needed(nodes, &catalogue, terms));
    }
}

fn read_refusal(data: &[u8]) {
    let text = text(data);
    let _ = (refusal::is_verdict(&text), super::client::receipt(&relaxed(&text)));
    let SubmitError::Refused { message, node_id, class_type, node_errors } = refusal::read(400, &text) else {
        unreachable!("a refusal is one")
    };
    assert!(message.len() <= MESSAGE, "{}", message.len());
    assert!(node_id.iter().chain(&class_type).all(|name| name.len() <= NAME));
    assert!(node_errors.is_none_or(|errors| !errors.to_string().contains("\"traceback\":")));
}

fn pythons_json(data: &[u8]) {
    let text = text(data);
    let cleaned = relaxed(&text);
    if let Ok(value) = serde_json::from_str::<Value>(&text) {
        assert_eq!(serde_json::from_str::<Value>(&cleaned).ok(), Some(value), "what is JSON already means the same");
    }
}

fn words(data: &[u8]) {
    let text = text(data);
    let cleaned = redact::text(&text);
    assert!(cleaned.len() <= MESSAGE && !cleaned.contains("Traceback (most recent call last)"), "{cleaned}");
    assert!(redact::name(Some(text.into_owned())).is_none_or(|name| !name.contains('\n')));
}
