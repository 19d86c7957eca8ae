//! Large outputs out of nothing, for upload benchmarks.

use serde_json::{Value as Json, json};

use super::image::Target;
use super::{Product, Stop};
use crate::files::{Content, Folder, mix};
use crate::worker::step::Step;

/// Announces `count` files of `bytes` pseudo-random bytes. They are made while they are sent, so any size costs no memory.
pub(super) fn produce(step: &mut Step<'_>) -> Result<Product, Stop> {
    let length = u64::try_from(step.int("bytes", 0)).unwrap_or(0);
    let count = u64::from(step.size("count", 1, 10_000));
    let seed = step.seed("seed");
    let extension: String = step.text("extension").chars().filter(char::is_ascii_alphanumeric).collect();
    let prefix =
        Some(step.text("filename_prefix")).filter(|prefix| !prefix.is_empty()).unwrap_or_else(|| "fake".to_owned());
    let target = Target::new(step, Folder::Output, &prefix)?;
    let files: Vec<Json> = (0..count)
        .map(|index| {
            let filename = target.next_name(step, &format!("_.{extension}"));
            let shown = target.describe(&filename);
            let content = Content::Generated { seed: mix(seed.wrapping_mul(0x0001_0001).wrapping_add(index)), length };
            step.server.files.put(target.place(filename), content);
            shown
        })
        .collect();
    Ok(Product { ui: Some(json!({"images": files})), ..Product::default() })
}
