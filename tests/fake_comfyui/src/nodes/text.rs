//! The nodes whose result is text.

use serde_json::json;

use super::image::Target;
use super::{Product, Stop, Value};
use crate::files::Folder;
use crate::worker::step::Step;

/// Text plus a key nobody knows, and a binary text frame on the way.
pub(super) fn lab_text_out(step: &mut Step<'_>) -> Result<Product, Stop> {
    let text = step.text("text");
    let owner = step.prompt.client_id.as_deref();
    step.server.hub.progress_text(owner, &step.node.id, &format!("progress text: {text}"));
    let ui = json!({"text": [text], "lab_extra": [{"answer": 42}]});
    Ok(Product { values: vec![Value::Text(text.into())], ui: Some(ui), ..Product::default() })
}

pub(super) fn preview_any(step: &mut Step<'_>) -> Result<Product, Stop> {
    let text = match step.inputs.get("source") {
        Some(Value::Images(_)) => "tensor([[[[0.5, 0.5, 0.5]]]])".to_owned(),
        _ => step.text("source"),
    };
    Ok(Product { ui: Some(json!({"text": [text]})), ..Product::default() })
}

pub(super) fn save_text(step: &mut Step<'_>) -> Result<Product, Stop> {
    let text = step.text("text");
    let prefix = step.text("filename_prefix");
    let format = Some(step.text("format")).filter(|format| !format.is_empty()).unwrap_or_else(|| "txt".to_owned());
    let target = Target::new(step, Folder::Output, &prefix)?;
    let filename = target.next_name(step, &format!(".{format}"));
    let shown = target.describe(&filename);
    step.server.files.write(target.place(filename), text.clone().into_bytes().into());
    Ok(Product { ui: Some(json!({"text": [text], "files": [shown]})), ..Product::default() })
}
