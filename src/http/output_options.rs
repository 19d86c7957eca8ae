//! `output_options` of a task to be created: which of its outputs are kept, and as what.

use std::collections::HashMap;

use comfyd_actors::domain::{
    graph::escape,
    options::{ImageFormat, OutputOptions},
    workflow::type_of,
};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::problem::FieldFault;
use crate::config::nearest;

const FIELDS: [&str; 5] = ["nodes", "format", "quality", "strip_metadata", "inline"];
/// More nodes than a graph of ours may have outputs.
const MAX_NODES: usize = 1_000;

// Documents the body only: it is read field by field, see `read`.
/// Which outputs are kept, and as what.
#[derive(ToSchema)]
#[schema(as = OutputOptions)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub struct OutputOptionsBody {
    /// Keep the outputs of these nodes only.
    #[schema(example = json!(["9"]), min_items = 1)]
    nodes: Option<Vec<String>>,
    /// Still pictures (PNG, JPEG, WebP) become this, and only this is kept: `jpeg`, `webp` or `png`. Transparency becomes white in
    /// `jpeg`. Everything else stays as it is: `content_type` tells. A picture of more than 100 megapixels fails the task.
    #[schema(example = "webp")]
    format: Option<String>,
    /// From 1 to 100, for `jpeg` (default 90) and `webp` (default 85).
    #[schema(minimum = 1, maximum = 100)]
    quality: Option<u8>,
    /// Take out the prompt and the workflow that ComfyUI writes into its files, with all other metadata. Works for PNG, JPEG, WebP,
    /// FLAC, MP3, MP4 and WebM; `metadata_stripped` of each output tells whether it was done.
    strip_metadata: Option<bool>,
    /// Send outputs with the task, as base64 in `data`: `true`, or those of at most so many bytes. The server has a limit for all of
    /// them together (`server.inline_limit`).
    #[schema(value_type = Option<InlineOption>)]
    inline: Option<Value>,
}

/// True, or a number of bytes.
#[derive(ToSchema)]
#[schema(as = InlineOption)]
#[serde(untagged)]
#[expect(dead_code, reason = "the OpenAPI document is made from it")]
pub enum InlineOption {
    /// As much as the server allows, or nothing.
    Wanted(bool),
    /// Outputs of at most so many bytes.
    Bytes(u64),
}

/// Reads the object.
///
/// # Errors
/// Every fault in it.
pub fn read(fields: &Map<String, Value>) -> Result<OutputOptions, Vec<FieldFault>> {
    let mut reading = Reading { fields, faults: Vec::new() };
    reading.check_names();
    let options = OutputOptions {
        nodes: reading.field("nodes", nodes),
        format: reading.field("format", format),
        quality: reading.field("quality", quality),
        strip_metadata: reading.field("strip_metadata", truth).unwrap_or_default(),
        inline: reading.field("inline", inline).flatten(),
    };
    if options.quality.is_some() && !matches!(options.format, Some(ImageFormat::Jpeg | ImageFormat::Webp)) {
        let detail = "quality is for `format` jpeg or webp, which lose detail; leave it out";
        reading.faults.push(FieldFault::at("/output_options/quality", detail));
    }
    if reading.faults.is_empty() { Ok(options) } else { Err(reading.faults) }
}

/// Nodes asked for that are not in the graph (JSON text).
pub fn unknown_nodes(options: &OutputOptions, graph: &str) -> Vec<FieldFault> {
    let Some(wanted) = &options.nodes else { return Vec::new() };
    let known: HashMap<String, IgnoredAny> = serde_json::from_str(graph).unwrap_or_default();
    let unknown = wanted.iter().enumerate().filter(|(_, node)| !known.contains_key(*node));
    unknown
        .map(|(place, node)| {
            let near = nearest(node, known.keys().map(String::as_str));
            FieldFault::at(format!("/output_options/nodes/{place}"), format!("the graph has no node `{node}`"))
                .suggesting(near)
        })
        .collect()
}

struct Reading<'a> {
    fields: &'a Map<String, Value>,
    faults: Vec<FieldFault>,
}

impl Reading<'_> {
    fn check_names(&mut self) {
        let unknown = self.fields.keys().filter(|name| !FIELDS.contains(&name.as_str()));
        self.faults.extend(unknown.take(FIELDS.len()).map(|name| {
            FieldFault::at(format!("/output_options/{}", escape(name)), "there is no such field")
                .suggesting(nearest(name, FIELDS))
        }));
    }

    fn field<T>(&mut self, name: &str, read: impl Fn(&Value) -> Result<T, FieldFault>) -> Option<T> {
        let value = self.fields.get(name).filter(|value| !value.is_null())?;
        let at = |fault| FieldFault { pointer: Some(format!("/output_options/{name}")), ..fault };
        read(value).map_err(|fault| self.faults.push(at(fault))).ok()
    }
}

/// A fault whose place is filled in by the caller.
fn wrong(detail: impl Into<String>) -> FieldFault {
    FieldFault { detail: detail.into(), ..FieldFault::default() }
}

fn nodes(value: &Value) -> Result<Vec<String>, FieldFault> {
    let wanted = "expected a list of node ids, such as [\"9\"]";
    let items = value.as_array().ok_or_else(|| wrong(format!("{wanted}, found {}", type_of(value))))?;
    if items.is_empty() || items.len() > MAX_NODES {
        return Err(wrong(format!("{wanted}: 1 to {MAX_NODES} of them; leave it out to keep all outputs")));
    }
    items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(|| wrong(wanted))).collect()
}

fn format(value: &Value) -> Result<ImageFormat, FieldFault> {
    let word = value.as_str().unwrap_or_default();
    ImageFormat::ALL.into_iter().find(|format| format.as_str() == word).ok_or_else(|| {
        wrong("expected jpeg, webp or png").suggesting(nearest(word, ImageFormat::ALL.map(ImageFormat::as_str)))
    })
}

fn quality(value: &Value) -> Result<u8, FieldFault> {
    let number = value.as_u64().and_then(|number| u8::try_from(number).ok());
    number.filter(|number| (1..=100).contains(number)).ok_or_else(|| wrong("expected a whole number from 1 to 100"))
}

fn truth(value: &Value) -> Result<bool, FieldFault> {
    value.as_bool().ok_or_else(|| wrong("expected true or false"))
}

/// All of them are as many as the server allows when the task is read.
fn inline(value: &Value) -> Result<Option<u64>, FieldFault> {
    match value {
        Value::Bool(wanted) => Ok(wanted.then_some(u64::MAX)),
        other => other.as_u64().map(Some).ok_or_else(|| wrong("expected true, false or a number of bytes")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(value: &Value) -> Vec<(Option<String>, String)> {
        let faults = read(value.as_object().unwrap()).err().unwrap_or_default();
        faults.into_iter().map(|fault| (fault.pointer, fault.detail)).collect()
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let all =
            json!({"nodes": [], "format": "jpg", "quality": 0, "strip_metadata": "yes", "inline": -1, "fromat": "png"});
        let pointers: Vec<String> = faults(&all).into_iter().filter_map(|(pointer, _)| pointer).collect();
        let expected = ["fromat", "nodes", "format", "quality", "strip_metadata", "inline"];
        assert_eq!(pointers, expected.map(|name| format!("/output_options/{name}")));
        let [(_, detail)] = faults(&json!({"format": "png", "quality": 5})).try_into().unwrap();
        assert!(detail.contains("jpeg or webp"), "{detail}");
    }

    #[test]
    fn nodes_must_be_there() {
        let options = OutputOptions { nodes: Some(vec!["9".into(), "10".into()]), ..OutputOptions::default() };
        let unknown = unknown_nodes(&options, r#"{"9": {}, "1": {}}"#);
        assert_eq!(unknown.len(), 1);
        assert_eq!(unknown[0].pointer.as_deref(), Some("/output_options/nodes/1"));
        assert_eq!(unknown_nodes(&OutputOptions::default(), "{}"), []);
    }

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        let all = json!({"nodes": ["9"], "format": "webp", "quality": 80, "strip_metadata": true, "inline": 1000});
        let expected = OutputOptions {
            nodes: Some(vec!["9".into()]),
            format: Some(ImageFormat::Webp),
            quality: Some(80),
            strip_metadata: true,
            inline: Some(1000),
        };
        assert_eq!(read(all.as_object().unwrap()), Ok(expected));
        assert_eq!(read(json!({"inline": false, "format": null}).as_object().unwrap()), Ok(OutputOptions::default()));
    }
}
