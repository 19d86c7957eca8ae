//! Makes a helpful message out of a refused prompt (protocol 3). Pure.

use comfyd_actors::{domain::natural::natural, ports::comfy::SubmitError};
use serde_json::{Map, Value};

use super::{json::relaxed, redact};

/// Faults spelled out in the message. All of them are in `node_errors`.
const SHOWN: usize = 5;

/// Whether a 4xx body is ComfyUI's own verdict on the prompt, not the page of a proxy in front of it.
#[must_use]
pub fn is_verdict(body: &str) -> bool {
    parse(body).is_some_and(|answer| answer.contains_key("error"))
}

/// Reads the body of a 4xx answer to a prompt.
#[must_use]
pub fn read(status: u16, body: &str) -> SubmitError {
    let Some(answer) = parse(body) else {
        return SubmitError::Refused {
            message: plain(status, body),
            node_id: None,
            class_type: None,
            node_errors: None,
        };
    };
    let node_errors = answer.get("node_errors").and_then(Value::as_object).filter(|nodes| !nodes.is_empty());
    let (message, node_id, class_type) = match node_errors {
        Some(nodes) => from_nodes(nodes),
        None => from_error(status, answer.get("error").unwrap_or(&Value::Null)),
    };
    let (node_id, class_type) = (redact::name(node_id), redact::name(class_type));
    SubmitError::Refused { message, node_id, class_type, node_errors: node_errors.map(faults) }
}

/// The faults per node, fit for users.
#[must_use]
pub fn faults(nodes: &Map<String, Value>) -> Value {
    redact::value(&Value::Object(nodes.clone()))
}

fn parse(body: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(&relaxed(body)).ok()
}

/// For bodies that are not JSON: ComfyUI's "body too large", or somebody else's page.
fn plain(status: u16, body: &str) -> String {
    let line = body.lines().next().unwrap_or_default().trim();
    if line.is_empty() || line.starts_with('<') {
        format!("the server answered {status} and gave no reason")
    } else {
        format!("the server answered {status}: {}", redact::text(line))
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The prompt as a whole is at fault: no outputs, an unknown node.
fn from_error(status: u16, error: &Value) -> (String, Option<String>, Option<String>) {
    let extra = error.get("extra_info").unwrap_or(&Value::Null);
    let (said, details) = (text(error, "message"), text(error, "details"));
    // Older servers name the node only in prose: "Node ID '#4'".
    let in_prose = details.split_once("'#").and_then(|(_, rest)| rest.split_once('\'')).map(|(id, _)| id);
    let node_id = extra.get("node_id").and_then(Value::as_str).or(in_prose).map(ToOwned::to_owned);
    let class_type = extra.get("class_type").and_then(Value::as_str).map(ToOwned::to_owned);
    let message = match (error.as_str(), said, details) {
        (Some(said), ..) => said.to_owned(),
        (None, "", "") => format!("the server answered {status} and gave no reason"),
        (None, said, "") => said.to_owned(),
        (None, said, details) if said == details => said.to_owned(),
        (None, said, details) => format!("{said} ({details})"),
    };
    let message = match &class_type {
        Some(class) if !message.contains(class.as_str()) => format!("{message} [{class}]"),
        _ => message,
    };
    (redact::text(&message), node_id, class_type)
}

/// Single nodes are at fault: names each with its class, its input and what is wrong with it.
fn from_nodes(nodes: &Map<String, Value>) -> (String, Option<String>, Option<String>) {
    let mut nodes: Vec<(&String, &Value)> = nodes.iter().collect();
    nodes.sort_by(|(a, _), (b, _)| natural(a, b));
    let all: Vec<String> = nodes
        .iter()
        .flat_map(|(id, node)| {
            let faults = node.get("errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            faults.iter().map(|fault| describe(id, text(node, "class_type"), fault))
        })
        .collect();
    let mut message = all[..all.len().min(SHOWN)].join("; ");
    if all.len() > SHOWN {
        message.push_str(&format!("; and {} more", all.len() - SHOWN));
    }
    if message.is_empty() {
        "the server found faults in the graph and does not say which".clone_into(&mut message);
    }
    let first = nodes.first();
    let class_type = first.map(|(_, node)| text(node, "class_type")).filter(|class| !class.is_empty());
    (message, first.map(|(id, _)| (*id).clone()), class_type.map(ToOwned::to_owned))
}

fn describe(id: &str, class: &str, fault: &Value) -> String {
    let extra = fault.get("extra_info").unwrap_or(&Value::Null);
    let (said, details, input) = (text(fault, "message"), text(fault, "details"), text(extra, "input_name"));
    let mut line = format!("node {id}");
    if !class.is_empty() {
        line.push_str(&format!(" ({class})"));
    }
    if !input.is_empty() {
        line.push_str(&format!(", input {input}"));
    }
    line.push_str(&format!(": {}", if said.is_empty() { "invalid" } else { said }));
    if !details.is_empty() && details != input {
        line.push_str(&format!(" ({details})"));
    }
    if let Some(received) = extra.get("received_value").map(shown).filter(|received| !line.contains(received)) {
        line.push_str(&format!("; received {received}"));
    }
    redact::text(&line)
}

/// A received value in prose. Links and long texts say nothing to a reader.
fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(body: &str) -> (String, Option<String>, Option<String>) {
        let SubmitError::Refused { message, node_id, class_type, .. } = read(400, body) else { panic!("not refused") };
        (message, node_id, class_type)
    }

    #[test]
    fn a_missing_model_is_named() {
        let (message, node_id, class_type) = refused(
            r#"{"error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
            "node_errors": {"10": {"errors": [], "class_type": "SaveImage"}, "4": {"class_type": "CheckpointLoaderSimple", "errors": [
            {"type": "value_not_in_list", "message": "Value not in list", "details": "ckpt_name: 'x.safetensors' not in []",
            "extra_info": {"input_name": "ckpt_name", "received_value": "x.safetensors"}}]}}}"#,
        );
        assert_eq!(
            message,
            "node 4 (CheckpointLoaderSimple), input ckpt_name: Value not in list (ckpt_name: 'x.safetensors' not in [])"
        );
        assert_eq!((node_id.as_deref(), class_type.as_deref()), (Some("4"), Some("CheckpointLoaderSimple")));
    }

    #[test]
    fn an_unknown_node_is_named_by_old_and_new_servers() {
        let new = r#"{"error": {"type": "missing_node_type", "message": "Node 'My Title' not found.", "details": "Node ID '#1'",
            "extra_info": {"node_id": "1", "class_type": "NoSuchNode"}}, "node_errors": {}}"#;
        let (message, node_id, class_type) = refused(new);
        assert_eq!(message, "Node 'My Title' not found. (Node ID '#1') [NoSuchNode]");
        assert_eq!((node_id.as_deref(), class_type.as_deref()), (Some("1"), Some("NoSuchNode")));

        let old = r#"{"error": {"type": "invalid_prompt", "message": "Cannot execute because node NoSuchNode does not exist.",
            "details": "Node ID '#1'", "extra_info": {}}, "node_errors": []}"#;
        assert_eq!(refused(old).1.as_deref(), Some("1"));
    }

    #[test]
    fn other_bodies_still_say_something() {
        for (body, message) in [
            (
                "Maximum request body size 104857600 exceeded.",
                "the server answered 400: Maximum request body size 104857600 exceeded.",
            ),
            ("<html>", "the server answered 400 and gave no reason"),
            ("", "the server answered 400 and gave no reason"),
            ("[]", "the server answered 400: []"),
            ("{}", "the server answered 400 and gave no reason"),
            (r#"{"error": "limit must be positive"}"#, "limit must be positive"),
            (r#"{"node_errors": {"1": 7}}"#, "the server found faults in the graph and does not say which"),
        ] {
            assert_eq!(refused(body).0, message, "{body}");
        }
    }

    #[test]
    fn a_proxys_page_is_no_verdict() {
        assert!(is_verdict(r#"{"error": {"type": "no_prompt"}, "node_errors": {}}"#));
        assert!(!is_verdict("<html>401</html>"));
        assert!(!is_verdict(r#"{"detail": "not found"}"#));
    }

    proptest! {
        #[test]
        fn never_panics(body in "(\\{|\\}|\\[|\\]|,|:|\"(error|node_errors|errors|extra_info|message|details|x)\"|null|7){0,40}") {
            let _ = read(400, &body);
        }
    }
}
