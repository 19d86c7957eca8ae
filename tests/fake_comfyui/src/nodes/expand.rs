//! A node that expands into a subgraph: `EmptyImage` -> `ImageInvert` -> `PreviewImage`, under ids such as `1.0.0.3`.

use image::{Rgb, RgbImage, imageops};
use serde_json::json;

use super::image::{Target, png};
use super::{Images, Product, Stop, Value};
use crate::worker::step::Step;

/// The side of its picture.
const SIDE: u32 = 32;

pub(super) fn expand(step: &Step<'_>) -> Result<Product, Stop> {
    let color = step.int("color", 0);
    let channel = |shift: u32| u8::try_from((color >> shift) & 0xFF).unwrap_or(0);
    let mut image = RgbImage::from_pixel(SIDE, SIDE, Rgb([channel(16), channel(8), channel(0)]));
    imageops::invert(&mut image);
    let target = Target::temporary(step)?;
    let filename = target.next_name(step, "_.png");
    let shown = target.describe(&filename);
    step.server.files.write(target.place(filename), png(&image)?.into());
    let children = vec![None, None, Some(json!({"images": [shown]}))];
    Ok(Product { values: vec![Value::Images(Images::new(vec![image]))], children, ..Product::default() })
}

/// The id of the `number`-th node in the subgraph of `node`.
pub(crate) fn child(node: &str, number: usize) -> String {
    format!("{node}.0.0.{number}")
}

/// The node a person knows: of one in a subgraph, the one that expanded.
pub(crate) fn shown(node: &str) -> &str {
    node.split_once(".0.0.").map_or(node, |(outer, _)| outer)
}

/// The node that expanded into this one.
pub(crate) fn parent(node: &str) -> Option<&str> {
    node.split_once(".0.0.").map(|(outer, _)| outer)
}
